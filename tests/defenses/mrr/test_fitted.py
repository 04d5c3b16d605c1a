"""Scores of fitted defenders, over batches."""

import pytest
import torch

from advkit import TorchClassifier
from advkit.defenses.mrr.calibration import Calibration, fit_calibration
from advkit.defenses.mrr.fitted import Fitted

N = 300  # more than two batches


class FirstFeature:
    """Two defenders whose distances are the first feature, and twice that."""

    count = 2

    def distances(self, x, labels):
        return torch.stack([x[:, 0], 2 * x[:, 0]], dim=1)


@pytest.fixture
def fitted():
    clean = torch.linspace(0, 1, 40)[:, None].expand(-1, 3)
    labels = torch.arange(40) % 2
    distances = FirstFeature().distances(clean, labels)
    return Fitted(
        victim=TorchClassifier(torch.nn.Linear(3, 2)),
        latent=(FirstFeature(),),
        inputs=None,
        calibration=fit_calibration(distances, labels, 2),
        clean=distances[:0].double(),
    )


def test_scores_are_those_of_each_input_alone(fitted):
    x, labels = torch.rand(N, 3), torch.arange(N) % 2
    scores = fitted.scores(x, labels)
    rows = [fitted.scores(x[i : i + 1], labels[i : i + 1]) for i in range(0, N, 37)]
    torch.testing.assert_close(scores[::37], torch.cat(rows), rtol=0, atol=0)


def test_the_table_of_distances_meets_a_batch_at_a_time(fitted, monkeypatch):
    sizes, scores = [], Calibration.scores
    monkeypatch.setattr(
        Calibration, "scores", lambda own, d, y: (sizes.append(len(d)), scores(own, d, y))[1]
    )
    assert fitted.scores(torch.rand(N, 3), torch.zeros(N, dtype=torch.int64)).shape == (N, 2)
    assert sizes == [128, 128, 44]


def test_distances_that_are_nan_are_refused_by_their_number(fitted):
    x = torch.rand(N, 3)
    x[[7, 250], 0] = torch.nan
    with pytest.raises(ValueError, match=r"finite distances, got NaN \(samples 7, 250\)"):
        fitted.scores(x, torch.zeros(N, dtype=torch.int64))
