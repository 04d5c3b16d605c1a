"""Minimum-norm attacks compared by distances that are known."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from advkit import attacks
from advkit import eval as rob
from advkit.eval.benchmarking.distances import area_optimality, mean_distance_ratio
from advkit.eval.robustness.worst_case import nearest_distances
from tests.eval.made_up import Finds, Sure, report_on
from tests.toys import Halfspace, answers

# The nearest are 0.1, 0.2 and 0.4; nothing finds the last input.
DISTANCES = [[0.1, 0.2], [0.4, 0.2], [0.4, 1.0], [1.0, 1.0]]


def random_report(seed, n=30):
    """A report of three attacks with random distances, failures and misclassified inputs."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.rand(n, 3, generator=generator)
    found[torch.rand(n, 3, generator=generator) < 0.2] = 1.0
    return report_on(found.tolist(), Finds(0), Finds(1), Finds(2), wrong=seed % 3)


def area(distance, clean, limit, n=100_000):
    """Area under robust accuracy from 0 to `limit`, by the midpoint rule on a fine grid."""
    eps = (np.arange(n) + 0.5) * limit / n
    found = np.sort(distance[np.isfinite(distance)])
    robust = clean.sum() - np.searchsorted(found, eps, side="right")
    return (robust / len(clean)).mean() * limit


def test_the_ratio_by_hand():
    compared = rob.distance_ratio(report_on(DISTANCES, Finds(0), Finds(1), wrong=2))
    assert compared.by_name == {
        "Finds()": pytest.approx((1 + 0.5 + 1) / 3),
        "Finds(feature=1)": pytest.approx((0.5 + 1 + 0) / 3),
    }
    first, second = compared.attacks
    assert (first.name, first.norm, first.median_distance) == ("Finds()", "l2", pytest.approx(0.4))
    assert first.success_rate == rob.Rate(3, 4)
    assert second.success_rate == rob.Rate(2, 4)


def test_the_optimality_by_hand():
    """Areas up to 0.4: the envelope 1.1 / 6, the attacks 1.3 / 6 and 1.2 / 6, the box 1.6 / 6."""
    compared = rob.optimality(report_on(DISTANCES, Finds(0), Finds(1), wrong=2))
    assert compared.by_name == {
        "Finds(feature=1)": pytest.approx(1 - (1.2 - 1.1) / (1.6 - 1.1)),
        "Finds()": pytest.approx(1 - (1.3 - 1.1) / (1.6 - 1.1)),
    }


@pytest.mark.parametrize("seed", range(6))
def test_the_optimality_is_that_of_areas_by_numerical_integration(seed):
    """The formula of AttackBench, with areas that do not know the step functions."""
    report = random_report(seed)
    clean = report.clean.numpy()
    own = [nearest_distances([outcome]).numpy() for outcome in report.outcomes]
    best = np.minimum.reduce(own)
    limit = best[np.isfinite(best)].max()
    envelope = area(best, clean, limit)
    for distance, outcome in zip(own, report.outcomes, strict=True):
        brute = 1 - (area(distance, clean, limit) - envelope) / (clean.mean() * limit - envelope)
        assert rob.optimality(report).by_name[outcome.label] == pytest.approx(brute, abs=1e-3)


@pytest.mark.parametrize("seed", range(10))
def test_both_lie_between_0_and_1_and_sort_the_attacks(seed):
    report = random_report(seed)
    for compare in (rob.distance_ratio, rob.optimality):
        values = list(compare(report).by_name.values())
        assert all(0 <= value <= 1 for value in values)
        assert values == sorted(values, reverse=True)
    best = report_on([[0.2, 0.3], [0.4, 0.5]], Finds(0), Finds(1))
    assert rob.distance_ratio(best).by_name["Finds()"] == 1
    assert rob.optimality(best).by_name["Finds()"] == 1


def test_the_attack_that_finds_nothing_has_0():
    compared = rob.distance_ratio(report_on([[0.2, 1.0], [0.4, 1.0]], Finds(0), Finds(1)))
    last = compared.attacks[-1]
    assert (last.distance_ratio, last.optimality) == (0, 0)


@pytest.mark.parametrize(
    ("distance", "nearest", "ratio"),
    [
        ([0.0, 2.0], [0.0, 1.0], 0.75),  # equal distances of zero
        ([2.0, 2.0], [0.0, 1.0], 0.25),
        ([math.inf, 1.0], [1.0, 1.0], 0.5),
        ([math.inf, 1.0], [math.inf, 1.0], 1.0),  # the first is left out
        ([math.inf], [math.inf], math.nan),
    ],
)
def test_the_ratio_of_zeros_and_failures(distance, nearest, ratio):
    found = mean_distance_ratio(torch.tensor(distance), torch.tensor(nearest))
    assert found == pytest.approx(ratio, nan_ok=True)


