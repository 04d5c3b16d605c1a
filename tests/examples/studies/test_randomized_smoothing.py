"""What the smoothing study trains, measures and writes."""

import json
from dataclasses import replace

import pytest
import torch

from advkit.data import Dataset
from advkit.defenses.gaussian_noise import GaussianNoise
from advkit.defenses.randomized_smoothing import RandomizedSmoothing
from advkit.models import REJECTED


@pytest.fixture
def dark_or_bright():
    """Two classes that no net can miss."""
    y = torch.arange(200) % 2
    x = (0.1 + 0.8 * y.float())[:, None, None, None].expand(-1, 1, 28, 28).clone()
    return Dataset(x, y, "dark or bright")


def test_everything_is_recorded(study, dark_or_bright, capsys, tmp_path):
    size = replace(study.QUICK, images=4)
    plain = study.trained(dark_or_bright, 6, study.cross_entropy)
    test = dark_or_bright.head(4)
    assert study.accuracy(plain, test) == 1
    found = study.record(0.25, plain, dark_or_bright, test, replace(size, epochs=6))
    assert found["net without noise"] == found["plain net"] == 1
    assert found["abstained"] == found["no certificate"] == 0
    assert found["smoothed"] == 1
    assert found["certified"][0] == (0.0, 1.0)
    assert found["certified"][-1][1] == 0  # no radius is above the largest
    near, far = found["attacked"]
    assert (near["radius"], far["radius"]) == (0.25, 0.5)
    assert near["certified"] == near["withstood"] == near["right"] == near["unaware"] == 1
    assert far["certified"] == 0  # beyond what 200 draws can prove
    assert "4 inputs, sigma 0.25" in capsys.readouterr().out
    study.save_figure(tmp_path / "picture.png", study.picture([found, found]))
    assert (tmp_path / "picture.png").read_bytes()[1:4] == b"PNG"
    assert json.loads(json.dumps(found))["attacked"] == [near, far]


def test_an_attack_is_judged_by_the_smoothed_model(study, dark_or_bright):
    """At a radius beyond the other class all fall, and what was wrong before is not counted."""
    net = study.trained(dark_or_bright, 6, GaussianNoise(sigma=0.25))
    smoothed = RandomizedSmoothing(net, 0.25, n=200, draws=4)
    test = dark_or_bright.head(4)
    mislabelled = Dataset(test.x, torch.tensor([0, 0, 0, 1]), "one is wrong")
    smoothing = study.Study(
        smoothed=smoothed,
        plain=net,
        evaluator=RandomizedSmoothing(net, 0.25, seed=1),
        data=mislabelled,
        clean=torch.tensor([True, False, True, True]),
        certificates=smoothed.certify(test.x),
    )
    far = smoothing.at(23.0, 5)
    assert (far.withstood, far.right, far.certified) == (0, 0, 0)
    near = smoothing.at(0.1, 5)
    assert (near.withstood, near.right, near.unaware, near.certified) == (0.75,) * 4
    assert near.plain == 0.75


def test_an_abstention_is_not_wrong_and_not_right(study, dark_or_bright):
    class Silent:
        def predict(self, x):
            return torch.full((len(x),), REJECTED)

    net = study.trained(dark_or_bright, 1, study.cross_entropy)
    smoothed = RandomizedSmoothing(net, 0.25, n=100, draws=4)
    test = dark_or_bright.head(4)
    smoothing = study.Study(
        smoothed=smoothed,
        plain=net,
        evaluator=Silent(),
        data=test,
        clean=torch.tensor([True, False, True, True]),
        certificates=smoothed.certify(test.x),
    )
    row = smoothing.at(0.1, 1)
    assert (row.withstood, row.unaware, row.right) == (0.75, 0.75, 0)


def test_training_is_the_same_whatever_was_drawn_before(study, dark_or_bright):
    data = dark_or_bright.head(100)
    first = study.trained(data, 1, GaussianNoise(sigma=0.5))
    torch.rand(3)
    again = study.trained(data, 1, GaussianNoise(sigma=0.5))
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    assert not first.training
