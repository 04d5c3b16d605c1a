"""Conversions of downloads, checks of a folder, and the page that describes the files."""

import gzip
import hashlib
import pickle
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from advkit.core.archives import read_npz, read_torch

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
DATA_FILE = re.compile(r"[\"`]((?:mnist|cifar10|gtsrb|imagenet)_\w+\.(?:npz|pt|txt))[\"`]")
WEIGHTS = {"conv.weight": torch.rand(2, 3, 4, 4), "bn.num_batches_tracked": torch.tensor(7)}


@pytest.fixture
def run(study, monkeypatch, capsys, tmp_path):
    """A function that runs the script on the folder `files`; returns status and output."""

    def execute(*arguments):
        line = ["get_data.py", "--data", str(tmp_path / "files"), *arguments]
        monkeypatch.setattr("sys.argv", line)
        try:
            status = study.main()
        except SystemExit as end:
            status = end.code
        return status, *capsys.readouterr()

    return execute


@pytest.fixture
def expected(study, monkeypatch):
    """A function that makes the script expect this content of a file, and that file alone."""

    def expect(name, content, convert=None):
        entry = study.File("0" * 64, study.content_digest(content), convert)
        monkeypatch.setattr(study, "FILES", {name: entry})

    return expect


def downloads(folder, files):
    """Write files of bytes, somewhere below a folder; return the folder."""
    for name, data in files.items():
        path = folder / "downloads" / "unpacked" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder / "downloads"


def equal(found, wanted):
    assert set(found) == set(wanted)
    for name, array in found.items():
        assert array.dtype == wanted[name].dtype
        np.testing.assert_array_equal(array, wanted[name])


# --- the page and the folder ---------------------------------------------------------------------


def rows_of_the_page():
    cells = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| `")]
    return [(row[0].strip("`"), row[1:]) for row in cells]


def test_the_page_has_the_checksums_of_the_script(study):
    checksums = {
        name: tuple(cell.strip("`") for cell in row)
        for name, row in rows_of_the_page()
        if re.fullmatch(r"`[0-9a-f]{64}`", row[0])
    }
    assert checksums == {name: (f.sha256, f.content) for name, f in study.FILES.items()}
    assert list(checksums) == list(study.FILES)


def test_the_page_has_the_content_and_the_source_of_each_file(study):
    named = [name for name, _ in rows_of_the_page()]
    for name, file in study.FILES.items():
        assert named.count(name) >= 3
        by_hand = PAGE[PAGE.index("## By hand") : PAGE.index("## Checksums")]
        assert (f"`{name}`" in by_hand) == (file.convert is None)


def test_the_page_has_every_file_that_the_project_reads(study):
    """A file that a study, a test or a benchmark names has an entry, and each entry is named."""
    this = Path(__file__).name
    paths = [p for top in ("examples", "tests", "benchmarks") for p in (ROOT / top).rglob("*.py")]
    texts = [p.read_text() for p in paths if p.name not in (this, "get_data.py")]
    named = {name for text in texts for name in DATA_FILE.findall(text)}
    assert named == set(study.FILES)
    assert set(DATA_FILE.findall(PAGE)) == set(study.FILES)


def test_the_page_has_the_arrays_of_each_file_of_images(study, real):
    arrays = {name: row[0] for name, row in rows_of_the_page() if "`images`" in row[0]}
    assert set(arrays) == {name for name in study.FILES if name.endswith(".npz")}
    for name, text in arrays.items():
        found = read_npz(real(name))
        shown = [
            f"`{key}` {'str' if a.dtype.kind == 'U' else a.dtype} {a.shape}"
            for key, a in found.items()
        ]
        assert text.removesuffix(" of up to 40 characters") == ", ".join(shown)


def test_the_page_has_the_size_of_each_net(study, real):
    content = {name: row for name, row in rows_of_the_page() if re.match(r"\d+ tensors", row[-1])}
    assert set(content) == {name for name in study.FILES if name.endswith(".pt")}
    for name, row in content.items():
        found = read_torch(real(name))
        values = sum(t.numel() for key, t in found.items() if "num_batches" not in key)
        counted = sum(t.numel() for t in found.values())
        sizes = {f"{len(found)} tensors, {n:,} values, " for n in (values, counted)}
        assert any(row[-1].startswith(size) for size in sizes)
        dtypes = {str(t.dtype).removeprefix("torch.") for t in found.values()}
        assert dtypes == set(re.findall(r"(?:float|int)\d\d", row[-1]))


def test_published_files_have_their_content(study, real):
    for name, file in study.FILES.items():
        path = real(name)
        content = read_npz(path) if path.suffix == ".npz" else read_torch(path)
        assert study.content_digest(content) == file.content, name


def test_pages_whose_commands_take_a_folder_link_to_the_page():
    pages = [p for p in (ROOT / "docs").rglob("*.md") if "--data FOLDER" in p.read_text()]
    assert len(pages) > 10
    for page in pages:
        assert page.name == "data.md" or "data.md)" in page.read_text(), page.name
    for page in ("README.md", "CONTRIBUTING.md", "examples/README.md"):
        assert "docs/data.md)" in (ROOT / page).read_text(), page


