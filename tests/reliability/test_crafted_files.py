"""Files behind a right tag that hold other things than they should: refused, or read as sound."""

import io
import json
import struct
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch

from advkit.core.archives import read_npz, read_torch

from .file_kinds import (
    ConfidenceGuardFile,
    DataArchive,
    Forest,
    GuardFile,
    MRRCheckpoint,
    MRRFile,
    Table,
    TrainingCheckpoint,
    Weights,
    finite,
)

OTHERS = [
    None, True, -1, 0, 10**9, 10**400, 1.5, float("nan"), float("inf"), "other", "", [], {}, [[]],
    {"other": 1},
]  # fmt: skip
TENSORS = [torch.zeros(0), torch.full((3,), torch.nan), torch.zeros((), dtype=torch.complex64)]


def changed_trees(value, others):
    """Yield each tree in which one key is missing or added, or one value is another."""
    if isinstance(value, dict):
        for key in value:
            yield f"without {key}", {k: v for k, v in value.items() if k != key}
            for name, part in changed_trees(value[key], others):
                yield f"{key}: {name}", {**value, key: part}
        yield "with more", {**value, "more": 1}
    elif isinstance(value, (list, tuple)) and len(value) <= 10:
        for i, part in enumerate(value):
            for name, other in changed_trees(part, others):
                yield f"{i}: {name}", type(value)([*value[:i], other, *value[i + 1 :]])
        yield "longer", type(value)([*value, *value[:1]])
        yield "shorter", type(value)(value[:-1])
    elif isinstance(value, torch.Tensor):
        yield from changed_tensors(value)
    for other in others:
        yield f"{type(other).__name__} {str(other)[:20]}", other


def changed_tensors(tensor):
    """Yield tensors of other shapes, dtypes and values."""
    yield "an axis more", tensor[None]
    yield "twice as long", torch.cat([tensor.reshape(-1)] * 2)
    yield "an axis less", tensor.new_zeros(()).expand(tensor.shape[1:])
    yield "in half", tensor.half()
    yield "endless", torch.zeros(1).expand(10**12)
    yield "on no device", torch.empty_like(tensor, device="meta")
    values = (torch.nan, torch.inf, -1, -(10**6)) if tensor.is_floating_point() else (-1,)
    for value in values:
        yield f"all {value}", torch.full(tensor.shape, value).to(tensor.dtype)


def changed_arrays(arrays):
    """Yield archives in which an array is missing or another one."""
    for name, array in arrays.items():
        yield f"without {name}", {k: v for k, v in arrays.items() if k != name}
        for how, other in others_than(array).items():
            yield f"{name} {how}", {**arrays, name: np.asarray(other)}


def others_than(array):
    """Return arrays of other shapes, dtypes and values."""
    real = array.dtype if array.dtype.kind == "f" else np.dtype(float)
    others = {
        "an axis more": array[None],
        "flat": array.ravel()[:1],
        "a scalar": array.ravel()[0],
        "none": np.atleast_1d(array)[:0],
        "words": np.full(array.shape, "word"),
        "complex": np.full(array.shape, 1j),
        "float16": np.ones(array.shape, np.float16),
        "NaN": np.full(array.shape, np.nan, real),
        "infinite": np.full(array.shape, np.inf, real),
        "swapped": array.astype(array.dtype.newbyteorder()),
    }
    if array.ndim:
        others |= {"longer": np.concatenate([array, array]), "shorter": array[:-1]}
    if array.dtype.kind == "f":
        others |= {"negative": -1 - abs(array), "huge": np.full_like(array, np.finfo(real).max)}
    elif array.dtype.kind in "bi":
        others |= {"negative": -1 - array.astype(int), "huge": np.full(array.shape, 2**63 - 1)}
    return others


