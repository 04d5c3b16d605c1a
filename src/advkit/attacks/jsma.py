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

_PAIR = 2  # features that a step changes
_BLOCK = 2**22  # pairs that are scored at once


class _Domain(NamedTuple):
    """What each sample carries from step to step."""

    goal: Tensor  # (n,), the class whose output is raised
    limit: Tensor  # (n,), how many features may differ from the input
    closed: Tensor  # bool (n,), no pair is left


@dataclass(frozen=True, kw_only=True, repr=False)
class JSMA(MinimumNormAttack):
    """Jacobian-based saliency map attack (Papernot et al., 2016, arXiv:1511.07528).

    Each step changes the two features by `theta` that raise the target's output and lower the sum
    of the others' most, by the paper's score of a pair: (a_p + a_q) |b_p + b_q|, where a is the
    derivative of the target's output and b that of the sum of all others, over the pairs for which
    the first sum is positive and the second negative (the other way round for a negative `theta`).
    A feature that has met its bound is not chosen again. The best of all pairs is found exactly and
    without a table of pairs: its features are dominated in both derivatives by one other at most.

    Without a target it is run for the likeliest classes in turn and the fewest changes are kept.

    Deviations: `gamma` bounds the features that differ, not the steps, which is the same for a
    `theta` that goes from bound to bound. The derivative is that of the probabilities; the paper
    takes the last hidden layer against saturation, which is met here by ranking the pairs without
    the common factor that vanishes. `output="logits"` takes the logits as the model gives them;
    then the score depends on what is added to all of them alike, which changes no answer.

    Args:
        theta: change of a feature, in input units, negative to lower features; not zero.
        gamma: share of the features that may differ from the input, in (0, 1]. One pair may differ
            however small the share.
        output: what the derivative is that of, `"probabilities"` or `"logits"`.
        candidates: how many classes an attack without a target tries, the likeliest first.
        progress: show a bar (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range, or at the call, inputs have one feature only.
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
            raise ValueError(f"`theta` must be finite and not zero, got {self.theta}")
        checks.positive("gamma", self.gamma)
        if self.gamma > 1:
            raise ValueError(f"`gamma` must be at most 1, got {self.gamma}")
        checks.one_of("output", self.output, ("probabilities", "logits"))
        checks.integer("candidates", self.candidates, at_least=1)
        checks.boolean("progress", self.progress)

    def _search(self, problem: Problem) -> Best | Nearest:
        features = problem.x[0].numel()
        if features < _PAIR:
            raise ValueError(
                f"`x` must have at least 2 features for JSMA, which changes pairs, got {features}. "
                "Use PGD or FAB."
            )
        warn_of_lost_theta(problem, self.theta)
        return super()._search(problem)

    def _search_nearest(self, problem: Problem, at: Iterate) -> Nearest:
        found = Nearest.empty(problem.x)
        for target in candidates(at, problem.goal, self.candidates) or [problem.goal.labels]:
            found = self._run(problem, target, found)
        return found

    def _total_steps(self, problem: Problem) -> int:
        return (1 if problem.goal.targeted else self.candidates) * self._steps(problem)

    def _most(self, problem: Problem) -> int:
        """Return how many features may differ: their share, and at least one pair."""
        return max(_PAIR, int(self.gamma * problem.x[0].numel() * (1 + 1e-12)))

    def _steps(self, problem: Problem) -> int:
        """How many steps use up all features that may differ, from bound to bound."""
        lower, upper = problem.model.bounds
        return math.ceil((upper - lower) / abs(self.theta)) * (self._most(problem) // 2)

    def _run(self, problem: Problem, target: Tensor, nearest: Nearest) -> Nearest:
        """Raise the class `target` `(n,)`, as long as it takes fewer features than `nearest`."""
        limit = (nearest.distance - 1).clamp_max(self._most(problem))
        domain = _Domain(target, limit, torch.zeros_like(nearest.success))
        return iterate(
            problem,
            problem.x,
            domain,
            self._step,
            steps=self._steps(problem),
            best=nearest,
            finished=lambda at, domain: at.success | domain.closed,
        )

    def _step(
        self, i: int, problem: Problem, at: Iterate, domain: _Domain
    ) -> tuple[Tensor, _Domain]:
        x_adv = at.x_adv.flatten(1).clone()
        bound = problem.model.bounds[1 if self.theta > 0 else 0]
        changed = x_adv != problem.x.flatten(1)
        full = changed.sum(1) + 2 > domain.limit
        moves = (x_adv != bound) & (x_adv + self.theta != x_adv)  # 16 bits round small ones away
        choice = moves & (changed | ~full[:, None])
        pair, found = self._pair(problem, at, domain.goal, choice)
        move = self.theta * found.to(x_adv.dtype)
        x_adv.scatter_add_(1, pair, move[:, None].expand_as(pair))
        return problem.clip(x_adv.view_as(problem.x)), domain._replace(closed=~found)

    def _pair(
        self, problem: Problem, at: Iterate, goal: Tensor, choice: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `best_pair`: the one that raises the target's output and lowers the others' most."""
        of_probabilities = self.output == "probabilities"
        with torch.enable_grad():
            logits = at.logits
            if of_probabilities:
                logits = logits - logits.logsumexp(1, keepdim=True)
            own = logits.gather(1, goal[:, None]).squeeze(1)
            others = logits.sum(1) - own
        raised = self._scaled(
            problem.mask_invalid(problem.input_gradient(at, own, again=not of_probabilities))
        )
        if of_probabilities:
            return top_pair(raised, choice)  # they sum to one: what one gains the others lose
        lowered = -self._scaled(problem.mask_invalid(problem.input_gradient(at, others)))
        return best_pair(raised, lowered, choice)

    def _scaled(self, grad: Tensor) -> Tensor:
        """`grad` in the direction of `theta`, flat, its largest entry one: the pairs rank alike."""
        flat = at_least_float32(grad.flatten(1))
        largest = flat.abs().amax(1, keepdim=True)
        return flat / torch.where(largest > 0, largest, 1) * math.copysign(1, self.theta)


