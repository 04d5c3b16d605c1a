"""Names that other libraries give to the arguments of attacks, and what they are called here.

The names are those of Foolbox, torchattacks, CleverHans, the Adversarial Robustness Toolbox and
AutoAttack.
"""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Mapping, Sequence
from functools import cache
from typing import NamedTuple

from advkit.core.naming import did_you_mean

# Several names of ours mean that the first one is meant that the attack has.
_OURS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(
        ("alpha", "eps_step", "eps_iter", "abs_stepsize", "stepsize", "lr", "learning_rate"),
        ("step_size", "lr"),
    ),
    **dict.fromkeys(
        ("max_iter", "nb_iter", "n_iter", "num_iter", "num_steps", "iterations", "iters"),
        ("steps", "max_queries"),
    ),
    **dict.fromkeys(("n_queries", "num_queries", "max_eval", "query_limit"), ("max_queries",)),
    **dict.fromkeys(("epsilon", "epsilons"), ("eps",)),
    **dict.fromkeys(("n_restarts", "nb_restarts", "num_random_init"), ("restarts",)),
    **dict.fromkeys(("random_init", "rand_init"), ("random_start",)),
    **dict.fromkeys(("p", "ord", "lp", "distance"), ("norm",)),
    **dict.fromkeys(("kappa", "confidence"), ("confidence",)),
    **dict.fromkeys(("c", "initial_const"), ("initial_const",)),
    **dict.fromkeys(("n_target_classes", "num_targets"), ("candidates",)),
    **dict.fromkeys(("eot_iter", "eot_steps"), ("gradient_samples",)),
    "verbose": ("progress",),
    **dict.fromkeys(("criterion", "loss_fn", "loss_type"), ("loss",)),
}
_OF_THE_CALL = ("targeted", "target", "targets", "y", "y_target", "target_label", "labels")
_OF_THE_MODEL = ("clip_min", "clip_max", "bounds", "mean", "std", "preprocessing", "device")


def refuse_foreign(kind: type, args: Sequence[object], given: Mapping[str, object]) -> None:
    """Raise if an attack is created with arguments that its class does not take.

    Args:
        kind: class of the attack.
        args: positional arguments.
        given: other arguments by name.

    Raises:
        TypeError: there are some; the message has the name to use if there is one.
    """
    takes = _arguments_of(kind)
    if args and not takes.positional:
        raise TypeError(
            f"`{kind.__name__}` must be created with keyword arguments alone, got "
            f"{type(args[0]).__name__} without a name. Pass the model to the call: "
            f"{kind.__name__}(...)(model, x, y)."
        )
    for name, value in given.items():
        if takes.named is not None and name not in takes.named:
            raise TypeError(
                f"`{name}` must be a parameter of {kind.__name__} ({', '.join(takes.named)}), got "
                f"{reprlib.repr(value)}.{remedy(name, takes.named)}"
            )


class _Arguments(NamedTuple):
    """Arguments that a class takes: whether positional ones, and the names, `None` for any name."""

    positional: bool
    named: tuple[str, ...] | None


@cache
def _arguments_of(kind: type) -> _Arguments:
    """Return what `__init__` takes, which may be one of the user's own class."""
    _, *parameters = inspect.signature(kind.__init__).parameters.values()  # type: ignore[misc]
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return _Arguments(
        positional=any(p.kind not in (p.KEYWORD_ONLY, p.VAR_KEYWORD) for p in parameters),
        named=None if any_name else tuple(p.name for p in parameters),
    )


def remedy(name: str, known: Sequence[str]) -> str:
    """Return a sentence, after a space, on what to use for the unknown parameter `name`.

    It is empty if there is nothing like it.
    """
    if name in _OF_THE_CALL:
        return " Labels and targets belong to the call: attack(model, x, y, target=...)."
    if name in _OF_THE_MODEL:
        return (
            " Bounds, preprocessing and device are those of the model: "
            "TorchClassifier(net, bounds=(0, 1), preprocess=...)."
        )
    ours = [other for other in _OURS.get(name.lower(), ()) if other in known]
    if ours:
        return f" Use `{ours[0]}`."
    close = did_you_mean(name, known)
    return f" D{close[3:]}" if close else ""


def refuse_in_call(given: Mapping[str, object]) -> None:
    """Raise if a call of an attack has other arguments than `model`, `x`, `y` and `target`.

    Raises:
        TypeError: there are some; the message tells where they belong.
    """
    for name, value in given.items():
        if name == "targeted":
            way_out = "Pass target=labels for a targeted attack, and nothing for an untargeted one."
        else:
            way_out = "Parameters belong to the attack: PGD(eps=0.1)(model, x, y)."
        raise TypeError(
            f"`{name}` must not be passed to the call of an attack, got {reprlib.repr(value)}. "
            f"{way_out}"
        )
