"""Jacobian-based saliency map attack."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.loop import iterate
from advkit.attacks.engine.minimum_norm import MinimumNormAttack, candidates
from advkit.attacks.engine.problem import Iterate, Problem
from advkit.attacks.engine.records import Best, Nearest
from advkit.attacks.engine.rounding import warn_of_lost_theta
from advkit.core import checks
from advkit.core.norms import Norm
from advkit.core.tensors import at_least_float32

PAIR = 2  # features that a step changes
MAX_PAIRS = 2**22  # that are scored at once, to bound the memory


class _SearchState(NamedTuple):
    """State of each sample from step to step."""

    target: Tensor  # (n,), the class whose output increases
    limit: Tensor  # (n,), greatest number of features that differ from the input
    finished: Tensor  # bool (n,), no pair is left


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class JSMA(MinimumNormAttack):
    """Jacobian-based saliency map attack (Papernot et al., 2016, arXiv:1511.07528).

    This is the attack of the paper. To search for the fewest features, use `MinimumNorm`.

    Each step changes two features by `theta`: the pair (p, q) with the greatest saliency
    (a_p + a_q) |b_p + b_q|, where a is the derivative of the target's output and b that of the sum
    of all others. The first sum must be positive and the second negative, or the reverse for a
    negative `theta`. A feature at its bound is not chosen again. The best pair is found exactly and
    without a table of all pairs, because at most one other feature exceeds each of its features in
    both derivatives.

    An attack without a target aims at the likeliest classes one after another and returns the
    result with the fewest changes.

    Deviations from the paper:

    - `gamma` bounds the number of features that differ, not the number of steps. The two are the
      same for a `theta` as wide as the bounds.
    - The derivative is that of the probabilities. The paper takes the last hidden layer because
      probabilities saturate. Pairs are ranked here without the common factor that vanishes.
    - `output="logits"` takes the derivative of the logits. The saliency then depends on a constant
      added to all logits, which the predicted label does not.

    Args:
        theta: change of a feature, in input units, negative to decrease features; not zero.
        gamma: fraction of the features that may differ from the input, in (0, 1]. One pair may
            differ for any fraction.
        output: output that is differentiated, `"probabilities"` or `"logits"`.
        candidates: greatest number of classes to aim at, the likeliest first. A targeted attack
            ignores it.
        progress: show a progress bar (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range, or the inputs of the call have a single feature.
        TypeError: a value has the wrong type.

    Example:
        >>> import torch
        >>> from advkit import attacks
        >>> net = torch.nn.Linear(3, 2, bias=False)
        >>> _ = net.weight.data.copy_(torch.tensor([[0.0, 0.0, 1.0], [2.0, 0.5, 1.0]]))
        >>> x, target = torch.tensor([[0.0, 0.0, 0.5]]), torch.tensor([1])
        >>> attacks.JSMA(theta=0.5, gamma=0.7)(net, x, target=target)
        tensor([[0.5000, 0.5000, 0.5000]])
    """

    theta: float = 1.0
    gamma: float = 0.145
    output: Literal["probabilities", "logits"] = "probabilities"
    candidates: int = 9
    progress: bool = False
    norm: Norm = field(default="l0", init=False)

    def __post_init__(self) -> None:
        checks.number("theta", self.theta)
        if self.theta == 0 or not math.isfinite(self.theta):
            raise ValueError(f"`theta` must be finite and not zero, got {self.theta}.")
        checks.fraction("gamma", self.gamma, "(0, 1]")
        checks.one_of("output", self.output, ("probabilities", "logits"))
        checks.integer("candidates", self.candidates, at_least=1)
        checks.boolean("progress", self.progress)

    def _search(self, problem: Problem) -> Best | Nearest:
        features = problem.x[0].numel()
        if features < PAIR:
            raise ValueError(
                f"`x` must have at least 2 features for JSMA, which changes pairs, got {features}. "
                "Use PGD or FAB."
            )
        warn_of_lost_theta(problem, self.theta)
        return super()._search(problem)

    def _search_nearest(self, problem: Problem, at: Iterate) -> Nearest:
        nearest = Nearest.empty(problem.x)
        for target in candidates(at, problem.goal, self.candidates) or [problem.goal.labels]:
            nearest = self._aim_at(problem, target, nearest)
        return nearest

    def _total_steps(self, problem: Problem) -> int:
        return (1 if problem.goal.targeted else self.candidates) * self._max_steps(problem)

    def _max_changed(self, problem: Problem) -> int:
        """Return the greatest number of features that may differ, at least one pair."""
        return max(PAIR, int(self.gamma * problem.x[0].numel() * (1 + 1e-12)))

    def _max_steps(self, problem: Problem) -> int:
        """Return the number of steps that change as many features as possible, bound to bound."""
        lower, upper = problem.model.bounds
        return math.ceil((upper - lower) / abs(self.theta)) * (self._max_changed(problem) // PAIR)

    def _aim_at(self, problem: Problem, target: Tensor, nearest: Nearest) -> Nearest:
        """Search for successes of the class `target` `(n,)` with fewer changes than `nearest`."""
        limit = (nearest.distance - 1).clamp_max(self._max_changed(problem))
        state = _SearchState(target, limit, torch.zeros_like(nearest.success))
        return iterate(
            problem,
            problem.x,
            state,
            self._step,
            steps=self._max_steps(problem),
            best=nearest,
            finished=lambda at, state: at.success | state.finished,
        )

    def _step(
        self, i: int, problem: Problem, at: Iterate, state: _SearchState
    ) -> tuple[Tensor, _SearchState]:
        x_adv = at.x_adv.flatten(1).clone()
        bound = problem.model.bounds[1 if self.theta > 0 else 0]
        changed = x_adv != problem.x.flatten(1)
        full = changed.sum(1) + PAIR > state.limit
        movable = (x_adv != bound) & (x_adv + self.theta != x_adv)  # 16 bits round small ones away
        choice = movable & (changed | ~full[:, None])
        pair, exists = self._most_salient_pair(problem, at, state.target, choice)
        move = self.theta * exists.to(x_adv.dtype)
        x_adv.scatter_add_(1, pair, move[:, None].expand_as(pair))
        return problem.clip(x_adv.view_as(problem.x)), state._replace(finished=~exists)

    def _most_salient_pair(
        self, problem: Problem, at: Iterate, target: Tensor, choice: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the pair of features of greatest saliency.

        Args:
            problem: `n` samples.
            at: their iterates, with a graph.
            target: class whose output increases, `(n,)`.
            choice: features that may be chosen, bool `(n, d)`.

        Returns:
            The pair and a mask, as `best_pair` does.
        """
        of_probabilities = self.output == "probabilities"
        with torch.enable_grad():
            logits = at.logits
            if of_probabilities:
                logits = logits - logits.logsumexp(1, keepdim=True)
            own = logits.gather(1, target[:, None]).squeeze(1)
            others = logits.sum(1) - own
        raised = self._scaled(
            problem.mask_invalid(problem.input_gradient(at, own, again=not of_probabilities))
        )
        if of_probabilities:
            return top_pair(raised, choice)  # probabilities sum to 1: b is -a
        lowered = -self._scaled(problem.mask_invalid(problem.input_gradient(at, others)))
        return best_pair(raised, lowered, choice)

    def _scaled(self, grad: Tensor) -> Tensor:
        """Return the flat `grad`, scaled to a largest entry of 1, with the sign of `theta`.

        The scale does not change the order of the pairs.
        """
        flat = at_least_float32(grad.flatten(1))
        largest = flat.abs().amax(1, keepdim=True)
        return flat / torch.where(largest > 0, largest, 1) * math.copysign(1, self.theta)


def top_pair(raised: Tensor, choice: Tensor) -> tuple[Tensor, Tensor]:
    """Return `best_pair` of two equal coordinates `raised` `(n, d)`: its two greatest entries."""
    top = raised.masked_fill(~choice, -math.inf).topk(2, dim=1)
    return top.indices, top.values.sum(1) > 0


def best_pair(raised: Tensor, lowered: Tensor, choice: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pair of features with the greatest product of the sums of both coordinates.

    Only pairs with two positive sums count. The product increases with each of the four numbers, so
    that a feature which two others dominate in both coordinates can be replaced by one of them in
    any pair. Few features remain without those, and all their pairs are scored.

    Args:
        raised: first coordinate of each feature, `(n, d)`, finite.
        lowered: second coordinate, `(n, d)`, finite.
        choice: features that may be chosen, bool `(n, d)`.

    Returns:
        The features, int64 `(n, 2)`, and a mask of the samples that have such a pair, bool `(n,)`.
        The features of the others are not defined.
    """
    features = _rarely_dominated(raised, lowered, choice)  # (n, k)
    index = features.clamp_min(0)
    a, b = (torch.where(features < 0, -math.inf, v.gather(1, index)) for v in (raised, lowered))
    n, k = features.shape
    best = torch.zeros_like(a[:, 0])
    pair = torch.zeros(n, 2, dtype=torch.int64, device=a.device)
    block = max(1, MAX_PAIRS // max(1, n * k))
    for start in range(0, k, block):
        first = a[:, start : start + block, None] + a[:, None]
        second = b[:, start : start + block, None] + b[:, None]
        score = torch.where((first > 0) & (second > 0), first * second, 0)
        score.diagonal(start, 1, 2).zero_()  # a feature does not pair with itself
        top, where = score.flatten(1).max(1)
        better = top > best
        found = torch.stack([start + where // k, where % k], 1)
        best, pair = torch.where(better, top, best), torch.where(better[:, None], found, pair)
    return index.gather(1, pair), best > 0


def _rarely_dominated(a: Tensor, b: Tensor, choice: Tensor) -> Tensor:
    """Return the features that at most one other reaches in both coordinates, `(n, k)`.

    In descending order of `a`, these are the features whose `b` is above the second largest `b`
    before them. Rows with fewer features are filled with -1.
    """
    a, b = (v.masked_fill(~choice, -math.inf) for v in (a, b))
    order = a.argsort(dim=1, descending=True, stable=True)
    b = b.gather(1, order)
    before = torch.full_like(b[:, :1], -math.inf)
    largest = torch.cat([before, b.cummax(1).values[:, :-1]], 1)
    second = torch.cat([before, torch.minimum(b, largest).cummax(1).values[:, :-1]], 1)
    kept = b > second
    place = kept.cumsum(1) - 1
    k = max(2, int(kept.sum(1).max()))
    features = torch.full((len(b), k + 1), -1, dtype=torch.int64, device=b.device)
    return features.scatter_(1, torch.where(kept, place, k), order)[:, :k]
