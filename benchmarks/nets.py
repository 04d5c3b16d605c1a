"""The published nets and batches that the benchmarks share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import examples.nets
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advkit.data import Dataset, load_npz

DATA = Path(os.environ.get("ADVKIT_DATA", Path(__file__).parents[2] / "shared" / "data"))


@dataclass(frozen=True)
class Case:
    """A net, a batch of images and the budget at which it is attacked."""

    factory: str
    weights: str
    images: str
    batch: int
    eps: float

    def load(self) -> tuple[nn.Module, Tensor, Tensor]:
        """Net, inputs and labels; skips a benchmark without the files."""
        net, data = self._read(self.batch)
        return net, data.x, data.y

    def load_correct(self, n: int) -> tuple[nn.Module, Tensor, Tensor]:
        """Net, and the first `n` images that it labels correctly, of the first 200.

        No parameter asks for a gradient, which is cheapest for peers that call `backward`.
        """
        net, data = self._read(200)
        with torch.no_grad():
            rows = (net(data.x).argmax(1) == data.y).nonzero().flatten()[:n]
        return net.requires_grad_(False), data.x[rows], data.y[rows]

    def _read(self, most: int) -> tuple[nn.Module, Dataset]:
        if not (DATA / self.weights).is_file() or not (DATA / self.images).is_file():
            pytest.skip(f"needs {self.weights} and {self.images}; set ADVKIT_DATA to their folder")
        net: nn.Module = getattr(examples.nets, self.factory)()
        net.load_state_dict(torch.load(DATA / self.weights, weights_only=True))
        return net.eval(), load_npz(DATA / self.images).head(most)


RESNET20 = Case(
    "cifar10_resnet20", "cifar10_resnet20.pt", "cifar10_test_0000_0499.npz", 64, 8 / 255
)
LENET = Case("mnist_lenet", "mnist_lenet.pt", "mnist_test.npz", 128, 0.3)


def floor(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """One bare forward and backward pass of the batch, to the input alone."""
    leaf = x.detach().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(net(leaf), y), leaf)
    return grad
