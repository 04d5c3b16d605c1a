"""Folders of images: classes, order, values, sizes, and files that are not images."""

import os
import pickle
import struct
import sys
import warnings
import zlib
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from advkit import data as data_module
from advkit.core.batching import batches
from advkit.data import ImageFolder

Image = pytest.importorskip("PIL.Image")


def pixels(height, width, channels=3, seed=0):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture
def folder(tmp_path):
    """Three classes with 2, 3 and 1 images, and files to ignore."""
    root = tmp_path / "pets"
    names = ["dog/b.png", "dog/a.PNG", "cat/10.png", "cat/9.bmp", "cat/deep/1.png", "Bird/x.tiff"]
    for seed, name in enumerate(names):
        save(root / name, pixels(5, 6, seed=seed))
    save(root / "cat/.hidden.png", pixels(5, 6))
    save(root / "cat/.cache/1.png", pixels(5, 6))
    save(root / ".trash/1.png", pixels(5, 6))
    save(root / "top.png", pixels(5, 6))
    (root / "dog/notes.txt").write_text("no image")
    (root / "dog/png").write_text("no suffix")
    return root


def test_classes_paths_and_labels(folder):
    data = ImageFolder(folder)
    assert data.classes == ("Bird", "cat", "dog")
    shown = [path.relative_to(folder).as_posix() for path in data.paths]
    cats = ["cat/10.png", "cat/9.bmp", "cat/deep/1.png"]
    assert shown == ["Bird/x.tiff", *cats, "dog/a.PNG", "dog/b.png"]
    assert data.y.tolist() == [0, 1, 1, 1, 2, 2]
    assert data.y.dtype == torch.int64
    assert (data.name, len(data)) == ("pets", 6)
    assert [label for _, label in (data[i] for i in range(6))] == data.y.tolist()


def test_the_name_of_the_current_folder(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert ImageFolder(".").name == "pets"


def test_the_order_of_the_disk_does_not_matter(folder, monkeypatch):
    expected = ImageFolder(folder).paths

    def walk(path):
        for parent, folders, names in os.walk(path):
            folders.reverse()
            yield parent, folders, names[::-1]

    backwards = SimpleNamespace(walk=walk, scandir=lambda path: [*os.scandir(path)][::-1])
    monkeypatch.setattr(data_module, "os", backwards)
    assert ImageFolder(folder).paths == expected


def test_values_are_scaled_to_the_bounds(tmp_path):
    array = pixels(5, 6)
    array[0, 0], array[0, 1] = 0, 255
    save(tmp_path / "a/1.png", array)
    x, label = ImageFolder(tmp_path)[0]
    assert (x.dtype, x.shape, label) == (torch.float32, (3, 5, 6), 0)
    assert x.is_contiguous()
    torch.testing.assert_close(x, torch.from_numpy(array).permute(2, 0, 1) / 255)
    bytes_ = ImageFolder(tmp_path, bounds=(0, 255))[0][0]
    assert torch.equal(bytes_, torch.from_numpy(array).permute(2, 0, 1).float())
    low = ImageFolder(tmp_path, bounds=(-1, 1))[0][0]
    assert (low[0, 0, 0], low[0, 0, 1]) == (-1, 1)


def test_modes_are_converted(tmp_path):
    gray = save(tmp_path / "a/gray.png", pixels(4, 4, 1))
    save(tmp_path / "a/rgba.png", pixels(4, 4, 4))
    palette = Image.fromarray(pixels(4, 4)).convert("P")
    palette.save(tmp_path / "a/zpalette.png", transparency=bytes(range(256)))
    Image.fromarray(pixels(4, 4, 4), "CMYK").save(tmp_path / "a/zz.jpg")
    assert [x.shape for x, _ in map(ImageFolder(tmp_path).__getitem__, range(4))] == [(3, 4, 4)] * 4
    one = ImageFolder(tmp_path, mode="L")
    assert [one[i][0].shape for i in range(4)] == [(1, 4, 4)] * 4
    assert one.paths[0] == gray
    torch.testing.assert_close(one[0][0][0], torch.from_numpy(pixels(4, 4, 1)) / 255)
    rgba = torch.from_numpy(pixels(4, 4, 4)[..., :3]).permute(2, 0, 1) / 255
    torch.testing.assert_close(ImageFolder(tmp_path)[1][0], rgba)


@pytest.mark.parametrize("given", [(40, 61), (61, 40), (37, 37), (7, 9), (24, 100)])
@pytest.mark.parametrize("size", [(24, 24), (16, 30), (30, 17)])
def test_images_are_resized_and_cropped_at_the_center(tmp_path, given, size):
    """The two steps of torchvision: Resize to whole pixels that cover the size, CenterCrop."""
    (h, w), (height, width) = size, given
    save(tmp_path / "a/1.png", pixels(*given))
    scaled = (h, width * h // height) if h / height >= w / width else (height * w // width, w)
    resized = Image.fromarray(pixels(*given)).resize(scaled[::-1], Image.Resampling.BILINEAR)
    top, left = round((scaled[0] - h) / 2), round((scaled[1] - w) / 2)
    expected = np.array(resized.crop((left, top, left + w, top + h)))
    found = ImageFolder(tmp_path, size=size, bounds=(0, 255))[0][0]
    assert found.shape == (3, h, w)
    assert (found - torch.from_numpy(expected).permute(2, 0, 1)).abs().max() <= 1


def test_an_image_of_odd_proportions_needs_no_memory(tmp_path):
    """To cover the size it would be scaled to 200 x 12,000,000 pixels."""
    save(tmp_path / "a/1.png", np.zeros((1, 60_000, 3), np.uint8))
    assert ImageFolder(tmp_path, size=(200, 200))[0][0].shape == (3, 200, 200)


def test_batches_need_one_size(tmp_path):
    save(tmp_path / "a/1.png", pixels(5, 6))
    save(tmp_path / "a/2.png", pixels(6, 5))
    said = r"inputs of one shape .*got \(3, 5, 6\) .sample 0. and \(3, 6, 5\) .sample 1.. Resize"
    with pytest.raises(ValueError, match=said):
        list(batches(ImageFolder(tmp_path), None, 2))
    ((x, y, _),) = batches(ImageFolder(tmp_path, size=(5, 5)), None, 2)
    assert (x.shape, y.tolist()) == ((2, 3, 5, 5), [0, 0])


def test_it_is_a_data_set_of_torch(folder):
    data = pickle.loads(pickle.dumps(ImageFolder(folder, size=(4, 4))))
    (x, y), *_ = DataLoader(data, batch_size=4)
    assert (x.shape, y.tolist()) == ((4, 3, 4, 4), [0, 1, 1, 1])


def test_a_part_has_images_of_all_classes(folder):
    data = ImageFolder(folder)
    part = data.subsample(3)
    assert part.y.tolist() == [0, 1, 2]
    assert part.paths == data.paths[::2]
    assert (part.classes, len(data), part[2][1]) == (data.classes, 6, 2)
    assert data.subsample(4).y.tolist() == [0, 1, 1, 2]
    assert len(data.subsample(None)) == len(data.subsample(99)) == 6
    with pytest.raises(ValueError, match="`limit` must be at least 1, got 0"):
        data.subsample(0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 224}, r"`size` must be a pair \(height, width\), got 224"),
        ({"size": (2, 3, 4)}, "`size` must be a pair"),
        ({"size": (0, 3)}, "`size` must be at least 1, got 0"),
        ({"size": (2.0, 3)}, "`size` must be an int"),
        ({"mode": "HSV"}, "`mode` must be one of 'RGB', 'L', got 'HSV'"),
        ({"bounds": (1, 0)}, "`bounds` must be two finite numbers, lower first"),
    ],
)
def test_bad_arguments(folder, options, said):
    with pytest.raises((TypeError, ValueError), match=said):
        ImageFolder(folder, **options)


