"""Robust accuracy against eps, from distances that are known."""

import json
import math

import pytest
import torch

from advkit import attacks
from advkit import eval as rob
from advkit.eval.robustness.accuracy_curve import AccuracyCurve, round_eps
from tests.eval.made_up import Finds, Sure, report_on
from tests.toys import Halfspace, answers

DISTANCES = [[0.1, 0.4], [0.2, 0.1], [0.2, 1.0], [1.0, 0.3], [1.0, 1.0]]


def random_curve(seed, n=40):
    """A curve of random distances, some equal, some failures, some inputs misclassified."""
    generator = torch.Generator().manual_seed(seed)
    found = (torch.randint(1, 12, (n, 2), generator=generator) / 10).clamp_max(1.0)
    wrong = seed % 4
    report = report_on(found.tolist(), Finds(0), Finds(1), wrong=wrong)
    return report, rob.security_curve(report)


def test_the_curve_falls_at_each_distance():
    curves = rob.security_curve(report_on(DISTANCES, Finds(0), Finds(1), wrong=5))
    first, second = curves.curves
    assert first.eps.tolist() == pytest.approx([0, 0.1, 0.2])
    assert first.robust.tolist() == [5, 4, 2]
    assert first.robust_accuracy.tolist() == pytest.approx([0.5, 0.4, 0.2])
    assert second.robust.tolist() == [5, 4, 3, 2]
    assert (first.attack, first.norm, first.correct, first.total) == ("Finds", "l2", 5, 10)
    assert second.attack == "Finds(feature=1)"
    assert curves.clean_accuracy == rob.Rate(5, 10)
    worst = curves.worst_cases["l2"]
    assert worst.eps.tolist() == pytest.approx([0, 0.1, 0.2, 0.3])
    assert worst.robust.tolist() == [5, 3, 2, 1]


@pytest.mark.parametrize(
    ("eps", "robust"),
    [(0, 5), (0.0999, 5), (0.1, 4), (0.15, 4), (0.2, 2), (9, 2), (math.inf, 2)],
)
def test_the_robust_accuracy_at_an_eps(eps, robust):
    curve = rob.security_curve(report_on(DISTANCES, Finds(0), wrong=5)).curves[0]
    assert curve.at(eps) == rob.Rate(robust, 10)


def test_an_example_beyond_an_eps_by_rounding_counts_as_within_it():
    curve = rob.security_curve(report_on([[0.5 * (1 + 4e-7)], [0.5 * (1 + 1e-5)]], Finds())).curves
    assert curve[0].at(0.5) == rob.Rate(1, 2)


@pytest.mark.parametrize("seed", range(8))
def test_curves_start_at_the_clean_accuracy_and_never_rise(seed):
    report, curves = random_curve(seed)
    for curve in (*curves.curves, *curves.worst_cases.values()):
        assert curve.at(0) == curve.at(1e-9) == report.clean_accuracy
        assert (curve.eps.diff() > 0).all()
        assert (curve.robust.diff() < 0).all()
        assert ((curve.robust_accuracy >= 0) & (curve.robust_accuracy <= 1)).all()
    worst = curves.worst_cases["l2"]
    for eps in torch.linspace(0, 1.2, 100).tolist():
        assert float(worst.at(eps)) <= min(float(curve.at(eps)) for curve in curves.curves)


@pytest.mark.parametrize("seed", range(4))
def test_the_curve_is_a_count_of_distances(seed):
    """At any eps: the share of inputs that are correct and farther away than eps."""
    report, curves = random_curve(seed)
    for outcome, curve in zip(report.outcomes, curves.curves, strict=True):
        for eps in torch.rand(50, generator=torch.Generator().manual_seed(seed)).tolist():
            near = (outcome.distance.double() <= eps).sum()  # NaN is not
            assert curve.at(eps).count == int(report.clean.sum() - near)
        known = outcome.distance[outcome.success].double().sort().values
        assert torch.equal(curve.distances, known)


