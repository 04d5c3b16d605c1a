"""Attacks in the notation of the command line."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from advkit import attacks
from advkit.cli.errors import UsageError, one_line, with_options
from advkit.cli.numbers import integer, number
from advkit.core.foreign_names import remedy
from advkit.core.naming import did_you_mean

_ALL = "all"
_SHOWN = 200  # characters of an attack's text in errors
_TOO_LARGE = 2**63  # torch has no larger integers; a seed may be larger


def known_attacks() -> dict[str, type[Any]]:
    """Return the attacks that the command line can create, by name: all need a budget at most."""
    return {name: kind for name, kind in _every_attack().items() if _writable(kind)}


def unwritable_attacks() -> list[str]:
    """Return the names of the other attacks, which are for guards or need a model, for example."""
    return [name for name in _every_attack() if name not in known_attacks()]


def _writable(kind: type[Any]) -> bool:
    """Return whether text can define the attack; attacks on guards need images to start from."""
    names = {parameter.name for parameter in _parameters(kind)}
    return _required(kind) <= {"eps"} and "start_images" not in names


def _every_attack() -> dict[str, type[Any]]:
    public = {name: getattr(attacks, name) for name in attacks.__all__}
    return {name: kind for name, kind in public.items() if isinstance(kind, type)}


class _Spec(NamedTuple):
    """Parsed text of one attack: its class and its parameters."""

    text: str
    kind: type[Any]
    given: dict[str, Any]

    @property
    def takes_eps(self) -> bool:
        """True if the attack requires a budget and the text does not set one."""
        return "eps" in _required(self.kind) - self.given.keys()

    def at(self, **more: Any) -> Any:
        """Create the attack, with `more` parameters."""
        try:
            return self.kind(**self.given, **more)
        except (TypeError, ValueError) as error:
            message = with_options(error) if more else str(error)  # more comes from options
            raise UsageError(f"--attack {self.text}: {message}") from error


def minimum_norm_attacks(norm: str) -> list[str]:
    """Return the names of the attacks with a form in `norm` that search without a budget."""
    return [name for name, attack in _in_norm(norm).items() if getattr(attack, "eps", None) is None]


def budget_attacks(norm: str) -> list[str]:
    """Return the names of the attacks with a form in `norm` that need a budget."""
    nearest = minimum_norm_attacks(norm)
    return [name for name in _in_norm(norm) if name not in nearest]


def _in_norm(norm: str) -> dict[str, Any]:
    """Return an attack of each kind with a form in `norm`, by name."""
    created = {name: _created(kind, norm) for name, kind in known_attacks().items()}
    return {name: attack for name, attack in created.items() if attack is not None}


def _created(kind: type[Any], norm: str) -> Any:
    """Return an attack in `norm`, with a budget only if it needs one; `None` without such a form.

    The attack itself decides, so that a new attack or norm needs no entry here.
    """
    given: dict[str, Any] = dict.fromkeys(_required(kind), 1.0)
    if _fixed_norm(kind) is None:
        given["norm"] = norm
    try:
        attack = kind(**given)
    except (TypeError, ValueError):
        return None
    return attack if attack.norm == norm else None


def _fixed_norm(kind: type[Any]) -> str | None:
    """Return the only norm of an attack, `None` if its norm is a parameter."""
    (norm,) = (field for field in dataclasses.fields(kind) if field.name == "norm")
    return None if norm.init else str(norm.default)


def _counts_features(kind: type[Any]) -> bool:
    """Return whether the budget of an attack is a number of features."""
    return "eps" in _required(kind) and getattr(kind, "norm", None) == "l0"


def attacks_from(
    specs: Sequence[str],
    eps: Sequence[float],
    seed: int,
    default_eps: Sequence[float] = (),
    norm: str | None = None,
) -> list[Any]:
    """Create the attacks of `specs`.

    An attack that needs a budget and does not set one is created for each `eps`, the others once.

    Args:
        specs: `NAME`, `NAME:key=value,...`, or `all` for every attack with its defaults, but for
            those whose budget is a number of features.
        eps: budgets; at least one attack must use them.
        seed: seed of the attacks that draw random numbers and do not set one.
        default_eps: budgets if `eps` is empty, for the attacks that need one.
        norm: norm of the attacks that do not set one, `None` for their defaults. `all` then means
            every attack with a form in this norm.

    Raises:
        UsageError: a name, parameter or value is unknown, or a budget is missing or unused.
    """
    parsed = [_parsed(text, seed, norm) for spec in specs for text in _expanded(spec, norm)]
    if eps and not any(spec.takes_eps for spec in parsed):
        texts = ", ".join(spec.text for spec in parsed)
        raise UsageError(f"--eps must be omitted, since none of the attacks needs it ({texts}).")
    return [attack for spec in parsed for attack in _attacks(spec, eps or default_eps)]


def _expanded(spec: str, norm: str | None) -> list[str]:
    """Return the attacks that `spec` names; a budget of all does not suit one in features."""
    if spec.lower() != _ALL:
        return [spec]
    if norm is not None:
        return list(_in_norm(norm))
    return [name for name, kind in known_attacks().items() if not _counts_features(kind)]


def _parsed(text: str, seed: int, norm: str | None) -> _Spec:
    name, _, rest = text.partition(":")
    text = one_line(text, _SHOWN)
    kind = _find(name)
    given = _settings(text, rest)
    names = [parameter.name for parameter in _parameters(kind)]
    for key in given:
        if key not in names:
            raise UsageError(
                f"--attack {text}: {kind.__name__} has no parameter {key!r}. "
                f"Its parameters are {', '.join(names)}.{remedy(key, names)}"
            )
    if "seed" in names:
        given.setdefault("seed", seed)
    if norm is not None:
        _set_norm(text, kind, given, norm)
    return _Spec(text, kind, given)


def _set_norm(text: str, kind: type[Any], given: dict[str, Any], norm: str) -> None:
    """Add `norm` to the parameters of an attack that does not set one."""
    fixed = _fixed_norm(kind)
    if fixed is None:
        given.setdefault("norm", norm)
    elif fixed != norm:
        raise UsageError(
            f"--attack {text}: {kind.__name__} must have a form in --norm {norm}, got an attack in "
            f"{fixed}. Attacks with one are {', '.join(_expanded(_ALL, norm))}."
        )


def _parameters(kind: type[Any]) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(kind) if field.init]


def _required(kind: type[Any]) -> set[str]:
    """Return the names of the parameters without a default."""
    missing = dataclasses.MISSING
    return {
        f.name for f in _parameters(kind) if f.default is missing and f.default_factory is missing
    }


def _attacks(spec: _Spec, eps: Sequence[float]) -> list[Any]:
    if not spec.takes_eps:
        return [spec.at()]
    if not eps:
        raise UsageError(f"--eps must be given for {spec.text}, such as --eps 8/255.")
    return [spec.at(eps=value) for value in eps]


def _find(name: str) -> type[Any]:
    known = known_attacks()
    for candidate, kind in known.items():
        if candidate.lower() == name.lower():
            return kind
    for candidate in unwritable_attacks():
        if candidate.lower() == name.lower():
            raise UsageError(
                f"--attack: {candidate} is only available from Python, since it needs more than "
                "numbers and words."
            )
    raise UsageError(
        f"--attack: there is no attack {name!r}{did_you_mean(name, known) or '.'} "
        f"Known attacks are {', '.join(known)}, and {_ALL} for all of them."
    )


def _settings(spec: str, text: str) -> dict[str, Any]:
    """Parse "key=value,..." to values by name."""
    given: dict[str, Any] = {}
    for key, value in (_setting(spec, part) for part in text.split(",") if part):
        if key in given:
            raise UsageError(f"--attack {spec}: a parameter must be given once, got {key!r} twice.")
        given[key] = value
    return given


def _setting(spec: str, part: str) -> tuple[str, Any]:
    key, equals, text = part.partition("=")
    if not (key and equals and text):
        raise UsageError(f"--attack {spec}: a parameter must be key=value, got {part!r}.")
    value = _value(text)
    if isinstance(value, int) and key != "seed" and abs(value) >= _TOO_LARGE:
        raise UsageError(f"--attack {spec}: `{key}` must be below 2**63, got {text}.")
    return key, value


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for parse in (integer, number):
        try:
            return parse(text)
        except argparse.ArgumentTypeError:
            pass
    return text