def top_pair(raised: Tensor, choice: Tensor) -> tuple[Tensor, Tensor]:
    """`best_pair` where both coordinates are `raised` `(n, d)`: the two with most of it."""
    top = raised.masked_fill(~choice, -math.inf).topk(2, dim=1)
    return top.indices, top.values.sum(1) > 0


def best_pair(raised: Tensor, lowered: Tensor, choice: Tensor) -> tuple[Tensor, Tensor]:
    """The pair of features with the largest product of both sums, over all pairs.

    Only pairs count whose sums are both positive. Since the score grows with each of the four
    numbers, a feature that two others dominate in both coordinates can be replaced in any pair by
    one of the two, and is left out: few remain, and their pairs are scored one by one.

    Args:
        raised: first coordinate of each feature, `(n, d)`, finite.
        lowered: second coordinate, `(n, d)`, finite.
        choice: which features may be chosen, bool `(n, d)`.

    Returns:
        The features, int64 `(n, 2)`, and whether there is such a pair, bool `(n,)`; where there is
        none the features are the same and mean nothing.
    """
    features = _hardly_dominated(raised, lowered, choice)  # (n, k)
    index = features.clamp_min(0)
    a, b = (torch.where(features < 0, -math.inf, v.gather(1, index)) for v in (raised, lowered))
    n, k = features.shape
    best = torch.zeros_like(a[:, 0])
    pair = torch.zeros(n, 2, dtype=torch.int64, device=a.device)
    block = max(1, _BLOCK // max(1, n * k))
    for start in range(0, k, block):
        first, second = (
            a[:, start : start + block, None] + a[:, None],
            b[:, start : start + block, None] + b[:, None],
        )
        score = torch.where((first > 0) & (second > 0), first * second, 0)
        score.diagonal(start, 1, 2).zero_()  # no feature with itself
        top, where = score.flatten(1).max(1)
        better = top > best
        found = torch.stack([start + where // k, where % k], 1)
        best, pair = torch.where(better, top, best), torch.where(better[:, None], found, pair)
    return index.gather(1, pair), best > 0


def _hardly_dominated(a: Tensor, b: Tensor, choice: Tensor) -> Tensor:
    """The features that at most one other exceeds or equals in both coordinates, `(n, k)`.

    In the order of falling `a`, those whose `b` is above the second largest `b` before them. Rows
    with fewer than the most are filled with -1.
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
