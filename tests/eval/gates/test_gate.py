"""Conditions on a report: thresholds, an older report, and interrupted evaluations."""

import dataclasses

import pytest
import torch

from advkit import attacks
from advkit import eval as rob
from advkit.eval.budgets import format_budget, parse_budget
from tests.eval.gates.reports import fooling, outcome, report


def two_budgets(*fooled):
    """Report with the budgets linf 8/255 and l0 24 pixels."""
    small = outcome(list(fooled), 20, eps=8 / 255, distance=0.03)
    return report(small, outcome([0], 20, eps=24.0, norm="l0_pixel", distance=20.0))


class TestThresholds:
    @pytest.mark.parametrize(
        ("share", "passed"), [(0.0, True), (0.9, True), (0.91, False), (1, False)]
    )
    def test_the_figure_itself_is_tested(self, share, passed):
        made = rob.gate(fooling(0, 1), fail_under=share)  # 18 of 20
        assert [gate.passed for gate in made.gates] == [passed]
        assert made.passed is passed

    def test_name_and_message(self):
        good, bad = (rob.gate(fooling(0, 1), fail_under=share).gates[0] for share in (0.57, 0.95))
        assert good.to_dict() == {
            "name": "linf 0.1 at least 57 %", "budget": "linf 0.1", "passed": True,
            "message": "robust accuracy 90.00 % (18 of 20) is at least 57 %.",
        }  # fmt: skip
        assert str(bad) == (
            "FAILED  linf 0.1 at least 95 %: robust accuracy 90.00 % (18 of 20) is below 95 %."
        )

    def test_the_report_itself_stays(self):
        made = fooling(0)
        gated = rob.gate(made, fail_under=0.5)
        assert made.gates == ()
        assert made.passed
        for field in dataclasses.fields(made):
            if field.name != "gates":
                assert getattr(gated, field.name) is getattr(made, field.name)

    def test_gates_of_an_earlier_call_are_replaced(self):
        once = rob.gate(fooling(0), fail_under=1)
        assert len(rob.gate(once, fail_under=0.5).gates) == 1

    def test_budgets_by_name(self):
        made = rob.gate(two_budgets(0, 1), fail_under={"linf 0.0313725": 0.91, "l0 24 pixels": 0.9})
        assert [(gate.budget, gate.passed) for gate in made.gates] == [
            ("linf 0.0313725", False), ("l0 24 pixels", True),
        ]  # fmt: skip
        assert not made.passed

    @pytest.mark.parametrize(
        "text", ["linf 8/255", "LINF  0.03137254901960784", " Linf 0.0313725 ", "linf 3.13725e-2"]
    )
    def test_other_spellings(self, text):
        (gate,) = rob.gate(two_budgets(), fail_under={text: 0.5}).gates
        assert gate.budget == "linf 0.0313725"

    def test_a_number_needs_one_budget(self):
        said = (
            r"^`fail_under` must name its budgets .* got one number for linf 0\.0313725; l0 24 "
            r"pixels\. Pass a mapping, such as \{'linf 0\.0313725': 0\.5, 'l0 24 pixels': 0\.5\}\.$"
        )
        with pytest.raises(ValueError, match=said):
            rob.gate(two_budgets(), fail_under=0.5)

    @pytest.mark.parametrize("text", ["linf 0.1", "l0 24", "linf", "", "linf 8/0", "8/255"])
    def test_unknown_budgets(self, text):
        said = r"^`fail_under` must name budgets .* They are linf 0\.0313725; l0 24 pixels\.$"
        with pytest.raises(ValueError, match=said):
            rob.gate(two_budgets(), fail_under={text: 0.5})

    def test_a_budget_twice(self):
        with pytest.raises(ValueError, match=r"must have each budget once, got 'linf 0\.0313725'"):
            rob.gate(two_budgets(), fail_under={"linf 8/255": 0.5, "linf 0.0313725": 0.6})

    @pytest.mark.parametrize(
        ("share", "said"),
        [
            (45, r"got 45\. Write 0\.45 for 45 %\.$"),
            (1.5, r"got 1\.5\. Write 0\.015 for 1\.5 %\.$"),
            (float("nan"), r"got nan\.$"),
            (-0.1, r"got -0\.1\.$"),
            (450, r"got 450\.$"),
        ],
    )
    @pytest.mark.parametrize("form", [lambda share: share, lambda share: {"linf 0.1": share}])
    def test_other_shares(self, share, said, form):
        with pytest.raises(ValueError, match=r"^`fail_under` must be a share in \[0, 1\], " + said):
            rob.gate(fooling(), fail_under=form(share))

    @pytest.mark.parametrize("share", ["0.45", True, None])
    def test_other_types(self, share):
        with pytest.raises(TypeError, match="^`fail_under` must be a number"):
            rob.gate(fooling(), fail_under={"linf 0.1": share})

    def test_other_keys(self):
        with pytest.raises(TypeError, match="must have texts as keys, got 0.1"):
            rob.gate(fooling(), fail_under={0.1: 0.5})

    def test_an_empty_mapping(self):
        with pytest.raises(ValueError, match="must have at least one budget, got none"):
            rob.gate(fooling(), fail_under={})

    def test_minimum_norm_attacks_have_no_budget(self):
        with pytest.raises(ValueError, match="must be about a budget, got minimum-norm attacks"):
            rob.gate(report(outcome([], 20, eps=None)), fail_under=0.5)


