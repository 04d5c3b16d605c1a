"""Per-input results of a report as plain arrays, and a report's parts from such arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from advkit.core.archives import digest_of
from advkit.eval.evidence.evaluated_inputs import EvaluatedInputs
from advkit.eval.evidence.records import Records
from advkit.eval.noise import NoiseOutcome
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.units.model_checks import COLUMNS, ModelChecks

Arrays = Mapping[str, npt.NDArray[Any]]

# Columns of the records that are those of an outcome, by name, with the names there.
_OF_OUTCOME = {
    "adversarial_prediction": "prediction",
    "success": "success",
    "distance": "distance",
    "radius": "radius",
    "forward": "forward",
    "backward": "backward",
    "seconds": "input_seconds",
    "stage": "stage",
    **{
        name: name
        for name in (
            "no_gradient", "not_finite", "no_start", "rejected", "improving", "success_lost",
            "rounded", "undone",
        )
    },
}  # fmt: skip
_OF_INPUTS = ("index", "label", "prediction", "sha256")
_DERIVED = ("success",)  # from the distance
_TIMES = ("seconds",)
_NO_NOISE = torch.zeros(0, 0, dtype=torch.bool)


def records_of(inputs: EvaluatedInputs, outcomes: Sequence[AttackOutcome]) -> Records:
    """Return one row for each attack and input."""
    of_inputs = {
        "index": inputs.index,
        "label": inputs.label,
        "clean_prediction": inputs.prediction,
    }
    numbers = torch.arange(len(outcomes)).repeat_interleave(len(inputs))
    return Records(
        attacks=tuple(outcome.label for outcome in outcomes),
        columns={
            "attack": numbers,
            **{name: column.repeat(len(outcomes)) for name, column in of_inputs.items()},
            **{name: _joined(outcomes, field) for name, field in _OF_OUTCOME.items()},
        },
    )


def _joined(outcomes: Sequence[AttackOutcome], field: str) -> Tensor:
    """Return a column of all outcomes; distances may have other dtypes in each."""
    columns = [getattr(outcome, field) for outcome in outcomes]
    return torch.cat([c.double() if c.is_floating_point() else c for c in columns])


def arrays_of(
    inputs: EvaluatedInputs,
    outcomes: Sequence[AttackOutcome],
    noise: Sequence[NoiseOutcome],
    checks: ModelChecks | None,
) -> dict[str, npt.NDArray[Any]]:
    """Return all per-input results: the records of all attacks, and arrays of the `n` inputs.

    The latter are `input_index`, `input_label` and `input_prediction` int64 `(n,)`, `input_sha256`
    uint8 `(n, 32)`, `noise` bool `(budgets, n)`, and `check_...` bool `(n,)` if there are checks.
    """
    tensors = {
        **records_of(inputs, outcomes).columns,
        **{f"input_{name}": getattr(inputs, name) for name in _OF_INPUTS},
        "noise": torch.stack([each.robust for each in noise]) if noise else _NO_NOISE,
        **{f"check_{name}": getattr(checks, name) for name in COLUMNS if checks is not None},
    }
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    return {**arrays, "input_sha256": np.ascontiguousarray(arrays["input_sha256"].T)}


def hash_of_arrays(arrays: Arrays) -> str:
    """Return the SHA-256 of the `arrays` apart from times, in hexadecimal."""
    return digest_of(
        {name: torch.from_numpy(array) for name, array in arrays.items() if name not in _TIMES}
    )


def inputs_from(arrays: Arrays) -> EvaluatedInputs:
    """Return the inputs that `arrays_of` was called with."""
    columns = {name: torch.from_numpy(arrays[f"input_{name}"]) for name in _OF_INPUTS}
    return EvaluatedInputs(**{**columns, "sha256": columns["sha256"].T.contiguous()})


def outcomes_from(
    arrays: Arrays, inputs: EvaluatedInputs, described: Sequence[Mapping[str, Any]]
) -> tuple[AttackOutcome, ...]:
    """Return the outcomes of the attacks, whose other fields are `described`."""
    fields = {name: field for name, field in _OF_OUTCOME.items() if name not in _DERIVED}
    columns = {
        field: torch.from_numpy(arrays[name]).reshape(len(described), len(inputs))
        for name, field in fields.items()
    }
    outcomes = []
    for number, description in enumerate(described):
        own: dict[str, Any] = {name: rows[number] for name, rows in columns.items()}
        robust = inputs.correct & own["distance"].isnan()
        outcomes.append(AttackOutcome(**description, **own, robust=robust, examples=None))
    return tuple(outcomes)


def noise_from(arrays: Arrays, described: Sequence[Mapping[str, Any]]) -> tuple[NoiseOutcome, ...]:
    """Return the outcomes of random noise, whose other fields are `described`."""
    rows = torch.from_numpy(arrays["noise"])
    return tuple(
        NoiseOutcome(norm=each["norm"], eps=each["eps"], robust=robust)
        for each, robust in zip(described, rows, strict=True)
    )


def checks_from(arrays: Arrays, training_mode: bool) -> ModelChecks:
    """Return the checks of the model."""
    masks = {name: torch.from_numpy(arrays[f"check_{name}"]) for name in COLUMNS}
    return ModelChecks(**masks, training_mode=training_mode)
