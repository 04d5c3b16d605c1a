"""Shuffled batches: those of a DataLoader, but for a last batch of one sample."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from advkit.training.shuffled import shuffled


def epochs(loader, seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return [[batch[0] for batch in loader] for _ in range(2)], torch.rand(3)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 8, 64])
@pytest.mark.parametrize("n", [1, 2, 8, 9, 11, 16, 17])
def test_a_last_batch_of_one_goes_into_the_one_before(n, batch_size):
    x, y = torch.arange(n).float()[:, None], torch.arange(n)
    loader = shuffled(x, y, batch_size)
    found, drawn = epochs(loader)
    plain, as_drawn = epochs(DataLoader(TensorDataset(x, y), batch_size=batch_size, shuffle=True))
    assert torch.equal(drawn, as_drawn)
    for mine, theirs in zip(found, plain, strict=True):
        if len(theirs) > 1 and len(theirs[-1]) == 1 < batch_size:
            theirs[-2:] = [torch.cat(theirs[-2:])]
        assert len(mine) == len(theirs) == len(loader)
        assert all(map(torch.equal, mine, theirs))


def test_inputs_and_labels_stay_together():
    x = torch.rand(9, 2)
    for part, y in shuffled(x, torch.arange(9), 4):
        assert torch.equal(part, x[y])
