"""What is found batch by batch, joined over the data."""

import pytest
import torch

from advkit.core.batch_recorder import BatchRecorder


def test_batches_are_joined_along_the_samples():
    recorder = BatchRecorder()
    assert recorder.compute() == {}
    recorder.update({"a": torch.tensor([1, 2]), ("linf", 0.1): torch.tensor([[1, 2], [3, 4]])})
    recorder.update({"a": torch.tensor([5]), ("linf", 0.1): torch.tensor([[5], [6]])})
    joined = recorder.compute()
    assert joined["a"].tolist() == [1, 2, 5]
    assert joined["linf", 0.1].tolist() == [[1, 2, 5], [3, 4, 6]]
    recorder.update({"a": torch.tensor([7])})
    assert recorder.compute()["a"].tolist() == [1, 2, 5, 7]


def test_what_is_recorded_lies_on_the_cpu():
    class Elsewhere:
        def cpu(self):
            return torch.tensor([3])

    recorder = BatchRecorder()
    recorder.update({"a": Elsewhere()})
    assert recorder.compute()["a"].tolist() == [3]


def test_the_first_batches_can_be_joined_by_themselves():
    recorder = BatchRecorder()
    for number in range(4):
        recorder.update({"a": torch.tensor([number])})
    assert len(recorder) == 4
    assert recorder.compute(2)["a"].tolist() == [0, 1]


def test_a_batch_that_was_recorded_in_part_is_left_out():
    class Fails:
        def cpu(self):
            raise KeyboardInterrupt

    recorder = BatchRecorder()
    recorder.update({"a": torch.tensor([1]), "b": torch.tensor([1])})
    with pytest.raises(KeyboardInterrupt):
        recorder.update({"a": torch.tensor([2]), "b": Fails()})
    joined = recorder.compute(len(recorder))
    assert joined["a"].tolist() == joined["b"].tolist() == [1]


def test_the_columns_are_those_of_all_batches_in_order():
    recorder, parts = BatchRecorder(), []
    generator = torch.Generator().manual_seed(0)
    for n in (3, 0, 1000, 700, 5):
        parts.append(torch.rand(n, generator=generator))
        recorder.update({"a": parts[-1], "b": parts[-1] > 0.5, "c": parts[-1].expand(2, n)})
    found = recorder.compute()
    whole = torch.cat(parts)
    assert torch.equal(found["a"], whole)
    assert torch.equal(found["b"], whole > 0.5)
    assert torch.equal(found["c"], whole.expand(2, -1))
    assert len(recorder) == 5


def test_the_first_batches_stay_as_they_are():
    recorder = BatchRecorder()
    recorder.update({"a": torch.tensor([1, 2])})
    first = recorder.compute()["a"]
    recorder.update({"a": torch.tensor([3])})
    first += 10
    assert recorder.compute(1)["a"].tolist() == [1, 2]
    assert recorder.compute(0)["a"].tolist() == []
    assert recorder.compute()["a"].tolist() == [1, 2, 3]


def test_the_dtype_holds_the_values_of_all_batches():
    recorder = BatchRecorder()
    recorder.update({"a": torch.tensor([0.5], dtype=torch.float16)})
    recorder.update({"a": torch.tensor([1 + 2**-40], dtype=torch.float64)})
    recorder.update({"a": torch.tensor([0.25], dtype=torch.float16)})
    assert recorder.compute()["a"].tolist() == [0.5, 1 + 2**-40, 0.25]


def test_a_result_holds_no_memory_of_later_batches():
    recorder = BatchRecorder()
    recorder.update({"a": torch.zeros(7)})
    assert recorder.compute()["a"].untyped_storage().nbytes() == 28


def test_a_recorder_of_empty_batches_has_empty_columns():
    recorder = BatchRecorder()
    recorder.update({"a": torch.zeros(0, dtype=torch.bool)})
    assert recorder.compute()["a"].shape == (0,)
    assert recorder.compute()["a"].dtype == torch.bool
