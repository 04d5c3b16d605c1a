"""Suite: a cascade that spends its passes on the samples that may still be fooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from advkit.attacks.apgd import APGD
from advkit.attacks.engine.budget import BALLS, check_unit
from advkit.attacks.engine.stage import PROBE, Stage
from advkit.attacks.engine.staged import StagedAttack
from advkit.attacks.fab import FAB
from advkit.attacks.minimum_norm import MinimumNorm
from advkit.attacks.pgd import PGD
from advkit.attacks.sparse_pgd import Gradient, SparsePGD
from advkit.attacks.sparse_rs import SparseRS
from advkit.attacks.square import Square, SquareFrom
from advkit.core import checks
from advkit.core.losses import LossName
from advkit.core.norms import Norm, Unit
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
    first_steps_l0: int = 50  # of SparsePGD with the cross-entropy, and with the margin
    steps_l0: int = 100  # of each later run of SparsePGD
    walk_steps_l0: int = 100  # of MinimumNorm in features
    walk_share_l0: float = 0.4
    # (loss, gradient, runs, share) of SparsePGD
    runs_l0: tuple[tuple[LossName, Gradient, int, float], ...] = (
        ("margin", "unprojected", 2, 0.4),
        ("ce", "projected", 2, 0.25),
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
    runs_l0: int = 10  # of SparsePGD with either gradient
    walk_steps_l0: int = 1000  # of MinimumNorm in features
    queries_l0: int = 5000  # of SparseRS
    misled_queries: int = 10000  # of another Square for samples whose gradients mislead


THOROUGH = Thorough()


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

    In l0 the attacks are others, in features and in pixels alike:

    ===== ========================================================== =========
    stage attack in l0                                               part left
    ===== ========================================================== =========
    0     SparsePGD with the cross-entropy, unprojected
    1     SparsePGD with the margin, projected
    2     SparseRS with 100 queries
    3     SparseRS with 5,000 queries                                see below
    4     only in features: MinimumNorm with 100 steps               0.4
    last  two runs of SparsePGD with the margin, unprojected         0.4
    last  two runs of SparsePGD with the cross-entropy, projected    0.25
    ===== ========================================================== =========

    Stage 3 is for samples whose gradients mislead: stage 2, a random search, improved on the result
    of stages 0 and 1, or these did not improve on the clean input. Stages 7 and 8 in linf are for
    samples whose violation fell to less than 0.85 and 0.6 of that before stage 6. On some nets
    Square never improves on PGD.

    With `effort="thorough"` the same stages come first, so that it is never weaker. Then five
    attacks run on every sample that is still robust: APGD with the margin at nine classes (five in
    l1), FAB at nine classes, ten runs of PGD (in l1 five of APGD), Square, and Square from the
    strongest iterate. The last stage is Square with 10,000 queries, for samples of stage 3. In l0
    they are ten runs of SparsePGD with either gradient, SparseRS with 5,000 queries and, in
    features, MinimumNorm with 1,000 steps, then SparseRS with 10,000 queries.

    A robust sample takes about 200 passes with `"fast"` if it is far from the boundary, up to 2,500
    near it, and 5,000 more if gradients mislead. With `"thorough"` it takes about 7,500 (in l0 up
    to 11,500), and 15,000 more if gradients mislead. "Suite" in docs/results.md has the figures
    next to AutoAttack. A model without gradients is attacked by the Square or SparseRS stages
    alone, with a warning.

    Args:
        eps: radius of the ball, in input units, not negative; a float, or `(n,)` with one radius
            for each sample. In l0 it is a number of positions that may change, 0 or at least 1,
            rounded down.
        norm: `"linf"`, `"l2"`, `"l1"` or `"l0"`.
        unit: unit of `eps` in l0: `"feature"`, or `"pixel"` for positions across channels.
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
        (2020, arXiv:1912.00049), in l0 from Zhong et al. (2024, arXiv:2405.05075) and Croce et al.
        (2022, arXiv:2006.12834). Liu et al. (2022, arXiv:2203.05154) also give each sample a budget
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
    unit: Unit = "feature"
    effort: Effort = "fast"
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        checks.eps(self.eps)
        checks.one_of("norm", self.norm, (*BALLS, "l0"))
        check_unit(self.eps, self.norm, self.unit)
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

    def _plan(self) -> list[Stage]:
        l0 = self.norm == "l0"
        fast = self._fast_l0() if l0 else self._fast()
        if self.effort == "fast":
            return fast
        return [*fast, *(self._thorough_l0 if l0 else self._thorough)(first=len(fast))]

    def _fast(self) -> list[Stage]:
        """Return the stages of `"fast"`, which are also the first ones of `"thorough"`."""
        shared = [self._shared(k) for k in range(5)]
        return [
            Stage(PGD(**shared[0], steps=TUNING.first_steps)),
            Stage(self._pgd(1)),
            Stage(Square(**shared[PROBE], max_queries=TUNING.probe_queries)),
            Stage(Square(**shared[3], max_queries=TUNING.misled_queries), misled=True),
            Stage(FAB(**shared[4], steps=TUNING.fab_steps), TUNING.fab_share),
            *self._near_boundary(first=5),
        ]

    def _near_boundary(self, first: int) -> list[Stage]:
        """Return the last stages of `"fast"`, whose first one has the number `first`."""
        if self.norm == "l1":
            return [
                Stage(self._apgd_l1(first + k, loss, runs), share)
                for k, (loss, runs, share) in enumerate(TUNING.apgd_l1)
            ]
        parts = TUNING.runs_linf if self.norm == "linf" else TUNING.runs_l2
        stages = [Stage(self._pgd(first + k, runs), share) for k, (runs, share) in enumerate(parts)]
        return [*stages, *self._refinements(first + 1)] if self.norm == "linf" else stages

    def _refinements(self, first: int) -> list[Stage]:
        """Return the stages of Square from the strongest iterate, the first of number `first`.

        The later ones are for samples for which the first one made progress.
        """
        return [
            Stage(self._refining(first + k, queries, p_init), share, since=first if k else 0)
            for k, (queries, p_init, share) in enumerate(TUNING.refining)
        ]

    def _thorough(self, first: int) -> list[Stage]:
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
        return [*map(Stage, everywhere), Stage(misled, misled=True)]

    def _fast_l0(self) -> list[Stage]:
        """Return the stages of `"fast"` in l0."""
        stages = [
            Stage(self._sparse_pgd(0, "ce", "unprojected", TUNING.first_steps_l0)),
            Stage(self._sparse_pgd(1, "margin", "projected", TUNING.first_steps_l0)),
            Stage(self._sparse_rs(PROBE, TUNING.probe_queries)),
            Stage(self._sparse_rs(3, TUNING.misled_queries), misled=True),
        ]
        if self.unit == "feature":
            stages.append(Stage(self._minimum_norm(4, TUNING.walk_steps_l0), TUNING.walk_share_l0))
        for loss, gradient, runs, share in TUNING.runs_l0:
            i, steps = len(stages), TUNING.steps_l0
            stages.append(Stage(self._sparse_pgd(i, loss, gradient, steps, runs), share))
        return stages

    def _thorough_l0(self, first: int) -> list[Stage]:
        """Return the stages that `"thorough"` adds in l0, the first of number `first`."""
        runs, steps = THOROUGH.runs_l0, TUNING.steps_l0
        everywhere: list[Attack] = [
            self._sparse_pgd(first, "margin", "unprojected", steps, runs),
            self._sparse_pgd(first + 1, "ce", "projected", steps, runs),
            self._sparse_rs(first + 2, THOROUGH.queries_l0),
        ]
        if self.unit == "feature":
            everywhere.append(self._minimum_norm(first + 3, THOROUGH.walk_steps_l0))
        misled = self._sparse_rs(first + len(everywhere), THOROUGH.misled_queries)
        return [*map(Stage, everywhere), Stage(misled, misled=True)]

    def _sparse_pgd(
        self, i: int, loss: LossName, gradient: Gradient, steps: int, restarts: int = 1
    ) -> SparsePGD:
        options: dict[str, Any] = {"loss": loss, "gradient": gradient, "restarts": restarts}
        return SparsePGD(**self._shared(i), **options, steps=steps)

    def _sparse_rs(self, i: int, queries: int) -> SparseRS:
        return SparseRS(**self._shared(i), max_queries=queries)

    def _minimum_norm(self, i: int, steps: int) -> MinimumNorm:
        """Return stage `i`, a search for the nearest success in features."""
        seed = self._shared(i)["seed"]
        options: dict[str, Any] = {"seed": seed, "progress": self.progress}
        return MinimumNorm(norm="l0", eps=self.eps, steps=steps, **options)

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
        ball = {"unit": self.unit} if self.norm == "l0" else {"norm": self.norm}
        return {"eps": self.eps, **ball, "seed": seed, "progress": self.progress}
