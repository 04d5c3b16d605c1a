"""The page of a report: what it says, its structure, and what it does not do."""

import base64
import dataclasses
import io
import math
import re
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from torch import nn

from advkit import TorchClassifier, attacks
from advkit import eval as rob
from advkit.eval.page.pictures import DECREASE, INCREASE, NO_CHANGE, diverging_colors
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.robustness.report import Report
from tests.eval.made_up import PROVENANCE, Finds, inputs_of, report_on
from tests.eval.page.html_parts import read
from tests.toys import answers, convnet, images

N = 24
NAMES = ['"quoted" & <b>', "dog", "bird"]


@pytest.fixture(scope="module")
def report():
    """Budgets in two norms, minimum-norm attacks in two, and gates."""
    net, x = convnet(), images(N)
    y = answers(net, x)
    y[:2] = (y[:2] + 1) % 3
    made = [
        *(kind(eps=eps) for eps in (0.02, 0.1) for kind in (attacks.FGSM, attacks.PGD)),
        attacks.PGD(eps=0.5, norm="l2", steps=5),
        attacks.DeepFool(),
        attacks.MinimumNorm(norm="l0", steps=5),
    ]
    found = rob.evaluate(
        net, x, y, attacks=made, class_names=NAMES, about={"data": "images"},
        command="advkit evaluate --eps 8/255",
    )  # fmt: skip
    return rob.gate(found, fail_under={"linf 0.02": 0.0, "linf 0.1": 1.0})


@pytest.fixture(scope="module")
def page(report):
    return read(report.to_html())


def outcome(name, norm, eps, success, distance=None):
    """The outcome of an attack that fools the inputs in a mask."""
    n = len(success)
    inside = 0.9 * eps if eps else 1.0
    passes = torch.full((n,), 3)
    return AttackOutcome(
        name=name, settings={"norm": norm, "eps": eps}, norm=norm, minimum_norm=eps is None,
        eps=eps, radius=torch.full((n,), math.inf if eps is None else eps, dtype=torch.float64),
        robust=~success, distance=torch.where(success, distance or inside, torch.nan),
        forward=passes, backward=passes, no_gradient=success & False, not_finite=success & False,
        prediction=torch.where(success, 1, -1), seconds=1.0, examples=None,
    )  # fmt: skip


def made_up(*outcomes, **fields):
    """A report on inputs that are all labeled correctly."""
    n = len(outcomes[0].robust)
    run = dataclasses.replace(PROVENANCE, attacks=("c" * 64,) * len(outcomes))
    given = {"inputs": inputs_of(torch.ones(n).bool()), "provenance": run} | fields
    return Report(model="A net", bounds=(0.0, 1.0), outcomes=outcomes, **given)


def first(count, n=20):
    return torch.arange(n) < count


def table_of(page, words):
    """The first table whose caption has these words."""
    return next(t for t in page.all("table") if words in t.all("caption")[0].text)


def rows_of(body):
    """The rows of a table's body."""
    return body.all("tr")


def cards(page):
    return {card.all("h4")[0].text: card for card in page.all("article", class_="card")}


