"""Features of rows of outputs, in closed form, and what is no probability."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import entropy as reference

from advkit.detectors.features import Features, check_kind, entropy, margin, probabilities, softmax

P = np.array([[0.5, 0.125, 0.375], [0.25, 0.5, 0.25], [0, 0, 1]], dtype=np.float32)


def test_each_feature_in_closed_form():
    def found(*names):
        return Features(names, "scores")(P).tolist()

    assert found("raw") == P.tolist()
    assert found("sorted") == [[0.5, 0.375, 0.125], [0.5, 0.25, 0.25], [1, 0, 0]]
    assert found("margin") == [[0.125], [0.25], [1]]
    ln = math.log
    nats = [ln(2) / 2 + ln(8) / 8 - 0.375 * ln(0.375), ln(4) / 2 + ln(2) / 2, 0]
    assert np.ravel(found("entropy")).tolist() == pytest.approx(nats)


def test_features_stand_side_by_side_in_the_order_of_their_names():
    for names in (("margin", "raw", "entropy"), ("entropy", "sorted")):
        each = [Features((name,), "scores")(P) for name in names]
        together = Features(names, "scores")
        np.testing.assert_array_equal(together(P), np.concatenate(each, axis=1))
        assert together.columns(3) == together(P).shape[1]


def test_entropy_of_logits_is_that_of_their_softmax_and_the_rest_looks_at_the_row():
    logits = np.log(P[:2]) + np.array([[3.0], [-500.0]])
    np.testing.assert_allclose(
        Features(("entropy",), "logits")(logits), Features(("entropy",), "scores")(P[:2]), rtol=1e-6
    )
    for name in ("raw", "sorted", "margin"):
        one, other = Features((name,), "logits"), Features((name,), "scores")
        np.testing.assert_array_equal(one(logits), other(logits))


ROWS = arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(2, 6)),
              elements=st.floats(-800, 800))  # fmt: skip


@given(rows=ROWS)
@settings(deadline=None, max_examples=60)
def test_margin_and_entropy_agree_with_references(rows):
    p = softmax(rows)
    np.testing.assert_allclose(p.sum(1), 1)
    np.testing.assert_allclose(entropy(p), reference(p, axis=1), atol=1e-12)
    for row, found in zip(rows, margin(rows), strict=True):
        first, second, *_ = sorted(row.tolist(), reverse=True)
        assert found == first - second
    np.testing.assert_allclose(softmax(rows + 7), p, rtol=1e-9, atol=1e-300)


def test_scores_that_are_no_probabilities():
    rounded = np.array([[0.333, 0.333, 0.333], [1.004, -0.004, 0]])
    np.testing.assert_allclose(probabilities(rounded, "scores"), rounded.clip(0))
    for wrong in ([0.5, 0.52, 0], [0.3, 0.3, 0.38], [1.02, -0.02, 0], [0.5, 0.52, -0.02]):
        with pytest.raises(ValueError, match=r"`outputs` must be probabilities .* .row 1"):
            probabilities(np.array([[0.2, 0.8, 0], wrong]), "scores")


def test_probabilities_are_not_taken_for_logits():
    with pytest.raises(ValueError, match="got rows that are probabilities. Pass outputs='scores'"):
        check_kind(P, "logits")
    check_kind(P, "scores")
    check_kind(P + 0.01, "logits")
    check_kind(np.array([[0.5, 0.5], [1.5, -0.5]]), "logits")
    Features(("raw", "margin"), "logits").check_fit(P)
    with pytest.raises(ValueError, match="`outputs` must be logits"):
        Features(("raw", "entropy"), "logits").check_fit(P)


@pytest.mark.parametrize("name", ["margin", "entropy"])
def test_a_single_column_has_neither_margin_nor_entropy(name):
    with pytest.raises(ValueError, match="must have at least two columns .* got n_features = 1"):
        Features((name,), "scores")(np.ones((3, 1)))


def test_options_out_of_range():
    with pytest.raises(ValueError, match="`features` must be one of 'raw', .* got 'raws'"):
        Features(("raws",), "scores")
    with pytest.raises(ValueError, match="at least one name, each once"):
        Features(("raw", "raw"), "scores")
    with pytest.raises(ValueError, match="at least one name, each once"):
        Features((), "scores")
    with pytest.raises(TypeError, match="`features` must be a tuple of names, got 'raw'"):
        Features("raw", "scores")
    with pytest.raises(ValueError, match="`outputs` must be one of 'scores', 'logits'"):
        Features(("raw",), "labels")
