"""The nets, the budgets and the figures of AutoAttack's authors that two studies compare with.

The figures are those of the authors' code (github.com/fra31/auto-attack, version "standard", seed
0) on the first 200 test images.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from nets import cifar10_resnet4b, mnist_cnn_certified, mnist_lenet5
from study import describe_module, loaded, require_files
from torch import nn

from advkit.data import load_npz

MNIST, CIFAR = "mnist_test.npz", "cifar10_test_0000_0499.npz"
TRAINED_HERE = Path(__file__).parent / "weights"
NETS = {
    "mnist_lenet5_robust": (mnist_lenet5, MNIST),
    "mnist_cnn_certified": (mnist_cnn_certified, MNIST),
    "mnist_pgd": (mnist_cnn_certified, MNIST),
    "cifar10_resnet4b_robust": (cifar10_resnet4b, CIFAR),
}
CHUNK = 50  # images that a process attacks at once


class Row(NamedTuple):
    """A net, a budget, and what the authors' code found for them."""

    net: str
    norm: str
    eps: float
    robust: float
    forward: int
    backward: int


# from the cheapest to the most expensive one
ROWS = [
    Row("mnist_cnn_certified", "linf", 0.2, 0.000, 150, 115),
    Row("mnist_lenet5_robust", "l1", 10.0, 0.000, 212, 191),
    Row("cifar10_resnet4b_robust", "linf", 8 / 255, 0.110, 946, 282),
    Row("mnist_lenet5_robust", "l2", 2.0, 0.000, 1038, 931),
    Row("cifar10_resnet4b_robust", "l1", 8.0, 0.165, 1383, 393),
    Row("mnist_lenet5_robust", "l2", 1.5, 0.175, 2305, 1153),
    Row("cifar10_resnet4b_robust", "linf", 4 / 255, 0.385, 3076, 778),
    Row("cifar10_resnet4b_robust", "l2", 0.5, 0.395, 3155, 798),
    Row("mnist_pgd", "l2", 1.5, 0.315, 3327, 1296),
    Row("cifar10_resnet4b_robust", "linf", 2 / 255, 0.640, 5053, 1240),
    Row("mnist_cnn_certified", "l2", 1.0, 0.890, 7063, 1740),
    Row("mnist_pgd", "linf", 0.3, 0.915, 7223, 1766),
    Row("mnist_cnn_certified", "linf", 0.1, 0.965, 7592, 1846),
    Row("mnist_lenet5_robust", "l2", 1.0, 0.805, 6535, 1706),
    Row("mnist_lenet5_robust", "linf", 0.3, 0.900, 7115, 1739),
    Row("mnist_lenet5_robust", "linf", 0.2, 0.955, 7536, 1838),
]


def require_nets(folder: Path) -> None:
    """End the study unless `folder` has the images and the published nets."""
    nets = [f"{net}.pt" for net in NETS if net != "mnist_pgd"]
    require_files(folder, MNIST, CIFAR, *nets)


def load(data: Path, name: str) -> tuple[nn.Module, Any]:
    """Return a net in evaluation mode, and its test images."""
    factory, images = NETS[name]
    folder = TRAINED_HERE if name == "mnist_pgd" else data
    return loaded(factory(), folder / f"{name}.pt").eval(), load_npz(data / images)


def shown(robust: float, forward: float, backward: float) -> str:
    """Return one cell of the table."""
    return f"{100 * robust:.1f} %, {forward:.0f}, {backward:.0f}"


if __name__ == "__main__":
    describe_module(__doc__)
