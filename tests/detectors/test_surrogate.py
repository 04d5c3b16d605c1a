"""What a surrogate learns of a detector, and how it says how much that is."""

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from advkit.detectors.forest import OutputForest
from advkit.detectors.guard import Guard
from advkit.detectors.surrogate import DetectorSurrogate


class Sum:
    """Suspicion is a weighted sum, in units and at a level of its own."""

    def anomaly_score(self, outputs):
        return 300 + 40 * np.asarray(outputs) @ np.array([1.0, -2.0, 0.5])


class Constant:
    def anomaly_score(self, outputs):
        return np.full(len(outputs), 7.0)


def rows(n=400, seed=0, scale=(1.0, 1.0, 1.0)):
    return np.random.default_rng(seed).normal(size=(n, 3)) * scale


@pytest.fixture(scope="module")
def surrogate():
    return DetectorSurrogate(Sum(), epochs=40).fit(rows())


def test_it_says_what_the_detector_says_in_its_units(surrogate):
    found, wanted = surrogate.anomaly_score(rows(seed=1)), Sum().anomaly_score(rows(seed=1))
    assert found.dtype == np.float64
    assert found.shape == (400,)
    assert np.abs(found - wanted).mean() < 0.05 * wanted.std()
    np.testing.assert_allclose(surrogate.anomaly_score(rows(seed=1)[:1]), found[:1], rtol=1e-6)


def test_its_gradient_is_that_of_the_detector(surrogate):
    outputs = torch.from_numpy(rows(50, seed=2)).requires_grad_()
    alarm = surrogate.anomaly_score(outputs)
    np.testing.assert_array_equal(alarm.detach().numpy(), surrogate.anomaly_score(outputs.detach()))
    (grad,) = torch.autograd.grad(alarm.sum(), outputs)
    wanted = 40 * torch.tensor([1.0, -2.0, 0.5]).double().expand(50, 3)
    assert torch.cosine_similarity(grad, wanted).min() > 0.9
    torch.testing.assert_close(grad.mean(0), wanted[0], rtol=0.1, atol=3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_an_alarm_has_the_dtype_of_the_outputs_and_leaves_no_trace(surrogate, dtype):
    outputs = torch.from_numpy(rows(4)).to(dtype).requires_grad_()
    with torch.enable_grad():
        alarm = surrogate.anomaly_score(outputs)
    assert alarm.dtype == dtype
    alarm.sum().backward()
    assert outputs.grad.abs().sum() > 0
    assert all(p.grad is None and not p.requires_grad for p in surrogate._net.parameters())


def test_units_and_levels_of_the_outputs_do_not_matter():
    """Columns far apart, and one that never changes."""

    class Scaled:
        def anomaly_score(self, outputs):
            return Sum().anomaly_score((np.asarray(outputs) - 1000) / (1e-3, 1, 100))

    def scaled(seed):
        return 1000 + rows(seed=seed, scale=(1e-3, 1, 100))

    surrogate = DetectorSurrogate(Scaled(), hidden=(16,), epochs=60).fit(scaled(0))
    assert surrogate.agreement(scaled(1)) > 0.95
    still = rows()
    still[:, 2] = 5.0
    assert np.isfinite(DetectorSurrogate(Sum(), epochs=2).fit(still).anomaly_score(rows())).all()


def test_agreement_is_the_rank_correlation():
    wrong = np.hypot(*rows()[:, :2].T) > 1
    detector = OutputForest(n_estimators=20, outputs="logits", random_state=0).fit(rows(), wrong)
    surrogate = DetectorSurrogate(detector, hidden=(32,), epochs=30).fit(rows())
    new = rows(300, seed=5)
    ranks = [rankdata(v) for v in (surrogate.anomaly_score(new), detector.anomaly_score(new))]
    wanted = np.corrcoef(*ranks)[0, 1]
    found = surrogate.agreement(new)
    assert found == pytest.approx(wanted, abs=1e-12)
    assert 0.7 < found < 1
    surrogate.detector = Sum()  # which it has never seen
    assert abs(surrogate.agreement(new)) < 0.5


def test_the_seed_decides_and_the_random_state_is_left_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, second, other = (
        DetectorSurrogate(Sum(), hidden=(8,), epochs=2, seed=seed).fit(rows(60))
        for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), before)
    new = rows(10, seed=1)
    np.testing.assert_array_equal(first.anomaly_score(new), second.anomaly_score(new))
    assert (first.anomaly_score(new) != other.anomaly_score(new)).all()


