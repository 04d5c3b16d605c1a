"""Training losses: what they share, how they add up, and how they craft."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advkit.core import checks
from advkit.core.attack_options import with_seed, with_stop
from advkit.core.protocols import AnyAttack, Attack
from advkit.core.results import InconclusiveWarning
from advkit.core.tensors import at_least_float32
from advkit.models import TorchClassifier
from advkit.models.torch import Mode, checked_bounds, logits_from

Value = Callable[[nn.Module, Tensor, Tensor], Tensor]
_SEEDS = 2**62


class TrainingLoss(ABC):
    """A function `loss(module, x, y)` to train with, in any loop.

    Sums and multiples of losses are losses, also with functions of one's own of the same form:
    `0.5 * AdversarialTraining(attack=attack) + 0.5 * LabelSmoothing(smoothing=0.1)`.

    Threads may share a loss, but each one needs a module of its own to train, and what they draw
    depends on their order, since torch has one random state for all of them.
    """

    def __call__(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The value to go down.

        Args:
            module: what learns, in the mode of the caller's loop; it gives logits `(n, classes)`,
                one logit, or an object that holds them, as for `TorchClassifier`.
            x: inputs `(n, *features)`.
            y: labels `(n,)`, of any integer dtype, integral floats or one-hot.

        Returns:
            A scalar; its gradient reaches the parameters by the outer loss alone.

        Raises:
            TypeError: `module` is no `nn.Module`.
            ValueError: `y` has the wrong shape or range, or the batch is empty.
        """
        if not isinstance(module, nn.Module):
            raise TypeError(
                f"`module` must be a torch.nn.Module, got {type(module).__name__}; a classifier's "
                "own module is what learns"
            )
        if not len(x):
            raise ValueError("`x` must hold at least one sample, got none")
        return self._value(module, x, checks.labels("y", y, x))

    @abstractmethod
    def _value(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """The value of a batch that is not empty, `y` being int64 `(n,)`."""

    def __add__(self, other: Value) -> WeightedSum:
        """The sum of this loss and another one."""
        if not callable(other):
            return NotImplemented
        return WeightedSum(terms=(*_terms(self), *_terms(other)))

    def __radd__(self, other: Value | int) -> WeightedSum:
        """The same from the other side; 0, from which `sum` begins, adds nothing."""
        if callable(other):
            return WeightedSum(terms=(*_terms(other), *_terms(self)))
        return WeightedSum(terms=_terms(self)) if other == 0 else NotImplemented

    def __mul__(self, weight: float) -> WeightedSum:
        """This loss times a number, not negative."""
        checks.not_negative("weight", weight)
        return WeightedSum(terms=tuple((weight * w, loss) for w, loss in _terms(self)))

    __rmul__ = __mul__


@dataclass(frozen=True)
class WeightedSum(TrainingLoss):
    """A sum of losses, each with its weight."""

    terms: tuple[tuple[float, Value], ...]

    def _value(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        values = [weight * _of_term(loss, module, x, y) for weight, loss in self.terms]
        return torch.stack(values).sum()


def _of_term(loss: Value, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return the value of one of several losses; functions get copies, which they may write to."""
    if isinstance(loss, TrainingLoss):
        return loss(module, x, y)
    return loss(module, x.clone(), y.clone())


def _terms(loss: Value) -> tuple[tuple[float, Value], ...]:
    return loss.terms if isinstance(loss, WeightedSum) else ((1.0, loss),)


@dataclass(frozen=True, kw_only=True)
class CraftingLoss(TrainingLoss):
    """A loss on inputs that an attack makes against the module as it is now.

    Each call draws a new seed for the attack from torch's global generator, as dropout draws its
    masks: starts differ from step to step, and `torch.manual_seed` repeats a training.
    """

    attack: Attack
    bounds: tuple[float, float] = (0.0, 1.0)
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        checks.attack("attack", self.attack)
        checked_bounds(self.bounds)
        checks.one_of("mode", self.mode, ("eval", "keep"))

    def _craft(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        """What the attack makes of `x`; no trace of it is left in `module`."""
        return craft(self.attack, self._crafter(module), x, y)

    def _crafter(self, module: nn.Module) -> TorchClassifier:
        """`module` as the attack meets it."""
        return TorchClassifier(module, self.bounds, mode=self.mode)


def craft(attack: Attack, model: TorchClassifier, x: Tensor, y: Tensor) -> Tensor:
    """What `attack`, drawn anew and not stopping early, makes of `x`; `model` is left as it was.

    Nobody asks here whether it succeeded, and attacks that need not ask either have a `craft`.
    """
    attack = _drawn(with_stop(attack, "never"))
    make: Attack = getattr(attack, "craft", attack)
    with crafting(x.device):
        return make(model, x.clone(), y.clone())  # an attack of the user's may write to them


def logits_of(module: nn.Module, x: Tensor) -> Tensor:
    """Return the module's logits `(n, classes)` as it learns: in its mode, with its graph, float32 at least.

    The module gets a copy of `x`: it may write to its input, and `x` has further uses.
    """
    return at_least_float32(logits_from(module(x.clone()), len(x)))


def cross_entropy(logits: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy of logits `(n, classes)` at labels `(n,)`, a scalar.

    Raises:
        ValueError: a label that there is no logit of.
    """
    checks.labels_within("y", y, logits.shape[1], torch.arange(len(y), device=y.device))
    return F.cross_entropy(logits, y, label_smoothing=smoothing)


def divergence(logits: Tensor, others: Tensor) -> Tensor:
    """KL(p || q), `(n,)`: p is the softmax of `logits`, q of `others`, both `(n, classes)`."""
    log_p, log_q = F.log_softmax(logits, dim=1), F.log_softmax(others, dim=1)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(1)


def _drawn(attack: AnyAttack) -> AnyAttack:
    """`attack` with a new seed, if it has one."""
    if not hasattr(attack, "seed"):
        return attack
    return with_seed(attack, int(torch.randint(_SEEDS, ())))


@contextmanager
def crafting(device: torch.device) -> Iterator[None]:
    """The time of an attack inside of a loss.

    Nobody takes a failed attack on a net that still learns for its robustness, so warnings of that
    are not shown. Autocast keeps the casts that it makes of the weights; those made here, without
    gradients, would keep the weights from learning.
    """
    kind = device.type
    with checks.muted(InconclusiveWarning):
        if not torch.is_autocast_enabled(kind):
            yield
            return
        with torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=False):
            yield
