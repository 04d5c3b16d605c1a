"""A report as one self-contained page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

from advkit.core.extras import require
from advkit.eval.accuracy import Rate
from advkit.eval.robustness.outcome import Nearest
from advkit.eval.text_tables import Table, length

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Headline(NamedTuple):
    """A figure in large type, with what it is above and what it is taken from below."""

    name: str
    value: str
    basis: str


class Page(NamedTuple):
    """Contents of the page.

    Attributes:
        run: of both files of a saved report, `None` for a page alone.
        model: the model in words.
        inputs: how many were evaluated.
        about: what else a reader should know, by name.
        headlines: what to read first.
        tables: the tables of the report.
        notes: sentences below them.
        curves: accuracy against eps, `None` without any.
        attack: whose adversarial inputs `grid` shows.
        grid: clean and adversarial inputs, `None` without any.
    """

    run: str | None
    model: str
    inputs: int
    about: Mapping[str, str]
    headlines: Sequence[Headline]
    tables: Sequence[Table]
    notes: Sequence[str]
    curves: Figure | None
    attack: str
    grid: Figure | None


def render(page: Page) -> str:
    """Render the page with its pictures embedded.

    Raises:
        ImportError: jinja2 is missing, naming the extra that brings it.
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
    clean: Rate, worst_case: Rate | None, nearest: Mapping[str, Nearest]
) -> list[Headline]:
    """List what to read first: accuracy clean and robust, and distances in each norm.

    Args:
        clean: accuracy before any attack.
        worst_case: robust accuracy against all attacks, `None` without budget attacks.
        nearest: what minimum-norm attacks found together, by norm.
    """
    found = [_accuracy("clean accuracy", clean)]
    if worst_case is not None:
        found.append(_accuracy("robust accuracy, worst case over all", worst_case))
    for norm, of_norm in nearest.items():
        rate = of_norm.success_rate
        basis = f"success on {rate.count:,} of {rate.total:,}"
        found.append(Headline(f"median distance, {norm}", length(of_norm.median_distance), basis))
    return found


def _accuracy(name: str, rate: Rate) -> Headline:
    return Headline(name, f"{100 * float(rate):.2f} %", f"{rate.count:,} of {rate.total:,}")


def _embedded(figure: Figure) -> str:
    """The figure as a data URL."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