def test_the_curve_agrees_with_the_worst_cases_of_a_report():
    made = [Finds(0), Finds(1), Finds(1, eps=0.3), Finds(0, eps=0.15)]
    report = report_on(DISTANCES, *made, wrong=2)
    worst = rob.security_curve(report).worst_cases["l2"]
    assert {f"l2 {eps:g}": worst.at(eps) for eps in (0.3, 0.15)} == report.worst_cases


def test_budget_attacks_count_in_the_worst_case_and_have_no_curve():
    report = report_on(DISTANCES, Finds(0), Finds(1, eps=0.35), Finds(1, norm="linf", eps=0.5))
    curves = rob.security_curve(report)
    assert [curve.attack for curve in curves.curves] == ["Finds"]
    assert list(curves.worst_cases) == ["l2"]
    assert curves.worst_cases["l2"].at(0.35) == rob.Rate(1, 5)
    assert curves.curves[0].at(0.35) == rob.Rate(2, 5)


@pytest.mark.parametrize("norm", ["l2", "linf", "l1"])
def test_distances_to_a_hyperplane(norm):
    """On a linear model the robust accuracy at every eps is known."""
    net = Halfspace(torch.tensor([1.0, -2.0, 0.5, 3.0]), b=-1.0)
    x = 0.4 + 0.2 * torch.rand(25, 4, generator=torch.Generator().manual_seed(1))
    known = net.distance(x, norm)
    report = rob.evaluate(net, x, answers(net, x), attacks=[attacks.FAB(norm=norm)])
    curve = rob.security_curve(report).worst_cases[norm]
    ordered = known.sort().values
    for k in range(25):
        middle = float(ordered[k] + (ordered[k + 1] if k < 24 else 2)) / 2
        if k == 24 or ordered[k + 1] > 1.01 * ordered[k]:  # farther apart than the attack errs
            assert curve.at(middle) == rob.Rate(24 - k, 25)


def test_nothing_found_and_nothing_attacked():
    (curve,) = rob.security_curve(report_on([[1.0], [1.0]], Finds(), wrong=1)).curves
    assert (curve.eps.tolist(), curve.robust.tolist()) == ([0], [2])
    assert curve.at(math.inf) == rob.Rate(2, 3)
    assert len(curve.distances) == 0
    report = rob.evaluate(Sure(), torch.zeros(3, 1), torch.ones(3).long(), attacks=[Finds()])
    hopeless = rob.security_curve(report)
    assert hopeless.curves[0].at(0) == hopeless.worst_cases["l2"].at(1) == rob.Rate(0, 3)
    assert "0.00" in str(hopeless)


def test_an_example_at_distance_zero_lowers_the_curve_at_zero():
    (curve,) = rob.security_curve(report_on([[0.0], [0.5]], Finds())).curves
    assert (curve.eps.tolist(), curve.robust.tolist()) == ([0, 0.5], [1, 0])
    assert curve.distances.tolist() == [0, 0.5]