class TestAgainst:
    def test_a_fall_by_more_than_chance(self):
        made = rob.gate(fooling(1, 2, 3, 4, 5), against=fooling())
        (gate,) = made.gates
        assert (gate.name, gate.budget, gate.passed) == ("linf 0.1 not worse", "linf 0.1", False)
        assert gate.message == (
            "robust accuracy from 100.00 % (20 of 20) to 75.00 % (15 of 20); 5 lost, 0 gained, "
            "p = 0.031. That is more than chance explains. The models are the same: their weights, "
            "settings and code have one hash."
        )

    def test_a_fall_that_may_be_chance(self):
        (gate,) = rob.gate(fooling(1, 2, 3, 4), against=fooling()).gates
        assert gate.passed
        assert gate.message.endswith(
            "4 lost, 0 gained, p = 0.062. It did not fall by more than chance explains."
        )

    def test_the_direction(self):
        assert rob.gate(fooling(), against=fooling(1, 2, 3, 4, 5)).passed

    def test_each_common_budget_has_a_gate(self):
        old, new = two_budgets(), two_budgets(1, 2, 3, 4, 5, 6, 7)
        assert [(gate.budget, gate.passed) for gate in rob.gate(new, against=old).gates] == [
            ("linf 0.0313725", False), ("l0 24 pixels", True),
        ]  # fmt: skip

    def test_both_conditions(self):
        made = rob.gate(fooling(1), fail_under=1, against=fooling())
        assert [gate.name for gate in made.gates] == [
            "linf 0.1 at least 100 %",
            "linf 0.1 not worse",
        ]
        assert [gate.passed for gate in made.gates] == [False, True]

    def test_other_inputs(self):
        other = fooling()
        other.inputs.sha256[0, 0] += 1
        said = "^`against` must be on the same inputs as `report`, got other inputs .* in 1 of 20 "
        with pytest.raises(ValueError, match=said):
            rob.gate(fooling(), against=other)

    @pytest.mark.parametrize("total", [None, 30])
    def test_no_common_budget(self, total):
        new = dataclasses.replace(fooling(), total=total)
        old = report(outcome([], 20, eps=0.2))
        said = (
            r"^`against` must have a budget in common with the report, got linf 0\.2; the report "
            r"has linf 0\.1\.$"
        )
        with pytest.raises(ValueError, match=said):
            rob.gate(new, against=old)

    def test_distances_alone(self):
        nearest = report(outcome([], 20, eps=None))
        with pytest.raises(ValueError, match="must have attacks with a budget"):
            rob.gate(nearest, against=nearest)

    def test_an_interrupted_baseline(self):
        old = dataclasses.replace(fooling(), total=21)
        said = "^`against` must be a complete report, got an interrupted one: 20 of 21 "
        with pytest.raises(ValueError, match=said):
            rob.gate(fooling(), against=old)


class TestEvidence:
    def test_an_interrupted_report_fails_every_gate(self):
        made = dataclasses.replace(fooling(n=19), total=20)
        gated = rob.gate(made, fail_under=0.1, against=fooling())
        assert [gate.passed for gate in gated.gates] == [False, False]
        said = "19 of 20 inputs were evaluated; the evidence is incomplete."
        assert {gate.message for gate in gated.gates} == {said}

    def test_a_complete_report(self):
        assert rob.gate(dataclasses.replace(fooling(), total=20), fail_under=0.1).passed

    def test_no_inputs_pass_no_gate(self):
        (gate,) = rob.gate(fooling(n=0), fail_under=0.0).gates
        assert not gate.passed
        assert gate.message == "no input was evaluated."

    def test_a_report_of_a_stream(self):
        net = torch.nn.Linear(2, 2)
        x, y = torch.rand(4, 2), torch.zeros(4).long()
        *_, made = rob.evaluate_stream(net, x, y, attacks=[attacks.FGSM(eps=0.1)])
        assert [type(gate) for gate in rob.gate(made, fail_under=0.0).gates] == [rob.Gate]

    def test_no_condition(self):
        with pytest.raises(ValueError, match="^`fail_under` or `against` must be given"):
            rob.gate(fooling())

    def test_no_report(self):
        with pytest.raises(TypeError, match="^`report` must be a Report, got float"):
            rob.gate(0.5, fail_under=0.5)

    def test_the_text_of_a_report_shows_its_gates(self):
        lines = str(rob.gate(fooling(0, 1), fail_under=0.95)).splitlines()
        at = lines.index(
            "FAILED  linf 0.1 at least 95 %: robust accuracy 90.00 % (18 of 20) is below 95 %."
        )
        assert lines[at - 1] == lines[at + 1] == ""
        assert lines[at + 2].startswith("Verdict: ")
        assert "PASSED" not in str(fooling())


class TestParseBudget:
    @pytest.mark.parametrize(
        ("text", "budget"),
        [
            ("linf 8/255", ("linf", 8 / 255)),
            ("L2 0.5", ("l2", 0.5)),
            ("l1 2", ("l1", 2.0)),
            ("l0 10", ("l0", 10.0)),
            ("l0 24 pixels", ("l0_pixel", 24.0)),
            ("linf 1e-3", ("linf", 0.001)),
        ],
    )
    def test_what_users_write(self, text, budget):
        assert parse_budget(text) == budget
        norm, eps = parse_budget(format_budget(*budget))
        assert (norm, eps) == (budget[0], pytest.approx(budget[1], rel=1e-5))

    @pytest.mark.parametrize(
        "text",
        ["l3 1", "linf", "linf x", "linf nan", "linf inf", "linf -0.1", "l2 5 pixels", "linf 1 2",
         "linf 1/0", "linf0.1"],
    )  # fmt: skip
    def test_other_texts(self, text):
        with pytest.raises(ValueError, match="^`budget` must be a norm and a number, such as"):
            parse_budget(text)
