"""Run of one attack on consecutive batches of the data."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from advkit.core.attack_options import for_samples, measured_norm, sending_at_most
from advkit.core.batching import offset_sample_numbers
from advkit.core.protocols import Attack
from advkit.core.results import AttackResult
from advkit.eval.accuracy import ClassifiedBatch
from advkit.eval.budgets import radius_of
from advkit.eval.units.byte_rounding import check_rounding
from advkit.eval.units.examples import MAX_EXAMPLES, Examples
from advkit.eval.units.unit_result import UnitResult
from advkit.models import Classifier
from advkit.models.labels import given_labels
from advkit.models.protocols import is_misclassified

# Inputs at the start of the data among which successes for pictures are searched, so that a large
# evaluation keeps few images. Twice the default chunk.
_SEARCHED_FOR_EXAMPLES = 512
# Value and dtype of each column for samples that are not attacked.
_NOT_ATTACKED = {
    "radius": (0, torch.float64),
    "robust": (False, torch.bool),
    "distance": (torch.nan, torch.float32),
    "forward": (0, torch.int64),
    "backward": (0, torch.int64),
    "no_gradient": (False, torch.bool),
    "not_finite": (False, torch.bool),
    "no_start": (False, torch.bool),
    "rejected": (False, torch.bool),
    "improving": (False, torch.bool),
    "success_lost": (False, torch.bool),
    "rounded": (False, torch.bool),
    "undone": (False, torch.bool),
    "prediction": (-1, torch.int64),
    "stage": (-1, torch.int64),
}


def attack_batches(
    attack: Attack,
    model: Classifier,
    parts: Sequence[ClassifiedBatch],
    batch_size: int,
    *,
    report: bool = True,
) -> UnitResult:
    """Attack the samples of consecutive batches that the model labels correctly.

    Args:
        attack: the attack.
        model: the model.
        parts: the batches, with the results of their clean passes.
        batch_size: the most samples that the attack passes to the model at once.
        report: whether a report needs a few successes for pictures, and a few of a budget attack
            rounded to bytes.

    Returns:
        The columns of an `AttackOutcome`, and the facts `norm` and `seconds`.
    """
    norm, seconds = measured_norm(attack), 0.0
    columns: list[dict[str, Tensor]] = []
    found: list[Examples] = []
    for part in parts:
        columns.append(_not_attacked(len(part.x)))
        if not len(part.rows):
            continue
        with offset_sample_numbers(part.first):
            run = _run(attack, model, part, batch_size)
            measured = _columns(run)
            if report:
                measured["prediction"] = _predictions(model, part, run.result)
            if report and part.first < _SEARCHED_FOR_EXAMPLES:
                found += _examples(part, run.result, measured["prediction"])
            if report and getattr(attack, "eps", None) is not None:
                measured |= check_rounding(model, part, run.result)
        for name, values in measured.items():
            columns[-1][name][part.rows.cpu()] = values
        norm, seconds = run.result.norm, seconds + run.seconds
    return UnitResult(
        columns={name: torch.cat([each[name] for each in columns]) for name in _NOT_ATTACKED},
        facts={"norm": norm, "seconds": seconds},
        examples=Examples.nearest(found),
    )


class _Run(NamedTuple):
    """Result of an attack on a batch.

    Attributes:
        result: what the attack returned.
        radius: float64, the budget of the attack: a scalar or `(n,)`.
        seconds: time of the attack.
    """

    result: AttackResult
    radius: Tensor
    seconds: float


def _run(attack: Any, model: Classifier, part: ClassifiedBatch, batch_size: int) -> _Run:
    """Attack the samples of one batch that the model labels correctly."""
    attack = sending_at_most(for_samples(attack, part.rows.cpu() + part.first), batch_size)
    x, y = part.attacked
    start = time.perf_counter()
    with part.attacking():
        result = attack.run(model, x.clone(), given_labels(model, y).clone())
    result.success.cpu()  # waits for the device, which makes the measured time right
    return _Run(result, radius_of(attack), time.perf_counter() - start)


def _not_attacked(n: int) -> dict[str, Tensor]:
    """Return the columns of `n` samples that are not attacked."""
    return {name: torch.full((n,), v, dtype=dtype) for name, (v, dtype) in _NOT_ATTACKED.items()}


def _columns(run: _Run) -> dict[str, Tensor]:
    """Return the columns of the samples that were attacked."""
    result, success = run.result, run.result.success.cpu()
    return {
        "radius": run.radius,
        "robust": ~success,
        "distance": torch.where(success, result.distance.cpu().float(), torch.nan),
        "forward": result.queries.forward.cpu(),
        "backward": result.queries.backward.cpu(),
        "no_gradient": result.no_gradient.cpu(),
        "not_finite": result.not_finite.cpu(),
        "no_start": result.no_start.cpu(),
        "rejected": result.rejected.cpu(),
        "improving": result.improving.cpu(),
        "success_lost": result.success_lost.cpu(),
        "stage": torch.full_like(success, -1, dtype=torch.int64)
        if result.stage is None
        else result.stage.cpu(),
    }


def _predictions(model: Classifier, part: ClassifiedBatch, result: AttackResult) -> Tensor:
    """Return the labels that the model predicts for the successes `(n,)`, -1 for failures.

    An attack of another library may not tell them; these successes are evaluated once more.
    """
    if result.prediction is not None:
        return result.prediction.cpu()
    predicted = torch.full_like(result.success, -1, dtype=torch.int64)
    rows = result.success.nonzero().flatten()
    if len(rows):
        predicted[rows] = part.predict_attacked(model, result.x_adv, rows).long()
    return predicted.cpu()


def _examples(part: ClassifiedBatch, result: AttackResult, predicted: Tensor) -> list[Examples]:
    """Return the nearest successes of a batch for pictures, if there are any."""
    x, y = part.attacked
    # An attack of another library may call an example a success that is not misclassified.
    found = result.success.cpu() & is_misclassified(predicted, y.cpu())
    distance = torch.where(found, result.distance.cpu(), torch.inf)
    rows = distance.argsort(stable=True)[: min(MAX_EXAMPLES, int(found.sum()))]
    if not len(rows):
        return []
    on_device = rows.to(x.device)
    return [
        Examples(
            x=x[on_device].cpu(),
            x_adv=result.x_adv[on_device].cpu(),
            y=y[on_device].cpu(),
            predicted=predicted[rows],
            index=part.rows.cpu()[rows] + part.first,
            distance=distance[rows],
        )
    ]
