"""Road signs: four attacks, what is said of them, and what training against one is worth.

    python examples/studies/road_signs.py --data FOLDER [--quick] [--out FOLDER]

A blog's case study (data augmentation, ensembles, and the attacks L-BFGS, FGSM, JSMA and DeepFool)
has no figures of its own; here they are, on GTSRB (Stallkamp et al., 2012), 43 signs of 32x32
pixels. A small net is trained plainly, with augmentation, with smoothed labels, and adversarially
at 4/255 and 8/255. `--out` gets `results.json` and the pictures. `--quick` trains for seconds, and
on four of the signs: its figures mean nothing.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from scipy.stats import binomtest
from study import (
    SEED,
    Loss,
    arguments,
    batches,
    cross_entropy,
    learn,
    percent,
    require_files,
    save_figure,
    save_json,
    seeded,
    table,
)
from torch import Tensor, nn
from torch.nn import functional as F

from advkit import Ensemble, TorchClassifier, attacks, defenses
from advkit import eval as rob
from advkit.core.norms import lp_norm
from advkit.core.results import AttackResult, Queries
from advkit.data import Dataset, load_npz

SIGNS = (
    "20 km/h", "30 km/h", "50 km/h", "60 km/h", "70 km/h", "80 km/h", "end of 80 km/h", "100 km/h",
    "120 km/h", "no passing", "no passing for lorries", "right of way at crossing", "priority road",
    "yield", "stop", "no vehicles", "no lorries", "no entry", "caution", "curve left",
    "curve right", "double curve", "bumpy road", "slippery road", "road narrows", "road work",
    "traffic signals", "pedestrians", "children", "bicycles", "ice or snow", "wild animals",
    "end of all limits", "turn right", "turn left", "ahead only", "ahead or right",
    "ahead or left", "keep right", "keep left", "roundabout", "end of no passing",
    "end of no passing for lorries",
)  # fmt: skip
STOP = SIGNS.index("stop")
LEVELS = 255  # budgets are stated in steps of an 8-bit pixel
EPS = (2, 4, 8, 16)
THREE = ("plain", "robust 4/255", "robust 8/255")
BATCH = 250


@dataclass(frozen=True)
class Size:
    """How much is trained and asked.

    Attributes:
        signs: labels of the images that are taken.
        every: of the training images every so-manieth is taken.
        epochs: of each training.
        train_steps: of PGD in adversarial training.
        test: test images.
        some: of these, for what is dear: Square, transfer and ensembles.
        near: of these that all three nets read correctly, for minimum-norm attacks.
        steps: of PGD.
        restarts: of PGD.
        queries: of Square.
        least: up to which eps FGSM looks for its least one, in 255ths.
        classes: that an attack tries which goes for one class after another.
        search: values of the constant that L-BFGS and C&W try.
    """

    signs: tuple[int, ...]
    every: int
    epochs: int
    train_steps: int
    test: int
    some: int
    near: int
    steps: int
    restarts: int
    queries: int
    least: int
    classes: int
    search: int


FULL = Size(tuple(range(43)), 1, 20, 5, 1000, 200, 100, 20, 3, 1000, 64, 9, 9)
QUICK = Size((12, 13, STOP, 38), 4, 5, 1, 24, 8, 3, 2, 1, 20, 8, 1, 1)


class Recipe(NamedTuple):
    """How a net is trained."""

    loss: Loss
    seed: int = SEED


def main() -> None:
    """Train, attack, print the tables and write what is asked for."""
    args = arguments(__doc__, data="images", out="results.json and the figures")
    require_files(args.data, "gtsrb_train_sample.npz", "gtsrb_test_00000_00999.npz")
    began = time.process_time()
    size = QUICK if args.quick else FULL
    train = of_signs(load_npz(args.data / "gtsrb_train_sample.npz"), size.signs)
    train = Dataset(train.x[:: size.every], train.y[:: size.every], train.name)
    test = of_signs(load_npz(args.data / "gtsrb_test_00000_00999.npz"), size.signs).head(size.test)
    nets, seconds = all_nets(train, size)
    results = {"size": vars(size), "training": seconds, **study(nets, test, size)}
    results["seconds"] = round(time.process_time() - began)
    print(report(results))
    if args.out is not None:
        save(args.out, results, nets, test, size)


def of_signs(data: Dataset, signs: Sequence[int]) -> Dataset:
    """The images whose labels are among `signs`."""
    rows = torch.isin(data.y, torch.tensor(signs))
    return Dataset(data.x[rows], data.y[rows], data.name)


def all_nets(train: Dataset, size: Size) -> tuple[dict[str, nn.Module], dict[str, float]]:
    """Every net by its name, and the seconds of one core that its training took."""
    nets, seconds = {}, {}
    for name, recipe in recipes(size.train_steps).items():
        began = time.process_time()
        nets[name] = trained(recipe, train, size.epochs)
        seconds[name] = round(time.process_time() - began, 1)
        print(f"{name}: trained in {seconds[name]} s", file=sys.stderr)
    return nets, seconds


def recipes(steps: int) -> dict[str, Recipe]:
    """The trainings; those of the robust nets shift the images as the augmented one does."""
    return {
        "plain": Recipe(cross_entropy),
        "plain, seed 1": Recipe(cross_entropy, 1),
        "plain, seed 2": Recipe(cross_entropy, 2),
        "augmented": Recipe(shifted(cross_entropy)),
        "smoothed labels": Recipe(defenses.LabelSmoothing(smoothing=0.1)),
        "robust 4/255": Recipe(shifted(against(4 / LEVELS, steps))),
        "robust 8/255": Recipe(shifted(against(8 / LEVELS, steps))),
    }


def against(eps: float, steps: int) -> Loss:
    """The loss of adversarial training."""
    return defenses.AdversarialTraining(attack=attacks.PGD(eps=eps, steps=steps))


def shifted(loss: Loss, most: int = 2) -> Loss:
    """`loss` of images that are moved by up to `most` pixels, their edges repeated."""

    def of_shifted(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return loss(net, shift(x, torch.randint(2 * most + 1, (2, len(x))), most), y)

    return of_shifted


def shift(x: Tensor, places: Tensor, most: int) -> Tensor:
    """Images `(n, c, h, w)` moved down and right by `most - places` pixels, `places` `(2, n)`."""
    height, width = x.shape[2:]
    wide = F.pad(x, (most,) * 4, mode="replicate")
    windows = wide.unfold(2, height, 1).unfold(3, width, 1)  # (n, c, places, places, h, w)
    return windows[torch.arange(len(x)), :, places[0], places[1]]


def trained(recipe: Recipe, train: Dataset, epochs: int) -> nn.Module:
    """A small net, trained by its recipe; the same whatever was drawn before."""
    with seeded(recipe.seed):
        loader = batches(train.x, train.y, 64)
        return learn(small_net(), loader, loss=recipe.loss, epochs=epochs, peak=2e-3)


def small_net() -> nn.Sequential:
    """Three convolutions of stride 2 with batch norm: `(n, 3, 32, 32)` to logits `(n, 43)`."""
    layers: list[nn.Module] = []
    for wide_in, wide, kernel in ((3, 32, 5), (32, 64, 3), (64, 128, 3)):
        layers += [
            nn.Conv2d(wide_in, wide, kernel, stride=2, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, len(SIGNS)))


def study(nets: Mapping[str, nn.Module], test: Dataset, size: Size) -> dict[str, Any]:
    """All figures of trained nets."""
    some = test.head(size.some)
    single = {name: net for name, net in nets.items() if "seed" not in name}
    near = read_by_all([nets[name] for name in THREE], test).head(size.near)
    return {
        "near": len(near),
        "blog": {
            name: side_by_side(nets[name], near, {**blog(size), **yardstick(size)})
            for name in THREE
        },
        "stops": stops_read_as(nets["plain"], test, size),
        "under": {name: under_attack(net, test, size) for name, net in single.items()},
        "square": {name: under_square(nets[name], some, size) for name in THREE},
        "transfer": rob.transfer_matrix(
            single, None, attacks.PGD(eps=8 / LEVELS, steps=size.steps, seed=SEED), some.x, some.y
        ).to_dict(),
        "ensembles": {
            name: under_attack_and_transfer(model, nets["plain"], some, size)
            for name, model in ensembles(nets).items()
        },
    }


def read_by_all(nets: Sequence[nn.Module], data: Dataset) -> Dataset:
    """Those of `data` that all `nets` label correctly."""
    right = [TorchClassifier(net).predict(data.x) == data.y for net in nets]
    rows = torch.stack(right).all(0)
    return Dataset(data.x[rows], data.y[rows], data.name)


@dataclass(frozen=True, kw_only=True)
class LeastFGSM:
    """FGSM at 1/255, 2/255 and so on up to `most`/255, until it succeeds."""

    most: int

    def run(self, model: object, x: Tensor, y: Tensor) -> AttackResult:
        """As the `run` of every attack, for inputs that the model labels correctly."""
        x_adv, success = x.clone(), torch.zeros(len(x), dtype=torch.bool)
        forward, backward = torch.zeros(2, len(x), dtype=torch.int64)
        for level in range(1, self.most + 1):
            rows = (~success).nonzero().flatten()
            if not len(rows):
                break
            found = attacks.FGSM(eps=level / LEVELS).run(model, x[rows], y[rows])
            forward[rows] += found.queries.forward
            backward[rows] += found.queries.backward
            success[rows] = found.success
            x_adv[rows[found.success]] = found.x_adv[found.success]
        return AttackResult(
            x_adv=x_adv,
            success=success,
            distance=lp_norm(x_adv - x, "linf"),
            norm="linf",
            queries=Queries(forward, backward),
            no_gradient=torch.zeros_like(success),
        )


def blog(size: Size) -> dict[str, Any]:
    """The blog's four attacks; FGSM at one eps and at its least, JSMA for many classes and one."""
    return {
        "L-BFGS": attacks.LBFGS(search_steps=size.search, candidates=size.classes),
        "FGSM, 8/255": attacks.FGSM(eps=8 / LEVELS),
        "FGSM, least eps": LeastFGSM(most=size.least),
        "JSMA": attacks.JSMA(candidates=size.classes),
        "JSMA, one class": attacks.JSMA(candidates=1),
        "DeepFool": attacks.DeepFool(),
    }


