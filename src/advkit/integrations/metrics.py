"""Figures and settings of an evaluation under names that every tracker takes."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from advkit.eval import ChunkRecord, Rate, Report

# Names of MLflow may have these characters alone; those of other trackers may have more.
_FORBIDDEN = re.compile(r"[^\w\-. /]")
MOST_CHARACTERS = 6000  # of the value of a parameter, the limit of MLflow


def metrics_of_chunk(record: ChunkRecord) -> dict[str, float]:
    """Return the figures after a chunk, by name.

    Example:
        >>> from advkit.eval import ChunkRecord, Rate
        >>> record = ChunkRecord(
        ...     chunk=1, inputs=8, total=16, clean_accuracy=Rate(8, 8),
        ...     robust_accuracy={"linf 0.1": Rate(6, 8)}, forward=80, backward=40, seconds=0.5,
        ... )
        >>> metrics_of_chunk(record)["robust_accuracy/linf_0.1"]
        0.75
    """
    return _finite(
        {
            "inputs": record.inputs,
            **_accuracies(record.clean_accuracy, record.robust_accuracy),
            "forward": record.forward,
            "backward": record.backward,
            "seconds": record.seconds,
        }
    )


def metrics_of_report(report: Report) -> dict[str, float]:
    """Return the figures of a report, by name; infinite and missing ones are left out.

    They are those of the last chunk, the ends of the 95 % intervals, and

    - `random_noise/BUDGET`: accuracy under random noise,
    - `median_distance/NORM` and `success_rate/NORM`: of the minimum-norm attacks of a norm,
    - `passed`: 1 if the report meets all its gates, otherwise 0.
    """
    found = _accuracies(report.clean_accuracy, report.worst_cases)
    for name, rate in _rates(report.clean_accuracy, report.worst_cases).items():
        found[f"{name}/low"], found[f"{name}/high"] = rate.interval
    for noise in report.noise:
        found[f"random_noise/{_name(noise.budget)}"] = float(noise.robust_accuracy)
    for norm, nearest in report.nearest.items():
        found[f"success_rate/{_name(norm)}"] = float(nearest.success_rate)
        median = nearest.median_distance
        found[f"median_distance/{_name(norm)}"] = math.inf if median is None else median
    costs = {
        "inputs": len(report.inputs),
        "forward": sum(int(outcome.forward.sum()) for outcome in report.outcomes),
        "backward": sum(int(outcome.backward.sum()) for outcome in report.outcomes),
        "seconds": sum(outcome.seconds for outcome in report.outcomes),
        "passed": int(report.passed),
    }
    return _finite({**found, **costs})


def params_of_report(report: Report) -> dict[str, str]:
    """Return what a report was computed with as text, by name.

    A value of more than 6,000 characters, the limit of MLflow, is cut and ends with an ellipsis.
    """
    run = report.provenance
    values: dict[str, Any] = {
        "model": report.model,
        **{f"about/{_name(name)}": value for name, value in report.about.items()},
        **{f"attack/{number}": outcome.label for number, outcome in enumerate(report.outcomes)},
        **{f"version/{name}": version for name, version in run.versions.items()},
        "device": run.device,
        "batch_size": run.batch_size,
        "command": run.command,
        "sha256/model": run.model,
        "sha256/weights": run.weights,
        "sha256/data": report.inputs.data_sha256,
        "digest": report.digest,
    }
    return {name: _cut(str(value)) for name, value in values.items() if value is not None}


def _accuracies(clean: Rate, worst_cases: Mapping[str, Rate]) -> dict[str, float]:
    return {name: float(rate) for name, rate in _rates(clean, worst_cases).items()}


def _rates(clean: Rate, worst_cases: Mapping[str, Rate]) -> dict[str, Rate]:
    robust = {f"robust_accuracy/{_name(text)}": rate for text, rate in worst_cases.items()}
    return {"clean_accuracy": clean, **robust}


def _name(text: str) -> str:
    """Return a text as part of a name, such as "linf_0.1" for "linf 0.1"."""
    return _FORBIDDEN.sub("", text).replace(" ", "_")


def _finite(values: Mapping[str, float]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if math.isfinite(value)}


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 3]}..."
