"""Losses that include a detector of outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from advkit.core import checks
from advkit.core.hyperparameters import format_call, non_default_fields
from advkit.core.losses import margin

Outputs = Literal["scores", "logits"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Evasion:
    """Loss that is positive for an undetected misclassification (arXiv:1705.07263).

    Carlini and Wagner (2017). The loss is the minimum of the margin and of the weighted distance of
    the anomaly score below the threshold. It is positive if the label is wrong and the detector
    does not raise an alarm. Its gradient is that of the smaller of the two. A detector of outputs
    reads nothing but the logits, so that this is a loss like any other.

    Deviations from the paper:

    - The loss is a minimum. The paper adds a class for detected inputs to the logits.
    - The gradient is that of one objective at a time, as Bryniarski et al. (2021, arXiv:2106.15023)
      recommend, without their projection of one gradient onto the other.

    Args:
        detector_score: differentiable function from outputs `(n, width)` to anomaly scores `(n,)`,
            such as `detectors.DetectorSurrogate(...).anomaly_score`.
        threshold: greatest anomaly score without an alarm. A threshold below that of the guard
            allows for the error of a surrogate.
        weight: margin in logits that one unit of anomaly score is worth, positive.
        outputs: input of `detector_score`: `"scores"`, the softmax of the logits, or `"logits"`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range.

    Example:
        >>> import torch
        >>> from advkit.attacks import Evasion
        >>> loss = Evasion(detector_score=lambda p: 1 - p.amax(1), threshold=0.4)
        >>> logits = torch.tensor([[0.0, 2.0], [0.0, 0.1], [2.0, 0.0]])
        >>> loss(logits, torch.tensor([0, 0, 0])) > 0  # the third is right, the second unsure
        tensor([ True, False, False])
    """

    detector_score: Callable[[Tensor], Tensor]
    threshold: float
    weight: float = 1.0
    outputs: Outputs = "scores"

    def __post_init__(self) -> None:
        if not callable(self.detector_score):
            raise TypeError(
                "`detector_score` must be a function of outputs, "
                f"got {type(self.detector_score).__name__}."
            )
        checks.number("threshold", self.threshold)
        if not abs(self.threshold) < float("inf"):
            raise ValueError(f"`threshold` must be finite, got {self.threshold}.")
        checks.positive("weight", self.weight)
        checks.one_of("outputs", self.outputs, ("scores", "logits"))

    def __repr__(self) -> str:
        """Return the call that creates this loss, without arguments at their defaults."""
        return format_call(type(self).__name__, non_default_fields(self))

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the loss to maximize, `(n,)`, of `logits` `(n, classes)` and labels `y` `(n,)`."""
        outputs = logits.softmax(1) if self.outputs == "scores" else logits
        anomaly_score = self.detector_score(outputs.clone())
        if len(y) == 1 and anomaly_score.ndim == 0:
            # a detector with a squeeze drops the axis of a single sample
            anomaly_score = anomaly_score[None]
        if anomaly_score.shape != y.shape:
            raise ValueError(
                f"`detector_score` must return scores of shape {tuple(y.shape)}, got "
                f"{tuple(anomaly_score.shape)}."
            )
        return torch.minimum(margin(logits, y), self.weight * (self.threshold - anomaly_score))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Mimicry:
    """Loss of the distance to the outputs of clean inputs with another label (logit matching).

    The loss is minus the squared distance to the nearest of given clean outputs whose label is not
    `y`. It does not use the detector: a detector of outputs cannot tell an input from a clean one
    if both have the same outputs (Tramer et al., 2020, arXiv:2002.08347; on features, Sabour et
    al., 2016, arXiv:1511.05122).

    Deviations from the papers:

    - The outputs to match are chosen again at each step, as the nearest ones.

    Args:
        logits: logits of the model for clean inputs, `(m, classes)`, of at least two labels,
            preferably for inputs that the guard accepts. The label of a row is its largest logit.
        outputs: outputs to match: `"logits"`, or `"scores"`, which compares log-probabilities and
            so ignores a constant added to all logits.

    Raises:
        TypeError: `logits` is not a tensor of floats.
        ValueError: `logits` have the wrong shape, are not finite, or all have the same label.

    Example:
        >>> import torch
        >>> from advkit.attacks import Mimicry
        >>> loss = Mimicry(logits=torch.tensor([[3.0, 0.0], [0.0, 2.0]]), outputs="logits")
        >>> loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))  # to (0, 2)
        tensor([-8.])
    """

    logits: Tensor
    outputs: Outputs = "scores"

    def __post_init__(self) -> None:
        rows = self.logits
        if not isinstance(rows, Tensor) or not rows.is_floating_point():
            got = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
            raise TypeError(f"`logits` must be a tensor of floats, got {got}.")
        if rows.ndim != 2:
            raise ValueError(f"`logits` must have shape (m, classes), got {tuple(rows.shape)}.")
        bad = ~rows.isfinite().all(1)
        if bad.any():
            raise ValueError(
                f"`logits` must be finite, got NaN or infinity ({checks.samples(bad, noun='row')})."
            )
        labels = len(set(rows.argmax(1).tolist()))
        if labels < 2:
            raise ValueError(f"`logits` must have rows of at least two labels, got {labels}.")
        checks.one_of("outputs", self.outputs, ("scores", "logits"))

    def __repr__(self) -> str:
        """Return the call that creates this loss, without arguments at their defaults."""
        return format_call(type(self).__name__, non_default_fields(self))

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """Return the loss to maximize, `(n,)`, of `logits` `(n, classes)` and labels `y` `(n,)`."""
        clean = self.logits.detach().to(logits)
        labels = clean.argmax(1)
        if self.outputs == "scores":
            logits, clean = logits.log_softmax(1), clean.log_softmax(1)
        with torch.no_grad():
            distance = torch.cdist(logits, clean)  # (n, m)
            distance[y[:, None] == labels] = torch.inf
            nearest = distance.argmin(1)
        return -(logits - clean[nearest]).square().sum(1)
