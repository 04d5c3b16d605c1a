"""Samples to attack, and one evaluated, counted pass through the model.

One forward pass does three jobs: it judges the iterate, gives the loss and starts the backward
pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.goal import Goal
from advkit.attacks.engine.logit_scale import LogitScale
from advkit.attacks.engine.rows import select, update_rows
from advkit.attacks.engine.run_statistics import RunStatistics
from advkit.core import checks, sample_rows
from advkit.core.differentiation import differentiating
from advkit.core.losses import Loss, is_built_in
from advkit.core.norms import Norm, finite_gradient, lp_norm, per_sample, project
from advkit.core.tensors import asynchronous, at_least_float32
from advkit.models import DifferentiableClassifier


class Iterate(NamedTuple):
    """Iterates of `n` samples and what one forward pass says of them."""

    leaf: Tensor  # (m, *features), what was sent forward: these samples, or more
    rows: Tensor  # (m,), where those stand in the whole batch
    kept: Tensor | None  # bool (m,), which of them these samples are; None for all
    logits: Tensor  # (n, classes), with its graph
    value: Tensor  # (n,), what is climbed, with its graph
    violation: Tensor  # (n,)

    @property
    def x_adv(self) -> Tensor:
        """The iterates, `(n, *features)`."""
        leaf = self.leaf.detach()
        return leaf if self.kept is None else leaf[self.kept]

    @property
    def success(self) -> Tensor:
        """Whether the goal is reached, bool `(n,)`."""
        return self.violation <= 0

    def select(self, mask: Tensor) -> Iterate:
        """The samples where bool `mask` `(n,)` is true."""
        with torch.enable_grad():
            parts = (self.logits[mask], self.value[mask], self.violation[mask])
        kept = mask if self.kept is None else self.kept.masked_scatter(self.kept, mask)
        return Iterate(self.leaf, self.rows, kept, *parts)


@dataclass(frozen=True)
class Problem:
    """Samples to attack: a batch, or the rows of it that are still open."""

    model: DifferentiableClassifier
    x: Tensor  # (n, *features)
    goal: Goal
    loss: Loss
    norm: Norm  # of the distances
    rows: Tensor  # (n,), where these samples stand in the whole batch
    statistics: RunStatistics
    scale: LogitScale

    def select(self, mask: Tensor) -> Problem:
        """The same for the samples where bool `mask` `(n,)` is true."""
        rows, goal = self.rows[mask], self.goal.select(mask)
        return replace(self, x=self.x[mask], goal=goal, rows=rows)

    def with_candidate(self, candidate: Tensor | None) -> Problem:
        """The same with `candidate` `(n,)` to climb to; `None` for whichever class is best."""
        return replace(self, goal=replace(self.goal, candidate=candidate))

    def with_model(self, model: DifferentiableClassifier) -> Problem:
        """The same, `model` being asked instead."""
        return replace(self, model=model, scale=LogitScale(self.statistics.n))

    def as_current(self) -> sample_rows.opened:
        """Return a context in which these are the samples that `advkit.current_rows` numbers."""
        return sample_rows.selected(self.rows, self.statistics.n)

    def distance(self, x_adv: Tensor) -> Tensor:
        """How far `x_adv` is from the clean inputs, `(n,)`."""
        return lp_norm(x_adv - self.x, self.norm)

    def clip(self, x_adv: Tensor) -> Tensor:
        """`x_adv` as `x` is stored and within the bounds; no sample gets further from it."""
        return self.match_memory_format(x_adv.to(self.x.dtype)).clamp(*self.model.bounds)

    def match_memory_format(self, x_adv: Tensor) -> Tensor:
        """`x_adv` in the memory format of `x`, where images and volumes have one to choose."""
        wanted = _CHANNELS_LAST.get(x_adv.ndim)
        if wanted is not None and self.x.is_contiguous(memory_format=wanted):
            return x_adv.contiguous(memory_format=wanted)
        return x_adv

    def round_into_ball(self, x_adv: Tensor, eps: Tensor) -> Tensor:
        """`x_adv` without what 16 bits round out of an linf ball of radius `eps` `(n,)`."""
        if self.norm != "linf" or x_adv.element_size() > 2:
            return x_adv
        over = (x_adv.float() - self.x.float()).abs() > per_sample(eps, x_adv).float()
        return torch.where(over, x_adv.nextafter(self.x), x_adv)

    def project_to_ball(self, x_adv: Tensor, eps: Tensor) -> Tensor:
        """Return the point of ball and box next to `x_adv`, which is used up."""
        delta = project(x_adv.sub_(self.x), eps, self.norm)
        return self.round_into_ball(self.clip(delta.add_(self.x)), eps)

    def drop_active_bounds(self, x_adv: Tensor, grad: Tensor) -> Tensor:
        """Return `grad` without the features at a bound that a step along it would push out."""
        lower, upper = self.model.bounds
        active = (x_adv <= lower) & (grad < 0) | (x_adv >= upper) & (grad > 0)
        return torch.where(active, 0, grad)

    def evaluate_clean(self, record: tuple[Tensor, ...]) -> Iterate:
        """Evaluate the clean inputs of a whole batch, and write the successes into `record`.

        The record is empty: it holds the clean inputs, whose distance is 0.
        """
        at = self.forward(self.x, differentiate=False, first=True)
        rows = at.success.nonzero().flatten()
        clean = (at.x_adv, at.violation, torch.zeros_like(at.violation))
        update_rows(record, rows, tuple(part[rows] for part in clean[: len(record)]))
        return at

    def forward(self, x_adv: Tensor, *, differentiate: bool, first: bool = False) -> Iterate:
        """One forward pass.

        Args:
            x_adv: `(n, *features)`.
            differentiate: keep the graph for `gradient`.
            first: whether it is the first look at these samples.

        Raises:
            ValueError: a first look that meets NaN or infinite logits at a clean input. Elsewhere
                they are no reason to lose what was found: such an iterate is not a success, is
                never kept, and is noted in the ledger. A rejection, minus infinity for every
                class, is not a success either, and may be met at any look.
        """
        x_adv = x_adv.detach().requires_grad_(differentiate)
        with torch.set_grad_enabled(differentiate):
            logits = self.logits(x_adv)
            with self.as_current():
                value = self.goal.objective(self.loss, logits)
        violation = self.violation_of(logits.detach())
        if first and violation.isnan().any():
            self.check_clean(x_adv, logits)
        at = Iterate(x_adv, self.rows, None, logits, value, violation)
        self.update_best(at)
        return at

    def check_clean(self, x_adv: Tensor, logits: Tensor) -> None:
        """Raise if `logits` `(n, classes)` of a clean input are not finite, and no rejection."""
        clean = (x_adv == self.x).flatten(1).all(1) & ~_rejected(logits)
        checks.finite_logits(logits[clean], self.rows[clean])

    def update_best(self, at: Iterate) -> None:
        """Keep what `at` has that is better, where a query budget may end the run at any pass."""
        kept = self.statistics.best_so_far
        if kept is not None:
            update_rows(kept, self.rows, select(kept, self.rows).improved(self, at))

    def logits(self, x_adv: Tensor) -> Tensor:
        """Counted logits `(n, classes)`, of float32 at least and none of extreme size.

        Raises:
            ValueError: a label that the model does not have.
        """
        logits = self.statistics.sender(self.model.logits, x_adv, self.rows)
        self.statistics.count(self.statistics.forward, self.rows)
        classes, max_label = logits.shape[1], self.goal.max_label
        if max_label >= classes:
            name = "target" if self.goal.targeted else "y"
            checks.labels_within(name, self.goal.labels, classes, self.rows)
            raise ValueError(f"`y` must be below {classes}, the number of classes, got {max_label}")
        if not self.is_scale_free:
            return at_least_float32(logits)
        return self.scale.applied(logits, self.goal.labels, self.rows)

    @property
    def is_scale_free(self) -> bool:
        """True if a factor common to all logits changes nothing that is computed from them.

        A loss of the user's own and a confidence are in the units of the logits.
        """
        return is_built_in(self.loss) and not self.goal.confidence

    def violation(self, x_adv: Tensor) -> Tensor:
        """One counted pass: how much the goal is missed by at `x_adv`, `(n,)`."""
        return self.violation_of(self.logits(x_adv))

    def violation_of(self, logits: Tensor) -> Tensor:
        """Return how much the goal is missed by, `(n,)`; samples without an answer are noted."""
        violation = self.goal.violation(logits)
        lost = violation.isnan()
        if asynchronous(lost.device) or lost.any():
            self.statistics.not_finite[self.rows] |= lost & ~_rejected(logits)
        return violation

    def reaches_goal(self, x_adv: Tensor, rows: Tensor) -> Tensor:
        """One counted pass over candidates of a whole batch: whether each reaches the goal.

        Args:
            x_adv: `(m, *features)`.
            rows: int64 `(m,)`, the samples that they are candidates of; one may have several.

        Returns:
            bool `(m,)`.
        """
        logits = self.statistics.sender(self.model.logits, x_adv, rows)
        violation = self.goal.select(rows).violation(logits)
        self.statistics.forward += torch.bincount(rows, minlength=len(self.x))
        self.statistics.not_finite[rows[violation.isnan() & ~_rejected(logits)]] = True
        return violation <= 0

    def input_gradient(self, at: Iterate, value: Tensor, *, again: bool = False) -> Tensor:
        """One counted backward pass from `value` `(n,)`: its gradient at `at`, all of it finite.

        An entry that is NaN or infinite leaves the others as they are, see `finite_gradient`.
        Arguments and errors are those of `_input_gradient`.
        """
        return finite_gradient(self._input_gradient(at, value, again=again))

    def _input_gradient(self, at: Iterate, value: Tensor, *, again: bool = False) -> Tensor:
        """One counted backward pass from `value` `(n,)`: its gradient at `at`, as torch gives it.

        The values are summed, so that no sample's gradient depends on the size of its batch.

        Args:
            at: samples of a pass that can be differentiated.
            value: computed from its logits.
            again: keep the graph for another pass.

        Raises:
            TypeError: the logits do not depend on the input in a way that torch can follow.
            RuntimeError: a recurrent layer on a GPU is in evaluation mode.
        """
        if not value.requires_grad:
            raise TypeError(_NO_GRAPH)
        with torch.enable_grad():
            total = value.sum()
        rows = sample_rows.selected(at.rows, self.statistics.n)  # for checkpointed modules
        with differentiating(self.model), rows:
            (grad,) = torch.autograd.grad(total, at.leaf, retain_graph=again, allow_unused=True)
        if grad is None:
            raise TypeError(_NO_GRAPH)
        self.statistics.count(self.statistics.backward, at.rows)
        return grad if at.kept is None else grad[at.kept]

    def ascent_direction(self, at: Iterate) -> Tensor:
        """One backward pass: where to move, `(n, *features)`; zero where there is no gradient.

        Raises:
            TypeError: as `input_gradient`.
        """
        return self.mask_invalid(self._input_gradient(at, at.value))

    def mask_invalid(self, grad: Tensor) -> Tensor:
        """Return `grad` as `finite_gradient` does; samples with nothing left are noted."""
        largest = lp_norm(grad, "linf")
        if not asynchronous(grad.device) and ((largest > 0) & (largest < math.inf)).all():
            return grad
        grad = finite_gradient(grad)
        self.statistics.no_gradient[self.rows] |= lp_norm(grad, "linf") == 0
        return grad

    def select_for_backward(self, at: Iterate, mask: Tensor) -> Iterate:
        """`at` for the samples where bool `mask` `(n,)` is true, to be differentiated.

        A backward pass takes the whole graph, finished samples and all. Where they are the greater
        part, it is cheaper to send the few others forward again, by themselves.
        """
        if self.statistics.sender.whole or 2 * mask.sum() > len(mask):
            return at.select(mask)
        return self.select(mask).forward(at.x_adv[mask], differentiate=True)


def _rejected(logits: Tensor) -> Tensor:
    """Return a mask `(n,)` of the rows of `logits` `(n, classes)` that are rejections."""
    return (logits == -math.inf).all(1)


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_NO_GRAPH = (
    "the model's logits cannot be differentiated with respect to x (it detaches, rounds or leaves "
    "torch); use an attack without gradients, or transfer from a differentiable substitute"
)
