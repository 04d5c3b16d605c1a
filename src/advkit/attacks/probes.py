"""Attacks that probe a model, one for each role in a diagnosis."""

from __future__ import annotations

from typing import Any

from advkit.attacks.engine.budget import BALLS, check_unit
from advkit.attacks.fgm import FGM
from advkit.attacks.fgsm import FGSM
from advkit.attacks.hopskipjump import HopSkipJump
from advkit.attacks.pgd import PGD
from advkit.attacks.sparse_pgd import SparsePGD
from advkit.attacks.sparse_rs import SparseRS
from advkit.attacks.square import Square
from advkit.attacks.transfer import Transfer
from advkit.core import checks
from advkit.core.bounds import checked_bounds
from advkit.core.norms import Norm, Unit
from advkit.core.protocols import Attack

STEPS, STEPS_L0 = 20, 100
MORE = 5  # times as many steps, or restarts
QUERIES = 1000  # of the attacks without gradients


def probes(
    eps: float,
    norm: Norm = "linf",
    *,
    unit: Unit = "feature",
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
    unbounded    PGD with 20 steps in linf, in a ball that holds every input
    transfer     PGD on the `surrogate`, if there is one
    ============ ==================================================================

    In l0 they are `SparsePGD` with 1, 100 and 500 steps or five runs, and `SparseRS`.

    The dictionary is yours: replace an attack by a stronger one, or remove a role. A robust input
    takes about 270 backward and 2,300 forward passes.

    Args:
        eps: the budget of the figure to diagnose, in input units.
        norm: norm of the budget: `"linf"`, `"l2"`, `"l1"` or `"l0"`.
        unit: what `eps` counts in l0: `"feature"`, or `"pixel"` for positions across channels.
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
    checks.one_of("norm", norm, (*BALLS, "l0"))
    check_unit(eps, norm, unit)
    lower, upper = checked_bounds(bounds)
    found = _in_l0(eps, unit, seed) if norm == "l0" else _in_ball(eps, norm, seed)
    if norm in ("l2", "linf"):
        found["labels"] = HopSkipJump(norm=norm, max_queries=QUERIES, seed=seed)
    found["unbounded"] = PGD(eps=upper - lower, norm="linf", steps=STEPS, seed=seed)
    if surrogate is not None:
        found["transfer"] = Transfer(attack=found["many_steps"], surrogate=surrogate)
    return found


def _in_ball(eps: float, norm: Norm, seed: int) -> dict[str, Attack]:
    """Return the attacks in a ball that is convex."""
    budget: dict[str, Any] = {"eps": eps, "norm": norm}
    return {
        "one_step": FGSM(eps=eps) if norm == "linf" else FGM(**budget),
        "many_steps": PGD(**budget, steps=STEPS, seed=seed),
        "more_steps": PGD(**budget, steps=MORE * STEPS, seed=seed),
        "restarts": PGD(**budget, steps=STEPS, restarts=MORE, seed=seed + 1),
        "scores": Square(**budget, max_queries=QUERIES, seed=seed),
    }


def _in_l0(eps: float, unit: Unit, seed: int) -> dict[str, Attack]:
    """Return the attacks in l0, where a search needs more steps."""
    budget: dict[str, Any] = {"eps": eps, "unit": unit}
    return {
        "one_step": SparsePGD(**budget, steps=1, seed=seed),
        "many_steps": SparsePGD(**budget, steps=STEPS_L0, seed=seed),
        "more_steps": SparsePGD(**budget, steps=MORE * STEPS_L0, seed=seed),
        "restarts": SparsePGD(**budget, steps=STEPS_L0, restarts=MORE, seed=seed + 1),
        "scores": SparseRS(**budget, max_queries=QUERIES, seed=seed),
    }
