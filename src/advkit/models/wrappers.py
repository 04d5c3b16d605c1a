"""Classifiers that wrap another classifier and have the same methods as it has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from advkit.core import checks
from advkit.core.bounds import Bounds, checked_bounds
from advkit.models.convert import as_classifier
from advkit.models.ensemble import Combine, Ensemble, Forward
from advkit.models.inner_model import HasInnerModel
from advkit.models.protocols import evaluating
from advkit.models.query_budget import Budget, Counter
from advkit.models.state import preserve_state


class ClassifierWrapper(HasInnerModel, ABC):
    """Base class of the classifiers that get their outputs from an inner model."""

    def __init__(self, model: object) -> None:
        self.model: Any = as_classifier(model)
        self._inner: Any = self.model  # the classifier whose methods are called

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model!r})"

    @property
    def scores(self) -> Forward:
        """Function from `x` `(n, *features)` to scores `(n, num_classes)`, detached.

        Raises:
            AttributeError: the inner model has no scores.
        """
        forward: Forward = self._inner.scores
        return lambda x: self._call_inner(forward, x)

    @property
    def logits(self) -> Forward:
        """Function from `x` `(n, *features)` to logits `(n, num_classes)`, differentiable.

        Raises:
            AttributeError: the inner model has no logits.
        """
        forward: Forward = self._inner.logits
        return lambda x: self._call_inner(forward, x)

    def predict(self, x: Tensor) -> Tensor:
        """Return labels `(n,)` of `x` `(n, *features)`, int64; raise as the inner model does."""
        return self._call_inner(self._inner.predict, x)

    @abstractmethod
    def _call_inner(self, forward: Forward, x: Tensor) -> Tensor:
        """Return the outputs of `forward`, a method of the inner model, for `x`."""


class Expectation(ClassifierWrapper):
    """Expectation over the randomness of a model (Athalye et al., 2018, arXiv:1707.07397).

    Each call queries the model `draws` times. An attack on this classifier ascends the expectation,
    which a random defense cannot hide. Outside of attacks, each call starts from the caller's
    random state and restores it, so calls repeat their draws; within an attack the draws continue.
    If few draws leave much to chance, an attack still warns. Threads may share the classifier if
    they may share the model, but the random state is restored for one thread only.

    Args:
        model: a random classifier, such as `TorchClassifier(net, mode="keep")` with dropout, or
            `StraightThrough` with a random step.
        draws: number of calls of the model for each output, at least 1.
        combine: what is averaged, as for `Ensemble`; a model with labels only needs `"vote"`.

    Raises:
        TypeError: the model lacks the outputs to be combined, or is not a classifier.
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
        self._inner = Ensemble([self.model] * draws, combine)
        # An empty module, by which `preserve_state` restores the random state even if a custom
        # model has no `evaluating`.
        self._random_state = nn.Module()

    def evaluating(self) -> AbstractContextManager[None]:
        """Return a context for many calls, in which the draws continue from call to call."""
        return _evaluating_both(self._preserve_state(), self.model)

    def _call_inner(self, forward: Forward, x: Tensor) -> Tensor:
        state = self._preserve_state()
        with state, evaluating(self.model), state.first_pass():
            return forward(x)

    def _preserve_state(self) -> preserve_state:
        return preserve_state(self._random_state, evaluate=True)


def averages_draws(model: object) -> bool:
    """Return True if `model`, or one that it wraps, is an `Expectation`."""
    while isinstance(model, HasInnerModel):
        if isinstance(model, Expectation):
            return True
        model = model.model
    return False


