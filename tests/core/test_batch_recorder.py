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
