"""Checks of what a file holds."""

from collections import Counter

import pytest
import torch
from torch import nn

from advkit.core.content import check_keys, check_like, check_shape, load_state, shown

GOOD = [
    (1.5, 2.5), (0, 3), (-1.0, -7.0), (1.0, 2), (None, None), (True, True), ("cos", "cos"),
    ([1, 2], [3, 1]), ({"lr": 1}, {"lr": 0.0}), ({"last_epoch": 3}, {"last_epoch": 0}),
    (Counter({1: 1}), Counter({7: 2, 9: 1})), (torch.zeros(2), torch.ones(2)),
    (torch.tensor([torch.inf]), torch.tensor([torch.inf])), ({"betas": (0.9,)}, {"betas": (0.5,)}),
]  # fmt: skip
BAD = [
    (1.5, "2"), (1.5, True), (1.5, float("nan")), (1.5, float("inf")), (1.5, -0.1), (3, 1.5),
    (3, 0), (0, -1), (0, 10**400), (None, 0), (True, False), ("cos", "sin"), ([1], (1,)),
    ([1], [1, 2]), ({"a": 1}, {}), ({"a": 1}, {"a": 1, "b": 1}), ({"a": 1}, [1]),
    (Counter({1: 1}), {1: 1}), (Counter({1: 1}), Counter({"a": 1})), (torch.zeros(2), [0.0, 0.0]),
    (torch.zeros(2), torch.zeros(3)), (torch.zeros(2), torch.zeros(2).double()),
    (torch.zeros(2), torch.full((2,), torch.nan)), (torch.tensor(1), torch.tensor(-1)),
    (torch.zeros(2), torch.zeros(2, device="meta")), (torch.zeros(2), torch.zeros(2).to_sparse()),
    ({"betas": (0.9,)}, {"betas": (1.5,)}),
]  # fmt: skip


@pytest.mark.parametrize(("own", "found"), GOOD)
def test_what_is_alike(own, found):
    check_like("part", found, own)


@pytest.mark.parametrize(("own", "found"), BAD)
def test_what_is_not_alike(own, found):
    with pytest.raises(ValueError, match="^`part"):
        check_like("part", found, own)


def test_keys():
    check_keys("about", {"a": 1}, ("a",))
    for found, said in [
        ([], "must be a dict"),
        ({}, "must have the key 'a'"),
        ({"a": 1, 2: 1}, "must not have the key 2"),
    ]:
        with pytest.raises(ValueError, match=f"`about` {said}"):
            check_keys("about", found, ("a",))


def test_shapes():
    check_shape("x", torch.full((2,), torch.inf), torch.float32, (2,))
    with pytest.raises(ValueError, match="`x` must be finite"):
        check_shape("x", torch.full((2,), torch.inf), torch.float32, (2,), finite=True)
    with pytest.raises(ValueError, match=r"`x` must be torch.float32 of shape \(3,\), got"):
        check_shape("x", torch.zeros(2), torch.float32, (3,))


def test_nested_values_are_shown_by_their_type():
    endless = []
    for _ in range(100):
        endless = [endless, endless]
    assert shown(endless) == "list"
    assert shown(10**5000) == "int"
    assert shown("a" * 100) == repr("a" * 100)[:50]


@pytest.mark.parametrize("state", [{"weight": torch.ones(2, 3)}, {1: 2}, {}, {"bias": None}])
def test_a_state_is_loaded_whole_or_not_at_all(state):
    module = nn.Linear(3, 2)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError):  # noqa: PT011 - the sentence is torch's
        load_state(module, state)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])
    load_state(module, {"weight": torch.ones(2, 3), "bias": torch.ones(2)})
    assert module.weight.eq(1).all()
