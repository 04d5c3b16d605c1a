"""Make the files that the studies read out of downloads, and check their content.

    python examples/studies/get_data.py --data FOLDER [--convert DOWNLOADS] [NAME ...]

`docs/data.md` names the source of each file. `--convert` takes a folder with the downloads, at any
depth, and writes the files that it can make into `--data`. A file is only written if its content is
the one that the published figures were measured on. Then each file, or each that is named, is
checked. The exit status is 1 if one of them is missing or has other content.
"""

from __future__ import annotations

import argparse
import codecs
import csv
import gzip
import hashlib
import io
import pickle
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from study import end_with_error

from advkit.core.archives import read_npz, read_torch, write_npz
from advkit.core.files import atomic_write

Content = Mapping[str, Any]  # arrays or tensors by name
RIGHT, MISSING, OTHER = "right", "missing", "other content"
SIGN_FRAMES = (8, 18, 28)  # of the 30 pictures of each road sign


class File(NamedTuple):
    """A file of `--data`.

    Attributes:
        sha256: checksum of the file that the published figures were measured on.
        content: checksum of its content, which does not depend on the writer: `content_digest`.
        convert: function that makes the content from a folder of downloads, if there is one.
    """

    sha256: str
    content: str
    convert: Callable[[Path], Content] | None = None


def main() -> int:
    """Convert and check the files, print the state of each, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="file to check, by default all")
    parser.add_argument("--data", type=Path, required=True, help="folder of the files")
    parser.add_argument("--convert", type=Path, metavar="DOWNLOADS", help="folder of downloads")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in FILES]
    if unknown:
        end_with_error(f"`NAME` must be a file of docs/data.md, got {', '.join(unknown)}.")
    if args.convert is not None and not args.convert.is_dir():
        end_with_error(f"`--convert` must be a folder of downloads, got {args.convert}.")
    bad = []
    for name in args.names or FILES:
        state, reason = check(args.data / name, FILES[name]), ""
        if state != RIGHT and args.convert is not None:
            state, reason = convert(args.data / name, FILES[name], args.convert)
        print(f"{name}: {state}{reason and f', {reason}'}", flush=True)
        bad += [name] if state != RIGHT else []
    if bad:
        end_with_error(
            f"`--data` must name a folder with the published files, got {args.data}, where "
            f"{len(bad)} of {len(args.names or FILES)} are not right. See docs/data.md.",
            status=1,
        )
    return 0


def check(path: Path, file: File) -> str:
    """Return the state of the file at `path`: `RIGHT`, `MISSING` or `OTHER`."""
    if not path.is_file():
        return MISSING
    if hashlib.sha256(path.read_bytes()).hexdigest() == file.sha256:
        return RIGHT
    try:
        content = read_npz(path) if path.suffix == ".npz" else read_torch(path)
        return RIGHT if content_digest(content) == file.content else OTHER
    except Exception:  # noqa: BLE001 - a damaged file may fail in any way
        return OTHER


def convert(path: Path, file: File, downloads: Path) -> tuple[str, str]:
    """Write the file at `path` from downloads; return its state and, if it fails, the reason."""
    state = MISSING if not path.is_file() else OTHER
    if file.convert is None:
        return state, "docs/data.md describes the conversion"
    try:
        content = file.convert(downloads)
    except FileNotFoundError as error:
        return state, f"needs {error} in {downloads}"
    except Exception as error:  # noqa: BLE001 - a damaged download may fail in any way
        return state, f"the download is damaged: {error}"
    if content_digest(content) != file.content:
        return state, "the download has other content"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        write_npz(path, dict(content))
    else:
        with atomic_write(path) as temporary:
            torch.save(dict(content), temporary)
    return RIGHT, ""


def content_digest(content: Content) -> str:
    """Return the SHA-256, in hexadecimal, of arrays or tensors in the order of their names.

    Each of them adds a line `NAME DTYPE SHAPE`, as NumPy writes both, and then its values in C
    order, least significant byte first.
    """
    digest = hashlib.sha256()
    for name in sorted(content):
        array = np.asarray(content[name])
        array = array.astype(array.dtype.newbyteorder("<"))
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


# --- the conversions -----------------------------------------------------------------------------


def find(downloads: Path, *ends: str) -> Path:
    """Return the first file in `downloads`, at any depth, whose path ends in one of `ends`."""
    for end in ends:
        for path in sorted(downloads.rglob(end)):
            if path.is_file():
                return path
    raise FileNotFoundError(" or ".join(ends))


def mnist(kind: str) -> Callable[[Path], Content]:
    """Return the conversion of the official files of MNIST, `train` or `t10k`."""

    def convert(downloads: Path) -> Content:
        names = (f"{kind}-images-idx3-ubyte", f"{kind}-labels-idx1-ubyte")
        images, labels = (read_idx(find(downloads, f"{name}.gz", name)) for name in names)
        return {"images": images, "labels": labels}

    return convert


def read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """Read bytes in the IDX format of MNIST, compressed or not."""
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        data = gzip.decompress(data)
    axes = data[3]
    shape = np.frombuffer(data, ">i4", axes, offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(shape)


def cifar10(batch: str, count: int) -> Callable[[Path], Content]:
    """Return the conversion of the first images in an official batch of CIFAR-10."""

    def convert(downloads: Path) -> Content:
        path = find(downloads, f"cifar-10-batches-py/{batch}")
        entries = PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        planes = entries[b"data"][:count].reshape(-1, 3, 32, 32)
        return {
            "images": np.ascontiguousarray(planes.transpose(0, 2, 3, 1)),
            "labels": np.array(entries[b"labels"][:count], np.uint8),
            "index": np.arange(count, dtype=np.int32),
        }

    return convert


class PlainUnpickler(pickle.Unpickler):
    """Reader of pickled arrays, lists and strings that runs no other code."""

    allowed = {  # noqa: RUF012 - a constant
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): codecs.encode,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the few functions that arrays need."""
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not an array.")
        return self.allowed[module, name]


