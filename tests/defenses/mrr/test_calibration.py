import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advkit.defenses.mrr.calibration import fit_calibration

CLEAN = torch.tensor([[3.0], [1.0], [2.0], [10.0]])
ONE = torch.zeros(4, dtype=torch.int64)


def scores(calibration, distances, label=0):
    d = torch.tensor(distances, dtype=torch.float64)[:, None]
    return calibration.scores(d, torch.full((len(d),), label)).squeeze(1).tolist()


class TestScores:
    def test_knots_lines_and_tail(self):
        calibration = fit_calibration(CLEAN, ONE, 1)
        found = scores(calibration, [0.0, 1.0, 2.0, 3.0, 10.0, 1.5, 6.5, 20.0, math.inf])
        expected = [0, 0, 0.2, 0.4, 0.6, 0.1, 0.5, (4 - 0.5) / 5, 0.8]
        assert found == pytest.approx(expected)

    def test_each_answer_and_each_defender_has_its_own(self):
        clean = torch.cat([CLEAN, 10 * CLEAN], dim=1).repeat(2, 1)
        clean[4:] *= 100
        calibration = fit_calibration(clean, torch.tensor([0] * 4 + [2] * 4), 3)
        d = torch.tensor([[2.0, 30.0], [200.0, 3000.0]])
        found = calibration.scores(d, torch.tensor([0, 2]))
        torch.testing.assert_close(found, torch.tensor([[0.2, 0.4], [0.2, 0.4]]).double())

    def test_an_answer_without_clean_inputs_is_the_greatest_risk(self):
        assert scores(fit_calibration(CLEAN, ONE, 2), [0.0, 5.0], label=1) == [1, 1]
        nothing = fit_calibration(CLEAN[:0], ONE[:0], 2)
        assert scores(nothing, [0.0, 5.0]) == [1, 1]

    def test_an_infinite_distance_in_the_calibration_is_no_clean_one(self):
        clean = torch.cat([CLEAN, torch.tensor([[math.inf]])])
        calibration = fit_calibration(clean, torch.zeros(5, dtype=torch.int64), 1)
        assert calibration.counts.tolist() == [4]

    @given(st.lists(st.floats(0, 100, width=32), min_size=1, max_size=20), st.data())
    def test_never_above_the_step_function_and_never_falling(self, clean, data):
        """So the conformal bound holds: a score above 1 - a needs a p-value below a."""
        calibration = fit_calibration(
            torch.tensor(clean, dtype=torch.float64)[:, None], torch.zeros(len(clean)).long(), 1
        )
        d = sorted(data.draw(st.lists(st.floats(0, 200, width=32), min_size=1, max_size=20)))
        found = scores(calibration, d)
        steps = [sum(c < v for c in clean) / (len(clean) + 1) for v in d]
        assert all(f <= s + 1e-12 for f, s in zip(found, steps, strict=True))
        assert all(b >= a - 1e-12 for a, b in itertools.pairwise(found))
        assert all(0 <= f <= 1 for f in found)

    def test_no_two_distances_beyond_the_last_tie(self):
        found = scores(fit_calibration(CLEAN, ONE, 1), [10.0, 10.1, 100.0, 1000.0])
        assert len(set(found)) == 4

    def test_gradients_are_those_of_differences(self):
        calibration = fit_calibration(CLEAN, ONE, 1)
        d = torch.tensor([[1.5], [6.0], [30.0]], dtype=torch.float64, requires_grad=True)
        labels = torch.zeros(3, dtype=torch.int64)
        assert torch.autograd.gradcheck(lambda v: calibration.scores(v, labels), d)


class TestLimits:
    @pytest.mark.parametrize("threshold", [0.0, 0.1, 0.2, 0.33, 0.6, 0.65, 0.79])
    def test_they_are_what_the_scores_reach_the_threshold_at(self, threshold):
        calibration = fit_calibration(CLEAN, ONE, 1)
        limit = float(calibration.limits(threshold)[0, 0])
        above, at = scores(calibration, [limit * (1 + 1e-9), limit])
        assert at == pytest.approx(threshold)
        assert above > threshold

    def test_no_distance_alarms_beyond_the_last_score(self):
        calibration = fit_calibration(CLEAN, ONE, 1)
        assert calibration.limits(0.8).tolist() == [[math.inf]]
        assert calibration.limits(0.99).tolist() == [[math.inf]]

    def test_without_clean_inputs_everything_alarms(self):
        calibration = fit_calibration(CLEAN, ONE, 2)
        d, labels = torch.tensor([[0.1], [math.inf]]), torch.tensor([1, 1])
        assert (calibration.margin_over_threshold(d, labels, 0.5) > 0).all()

    def test_an_excess_is_in_standard_deviations(self):
        calibration = fit_calibration(CLEAN, ONE, 1)
        found = calibration.margin_over_threshold(torch.tensor([[7.0]]), torch.tensor([0]), 0.2)
        assert float(found) == pytest.approx((7 - 2) / np.std([1, 2, 3, 10], ddof=1))

    def test_equal_distances_have_a_unit_all_the_same(self):
        clean = torch.ones(3, 1)
        calibration = fit_calibration(clean, torch.zeros(3, dtype=torch.int64), 2)
        assert calibration.spread.tolist() == [[1, 1]]


def test_a_threshold_leaves_its_share_outside():
    """The percentile of the article: SP % of the calibration's own inputs have a greater score."""
    clean = torch.rand(999, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.zeros(999, dtype=torch.int64)
    calibration = fit_calibration(clean, labels, 1)
    for percent in (1, 5, 20):
        above = (calibration.scores(clean, labels) > 1 - percent / 100 + 1e-12).sum(0)
        assert ((above - 10 * percent).abs() <= 2).all()


def test_some_defenders_keep_their_own():
    clean = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(50) % 2
    calibration = fit_calibration(clean, labels, 2)
    whole = calibration.scores(clean, labels)
    part = calibration.select([2, 0])
    assert torch.equal(part.scores(clean[:, [2, 0]], labels), whole[:, [2, 0]])
    assert torch.equal(part.limits(0.9), calibration.limits(0.9)[[2, 0]])
    assert torch.equal(part.spread, calibration.spread[[2, 0]])
