"""Accuracy of a model, and rates that state their denominator."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from advkit.core import checks, label_checks, sample_rows
from advkit.core.batching import Data, NumberedBatches, batches, offset_sample_numbers
from advkit.core.indexed_data import number_of_samples
from advkit.core.results import InconclusiveWarning
from advkit.models import Classifier, as_classifier
from advkit.models.batch_dependence import keeps_batch
from advkit.models.labels import label_indices

_ALL = slice(None)
NORMAL_QUANTILE = 1.959964  # of 97.5 %, for two-sided intervals of 95 %
NOT_FINITE = -2  # stands for the label where the logits are NaN or infinite


@dataclass(frozen=True)
class Rate:
    """`count` of `total` inputs. `float(rate)` is the fraction, NaN for a `total` of zero."""

    count: int
    total: int

    def __float__(self) -> float:
        return self.count / self.total if self.total else math.nan

    def __str__(self) -> str:
        return f"{100 * float(self):.2f} % ({self.count:,} of {self.total:,})"

    @property
    def interval(self) -> tuple[float, float]:
        """Ends of the 95 % interval of Wilson (1927); 0 and 1 for a `total` of zero."""
        if not self.total:
            return 0.0, 1.0
        n, p, square = self.total, self.count / self.total, NORMAL_QUANTILE**2
        middle = p + square / (2 * n)
        half = NORMAL_QUANTILE * math.sqrt(p * (1 - p) / n + square / (4 * n**2))
        lower, upper = (middle - half) / (1 + square / n), (middle + half) / (1 + square / n)
        # exactly 0 and 1, which rounding would miss
        return lower if self.count else 0.0, upper if self.count < self.total else 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with the 95 % `interval`; no fraction of no inputs."""
        return {
            "value": float(self) if self.total else None,
            "count": self.count,
            "total": self.total,
            "interval": list(self.interval),
        }

    @staticmethod
    def of(mask: Tensor) -> Rate:
        """Return the rate of true values in the bool `mask` `(n,)`."""
        return Rate(int(mask.sum()), len(mask))


def accuracy(model: object, x: Data, y: Tensor | None = None, *, batch_size: int = 128) -> Rate:
    """Measure the share of inputs that the model labels correctly.

    An input for which the model returns NaN or infinite logits counts as misclassified, with an
    `InconclusiveWarning`.

    Args:
        model: a classifier, or an `nn.Module` with inputs in [0, 1].
        x: inputs `(n, *features)`, an iterable of batches `(x, y)`, or an indexed data set.
        y: labels `(n,)`; `None` if `x` holds the labels.
        batch_size: samples passed to the model at once.

    Raises:
        ValueError: inputs or labels of the wrong shape or range.
        TypeError: inputs, labels or model of the wrong type.

    Example:
        >>> import torch
        >>> from advkit import eval
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(2 * torch.eye(2))
        >>> print(eval.accuracy(net, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])))
        50.00 % (1 of 2)
    """
    total = number_of_samples(x)
    if total is not None:
        sample_rows.check_total(total)
    numbered = batches(x, y, batch_size)
    correct = [batch.correct for batch in classified_batches(as_classifier(model), numbered)]
    return Rate.of(torch.cat(correct)) if correct else Rate(0, 0)


def chance_sentence(
    clean: Rate, num_classes: int, subject: str = "The clean accuracy"
) -> str | None:
    """Return a warning of a clean accuracy that may be chance, `None` for one that is not.

    Args:
        clean: clean accuracy.
        num_classes: number of the model's classes.
        subject: subject of the sentence, which names the model if there are several.
    """
    lower, upper = clean.interval
    chance = 1 / num_classes
    if lower > chance or clean.count == clean.total:
        return None
    of_chance = f"which is {100 * chance:.3g} % for {num_classes} classes"
    interval = f"its 95 % interval is {100 * lower:.3g} to {100 * upper:.3g} %"
    if upper < chance:
        return (
            f"{subject}, {clean}, is below chance, {of_chance}: {interval}. Check the order of the "
            "labels, the normalization and the weights."
        )
    return (
        f"{subject}, {clean}, may be chance, {of_chance}: {interval}. Check the weights, the "
        "normalization and the order of the labels, or evaluate more inputs."
    )


def warn_of_chance(clean: Rate, num_classes: int, subject: str = "The clean accuracy") -> None:
    """Warn of a clean accuracy that may be chance: see `chance_sentence`."""
    if (sentence := chance_sentence(clean, num_classes, subject)) is not None:
        checks.warn(sentence, InconclusiveWarning)


