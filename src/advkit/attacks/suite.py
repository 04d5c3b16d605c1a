"""Suite: a cascade that spends its passes on the samples that may still be fooled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from advkit.attacks.apgd import APGD
from advkit.attacks.engine.budget import BALLS
from advkit.attacks.engine.staged import StagedAttack
from advkit.attacks.fab import FAB
from advkit.attacks.pgd import PGD
from advkit.attacks.square import Square, SquareFrom
from advkit.core import checks
from advkit.core.norms import Norm
from advkit.core.protocols import Attack

Effort = Literal["fast", "thorough"]
Violations = Sequence[Tensor]  # (n,) each: at the clean inputs, and after each stage


@dataclass(frozen=True)
class Tuning:
    """Constants of one norm, chosen on images that docs/results.md does not report on.

    A ratio is that of the violation of a sample to the violation of its clean input.
    """

    first_steps: int = 20  # of PGD with the cross-entropy
    steps: int = 20  # of each run of PGD with the margin
    momentum: float = 0.0  # of PGD with the margin
    probe_queries: int = 100  # of the Square that finds out whether gradients mislead
    misled_queries: int = 5000  # of the Square for samples whose gradients mislead
    fab_steps: int = 30  # for all classes together
    fab_classes: int = 3
    fab_ratio: float = 0.5  # greatest one of the samples that FAB attacks
    runs: int = 2  # of PGD after FAB
    runs_ratio: float = 0.4
    last_runs: int = 4  # of PGD at the end, in l2 and l1
    last_runs_ratio: float = 0.25
    refining_queries: int = 1000  # of the Square at the end, in linf
    refining_ratio: float = 0.15


TUNING = {
    "linf": Tuning(),
    "l2": Tuning(),
    "l1": Tuning(steps=40, momentum=0.75, fab_steps=60, runs=1, last_runs=2),
}


@dataclass(frozen=True)
class Thorough:
    """Numbers of the stages that `effort="thorough"` adds, for all norms."""

    steps: int = 50  # of each run of APGD
    classes: int = 9  # to aim at
    fab_steps: int = 360  # for all classes together
    runs: int = 10  # of PGD
    queries: int = 2500  # of each of two Squares


THOROUGH = Thorough()


class _Stage(NamedTuple):
    """An attack, and the samples that it attacks."""

    attack: Attack
    selects: Callable[[Violations], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Suite(StagedAttack):
    """Suite, the recommended evaluation: as strong as `AutoAttack` for a small share of its passes.

    A cascade of attacks. The first ones run on every sample. The later ones cost more, and each
    runs on the samples that the results so far single out. The decision for a sample depends on its
    own violation alone, the logit of the label minus the greatest other one:

    ===== ============================================ ============================================
    stage attack                                       samples that are still robust and
    ===== ============================================ ============================================
    0     PGD with cross-entropy                       all
    1     PGD with the margin                          all
    2     Square with 100 queries                      all
    3     Square with 5,000 queries                    improved by stage 2: its random search found
                                                       more than the gradients, which mislead
    4     FAB at the three likeliest classes           at most 0.5 of the clean violation is left
    5     PGD with the margin, from other points       at most 0.4
    6     linf: Square from the strongest iterate      at most 0.15
          l2, l1: PGD with the margin, from others     at most 0.25
    ===== ============================================ ============================================

    With `effort="thorough"` the same stages come first, so that it is never weaker. Then APGD with
    the margin and FAB, each at nine classes, ten runs of PGD, Square, and Square from the strongest
    iterate run on every sample that is still robust.

    On the robust nets of docs/results.md, `"fast"` takes a thirtieth of the passes of AutoAttack. A
    sample takes about 200 if it is far from the boundary, up to 1,500 near it, and 5,500 if
    gradients mislead. `"thorough"` takes at most as many as AutoAttack.

    A model without gradients is attacked by the Square stages alone, with a warning.

    Args:
        eps: radius of the ball, in input units, not negative; a float, or `(n,)` with one radius
            for each sample.
        norm: `"linf"`, `"l2"` or `"l1"`.
        effort: `"fast"` or `"thorough"`.
        stop: `"first"` ends at the first success of a sample, `"never"` runs all stages on all
            samples and returns the strongest iterate. `None` lets the caller choose; a direct call
            and an evaluation choose `"first"`.
        seed: seed of all random draws, an int; they do not depend on the rest of the batch.
        progress: show a progress bar for each stage (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.

    References:
        The parts are from Madry et al. (2018, arXiv:1706.06083), Croce and Hein (2020,
        arXiv:1907.02044 and 2003.01690) and Andriushchenko et al. (2020, arXiv:1912.00049). A
        budget for each sample is an idea of Liu et al. (2022, arXiv:2203.05154), who rank the
        samples of a batch.

    Example:
        >>> import torch
        >>> from advkit import attacks
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> result = attacks.Suite(eps=0.2).run(net, torch.rand(5, 1, 8, 8))
        >>> result.success, result.stage
        (tensor([True, True, True, True, True]), tensor([0, 0, 0, 0, 0]))
    """

    norm: Norm = "linf"
    effort: Effort = "fast"
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        checks.eps(self.eps)
        checks.one_of("norm", self.norm, BALLS)
        checks.one_of("effort", self.effort, ("fast", "thorough"))
        checks.one_of("stop", self.stop, ("first", "never", None))
        checks.integer("seed", self.seed)
        checks.boolean("progress", self.progress)

    def _stages(self, classes: int) -> Sequence[Attack]:
        return [stage.attack for stage in self._plan()]

    def _selected(self, i: int, violations: Violations) -> Tensor:
        return self._plan()[i].selects(violations)

    def _starting_from(self, x_adv: Tensor, attack: Attack) -> Attack:
        return replace(attack, start=x_adv) if isinstance(attack, SquareFrom) else attack

    def _plan(self) -> list[_Stage]:
        fast = self._fast()
        return fast if self.effort == "fast" else [*fast, *self._thorough(first=len(fast))]

    def _fast(self) -> list[_Stage]:
        """Return the stages of `"fast"`, which are also the first ones of `"thorough"`."""
        tuning = TUNING[self.norm]
        stages = [
            _Stage(PGD(**self._shared(0), steps=tuning.first_steps), _all),
            _Stage(self._pgd(1), _all),
            _Stage(Square(**self._shared(2), max_queries=tuning.probe_queries), _all),
            _Stage(Square(**self._shared(3), max_queries=tuning.misled_queries), _improved_in(2)),
            _Stage(self._fab(4, tuning.fab_steps, tuning.fab_classes), _near(tuning.fab_ratio)),
            _Stage(self._pgd(5, restarts=tuning.runs), _near(tuning.runs_ratio)),
        ]
        if self.norm == "linf":
            refining = self._refining(6, tuning.refining_queries)
            return [*stages, _Stage(refining, _near(tuning.refining_ratio))]
        last = self._pgd(6, restarts=tuning.last_runs)
        return [*stages, _Stage(last, _near(tuning.last_runs_ratio))]

    def _thorough(self, first: int) -> list[_Stage]:
        """Return the stages that `"thorough"` adds, whose first one has the number `first`."""
        numbers = THOROUGH
        targeted: dict[str, Any] = {
            "loss": "margin",
            "steps": numbers.steps,
            "candidates": numbers.classes,
        }
        attacks = [
            APGD(**self._shared(first), **targeted),
            self._fab(first + 1, numbers.fab_steps, numbers.classes),
            self._pgd(first + 2, restarts=numbers.runs),
            Square(**self._shared(first + 3), max_queries=numbers.queries),
            self._refining(first + 4, numbers.queries),
        ]
        return [_Stage(attack, _all) for attack in attacks]

    def _pgd(self, i: int, restarts: int = 1) -> PGD:
        tuning = TUNING[self.norm]
        return PGD(
            **self._shared(i),
            loss="margin",
            steps=tuning.steps,
            momentum=tuning.momentum,
            restarts=restarts,
        )

    def _fab(self, i: int, steps: int, classes: int) -> FAB:
        return FAB(**self._shared(i), steps=steps, candidates=classes)

    def _refining(self, i: int, queries: int) -> SquareFrom:
        return SquareFrom(**self._shared(i), max_queries=queries, start=torch.empty(0))

    def _shared(self, i: int) -> dict[str, Any]:
        """Return the options of stage `i`; no two stages draw the same numbers."""
        seed = self.seed + (i << 32)
        return {"eps": self.eps, "norm": self.norm, "seed": seed, "progress": self.progress}


def _all(violations: Violations) -> Tensor:
    return torch.ones_like(violations[0], dtype=torch.bool)


def _near(ratio: float) -> Callable[[Violations], Tensor]:
    """Return the selection of samples whose violation fell to `ratio` of the clean one or less."""
    return lambda violations: violations[-1] <= ratio * violations[0]


def _improved_in(stage: int) -> Callable[[Violations], Tensor]:
    """Return the selection of samples whose strongest iterate is of `stage` or later."""
    return lambda violations: violations[-1] < violations[stage]