def signs_train(downloads: Path) -> Content:
    """Convert three pictures of each road sign in the training set of GTSRB."""
    first = find(downloads, f"GTSRB/Final_Training/Images/00000/00000_{SIGN_FRAMES[0]:05d}.ppm")
    frames = [f"_{frame:05d}.ppm" for frame in SIGN_FRAMES]
    paths = sorted(p for p in first.parents[1].glob("*/*.ppm") if p.name.endswith(tuple(frames)))
    return {
        "images": np.stack([read_ppm(path) for path in paths]),
        "labels": np.array([int(path.parent.name) for path in paths], np.uint8),
        "track": np.array([int(path.name.split("_")[0]) for path in paths], np.int32),
    }


def signs_test(downloads: Path, count: int = 1000) -> Content:
    """Convert the first road signs in the test set of GTSRB."""
    folder = find(downloads, "GTSRB/Final_Test/Images/00000.ppm").parent
    with find(downloads, "GT-final_test.csv").open(newline="", encoding="utf-8") as file:
        label_of = {
            row["Filename"]: int(row["ClassId"]) for row in csv.DictReader(file, delimiter=";")
        }
    names = [f"{i:05d}.ppm" for i in range(count)]
    return {
        "images": np.stack([read_ppm(folder / name) for name in names]),
        "labels": np.array([label_of[name] for name in names], np.uint8),
        "index": np.arange(count, dtype=np.int32),
    }


def read_ppm(path: Path) -> npt.NDArray[np.uint8]:
    """Read a color image in the binary PPM format with 256 levels, without comments."""
    data = path.read_bytes()
    header = re.match(rb"P6\s+(\d+)\s+(\d+)\s+255\s", data)
    if header is None:
        raise ValueError(f"{path} must be a binary PPM image with 256 levels.")
    return np.frombuffer(data[header.end() :], np.uint8).reshape(int(header[2]), int(header[1]), 3)


def net(*ends: str) -> Callable[[Path], Content]:
    """Return the conversion of a checkpoint, whose weights have the names of `nets.py`."""

    def convert(downloads: Path) -> Content:
        found = torch.load(find(downloads, *ends), map_location="cpu", weights_only=True)
        weights = found.get("state_dict", found)
        return {name.removeprefix("module."): value.detach() for name, value in weights.items()}

    return convert


# --- the files -----------------------------------------------------------------------------------

