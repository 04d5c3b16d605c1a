"""Calls of the attacks of peers.

Untargeted attacks receive the labels, targeted ones the targets. Results are not evaluated here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Peer:
    """An attack of another library, with its defaults except for the `options`.

    Attributes:
        library: one of `LIBRARIES`.
        attack: name of its class or function.
        options: arguments of the class or function.
        eps: the budget, for libraries that take it as an argument of the call.
        slow: true if it takes more than 20 seconds on ResNet-20.
    """

    library: str
    attack: str
    options: dict[str, Any] = field(default_factory=dict)
    eps: float | None = None
    slow: bool = False

    def __str__(self) -> str:
        options = ", ".join(f"{name}={_short(value)}" for name, value in self.options.items())
        return f"{self.library} `{self.attack}({options})`"

    def load(self) -> ModuleType:
        """Import the module of the attack, or skip the benchmark if it cannot be imported."""
        library = LIBRARIES[self.library]
        try:
            with stand_ins(library.not_needed):
                return import_module(library.module)
        except Exception as error:  # noqa: BLE001 - a peer that cannot be imported is skipped
            pytest.skip(f"needs {self.library}, see the extra `peers`: {error!r}")

    def run(self, module: ModuleType, net: nn.Module, x: Tensor, goal: Tensor) -> Tensor:
        """Return adversarial examples for images in [0, 1]; a failure may hold anything.

        If the library does not report which of them succeed, the net is queried, as a user has to.
        """
        library = LIBRARIES[self.library]
        x_adv = library.call(self, module, net, x, goal)
        if not library.reports_success:
            with torch.no_grad():
                net(x_adv.to(x))
        return x_adv


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextmanager
def stand_ins(names: tuple[str, ...]) -> Iterator[None]:
    """Mock the modules of `names` that are not installed, and remove the mocks afterwards."""
    missing = [name for name in names if name not in sys.modules and find_spec(name) is None]
    sys.modules.update((name, MagicMock()) for name in missing)
    try:
        yield
    finally:
        for name in missing:
            del sys.modules[name]


def _adv_lib(peer: Peer, module: ModuleType, net: nn.Module, x: Tensor, goal: Tensor) -> Tensor:
    return getattr(module, peer.attack)(net, x, goal, **peer.options)


def _foolbox(peer: Peer, module: ModuleType, net: nn.Module, x: Tensor, goal: Tensor) -> Tensor:
    model = module.PyTorchModel(net, bounds=(0, 1))
    attack = getattr(module.attacks, peer.attack)(**peer.options)
    return attack(model, x, goal, epsilons=peer.eps)[1]  # the results clipped to the budget


def _torchattacks(
    peer: Peer, module: ModuleType, net: nn.Module, x: Tensor, goal: Tensor
) -> Tensor:
    return getattr(module, peer.attack)(net, **peer.options)(x, goal)


class _Single(nn.Module):
    """The net with inputs in float32, because some attacks of ART send float64."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(x.float())
        return logits


def _art(peer: Peer, module: ModuleType, net: nn.Module, x: Tensor, goal: Tensor) -> Tensor:
    from art.estimators.classification import PyTorchClassifier

    shape, loss = tuple(x.shape[1:]), nn.CrossEntropyLoss()
    classifier = PyTorchClassifier(
        _Single(net), loss, shape, 10, clip_values=(0, 1), device_type="cpu"
    )
    kind = getattr(module, peer.attack)
    common = {"batch_size": len(x), "verbose": False}
    known = {name: value for name, value in common.items() if name in kind.attack_params}
    attack = kind(classifier, **known | peer.options)
    return torch.from_numpy(attack.generate(x.numpy(), goal.numpy()))


def _scipy(peer: Peer, module: ModuleType, net: nn.Module, x: Tensor, goal: Tensor) -> Tensor:
    """Run L-BFGS-B as in the literature: one image and one constant after another.

    It minimizes c |r|^2 + cross-entropy at the most likely other class. Bisection of the logarithm
    of c finds the largest c that still succeeds.
    """
    constants, maxfun = peer.options["constants"], peer.options["maxfun"]

    def objective(point: Any, c: float, image: Tensor, target: Tensor) -> tuple[float, Any]:
        leaf = torch.from_numpy(point).float().view_as(image).requires_grad_()
        value = c * (leaf - image).square().sum() + F.cross_entropy(net(leaf), target)
        (grad,) = torch.autograd.grad(value, leaf)
        return value.item(), grad.flatten().double().numpy()

    def nearest(image: Tensor, label: Tensor) -> Tensor:
        start, bounds = image.flatten().double().numpy(), [(0, 1)] * image.numel()
        with torch.no_grad():
            target = net(image).index_fill(1, label, -torch.inf).argmax(1)
        best, low, high = image, -3.0, 3.0
        for _ in range(constants):
            middle = (low + high) / 2
            solution = module.minimize(
                objective, start, (10**middle, image, target), peer.attack, jac=True,
                bounds=bounds, options={"maxfun": maxfun},
            )  # fmt: skip
            x_adv = torch.from_numpy(solution.x).float().view_as(image)
            with torch.no_grad():
                success = bool(net(x_adv).argmax(1) != label)
            best, low, high = (x_adv, middle, high) if success else (best, low, middle)
        return best

    return torch.cat([nearest(*pair) for pair in zip(x.split(1), goal.split(1), strict=True)])


class Library(NamedTuple):
    """Access to the attacks of a library."""

    module: str
    call: Callable[[Peer, ModuleType, nn.Module, Tensor, Tensor], Tensor]
    not_needed: tuple[str, ...] = ()  # packages that it imports but these attacks do not need
    reports_success: bool = False  # true if the result shows which inputs succeed


LIBRARIES = {
    # torchvision for a perceptual distance, visdom for plots
    "adv_lib": Library("adv_lib.attacks", _adv_lib, not_needed=("torchvision", "visdom")),
    "foolbox": Library("foolbox", _foolbox, reports_success=True),
    "torchattacks": Library("torchattacks", _torchattacks),
    "art": Library("art.attacks.evasion", _art),
    "scipy": Library("scipy.optimize", _scipy, reports_success=True),
}
