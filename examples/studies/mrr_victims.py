"""The victims of modular robust redundancy: nets, their data, and the defenders around them.

Two studies attack them: `mrr_study.py` and `mrr_adaptive.py`, which reproduce one article.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from nets import cifar10_resnet20, mnist_lenet5, plain_cnn
from study import learn_mirrored, loaded
from torch import Tensor, nn
from torch.nn import functional as F

from advkit import TorchClassifier, defenses
from advkit.core.files import atomic_write
from advkit.data import Dataset, load_npz
from advkit.defenses import MRR, Chain, InputDefender, LatentDefenders
from advkit.models import evaluating

COUNTS = (1, 2, 4, 8, 16)  # of defenders


@dataclass(frozen=True)
class Size:
    """How much is trained and attacked.

    Attributes:
        train: images of MNIST, and
        cifar: of CIFAR-10 that defenders learn from, at most; the plain net learns from twice as
            many.
        defenders: of each victim.
        epochs: of the net for MNIST, as in the article; a quarter of that of the plain one.
        attacked: images attacked, at most.
        few: of these, what the dearer attacks get.
        search: rounds and steps of C&W.
        adaptive: images for the attacks that know the defenders.
        rounds: of these attacks, and how many steps each has.
    """

    train: int
    cifar: int
    defenders: int
    epochs: int
    attacked: int
    few: int
    search: tuple[int, int]
    adaptive: int
    rounds: tuple[int, int]


FULL = Size(60_000, 4000, 16, 50, 1000, 200, (5, 60), 100, (9, 100))
QUICK = Size(1500, 100, 2, 4, 12, 4, (2, 3), 4, (2, 4))


@dataclass(frozen=True, eq=False)
class Victim:
    """A net, its defenders' settings, and its data.

    Attributes:
        name: of the net.
        images: of which data set.
        net: in evaluation mode.
        settings: of the defenders.
        fit: what they learn from.
        clean: images to calibrate on, which neither they nor the net have learned from.
        test: clean images that are asked about, which are neither.
        attacked: how many of these are attacked, from the first one on.
        few: of these, what the dearer attacks get.
        dear: whether there is time for some of the attacks' settings only.
    """

    name: str
    images: str
    net: nn.Module
    settings: MRR
    fit: Dataset
    clean: Tensor
    test: Dataset
    attacked: int
    few: int
    dear: bool = False


def mlp(folder: Path, size: Size, out: Path | None) -> Victim:
    """The article's net for MNIST: 784-300-100-10, trained here without the last sixth."""
    train, test = mnist(folder, size)
    known = 5 * len(train.x) // 6
    clean, train = train.x[known:], train.head(known)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(784, 300), nn.ReLU(), nn.Dropout(), nn.Linear(300, 100),
        nn.ReLU(), nn.Dropout(), nn.Linear(100, 10),
    )  # fmt: skip

    def learn(net: nn.Module) -> nn.Module:
        defenses.fit(
            net, Shuffled(train), loss=lambda m, x, y: F.cross_entropy(m(x), y),
            optimizer=torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9),
            epochs=size.epochs, progress=False,
        )  # fmt: skip
        return net

    net = kept(None if out is None else out / "mlp.pt", net, learn)
    patches = InputDefender() if size is FULL else InputDefender(atoms=20, iterations=3)
    settings = MRR(LatentDefenders(count=size.defenders), patches)
    n = size.attacked
    return Victim("MLP", "MNIST", net.eval(), settings, train, clean, test, n, n)


def lenet5(folder: Path, size: Size, out: Path | None) -> Victim:
    """A published convolutional net for MNIST, which knows all training images."""
    train, test = mnist(folder, size)
    net = loaded(mnist_lenet5(), folder / "mnist_lenet5_plain.pt")
    settings = MRR(LatentDefenders(count=size.defenders, epochs=2))
    fit, half = train.head(20_000), len(test.x) // 2
    clean, test = test.x[half:], test.head(half)
    return Victim(
        "LeNet-5", "MNIST", net, settings, fit, clean, test, size.attacked // 2, size.few // 2
    )


def resnet20(folder: Path, size: Size, out: Path | None) -> Victim:
    """A published residual net for CIFAR-10, which knows all training images.

    The only other ones that are at hand beside those attacked are JPEG copies of test images.
    """
    net = loaded(cifar10_resnet20(), folder / "cifar10_resnet20.pt")
    train = load_npz(folder / "cifar10_train_00000_09999.npz").head(size.cifar)
    clean = load_npz(folder / "cifar10_test_jpeg_1000_2999.npz").x
    return cifar("ResNet-20", net, folder, size, train, clean)