def test_the_table_has_a_few_round_values_of_eps():
    curves = rob.security_curve(report_on(DISTANCES, Finds(0), Finds(1, norm="l0"), wrong=5))
    l2, l0 = curves.tables()
    assert l2.heading == ("attack", "0", "0.05", "0.1", "0.15", "0.2")
    assert l2.rows == [("Finds", "50.00", "50.00", "40.00", "40.00", "20.00")]
    assert l2.summary == [("worst case", *l2.rows[0][1:])]
    assert l0.heading == ("attack", "0", "1")
    text = str(curves)
    assert text.splitlines()[1] == "clean accuracy 50.00 % (5 of 10)"
    assert text.index("within eps, l2") < text.index("within eps, l0")
    assert "number of changed features" in text
    assert "changed features" not in str(rob.security_curve(report_on(DISTANCES, Finds(0))))
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    ("limit", "whole", "columns"),
    [
        (1.0, False, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.37, False, [0, 0.1, 0.2, 0.3, 0.4]),
        (8 / 255, False, [0, 0.005, 0.01, 0.015, 0.02, 0.025, 0.03, 0.035]),
        (1e-30, False, [0, 2e-31, 4e-31, 6e-31, 8e-31, 1e-30]),
        (34.0, True, [0, 5, 10, 15, 20, 25, 30, 35]),
        (2.0, True, [0, 1, 2]),
        (0.5, True, [0, 1]),
        (5.0, True, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_round_values_reach_the_limit(limit, whole, columns):
    assert round_eps(limit, whole=whole) == pytest.approx(columns, rel=1e-9, abs=0)


def test_the_plot_has_a_panel_for_each_norm_and_steps():
    pytest.importorskip("matplotlib")
    report = report_on(DISTANCES, Finds(0), Finds(1), Finds(0, norm="l0"), wrong=5)
    l2, l0 = rob.security_curve(report).plot().axes
    worst, first, second, clean = l2.lines
    assert [line.get_label() for line in l2.lines] == [
        "worst case", "Finds", "Finds(feature=1)", "no attack",
    ]  # fmt: skip
    assert {line.get_drawstyle() for line in (worst, first, second)} == {"steps-post"}
    eps, accuracy = first.get_data()
    assert list(eps[:-1]) == pytest.approx([0, 0.1, 0.2])
    assert list(accuracy) == [50, 40, 20, 20]
    assert eps[-1] >= l2.get_xlim()[1] * (1 - 1e-6)
    assert clean.get_xydata().tolist() == [[0, 50]]
    assert first.get_color() == l0.lines[1].get_color() != second.get_color()
    assert l0.get_xlabel() == "eps (l0, features changed)"
    assert l2.get_xlabel() == "eps (l2, input units)"


def test_the_dict_has_the_curves(tmp_path):
    curves = rob.security_curve(report_on(DISTANCES, Finds(0), wrong=5))
    plain = json.loads(curves.save_json(tmp_path / "curves.json").read_text())
    (curve,) = plain["curves"]
    assert curve["eps"] == curves.curves[0].eps.tolist()
    assert curve["robust"] == [5, 4, 2]
    assert plain["worst_cases"]["l2"]["attack"] == "worst case"
    assert (plain["inputs"], plain["clean_accuracy"]["count"]) == (10, 5)


def test_a_report_of_a_stream():
    x = torch.tensor(DISTANCES)
    last = list(rob.evaluate_stream(Sure(), x, torch.zeros(5).long(), attacks=[Finds()]))[-1]
    assert rob.security_curve(last).curves[0].robust.tolist() == [5, 4, 2]


def test_a_report_without_minimum_norm_attacks_is_refused():
    report = report_on(DISTANCES, Finds(0, eps=0.5), Finds(0, eps=0.2))
    with pytest.raises(
        ValueError,
        match=r"^`report` must have a minimum-norm attack, got budget attacks alone "
        r"\(Finds\(eps=0.5\); Finds\(eps=0.2\)\). Add one that has no `eps`, such as FAB, to "
        r"`attacks`.$",
    ):
        rob.security_curve(report)


@pytest.mark.parametrize("report", [None, [1], "report"])
def test_what_is_not_a_report_is_refused(report):
    kind = type(report).__name__
    with pytest.raises(TypeError, match=f"^`report` must be a Report, got {kind}. Pass the result"):
        rob.security_curve(report)


@pytest.mark.parametrize(
    ("eps", "error", "message"),
    [
        (-0.1, ValueError, "`eps` must not be negative or NaN, got -0.1."),
        (math.nan, ValueError, "`eps` must not be negative or NaN, got nan."),
        ("0.1", TypeError, "`eps` must be a number, got"),
    ],
)
def test_an_eps_that_is_none_is_refused(eps, error, message):
    curve = rob.security_curve(report_on(DISTANCES, Finds(0))).curves[0]
    assert isinstance(curve, AccuracyCurve)
    with pytest.raises(error, match=message):
        curve.at(eps)
