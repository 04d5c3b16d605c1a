"""The interface that all detectors share: `anomaly_score`, in one form for each kind of input."""

import numpy as np
import pytest
import torch
from torch import nn

from advkit import TorchClassifier, detectors
from advkit.core.norms import lp_norm
from advkit.defenses import MRR, LatentDefenders
from advkit.detectors.anomaly_score import check_detector, reads_inputs

WIDTH, N = 3, 7


def confident(n=200, seed=0):
    """Logits of a confident model: clean rows."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, WIDTH)) * 0.3
    rows[np.arange(n), rng.integers(WIDTH, size=n)] += 5
    return rows


def uncertain(n=200, seed=1):
    """Logits of an uncertain model: adversarial rows."""
    return np.random.default_rng(seed).normal(size=(n, WIDTH)) * 0.3 + 1


def forest():
    rows = np.concatenate([confident(), uncertain()])
    return detectors.OutputForest(n_estimators=20, outputs="logits", random_state=0).fit(
        rows, np.repeat([False, True], 200)
    )


def surrogate():
    rows = np.concatenate([confident(), uncertain()])
    return detectors.DetectorSurrogate(forest(), hidden=(16,), epochs=20).fit(rows)


OF_OUTPUTS = {
    "OutputForest": forest,
    "DetectorSurrogate": surrogate,
    "MaxSoftmax": lambda: detectors.MaxSoftmax().fit(confident()),
    "OutputEntropy": lambda: detectors.OutputEntropy().fit(confident()),
    "Mahalanobis": lambda: detectors.Mahalanobis().fit(confident(), confident().argmax(1)),
    "KernelDensity": lambda: detectors.KernelDensity().fit(confident()),
    # A row is anomalous where clean rows grow in number in more directions: off a line.
    "LocalIntrinsicDimensionality": lambda: detectors.LocalIntrinsicDimensionality().fit(
        np.random.default_rng(0).uniform(size=(200, 1)) * np.ones(WIDTH)
    ),
}
ROWS = {  # clean and anomalous rows, where the default ones do not fit
    "LocalIntrinsicDimensionality": (np.full((N, WIDTH), 0.5), [[0.5, 0.5, 0.6]] * N),
}


def rows_of(name):
    clean, anomalous = ROWS.get(name, (confident(N, seed=2), uncertain(N, seed=3)))
    return np.asarray(clean), np.asarray(anomalous)


@pytest.fixture(scope="module")
def fitted():
    return {name: make() for name, make in OF_OUTPUTS.items()}


def test_every_exported_detector_is_covered():
    exported = {
        name
        for name in detectors.__all__
        if hasattr(getattr(detectors, name), "anomaly_score") and name != "Guard"
    }
    assert set(OF_OUTPUTS) == exported - {"Alarm"}


@pytest.mark.parametrize("name", OF_OUTPUTS)
class TestDetectorOfOutputs:
    def test_it_is_a_detector_of_outputs(self, fitted, name):
        check_detector(fitted[name])
        assert not reads_inputs(fitted[name])

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_scores_are_finite_float64_for_each_row(self, fitted, name, dtype):
        for rows in rows_of(name):
            score = fitted[name].anomaly_score(rows.astype(dtype))
            assert isinstance(score, np.ndarray)
            assert score.dtype == np.float64
            assert score.shape == (N,)
            assert np.isfinite(score).all()
            assert fitted[name].anomaly_score(rows[:1].astype(dtype)).shape == (1,)

    def test_greater_is_more_anomalous(self, fitted, name):
        clean, anomalous = rows_of(name)
        score = fitted[name].anomaly_score
        assert score(anomalous).min() > score(clean).max()

    def test_rows_of_another_width_or_not_finite_are_refused(self, fitted, name):
        with pytest.raises(ValueError, match=r"features|shape \(n, 3\)"):
            fitted[name].anomaly_score(np.ones((2, WIDTH + 1)))
        with pytest.raises(ValueError, match="`outputs` must be finite"):
            fitted[name].anomaly_score(np.full((2, WIDTH), np.nan))

    def test_it_guards_a_model(self, fitted, name):
        clean, anomalous = (torch.from_numpy(rows) for rows in rows_of(name))
        model = TorchClassifier(nn.Identity(), bounds=(-10, 10))
        guard = detectors.Guard(model, fitted[name], fpr=0.5, outputs="logits").calibrate(clean)
        assert guard.inspect(anomalous).alarm.all()
        assert guard.inspect(clean).alarm.float().mean() <= 0.5


def test_a_tensor_has_differentiable_scores_of_a_surrogate(fitted):
    for dtype in (torch.float32, torch.float64):
        rows = torch.from_numpy(uncertain(N)).to(dtype).requires_grad_()
        score = fitted["DetectorSurrogate"].anomaly_score(rows)
        assert (score.shape, score.dtype) == ((N,), dtype)
        score.sum().backward()
        assert rows.grad.abs().sum() > 0


@pytest.fixture(scope="module")
def mrr():
    """A fitted MRR and the clean inputs of its fit."""
    torch.manual_seed(0)
    x = torch.rand(200, 4) * 0.2
    y = torch.arange(200) % 2
    x[y == 1] += 0.3
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return MRR(latent=LatentDefenders(count=1, epochs=2)).fit(net.eval(), x, y), x


class TestMRR:
    def test_it_is_a_detector_of_inputs(self, mrr):
        check_detector(mrr[0])
        assert reads_inputs(mrr[0])

    def test_scores_are_finite_float64_for_each_input(self, mrr):
        score = mrr[0].anomaly_score(mrr[1][:N])
        assert isinstance(score, torch.Tensor)
        assert (score.shape, score.dtype) == ((N,), torch.float64)
        assert ((score >= 0) & (score <= 1)).all()
        labels = mrr[0].fitted.labels(mrr[1][:N], None)
        assert torch.equal(mrr[0].anomaly_score(mrr[1][:N], labels), score)

    def test_greater_is_more_anomalous(self, mrr):
        detector, x = mrr
        far = torch.ones(N, 4)
        assert (lp_norm(far - x[:N], "linf") > 0.4).all()
        assert detector.anomaly_score(far).min() > detector.anomaly_score(x).median()

    def test_inputs_of_another_width_are_refused(self, mrr):
        with pytest.raises((ValueError, RuntimeError)):
            mrr[0].anomaly_score(torch.rand(2, 5))


@pytest.mark.parametrize(
    "cls",
    [
        detectors.MaxSoftmax,
        detectors.OutputEntropy,
        detectors.Mahalanobis,
        detectors.KernelDensity,
        detectors.LocalIntrinsicDimensionality,
    ],
)
@pytest.mark.parametrize("fpr", [-0.1, 1, 5.0, float("nan")])
def test_a_false_positive_rate_is_a_share(cls, fpr):
    with pytest.raises(ValueError, match="`fpr` must"):
        cls(fpr=fpr).fit(confident())
