"""Curves of the page of a report: accuracy against eps, one panel for each norm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from advkit.core.boxes import format_norm
from advkit.core.norms import COUNTS
from advkit.eval.accuracy import Rate
from advkit.eval.noise import NoiseOutcome
from advkit.eval.page.content import Line, Panel
from advkit.eval.page.wording import LEVELS, axis_title, levels, percent, radius_text
from advkit.eval.robustness.accuracy_curve import AccuracyCurve, round_eps
from advkit.eval.robustness.figures import WORST_CASE, largest_shown_eps
from advkit.eval.robustness.outcome import DISTANCE_TOLERANCE, AttackOutcome
from advkit.eval.robustness.page_budgets import ShownBudget

_INTERVALS = 5  # between ticks, at most: more labels would touch on a phone


def panels(
    outcomes: Sequence[AttackOutcome],
    clean: Tensor,
    noise: Sequence[NoiseOutcome],
    budgets: Sequence[ShownBudget],
    worst_cases: Mapping[str, Rate],
    bounds: tuple[float, float],
) -> list[Panel]:
    """Return a panel for each norm, but not for budgets that belong to one input each.

    Args:
        outcomes: outcome of each attack.
        clean: bool `(n,)`; labeled correctly before any attack.
        noise: outcomes of random noise.
        budgets: budgets of `outcomes`.
        worst_cases: robust accuracy under all attacks within each budget.
        bounds: lower and upper bound of the inputs.
    """
    if not len(clean):
        return []
    drawn = [o for o in outcomes if o.minimum_norm or o.eps is not None]
    variants = _variants(drawn)
    found = []
    for number, norm in enumerate(dict.fromkeys(outcome.norm for outcome in drawn)):
        inside = [o for o in drawn if o.norm == norm]
        same = [b for b in budgets if b.budget.norm == norm]
        curve = AccuracyCurve.of(WORST_CASE, [o for o in outcomes if o.norm == norm], clean)
        curves = _Curves(
            worst_case=_stepped(WORST_CASE, "", curve),
            lines=tuple(_lines(inside, clean, variants)),
            marked={b.eps: float(worst_cases[b.text]) for b in same if b.eps is not None},
            noise={n.eps: float(n.robust_accuracy) for n in noise if n.norm == norm},
            clean=Rate.of(clean),
        )
        found.append(_panel(f"panel-{number}", norm, curves, largest_shown_eps(inside), bounds))
    return found


class _Curves(NamedTuple):
    """Curves of one norm.

    Attributes:
        worst_case: worst case over all attacks, at every eps.
        lines: one for each attack.
        marked: worst case at each evaluated eps.
        noise: accuracy under random noise at each eps.
        clean: accuracy without an attack.
    """

    worst_case: Line
    lines: tuple[Line, ...]
    marked: dict[float, float]
    noise: dict[float, float]
    clean: Rate


def _panel(
    name: str, norm: str, curves: _Curves, limit: float, bounds: tuple[float, float]
) -> Panel:
    """Return the panel of a norm, which shows eps up to `limit`."""
    marked, noise = curves.marked, curves.noise
    unit = _unit(marked, bounds)
    ticks = _ticks(norm, limit, unit)
    columns = list(marked) or [eps for eps, _ in ticks[1:]]
    known = _line(WORST_CASE, marked) if marked else curves.worst_case
    rows = [known, *curves.lines, *([_line("random noise", noise)] if noise else [])]
    return Panel(
        id=name,
        title=format_norm(norm),
        axis=axis_title(norm, "input units" if unit == 1 else f"1/{LEVELS}"),
        ticks=ticks,
        limit=limit,
        clean=float(curves.clean),
        envelope=curves.worst_case,
        lines=curves.lines,
        budgets=tuple(marked.items()),
        noise=tuple(sorted(noise.items())),
        columns=tuple(radius_text(eps, bounds) for eps in columns),
        rows=tuple((row.name, _cells(row, columns, curves.clean.total)) for row in rows),
    )


def _variants(outcomes: Sequence[AttackOutcome]) -> dict[str, int]:
    """Return the number of each family among those of the same attack."""
    families: dict[str, list[str]] = {}
    for name, family in sorted({(o.name, o.family) for o in outcomes}):
        families.setdefault(name, []).append(family)
    return {family: i for own in families.values() for i, family in enumerate(own)}


def _lines(
    outcomes: Sequence[AttackOutcome], clean: Tensor, variants: Mapping[str, int]
) -> Iterator[Line]:
    """Yield a line of measured points for each family, and one of steps for each minimum-norm."""
    families: dict[str, dict[float, float]] = {}
    names = {}
    for outcome in outcomes:
        if outcome.eps is not None:
            points = families.setdefault(outcome.family, {})
            points[outcome.eps] = float(outcome.robust_accuracy)
            names[outcome.family] = outcome.name
    for family, points in families.items():
        yield _line(family, points, names[family], variants[family])
    for outcome in outcomes:
        if outcome.minimum_norm:
            curve = AccuracyCurve.of(outcome.family, [outcome], clean)
            yield _stepped(outcome.family, outcome.name, curve, variants[outcome.family])


def _line(name: str, points: Mapping[float, float], attack: str = "", variant: int = 0) -> Line:
    """Return a line of measured points."""
    shown = tuple(sorted(points.items()))
    return Line(name=name, attack=attack, variant=variant, points=shown, stepped=False)


def _stepped(name: str, attack: str, curve: AccuracyCurve, variant: int = 0) -> Line:
    """Return a line that is known at every eps."""
    points = zip(curve.eps.tolist(), curve.robust_accuracy.tolist(), strict=True)
    return Line(name=name, attack=attack, variant=variant, points=tuple(points), stepped=True)


def _unit(budgets: Iterable[float], bounds: tuple[float, float]) -> float:
    """Return the unit of the axis: 1/255 if all budgets are written in it, otherwise 1."""
    found = [levels(eps, bounds) for eps in budgets]
    return 1 / LEVELS if found and None not in found else 1.0


def _ticks(norm: str, limit: float, unit: float) -> tuple[tuple[float, str], ...]:
    """Return the positions of the ticks and their labels, which are in the `unit`."""
    shown = round_eps(limit / unit, whole=norm in COUNTS, intervals=_INTERVALS)
    return tuple((unit * number, f"{number:.6g}") for number in shown)


def _cells(line: Line, columns: Sequence[float], inputs: int) -> tuple[str, ...]:
    """Return the accuracy of a line of `inputs` at each eps of `columns`; `-` where unknown."""
    values = [_value(line, eps) for eps in columns]
    return tuple("-" if v is None else percent(Rate(round(v * inputs), inputs)) for v in values)


def _value(line: Line, eps: float) -> float | None:
    """Return the accuracy of a line at `eps`, `None` if it was not measured there."""
    if not line.stepped:
        return dict(line.points).get(eps)
    return [y for x, y in line.points if x <= eps * (1 + DISTANCE_TOLERANCE)][-1]
