"""Every attack once: what joins a list here meets all the tests of its kind."""

import dataclasses

from advkit import attacks

BUDGET = [
    attacks.FGSM(eps=0.1),
    attacks.FGSM(eps=0.1, random_start=True, stop="never"),
    attacks.FGM(eps=0.6),
    attacks.FGM(eps=1.5, norm="l1"),
    attacks.FGM(eps=0.1, norm="linf", loss="margin"),
    attacks.BIM(eps=0.1),
    attacks.BIM(eps=0.1, stop="never", step_size=0.02),
    attacks.PGD(eps=0.1, steps=8),
    attacks.PGD(eps=0.1, steps=5, stop="never", restarts=2),
    attacks.PGD(eps=0.1, steps=5, restarts=3, loss="dlr"),
    attacks.PGD(eps=0.6, steps=8, norm="l2"),
    attacks.PGD(eps=0.6, steps=6, norm="l2", stop="never", momentum=1.0),
    attacks.PGD(eps=1.5, steps=8, norm="l1"),
    attacks.PGD(eps=1.5, steps=6, norm="l1", stop="never", random_start=False),
    attacks.DeepFool(eps=0.6),
]

MINIMUM_NORM = [
    attacks.DeepFool(),
    attacks.DeepFool(norm="linf", candidates=2),
    attacks.JSMA(theta=0.4, gamma=0.5),
    attacks.JSMA(theta=-0.4, gamma=0.5),
    attacks.CarliniWagnerL2(search_steps=3, steps=15),
    attacks.CarliniWagnerL2(search_steps=3, steps=15, published=True, lr=0.1, initial_const=1.0),
    attacks.LBFGS(search_steps=4, steps=10),
    attacks.FAB(steps=20),
    attacks.FAB(norm="linf", steps=20),
]

ATTACKS = [*BUDGET, *MINIMUM_NORM]


def scaled(attack, factor):
    """The same attack on inputs that are `factor` times as large."""
    units = [
        name for name in ("eps", "step_size", "theta") if getattr(attack, name, None) is not None
    ]
    return dataclasses.replace(attack, **{name: factor * getattr(attack, name) for name in units})
