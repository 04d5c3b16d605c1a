"""Distillation: what it seems to defend, what is left of it, and the cloud study's Table 5.

    python examples/studies/distillation_study.py --data FOLDER [--quick] [--out FOLDER]

First defensive distillation as Papernot et al. (2016, arXiv:1511.04508) made it, on MNIST at
temperature 100, under attacks that stand still before it and under those that do not (Carlini and
Wagner, 2016, arXiv:1607.04311). Then Table 5 of "Evaluating the Robustness of Cloud Auto-AI Models
against Adversarial Attacks" (Trivedi and Trivedi): LeNets that learn from the scores of black
boxes, here the boosted trees of `black_boxes.py`, at several temperatures, beside the same
LeNet trained on the true labels. `--out` gets `results.json` and `distillation.png`. `--quick`
takes a small part of everything.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from black_boxes import PUBLISHED, BlackBox, black_boxes
from nets import mnist_cnn_certified, mnist_lenet
from study import (
    SEED,
    Batches,
    Loss,
    arguments,
    batches,
    learn,
    loaded,
    percent,
    require_files,
    save_figure,
    save_json,
    seeded,
    table,
)
from torch import Tensor, nn
from torch.nn import functional as F

from advkit import TorchClassifier, attacks
from advkit.core.results import AttackResult, InconclusiveWarning
from advkit.data import Dataset, load_npz
from advkit.defenses import Distillation, TemperedCrossEntropy

TABLE_5 = {
    "IBM": {0.0: 98.981, 0.10: 74.193, 0.15: 68.645, 0.20: 49.981, 0.25: 20.451, 0.30: 19.001},
    "Google": {0.0: 97.795, 0.10: 75.690, 0.15: 75.134, 0.20: 52.332, 0.25: 26.552, 0.30: 18.141},
}
TEMPERATURE = 100.0  # of the defense
EPS = 0.3
WHITE = (0.1, 0.3)  # budgets against the students themselves
LR = 2e-3
BATCH = 64


@dataclass(frozen=True)
class Size:
    """How much is trained and attacked.

    Attributes:
        train: images that the nets of the defense, and the black boxes, learn from.
        epochs: of the nets of the defense.
        attacked: test images under attack.
        few: images for Carlini and Wagner's attack, and for attacks on the students.
        nearest: Carlini and Wagner's attack.
        steps: of PGD.
        inputs: test images that Table 5 is about; 80 % of them teach the students.
        trees: rounds of boosting.
        student_epochs: of the students.
        eps: budgets of FGSM.
        temperatures: of the students.
    """

    train: int
    epochs: int
    attacked: int
    few: int
    nearest: attacks.CarliniWagnerL2
    steps: int
    inputs: int
    trees: int
    student_epochs: int
    eps: tuple[float, ...]
    temperatures: tuple[float, ...]


FULL = Size(
    train=60_000, epochs=4, attacked=1000, few=200, nearest=attacks.CarliniWagnerL2(), steps=40,
    inputs=10_000, trees=60, student_epochs=15, eps=(0.10, 0.15, 0.20, 0.25, 0.30),
    temperatures=(1.0, 10.0, 100.0),
)  # fmt: skip
QUICK = Size(
    train=600, epochs=1, attacked=20, few=3,
    nearest=attacks.CarliniWagnerL2(search_steps=1, steps=10), steps=5, inputs=200, trees=2,
    student_epochs=1, eps=(0.20, 0.30), temperatures=(100.0,),
)  # fmt: skip


def main() -> None:
    """Run both parts, print their tables and write what is asked for."""
    args = arguments(__doc__, data="nets and images", out="results.json and distillation.png")
    require_files(args.data, "mnist_lenet.pt", "mnist_train.npz", "mnist_test.npz")
    began = time.perf_counter()
    size = QUICK if args.quick else FULL
    train = load_npz(args.data / "mnist_train.npz").head(size.train)
    test = load_npz(args.data / "mnist_test.npz")
    lenet = loaded(mnist_lenet(), args.data / "mnist_lenet.pt")
    results = {
        "size": {**vars(size), "nearest": repr(size.nearest)},
        "defense": defense(train, test, size),
        "table_5": table_5(black_boxes(train, size.trees), lenet, test.head(size.inputs), size),
    }
    results["seconds"] = round(time.perf_counter() - began)
    print(report(results))
    if args.out is not None:
        save(args.out, results)


def defense(train: Dataset, test: Dataset, size: Size) -> dict[str, Any]:
    """The net of Papernot's protocol and the same net without it, under the same attacks."""
    nets = defended(train, size)
    data, few = test.head(size.attacked), test.head(size.few)
    return {
        "under": {name: attacked(net, nets["plain"], data, size) for name, net in nets.items()},
        "C&W": {name: nearest(net, few, size.nearest) for name, net in nets.items()},
        "margins": {name: margins(net, data.x) for name, net in nets.items()},
    }


