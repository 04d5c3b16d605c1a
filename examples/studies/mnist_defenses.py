"""Training defenses on MNIST, each under the attacks that know about it.

    python examples/studies/mnist_defenses.py --data FOLDER [--quick] [--only NAME] [--out FOLDER]

One small net, trained in eleven ways: plainly, with what only smooths or squeezes its answers,
against FGSM in two forms, with logit pairing, distilled at a temperature of 100, and against PGD
by two losses. Each is attacked on the first 1,000 test images at eps 0.3 in linf by what defenses
were first measured with (one FGSM step and PGD on the plain cross-entropy), and by what sees
through them: PGD with 100 steps and 2 restarts on the log-odds and on the margin (the loss of
Carlini and Wagner), neither of which vanishes, a search without gradients, and examples of the
plain net.

`--out` gets the nets, `results.json` and `mnist_defenses.png`; nets that lie there already are not
trained again. `--only` trains and attacks that net alone, beside the plain one. The weights in
`examples/studies/weights/mnist_pgd.pt` are the `net` of the file `PGD.pt` that is made by

    python examples/studies/mnist_defenses.py --data FOLDER --only PGD --out FOLDER

`--quick` takes 640 training and 40 test images.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from nets import mnist_cnn_certified
from study import (
    SEED,
    Loss,
    arguments,
    batches,
    cross_entropy,
    learn,
    require_files,
    save_figure,
    save_json,
    seeded,
    table,
)
from torch import Tensor, nn
from torch.nn import functional as F

from advkit import attacks, defenses
from advkit import eval as rob
from advkit.core.archives import read_torch
from advkit.core.files import atomic_write
from advkit.data import Dataset, load_npz

EPS = 0.3
TEMPERATURE = 100.0
BATCH = 128
LR = 3e-3
PLAIN = "plain"
DISTILLED = f"distilled, T = {TEMPERATURE:g}"


@dataclass(frozen=True)
class Size:
    """How much is trained and attacked.

    Attributes:
        train: training images.
        epochs: of the losses that cost one pass or two.
        long: of those with PGD inside.
        steps: of that PGD.
        test: test images.
        search: steps of the PGD that judges.
        restarts: of it.
        queries: of Square.
    """

    train: int
    epochs: int
    long: int
    steps: int
    test: int
    search: int
    restarts: int
    queries: int


FULL = Size(60_000, 6, 14, 7, 1000, 100, 2, 1000)
QUICK = Size(640, 1, 1, 2, 40, 4, 2, 20)


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        loss: what to go down.
        epochs: for how long.
        grows: whether the budget of its attack grows in the first third of them.
    """

    loss: Loss
    epochs: int
    grows: bool = False


def main() -> None:
    """Train, attack, print the table and write what is asked for."""
    names = [*recipes(FULL), DISTILLED]
    args = arguments(__doc__, data="images", out="nets, results.json and the figure", only=names)
    require_files(args.data, "mnist_train.npz", "mnist_test.npz")
    size = QUICK if args.quick else FULL
    train = load_npz(args.data / "mnist_train.npz").head(size.train)
    test = load_npz(args.data / "mnist_test.npz").head(10 * size.test)
    results: dict[str, Any] = {}
    plain = None
    for name in names if args.only is None else dict.fromkeys([PLAIN, args.only]):
        net, seconds = made(name, train, size, args.out)
        plain = net if plain is None else plain
        results[name] = {"seconds": seconds, **measure_accuracies(net, plain, test, size)}
        print(line(name, results[name]), file=sys.stderr)
        if args.out is not None:
            save(args.out, results)
    print(report(results))


def recipes(size: Size) -> dict[str, Recipe]:
    """Every loss by its name; the distilled net comes of two trainings and is not among them."""
    pgd = attacks.PGD(eps=EPS, steps=size.steps)
    return {
        PLAIN: Recipe(cross_entropy, size.epochs),
        "label smoothing": Recipe(defenses.LabelSmoothing(smoothing=0.1), size.epochs),
        "logit squeezing": Recipe(defenses.LogitSqueezing(weight=0.5, sigma=0.5), size.epochs),
        "clean logit pairing": Recipe(defenses.LogitPairing(weight=0.5, kind="clean"), size.epochs),
        "FGSM mixture": Recipe(
            defenses.AdversarialTraining(attack=attacks.FGSM(eps=EPS), clean_weight=0.5),
            size.epochs,
        ),
        "FGSM, random start": Recipe(
            defenses.AdversarialTraining(attack=attacks.FGSM(eps=EPS, random_start=True)),
            size.epochs,
            grows=True,
        ),
        "PGD": Recipe(defenses.AdversarialTraining(attack=pgd), size.long, grows=True),
        "adversarial logit pairing": Recipe(
            defenses.LogitPairing(attack=pgd, weight=0.5), size.long, grows=True
        ),
        "TRADES, beta 1": Recipe(defenses.TRADES(attack=pgd, beta=1.0), size.long, grows=True),
        "TRADES, beta 6": Recipe(defenses.TRADES(attack=pgd, beta=6.0), size.long, grows=True),
    }


def plain_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """The cross-entropy as it is usually climbed: in float32 it has no slope where a net is sure.

    The attacks of this library climb log-odds instead, which have.
    """
    return F.cross_entropy(logits, y, reduction="none")


