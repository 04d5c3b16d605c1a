"""Two reports on the same inputs: what is lost and gained, and whether it is chance."""

import dataclasses
import json
import re

import pytest
import torch

from advkit import attacks
from advkit import eval as rob
from tests.eval.gates.reports import fooling, outcome, report, with_rows

ATTACKS = [attacks.FGSM(eps=0.05), attacks.FGSM(eps=0.2), attacks.FGM(eps=0.05)]


class Linear(torch.nn.Module):
    """Two logits of two features: the second feature alone favors label 1, by its weight."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[1.0, 0.0], [0.0, weight]]))

    def forward(self, x):
        return x @ self.weight.T


def data():
    """Twelve inputs of label 0 at growing margins."""
    second = torch.linspace(0.05, 0.75, 12)
    return torch.stack([torch.full((12,), 0.8), second], 1), torch.zeros(12, dtype=torch.int64)


def robust_at(eps, weight):
    """Mask of the inputs whose margin is beyond the largest change of the logits in linf."""
    x, _ = data()
    return x[:, 0] - weight * x[:, 1] > eps * (1 + weight)


class TestOneWeight:
    def test_the_inputs_that_one_weight_costs_are_named(self):
        x, y = data()
        old, new = (rob.evaluate(Linear(weight), x, y, attacks=ATTACKS) for weight in (1.0, 1.3))
        compared = rob.compare(old, new)
        for eps in (0.05, 0.2):
            before, after = robust_at(eps, 1.0), robust_at(eps, 1.3)
            lost = (before & ~after).nonzero().flatten()
            assert len(lost) >= 2
            found = compared.by_budget[f"linf {eps}"]
            assert found.lost.tolist() == lost.tolist()
            assert found.gained.tolist() == []
            assert (found.old, found.new) == (rob.Rate.of(before), rob.Rate.of(after))
            assert found.p_value == 0.5 ** len(lost)
        assert list(compared.by_budget) == ["linf 0.05", "linf 0.2", "l2 0.05"]

    def test_the_other_way_round_they_are_gained(self):
        x, y = data()
        old, new = (rob.evaluate(Linear(weight), x, y, attacks=ATTACKS) for weight in (1.0, 1.3))
        there, back = rob.compare(old, new), rob.compare(new, old)
        for one, other in zip(there.budgets, back.budgets, strict=True):
            assert one.lost.tolist() == other.gained.tolist()
            assert other.p_value == 1
        assert not back.worse

    def test_a_report_and_itself_do_not_differ(self):
        x, y = data()
        old = rob.evaluate(Linear(1.0), x, y, attacks=ATTACKS)
        compared = rob.compare(old, dataclasses.replace(old))
        assert not compared.worse
        assert compared.verdict.startswith("Verdict: not worse.")
        assert all(c.p_value == c.adjusted_p == 1 for c in compared.budgets)
        assert compared.differences == (
            "The models are the same: their weights, settings and code have one hash.",
        )

    def test_a_report_of_a_stream(self):
        x, y = data()
        (old,) = rob.evaluate_stream(Linear(1.0), x, y, attacks=ATTACKS)
        (new,) = rob.evaluate_stream(Linear(1.0), x, y, attacks=ATTACKS)
        assert not rob.compare(old, new).worse


class TestVerdict:
    def test_five_losses_in_one_budget_are_worse(self):
        compared = rob.compare(fooling(), fooling(3, 5, 7, 11, 13))
        assert compared.worse
        assert compared.verdict == (
            "Verdict: worse. The robust accuracy fell by more than chance explains: linf 0.1 from "
            "100.00 % (20 of 20) to 75.00 % (15 of 20); 5 lost, 0 gained, p = 0.031."
        )

    def test_four_losses_are_not(self):
        assert not rob.compare(fooling(), fooling(3, 5, 7, 11)).worse

    def test_gains_make_losses_less_unlikely(self):
        compared = rob.compare(fooling(0), fooling(3, 5, 7, 11, 13))
        assert compared.budgets[0].gained.tolist() == [0]
        assert compared.budgets[0].p_value == pytest.approx(7 / 64)
        assert not compared.worse

    def test_inputs_that_both_lack_do_not_count(self):
        same = [0, 1, 2]
        compared = rob.compare(fooling(*same), fooling(*same, 3, 5, 7, 11, 13))
        assert compared.budgets[0].p_value == 1 / 32

    def test_two_budgets_are_adjusted_for(self):
        def both(*fooled):
            return report(outcome(list(fooled), 20), outcome([], 20, eps=0.5, norm="l2"))

        compared = rob.compare(both(), both(3, 5, 7, 11, 13))
        assert [c.p_value for c in compared.budgets] == [1 / 32, 1]
        assert [c.adjusted_p for c in compared.budgets] == [1 / 16, 1]
        assert not compared.worse

    def test_an_example_of_another_attack_in_the_norm_counts(self):
        nearest = outcome([1, 2, 3, 4, 5], 20, eps=None, distance=0.09)
        compared = rob.compare(fooling(), report(outcome([], 20), nearest))
        assert compared.by_budget["linf 0.1"].lost.tolist() == [1, 2, 3, 4, 5]

    def test_the_clean_accuracy_is_information(self):
        wrong = torch.arange(20) < 6
        fallen = report(outcome([], 20, clean=~wrong), clean=~wrong)
        unattacked = report(outcome(list(range(6)), 20))
        compared = rob.compare(unattacked, fallen)
        assert compared.clean.lost.tolist() == [0, 1, 2, 3, 4, 5]
        assert compared.clean.worse
        assert not compared.worse


class TestMatching:
    def test_rows_in_another_order_are_matched_by_their_numbers(self):
        old, new = fooling(1), fooling(3, 5, 7, 11, 13)
        moved = with_rows(new, torch.arange(20).flip(0))
        wanted, found = rob.compare(old, new), rob.compare(old, moved)
        assert found.to_dict() == wanted.to_dict()
        assert rob.compare(moved, old).budgets[0].gained.tolist() == [3, 5, 7, 11, 13]

    def test_other_inputs_are_refused(self):
        old, new = fooling(), fooling()
        new.inputs.sha256[31, 4] += 1
        new.inputs.sha256[0, 9] += 1
        said = "^`new` must be on the same inputs as `old`, got other inputs or labels in 2 of 20 "
        with pytest.raises(ValueError, match=said):
            rob.compare(old, new)

    def test_other_numbers_are_refused(self):
        new = fooling()
        new.inputs.index[19] += 1
        with pytest.raises(ValueError, match="in 1 of 20 places"):
            rob.compare(fooling(), new)

    def test_other_labels_have_other_hashes(self):
        x, y = data()
        old = rob.evaluate(Linear(1.0), x, y, attacks=ATTACKS)
        other = y.clone()
        other[2] = 1
        new = rob.evaluate(Linear(1.0), x, other, attacks=ATTACKS)
        with pytest.raises(ValueError, match="in 1 of 12 places"):
            rob.compare(old, new)

    def test_another_number_of_inputs_is_refused(self):
        said = r"^`new` must be on the same inputs as `old`, 20, got 19\.$"
        with pytest.raises(ValueError, match=said):
            rob.compare(fooling(), fooling(n=19))

    def test_no_inputs_are_refused(self):
        with pytest.raises(ValueError, match="^`old` must be on at least one input, got none"):
            rob.compare(fooling(n=0), fooling())

    def test_no_report_is_refused(self):
        with pytest.raises(TypeError, match="^`new` must be a Report, got str"):
            rob.compare(fooling(), "report.json")

    def test_nothing_in_common_is_refused(self):
        new = report(outcome([], 20, eps=0.2), outcome([], 20, eps=None, norm="l2"))
        said = r"^`new` must have a budget .*, got linf 0\.2; nearest in l2 after linf 0\.1\.$"
        with pytest.raises(ValueError, match=said):
            rob.compare(fooling(), new)

    def test_budgets_of_one_report_are_listed(self):
        old = report(outcome([], 20), outcome([], 20, eps=0.2))
        new = report(outcome([], 20), outcome([], 20, eps=0.3))
        compared = rob.compare(old, new)
        assert (compared.only_old, compared.only_new) == (("linf 0.2",), ("linf 0.3",))
        assert "Only the old report has: linf 0.2." in compared.notes()
        assert "Only the new report has: linf 0.3." in compared.notes()

    @pytest.mark.parametrize(("radius", "equal"), [(0.1, True), (0.1001, False)])
    def test_budgets_of_each_input_must_be_equal(self, radius, equal):
        def each(value, clean):
            radii = torch.where(clean, torch.full((20,), value).double(), 0.0)
            made = outcome([], 20, clean=clean, radius=radii)
            return report(dataclasses.replace(made, eps=None), clean=clean)

        one, other = torch.arange(20) > 2, torch.arange(20) < 18  # misclassified: radius 0
        old, new = each(0.1, one), each(radius, other)
        if equal:
            assert list(rob.compare(old, new).by_budget) == ["linf, one budget for each input"]
        else:
            with pytest.raises(ValueError, match="must have a budget"):
                rob.compare(old, new)


class TestDistances:
    def test_nearer_and_farther_examples(self):
        clean = torch.arange(7) > 0
        before = torch.tensor([9.0, 1.0, 2.0, 3.0, torch.nan, 5.0, 2.0])
        after = torch.tensor([9.0, 0.5, 2.0 * (1 - 1e-7), 4.0, 1.0, torch.nan, 2.0 * (1 + 2e-7)])

        def made(distance, mask):
            found = (~distance.isnan()).nonzero().flatten().tolist()
            attack = outcome(found, 7, clean=mask, eps=None, norm="l2", distance=distance)
            return report(attack, clean=mask, n=7)

        compared = rob.compare(made(before, torch.ones(7).bool()), made(after, clean))
        (norm,) = compared.distances
        # nearer: 1, 4 (found now) and 0 (misclassified now); farther: 3 and 5; equal up to
        # rounding: 2 and 6
        assert (norm.nearer, norm.farther) == (3, 2)
        assert norm.p_value == 0.5
        assert not compared.worse
        assert compared.verdict == "Verdict: none, since the reports have no budget in common."

    def test_many_nearer_examples_are_information(self):
        def made(distance):
            return report(outcome([], 20), outcome(range(20), 20, eps=None, norm="l2",
                                                   distance=distance))  # fmt: skip

        compared = rob.compare(made(2.0), made(1.0))
        assert compared.distances[0].p_value == pytest.approx(0.5**20)
        assert not compared.worse
        assert (compared.distances[0].old, compared.distances[0].new) == (2, 1)


class TestDifferences:
    def test_equal_attacks_and_models(self):
        assert rob.compare(fooling(), fooling(1)).differences == (
            "The models are the same: their weights, settings and code have one hash.",
        )

    def test_equal_weights_alone(self):
        provenance = dataclasses.replace(fooling().provenance, model=None)
        new = dataclasses.replace(fooling(), provenance=provenance)
        assert rob.compare(fooling(), new).differences == (
            "The weights of the models are the same: they have one hash.",
        )
        unknown = dataclasses.replace(provenance, weights=None)
        both = [dataclasses.replace(fooling(), provenance=unknown)] * 2
        assert rob.compare(*both).differences == ()

    def test_other_attacks(self):
        new = report(outcome([], 20), outcome([], 20, name="Other"))
        (said, _) = rob.compare(fooling(), new).differences
        assert said == (
            "The attacks differ (only the new one has Other(eps=0.1)), so that a difference may "
            "come from them."
        )

    def test_other_defaults(self):
        new = fooling(parameters={"eps": 0.1, "steps": 20})
        (said, _) = rob.compare(fooling(), new).differences
        assert said.startswith("The attacks differ (defaults of Made(eps=0.1) differ)")

    def test_parameters_from_a_file_are_equal(self):
        old = fooling(parameters={"eps": 0.1, "shape": (1, 2)})
        new = fooling(parameters={"shape": [1, 2], "eps": 0.1})
        assert len(rob.compare(old, new).differences) == 1

    def test_other_versions_and_bounds(self):
        provenance = dataclasses.replace(
            fooling().provenance, versions={"advkit": "0.2.0", "torch": "2.13.0"}
        )
        new = dataclasses.replace(fooling(), provenance=provenance, bounds=(0.0, 255.0))
        bounds, _, versions = rob.compare(fooling(), new).differences
        assert bounds.startswith("The bounds of the inputs differ: [0.0, 1.0]")
        assert versions == "The versions differ: advkit 0.1.0 and 0.2.0."


class TestText:
    def test_the_table(self):
        compared = rob.compare(fooling(0), fooling(3, 5, 7, 11, 13, *range(14, 20)))
        text = str(compared)
        assert text.startswith("old: Net(), 2026-11-30T12:00:00+00:00\nnew: Net(), ")
        row = next(line for line in text.splitlines() if line.startswith("linf 0.1"))
        cells = re.split(r" {2,}", row)
        assert cells == [
            "linf 0.1", "95.00 % (19 of 20)", "45.00 % (9 of 20)", "11", "1", "0.0032", "0.0032",
        ]  # fmt: skip
        assert "lost in linf 0.1: 3, 5, 7, 11, 13, 14, 15, 16, 17, 18 and 1 more." in " ".join(
            text.split()
        )
        assert max(map(len, text.splitlines())) <= 100

    def test_the_file(self, tmp_path):
        old = report(outcome([], 20), outcome([], 20, eps=None, norm="l2"))
        compared = rob.compare(old, old)
        saved = json.loads(compared.save_json(tmp_path / "compared.json").read_text())
        assert saved == compared.to_dict()
        assert saved["nearest_by_norm"]["l2"]["old"] is None  # no example was found
        assert saved["robust_accuracy_by_budget"]["linf 0.1"]["lost"] == []
        assert saved["worse"] is False
