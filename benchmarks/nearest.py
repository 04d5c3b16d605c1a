"""Distances of MinimumNorm next to those of peers, on five published nets.

    python -m benchmarks.nearest               # run MinimumNorm, and print the tables
    python -m benchmarks.nearest --peers       # run the peers, and rewrite their distances first

The distances of the peers are kept in `nearest_peers.npz`, so that the tables take minutes; the
peers take about an hour on two cores. They are attacks of adversarial-library and foolbox (extra
`peers`). A row compares attacks on the same images: the first 64 that the net labels correctly, 32
on ResNet-20. The ratio is the mean of (nearest distance of all attacks) / (own distance) over the
images; a failure counts as an infinite distance.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from advkit.attacks import MinimumNorm
from advkit.core.files import atomic_write
from advkit.core.norms import ORDER, Norm
from benchmarks.nets import CERTIFIED, LENET, LENET5_ROBUST, RESNET4B_ROBUST, RESNET20, Case
from benchmarks.peers import Peer

FILE = Path(__file__).with_name("nearest_peers.npz")
CASES = {LENET: 64, RESNET20: 32, LENET5_ROBUST: 64, CERTIFIED: 64, RESNET4B_ROBUST: 64}
NORMS: tuple[Norm, ...] = ("l0", "l1", "l2", "linf")
STEPS = (100, 1000)
ALPHA = "\N{GREEK SMALL LETTER ALPHA}"  # name of an argument in adv_lib
UNCHANGED = 1e-6  # a feature that a peer moves by less is not counted in l0


class Counting(nn.Module):
    """A net that counts the samples forward and backward."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.forward_samples, self.backward_samples = net, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forward_samples += len(x)
        logits: Tensor = self.net(x)
        if logits.requires_grad:
            logits.register_hook(self._count_backward)
        return logits

    def _count_backward(self, grad: Tensor) -> None:
        self.backward_samples += len(grad)


def peers(norm: Norm, steps: int) -> list[Peer]:
    """Return the peers of a norm; each has at most about `steps` backward passes for each image."""
    order: float = ORDER[norm]
    common = [Peer("adv_lib", "fmn", {"norm": order, "steps": steps})]
    if norm == "l0":
        greedy = [Peer("adv_lib", "vfga", {"targeted": False})] if steps >= max(STEPS) else []
        return [*common, Peer("adv_lib", "sigma_zero", {"num_steps": steps}), *greedy]
    common.append(Peer("adv_lib", "pdpgd", {"norm": order, "num_steps": steps}))
    common.append(Peer("adv_lib", "fab", {"norm": order, "n_iter": steps // 10}))
    if steps >= max(STEPS):  # the targeted form needs nine classes times 100 steps
        targeted = {"norm": order, "n_iter": steps // 10, "restarts": 9, "targeted_restarts": True}
        common.append(Peer("adv_lib", "fab", targeted))
    if norm != "l1":
        common.append(Peer("adv_lib", "tr", {"p": order, "iter": steps}))
    if norm == "l1":
        alma = {"num_steps": steps, "distance": "l1"}
        common += [Peer("adv_lib", "alma", alma)]
        common += [Peer("adv_lib", "alma", {**alma, "init_lr_distance": 0.5})]
    return common if norm != "l2" else [*common, *_peers_in_l2(steps)]


def _peers_in_l2(steps: int) -> list[Peer]:
    """Return the peers with a form in l2 only."""
    found = [
        Peer("adv_lib", "ddn", {"steps": steps, "levels": None}),
        Peer("adv_lib", "alma", {"num_steps": steps}),
        Peer("adv_lib", "alma", {"num_steps": steps, "init_lr_distance": 1, ALPHA: 0.5}),
        Peer("adv_lib", "pdgd", {"num_steps": steps}),
    ]
    if steps >= max(STEPS):
        search = {"binary_search_steps": 9, "steps": steps // 10}
        for rate in (0.01, 0.1):
            found.append(Peer("foolbox", "L2CarliniWagnerAttack", {**search, "stepsize": rate}))
    return found


def distances(net: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, norm: Norm) -> Tensor:
    """Return the distances `(n,)`, infinite for failures and for points outside the box."""
    with torch.no_grad():
        found = net(x_adv.to(x)).argmax(1) != y
    inside = ((x_adv >= -UNCHANGED) & (x_adv <= 1 + UNCHANGED)).flatten(1).all(1)
    delta = (x_adv - x).flatten(1).double()
    if norm == "l0":
        length = (delta.abs() > UNCHANGED).sum(1).double()
    else:
        length = torch.linalg.vector_norm(delta, ord=ORDER[norm], dim=1)
    return torch.where(found & inside, length, math.inf)


def measure_peers() -> None:
    """Run all peers, and write their distances."""
    found: dict[str, np.ndarray] = {}
    for case, images in CASES.items():
        net, x, y = case.load_correct(images)
        for norm in NORMS:
            for steps in STEPS:
                for peer in peers(norm, steps):
                    torch.manual_seed(0)
                    x_adv = peer.run(peer.load(), net, x, y).detach()
                    key = f"{case.name}/{norm}/{steps}/{peer}"
                    found[key] = distances(net, x, y, x_adv, norm).float().numpy()
                    print(f"{key}: median {np.median(found[key]):.4g}", flush=True)
    with atomic_write(FILE) as path, path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **found)


def row(case: Case, norm: Norm, steps: int) -> str:
    """Run MinimumNorm on a net, and return its row of the table."""
    net, x, y = case.load_correct(CASES[case])
    counting = Counting(net)
    result = MinimumNorm(norm=norm, steps=steps).run(counting, x, y)
    own = distances(net, x, y, result.x_adv, norm).numpy()
    with np.load(FILE) as file:
        prefix = f"{case.name}/{norm}/{steps}/"
        other = {k.removeprefix(prefix): file[k] for k in file.files if k.startswith(prefix)}
    nearest = np.minimum.reduce([own, *other.values()])
    ratios = {name: float((nearest / d).mean()) for name, d in other.items()}
    best = max(ratios, key=ratios.__getitem__)
    passes = f"{counting.forward_samples / len(x):.0f}, {counting.backward_samples / len(x):.0f}"
    return (
        f"| {norm} | {case.name} | {np.isfinite(own).mean():.2f} | {np.median(own):.4g} | "
        f"{(nearest / own).mean():.3f} | {passes} | {best.removeprefix('adv_lib ')} | "
        f"{np.median(other[best]):.4g} | {ratios[best]:.3f} |"
    )


HEADER = """
MinimumNorm(steps={steps})

| norm | net | success | median | ratio | forward, backward | best peer | median | ratio |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |"""


def main() -> None:
    """Print the tables of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", action="store_true", help="run the peers first, an hour")
    parser.add_argument("--norm", choices=NORMS, action="append", help="all norms by default")
    parser.add_argument("--steps", type=int, choices=STEPS, action="append", help="both by default")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peers:
        measure_peers()
    for steps in args.steps or STEPS:
        print(HEADER.format(steps=steps))
        for norm in args.norm or NORMS:
            for case in CASES:
                print(row(case, norm, steps), flush=True)


if __name__ == "__main__":
    main()
