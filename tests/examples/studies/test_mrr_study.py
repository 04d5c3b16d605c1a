"""What the study of density defenders counts, draws and writes."""

import importlib
import json
import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

from advkit.data import Dataset
from advkit.defenses import MRR, LatentDefenders
from advkit.detectors import Guard


@pytest.fixture
def adaptive(study):
    return importlib.import_module("mrr_adaptive")


@pytest.fixture
def case(adaptive):
    """Two classes of four pixels, a net that tells them by their mean, and its defenders."""
    torch.manual_seed(0)
    y = torch.arange(400) % 2
    x = (0.25 + 0.5 * y[:, None] + 0.2 * torch.rand(400, 4)).clamp(0, 1)
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [1.0], [-1.0]]).expand(3, 4))
        net[0].bias.copy_(torch.tensor([0.0, -2.0, 2.0]))
        net[2].weight.copy_(torch.tensor([[0.0, -1.0, 1.0], [0.0, 1.0, -1.0]]))
        net[2].bias.zero_()
    layer = LatentDefenders(count=2, epochs=2)
    fit = [MRR(layer, security=10).fit(net, x, y, x[200:]) for _ in range(2)]
    data = Dataset(x[:6], y[:6], "few")
    return adaptive.Case(net, *fit, Dataset(x, y, "all"), data, x[:40], (2, 5))


class TestOblivious:
    def test_areas_and_shares(self, study):
        clean, attacked = np.arange(100.0), np.array([98.5, 99.5, 50.0, -1.0])
        area, at_one, at_five = study.figures(clean, attacked)
        assert area == pytest.approx((99 + 100 + 50.5 + 0) / 400)
        assert (at_one, at_five) == (0.5, 0.5)
        assert study.figures(clean, clean[:0]) is None

    def test_settings_are_pooled_and_stand_alone(self, study):
        clean = {"N = 1": np.arange(10.0)}
        parts = {"weak": {"N = 1": np.array([20.0])}, "none": {"N = 1": np.zeros(0)}}
        found = study.judged(clean, parts)
        assert found["rows"] == 1
        assert found["pooled"]["N = 1"][0] == 1
        assert found["parts"]["none"] == {"rows": 0, "N = 1": None}

    def test_crops_show_the_image(self, study):
        x = torch.rand(2, 3, 224, 224)
        found = study.crops(0.5 + 0 * x, 2)
        assert found.shape == (4, 3, 160, 160)
        torch.testing.assert_close(found, torch.full_like(found, 0.5))
        assert torch.equal(study.crops(x, 1), study.crops(x, 1))
        assert not torch.equal(study.crops(x, 1), study.crops(x, 1, seed=1))

    def test_features_are_those_at_the_defenders_layer(self, study, case):
        x = case.data.x
        features, logits = study.Seen(case.mrr)(x)
        torch.testing.assert_close(features, case.net[0](x))
        torch.testing.assert_close(logits, case.net(x))


class TestAdaptive:
    def test_every_table_is_filled(self, adaptive, case):
        results, text = adaptive.adaptive(case, (1, 2))
        json.dumps(results)
        assert results["honest"]["0"]["defended"] == 0
        assert results["honest"]["5 %, N = 2"]["defended"] == 0  # a natural image always does
        assert results["article"]["1 %, N = 1"]["false alarms"] <= 5
        assert [row["worst of all"][-1] for row in results["budgets"].values()] == [0, 0, 0]
        for name in ("1 % | 1 |", "N = 1 at the rate of 2 with 5 % each", "orthogonal PGD"):
            assert name in text

    def test_a_rejection_is_no_success(self, adaptive, case):
        guard = Guard(case.net, case.mrr, threshold=1e-9)
        moved = 1 - case.data.x
        success = adaptive.attacked(lambda model, x, y: moved, guard, case.data)
        rejected = guard.predict(moved) == -1
        assert rejected.any()
        assert not success[rejected].any()
        assert adaptive.false_alarms(case, guard) > 90
        assert adaptive.false_alarms(case, case.net) == 0

    def test_failures_are_infinite_in_the_median(self, adaptive, case):
        class Fails:
            def run(self, model, x, y):
                from advkit import attacks

                return attacks.CarliniWagnerL2(search_steps=1, steps=1, lr=1e-9).run(case.net, x, y)

        found = adaptive.minimum_norm(case, Fails(), case.net)
        assert found["defended"] == 100
        assert found["median"] == math.inf
        assert math.isnan(found["mean"])


def test_a_part_is_written_and_taken_up_again(study, real, tmp_path, monkeypatch, capsys):
    folder = real("mnist_train.npz").parent
    arguments = ["mrr_study.py", "--data", str(folder), "--quick", "--out", str(tmp_path)]
    for part in ("mlp", "figure"):
        monkeypatch.setattr(sys, "argv", [*arguments, "--only", part])
        study.main()
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"mlp.pt", "mlp_mrr.npz", "mlp.json", "figure.json", "figure4.png"}
    found = json.loads((tmp_path / "mlp.json").read_text())
    assert set(found["attacks"]) == {"FGS", "JSMA", "DeepFool", "C&W", "BIM"}
    out, err = capsys.readouterr()
    assert "| FGS |" in out
    assert err.count("defender 1 of 2") == 1  # the figure has them from the file


def test_without_data_it_says_so(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mrr_study.py", "--data", str(tmp_path)])
    study.main()
    assert "skipped: no nets and images" in capsys.readouterr().err
