"""How far does randomised smoothing hold on MNIST: as proved, and as an adaptive attack finds?

    python examples/studies/randomized_smoothing.py --data FOLDER [--quick] [--out FOLDER]

A small net is trained on MNIST plainly and with Gaussian noise of two sizes. The latter two are
smoothed and certified after Cohen, Rosenfeld and Kolter (2019, arXiv:1902.02918), and attacked in
l2: through their noise (Salman et al., 2019, arXiv:1906.04584), and, for an attacker who does not
know of it, without. `--out` gets `randomized_smoothing.json` and `randomized_smoothing.png`.
`--quick` takes little of everything.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from nets import mnist_cnn_certified
from study import (
    SEED,
    Loss,
    NarrowPGD,
    arguments,
    batches,
    cross_entropy,
    learn,
    require_files,
    save_figure,
    save_json,
    seeded,
)
from torch import Tensor, nn

from advkit.data import Dataset, load_npz
from advkit.defenses.certificates import Certificates
from advkit.defenses.gaussian_noise import GaussianNoise
from advkit.defenses.randomized_smoothing import RandomizedSmoothing
from advkit.models import REJECTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIGMAS = (0.25, 0.5)


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is done.

    Attributes:
        train: images to train on.
        epochs: of each training.
        images: to certify and attack.
        n: draws of each certificate.
        evaluator_draws: draws of the smoothed model's answer to an attack.
        draws: noisy copies at each step of the adaptive attack.
        steps: of each attack.
        radii: of the attacks, in units of sigma.
    """

    train: int = 60_000
    epochs: int = 5
    images: int = 500
    n: int = 10_000
    evaluator_draws: int = 500
    draws: int = 16
    steps: int = 20
    radii: tuple[float, ...] = (0.5, 1.0, 2.0, 3.0)


QUICK = Size(
    train=2_000, epochs=1, images=10, n=200, evaluator_draws=100, draws=4, steps=3, radii=(1.0, 2.0)
)


@dataclass(frozen=True, kw_only=True)
class Attacked:
    """Shares of the images at one radius.

    Attributes:
        radius: of the l2 ball, in input units.
        certified: right, and proved to be within the ball.
        withstood: the answer to the clean image is right, and that to the adaptive attack is not
            wrong: right, or an abstention.
        right: both are right.
        unaware: as `withstood`, under the attack on the net without its noise.
        plain: right answers of the plain net under the same attack on itself.
    """

    radius: float
    certified: float
    withstood: float
    right: float
    unaware: float
    plain: float


def main() -> None:
    """Train, certify, attack, print the tables and write what is asked for."""
    args = arguments(__doc__, data="images", out="a .json and a .png")
    require_files(args.data, "mnist_train.npz", "mnist_test.npz")
    began = time.process_time()
    size = QUICK if args.quick else Size()
    train = load_npz(args.data / "mnist_train.npz").head(size.train)
    test = load_npz(args.data / "mnist_test.npz").head(size.images)
    plain = trained(train, size.epochs, cross_entropy)
    print(f"plain net: {accuracy(plain, test):.3f} of {len(test)} images right")
    records = [record(sigma, plain, train, test, size) for sigma in SIGMAS]
    print(f"\n{time.process_time() - began:.0f} seconds of the processor")
    if args.out is not None:
        save_json(args.out / "randomized_smoothing.json", records)
        save_figure(args.out / "randomized_smoothing.png", picture(records))


def trained(train: Dataset, epochs: int, loss: Loss) -> nn.Module:
    """A small convolutional net."""
    with seeded():
        net = mnist_cnn_certified()
        return learn(net, batches(train.x, train.y, 100), loss=loss, epochs=epochs)


