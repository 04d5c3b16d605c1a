"""What is left of input defenses once the attacker knows of them?

    python examples/studies/input_defenses.py --data FOLDER [--quick] [--out FOLDER]

A LeNet for MNIST and a ResNet-20 for CIFAR-10, each behind squeezers, JPEG compression and input
validation. Robust accuracy under PGD that attacks the bare net (unaware), that differentiates the
defense as autograd does, that takes the identity for its gradient, and that attacks the defended
model as advkit gives it (aware); and under Square, which needs no gradients. `--out` gets
`input_defenses.json`. `--quick` takes a few inputs, steps and queries.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from nets import cifar10_resnet20, mnist_lenet
from study import (
    SEED,
    arguments,
    loaded,
    require_files,
    save_json,
    table_head,
    table_row,
)
from torch import Tensor, nn

from advkit import StraightThrough, TorchClassifier, attacks
from advkit.core.results import InconclusiveWarning
from advkit.data import Dataset, load_npz
from advkit.defenses.feature_squeezing import FeatureSqueezing, NonLocalMeans
from advkit.defenses.input_validator import InputValidator
from advkit.defenses.jpeg_compression import JpegCompression
from advkit.models import REJECTED

FILES = (
    ("mnist_test.npz", "mnist_lenet.pt", mnist_lenet, 0.2),
    ("cifar10_test_0000_0499.npz", "cifar10_resnet20.pt", cifar10_resnet20, 2 / 255),
)
ROUNDING = 1e-6  # of distances
COLUMNS = (
    "defense", "clean", "unaware", "autograd", "identity", "aware", "Square", "unaware - aware",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Row:
    """Shares of all inputs that are labelled correctly, clean and under each attack.

    Attributes:
        defense: its name.
        clean: without an attack.
        unaware: examples of the bare net, sent to the defended one.
        autograd: PGD through the defense as autograd differentiates it; `None` where there is
            nothing to differentiate.
        identity: PGD with the identity for the defense's gradient; likewise.
        aware: PGD on the defended model.
        square: Square on the defended model.
    """

    defense: str
    clean: float
    unaware: float
    autograd: float | None
    identity: float | None
    aware: float
    square: float

    def __str__(self) -> str:
        shares = (self.clean, self.unaware, self.autograd, self.identity, self.aware, self.square)
        shown = [f"{100 * s:.1f}" if s is not None else "" for s in shares]
        return table_row([self.defense, *shown, f"{100 * (self.unaware - self.aware):.1f}"])


def main() -> None:
    """Attack every defense of both nets, print the tables and write what is asked for."""
    args = arguments(__doc__, data="nets and images", out="input_defenses.json")
    require_files(args.data, *(name for files in FILES for name in files[:2]))
    began, tables = time.perf_counter(), {}
    sizes = (4, 4) if args.quick else (500, 100)
    for (images, weights, factory, eps), limit in zip(FILES, sizes, strict=True):
        net = loaded(factory(), args.data / weights)
        data = load_npz(args.data / images)
        attack = attacks.PGD(
            eps=eps, steps=2 if args.quick else 20, restarts=2, loss="margin", seed=SEED
        )
        square = attacks.Square(eps=eps, max_queries=4 if args.quick else 100, seed=SEED)
        test, clean = data.head(limit), data.x[-200:]
        print(f"\n{images}, {limit} inputs, linf {eps:.4f}\n\n{table_head(COLUMNS)}")
        tables[images] = []
        for row in rows(TorchClassifier(net), defenses(net, clean), test, attack, square):
            print(row, flush=True)
            tables[images].append(asdict(row))
    print(f"\n{time.perf_counter() - began:.0f} seconds")
    if args.out is not None:
        save_json(args.out / "input_defenses.json", tables)


def defenses(net: nn.Module, clean: Tensor) -> dict[str, Any]:
    """Defended models by name; `clean` images of no test fit the validator."""
    gray = clean.shape[1] == 1
    smooth = NonLocalMeans(search_size=9, strength=16.0)
    colour = {} if gray else {"non-local means": FeatureSqueezing(net, non_local_means=smooth)}
    fitted = InputValidator(net, grid=255, contrast="fitted").fit(clean, fpr=0.05)
    return {
        "none": TorchClassifier(net),
        **{f"bits {b}": FeatureSqueezing(net, bits=b) for b in ((1, 3, 5) if gray else (3, 5))},
        **{f"median {w} x {w}": FeatureSqueezing(net, median=w) for w in (2, 3)},
        **colour,
        **{f"JPEG {q}": JpegCompression(net, q) for q in ((75,) if gray else (90, 75, 50, 25))},
        "validator, grid": InputValidator(net, grid=255),
        "validator, grid and contrast": fitted,
    }


def rows(
    bare: TorchClassifier, models: dict[str, Any], test: Dataset, attack: Any, square: Any
) -> Iterator[Row]:
    """What each attack leaves of each of `models`."""
    x, y = test.x, test.y
    unaware = replace(attack, stop="never")(bare, x, y)
    for name, model in models.items():
        right = model.predict(x) == y
        sent = Dataset(x[right], y[right], name)

        def share(fooled: Tensor, right: Tensor = right) -> float:
            return float((right.sum() - fooled.sum()) / len(right))

        aware = share(knowing(model, attack, sent))
        steps = isinstance(model, StraightThrough)
        rounds = isinstance(model, JpegCompression) or getattr(model, "bits", None) is not None
        # a filter's own gradient is what advkit takes
        autograd = share(plainly(model, attack, sent)) if rounds else aware
        yield Row(
            defense=name,
            clean=float(right.float().mean()),
            unaware=share(fools(model, unaware[right], sent.y)),
            autograd=autograd if steps else None,
            identity=share(straight(model, attack, sent)) if steps else None,
            aware=aware,
            square=share(knowing(model, square, sent)),
        )


def fools(model: Any, x_adv: Tensor, y: Tensor) -> Tensor:
    """Which inputs get another label; a rejection is none."""
    answer = model.predict(x_adv)
    return (answer != y) & (answer != REJECTED)


def knowing(model: Any, attack: Any, sent: Dataset) -> Tensor:
    """Success of an attack on the defended model; on a validator's by way of its repair."""
    if not isinstance(model, InputValidator):
        return attack.run(model, sent.x, sent.y).success
    x_adv = model.repair(attack(model.repaired, sent.x, sent.y))
    near = (x_adv - sent.x).abs().flatten(1).amax(1) <= attack.eps + ROUNDING
    return fools(model, x_adv, sent.y) & near


def straight(model: StraightThrough, attack: Any, sent: Dataset) -> Tensor:
    """Success with the identity for the gradient of the step."""
    return attack.run(StraightThrough(model.model, model.step), sent.x, sent.y).success


def plainly(model: StraightThrough, attack: Any, sent: Dataset) -> Tensor:
    """Success with the gradient that autograd has for a rounding, which is zero."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InconclusiveWarning)  # which says so
        plain = TorchClassifier(Rounding(model), model.bounds)
        return replace(attack, steps=1).run(plain, sent.x, sent.y).success  # more stand still


class Rounding(nn.Module):
    """A defended model as a module, without a gradient of its step."""

    def __init__(self, model: StraightThrough) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.model.logits(self.model.step(x.detach())) + 0 * x.sum()


if __name__ == "__main__":
    main()
