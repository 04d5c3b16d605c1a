"""Do adversarial examples pass from one technique of machine learning to another?

    python examples/studies/techniques.py --data ../shared/data [--quick] [--out FOLDER]

Six techniques learn MNIST from 2,000 images each, every one from its own: a deep net, logistic
regression, an SVM, a decision tree, k nearest neighbours, and a vote of these five, after Papernot,
McDaniel and Goodfellow (2016, arXiv:1605.07277). Each is attacked, with FGSM where there are
gradients and with Square where there are only scores, and all are asked about the result.
`--out` gets `techniques.json` and `techniques.png`. `--quick` takes a tenth of everything.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from nets import MnistLeNet
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from advkit import Ensemble, SklearnClassifier, TorchClassifier, attacks
from advkit import eval as rob
from advkit.core.files import replacing
from advkit.data import Dataset, load_npz
from advkit.training.fit import fit

EPS = 0.3
SEED = 0


def main() -> None:
    """Train, attack, print the tables and write what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of images")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, help="folder for techniques.json and techniques.png")
    args = parser.parse_args()
    if not (args.data / "mnist_train.npz").is_file():
        print(f"skipped: no images in {args.data}", file=sys.stderr)
        return
    began = time.perf_counter()
    images, inputs, queries = (200, 30, 20) if args.quick else (2000, 300, 200)
    models = techniques(load_npz(args.data / "mnist_train.npz"), images)
    test = load_npz(args.data / "mnist_test.npz").head(inputs)
    matrix = rob.transfer_matrix(models, None, attack_of_each(models, queries), test.x, test.y)
    print(matrix)
    print(f"\n{time.perf_counter() - began:.0f} seconds")
    if args.out is not None:
        matrix.save_json(args.out / "techniques.json")
        with replacing(args.out / "techniques.png") as path:
            matrix.plot().savefig(path, format="png", dpi=80)


def techniques(train: Dataset, images: int) -> dict[str, Any]:
    """Six classifiers, five of them trained on `images` images of their own."""
    parts = iter([(train.x[i : i + images], train.y[i : i + images]) for i in starts(images)])
    models: dict[str, Any] = {
        "deep net": deep_net(*next(parts)),
        "logistic regression": fitted(LogisticRegression(max_iter=1000), *next(parts)),
        # with a kernel, since a linear SVM is a second logistic regression as far as gradients go
        "SVM": fitted(SVC(kernel="rbf"), *next(parts)),
        "decision tree": fitted(DecisionTreeClassifier(random_state=SEED), *next(parts)),
        "k-NN": fitted(KNeighborsClassifier(5), *next(parts)),
    }
    return {**models, "ensemble": Ensemble(list(models.values()), combine="vote")}


def starts(images: int) -> range:
    """Where the five parts of the training set begin."""
    return range(0, 5 * images, images)


def deep_net(x: Tensor, y: Tensor) -> TorchClassifier:
    """A LeNet trained for 30 epochs."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        net = MnistLeNet()
        loader = DataLoader(TensorDataset(x, y), batch_size=50, shuffle=True)
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
        fit(net, loader, loss=cross_entropy, optimizer=optimizer, epochs=30, progress=False)
    return TorchClassifier(net)


def cross_entropy(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The loss to go down."""
    return F.cross_entropy(net(x), y)


def fitted(estimator: Any, x: Tensor, y: Tensor) -> SklearnClassifier:
    """The estimator, fitted on flattened images."""
    return SklearnClassifier(estimator.fit(x.flatten(1).numpy(), y.numpy()))


def attack_of_each(models: dict[str, Any], queries: int) -> dict[str, Any]:
    """FGSM on what has logits, and a search over scores on the rest."""
    fgsm = attacks.FGSM(eps=EPS)
    square = attacks.Square(eps=EPS, queries=queries, seed=SEED)
    return {name: fgsm if hasattr(m, "logits") else square for name, m in models.items()}


if __name__ == "__main__":
    main()
