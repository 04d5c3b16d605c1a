"""Indexed data sets: told apart from batches, read sample by sample, errors with the sample."""

from collections import UserDict, UserList, deque

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from advkit.core.batching import batches
from advkit.core.indexed_data import is_indexed, number_of_samples, select


class Samples:
    """A data set of a list of samples that counts its reads."""

    def __init__(self, samples):
        self.samples, self.reads = samples, []

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        self.reads.append(index)
        return self.samples[index]


class MapStyle(Dataset):
    def __getitem__(self, index):
        return torch.zeros(2), 0


class Stream(IterableDataset):
    def __len__(self):
        return 3

    def __iter__(self):
        yield torch.zeros(2, 2), torch.zeros(2)


class Iterated:
    def __len__(self):
        return 3

    def __iter__(self):
        yield torch.zeros(2, 2), torch.zeros(2)


class OddLoader(DataLoader):
    def __getitem__(self, index):
        raise AssertionError


X, Y = torch.rand(7, 2, 3), torch.tensor([3, 1, 4, 1, 5, 9, 2])
PAIRS = [(x, int(y)) for x, y in zip(X, Y, strict=True)]


def odd(sample, at=4):
    """Seven samples, of which the one `at` 4 is `sample`."""
    return Samples([sample if i == at else pair for i, pair in enumerate(PAIRS)])


@pytest.mark.parametrize(
    "x", [TensorDataset(X, Y), Samples(PAIRS), Subset(TensorDataset(X, Y), range(7))]
)
def test_data_sets_have_a_length_in_samples(x):
    assert is_indexed(x)
    assert number_of_samples(x) == 7


@pytest.mark.parametrize(
    "x",
    [PAIRS, tuple(PAIRS), deque(PAIRS), UserList(PAIRS), {"x": X}, UserDict(x=X), Stream(), "data",
     DataLoader(TensorDataset(X, Y)), OddLoader(TensorDataset(X, Y)), Iterated(), iter(PAIRS),
     MapStyle, Samples, X.numpy(), 3],
    ids=lambda x: type(x).__name__,
)  # fmt: skip
def test_other_things_are_not_data_sets(x):
    assert not is_indexed(x)
    assert number_of_samples(x) is None


def test_the_length_of_a_tensor():
    assert not is_indexed(X)
    assert number_of_samples(X) == 7


def test_lists_and_loaders_give_batches():
    for x in (deque([(X, Y)]), DataLoader(TensorDataset(X, Y), 7), [(X, Y)]):
        ((inputs, labels, first),) = batches(x, None, 2)
        assert torch.equal(inputs, X)
        assert torch.equal(labels, Y)
        assert first == 0


def test_a_data_set_without_a_length_is_refused():
    said = "`x` must have a length, got MapStyle, a data set without `__len__`. Add the method"
    with pytest.raises(TypeError, match=said):
        batches(MapStyle(), None, 2)


def test_samples_are_stacked():
    parts = list(batches(TensorDataset(X, Y.int()), None, 3))
    assert [(len(x), first) for x, _, first in parts] == [(3, 0), (3, 3), (1, 6)]
    assert torch.equal(torch.cat([x for x, *_ in parts]), X)
    labels = torch.cat([y for _, y, _ in parts])
    assert labels.dtype == torch.int64
    assert torch.equal(labels, Y)


def test_a_sample_is_read_once_when_its_batch_is_due():
    data = Samples(PAIRS)
    stream = batches(data, None, 3)
    assert data.reads == []
    next(stream)
    assert data.reads == [0, 1, 2]
    list(stream)
    assert data.reads == list(range(7))


def test_nothing_is_kept_of_earlier_batches():
    """Each input counts while it is alive: at most those of two batches are."""

    class Counted:
        alive = most = 0

        def __len__(self):
            return 40

        def __getitem__(self, index):
            x = torch.zeros(2).as_subclass(Input)
            Counted.alive += 1
            Counted.most = max(Counted.most, Counted.alive)
            return x, 0

    class Input(torch.Tensor):
        def __del__(self):
            if self.shape == (2,):
                Counted.alive -= 1

    for _ in batches(Counted(), None, 4):
        pass
    assert Counted.most <= 8


