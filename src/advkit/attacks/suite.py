"""Suite: a cascade that spends its passes on the samples that may still be fooled."""

from __future__ import annotations

from collections.abc import Sequence
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
from advkit.core.losses import LossName
from advkit.core.norms import Norm
from advkit.core.protocols import Attack

Effort = Literal["fast", "thorough"]


@dataclass(frozen=True)
class Tuning:
    """Constants of `effort="fast"`, chosen on images that docs/results.md does not report on.

    A share is the part of the clean violation below which a sample gets a stage.
    """

    first_steps: int = 20  # of PGD with the cross-entropy
    steps: int = 20  # of each run of PGD with the margin
    probe_queries: int = 100  # of the Square that finds out whether gradients mislead
    misled_queries: int = 5000  # of the Square for samples whose gradients mislead
    fab_steps: int = 60
    fab_share: float = 0.5
    # (runs, share) of PGD with the margin
    runs_linf: tuple[tuple[int, float], ...] = ((2, 0.4),)
    runs_l2: tuple[tuple[int, float], ...] = ((2, 0.4), (4, 0.25))
    # (queries, share of the features in a box, share) of Square from the strongest iterate in linf;
    # from the second one on it is a share of the violation before the first
    refining: tuple[tuple[int, float, float], ...] = (
        (200, 0.02, 0.3),
        (400, 0.02, 0.85),
        (1500, 0.01, 0.6),
    )
    steps_l1: int = 40  # of PGD with the margin
    momentum_l1: float = 0.75  # of PGD with the margin
    apgd_steps_l1: int = 100
    # (loss, runs, share) of APGD in l1
    apgd_l1: tuple[tuple[LossName, int, float], ...] = (
        ("ce", 1, 0.4),
        ("margin", 1, 0.25),
        ("ce", 2, 0.15),
    )


TUNING = Tuning()


@dataclass(frozen=True)
class Thorough:
    """Numbers of the stages that `effort="thorough"` adds.

    They are chosen so that a robust sample whose gradients do not mislead takes fewer passes than
    in AutoAttack.
    """

    steps: int = 50  # of each run of APGD at a class
    classes: int = 9  # to aim at
    classes_l1: int = 5  # to aim at with APGD in l1, which takes more steps there
    fab_steps: int = 360  # for all classes together
    runs: int = 10  # of PGD in linf and l2
    runs_l1: int = 5  # of APGD in l1
    queries: int = 2500  # of each of two Squares
    p_init: float = 0.02  # of the second, which begins at the strongest iterate
    misled_queries: int = 10000  # of another Square for samples whose gradients mislead


THOROUGH = Thorough()


PROBE = 2  # number of the stage that finds out whether gradients mislead


class _Stage(NamedTuple):
    """An attack, and the condition for a sample to get it.

    The violation must be below `share` of that before stage `since`, which is the clean one for
    stage 0. Without a finite one, as for a clean input that the model rejects, every sample gets
    the stage.
    """

    attack: Attack
    share: float | None = None  # None for all samples
    since: int = 0
    misled: bool = False  # only for samples whose gradients mislead

    def selects(self, violations: Sequence[Tensor]) -> Tensor:
        """Return a mask `(n,)` of the samples that get the stage; see `StagedAttack._selected`."""
        if self.misled:
            return _misled(violations)
        if self.share is None:
            return torch.ones_like(violations[0], dtype=torch.bool)
        reference = violations[self.since]
        return (violations[-1] < self.share * reference) | ~reference.isfinite()