def resnet20_half(folder: Path, size: Size, out: Path | None) -> Victim:
    """ResNet-20 with half of the images of a chain kept clean."""
    victim = resnet20(folder, size, out)
    layer = replace(victim.settings.latent[0], chain=Chain(clean_fraction=0.5))
    return replace(victim, name="ResNet-20, half clean", settings=MRR(layer))


def cnn(folder: Path, size: Size, out: Path | None) -> Victim:
    """A plain convolutional net for CIFAR-10, trained here on 8,000 images, chain half clean."""
    data = load_npz(folder / "cifar10_train_00000_09999.npz")
    train, clean = data.head(2 * size.cifar), data.x[8000:]
    path = None if out is None else out / "cnn.pt"
    net = kept(path, plain_cnn(), lambda net: learn_mirrored(net, train, size.epochs // 4))
    victim = cifar("plain CNN", net, folder, size, train.head(size.cifar), clean)
    layer = replace(victim.settings.latent[0], chain=Chain(clean_fraction=0.5), epochs=2)
    return replace(victim, settings=MRR(layer))


def cifar(
    name: str, net: nn.Module, folder: Path, size: Size, train: Dataset, clean: Tensor
) -> Victim:
    """With fewer and larger steps for each defender than on MNIST, since the nets are dear."""
    test = load_npz(folder / "cifar10_test_0000_0499.npz")
    epochs = 4 if size is FULL else 1
    settings = MRR(LatentDefenders(count=size.defenders, epochs=epochs, lr=1e-3))
    clean = clean if size is FULL else clean[:100]
    few = size.few if size is FULL else 4
    return Victim(
        name, "CIFAR-10", net.eval(), settings, train, clean, test, few, few // 4, dear=True
    )


def kept(path: Path | None, net: nn.Module, learn: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """`net` after `learn`, or with the weights at `path` if they are there."""
    if path is not None and path.is_file():
        return loaded(net, path)
    net = learn(net)
    if path is not None:
        with atomic_write(path) as temporary:
            torch.save(net.state_dict(), temporary)
    return net


def mnist(folder: Path, size: Size) -> tuple[Dataset, Dataset]:
    """Training and test images."""
    train = load_npz(folder / "mnist_train.npz").head(size.train)
    test = load_npz(folder / "mnist_test.npz")
    return train, test if size is FULL else test.head(100)


class Shuffled:
    """A training set in another order each time."""

    def __init__(self, data: Dataset) -> None:
        self.data = data

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for rows in torch.randperm(len(self.data.x)).split(100):
            yield self.data.x[rows], self.data.y[rows]


def fitted(victim: Victim, out: Path | None) -> tuple[MRR, int | None]:
    """The defenders, and the seconds of their fit; `None` for those that the folder has already."""
    name = victim.name.lower().replace(",", "").replace(" ", "_")
    path = None if out is None else out / f"{name}_mrr.npz"
    if path is not None and path.is_file():
        return MRR.load(path, victim.net), None
    partly = None if out is None else out / f"{name}_checkpoint.npz"
    began = time.perf_counter()
    mrr = victim.settings.fit(
        victim.net, victim.fit.x, victim.fit.y, victim.clean, checkpoint=partly, progress=True
    )
    seconds = round(time.perf_counter() - began)
    if path is not None and partly is not None:
        mrr.save(path)
        partly.unlink()
    return mrr, seconds


def answers(model: TorchClassifier, x: Tensor) -> Tensor:
    """Labels `(n,)`, a batch at a time."""
    with evaluating(model):
        return torch.cat([model.predict(part) for part in torch.split(x, 128)])


VICTIMS: dict[str, Callable[[Path, Size, Path | None], Victim]] = {
    "mlp": mlp,
    "lenet5": lenet5,
    "resnet20": resnet20,
    "resnet20_half": resnet20_half,
    "cnn": cnn,
}
_MNIST = ("mnist_train.npz", "mnist_test.npz")
_CIFAR = ("cifar10_train_00000_09999.npz", "cifar10_test_0000_0499.npz")
_RESNET20 = (*_CIFAR, "cifar10_resnet20.pt", "cifar10_test_jpeg_1000_2999.npz")
FILES = {  # that each victim reads
    "mlp": _MNIST,
    "lenet5": (*_MNIST, "mnist_lenet5_plain.pt"),
    "resnet20": _RESNET20,
    "resnet20_half": _RESNET20,
    "cnn": _CIFAR,
}


if __name__ == "__main__":
    from study import describe_module

    describe_module(__doc__)
