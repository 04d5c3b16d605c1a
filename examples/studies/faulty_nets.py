"""Eleven models whose robust accuracy is wrong for a known reason, which `findings_study.py` uses.

Each has the finding that must name its fault, a figure that believes it, the model after the remedy
of the finding, and an adaptive attack that was built for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from defended_attacks import AveragedPGD, with_soft_winners
from defended_nets import defended, three_bits
from nets import mnist_cnn_certified, mnist_lenet
from study import describe_module, loaded
from torch import Tensor, nn
from torch.nn import functional as F

from advkit import Expectation, StraightThrough, TorchClassifier, attacks
from advkit.core.protocols import Attack
from advkit.data import Dataset
from advkit.defenses import JpegCompression

WEIGHTS = {"mnist_lenet": "mnist_lenet.pt", "mnist_cnn_certified": "mnist_cnn_certified.pt"}
TRAINED = ("distilled", "stochastic", "k-WTA")  # of `defended_nets`
DRAWS = 32  # of the expectation
SCALE = 200.0  # of the logits
LEVELS = 8  # of the rounded activations, for each unit
QUALITY = 50  # of JPEG
EPS = 0.1  # for the LeNet, which was trained without a defense


class Faulty(NamedTuple):
    """A model that deserves a finding.

    Attributes:
        model: what is diagnosed.
        eps: the budget in linf.
        finding: what must be found.
        naive: attack that believes the model; `None` if it cannot be run.
        remedied: the model after the remedy.
        adaptive: attack on the model `against` that knows the fault.
        against: model that `adaptive` attacks, which has the labels of `remedied`.
        probes: probes in place of those of `attacks.probes`, by role.
        two_classes: whether the labels are those of `upper_half`.
    """

    model: Any
    eps: float
    finding: str
    naive: Attack | None
    remedied: Any
    adaptive: Attack
    against: Any
    probes: Mapping[str, Attack] = {}
    two_classes: bool = False


class Rounded(nn.Module):
    """A net behind three-bit rounding, through which no gradient passes.

    Args:
        net: the net.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(three_bits(x))


class Compressed(nn.Module):
    """A net behind JPEG compression outside of torch's graph.

    Args:
        net: the net.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.step = JpegCompression(net, QUALITY).step

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            compressed = self.step(x)
        return self.net(compressed)


class RoundedFeatures(nn.Module):
    """A net whose features are rounded after its first layers, so that their gradient is zero.

    Args:
        body: the first layers.
        head: the others.
    """

    def __init__(self, body: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, head

    def features(self, x: Tensor) -> Tensor:
        """Return the rounded features."""
        return (LEVELS * self.body(x)).round() / LEVELS

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Scaled(nn.Module):
    """A net whose logits are multiplied.

    Args:
        net: the net.
        factor: the factor.
    """

    def __init__(self, net: nn.Module, factor: float) -> None:
        super().__init__()
        self.net, self.factor = net, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.net(x)


class OneHot(nn.Module):
    """A net that returns its label as one-hot scores.

    Args:
        net: the net.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        logits = self.net(x)
        return F.one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype)


class Halves(nn.Module):
    """A net for two classes: the digits 0 to 4, and 5 to 9.

    Args:
        net: a net for ten classes.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).unflatten(1, (2, 5)).logsumexp(2)


def upper_half(y: Tensor) -> Tensor:
    """Return 1 for the digits 5 to 9, else 0."""
    return (y >= 5).long()


def torch_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Return torch's cross-entropy, whose gradient vanishes where the net is confident."""
    return F.cross_entropy(logits, y, reduction="none")


def strongest(eps: float, *, quick: bool) -> Attack:
    """Return an attack for a model without a fault, much more expensive than `Suite`."""
    if quick:
        return attacks.PGD(eps=eps, steps=3)
    return attacks.Cascade(
        attacks=[
            attacks.PGD(eps=eps, loss="margin", restarts=5),
            attacks.APGD(eps=eps, loss="margin", steps=50, candidates=9),
            attacks.FAB(eps=eps, norm="linf", steps=200),
            attacks.Square(eps=eps, max_queries=2000),
        ]
    )


