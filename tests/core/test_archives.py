"""Archives of arrays."""

import hashlib

import numpy as np
import pytest
import torch

from advkit.core import archives
from advkit.core.archives import check_digest, digest_of, digest_of_tensor, read_npz, write_npz


def test_arrays_come_back_as_they_were_written(tmp_path):
    path = tmp_path / "new" / "arrays.npz"
    words, numbers = np.array(["a", "bc"]), np.array([[1.5, np.nan]], dtype=np.float32)
    write_npz(path, {"words": words, "numbers": numbers, "more": numbers})
    found = read_npz(path, ("numbers", "words"))
    assert sorted(found) == ["numbers", "words"]
    assert found["words"].tolist() == ["a", "bc"]
    assert found["numbers"].dtype == np.float32
    np.testing.assert_array_equal(found["numbers"], numbers)


def test_archives_that_are_none_or_lack_arrays_or_hold_objects(tmp_path):
    path = tmp_path / "arrays.npz"
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_npz(path, ("x", "y"))
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match="is not an .npz archive of plain arrays"):
        read_npz(path, ("x", "y"))
    write_npz(path, {"x": np.zeros(2), "z": np.zeros(2)})
    with pytest.raises(ValueError, match="must hold the arrays x and y, got x, z"):
        read_npz(path, ("x", "y"))
    np.savez(path, x=np.array([print], dtype=object), y=np.zeros(2))
    with pytest.raises(ValueError, match="is not an .npz archive of plain arrays"):
        read_npz(path, ("x", "y"))


def test_digests_depend_on_names_dtypes_shapes_and_values():
    tensors = [{"a": torch.zeros(2)}, {"b": torch.zeros(2)}, {"a": torch.zeros(2).double()},
               {"a": torch.zeros(1, 2)}, {"a": torch.ones(2)}]  # fmt: skip
    assert len({digest_of(own) for own in tensors}) == len(tensors)
    assert digest_of({"a": torch.zeros(2)}) == digest_of(tensors[0])
    assert digest_of({"a": torch.tensor(1).bfloat16()}) != digest_of({"a": torch.tensor(1)})


def test_a_digest_next_to_a_file(tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(b"weights")
    check_digest(path)
    beside = tmp_path / "net.safetensors.sha256"
    beside.write_text(f"{hashlib.sha256(b'weights').hexdigest()}  net.safetensors\n")
    check_digest(path)
    for other in ("", "0" * 64):
        beside.write_text(other)
        with pytest.raises(
            ValueError, match="net.safetensors must have the SHA-256 in .* is damaged"
        ):
            check_digest(path)


def test_all_arrays_are_read_if_none_are_named(tmp_path):
    path = tmp_path / "arrays.npz"
    write_npz(path, {"x": np.zeros(2), "z": np.zeros((2, 0))})
    assert list(read_npz(path)) == ["x", "z"]


def test_a_small_file_that_unpacks_to_much_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "arrays.npz"
    write_npz(path, {"x": np.zeros(2**17)})
    assert len(read_npz(path)["x"]) == 2**17
    monkeypatch.setattr(archives, "_ALWAYS_ALLOWED_SIZE", 2**16)
    with pytest.raises(ValueError, match=r"bytes would unpack to 1,048,\d\d\d"):
        read_npz(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64])
def test_the_digest_of_a_tensor_can_be_computed_by_hand(dtype):
    tensor = torch.arange(6).reshape(3, 2).to(dtype).T  # columns are not next to each other
    array = np.ascontiguousarray(tensor.numpy())
    expected = hashlib.sha256(f"{dtype} (2, 3)\n".encode() + array.tobytes()).hexdigest()
    assert digest_of_tensor(tensor) == expected
    assert digest_of({"x": tensor}) == digest_of({"x": tensor.contiguous()})


def test_empty_arrays_of_numpy_have_the_digest_of_empty_tensors():
    for shape in [(0,), (0, 32), (3, 0)]:
        empty = torch.zeros(shape, dtype=torch.int64)
        assert digest_of_tensor(torch.from_numpy(empty.numpy())) == digest_of_tensor(empty)


def test_other_shapes_dtypes_and_values_have_other_digests():
    x = torch.arange(4.0)
    tensors = [x, x[None], x.view(2, 2), x.double(), x.bfloat16(), x + 1, -x]
    assert len({digest_of_tensor(tensor) for tensor in tensors}) == len(tensors)
    assert digest_of_tensor((1j * x).imag) == digest_of_tensor(x)
    negated = torch._neg_view(x)  # its memory holds the values of x
    assert digest_of_tensor(negated) == digest_of_tensor(-x)
