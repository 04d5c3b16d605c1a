"""Samples to attack, and the counted forward and backward passes of the model.

One forward pass evaluates the iterates, computes the objective and prepares the backward pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.goal import Goal
from advkit.attacks.engine.logit_scale import LogitScale
from advkit.attacks.engine.rows import select, update_rows
from advkit.attacks.engine.run_statistics import RunStatistics
from advkit.core import checks, label_checks, sample_rows
from advkit.core.differentiation import differentiating
from advkit.core.losses import CandidateLoss, Loss, is_built_in, logit_gap
from advkit.core.norms import (
    Norm,
    finite_gradient,
    keep_largest,
    lp_norm,
    per_sample,
    project,
)
from advkit.core.tensors import asynchronous, at_least_float32
from advkit.models import DifferentiableClassifier


class Iterate(NamedTuple):
    """Iterates of `n` samples with the outputs of one forward pass."""

    leaf: Tensor  # (m, *features), input of the pass: these samples, or more
    rows: Tensor  # (m,), rows of the input in the whole batch
    kept: Tensor | None  # bool (m,), mask of these samples in the input; None for all
    logits: Tensor  # (n, classes), with its graph
    value: Tensor  # (n,), the objective, with its graph
    violation: Tensor  # (n,)

    @property
    def x_adv(self) -> Tensor:
        """Iterates, `(n, *features)`."""
        leaf = self.leaf.detach()
        return leaf if self.kept is None else leaf[self.kept]

    @property
    def success(self) -> Tensor:
        """Mask `(n,)` of the samples that reach the goal."""
        return self.violation <= 0

    def select(self, mask: Tensor) -> Iterate:
        """Return the iterates of the samples where bool `mask` `(n,)` is true."""
        with torch.enable_grad():
            parts = (self.logits[mask], self.value[mask], self.violation[mask])
        kept = mask if self.kept is None else self.kept.masked_scatter(self.kept, mask)
        return Iterate(self.leaf, self.rows, kept, *parts)


@dataclass(frozen=True)
class Problem:
    """Samples to attack: a batch, or its rows that are not finished."""

    model: DifferentiableClassifier
    x: Tensor  # (n, *features)
    goal: Goal
    loss: Loss
    norm: Norm  # of the distances
    rows: Tensor  # (n,), rows of these samples in the whole batch
    statistics: RunStatistics
    scale: LogitScale
    # whether iterates may be results if the model ends the run
    recorded: bool = field(default=True, kw_only=True)

    def select(self, mask: Tensor) -> Problem:
        """Return the problem of the samples where bool `mask` `(n,)` is true."""
        rows, goal = self.rows[mask], self.goal.select(mask)
        return replace(self, x=self.x[mask], goal=goal, rows=rows)

    def with_candidate(self, candidate: Tensor | None, loss: CandidateLoss = logit_gap) -> Problem:
        """Return this problem with classes `candidate` `(n,)` to aim at; `None` for any class.

        `loss` is the objective with a candidate.
        """
        return replace(self, goal=replace(self.goal, candidate=candidate, candidate_loss=loss))

    def unrecorded(self) -> Problem:
        """Return this problem for iterates that are not results, such as those outside a ball."""
        return replace(self, recorded=False)

    def with_model(self, model: DifferentiableClassifier) -> Problem:
        """Return this problem for another `model`."""
        return replace(self, model=model, scale=LogitScale(self.statistics.n))

    def as_current(self) -> sample_rows.opened:
        """Return a context in which `advkit.current_rows` returns the numbers of these samples."""
        return sample_rows.selected(self.rows, self.statistics.n)

    def distance(self, x_adv: Tensor) -> Tensor:
        """Return the distances `(n,)` between `x_adv` and the clean inputs."""
        return lp_norm(x_adv - self.x, self.norm)

    def exact_distance(self, x_adv: Tensor) -> Tensor:
        """Return the distances `(n,)` in float32 or a wider dtype: 16 bits would round them."""
        return lp_norm(at_least_float32(x_adv) - at_least_float32(self.x), self.norm)

    def clip(self, x_adv: Tensor) -> Tensor:
        """Clip `x_adv` to the bounds, in the dtype and memory format of `x`.

        No sample moves away from its clean input.
        """
        return self.match_memory_format(x_adv.to(self.x.dtype)).clamp(*self.model.bounds)

    def match_memory_format(self, x_adv: Tensor) -> Tensor:
        """Return `x_adv` in the memory format of `x`, which images and volumes may choose."""
        channels_last = _CHANNELS_LAST.get(x_adv.ndim)
        if channels_last is not None and self.x.is_contiguous(memory_format=channels_last):
            return x_adv.contiguous(memory_format=channels_last)
        return x_adv

    def round_into_ball(self, x_adv: Tensor, eps: Tensor) -> Tensor:
        """Undo rounding in 16 bits that leaves an linf ball of radius `eps` `(n,)`."""
        if self.norm != "linf" or x_adv.element_size() > 2:
            return x_adv
        outside = (x_adv.float() - self.x.float()).abs() > per_sample(eps, x_adv).float()
        return torch.where(outside, x_adv.nextafter(self.x), x_adv)

    def project_to_ball(self, x_adv: Tensor, eps: Tensor) -> Tensor:
        """Project `x_adv` onto the ball, then clip it to the bounds; `x_adv` is overwritten.

        In l0, whose ball is not convex, this keeps the `eps` `(n,)` features that change most.
        """
        if self.norm == "l0":
            kept = keep_largest(x_adv - self.x, eps) != 0
            return self.clip(torch.where(kept, x_adv, self.x))
        delta = project(x_adv.sub_(self.x), eps, self.norm)
        return self.round_into_ball(self.clip(delta.add_(self.x)), eps)

    def drop_active_bounds(self, x_adv: Tensor, grad: Tensor) -> Tensor:
        """Return `grad`, zero for features at a bound that a step along it would move outside."""
        lower, upper = self.model.bounds
        active = (x_adv <= lower) & (grad < 0) | (x_adv >= upper) & (grad > 0)
        return torch.where(active, 0, grad)

    def evaluate_clean(self, record: tuple[Tensor, ...]) -> Iterate:
        """Evaluate the clean inputs of a whole batch, and write the successes into `record`.

        The record must be empty: it holds the clean inputs, whose distance is 0.
        """
        at = self.forward(self.x, differentiate=False, first=True)
        self.statistics.clean_violation[self.rows] = at.violation.double()
        rows = at.success.nonzero().flatten()
        clean = (at.x_adv, at.violation, torch.zeros_like(at.violation))
        update_rows(record, rows, tuple(part[rows] for part in clean[: len(record)]))
        return at

    def forward(self, x_adv: Tensor, *, differentiate: bool, first: bool = False) -> Iterate:
        """Evaluate iterates in one forward pass.

        NaN or infinite logits in a later pass do not end the run, so that earlier successes are not
        lost. Such an iterate is not a success, is never kept, and is recorded in the statistics. A
        rejection, minus infinity for every class, is not a success either, and is allowed in any
        pass.

        Args:
            x_adv: iterates, `(n, *features)`.
            differentiate: keep the graph for `input_gradient`.
            first: whether this is the first pass of these samples.

        Raises:
            ValueError: the first pass gives NaN or infinite logits for a clean input.
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
        """Raise if `logits` `(n, classes)` of a clean input are not finite and not a rejection."""
        clean = (x_adv == self.x).flatten(1).all(1) & ~_rejected(logits)
        checks.finite_logits(logits[clean], self.rows[clean])

    def update_best(self, at: Iterate) -> None:
        """Keep the better iterates of `at` if a query budget may end the run at any pass."""
        record = self.statistics.best_so_far
        if record is not None and self.recorded:
            update_rows(record, self.rows, select(record, self.rows).improved(self, at))

    def logits(self, x_adv: Tensor) -> Tensor:
        """Compute logits `(n, classes)` in one counted pass, in float32 or a wider dtype.

        Logits of extreme size are scaled.

        Raises:
            ValueError: a label is not one of the model's classes.
        """
        logits = self.statistics.sender(self.model.logits, x_adv, self.rows)
        self.statistics.count(self.statistics.forward, self.rows)
        classes, max_label = logits.shape[1], self.goal.max_label
        if max_label >= classes:
            name = "target" if self.goal.targeted else "y"
            label_checks.labels_within(name, self.goal.labels, classes, self.rows)
            raise ValueError(
                f"`y` must be below {classes}, the number of classes, got {max_label}."
            )
        if not self.is_scale_free:
            return at_least_float32(logits)
        return self.scale.applied(logits, self.goal.labels, self.rows)

    @property
    def is_scale_free(self) -> bool:
        """True if a common factor of all logits does not change what is computed from them.

        A custom loss and a confidence are in the units of the logits.
        """
        return is_built_in(self.loss) and not self.goal.confidence

    def violation(self, x_adv: Tensor) -> Tensor:
        """Compute the violation `(n,)` of the goal at `x_adv` in one counted pass."""
        return self.violation_of(self.logits(x_adv))

    def violation_of(self, logits: Tensor) -> Tensor:
        """Return the violation `(n,)` of the goal, and record samples with invalid logits.

        During the verification, the predicted labels are recorded too.
        """
        violation = self.goal.violation(logits)
        if self.statistics.verified_labels is not None:
            self.statistics.verified_labels[self.rows] = logits.argmax(1)
        invalid = violation.isnan()
        if asynchronous(invalid.device) or invalid.any():
            rejected = _rejected(logits)
            self.statistics.rejected[self.rows] |= invalid & rejected
            self.statistics.not_finite[self.rows] |= invalid & ~rejected
        return violation

    def reaches_goal(self, x_adv: Tensor, rows: Tensor) -> Tensor:
        """Return whether points reach the goal of their samples, in one counted pass.

        Args:
            x_adv: points to evaluate, `(m, *features)`.
            rows: row of each point's sample in the whole batch, int64 `(m,)`. A sample may have
                several points.

        Returns:
            Mask `(m,)` of the points that reach the goal.
        """
        logits = self.statistics.sender(self.model.logits, x_adv, rows)
        violation = self.goal.select(rows).violation(logits)
        self.statistics.forward += torch.bincount(rows, minlength=len(self.x))
        invalid, rejected = violation.isnan(), _rejected(logits)
        self.statistics.rejected[rows[invalid & rejected]] = True  # a row may come several times
        self.statistics.not_finite[rows[invalid & ~rejected]] = True
        return violation <= 0

    def input_gradient(self, at: Iterate, value: Tensor, *, again: bool = False) -> Tensor:
        """Compute the gradient of `value` `(n,)` at `at` in one counted backward pass, all finite.

        Entries that are NaN or infinite do not affect the others, see `finite_gradient`. Arguments
        and errors are those of `_input_gradient`.
        """
        return finite_gradient(self._input_gradient(at, value, again=again))

    def _input_gradient(self, at: Iterate, value: Tensor, *, again: bool = False) -> Tensor:
        """Compute the gradient of `value` `(n,)` at `at` in one counted backward pass, unmasked.

        The values are summed, so that the gradient of a sample does not depend on the batch size.

        Args:
            at: iterates of a forward pass that kept its graph.
            value: values computed from the logits of `at`.
            again: keep the graph for another backward pass.

        Raises:
            TypeError: torch cannot differentiate the logits with respect to the input.
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
        """Compute the gradient `(n, *features)` of the objective, zero where it is invalid.

        Raises:
            TypeError: torch cannot differentiate the logits with respect to the input.
        """
        return self.mask_invalid(self._input_gradient(at, at.value))

    def mask_invalid(self, grad: Tensor) -> Tensor:
        """Return `grad` with finite entries, and record samples whose gradient is zero then."""
        largest = lp_norm(grad, "linf")
        if not asynchronous(grad.device) and ((largest > 0) & (largest < math.inf)).all():
            return grad
        grad = finite_gradient(grad)
        self.statistics.no_gradient[self.rows] |= lp_norm(grad, "linf") == 0
        return grad

    def select_for_backward(self, at: Iterate, mask: Tensor) -> Iterate:
        """Return the iterates where bool `mask` `(n,)` is true, ready for a backward pass.

        A backward pass runs through the whole graph, including finished samples. If at least half
        of the samples are finished, another forward pass of the remaining ones is cheaper.
        """
        if self.statistics.sender.whole or 2 * mask.sum() > len(mask):
            return at.select(mask)
        return self.select(mask).forward(at.x_adv[mask], differentiate=True)


def _rejected(logits: Tensor) -> Tensor:
    """Return a mask `(n,)` of the rows of `logits` `(n, classes)` that are rejections."""
    return (logits == -math.inf).all(1)


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_NO_GRAPH = (
    "`model` must have logits that can be differentiated with respect to x, got logits without a "
    "gradient: the model detaches, rounds or leaves torch. Use an attack without gradients, or "
    "Transfer from a differentiable surrogate."
)
