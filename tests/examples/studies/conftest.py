"""Studies are imported as they import each other: from their own folder."""

import importlib
from pathlib import Path

import pytest
import torch
from torch import nn

from advkit.data import Dataset
from advkit.defenses import MRR, LatentDefenders

STUDIES = Path(__file__).parents[3] / "examples" / "studies"


@pytest.fixture
def study(request, monkeypatch):
    """The module of `examples/studies` that the file of the test is named after."""
    monkeypatch.syspath_prepend(str(STUDIES))
    return importlib.import_module(request.path.stem.removeprefix("test_"))


@pytest.fixture
def brightness():
    """A net that tells four pixels by their mean, what it labels, and a fit of its defenders."""
    torch.manual_seed(0)
    y = torch.arange(400) % 2
    x = (0.25 + 0.5 * y[:, None] + 0.2 * torch.rand(400, 4)).clamp(0, 1)
    net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[1.0], [1.0], [-1.0]]).expand(3, 4))
        net[0].bias.copy_(torch.tensor([0.0, -2.0, 2.0]))
        net[2].weight.copy_(torch.tensor([[0.0, -1.0, 1.0], [0.0, 1.0, -1.0]]))
        net[2].bias.zero_()
    layer = LatentDefenders(count=2, epochs=2)
    return net, Dataset(x, y, "all"), lambda: MRR(layer, fpr=0.1).fit(net, x, y, x[200:])
