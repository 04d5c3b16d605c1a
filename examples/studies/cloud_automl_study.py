"""Two black boxes behind CSV and JSON, attacked through a LeNet: the study of cloud AutoML models.

    python examples/studies/cloud_automl_study.py --data FOLDER [--quick] [--out FOLDER]

Follows "Evaluating the Robustness of Cloud Auto-AI Models against Adversarial Attacks" (Trivedi and
Trivedi): FGSM on their LeNet, judged by models that are reached only by rows of CSV. The clouds'
models are gone; boosted trees of scikit-learn and of LightGBM (else XGBoost) stand in for them. A
third one is trained on test images, as the published figures suggest that one of theirs was. Last,
a substitute is trained from the answers of one of them. `--out` gets `results.json` and the
figures. `--quick` takes 1,500 training and 300 test images and two budgets.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from black_boxes import PUBLISHED, BlackBox, black_boxes, boosted, sklearn_trees
from nets import mnist_lenet
from study import (
    SEED,
    arguments,
    loaded,
    percent,
    require_files,
    save_figure,
    save_json,
    seeded,
    table,
)
from torch import Tensor

from advkit import CallableClassifier, TorchClassifier, attacks
from advkit.data import Dataset, load_npz
from advkit.models import Classifier

SHOWN = 5  # digits in the picture


@dataclass(frozen=True)
class Size:
    """How much is trained and asked.

    Attributes:
        train: training images; a tenth of them is held out.
        test: test images.
        part: of these, for noise and checks.
        trees: rounds of boosting.
        eps: budgets of FGSM.
        queries: of the substitute.
        epochs: of the substitute in each round.
    """

    train: int
    test: int
    part: int
    trees: int
    eps: tuple[float, ...]
    queries: int
    epochs: int


FULL = Size(60_000, 10_000, 2000, 60, (0.10, 0.15, 0.20, 0.25, 0.30), 6400, 10)
QUICK = Size(1500, 300, 100, 4, (0.10, 0.20), 400, 2)


def main() -> None:
    """Run the study, print its tables and write what is asked for."""
    args = arguments(__doc__, data="nets and images", out="results.json and the figures")
    require_files(args.data, "mnist_lenet.pt", "mnist_train.npz", "mnist_test.npz")
    began = time.perf_counter()
    size = QUICK if args.quick else FULL
    lenet = loaded(mnist_lenet(), args.data / "mnist_lenet.pt")
    surrogate = TorchClassifier(lenet)
    train = load_npz(args.data / "mnist_train.npz").head(size.train)
    test = load_npz(args.data / "mnist_test.npz").head(size.test)
    boxes = three_boxes(train, test, surrogate.predict(test.x) == test.y, size.trees)
    sets = {0.0: test.x}
    for eps in size.eps:
        sets[eps] = attacks.FGSM(eps=eps, stop="never")(lenet, test.x, test.y)
    said = {box.name: {eps: box.model.predict(x) for eps, x in sets.items()} for box in boxes}
    said["LeNet"] = {eps: surrogate.predict(x) for eps, x in sets.items()}
    part = test.head(size.part)
    asked = {**{box.name: box.model for box in boxes}, "LeNet": surrogate}
    results = {
        "size": vars(size),
        "validation": {box.name: box.validation for box in boxes},
        **conventions(said, test.y),
        "classes": {name: shares(answers) for name, answers in said.items()},
        "checks": {name: checked(model, part, sets) for name, model in asked.items()},
        "without_fgsm": {box.name: without_fgsm(box.model, part, size.eps) for box in boxes},
        "substitute": substituted(boxes[-2], lenet, train, part, size),
        "queries": {box.name: box.model.queries for box in boxes},
    }
    results["seconds"] = round(time.perf_counter() - began)
    print(report(results))
    if args.out is not None:
        save(args.out, results, sets, said, test.y)


def three_boxes(train: Dataset, test: Dataset, right: Tensor, trees: int) -> list[BlackBox]:
    """Boosted trees trained on `train`; the last ones on the test images `right` `(n,)` instead."""
    boxes = black_boxes(train, trees)
    if len(boxes) == 1:
        print("Neither LightGBM nor XGBoost is installed: scikit-learn's trees alone.\n")
    known = Dataset(test.x[right], test.y[right], "test images that the LeNet gets right")
    return [*boxes, boosted("trained on test", sklearn_trees(trees), known)]


def conventions(said: Mapping[str, Mapping[float, Tensor]], y: Tensor) -> dict[str, Any]:
    """Accuracy by model and eps over all images, and over those that fool the LeNet.

    The latter were classified correctly by the LeNet before, as in the published sets; without an
    attack they are all that it classified correctly.
    """
    right = said["LeNet"][0.0] == y
    sets = {eps: right & (labels != y) for eps, labels in said["LeNet"].items()}
    sets[0.0] = right
    return {
        "fooled": {eps: int(rows.sum()) for eps, rows in sets.items()},
        "error_rate": {
            name: {eps: percent(labels == y) for eps, labels in answers.items()}
            for name, answers in said.items()
        },
        "transfer_rate": {
            name: {eps: percent((labels == y)[sets[eps]]) for eps, labels in answers.items()}
            for name, answers in said.items()
        },
    }


def checked(
    model: Classifier, data: Dataset, sets: Mapping[float, Tensor]
) -> dict[str, dict[float, float]]:
    """Accuracy under what tells causes apart: noise, random signs, and parts of the FGSM step."""
    found: dict[str, dict[float, float]] = {}
    empty = data.x == 0
    for eps, x_adv in sets.items():
        if eps == 0:
            continue
        fgsm = x_adv[: len(data)]
        tried = {
            "FGSM": fgsm,
            "FGSM on ink only": torch.where(empty, data.x, fgsm),
            "FGSM on background only": torch.where(empty, fgsm, data.x),
            "random signs": random_signs(data.x, eps),
            "uniform noise": uniform_noise(data.x, eps),
        }
        for name, x in tried.items():
            found.setdefault(name, {})[eps] = percent(model.predict(x) == data.y)
    return found


def without_fgsm(
    model: CallableClassifier, data: Dataset, budgets: Sequence[float]
) -> dict[str, dict[float, list[float]]]:
    """Shares of the classes, in percent, where no gradient was asked for.

    Signs at random on the images, and specks of size eps on black images without a digit.
    """
    draw = torch.Generator().manual_seed(SEED)
    specks = (torch.rand(data.x.shape, generator=draw) < 0.5).float()
    noisy = {eps: random_signs(data.x, eps) for eps in budgets}
    return {
        "random signs": shares({eps: model.predict(x) for eps, x in noisy.items()}),
        "no digit": shares({eps: model.predict(eps * specks) for eps in budgets}),
    }


def random_signs(x: Tensor, eps: float) -> Tensor:
    """Every pixel `eps` up or down by the toss of a coin: FGSM without the gradient."""
    tosses = torch.randn(x.shape, generator=torch.Generator().manual_seed(SEED))
    return (x + eps * tosses.sign()).clamp(0, 1)


def substituted(
    victim: BlackBox, lenet: torch.nn.Module, train: Dataset, data: Dataset, size: Size
) -> dict[str, Any]:
    """A net trained from the victim's labels alone, and its FGSM beside noise, at eps 0.2."""
    own = train.x[-(size.queries // 8) :]  # held out from the victim; their labels are not used
    with seeded():
        net = type(lenet)()
    learn = attacks.Substitute(
        max_queries=size.queries, rounds=3, step_size=0.2, epochs=size.epochs, seed=SEED
    )
    found = learn.fit(victim.model, net, own, data.x)
    tried = {
        "no attack": data.x,
        "uniform noise": uniform_noise(data.x, 0.2),
        "FGSM on the substitute": attacks.FGSM(eps=0.2, stop="never")(found.model, data.x, data.y),
        "FGSM on the LeNet": attacks.FGSM(eps=0.2, stop="never")(lenet, data.x, data.y),
    }
    return {
        "victim": victim.name,
        "agreement": [(step.queries, 100 * step.rate) for step in found.history],
        "accuracy": {name: percent(victim.model.predict(x) == data.y) for name, x in tried.items()},
    }


def uniform_noise(x: Tensor, eps: float) -> Tensor:
    """Every pixel somewhere within `eps`, drawn by `RandomNoise`; no model has a say in it."""
    anything = CallableClassifier(lambda rows: np.zeros(len(rows), int), 10, output="labels")
    return attacks.RandomNoise(eps=eps, stop="never", seed=SEED)(anything, x)


def shares(answers: Mapping[float, Tensor]) -> dict[float, list[float]]:
    """By eps, the share of each of the ten classes among labels `(n,)`, in percent."""
    counted = {eps: torch.bincount(labels, minlength=10) for eps, labels in answers.items()}
    return {eps: (100 * n / n.sum()).tolist() for eps, n in counted.items()}


def report(results: Mapping[str, Any]) -> str:
    """All tables in Markdown."""
    budgets = results["size"]["eps"]
    parts = [
        "## Accuracy, in %",
        accuracy_table(results, budgets),
        "## Why: accuracy in % on the first images",
        table(
            ["black box, change", *budgets],
            [
                [f"{name}, {change}", *(by_eps[eps] for eps in budgets)]
                for name, changes in results["checks"].items()
                for change, by_eps in changes.items()
            ],
        ),
        "## Share of each class among the answers, in %",
        table(["model, images and eps", *range(10)], class_rows(results)),
        "## A substitute",
        substitute_lines(results["substitute"]),
        f"Queries: {results['queries']}; {results['seconds']} seconds.",
    ]
    return "\n\n".join(parts)


def accuracy_table(results: Mapping[str, Any], budgets: Sequence[float]) -> str:
    """Tables 3 and 4: what was published, and ours in both conventions."""
    rows: list[list[object]] = [
        [f"{name}, published", figures["validation"], *(figures[eps] for eps in (0.0, *budgets))]
        for name, figures in PUBLISHED.items()
    ]
    for key, words in (("transfer_rate", "given fooled"), ("error_rate", "over all")):
        for name, by_eps in results[key].items():
            validation = results["validation"].get(name, "")
            rows.append([f"{name}, {words}", validation, *(by_eps[eps] for eps in (0.0, *budgets))])
    fooled = results["fooled"]
    rows.append(["images given fooled", "", *(str(fooled[eps]) for eps in (0.0, *budgets))])
    return table(["model", "held out", "no attack", *budgets], rows)


def class_rows(results: Mapping[str, Any]) -> list[list[object]]:
    """By model and eps the shares of the classes: of FGSM's examples, then of what is none."""
    answers = {
        **{f"{name}, FGSM": by_eps for name, by_eps in results["classes"].items()},
        **{
            f"{name}, {kind}": by_eps
            for name, kinds in results["without_fgsm"].items()
            for kind, by_eps in kinds.items()
        },
    }
    return [
        [f"{name} {eps:g}", *percents]
        for name, by_eps in answers.items()
        for eps, percents in by_eps.items()
    ]


def substitute_lines(found: Mapping[str, Any]) -> str:
    """Agreement against queries, and accuracy of the victim."""
    steps = table(
        ["queries", "agreement in %"], [[str(count), share] for count, share in found["agreement"]]
    )
    accuracies = [[name, value] for name, value in found["accuracy"].items()]
    return f"{steps}\n\n" + table([f"{found['victim']} under, eps 0.2", "accuracy"], accuracies)


def save(
    folder: Path,
    results: Mapping[str, Any],
    sets: Mapping[float, Tensor],
    said: Mapping[str, Mapping[float, Tensor]],
    y: Tensor,
) -> None:
    """Write `results.json`, `accuracy.png` and `digits.png`."""
    save_json(folder / "results.json", results)
    save_figure(folder / "accuracy.png", accuracy_figure(results))
    save_figure(folder / "digits.png", digits_figure(sets, said, y))


def accuracy_figure(results: Mapping[str, Any]) -> Any:
    """Figure 5: accuracy against eps in both conventions, what was published dashed."""
    from matplotlib.figure import Figure

    budgets = results["size"]["eps"]
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name, by_eps in results["transfer_rate"].items():
        if name != "LeNet":  # which is wrong on all that fool it
            left.plot(by_eps.keys(), by_eps.values(), marker="o", label=name)
    for (name, figures), colour in zip(PUBLISHED.items(), ("black", "grey"), strict=True):
        values = [figures[eps] for eps in (0.0, *budgets)]
        left.plot(
            (0.0, *budgets), values, "--", marker="x", color=colour, label=f"{name}, published"
        )
    for i, (name, by_eps) in enumerate(results["error_rate"].items()):
        right.plot(by_eps.keys(), by_eps.values(), color=f"C{i}", marker="o", label=f"{name}: FGSM")
    for i, (name, changes) in enumerate(results["checks"].items()):
        values = [changes["random signs"][eps] for eps in budgets]
        right.plot(budgets, values, ":", color=f"C{i}", marker=".", label=f"{name}: random signs")
    left.set_ylabel("accuracy in %")
    left.set_title("as published: only images that fool the LeNet")
    right.set_title("over all test images")
    for axes in (left, right):
        axes.set(xlabel="eps (0: no attack)", ylim=(0, 102))
        axes.grid(alpha=0.3)
    left.legend(fontsize="small")
    right.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def digits_figure(
    sets: Mapping[float, Tensor], said: Mapping[str, Mapping[float, Tensor]], y: Tensor
) -> Any:
    """Figure 4: a few digits by eps, each with its true label and every model's answer."""
    from matplotlib.figure import Figure

    shown = min(SHOWN, len(y))
    figure = Figure(figsize=(1.75 * len(sets) + 0.6, 2.15 * shown + 0.7), layout="constrained")
    grid = figure.subplots(shown, len(sets), squeeze=False)
    letters = dict(zip(said, "ABCDEF"[: len(said)], strict=True))
    for j, (eps, x) in enumerate(sets.items()):
        for i in range(shown):
            axes = grid[i, j]
            axes.imshow(x[i, 0].numpy(), cmap="gray", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            answers = "  ".join(f"{letters[name]} {int(by[eps][i])}" for name, by in said.items())
            axes.set_title(f"true {int(y[i])}\n{answers}", fontsize=9)
        grid[-1, j].set_xlabel(f"eps {eps:g}")
    key = ", ".join(f"{letter}: {name}" for name, letter in letters.items())
    figure.suptitle(f"What each model says under FGSM on the LeNet\n{key}", fontsize=10)
    return figure


if __name__ == "__main__":
    main()
