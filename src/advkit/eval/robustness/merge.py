"""Reports from stores."""

from __future__ import annotations

from pathlib import Path

from advkit.eval.robustness.evaluation_recorder import EvaluationRecorder
from advkit.eval.robustness.report import Report
from advkit.eval.store.manifest import Manifest
from advkit.eval.store.store import UNITS, read_manifest, unit_names
from advkit.eval.store.unit_files import UnitName, read_unit
from advkit.eval.units.descriptions import EvaluationDescription
from advkit.eval.units.unit_result import UnitResult


def merge(store: str | Path) -> Report:
    """Make the report of an evaluation from its store, without a model or data.

    The report is the one that `evaluate` returns for all inputs, whatever the number of processes
    that filled the store.

    Args:
        store: folder that `evaluate` was given as `store`.

    Raises:
        FileNotFoundError: the folder is not a store.
        ValueError: a unit is missing, damaged, there twice, or belongs to another evaluation, or no
            run has reached the end of a stream.

    Example:
        >>> import tempfile, torch
        >>> from advkit import attacks, eval
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(300, 1, 8, 8), torch.arange(300) % 10
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for number in range(2):  # in two processes, perhaps on two machines
        ...         _ = eval.evaluate(
        ...             net, x, y, attacks=[attacks.FGSM(eps=0.1)], store=folder, shard=(number, 2)
        ...         )
        ...     report = eval.merge(folder)
        >>> len(report.clean)
        300
    """
    folder = Path(store)
    manifest = read_manifest(folder)
    if manifest.chunks is None:
        raise ValueError(
            f"`store` must hold the results for all inputs, got {folder}, where no run has reached "
            "the end of the stream. Run the evaluation again."
        )
    description = manifest.description
    units = _checked_units(folder, description, manifest.chunks)
    recorder = EvaluationRecorder(description, manifest.provenance)
    for chunk in range(manifest.chunks):
        names = [units[chunk, attack] for attack in _works(description)]
        clean, *attacked = (_read(folder, manifest, name) for name in names)
        recorder.update(clean, attacked)
    recorder.warn_of_chance()
    return recorder.report()


def _works(description: EvaluationDescription) -> list[int | None]:
    """Return the units of a chunk: `None` for the clean passes, and the numbers of the attacks."""
    return [None, *range(len(description.attacks))]


def _checked_units(
    folder: Path, description: EvaluationDescription, chunks: int
) -> dict[tuple[int, int | None], UnitName]:
    """Return the units of a store by chunk and attack, and raise unless these are all units."""
    units: dict[tuple[int, int | None], UnitName] = {}
    for name in unit_names(folder):
        if (name.chunk, name.attack) in units:
            raise ValueError(
                f"`store` must hold each unit once, got {folder} with two files for one: "
                f"{units[name.chunk, name.attack].file} and {name.file}. Remove the one that was "
                "copied from elsewhere."
            )
        units[name.chunk, name.attack] = name
    wanted = [(chunk, work) for chunk in range(chunks) for work in _works(description)]
    foreign = units.keys() - set(wanted)
    if foreign:
        raise _foreign(folder, min(units[key].file for key in foreign))
    missing = [key for key in wanted if key not in units]
    if missing:
        chunk, work = missing[0]
        what = "clean passes" if work is None else description.attacks[work].label
        raise ValueError(
            f"`store` must hold every unit, got {folder}, where {len(missing)} of {len(wanted)} "
            f"units are missing. The first is that of the {what} on chunk {chunk}. Run the "
            "evaluation again, or the shard with this chunk."
        )
    return units


def _read(folder: Path, manifest: Manifest, name: UnitName) -> UnitResult:
    """Read a unit, and raise unless it belongs to the evaluation of the manifest."""
    try:
        result = read_unit(folder / UNITS / name.file, name)
    except ValueError as error:
        raise ValueError(
            f"`store` must hold readable units, got a damaged one: {error} Run the evaluation "
            "again, which computes it."
        ) from error
    if manifest.key(name.attack, str(result.facts.get("inputs"))) != name.key:
        raise _foreign(folder, name.file)
    return result


def _foreign(folder: Path, file: str) -> ValueError:
    return ValueError(
        f"`store` must hold units of one evaluation, got {folder} with {file}, which belongs to "
        "another one. Remove that file."
    )