def accuracy(net: nn.Module, data: Dataset) -> float:
    """Share of right answers."""
    with torch.no_grad():
        return (net(data.x).argmax(1) == data.y).double().mean().item()


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is attacked, and who judges.

    Attributes:
        smoothed: the model.
        plain: the net without noise.
        evaluator: `smoothed` with many draws that no attack has seen.
        data: the images.
        clean: which of them the evaluator labels correctly, bool `(n,)`.
        certificates: of them.
    """

    smoothed: RandomizedSmoothing
    plain: nn.Module
    evaluator: RandomizedSmoothing
    data: Dataset
    clean: Tensor
    certificates: Certificates

    def at(self, radius: float, steps: int) -> Attacked:
        """All attacks at one radius."""
        x, y = self.data.x, self.data.y
        attack = NarrowPGD(
            norm="l2", eps=radius, steps=steps, loss="margin", stop="never", seed=SEED
        )
        adaptive = self.evaluator.predict(attack(self.smoothed, x, y))
        unaware = self.evaluator.predict(attack(self.smoothed.model, x, y))
        return Attacked(
            radius=radius,
            certified=self.certificates.certified_accuracy(y, radius),
            withstood=share(self.clean & ((adaptive == y) | (adaptive == REJECTED))),
            right=share(self.clean & (adaptive == y)),
            unaware=share(self.clean & ((unaware == y) | (unaware == REJECTED))),
            plain=share(~attack.run(self.plain, x, y).success),
        )


def record(
    sigma: float, plain: nn.Module, train: Dataset, test: Dataset, size: Size
) -> dict[str, Any]:
    """All that is found with noise of `sigma`, printed as it comes."""
    net = trained(train, size.epochs, GaussianNoise(sigma=sigma))
    smoothed = RandomizedSmoothing(net, sigma, n=size.n, draws=size.draws, seed=SEED)
    began = time.process_time()
    certificates = smoothed.certify(test.x)
    seconds = time.process_time() - began
    print(f"\n{certificates}")
    passes = len(test) * (smoothed.n0 + smoothed.n)
    bare_seconds = passes * seconds_of_a_pass(net, test.x, smoothed.batch_size)
    print(f"{seconds:.1f} s of the processor; {bare_seconds:.1f} s for as many bare forward passes")
    evaluator = RandomizedSmoothing(net, sigma, n0=size.evaluator_draws, seed=SEED + 1)
    answer = evaluator.predict(test.x)
    study = Study(
        smoothed=smoothed,
        plain=plain,
        evaluator=evaluator,
        data=test,
        clean=answer == test.y,
        certificates=certificates,
    )
    found = {
        "sigma": sigma,
        "smoothed": share(study.clean),
        "abstained": share(answer == REJECTED),
        "net without noise": accuracy(net, test),
        "plain net": accuracy(plain, test),
        "no certificate": share(certificates.labels == REJECTED),
    }
    print(", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    attacked = [study.at(ratio * sigma, size.steps) for ratio in size.radii]
    print(table(attacked))
    return found | {
        "seconds": seconds,
        "bare_seconds": bare_seconds,
        "certified": curve(certificates, test.y),
        "attacked": [asdict(row) for row in attacked],
    }


def seconds_of_a_pass(net: nn.Module, x: Tensor, batch_size: int) -> float:
    """Processor time of a bare forward pass of one sample, within a batch."""
    batch = x[torch.arange(batch_size) % len(x)]
    with torch.no_grad():
        net(batch)
        began = time.process_time()
        for _ in range(20):
            net(batch)
    return (time.process_time() - began) / (20 * batch_size)


def share(hits: Tensor) -> float:
    """Share of true values."""
    return hits.double().mean().item()


def curve(certificates: Certificates, y: Tensor) -> list[tuple[float, float]]:
    """Certified accuracy from 0 and from every radius that was proved: steps of a curve."""
    ends = certificates.radius.double().unique().tolist()
    radii = [0.0, *(end for end in ends if end > 0)]
    return [(radius, certificates.certified_accuracy(y, radius)) for radius in radii]


def table(rows: list[Attacked]) -> str:
    """One line for each radius."""
    names = list(asdict(rows[0]))
    lines = ["".join(f"{name:>11}" for name in names)]
    lines += ["".join(f"{value:>11.3f}" for value in asdict(row).values()) for row in rows]
    return "\n".join(lines)


def picture(records: list[dict[str, Any]]) -> Figure:
    """Certified accuracy against the radius, and what attacks leave."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = figure.subplots(1, len(records), sharey=True)
    for axes, found in zip(panels, records, strict=True):
        panel(axes, found)
    panels[0].set_ylabel("share of images")
    panels[0].legend(fontsize="small")
    return figure


def panel(axes: Axes, found: dict[str, Any]) -> None:
    """One sigma."""
    radii = [row["radius"] for row in found["attacked"]]
    axes.step(*zip(*found["certified"], strict=True), where="post", label="certified")
    for name, words in {
        "unaware": "PGD on the net, judged by smoothing",
        "withstood": "PGD through the noise: not wrong",
        "right": "PGD through the noise: right",
        "plain": "plain net, PGD",
    }.items():
        axes.plot(radii, [row[name] for row in found["attacked"]], "o-", label=words)
    axes.set(title=f"sigma {found['sigma']:g}", xlabel="l2 radius", ylim=(-0.03, 1.03))
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    main()
