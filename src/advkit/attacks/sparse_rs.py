"""Sparse-RS: random search over a few positions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from advkit.attacks.engine.black_box import BlackBoxAttack, ByScores, by_scores
from advkit.attacks.engine.loop import Stop
from advkit.attacks.engine.positions import (
    random_part,
    random_positions,
    random_positions_outside,
)
from advkit.attacks.engine.problem import Problem
from advkit.attacks.engine.records import Best
from advkit.attacks.engine.rows import select, update_rows
from advkit.core import checks
from advkit.core.norms import UNITS, Norm, Unit, by_position
from advkit.core.randomness import derived_keys, sample_keys, uniform


@dataclass(frozen=True)
class Tuning:
    """Constants of the search, from the authors' code, which is for 10,000 queries."""

    # (share of the queries, divisor of alpha_init up to there)
    schedule: tuple[tuple[float, int], ...] = (
        (0.0, 1),
        (0.005, 2),
        (0.02, 4),
        (0.05, 5),
        (0.1, 6),
        (0.2, 8),
        (0.4, 10),
        (0.6, 12),
        (0.8, 15),
    )
    last_divisor: int = 20  # of alpha_init, after the schedule


TUNING = Tuning()


class _State(NamedTuple):
    """Best iterates so far, and the positions that they change."""

    x_adv: Tensor  # (n, *features)
    violation: Tensor  # (n,)
    positions: Tensor  # (n, k), see engine/positions.py


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SparseRS(BlackBoxAttack):
    """Sparse-RS in l0 (Croce et al., 2022, arXiv:2006.12834): random search over scores.

    The perturbation sets a few positions to the bounds of the inputs. Each query swaps some of them
    for others, whose values are drawn from the bounds, and keeps the change unless the margin of
    the scores gets worse. The part of the positions that is swapped shrinks over the queries. The
    attack uses the logits of a model that has them, as the paper does, and its scores otherwise.

    A position is a single feature with `unit="feature"`. With `unit="pixel"` it is a pixel with all
    its channels, which are axis 1 of the inputs `(n, channels, *space)`; each channel gets a bound
    of its own. A table `(n, features)` has one channel.

    Deviations from the paper:

    - A position that is taken out may be drawn again, with new values. In the paper a single pixel
      never changes its color in place, so that a pixel with a good color hides the best one.
    - Values that equal those of the clean input in all channels are replaced by the opposite
      bounds, since the position would be wasted. This matters where inputs are at their bounds, as
      on MNIST.
    - The swapped positions differ from sample to sample; the published code takes the same ranks
      for the whole batch.
    - Ties are accepted, since the scores of trees and nearest neighbors are flat nearly everywhere.
    - A targeted attack maximizes the margin, not minus the cross-entropy.
    - The default of 1,000 queries is that of `Square`; the paper takes 10,000.

    Args:
        eps: number of positions that may change, 0 or at least 1, rounded down; a float, or `(n,)`
            with one number for each sample.
        unit: `"feature"` or `"pixel"`, the unit of `eps` and of the distances.
        max_queries: greatest number of queries for each input, at least 3; the evaluation of the
            clean input and the final verification count.
        alpha_init: share of the positions that the first queries swap (alpha_init in the paper), in
            (0, 1]; at least one position and at most as many as remain are swapped.
        stop: `"first"` ends at the first misclassification of a sample, `"never"` continues to the
            strongest example that the queries allow. `None` lets the caller choose; a direct call
            and an evaluation choose `"first"`.
        seed: seed of all random draws, an int; they do not depend on the rest of the batch.
        progress: show a progress bar (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.

    Example:
        >>> import torch
        >>> from advkit import attacks
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
        >>> attack = attacks.SparseRS(eps=6, unit="pixel", max_queries=300)
        >>> result = attack.run(net, torch.rand(5, 3, 8, 8))
        >>> bool(result.success.all()), int(result.distance.max()) <= 6
        (True, True)
    """

    eps: float | Tensor
    unit: Unit = "feature"
    max_queries: int = 1000
    alpha_init: float = 0.3
    stop: Stop | None = None
    seed: int = 0
    progress: bool = False
    norm: Norm = field(default="l0", init=False)

    def __post_init__(self) -> None:
        checks.one_of("unit", self.unit, UNITS)
        checks.eps(self.eps)
        checks.count_eps(self.eps, self.unit)
        checks.integer("max_queries", self.max_queries, at_least=3)
        checks.fraction("alpha_init", self.alpha_init, "(0, 1]")
        checks.one_of("stop", self.stop, ("first", "never", None))
        checks.integer("seed", self.seed)
        checks.boolean("progress", self.progress)

    def _adapt_model(self, model: object) -> ByScores:
        return by_scores(model, type(self).__name__)

    def _total_steps(self, problem: Problem) -> int:
        return self.max_queries

    def _search(self, problem: Problem) -> Best:
        keys = sample_keys(problem.x, problem.model.bounds, self.seed)
        state = self._start(problem, keys)
        best = Best(state.x_adv, state.violation)  # shares its tensors
        problem.evaluate_clean(best)
        # one query is left for the verification
        rounds = self.max_queries - int(problem.statistics.forward.max()) - 1
        if rounds < 1:
            problem.statistics.no_start |= True
        size = by_position(problem.x, problem.norm).shape[2]
        open_rows = (state.positions < size).any(1).nonzero().flatten()
        for i in range(rounds):
            if self.stop != "never":
                open_rows = open_rows[~best.success[open_rows]]
            if not len(open_rows):
                break
            part, current = problem.select(open_rows), select(state, open_rows)
            round_keys = derived_keys(keys[open_rows], i + 1)
            change = _first_change if i == 0 else _swap
            x_adv, positions = change(part, current, self._alpha(i), round_keys)
            at = part.forward(x_adv, differentiate=False)
            better = at.violation <= current.violation
            new = _State(x_adv, at.violation, positions)
            update_rows(state, open_rows[better], select(new, better))
            problem.statistics.advance(1)
        return best

    def _start(self, problem: Problem, keys: Tensor) -> _State:
        """Return the clean inputs, not evaluated, and random positions of each sample."""
        size = by_position(problem.x, problem.norm).shape[2]
        # 16 bits would round large numbers
        limits = checks.radii(self.eps, problem.x.new_zeros(len(keys), dtype=torch.float32))
        counts = limits.clamp_max(size).long()
        positions = random_positions(derived_keys(keys, 0), counts, size)
        return _State(*Best.unevaluated(problem.x), positions)

    def _alpha(self, i: int) -> float:
        """Return the share of the positions that query `i` swaps."""
        divisors = (divisor for until, divisor in TUNING.schedule if i <= until * self.max_queries)
        return self.alpha_init / next(divisors, TUNING.last_divisor)


