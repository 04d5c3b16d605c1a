"""Contents of the page: what is selected, compared and drawn, on outcomes that a test makes up."""

import dataclasses
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from advkit import eval as rob
from advkit.eval.noise import NoiseOutcome
from advkit.eval.page import curves, wording
from advkit.eval.page.content import Example
from advkit.eval.page.line_styles import line_style
from advkit.eval.page.pictures import DECREASE, INCREASE, MAX_SIDE, pictures_of
from advkit.eval.page.render import render
from advkit.eval.robustness.page_content import page_content
from advkit.eval.robustness.page_tables import class_name
from tests.eval.made_up import inputs_of
from tests.eval.page.html_parts import Element, read
from tests.eval.page.test_page import first, made_up, outcome, pixels

SPACE = "\N{NO-BREAK SPACE}"


def contents(*outcomes, **fields):
    return page_content(made_up(*outcomes, **fields), None)


def cards(*outcomes, **fields):
    return [card for group in contents(*outcomes, **fields).groups for card in group.cards]


def one_of(number, mask=None, n=20):
    """A mask of one input, or those of `mask` and one more."""
    return (torch.arange(n) == number) | (torch.zeros(n).bool() if mask is None else mask)


class TestCards:
    def test_attacks_that_fool_more_together(self):
        made = [outcome("A", "linf", 0.1, first(3)), outcome("B", "linf", 0.1, one_of(9))]
        together = "All attacks in the norm together fool more inputs than this attack alone."
        assert together in cards(*made)[0].sentences[1]
        assert together not in cards(made[0])[0].sentences[1]
        both = cards(made[1], outcome("B", "linf", 0.1, one_of(3)))[0].sentences[1]
        assert "than each of them alone" in both

    @pytest.mark.parametrize(
        ("names", "listed"), [("AB", "A(), B()"), ("ABC", "A(), B() and 1 more")]
    )
    def test_a_tie_names_two_attacks(self, names, listed):
        made = [outcome(name, "linf", 0.1, first(3)) for name in names]
        made = [dataclasses.replace(one, settings={}) for one in made]
        sentence = cards(*made)[0].sentences[1]
        assert sentence == f"Strongest attacks, equally: {listed}, with 85{SPACE}% (17 of 20) left."

    def test_budgets_by_size_and_those_of_single_inputs_last(self):
        each = dataclasses.replace(
            outcome("C", "l2", 1.0, first(3)), eps=None, radius=torch.linspace(0.1, 1, 20).double()
        )
        made = [each, *(outcome("A", "l2", eps, first(2)) for eps in (10.0, 9.0))]
        found = [card.title for card in cards(*made)]
        assert found == ["l2 9", "l2 10", "l2, one budget for each input"]

    def test_only_missing_inputs_are_an_interruption(self):
        attack = outcome("A", "linf", 0.1, first(2))
        assert contents(attack, total=20).interrupted == ""
        assert contents(attack).interrupted == ""
        assert contents(attack, total=21).interrupted.startswith("20 of 21 inputs")


class TestTables:
    def test_minimum_norm_attacks_have_a_row_in_the_budgets_of_their_norm(self):
        near = outcome("Near", "l2", None, first(5), distance=0.5)
        made = [outcome("A", "l2", 1.0, first(2)), outcome("A", "linf", 1.0, first(2)), near]
        within = {group.title: group.rows for group in contents(*made).within_budgets}
        assert [len(within["l2 1"]), len(within["linf 1"])] == [2, 1]
        row = within["l2 1"][1]
        assert row.name.endswith(", minimum-norm")
        assert (row.strongest, row.robust, row.success) == (True, rob.Rate(15, 20), rob.Rate(5, 20))

    def test_the_worst_classes_are_shown(self):
        label = torch.arange(60) % 30
        inputs = dataclasses.replace(inputs_of(label >= 0), label=label, prediction=label)
        table = contents(outcome("A", "linf", 0.1, label >= 20), inputs=inputs).classes
        assert [row.name for row in table.rows] == [f"class {k}" for k in range(20, 30)]

    def test_unknown_predictions_are_no_class(self):
        success = first(6, 6)
        unknown = dataclasses.replace(
            outcome("A", "linf", 0.1, success), prediction=torch.tensor([-1, -1, -1, 1, -1, -1])
        )
        names = ("cat", "dog")
        assert contents(unknown, class_names=names).classes.rows[0].confused == "dog"
        none = dataclasses.replace(unknown, prediction=-success.long())
        assert contents(none, class_names=names).classes.rows[0].confused == ""
        assert [class_name(k, names) for k in (-1, 1, 2)] == ["class -1", "dog", "class 2"]