@pytest.mark.parametrize(
    ("distance", "nearest", "value"),
    [
        ([1.0, 3.0], [1.0, 2.0], 1.0),  # beyond the end of the envelope nothing counts
        ([math.inf, math.inf], [1.0, 2.0], 0.0),
        ([1.5, 2.0], [1.0, 2.0], 0.5),
        ([1.0, math.inf], [1.0, math.inf], math.nan),  # a single distance
        ([2.0, 2.0], [2.0, 2.0], math.nan),
        ([math.inf, math.inf], [math.inf, math.inf], math.nan),
    ],
)
def test_the_optimality_at_its_limits(distance, nearest, value):
    attacked = torch.tensor([True, True])
    found = area_optimality(torch.tensor(distance), torch.tensor(nearest), attacked)
    assert found == pytest.approx(value, nan_ok=True)


def test_on_a_linear_model_an_attack_at_twice_the_distance_has_half_the_ratio():
    @dataclasses.dataclass(frozen=True)
    class Twice:
        norm: str = "l2"

        def __call__(self, model, x, y=None, *, target=None):
            return self.run(model, x, y).x_adv

        def run(self, model, x, y=None, *, target=None):
            result = attacks.FAB(norm=self.norm).run(model, x, y)
            return dataclasses.replace(result, distance=2 * result.distance)

    net = Halfspace(torch.tensor([1.0, -2.0, 0.5, 3.0]), b=-1.0)
    x = 0.4 + 0.2 * torch.rand(25, 4, generator=torch.Generator().manual_seed(1))
    made = [attacks.FAB(), attacks.FAB(norm="linf"), Twice(), Twice("linf"), attacks.DeepFool()]
    report = rob.evaluate(net, x, answers(net, x), attacks=made)
    ratio, optimal = rob.distance_ratio(report).by_name, rob.optimality(report).by_name
    for norm, name in (("l2", "Twice()"), ("linf", "Twice(norm='linf')")):
        known = net.distance(x, norm)
        assert ratio[name] == pytest.approx(0.5, rel=0.02)
        end = known.max()
        expected = (end - (2 * known).clamp_max(end)).sum() / (end - known).sum()
        assert optimal[name] == pytest.approx(float(expected), rel=0.03)
    for name in ("FAB()", "FAB(norm='linf')", "DeepFool()"):
        assert ratio[name] == pytest.approx(1, rel=0.01)


def test_attacks_are_compared_in_their_norm():
    report = report_on(DISTANCES, Finds(0), Finds(1, norm="linf"))
    compared = rob.distance_ratio(report)
    assert list(compared.by_name.values()) == [1, 1]
    assert list(compared.nearest) == ["l2", "linf"]
    assert [attack.name for attack in compared.in_norm("linf")] == ["Finds(feature=1, norm='linf')"]


def test_the_nearest_example_may_be_that_of_a_budget_attack():
    report = report_on([[0.4, 0.2], [0.4, 0.9]], Finds(0), Finds(1, eps=0.3))
    compared = rob.distance_ratio(report)
    assert compared.by_name == {"Finds()": pytest.approx(0.75)}
    assert compared.nearest["l2"].median_distance == pytest.approx(0.2)


def test_several_reports_are_compared_as_one():
    made = [Finds(0), Finds(1)]
    together = rob.distance_ratio(report_on(DISTANCES, *made))
    apart = [report_on(DISTANCES, attack) for attack in made]
    assert rob.distance_ratio(apart).by_name == together.by_name
    assert rob.distance_ratio(tuple(apart)).by_name == together.by_name
    named = rob.distance_ratio(dict(zip(["old", "new"], apart, strict=True)))
    assert named.by_name == {
        "old: Finds()": together.by_name["Finds()"],
        "new: Finds(feature=1)": together.by_name["Finds(feature=1)"],
    }


def test_an_attack_that_occurs_again_has_a_number():
    report, again = (report_on(DISTANCES, Finds(0)) for _ in range(2))
    assert list(rob.distance_ratio([report, again]).by_name) == ["Finds()", "Finds() (2)"]


def test_the_table_has_all_figures():
    compared = rob.distance_ratio(report_on(DISTANCES, Finds(0), Finds(1), wrong=2))
    (table,) = compared.tables()
    assert table.title == "Nearest in l2: 4 attacked inputs"
    assert table.rows == [
        ("Finds()", "0.833", "0.600", "75.00", "0.4"),
        ("Finds(feature=1)", "0.500", "0.800", "50.00", "0.2"),
    ]
    assert table.summary == [("nearest of all attacks", "", "", "75.00", "0.2")]
    text = " ".join(str(compared).split())
    assert "In l2 every attack failed on 1 input, left out of the distance ratio." in text
    assert "a single attack" not in text
    assert max(map(len, str(compared).splitlines())) <= 100
    by_optimality = rob.optimality(report_on(DISTANCES, Finds(0), Finds(1)))
    assert list(by_optimality.by_name) == ["Finds(feature=1)", "Finds()"]


