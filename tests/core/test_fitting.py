"""The training loop."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advkit.core.fitting import fit


def loss(net, x, y):
    return F.mse_loss(net(x)[:, 0], y)


@pytest.fixture
def net():
    return nn.Linear(1, 1)


@pytest.fixture
def line():
    x = torch.linspace(-1, 1, 32)[:, None]
    return [(x[:16], 2 * x[:16, 0] + 1), (x[16:], 2 * x[16:, 0] + 1)]


def test_it_finds_a_line(net, line):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    assert fit(net, line, loss=loss, optimizer=optimizer, epochs=60) is net
    assert not net.training
    torch.testing.assert_close(net.weight.item(), 2.0, atol=1e-3, rtol=0)
    torch.testing.assert_close(net.bias.item(), 1.0, atol=1e-3, rtol=0)


def test_each_epoch_takes_one_step_for_each_batch(net, line):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.eval()
    before = net.weight.item()
    steps = []

    def counted(net, x, y):
        assert net.training
        steps.append(len(x))
        return loss(net, x, y)

    fit(net, line, loss=counted, optimizer=optimizer, epochs=3)
    assert steps == [16] * 6
    assert net.weight.item() != before


def test_it_shows_its_epochs(net, line, capsys):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net.eval()
    fit(net, line, loss=loss, optimizer=optimizer, epochs=4, progress=True)
    assert "4/4" in capsys.readouterr().err


def test_bad_arguments(net, line):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        fit(net, line, loss=loss, optimizer=optimizer, epochs=0)
    with pytest.raises(TypeError, match="generator"):
        fit(net, iter(line), loss=loss, optimizer=optimizer, epochs=2)
    with pytest.raises(ValueError, match="loss became nan in epoch 0"):
        fit(net, line, loss=lambda *_: torch.tensor(torch.nan), optimizer=optimizer, epochs=1)
    with pytest.raises(ValueError, match="loss became inf"):
        fit(net, line, loss=lambda *_: torch.tensor(torch.inf), optimizer=optimizer, epochs=1)
