"""Budgets in l0 pixels: another threat model than the same number of features."""

import re

import pytest
import torch
from torch import nn

from advkit import attacks
from advkit.core.attack_options import measured_norm
from advkit.core.boxes import diameter, format_radius, warn_of_whole_box
from advkit.core.norms import are_largest, by_position, lp_norm
from advkit.core.randomness import salt_and_pepper, sample_keys
from advkit.eval import evaluate, robust_accuracy
from advkit.eval.budgets import distinct_budgets, format_budget
from advkit.eval.findings.kinds import KINDS, make_finding
from advkit.eval.noise import noisy
from advkit.eval.robustness.own_findings import budget_arguments

BOUNDS = (0.0, 1.0)


@pytest.fixture(scope="module")
def report():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    x = torch.rand(12, 3, 4, 4)
    y = net(x).argmax(1)
    made = [
        attacks.SparsePGD(eps=2, steps=3),
        attacks.SparsePGD(eps=2, unit="pixel", steps=3),
        attacks.SparseRS(eps=torch.full((12,), 3), unit="pixel", max_queries=4),
        attacks.MinimumNorm(norm="l0", steps=20),
    ]
    return evaluate(net, x, y, attacks=made)


def test_each_unit_has_its_own_budget_worst_case_and_noise(report):
    features, pixels, each, nearest = report.outcomes
    assert [features.norm, pixels.norm, each.norm, nearest.norm] == [
        "l0", "l0_pixel", "l0_pixel", "l0"
    ]  # fmt: skip
    assert features.budget == "l0 2"
    assert pixels.budget == "l0 2 pixels"
    assert each.budget == "l0 pixels, one budget for each input"
    rates = {text: rate.count for text, rate in report.worst_cases.items()}
    assert list(rates) == ["l0 2", "l0 2 pixels", "l0 pixels, one budget for each input"]
    assert rates["l0 2 pixels"] < rates["l0 2"]
    assert rates["l0 2 pixels"] == int(pixels.robust.sum())  # no feature counts as a pixel
    assert [noise.budget for noise in report.noise] == ["l0 2", "l0 2 pixels"]
    assert list(report.nearest) == ["l0"]


def test_notes_and_tables_name_the_unit(report):
    notes = report.notes()
    assert "A distance in l0 is the number of changed features." in notes
    assert "A distance in l0 pixels is the number of changed positions across channels." in notes
    assert report.outcomes[1].label == "SparsePGD(eps=2, unit='pixel', steps=3)"
    rows = report.tables()[0].rows
    assert [row[1] for row in rows] == ["l0", "l0 pixels", "l0 pixels"]
    plain = report.to_dict()
    assert [attack["norm"] for attack in plain["attacks"]].count("l0_pixel") == 2
    assert plain["random_noise"].keys() == {"l0 2", "l0 2 pixels"}


def test_the_figure_has_a_panel_for_each_unit(report):
    pytest.importorskip("matplotlib")
    labels = {axes.get_xlabel() for axes in report.plot().axes}
    assert labels == {"eps (l0, features changed)", "eps (l0, pixels changed)"}


def test_one_robust_accuracy_does_not_mix_units():
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), torch.rand(3, 3, 4, 4)
    both = [attacks.SparsePGD(eps=2), attacks.SparsePGD(eps=2, unit="pixel")]
    with pytest.raises(ValueError, match="must share one norm and `eps`, got l0 2; l0 2 pixels"):
        robust_accuracy(net, x, attacks=both)


def test_a_budget_of_all_pixels_is_reported():
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), torch.rand(3, 3, 4, 4)
    y = net(x).argmax(1)
    with pytest.warns(UserWarning, match="The ball of l0 16 pixels holds every input"):
        found = evaluate(net, x, y, attacks=[attacks.SparsePGD(eps=16, unit="pixel", steps=1)])
    assert "The ball of l0 16 pixels holds every input" in str(found.findings)
    found = evaluate(net, x, y, attacks=[attacks.SparsePGD(eps=16, steps=1)])
    assert "The ball" not in str(found.findings)
    with pytest.warns(UserWarning, match="eps is a number of positions across channels"):
        warn_of_whole_box(torch.tensor([2.0, 16.0]), "l0_pixel", x[:2], BOUNDS)


