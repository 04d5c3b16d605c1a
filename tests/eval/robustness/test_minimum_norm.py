"""Minimum-norm attacks beside budget attacks: distances, worst cases, tables, curves, pictures."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from advkit import attacks
from advkit import eval as rob
from advkit.core.norms import lp_norm
from advkit.eval.robustness.page_content import page_content
from advkit.eval.text_tables import format_rate
from tests.eval.made_up import Finds, Sure, report_on
from tests.toys import Halfspace, answers, convnet, images

ROW = [[0.1], [0.2], [0.3], [0.4], [1.0]]


def test_an_attack_is_a_budget_attack_if_it_has_an_eps(tmp_path):
    each = torch.full((5,), 0.5)
    made = [Finds(), Finds(eps=0.3), Finds(eps=each), attacks.DeepFool(), attacks.DeepFool(eps=0.3)]
    x, net = torch.rand(5, 4, generator=torch.Generator().manual_seed(0)), nn.Linear(4, 2)
    report = rob.evaluate(net, x, answers(net, x), attacks=made)
    kinds = [True, False, False, True, False]
    assert [o.minimum_norm for o in report.outcomes] == kinds
    assert [o.eps for o in report.outcomes] == [None, 0.3, None, None, 0.3]
    assert [o.minimum_norm for o in report.minimum_norm] == [True, True]
    assert [o.minimum_norm for o in report.budgeted] == [False] * 3
    plain = json.loads(report.save_json(tmp_path / "report.json").read_text())["attacks"]
    assert [attack["minimum_norm"] for attack in plain] == kinds
    assert [attack["robust_accuracy"] is None for attack in plain] == kinds


@pytest.mark.parametrize("wrong", [0, 4])
@pytest.mark.parametrize(
    ("distances", "lower_median"),
    [
        ([[0.1], [0.2], [0.3]], 0.2),
        ([[0.1], [0.2], [0.3], [0.4]], 0.2),
        ([[0.1], [0.2], [1.0], [1.0]], 0.2),
        ([[0.1], [0.2], [1.0], [1.0], [1.0]], math.inf),
        ([[1.0]], math.inf),
    ],
)
def test_the_median_is_the_lower_one_of_the_attacked_with_failures_as_infinity(
    tmp_path, distances, lower_median, wrong
):
    report = report_on(distances, Finds(), Finds(eps=0.9), wrong=wrong, batch_size=2)
    found = sum(row[0] < 1 for row in distances)
    plain = json.loads(report.save_json(tmp_path / "report.json").read_text())["attacks"]
    for outcome, saved in zip(report.outcomes, plain, strict=True):
        assert outcome.median_distance == pytest.approx(lower_median)
        assert outcome.success_rate == rob.Rate(found, len(distances))
        in_json = None if lower_median == math.inf else pytest.approx(lower_median)
        assert saved["median_distance_of_attacked"] == in_json
        assert saved["success_rate"]["count"] == found
        assert saved["success_rate"]["total"] == len(distances)
    for table in report.tables():
        assert table.rows[0][3] == ("inf" if lower_median == math.inf else "0.2")


def test_nothing_attacked_is_no_number(tmp_path):
    x, y = torch.zeros(3, 1), torch.ones(3).long()
    hopeless = rob.evaluate(Sure(), x, y, attacks=[Finds(), Finds(eps=0.9)])
    assert [o.median_distance for o in hopeless.outcomes] == [None, None]
    assert hopeless.nearest["l2"] == rob.NearestExamples(1, rob.Rate(0, 0), None)
    assert hopeless.tables()[1].rows[0][2:6] == ("-", "-", "-", "-")
    assert hopeless.tables()[0].rows[0][2:6] == ("0.00 % (0 of 3)", "-", "-", "-")
    hopeless.save_json(tmp_path / "report.json")
    assert len(hopeless.plot().axes) == 1


def test_distances_to_a_hyperplane():
    """On a linear net the figures follow from the distances, which are known."""
    net = Halfspace(torch.tensor([1.0, -2.0, 0.5, 3.0]), b=-1.0)
    x = 0.3 + 0.4 * torch.rand(25, 4, generator=torch.Generator().manual_seed(1))
    y = answers(net, x)
    known = net.distance(x, "linf")
    eps = float(known.sort().values[9:11].mean())
    nearest, within = attacks.FAB(norm="linf", steps=10), attacks.FGSM(eps=eps)
    report = rob.evaluate(net, x, y, attacks=[nearest, within])
    minimum, budget = report.outcomes
    torch.testing.assert_close(minimum.distance, known, rtol=2e-3, atol=1e-6)
    assert minimum.median_distance == pytest.approx(float(known.median()), rel=2e-3)
    assert minimum.success_rate == rob.Rate(25, 25)
    assert budget.robust_accuracy == report.worst_case == rob.Rate(15, 25)
    assert report.worst_cases == {f"linf {eps:.6g}": rob.Rate(15, 25)}
    assert rob.robust_accuracy(net, x, y, attacks=[nearest, within]) == rob.Rate(15, 25)


def test_a_minimum_norm_success_counts_within_the_budget_only():
    """The budget attack finds the first input, the other one a success at 0.4 of the second too."""
    distances = [[0.1, 0.9], [0.9, 0.4], [0.9, 0.6], [0.9, 1.0]]
    report = report_on(distances, Finds(0, eps=0.5), Finds(1), wrong=1)
    assert report.outcomes[0].robust_accuracy == rob.Rate(3, 5)
    assert report.worst_case == rob.Rate(2, 5)
    assert report.worst_cases == {"l2 0.5": rob.Rate(2, 5)}
    assert report.to_dict()["worst_case_by_budget"]["l2 0.5"]["count"] == 2
    other = report_on(distances, Finds(0, eps=0.5), Finds(1, norm="linf"), wrong=1)
    assert other.worst_cases == {"l2 0.5": rob.Rate(3, 5)}


def test_every_budget_has_a_worst_case_of_its_own():
    distances = [[0.15, 1.0], [1.0, 0.25], [1.0, 0.45], [1.0, 0.95]]
    made = [Finds(0, eps=0.2), Finds(0, eps=0.5), Finds(0, norm="linf", eps=0.99), Finds(1)]
    report = report_on(distances, *made)
    assert report.worst_cases == {
        "l2 0.2": rob.Rate(3, 4), "l2 0.5": rob.Rate(1, 4), "linf 0.99": rob.Rate(3, 4),
    }  # fmt: skip
    with pytest.raises(ValueError, match="got l2 0.2; l2 0.5; linf 0.99. Read `worst_cases`"):
        report.worst_case  # noqa: B018
    rows = [(name, rate) for name, _, rate, *_ in report.tables()[0].summary]
    assert rows == [(f"worst case, {b}", format_rate(r)) for b, r in report.worst_cases.items()]
    plain = report.to_dict()["worst_case_by_budget"]
    assert plain == {b: r.to_dict() for b, r in report.worst_cases.items()}


def test_an_example_counts_for_every_budget_that_holds_it():
    """One attack finds the first input at 0.15 under a large budget, the other fails at 0.2."""
    report = report_on([[0.15, 1.0], [0.45, 1.0]], Finds(0, eps=0.5), Finds(1, eps=0.2))
    assert [float(o.robust_accuracy) for o in report.outcomes] == [0, 1]
    assert report.worst_cases == {"l2 0.5": rob.Rate(0, 2), "l2 0.2": rob.Rate(1, 2)}


def test_budgets_that_print_the_same_are_one_with_the_greater_radius():
    report = report_on([[0.1000003]], Finds(eps=0.1000004), Finds(eps=0.1000001))
    assert [float(o.robust_accuracy) for o in report.outcomes] == [0, 1]
    assert report.worst_cases == {"l2 0.1": rob.Rate(0, 1)}


def test_the_worst_case_does_not_rise_with_the_budget():
    found = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)).tolist()
    budgets = [0.1, 0.3, 0.5, 0.7]
    made = [Finds(i % 3, eps=eps) for i, eps in enumerate(budgets)]
    rates = [float(rate) for rate in report_on(found, *made).worst_cases.values()]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] > rates[-1]


def test_distances_may_exceed_a_budget_by_rounding():
    distances = [[0.9, 0.5 * (1 + 4e-7)], [0.9, 0.5 * (1 + 1e-5)]]
    report = report_on(distances, Finds(0, eps=0.5), Finds(1))
    assert report.worst_case == rob.Rate(1, 2)
    report = report_on([[1.0, 0.0], [1.0, 1e-9]], Finds(0, eps=0.0), Finds(1))
    assert report.worst_case == rob.Rate(1, 2)


def test_budgets_of_each_sample_bound_what_counts():
    """The inputs are cut into batches after misclassified ones: budgets must follow them."""
    distances = [[0.9, 0.4], [0.9, 0.4], [0.9, 0.6], [0.1, 0.9], [0.9, 0.7]]
    eps = torch.tensor([9.0, 9.0, 0.3, 0.5, 0.5, 0.2, 0.8])
    report = report_on(distances, Finds(0, eps=eps), Finds(1), wrong=2, batch_size=3)
    assert torch.equal(report.outcomes[0].radius, eps.double() * (torch.arange(7) > 1))
    assert (report.outcomes[1].radius[2:] == math.inf).all()
    own = "l2, one budget for each input"
    assert report.worst_case == rob.Rate(2, 7)
    assert report.worst_cases == {own: rob.Rate(2, 7)}
    made = Finds(0, eps=eps), Finds(0, eps=0.65), Finds(1), Finds(0, eps=eps / 2), Finds(1, eps=eps)
    larger = report_on(distances, *made, wrong=2)
    assert larger.worst_cases == {
        own: rob.Rate(2, 7), "l2 0.65": rob.Rate(1, 7), f"{own} (2)": rob.Rate(4, 7),
    }  # fmt: skip


def cards_of(report):
    """Title and headline of each card of the page."""
    groups = page_content(report, None).groups
    return [(card.title, card.headline) for group in groups for card in group.cards]


def test_without_budgets_there_is_no_worst_case():
    report = report_on([[0.1, 1.0], [1.0, 0.9], [1.0, 1.0]], Finds(0), Finds(1, norm="l1"))
    assert report.worst_cases == {}
    with pytest.raises(ValueError, match="got minimum-norm attacks alone. Read `nearest`"):
        report.worst_case  # noqa: B018
    assert "The attacks have no budget" in " ".join(report.notes())
    assert "worst case" not in str(report)
    few = "More than half of the inputs have no known adversarial example"
    assert cards_of(report) == [("l2, any distance", few), ("l1, any distance", few)]


def test_the_nearest_over_all_attacks_of_a_norm():
    distances = [[0.1, 0.3, 0.9], [1.0, 0.2, 0.9], [0.4, 1.0, 0.9], [1.0, 1.0, 0.9]]
    report = report_on(distances, Finds(0), Finds(1), Finds(2, "linf"), Finds(0, "linf", 0.5))
    assert report.nearest["l2"].success_rate == rob.Rate(3, 4)
    assert report.nearest["l2"].median_distance == pytest.approx(0.2)
    assert report.nearest["linf"].attacks == 1
    assert [row[:4] for row in report.tables()[1].summary] == [
        ("nearest of all attacks, l2", "l2", "75.00 % (3 of 4)", "0.2")
    ]
    plain = report.to_dict()["nearest_by_norm"]
    assert list(plain) == ["l2", "linf"]
    assert plain["l2"]["median_distance_of_attacked"] == pytest.approx(0.2)
    assert cards_of(report) == [
        ("linf 0.5", "50\N{NO-BREAK SPACE}%"), ("l2, any distance", "0.2")
    ]  # fmt: skip


def test_two_tables_with_a_heading_each():
    report = report_on(ROW, Finds(), Finds(eps=0.25), wrong=1)
    budgets, minimum = report.tables()
    assert budgets.rows == [
        ("Finds(eps=0.25)", "l2", "50.00 % (3 of 6)", "inf", "3.0", "2.0", budgets.rows[0][-1])
    ]
    assert minimum.rows == [
        ("Finds()", "l2", "80.00 % (4 of 5)", "0.3", "3.0", "2.0", minimum.rows[0][-1])
    ]
    assert [name for name, *_ in budgets.summary] == ["worst case, l2 0.25"]
    assert minimum.summary == []
    assert "robust\naccuracy" in budgets.heading
    assert "attack\nsuccess rate" in minimum.heading
    text = str(report).splitlines()
    assert [line for line in text if "attacks: " in line] == [budgets.title, minimum.title]
    assert sum(set(line) == {"-"} for line in text) == 3  # under two headings, over the worst cases
    page = report.to_html()
    titles = [page.index(f'id="{name}-table"') for name in ("budget", "distance", "cost")]
    assert titles == sorted(titles)
    assert "Finds(eps=0.25)" in page[titles[0] : titles[1]]
    assert "4 of 5" in page[titles[1] : titles[2]]


def test_a_kind_without_attacks_has_no_table():
    for attack, title, absent in (
        (Finds(), "Minimum-norm attacks", "budget-table"),
        (Finds(eps=0.5), "Budget attacks", "distance-table"),
    ):
        report = report_on(ROW, attack)
        assert [table.title.partition(":")[0] for table in report.tables()] == [title]
        assert absent not in report.to_html()


def test_long_names_are_broken_and_columns_stay_in_line():
    net, x = convnet(), images(6)
    attack = attacks.PGD(
        eps=0.0123, steps=2, step_size=0.001234, restarts=2, loss="margin", momentum=0.5, seed=123
    )
    short = attacks.FAB(norm="linf", steps=2)
    report = rob.evaluate(net, x, answers(net, x), attacks=[attack, short])
    lines = str(report).splitlines()
    assert max(map(len, lines[1:])) <= 102
    words = " ".join(line[:32].strip() for line in lines)
    assert report.outcomes[0].label in words
    ends = {len(line) for line in lines if line.endswith("seconds")}
    (end,) = ends
    shown = [f"{outcome.seconds:.2f}" for outcome in report.outcomes]
    assert [line[-4:] for line in lines if line[:3] in ("PGD", "FAB") and len(line) == end] == shown


def test_notes_are_of_what_is_there():
    def notes(*made):
        return " ".join(report_on(ROW, *made).notes())

    alone = notes(Finds(eps=0.5))
    assert "Robust accuracy is the share of all 5 inputs" in alone
    assert "minimum-norm" not in alone
    assert "A worst case counts an input as robust if no attack in the norm found" in alone
    both = notes(Finds(eps=0.5), Finds())
    assert "searches for the nearest adversarial example at any distance" in both
    assert "a failure as infinity" in both
    assert "l0" not in both
    assert "number of changed features" in notes(Finds(norm="l0"))
    assert "Robust accuracy" not in notes(Finds())
    assert "worst case" not in notes(Finds())


def test_a_minimum_norm_attack_is_a_curve_of_steps():
    report = report_on(ROW, Finds(), Finds(eps=0.25), wrong=5)
    (axes,) = report.plot().axes
    worst, points, steps, noise, clean = axes.lines
    assert [line.get_label() for line in (worst, noise, clean)] == [
        "worst case", "random noise", "no attack",
    ]  # fmt: skip
    assert clean.get_xydata().tolist() == [[0, 50]]
    assert points.get_xydata().tolist() == [[0.25, 30]]
    assert steps.get_drawstyle() == worst.get_drawstyle() == "steps-post"
    assert worst.get_xydata().tolist() == steps.get_xydata().tolist()
    eps, left = map(list, zip(*steps.get_xydata().tolist(), strict=True))
    assert eps[:-1] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert left == [50, 40, 30, 20, 10, 10]
    assert eps[-1] >= axes.get_xlim()[1] * (1 - 1e-6)  # to the end of the panel


def test_panels_reach_to_the_largest_budget_or_nearly_all_distances():
    def limit(*made, distances=ROW):
        (axes,) = report_on(distances, *made).plot().axes
        return axes.get_xlim()[1] / 1.03

    assert limit(Finds(), Finds(eps=0.9)) == pytest.approx(0.9)
    assert limit(Finds(), Finds(eps=0.2)) == pytest.approx(0.4, rel=0.02)
    outlier = [[0.1 + i / 1e5] for i in range(200)] + [[0.99]]
    assert limit(Finds(), distances=outlier) < 0.11
    assert limit(Finds(), distances=[[1.0]]) == pytest.approx(1)  # nothing found


def test_every_norm_has_a_panel_and_rows_are_short():
    made = [Finds(norm=norm) for norm in ("linf", "l0", "l2")]
    figure = report_on(ROW, *made, Finds(norm="linf", eps=0.2)).plot()
    assert [axes.get_xlabel() for axes in figure.axes] == [
        "eps (l0, features changed)", "eps (l2, input units)", "eps (linf, input units)",
    ]  # fmt: skip
    # the attacks, the worst case and the clean accuracy; in linf also the noise
    assert [len(axes.lines) for axes in figure.axes] == [3, 3, 5]
    assert {axes.get_subplotspec().rowspan.start for axes in figure.axes} == {0}
    four = report_on(ROW, *made, Finds(norm="l1")).plot()
    places = [axes.get_subplotspec() for axes in four.axes]
    assert [(p.rowspan.start, p.colspan.start) for p in places] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert four.get_figheight() == 2 * figure.get_figheight()


def test_long_names_leave_room_for_the_curves():
    report = report_on(ROW, Finds(eps=0.5))
    settings = {"restarts": 5, "momentum": 0.25, "step_size": 0.125, "eps": 0.5}
    named = dataclasses.replace(
        report.outcomes[0], name="FindsWithManyWordsInItsName", settings=settings
    )
    figure = dataclasses.replace(report, outcomes=(named,)).plot()
    _, label, *_ = (text.get_text() for text in figure.axes[0].get_legend().get_texts())
    assert max(map(len, label.splitlines())) <= 40
    assert " ".join(label.split()) == named.family


def test_each_picture_is_of_the_least_change_of_its_input():
    net, x = convnet(), images(20)
    made = [attacks.FGM(eps=3.0), attacks.DeepFool(), attacks.FGSM(eps=0.3)]
    report = rob.evaluate(net, x, answers(net, x), attacks=made)
    groups = {group.title: group.examples for group in page_content(report, None).examples}
    assert list(groups) == ["l2", "linf"]
    least = {}
    for outcome in report.outcomes[:2]:
        shown = outcome.examples
        for number, distance in zip(shown.index.tolist(), shown.distance.tolist(), strict=True):
            least[number] = min(distance, least.get(number, distance))
    changes = [float(lp_norm((e.x_adv - e.x)[None], "l2")) for e in groups["l2"]]
    assert changes == pytest.approx(sorted(least.values())[: len(changes)])
    assert changes == pytest.approx([least[example.number] for example in groups["l2"]])


def test_a_success_that_the_model_labels_correctly_is_not_shown():
    """An attack of another library calls every input a success, of which some are none."""

    class Half(nn.Module):
        def forward(self, x):
            sure = Sure()(x)
            return torch.where((x.flatten(1)[:, 0] < 0.3)[:, None], sure.flip(1), sure)

    @dataclasses.dataclass(frozen=True)
    class Moves(Finds):
        def run(self, model, x, y=None, *, target=None):
            found = super().run(model, x, y)
            return dataclasses.replace(found, x_adv=x - 0.5)

    x, y = torch.linspace(0.4, 0.99, 20).view(20, 1, 1, 1), torch.zeros(20).long()
    report = rob.evaluate(Half(), x, y, attacks=[Moves()])
    (outcome,) = report.outcomes
    turned = (x.flatten() - 0.5 < 0.3).nonzero().flatten()
    assert 6 < len(turned) < 20
    assert outcome.examples.index.equal(turned[:6])
    assert (outcome.examples.predicted == 1).all()
    assert outcome.prediction.equal((x.flatten() - 0.5 < 0.3).long())
    (outcome,) = rob.evaluate(Half(), x[-2:], y[-2:], attacks=[Moves()]).outcomes
    assert outcome.success_rate == rob.Rate(2, 2)
    assert outcome.examples is None


@dataclasses.dataclass(frozen=True)
class Labels(Finds):
    """Tells the label of its adversarial examples, as the attacks of advkit do."""

    def run(self, model, x, y=None, *, target=None):
        found = super().run(model, x, y)
        return dataclasses.replace(found, prediction=torch.where(found.success, 1, -1))


def test_the_nearest_examples_are_kept():
    distances = [[0.9], [0.2], [1.0], [0.5], [0.3], [0.7], [0.1], [0.8], [0.4], [0.6]]
    for batch_size in (1, 3, 10):
        (outcome,) = report_on(distances, Labels(), wrong=1, batch_size=batch_size).outcomes
        assert outcome.examples.index.tolist() == [7, 2, 5, 9, 4, 10]
        wanted = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
        assert outcome.examples.distance.equal(wanted)
