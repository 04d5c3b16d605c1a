"""Four defended nets under PGD, AutoAttack, Suite, and the strongest attack found for each of them.

    python examples/studies/suite_defended_nets.py --data FOLDER [--out FOLDER] [--quick]

Trains a distilled net, a k-winners-take-all net, a net with inputs of 3 bits and a stochastic net
on MNIST. Prints the robust accuracy of the first 200 test images for each net and budget, and the
forward and backward passes for each image. A second table shows which part of the strongest attack
fooled how many images. An expectation over random draws counts as one pass. `--out` keeps the nets
and each finished figure, which a later run reads again. It takes about 40 minutes on one core;
`--quick` trains on 500 images and attacks four.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from defended_attacks import AveragedPGD, LevelPGD, soft_pgd
from defended_nets import RECIPES, defended
from study import arguments, percent, require_files, save_json, seeded, table_head, table_row

from advkit import InconclusiveWarning
from advkit.attacks import APGD, FAB, PGD, AutoAttack, Square, Suite, Transfer
from advkit.core.norms import Norm
from advkit.core.protocols import Attack
from advkit.data import Dataset, load_npz

TRAIN, TEST = "mnist_train.npz", "mnist_test.npz"
IMAGES, TRAIN_IMAGES = 200, 30_000
COLUMNS = ("PGD", "AutoAttack", "Suite", "Suite, thorough", "strongest")


class Case(NamedTuple):
    """A net and a budget at which the strongest attack leaves a part of the images."""

    net: str
    norm: Norm
    eps: float


CASES = [
    Case("distilled", "linf", 0.05),
    Case("distilled", "l2", 1.0),
    Case("k-WTA", "linf", 0.04),
    Case("3-bit inputs", "linf", 0.21),
    Case("3-bit inputs", "l2", 1.5),
    Case("stochastic", "linf", 0.125),
]


class Found(NamedTuple):
    """What attacks found, one after another on the images that were still robust."""

    robust: float  # percent
    forward: float  # passes for each image, the mean over all images
    backward: float
    by: dict[str, int]  # images that each attack fooled


def main() -> None:
    """Print both tables."""
    args = arguments(__doc__, data="images", out="the nets and the finished figures")
    require_files(args.data, TRAIN, TEST)
    torch.set_num_threads(1)
    train = load_npz(args.data / TRAIN).head(500 if args.quick else TRAIN_IMAGES)
    test = load_npz(args.data / TEST).head(4 if args.quick else IMAGES)
    models = {
        name: defended(name, train, epochs=1 if args.quick else None, out=args.out)
        for name in RECIPES
    }
    print(table_head(["net", "norm, eps", "clean", *COLUMNS]), flush=True)
    parts = []
    for case in CASES:
        model = models[case.net]
        row = [
            case.net,
            f"{case.norm}, {case.eps:g}",
            percent(predictions(model, test.x) == test.y),
        ]
        for column, named in lineup(case, model, quick=args.quick).items():
            found = finished(args.out, case, column, model, named, test)
            row.append(f"{found.robust:.1f} %, {found.forward:.0f}, {found.backward:.0f}")
        parts.append((case, found.by))
        print(table_row(row), flush=True)
    print(f"\n{table_head(['net', 'norm, eps', 'images fooled by each part of the strongest'])}")
    for case, by in parts:
        cell = ", ".join(f"{name} {count}" for name, count in by.items() if count)
        print(table_row([case.net, f"{case.norm}, {case.eps:g}", cell]))


def lineup(case: Case, model: Any, *, quick: bool) -> dict[str, dict[str, Attack]]:
    """Return the attacks of each column, by name.

    The attacks of a column run one after another. A new column needs an entry here and a name in
    `COLUMNS`.
    """
    budget: dict[str, Any] = {"eps": case.eps, "norm": case.norm}
    auto: Attack = AutoAttack(**budget)
    if case.net == "stochastic":
        # from single draws, since the standard version on an expectation takes hours
        auto = Transfer(attack=AutoAttack(**budget, version="rand"), surrogate=model.model)
    if quick:
        short = {"short": PGD(**budget, steps=3)}
        return dict.fromkeys(COLUMNS, short)
    strongest = deterministic(budget)
    if case.net == "k-WTA":
        strongest = against_k_wta(budget, model)
    elif case.net == "stochastic":
        strongest = expected(budget)
    elif case.net == "3-bit inputs" and case.norm == "l2":
        strongest = {"PGD between levels": LevelPGD(**budget, restarts=10)} | strongest
    suites = (Suite(**budget), Suite(**budget, effort="thorough"))
    single = zip(COLUMNS, (PGD(**budget), auto, *suites), strict=False)
    return {name: {name: attack} for name, attack in single} | {"strongest": strongest}


def deterministic(budget: dict[str, Any]) -> dict[str, Attack]:
    """Return the strongest attack on a net without randomness."""
    return {
        "PGD x 5": PGD(**budget, restarts=5, loss="margin"),
        "FAB": FAB(**budget, steps=200),
        "APGD": APGD(**budget, restarts=2),
        "APGD at classes": APGD(**budget, loss="dlr", candidates=9),
        "PGD x 100": PGD(**budget, steps=20, restarts=100, loss="margin"),
        "Square": Square(**budget, max_queries=5000),
    }


def against_k_wta(budget: dict[str, Any], model: Any) -> dict[str, Attack]:
    """Return the strongest attack on the k-WTA net, whose own gradient is of little use.

    The passes of the soft gradient go through a surrogate and are not counted.
    """
    return {
        "gradient averaged over noise": AveragedPGD(**budget),
        "soft gradient": soft_pgd(model.module, **budget, loss="margin", restarts=10),
        "Square": Square(**budget, max_queries=5000),
        "Square x 10,000": Square(**budget, max_queries=10_000, seed=1),
        "PGD x 5": PGD(**budget, restarts=5, loss="margin"),
        "FAB": FAB(**budget, steps=200),
    }


def expected(budget: dict[str, Any]) -> dict[str, Attack]:
    """Return the strongest attack on a random net in `Expectation`.

    The attacks take all steps, since an iterate that fools the net by little is robust at the next
    draws.
    """
    budget = budget | {"stop": "never"}
    return {
        "PGD": PGD(**budget, loss="margin"),
        "APGD at classes": APGD(**budget, steps=50, loss="margin", candidates=3),
        "APGD, 4 samples": APGD(**budget, steps=50, gradient_samples=4),
        "PGD x 5": PGD(**budget, loss="margin", restarts=5, seed=1),
        "Square": Square(**budget, max_queries=1000),
    }


def finished(
    out: Path | None,
    case: Case,
    column: str,
    model: Any,
    named: Mapping[str, Attack],
    data: Dataset,
) -> Found:
    """Return the figures of a cell, from its file if an earlier run has written it."""
    words = f"{case.net}_{case.norm}_{case.eps:g}_{column}_{len(data)}"
    path = out and out / f"{re.sub(r'[^A-Za-z0-9.]+', '_', words)}.json"
    if path and path.is_file():
        return Found(**json.loads(path.read_text()))
    found = under(named, model, data)
    if path:
        save_json(path, found._asdict())
    return found


def under(named: Mapping[str, Attack], model: Any, data: Dataset) -> Found:
    """Run attacks one after another, each on the images that are still robust.

    The label that the model predicts for the whole batch outside of the attack decides. There an
    expectation repeats its draws, which the attacks cannot know.
    """
    robust = predictions(model, data.x) == data.y
    forward, backward = torch.zeros(len(data)), torch.zeros(len(data))
    by = {}
    for name, attack in named.items():
        rows = robust.nonzero().flatten()
        if not len(rows):
            break
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InconclusiveWarning)
            result = attack.run(model, data.x[rows], data.y[rows])
        forward[rows] += result.queries.forward
        backward[rows] += result.queries.backward
        x_adv = data.x.clone()
        x_adv[rows] = result.x_adv
        fooled = robust & (predictions(model, x_adv) != data.y)
        robust &= ~fooled
        by[name] = int(fooled.sum())
    return Found(percent(robust), float(forward.mean()), float(backward.mean()), by)


def predictions(model: Any, x: torch.Tensor) -> torch.Tensor:
    """Return the labels `(n,)` of a batch; a random model repeats its draws."""
    with seeded():
        labels: torch.Tensor = model.predict(x)
    return labels


if __name__ == "__main__":
    main()
