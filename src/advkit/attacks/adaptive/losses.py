"""Losses that know of a detector of outputs."""

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
    """Loss of a wrong label that raises no alarm (Carlini and Wagner, 2017, arXiv:1705.07263).

    The lesser of the margin and of what is left until the alarm: positive where the model is wrong
    and the detector quiet, and climbed at whichever of the two is worse. A detector that looks at
    the model's output alone sees nothing but the logits, so that this is a loss like any other.

    Deviations: the minimum in place of the paper's further class, so that no class is given a part
    in the logits; its gradient is that of one goal at a time, as Bryniarski et al. (2021,
    arXiv:2106.15023) want it, but without their projection of one gradient on the other.

    Args:
        detector_score: differentiable function from outputs `(n, width)` to anomaly scores `(n,)`,
            such as `detectors.DetectorSurrogate(...).anomaly_score`.
        threshold: the most suspicion that raises no alarm. One below that of the guard leaves
            room for what a surrogate gets wrong.
        weight: of suspicion against logits, positive: how much margin a unit of suspicion is worth.
        outputs: what `alarm` looks at: `"scores"`, the softmax of the logits, or the `"logits"`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range.

    Example:
        >>> import torch
        >>> from advkit.attacks import Evasion
        >>> loss = Evasion(detector_score=lambda p: 1 - p.amax(1), threshold=0.4)
        >>> logits = torch.tensor([[0.0, 2.0], [0.0, 0.1], [2.0, 0.0]])
        >>> loss(logits, torch.tensor([0, 0, 0])) > 0  # only the first is wrong and sure of it
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
            raise ValueError(f"`threshold` must be finite, got {self.threshold}")
        checks.positive("weight", self.weight)
        checks.one_of("outputs", self.outputs, ("scores", "logits"))

    def __repr__(self) -> str:
        """The call that makes this loss, without what is at its default."""
        return format_call(type(self).__name__, non_default_fields(self))

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """The value to climb `(n,)`, of `logits` `(n, classes)` and labels `y` `(n,)`."""
        outputs = logits.softmax(1) if self.outputs == "scores" else logits
        anomaly_score = self.detector_score(outputs.clone())
        if len(y) == 1 and anomaly_score.ndim == 0:
            anomaly_score = anomaly_score[
                None
            ]  # an alarm that squeezes drops the axis of a single sample
        if anomaly_score.shape != y.shape:
            raise ValueError(
                f"`detector_score` must return scores of shape {tuple(y.shape)}, got "
                f"{tuple(anomaly_score.shape)}."
            )
        return torch.minimum(margin(logits, y), self.weight * (self.threshold - anomaly_score))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Mimicry:
    """Loss of outputs unlike those of clean inputs with another label (logit matching).

    Minus the squared distance to the nearest of some clean outputs whose label is not `y`. It knows
    nothing of the detector: what gives the outputs of a clean input is a clean input to whoever
    looks at outputs alone (Tramer et al., 2020, arXiv:2002.08347; on features, Sabour et al., 2016,
    arXiv:1511.05122).

    Deviation: the outputs to match are chosen anew at each step, as the nearest.

    Args:
        logits: `(m, classes)`, the model's for clean inputs, best those that the guard answers;
            of two labels or more. The label of a row is its largest logit.
        outputs: what is matched: the `"logits"`, or `"scores"`, which leaves free what the softmax
            does not show: log-probabilities are compared.

    Raises:
        TypeError: `logits` are no tensor of floats.
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
            raise TypeError(f"`logits` must be a tensor of floats, got {got}")
        if rows.ndim != 2:
            raise ValueError(f"`logits` must have shape (m, classes), got {tuple(rows.shape)}")
        bad = ~rows.isfinite().all(1)
        if bad.any():
            raise ValueError(f"`logits` must be finite, are not in row {checks.indices(bad)}")
        if not (rows.argmax(1) != rows[:1].argmax(1)).any():
            raise ValueError(
                "`logits` must have rows of two labels or more: there is none to go to"
            )
        checks.one_of("outputs", self.outputs, ("scores", "logits"))

    def __repr__(self) -> str:
        """The call that makes this loss, without what is at its default."""
        return format_call(type(self).__name__, non_default_fields(self))

    def __call__(self, logits: Tensor, y: Tensor) -> Tensor:
        """The value to climb `(n,)`, of `logits` `(n, classes)` and labels `y` `(n,)`."""
        clean = self.logits.detach().to(logits)
        labels = clean.argmax(1)
        if self.outputs == "scores":
            logits, clean = logits.log_softmax(1), clean.log_softmax(1)
        with torch.no_grad():
            distance = torch.cdist(logits, clean)  # (n, m)
            distance[y[:, None] == labels] = torch.inf
            nearest = distance.argmin(1)
        return -(logits - clean[nearest]).square().sum(1)
