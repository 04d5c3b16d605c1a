"""Train a robust net in your own loop.

A training defense is a loss, `loss(net, x, y)`, that replaces the cross-entropy in the loop you
already have. This script trains one net on clean images and one on adversarial examples, and
attacks both: the robust net keeps most of its accuracy, and pays for it with training time.

    python examples/2_train_a_robust_net.py
"""

import argparse
import time

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from advkit import attacks, data, defenses
from advkit import eval as rob

EPS = 0.15


def cross_entropy(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the loss that you train with today."""
    return nn.functional.cross_entropy(net(x), y)


def trained(loss, epochs):
    """Return a net that was trained with `loss`; the loop is the usual one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    train = data.digits("train")
    loader = DataLoader(TensorDataset(train.x, train.y), batch_size=64, shuffle=True)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(epochs):
        for x, y in loader:
            optimizer.zero_grad()
            loss(net, x, y).backward()  # the only line that a defense changes
            optimizer.step()
    return net


def main(epochs: int = 20) -> dict[str, rob.Report]:
    """Train both nets, attack them, and print and return their reports."""
    # The net learns from examples that a short PGD makes, within the budget that you defend.
    robust = defenses.AdversarialTraining(attack=attacks.PGD(eps=EPS, steps=5))
    test = data.digits("test")
    reports = {}
    for name, loss in {"plain": cross_entropy, "robust": robust}.items():
        began = time.perf_counter()
        net = trained(loss, epochs)
        print(f"{name}: trained in {time.perf_counter() - began:.1f} s")
        # Evaluate with stronger attacks than in training: a defense must hold against those, too.
        suite = attacks.Suite(eps=EPS)
        reports[name] = report = rob.evaluate(net, test.x, test.y, attacks=[suite])
        print(f"    accuracy {report.clean_accuracy}, under attack {report.worst_case}")
    return reports


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    main()
