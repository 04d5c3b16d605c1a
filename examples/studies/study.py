"""What the studies share: their command line, nets, training, tables and files.

Each study is a script of its own, and imports this module and `nets.py` from its own folder.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from advkit import attacks
from advkit.attacks.engine.steepest_ascent import Ascent
from advkit.core.archives import read_torch
from advkit.core.files import atomic_write
from advkit.data import Dataset
from advkit.defenses import fit
from advkit.training.shuffled import shuffled

SEED = 0

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
Batches = Iterable[Sequence[Tensor]]


# --- the command line ----------------------------------------------------------------------------


def arguments(
    doc: str, *, data: str | None = None, out: str | None = None, only: Sequence[str] = ()
) -> argparse.Namespace:
    """Parse the arguments of a study.

    Args:
        doc: docstring of the study, whose first line describes the command.
        data: what `--data` is a folder of; without it there is no such argument.
        out: what `--out` is a folder for; without it there is no such argument.
        only: values of `--only`; without any there is no such argument.

    Returns:
        `quick`, and of `data`, `out` and `only` those that were asked for.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    if data is not None:
        parser.add_argument("--data", type=Path, required=True, help=f"folder of {data}")
    if only:
        parser.add_argument(
            "--only", choices=only, metavar="NAME", help=f"run one part: {', '.join(only)}"
        )
    parser.add_argument("--quick", action="store_true", help="take little of everything")
    if out is not None:
        parser.add_argument("--out", type=Path, help=f"folder for {out}")
    return parser.parse_args()


def require_files(folder: Path, *names: str) -> None:
    """End the study with status 2, and a message that names the missing files, if there are any."""
    missing = [name for name in dict.fromkeys(names) if not (folder / name).is_file()]
    if missing:
        *others, last = missing
        listed = f"{', '.join(others)} and {last}" if others else last
        sources = "their sources" if others else "its source"
        end_with_error(
            f"`--data` must name a folder with {listed}, got {folder}. "
            f"See docs/data.md for {sources}."
        )


def end_with_error(message: str, status: int = 2) -> NoReturn:
    """Print an error of the script that runs, and end it with `status`."""
    print(f"{Path(sys.argv[0]).name}: error: {message}", file=sys.stderr)
    raise SystemExit(status)


def describe_module(doc: str) -> None:
    """Print what a module is for, for anyone who runs it as if it was a script."""
    parser = argparse.ArgumentParser(
        description=doc.splitlines()[0],
        epilog="This is a module that the studies import. It does not run anything by itself.",
    )
    parser.parse_args()
    parser.print_help()


def run_part(name: str, part: Callable[[], tuple[dict[str, Any], str]], out: Path | None) -> None:
    """Run a part of a study, print its text and write its figures, with the time, to `out`.

    Its random numbers depend on no other part.
    """
    began = time.process_time()
    with seeded():
        results, text = part()
    results["seconds"] = round(time.process_time() - began)
    if out is not None:
        save_json(out / f"{name}.json", results)
    print(text, flush=True)


# --- nets and their training ---------------------------------------------------------------------


def loaded(net: nn.Module, path: Path) -> nn.Module:
    """Return `net` with the weights in the file at `path`."""
    net.load_state_dict(read_torch(path))
    return net


@contextmanager
def seeded(seed: int = SEED) -> Iterator[None]:
    """Draw from torch's generator as from a new one, and restore its state at the end."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def batches(x: Tensor, y: Tensor, size: int) -> DataLoader[tuple[Tensor, ...]]:
    """Return batches of `size` samples in a new order in each epoch, the last not of one sample."""
    return shuffled(x, y, size)


def cross_entropy(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the loss of plain training."""
    return F.cross_entropy(net(x), y)


def mirrored_cross_entropy(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the loss of plain training, each image mirrored with probability one half."""
    mirrored = torch.rand(len(x)) < 0.5
    return F.cross_entropy(net(torch.where(mirrored[:, None, None, None], x.flip(3), x)), y)


def learn(
    net: nn.Module,
    loader: Batches,
    *,
    loss: Loss,
    epochs: int,
    lr: float = 1e-3,
    peak: float | None = None,
    progress: bool = False,
    **settings: Any,
) -> nn.Module:
    """Train `net` in place by Adam.

    Args:
        net: the module.
        loader: batches; with `peak` they have a length.
        loss: the training loss.
        epochs: passes over the batches.
        lr: learning rate.
        peak: learning rate at the top of one cycle over the whole training, instead of `lr`.
        progress: write a line for each epoch.
        settings: further arguments of `advkit.defenses.fit`.

    Returns:
        `net`, in evaluation mode.
    """
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    if peak is not None:
        settings["schedule"] = "batch"
        settings["scheduler"] = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=peak, total_steps=epochs * len(loader)
        )
    fit(
        net, loader, loss=loss, optimizer=optimizer, epochs=epochs, progress=progress, **settings
    )  # fmt: skip
    return net


def learn_mirrored(net: nn.Module, data: Dataset, epochs: int) -> nn.Module:
    """Train a small net for CIFAR-10 in place; returns it, in evaluation mode."""
    loader = batches(data.x, data.y, 64)
    return learn(net, loader, loss=mirrored_cross_entropy, epochs=epochs, peak=3e-3)


# --- attacks -------------------------------------------------------------------------------------


class NarrowPGD(attacks.PGD):
    """PGD with shrinking steps that starts in the ball in every norm."""

    def _ascent(self, eps: Tensor) -> Ascent:
        return replace(super()._ascent(eps), start_radius=1.0, wide_radii=())


# --- tables --------------------------------------------------------------------------------------


def table(columns: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    return "\n".join([table_head(columns), *map(table_row, rows)])


def table_head(columns: Sequence[object]) -> str:
    """Return the first two lines of a table in Markdown."""
    return "\n".join(table_row(list(map(str, line))) for line in (columns, ["---"] * len(columns)))


def table_row(cells: Sequence[object]) -> str:
    """Return one line of a table in Markdown, floats with two digits after the point."""
    shown = (f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells)
    return f"| {' | '.join(shown)} |"


def percent(hits: Tensor) -> float:
    """Return the share of true values of bool `(n,)` in percent, NaN of none."""
    return 100 * float(hits.double().mean())


# --- files ---------------------------------------------------------------------------------------


def save_json(path: Path, results: object) -> None:
    """Write `results` as JSON; the file is whole or absent."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(results, indent=1))


def save_figure(path: Path, figure: Any, dpi: int = 80) -> None:
    """Write a figure of matplotlib as PNG; the file is whole or absent."""
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi)


if __name__ == "__main__":
    describe_module(__doc__)
