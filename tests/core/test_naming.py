"""Names for what comes in lists, and errors that say whose they are."""

import pytest

from advkit.core.naming import assign_names, did_you_mean, error_context, quoted


def by_type(thing):
    return type(thing).__name__


def names(things, known=None):
    return assign_names(
        "things", things, {} if known is None else known, kind="thing", short=by_type
    )


def test_a_list_is_named_in_its_order_and_numbered_where_names_meet():
    things = [[1], (2,), [3], [4]]
    assert names(things) == {"list": [1], "tuple": (2,), "list 2": [3], "list 3": [4]}


def test_what_has_a_name_elsewhere_keeps_it_and_nothing_else_takes_it():
    first, second = [1], [2]
    known = {id(first): "list"}
    assert names([second, first], known) == {"list 2": second, "list": first}
    assert known == {id(first): "list", id(second): "list 2"}


def test_a_mapping_keeps_its_names():
    known = {}
    thing = [1]
    assert names({"mine": thing}, known) == {"mine": thing}
    assert known == {id(thing): "mine"}


def test_what_is_refused():
    with pytest.raises(
        TypeError, match="`things` must be a mapping from names to things or a list"
    ):
        names("abc")
    with pytest.raises(TypeError, match="`things` must have strings as keys, got 3"):
        names({3: []})
    with pytest.raises(ValueError, match="`things` must hold at least one thing, got none"):
        names([])
    thing = [1]
    with pytest.raises(ValueError, match="`things` must hold each thing once, got list twice"):
        names([thing, thing])


@pytest.mark.parametrize("kind", [ValueError, TypeError])
def test_an_error_says_whose_it_is(kind):
    with pytest.raises(kind, match="^model 'mine': too small$"), error_context("model", "mine"):
        raise kind("too small")


def test_names_in_quotes():
    assert quoted(["a", "it's", None]) == "'a', \"it's\", None"


def test_the_nearest_known_name_is_offered_in_its_own_case():
    assert did_you_mean("deepfol", ["PGD", "DeepFool"]) == ", did you mean 'DeepFool'?"
    assert did_you_mean("square", ["PGD", "DeepFool"]) == ""
