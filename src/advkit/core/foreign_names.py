"""Names that other libraries give to the arguments of attacks, and what they are called here.

The names are those of Foolbox, torchattacks, CleverHans, the Adversarial Robustness Toolbox and
AutoAttack.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence

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
    **dict.fromkeys(("criterion", "loss_fn", "loss_type"), ("loss",)),
}
_OF_THE_CALL = ("targeted", "target", "targets", "y", "y_target", "target_label", "labels")
_OF_THE_MODEL = ("clip_min", "clip_max", "bounds", "mean", "std", "preprocessing", "device")


def refuse_unknown(kind: str, given: Mapping[str, object], known: Sequence[str]) -> None:
    """Raise if an attack is created with a parameter that it does not have.

    Args:
        kind: name of the class of the attack.
        given: parameters by name.
        known: names of the parameters of the class.

    Raises:
        TypeError: a name is unknown; the message has the name to use if there is one.
    """
    for name, value in given.items():
        if name not in known:
            raise TypeError(
                f"`{name}` must be a parameter of {kind} ({', '.join(known)}), got "
                f"{reprlib.repr(value)}.{remedy(name, kind, known)}"
            )


def remedy(name: str, kind: str, known: Sequence[str]) -> str:
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


def refuse_positional(kind: str, given: Sequence[object]) -> None:
    """Raise if an attack is created with positional arguments, such as the model.

    Raises:
        TypeError: there are some.
    """
    if given:
        raise TypeError(
            f"`{kind}` must be created with keyword arguments alone, got {type(given[0]).__name__} "
            f"without a name. Pass the model to the call: {kind}(...)(model, x, y)."
        )


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
