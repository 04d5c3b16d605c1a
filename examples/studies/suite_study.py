"""Suite next to the figures of AutoAttack's authors, on adversarially trained nets.

    python examples/studies/suite_study.py --data FOLDER [--only PART] [--out FOLDER] [--quick]

`--only table` prints, for each net and budget of `auto_attack_figures.py`, the robust accuracy of
the first 200 test images and the samples sent forward and backward for each image: the figures of
the authors' code, those of `Suite` with three seeds, and those of `effort="thorough"`. `--only
batches` attacks the same images alone, in batches of seven and in one batch, and compares the
successes. `--out` keeps each finished row of the table as a file, which a later run reads again.
Both take about an hour on two cores; `--quick` takes few images, one seed and the rows that cost
little.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from auto_attack_figures import CHUNK, ROWS, Row, load, require_nets, shown
from study import arguments, save_json, table_head, table_row
from torch import Tensor

from advkit.attacks import Suite
from advkit.attacks.suite import Effort
from advkit.core.losses import margin

PARTS = ("table", "batches")
MANY_ROBUST = 0.1  # share of robust images under AutoAttack from which on they are many
CLOSE = 1e-5  # margin in logits up to which rounding may decide


class Run(NamedTuple):
    """An effort with its seed."""

    effort: Effort
    seed: int


RUNS = (Run("fast", 0), Run("fast", 1), Run("fast", 2), Run("thorough", 0))


def main() -> None:
    """Print the parts that were asked for."""
    args = arguments(__doc__, data="nets and images", out="the finished rows", only=PARTS)
    require_nets(args.data)
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for part in [args.only] if args.only else PARTS:
            print_part = print_table if part == "table" else print_batches
            print_part(pool, args.data, args.out, quick=args.quick)


def print_table(pool: Executor, data: Path, out: Path | None, *, quick: bool) -> None:
    """Print the robust accuracies and the passes of all rows, and what they amount to."""
    rows, images, runs = (ROWS[:1], 4, RUNS[:1]) if quick else (ROWS, 200, RUNS)
    names = [f"{effort}, seed {seed}" for effort, seed in runs]
    print(table_head(["net", "norm, eps", "AutoAttack", *names]), flush=True)
    found: dict[Run, list[dict[str, Any]]] = {run: [] for run in runs}
    for row in rows:
        for run in runs:
            found[run].append(finished(pool, data, out, row, run, images))
        own = shown(row.robust, row.forward, row.backward)
        cells = [shown(**found[run][-1]) for run in runs]
        print(table_row([row.net, f"{row.norm}, {row.eps:.4g}", own, *cells]), flush=True)
    for run, results in found.items():
        print(f"{run.effort}, seed {run.seed}: {summary(rows, results, images)}")


def summary(rows: list[Row], results: list[dict[str, Any]], images: int) -> str:
    """Return the differences to AutoAttack over all rows, in words."""
    pairs = list(zip(rows, results, strict=True))
    more = [round(images * (result["robust"] - row.robust)) for row, result in pairs]
    words = [f"at most {max(more):+d} images in any row and {sum(more):+d} in all"]
    for many, where in ((True, "many"), (False, "few")):
        shares = [
            cost(result) / (row.forward + row.backward)
            for row, result in pairs
            if (row.robust >= MANY_ROBUST) == many
        ]
        if shares:
            mean = math.exp(sum(map(math.log, shares)) / len(shares))
            words.append(
                f"where {where} are robust, at most {max(shares):.3f} times the samples and "
                f"{mean:.3f} times in the geometric mean"
            )
    return "; ".join(words)


def cost(result: dict[str, Any]) -> float:
    """Return the samples sent forward and backward for each image."""
    return float(result["forward"] + result["backward"])


def finished(
    pool: Executor, data: Path, out: Path | None, row: Row, run: Run, images: int
) -> dict[str, Any]:
    """Return the figures of a row, from its file if an earlier run has written it."""
    budget = f"{row.net}_{row.norm}_{row.eps:.4g}"
    path = out and out / f"suite_{budget}_{run.effort}_{run.seed}_{images}.json"
    if path and path.is_file():
        known: dict[str, Any] = json.loads(path.read_text())
        return known
    starts = range(0, images, CHUNK)
    tasks = [(data, row, run, start, min(CHUNK, images - start)) for start in starts]
    parts = zip(*pool.map(attacked, tasks), strict=True)
    names = ("robust", "forward", "backward")
    means = [float(torch.cat(part).double().mean()) for part in parts]
    result = dict(zip(names, means, strict=True))
    if path:
        save_json(path, result)
    return result


def attacked(task: tuple[Path, Row, Run, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Attack `count` images from `start` on; return for each if it is robust, and its passes."""
    data, row, run, start, count = task
    torch.set_num_threads(1)
    net, images = load(data, row.net)
    x, y = images.x[start : start + count], images.y[start : start + count]
    suite = Suite(eps=row.eps, norm=row.norm, effort=run.effort, seed=run.seed)
    result = suite.run(net, x, y)
    return ~result.success, result.queries.forward, result.queries.backward


def print_batches(pool: Executor, data: Path, out: Path | None, *, quick: bool) -> None:
    """Print how many successes depend on the batch, for each row."""
    rows, images = (ROWS[:1], 4) if quick else (ROWS, 200)
    print(table_head(["net", "norm, eps", "successes that differ", "with a margin above 1e-5"]))
    found = pool.map(differences, [(data, row, images) for row in rows])
    for row, (different, clear) in zip(rows, found, strict=True):
        print(table_row([row.net, f"{row.norm}, {row.eps:.4g}", different, clear]), flush=True)


def differences(task: tuple[Path, Row, int]) -> tuple[int, int]:
    """Return how many images are fooled in one kind of batch only, and how many of them clearly.

    The kinds are one batch of all images, batches of seven, and each image alone. The margin is
    that in the batch of all images.
    """
    data, row, count = task
    torch.set_num_threads(1)
    net, images = load(data, row.net)
    x, y = images.x[:count], images.y[:count]
    suite = Suite(eps=row.eps, norm=row.norm)
    whole = suite.run(net, x, y)
    with torch.no_grad():
        clear = margin(net(whole.x_adv), y).abs() > CLOSE
    different = torch.zeros_like(clear)
    for size in (7, 1):
        parts = split(x, y, size)
        different |= torch.cat([suite.run(net, *part).success for part in parts]) != whole.success
    return int(different.sum()), int((different & clear).sum())


def split(x: Tensor, y: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Return the batches of `size` images."""
    return zip(x.split(size), y.split(size), strict=True)


if __name__ == "__main__":
    main()
