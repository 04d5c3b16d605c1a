"""What every iterative attack repeats, written once.

Judge the current iterate, keep the best of each sample, drop finished samples from the batch, count
the samples sent through the model. One forward pass does three jobs: it judges the iterate, gives
the loss and starts the backward pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from advkit.core import checks
from advkit.core.losses import Loss, margin
from advkit.core.norms import lp_norm, per_sample
from advkit.models import DifferentiableClassifier

# The least shortfall of a sample that is not a success: above zero in float32 and float64 alike.
_TIE = torch.finfo(torch.float32).tiny

Stop = Literal["first", "never"]
Keep = Literal["strongest", "last"]
State = TypeVar("State", bound=tuple[Tensor, ...])


@dataclass(frozen=True)
class Goal:
    """What counts as success: leaving `labels` `(n,)`, or reaching them when `targeted`."""

    labels: Tensor
    highest: int  # of all labels given for the batch, so that no pass has to look for it
    targeted: bool

    def take(self, rows: Tensor) -> Goal:
        """The goal of a part of the batch."""
        return replace(self, labels=self.labels[rows])

    def ascent(self, loss: Loss, logits: Tensor) -> Tensor:
        """The value to climb, `(n,)`: the loss at the true labels, or minus that at the target."""
        value = loss(logits, self.labels)
        if value.shape != self.labels.shape:
            raise ValueError(
                f"loss must return one value for each sample, shape {tuple(self.labels.shape)}, "
                f"got {tuple(value.shape)}"
            )
        return -value if self.targeted else value

    def shortfall(self, logits: Tensor) -> Tensor:
        """How much the goal is missed by, `(n,)`: the margin in logits, at most 0 on success.

        Success is what the model answers, so a tie counts as `argmax` decides it. NaN stays NaN,
        which no comparison takes for a success.
        """
        answer = logits.argmax(1)
        reached = answer == self.labels if self.targeted else answer != self.labels
        value = margin(logits, self.labels)
        value = value if self.targeted else -value
        return torch.where(reached, value, value.clamp_min(_TIE))


class Ledger:
    """What one run has to say of each of its `n` inputs: passes, and gradients that failed."""

    def __init__(self, n: int, device: torch.device) -> None:
        self.forward = torch.zeros(n, dtype=torch.int64, device=device)
        self.backward = torch.zeros(n, dtype=torch.int64, device=device)
        self.blind = torch.zeros(n, dtype=torch.bool, device=device)

    def count(self, passes: Tensor, rows: Tensor) -> None:
        """One more of `passes`, which is `forward` or `backward`, for the samples `rows`."""
        if len(rows) == len(passes):
            passes += 1  # the rows are all of them: three times as fast as the index
        else:
            passes[rows] += 1


class Judged(NamedTuple):
    """An iterate and what one forward pass says of it."""

    x_adv: Tensor  # (n, *features), a leaf when the pass can be differentiated
    value: Tensor  # (n,), the loss to climb, with its graph
    shortfall: Tensor  # (n,)

    @property
    def success(self) -> Tensor:
        """Whether the goal is reached, bool `(n,)`."""
        return self.shortfall <= 0


@dataclass(frozen=True)
class Problem:
    """Samples to attack: a batch, or the rows of it that are still open."""

    model: DifferentiableClassifier
    x: Tensor  # (n, *features)
    goal: Goal
    loss: Loss
    rows: Tensor  # (n,), where these samples stand in the whole batch
    ledger: Ledger

    def take(self, keep: Tensor) -> Problem:
        """The same for the samples where bool `keep` `(n,)` is true."""
        rows, goal = self.rows[keep], self.goal.take(keep)
        return replace(self, x=self.x[keep], goal=goal, rows=rows)

    def clip(self, x_adv: Tensor) -> Tensor:
        """`x_adv` within the bounds; no sample gets further from `x` by it."""
        return x_adv.clamp(*self.model.bounds)

    def judge(self, x_adv: Tensor, *, differentiate: bool, first: bool = False) -> Judged:
        """One forward pass.

        Args:
            x_adv: `(n, *features)`.
            differentiate: keep the graph for `gradient`.
            first: whether it is the first look at these samples.

        Raises:
            ValueError: a first look that meets NaN or infinite logits. Later ones are no reason to
                lose what was found: such an iterate is no success and is never kept.
        """
        x_adv = x_adv.detach().requires_grad_(differentiate)
        with torch.set_grad_enabled(differentiate):
            logits = self.logits(x_adv)
            value = self.goal.ascent(self.loss, logits)
        shortfall = self.goal.shortfall(logits.detach())
        if first and not shortfall.isfinite().all():
            checks.finite_logits(logits, self.rows)
        return Judged(x_adv, value, shortfall)

    def logits(self, x_adv: Tensor) -> Tensor:
        """Counted logits `(n, classes)`, of float32 at least.

        Raises:
            ValueError: a label that the model does not have.
        """
        self.ledger.count(self.ledger.forward, self.rows)
        logits = self.model.logits(x_adv)
        classes, highest = logits.shape[1], self.goal.highest
        if highest >= classes:
            name = "target" if self.goal.targeted else "y"
            checks.labels_within(name, self.goal.labels, classes, self.rows)
            raise ValueError(f"y must be below {classes}, the number of classes, got {highest}")
        return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits

    def gradient(self, at: Judged) -> Tensor:
        """One backward pass: where to move, `(n, *features)`; zero where there is no gradient.

        The values are summed, so that no sample's gradient depends on the size of its batch.

        Raises:
            TypeError: the logits do not depend on the input in a way that torch can follow.
        """
        if not at.value.requires_grad:
            raise TypeError(_NO_GRAPH)
        ones = torch.ones_like(at.value)
        (grad,) = torch.autograd.grad(at.value, at.x_adv, ones, allow_unused=True)
        if grad is None:
            raise TypeError(_NO_GRAPH)
        self.ledger.count(self.ledger.backward, self.rows)
        length = lp_norm(grad, "l2")  # the fastest look; squares may vanish or overflow
        if ((length > 0) & (length < math.inf)).all():
            return grad
        largest = lp_norm(grad, "linf")
        lost = ~((largest > 0) & (largest < math.inf))
        self.ledger.blind[self.rows] |= lost
        return torch.where(per_sample(lost, grad), 0, grad)

    def gradient_of(self, at: Judged, keep: Tensor) -> Tensor:
        """`gradient` of the samples where bool `keep` `(n,)` is true.

        A backward pass takes the whole graph, finished samples and all. Where they are the greater
        part, it is cheaper to send the few others forward again, by themselves.
        """
        if 2 * keep.sum() > len(keep):
            return self.gradient(at)[keep]
        rest = self.take(keep)
        return rest.gradient(rest.judge(at.x_adv[keep], differentiate=True))


_NO_GRAPH = (
    "the model's logits cannot be differentiated with respect to x (it detaches, rounds or leaves "
    "torch); use an attack without gradients, or transfer from a differentiable substitute"
)


class Best(NamedTuple):
    """The best iterate of each sample of a batch."""

    x_adv: Tensor  # (n, *features)
    shortfall: Tensor  # (n,), inf where nothing was judged

    @property
    def success(self) -> Tensor:
        """Whether the goal was reached, bool `(n,)`."""
        return self.shortfall <= 0

    def improved(self, at: Judged) -> Best:
        """Each sample's stronger one: further past the decision boundary, or nearer to it."""
        better = at.shortfall < self.shortfall
        return Best(
            torch.where(per_sample(better, at.x_adv), at.x_adv.detach(), self.x_adv),
            torch.where(better, at.shortfall, self.shortfall),
        )

    def take(self, keep: Tensor) -> Best:
        """The same for the samples where bool `keep` `(n,)` is true."""
        return Best(self.x_adv[keep], self.shortfall[keep])

    def put(self, rows: Tensor, found: Best) -> None:
        """Write `found` into the samples `rows`, in place."""
        for mine, other in zip(self, found, strict=True):
            mine[rows] = other.to(mine.dtype)