def defended(train: Dataset, size: Size) -> dict[str, nn.Module]:
    """A net at temperature 1; a teacher at 100; and the student that learns its answers at 100."""
    loader = batches(train.x, train.y, BATCH)
    plain, teacher, student = (new(mnist_cnn_certified) for _ in range(3))
    train_net(plain, loader, TemperedCrossEntropy(temperature=1.0), size.epochs)
    train_net(teacher, loader, TemperedCrossEntropy(temperature=TEMPERATURE), size.epochs)
    distillation(TEMPERATURE, size.epochs).fit(teacher, student, train.x.split(1000))
    return {"plain": plain, "distilled": student}


def new(factory: Callable[[], nn.Module]) -> nn.Module:
    """The same untrained net at every call."""
    with seeded():
        return factory()


def train_net(net: nn.Module, loader: Batches, loss: Loss, epochs: int) -> None:
    """Train `net` in place, with the same draws at every call."""
    with seeded():
        learn(net, loader, loss=loss, epochs=epochs, lr=LR)


def distillation(temperature: float, epochs: int) -> Distillation:
    """The defense, with the optimizer, batches and seed of `train_net`."""
    return Distillation(temperature=temperature, epochs=epochs, lr=LR, batch_size=BATCH, seed=SEED)


def usual(logits: Tensor, y: Tensor) -> Tensor:
    """The cross-entropy as it is usually written: its gradient is zero where softmax gives 1."""
    return F.cross_entropy(logits, y, reduction="none")


def undone(logits: Tensor, y: Tensor) -> Tensor:
    """The same at the temperature of training, which whoever knows the defense divides by."""
    return F.cross_entropy(logits / TEMPERATURE, y, reduction="none")


def attacked(
    net: nn.Module, plain: nn.Module, data: Dataset, size: Size
) -> dict[str, dict[str, float]]:
    """Accuracy of `net` under each attack, and the share that had no gradient, in percent."""
    pgd = {"eps": EPS, "steps": size.steps}
    search = {
        "uniform noise": attacks.RandomNoise(eps=EPS),
        "FGSM, usual cross-entropy": attacks.FGSM(eps=EPS, loss=usual),
        "PGD, usual cross-entropy": attacks.PGD(**pgd, loss=usual, random_start=False),
        "PGD from a random start, usual cross-entropy": attacks.PGD(**pgd, loss=usual),
        "FGSM, logits / T": attacks.FGSM(eps=EPS, loss=undone),
        "PGD, logits / T": attacks.PGD(**pgd, loss=undone),
        "PGD, advkit's default": attacks.PGD(**pgd),
        "PGD, margin": attacks.PGD(**pgd, loss="margin"),
        "PGD on the plain net": attacks.Transfer(attack=attacks.PGD(**pgd), surrogate=plain),
    }
    clean = TorchClassifier(net).predict(data.x) == data.y
    found = {"no attack": {"accuracy": percent(clean), "no gradient": 0.0}}
    for name, attack in search.items():
        found[name] = figures(quietly(attack, net, data))
    return found


def quietly(attack: Any, net: nn.Module, data: Dataset) -> AttackResult:
    """The result of an attack; that it met no gradient is in the tables, so no warning of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InconclusiveWarning)
        result: AttackResult = attack.run(net, data.x, data.y)
    return result


def figures(result: AttackResult) -> dict[str, float]:
    """Accuracy under the attack, and the share of all that it had no gradient for, in percent."""
    return {"accuracy": percent(~result.success), "no gradient": percent(result.no_gradient)}


def nearest(net: nn.Module, data: Dataset, attack: attacks.CarliniWagnerL2) -> dict[str, float]:
    """Accuracy under Carlini and Wagner's attack, and the median length of what it needs in l2."""
    result = quietly(attack, net, data)
    return {
        "accuracy": percent(~result.success),
        "median l2": float(result.distance[result.success].median()),
    }


def margins(net: nn.Module, x: Tensor) -> float:
    """Median of how far the largest logit is above the second."""
    with torch.no_grad():
        top = net(x).topk(2, dim=1).values
    return float((top[:, 0] - top[:, 1]).median())


class Sharpened:
    """A black box whose scores are taken for its answers at the temperature.

    Its logits are then `temperature` times as large as what its scores say.
    """

    def __init__(self, box: Any, temperature: float) -> None:
        self.box = box
        self.temperature = temperature
        self.bounds = box.bounds
        self.num_classes = box.num_classes

    def predict(self, x: Tensor) -> Tensor:
        """Labels `(n,)`."""
        return self.box.predict(x)

    def logits(self, x: Tensor) -> Tensor:
        """Logits `(n, classes)`, without a gradient."""
        return self.temperature * self.box.scores(x).clamp_min(1e-6).log()


