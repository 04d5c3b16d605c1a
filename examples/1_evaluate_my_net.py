"""Find out how robust your net is.

You have a trained `nn.Module` and labeled inputs in [0, 1]. This script runs the recommended
attack on them, next to a weak one, and prints a report: the accuracy without an attack, what
remains of it under each attack, and the worst case, which counts an input as robust only if no
attack within the budget changed its label.

    python examples/1_evaluate_my_net.py
"""

import argparse

import torch
from torch import nn

from advkit import attacks, data
from advkit import eval as rob

EPS = 0.1  # each pixel may change by a tenth of its range


def main() -> rob.Report:
    """Train a net, attack it, and print and return the report."""
    train, test = data.digits("train"), data.digits("test")

    # Your own net goes here. Its modes, parameters and gradients are left as they are.
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(train.x), train.y).backward()
        optimizer.step()

    report = rob.evaluate(
        net,
        test.x,
        test.y,
        attacks=[
            attacks.FGSM(eps=EPS),  # one step: fast, and too weak to trust on its own
            attacks.Suite(eps=EPS),  # the recommended evaluation: several strong attacks in one
            attacks.DeepFool(),  # no budget: how far is the nearest adversarial example?
        ],
    )
    print(report)  # report.save_html("report.html") writes the tables and figures as a page

    fgsm = report.outcomes[0].robust_accuracy
    print(f"\nFGSM alone would report {fgsm}; the worst case is {report.worst_case}.")
    return report


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    main()
