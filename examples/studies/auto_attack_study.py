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
from typing import Any

import torch
from auto_attack_figures import CHUNK, ROWS, Row, load, require_nets, shown
from study import arguments, save_json, table_head, table_row
from torch import Tensor

from advkit.attacks import AutoAttack

STAGES = ("APGD-CE", "APGD-T", "FAB-T", "Square")


def main() -> None:
    """Print the table and its summary."""
    args = arguments(__doc__, data="nets and images", out="the finished rows")
    require_nets(args.data)
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


if __name__ == "__main__":
    main()
