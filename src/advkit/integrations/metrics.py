"""Flat metrics, parameters and tags of evaluations, with names that all trackers accept.

A name consists of ASCII letters, digits, `_`, `-`, `.` and `/`. Any other run of characters becomes
one `_`, so that the budget "linf 0.1" is `robust_accuracy/linf_0.1`. The ends of a 95 % interval
are `robust_accuracy/linf_0.1_low` and `..._high`. They are not in a group of their own, since a
tracker that stores metrics in files cannot have a file and a folder with the same name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import count

from advkit.eval import AttackOutcome, ChunkRecord, Rate, Report

MAX_NAME = 250  # characters of a name in MLflow
MAX_VALUE = 6000  # characters of a parameter in MLflow
_FOREIGN = re.compile(r"[^A-Za-z0-9_.\-]+")


def chunk_metrics(record: ChunkRecord) -> dict[str, float]:
    """Return the metrics of an evaluation after a chunk, by name.

    A rate of no inputs is left out.

    Example:
        >>> from advkit.eval import ChunkRecord, Rate
        >>> record = ChunkRecord(
        ...     chunk=0, chunk_inputs=100, inputs=100, total=1000, clean_accuracy=Rate(90, 100),
        ...     worst_cases={"linf 0.1": Rate(45, 100)}, forward=1800, backward=900, seconds=2.5,
        ... )
        >>> chunk_metrics(record)["robust_accuracy/linf_0.1"]
        0.45
    """
    attacked = record.clean_accuracy.count
    return {
        **_accuracies(record.clean_accuracy, record.worst_cases),
        **_per_attacked_input(record.forward, record.backward, attacked),
        "seconds": record.seconds,
    }


def report_metrics(report: Report) -> dict[str, float]:
    """Return the metrics of a complete evaluation, by name.

    They hold those of its last chunk, except `seconds`, which a report does not know. A rate of no
    inputs, and a median distance that is infinite, are left out.
    """
    forward, backward = (
        sum(int(getattr(outcome, passes).sum()) for outcome in report.outcomes)
        for passes in ("forward", "backward")
    )
    found = {
        **_accuracies(report.clean_accuracy, report.worst_cases),
        **_per_attacked_input(forward, backward, report.clean_accuracy.count),
        "attack_seconds": sum(outcome.seconds for outcome in report.outcomes),
    }
    for noise in report.noise:
        found |= _rate(f"random_noise/{slug(noise.budget)}", noise.robust_accuracy)
    for norm, nearest in report.nearest.items():
        found |= _rate(f"success_rate/{slug(norm)}", nearest.success_rate)
        found |= _finite(f"median_distance/{slug(norm)}", nearest.median_distance)
    for group, outcome in _by_group(report):
        found |= _attack_metrics(group, outcome)
    return found


def report_params(report: Report) -> dict[str, str]:
    """Return what a report is about: model, data, and all hyperparameters of the attacks."""
    found = {
        "evaluation/model": report.model,
        "evaluation/bounds": str(report.bounds),
        "evaluation/inputs": str(len(report.clean)),
        **{f"about/{part}": report.about[name] for name, part in _slugs(report.about).items()},
    }
    for group, outcome in _by_group(report):
        found[f"{group}/attack"] = outcome.label
        parameters = outcome.parameters.items()
        found |= {f"{group}/{slug(name)}": str(value) for name, value in parameters}
    return {name: shortened(value) for name, value in found.items()}


def report_tags(report: Report) -> dict[str, str]:
    """Return what a report is worth and where it comes from: verdict, digest, hashes, versions.

    What is unknown is left out.
    """
    run = report.provenance
    found: dict[str, str | None] = {
        "verdict": report.verdict,
        "digest": report.digest,
        "sha256/data": report.inputs.data_sha256,
        "sha256/model": run.model,
        "sha256/weights": run.weights,
        "date": run.date,
        "device": run.device,
        "batch_size": str(run.batch_size),
        "command": run.command,
    }
    for (group, _), digest in zip(_by_group(report), run.attacks, strict=True):
        found[f"sha256/{group}"] = digest
    found |= {f"version/{slug(name)}": version for name, version in run.versions.items()}
    return {name: shortened(value) for name, value in found.items() if value is not None}


def slug(text: str) -> str:
    """Return `text` as a part of a name, which is `_` if no character is left.

    Example:
        >>> slug("linf 0.1"), slug("l2, one budget for each input (2)")
        ('linf_0.1', 'l2_one_budget_for_each_input_2')
    """
    part = _FOREIGN.sub("_", text).strip("_")[: MAX_NAME // 3]
    return part if part.strip(".") else "_"  # MLflow takes dots alone for a path


def shortened(value: str) -> str:
    """Return `value`, cut to the `MAX_VALUE` characters of MLflow with a note of its length."""
    if len(value) <= MAX_VALUE:
        return value
    note = f" ... [cut, {len(value):,} characters in all]"
    return value[: MAX_VALUE - len(note)] + note


def _slugs(texts: Iterable[str]) -> dict[str, str]:
    """Return the slug of each text; one that an earlier text has gets a number."""
    found: dict[str, str] = {}
    for text in texts:
        base = part = slug(text)
        numbers = count(2)
        while part in found.values():
            part = f"{base}_{next(numbers)}"
        found[text] = part
    return found


def _by_group(report: Report) -> Iterator[tuple[str, AttackOutcome]]:
    """Yield each attack with the group of its names, such as `attack/0_PGD`."""
    for number, outcome in enumerate(report.outcomes):
        yield f"attack/{number}_{slug(outcome.name)}", outcome


def _accuracies(clean: Rate, worst_cases: Mapping[str, Rate]) -> dict[str, float]:
    found = _rate("clean_accuracy", clean)
    for budget, rate in worst_cases.items():
        found |= _rate(f"robust_accuracy/{slug(budget)}", rate)
    return found


def _attack_metrics(group: str, outcome: AttackOutcome) -> dict[str, float]:
    robust = (
        {} if outcome.minimum_norm else _rate(f"{group}/robust_accuracy", outcome.robust_accuracy)
    )
    return {
        **robust,
        **_rate(f"{group}/success_rate", outcome.success_rate),
        **_finite(f"{group}/median_distance", outcome.median_distance),
        **_finite(f"{group}/forward", outcome.mean_of_attacked(outcome.forward)),
        **_finite(f"{group}/backward", outcome.mean_of_attacked(outcome.backward)),
        f"{group}/seconds": outcome.seconds,
    }


def _per_attacked_input(forward: int, backward: int, attacked: int) -> dict[str, float]:
    """Return the passes of all attacks for each attacked input."""
    if not attacked:
        return {}
    return {"forward": forward / attacked, "backward": backward / attacked}


def _rate(name: str, rate: Rate) -> dict[str, float]:
    if not rate.total:
        return {}
    low, high = rate.interval
    return {name: float(rate), f"{name}_low": low, f"{name}_high": high}


def _finite(name: str, value: float | None) -> dict[str, float]:
    return {} if value is None or not math.isfinite(value) else {name: value}
