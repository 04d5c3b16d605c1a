"""Do adversarial examples pass from one technique of machine learning to another?

    python examples/studies/techniques.py --data FOLDER [--quick] [--out FOLDER]

Six techniques learn MNIST from 2,000 images each, every one from its own: a deep net, logistic
regression, an SVM, a decision tree, k nearest neighbours, and a vote of these five, after Papernot,
McDaniel and Goodfellow (2016, arXiv:1605.07277). Each is attacked, with FGSM where there are
gradients and with Square where there are only scores, and all are asked about the result.
`--out` gets `techniques.json` and `techniques.png`. `--quick` takes a tenth of everything.
"""

from __future__ import annotations

import time
from typing import Any

from nets import MnistLeNet
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier
from study import (
    SEED,
    arguments,
    batches,
    cross_entropy,
    learn,
    require_files,
    save_figure,
    seeded,
)
from torch import Tensor

from advkit import Ensemble, SklearnClassifier, TorchClassifier, attacks
from advkit import eval as rob
from advkit.data import Dataset, load_npz

EPS = 0.3


def main() -> None:
    """Train, attack, print the tables and write what is asked for."""
    args = arguments(__doc__, data="images", out="techniques.json and techniques.png")
    require_files(args.data, "mnist_train.npz", "mnist_test.npz")
    began = time.perf_counter()
    images, inputs, queries = (200, 30, 20) if args.quick else (2000, 300, 200)
    models = techniques(load_npz(args.data / "mnist_train.npz"), images)
    test = load_npz(args.data / "mnist_test.npz").head(inputs)
    matrix = rob.transfer_matrix(models, None, attack_of_each(models, queries), test.x, test.y)
    print(matrix)
    print(f"\n{time.perf_counter() - began:.0f} seconds")
    if args.out is not None:
        matrix.save_json(args.out / "techniques.json")
        save_figure(args.out / "techniques.png", matrix.plot())


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
    with seeded():
        net = learn(MnistLeNet(), batches(x, y, 50), loss=cross_entropy, epochs=30, lr=2e-3)
    return TorchClassifier(net)


def fitted(estimator: Any, x: Tensor, y: Tensor) -> SklearnClassifier:
    """The estimator, fitted on flattened images."""
    return SklearnClassifier(estimator.fit(x.flatten(1).numpy(), y.numpy()))


def attack_of_each(models: dict[str, Any], queries: int) -> dict[str, Any]:
    """FGSM on what has logits, and a search over scores on the rest."""
    fgsm = attacks.FGSM(eps=EPS)
    square = attacks.Square(eps=EPS, max_queries=queries, seed=SEED)
    return {name: fgsm if hasattr(m, "logits") else square for name, m in models.items()}


if __name__ == "__main__":
    main()
