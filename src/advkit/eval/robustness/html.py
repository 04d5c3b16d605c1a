"""Report as one self-contained HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

from advkit.core.boxes import format_norm
from advkit.core.extras import require
from advkit.eval.accuracy import Rate
from advkit.eval.findings.finding import Finding
from advkit.eval.robustness.outcome import NearestExamples
from advkit.eval.text_tables import Table, format_distance

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Headline(NamedTuple):
    """A figure in large type, with its name above and its counts below."""

    name: str
    value: str
    basis: str


class Page(NamedTuple):
    """Contents of the page.

    Attributes:
        digest: digest of the report, which both files of a saved one hold; `None` for a page alone.
        model: description of the model.
        inputs: number of inputs that were evaluated.
        about: further facts for the reader, by name.
        headlines: figures to read first.
        verdict: whether to believe the figures.
        findings: reasons to doubt them.
        tables: tables of the report.
        notes: sentences below the tables.
        curves: accuracy against eps, `None` without curves.
        attack: the attack whose adversarial examples `grid` shows.
        grid: clean inputs and adversarial examples, `None` without examples.
    """

    digest: str | None
    model: str
    inputs: int
    about: Mapping[str, str]
    headlines: Sequence[Headline]
    verdict: str
    findings: Sequence[Finding]
    tables: Sequence[Table]
    notes: Sequence[str]
    curves: Figure | None
    attack: str
    grid: Figure | None


def render(page: Page) -> str:
    """Render the page with its pictures embedded.

    Raises:
        ImportError: jinja2 is missing; the message names the extra that installs it.
    """
    jinja2 = require("jinja2", extra="report", needed_by="HTML")
    folder = resources.files("advkit.eval.robustness")
    source = folder.joinpath("report.html.j2").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    pictures = {"curves": page.curves, "grid": page.grid}
    embedded = {name: f and _embedded(f) for name, f in pictures.items()}
    text: str = environment.from_string(source).render(**{**page._asdict(), **embedded})
    return text


def headlines(
    clean: Rate, worst_cases: Mapping[str, Rate], nearest: Mapping[str, NearestExamples]
) -> list[Headline]:
    """List the figures to read first: clean and robust accuracy, and distances in each norm.

    Args:
        clean: clean accuracy.
        worst_cases: robust accuracy under all attacks within a budget, by budget.
        nearest: nearest adversarial examples of all minimum-norm attacks, by norm.
    """
    figures = [_accuracy("clean accuracy", clean)]
    figures += [_accuracy(f"worst case, {name}", rate) for name, rate in worst_cases.items()]
    for norm, examples in nearest.items():
        rate = examples.success_rate
        distance = format_distance(examples.median_distance)
        basis = f"success on {rate.count:,} of {rate.total:,}"
        figures.append(Headline(f"median distance, {format_norm(norm)}", distance, basis))
    return figures


def _accuracy(name: str, rate: Rate) -> Headline:
    return Headline(name, f"{100 * float(rate):.2f} %", f"{rate.count:,} of {rate.total:,}")


def _embedded(figure: Figure) -> str:
    """Return the figure as a data URL."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
