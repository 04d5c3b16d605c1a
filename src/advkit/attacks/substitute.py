"""Substitute: a surrogate that is trained on a model's predictions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advkit.core import checks, sample_rows
from advkit.core.differentiation import differentiating
from advkit.core.paid_answers import PaidAnswers
from advkit.core.progress import progress_bar
from advkit.core.results import Answers
from advkit.models import Classifier, TorchClassifier, as_classifier, evaluating
from advkit.models.protocols import max_batch
from advkit.training.fit import fit
from advkit.training.shuffled import shuffled


@dataclass(frozen=True)
class Agreement:
    """Agreement of substitute and victim after one round of training.

    Attributes:
        queries: training queries to the victim so far.
        rate: share of the test inputs for which both predict the same label; `None` without test
            inputs.
    """

    queries: int
    rate: float | None


@dataclass(frozen=True, eq=False)
class Extraction:
    """Result of a model extraction.

    Attributes:
        model: the substitute, differentiable; the surrogate of a `Transfer`.
        history: agreement after each round of training, the last one at the end.
        queries: queries to the victim for training.
        test_queries: further queries, to measure agreement.
    """

    model: TorchClassifier
    history: tuple[Agreement, ...]
    queries: int
    test_queries: int

    @property
    def agreement(self) -> float | None:
        """Final share of test inputs with the same predicted label; `None` without test inputs."""
        return self.history[-1].rate


@dataclass(frozen=True, kw_only=True)
class Substitute:
    """Train a surrogate from labels alone (Papernot et al., 2017, arXiv:1602.02697).

    A net is trained on the victim's labels of a few inputs. Each input is then moved along the sign
    of the net's gradient at the victim's label, the victim labels the new inputs, and the net is
    trained on all of them. This doubles the training set round by round until the queries are used
    up. The net is a surrogate for `Transfer`; it is also an extraction of the victim.

    Deviations from the paper:

    - The step changes its sign from round to round (periodical step size, arXiv:1605.07277).
    - The net continues from the previous round.
    - Where the queries are too few to double the set, a random part of it is moved.

    Args:
        max_queries: greatest number of queries to the victim for training.
        rounds: greatest number of times that the set is doubled (rho in the paper).
        step_size: length of the step for each feature, in input units (lambda in the paper).
        epochs: passes over the set in each round.
        lr: learning rate of Adam.
        batch_size: batch size of training and of queries; a last training batch of one sample is
            merged into the previous batch.
        seed: seed of order, dropout and random parts, an int.
        progress: show a progress bar over the rounds (needs the extra `report`).

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.

    Example:
        >>> import torch
        >>> from sklearn.tree import DecisionTreeClassifier
        >>> from advkit import attacks
        >>> x = torch.rand(300, 4)
        >>> tree = DecisionTreeClassifier(max_depth=3).fit(x, x[:, 0] > 0.5)
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2)
        ... )
        >>> substitute = attacks.Substitute(max_queries=400, epochs=20, lr=0.01)
        >>> found = substitute.fit(tree, net, x[:50], x[50:])
        >>> found.queries, found.agreement > 0.8
        (400, True)
    """

    max_queries: int
    rounds: int = 6
    step_size: float = 0.1
    epochs: int = 10
    lr: float = 1e-3
    batch_size: int = 64
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        checks.integer("max_queries", self.max_queries, at_least=1)
        checks.integer("rounds", self.rounds, at_least=0)
        checks.positive("step_size", self.step_size)
        checks.integer("epochs", self.epochs, at_least=1)
        checks.positive("lr", self.lr)
        checks.integer("batch_size", self.batch_size, at_least=1)
        checks.integer("seed", self.seed)
        checks.boolean("progress", self.progress)

    def fit(
        self,
        victim: object,
        net: nn.Module,
        x: Tensor,
        x_test: Tensor | None = None,
        *,
        answers: Answers | None = None,
    ) -> Extraction:
        """Train `net` in place to predict the labels of `victim`.

        Args:
            victim: a classifier, an `nn.Module` or a fitted scikit-learn estimator.
            net: module from `(n, *features)` to logits `(n, victim.num_classes)`.
            x: initial inputs `(n, *features)`, at most `max_queries`; labels are not needed. Real
                inputs are worth more than moved ones: against boosted trees on MNIST, 800 of them
                lead to an agreement of 0.88 within 6,400 queries, and 200 of them to 0.62.
            x_test: other inputs, on which agreement is measured after each round.
            answers: predictions that were paid for already, to resume an interrupted `fit`: the
                `answers` of the error that ended it. Every error, an interrupt included, carries
                them once the victim has returned some. They count towards `max_queries`. Pass `net`
                in its initial state, since another net moves inputs elsewhere, which costs new
                queries. `None` to start without predictions.

        Returns:
            The substitute and its cost.

        Raises:
            ValueError: `x` is out of the victim's bounds, empty, or larger than `max_queries`; or
                `net` does not return one logit for each of the victim's classes, which is checked
                once the victim has labeled `x`.
            TypeError: `net` is not a module, or `victim` is not a model.
            QueryBudgetExceeded: the victim's own budget is used up; `net` keeps its training.
            ServiceError: a function behind the victim failed; `net` keeps its training.
        """
        model = as_classifier(victim)
        if not isinstance(net, nn.Module):
            raise TypeError(f"`net` must be a torch.nn.Module, got {type(net).__name__}.")
        x = checks.inputs("x", x, model.bounds)
        if not 0 < len(x) <= self.max_queries:
            raise ValueError(
                f"`x` must hold at least 1 sample and at most {self.max_queries:,}, the "
                f"`max_queries`, got {len(x):,}."
            )
        test = None if x_test is None else checks.inputs("x_test", x_test, model.bounds)
        if test is not None and not len(test):
            raise ValueError("`x_test` must hold at least 1 sample or be None, got 0 samples.")
        with torch.random.fork_rng(), torch.enable_grad(), evaluating(model):
            torch.manual_seed(self.seed)
            paid = PaidAnswers(answers, axes=1)
            with paid.kept():
                return self._extract(_Victim(model, paid, self.batch_size), net, x, test)

    def _extract(
        self, victim: _Victim, net: nn.Module, x: Tensor, test: Tensor | None
    ) -> Extraction:
        model, rows = victim.model, torch.arange(len(x))
        y = victim.labels(x, rows)  # some models know their number of classes only now
        substitute = TorchClassifier(net, model.bounds, num_classes=model.num_classes)
        _check_logits(substitute, x[:1])
        y_test = None if test is None else victim.labels(test, None)
        optimizer = torch.optim.Adam(net.parameters(), lr=self.lr)
        history = []
        with progress_bar("rounds", self.rounds + 1, self.progress) as advance:
            for inputs, labels in self._training_sets(victim, substitute, x, y):
                fit(
                    net,
                    shuffled(inputs, labels, self.batch_size),
                    loss=_loss,
                    optimizer=optimizer,
                    epochs=self.epochs,
                    progress=False,
                )
                rate = None
                if test is not None and y_test is not None:
                    predicted = sample_rows.in_parts(substitute.predict, test, size=self.batch_size)
                    rate = float((predicted == y_test).double().mean())
                history.append(Agreement(len(inputs), rate))
                advance(1)
        test_queries = 0 if test is None else len(test)
        return Extraction(substitute, tuple(history), history[-1].queries, test_queries)

    def _training_sets(
        self, victim: _Victim, substitute: TorchClassifier, x: Tensor, y: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs and the victim's labels, more of them in each round."""
        yield x, y
        rows = torch.arange(len(x))  # the initial input that each one comes from
        for i in range(self.rounds):
            remaining = self.max_queries - len(x)
            if not remaining:
                return
            part = torch.randperm(len(x))[:remaining].sort().values.to(x.device)
            step = self.step_size if i % 2 == 0 else -self.step_size
            moved = self._move(substitute, x[part], y[part], step)
            origin = rows[part.cpu()]
            labels = victim.labels(moved, origin)
            x, y, rows = torch.cat([x, moved]), torch.cat([y, labels]), torch.cat([rows, origin])
            yield x, y

    def _move(self, substitute: TorchClassifier, x: Tensor, y: Tensor, step: float) -> Tensor:
        """Return `x` after a `step` along the sign of the gradient of its label's logit."""
        signs = []
        for i in range(0, len(x), self.batch_size):
            leaf = x[i : i + self.batch_size].clone().requires_grad_()
            label_logit = substitute.logits(leaf).gather(1, y[i : i + self.batch_size, None])
            with differentiating(substitute):
                signs.append(torch.autograd.grad(label_logit.sum(), leaf)[0].sign())
        return (x + step * torch.cat(signs)).clamp(*substitute.bounds)


