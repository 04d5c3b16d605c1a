"""Training losses: base classes, weighted sums, and adversarial examples for training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advkit.core import checks, label_checks
from advkit.core.attack_options import with_seed, with_stop
from advkit.core.bounds import checked_bounds
from advkit.core.protocols import AnyAttack, Attack
from advkit.core.results import InconclusiveWarning
from advkit.core.tensors import at_least_float32
from advkit.models import TorchClassifier
from advkit.models.torch import Mode, logits_from

Value = Callable[[nn.Module, Tensor, Tensor], Tensor]
_NUM_SEEDS = 2**62  # seeds that are drawn from, within the range of int64


class TrainingLoss(ABC):
    """Function `loss(module, x, y)` to train with, in any loop.

    Sums and multiples of losses are losses, also with your own functions of the same form:
    `0.5 * AdversarialTraining(attack=attack) + 0.5 * LabelSmoothing(smoothing=0.1)`.

    Threads may share a loss, but each one needs its own module to train. Their random numbers
    depend on the order of the threads, since torch has one global random state.
    """

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss to minimize.

        Args:
            module: module that is trained, in the mode of the training loop. It returns logits
                `(n, classes)`, one logit, or an object that holds them, as for `TorchClassifier`.
            x: inputs `(n, *features)`.
            y: labels `(n,)` of any integer dtype, integral floats, or one-hot.

        Returns:
            A scalar; its gradient reaches the parameters only through this loss, not through the
            attack.

        Raises:
            TypeError: `module` is not an `nn.Module`.
            ValueError: `y` has the wrong shape or range, or the batch is empty.
        """
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"`module` must be a torch.nn.Module, got {type(module).__name__}. Pass "
                "the module of a classifier."
            )
        if not len(x):
            raise ValueError("`x` must hold at least one sample, got none.")
        return self._value(module, x, label_checks.labels("y", y, x))

    @abstractmethod
    def _value(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of a non-empty batch with int64 labels `y` `(n,)`."""

    def __add__(self, other: Value) -> WeightedSum:
        """Return the sum of this loss and another one."""
        if not callable(other):
            return NotImplemented
        return WeightedSum(terms=(*_terms(self), *_terms(other)))

    def __radd__(self, other: Value | int) -> WeightedSum:
        """Return the sum of another loss and this one; the start value 0 of `sum` is ignored."""
        if callable(other):
            return WeightedSum(terms=(*_terms(other), *_terms(self)))
        return WeightedSum(terms=_terms(self)) if other == 0 else NotImplemented

    def __mul__(self, weight: float) -> WeightedSum:
        """Return this loss times a non-negative number."""
        checks.not_negative("weight", weight)
        return WeightedSum(terms=tuple((weight * w, loss) for w, loss in _terms(self)))

    __rmul__ = __mul__


@dataclass(frozen=True)
class WeightedSum(TrainingLoss):
    """Weighted sum of losses."""

    terms: tuple[tuple[float, Value], ...]

    def _value(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        values = [weight * _term_value(loss, module, x, y) for weight, loss in self.terms]
        return torch.stack(values).sum()


def _term_value(loss: Value, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the value of one term; functions get copies of the data, which they may modify."""
    if isinstance(loss, TrainingLoss):
        return loss(module, x, y)
    return loss(module, x.clone(), y.clone())


def _terms(loss: Value) -> tuple[tuple[float, Value], ...]:
    return loss.terms if isinstance(loss, WeightedSum) else ((1.0, loss),)


@dataclass(frozen=True, kw_only=True)
class CraftingLoss(TrainingLoss):
    """Base class of losses on adversarial examples against the current module.

    Each call draws a new seed for the attack from torch's global generator, as dropout draws its
    masks. Starting points differ from step to step, and `torch.manual_seed` makes a training
    reproducible.
    """

    attack: Attack
    bounds: tuple[float, float] = (0.0, 1.0)
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        checks.attack("attack", self.attack)
        checked_bounds(self.bounds)
        checks.one_of("mode", self.mode, ("eval", "keep"))

    def _craft(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """Return adversarial examples of `x`, and leave `module` unchanged."""
        return craft(self.attack, self._as_classifier(module), x, y)

    def _as_classifier(self, module: nn.Module) -> TorchClassifier:
        """Return `module` as the classifier that is attacked."""
        return TorchClassifier(module, self.bounds, mode=self.mode)


def craft(attack: Attack, model: TorchClassifier, x: Tensor, y: Tensor) -> Tensor:
    """Return adversarial examples of `x` by `attack`, with a new seed and without early stopping.

    The state of `model` is left unchanged. The success of the attack is not needed, so attacks with
    a method `craft` do not verify it.
    """
    attack = _with_new_seed(with_stop(attack, "never"))
    generate: Attack = getattr(attack, "craft", attack)
    with crafting(x.device):
        return generate(model, x.clone(), y.clone())  # custom attacks may modify them


def logits_of(module: nn.Module, x: Tensor) -> Tensor:
    """Return the logits `(n, classes)` of a module in training, float32 at least.

    Its mode and the graph are kept. The module gets a copy of `x`, since it may modify its input.
    """
    return at_least_float32(logits_from(module(x.clone()), len(x)))


def cross_entropy(logits: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the mean cross-entropy of logits `(n, classes)` and labels `(n,)`, a scalar.

    Raises:
        ValueError: a label has no logit.
    """
    label_checks.labels_within("y", y, logits.shape[1])
    return F.cross_entropy(logits, y, label_smoothing=smoothing)


def divergence(logits: Tensor, others: Tensor) -> Tensor:
    """Return KL(p || q) `(n,)`; p and q are the softmax of `logits` and `others` `(n, classes)`."""
    log_p, log_q = F.log_softmax(logits, dim=1), F.log_softmax(others, dim=1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def _with_new_seed(attack: AnyAttack) -> AnyAttack:
    """Return `attack` with a newly drawn seed, if it has a seed."""
    if not hasattr(attack, "seed"):
        return attack
    return with_seed(attack, int(torch.randint(_NUM_SEEDS, ())))


@contextmanager
def crafting(device: torch.device) -> Iterator[None]:
    """Provide the context of an attack inside a loss.

    Warnings of inconclusive attacks are not shown, since a failed attack on a net in training is
    not taken as evidence of robustness. Autocast caches its casts of the weights; casts made here
    have no gradients and would keep the weights from training, so the cache is off.
    """
    kind = device.type
    with checks.muted(InconclusiveWarning):
        if not torch.is_autocast_enabled(kind):
            yield
            return
        with torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=False):
            yield