class ClassifiedBatch(NamedTuple):
    """A checked batch of the data, with a mask of the samples that the model labels correctly.

    Attributes:
        x: inputs `(n, *features)`.
        y: labels `(n,)`, indices of the model's classes.
        predicted: int64 `(n,)`; predicted labels, -1 for a rejection and `NOT_FINITE`, which is
            not correct, for NaN or infinite logits.
        first: number of the first sample in the data.
    """

    x: Tensor
    y: Tensor
    predicted: Tensor
    first: int

    @property
    def correct(self) -> Tensor:
        """Bool `(n,)`; labeled correctly."""
        return self.predicted == self.y

    @property
    def not_finite(self) -> Tensor:
        """Bool `(n,)`; the model returned NaN or infinite logits."""
        return self.predicted == NOT_FINITE

    @property
    def rows(self) -> Tensor:
        """Rows of the samples to attack `(k,)`: those that are labeled correctly."""
        return self.correct.nonzero().flatten()

    @property
    def attacked(self) -> tuple[Tensor, Tensor]:
        """Inputs and labels of the samples to attack."""
        return self.x[self.rows], self.y[self.rows]

    @contextmanager
    def attacking(self) -> Iterator[None]:
        """Number the samples to attack, or the whole batch, while a model is queried with them."""
        n = len(self.x)
        with sample_rows.numbered(n, self.first), sample_rows.selected(self.rows, n, batch=self.x):
            yield

    def predict_attacked(
        self, model: Classifier, x: Tensor, chosen: Tensor | slice = _ALL
    ) -> Tensor:
        """Return the labels of the `chosen` of `x` `(k, *features)`, made of the samples to attack.

        A model that needs whole batches is given all of `x` together with the other samples of the
        batch.
        """
        rows, n = self.rows[chosen], len(self.x)
        if keeps_batch(model):
            whole = self.x.index_copy(0, self.rows, x)
            with sample_rows.numbered(n, self.first):
                return predict_labels(model, whole)[rows]
        with sample_rows.numbered(n, self.first), sample_rows.selected(rows, n):
            return predict_labels(model, x[chosen])


def classified_batches(model: Classifier, numbered: NumberedBatches) -> Iterator[ClassifiedBatch]:
    """Check and classify each batch."""
    for x, y, first in numbered:
        with offset_sample_numbers(first), sample_rows.numbered(len(x), first):
            batch = ClassifiedBatch(*classify(model, x, y), first)
        yield batch


def classify(model: Classifier, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Check and classify a batch.

    Returns:
        `x`, `y` as indices of classes, and the predicted labels `(n,)`, `NOT_FINITE` where the
        logits are not finite.
    """
    x, y = _checked(model, x, y)
    if len(x) == 0:
        return x, y, y
    predicted = predict_labels(model, x)
    label_checks.labels_within("y", y, model.num_classes)
    return x, y, predicted


def classified_again(
    model: Classifier, numbered: Iterable[tuple[Tensor, Tensor, int]], clean: Mapping[str, Tensor]
) -> list[ClassifiedBatch]:
    """Return batches with the results of earlier clean passes, without another pass.

    Args:
        model: the model.
        numbered: inputs, labels and number of the first sample of each batch.
        clean: the column `prediction` `(n,)` of all batches together.
    """
    found, done = [], 0
    for x, y, first in numbered:
        rows = slice(done, done + len(x))
        predicted = clean["prediction"][rows].to(x.device)
        found.append(ClassifiedBatch(*_checked(model, x, y), predicted, first))
        done += len(x)
    return found


def _checked(model: Classifier, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Check a batch, and return its inputs and its labels as indices of classes."""
    x = checks.inputs("x", x, model.bounds)
    return x, label_indices("y", y, x, model)


def predict_labels(model: Classifier, x: Tensor) -> Tensor:
    """Return the labels `(n,)` of `x`; `NOT_FINITE`, with a warning, for samples without one.

    A model that has logits rejects a batch in which those of one sample are NaN or infinite. Its
    logits are then computed, at the cost of a second pass.

    Raises:
        ValueError: as `model.predict`, for any other reason.
    """
    try:
        return model.predict(x)
    except ValueError:
        if not isinstance(logits := _logits(model, x), Tensor):
            raise
        not_finite = ~logits.isfinite().all(1)
        if not not_finite.any():
            raise
    checks.warn(
        f"The model returned NaN or infinite logits for {int(not_finite.sum())} of {len(x)} inputs "
        f"({checks.samples(not_finite)}). They have no label and do not count as a success "
        "of an attack.",
        InconclusiveWarning,
    )
    return logits.argmax(1).masked_fill(not_finite, NOT_FINITE)


def _logits(model: Classifier, x: Tensor) -> Tensor | None:
    """Return the logits `(n, classes)` of `x`, `None` for a model without logits."""
    compute = getattr(model, "logits", None)
    with torch.no_grad():
        return compute(x) if callable(compute) else None
