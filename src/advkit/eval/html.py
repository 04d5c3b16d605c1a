"""A report as one self-contained page."""

from __future__ import annotations

import base64
import io
from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

from advkit.eval.figures import accuracy_curves, example_grid, showcase
from advkit.eval.rates import Rate
from advkit.eval.report import Report
from advkit.eval.tables import length

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Headline(NamedTuple):
    """A figure in large type, with what it is above and what it is taken from below."""

    name: str
    value: str
    basis: str


def page(report: Report) -> str:
    """The page, its pictures embedded."""
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise ImportError("HTML needs jinja2: pip install 'advkit[report]'") from error
    source = resources.files("advkit.eval").joinpath("report.html.j2").read_text(encoding="utf-8")
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        source
    )
    shown = showcase(report)
    curves = accuracy_curves(report)
    return template.render(
        report=report,
        headlines=headlines(report),
        tables=report.tables(),
        curves=None if curves is None else _embedded(curves),
        attack=None if shown is None else shown[0].label,
        grid=None if shown is None else _embedded(example_grid(shown[1], report.bounds)),
    )


def headlines(report: Report) -> list[Headline]:
    """What to read first: accuracy clean and robust, and distances in each norm."""
    found = [_accuracy("clean accuracy", report.clean_accuracy)]
    if report.budgeted:
        found.append(_accuracy("robust accuracy, worst case over all", report.worst_case))
    for norm, nearest in report.nearest.items():
        rate = nearest.success_rate
        found.append(
            Headline(
                f"median distance, {norm}",
                length(nearest.median_distance),
                f"success on {rate.count:,} of {rate.total:,}",
            )
        )
    return found


def _accuracy(name: str, rate: Rate) -> Headline:
    return Headline(name, f"{100 * float(rate):.2f} %", f"{rate.count:,} of {rate.total:,}")


def _embedded(figure: Figure) -> str:
    """The figure as a data URL."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
