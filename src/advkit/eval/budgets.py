"""Perturbation budgets of attacks: one for all inputs, one for each input, or none."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from numbers import Real
from typing import Any, get_args

import torch
from torch import Tensor

from advkit.core.attack_options import measured_norm
from advkit.core.boxes import format_norm, format_radius
from advkit.core.norms import Norm

_BUDGET = re.compile(r"(l0|l1|l2|linf)\s+(\S+)(\s+pixels)?", re.IGNORECASE)


def format_budget(norm: str, eps: float | None) -> str:
    """Format a budget as tables name it, for example "linf 0.1" or "l0 24 pixels".

    `None` stands for one `eps` for each input.
    """
    if eps is None:
        return f"{format_norm(norm)}, one budget for each input"
    return format_radius(norm, eps)


def parse_budget(text: str) -> tuple[Norm, float]:
    """Parse a budget as a user writes it, such as "linf 8/255", "Linf 0.1" or "l0 24 pixels".

    Returns:
        Norm and `eps`; the norm of "l0 24 pixels" is `"l0_pixel"`.

    Raises:
        ValueError: the text is not a norm and a number of at least 0.

    Example:
        >>> parse_budget("Linf 8/255") == ("linf", 8 / 255)
        True
        >>> format_budget(*parse_budget("l0 24 pixels"))
        'l0 24 pixels'
    """
    match = _BUDGET.fullmatch(text.strip())
    norm, eps = "", math.nan
    if match is not None:
        norm, eps = match[1].lower() + "_pixel" * bool(match[3]), _number(match[2])
    known = dict(zip(norms := get_args(Norm), norms, strict=True))
    if norm not in known or not 0 <= eps < math.inf:
        raise ValueError(
            f"`budget` must be a norm and a number, such as 'linf 8/255' or 'l0 24 pixels', got "
            f"{text!r}."
        )
    return known[norm], eps


def _number(text: str) -> float:
    """Return the value of a number or a fraction, NaN for another text."""
    numerator, slash, denominator = text.partition("/")
    try:
        return float(numerator) / float(denominator) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        return math.nan


def budget_arguments(norm: str, eps: float | None) -> str:
    """Return the arguments `eps` and `norm` of an attack as code; empty for no single budget."""
    if eps is None:
        return ""
    named = "'l0', unit='pixel'" if norm == "l0_pixel" else repr(norm)
    return f"eps={eps:.6g}, norm={named}"


def distinct_budgets(attacks: Iterable[Any]) -> list[tuple[Norm, float]]:
    """Return norm and `eps` of the `attacks` with one budget for all inputs, each budget once.

    Budgets with the same text, which are equal to six digits, are one with the greater `eps`.
    """
    pairs = ((measured_norm(attack), getattr(attack, "eps", None)) for attack in attacks)
    known = dict(zip(norms := get_args(Norm), norms, strict=True))
    distinct: dict[str, tuple[Norm, float]] = {}
    for norm, eps in pairs:
        if norm in known and isinstance(eps, Real):
            text = format_budget(norm, float(eps))
            _, same = distinct.get(text, (norm, float(eps)))
            distinct[text] = known[norm], max(same, float(eps))
    return list(distinct.values())


def check_one_budget(attacks: Iterable[Any]) -> None:
    """Raise if the budgets of `attacks` differ, as far as it is known before they are run.

    An attack without a `norm` tells its norm in its result.
    """
    budgeted = [attack for attack in attacks if getattr(attack, "eps", None) is not None]
    if not budgeted:
        raise several_budgets(["minimum-norm attacks alone"])
    texts: dict[str, None] = {}
    tensors: list[Tensor] = []
    for attack in budgeted:
        if isinstance(attack.eps, Tensor):
            if not any(torch.equal(attack.eps, other) for other in tensors):
                tensors.append(attack.eps)
                number = f" ({len(tensors)})" if len(tensors) > 1 else ""
                texts[format_budget(measured_norm(attack), None) + number] = None
        elif hasattr(attack, "norm") and isinstance(attack.eps, Real):
            texts[format_budget(measured_norm(attack), float(attack.eps))] = None
    if len(texts) > 1:
        raise several_budgets(texts)


def several_budgets(texts: Iterable[str]) -> ValueError:
    """Return the error for attacks that do not share one budget."""
    return ValueError(
        f"`attacks` must share one norm and `eps`, got {'; '.join(texts)}. Call `evaluate`; its "
        "report has the robust accuracy for each budget and the distances of minimum-norm attacks."
    )


def no_minimum_norm(argument: str, attacks: Iterable[str]) -> ValueError:
    """Return the error for an `argument` whose reports only have these `attacks` with a budget."""
    return ValueError(
        f"`{argument}` must have a minimum-norm attack, got budget attacks alone "
        f"({'; '.join(dict.fromkeys(attacks))}). Add one that has no `eps`, such as FAB, to "
        "`attacks`."
    )


def radius_of(attack: Any) -> Tensor:
    """Return the budget of `attack`: a scalar or `(n,)`, inf for an attack without a budget."""
    eps = getattr(attack, "eps", None)
    if isinstance(eps, Tensor):
        return eps.detach().cpu().double()
    return torch.tensor(math.inf if eps is None else float(eps), dtype=torch.float64)
