"""The study of training defenses on MNIST, in small."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from advkit import attacks, defenses
from advkit.data import Dataset


@pytest.fixture
def tiny(study):
    return replace(study.QUICK, steps=1, test=8, search=2, restarts=1, queries=3)


@pytest.fixture
def bars():
    """Images of ten classes: a bright row at the height of the label."""
    torch.manual_seed(0)
    y = torch.arange(256) % 10
    x = 0.2 * torch.rand(256, 1, 28, 28)
    for i, label in enumerate(y):
        x[i, :, 2 * label : 2 * label + 4] += 0.7
    return Dataset(x, y, "bars")


def test_a_recipe_trains(study, bars):
    recipe = study.Recipe(study.cross_entropy, epochs=8)
    net = study.trained(recipe, bars)
    assert (net(bars.x).argmax(1) == bars.y).float().mean() > 0.9


def test_the_budget_grows_to_its_own_and_stays(study):
    budgets = []

    class Spy(attacks.PGD):
        def craft(self, model, x, y=None):
            budgets.append(self.eps)
            return x

    loss = study.grown(defenses.AdversarialTraining(attack=Spy(eps=0.4)), 4)
    for _ in range(6):
        loss(study.mnist_cnn_certified(), torch.rand(2, 1, 28, 28), torch.tensor([0, 1]))
    assert budgets == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])


def test_what_the_plain_cross_entropy_does_not_see(study):
    """A net whose logits are a hundred times too large has no slope in the usual form."""
    logits = torch.tensor([[300.0, 0.0, -50.0]], requires_grad=True)
    y = torch.tensor([0])
    (grad,) = torch.autograd.grad(study.plain_cross_entropy(logits, y).sum(), logits)
    assert grad.abs().sum() == 0
    assert study.plain_cross_entropy(logits, y + 1) == F.cross_entropy(logits, y + 1)


def test_every_net_is_made_judged_and_kept(study, tiny, bars, tmp_path):
    assert len({*study.recipes(tiny), study.DISTILLED}) == 11
    results = {}
    plain, _ = study.made(study.PLAIN, bars, tiny, tmp_path)
    for name in ("FGSM mixture", "TRADES, beta 6", study.DISTILLED):
        net, seconds = study.made(name, bars, tiny, tmp_path)
        again, same = study.made(name, bars, tiny, tmp_path)
        assert same == seconds
        assert all(map(torch.equal, net.state_dict().values(), again.state_dict().values()))
        results[name] = {"seconds": seconds, **study.measure_accuracies(net, plain, bars, tiny)}
    for found in results.values():
        assert found["worst case"] <= min(v for k, v in found.items() if k != "seconds")
    study.save(tmp_path, results)
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert (tmp_path / "mnist_defenses.png").stat().st_size > 5000
    table = study.report(results).splitlines()
    assert len(table) == 2 + len(results)
    assert table[0].startswith("| trained with | seconds | clean |")
    assert len({row.count("|") for row in table}) == 1


def test_a_typo_is_an_error(study, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["x", "--data", str(tmp_path), "--only", "PDG"])
    with pytest.raises(SystemExit):
        study.main()
    assert "invalid choice: 'PDG'" in capsys.readouterr().err
