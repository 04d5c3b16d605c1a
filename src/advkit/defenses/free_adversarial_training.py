"""Adversarial training at the cost of ordinary training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from advkit.core import checks
from advkit.core.batching import Batches
from advkit.core.bounds import checked_bounds
from advkit.core.boxes import warn_of_whole_box
from advkit.defenses.training_loss import TrainingLoss, cross_entropy, logits_of
from advkit.training.arguments import check_batches


class Replay:
    """Loader that repeats each batch several times in a row.

    Other attributes are those of the inner loader, such as the generator of its order.

    Args:
        loader: batches `(x, y)`, iterated once an epoch.
        times: number of repetitions of each batch, at least 1 (m in Shafahi et al.).

    Raises:
        TypeError: `loader` can be iterated only once, or `times` is not an int.
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
        check_batches(loader)
        if isinstance(loader, Iterator):
            raise TypeError(
                "`loader` must be iterable once an epoch (a list, a DataLoader), got "
                f"{type(loader).__name__}."
            )
        self.loader = loader
        self.times = times

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.loader:
            for _ in range(self.times):
                yield batch

    def __len__(self) -> int:
        return self.times * len(self.loader)  # type: ignore[arg-type]  # may raise

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not set yet during unpickling
            raise AttributeError(name)
        return getattr(self.loader, name)


class FreeAdversarialTraining(TrainingLoss):
    """Adversarial training for free (Shafahi et al., 2019, arXiv:1904.12843).

    The loss is the cross-entropy of x + delta, where delta is in an linf ball. The backward pass
    that trains the module also updates delta, which makes the examples free. The next step on the
    same batch uses the updated delta. Each batch therefore has to be repeated several times in a
    row, which `Replay` does: train with `Replay(loader, times=8)` and an eighth of the epochs.

    Unlike other losses it has a state, since it stores delta between calls: use one object for one
    training. delta is updated when `backward()` of the loss is called, and not by
    `torch.autograd.grad`. A batch is recognized by its content: augment before `Replay`, not after
    it.

    Deviations from the paper:
        - A new batch starts at a random point of the ball, drawn from torch's global generator. In
          the paper it starts at the final delta of the previous batch, and the first one at zero.
          Here no state outlives its batch, so a training that is resumed after an epoch is
          reproduced exactly, unless there is only one batch, which follows itself.

    Args:
        eps: radius of the linf ball, in input units, not negative.
        step_size: length of a step along the sign of the gradient, in input units, positive; `None`
            for `eps`, as in the authors' code.
        bounds: lower and upper end of valid feature values, to which x + delta is clipped.

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
        self._x: Tensor | None = None  # the current batch
        self._delta = torch.empty(0)  # its perturbation for the next step
        self._num_steps = 0  # its number of steps

    def __repr__(self) -> str:
        lower, upper = self.bounds
        return (
            f"FreeAdversarialTraining(eps={self.eps:g}, step_size={self.step_size}, "
            f"bounds=({lower:g}, {upper:g}))"
        )

    def _value(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        x = checks.inputs("x", x, self.bounds)
        warn_of_whole_box(self.eps, "linf", x, self.bounds)
        repeated = self._x is not None and _is_same_batch(x, self._x)
        start = self._delta if repeated else self.eps * (2 * torch.rand_like(x) - 1)
        delta = start.clone().requires_grad_()
        delta.register_hook(lambda grad: self._update_delta(x, start, grad, repeated))  # type: ignore[no-untyped-call]
        return cross_entropy(logits_of(module, (x + delta).clamp(*self.bounds)), y)

    def _update_delta(self, x: Tensor, start: Tensor, grad: Tensor, repeated: bool) -> None:
        """Take a step from `start` along the sign of `grad`, for the next call on `x`."""
        if not repeated and self._num_steps == 1:
            checks.warn(
                "FreeAdversarialTraining got a batch only once, which trains on random noise. "
                "Train with Replay(loader, times=...)."
            )
        step_size = self.eps if self.step_size is None else self.step_size
        step = step_size * grad.sign()  # 0 at NaN, from overflow of a scaled loss
        self._x, self._delta = x, (start + step).clamp(-self.eps, self.eps)
        self._num_steps = self._num_steps + 1 if repeated else 1


def _is_same_batch(x: Tensor, other: Tensor) -> bool:
    return (x.dtype, x.device) == (other.dtype, other.device) and torch.equal(x, other)
