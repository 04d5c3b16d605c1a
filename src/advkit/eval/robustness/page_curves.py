"""Curves of the page of a report: accuracy against eps, one panel for each norm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

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
        measured = _Measured(
            norm=norm,
            clean=Rate.of(clean),
            limit=largest_shown_eps(inside),
            envelope=AccuracyCurve.of(WORST_CASE, [o for o in outcomes if o.norm == norm], clean),
            lines=tuple(_lines(inside, clean, variants)),
            budgets={b.eps: float(worst_cases[b.text]) for b in same if b.eps is not None},
            noise={n.eps: float(n.robust_accuracy) for n in noise if n.norm == norm},
        )
        found.append(_panel(f"panel-{number}", measured, bounds))
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class _Measured:
    """Accuracies in one norm, by eps: see `Panel`."""

    norm: str
    clean: Rate
    limit: float
    envelope: AccuracyCurve
    lines: tuple[Line, ...]
    budgets: dict[float, float]
    noise: dict[float, float]


def _panel(identifier: str, measured: _Measured, bounds: tuple[float, float]) -> Panel:
    unit = _unit(measured.budgets, bounds)
    ticks = _ticks(measured.norm, measured.limit, unit)
    columns = list(measured.budgets) or [eps for eps, _ in ticks[1:]]
    envelope = _stepped(WORST_CASE, "", measured.envelope)
    inputs = measured.clean.total
    return Panel(
        id=identifier,
        title=format_norm(measured.norm),
        axis=axis_title(measured.norm, "input units" if unit == 1 else f"1/{LEVELS}"),
        ticks=ticks,
        limit=measured.limit,
        clean=float(measured.clean),
        envelope=envelope,
        lines=measured.lines,
        budgets=tuple(measured.budgets.items()),
        noise=tuple(sorted(measured.noise.items())),
        columns=tuple(radius_text(eps, bounds) for eps in columns),
        rows=tuple((row.name, _cells(row, columns, inputs)) for row in _rows(measured, envelope)),
    )


def _rows(measured: _Measured, envelope: Line) -> list[Line]:
    """Return the lines of the table, the worst case first."""
    worst = _line(WORST_CASE, measured.budgets) if measured.budgets else envelope
    noise = [_line("random noise", measured.noise)] if measured.noise else []
    return [worst, *measured.lines, *noise]


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