class TestCards:
    def test_one_for_each_threat_model(self, page, report):
        assert list(cards(page)) == ["linf 0.02", "linf 0.1", "l2 0.5", "l0, any distance"]
        for budget, rate in report.worst_cases.items():
            card = cards(page)[budget]
            assert card.all("p", class_="figure")[0].text == f"{100 * float(rate):.0f} %"
            low, high = rate.interval
            caption = f"robust accuracy, 95 % interval {100 * low:.0f} to {100 * high:.0f} %"
            assert card.all("p", class_="caption")[0].text == caption
            assert f"Of {N} inputs, {rate.count} stay correctly labeled when an" in card.text

    def test_bars_from_clean_over_noise_to_robust(self, page, report):
        for budget, rate in report.worst_cases.items():
            noise = {n.budget: n.robust_accuracy for n in report.noise}[budget]
            bars = cards(page)[budget].all("rect", class_="fill")
            widths = [float(bar.attributes["width"]) for bar in bars]
            wanted = [100 * float(r) for r in (report.clean_accuracy, noise, rate)]
            assert widths == pytest.approx(wanted, abs=0.01)

    def test_gates(self, page, report):
        found = cards(page)
        assert found["linf 0.02"].all("p", class_="gate")[0].text.startswith("✓ Passed:")
        (failed,) = found["linf 0.1"].all("p", class_="gate")
        assert failed.text.startswith("✗ Failed: linf 0.1 at least 100 %")
        assert not found["l2 0.5"].all("p", class_="gate")
        (banner,) = page.all("p", class_="gates")
        assert banner.text.endswith("Gates: 1 passed, 1 failed.")

    def test_gates_name_a_budget_as_its_card_does(self):
        gate = rob.Gate("linf 0.0313725 at least 50 %", "linf 0.0313725", False, "It is 40 %.")
        page = read(made_up(outcome("PGD", "linf", 8 / 255, first(12)), gates=(gate,)).to_html())
        (shown,) = cards(page)["linf 8/255"].all("p", class_="gate")
        assert shown.text == "✗ Failed: linf 8/255 at least 50 % It is 40 %."

    def test_a_line_below_the_bar_spans_the_interval(self, page, report):
        for budget, rate in report.worst_cases.items():
            (line,) = cards(page)[budget].all("path", class_="whisker")
            ends = [float(end) for end in re.findall(r"[MH]([\d.]+)", line.attributes["d"])]
            assert ends == pytest.approx([100 * end for end in rate.interval], abs=0.01)

    def test_a_gate_of_the_whole_report(self, report):
        gate = rob.Gate("evidence", "", False, "It is incomplete.")
        page = read(dataclasses.replace(report, gates=(gate,)).to_html())
        assert not any(card.all("p", class_="gate") for card in page.all("article", class_="card"))
        assert page.all("p", class_="gate")[0].text == "✗ Failed: evidence It is incomplete."

    @pytest.mark.parametrize(
        ("norm", "eps", "phrase"),
        [
            ("linf", 8 / 255, "change every feature by up to 8/255"),
            ("l2", 0.5, "Euclidean distance of up to 0.5"),
            ("l1", 2.0, "by up to 2 in total"),
            ("l0", 3.0, "3 features"),
            ("l0_pixel", 3.0, "3 pixels"),
        ],
    )
    def test_the_sentence_fits_the_norm(self, norm, eps, phrase):
        page = read(made_up(outcome("PGD", norm, eps, first(8))).to_html())
        (card,) = page.all("article", class_="card")
        assert "Of 20 inputs, 12 stay correctly labeled when an attacker may" in card.text
        assert phrase in card.text

    def test_an_infinite_median_is_no_headline(self):
        page = read(report_on([[0.5], [1.0], [1.0]], Finds()).to_html())
        (card,) = page.all("article", class_="card")
        assert card.all("p", class_="figure")[0].text == (
            "More than half of the inputs have no known adversarial example"
        )
        assert "1 of 3 attacked inputs" in card.text
        for element in page.all("section", id="summary"):
            assert "inf" not in element.text.split()

    def test_a_large_median_has_no_exponent(self):
        page = read(made_up(outcome("A", "l0", None, first(20), distance=12345.0)).to_html())
        (card,) = page.all("article", class_="card")
        assert card.all("p", class_="figure")[0].text == "12,345"
        assert "within an l0 distance of 12,345" in card.text

    def test_the_strongest_attack(self):
        weak, strong = outcome("FGSM", "linf", 0.1, first(3)), outcome("PGD", "linf", 0.1, first(8))
        text = read(made_up(weak, strong).to_html()).all("article", class_="card")[0].text
        assert "Strongest attack: PGD(norm='linf', eps=0.1), with 60 % (12 of 20) left." in text

    def test_many_threat_models_have_an_overview(self):
        norms = ("linf", "l2", "l1", "l0")
        made = [
            outcome("PGD", norm, eps, first(int(eps))) for norm in norms for eps in (1.0, 2, 3, 4)
        ]
        page = read(made_up(*made).to_html())
        (overview,) = page.all("div", class_="overview")
        links = overview.all("a")
        assert len(links) == len(page.all("article", class_="card")) == 16
        assert [link.all("strong")[0].text for link in links[:4]] == [
            "95 %",
            "90 %",
            "85 %",
            "80 %",
        ]

    def test_an_interrupted_evaluation_says_so(self, report):
        page = read(dataclasses.replace(report, total=50).to_html())
        (banner,) = page.all("p", class_="interrupted")
        assert banner.text.startswith(f"Incomplete. {N} of 50 inputs were evaluated.")


