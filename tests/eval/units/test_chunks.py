"""Chunks of the inputs."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import advkit
from advkit import eval
from advkit.eval.units.chunks import Chunk, Inputs
from tests.eval.evaluated import CALLS, Centered, Net, data, plain, several


def every(number):
    return True


def layout(inputs, wanted=every):
    """The numbers of the first samples and the sizes of all batches, chunk by chunk."""
    return [
        (chunk.number, [(first, len(x)) for x, _, first in chunk.batches])
        for chunk in inputs.chunks(wanted)
    ]


@pytest.mark.parametrize("chunk_size", [10, 17, 20])
def test_a_chunk_is_rounded_up_to_whole_batches(chunk_size):
    x, y = data(45)
    inputs = Inputs(x, y, 10, chunk_size)
    wanted = {
        10: [(i, [(10 * i, 10 if i < 4 else 5)]) for i in range(5)],
        20: [(0, [(0, 10), (10, 10)]), (1, [(20, 10), (30, 10)]), (2, [(40, 5)])],
    }
    assert layout(inputs) == wanted[10 if chunk_size == 10 else 20]
    assert (inputs.total, inputs.chunk_count) == (45, len(layout(inputs)))


def test_the_chunks_hold_the_data():
    x, y = data(45)
    for source in ((x, y), (TensorDataset(x, y), None)):
        chunks = list(Inputs(*source, 10, 20).chunks(every))
        assert torch.equal(torch.cat([part[0] for c in chunks for part in c.batches]), x)
        assert torch.equal(torch.cat([part[1] for c in chunks for part in c.batches]), y)
        assert [chunk.first for chunk in chunks] == [0, 20, 40]
        assert [len(chunk) for chunk in chunks] == [20, 20, 5]


def test_a_loader_keeps_its_batches():
    x, y = data(1000)
    inputs = Inputs(DataLoader(TensorDataset(x, y), batch_size=100), None, 128, 256)
    assert (inputs.total, inputs.chunk_count, inputs.count(every)) == (None, None, None)
    assert inputs.size(every) is None
    found = layout(inputs)
    assert [[size for _, size in batches] for _, batches in found] == [[100] * 3] * 3 + [[100]]
    assert (inputs.total, inputs.chunk_count, inputs.count(every)) == (1000, 4, 4)


def test_wanted_chunks_alone_are_read():
    x, y = data(45)
    read = []

    class Reads(TensorDataset):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    inputs = Inputs(Reads(x, y), None, 10, 10)
    assert layout(inputs, lambda number: number % 2 == 1) == [(1, [(10, 10)]), (3, [(30, 10)])]
    assert read == [*range(10, 20), *range(30, 40)]
    assert inputs.size(lambda number: number >= 3) == 15
    assert inputs.count(lambda number: number >= 3) == 2


def test_a_stream_numbers_the_chunks_that_are_not_wanted():
    x, y = data(45)
    batches = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 45, 10)]
    inputs = Inputs(batches, None, 10, 20)
    assert layout(inputs, lambda number: number != 0) == [(1, [(20, 10), (30, 10)]), (2, [(40, 5)])]
    assert (inputs.total, inputs.chunk_count) == (45, 3)


def test_a_stream_may_reuse_its_memory():
    x, y = data(40)

    def batches():
        memory, labels = torch.empty(10, 6), torch.empty(10, dtype=torch.int64)
        for i in range(0, 40, 10):
            yield memory.copy_(x[i : i + 10]), labels.copy_(y[i : i + 10])

    (chunk,) = Inputs(batches(), None, 10, 40).chunks(every)
    assert torch.equal(torch.cat([part[0] for part in chunk.batches]), x)
    assert torch.equal(torch.cat([part[1] for part in chunk.batches]), y)


def test_batches_of_a_chunk_may_have_several_shapes():
    samples = [(torch.zeros(size, 2), 0) for size in (1, 2, 3)]

    class Shapes:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return samples[index]

    (chunk,) = Inputs(Shapes(), None, 1, 10).chunks(every)
    assert [tuple(x.shape) for x, _, _ in chunk.batches] == [(1, 1, 2), (1, 2, 2), (1, 3, 2)]


def test_empty_batches_and_an_empty_stream():
    x, y = data(4)
    inputs = Inputs([(x, y), (x[:0], y[:0])], None, 4, 4)
    assert layout(inputs) == [(0, [(0, 4)]), (1, [(4, 0)])]
    nothing = Inputs([], None, 4, 4)
    assert layout(nothing) == []
    assert (nothing.total, nothing.chunk_count) == (0, 0)


def test_an_empty_chunk_has_the_shape_of_the_inputs():
    x, y = data(4)
    stream = Inputs([(x, y)], None, 4, 4)
    list(stream.chunks(every))
    for inputs in (Inputs(x, y, 4, 4), Inputs(TensorDataset(x, y), None, 4, 4), stream):
        chunk = inputs.empty_chunk()
        ((inside, labels, first),) = chunk.batches
        assert (inside.shape, labels.shape, first) == ((0, 6), (0,), 0)


def test_the_digest_depends_on_everything():
    x, y = data(8)

    def digest(number=0, first=0, size=4, x=x, y=y):
        parts = [(x[i : i + size], y[i : i + size], first + i) for i in range(0, 8, size)]
        return Chunk(number, tuple(parts)).digest

    other_x, other_y = x.clone(), y.clone()
    other_x[7, 5] = other_x[7, 5].nextafter(torch.tensor(1.0))
    other_y[7] = (other_y[7] + 1) % 3
    digests = [
        digest(), digest(number=1), digest(first=4), digest(size=8), digest(x=other_x),
        digest(y=other_y), digest(x=x.double()), digest(x=x[:, :, None]), digest(y=y.float()),
    ]  # fmt: skip
    assert len(set(digests)) == len(digests)
    assert digest(x=x.clone()) == digest(y=y.int()) == digests[0]


def test_the_digest_depends_on_the_given_rows():
    x, y = data(8)

    def digests(rows):
        inputs = Inputs(x, y, 4, 4)
        with advkit.given_rows(rows):
            return [chunk.digest for chunk in inputs.chunks(every)]

    alone = [chunk.digest for chunk in Inputs(x, y, 4, 4).chunks(every)]
    first, second = digests([*range(8)]), digests([*range(7), 9])
    assert first[0] == second[0] != alone[0]
    assert first[1] != second[1]


def test_a_chunk_on_another_device():
    chunk = Chunk(3, ((torch.zeros(2, 1), torch.zeros(2), 5),))
    assert chunk.to(None) is chunk
    moved = chunk.to("meta")
    assert (moved.number, moved.first) == (3, 5)
    assert {tensor.device.type for part in moved.batches for tensor in part[:2]} == {"meta"}


@pytest.mark.parametrize("chunk_size", [1, 7, 16, 33, 500])
def test_the_report_does_not_depend_on_chunks(tmp_path, chunk_size):
    x, y = data()
    wanted = plain(eval.evaluate(Net(), x, y, attacks=several(), batch_size=10))
    loader = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 60, 10)]
    for number, source in enumerate([(x, y), (loader,), (TensorDataset(x, y),)]):
        report = eval.evaluate(
            Net(), *source, attacks=several(), batch_size=10, chunk_size=chunk_size,
            store=tmp_path / str(number),
        )  # fmt: skip
        assert plain(report) == {**wanted, "inputs_wanted": None if number == 1 else 60}


def test_models_that_need_whole_batches(tmp_path):
    x, y = data()
    net = advkit.TorchClassifier(Centered(), batch="whole")
    wanted = eval.evaluate(net, x, y, attacks=several(), batch_size=12)
    CALLS.clear()
    found = eval.evaluate(
        net, x, y, attacks=several(), batch_size=12, chunk_size=20, store=tmp_path
    )
    assert plain(found) == plain(wanted)
    assert set(CALLS) == {12}