class StraightThrough(ClassifierWrapper):
    """Model behind a step that cannot be differentiated (Athalye et al., 2018, arXiv:1802.00420).

    The forward pass is exactly `step`. The backward pass is that of the identity, or of the
    function `backward`: the backward pass differentiable approximation (BPDA) of the paper. Threads
    may share the classifier if they may share the model and the step.

    Args:
        model: the model that receives the step's output.
        step: function of `x` `(n, *features)` such as rounding, compression or a quantized
            preprocessing. A module runs in evaluation mode, and its state is restored.
        backward: differentiable function of `x`, with the shape of the step's output, whose
            gradient is used; `None` for the identity, if the step keeps the shape.
        bounds: lower and upper end of valid values of `x`; `None` for those of the inner model.

    Raises:
        TypeError: `step` or `backward` cannot be called, or `model` is not a classifier.
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
            raise TypeError(f"`step` must be callable, got {type(step).__name__}.")
        if backward is not None and not callable(backward):
            raise TypeError(f"`backward` must be callable or None, got {type(backward).__name__}.")
        self.step = step
        self.backward = backward
        self._bounds = None if bounds is None else checked_bounds(bounds)
        self._stateful = step if isinstance(step, nn.Module) else nn.Module()

    @property
    def bounds(self) -> Bounds:
        """Valid values of the step's input."""
        return super().bounds if self._bounds is None else self._bounds

    def evaluating(self) -> AbstractContextManager[None]:
        """Return a context for many calls, which saves and restores both states once."""
        return _evaluating_both(self._preserve_state(), self.model)

    def _call_inner(self, forward: Forward, x: Tensor) -> Tensor:
        state = self._preserve_state()
        with state, evaluating(self.model), state.first_pass():
            return forward(self._apply_step(x))

    def _preserve_state(self) -> preserve_state:
        return preserve_state(self._stateful, evaluate=True)

    def _apply_step(self, x: Tensor) -> Tensor:
        checks.tensor("x", x)
        with torch.no_grad():
            value = self.step(x.detach().clone())
        if not isinstance(value, Tensor):
            raise TypeError(f"`step` must return a torch.Tensor, got {type(value).__name__}.")
        if not (torch.is_grad_enabled() and x.requires_grad):
            return value
        proxy = x if self.backward is None else self.backward(x.clone())
        if proxy.shape != value.shape:
            raise ValueError(
                f"`backward` must return the shape of the step's output, {tuple(value.shape)}, "
                f"got {tuple(proxy.shape)} for an input of shape {tuple(x.shape)}. Without "
                "`backward`, the step must keep the shape of its input."
            )
        return straight_through(proxy, value)


class QueryCounter(ClassifierWrapper):
    """Model that counts the samples sent through it and may have a query budget.

    Threads may share it if they may share `model`: the counts stay exact and the budget is never
    exceeded. A call that raises is not counted.

    Args:
        model: the classifier to query.
        max_queries: maximum number of samples sent forward in total; `None` for no limit.

    Raises:
        TypeError: `max_queries` is not an int, or `model` is not a classifier.
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
        """Number of samples in completed forward passes."""
        return self._budget.spent

    @property
    def backward(self) -> int:
        """Number of samples in backward passes through the logits; each counts its whole batch."""
        return self._backward.value

    @property
    def max_queries(self) -> int | None:
        """Maximum number of samples sent forward in total; `None` for no limit."""
        return self._budget.limit

    @property
    def queries_left(self) -> int | None:
        """Number of samples that may still be sent, minus those in flight; `None` for no limit."""
        return self._budget.remaining

    def reset(self) -> None:
        """Set both counts to zero and restore the whole budget."""
        self._budget.reset()
        self._backward.reset()

    def _call_inner(self, forward: Forward, x: Tensor) -> Tensor:
        checks.tensor("x", x)
        with self._budget.reserve(len(x)) as reservation:
            outputs = forward(x)
            self._budget.charge(reservation, len(x))
        if outputs.requires_grad:
            outputs.register_hook(self._count)  # type: ignore[no-untyped-call]
        return outputs

    def _count(self, grad: Tensor) -> None:
        self._backward.add(len(grad))


def straight_through(proxy: Tensor, value: Tensor) -> Tensor:
    """Return exactly `value`, with the gradient of `proxy`, which has the same shape."""
    result: Tensor = _StraightThroughFunction.apply(proxy, value)  # type: ignore[no-untyped-call]
    return result


class _StraightThroughFunction(torch.autograd.Function):
    """Autograd function of `straight_through`."""

    @staticmethod
    def forward(_: Any, proxy: Tensor, value: Tensor) -> Tensor:
        return value

    @staticmethod
    def backward(_: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


@contextmanager
def _evaluating_both(state: preserve_state, model: object) -> Iterator[None]:
    """Evaluate the step and the model inside; restore the random state at the end."""
    with state, evaluating(model):
        yield
