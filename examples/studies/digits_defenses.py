"""Every training defense on scikit-learn's digits, in minutes and without a download.

    python examples/studies/digits_defenses.py [--quick]

One small net, trained by each loss of `advkit.defenses` at eps 0.15 in linf, and attacked on the
500 test images by FGSM, PGD on two losses and Square; the last column is the worst of them, input
by input. `--quick` trains for one epoch.
"""

from __future__ import annotations

import time
from typing import Any

from study import arguments, batches, cross_entropy, learn, seeded, table_head, table_row
from torch import nn

from advkit import attacks, data, defenses
from advkit import eval as rob

EPS = 0.15
BATCH = 64
REPLAYS = 4


def main() -> None:
    """Train, attack and print the table."""
    quick = arguments(__doc__).quick
    epochs, steps, queries = (1, 2, 10) if quick else (40, 40, 1000)
    tried = {
        "FGSM": attacks.FGSM(eps=EPS),
        "PGD": attacks.PGD(eps=EPS, steps=steps, restarts=3),
        "PGD, margin": attacks.PGD(eps=EPS, steps=steps, restarts=3, loss="margin"),
        "Square": attacks.Square(eps=EPS, max_queries=queries),
    }
    print(table_head(["trained with", "seconds", "clean", *tried, "worst case"]))
    for name, loss in losses().items():
        began = time.process_time()
        net = trained(loss, epochs)
        seconds = time.process_time() - began
        print(table_row([name, f"{seconds:.0f}", *measure_accuracies(net, list(tried.values()))]))


def losses() -> dict[str, Any]:
    """Every training loss by its name."""
    pgd = attacks.PGD(eps=EPS, steps=7)
    return {
        "cross-entropy": cross_entropy,
        "LabelSmoothing": defenses.LabelSmoothing(smoothing=0.1),
        "LogitSqueezing": defenses.LogitSqueezing(weight=0.5, sigma=0.25),
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


def trained(loss: Any, epochs: int) -> nn.Module:
    """A net trained by `loss`; the free one goes through each batch several times, less often."""
    train = data.digits("train")
    with seeded():
        net = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10)),
        )
        times = REPLAYS if isinstance(loss, defenses.FreeAdversarialTraining) else 1
        loader = defenses.Replay(batches(train.x, train.y, BATCH), times=times)
        return learn(net, loader, loss=loss, epochs=epochs, lr=2e-3)


def measure_accuracies(net: nn.Module, tried: list[Any]) -> list[str]:
    """Accuracy without an attack, under each and under the worst, in percent."""
    test = data.digits("test")
    found = rob.evaluate(net, test.x, test.y, attacks=tried, batch_size=250)
    rates = [found.clean_accuracy, *(o.robust_accuracy for o in found.outcomes), found.worst_case]
    return [f"{100 * float(rate):.1f}" for rate in rates]


if __name__ == "__main__":
    main()