def made(name: str, train: Dataset, size: Size, out: Path | None) -> tuple[nn.Module, float]:
    """The net of that name, trained or loaded, and the processor seconds of its training."""
    path = None if out is None else out / f"{name.replace(',', '').replace(' ', '_')}.pt"
    if path is not None and path.is_file():
        saved = read_torch(path)
        net = mnist_cnn_certified()
        net.load_state_dict(saved["net"])
        return net, float(saved["seconds"])
    began = time.process_time()
    with seeded():
        net = distilled(train, size) if name == DISTILLED else trained(recipes(size)[name], train)
    seconds = time.process_time() - began
    if path is not None:
        with atomic_write(path) as temporary:
            torch.save({"net": net.state_dict(), "seconds": seconds}, temporary)
    return net, seconds


def trained(recipe: Recipe, train: Dataset) -> nn.Module:
    """A net trained by a recipe: Adam, one cycle of the learning rate, averaged weights."""
    net = mnist_cnn_certified()
    loader = batches(train.x, train.y, BATCH)
    total = recipe.epochs * len(loader)
    growing = total // 3 if recipe.grows else 0
    return learn(
        net,
        loader,
        loss=grown(recipe.loss, growing) if growing else recipe.loss,
        epochs=recipe.epochs,
        peak=LR,
        ema=1 - 7 / max(total, 14),  # over about the last seventh of the training
        progress=True,
    )


def grown(loss: Any, batches: int) -> Loss:
    """`loss` with a budget that grows to its own over so many batches.

    Against the whole of eps 0.3 from the start, a net learns to give all images the same answer.
    """
    seen = itertools.count(1)

    def growing(module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        share = min(1.0, next(seen) / batches)
        smaller = replace(loss.attack, eps=share * loss.attack.eps)
        return replace(loss, attack=smaller)(module, x, y)

    return growing


def distilled(train: Dataset, size: Size) -> nn.Module:
    """Papernot's protocol: a teacher trained at the temperature, and a student of its answers."""
    loss = defenses.TemperedCrossEntropy(temperature=TEMPERATURE)
    teacher = trained(Recipe(loss, size.epochs), train)
    distillation = defenses.Distillation(
        temperature=TEMPERATURE, epochs=size.epochs, lr=1e-3, batch_size=BATCH, seed=SEED
    )
    return distillation.fit(teacher, mnist_cnn_certified(), batches(train.x, train.y, BATCH))


def measure_accuracies(
    net: nn.Module, plain: nn.Module, test: Dataset, size: Size
) -> dict[str, float]:
    """Accuracy without an attack, on all test images, and under each attack, in percent."""
    part = test.head(size.test)
    search = attacks.PGD(eps=EPS, steps=size.search, restarts=size.restarts, seed=SEED)
    tried = {
        "FGSM, plain": attacks.FGSM(eps=EPS, loss=plain_cross_entropy),
        "PGD, plain": attacks.PGD(eps=EPS, loss=plain_cross_entropy, seed=SEED),
        "FGSM": attacks.FGSM(eps=EPS),
        "PGD": search,
        "PGD, margin": replace(search, loss="margin"),
        "Square": attacks.Square(eps=EPS, max_queries=size.queries, seed=SEED),
        "transfer": attacks.Transfer(
            attack=replace(search, restarts=1, stop="never"), surrogate=plain
        ),
    }
    found = rob.evaluate(net, part.x, part.y, attacks=list(tried.values()), batch_size=250)
    return {
        "clean": 100 * float(rob.accuracy(net, test.x, test.y)),
        **{
            name: 100 * float(outcome.robust_accuracy)
            for name, outcome in zip(tried, found.outcomes, strict=True)
        },
        "worst case": 100 * float(found.worst_case),
    }


def line(name: str, found: Mapping[str, float]) -> str:
    """One net in one line, as it is done."""
    return f"{name}: " + ", ".join(f"{key} {value:.1f}" for key, value in found.items())


def report(results: Mapping[str, Mapping[str, float]]) -> str:
    """The table in Markdown: one row for each net, accuracy in percent."""
    columns = list(next(iter(results.values())))
    rows = [
        [name, *(f"{found[column]:.{0 if column == 'seconds' else 1}f}" for column in columns)]
        for name, found in results.items()
    ]
    return table(["trained with", *columns], rows)


def save(out: Path, results: Mapping[str, Mapping[str, float]]) -> None:
    """`results.json`, and the table as a picture where matplotlib is there."""
    save_json(out / "results.json", results)
    save_figure(out / "mnist_defenses.png", figure(results), dpi=100)


def figure(results: Mapping[str, Mapping[str, float]]) -> Any:
    """Nets by attacks, the darker the less is left."""
    from matplotlib.figure import Figure

    columns = [column for column in next(iter(results.values())) if column != "seconds"]
    cells = [[found[column] for column in columns] for found in results.values()]
    drawn = Figure(figsize=(10, 0.45 * len(cells) + 1.6), layout="constrained")
    axes = drawn.add_subplot()
    axes.imshow(cells, vmin=0, vmax=100, cmap="cividis", aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=30, ha="right")
    axes.set_yticks(range(len(cells)), list(results))
    for i, row in enumerate(cells):
        for j, value in enumerate(row):
            ink = "black" if value > 50 else "white"
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", color=ink)
    for j in (0.5, 2.5, len(columns) - 1.5):
        axes.axvline(j, color="white", linewidth=3)
    axes.set_title(f"MNIST: accuracy in %, attacks of eps {EPS:g} in linf")
    return drawn


if __name__ == "__main__":
    main()