class _Victim(NamedTuple):
    """Victim of an extraction, and its predictions so far."""

    model: Classifier
    paid: PaidAnswers
    batch_size: int

    def labels(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """Return the victim's labels `(n,)` of `x`, on its device.

        Args:
            x: inputs `(n, *features)`.
            rows: `(n,)`, the samples of `fit` that they are made from; `None` for other data.
        """
        at_once = min(self.batch_size, max_batch(self.model) or self.batch_size)
        unnumbered = sample_rows.unnumbered("x_test")
        with unnumbered if rows is None else sample_rows.given_rows(rows):
            return self.paid.ask(x, self.model.predict, at_once)


def _check_logits(substitute: TorchClassifier, x: Tensor) -> None:
    """Raise unless the net returns a logit for each class, which cross-entropy needs."""
    with evaluating(substitute), torch.no_grad():
        out = substitute.module(x.clone())
    shape = (len(x), substitute.num_classes)
    # a net that squeezes drops the axis of a single sample
    if not isinstance(out, Tensor) or out.shape not in (shape, shape[1:]):
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(
            f"`net` must return logits of shape {shape} for {len(x)} sample, got {got}."
        )


def _loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    # a net that squeezes drops the axis of a single sample
    return F.cross_entropy(net(x).view(len(x), -1), y)
