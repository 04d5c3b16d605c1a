"""Every attack once: what joins a list here meets all the tests of its kind."""

import dataclasses

from advkit import attacks
from advkit.attacks.adaptive import Adaptive
from tests.toys import SurrogateNet

GRADIENT_BUDGET = [
    attacks.FGSM(eps=0.1),
    attacks.FGSM(eps=0.1, random_start=True, stop="never"),
    attacks.FGM(eps=0.6),
    attacks.FGM(eps=1.5, norm="l1"),
    attacks.FGM(eps=0.1, norm="linf", loss="margin"),
    attacks.BIM(eps=0.1),
    attacks.BIM(eps=0.1, stop="never", step_size=0.02),
    attacks.PGD(eps=0.1, steps=8),
    attacks.PGD(eps=0.1, steps=5, stop="never", restarts=2),
    attacks.PGD(eps=0.1, steps=5, restarts=3, loss="margin"),
    attacks.PGD(eps=0.6, steps=8, norm="l2"),
    attacks.PGD(eps=0.6, steps=6, norm="l2", stop="never", momentum=1.0),
    attacks.PGD(eps=1.5, steps=8, norm="l1"),
    attacks.PGD(eps=1.5, steps=6, norm="l1", stop="never", random_start=False),
    attacks.APGD(eps=0.1, steps=8),
    attacks.APGD(eps=0.6, steps=8, norm="l2", stop="never", loss="margin", candidates=2),
    attacks.APGD(eps=1.5, steps=20, norm="l1", restarts=2),
    attacks.Cascade(attacks=[attacks.FGSM(eps=0.1), attacks.PGD(eps=0.1, loss="margin")]),
    attacks.AutoAttack(eps=0.5),
    attacks.Suite(eps=0.1),
    attacks.Suite(eps=0.6, norm="l2"),
    attacks.Suite(eps=1.5, norm="l1"),
    attacks.SparsePGD(eps=8, steps=20),
    attacks.SparsePGD(eps=8, unit="pixel", gradient="projected", steps=5, restarts=2, stop="never"),
    attacks.DeepFool(eps=0.6),
    attacks.FAB(eps=0.6, steps=20),
    attacks.FAB(eps=0.1, norm="linf", steps=8, schedule="published", candidates=2),
    attacks.FAB(eps=1.5, norm="l1", steps=20),
    attacks.MinimumNorm(eps=0.6, steps=60),
    attacks.MinimumNorm(eps=0.1, norm="linf", steps=60),
    attacks.MinimumNorm(eps=1.5, norm="l1", steps=60),
    attacks.MinimumNorm(eps=8, norm="l0", steps=60),
    Adaptive(attack=attacks.PGD(eps=0.1, steps=8), losses=["ce", "margin"]),
    attacks.SelectivePGD(eps=0.1, steps=8),
    attacks.SelectivePGD(eps=0.6, steps=6, norm="l2", stop="never", kind="orthogonal"),
]

GRADIENT_MINIMUM_NORM = [
    attacks.DeepFool(),
    attacks.DeepFool(norm="linf", candidates=2),
    attacks.JSMA(theta=0.4, gamma=0.5),
    attacks.JSMA(theta=-0.4, gamma=0.5),
    attacks.CarliniWagnerL2(search_steps=3, steps=15),
    attacks.CarliniWagnerL2(
        search_steps=3, steps=15, schedule="published", lr=0.1, initial_const=1.0
    ),
    attacks.JointCarliniWagner(search_steps=3, steps=15),
    attacks.JointCarliniWagner(
        search_steps=3, steps=15, schedule="published", lr=0.1, initial_const=1.0
    ),
    attacks.LBFGS(search_steps=4, steps=10),
    attacks.FAB(steps=20),
    attacks.FAB(norm="linf", steps=20),
    attacks.FAB(norm="l1", steps=20, restarts=2),
    attacks.FAB(steps=10, schedule="published", candidates=2, restarts=2),
    attacks.DDN(steps=25, gamma=0.15),
    attacks.FMN(steps=25),
    attacks.FMN(norm="linf", steps=25, alpha_init=0.5),
    attacks.FMN(norm="l1", steps=25, gamma_init=0.1),
    attacks.FMN(norm="l0", steps=25),
    attacks.SigmaZero(steps=25),
    attacks.MinimumNorm(steps=60),
    attacks.MinimumNorm(norm="linf", steps=60),
    attacks.MinimumNorm(norm="l1", steps=200),
    attacks.MinimumNorm(norm="l0", steps=60),
]

BLACK_BOX_BUDGET = [
    attacks.Square(eps=0.1, max_queries=150),
    attacks.Square(eps=0.1, max_queries=40, stop="never", p_init=0.2),
    attacks.Square(eps=0.6, max_queries=200, norm="l2"),
    attacks.Cascade(
        attacks=[
            attacks.Square(eps=0.1, max_queries=20),
            attacks.Square(eps=0.1, max_queries=150, seed=1),
        ]
    ),
    attacks.Square(eps=1.5, max_queries=200, norm="l1"),
    attacks.SparseRS(eps=12, max_queries=150),
    attacks.SparseRS(eps=8, unit="pixel", max_queries=40, stop="never"),
    attacks.RandomNoise(eps=0.6, restarts=10),
    attacks.RandomNoise(eps=3.0, kind="gaussian", norm="l2", restarts=10),
    attacks.RandomNoise(eps=20, kind="salt_and_pepper", norm="l0", stop="never"),
    attacks.Transfer(attack=attacks.PGD(eps=0.1, steps=8, stop="first"), surrogate=SurrogateNet()),
]

BLACK_BOX_MINIMUM_NORM = [
    attacks.HopSkipJump(max_queries=250, init_gradient_queries=30),
    attacks.HopSkipJump(max_queries=250, init_gradient_queries=30, norm="linf"),
    attacks.Transfer(attack=attacks.DeepFool(), surrogate=SurrogateNet()),
]

GRADIENT = [*GRADIENT_BUDGET, *GRADIENT_MINIMUM_NORM]
BLACK_BOX = [*BLACK_BOX_BUDGET, *BLACK_BOX_MINIMUM_NORM]
BUDGET = [*GRADIENT_BUDGET, *BLACK_BOX_BUDGET]
MINIMUM_NORM = [*GRADIENT_MINIMUM_NORM, *BLACK_BOX_MINIMUM_NORM]
ATTACKS = [*BUDGET, *MINIMUM_NORM]


def changed(attack, change):
    """`attack` after `change`, a function, or around the attacks that it uses after it."""
    if hasattr(attack, "attack"):
        return dataclasses.replace(attack, attack=changed(attack.attack, change))
    if hasattr(attack, "attacks"):
        return dataclasses.replace(attack, attacks=[changed(one, change) for one in attack.attacks])
    return change(attack)


def used_by(attack):
    """The attack that `attack` is built around, the first of several, or itself."""
    if hasattr(attack, "attacks"):
        return used_by(attack.attacks[0])
    return used_by(attack.attack) if hasattr(attack, "attack") else attack


def with_eps(attack, eps):
    """The same attack with another budget."""
    return changed(attack, lambda used: dataclasses.replace(used, eps=eps))


def scaled(attack, factor):
    """The same attack on inputs that are `factor` times as large."""
    return changed(attack, lambda used: _scaled(used, factor))


def _scaled(attack, factor):
    names = ("step_size", "theta") if attack.norm == "l0" else ("eps", "step_size", "theta")
    units = [name for name in names if getattr(attack, name, None) is not None]
    return dataclasses.replace(attack, **{name: factor * getattr(attack, name) for name in units})
