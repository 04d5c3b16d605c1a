"""A folder with the results of an evaluation, which outlive the process that computes them."""

from __future__ import annotations

import errno
import json
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from advkit.core import checks
from advkit.core.files import save_json
from advkit.eval.store.manifest import Manifest
from advkit.eval.store.unit_files import UnitName, read_unit, write_unit
from advkit.eval.units.unit_result import UnitResult
from advkit.eval.units.worker import Unit

MANIFEST, UNITS = "store.json", "units"
_OWN = (MANIFEST, UNITS)  # names that a process which opens the store at the same time creates
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)  # file systems without hard links


class Store:
    """Results of an evaluation in a folder, opened for this evaluation.

    Several processes may use one store at once. Two that compute the same unit write the same
    result.

    The manifest is written with the first unit, so that a run that fails before can be repeated
    with other arguments.

    Args:
        folder: the folder, created if missing.
        manifest: the evaluation.

    Raises:
        ValueError: the folder holds another evaluation or other files.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self._folder = folder.absolute()  # a later change of the working directory does not move it
        self._shown, self._manifest = folder, manifest
        self._known: Manifest | None = None  # the manifest in the folder
        with _writing(folder):
            if (folder / MANIFEST).exists():
                self._known = self._same(read_manifest(folder))
            else:
                _check_new(folder)
            (folder / UNITS).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder / UNITS):  # a full or read-only disk fails here
                pass
        self._keys: dict[tuple[int, int | None], set[str]] = {}
        for name in unit_names(folder):
            self._keys.setdefault((name.chunk, name.attack), set()).add(name.key)

    def _same(self, known: Manifest) -> Manifest:
        """Return the manifest in the folder, and raise unless it is of the same evaluation."""
        difference = known.difference(self._manifest)
        if difference is not None:
            raise ValueError(
                f"`store` must hold results of the same evaluation, got {self._shown}, whose "
                f"{difference}. Use another folder for this evaluation."
            )
        return known

    def _created(self) -> Manifest:
        """Return the manifest in the folder, which is created if it is missing."""
        if self._known is None:
            with _writing(self._shown):
                _create_manifest(self._folder, self._manifest)
            self._known = self._same(read_manifest(self._folder))  # another process may be first
        return self._known

    def get(self, unit: Unit) -> UnitResult | None:
        """Return the result of a unit, `None` if it is missing or damaged.

        Raises:
            ValueError: the store holds results for other inputs.
        """
        name = self._name(unit)
        path = self._folder / UNITS / name.file
        if self._known is not None and self._known.chunks is not None:
            self._check_count(unit.chunk.number + 1, self._known.chunks)
        if path.exists():
            try:
                return read_unit(path, name)
            except ValueError as error:
                checks.warn(f"A unit of `store` is computed again: {str(error).rstrip('.')}.")
                return None
        others = self._keys.get((name.chunk, name.attack), set())
        if others:
            last = unit.chunk.first + len(unit.chunk) - 1
            raise ValueError(
                f"`store` must hold results for the same inputs, got {self._shown}, whose inputs "
                f"or labels {unit.chunk.first} to {last} are others, or in other batches. Use "
                "another folder for this evaluation."
            )
        return None

    def _check_count(self, least: int, chunks: int) -> None:
        """Raise if the inputs are at least `least` chunks, more than in an earlier run."""
        if least > chunks:
            raise ValueError(
                f"`store` must hold results for the same inputs, got {self._shown}, whose inputs "
                f"are {chunks} chunks, here {least} or more. Use another folder for this "
                "evaluation."
            )

    def save(self, unit: Unit, result: UnitResult) -> None:
        """Write the result of a unit.

        Raises:
            OSError: the file cannot be written, for example on a full disk.
        """
        self._created()
        name = self._name(unit)
        with _writing(self._shown):
            facts = {**result.facts, "inputs": unit.chunk.digest}
            write_unit(self._folder / UNITS / name.file, name, replace(result, facts=facts))

    def finish(self, chunks: int) -> None:
        """Write the number of all chunks to the manifest, at the end of a stream.

        Raises:
            ValueError: the stream of an earlier run had another number of chunks.
        """
        self._created()
        known = read_manifest(self._folder)  # another process may have reached the end
        if known.chunks not in (None, chunks):
            raise ValueError(
                f"`store` must hold results for the same inputs, got {self._shown}, whose inputs "
                f"are {known.chunks} chunks, here {chunks}. Pass an iterable from its beginning, "
                "or use another folder for this evaluation."
            )
        if known.chunks is None:
            with _writing(self._shown):
                save_json(self._folder / MANIFEST, replace(known, chunks=chunks).to_plain())

    def _name(self, unit: Unit) -> UnitName:
        key = self._manifest.key(unit.attack, unit.chunk.digest)
        return UnitName(unit.chunk.number, unit.attack, key)


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a store.

    Raises:
        FileNotFoundError: the folder is not a store.
        ValueError: the manifest is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"`store` must be a folder with the file {MANIFEST}, got {folder}, which has none."
        )
    try:
        return Manifest.from_plain(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(
            f"`store` must have a valid {MANIFEST}, got {path}, which is damaged: {error} "
            "Remove that file and run the evaluation again, which keeps the units."
        ) from error


def unit_names(folder: Path) -> list[UnitName]:
    """Return the units of a store, sorted; hidden files are ignored.

    Raises:
        ValueError: there is a file that is not a unit.
    """
    names = []
    for path in sorted((folder / UNITS).iterdir()):
        if path.name.startswith("."):
            continue  # a temporary file, or one of a file manager
        name = UnitName.parse(path.name)
        if name is None:
            raise ValueError(
                f"`store` must hold nothing but units in {folder / UNITS}, got {path.name}. Move "
                "that file elsewhere."
            )
        names.append(name)
    return names


def _create_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, unless another process is first."""
    own = folder / f".{MANIFEST}.{secrets.token_hex(8)}"
    try:
        save_json(own, manifest.to_plain())
        os.link(own, folder / MANIFEST)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        own.replace(folder / MANIFEST)
    finally:
        own.unlink(missing_ok=True)


def _check_new(folder: Path) -> None:
    """Raise unless the folder is missing or empty, apart from hidden files and those of a store."""
    others = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    others = [name for name in others if not name.startswith(".") and name not in _OWN]
    if others:
        raise ValueError(
            f"`store` must be a new or empty folder, or a store, got {folder}, which holds "
            f"{others[0]}. Use another folder."
        )


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Name the store in errors of the system."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # an error of this package
            raise
        text = (
            f"`store` must be a folder that can be written, got an error for {folder}: "
            f"{error.strerror}. Units that it holds are kept. Free space, or pass another folder"
        )
        raise OSError(error.errno, text) from error