FILES = {
    "mnist_train.npz": File(
        "33e9753a8d3ed06561a816bf46d6d686b20801696e497f092853c1634577f43f",
        "b267d954b8c5c8dd85f07f78f1f43f9c0c8a68eae2b50e3430a845a9339aeb46",
        mnist("train"),
    ),
    "mnist_test.npz": File(
        "af5595f05f0cc260498196e07655cfa443d2d96874d5ba0dcfeaea06defbda81",
        "019f0a166d12727a16ab199dd227dfa586d928ba98b1af7a3543e61271701192",
        mnist("t10k"),
    ),
    "cifar10_train_00000_09999.npz": File(
        "1f3827a9d7ae5f755d690b3ea973055f2b635209c750b8c025a76e31baa1ff36",
        "2c7187831ef485c4d5fe131ee448903dd75f8743f04ff43343b171863f563db8",
        cifar10("data_batch_1", 10_000),
    ),
    "cifar10_test_0000_0499.npz": File(
        "5275f240f476fcdde7a095c0b34160aa4afed2d4d69690c295eb46e1a4c91344",
        "f30d3cc59df895dc7b4fae04c3c1c744a3523ebaf4cdcf8f97e7dd0a65b36634",
        cifar10("test_batch", 500),
    ),
    "cifar10_test_jpeg_1000_2999.npz": File(
        "105d062ed8d3fa9f278a1eaf76c1bb6eb5a1afabc85d6f757aa1d9eb6b3b6639",
        "332baccbc04f7eaf2b736b7a567620e7c83321b8b31415fbdbfcb0f8f71a711e",
    ),
    "gtsrb_train_sample.npz": File(
        "4057053001eb2e2c7cc739967c2dea44cd8b7918eb49086bc038aed3a16e74ca",
        "5d08b8b8d83e631c1fc8698aa0d47d781649dc854e814465cb108e2b18119428",
        signs_train,
    ),
    "gtsrb_test_00000_00999.npz": File(
        "ddd9c1c60482e3767e9cecc8197c87520c081c07e9f9711c578bfb8c5aa1c47d",
        "a8d21c020bc888685d0f8d07e222e5898b28d836602a6ad515b62c88d45eaa54",
        signs_test,
    ),
    "imagenet_sample_224.npz": File(
        "5ffa936e31e5349c9f75f29d4a238886430dbb14e12e2ec939775115f804fb62",
        "4a4571e594db5b15540bfcaefba49f4ff866be27cea28e9baec696c5217c05a3",
    ),
    "mnist_lenet.pt": File(
        "cc4d6d02900a4bc44abcbd67be422df8bde367688f99892dc4ae7e7eaa7487a2",
        "66f89ff2d534332628611fffd2dbe2ea82c7e775bb950988b127c0ad0357ba37",
        net("lenet_mnist_model.pth"),
    ),
    "mnist_lenet5_plain.pt": File(
        "95b7091adce1e5706009720aaed6b8f7c1853adbdc1448d56346bade03f6891f",
        "f4527f06d58ca43065cb95a827c35d294a65b07983c372635285b516733c7cd0",
        net("mnist_lenet5_clntrained.pt"),
    ),
    "mnist_lenet5_robust.pt": File(
        "4031253094b2cf6d56b6e5d2571e436cb565891f3c9ba2103172ef0b90caf5fc",
        "58b1893d4217250e3516c73539231d6aaa0cb2d1ce91cb8696cde65d0a62e8a5",
        net("mnist_lenet5_advtrained.pt"),
    ),
    "mnist_cnn_certified.pt": File(
        "32b706cf2906d2e2dbfad18fcf0f6a0277948f328968b9b7965869ce781d8dde",
        "f9a2f77a3157d4d43df37d21ce415d931c6d70aacd91a84773ce824be43a1aa9",
        net("models/mnist.pth"),
    ),
    "cifar10_resnet20.pt": File(
        "4158abc48e277977606f6049d42efea1e92c263c1b213deff482fe1c8d88c27a",
        "71e3bb4ca88e184a0f0809230f6b44227b03daa83af45ce4f3b501039ff15e51",
        net("resnet20-12fca82f.th"),
    ),
    "cifar10_resnet44.pt": File(
        "e08aa613cdf8e123e297b1163a18d772d3e81d2721cc9a06967e0b2abd9e1c89",
        "2315767245738dd314ac42939333e3c436b50d6c9b3011044a3c24d700627cd2",
        net("resnet44-014dd654.th"),
    ),
    "cifar10_resnet4b_robust.pt": File(
        "752eb74ad4bd7d016bc2159a37ba4ff7effd780fa6717ef2cd9fcf9f92913d8d",
        "7ee963886d12e42cd9cf20722453ee5bf50e793d5461d131bb2300cf97616646",
        net("resnet4b.pth"),
    ),
    "imagenet_mobilenet_v1_050.pt": File(
        "6fa1aed1bf3b7c609060f76f45d91314a1d69ede15227fda77c4537b6120d639",
        "0526602e990362cbb33e6a91c992581cfa70aad38b2432ca2e7f7a4ad379748e",
    ),
    "imagenet_mobilenet_v2.pt": File(
        "30102fc275b3b2bee411db124f684a2b025070b484c81f06f69b587cd2dee578",
        "0e6e4c81ebc28f811a8e237734125da6a3621b4c628707a18f64c4e5d18dc904",
    ),
    "imagenet_squeezenet11.pt": File(
        "80561af45a82cb9d4f40181bbb6bc0726e5cce811e281bc10ecb75a449643bfe",
        "f3313e8babc50e370f26db3aaa0a13f4c8b8479dc764e1bc383f468862e51e84",
    ),
}


if __name__ == "__main__":
    sys.exit(main())