def test_batches_of_a_data_set_are_moved():
    x, y, _ = next(batches(Samples(PAIRS), None, 3, device="meta"))
    assert (x.device.type, y.device.type) == ("meta", "meta")


def test_a_part_of_the_samples():
    data = Samples(PAIRS)
    for x, y in (select(data, None, 2, 5), select(X, Y, 2, 5)):
        assert torch.equal(x, X[2:5])
        assert torch.equal(y, Y[2:5])
    assert data.reads == [2, 3, 4]
    assert len(select(data, None, 5, 99)[0]) == 2
    assert [len(part) for part in select(data, None, 7, 9)] == [0, 0]
    assert list(batches(Samples([]), None, 3)) == []


@pytest.mark.parametrize(
    "sample",
    [
        (X[4], Y[4]),
        [X[4].numpy(), np.int16(5), "more"],
        {"image": X[4], "label": 5},
        {"pixel_values": X[4], "labels": np.array(5)},
        (X[4].numpy()[::-1].copy()[::-1], 5.0),  # negative strides
        (np.broadcast_to(X[4].numpy(), (2, 3)), torch.tensor(5.0)),  # read-only
    ],
)
def test_kinds_of_samples(sample):
    x, y = select(odd(sample), None, 0, 7)
    assert torch.equal(x, X)
    assert torch.equal(y, Y)
    assert y.dtype == torch.int64


class FromPil:
    __module__ = "PIL.Image"


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        (X[4], r"samples with labels, as \(x, y\).*got a tensor of shape \(2, 3\)"),
        ((X[4],), "samples with labels.*got a tuple of 1"),
        ({"image": X[4]}, "samples with labels.*got a dictionary with the keys"),
        ((FromPil(), 3), "inputs that are tensors .*got a PIL image .FromPil."),
        (([[1.0]], 3), "inputs that are tensors or numeric arrays, got list"),
        ((np.array(["a"]), 3), "inputs that are tensors .*got an array of dtype <U1"),
        ((X[4], "cat"), "integer labels, got str: 'cat'"),
        ((X[4], None), "integer labels, got NoneType: None"),
        ((X[4], 1j), "integer labels, got complex"),
        ((X, Y), r"one integer label for each sample, got labels of shape \(7,\)"),
        ((X[4], 2.5), "integer labels of 64 bits, got 2.5"),
        ((X[4], float("nan")), "integer labels of 64 bits, got nan"),
        ((X[4], float("inf")), "integer labels of 64 bits, got inf"),
        ((X[4], 2**63), "integer labels of 64 bits, got 9223372036854775808"),
        ((X[4].T, 2), r"inputs of one shape in a batch, got \(2, 3\) .sample 3. and \(3, 2\)"),
    ],
)
def test_odd_samples_are_named_by_their_number(sample, said):
    with pytest.raises((TypeError, ValueError), match=rf"^`x` must give {said}.*\(sample 4\)"):
        list(batches(odd(sample), None, 3))


def test_what_to_do_about_odd_samples():
    with pytest.raises(TypeError, match="Give the data set a transform to tensors, such as ToTen"):
        select(odd((FromPil(), 3)), None, 0, 7)
    with pytest.raises(TypeError, match=r"If its entries are batches, pass iter\(x\)"):
        select(odd((X, Y)), None, 0, 7)
    with pytest.raises(ValueError, match="Resize the inputs, or set `batch_size` to 1"):
        select(odd((X[4].T, 2)), None, 0, 7)
    assert len(list(batches(odd((X[4].T, 2)), None, 1))) == 7


def test_bad_arguments():
    with pytest.raises(TypeError, match="`y` must be None when `x` is a data set with labels, got"):
        batches(Samples(PAIRS), Y, 2)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0"):
        batches(Samples(PAIRS), None, 0)