def _first_change(
    problem: Problem, state: _State, alpha: float, keys: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the inputs with random bounds at all positions of the sets, and the sets."""
    x_adv = by_position(state.x_adv, problem.norm).clone()
    _write(x_adv, state.positions, _corners(problem, state.positions, keys))
    return _restored(problem, x_adv), state.positions


def _swap(problem: Problem, state: _State, alpha: float, keys: Tensor) -> tuple[Tensor, Tensor]:
    """Return the next iterates, with a part `alpha` of the positions swapped, and their sets."""
    clean, x_adv = (by_position(v, problem.norm) for v in (problem.x, state.x_adv))
    size, positions = clean.shape[2], state.positions
    sizes = (positions < size).sum(1)
    counts = (alpha * sizes.double()).long().clamp_min(1)
    counts = torch.minimum(counts, (size - sizes).clamp_min(1))
    leaving = random_part(derived_keys(keys, 0), positions, counts, size)
    kept = torch.where(leaving, size, positions).sort(1).values
    left = torch.where(leaving, positions, size).sort(1).values[:, : int(counts.max())]
    entering = random_positions_outside(derived_keys(keys, 1), kept, counts, size)
    x_adv = x_adv.clone()
    _write(x_adv, left, _at(clean, left))
    _write(x_adv, entering, _corners(problem, entering, derived_keys(keys, 2)))
    new = torch.cat([kept, entering], 1).sort(1).values[:, : positions.shape[1]]
    return _restored(problem, x_adv), new


def _corners(problem: Problem, positions: Tensor, keys: Tensor) -> Tensor:
    """Return random bounds for the channels of `positions` `(n, m)`, as `(n, m, channels)`.

    Those of a position differ from the clean values in at least one channel.
    """
    clean = _at(by_position(problem.x, problem.norm), positions)
    bounds = problem.x.new_tensor(problem.model.bounds)
    side = uniform(keys, clean[0].numel(), torch.float32).view(clean.shape) < 0.5
    same = (bounds[side.long()] == clean).all(2, keepdim=True)
    return bounds[(side ^ same).long()]


def _at(v: Tensor, positions: Tensor) -> Tensor:
    """Return `v` `(n, channels, size)` at positions `(n, m)`, as `(n, m, channels)`."""
    index = positions.clamp_max(v.shape[2] - 1)[:, None].expand(-1, v.shape[1], -1)
    return v.gather(2, index).transpose(1, 2)


def _write(v: Tensor, positions: Tensor, values: Tensor) -> None:
    """Write `values` `(n, m, channels)` at positions `(n, m)` of `v` `(n, channels, size)`."""
    rows, columns = (positions < v.shape[2]).nonzero(as_tuple=True)
    v[rows, :, positions[rows, columns]] = values[rows, columns]


def _restored(problem: Problem, v: Tensor) -> Tensor:
    """Return `v` `(n, channels, size)` in the shape and memory format of the inputs."""
    return problem.match_memory_format(v.view_as(problem.x))
