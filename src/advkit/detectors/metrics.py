"""Metrics as text for Prometheus, in its exposition format 0.0.4."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

_LABEL_NAME = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")  # two underscores are reserved
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})  # in the value of a label


class Metric(NamedTuple):
    """Number with its name, its kind and a description of one line without backslashes."""

    name: str
    kind: Literal["counter", "gauge"]
    description: str
    value: float


def guard_metrics(
    requests: int, alarms: int, failures: int, threshold: float | None
) -> list[Metric]:
    """Return the metrics of a guard from its counts and its threshold, which may not be set."""
    limit = math.nan if threshold is None else threshold
    return [
        Metric("advkit_guard_requests_total", "counter", "Inputs that were scored.", requests),
        Metric("advkit_guard_alarms_total", "counter", "Inputs that raised an alarm.", alarms),
        Metric("advkit_guard_failures_total", "counter", "Calls that raised an error.", failures),
        Metric(
            "advkit_guard_threshold", "gauge", "Greatest anomaly score without an alarm.", limit
        ),
    ]


def exposition(metrics: Sequence[Metric], labels: Mapping[str, str]) -> str:
    """Return metrics as text, each with all `labels`.

    Raises:
        TypeError: `labels` is not a dict of strings.
        ValueError: a label has a name that Prometheus does not accept.
    """
    _check_labels(labels)
    pairs = ",".join(f'{name}="{value.translate(_ESCAPES)}"' for name, value in labels.items())
    suffix = f"{{{pairs}}}" if pairs else ""
    return "".join(
        f"# HELP {name} {description}\n# TYPE {name} {kind}\n{name}{suffix} {_number(value)}\n"
        for name, kind, description, value in metrics
    )


def _check_labels(labels: object) -> None:
    if not isinstance(labels, Mapping):
        raise TypeError(f"`labels` must be a dict of strings, got {type(labels).__name__}.")
    for name, value in labels.items():
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(f"`labels` must be a dict of strings, got {name!r}: {value!r}.")
        if not _LABEL_NAME.fullmatch(name):
            raise ValueError(
                f"`labels` must have names of letters, digits and underscores, got {name!r}."
            )


def _number(value: float) -> str:
    """Return a finite number or NaN as text; Python writes NaN in lower case."""
    return "NaN" if math.isnan(value) else repr(value)
