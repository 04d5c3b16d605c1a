"""The numbers of the samples that a model is being given, for models with a second input.

A frame says which samples of the frame around it are sent. The numbers are computed when they are
read, so that a pass of a model that does not read them costs no more than opening a frame.
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
_NONE = (
    "advkit.current_rows() must be called inside an attack or an evaluation, or inside "
    "`with advkit.given_rows(rows):`, which says which samples a call of the model is given. A "
    "thread that a model starts by itself must be given the numbers"
)


class Frame(NamedTuple):
    """Samples that are sent.

    Attributes:
        rows: int64 `(n,)`, which samples of the frame around they are.
        total: how many samples the frame around must have; `None` if that is unknown.
        outer: the frame around; `None` if `rows` are numbers in the data.
        problem: why the samples have no numbers; `None` if they have.
        batch: `(total, *features)`, the samples of the frame around; `None` if unknown.
    """

    rows: Rows
    total: int | None = None
    outer: Frame | None = None
    problem: str | None = None
    batch: Tensor | None = None

    def places(self, device: torch.device) -> Tensor:
        """Return `rows` as a tensor on `device`."""
        return _taken(self.rows, torch.arange(len(self.rows))).to(device)


_current: ContextVar[Frame | None] = ContextVar("frame", default=None)


class opened:  # noqa: N801 - read as a verb
    """Make `frame` the current one inside."""

    __slots__ = ("_frame", "_token")

    def __init__(self, frame: Frame | None) -> None:
        self._frame = frame
        self._token: Token[Frame | None] | None = None

    def __enter__(self) -> None:
        if self._token is not None:
            raise RuntimeError("advkit.given_rows(rows) must be called again for each `with`")
        self._token = _current.set(self._frame)

    def __exit__(self, *_: object) -> None:
        token, self._token = self._token, None
        if token is not None:
            _current.reset(token)


def current_rows() -> Tensor:
    """Return which samples the model is being given: int64 `(n,)`, on the CPU.

    For a module, a preprocessing or a function with a second input for each sample: it reads here
    which rows of the second input belong to the batch. Inside `attack.run(model, x, y)` the numbers
    count within `x`; inside `evaluate` and all other functions that take data in batches, within
    the whole data, in the order in which it comes. Inside `given_rows` they are those given there.
    A sample that is sent several times at once has its number several times.

    Raises:
        RuntimeError: the call is outside of all of these, or the batch consists of other samples,
            such as the `natural` images of an attack on a guard.

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
        raise RuntimeError(_NONE)
    rows = torch.arange(len(frame.rows))
    while frame is not None:
        if frame.problem is not None:
            raise RuntimeError(frame.problem)
        rows, total = _taken(frame.rows, rows), frame.total
        frame = frame.outer
        if frame is not None:
            _check_fits(frame, rows, total)
    return rows


def given_rows(rows: Tensor | npt.NDArray[np.integer] | Sequence[int]) -> opened:
    """Return a context in which a model is given the samples `rows` of the data.

    For calls of your own to a model that reads `current_rows`, `model.predict(x[rows])` say, and
    for wrappers of your own that select or repeat samples. Attacks and evaluations inside count
    from these rows.

    Args:
        rows: numbers `(n,)` of the samples in the data, not negative.

    Raises:
        TypeError: `rows` are not integers.
        ValueError: they do not have the shape `(n,)`, or one is negative.

    Example:
        >>> import advkit
        >>> with advkit.given_rows([4, 1]):
        ...     advkit.current_rows()
        tensor([4, 1])
    """
    found = np.asarray(rows.detach().cpu() if isinstance(rows, Tensor) else rows)
    if found.size and found.dtype.kind not in "iu":
        raise TypeError(f"`rows` must be integers, got {found.dtype}.")
    if found.ndim != 1:
        raise ValueError(f"`rows` must have shape (n,), got {found.shape}.")
    if (found < 0).any():
        raise ValueError(f"`rows` must not be negative, got {int(found.min())}.")
    return opened(Frame(torch.tensor(found.astype(np.int64))))


