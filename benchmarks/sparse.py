"""Robust accuracy in l0 next to the pixel attacks of torchattacks, on three published nets.

    python -m benchmarks.sparse               # run the attacks of advkit, and print the tables
    python -m benchmarks.sparse --peers       # run the peers, and rewrite their results first
    python -m benchmarks.sparse --peers missing   # run only the peers without a result

The results of the peers are kept in `sparse_peers.npz`; the peers take about 20 minutes on one
core, and the tables some minutes. They are attacks of torchattacks (extra `peers`), which the
tables alone do not need. Each row is about the first 50 images of the test set, 25 on ResNet-20,
where the peers take longest. An image that the net mislabels counts as not robust, and is not
attacked. Queries are samples sent forward for each attacked image, counted by the net.

`OnePixel` takes a number of pixels. `Pixle` has no budget: each restart copies a patch of pixels to
random places of the result of the last one. With one restart it changes at most the pixels of one
patch, which is how it gets a budget here. Its defaults have no limit on the pixels. The second
table gives `SparseRS` the pixels that each peer took, image by image, and about as many queries.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from advkit.attacks import MinimumNorm, SparsePGD, SparseRS, Suite
from advkit.core.files import atomic_write
from advkit.core.norms import Unit, lp_norm
from benchmarks.nearest import Counting
from benchmarks.nets import LENET, RESNET4B_ROBUST, RESNET20, Case
from benchmarks.peers import Peer

FILE = Path(__file__).with_name("sparse_peers.npz")
CASES = {LENET: 50, RESNET20: 25, RESNET4B_ROBUST: 50}  # numbers of images
QUERIES = 1000
PIXELS = (1, 5, 10, 24)
FEATURES = (5, 10, 24, 50)
PATCHES = {1: (1, 1), 5: (5, 1), 10: (5, 2), 24: (6, 4)}  # sides of Pixle's patch
ONE_PIXEL, PIXLE = "OnePixel", "Pixle"


class Outcome(NamedTuple):
    """What an attack did to the images that a net labels correctly."""

    fooled: np.ndarray  # bool (n,)
    pixels: np.ndarray  # int64 (n,), that the results change
    queries: float  # forward samples for each image
    backward: float

    def robust(self, images: int) -> float:
        """Return the share of all images that are labelled correctly after the attack."""
        return float((~self.fooled).sum()) / images


def load(case: Case) -> tuple[nn.Module, Tensor, Tensor]:
    """Load a net, and the images of its case that it labels correctly, with labels."""
    net, data = case.read(CASES[case])
    net.requires_grad_(False)
    with torch.no_grad():
        rows = (net(data.x).argmax(1) == data.y).nonzero().flatten()
    return net, data.x[rows], data.y[rows]


def measure(
    attack: Callable[[nn.Module, Tensor, Tensor], Tensor], net: nn.Module, x: Tensor, y: Tensor
) -> Outcome:
    """Run an attack, a function to the adversarial inputs, and judge what it returns."""
    counting = Counting(net).eval()  # torchattacks restores the mode of the outer module
    x_adv = attack(counting, x, y).detach()
    with torch.no_grad():
        fooled = (net(x_adv).argmax(1) != y) & ((x_adv >= 0) & (x_adv <= 1)).flatten(1).all(1)
    pixels = lp_norm(x_adv - x, "l0_pixel").long()
    passes = counting.forward_samples / len(x), counting.backward_samples / len(x)
    return Outcome(fooled.numpy(), pixels.numpy(), *passes)


def peers(channels: int) -> dict[str, Peer]:
    """Return the peers by a key: their defaults, and each with a budget and about 1,000 queries."""
    found = {
        f"{ONE_PIXEL}/defaults": Peer("torchattacks", ONE_PIXEL),
        f"{PIXLE}/defaults": Peer("torchattacks", PIXLE),
    }
    for pixels in PIXELS:
        # a candidate for each number that it searches, at least five
        population = max(5, pixels * (2 + channels))
        steps = QUERIES // (population + 1) - 1  # and a query for the best of each step
        options = {"pixels": pixels, "popsize": population, "steps": steps}
        found[f"{ONE_PIXEL}/{pixels}"] = Peer("torchattacks", ONE_PIXEL, options)
        width, height = PATCHES[pixels]
        patch = {"x_dimensions": (width, width), "y_dimensions": (height, height)}
        options = {**patch, "restarts": 1, "max_iterations": QUERIES // 2}  # two queries each
        found[f"{PIXLE}/{pixels}"] = Peer("torchattacks", PIXLE, options)
    return found


def measure_peers(*, missing: bool) -> None:
    """Run all peers or those without a result for the images, and write what they did."""
    found: dict[str, np.ndarray] = {}
    if missing:
        with np.load(FILE) as file:
            found.update(file)
    for case, images in CASES.items():
        net, x, y = load(case)
        for name, peer in peers(x.shape[1]).items():
            key = f"{case.name}/{name}"
            if len(found.get(f"{key}/fooled", ())) == len(x):
                continue
            module = peer.load()
            torch.manual_seed(0)
            np.random.seed(0)  # the peers draw from it
            outcome = measure(lambda net, x, y, p=peer, m=module: p.run(m, net, x, y), net, x, y)
            for part, values in outcome._asdict().items():
                found[f"{key}/{part}"] = np.asarray(values)
            print(  # after each peer, since they take long
                f"{key}: robust {outcome.robust(images):.2f}, {outcome.queries:.0f} queries, "
                f"{outcome.pixels.max()} pixels", flush=True,
            )  # fmt: skip
            with atomic_write(FILE) as path, path.open("wb") as file:
                np.savez_compressed(file, allow_pickle=False, **found)


def kept(key: str) -> Outcome | None:
    """Return what the peer of a key did, from the file; `None` if it has not been run."""
    with np.load(FILE) as file:
        if f"{key}/fooled" not in file.files:
            return None
        return Outcome(*(file[f"{key}/{part}"] for part in Outcome._fields))


def own(eps: float | Tensor, unit: Unit, queries: int = QUERIES) -> dict[str, Any]:
    """Return the attacks of advkit with a budget, by name."""
    return {
        "SparseRS": SparseRS(eps=eps, unit=unit, max_queries=queries),
        "SparsePGD": SparsePGD(eps=eps, unit=unit),
        "Suite": Suite(eps=eps, norm="l0", unit=unit),
    }


def cell(outcome: Outcome | None, images: int) -> str:
    """Return robust accuracy and passes of one attack, empty if it has not been run."""
    if outcome is None:
        return ""
    backward = f" + {outcome.backward:.0f}" if outcome.backward else ""
    return f"{outcome.robust(images):.2f} ({outcome.queries:.0f}{backward})"


def print_head(columns: list[str]) -> None:
    """Print the head of a table."""
    print("\n| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns), flush=True)


def print_row(cells: list[str]) -> None:
    """Print one row of a table."""
    print("| " + " | ".join(cells) + " |", flush=True)


def print_pixels() -> None:
    """Print the table of budgets in pixels, next to the peers."""
    print_head(["net", "clean", "pixels", ONE_PIXEL, PIXLE, *own(1, "pixel")])
    for case, images in CASES.items():
        net, x, y = load(case)
        for pixels in PIXELS:
            cells = [cell(kept(f"{case.name}/{n}/{pixels}"), images) for n in (ONE_PIXEL, PIXLE)]
            cells += [cell(measure(a, net, x, y), images) for a in own(pixels, "pixel").values()]
            print_row([case.name, f"{len(x) / images:.2f}", str(pixels), *cells])


def print_defaults() -> None:
    """Print the table of the peers' defaults, next to SparseRS with the same pixels and queries."""
    print_head(["net", "peer", "pixels: median, most", "peer's robust accuracy", "SparseRS"])
    for case, images in CASES.items():
        net, x, y = load(case)
        for name, most in ((ONE_PIXEL, 110), (PIXLE, 401)):
            peer = kept(f"{case.name}/{name}/defaults")
            if peer is None:
                continue
            pixels = torch.from_numpy(peer.pixels)
            outcome = measure(own(pixels, "pixel", most)["SparseRS"], net, x, y)
            size = f"{int(pixels.median())}, {int(pixels.max())}"
            print_row([case.name, f"`{name}()`", size, cell(peer, images), cell(outcome, images)])