def width(cell):
    """The columns that a cell of a table spans."""
    return 0 if isinstance(cell, str) else int(cell.attributes.get("colspan", 1))


class TestStructure:
    def test_landmarks_and_headings(self, page):
        (html,) = page.all("html")
        assert html.attributes["lang"] == "en"
        for tag in ("header", "nav", "main", "footer", "h1"):
            assert len(page.all(tag)) == 1, tag
        assert len(page.all("head")[0].all("title")) == 1
        levels = [int(e.tag[1]) for e in page.all() if re.fullmatch("h[1-6]", e.tag)]
        assert levels[0] == 1
        assert all(later <= earlier + 1 for earlier, later in pairwise(levels))
        assert all(section.attributes["aria-labelledby"] for section in page.all("section"))

    def test_links_and_labels_point_to_something(self, page):
        ids = [e.attributes["id"] for e in page.all() if "id" in e.attributes]
        assert len(ids) == len(set(ids))
        for element in page.all():
            for name in ("aria-labelledby", "aria-describedby"):
                assert set(element.attributes.get(name, "").split()) <= set(ids)
            href = element.attributes.get("href")
            assert href is None or (href[1:] in ids and href[0] == "#")
        assert page.all("a")[0].attributes["href"] == "#main"

    def test_tables_are_captioned_and_can_be_scrolled(self, page):
        tables = page.all("table")
        assert len(tables) >= 4
        for table in tables:
            assert table.all("caption")[0].text
            assert all("scope" in heading.attributes for heading in table.all("th"))
            scroll = table.parent.attributes
            assert (scroll["class"], scroll["role"], scroll["tabindex"]) == (
                "scroll",
                "region",
                "0",
            )
            widths = {sum(map(width, row.children)) for row in table.all("tr")}
            assert len(widths) == 1

    def test_pictures_and_curves_have_texts(self, page):
        assert all(image.attributes["alt"] for image in page.all("img"))
        for svg in page.all("svg", class_="panel"):
            assert svg.attributes["role"] == "img"
            assert svg.all("title")[0].text
            assert svg.all("desc")[0].text
        for svg in page.all("svg"):  # the others repeat what stands next to them
            hidden = (svg.attributes, svg.parent.attributes)
            assert svg.all("title") or any(a.get("aria-hidden") == "true" for a in hidden)

    def test_it_needs_no_network_and_no_script(self, report):
        text = report.to_html()
        page = read(text)
        assert not page.all("script") + page.all("link") + page.all("iframe")
        assert "http:" not in text
        assert "https:" not in text
        assert "url(" not in text
        sources = [image.attributes["src"] for image in page.all("img")]
        assert sources
        assert all(source.startswith("data:image/png;base64,") for source in sources)

    def test_words_of_the_user_are_text(self, report):
        evil = "<script>alert('1')</script>\"'&"
        changed = dataclasses.replace(
            report, model=evil, about={evil: evil}, class_names=(evil,) * 3,
            gates=(rob.Gate(evil, "", False, evil),),
            provenance=dataclasses.replace(report.provenance, command=evil),
        )  # fmt: skip
        page = read(changed.to_html())
        assert not page.all("script")
        assert page.all("h1")[0].text.replace("( ", "(") == evil  # a line may break there
        assert page.all("title")[0].text == f"Robustness of {evil}"

    def test_twenty_attacks_with_four_budgets_stay_below_a_megabyte(self):
        generator = torch.Generator().manual_seed(0)
        made = []
        for number in range(20):
            norm = ("linf", "l2", "l1", "l0")[number % 4]
            for eps in (1.0, 2.0, 3.0, 4.0):
                success = torch.rand(1000, generator=generator) < 0.1 * eps
                made.append(outcome(f"Attack{number}", norm, eps, success))
        x = torch.rand(6, 3, 224, 224, generator=generator)
        shown = rob.Examples(x, x.flip(0), torch.arange(6), torch.arange(6), torch.arange(6),
                             torch.arange(6) / 6)  # fmt: skip
        made = [dataclasses.replace(each, examples=shown) for each in made]
        page = made_up(*made).to_html()
        assert len(page.encode()) < 1_000_000


