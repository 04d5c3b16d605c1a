"""Data sets: what the archives on disk may look like."""

import numpy as np
import pytest
import torch

from advkit import data


def write(path, **arrays):
    np.savez(path, **arrays)
    return path


@pytest.fixture
def labels():
    return np.arange(4, dtype=np.uint8)


def test_digits():
    train, test = data.digits("train"), data.digits("test")
    assert train.x.shape == (1297, 1, 8, 8)
    assert test.x.shape == (500, 1, 8, 8)
    assert (train.x.min(), train.x.max()) == (0, 1)
    assert train.y.dtype == torch.int64
    assert train.y.unique().tolist() == list(range(10))
    with pytest.raises(ValueError, match="`split` must be one of"):
        data.digits("valid")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((4, 5, 6), (4, 1, 5, 6)),
        ((4, 5, 6, 3), (4, 3, 5, 6)),
        ((4, 3, 5, 6), (4, 3, 5, 6)),
        ((4, 7), (4, 7)),
        ((4, 5, 6, 1), (4, 1, 5, 6)),
        ((4, 5, 6, 4), (4, 4, 5, 6)),
    ],
)
def test_layouts(tmp_path, labels, shape, expected):
    images = np.random.default_rng(0).random(shape).astype(np.float32)
    found = data.load_npz(write(tmp_path / "d.npz", images=images, labels=labels))
    assert found.x.shape == expected
    assert found.x.is_contiguous()
    assert found.y.tolist() == [0, 1, 2, 3]
    assert found.name == "d.npz"
    pixel = found.x[1, 2, 3, 4] if shape == (4, 5, 6, 3) else None
    if pixel is not None:
        assert float(pixel) == images[1, 3, 4, 2]


def test_bytes_are_spread_over_the_bounds(tmp_path, labels):
    images = np.array([[0, 255], [51, 102], [0, 0], [1, 2]], dtype=np.uint8)
    path = write(tmp_path / "d.npz", images=images, labels=labels)
    torch.testing.assert_close(data.load_npz(path).x[1], torch.tensor([0.2, 0.4]))
    assert data.load_npz(path, (0, 255)).x[1].tolist() == [51, 102]
    torch.testing.assert_close(data.load_npz(path, (-1, 1)).x[0], torch.tensor([-1.0, 1.0]))


def test_ambiguous_layouts_are_not_guessed(tmp_path, labels):
    path = write(tmp_path / "d.npz", images=np.zeros((4, 3, 5, 3), np.uint8), labels=labels)
    with pytest.raises(ValueError, match="must have one axis of 1, 3 or 4 channels"):
        data.load_npz(path)
    assert data.load_npz(path, layout="channels_last").x.shape == (4, 3, 3, 5)
    assert data.load_npz(path, layout="channels_first").x.shape == (4, 3, 5, 3)
    assert data.load_npz(path, layout="as_is").x.shape == (4, 3, 5, 3)
    with pytest.raises(ValueError, match="`layout` must be one of"):
        data.load_npz(path, layout="hwc")


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"x": np.zeros((4, 2))}, "must hold the arrays images and labels, got x"),
        ({"images": np.zeros(4), "labels": np.zeros(4, int)}, "two axes or more"),
        ({"images": np.zeros((4, 2)), "labels": np.zeros(3, int)}, r"shape \(4,\).*got \(3,\)"),
        ({"images": np.zeros((4, 2)), "labels": np.zeros(4)}, "`labels` must be integers"),
        ({"images": np.zeros((4, 2), int), "labels": np.zeros(4, int)}, "uint8 or float"),
        ({"images": np.array([{}] * 4), "labels": np.zeros(4, int)}, "plain arrays"),
    ],
)
def test_other_archives_are_refused(tmp_path, arrays, said):
    with pytest.raises(ValueError, match=said):
        data.load_npz(write(tmp_path / "d.npz", **arrays))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        data.load_npz(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match="not an .npz archive"):
        data.load_npz(tmp_path / "text.npz")
    whole = write(tmp_path / "whole.npz", images=np.zeros((99, 9)), labels=np.zeros(99, int))
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:1000])
    (tmp_path / "nothing.npz").write_bytes(b"")
    np.savez_compressed(tmp_path / "packed.npz", images=np.arange(900.0).reshape(9, 100))
    packed = bytearray((tmp_path / "packed.npz").read_bytes())
    packed[60:68] = b"\xff" * 8
    (tmp_path / "packed.npz").write_bytes(packed)
    for name in ("cut.npz", "nothing.npz", "packed.npz"):
        with pytest.raises(ValueError, match="not an .npz archive"):
            data.load_npz(tmp_path / name)
    np.save(tmp_path / "one.npy", np.zeros(3))
    with pytest.raises(ValueError, match="not an .npz archive"):
        data.load_npz(tmp_path / "one.npy")


def test_head_takes_the_first(tmp_path, labels):
    found = data.load_npz(write(tmp_path / "d.npz", images=np.zeros((4, 2)), labels=labels))
    assert found.head(3).y.tolist() == [0, 1, 2]
    assert len(found.head(None)) == 4