# --- the digest and the check --------------------------------------------------------------------


def test_the_digest_depends_on_names_dtypes_shapes_and_values_alone(study):
    array = np.arange(6, dtype=np.int32).reshape(2, 3)
    found = study.content_digest({"a": array, "b": array})
    assert found == study.content_digest({"b": array.astype(">i4"), "a": torch.from_numpy(array)})
    assert found == study.content_digest({"b": np.asfortranarray(array), "a": array})
    for other in (array.astype(np.int64), array.reshape(3, 2), array + 1, array[:1]):
        assert found != study.content_digest({"a": array, "b": other})
    assert found != study.content_digest({"a": array, "c": array})
    assert found != study.content_digest({"a": array})


def test_the_digest_is_that_of_the_page(study):
    wanted = hashlib.sha256(b"labels |u1 (2,)\n\x03\x04x <i4 (1,)\n\x05\0\0\0").hexdigest()
    content = {"x": np.array([5], np.int32), "labels": np.array([3, 4], np.uint8)}
    assert study.content_digest(content) == wanted


@pytest.mark.parametrize("name", ["a.npz", "a.pt"])
def test_a_file_is_checked_by_its_content(run, expected, tmp_path, name):
    content = {"x": np.arange(3, dtype=np.int32)}
    expected(name, content)
    (tmp_path / "files").mkdir()

    def save(arrays):
        path = tmp_path / "files" / name
        if name == "a.npz":
            np.savez(path, **arrays)
        else:
            torch.save({key: torch.from_numpy(a) for key, a in arrays.items()}, path)

    assert run()[:2] == (1, f"{name}: missing\n")
    save(content)
    assert run() == (0, f"{name}: right\n", "")
    save({"x": content["x"] + 1})
    status, out, err = run(name)
    assert (status, out) == (1, f"{name}: other content\n")
    assert err == (
        "get_data.py: error: `--data` must name a folder with the published files, "
        f"got {tmp_path / 'files'}, where 1 of 1 are not right. See docs/data.md.\n"
    )
    (tmp_path / "files" / name).write_bytes(b"damaged")
    assert run()[:2] == (1, f"{name}: other content\n")


def test_a_file_with_the_same_bytes_is_not_read(study, tmp_path):
    (tmp_path / "a.npz").write_bytes(b"anything")
    file = study.File(hashlib.sha256(b"anything").hexdigest(), "")
    assert study.check(tmp_path / "a.npz", file) == study.RIGHT


def test_wrong_arguments(run, tmp_path):
    status, out, err = run("mnist.npz", "mnist_test.npz")
    assert (status, out) == (2, "")
    assert err == "get_data.py: error: `NAME` must be a file of docs/data.md, got mnist.npz.\n"
    status, out, err = run("--convert", str(tmp_path / "none"))
    assert (status, out) == (2, "")
    assert "`--convert` must be a folder of downloads, got " in err


# --- conversions ---------------------------------------------------------------------------------


def test_a_conversion_is_written_only_if_its_content_is_right(run, expected, tmp_path):
    content = {"x": np.arange(3)}
    folder, path = downloads(tmp_path, {"some": b""}), tmp_path / "files" / "a.npz"
    expected("a.npz", content, lambda _: {"x": np.arange(4)})
    status, out, _ = run("--convert", str(folder))
    assert (status, out) == (1, "a.npz: missing, the download has other content\n")
    assert not path.exists()
    expected("a.npz", content, lambda _: content)
    assert run("--convert", str(folder)) == (0, "a.npz: right\n", "")
    equal(read_npz(path), content)
    expected("a.npz", content, lambda _: pytest.fail("it is there already"))
    assert run("--convert", str(folder))[0] == 0


def test_a_conversion_that_fails_gives_the_reason(study, run, expected, tmp_path):
    folder = downloads(tmp_path, {"lenet_mnist_model.pth": b"damaged"})
    expected("a.npz", {})
    out = run("--convert", str(folder))[1]
    assert out == "a.npz: missing, docs/data.md describes the conversion\n"
    expected("a.pt", {}, study.net("other.pth"))
    out = run("--convert", str(folder))[1]
    assert out == f"a.pt: missing, needs other.pth in {folder}\n"
    expected("a.pt", {}, study.net("lenet_mnist_model.pth"))
    assert "a.pt: missing, the download is damaged: " in run("--convert", str(folder))[1]


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_mnist(study, tmp_path, compress):
    images, labels = np.random.default_rng(0).integers(0, 256, (2, 5, 28, 28), np.uint8)
    labels = labels[:, 0, 0] % 10
    end = ".gz" if compress is gzip.compress else ""
    folder = downloads(
        tmp_path,
        {
            f"t10k-images-idx3-ubyte{end}": compress(
                struct.pack(">HBBIII", 0, 8, 3, 5, 28, 28) + images.tobytes()
            ),
            f"t10k-labels-idx1-ubyte{end}": compress(
                struct.pack(">HBBI", 0, 8, 1, 5) + labels.tobytes()
            ),
        },
    )
    equal(study.mnist("t10k")(folder), {"images": images, "labels": labels})