class TestCurves:
    def panels(self, page):
        return {figure.all("figcaption")[0].text: figure for figure in page.all("figure")
                if figure.all("svg", class_="panel")}  # fmt: skip

    def test_one_panel_for_each_norm(self, page):
        assert list(self.panels(page)) == ["linf", "l2", "l0"]

    def test_they_are_xml(self, report):
        drawn = re.findall(r"<svg.*?</svg>", report.to_html(), re.S)
        assert len(drawn) > 3
        for svg in drawn:
            ElementTree.fromstring(svg)

    def test_the_envelope_is_the_worst_case_at_each_budget(self, page, report):
        panel = self.panels(page)["linf"].all("svg")[0]
        dots = panel.all(None, class_="envelope-dot")
        places = [(float(dot.attributes["cx"]), float(dot.attributes["cy"])) for dot in dots]
        line = panel.all("path", class_="envelope")[0].attributes["d"]
        corners = [tuple(map(float, corner.split())) for corner in line[1:].split("L")]
        grid = [
            re.findall(r"[\d.]+", path.attributes["d"]) for path in panel.all("path", class_="grid")
        ]
        bottom, top = float(grid[0][1]), float(grid[-1][1])  # of 0 and 100 %
        for place, eps in zip(places, (0.02, 0.1), strict=True):
            rate = report.worst_cases[f"linf {eps}"]
            assert (bottom - place[1]) / (bottom - top) == pytest.approx(float(rate), abs=0.003)
            passed = [y for x, y in corners if x <= place[0]]
            assert passed[-1] == place[1]
        table = page.all("details")[0].all("table")[0]
        worst = table.all("tbody")[0].all("tr")[0]
        cells = [cell.text for cell in worst.all("td")]
        assert worst.all("th")[0].text == "worst case"
        rates = [report.worst_cases[f"linf {eps}"] for eps in (0.02, 0.1)]
        assert cells == [f"{100 * float(rate):.0f} %" for rate in rates]

    def test_labels_of_the_axis_stay_inside(self):
        page = read(made_up(outcome("PGD", "linf", 0.00125, first(4))).to_html())
        (panel,) = self.panels(page).values()
        labels = [text for text in panel.all("text") if re.fullmatch(r"[\d.]+", text.text)]
        for label in labels:
            assert float(label.attributes["x"]) + 3.9 * len(label.text) < 320

    def test_each_budget_is_marked(self, page):
        panels = self.panels(page).values()
        assert [len(panel.all("path", class_="budget")) for panel in panels] == [2, 1, 0]

    def test_one_color_and_dash_for_an_attack_in_all_panels(self):
        made = [outcome("PGD", norm, 0.1, first(4)) for norm in ("linf", "l2")]
        page = read(made_up(*made, outcome("FGSM", "linf", 0.1, first(2))).to_html())
        lines = [line.attributes for panel in self.panels(page).values()
                 for line in panel.all("path", class_="marker")]  # fmt: skip
        drawn = [(line["class"], line["d"]) for line in lines]
        assert len(set(drawn)) == 2
        assert drawn.count(drawn[0]) == 2

    def test_one_budget_for_each_input_has_no_curve(self):
        eps = torch.linspace(0.1, 0.5, 4)
        page = read(report_on([[0.1], [0.2], [0.3], [0.9]], Finds(eps=eps)).to_html())
        assert not self.panels(page)
        assert page.all("article", class_="card")[0].all("p", class_="figure")[0].text == "25 %"


