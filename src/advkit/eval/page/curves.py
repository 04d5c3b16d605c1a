"""Accuracy against eps as inline SVG."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from xml.etree import ElementTree as ET

from advkit.eval.page.content import Line, Panel
from advkit.eval.page.line_styles import line_style

# Size in user units, near the width of a phone, so that text of 12 units is legible there.
WIDTH, HEIGHT = 320, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 8, 10, 44  # margins around the plot
_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # accuracies with a grid line
_RADIUS = 4.0  # of a marker
_HALF_CHARACTER = 4.0  # at least half of the width of a character of a label
_MARKERS = {  # paths around (0, 0)
    "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "square": "M-3.5-3.5h7v7h-7z",
    "triangle": "M0-4.5L4.2 3.5H-4.2z",
    "diamond": "M0-5L5 0L0 5L-5 0z",
    "cross": "M-4-4L4 4M-4 4L4-4",
    "plus": "M0-5V5M-5 0H5",
    "down": "M0 4.5L4.2-3.5H-4.2z",
}


def panel_svg(panel: Panel) -> str:
    """Return the SVG of a panel, with a title and a description for screen readers."""
    plot = _Plot(panel)
    svg = plot.svg
    ET.SubElement(
        svg, "title", id=f"{panel.id}-title"
    ).text = f"Accuracy against eps, {panel.title}"
    ET.SubElement(svg, "desc", id=f"{panel.id}-desc").text = _description(panel)
    plot.axes()
    for eps, _ in panel.budgets:
        x = plot.x(eps)
        ET.SubElement(svg, "path", {"class": "budget", "d": f"M{x} {_TOP}V{HEIGHT - _BOTTOM}"})
    plot.path("noise", panel.noise, stepped=False)
    plot.path("envelope", panel.envelope.points, stepped=True)
    for line in panel.lines:
        plot.line(line)
    for eps, accuracy in panel.budgets:
        plot.dot("envelope-dot", eps, accuracy)
    plot.dot("clean-dot", 0.0, panel.clean)
    return ET.tostring(svg, encoding="unicode")


def legend_svg(line: Line) -> str:
    """Return the SVG of a piece of the line, for a legend in HTML."""
    svg = _new_svg(36, 14)
    style = line_style(line.attack, line.variant)
    path = {"class": f"line c{style.color}", "d": "M1 7H35", "stroke-dasharray": style.dash}
    ET.SubElement(svg, "path", path)
    if not line.stepped:
        _marker(svg, style.marker, f"c{style.color}", 18, 7)
    return ET.tostring(svg, encoding="unicode")


def key_svg(kind: str) -> str:
    """Return the SVG for a legend of the line of `kind`: `"envelope"`, `"noise"` or `"budget"`."""
    svg = _new_svg(36, 14)
    d = "M18 0V14" if kind == "budget" else "M1 7H35"
    ET.SubElement(svg, "path", {"class": kind, "d": d})
    return ET.tostring(svg, encoding="unicode")


def _new_svg(width: int, height: int) -> ET.Element:
    size = {"width": str(width), "height": str(height), "viewBox": f"0 0 {width} {height}"}
    return ET.Element("svg", {**size, "aria-hidden": "true"})


def _marker(parent: ET.Element, name: str, color: str, x: float, y: float) -> None:
    at = {"class": f"marker {color}", "d": _MARKERS[name], "transform": f"translate({x} {y})"}
    ET.SubElement(parent, "path", at)


def _description(panel: Panel) -> str:
    worst = ", ".join(f"{100 * value:.0f} % at {eps:.4g}" for eps, value in panel.budgets)
    parts = [f"Accuracy without an attack: {100 * panel.clean:.0f} %."]
    if worst:
        parts.append(f"Worst case over all attacks: {worst}.")
    return " ".join([*parts, "The table below the curves has all figures."])


class _Plot:
    """The SVG of one panel while it is drawn."""

    def __init__(self, panel: Panel) -> None:
        self._panel = panel
        self._span = 1.03 * max(panel.limit, panel.ticks[-1][0])
        box = {"class": "panel", "viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img"}
        labels = {"aria-labelledby": f"{panel.id}-title", "aria-describedby": f"{panel.id}-desc"}
        self.svg = ET.Element("svg", {**box, **labels})

    def x(self, eps: float) -> float:
        """Return the position of `eps`; larger ones than the axis holds are at its end."""
        share = min(eps / self._span, 1.0)
        return round(_LEFT + share * (WIDTH - _LEFT - _RIGHT), 1)

    def y(self, accuracy: float) -> float:
        """Return the position of an accuracy in [0, 1]."""
        return round(HEIGHT - _BOTTOM - accuracy * (HEIGHT - _BOTTOM - _TOP), 1)

    def axes(self) -> None:
        """Draw grid lines, ticks and titles."""
        for accuracy in _SHARES:
            y = self.y(accuracy)
            ET.SubElement(
                self.svg, "path", {"class": "grid", "d": f"M{_LEFT} {y}H{WIDTH - _RIGHT}"}
            )
            self._text(_LEFT - 6, y + 4, f"{100 * accuracy:.0f}", "end")
        for eps, label in self._panel.ticks:
            x, bottom = self.x(eps), HEIGHT - _BOTTOM
            ET.SubElement(self.svg, "path", {"class": "tick", "d": f"M{x} {bottom}v4"})
            inside = min(x, WIDTH - _HALF_CHARACTER * len(label))
            self._text(inside, bottom + 17, label, "middle")
        self._text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 7, self._panel.axis, "middle")
        middle = (_TOP + HEIGHT - _BOTTOM) / 2
        rotated = self._text(11, middle, "accuracy in %", "middle")
        rotated.set("transform", f"rotate(-90 11 {middle})")

    def _text(self, x: float, y: float, text: str, anchor: str) -> ET.Element:
        place = {"x": str(x), "y": str(y), "text-anchor": anchor}
        element = ET.SubElement(self.svg, "text", place)
        element.text = text
        return element

    def line(self, line: Line) -> None:
        """Draw the line of an attack, with a marker at each measured point."""
        style = line_style(line.attack, line.variant)
        self.path(f"line c{style.color}", line.points, stepped=line.stepped, dash=style.dash)
        if not line.stepped:
            for eps, accuracy in line.points:
                place = self.x(eps), self.y(accuracy)
                _marker(self.svg, style.marker, f"c{style.color}", *place)

    def dot(self, kind: str, eps: float, accuracy: float) -> None:
        """Draw a dot."""
        place = {"cx": str(self.x(eps)), "cy": str(self.y(accuracy)), "r": str(_RADIUS)}
        ET.SubElement(self.svg, "circle", {"class": kind, **place})

    def path(
        self, kind: str, points: Sequence[tuple[float, float]], *, stepped: bool, dash: str = ""
    ) -> None:
        """Draw a path through `points`; one of steps ends at the right edge of the panel."""
        placed = [(self.x(eps), self.y(accuracy)) for eps, accuracy in points]
        if stepped:
            placed = list(_steps([*placed, (self.x(self._span), placed[-1][1])]))
        if len(placed) < 2:
            return
        d = "M" + "L".join(f"{x:g} {y:g}" for x, y in placed)
        dashed = {"stroke-dasharray": dash} if dash else {}
        ET.SubElement(self.svg, "path", {"class": kind, "d": d, **dashed})


def _steps(placed: Sequence[tuple[float, float]]) -> Iterable[tuple[float, float]]:
    """Yield the corners of steps through `placed`, with one step for each unit of width at most.

    Thousands of steps would make the page large and look the same.
    """
    thinned = {round(x): (x, y) for x, y in placed}  # the last one of each unit
    corners = [placed[0], *thinned.values()]
    yield corners[0]
    for (_, before), (x, after) in pairwise(corners):
        if before != after:
            yield x, before
        yield x, after
