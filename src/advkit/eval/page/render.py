"""Contents of the page, rendered as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Iterator

from advkit.core.extras import require
from advkit.eval.page import curves, wording
from advkit.eval.page.content import CardGroup, Line, PageContent
from advkit.eval.page.pictures import pictures_of

# Modules of the extra `report` that a page needs.
NEEDED = ("jinja2", "PIL.Image")
# Cards from which on the page begins with a line for each norm.
_MANY_CARDS = 4


def render(page: PageContent) -> str:
    """Render the page with its style, curves and pictures embedded.

    Raises:
        ImportError: jinja2 or Pillow is missing; the message names the extra that installs it.
    """
    jinja2, _ = (require(module, extra="report", needed_by="HTML") for module in NEEDED)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("advkit.eval.page"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=wording.percent,
        interval=wording.interval,
        share=wording.share,
        pictures=pictures_of,
        panel_svg=curves.panel_svg,
        legend_svg=curves.legend_svg,
        key_svg=curves.key_svg,
    )
    text: str = environment.get_template("page.html.j2").render(
        page=page,
        severity=page.findings[0].severity if page.findings else "none",
        overview=_has_many(page.groups),
        legend=list(_legend(page)),
        glossary=wording.GLOSSARY,
        sections=list(_sections(page)),
    )
    return text


def _has_many(groups: tuple[CardGroup, ...]) -> bool:
    return sum(len(group.cards) for group in groups) > _MANY_CARDS


def _legend(page: PageContent) -> Iterator[Line]:
    """Yield one line of each name, from all panels; one with measured points if there is any."""
    lines: dict[str, Line] = {}
    for panel in page.panels:
        for line in panel.lines:
            if line.name not in lines or not line.stepped:
                lines[line.name] = line
    return iter(lines.values())


def _sections(page: PageContent) -> Iterator[tuple[str, str]]:
    """Yield identifier and title of each section that the page has, for the navigation."""
    yield "summary", "Summary"
    if page.findings:
        yield "findings", "Findings"
    if page.panels:
        yield "curves", "Curves"
    if page.within_budgets or page.minimum_norm:
        yield "attacks", "Attacks"
    if page.classes:
        yield "classes", "Classes"
    if page.examples:
        yield "examples", "Examples"
    yield "repeat", "Repeat"
    yield "glossary", "Glossary"