class TestTables:
    def test_attacks_by_budget_with_the_strongest_marked(self, page, report):
        table = table_of(page, "within each budget")
        bodies = table.all("tbody")
        assert [rows_of(body)[0].text for body in bodies] == ["linf 0.02", "linf 0.1", "l2 0.5"]
        for body, budget in zip(bodies, report.worst_cases, strict=True):
            shown = {row.all("th")[0].text: row for row in rows_of(body)[1:]}
            made = [o for o in report.outcomes if o.budget == budget]
            most = max(o.success_rate.count for o in made)
            for one in made:
                count, total = one.success_rate.count, one.success_rate.total
                tag = " strongest" if count == most else ""
                row = shown.get(one.label + tag, shown.get(one.label))
                assert f"{count} of {total}" in row.all("td")[1].text
                rate = row.all("td")[0].children[0]
                assert rate == f"{100 * float(one.robust_accuracy):.0f}\N{NO-BREAK SPACE}%"
            (worst,) = body.all("tr", class_="worst")
            rate = worst.all("td")[0].children[0]
            assert rate == f"{100 * float(report.worst_cases[budget]):.0f}\N{NO-BREAK SPACE}%"

    def test_all_of_several_strongest_attacks_are_marked(self):
        made = [outcome(name, "linf", 0.1, first(k)) for name, k in (("A", 5), ("B", 5), ("C", 0))]
        page = read(made_up(*made).to_html())
        assert [row.all("th")[0].text[:1] for row in page.all("tr", class_="strongest")] == [
            "A",
            "B",
        ]
        page = read(made_up(outcome("C", "linf", 0.1, first(0))).to_html())
        assert not page.all("tr", class_="strongest")

    def test_the_strongest_minimum_norm_attack_has_the_smallest_median(self):
        far = outcome("Far", "l2", None, first(20), distance=2.0)
        near = outcome("Near", "l2", None, first(12), distance=0.5)
        page = read(made_up(far, near).to_html())
        (row,) = page.all("tr", class_="strongest")
        assert row.all("th")[0].text == "Near(norm='l2', eps=None) strongest"
        assert "Strongest: Near(norm='l2', eps=None)." in page.all("article", class_="card")[0].text
        few = [outcome(name, "l2", None, first(k)) for name, k in (("A", 2), ("B", 3), ("C", 3))]
        rows = read(made_up(*few).to_html()).all("tr", class_="strongest")
        assert [row.all("th")[0].text[0] for row in rows] == ["B", "C"]  # no finite median
        none = read(made_up(outcome("A", "l2", None, first(0))).to_html())
        assert not none.all("tr", class_="strongest")

    def test_costs_are_folded(self, page, report):
        table = table_of(page, "Forward and backward")
        assert table.inside("details")
        assert len(table.all("tbody")[0].all("tr")) == len(report.outcomes)

    def test_classes_add_up(self, page, report):
        table = table_of(page, "of the class")
        rows = table.all("tbody")[0].all("tr")
        assert [row.all("th")[0].text for row in rows] == NAMES
        assert sum(int(row.all("td")[0].text) for row in rows) == N
        for column, budget in enumerate(report.worst_cases, 2):
            counts = [
                round(int(row.all("td")[0].text) * float(row.all("td")[column].text[:-2]) / 100)
                for row in rows
            ]
            assert sum(counts) == report.worst_cases[budget].count

    def test_the_class_it_is_most_often_taken_for(self):
        success = torch.ones(6).bool()
        one = dataclasses.replace(
            outcome("PGD", "linf", 0.1, success), prediction=torch.tensor([2, 2, 1, 1, 1, 1])
        )
        inputs = dataclasses.replace(inputs_of(success), label=torch.tensor([0, 0, 0, 2, 2, 2]),
                                     prediction=torch.tensor([0, 0, 0, 2, 2, 2]))  # fmt: skip
        page = read(made_up(one, inputs=inputs).to_html())
        words = [cell.text for cell in page.all("td", class_="word")]
        assert words == ["class 2", "class 1"]

    def test_of_many_classes_the_worst_are_shown(self):
        label = torch.arange(60) % 30
        success = label < 12
        inputs = dataclasses.replace(inputs_of(success | True), label=label, prediction=label)
        page = read(made_up(outcome("PGD", "linf", 0.1, success), inputs=inputs).to_html())
        shown = table_of(page, "The 10 classes with the lowest accuracy.").all("tbody")[0]
        folded = table_of(page, "The other classes.").all("tbody")[0]
        assert (len(rows_of(shown)), len(rows_of(folded))) == (10, 20)
        assert folded.inside("details")
        assert {row.all("td")[2].text for row in rows_of(shown)} == {"0 %"}


def pixels(image):
    """The pixels of an embedded picture."""
    from PIL import Image

    content = base64.b64decode(image.attributes["src"].partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)))


