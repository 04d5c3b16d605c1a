"""AutoAttack next to its authors' own code, on adversarially trained nets.

    python examples/studies/auto_attack_study.py --data FOLDER [--out FOLDER] [--quick]

Prints, for each net and budget, the robust accuracy of the first 200 test images and the samples
sent forward and backward for each image: those of the authors' code (github.com/fra31/auto-attack,
version "standard", seed 0), and those of `advkit.attacks.AutoAttack` with two seeds. `--out` keeps
each finished row as a file, which a later run reads again. It takes an hour on two cores; `--quick`
takes four images, one seed and the rows that cost little.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from nets import cifar10_resnet4b, mnist_cnn_certified, mnist_lenet5
from study import arguments, loaded, require_files, save_json, table_head, table_row
from torch import Tensor, nn

from advkit.attacks import AutoAttack
from advkit.data import load_npz

MNIST, CIFAR = "mnist_test.npz", "cifar10_test_0000_0499.npz"
TRAINED_HERE = Path(__file__).parent / "weights"
NETS = {
    "mnist_lenet5_robust": (mnist_lenet5, MNIST),
    "mnist_cnn_certified": (mnist_cnn_certified, MNIST),
    "mnist_pgd": (mnist_cnn_certified, MNIST),
    "cifar10_resnet4b_robust": (cifar10_resnet4b, CIFAR),
}
STAGES = ("APGD-CE", "APGD-T", "FAB-T", "Square")
CHUNK = 50  # images that a process attacks at once


class Row(NamedTuple):
    """A net, a budget, and what the authors' code found for them."""

    net: str
    norm: str
    eps: float
    robust: float
    forward: int
    backward: int


# from the cheapest to the most expensive one
ROWS = [
    Row("mnist_cnn_certified", "linf", 0.2, 0.000, 150, 115),
    Row("mnist_lenet5_robust", "l1", 10.0, 0.000, 212, 191),
    Row("cifar10_resnet4b_robust", "linf", 8 / 255, 0.110, 946, 282),
    Row("mnist_lenet5_robust", "l2", 2.0, 0.000, 1038, 931),
    Row("cifar10_resnet4b_robust", "l1", 8.0, 0.165, 1383, 393),
    Row("mnist_lenet5_robust", "l2", 1.5, 0.175, 2305, 1153),
    Row("cifar10_resnet4b_robust", "linf", 4 / 255, 0.385, 3076, 778),
    Row("cifar10_resnet4b_robust", "l2", 0.5, 0.395, 3155, 798),
    Row("mnist_pgd", "l2", 1.5, 0.315, 3327, 1296),
    Row("cifar10_resnet4b_robust", "linf", 2 / 255, 0.640, 5053, 1240),
    Row("mnist_cnn_certified", "l2", 1.0, 0.890, 7063, 1740),
    Row("mnist_pgd", "linf", 0.3, 0.915, 7223, 1766),
    Row("mnist_cnn_certified", "linf", 0.1, 0.965, 7592, 1846),
    Row("mnist_lenet5_robust", "l2", 1.0, 0.805, 6535, 1706),
    Row("mnist_lenet5_robust", "linf", 0.3, 0.900, 7115, 1739),
    Row("mnist_lenet5_robust", "linf", 0.2, 0.955, 7536, 1838),
]


