"""Numbers of samples: frames within frames."""

import numpy as np
import pytest
import torch

import advkit
from advkit.core import sample_rows
from advkit.core.sample_rows import current_rows, given, given_rows, in_parts, numbered, selected


def test_outside_there_are_no_numbers():
    with pytest.raises(RuntimeError, match="with advkit.given_rows"):
        advkit.current_rows()
    with selected(range(2), 4), pytest.raises(RuntimeError, match="with advkit.given_rows"):
        current_rows()


@pytest.mark.parametrize("rows", [[4, 1], torch.tensor([4, 1]), np.array([4, 1], dtype=np.int32)])
def test_given_rows_are_read(rows):
    with advkit.given_rows(rows):
        assert current_rows().tolist() == [4, 1]
        assert current_rows().dtype == torch.int64
    with pytest.raises(RuntimeError):
        current_rows()


def test_frames_are_composed():
    with numbered(5, first=10), selected(torch.tensor([4, 1, 1]), 5), selected(range(1, 3), 3):
        assert current_rows().tolist() == [11, 11]
    with given_rows([7, 3, 9]), numbered(2, first=1), selected(torch.tensor([1]), 2):
        assert current_rows().tolist() == [9]
    with given_rows([7, 3]), numbered(2, total=2):
        assert current_rows().tolist() == [7, 3]
    with given_rows([7, 3]), given_rows([0]):  # numbers in the data, whatever is around
        assert current_rows().tolist() == [0]


def test_the_frame_outside_is_back_after_an_error():
    with given_rows([3]):
        with pytest.raises(KeyError), numbered(5):
            raise KeyError
        assert current_rows().tolist() == [3]


def test_numbers_that_do_not_fit_are_refused():
    with (
        given_rows([7, 3]),
        numbered(3, total=3),
        pytest.raises(RuntimeError, match="got 2 for 3"),
    ):
        current_rows()
    with given_rows([7, 3]), numbered(3), pytest.raises(RuntimeError, match="got 2 for 3"):
        current_rows()
    with given_rows([7, 3]), numbered(1), pytest.raises(RuntimeError, match="5 samples"), given(5):
        current_rows()
    with given_rows([7, 3]), given(2):
        assert current_rows().tolist() == [7, 3]
    for inner in (numbered, given):
        error = pytest.raises(RuntimeError, match="no numbers for these images")
        with sample_rows.unnumbered("these images"), inner(2), error:
            current_rows()


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([0.5], TypeError, "must be integers, got float64"),
        ([True], TypeError, "must be integers, got bool"),
        ([[1]], ValueError, r"must have shape \(n,\), got \(1, 1\)"),
        ([1, -2], ValueError, "must not be negative, got -2"),
    ],
)
def test_rows_are_checked(rows, error, message):
    with pytest.raises(error, match=message):
        given_rows(rows)


def test_parts_are_numbered():
    with given_rows([5, 6, 7, 8, 9]):
        found = in_parts(lambda a, b: a + b + current_rows(), *torch.ones(2, 5), size=2)
    assert found.tolist() == [7, 8, 9, 10, 11]
    assert in_parts(torch.neg, torch.zeros(0), size=2).shape == (0,)


def test_surroundings_are_those_of_the_current_samples():
    batch = torch.rand(4, 2)
    with numbered(4), selected(torch.tensor([1, 3]), 4, batch=batch):
        with numbered(2, total=2):
            frame = sample_rows.surroundings(2)
            assert frame.batch is batch
            assert frame.places(batch.device).tolist() == [1, 3]
        assert sample_rows.surroundings(3) is None
    assert sample_rows.surroundings(2) is None


def test_a_context_is_entered_once():
    rows = advkit.given_rows([1, 2])
    with rows, pytest.raises(RuntimeError, match="called for each `with`"):
        rows.__enter__()
    with pytest.raises(RuntimeError, match="must be called inside an attack"):
        advkit.current_rows()


@pytest.mark.parametrize(
    "rows", [[], np.array([2, 1], np.uint16), np.arange(3)[::-1], (4,)], ids=repr
)
def test_numbers_of_every_kind(rows):
    with advkit.given_rows(rows):
        assert advkit.current_rows().tolist() == list(rows)


@pytest.mark.parametrize("rows", ["a", None, {1, 2}, slice(0, 3), [1.5], [True]], ids=repr)
def test_what_are_no_numbers(rows):
    with pytest.raises(TypeError, match="`rows` must be integers"):
        advkit.given_rows(rows)
