"""Adversarial training at the price of ordinary training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from advkit.core import checks
from advkit.core.batching import Batches
from advkit.defenses.training_loss import TrainingLoss, cross_entropy, logits_of
from advkit.models.torch import checked_bounds


class Replay:
    """A loader that gives each of its batches several times in a row.

    Attributes that it lacks are the loader's, such as the generator of its order.

    Args:
        loader: batches `(x, y)`, to be gone through once an epoch.
        times: how often each batch comes, at least 1 (m in Shafahi et al.).

    Raises:
        TypeError: `loader` can be gone through only once, or `times` is no int.
        ValueError: `times` is below 1.

    Example:
        >>> import torch
        >>> from advkit import defenses
        >>> batch = torch.rand(5, 4), torch.arange(5)
        >>> len(list(defenses.Replay([batch], times=4)))
        4
    """

    def __init__(self, loader: Batches, times: int) -> None:
        checks.integer("times", times, at_least=1)
        if not hasattr(loader, "__iter__") or isinstance(loader, Iterator):
            raise TypeError(
                "`loader` must be iterable once an epoch (a list, a DataLoader), got "
                f"{type(loader).__name__}"
            )
        self.loader = loader
        self.times = times

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.loader:
            for _ in range(self.times):
                yield batch

    def __len__(self) -> int:
        return self.times * len(self.loader)  # type: ignore[arg-type]  # raises where it has none

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not there yet, while it is being unpickled
            raise AttributeError(name)
        return getattr(self.loader, name)


class FreeAdversarialTraining(TrainingLoss):
    """Adversarial training for free (Shafahi et al., 2019, arXiv:1904.12843).

    The cross-entropy of x + delta in an linf ball. The backward pass that trains the module also
    says where delta should climb, so that an example costs nothing beside the step that learns from
    it; the next step on the same batch meets the climbed delta. For that each batch has to come
    several times in a row, which `Replay` sees to: train with `Replay(loader, times=8)` and an
    eighth of the epochs.

    It is no frozen value as the other losses are, since it keeps delta from call to call: one
    object is for one training. delta moves when the value's `backward()` is called, and not under
    `torch.autograd.grad`. A batch is known by its content: augment before `Replay`, not after it.

    Deviations: a new batch begins at a random point of the ball, drawn from torch's global
    generator. In the paper it begins where the batch before it has ended, and the first one at
    zero. So nothing outlives its batch, and a training that is resumed after an epoch goes on
    exactly as it would have (unless there is only one batch, which follows itself).

    Args:
        eps: radius of the linf ball, in input units, not negative.
        step_size: length of a step along the gradient's sign, in input units, positive; `None` for
            `eps`, as in the authors' code.
        bounds: lower and upper end of valid feature values; x + delta is clipped to them.

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.

    Example:
        >>> import torch
        >>> from advkit import defenses
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> loss = defenses.FreeAdversarialTraining(eps=0.1)
        >>> for x, y in defenses.Replay([(torch.rand(5, 1, 8, 8), torch.arange(5))], times=4):
        ...     optimizer.zero_grad()
        ...     loss(net, x, y).backward()
        ...     optimizer.step()
    """

    def __init__(
        self,
        *,
        eps: float,
        step_size: float | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        checks.not_negative("eps", eps)
        if step_size is not None:
            checks.positive("step_size", step_size)
        self.eps = eps
        self.step_size = step_size
        self.bounds = checked_bounds(bounds)
        self._x: Tensor | None = None  # the batch that climbed last
        self._delta = torch.empty(0)  # and where it has climbed to
        self._climbs = 0  # in how many steps

    def __repr__(self) -> str:
        lower, upper = self.bounds
        return (
            f"FreeAdversarialTraining(eps={self.eps:g}, step_size={self.step_size}, "
            f"bounds=({lower:g}, {upper:g}))"
        )

    def _value(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x = checks.inputs(x, self.bounds)
        again = self._x is not None and _same(x, self._x)
        start = self._delta if again else self.eps * (2 * torch.rand_like(x) - 1)
        delta = start.clone().requires_grad_()
        delta.register_hook(lambda grad: self._climb(x, start, grad, again))  # type: ignore[no-untyped-call]
        return cross_entropy(logits_of(module, (x + delta).clamp(*self.bounds)), y)

    def _climb(self, x: Tensor, start: Tensor, grad: Tensor, again: bool) -> None:
        """One step from `start` along the sign of `grad`, for the next call on `x`."""
        if not again and self._climbs == 1:
            checks.warn(
                "FreeAdversarialTraining met a batch only once, at a random point that nothing "
                "climbed from; give the training Replay(loader, times=...)"
            )
        length = self.eps if self.step_size is None else self.step_size
        move = length * grad.sign()  # 0 at NaN, which a scaled loss may overflow to
        self._x, self._delta = x, (start + move).clamp(-self.eps, self.eps)
        self._climbs = self._climbs + 1 if again else 1


def _same(x: Tensor, other: Tensor) -> bool:
    return (x.dtype, x.device) == (other.dtype, other.device) and torch.equal(x, other)