def _misled(violations: Sequence[Tensor]) -> Tensor:
    """Return a mask `(n,)` of the samples for which gradients were of no use.

    The attacks with gradients found no iterate better than the clean input, or random search found
    a better one. On a model without gradients nothing was found before the probe.
    """
    clean, before, after = violations[0], violations[PROBE], violations[PROBE + 1]
    return (after < before) | ~(before < clean)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Suite(StagedAttack):
    """Suite, the recommended evaluation: as strong as `AutoAttack` for a small share of its passes.

    A cascade of attacks. The first ones run on every sample. The later ones cost more, and run on
    the samples that the results so far single out. The decision for a sample depends on its own
    violation alone, the logit of the label minus the largest other one. The last column is the part
    of the clean violation below which a robust sample gets the stage:

    ===== ========================================================== =========
    stage attack                                                     part left
    ===== ========================================================== =========
    0     PGD with the cross-entropy
    1     PGD with the margin
    2     Square with 100 queries
    3     Square with 5,000 queries                                  see below
    4     FAB with 60 steps                                          0.5
    5     linf, l2: two runs of PGD with the margin; l1: APGD        0.4
    6     linf: Square with 200 queries from the strongest iterate   0.3
    6     l2: four runs of PGD with the margin; l1: APGD with it     0.25
    7, 8  linf: 400 and 1,500 queries more                           see below
    7     l1: two runs of APGD                                       0.15
    ===== ========================================================== =========

    Stage 3 is for samples whose gradients mislead: stage 2, a random search, improved on the result
    of stages 0 and 1, or these did not improve on the clean input. Stages 7 and 8 in linf are for
    samples whose violation fell to less than 0.85 and 0.6 of that before stage 6. On some nets
    Square never improves on PGD.

    With `effort="thorough"` the same stages come first, so that it is never weaker. Then five
    attacks run on every sample that is still robust: APGD with the margin at nine classes (five in
    l1), FAB at nine classes, ten runs of PGD (in l1 five of APGD), Square, and Square from the
    strongest iterate. The last stage is Square with 10,000 queries, for samples of stage 3.

    A robust sample takes about 200 passes with `"fast"` if it is far from the boundary, up to 2,500
    near it, and 5,000 more if gradients mislead. With `"thorough"` it takes about 7,500, and 15,000
    more if gradients mislead. "Suite" in docs/results.md has the figures next to AutoAttack. A
    model without gradients is attacked by the Square stages alone, with a warning.

    Args:
        eps: radius of the ball, in input units, not negative; a float, or `(n,)` with one radius
            for each sample.
        norm: `"linf"`, `"l2"` or `"l1"`.
        effort: `"fast"` or `"thorough"`.
        stop: `"first"` ends at the first success of a sample. `"never"` runs all stages on all
            samples, about 7,500 passes or more, and returns the strongest iterate. `None` lets the
            caller choose; a direct call and an evaluation choose `"first"`.
        seed: seed of all random draws, an int; they do not depend on the rest of the batch.
        progress: show a progress bar for each stage (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.

    References:
        The parts are from Madry et al. (2018, arXiv:1706.06083), Croce and Hein (2020,
        arXiv:1907.02044 and arXiv:2003.01690; 2021, arXiv:2103.01208) and Andriushchenko et al.
        (2020, arXiv:1912.00049). Liu et al. (2022, arXiv:2203.05154) also give each sample a budget
        by its progress. They rank the samples of the batch. Suite does not compare samples.

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

    def _selected(self, i: int, violations: Sequence[Tensor]) -> Tensor:
        return self._plan()[i].selects(violations)

    def _starting_from(self, x_adv: Tensor, attack: Attack) -> Attack:
        return replace(attack, start=x_adv) if isinstance(attack, SquareFrom) else attack

    def _plan(self) -> list[_Stage]:
        fast = self._fast()
        return fast if self.effort == "fast" else [*fast, *self._thorough(first=len(fast))]

    def _fast(self) -> list[_Stage]:
        """Return the stages of `"fast"`, which are also the first ones of `"thorough"`."""
        shared = [self._shared(k) for k in range(5)]
        return [
            _Stage(PGD(**shared[0], steps=TUNING.first_steps)),
            _Stage(self._pgd(1)),
            _Stage(Square(**shared[PROBE], max_queries=TUNING.probe_queries)),
            _Stage(Square(**shared[3], max_queries=TUNING.misled_queries), misled=True),
            _Stage(FAB(**shared[4], steps=TUNING.fab_steps), TUNING.fab_share),
            *self._near_boundary(first=5),
        ]

    def _near_boundary(self, first: int) -> list[_Stage]:
        """Return the last stages of `"fast"`, whose first one has the number `first`."""
        if self.norm == "l1":
            return [
                _Stage(self._apgd_l1(first + k, loss, runs), share)
                for k, (loss, runs, share) in enumerate(TUNING.apgd_l1)
            ]
        parts = TUNING.runs_linf if self.norm == "linf" else TUNING.runs_l2
        stages = [
            _Stage(self._pgd(first + k, runs), share) for k, (runs, share) in enumerate(parts)
        ]
        return [*stages, *self._refinements(first + 1)] if self.norm == "linf" else stages

    def _refinements(self, first: int) -> list[_Stage]:
        """Return the stages of Square from the strongest iterate, the first of number `first`.

        The later ones are for samples for which the first one made progress.
        """
        return [
            _Stage(self._refining(first + k, queries, p_init), share, since=first if k else 0)
            for k, (queries, p_init, share) in enumerate(TUNING.refining)
        ]

    def _thorough(self, first: int) -> list[_Stage]:
        """Return the stages that `"thorough"` adds, whose first one has the number `first`."""
        shared = [self._shared(first + k) for k in range(6)]
        steps, classes = THOROUGH.steps, THOROUGH.classes
        fab_steps, queries = THOROUGH.fab_steps, THOROUGH.queries
        runs: Attack = self._pgd(first + 2, THOROUGH.runs)
        if self.norm == "l1":
            steps, classes = TUNING.apgd_steps_l1, THOROUGH.classes_l1
            runs = self._apgd_l1(first + 2, "ce", THOROUGH.runs_l1)
        everywhere = [
            APGD(**shared[0], loss="margin", steps=steps, candidates=classes),
            FAB(**shared[1], steps=fab_steps, candidates=THOROUGH.classes),
            runs,
            Square(**shared[3], max_queries=queries),
            self._refining(first + 4, queries, THOROUGH.p_init),
        ]
        misled = Square(**shared[5], max_queries=THOROUGH.misled_queries)
        return [*map(_Stage, everywhere), _Stage(misled, misled=True)]

    def _pgd(self, i: int, restarts: int = 1) -> PGD:
        l1 = self.norm == "l1"
        steps, momentum = (TUNING.steps_l1, TUNING.momentum_l1) if l1 else (TUNING.steps, 0.0)
        options: dict[str, Any] = {"loss": "margin", "steps": steps, "momentum": momentum}
        return PGD(**self._shared(i), **options, restarts=restarts)

    def _apgd_l1(self, i: int, loss: LossName, restarts: int) -> APGD:
        shared, steps = self._shared(i), TUNING.apgd_steps_l1
        return APGD(**shared, loss=loss, steps=steps, restarts=restarts)

    def _refining(self, i: int, queries: int, p_init: float) -> SquareFrom:
        shared, start = self._shared(i), torch.empty(0)  # given when the stage begins
        return SquareFrom(**shared, max_queries=queries, p_init=p_init, start=start)

    def _shared(self, i: int) -> dict[str, Any]:
        """Return the options of stage `i`; no two stages draw the same numbers."""
        seed = self.seed + (i << 32)
        return {"eps": self.eps, "norm": self.norm, "seed": seed, "progress": self.progress}
