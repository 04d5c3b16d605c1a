"""AutoAttack: the standard cascade of attacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from advkit.attacks.apgd import APGD
from advkit.attacks.engine.budget import BALLS
from advkit.attacks.engine.staged import StagedAttack
from advkit.attacks.fab import FAB
from advkit.attacks.square import Square
from advkit.core import checks
from advkit.core.losses import Loss, LossName
from advkit.core.norms import Norm
from advkit.core.protocols import Attack

Version = Literal["standard", "plus", "rand"]


@dataclass(frozen=True)
class Published:
    """Numbers of the authors' code (github.com/fra31/auto-attack)."""

    steps: int = 100  # of each run of APGD and FAB
    max_queries: int = 5000  # of Square
    p_init: float = 0.8  # of Square
    classes: int = 9  # to aim at
    apgd_classes_l1: int = 5  # to aim at, with APGD in l1
    apgd_restarts_l1: int = 5
    plus_restarts: int = 5
    rand_samples: int = 20  # passes of each gradient of a random model


PUBLISHED = Published()
# Numbers of classes that the DLR loss needs.
DLR_CLASSES, TARGETED_DLR_CLASSES = 3, 4


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class AutoAttack(StagedAttack):
    """AutoAttack, the standard evaluation (Croce and Hein, 2020, arXiv:2003.01690).

    A cascade of attacks with the numbers of steps of the authors' code. It has no parameter to
    tune, so that its figures can be compared between papers. Each attack runs on the samples that
    the attacks before it did not fool.

    ========== =====================================================================================
    version    attacks
    ========== =====================================================================================
    standard   APGD with cross-entropy; APGD with the targeted DLR loss at nine classes; FAB at nine
               classes; Square with 5,000 queries. In l1 APGD has five restarts, and aims at five
               classes (arXiv:2103.01208)
    plus       five restarts of APGD with cross-entropy, of APGD with DLR and of FAB at nine
               classes; Square; APGD with the targeted DLR loss at nine classes
    rand       for random models: APGD with cross-entropy and with DLR, each gradient averaged over
               20 passes
    ========== =====================================================================================

    A robust sample takes about 1,900 backward and 6,900 forward passes in `standard`, and 4,000 of
    each in `rand`. `plus` takes about three times as many backward passes as `standard`.

    Deviations from the authors' code:

    - A sample is finished at its first success within `eps`, also inside an attack, and costs no
      further passes. The deviations of `APGD`, `FAB` and `Square` are listed there.
    - With fewer than ten classes the targeted attacks aim at all others. Where DLR is not defined,
      with two classes or at a class with three, APGD maximizes the margin, and a warning says so.
    - In `plus` the five restarts of FAB aim at one class at a time. The code has them without a
      class, at the cost of a backward pass for each class and step, and FAB at nine classes after
      them.
    - The code checks models for randomness and vanishing gradients before it starts. Here a warning
      follows the attack, and `no_gradient` of the result marks the samples.

    Args:
        eps: radius of the ball, in input units, not negative; a float, or `(n,)` with one radius
            for each sample.
        norm: `"linf"`, `"l2"` or `"l1"`.
        version: `"standard"`, `"plus"` or `"rand"`.
        stop: `"first"` ends at the first success of a sample, `"never"` runs all attacks on all
            samples and returns the strongest iterate. `None` lets the caller choose; a direct call
            and an evaluation choose `"first"`.
        seed: seed of all random draws, an int; they do not depend on the rest of the batch.
        progress: show a progress bar for each attack (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.

    Example:
        >>> import torch
        >>> from advkit import attacks
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> result = attacks.AutoAttack(eps=0.2).run(net, torch.rand(5, 1, 8, 8))
        >>> result.success, result.stage
        (tensor([True, True, True, True, True]), tensor([0, 0, 0, 0, 0]))
    """

    norm: Norm = "linf"
    version: Version = "standard"
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        checks.eps(self.eps)
        checks.one_of("norm", self.norm, BALLS)
        version: str = self.version
        if version == "custom":  # of the authors' code
            raise ValueError(
                "`version` must be 'standard', 'plus' or 'rand', got 'custom'. Use "
                "Cascade(attacks=[...]) for a choice of your own."
            )
        checks.one_of("version", self.version, ("standard", "plus", "rand"))
        checks.one_of("stop", self.stop, ("first", "never", None))
        checks.integer("seed", self.seed)
        checks.boolean("progress", self.progress)

    def _ascent_loss(self, *, targeted: bool) -> Loss:
        if targeted:
            raise ValueError(
                "`target` must be None for AutoAttack, which has no targeted form. Pass the target "
                f"to a Cascade of APGD, FAB and Square with norm={self.norm!r} and eps=... each."
            )
        return super()._ascent_loss(targeted=targeted)

    def _stages(self, classes: int) -> Sequence[Attack]:
        if self.version == "rand":
            samples, dlr = PUBLISHED.rand_samples, _dlr(classes, DLR_CLASSES)
            return [self._apgd(loss=loss, gradient_samples=samples) for loss in ("ce", dlr)]
        return self._plus(classes) if self.version == "plus" else self._standard(classes)

    def _standard(self, classes: int) -> Sequence[Attack]:
        restarts, aims = 1, PUBLISHED.classes
        if self.norm == "l1":
            restarts, aims = PUBLISHED.apgd_restarts_l1, PUBLISHED.apgd_classes_l1
        return [
            self._apgd(loss="ce", restarts=restarts),
            self._apgd(loss=_dlr(classes, TARGETED_DLR_CLASSES), candidates=aims),
            self._fab(candidates=PUBLISHED.classes),
            self._square(),
        ]

    def _plus(self, classes: int) -> Sequence[Attack]:
        restarts, aims = PUBLISHED.plus_restarts, PUBLISHED.classes
        return [
            self._apgd(loss="ce", restarts=restarts),
            self._apgd(loss=_dlr(classes, DLR_CLASSES), restarts=restarts),
            self._fab(candidates=aims, restarts=restarts),
            self._square(),
            self._apgd(loss=_dlr(classes, TARGETED_DLR_CLASSES), candidates=aims),
        ]

    def _apgd(self, **options: Any) -> APGD:
        return APGD(**self._shared(), steps=PUBLISHED.steps, **options)

    def _fab(self, **options: Any) -> FAB:
        return FAB(**self._shared(), steps=PUBLISHED.steps, schedule="published", **options)

    def _square(self) -> Square:
        options = self._shared()
        return Square(**options, max_queries=PUBLISHED.max_queries, p_init=PUBLISHED.p_init)

    def _shared(self) -> dict[str, Any]:
        return {"eps": self.eps, "norm": self.norm, "seed": self.seed, "progress": self.progress}


def _dlr(classes: int, needed: int) -> LossName:
    """Return `"dlr"` for a number of classes at which it is defined, else the loss in its place."""
    if classes >= needed:
        return "dlr"
    checks.warn(
        f"AutoAttack maximizes the margin in place of the DLR loss, which needs {needed} classes "
        f"here, got {classes}."
    )
    return "margin"
