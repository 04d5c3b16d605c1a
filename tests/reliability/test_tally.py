"""The count of trials."""

import pytest

from .tally import Tally


def test_a_trial_that_raises_is_counted_as_broken():
    tally = Tally("files are whole")
    with tally.trial("first"):
        pass
    with tally.trial("second"):
        raise KeyboardInterrupt
    assert (tally.tried, tally.held) == (2, 1)
    with pytest.raises(AssertionError, match="held 1 of 2\nsecond: KeyboardInterrupt"):
        tally.check()


def test_no_trials_are_no_proof():
    with pytest.raises(AssertionError, match="nothing was tried"):
        Tally("files are whole").check()


def test_the_fixture_counts(tally):
    for name in range(3):
        with tally("the tally counts").trial(name):
            assert True