def nothing_yet(problem: Problem) -> Best:
    """The clean inputs, to be replaced by whatever has been judged."""
    return _unjudged(problem.x)


def _unjudged(x_adv: Tensor) -> Best:
    dtype = torch.float64 if x_adv.dtype == torch.float64 else torch.float32
    return Best(x_adv.clone(), torch.full((len(x_adv),), math.inf, dtype=dtype).to(x_adv.device))


def iterate(
    problem: Problem,
    x_adv: Tensor,
    state: State,
    step: Callable[[int, Problem, Tensor, Tensor, State], tuple[Tensor, State]],
    *,
    steps: int,
    keep: Keep,
    stop: Stop,
    first_look: bool,
    advance: Callable[[int], None],
) -> Best:
    """Repeat `step` from `x_adv` and keep an iterate of each sample.

    Every iterate is judged, the first and the last too. With `stop="first"` a successful sample
    leaves the batch at once: it is not moved, not judged and not differentiated again.

    Args:
        problem: `n` samples.
        x_adv: where to begin, `(n, *features)`.
        state: what the step carries along, a `NamedTuple` of tensors `(n, ...)`.
        step: from `(i, problem, x_adv, grad, state)` to the next iterate and state, each of them
            for the samples still open.
        steps: number of steps; one forward and one backward pass each, and one forward pass for the
            last iterate.
        keep: `"strongest"` for the strongest iterate; `"last"` for attacks that are one formula and
            return what it gives: that is not judged here, since `conclude` does it anyway.
        stop: whether successful samples are finished.
        first_look: whether these samples have not been judged before, see `Problem.judge`.
        advance: told of each step taken.

    Returns:
        The iterates kept for all `n` samples.
    """
    found = best = nothing_yet(problem)
    open_rows = torch.arange(len(problem.x), device=problem.x.device)
    for i in range(steps):
        at = problem.judge(x_adv, differentiate=True, first=first_look and i == 0)
        best = best.improved(at)
        if stop == "first" and at.success.all():
            break
        if stop == "first" and at.success.any():
            still = ~at.success
            found.put(open_rows[at.success], best.take(at.success))
            grad = problem.gradient_of(at, still)
            problem, best, open_rows = problem.take(still), best.take(still), open_rows[still]
            x_adv, state = x_adv[still], type(state)(*(part[still] for part in state))
        else:
            grad = problem.gradient(at)
        x_adv, state = step(i, problem, x_adv, grad, state)
        advance(1)
    else:
        if keep == "last":
            best = _unjudged(x_adv)
        else:
            best = best.improved(problem.judge(x_adv, differentiate=False))
    found.put(open_rows, best)
    return found
