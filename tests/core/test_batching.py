"""Minibatches."""

import itertools
from collections import UserDict

import pytest
import torch

from advkit.core.batching import batches, is_pair, offset_sample_numbers, without_empty


def test_tensors_are_cut_without_a_rest():
    x, y = torch.arange(10).view(5, 2), torch.arange(5)
    parts = list(batches(x, y, 2))
    assert [(len(p[0]), p[2]) for p in parts] == [(2, 0), (2, 2), (1, 4)]
    assert torch.equal(torch.cat([p[0] for p in parts]), x)
    assert torch.equal(torch.cat([p[1] for p in parts]), y)


def test_the_batches_of_an_iterable_are_numbered():
    pairs = [(torch.zeros(n, 2), torch.zeros(n)) for n in (2, 0, 3, 1)]
    found = list(batches(pairs, None, 128))
    assert [first for _, _, first in found] == [0, 2, 2, 5]
    assert all(x is a and y is b for (x, y, _), (a, b) in zip(found, pairs, strict=True))


def test_batches_are_moved_to_the_device_one_at_a_time():
    (x, y, first), *_ = batches(torch.zeros(4, 2), torch.zeros(4), 3, device="meta")
    assert (x.device.type, y.device.type, first) == ("meta", "meta", 0)
    endless = ((torch.ones(1, 1), torch.ones(1)) for _ in itertools.count())
    assert next(batches(endless, None, 1, device="meta"))[0].device.type == "meta"


def test_batches_without_samples_are_left_out():
    pairs = [(torch.zeros(n, 2), torch.zeros(n)) for n in (0, 2, 0, 1)]
    assert [first for *_, first in without_empty(batches(pairs, None, 1))] == [0, 2]
    with pytest.raises(ValueError, match="`x` must hold at least one sample, got none"):
        list(without_empty(batches(pairs[:1], None, 1)))


def test_an_error_says_where_its_batch_begins():
    said = "in the batch that begins at sample 8: y is wrong"
    for first, message in ((0, "y is wrong"), (8, said)):
        with pytest.raises(ValueError, match=f"^{message}$"), offset_sample_numbers(first):
            raise ValueError("y is wrong")


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x, y: (x, y),
        lambda x, y: [x, y],
        lambda x, y: (x, y, torch.arange(len(x)), "more"),
        lambda x, y: {"x": x, "y": y},
        lambda x, y: {"label": y, "image": x, "path": ["a"] * len(x)},
        lambda x, y: UserDict(pixel_values=x, labels=y),
    ],
)
def test_batches_may_have_more_entries_or_be_dictionaries(wrap):
    x, y = torch.rand(5, 2), torch.arange(5)
    found = list(batches([wrap(x[:2], y[:2]), wrap(x[2:], y[2:])], None, 9))
    assert [first for *_, first in found] == [0, 2]
    assert torch.equal(torch.cat([x for x, *_ in found]), x)
    assert torch.equal(torch.cat([y for _, y, _ in found]), y)


@pytest.mark.parametrize(
    ("batch", "shown"),
    [
        (torch.rand(2, 3), r"a tensor of shape \(2, 3\)"),  # not two samples
        ((torch.rand(2, 3),), "a tuple of 1"),
        ([torch.rand(2, 3)], "a list of 1"),
        ({"image": torch.rand(2, 3)}, r"a dictionary with the keys \['image'\]"),
        (3, "got int"),
    ],
)
def test_a_batch_without_labels_is_one_clear_sentence(batch, shown):
    with pytest.raises(TypeError, match=f"`x` must give batches with labels.*{shown}.*batch 2"):
        list(batches([(torch.rand(2, 3), torch.arange(2)), batch], None, 9))


def test_bad_arguments():
    x = torch.zeros(4, 2)
    with pytest.raises(TypeError, match="`y` must be None"):
        batches([(x, x)], torch.zeros(4), 2)
    with pytest.raises(TypeError, match=r"`y` must be a torch.Tensor"):
        batches(x, None, 2)
    with pytest.raises(TypeError, match="iterable of"):
        batches(3, None, 2)
    with pytest.raises(ValueError, match="`y` must have one label for each of 4 samples, got 3"):
        batches(x, torch.zeros(3), 2)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1"):
        batches(x, torch.zeros(4), 0)


@pytest.mark.parametrize("kind", [tuple, list])
def test_a_pair_of_tensors_is_not_an_iterable_of_batches(kind):
    x, y = torch.rand(4, 1, 2, 2), torch.zeros(4).long()
    said = rf"`x` must be .*, got two tensors in a {kind.__name__}. Pass them as `x` and `y`\.$"
    with pytest.raises(TypeError, match=said):
        batches(kind((x, y)), None, 2)
    assert not is_pair([x, x])
    assert not is_pair([(x, y), (x, y)])