def test_folders_without_images(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder: .*none"):
        ImageFolder(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        ImageFolder(save(tmp_path / "1.png", pixels(2, 2)))
    (tmp_path / ".hidden").mkdir()
    with pytest.raises(ValueError, match="one subfolder of images for each class, got no subfold"):
        ImageFolder(tmp_path)
    save(tmp_path / "cat/1.png", pixels(2, 2))
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog/1.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"in every subfolder, got none in 'dog'.*\.bmp, \.jpeg"):
        ImageFolder(tmp_path)


def test_missing_pillow_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"ImageFolder needs pillow.*the extra 'images'"):
        ImageFolder(folder)


def bomb():
    """A PNG of a few bytes that says it has 20,000 x 20,000 pixels."""

    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def gif():
    stream = BytesIO()
    Image.fromarray(pixels(4, 4)).save(stream, "GIF")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (lambda whole: b"", "UnidentifiedImageError"),
        (lambda whole: b"hello", "UnidentifiedImageError"),
        (lambda whole: whole[:3000], "truncated"),
        (lambda whole: bomb(), "DecompressionBombError"),
        (lambda whole: gif(), "UnidentifiedImageError"),  # a format that is not decoded
    ],
    ids=["empty", "text", "cut", "bomb", "gif"],
)
def test_a_file_that_is_not_an_image_is_named(tmp_path, content, said):
    path = save(tmp_path / "a/1.png", pixels(64, 64))
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(
        ValueError, match=rf"1\.png must be an image that Pillow can read, got .*{said}"
    ):
        ImageFolder(tmp_path)[0]


def test_a_file_that_is_gone_is_named(folder):
    data = ImageFolder(folder)
    data.paths[0].unlink()
    with pytest.raises(ValueError, match=r"x\.tiff must be .*FileNotFoundError"):
        data[0]


def test_images_of_more_bits_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(tmp_path / "1.png")
    save(tmp_path / "a/2.png", pixels(4, 4))
    (tmp_path / "1.png").rename(tmp_path / "a/1.png")
    with pytest.raises(ValueError, match=r"1\.png .*must have 8 bits per channel, got mode 'I;16'"):
        ImageFolder(tmp_path)[0]


def test_no_file_is_left_open(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = ImageFolder(folder)
        list(batches(data, None, 3))
