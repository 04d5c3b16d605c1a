"""The error of a budget that is spent."""

import pickle

from advkit import QueryBudgetExceeded


def test_a_spent_budget_says_what_it_was_and_what_was_wanted():
    error = QueryBudgetExceeded(12_000, 11_990, 1_500)
    assert isinstance(error, RuntimeError)
    assert (error.max_queries, error.spent, error.wanted) == (12_000, 11_990, 1_500)
    assert error.result is None
    assert str(error) == (
        "the query budget of 12,000 samples has 10 left, but the call needs 1,500. "
        "The result so far is in the error's .result."
    )


def test_a_spent_budget_survives_pickling():
    error = QueryBudgetExceeded(10, 8, 5)
    error.result = "what was found"
    again = pickle.loads(pickle.dumps(error))
    assert (again.max_queries, again.spent, again.wanted, again.result) == (
        10,
        8,
        5,
        "what was found",
    )
    assert str(again) == str(error)