def test_a_single_attack_is_named_as_such():
    text = " ".join(str(rob.distance_ratio(report_on([[0.2], [0.4]], Finds(0)))).split())
    assert "In l2 a single attack is compared with itself" in text
    assert "failed" not in text.replace("A failure counts", "")


def test_what_is_undefined_comes_last_and_is_a_dash(tmp_path):
    compared = rob.optimality(report_on([[1.0, 1.0]], Finds(0), Finds(1)))
    assert compared.tables()[0].rows[0] == ("Finds()", "-", "-", "0.00", "inf")
    plain = json.loads(compared.save_json(tmp_path / "found.json").read_text())
    assert plain["attacks"][0] == {
        "attack": "Finds()", "norm": "l2", "success_rate": rob.Rate(0, 1).to_dict(),
        "median_distance": None, "distance_ratio": None, "optimality": None,
    }  # fmt: skip
    assert plain["criterion"] == "optimality"
    x = torch.zeros(3, 1)
    report = rob.evaluate(Sure(), x, torch.ones(3).long(), attacks=[Finds()])
    assert rob.distance_ratio(report).tables()[0].rows == [("Finds()", "-", "-", "-", "-")]


def test_the_plot_has_two_bars_for_each_attack():
    pytest.importorskip("matplotlib")
    report = report_on(DISTANCES, Finds(0), Finds(1), Finds(0, norm="linf"))
    l2, linf = rob.distance_ratio(report).plot().axes
    ratios, optimalities = ([bar.get_width() for bar in bars] for bars in l2.containers)
    assert ratios == pytest.approx([2.5 / 3, 0.5])
    assert optimalities == pytest.approx([0.6, 0.8])
    assert [label.get_text() for label in l2.get_yticklabels()] == ["Finds()", "Finds(feature=1)"]
    assert l2.yaxis_inverted()
    assert (l2.get_title(), linf.get_title()) == ("Nearest in l2", "Nearest in linf")
    assert [text.get_text() for text in l2.get_legend().get_texts()] == [
        "distance ratio", "optimality",
    ]  # fmt: skip
    one = rob.distance_ratio(report_on([[0.2]], Finds(0))).plot().axes[0]
    assert [text.get_text() for text in one.texts] == ["1.000", "-"]


COMPARE = pytest.mark.parametrize("compare", [rob.distance_ratio, rob.optimality])


@COMPARE
def test_reports_of_other_inputs_are_refused(compare):
    one, longer = (report_on(DISTANCES[:k], Finds(0)) for k in (3, 4))
    with pytest.raises(
        ValueError,
        match="^`reports` must be of the same inputs, got 3 inputs in 'report' and 4 in "
        "'report 2'. Evaluate all attacks on the same `x` and `y`.$",
    ):
        compare([one, longer])
    shifted = report_on(DISTANCES[:2], Finds(0), wrong=1)
    with pytest.raises(
        ValueError, match=r"got different ones in 'a' and 'b': only one labels sample 0 correctly\."
    ):
        compare({"a": one, "b": shifted})


@COMPARE
def test_reports_of_other_models_are_refused(compare):
    one, other = report_on([[0.5]], Finds(0)), report_on([[0.5]], Finds(0))
    other = dataclasses.replace(other, model="TorchClassifier(Net)")
    with pytest.raises(
        ValueError, match="^`reports` must be of one model, got TorchClassifier.Sure"
    ):
        compare([one, other])


@COMPARE
def test_reports_without_minimum_norm_attacks_are_refused(compare):
    report = report_on(DISTANCES, Finds(0, eps=0.5))
    with pytest.raises(
        ValueError,
        match=r"^`reports` must have a minimum-norm .*\(Finds\(eps=0.5\)\)\.",
    ):
        compare(report)


@COMPARE
@pytest.mark.parametrize(
    ("reports", "error", "message"),
    [
        (None, TypeError, "`reports` must be a mapping from names to reports or a list of reports"),
        ([], ValueError, "`reports` must hold at least one report, got none."),
        ([1], TypeError, r"`reports` must hold results of `evaluate`, got int \(report\)\."),
        ({2: 1}, TypeError, "`reports` must have strings as keys, got 2."),
    ],
)
def test_what_are_no_reports_is_refused(compare, reports, error, message):
    with pytest.raises(error, match=message):
        compare(reports)


@COMPARE
def test_a_report_is_compared_once(compare):
    report = report_on(DISTANCES, Finds(0))
    with pytest.raises(ValueError, match="must hold each report once"):
        compare([report, report])