def table_5(
    boxes: Sequence[BlackBox], lenet: nn.Module, data: Dataset, size: Size
) -> dict[str, Any]:
    """Students of the black boxes on what they were not taught, under FGSM on the LeNet."""
    taught = taught_rows(len(data))
    nets = students(boxes, data.x[taught], data.y[taught], size)
    models = {
        **{box.name: box.model for box in boxes},
        **{name: TorchClassifier(net) for name, net in nets.items()},
        "LeNet": TorchClassifier(lenet),
    }
    sets = {0.0: data.x}
    for eps in size.eps:
        sets[eps] = attacks.FGSM(eps=eps, stop="never")(lenet, data.x, data.y)
    said = {name: {e: model.predict(x) for e, x in sets.items()} for name, model in models.items()}
    rest = Dataset(data.x[~taught], data.y[~taught], data.name).head(size.few)
    return {
        **conventions(said, data.y, ~taught),
        "white_box": {name: in_white(net, rest) for name, net in nets.items()},
        "margins": {name: margins(net, rest.x) for name, net in nets.items()},
    }


def taught_rows(n: int) -> Tensor:
    """Bool `(n,)`: the 80 % of the images, drawn at random, that students learn from."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SEED))
    return order < 4 * n // 5


def students(boxes: Sequence[BlackBox], x: Tensor, y: Tensor, size: Size) -> dict[str, nn.Module]:
    """LeNets that learn `x`: from each black box at each temperature, and from the labels `y`."""
    nets = {}
    for box in boxes:
        for temperature in size.temperatures:
            name = f"{box.name}, T = {temperature:g}"
            nets[name] = student_of(box.model, x, temperature, size)
        sharp = Sharpened(box.model, TEMPERATURE)
        name = f"{box.name}, scores as they are, T = {TEMPERATURE:g}"
        nets[name] = student_of(sharp, x, TEMPERATURE, size)
    nets["true labels"] = new(mnist_lenet)
    loss = TemperedCrossEntropy(temperature=1.0)
    train_net(nets["true labels"], batches(x, y, BATCH), loss, size.student_epochs)
    return nets


def student_of(teacher: object, x: Tensor, temperature: float, size: Size) -> nn.Module:
    """A LeNet that learns the teacher's answers to `x`."""
    student = new(mnist_lenet)
    return distillation(temperature, size.student_epochs).fit(teacher, student, x.split(1000))


def conventions(
    said: Mapping[str, Mapping[float, Tensor]], y: Tensor, held_out: Tensor
) -> dict[str, Any]:
    """Accuracy by convention, model and eps; and how many images each convention looks at.

    `as published`: all images that fool the LeNet and were right before, also those that students
    were taught without the attack; without an attack, what the LeNet gets right of the rest.
    `held out`: the same of the rest alone. `over all`: all of the rest.
    """
    right = said["LeNet"][0.0] == y
    fooled = {eps: right & (labels != y) for eps, labels in said["LeNet"].items() if eps}
    clean = {0.0: right & held_out}
    sets = {
        "as published": {**clean, **fooled},
        "held out": {**clean, **{eps: rows & held_out for eps, rows in fooled.items()}},
        "over all": dict.fromkeys((0.0, *fooled), held_out),
    }
    return {
        "images": {key: {e: int(rows.sum()) for e, rows in by.items()} for key, by in sets.items()},
        "accuracy": {
            key: {
                name: {eps: percent((answers[eps] == y)[rows]) for eps, rows in by_eps.items()}
                for name, answers in said.items()
            }
            for key, by_eps in sets.items()
        },
    }


def in_white(net: nn.Module, data: Dataset) -> dict[str, dict[str, float]]:
    """Accuracy of a student that is attacked itself, and the share that had no gradient."""
    return {
        f"{name}, eps {eps:g}": figures(quietly(attack, net, data))
        for eps in WHITE
        for name, attack in {
            "FGSM, usual cross-entropy": attacks.FGSM(eps=eps, loss=usual),
            "PGD, usual cross-entropy": attacks.PGD(eps=eps, loss=usual, random_start=False),
            "PGD, advkit's default": attacks.PGD(eps=eps),
        }.items()
    }


def report(results: Mapping[str, Any]) -> str:
    """All tables in Markdown."""
    parts = [
        f"## The defense: accuracy in % at eps {EPS:g}, and the share without a gradient",
        defense_table(results["defense"]),
        "## Table 5: accuracy in %",
        students_table(results["table_5"], results["size"]["eps"]),
        "## The students attacked themselves: accuracy in %, and the share without a gradient",
        white_table(results["table_5"]),
        f"{results['seconds']} seconds.",
    ]
    return "\n\n".join(parts)