class TestPictures:
    def test_they_show_the_examples(self, page, report):
        figures = [figure for figure in page.all("figure") if figure.all("img")]
        groups = page.all("section", id="examples")[0].all("h3")
        assert [group.text for group in groups] == ["linf", "l2", "l0"]
        nearest = report.outcomes[-1].examples
        last = next(figure for figure in figures if "MinimumNorm" in figure.text)
        assert f"Input {nearest.index[0]}, l0 distance {nearest.distance[0]:.3g}" in last.text
        true, predicted = NAMES[nearest.y[0]], NAMES[nearest.predicted[0]]
        assert last.all("strong")[0].text == " ".join(f"{true} → becomes {predicted}".split())
        clean, adversarial, change = map(pixels, last.all("img"))
        assert np.array_equal(clean, (255 * nearest.x[0, 0]).round().byte().numpy())
        assert np.array_equal(adversarial, (255 * nearest.x_adv[0, 0]).round().byte().numpy())
        changed = (nearest.x_adv[0, 0] != nearest.x[0, 0]).numpy()
        assert ((change != NO_CHANGE).any(2) == changed).all()

    def test_the_colors_of_a_signed_change(self):
        change = torch.tensor([[0.0, 0.2, -0.2, 0.1]], dtype=torch.float64)
        found = diverging_colors(change, 0.2)[0]
        assert found[:3].tolist() == [list(NO_CHANGE), list(INCREASE), list(DECREASE)]
        middle = (np.array(NO_CHANGE) + np.array(INCREASE)) / 2
        assert abs(found[3] - middle).max() <= 0.5
        assert (diverging_colors(torch.zeros(2, 2), 0.0) == NO_CHANGE).all()

    def test_colored_images_in_other_bounds(self):
        net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        x = torch.rand(9, 3, 2, 2, generator=torch.Generator().manual_seed(0))
        model = TorchClassifier(net, (0, 255), preprocess=lambda v: v / 255)
        report = rob.evaluate(model, 255 * x, answers(net, x), attacks=[attacks.FGSM(eps=200.0)])
        page = read(report.to_html())
        shown = report.outcomes[0].examples
        wanted = shown.x[0].round().byte().permute(1, 2, 0).numpy()
        assert np.array_equal(pixels(page.all("img")[0]), wanted)

    def test_tables_have_none(self):
        page = read(report_on([[0.1, 0.2], [0.3, 0.9]], Finds(eps=0.5)).to_html())
        assert not page.all("img")
        assert not page.all("section", id="examples")


class TestRepetition:
    def test_a_folded_box_has_command_settings_and_hashes(self, page, report):
        (section,) = page.all("section", id="repeat")
        (box,) = section.all("details")
        assert box.all("pre")[0].text == report.provenance.command
        run = report.provenance
        for value in (run.weights, run.model, report.inputs.data_sha256, *run.attacks, run.date):
            assert value in box.text
        assert box.text.count("random_start") >= 4  # also at its default

    def test_from_python_there_is_no_command(self):
        page = read(report_on([[0.1]], Finds(eps=0.5)).to_html())
        assert not page.all("section", id="repeat")[0].all("pre")

    def test_the_terms_are_explained(self, page):
        terms = " ".join(term.text for term in page.all("section", id="glossary")[0].all("dt"))
        for term in ("Robust accuracy", "Budget", "Norm", "Worst case", "95 % interval", "Finding"):
            assert term in terms


@pytest.mark.parametrize("wrong", [3, 0])
def test_reports_without_a_success(wrong):
    report = report_on([[1.0]] * 3, Finds(eps=0.5), Finds(), wrong=wrong)
    page = read(report.to_html())
    (card,) = page.all("article", class_="card")
    assert card.all("p", class_="figure")[0].text == ("50 %" if wrong else "100 %")


@pytest.mark.filterwarnings("ignore")
def test_a_net_that_is_never_right():
    net, x = convnet(), images(4)
    made = [attacks.FGSM(eps=0.1), attacks.DeepFool()]
    report = rob.evaluate(net, x, (answers(net, x) + 1) % 3, attacks=made)
    page = read(report.to_html())
    figures = [card.all("p", class_="figure")[0].text for card in cards(page).values()]
    assert figures == ["0 %", "no inputs"]


def test_findings_are_shown_with_their_remedy():
    report = made_up(dataclasses.replace(outcome("PGD", "linf", 0.1, first(4)),
                                         no_gradient=~first(4)))  # fmt: skip
    page = read(report.to_html())
    shown = page.all("article", class_="finding")
    assert len(shown) == len(report.findings) > 0
    for element, finding in zip(shown, report.findings, strict=True):
        assert finding.severity in element.text
        for words in (finding.message, finding.remedy, finding.code):
            assert " ".join(words.split()) in element.text
    assert "do not believe these figures" in page.all("p", class_="verdict")[0].text
