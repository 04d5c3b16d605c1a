"""Findings about eleven faulty models and five published nets, and what the checks cost.

    python examples/studies/findings_study.py --data FOLDER [--out FOLDER] [--only PART] [--quick]

Diagnoses each faulty model on the first 100 MNIST test images. Prints its findings, the robust
accuracy of an attack that believes it, that of `Suite` after the remedy, and that of an adaptive
attack. A second table has the findings about published nets, which should have none but one. A
third one has the share of the passes of an evaluation that its checks take. `--out` keeps the
trained nets and the tables. It takes about 40 minutes on one core; `--quick` takes four images.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from faulty_nets import Faulty, faulty_nets, upper_half
from nets import (
    cifar10_resnet4b,
    cifar10_resnet20,
    mnist_cnn_certified,
    mnist_lenet,
    mnist_lenet5,
)
from study import arguments, loaded, percent, require_files, run_part, table
from torch import Tensor

from advkit import QueryCounter, attacks
from advkit import eval as rob
from advkit.core.norms import Norm
from advkit.core.protocols import Attack
from advkit.data import Dataset, load_npz
from advkit.eval.findings.finding import Finding
from advkit.eval.units import attack_run, model_checks, worker

TRAIN, TEST, CIFAR = "mnist_train.npz", "mnist_test.npz", "cifar10_test_0000_0499.npz"
IMAGES, TRAIN_IMAGES = 100, 30_000
PUBLISHED: list[tuple[Any, str, str, Norm, float]] = [
    (mnist_lenet, "mnist_lenet.pt", TEST, "linf", 0.1),
    (mnist_cnn_certified, "mnist_cnn_certified.pt", TEST, "linf", 0.1),
    (cifar10_resnet20, "cifar10_resnet20.pt", CIFAR, "linf", 1 / 255),
    (cifar10_resnet4b, "cifar10_resnet4b_robust.pt", CIFAR, "linf", 8 / 255),
    (mnist_lenet5, "mnist_lenet5_robust.pt", TEST, "l2", 1.5),
]
PARTS = ("faulty", "published", "cost")


def main() -> None:
    """Print the tables."""
    args = arguments(
        __doc__, data="nets and images", out="the nets and the tables", only=PARTS
    )  # fmt: skip
    require_files(args.data, TRAIN, TEST, CIFAR, *(row[1] for row in PUBLISHED))
    torch.set_num_threads(1)
    parts = {"faulty": faulty, "published": published, "cost": cost}
    for name, part in parts.items():
        if args.only in (None, name):
            run_part(name, lambda part=part: part(args.data, args.out, args.quick), args.out)


# --- faulty models -------------------------------------------------------------------------------


def faulty(folder: Path, out: Path | None, quick: bool) -> tuple[dict[str, Any], str]:
    """Diagnose the faulty models, and compare `Suite` after the remedy with adaptive attacks."""
    train = load_npz(folder / TRAIN).head(500 if quick else TRAIN_IMAGES)
    test = load_npz(folder / TEST).head(4 if quick else IMAGES)
    known: dict[tuple[Any, Attack], float] = {}
    rows = []
    for name, make in faulty_nets(folder, train, out, quick=quick).items():
        rows.append(faulty_row(name, make(), test, known, quick=quick))
    columns = ["model", "eps", "findings", "naive", "Suite after the remedy", "adaptive", "points"]
    return {"rows": rows}, table(columns, rows)


def faulty_row(
    name: str, case: Faulty, data: Dataset, known: dict[tuple[Any, Attack], float], *, quick: bool
) -> list[object]:
    """Return the row of a faulty model; `known` keeps the figures of models in several rows."""
    y = upper_half(data.y) if case.two_classes else data.y

    def left(attack: Attack, model: Any) -> float:
        key = (model, attack)
        if key not in known:
            known[key] = left_by(attack, model, data.x, y, case.eps)
        return known[key]

    probes = made_probes(case.eps, "linf", quick=quick) | dict(case.probes)
    findings = rob.diagnose(case.model, data.x, y, probes=probes).findings
    cells = [named(finding) for finding in findings]
    if all(finding.name != case.finding for finding in findings):
        cells.append(f"without {case.finding}")
    naive = "an error" if case.naive is None else left(case.naive, case.model)
    suite = attacks.PGD(eps=case.eps, steps=3) if quick else attacks.Suite(eps=case.eps)
    after, adaptive = left(suite, case.remedied), left(case.adaptive, case.against)
    return [name, f"{case.eps:g}", ", ".join(cells), naive, after, adaptive, after - adaptive]


def made_probes(eps: float, norm: Norm, *, quick: bool) -> dict[str, Attack]:
    """Return the probes of a diagnosis; few and weak ones for a quick run."""
    if quick:
        budget: dict[str, Any] = {"eps": eps, "norm": norm}
        weak = attacks.PGD(**budget, steps=20), attacks.Square(**budget, max_queries=30)
        return dict(zip(("many_steps", "scores"), weak, strict=True))
    return attacks.probes(eps, norm)


def named(finding: Finding) -> str:
    """Return the name of a finding with its severity."""
    return f"{finding.name} ({finding.severity})"


def left_by(attack: Attack, model: Any, x: Tensor, y: Tensor, eps: float) -> float:
    """Return the robust accuracy in percent; `eps` is the budget of a minimum-norm attack."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (outcome,) = rob.evaluate(model, x, y, attacks=[attack]).outcomes
    if outcome.minimum_norm:
        radius = torch.full((len(x),), eps, dtype=torch.float64)
        return percent(outcome.attacked & ~outcome.within(radius))
    return percent(outcome.robust)