def test_texts_and_diameters():
    assert format_budget("l0_pixel", 24) == "l0 24 pixels"
    assert format_radius("linf", 0.1) == "linf 0.1"
    assert diameter("l0_pixel", 16, BOUNDS) == 16
    made = [attacks.SparsePGD(eps=2), attacks.SparsePGD(eps=2, unit="pixel"),
            attacks.SparseRS(eps=2.0, unit="pixel")]  # fmt: skip
    assert distinct_budgets(made) == [("l0", 2.0), ("l0_pixel", 2.0)]


@pytest.mark.parametrize("shape", [(12,), (3, 4), (3, 2, 2), (2, 3, 2, 2)], ids=str)
def test_positions_are_those_across_axis_one(shape):
    delta = torch.randint(0, 2, (50, *shape)).float()
    per = delta if len(shape) == 1 else delta.amax(1)
    assert torch.equal(lp_norm(delta, "l0_pixel"), per.flatten(1).sum(1))
    assert torch.equal(by_position(delta, "l0_pixel").flatten(1), delta.flatten(1))
    channels = 1 if len(shape) == 1 else shape[0]
    assert by_position(delta, "l0_pixel").shape[1] == channels
    assert by_position(delta, "l0").shape[1] == 1


def test_noise_sets_pixels_to_bounds_channel_by_channel():
    x = torch.full((200, 3, 4, 4), 0.5)
    x += 0.1 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    changed = noisy(x, BOUNDS, "l0_pixel", 5)
    moved = (changed != x).flatten(2)
    assert (moved.any(1) == moved.all(1)).all()
    assert (moved.any(1).sum(1) == 5).all()
    at_bounds = (changed == 0) | (changed == 1)
    assert torch.equal(at_bounds, changed != x)
    values = changed.flatten(2).transpose(1, 2)[moved.all(1)]  # (1000, 3)
    assert len(values.unique(dim=0)) == 8
    assert torch.equal(changed[3:4], noisy(x[3:4], BOUNDS, "l0_pixel", 5))
    keys = sample_keys(x, BOUNDS, 0)
    counts = torch.tensor([0.0, 1.0, 2.9, 16.0]).repeat(50)
    changed = salt_and_pepper(keys, counts, x, BOUNDS, "l0_pixel")
    assert torch.equal(lp_norm(changed - x, "l0_pixel"), counts.floor())


def test_the_largest_entries_are_selected_by_their_sign_too():
    v = torch.tensor([[-3.0, -1.0, -1.0, -2.0], [4.0, 4.0, 5.0, 4.0]])
    mask = are_largest(v, torch.tensor([1.0, 2.7]))
    assert mask.tolist() == [[False, True, False, False], [True, False, True, False]]
    assert not are_largest(v, torch.zeros(2)).any()
    assert are_largest(v, torch.full((2,), 9.0)).all()


def test_remedies_in_l0_are_code_that_runs():
    pixels = budget_arguments("l0_pixel", 24)
    assert pixels == "eps=24, norm='l0', unit='pixel'"
    for name in KINDS.keys() - {"budget_holds_every_input"}:  # an example in linf
        code = make_finding(name, "high", "message", budget=pixels).code
        for call in re.findall(r"attacks\.(?:SparsePGD|SparseRS|Suite)\([^()]*\)", code):
            assert measured_norm(eval(call, {"attacks": attacks})) == "l0_pixel"
        assert "attacks.PGD" not in code
        assert "attacks.Square" not in code
    features = make_finding("no_gradient", "high", "message", budget=budget_arguments("l0", 3))
    assert features.code.endswith("attacks.SparseRS(eps=3, max_queries=5000)")
