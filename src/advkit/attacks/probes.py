"""Attacks that probe a model, one for each role in a diagnosis."""

from __future__ import annotations

from typing import Any

from advkit.attacks.engine.budget import BALLS
from advkit.attacks.fgm import FGM
from advkit.attacks.fgsm import FGSM
from advkit.attacks.hopskipjump import HopSkipJump
from advkit.attacks.pgd import PGD
from advkit.attacks.square import Square
from advkit.attacks.transfer import Transfer
from advkit.core import checks
from advkit.core.bounds import checked_bounds
from advkit.core.norms import Norm
from advkit.core.protocols import Attack

STEPS, MORE_STEPS, RESTARTS = 20, 100, 5
QUERIES = 1000  # of the attacks without gradients


def probes(
    eps: float,
    norm: Norm = "linf",
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
    surrogate: object = None,
) -> dict[str, Attack]:
    """Return the attacks that `eval.diagnose` compares, by their role.

    ============ ==================================================================
    role         attack
    ============ ==================================================================
    one_step     one gradient step
    many_steps   PGD with 20 steps, which the others should not beat
    more_steps   PGD with 100 steps
    restarts     five runs of PGD with 20 steps
    scores       Square with 1,000 queries
    labels       HopSkipJump with 1,000 queries, in l2 and linf
    unbounded    PGD with 20 steps in a ball that holds every input
    transfer     PGD on the `surrogate`, if there is one
    ============ ==================================================================

    The dictionary is yours: replace an attack by a stronger one, or remove a role. A robust input
    takes about 270 backward and 2,300 forward passes.

    Args:
        eps: the budget of the figure to diagnose, in input units.
        norm: norm of the budget: `"linf"`, `"l2"` or `"l1"`.
        bounds: lower and upper bound of the inputs, for the attack without a budget.
        seed: seed of all random draws, an int.
        surrogate: differentiable model of the same classes, for the role `transfer`; `None` leaves
            the role out.

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.

    Example:
        >>> from advkit import attacks
        >>> list(attacks.probes(eps=8 / 255))
        ['one_step', 'many_steps', 'more_steps', 'restarts', 'scores', 'labels', 'unbounded']
    """
    checks.positive("eps", eps)
    checks.one_of("norm", norm, BALLS)
    lower, upper = checked_bounds(bounds)
    budget: dict[str, Any] = {"eps": eps, "norm": norm}
    many = PGD(**budget, steps=STEPS, seed=seed)
    found: dict[str, Attack] = {
        "one_step": FGSM(eps=eps) if norm == "linf" else FGM(**budget),
        "many_steps": many,
        "more_steps": PGD(**budget, steps=MORE_STEPS, seed=seed),
        "restarts": PGD(**budget, steps=STEPS, restarts=RESTARTS, seed=seed + 1),
        "scores": Square(**budget, max_queries=QUERIES, seed=seed),
    }
    if norm != "l1":
        found["labels"] = HopSkipJump(norm=norm, max_queries=QUERIES, seed=seed)
    found["unbounded"] = PGD(eps=upper - lower, norm="linf", steps=STEPS, seed=seed)
    if surrogate is not None:
        found["transfer"] = Transfer(attack=many, surrogate=surrogate)
    return found
