"""Nets and batches of the benchmarks: published ones, or the embedded digits in their place."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import examples.studies.nets
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advkit.cli.demo import digits_net
from advkit.data import Dataset, digits, load_npz

DATA = Path(os.environ.get("ADVKIT_DATA", Path(__file__).parents[2] / "shared" / "data"))


@dataclass(frozen=True)
class Case:
    """A net, a batch of images and a perturbation budget.

    Attributes:
        name: name in the table.
        factory: function in `examples/studies/nets.py` that creates the net.
        weights: file with the weights of the net.
        images: archive of images.
        batch: number of images in a batch.
        eps: budget in linf.
        fallback: true if the embedded digits and a small net replace missing files.
    """

    name: str
    factory: str
    weights: str
    images: str
    batch: int
    eps: float
    fallback: bool = False

    @property
    def published(self) -> bool:
        """True if the published net and its images are available; limits apply to these alone."""
        return (DATA / self.weights).is_file() and (DATA / self.images).is_file()

    @property
    def title(self) -> str:
        """Name of the net that is attacked."""
        return self.name if self.published or not self.fallback else "digits"

    def load(self) -> tuple[nn.Module, Tensor, Tensor]:
        """Load net, inputs and labels, or skip the benchmark if the files are missing."""
        net, data = self.read(self.batch)
        return net, data.x, data.y

    def load_correct(self, n: int) -> tuple[nn.Module, Tensor, Tensor]:
        """Load the net, and the first `n` of 200 images that it labels correctly, with labels.

        No parameter requires a gradient, which is cheapest for peers that call `backward`.
        """
        net, data = self.read(200)
        with torch.no_grad():
            rows = (net(data.x).argmax(1) == data.y).nonzero().flatten()[:n]
        return net.requires_grad_(False), data.x[rows], data.y[rows]

    def read(self, most: int) -> tuple[nn.Module, Dataset]:
        """Load the net and the first images, `most` of them; skip the benchmark without files."""
        if not self.published:
            if self.fallback:
                return digits_net(progress=False).eval(), digits("test").head(most)
            pytest.skip(
                f"needs {self.weights} and {self.images}: set ADVKIT_DATA, see docs/data.md"
            )
        net: nn.Module = getattr(examples.studies.nets, self.factory)()
        net.load_state_dict(torch.load(DATA / self.weights, weights_only=True))
        return net.eval(), load_npz(DATA / self.images).head(most)


RESNET20 = Case(
    "ResNet-20",
    "cifar10_resnet20",
    "cifar10_resnet20.pt",
    "cifar10_test_0000_0499.npz",
    batch=64,
    eps=8 / 255,
)
LENET = Case(
    "LeNet",
    "mnist_lenet",
    "mnist_lenet.pt",
    "mnist_test.npz",
    batch=128,
    eps=0.3,
    fallback=True,
)


LENET5_ROBUST = Case(
    "mnist_lenet5_robust",
    "mnist_lenet5",
    "mnist_lenet5_robust.pt",
    "mnist_test.npz",
    batch=64,
    eps=0.3,
)
CERTIFIED = Case(
    "mnist_cnn_certified",
    "mnist_cnn_certified",
    "mnist_cnn_certified.pt",
    "mnist_test.npz",
    batch=64,
    eps=0.1,
)
RESNET4B_ROBUST = Case(
    "cifar10_resnet4b_robust",
    "cifar10_resnet4b",
    "cifar10_resnet4b_robust.pt",
    "cifar10_test_0000_0499.npz",
    batch=64,
    eps=2 / 255,
)


def bare_pass(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Run one forward and backward pass of the batch to its input, and return the gradient."""
    leaf = x.detach().requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(net(leaf), y), leaf)
    return grad
