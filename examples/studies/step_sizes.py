"""PGD's shrinking steps and wide start next to the usual constant step, on published nets.

    python examples/studies/step_sizes.py --data FOLDER [--quick]

Prints robust accuracy and the samples sent backward for each attacked input, with the same seeds,
for a constant step of 2.5 * eps / steps (Madry et al., 2018), for shrinking steps from a start in
the ball, and for the default of `advkit.attacks.PGD`, whose start is wide in l2 and l1. `--quick`
takes 20 images and one seed.
"""

from __future__ import annotations

import statistics

import torch
from nets import (
    cifar10_resnet4b,
    cifar10_resnet20,
    mnist_cnn_certified,
    mnist_lenet,
    mnist_lenet5,
)
from study import (
    NarrowPGD,
    arguments,
    loaded,
    require_files,
    table_head,
    table_row,
)

from advkit import attacks
from advkit import eval as rob
from advkit.data import load_npz

MNIST, CIFAR = "mnist_test.npz", "cifar10_test_0000_0499.npz"
CASES = [
    (mnist_lenet, "mnist_lenet.pt", MNIST, "linf", 0.1),
    (mnist_lenet5, "mnist_lenet5_robust.pt", MNIST, "linf", 0.3),
    (mnist_cnn_certified, "mnist_cnn_certified.pt", MNIST, "linf", 0.2),
    (cifar10_resnet20, "cifar10_resnet20.pt", CIFAR, "linf", 1 / 255),
    (cifar10_resnet4b, "cifar10_resnet4b_robust.pt", CIFAR, "linf", 2 / 255),
    (cifar10_resnet4b, "cifar10_resnet4b_robust.pt", CIFAR, "linf", 8 / 255),
    (mnist_lenet5, "mnist_lenet5_robust.pt", MNIST, "l2", 2.0),
    (cifar10_resnet4b, "cifar10_resnet4b_robust.pt", CIFAR, "l2", 0.5),
    (mnist_lenet5, "mnist_lenet5_robust.pt", MNIST, "l1", 10.0),
    (cifar10_resnet4b, "cifar10_resnet4b_robust.pt", CIFAR, "l1", 8.0),
]


def main() -> None:
    """Print the table."""
    args = arguments(__doc__, data="nets and images")
    require_files(args.data, *(name for case in CASES for name in case[1:3]))
    seeds, images = (1, 20) if args.quick else (3, 300)
    columns = [f"{kind}: robust, backward" for kind in ("constant", "shrinking", "default")]
    print(table_head(["net", "norm, eps", "steps", *columns]))
    for factory, weights, archive, norm, eps in CASES:
        net = loaded(factory(), args.data / weights)
        data = load_npz(args.data / archive).head(images)
        for steps in (10, 40):
            made = [
                (attacks.PGD, {"step_size": 2.5 * eps / steps}),
                (NarrowPGD, {}),
                *([(attacks.PGD, {})] if norm != "linf" else []),
            ]
            cells = [
                measured(net, data, seeds, kind, norm=norm, eps=eps, steps=steps, **setting)
                for kind, setting in made
            ]
            cells += ["the same"] * (norm == "linf")
            print(table_row([weights[:-3], f"{norm}, {eps:.4g}", steps, *cells]))


def measured(
    net: torch.nn.Module, data: object, seeds: int, kind: type[attacks.PGD], **settings: object
) -> str:
    """Mean robust accuracy over the seeds and samples sent backward."""
    made = [kind(seed=seed, **settings) for seed in range(seeds)]
    report = rob.evaluate(net, data.x, data.y, attacks=made, batch_size=150)
    robust = statistics.mean(float(o.robust_accuracy) for o in report.outcomes)
    backward = statistics.mean(o.mean_of_attacked(o.backward) for o in report.outcomes)
    return f"{100 * robust:.1f} %, {backward:.1f}"


if __name__ == "__main__":
    main()