def part_of(changes, most):
    """Return every so many of `changes`, about `most` in all."""
    changes = list(changes)
    return changes[:: max(1, len(changes) // most)]


ALL = pytest.mark.parametrize("most", [40, pytest.param(10**6, marks=pytest.mark.long)])


def sound_or_refused(kind, path, trial):
    """Try to read the file and use what was read."""
    with trial:
        try:
            kind.read(path)
            used = kind.use(path)
        except kind.errors:
            return
        assert finite(used)


def arrays_of(path):
    with np.load(path) as archive:
        return dict(archive)


@ALL
@pytest.mark.parametrize(
    "kind",
    [
        TrainingCheckpoint(),
        TrainingCheckpoint("MultiStepLR", "SGD"),
        TrainingCheckpoint("CosineAnnealingLR", "SGD"),
        TrainingCheckpoint(None, "SGD"),
    ],
    ids=lambda kind: f"{kind.scheduler} {kind.optimizer}",
)
def test_the_content_of_a_training_checkpoint(kind, most, tmp_path, tally):
    path = tmp_path / "file.pt"
    kind.write(path)
    content = torch.load(path, weights_only=True)
    crafted = tally("training checkpoint: crafted content is refused or sound")
    for name, other in part_of(changed_trees(content, OTHERS[::4]), most // 2):
        torch.save(other, path)
        sound_or_refused(kind, path, crafted.trial(name))


@ALL
@pytest.mark.parametrize(
    "kind",
    [MRRFile(), MRRCheckpoint(), GuardFile(), ConfidenceGuardFile()],
    ids=lambda kind: kind.name,
)
def test_the_content_of_a_file_with_metadata(kind, most, tmp_path, tally):
    path = tmp_path / "file.npz"
    kind.write(path)
    arrays = arrays_of(path)
    crafted = tally(f"{kind.name}: crafted content is refused or sound")
    about = json.loads(str(arrays.pop("about")))
    for name, other in part_of(changed_trees(about, OTHERS), most):
        if kind.name == "MRR checkpoint" and name.startswith("fit"):
            continue
        np.savez(path, **arrays, about=np.array(json.dumps(other)))
        sound_or_refused(kind, path, crafted.trial(name))
    for name, other in part_of(changed_arrays(arrays), most):
        names = "stored" if "Guard" in kind.name else "arrays"
        listed = json.dumps({**about, names: list(other)})
        np.savez(path, **other, about=np.array(listed))
        sound_or_refused(kind, path, crafted.trial(name))
    for name, words in [("deep", "[" * 100_000), ("long", "1" * 10_000), ("NaN", "NaN")]:
        np.savez(path, **arrays, about=np.array(words))
        sound_or_refused(kind, path, crafted.trial(name))


@ALL
@pytest.mark.parametrize("kind", [Forest(), Table(), DataArchive()], ids=lambda kind: kind.name)
def test_the_content_of_archives_of_arrays(kind, most, tmp_path, tally):
    path = tmp_path / "file.npz"
    kind.write(path)
    crafted = tally(f"{kind.name}: crafted content is refused or sound")
    for name, other in part_of(changed_arrays(arrays_of(path)), most):
        np.savez(path, **other)
        sound_or_refused(kind, path, crafted.trial(name))


@ALL
def test_the_content_of_weights(most, tmp_path, tally):
    kind, path = Weights(), tmp_path / "file.pt"
    kind.write(path)
    content = dict(torch.load(path, weights_only=True))
    crafted = tally("--weights file: crafted content is refused, or loaded as it is")
    for name, other in part_of(
        [*changed_trees(content, OTHERS), ("a number", {1: torch.zeros(1)})], most
    ):
        torch.save(other, path)
        with crafted.trial(name):
            try:
                kind.read(path)
            except kind.errors as error:
                assert "--weights: " in str(error)  # noqa: PT017 - either of two ends is right


def header(shape, kind="'<f8'", tag=b"\x93NUMPY\1\0"):
    words = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    return tag + struct.pack("<H", len(words) + 1) + words + b"\n"


HEADERS = {
    "cut": header("(10**6"),
    "large": header("(1000000, 1000, 1000)"),
    "beyond int64": header("(99999999999999999999, 28)"),
    "many digits": header(f"({'9' * 900},)"),
    "more digits": header(f"({'9' * 9000},)"),
    "negative": header("(-1, -3)") + bytes(24),
    "wraps around": header(f"({2**32}, {2**32})"),
    "objects": header("(3,)", "'|O'") + bytes(24),
    "no bytes each": header("(1000000000000,)", "'<U0'"),
    "fields": header("(3,)", "[('a', '<f8')]") + bytes(24),
    "no type": header("(3,)", "None") + bytes(24),
    "deep": header("(" * 900),
    "code": header("__import__('os').abort()"),
    "version 3": header("(3,)", tag=b"\x93NUMPY\3\0") + bytes(24),
    "too short": header("(4,)") + bytes(24),
    "too long": header("(2,)") + bytes(24),
    "no array": b"no array at all",
    "nothing": b"",
}


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_headers_of_arrays(tmp_path, tally, method):
    refused, path = tally("a crafted header of an array is refused"), tmp_path / "odd.npz"
    for name, member in HEADERS.items():
        with refused.trial(name):
            with zipfile.ZipFile(path, "w", method) as archive:
                archive.writestr("images.npy", member)
            with pytest.raises(ValueError, match=r"odd\.npz is not an \.npz archive"):
                read_npz(path, ("images",))


def archive_of(members, method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return bytearray(buffer.getvalue())


def with_field(raw, offset, form, value):
    """Set a field of the first record of the central directory."""
    struct.pack_into(form, raw, raw.find(b"PK\1\2") + offset, value)
    return raw


ARRAY = header("(3,)") + bytes(24)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_crafted_archives(tmp_path, tally):
    def one(method=zipfile.ZIP_STORED, name="images.npy", member=ARRAY):
        return archive_of([(name, member)], method)

    deflated, large = zipfile.ZIP_DEFLATED, header("(200000000,)")
    crafted = {
        "two of one name": archive_of([("images.npy", ARRAY)] * 2),
        "encrypted": with_field(one(), 8, "<H", 1),
        "longer than the file": with_field(one(), 20, "<I", 10**6),
        "unpacks to more than it says": with_field(one(deflated), 24, "<I", 100),
        "unpacks to less than it says": with_field(one(deflated), 24, "<I", 10**6),
        "bzip2": one(zipfile.ZIP_BZIP2),
        "lzma": one(zipfile.ZIP_LZMA),
        "damaged lzma": with_field(one(), 10, "<H", zipfile.ZIP_LZMA),
        "another method": with_field(one(), 10, "<H", 99),
        "a bomb": with_field(one(deflated, member=large), 24, "<I", 16 * 10**8 + len(large)),
        "an offset outside": with_field(one(), 42, "<I", 10**6),
    }
    path, refused = tmp_path / "odd.npz", tally("a crafted archive is refused")
    for name, raw in crafted.items():
        path.write_bytes(raw)
        for read in (read_npz, read_torch):
            with refused.trial(f"{name}, {read.__name__}"), pytest.raises(ValueError, match="odd"):
                read(path)


def test_archives_that_torch_made_with_something_else(tmp_path, tally):
    path, refused = tmp_path / "odd.pt", tally("a file of torch that holds more is refused")
    counter = Counter({1: 2})
    torch.save({"a": torch.zeros(2), "b": counter}, path)
    assert read_torch(path)["b"] == counter

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    with refused.trial("code"):
        torch.save(Bomb(), path)
        with pytest.raises(ValueError, match="more than plain values"):
            read_torch(path)
        assert not (tmp_path / "exploded").exists()
    with refused.trial("of a torch before 1.6"):
        torch.save({"a": torch.zeros(2)}, path, _use_new_zipfile_serialization=False)
        with pytest.raises(ValueError, match="not an archive of torch.save, or is damaged"):
            read_torch(path)
