"""Evaluations for the tests of trackers."""

import pytest

from advkit import eval as rob
from tests.eval.evaluated import Net, data, several


def evaluate(*callbacks, **changed):
    """An evaluation of 60 inputs in 3 chunks, under attacks of several kinds."""
    given = {"attacks": several(), "batch_size": 20, "about": {"data": "a | b"}, **changed}
    return rob.evaluate(Net(), *data(), callbacks=callbacks, **given)


class Fails(rob.Callback):
    """A callback that fails in the second chunk."""

    def on_chunk(self, record):
        if record.chunk == 1:
            raise LookupError("of the callback")


def evaluate_in_vain(tracker):
    """An evaluation that ends with an error after the tracker got two chunks."""
    with pytest.raises(LookupError):
        evaluate(tracker, Fails())
