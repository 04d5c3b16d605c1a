"""Models on which a check would raise a false alarm, or would end the evaluation."""

import pytest
import torch
from torch import nn

import advkit
from advkit import attacks, detectors
from advkit import eval as rob
from advkit.eval.noise import noisy


class Noisy(nn.Module):
    """A linear net behind noise; `std` is that of the noise."""

    def __init__(self, std):
        super().__init__()
        self.linear, self.std = nn.Linear(8, 3), std

    def forward(self, x):
        return self.linear(x + self.std * torch.randn_like(x))


class Unsure:
    def anomaly_score(self, outputs):
        return 1 - outputs.max(1)


class Steep(nn.Module):
    """Two logits that depend on the mean of the input alone."""

    def forward(self, x):
        z = 20 * (x.mean(1) - 0.5)
        return torch.stack([-z, z], 1)


def names(report):
    return [finding.name for finding in report.findings]


def evaluated(model, x, y, *attacks_):
    return rob.evaluate(model, x, y, attacks=[*attacks_])


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_an_expectation_is_checked_for_its_label():
    net = Noisy(0.01)
    x = torch.rand(16, 8)
    y = net.linear(x).argmax(1)
    fgsm = attacks.FGSM(eps=0.01)
    with pytest.warns(UserWarning, match="random"):
        assert "random_model" in names(evaluated(Noisy(1.0), x, y, fgsm))
    for model in (advkit.Expectation(net), advkit.QueryCounter(advkit.Expectation(net))):
        assert "random_model" not in names(evaluated(model, x, y, fgsm))


@pytest.mark.filterwarnings("ignore:.*has a batch norm that uses the statistics")
@pytest.mark.parametrize("batch", ["part", "whole"])
def test_a_batch_norm_in_training_mode_is_not_sent_a_single_input(batch):
    net = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3)).train()
    x = torch.rand(32, 8)
    y = net(x).argmax(1)
    model = advkit.TorchClassifier(net, mode="keep", batch=batch)
    report = evaluated(model, x, y, attacks.FGSM(eps=0.01))
    assert "training_mode" in names(report)
    assert not report.checks.checked.any()


def test_a_rejection_of_noise_is_not_a_success_of_noise():
    x = torch.rand(12, 4) / 2
    x += 0.62 - x.mean(1, keepdim=True)
    guard = detectors.Guard(Steep(), Unsure(), threshold=0.009)  # barely accepts each of them
    noise = attacks.RandomNoise(eps=0.1)
    report = evaluated(guard, x, torch.ones(12, dtype=torch.int64), noise)
    assert report.clean.all()
    assert guard.predict(noisy(x, (0, 1), "linf", 0.1)).lt(0).any()
    assert report.noise[0].robust.all()
    assert "noise_beats_gradients" not in names(report)


def test_rejections_are_low_for_an_attack_that_knows_the_detector():
    x = torch.full((6, 4), 0.9)
    y, guard = torch.ones(6, dtype=torch.int64), detectors.Guard(Steep(), Unsure(), threshold=0.01)
    square = attacks.Square(eps=0.4, max_queries=20)
    aware = attacks.Adaptive(attack=attacks.PGD(eps=0.4, steps=3), losses=["ce"])
    for attack, severity in ((square, "high"), (aware, "low")):
        report = evaluated(guard, x, y, attack)
        found = {finding.name: finding.severity for finding in report.findings}
        assert found["rejection_counts_as_robust"] == severity


def test_a_win_of_hopskipjump_is_one_of_labels():
    class Reversed(Steep):
        def forward(self, x):
            return super().forward(2 * x.detach() - x)

    x, y = 0.6 + 0.1 * torch.rand(8, 4), torch.ones(8, dtype=torch.int64)
    pgd = attacks.PGD(eps=0.3, steps=10, random_start=False)
    by_labels = attacks.HopSkipJump(norm="linf", max_queries=100)
    found = names(evaluated(Reversed(), x, y, pgd, by_labels))
    assert "labels_beat_gradients" in found
    assert "scores_beat_gradients" not in found
