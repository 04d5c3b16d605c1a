"""Archives of arrays."""

import numpy as np
import pytest

from advkit.core.archives import read_npz, write_npz


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
    with pytest.raises(ValueError, match="must hold the arrays x and y, holds: x, z"):
        read_npz(path, ("x", "y"))
    np.savez(path, x=np.array([print], dtype=object), y=np.zeros(2))
    with pytest.raises(ValueError, match="is not an .npz archive of plain arrays"):
        read_npz(path, ("x", "y"))
