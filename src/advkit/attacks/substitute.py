"""Substitute: a surrogate trained from a model's answers."""

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
    """How often substitute and victim say the same.

    Attributes:
        queries: samples that the victim had been asked about for training.
        share: of the test inputs that both label alike; `None` without test inputs.
    """

    queries: int
    share: float | None


@dataclass(frozen=True, eq=False)
class Extraction:
    """A victim as far as it was copied.

    Attributes:
        model: the substitute, differentiable; the surrogate of a `Transfer`.
        history: agreement after each round of training, the last one at the end.
        queries: samples that the victim was asked about for training.
        test_queries: samples that it was asked about besides, to measure agreement.
    """

    model: TorchClassifier
    history: tuple[Agreement, ...]
    queries: int
    test_queries: int

    @property
    def agreement(self) -> float | None:
        """Share of the test inputs that both label alike; `None` without test inputs."""
        return self.history[-1].share


@dataclass(frozen=True, kw_only=True)
class Substitute:
    """Train a surrogate from labels alone (Papernot et al., 2017, arXiv:1602.02697).

    A net learns the victim's labels of a few inputs. Each of them is then moved along the sign of
    the net's gradient at the victim's label, the victim is asked about the moved ones, and the net
    learns all of them; that doubles the set round by round until the queries are spent. The net is
    a copy of the victim to attack (`Transfer`), and as such also an extraction of it.

    Deviations: from round to round the step changes its sign (periodical step size,
    arXiv:1605.07277); the net goes on from the round before; where the queries do not suffice to
    double the set, a random part of it is moved.

    Args:
        max_queries: the most samples that the victim may be asked about for training.
        rounds: how often the set is doubled, at most (rho in the paper).
        step_size: of the moves, in input units (lambda in the paper).
        epochs: passes over the set in each round.
        lr: of Adam.
        batch_size: samples in a batch, of training and of queries; a last batch of training with
            one sample goes into the batch before it.
        seed: of order, dropout and random parts, an int.
        progress: show a bar over the rounds (needs the extra `report`).

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
        """Train `net` in place to say what `victim` says.

        Args:
            victim: a classifier, an `nn.Module` or a fitted scikit-learn estimator.
            net: takes `(n, *features)` and gives logits `(n, victim.num_classes)`.
            x: inputs to begin with `(n, *features)`, at most `max_queries` of them; no labels needed.
                Real inputs are worth more than moved ones: against boosted trees on MNIST 800 of
                them lead to an agreement of 0.88 within 6,400 queries, 200 to 0.62.
            x_test: other inputs, on which agreement is measured after each round.
            answers: what the victim has answered already: the `answers` of the error that ended an
                earlier `fit`. Any error, an interrupt included, has them once the victim has
                answered something. They count towards `max_queries`. Pass `net` as it was at the beginning:
                another one moves inputs elsewhere, which has to be paid. `None` for nothing.

        Returns:
            The substitute, and what it cost.

        Raises:
            ValueError: inputs out of the victim's bounds, none of them, or more than `max_queries`;
                a `net` without one logit for each of the victim's classes, which is seen when the
                victim has labelled `x`.
            TypeError: `net` is no module, or `victim` no model.
            QueryBudgetExceeded: the victim's own budget is spent; `net` is as far as it got.
            ServiceError: a function behind the victim failed; `net` is as far as it got.
        """
        model = as_classifier(victim)
        if not isinstance(net, nn.Module):
            raise TypeError(f"`net` must be a torch.nn.Module, got {type(net).__name__}")
        x = checks.inputs(x, model.bounds)
        if not 0 < len(x) <= self.max_queries:
            raise ValueError(
                f"`x` must hold at least one sample and at most {self.max_queries:,}, as many as queries "
                f"allow, got {len(x):,}"
            )
        test = None if x_test is None else checks.inputs(x_test, model.bounds)
        if test is not None and not len(test):
            raise ValueError("`x_test` must hold at least one sample or be None, got none")
        with torch.random.fork_rng(), torch.enable_grad(), evaluating(model):
            torch.manual_seed(self.seed)
            paid = PaidAnswers(answers, axes=1)
            with paid.kept():
                return self._extract(_Victim(model, paid, self.batch_size), net, x, test)

    def _extract(
        self, asked: _Victim, net: nn.Module, x: Tensor, test: Tensor | None
    ) -> Extraction:
        victim, rows = asked.model, torch.arange(len(x))
        y = asked.labels(x, rows)  # some victims know their number of classes only now
        substitute = TorchClassifier(net, victim.bounds, num_classes=victim.num_classes)
        _check_logits(substitute, x[:1])
        y_test = None if test is None else asked.labels(test, None)
        optimizer = torch.optim.Adam(net.parameters(), lr=self.lr)
        history = []
        with progress_bar("rounds", self.rounds + 1, self.progress) as advance:
            for known, labels in self._sets(asked, substitute, x, y):
                fit(
                    net,
                    shuffled(known, labels, self.batch_size),
                    loss=_loss,
                    optimizer=optimizer,
                    epochs=self.epochs,
                    progress=False,
                )
                share = None
                if test is not None and y_test is not None:
                    told = sample_rows.in_parts(substitute.predict, test, size=self.batch_size)
                    share = float((told == y_test).double().mean())
                history.append(Agreement(len(known), share))
                advance(1)
        test_queries = 0 if test is None else len(test)
        return Extraction(substitute, tuple(history), history[-1].queries, test_queries)

    def _sets(
        self, victim: _Victim, substitute: TorchClassifier, x: Tensor, y: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and the victim's labels, more of them in each round."""
        yield x, y
        rows = torch.arange(len(x))  # which of the first inputs each comes from
        for i in range(self.rounds):
            room = self.max_queries - len(x)
            if not room:
                return
            part = torch.randperm(len(x))[:room].sort().values.to(x.device)
            step = self.step_size if i % 2 == 0 else -self.step_size
            moved = self._moved(substitute, x[part], y[part], step)
            origin = rows[part.cpu()]
            labels = victim.labels(moved, origin)
            x, y, rows = torch.cat([x, moved]), torch.cat([y, labels]), torch.cat([rows, origin])
            yield x, y

    def _moved(self, substitute: TorchClassifier, x: Tensor, y: Tensor, step: float) -> Tensor:
        """Each of `x` a `step` along the sign of the gradient of its label's logit."""
        signs = []
        for i in range(0, len(x), self.batch_size):
            leaf = x[i : i + self.batch_size].clone().requires_grad_()
            own = substitute.logits(leaf).gather(1, y[i : i + self.batch_size, None])
            with differentiating(substitute):
                signs.append(torch.autograd.grad(own.sum(), leaf)[0].sign())
        return (x + step * torch.cat(signs)).clamp(*substitute.bounds)


class _Victim(NamedTuple):
    """A victim, and what it has answered."""

    model: Classifier
    paid: PaidAnswers
    batch_size: int

    def labels(self, x: Tensor, rows: Tensor | None) -> Tensor:
        """Return the victim's labels `(n,)` of `x`, on its device.

        Args:
            x: inputs `(n, *features)`.
            rows: `(n,)`, which samples of `fit` they are made of; `None` for other data.
        """
        at_once = min(self.batch_size, max_batch(self.model) or self.batch_size)
        unnumbered = sample_rows.unnumbered("x_test")
        with unnumbered if rows is None else sample_rows.given_rows(rows):
            return self.paid.ask(x, self.model.predict, at_once)


def _check_logits(substitute: TorchClassifier, x: Tensor) -> None:
    """Raise unless the net has a logit for each class, as cross-entropy wants them."""
    with evaluating(substitute), torch.no_grad():
        out = substitute.module(x.clone())
    wanted = (len(x), substitute.num_classes)
    if not isinstance(out, Tensor) or out.shape not in (wanted, wanted[1:]):  # of one sample
        got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"`net` must give logits {wanted} for {len(x)} sample, got {got}")


def _loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x).view(len(x), -1), y)  # one that squeezes drops an axis of one
