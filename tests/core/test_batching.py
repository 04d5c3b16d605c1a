"""Minibatches and progress."""

import sys

import pytest
import torch

from advkit.core.batching import batches, progress_bar


def test_tensors_are_cut_without_a_rest():
    x, y = torch.arange(10).view(5, 2), torch.arange(5)
    parts = list(batches(x, y, 2))
    assert [len(p[0]) for p in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([p[0] for p in parts]), x)
    assert torch.equal(torch.cat([p[1] for p in parts]), y)


def test_an_iterable_of_batches_passes_through():
    pairs = [(torch.zeros(2, 2), torch.zeros(2))]
    assert batches(pairs, None, 128) is pairs


def test_bad_arguments():
    x = torch.zeros(4, 2)
    with pytest.raises(TypeError, match="y must be None"):
        batches([(x, x)], torch.zeros(4), 2)
    with pytest.raises(TypeError, match=r"y must be a torch.Tensor"):
        batches(x, None, 2)
    with pytest.raises(TypeError, match="iterable of"):
        batches(3, None, 2)
    with pytest.raises(ValueError, match="x has 4 samples, but y has 3 labels"):
        batches(x, torch.zeros(3), 2)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        batches(x, torch.zeros(4), 0)


def test_progress_goes_to_standard_error_and_only_when_asked(capsys):
    with progress_bar("attack", 3, show=False) as advance:
        advance(2)
    assert capsys.readouterr() == ("", "")
    with progress_bar("attack", 3, show=True) as advance:
        advance(2)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "attack" in shown.err
    assert "2/3" in shown.err


def test_progress_without_tqdm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match=r"advkit\[report\]"), progress_bar("a", 1, show=True):
        pass