class Python2Pickler(pickle._Pickler):
    """Pickler that writes bytes as the strings of Python 2, of which the official files consist."""

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012

    def save_string(self, value):
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_string


@pytest.mark.parametrize("pickler", [pickle._Pickler, Python2Pickler])
def test_cifar10(study, tmp_path, pickler):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), np.uint8)
    labels = [3, 9, 0, 1, 2]
    rows = images.transpose(0, 3, 1, 2).reshape(5, -1)  # red, then green, then blue
    path = tmp_path / "batch"
    with path.open("wb") as file:
        pickler(file, protocol=2).dump({b"data": rows, b"labels": labels, b"batch_label": b"1"})
    folder = downloads(tmp_path, {"cifar-10-batches-py/test_batch": path.read_bytes()})
    wanted = {
        "images": images[:4],
        "labels": np.array(labels[:4], np.uint8),
        "index": np.arange(4, dtype=np.int32),
    }
    equal(study.cifar10("test_batch", 4)(folder), wanted)


def test_no_code_of_a_pickle_is_run(study, run, expected, tmp_path):
    evil = b"cos\nsystem\n(S'touch " + str(tmp_path / "run").encode() + b"'\ntR."
    folder = downloads(tmp_path, {"cifar-10-batches-py/test_batch": evil})
    expected("a.npz", {}, study.cifar10("test_batch", 4))
    assert "the download is damaged: it holds os.system" in run("--convert", str(folder))[1]
    assert not (tmp_path / "run").exists()


def ppm(image):
    return b"P6\n%d %d\n255\n" % (image.shape[1], image.shape[0]) + image.tobytes()


def test_road_signs_of_the_training_set(study, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 30, 2, 3, 3), np.uint8)
    images[:, :, 8] = 32  # a space, as the first byte after the header
    files = {
        f"GTSRB/Final_Training/Images/{label:05d}/{track:05d}_{frame:05d}.ppm": ppm(
            images[label, track, frame]
        )
        for label in range(3)
        for track in range(2)
        for frame in range(30)
    }
    found = study.signs_train(downloads(tmp_path, files))
    wanted = {
        "images": images[:, :, [8, 18, 28]].reshape(18, 2, 3, 3),
        "labels": np.repeat(np.arange(3, dtype=np.uint8), 6),
        "track": np.tile(np.repeat(np.arange(2, dtype=np.int32), 3), 3),
    }
    equal(found, wanted)


def test_road_signs_of_the_test_set(study, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (4, 2, 3, 3), np.uint8)
    files = {f"GTSRB/Final_Test/Images/{i:05d}.ppm": ppm(image) for i, image in enumerate(images)}
    table = "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n" + "".join(
        f"{i:05d}.ppm;53;54;6;5;48;49;{16 + i}\n" for i in reversed(range(4))
    )
    folder = downloads(tmp_path, {**files, "GT-final_test.csv": table.encode()})
    wanted = {
        "images": images[:3],
        "labels": np.array([16, 17, 18], np.uint8),
        "index": np.arange(3, dtype=np.int32),
    }
    equal(study.signs_test(folder, 3), wanted)


def test_other_images_are_refused(study, tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"P3\n1 1\n255\n0 0 0")
    with pytest.raises(ValueError, match="a.ppm must be a binary PPM image with 256 levels"):
        study.read_ppm(tmp_path / "a.ppm")


@pytest.mark.parametrize("zipped", [True, False], ids=["new", "before torch 1.6"])
@pytest.mark.parametrize(
    "checkpoint",
    [
        WEIGHTS,
        {"state_dict": WEIGHTS, "epoch": 3},
        {"state_dict": {f"module.{key}": t for key, t in WEIGHTS.items()}, "best_prec1": 91.7},
        {key: torch.nn.Parameter(t, t.is_floating_point()) for key, t in WEIGHTS.items()},
    ],
    ids=["weights", "checkpoint", "parallel", "parameters"],
)
def test_nets(study, run, expected, tmp_path, checkpoint, zipped):
    path = tmp_path / "net"
    torch.save(checkpoint, path, _use_new_zipfile_serialization=zipped)
    folder = downloads(tmp_path, {"models/net.pth": path.read_bytes()})
    expected("a.pt", WEIGHTS, study.net("models/net.pth"))
    assert run("--convert", str(folder)) == (0, "a.pt: right\n", "")
    found = torch.load(tmp_path / "files" / "a.pt", weights_only=True)
    assert type(found) is dict
    assert all(type(tensor) is torch.Tensor for tensor in found.values())
    equal({key: t.numpy() for key, t in found.items()}, {k: t.numpy() for k, t in WEIGHTS.items()})


def test_the_first_of_several_names_is_taken(study, tmp_path):
    folder = downloads(tmp_path, {"a/old.pth": b"", "b/x": b"", "c/new.pth": b""})
    assert study.find(folder, "new.pth", "old.pth").name == "new.pth"
    assert study.find(folder, "none.pth", "a/old.pth").name == "old.pth"
    with pytest.raises(FileNotFoundError, match=r"^none\.pth or b$"):
        study.find(folder, "none.pth", "b")
