"""An error in the middle of paid work: what was found before it comes along."""

import numpy as np
import pytest
import torch

from advkit import CallableClassifier, QueryBudgetExceeded, ServiceError, attacks, detectors
from advkit import eval as rob
from tests.toys import answers, convnet, images

X = images(12)
Y = answers(convnet(), X)
SQUARE = attacks.Square(eps=0.01, max_queries=20, stop="never")


def service(ends=None, error=None):
    """A service that ends after so many samples, by its budget or by an error of its own."""
    net, sent = convnet(), []

    def answer(rows):
        sent.append(len(rows))
        if error is not None and sum(sent) > ends:
            raise error("down")
        with torch.no_grad():
            return net(torch.from_numpy(rows)).double().softmax(1).numpy()

    return CallableClassifier(answer, 3, max_queries=ends if error is None else None)


ENDS = {
    "budget": (None, QueryBudgetExceeded),
    "service": (ConnectionError, ServiceError),
    "interrupt": (KeyboardInterrupt, KeyboardInterrupt),
}


@pytest.fixture(params=ENDS.values(), ids=ENDS)
def ended(request):
    """What runs work on a service that ends after so many samples, and gives the error."""
    error, expected = request.param

    def run(work, ends):
        with pytest.raises(expected) as caught:
            work(service(ends, error))
        return caught.value

    return run


def evaluated(model, n=12):
    return rob.evaluate(model, X[:n], Y[:n], attacks=[SQUARE], batch_size=4)


def collected(model, n=12):
    return detectors.collect({"m": model}, {"s": SQUARE}, X[:n], Y[:n], batch_size=4)


def matrix(model, n=12):
    return rob.transfer_matrix({"m": model}, None, SQUARE, X[:n], Y[:n], batch_size=4)


def test_an_evaluation_keeps_the_report_of_the_batches_before(ended):
    found = ended(evaluated, 250).report
    expected = evaluated(service(), 8)
    assert torch.equal(found.clean, expected.clean)
    assert torch.equal(found.outcomes[0].robust, expected.outcomes[0].robust)
    assert found.total == 12
    early = ended(evaluated, 50)
    assert not hasattr(early, "report")
    assert not hasattr(early, "__notes__")


def test_a_table_keeps_the_rows_of_the_batches_before(ended):
    error = ended(collected, 250)
    expected = collected(service(), 8)
    for name in ("outputs", "sample", "attack", "label", "success"):
        assert np.array_equal(getattr(error.table, name), getattr(expected, name))
    assert ".table has the rows" in error.__notes__[0]
    rest = detectors.collect(
        {"m": service()}, {"s": SQUARE}, X[8:], Y[8:], batch_size=4, first_sample=8
    )
    whole = detectors.OutputTable.concatenate([error.table, rest])
    assert len(whole) == len(collected(service()))
    assert not hasattr(ended(collected, 50), "table")


def test_a_matrix_keeps_the_batches_before(ended):
    error = ended(matrix, 250)
    expected = matrix(service(), 8)
    assert torch.equal(error.matrix.no_attack, expected.no_attack)
    assert torch.equal(error.matrix.sources[0].misclassified, expected.sources[0].misclassified)
    assert error.matrix.total == 8
    assert not hasattr(ended(matrix, 50), "matrix")