def test_it_learns_under_no_grad_and_inference_mode_too():
    wanted = DetectorSurrogate(Sum(), hidden=(8,), epochs=2).fit(rows(60)).anomaly_score(rows(5))
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            found = DetectorSurrogate(Sum(), hidden=(8,), epochs=2).fit(rows(60))
        np.testing.assert_array_equal(found.anomaly_score(rows(5)), wanted)
        outputs = torch.from_numpy(rows(5)).requires_grad_()
        assert found.anomaly_score(outputs).requires_grad


def test_it_is_a_detector(surrogate):
    class Rows(torch.nn.Module):
        def forward(self, x):
            return 1.0 * x

    guard = Guard(Rows(), surrogate, threshold=300.0, outputs="logits")
    x = torch.rand(20, 3, generator=torch.Generator().manual_seed(0))
    np.testing.assert_array_equal(guard.inspect(x).anomaly_score, surrogate.anomaly_score(x))


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: DetectorSurrogate(3), TypeError, "`detector` must have a method anomaly_score"),
        (lambda: DetectorSurrogate(Sum), TypeError, "`detector` must have a method anomaly_score"),
        (lambda: DetectorSurrogate(Sum(), hidden=64), TypeError, "`hidden` must be a list"),
        (
            lambda: DetectorSurrogate(Sum(), hidden=()),
            ValueError,
            "`hidden` must have at least one layer",
        ),
        (
            lambda: DetectorSurrogate(Sum(), hidden=(8, 0)),
            ValueError,
            "`hidden` must be at least 1",
        ),
        (lambda: DetectorSurrogate(Sum(), epochs=0), ValueError, "`epochs` must be at least 1"),
        (lambda: DetectorSurrogate(Sum(), lr=0.0), ValueError, "`lr` must be positive"),
        (lambda: DetectorSurrogate(Sum(), seed=0.5), TypeError, "`seed` must be an int"),
        (
            lambda: DetectorSurrogate(Constant()).fit(rows()),
            ValueError,
            "got 7 from Constant for all 400 rows",
        ),
        (
            lambda: DetectorSurrogate(Sum()).fit(rows()[0]),
            ValueError,
            r"must have shape \(n, width\)",
        ),
        (lambda: DetectorSurrogate(Sum()).fit(rows(0)), ValueError, "at least one"),
        (
            lambda: DetectorSurrogate(Sum()).fit(rows() / [1, 1, np.inf] * np.nan),
            ValueError,
            "finite",
        ),
        (
            lambda: DetectorSurrogate(Sum()).anomaly_score(rows()),
            ValueError,
            "must be fitted before use",
        ),
        (
            lambda: DetectorSurrogate(Sum()).anomaly_score(torch.zeros(2, 3)),
            ValueError,
            "must be fitted before use",
        ),
        (
            lambda: DetectorSurrogate(Sum()).agreement(rows()),
            ValueError,
            "must be fitted before use",
        ),
    ],
)
def test_wrong_arguments_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_rows_of_another_width_are_refused(surrogate):
    with pytest.raises(ValueError, match=r"shape \(n, 3\), got \(4, 2\)"):
        surrogate.anomaly_score(np.zeros((4, 2)))
    with pytest.raises(ValueError, match=r"shape \(n, 3\), got \(3,\)"):
        surrogate.anomaly_score(torch.zeros(3))


def test_an_array_has_the_scores_of_its_tensor(surrogate):
    found = surrogate.anomaly_score(rows(5))
    assert found.dtype == np.float64
    tensor = surrogate.anomaly_score(torch.from_numpy(rows(5)))
    np.testing.assert_array_equal(found, tensor.numpy())


def test_a_detector_that_answers_no_numbers_is_named():
    class Broken:
        def anomaly_score(self, outputs):
            return np.full(len(outputs), np.nan)

    with pytest.raises(
        ValueError, match="`Broken` must return finite anomaly scores, got .*samples 0"
    ):
        DetectorSurrogate(Broken()).fit(rows())


def test_agreement_needs_rows_that_differ(surrogate):
    with pytest.raises(ValueError, match="equal scores of one of them"):
        surrogate.agreement(np.zeros((5, 3)))
    with pytest.raises(ValueError, match="for all 1 rows"):
        surrogate.agreement(rows(1))