class TestExamples:
    def shown(self, name, distances, channels=1, numbers=None):
        k = len(distances)
        x = torch.zeros(k, channels, 2, 2)
        numbers = torch.arange(k) if numbers is None else torch.tensor(numbers)
        kept = rob.Examples(
            x, x + 0.5, torch.zeros(k).long(), torch.ones(k).long(), numbers,
            torch.tensor(distances),
        )  # fmt: skip
        return dataclasses.replace(outcome(name, "l2", None, first(k)), examples=kept)

    def test_the_nearest_of_each_input_the_nearest_first(self):
        made = [self.shown("A", [0.5, 0.1]), self.shown("B", [0.2, 0.4])]
        (group,) = contents(*made).examples
        found = [(e.number, e.distance, e.attack[0]) for e in group.examples]
        assert found == [(1, "l2 distance 0.1", "A"), (0, "l2 distance 0.2", "B")]

    @pytest.mark.parametrize(("channels", "groups"), [(1, 1), (2, 0), (3, 1), (4, 0)])
    def test_images_have_one_or_three_channels(self, channels, groups):
        assert len(contents(self.shown("A", [0.5], channels)).examples) == groups

    def drawn(self, change):
        x = torch.full_like(change, 0.5)
        example = Example(
            number=0, true="a", predicted="b", distance="", attack="", x=x, x_adv=x + change,
            bounds=(0.0, 1.0),
        )  # fmt: skip
        image = Element("img", {"src": pictures_of(example).change})
        return pixels(image)

    def test_the_channel_that_changes_most_has_the_sign(self):
        change = torch.zeros(3, 1, 2)
        change[:, 0, 0] = torch.tensor([0.1, -0.2, 0.05])
        change[:, 0, 1] = torch.tensor([-0.1, 0.2, -0.05])
        assert self.drawn(change)[0].tolist() == [list(DECREASE), list(INCREASE)]

    def test_large_images_keep_their_strongest_changes(self):
        change = torch.zeros(1, 3 * MAX_SIDE, 2 * MAX_SIDE)
        change[0, 0, 0], change[0, -1, -1] = -0.2, 0.2
        colors = self.drawn(change)
        assert colors.shape == (MAX_SIDE, round(2 / 3 * MAX_SIDE), 3)
        assert colors[0, 0].tolist() == list(DECREASE)
        assert colors[-1, -1].tolist() == list(INCREASE)
        assert np.all(colors[1:-1] == 255)


def panel_of(*outcomes, **fields):
    return contents(*outcomes, **fields).panels[0]


def svg_of(panel):
    root = ElementTree.fromstring(curves.panel_svg(panel))
    return {kind: [e for e in root.iter() if kind in e.get("class", "").split()]
            for kind in ("envelope", "line", "noise", "marker", "grid")}  # fmt: skip


def corners(path):
    return [tuple(map(float, corner.split())) for corner in path.get("d")[1:].split("L")]


class TestCurves:
    def test_noise_is_drawn_in_its_norm(self):
        made = [outcome("A", norm, 0.1, first(4)) for norm in ("linf", "l2")]
        noise = [
            NoiseOutcome(norm="linf", eps=eps, robust=~first(k)) for eps, k in ((0.1, 1), (0.2, 2))
        ]
        linf, l2 = contents(*made, noise=tuple(noise)).panels
        assert linf.noise == ((0.1, 0.95), (0.2, 0.9))
        assert l2.noise == ()
        assert len(svg_of(linf)["noise"]) == 1
        assert not svg_of(l2)["noise"]

    def test_steps_are_drawn_as_corners(self):
        near = outcome("A", "l2", None, first(10), distance=0.5)
        far = outcome("B", "l2", None, one_of(15), distance=1.0)
        (path,) = svg_of(panel_of(near, far))["envelope"]
        drawn = corners(path)
        for (x, y), (next_x, next_y) in pairwise(drawn):
            assert x == next_x or y == next_y
        assert len({y for _, y in drawn}) == 3

    def test_nothing_is_drawn_outside(self):
        distance = torch.cat([torch.linspace(0.1, 0.2, 999), torch.tensor([9.0])])
        attack = outcome("A", "l2", None, first(1000, 1000))
        (path,) = svg_of(panel_of(dataclasses.replace(attack, distance=distance)))["line"]
        assert max(x for x, _ in corners(path)) <= curves.WIDTH

    def test_a_distance_equal_to_the_budget_is_within_it(self):
        eps = 0.1
        near = outcome("Near", "l2", None, first(5), distance=eps)
        rows = dict(panel_of(outcome("A", "l2", eps, first(2)), near).rows)
        assert rows["Near"] == rows["worst case"] == (f"75{SPACE}%",)

    def test_levels_of_pixels_are_the_unit_if_all_budgets_have_them(self):
        fine = [outcome("A", "linf", k / 255, first(k)) for k in (2, 8)]
        assert panel_of(*fine).axis == "eps: linf in 1/255"
        assert panel_of(*fine, outcome("A", "linf", 0.1, first(9))).axis == (
            "eps: linf in input units"
        )

    def test_variants_of_an_attack_look_different(self):
        made = [outcome("PGD", "linf", 0.1, first(4)) for _ in range(3)]
        made = [dataclasses.replace(one, settings={"steps": k}) for k, one in enumerate(made)]
        page = contents(*made)
        looks = {line_style(line.attack, line.variant) for line in page.panels[0].lines}
        assert len({(look.color, look.dash) for look in looks}) == 3
        assert len({look.marker for look in looks}) == 3

    def test_the_legend_has_markers_where_points_are_measured(self):
        near = dataclasses.replace(outcome("A", "l2", None, first(5)), settings={})
        made = [dataclasses.replace(outcome("A", "linf", 0.1, first(5)), settings={}), near]
        for order in (made, made[::-1]):
            (legend,) = read(render(contents(*order))).all("ul", class_="legend")
            assert len(legend.all("path", class_="marker")) == 1


def test_levels_belong_to_inputs_between_zero_and_one():
    assert wording.budget_title("linf", 8 / 255, (0.0, 1.0)) == "linf 8/255"
    assert wording.budget_title("linf", 8 / 255, (0.0, 255.0)) == "linf 0.0313725"
