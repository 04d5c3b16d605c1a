"""The numbers of the samples in the current batch, for models with a second input.

A frame holds the numbers of samples within the enclosing frame. Numbers in the data are computed
when they are read. A model that does not read them only pays for opening a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar, Token
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Rows = Tensor | range
Yielded = TypeVar("Yielded")
_NO_FRAME = (
    "advkit.current_rows() must be called inside an attack or an evaluation, or inside "
    "`with advkit.given_rows(rows):`, which sets the numbers of the samples that a call of the "
    "model gets. Pass the numbers to threads that a model starts."
)


class Frame(NamedTuple):
    """Samples that are sent to a model.

    Attributes:
        rows: int64 `(n,)`, the numbers of the samples within the enclosing frame.
        total: number of samples that the enclosing frame must have; `None` if unknown.
        outer: the enclosing frame; `None` if `rows` are numbers in the data.
        problem: reason why the samples have no numbers; `None` if they have numbers.
        batch: `(total, *features)`, the samples of the enclosing frame; `None` if unknown.
    """

    rows: Rows
    total: int | None = None
    outer: Frame | None = None
    problem: str | None = None
    batch: Tensor | None = None

    def places(self, device: torch.device) -> Tensor:
        """Return `rows` as a tensor on `device`."""
        return _select(self.rows, torch.arange(len(self.rows))).to(device)


_current: ContextVar[Frame | None] = ContextVar("frame", default=None)


class opened:  # noqa: N801 - used like a function
    """Context in which `frame` is the current one."""

    __slots__ = ("_frame", "_token")

    def __init__(self, frame: Frame | None) -> None:
        self._frame = frame
        self._token: Token[Frame | None] | None = None

    def __enter__(self) -> None:
        if self._token is not None:
            raise RuntimeError(
                "advkit.given_rows(rows) must be called for each `with`, got the same one twice."
            )
        self._token = _current.set(self._frame)

    def __exit__(self, *_: object) -> None:
        token, self._token = self._token, None
        if token is not None:
            _current.reset(token)


def current_rows() -> Tensor:
    """Return the numbers of the samples in the model's current batch, int64 `(n,)` on the CPU.

    Use it in a module, a preprocessing or a function with a second input for each sample, to select
    the rows of the second input that belong to the batch. Inside `attack.run(model, x, y)` the
    numbers are positions in `x`. Inside `evaluate` and all other functions that take data in
    batches, they are positions in the whole data, in the order in which it comes. Inside
    `given_rows` they are the numbers given there. A sample that is sent several times at once has
    its number several times.

    Raises:
        RuntimeError: the call is outside of all of these, or the batch consists of other samples,
            such as the `start_images` of an attack on a guard.

    Example:
        >>> import torch, advkit
        >>> meta = torch.rand(6, 2)
        >>> class TwoInputs(torch.nn.Module):
        ...     def forward(self, x):
        ...         return x + meta[advkit.current_rows()]
        >>> x, y = torch.rand(6, 2), torch.tensor([0, 1, 0, 1, 0, 1])
        >>> advkit.attacks.PGD(eps=0.1)(TwoInputs(), x, y).shape
        torch.Size([6, 2])
        >>> with advkit.given_rows([4, 1]):
        ...     advkit.TorchClassifier(TwoInputs()).predict(x[[4, 1]]).shape
        torch.Size([2])
    """
    frame = _current.get()
    if frame is None:
        raise RuntimeError(_NO_FRAME)
    rows = torch.arange(len(frame.rows))
    while frame is not None:
        if frame.problem is not None:
            raise RuntimeError(frame.problem)
        rows, total = _select(frame.rows, rows), frame.total
        frame = frame.outer
        if frame is not None:
            _check_fits(frame, rows, total)
    return rows


def given_rows(rows: Tensor | npt.NDArray[np.integer] | Sequence[int]) -> opened:
    """Return a context in which the model's batch consists of the samples `rows` of the data.

    Use it to call a model that reads `current_rows` yourself, as in `model.predict(x[rows])`, and
    in your own wrappers that select or repeat samples. Attacks and evaluations inside it select
    from these rows.

    Args:
        rows: numbers `(n,)` of the samples in the data, not negative.

    Raises:
        TypeError: `rows` are not integers.
        ValueError: `rows` do not have the shape `(n,)`, or one is negative.

    Example:
        >>> import advkit
        >>> with advkit.given_rows([4, 1]):
        ...     advkit.current_rows()
        tensor([4, 1])
    """
    numbers = np.asarray(rows.detach().cpu() if isinstance(rows, Tensor) else rows)
    if numbers.size and numbers.dtype.kind not in "iu":
        raise TypeError(f"`rows` must be integers, got {numbers.dtype}.")
    if numbers.ndim != 1:
        raise ValueError(f"`rows` must have shape (n,), got {numbers.shape}.")
    if (numbers < 0).any():
        raise ValueError(f"`rows` must not be negative, got {int(numbers.min())}.")
    return opened(Frame(torch.tensor(numbers.astype(np.int64))))


def check_total(n: int) -> None:
    """Raise if `given_rows` is current, but not for `n` samples of data.

    Raises:
        RuntimeError: it has another number of samples.
    """
    frame = _current.get()
    if frame is not None and frame.problem is None and len(frame.rows) != n:
        raise RuntimeError(
            "`rows` of advkit.given_rows must have one number for each sample, got "
            f"{len(frame.rows)} for {n} samples."
        )


def within(frame: Frame | None, stream: Iterator[Yielded]) -> Iterator[Yielded]:
    """Yield the items of `stream`, which runs inside `frame` independently of its reader."""
    while True:
        with opened(frame):
            try:
                item = next(stream)
            except StopIteration:
                return
        yield item


def numbered(n: int, first: int = 0, *, total: int | None = None) -> opened:
    """Return a context for `n` samples of the data, from the number `first` on.

    Args:
        n: number of samples.
        first: number of the first sample in the data.
        total: number of samples in the data; `None` if unknown.
    """
    outer = _current.get()
    if outer is not None and first == 0 and len(outer.rows) == n:
        return opened(outer)  # these are all samples of the enclosing frame
    return opened(Frame(range(first, first + n), total, outer))


def selected(rows: Rows, total: int, *, batch: Tensor | None = None) -> opened:
    """Return a context for the samples `rows` of the `total` current ones.

    If the current samples have no numbers, the selected ones have none.

    Args:
        rows: int64 `(n,)`; a sample may occur several times.
        total: number of current samples, including those that are not selected.
        batch: the current samples `(total, *features)`, for a model that gets all of them at once.
    """
    outer = _current.get()
    return opened(None if outer is None else Frame(rows, total, outer, batch=batch))


def unnumbered(what: str) -> opened:
    """Return a context for inputs that are not samples of the data; `what` names them."""
    problem = f"advkit.current_rows() has no numbers for {what}, which are not samples of the data."
    return opened(Frame(range(0), problem=problem))


def given(n: int) -> opened:
    """Return a context in which a model that gets `n` samples can read their numbers.

    If another number of samples is current, for instance because a wrapper repeats them, reading
    the numbers raises.
    """
    frame = _current.get()
    if frame is None or frame.problem is not None or len(frame.rows) == n:
        return opened(frame)
    problem = (
        f"advkit.current_rows() must be for the {n} samples that the model gets, got "
        f"{len(frame.rows)} current samples. In a wrapper that selects or repeats samples, use "
        "`with advkit.given_rows(advkit.current_rows()[index]):`."
    )
    return opened(Frame(range(0), problem=problem))


def current_frame() -> Frame | None:
    """Return the frame of the current samples."""
    return _current.get()


def surroundings(n: int) -> Frame | None:
    """Return the frame of the `n` current samples if it holds their batch, else `None`."""
    frame = _current.get()
    known = frame is not None and frame.batch is not None and len(frame.rows) == n
    return frame if known else None


def in_parts(ask: Callable[..., Tensor], *parts_of: Tensor, size: int) -> Tensor:
    """Return the outputs of `ask` for tensors `(n, ...)`, passed `size` samples at a time."""
    n, outputs = len(parts_of[0]), []
    for i, parts in enumerate(zip(*(torch.split(whole, size) for whole in parts_of), strict=True)):
        with selected(range(i * size, i * size + len(parts[0])), n):
            outputs.append(ask(*parts))
    return torch.cat(outputs)


def _select(rows: Rows, index: Tensor) -> Tensor:
    """Return `rows[index]`, on the CPU."""
    return index + rows.start if isinstance(rows, range) else rows.detach().cpu()[index]


def _check_fits(outer: Frame, rows: Tensor, total: int | None) -> None:
    """Raise unless `rows`, numbers of `total` samples, are numbers of the samples of `outer`."""
    n = len(outer.rows)
    if outer.problem is None and (total not in (None, n) or (len(rows) and int(rows.max()) >= n)):
        raise RuntimeError(
            f"`rows` of advkit.given_rows must have one number for each sample, got {n} for "
            f"{int(rows.max()) + 1 if total is None else total} samples."
        )
