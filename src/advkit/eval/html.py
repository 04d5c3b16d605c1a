"""A report as one self-contained page."""

from __future__ import annotations

import base64
import io
from importlib import resources
from typing import TYPE_CHECKING

from advkit.eval.figures import accuracy_curves, example_grid, showcase
from advkit.eval.report import Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        heading=report.rows()[0],
        rows=report.rows()[1:],
        attacks=len(report.outcomes),
        curves=None if curves is None else _embedded(curves),
        attack=None if shown is None else shown[0].label,
        grid=None if shown is None else _embedded(example_grid(shown[1], report.bounds)),
    )


def _embedded(figure: Figure) -> str:
    """The figure as a data URL."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