def defense_table(found: Mapping[str, Any]) -> str:
    """Attacks in rows, nets in columns."""
    under, nearest_of = found["under"], found["C&W"]
    head = ["attack", *(f"{net}{what}" for net in under for what in ("", ", no gradient"))]
    rows = [
        [name, *(value for by_name in under.values() for value in by_name[name].values())]
        for name in under["plain"]
    ]
    few = "Carlini and Wagner in l2"
    rows.append([few, *(v for one in nearest_of.values() for v in (one["accuracy"], ""))])
    lengths = (v for one in nearest_of.values() for v in (one["median l2"], ""))
    rows.append(["its median length", *lengths])
    gaps = (v for gap in found["margins"].values() for v in (gap, ""))
    return table(head, [*rows, ["median margin of the logits", *gaps]])


def students_table(found: Mapping[str, Any], budgets: Sequence[float]) -> str:
    """Table 5: what was published, and ours in each convention."""
    columns = (0.0, *budgets)
    rows: list[list[object]] = []
    for name, values in TABLE_5.items():
        rows.append([f"{name}'s model, published", *(PUBLISHED[name][eps] for eps in columns)])
        rows.append(["its student, published", *(values[eps] for eps in columns)])
    for key, by_name in found["accuracy"].items():
        for name, by_eps in by_name.items():
            rows.append([f"{name}, {key}", *(by_eps[eps] for eps in columns)])
        rows.append([f"images, {key}", *(found["images"][key][eps] for eps in columns)])
    return table(["model", "no attack", *budgets], rows)


def white_table(found: Mapping[str, Any]) -> str:
    """Students in rows, attacks in columns."""
    rows = [
        [name, found["margins"][name], *(pair(one) for one in by_attack.values())]
        for name, by_attack in found["white_box"].items()
    ]
    return table(["student", "median margin", *next(iter(found["white_box"].values()))], rows)


def pair(one: Mapping[str, float]) -> str:
    """Accuracy, and in brackets the share without a gradient where there is any."""
    blind = f" ({one['no gradient']:.1f})" if one["no gradient"] else ""
    return f"{one['accuracy']:.1f}{blind}"


def save(folder: Path, results: Mapping[str, Any]) -> None:
    """Write `results.json` and `distillation.png`."""
    save_json(folder / "results.json", results)
    save_figure(folder / "distillation.png", figure(results))


def figure(results: Mapping[str, Any]) -> Any:
    """The defense under each attack; and Figure 7, what was published and ours."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(17, 4.8), layout="constrained")
    bars, published, ours = drawn.subplots(1, 3, width_ratios=(1.3, 1, 1))
    draw_defense(bars, results["defense"]["under"])
    draw_published(published)
    draw_ours(ours, results["table_5"]["accuracy"]["as published"])
    for axes in (published, ours):
        axes.set(xlabel="eps (0: no attack)", ylim=(0, 102))
        axes.grid(alpha=0.3)
    published.legend(fontsize="small")
    ours.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    published.set_ylabel("accuracy in % of images that fool the LeNet")
    return drawn


def draw_defense(axes: Any, under: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Bars of accuracy under each attack, one for each net."""
    names = list(under["plain"])
    for i, (net, by_name) in enumerate(under.items()):
        places = [j + 0.4 * i - 0.2 for j in range(len(names))]
        axes.barh(places, [by_name[name]["accuracy"] for name in names], 0.4, label=net)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel=f"accuracy in % at eps {EPS:g}", xlim=(0, 100), title="MNIST, T = 100")
    axes.legend(fontsize="small", loc="lower right")


def draw_published(axes: Any) -> None:
    """Figure 7 as it was: the clouds' models, and their students."""
    for i, (name, values) in enumerate(TABLE_5.items()):
        before = [PUBLISHED[name][eps] for eps in values]
        axes.plot(values.keys(), before, "--", color=f"C{i}", marker="x", label=name)
        label = f"student of {name}"
        axes.plot(values.keys(), values.values(), color=f"C{i}", marker="o", label=label)
    axes.set_title("Figure 7, published")


def draw_ours(axes: Any, accuracy: Mapping[str, Mapping[float, float]]) -> None:
    """The same of ours, with the LeNet that no black box taught."""
    for name, by_eps in accuracy.items():
        if name == "LeNet" or "scores as they are" in name:
            continue
        style = "-" if "T =" in name else ":" if name == "true labels" else "--"
        axes.plot(by_eps.keys(), by_eps.values(), style, marker=".", label=name)
    axes.set_title("Figure 7, ours")


if __name__ == "__main__":
    main()
