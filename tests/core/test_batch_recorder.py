"""What is found batch by batch, joined over the data."""

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