def main() -> None:
    """Print the table and its summary."""
    args = arguments(__doc__, data="nets and images", out="the finished rows")
    files = [f"{net}.pt" for net in NETS if net != "mnist_pgd"]
    require_files(args.data, MNIST, CIFAR, *files)
    rows, images, seeds = (ROWS[:1], 4, (0,)) if args.quick else (ROWS, 200, (0, 1))
    columns = ["net", "norm, eps", "clean", "its code: robust, forward, backward"]
    columns += [f"advkit, seed {seed}" for seed in seeds]
    print(table_head([*columns, f"robust after {', '.join(STAGES)}"]), flush=True)
    found: dict[int, list[dict[str, Any]]] = {seed: [] for seed in seeds}
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for row in rows:
            cells = []
            for seed in seeds:
                result = finished(pool, args.data, args.out, row, seed, images)
                found[seed].append(result)
                cells.append(shown(result["robust"], result["forward"], result["backward"]))
            after = ", ".join(f"{100 * share:.1f}" for share in found[seeds[0]][-1]["after"])
            budget, clean = f"{row.norm}, {row.eps:.4g}", f"{100 * result['clean']:.1f} %"
            own = shown(row.robust, row.forward, row.backward)
            print(table_row([row.net, budget, clean, own, *cells, after]), flush=True)
    for seed, results in found.items():
        print(summary(seed, rows, results, images))


def shown(robust: float, forward: float, backward: float) -> str:
    """Return one cell of the table."""
    return f"{100 * robust:.1f} %, {forward:.0f}, {backward:.0f}"


def summary(seed: int, rows: list[Row], results: list[dict[str, Any]], images: int) -> str:
    """Return the differences to the authors' code over all rows, in words."""
    differences = [r["robust"] - row.robust for r, row in zip(results, rows, strict=True)]
    samples = sum(r["forward"] + r["backward"] for r in results)
    own = sum(row.forward + row.backward for row in rows)
    most = max(differences, key=abs) * images
    mean = 100 * sum(differences) / len(differences)
    return (
        f"seed {seed}: greatest difference {most:+.0f} images, mean {mean:+.2f} points, "
        f"{samples / own:.3f} times the samples"
    )


def finished(
    pool: Executor, data: Path, out: Path | None, row: Row, seed: int, images: int
) -> dict[str, Any]:
    """Return the figures of a row, from its file if an earlier run has written it."""
    path = out and out / f"{row.net}_{row.norm}_{row.eps:.4g}_{seed}_{images}.json"
    if path and path.is_file():
        known: dict[str, Any] = json.loads(path.read_text())
        return known
    result = figures(pool, data, row, seed, images)
    if path:
        save_json(path, result)
    return result


def figures(pool: Executor, data: Path, row: Row, seed: int, images: int) -> dict[str, Any]:
    """Return the figures of a row, whose images are attacked by several processes."""
    starts = range(0, images, CHUNK)
    tasks = [(data, row, seed, start, min(CHUNK, images - start)) for start in starts]
    parts = [torch.cat(part) for part in zip(*pool.map(attacked, tasks), strict=True)]
    correct, robust, forward, backward, stage = parts
    fooled_by = torch.where(robust, len(STAGES), stage)
    return {
        "clean": float(correct.double().mean()),
        "robust": float(robust.double().mean()),
        "forward": float(forward.double().mean()),
        "backward": float(backward.double().mean()),
        "after": [float((fooled_by > k).double().mean()) for k in range(len(STAGES))],
    }


def attacked(task: tuple[Path, Row, int, int, int]) -> tuple[Tensor, ...]:
    """Attack `count` images from `start` on.

    Returns:
        For each image whether it is labeled correctly and robust, its passes, and its stage.
    """
    data, row, seed, start, count = task
    torch.set_num_threads(1)
    net, images = load(data, row.net)
    x, y = images.x[start : start + count], images.y[start : start + count]
    result = AutoAttack(eps=row.eps, norm=row.norm, seed=seed).run(net, x, y)
    with torch.no_grad():
        correct = net(x).argmax(1) == y
    queries = result.queries
    return correct, ~result.success, queries.forward, queries.backward, result.stage


def load(data: Path, name: str) -> tuple[nn.Module, Any]:
    """Return a net in evaluation mode, and its test images."""
    factory, images = NETS[name]
    folder = TRAINED_HERE if name == "mnist_pgd" else data
    return loaded(factory(), folder / f"{name}.pt").eval(), load_npz(data / images)


if __name__ == "__main__":
    main()
