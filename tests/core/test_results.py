"""The error of a budget that is spent."""

import pickle

from advkit import QueryBudgetExceeded


def test_a_spent_budget_says_what_it_was_and_what_was_wanted():
    error = QueryBudgetExceeded(12_000, 11_990, 1_500)
    assert isinstance(error, RuntimeError)
    assert (error.max_queries, error.spent, error.requested) == (12_000, 11_990, 1_500)
    assert error.result is None
    assert str(error) == (
        "`max_queries` must allow 1,500 more queries, got 10 of 12,000 left. "
        "Inside an attack, the error's `result` has the result so far."
    )


def test_a_spent_budget_survives_pickling():
    error = QueryBudgetExceeded(10, 8, 5)
    error.result = "what was found"
    again = pickle.loads(pickle.dumps(error))
    assert (again.max_queries, again.spent, again.requested, again.result) == (
        10,
        8,
        5,
        "what was found",
    )
    assert str(again) == str(error)