def faulty_nets(
    data: Path, train: Dataset, out: Path | None, *, quick: bool
) -> dict[str, Callable[[], Faulty]]:
    """Return constructors of the eleven models by name.

    Args:
        data: folder of the published nets.
        train: images for the nets that are trained.
        out: folder that keeps their weights, or `None`.
        quick: train little, and attack with little.
    """
    lenet = loaded(mnist_lenet(), data / WEIGHTS["mnist_lenet"]).eval()
    certified = loaded(mnist_cnn_certified(), data / WEIGHTS["mnist_cnn_certified"]).eval()
    naive, best = attacks.PGD(eps=EPS), strongest(EPS, quick=quick)
    without_gradients = attacks.Square(eps=EPS, max_queries=10 if quick else 5000)
    by_torch = attacks.PGD(eps=EPS, loss=torch_cross_entropy)

    def trained(name: str) -> Any:
        return defended(name, train, epochs=1 if quick else None, out=out)

    def on_lenet(module: nn.Module, finding: str, attack: Attack | None = naive) -> Faulty:
        return Faulty(module, EPS, finding, attack, lenet, best, lenet)

    def hard_labels() -> Faulty:
        model = OneHot(lenet)
        walk = attacks.HopSkipJump(norm="linf", max_queries=30 if quick else 5000)
        found = on_lenet(model, "scores_are_labels", without_gradients)
        return found._replace(adaptive=walk, against=model)

    def through(module: nn.Module, step: Callable[[Tensor], Tensor]) -> Faulty:
        model = StraightThrough(lenet, step)
        return Faulty(module, EPS, "no_gradient", naive, model, best, model)

    def compressed() -> Faulty:
        module = Compressed(lenet)
        found = through(module, module.step)
        return found._replace(naive=without_gradients, against=JpegCompression(lenet, QUALITY))

    def rounded_features(eps: float = 0.15) -> Faulty:
        module = RoundedFeatures(certified[:4], certified[4:]).eval()
        model = StraightThrough(module.head, module.features, backward=module.body)
        adaptive = strongest(eps, quick=quick)
        return Faulty(
            module, eps, "no_gradient", attacks.PGD(eps=eps), model, adaptive, model
        )  # fmt: skip

    def dropout() -> Faulty:
        net = loaded(mnist_lenet(), data / WEIGHTS["mnist_lenet"]).train()
        found = on_lenet(net, "training_mode")
        return found._replace(model=TorchClassifier(net, mode="keep"))

    def two_classes() -> Faulty:
        model, loss = Halves(lenet).eval(), attacks.PGD(eps=EPS, loss="dlr", steps=20)
        return Faulty(
            model, EPS, "too_few_classes", None, model, best, model,
            probes={"many_steps": loss}, two_classes=True,
        )  # fmt: skip

    def stochastic(eps: float = 0.125) -> Faulty:
        single = trained("stochastic").model
        model = Expectation(single, draws=2 if quick else DRAWS)
        adaptive = attacks.PGD(eps=eps, loss="margin", steps=40, stop="never")
        return Faulty(
            single, eps, "random_model", attacks.PGD(eps=eps), model, adaptive, model
        )  # fmt: skip

    def winners(eps: float = 0.04) -> Faulty:
        model = trained("k-WTA")
        soft = TorchClassifier(with_soft_winners(model.module))
        options: dict[str, Any] = {"eps": eps, "loss": "margin"}
        adaptive = attacks.Cascade(
            attacks=[
                AveragedPGD(eps=eps, steps=2 if quick else 40),
                attacks.PGD(**options, restarts=1 if quick else 10),
                attacks.Square(eps=eps, max_queries=10 if quick else 10_000),
            ]
        )
        return Faulty(
            model, eps, "scores_beat_gradients", attacks.PGD(eps=eps), model, adaptive, soft
        )  # fmt: skip

    def distilled(eps: float = 0.05) -> Faulty:
        model = trained("distilled")
        fooled = attacks.PGD(eps=eps, loss=torch_cross_entropy)
        adaptive = strongest(eps, quick=quick)
        return Faulty(model, eps, "saturated_outputs", fooled, model, adaptive, model)

    return {
        "stochastic": stochastic,
        "logits x 200": lambda: on_lenet(
            Scaled(lenet, SCALE).eval(), "saturated_outputs", by_torch
        ),
        "3-bit inputs": lambda: through(Rounded(lenet).eval(), three_bits),
        "softmax output": lambda: on_lenet(
            nn.Sequential(lenet, nn.Softmax(1)).eval(), "probabilities"
        ),
        "hard labels": hard_labels,
        "rounded features": rounded_features,
        "k-WTA": winners,
        "distilled, T = 100": distilled,
        "training mode": dropout,
        "two classes, DLR": two_classes,
        "JPEG": compressed,
    }


if __name__ == "__main__":
    describe_module(__doc__)
