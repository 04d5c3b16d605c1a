"""What the study of density defenders counts, draws and writes."""

import json
import sys

import numpy as np
import pytest
import torch


def test_areas_and_shares(study):
    clean, attacked = np.arange(100.0), np.array([98.5, 99.5, 50.0, -1.0])
    area, at_one, at_five = study.figures(clean, attacked)
    assert area == pytest.approx((99 + 100 + 50.5 + 0) / 400)
    assert (at_one, at_five) == (0.5, 0.5)
    assert study.figures(clean, clean[:0]) is None


def test_settings_are_pooled_and_stand_alone(study):
    clean = {"N = 1": np.arange(10.0)}
    parts = {"weak": {"N = 1": np.array([20.0])}, "none": {"N = 1": np.zeros(0)}}
    found = study.detection_rates(clean, parts)
    assert found["rows"] == 1
    assert found["pooled"]["N = 1"][0] == 1
    assert found["parts"]["none"] == {"rows": 0, "N = 1": None}


def test_crops_show_the_image(study):
    x = torch.rand(2, 3, 224, 224)
    found = study.crops(0.5 + 0 * x, 2)
    assert found.shape == (4, 3, 160, 160)
    torch.testing.assert_close(found, torch.full_like(found, 0.5))
    assert torch.equal(study.crops(x, 1), study.crops(x, 1))
    assert not torch.equal(study.crops(x, 1), study.crops(x, 1, seed=1))


def test_features_are_those_at_the_defenders_layer(study, brightness):
    net, data, fit = brightness
    features, logits = study.Seen(fit())(data.x)
    torch.testing.assert_close(features, net[0](data.x))
    torch.testing.assert_close(logits, net(data.x))


@pytest.mark.slow("trains and fits")
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
