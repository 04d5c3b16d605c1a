"""Reports from the files of a saved one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advkit.core.archives import read_npz
from advkit.core.hyperparameters import from_plain
from advkit.eval.evidence.gate import Gate
from advkit.eval.evidence.provenance import Provenance
from advkit.eval.robustness import report_arrays
from advkit.eval.robustness.plain_report import FORMAT, digest_of_plain
from advkit.eval.robustness.report import FILES, Report

_DESCRIBED = ("name", "norm", "minimum_norm", "eps", "seconds")  # of an outcome, apart from columns
_OF_THE_RUN = ("date", "device", "threads", "batch_size", "versions", "numerics", "command")


def load_report(path: str | Path) -> Report:
    """Load a report that `Report.save` wrote.

    The files are compared with the digest and the hash in them. The findings are those of this
    version of advkit, so that the digest of the loaded report is the saved one unless an earlier
    version wrote the files. The loaded report has no pictures of adversarial examples, which
    `redraw` makes again.

    Args:
        path: folder of the report, or its `report.json`. `records.npz` must lie next to that.

    Raises:
        FileNotFoundError: one of the files does not exist.
        ValueError: a file is damaged, or is not that of a report, or the two files belong to
            different reports.

    Example:
        >>> import tempfile, torch
        >>> from advkit import attacks, eval
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
        >>> report = eval.evaluate(net, x, y, attacks=[attacks.FGSM(eps=0.1)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = report.save(folder)
        ...     loaded = eval.load_report(folder)
        >>> loaded.worst_cases == report.worst_cases
        True
    """
    json_path = _json_of(Path(path))
    plain = _read_plain(json_path)
    arrays = _read_arrays(json_path.with_name(FILES[1]))
    _check_together(json_path, plain, arrays)
    try:
        return _report(plain, arrays)
    except (KeyError, TypeError, ValueError) as error:  # with a valid digest: made by hand
        raise ValueError(
            f"`path` must be a whole report, got {json_path}: {type(error).__name__}: {error}."
        ) from error


def _json_of(path: Path) -> Path:
    """Return the path of the JSON file of a report."""
    found = path / FILES[0] if path.is_dir() else path
    if not found.is_file():
        raise FileNotFoundError(
            f"`path` must be the folder of a saved report, or its {FILES[0]}, got {path}."
        )
    return found


def _read_plain(path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        found = plain["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"`path` must be a report of advkit, got {path}, which is damaged or another file."
        ) from error
    if found != FORMAT:
        raise ValueError(f"`path` must be a report in the format {FORMAT!r}, got {found!r}.")
    return plain  # type: ignore[no-any-return]  # a dict, since it has a format


def _read_arrays(path: Path) -> dict[str, Any]:
    try:
        return read_npz(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"`path` must hold {FILES[1]} next to {FILES[0]}, got none in {path.parent}. Copy both "
            "files."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"`path` must hold a whole {FILES[1]}, got a damaged one: {error}"
        ) from error


def _check_together(path: Path, plain: dict[str, Any], arrays: Mapping[str, Any]) -> None:
    """Raise unless the values and the arrays are those that were saved together."""
    apart = {name: value for name, value in plain.items() if name not in ("digest", "page")}
    try:
        digest = digest_of_plain(apart)
        same = plain["digest"] == str(arrays["digest"]) == digest
        results = {name: array for name, array in arrays.items() if name != "digest"}
        same = same and plain["sha256"]["records"] == report_arrays.hash_of_arrays(results)
    except (KeyError, TypeError) as error:
        raise ValueError(f"`path` must be a whole report, got {path} without {error}.") from error
    if not same:
        raise ValueError(
            f"`path` must be a report whose files belong together, got {path} and {FILES[1]}, of "
            "which one was changed or replaced: their digests differ."
        )


def _report(plain: Mapping[str, Any], arrays: Mapping[str, Any]) -> Report:
    inputs = report_arrays.inputs_from(arrays)
    checks = plain["checks"]
    return Report(
        model=plain["model"],
        bounds=tuple(plain["bounds"]),
        inputs=inputs,
        outcomes=report_arrays.outcomes_from(arrays, inputs, [*map(_described, plain["attacks"])]),
        provenance=_provenance(plain),
        total=plain["inputs_wanted"],
        noise=report_arrays.noise_from(arrays, [*plain["random_noise"].values()]),
        about=plain["about"],
        features=plain["features"],
        positions=plain["positions"],
        num_classes=plain["num_classes"],
        checks=checks and report_arrays.checks_from(arrays, checks["training_mode"]),
        class_names=tuple(plain["class_names"]),
        gates=tuple(Gate(**gate) for gate in plain["gates"]),
    )


def _described(attack: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an outcome apart from its columns."""
    typed = {name: from_plain({"dict": attack[name]}) for name in ("settings", "parameters")}
    return {**{name: attack[name] for name in _DESCRIBED}, **typed}


def _provenance(plain: Mapping[str, Any]) -> Provenance:
    hashes = plain["sha256"]
    return Provenance(
        **{name: plain[name] for name in _OF_THE_RUN},
        model=hashes["model"],
        weights=hashes["weights"],
        attacks=tuple(hashes["attacks"]),
    )