def check_total(n: int) -> None:
    """Raise if `given_rows` is current, but not for `n` samples of data.

    Raises:
        RuntimeError: it gives another number of samples.
    """
    frame = _current.get()
    if frame is not None and frame.problem is None and len(frame.rows) != n:
        raise RuntimeError(
            f"advkit.given_rows(rows) must give one number for each sample, gave "
            f"{len(frame.rows)} for {n} samples"
        )


def within(frame: Frame | None, stream: Iterator[Yielded]) -> Iterator[Yielded]:
    """Yield what `stream` does, which runs inside of `frame` wherever it is read."""
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
        n: how many samples.
        first: number of the first one in the data.
        total: samples of the data; `None` if that is unknown.
    """
    outer = _current.get()
    if outer is not None and first == 0 and len(outer.rows) == n:
        return opened(outer)  # these are all samples of the frame around
    return opened(Frame(range(first, first + n), total, outer))


def selected(rows: Rows, total: int, *, batch: Tensor | None = None) -> opened:
    """Return a context for the samples `rows` of the `total` that are current.

    Without numbers outside there are none inside.

    Args:
        rows: int64 `(n,)`; a sample may come several times.
        total: how many samples are current, those left out included.
        batch: these samples `(total, *features)`, for a model that is given all of them at once.
    """
    outer = _current.get()
    return opened(None if outer is None else Frame(rows, total, outer, batch=batch))


def unnumbered(what: str) -> opened:
    """Return a context for inputs that are not samples of the data; `what` names them."""
    problem = f"advkit.current_rows() has no numbers for {what}: these are not samples of the data"
    return opened(Frame(range(0), problem=problem))


def given(n: int) -> opened:
    """Return a context in which a model reads numbers for the `n` samples that it is given.

    Where another number of samples is current, say since a wrapper repeats them, it reads none.
    """
    frame = _current.get()
    if frame is None or frame.problem is not None or len(frame.rows) == n:
        return opened(frame)
    problem = (
        f"advkit.current_rows() must be for the {n} samples that the model is given, but "
        f"{len(frame.rows)} are current. A wrapper that selects or repeats samples says so: "
        "`with advkit.given_rows(advkit.current_rows()[index]):`"
    )
    return opened(Frame(range(0), problem=problem))


def current_frame() -> Frame | None:
    """Return the frame of the samples that are current."""
    return _current.get()


def surroundings(n: int) -> Frame | None:
    """Return the frame of the `n` samples that are current, if it knows the batch they are of."""
    frame = _current.get()
    known = frame is not None and frame.batch is not None and len(frame.rows) == n
    return frame if known else None


def in_parts(ask: Callable[..., Tensor], *parts_of: Tensor, size: int) -> Tensor:
    """Return the answers of `ask` to tensors `(n, ...)`, sent `size` samples at a time."""
    n, found = len(parts_of[0]), []
    for i, parts in enumerate(zip(*(torch.split(whole, size) for whole in parts_of), strict=True)):
        with selected(range(i * size, i * size + len(parts[0])), n):
            found.append(ask(*parts))
    return torch.cat(found)


def _taken(rows: Rows, index: Tensor) -> Tensor:
    """Return `rows[index]`, on the CPU."""
    return index + rows.start if isinstance(rows, range) else rows.detach().cpu()[index]


def _check_fits(outer: Frame, rows: Tensor, total: int | None) -> None:
    """Raise unless `rows`, which count in `total` samples, count in those of the frame `outer`."""
    n = len(outer.rows)
    if outer.problem is None and (total not in (None, n) or (len(rows) and int(rows.max()) >= n)):
        raise RuntimeError(
            f"advkit.given_rows(rows) must give one number for each sample, gave {n} for "
            f"{int(rows.max()) + 1 if total is None else total} samples"
        )
