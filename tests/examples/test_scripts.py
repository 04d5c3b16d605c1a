"""Each of the five scripts runs, and finds what it says."""

import importlib
from pathlib import Path

import pytest
import torch

from advkit import attacks
from tests.toys import Halfspace

EXAMPLES = Path(__file__).parents[2] / "examples"
STUDIES = sorted((EXAMPLES / "studies").glob("*.py"))


@pytest.fixture
def script(monkeypatch):
    """A function that imports a script by the number that its name begins with."""
    monkeypatch.syspath_prepend(str(EXAMPLES))

    def load(number):
        (path,) = EXAMPLES.glob(f"{number}_*.py")
        return importlib.import_module(path.stem)

    return load


@pytest.mark.parametrize("name", [p.name for p in STUDIES if "\ndef main(" in p.read_text()])
def test_every_study_has_a_page(name):
    assert f"`studies/{name}`" in (EXAMPLES / "README.md").read_text()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_a_script_is_short_and_says_how_to_run_it(path):
    text = path.read_text()
    assert 30 <= len(text.splitlines()) <= 64
    assert f"\n    python examples/{path.name}\n" in text
    assert f"| `{path.name}` |" in (EXAMPLES / "README.md").read_text()


def test_one_weak_attack_overestimates_robustness(script, capsys):
    report = script(1).main()
    fgsm = report.outcomes[0].robust_accuracy
    assert float(report.worst_case) < float(fgsm) < float(report.clean_accuracy)
    assert f"FGSM alone would report {fgsm}" in capsys.readouterr().out


def test_the_robust_net_keeps_more_under_attack(script, capsys):
    reports = script(2).main(epochs=5)
    assert float(reports["plain"].clean_accuracy) > 0.85
    assert float(reports["robust"].worst_case) > float(reports["plain"].worst_case) + 0.2
    assert "robust: trained in" in capsys.readouterr().out


def test_a_black_box_falls_to_its_scores_its_labels_and_a_copy(script, capsys):
    left = script(3).main()
    assert left["random noise"] > 0.85
    assert max(left["scores"], left["labels alone"], left["a copy"]) < left["random noise"] - 0.2
    assert min(left.values()) == left["scores"]
    assert "queries in all" in capsys.readouterr().out


def test_a_guard_stops_only_who_does_not_know_it(script, capsys):
    bare, unaware, aware = script(4).main().values()
    assert unaware < bare / 2
    assert aware > 2 * unaware
    assert "clean inputs rejected" in capsys.readouterr().out


class TestOwnAttack:
    def test_it_is_evaluated_next_to_others(self, script, capsys):
        report = script(5).main()
        own, fgsm, _ = (float(o.robust_accuracy) for o in report.outcomes)
        assert own < fgsm
        assert "Momentum(eps=0.1)" in capsys.readouterr().out

    def test_it_keeps_the_promises_of_an_attack(self, script):
        attack = script(5).Momentum(eps=0.1)
        x, y = torch.rand(50, 1, 3, 3), torch.zeros(50).long()
        plane = Halfspace(torch.ones(9), b=-4.5)
        result = attack.run(plane, x, y)
        assert result.x_adv.min() >= 0
        assert result.x_adv.max() <= 1
        assert (result.x_adv - x).abs().max() <= 0.1 + 1e-6
        assert torch.equal(result.success, plane(result.x_adv).argmax(1) != y)
        assert torch.equal(attack(plane, x, y), result.x_adv)
        assert result.success.any()
        assert not result.no_gradient.any()
        optimal = attacks.PGD(eps=0.1, steps=20).run(plane, x, y)
        assert torch.equal(result.success, optimal.success)

    def test_a_vanished_gradient_is_reported(self, script):
        x, y = torch.rand(4, 1, 3, 3), torch.zeros(4).long()
        result = script(5).Momentum(eps=0.1).run(Halfspace(torch.zeros(9), b=-1.0), x, y)
        assert result.no_gradient.all()
        assert not result.success.any()
        assert torch.equal(result.x_adv, x)
