"""Classifiers around a classifier, each of which offers what the inner one offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from advkit.core import checks
from advkit.models.convert import as_classifier
from advkit.models.ensemble import Combine, Ensemble, Forward
from advkit.models.inner_model import HasInnerModel
from advkit.models.protocols import Bounds, evaluating
from advkit.models.query_budget import Budget, Counter
from advkit.models.state import preserve_state
from advkit.models.torch import checked_bounds


class ClassifierWrapper(HasInnerModel, ABC):
    """A classifier that answers through another one, `asked`."""

    def __init__(self, model: object) -> None:
        self.model: Any = as_classifier(model)
        self._asked: Any = self.model

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    @property
    def scores(self) -> Forward:
        """Function from `x` `(n, *features)` to scores `(n, num_classes)`, detached.

        Raises:
            AttributeError: the inner model has no scores.
        """
        ask: Forward = self._asked.scores
        return lambda x: self._answer(ask, x)

    @property
    def logits(self) -> Forward:
        """Function from `x` `(n, *features)` to logits `(n, num_classes)`, differentiable.

        Raises:
            AttributeError: the inner model has no logits.
        """
        ask: Forward = self._asked.logits
        return lambda x: self._answer(ask, x)

    def predict(self, x: Tensor) -> Tensor:
        """Labels `(n,)` of `x` `(n, *features)`, int64; raises as the inner model does."""
        return self._answer(self._asked.predict, x)

    @abstractmethod
    def _answer(self, ask: Forward, x: Tensor) -> Tensor:
        """What `ask`, a function of the inner model, answers to `x` by way of this one."""


class Expectation(ClassifierWrapper):
    """The expectation over a model's own randomness (Athalye et al., 2018, arXiv:1707.07397).

    Each call asks the model `draws` times; an attack on it climbs the expectation, which a random
    defense cannot hide. Alone, a call begins from the caller's random state and puts it back, so
    that it repeats its draws; within an attack they go on. What few draws leave to chance, an
    attack still warns of. Threads may share it as far as they may share the model; the random state
    is put back for one thread alone.

    Args:
        model: a random classifier, such as `TorchClassifier(net, mode="keep")` with dropout, or
            `StraightThrough` around a random step.
        draws: calls of the model for each answer, at least 1.
        combine: what is averaged, as for `Ensemble`; a model with labels only needs `"vote"`.

    Raises:
        TypeError: the model lacks what is to be combined, or is no classifier.
        ValueError: `draws` is below 1, or `combine` is unknown.

    Example:
        >>> import torch, advkit
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(0.5))
        >>> model = advkit.Expectation(advkit.TorchClassifier(net, mode="keep"), draws=8)
        >>> x = torch.rand(2, 4)
        >>> torch.equal(model.logits(x), model.logits(x)), model.scores(x).shape
        (True, torch.Size([2, 3]))
    """

    def __init__(self, model: object, draws: int = 32, combine: Combine = "probabilities") -> None:
        super().__init__(model)
        checks.integer("draws", draws, at_least=1)
        self.draws = draws
        self._asked = Ensemble([self.model] * draws, combine)
        self._random_state = (
            nn.Module()
        )  # to be held: a model of one's own may have no `evaluating`

    def evaluating(self) -> AbstractContextManager[None]:
        """Keep the model, and let its draws go on, over many calls."""
        return _held(self._undisturbed(), self.model)

    def _answer(self, ask: Forward, x: Tensor) -> Tensor:
        held = self._undisturbed()
        with held, evaluating(self.model), held.first_pass():
            return ask(x)

    def _undisturbed(self) -> preserve_state:
        return preserve_state(self._random_state, evaluate=True)


class StraightThrough(ClassifierWrapper):
    """A model behind a step that cannot be differentiated (Athalye et al., 2018, arXiv:1802.00420).

    Forward it is exactly `step`; backward it is the identity, or the function given for that: the
    paper's backward pass differentiable approximation (BPDA). Threads may share it if they may
    share the model and the step.

    Args:
        model: what answers to the step's output.
        step: function of `x` `(n, *features)` such as rounding, compression or a quantised
            preprocessing. A module runs in evaluation mode, and is left as it was.
        backward: differentiable function of `x` with the output's shape, to take the gradient of;
            `None` for the identity, if the step keeps the shape.
        bounds: lower and upper end of valid values of `x`; `None` takes the inner model's.

    Raises:
        TypeError: `step` or `backward` cannot be called, or `model` is no classifier.
        ValueError: `bounds` are not finite and ordered.

    Example:
        >>> import torch, advkit
        >>> model = advkit.StraightThrough(torch.nn.Linear(4, 3), lambda x: (8 * x).round() / 8)
        >>> x = torch.rand(2, 4, requires_grad=True)
        >>> model.logits(x).sum().backward()
        >>> x.grad.abs().sum() > 0
        tensor(True)
    """

    def __init__(
        self,
        model: object,
        step: Callable[[Tensor], Tensor],
        backward: Callable[[Tensor], Tensor] | None = None,
        bounds: tuple[float, float] | None = None,
    ) -> None:
        super().__init__(model)
        if not callable(step):
            raise TypeError(f"`step` must be callable, got {type(step).__name__}")
        if backward is not None and not callable(backward):
            raise TypeError(f"`backward` must be callable or None, got {type(backward).__name__}")
        self.step = step
        self.backward = backward
        self._bounds = None if bounds is None else checked_bounds(bounds)
        self._stateful = step if isinstance(step, nn.Module) else nn.Module()

    @property
    def bounds(self) -> Bounds:
        """Valid values of what comes before the step."""
        return super().bounds if self._bounds is None else self._bounds

    def evaluating(self) -> AbstractContextManager[None]:
        """Keep the step and the inner model in evaluation over many calls."""
        return _held(self._undisturbed(), self.model)

    def _answer(self, ask: Forward, x: Tensor) -> Tensor:
        held = self._undisturbed()
        with held, evaluating(self.model), held.first_pass():
            return ask(self._stepped(x))

    def _undisturbed(self) -> preserve_state:
        return preserve_state(self._stateful, evaluate=True)

    def _stepped(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            value = self.step(x.detach().clone())
        if not isinstance(value, Tensor):
            raise TypeError(f"`step` must return a torch.Tensor, got {type(value).__name__}")
        if not (torch.is_grad_enabled() and x.requires_grad):
            return value
        likeness = x if self.backward is None else self.backward(x.clone())
        if likeness.shape != value.shape:
            raise ValueError(
                f"step turns {tuple(x.shape)} into {tuple(value.shape)}, but the gradient is that "
                f"of {tuple(likeness.shape)}; give backward= with the step's output shape"
            )
        return straight_through(likeness, value)


class QueryCounter(ClassifierWrapper):
    """A model that counts the samples sent through it, and may stop at a budget.

    Threads may share it, as far as they may share `model`: the counts stay exact and the budget
    holds. A call that raises is not counted.

    Args:
        model: the classifier to query.
        max_queries: samples that may be sent forward in all; `None` for any number.

    Raises:
        TypeError: `max_queries` is no int, or `model` is no classifier.
        ValueError: `max_queries` is negative.

    Example:
        >>> import torch, advkit
        >>> model = advkit.QueryCounter(torch.nn.Linear(4, 3), max_queries=100)
        >>> result = advkit.attacks.PGD(eps=0.1, steps=3).run(model, torch.rand(2, 4))
        >>> model.forward == result.queries.forward.sum(), model.forward + model.queries_left
        (tensor(True), 100)
    """

    def __init__(self, model: object, max_queries: int | None = None) -> None:
        super().__init__(model)
        self._budget = Budget(max_queries)
        self._backward = Counter()

    @property
    def forward(self) -> int:
        """Samples that were sent forward and answered."""
        return self._budget.spent

    @property
    def backward(self) -> int:
        """Samples sent backward through the logits, at each pass all that were in the batch."""
        return self._backward.value

    @property
    def max_queries(self) -> int | None:
        """Samples that may be sent forward in all; `None` for any number."""
        return self._budget.limit

    @property
    def queries_left(self) -> int | None:
        """Samples that may still be sent forward, not those in flight; `None` for any number."""
        return self._budget.left

    def reset(self) -> None:
        """Count from zero again, with the whole budget."""
        self._budget.reset()
        self._backward.reset()

    def _answer(self, ask: Forward, x: Tensor) -> Tensor:
        with self._budget.reserved(len(x)) as reservation:
            answer = ask(x)
            self._budget.answered(reservation, len(x))
        if answer.requires_grad:
            answer.register_hook(self._count)  # type: ignore[no-untyped-call]
        return answer

    def _count(self, grad: Tensor) -> None:
        self._backward.add(len(grad))


def straight_through(likeness: Tensor, value: Tensor) -> Tensor:
    """`value`, to the bit, with the gradient of `likeness`, which has its shape."""
    found: Tensor = _Instead.apply(likeness, value)  # type: ignore[no-untyped-call]
    return found


class _Instead(torch.autograd.Function):
    """What `straight_through` does."""

    @staticmethod
    def forward(_: Any, likeness: Tensor, value: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(_: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


@contextmanager
def _held(step: preserve_state, model: object) -> Iterator[None]:
    """Both in the state of an evaluation, with the random state put back at the end."""
    with step, evaluating(model):
        yield
