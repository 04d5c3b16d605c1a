"""Where the gradient of the loss misleads PGD: a net with thresholds in its first layer.

    python examples/studies/misleading_gradients.py --data FOLDER [--quick]

Prints the thresholds of mnist_lenet5_robust, which pixels the examples of PGD change that starts in
the ball and outside, the loss and its gradient on the way to an example, and robust accuracies on
other nets. `--quick` takes 20 images.
"""

from __future__ import annotations

import torch
from nets import cifar10_resnet4b, mnist_cnn_certified, mnist_lenet5
from study import NarrowPGD, arguments, loaded, require_files, table_head, table_row
from torch import Tensor, nn

from advkit import attacks
from advkit import eval as rob
from advkit.core.losses import log_odds_loss, margin
from advkit.data import load_npz

MNIST, CIFAR = "mnist_test.npz", "cifar10_test_0000_0499.npz"
THRESHOLD = 0.3  # most filters of the net ignore a pixel below it
BUDGETS = [("l2", 2.0), ("l1", 10.0)]
CASES = [
    (mnist_lenet5, "mnist_lenet5_robust.pt", MNIST, "l2", 1.0),
    (mnist_lenet5, "mnist_lenet5_robust.pt", MNIST, "l2", 1.5),
    (mnist_lenet5, "mnist_lenet5_robust.pt", MNIST, "l2", 2.0),
    (mnist_lenet5, "mnist_lenet5_robust.pt", MNIST, "l1", 10.0),
    (mnist_cnn_certified, "mnist_cnn_certified.pt", MNIST, "l2", 1.0),
    (cifar10_resnet4b, "cifar10_resnet4b_robust.pt", CIFAR, "l2", 0.5),
    (cifar10_resnet4b, "cifar10_resnet4b_robust.pt", CIFAR, "l1", 8.0),
]


def main() -> None:
    """Print all parts."""
    args = arguments(__doc__, data="nets and images")
    require_files(args.data, *(name for case in CASES for name in case[1:3]))
    net = loaded(mnist_lenet5(), args.data / "mnist_lenet5_robust.pt")
    data = load_npz(args.data / MNIST).head(20 if args.quick else 100)
    print_thresholds(net)
    for norm, eps in BUDGETS:
        print_examples(net, data.x, data.y, norm, eps)
    print(table_head(["net", "norm, eps", "in the ball", "default", "default, 5 restarts"]))
    for factory, weights, archive, norm, eps in CASES:
        net = loaded(factory(), args.data / weights)
        data = load_npz(args.data / archive).head(20 if args.quick else 200)
        settings = {"norm": norm, "eps": eps}
        made = [NarrowPGD(**settings), attacks.PGD(**settings)]
        made += [attacks.PGD(**settings, restarts=5)]
        outcomes = [
            rob.evaluate(net, data.x, data.y, attacks=[attack]).outcomes[0] for attack in made
        ]
        cells = [
            f"{100 * float(o.robust_accuracy):.1f} %, {o.mean_of_attacked(o.backward):.1f}"
            for o in outcomes
        ]
        print(table_row([weights[:-3], f"{norm}, {eps:g}", *cells]))


def print_thresholds(net: nn.Module) -> None:
    """Print the thresholds of the filters that pass on a single pixel."""
    weight, bias = net.conv1.weight.detach().flatten(1), net.conv1.bias.detach()
    top, total = weight.amax(1), weight.abs().sum(1)
    single = (top > 0.99 * total) & (top > 0.01)
    found = sorted(round(float(value), 2) for value in (-bias / top)[single])
    print(f"{len(found)} of {len(weight)} filters pass on one pixel, above {found}\n")


def print_examples(net: nn.Module, x: Tensor, y: Tensor, norm: str, eps: float) -> None:
    """Print which pixels the examples change, and what the gradient shows on the way to them."""
    black = (x == 0).flatten(1)
    results = [kind(norm=norm, eps=eps).run(net, x, y) for kind in (NarrowPGD, attacks.PGD)]
    for name, result in zip(("in the ball", "default"), results, strict=True):
        change = (result.x_adv - x).flatten(1)
        raised = black & (change > THRESHOLD)
        spent = change.abs() ** (2 if norm == "l2" else 1)
        used = (spent * raised).sum(1) / spent.sum(1)
        done = result.success
        print(
            f"{norm} {eps:g}, {name}: {int((~done).sum())} of {len(x)} are left; the examples "
            f"raise {raised.sum(1)[done].float().mean():.1f} black pixels past {THRESHOLD}, "
            f"which use {100 * used[done].mean():.0f} % of the budget"
        )
    only = results[1].success & ~results[0].success
    print(f"The way to the examples of {int(only.sum())} images that only the default finds:\n")
    print_segment(net, x[only], y[only], results[1].x_adv[only])


def print_segment(net: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor) -> None:
    """Print medians of margin and gradient at points of the segments from `x` to `x_adv`."""
    columns = ["part of the way", "margin", "gradient on black pixels", "cosine"]
    print(table_head(columns))
    black, way = (x == 0).flatten(1), (x_adv - x).flatten(1)
    for part in (0, 0.2, 0.4, 0.5, 0.6, 0.8, 1):
        point = torch.lerp(x, x_adv, part).requires_grad_()
        logits = net(point)
        (grad,) = torch.autograd.grad(log_odds_loss(logits, y).sum(), point)
        grad = grad.flatten(1)
        share = (grad.square() * black).sum(1) / grad.square().sum(1)
        cosine = torch.cosine_similarity(grad, way)
        values = (margin(logits.detach(), y), share, cosine)
        print(table_row([part, *(f"{float(value.median()):.2f}" for value in values)]))
    print()


if __name__ == "__main__":
    main()