def yardstick(size: Size) -> dict[str, Any]:
    """What the blog does not name: an attack that is better in l2 than its four."""
    return {"C&W": attacks.CarliniWagnerL2(search_steps=size.search)}


def side_by_side(
    net: nn.Module, data: Dataset, tried: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """What each attack finds on the same images, what it costs, and how near to the best it is."""
    rows, lengths = {}, {}
    model = TorchClassifier(net)
    for name, attack in tried.items():
        began = time.process_time()
        found = attack.run(model, data.x, data.y)
        seconds = time.process_time() - began
        rows[name] = figures(model, data, found)
        rows[name]["ms"] = 1000 * seconds / len(data)
        length = lp_norm(found.x_adv - data.x, "l2")
        lengths[name] = torch.where(found.success, length, torch.inf)
    least = torch.stack(list(lengths.values())).amin(0)
    for name, length in lengths.items():
        rows[name]["times least l2"] = median((length / least)[length.isfinite()])
    return rows


def figures(model: TorchClassifier, data: Dataset, found: AttackResult) -> dict[str, float]:
    """Success, medians over the successes, and mean cost.

    `rounded` is the success of what is left in a file of 8 bits a channel; a `feature` is one
    channel of a pixel, and `half a level` counts those that change enough to round to another byte.
    """
    delta = (found.x_adv - data.x)[found.success]
    changed = delta != 0
    rounded = (found.x_adv * LEVELS).round() / LEVELS
    return {
        "success": percent(found.success),
        "rounded": percent(model.predict(rounded) != data.y),
        "l2": median(lp_norm(delta, "l2")),
        "linf": median(lp_norm(delta, "linf")),
        "features": median(changed.flatten(1).sum(1)),
        "half a level": median((delta.abs() >= 0.5 / LEVELS).flatten(1).sum(1)),
        "pixels": median(changed.any(1).flatten(1).sum(1)),
        "forward": float(found.queries.forward.double().mean()),
        "backward": float(found.queries.backward.double().mean()),
    }


def median(values: Tensor) -> float:
    """Lower median of `values` `(n,)`, NaN of none."""
    return float(values.double().median())


def stops_read_as(net: nn.Module, test: Dataset, size: Size) -> dict[str, dict[str, int]]:
    """What each attack makes the net read on the stop signs that it knows: signs and their number.

    A stop sign that withstands an attack is still read as one.
    """
    stops = read_by_all([net], of_signs(test, [STOP]))
    model = TorchClassifier(net)
    answers = {
        name: model.predict(attack.run(model, stops.x, stops.y).x_adv)
        for name, attack in blog(size).items()
    }
    return {
        name: dict(Counter(SIGNS[label] for label in labels.tolist()).most_common())
        for name, labels in answers.items()
    }


def under_attack(model: object, data: Dataset, size: Size) -> dict[str, Any]:
    """Accuracy, and what remains of it under noise and gradient attacks of each eps, in %."""
    found = rob.evaluate(model, data.x, data.y, attacks=gradient_attacks(size), batch_size=BATCH)
    kinds = ("FGSM", "PGD, cross-entropy", "PGD, margin")
    robust = {eps: [o.robust for o in found.outcomes if in_levels(o.eps) == eps] for eps in EPS}
    worst = {eps: torch.stack(rows).all(0) for eps, rows in robust.items()}
    return {
        "clean": percent(found.clean),
        "clean interval": interval(found.clean),
        "noise": {in_levels(n.eps): percent(n.robust) for n in found.noise},
        **{kind: {eps: percent(robust[eps][i]) for eps in EPS} for i, kind in enumerate(kinds)},
        "worst": {eps: percent(rows) for eps, rows in worst.items()},
        "worst interval": {eps: interval(rows) for eps, rows in worst.items()},
        "worst of some": {eps: percent(rows[: size.some]) for eps, rows in worst.items()},
        "clean of some": percent(found.clean[: size.some]),
    }


def gradient_attacks(size: Size) -> list[Any]:
    """FGSM and PGD of both losses, for each eps."""
    common = {"steps": size.steps, "restarts": size.restarts, "seed": SEED}
    return [
        attack
        for eps in (e / LEVELS for e in EPS)
        for attack in (
            attacks.FGSM(eps=eps),
            attacks.PGD(eps=eps, loss="ce", **common),
            attacks.PGD(eps=eps, loss="margin", **common),
        )
    ]


def in_levels(eps: float) -> int:
    """A budget in steps of an 8-bit pixel."""
    return round(eps * LEVELS)


def interval(right: Tensor) -> tuple[float, float]:
    """Where the true share lies with 95 % confidence (Wilson), in %, given bool `(n,)`."""
    found = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return 100 * found.low, 100 * found.high


def under_square(model: object, data: Dataset, size: Size) -> dict[int, float]:
    """What remains of the accuracy, in %, under an attack that sees scores alone, by eps."""
    tried = [attacks.Square(eps=e / LEVELS, max_queries=size.queries, seed=SEED) for e in EPS]
    found = rob.evaluate(model, data.x, data.y, attacks=tried, batch_size=BATCH)
    return {in_levels(o.eps): percent(o.robust) for o in found.outcomes}


def ensembles(nets: Mapping[str, nn.Module]) -> dict[str, Ensemble]:
    """Three nets that differ in their seed, and three that differ in their training."""
    alike = [net for name, net in nets.items() if name.startswith("plain")]
    unlike = [nets[name] for name in ("augmented", "robust 4/255", "robust 8/255")]
    return {
        "three plain nets": Ensemble(alike, combine="probabilities"),
        "augmented, robust 4/255, robust 8/255": Ensemble(unlike, combine="probabilities"),
    }


def under_attack_and_transfer(
    model: Ensemble, known: nn.Module, data: Dataset, size: Size
) -> dict[str, Any]:
    """`under_attack`, and what remains under PGD on a net that the attacker has: `known`."""
    tried = [
        attacks.Transfer(
            attack=attacks.PGD(eps=e / LEVELS, steps=size.steps, seed=SEED), surrogate=known
        )
        for e in EPS
    ]
    found = rob.evaluate(model, data.x, data.y, attacks=tried, batch_size=BATCH)
    transfer = {in_levels(o.eps): percent(o.robust) for o in found.outcomes}
    return {**under_attack(model, data, size), "transfer": transfer}


def report(results: Mapping[str, Any]) -> str:
    """All tables in Markdown."""
    parts = []
    for name, rows in results["blog"].items():
        parts += [f"## The attacks on {name}, {results['near']} images", attack_table(rows)]
    parts += [
        "## Stop signs are read as",
        *(f"{name}: {counts}" for name, counts in results["stops"].items()),
        "## Accuracy in % by eps/255, 95 % interval of the worst case",
        accuracy_table(results["under"]),
        f"## The first {results['size']['some']} images: Square, and gradient attacks beside it",
        some_table(results),
        "## Transfer at 8/255: wrong answers of the column to examples of the row, in %",
        transfer_table(results["transfer"]),
        f"## Ensembles, the first {results['size']['some']} images",
        accuracy_table(results["ensembles"]),
        f"{results['seconds']} seconds of one core, of these training: {results['training']}",
    ]
    return "\n\n".join(parts)


def attack_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """One row for each attack; distances with four significant digits."""
    names = list(next(iter(rows.values())))
    return table(
        ["attack", *names],
        [[name, *(f"{found[key]:.4g}" for key in names)] for name, found in rows.items()],
    )


def accuracy_table(under: Mapping[str, Mapping[str, Any]]) -> str:
    """Clean accuracy, and accuracy under each attack and eps."""
    rows: list[list[object]] = []
    for name, found in under.items():
        clean = [f"{found['clean']:.1f} ({words(found['clean interval'])})"]
        for kind in ("noise", "transfer", "FGSM", "PGD, cross-entropy", "PGD, margin"):
            if kind in found:
                rows.append([f"{name}, {kind}", *clean, *(f"{found[kind][e]:.1f}" for e in EPS)])
                clean = [""]
        worst = [f"{found['worst'][e]:.1f} ({words(found['worst interval'][e])})" for e in EPS]
        rows.append([f"{name}, worst case", "", *worst])
    return table(["net, attack", "no attack", *EPS], rows)


def words(ends: tuple[float, float]) -> str:
    """An interval in %."""
    return f"{ends[0]:.1f} to {ends[1]:.1f}"


def some_table(results: Mapping[str, Any]) -> str:
    """Square beside the worst case of the gradient attacks, on the same images."""
    rows: list[list[object]] = []
    for name, found in results["under"].items():
        worst = [f"{found['worst of some'][eps]:.1f}" for eps in EPS]
        rows.append([f"{name}, gradients", f"{found['clean of some']:.1f}", *worst])
        if name in results["square"]:
            square = [f"{results['square'][name][eps]:.1f}" for eps in EPS]
            rows.append([f"{name}, Square", "", *square])
    return table(["net, attack", "no attack", *EPS], rows)


def transfer_table(matrix: Mapping[str, Any]) -> str:
    """Source by target, and what the targets get wrong by themselves."""
    made = {
        "no attack": matrix["no_attack"],
        **{f"noise, {budget}": wrong for budget, wrong in matrix["random_noise"].items()},
        **{source["name"]: source["error_rate"] for source in matrix["sources"]},
    }
    return table(
        ["made on", *matrix["targets"]],
        [
            [name, *(f"{100 * wrong[target]['value']:.1f}" for target in matrix["targets"])]
            for name, wrong in made.items()
        ],
    )


def save(
    folder: Path,
    results: Mapping[str, Any],
    nets: Mapping[str, nn.Module],
    test: Dataset,
    size: Size,
) -> None:
    """Write `results.json`, `accuracy.png` and, if all nets know a stop sign, `stop_signs.png`."""
    save_json(folder / "results.json", results)
    save_figure(folder / "accuracy.png", accuracy_figure(results["under"]))
    shown = {name: nets[name] for name in ("plain", "robust 8/255")}
    stops = read_by_all(list(shown.values()), of_signs(test, [STOP]))
    if not len(stops):
        print("no stop sign that both nets read correctly: no picture of one", file=sys.stderr)
        return
    save_figure(folder / "stop_signs.png", stop_figure(shown, stops, size))


def accuracy_figure(under: Mapping[str, Mapping[str, Any]]) -> Any:
    """Accuracy against eps: the worst case of the attacks, and noise of the same size dotted."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    for i, (name, found) in enumerate(under.items()):
        worst = [found["clean"], *(found["worst"][eps] for eps in EPS)]
        noise = [found["clean"], *(found["noise"][eps] for eps in EPS)]
        axes.plot((0, *EPS), worst, color=f"C{i}", marker="o", label=name)
        axes.plot((0, *EPS), noise, ":", color=f"C{i}", marker=".")
    axes.set(xlabel="eps in 255ths (0: no attack)", ylabel="accuracy in %", ylim=(0, 100))
    axes.set_title("Under the strongest of FGSM and PGD; dotted: under uniform noise", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    return figure


def stop_figure(nets: Mapping[str, nn.Module], stops: Dataset, size: Size) -> Any:
    """The first stop sign, and for each attack and net the change and the result."""
    from matplotlib.figure import Figure

    sign = stops.head(1)
    tried = {
        name: attack for name, attack in blog(size).items()
        if name not in ("FGSM, 8/255", "JSMA, one class")
    }  # fmt: skip
    columns = 1 + 2 * len(nets)
    figure = Figure(figsize=(2.1 * columns, 2.4 * len(tried) + 0.5), layout="constrained")
    grid = figure.subplots(len(tried), columns, squeeze=False)
    for line, (name, attack) in zip(grid, tried.items(), strict=True):
        picture(line[0], sign.x[0], SIGNS[STOP])
        line[0].set_ylabel(name, fontsize=11)
        for i, (of, net) in enumerate(nets.items()):
            x_adv = attack.run(net, sign.x, sign.y).x_adv
            delta = (x_adv - sign.x)[0]
            answer = SIGNS[int(TorchClassifier(net).predict(x_adv))]
            picture(line[1 + 2 * i], *enlarged(delta))
            picture(line[2 + 2 * i], x_adv[0], f"{of}:\n{answer}")
    figure.suptitle("A stop sign, what is added to it (enlarged), and what the net then reads")
    return figure


def enlarged(delta: Tensor) -> tuple[Tensor, str]:
    """A change `(c, h, w)` whose largest part becomes black or white, and how that was done."""
    largest = float(delta.abs().max())
    if largest == 0:
        return torch.full_like(delta, 0.5), "nothing found"
    length = float(delta.norm())
    return 0.5 + delta / (2 * largest), f"x {0.5 / largest:.1f}, l2 {length:.2f}"


def picture(axes: Any, image: Tensor, title: str) -> None:
    """Draw an image `(3, h, w)` in [0, 1]."""
    axes.imshow(image.permute(1, 2, 0).numpy(), vmin=0, vmax=1, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=9)


if __name__ == "__main__":
    main()
