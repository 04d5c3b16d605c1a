"""Every training defense on scikit-learn's digits, in minutes and without a download.

    python examples/studies/digits_defenses.py [--quick]

One small net, trained by each loss of `advkit.defenses` at eps 0.15 in linf, and attacked on the
500 test images by FGSM, PGD on two losses and Square; the last column is the worst of them, input
by input. `--quick` trains for one epoch.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from advkit import attacks, data, defenses
from advkit import eval as rob

EPS = 0.15
BATCH = 64
SEED = 0
REPLAYS = 4


def main() -> None:
    """Train, attack and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    epochs, steps, queries = (1, 2, 10) if args.quick else (40, 40, 1000)
    tried = {
        "FGSM": attacks.FGSM(eps=EPS),
        "PGD": attacks.PGD(eps=EPS, steps=steps, restarts=3),
        "PGD, margin": attacks.PGD(eps=EPS, steps=steps, restarts=3, loss="margin"),
        "Square": attacks.Square(eps=EPS, queries=queries),
    }
    columns = ["trained with", "seconds", "clean", *tried, "worst case"]
    print(f"| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")
    for name, loss in losses().items():
        began = time.process_time()
        net = trained(loss, epochs)
        seconds = time.process_time() - began
        print(f"| {name} | {seconds:.0f} | {' | '.join(judged(net, list(tried.values())))} |")


def losses() -> dict[str, Any]:
    """Every training loss by its name."""
    pgd = attacks.PGD(eps=EPS, steps=7)
    return {
        "cross-entropy": cross_entropy,
        "LabelSmoothing": defenses.LabelSmoothing(smoothing=0.1),
        "LogitSqueezing": defenses.LogitSqueezing(weight=0.5, noise=0.25),
        "LogitPairing, clean": defenses.LogitPairing(weight=0.5, kind="clean"),
        "GaussianNoise": defenses.GaussianNoise(sigma=0.25),
        "AdversarialTraining, FGSM and half clean": defenses.AdversarialTraining(
            attack=attacks.FGSM(eps=EPS), clean_weight=0.5
        ),
        "AdversarialTraining, FGSM from a random start": defenses.AdversarialTraining(
            attack=attacks.FGSM(eps=EPS, random_start=True)
        ),
        "FreeAdversarialTraining": defenses.FreeAdversarialTraining(eps=EPS),
        "AdversarialTraining, PGD": defenses.AdversarialTraining(attack=pgd),
        "LogitPairing, adversarial": defenses.LogitPairing(attack=pgd, weight=0.5),
        "TRADES, beta 1": defenses.TRADES(attack=pgd, beta=1.0),
        "TRADES, beta 6": defenses.TRADES(attack=pgd, beta=6.0),
        "MART, beta 5": defenses.MART(attack=pgd, beta=5.0),
    }


def cross_entropy(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The loss of everyday training."""
    return F.cross_entropy(net(x), y)


def trained(loss: Any, epochs: int) -> nn.Module:
    """A net trained by `loss`; the free one goes through each batch several times, less often."""
    train = data.digits("train")
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        net = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
        )
        loader = DataLoader(TensorDataset(train.x, train.y), batch_size=BATCH, shuffle=True)
        times = REPLAYS if isinstance(loss, defenses.FreeAdversarialTraining) else 1
        defenses.fit(
            net,
            defenses.Replay(loader, times=times),
            loss=loss,
            optimizer=torch.optim.Adam(net.parameters(), lr=2e-3),
            epochs=epochs,
            progress=False,
        )
    return net


def judged(net: nn.Module, tried: list[Any]) -> list[str]:
    """Accuracy without an attack, under each and under the worst, in percent."""
    test = data.digits("test")
    found = rob.evaluate(net, test.x, test.y, attacks=tried, batch_size=250)
    rates = [found.clean_accuracy, *(o.robust_accuracy for o in found.outcomes), found.worst_case]
    return [f"{100 * float(rate):.1f}" for rate in rates]


if __name__ == "__main__":
    main()