def print_features() -> None:
    """Print the table of budgets in features, next to the distances of MinimumNorm."""
    print_head(["net", "features", *own(1, "feature"), "MinimumNorm"])
    for case, images in CASES.items():
        net, x, y = load(case)
        if x.shape[1] == 1:  # a feature is a pixel
            continue
        counting = Counting(net)
        nearest = MinimumNorm(norm="l0").run(counting, x, y)
        passes = counting.forward_samples / len(x), counting.backward_samples / len(x)
        for eps in FEATURES:
            cells = [cell(measure(a, net, x, y), images) for a in own(eps, "feature").values()]
            fooled = (nearest.success & (nearest.distance <= eps)).numpy()
            cells.append(cell(Outcome(fooled, fooled, *passes), images))
            print_row([case.name, str(eps), *cells])


TABLES = {"pixels": print_pixels, "defaults": print_defaults, "features": print_features}


def main() -> None:
    """Print the tables of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--peers", nargs="?", const="all", choices=("all", "missing"),
        help="run the peers first, 20 minutes; `missing` runs those without a result",
    )  # fmt: skip
    parser.add_argument("--only", choices=TABLES, action="append", help="all tables by default")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peers:
        measure_peers(missing=args.peers == "missing")
    for name in args.only or TABLES:
        TABLES[name]()


if __name__ == "__main__":
    main()