# --- published nets ------------------------------------------------------------------------------


def published(folder: Path, _: Path | None, quick: bool) -> tuple[dict[str, Any], str]:
    """Diagnose the published nets."""
    rows = []
    for factory, weights, archive, norm, eps in PUBLISHED:
        net = loaded(factory(), folder / weights).eval()
        data = load_npz(folder / archive).head(4 if quick else IMAGES)
        probes = made_probes(eps, norm, quick=quick)
        found = rob.diagnose(net, data.x, data.y, probes=probes)
        figures = [
            f"{percent(found.outcomes[role].robust):.1f}"
            for role in ("one_step", "many_steps", "more_steps", "restarts", "scores")
            if role in found.outcomes
        ]
        cell = ", ".join(map(named, found.findings)) or "none"
        rows.append([weights[:-3], f"{norm}, {eps:.4g}", cell, ", ".join(figures)])
    columns = ["net", "norm, eps", "findings", "left by one step, 20, 100, 5 x 20 steps, Square"]
    return {"rows": rows}, table(columns, rows)


# --- cost of the checks --------------------------------------------------------------------------


def cost(folder: Path, _: Path | None, quick: bool) -> tuple[dict[str, Any], str]:
    """Count the passes of evaluations with the checks and without them."""
    net = loaded(mnist_lenet(), folder / "mnist_lenet.pt").eval()
    data = load_npz(folder / TEST)
    made: list[tuple[Attack, int]] = [
        (attacks.FGSM(eps=0.3), 128),
        (attacks.FGSM(eps=0.3), 10),
        (attacks.PGD(eps=0.1), 128),
        (attacks.Suite(eps=0.1), 128),
    ]
    rows = []
    for n in (20,) if quick else (200, 1000):
        part = data.head(n)
        for attack, batch_size in made:
            whole = passes(net, part, [attack], batch_size)
            with without_checks():
                rest = passes(net, part, [attack], batch_size)
            share = f"{100 * (whole - rest) / whole:.2f} %"
            rows.append([attack, n, batch_size, f"{whole:,}", f"{whole - rest:,}", share])
    columns = ["attack", "inputs", "batch size", "passes", "of the checks", "share"]
    return {"rows": [[str(row[0]), *row[1:]] for row in rows]}, table(columns, rows)


def passes(net: Any, data: Dataset, made: Sequence[Attack], batch_size: int) -> int:
    """Return the samples sent forward and backward by an evaluation."""
    counter = QueryCounter(net)
    rob.evaluate(counter, data.x, data.y, attacks=made, batch_size=batch_size)
    return counter.forward + counter.backward


@contextmanager
def without_checks() -> Iterator[None]:
    """Leave out the checks of `evaluate` that send samples to the model."""

    def no_batch(_: object, batch: Any) -> dict[str, Tensor]:
        false = torch.zeros(len(batch.x), dtype=torch.bool)
        return dict.fromkeys(model_checks.COLUMNS, false)

    def no_rounding(_: object, part: Any, result: Any) -> dict[str, Tensor]:
        false = torch.zeros(len(result.success), dtype=torch.bool)
        return {"rounded": false, "undone": false}

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(worker, "check_batch", no_batch))
        patches.enter_context(mock.patch.object(attack_run, "check_rounding", no_rounding))
        yield


if __name__ == "__main__":
    main()
