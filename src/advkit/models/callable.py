"""Any function as a classifier: one's own code, or a service that answers over a network."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from advkit.core import checks, sample_rows
from advkit.core.results import QueryBudgetExceeded, ServiceError
from advkit.models.protocols import REJECTED
from advkit.models.query_budget import Budget, Reservation
from advkit.models.torch import checked_bounds

Answer = Literal["logits", "probabilities", "labels"]
Takes = Literal["numpy", "tensor"]


@dataclass(frozen=True, eq=False)
class Call:
    """One call to a function, with its retries.

    Attributes:
        samples: how many were sent.
        attempts: how often they were sent; all but the last attempt failed.
        seconds: from the first attempt to the end, waiting included.
        labels: int64 `(samples,)`, what was answered; `None` where nothing usable was.
    """

    samples: int
    attempts: int
    seconds: float
    labels: Tensor | None


class CallableClassifier:
    """A function seen as a `ScoreClassifier`, or as a `Classifier` if it answers labels only.

    The function gets a batch `(m, *features)` of its own, as a NumPy array (float32 for the 16-bit
    dtypes, which NumPy lacks) or as a tensor on the input's device, and answers with anything that
    NumPy or torch reads as numbers. There are no gradients. Scores come in float64, on the device
    of the input.

    Samples count as queries once the function has answered them. An attempt that raised is not
    counted: services do not charge for what they could not answer. If yours does, the log has the
    number of attempts.

    Threads may share it if they may call `fn` at the same time: samples are reserved in the budget
    before they are sent, and given back if they were not answered. The log has the calls in the
    order in which they ended.

    Args:
        fn: the function.
        num_classes: number of classes that it tells apart, at least 2.
        bounds: lower and upper end of valid feature values, in the units of the input.
        output: what it answers: `"probabilities"` `(m, num_classes)`; `"logits"`, of which the
            softmax is taken; or `"labels"` `(m,)`, the indices of the classes, -1
            (`advkit.models.REJECTED`) for none.
        takes: what it is given: `"numpy"` or `"tensor"`.
        max_batch: the most samples that one call may have; `None` for any number.
        retries: how often a call that raised is tried again. After the last error, and at once
            after an answer of the wrong shape or kind, `ServiceError` is raised. An attack puts
            what it had found until then into the error's `result`, as for a spent budget.
        back_off: seconds of waiting before the first retry, doubled before each further one.
        max_queries: samples that may be sent in all; `None` for any number.
        log: keep a `Call` for each call of the function in `log`.

    Attributes:
        log: the calls in the order in which they ended; `None` unless it is kept.

    Raises:
        TypeError: `fn` cannot be called, or an argument is of the wrong type.
        ValueError: an argument is out of range or unknown.

    Example:
        >>> import numpy as np, torch, advkit
        >>> def service(rows):
        ...     score = 1 / (1 + np.exp(-rows.sum(1)))
        ...     return np.stack([1 - score, score], axis=1)
        >>> model = advkit.CallableClassifier(service, num_classes=2, bounds=(-1, 1), max_queries=100)
        >>> model.predict(torch.tensor([[-0.5, 0.1], [0.5, 0.1]]))
        tensor([0, 1])
        >>> model.queries, model.queries_left
        (2, 98)
    """

    def __init__(
        self,
        fn: Callable[[Any], object],
        num_classes: int,
        bounds: tuple[float, float] = (0.0, 1.0),
        output: Answer = "probabilities",
        *,
        takes: Takes = "numpy",
        max_batch: int | None = None,
        retries: int = 0,
        back_off: float = 0.5,
        max_queries: int | None = None,
        log: bool = False,
    ) -> None:
        if not callable(fn):
            raise TypeError(f"`fn` must be callable, got {type(fn).__name__}")
        checks.integer("num_classes", num_classes, at_least=2)
        checks.one_of("output", output, ("logits", "probabilities", "labels"))
        checks.one_of("takes", takes, ("numpy", "tensor"))
        if max_batch is not None:
            checks.integer("max_batch", max_batch, at_least=1)
        checks.integer("retries", retries, at_least=0)
        checks.not_negative("back_off", back_off)
        checks.boolean("log", log)
        self.fn = fn
        self.num_classes = num_classes
        self.bounds = checked_bounds(bounds)
        self.output: Answer = output
        self.takes: Takes = takes
        self.max_batch = max_batch
        self.retries = retries
        self.back_off = back_off
        self.log: list[Call] | None = [] if log else None
        self._budget = Budget(max_queries)

    def __repr__(self) -> str:
        name = getattr(self.fn, "__name__", type(self.fn).__name__)
        return f"{type(self).__name__}({name}, num_classes={self.num_classes})"

    @property
    def may_interrupt(self) -> bool:
        """True: a call may raise `AttackInterrupted`, so attacks keep what they find."""
        return True

    @property
    def queries(self) -> int:
        """Samples that were answered so far."""
        return self._budget.spent

    @property
    def max_queries(self) -> int | None:
        """Samples that may be sent in all; `None` for any number."""
        return self._budget.limit

    @property
    def queries_left(self) -> int | None:
        """Samples that may still be sent, not those in flight; `None` for any number."""
        return self._budget.left

    @property
    def scores(self) -> Callable[[Tensor], Tensor]:
        """Function from `x` `(n, *features)` to probabilities `(n, num_classes)`, float64.

        It raises as `predict` does.

        Raises:
            AttributeError: the function answers labels only, so that there are no scores.
        """
        if self.output == "labels":
            raise AttributeError(f"{self!r} answers labels only, so it has no scores")
        return self._scores

    def predict(self, x: Tensor) -> Tensor:
        """Labels `(n,)` of `x` `(n, *features)`, int64.

        Raises:
            QueryBudgetExceeded: the budget has no room for `x`; nothing was sent.
            ServiceError: the function raised at the last attempt, or its answer has the wrong
                shape, is not finite, holds no numbers or is not what `output` says.
        """
        return self._labels(self._ask(x))

    def _scores(self, x: Tensor) -> Tensor:
        answer = self._ask(x)
        return answer.softmax(1) if self.output == "logits" else answer

    def _labels(self, answer: Tensor) -> Tensor:
        return answer if self.output == "labels" else answer.argmax(1)

    def _ask(self, x: Tensor) -> Tensor:
        """The answer for all of `x`: `(n,)` int64 labels or `(n, num_classes)` float64."""
        if not len(x):
            labels = self.output == "labels"
            return x.new_zeros(0).long() if labels else x.new_zeros(0, self.num_classes).double()
        size = self.max_batch or len(x)
        rows = torch.arange(len(x), device=x.device)
        parts = zip(torch.split(x.detach(), size), torch.split(rows, size), strict=True)
        answers: list[Tensor] = []
        with self._budget.reserved(len(x)) as reservation:
            try:
                for part, numbers in parts:
                    with sample_rows.selected(numbers, len(x)):
                        answers.append(self._call(part, numbers, reservation))
            except ServiceError as error:
                error.answers = torch.cat(answers) if answers else None
                raise
        return torch.cat(answers)

    def _call(self, x: Tensor, rows: Tensor, reservation: Reservation) -> Tensor:
        """Return the checked, counted and logged answer to one call, the `rows` of a batch."""
        attempts: list[float] = []
        labels: Tensor | None = None
        try:
            raw = self._insist(x, attempts)
            self._budget.answered(reservation, len(x))
            try:
                answer = self._checked(_as_tensor(raw).to(x.device), rows)
            except Exception as error:
                raise ServiceError(str(error), attempts=len(attempts)) from error
            labels = self._labels(answer)
            return answer
        finally:
            if self.log is not None and attempts:
                seconds = time.perf_counter() - attempts[0]
                self.log.append(Call(len(x), len(attempts), seconds, labels))

    def _insist(self, x: Tensor, attempts: list[float]) -> object:
        """Return what the first attempt that does not raise returns.

        The time at which each attempt begins is added to `attempts`.
        """
        while True:
            given = self._given(x)
            attempts.append(time.perf_counter())
            try:
                return self.fn(given)
            except QueryBudgetExceeded:  # of a classifier that the function queries
                raise
            except Exception as error:
                if len(attempts) > self.retries:
                    raise ServiceError(
                        f"the function raised {type(error).__name__} at the last of "
                        f"{len(attempts)} attempts: {error}",
                        attempts=len(attempts),
                    ) from error
            time.sleep(self.back_off * 2 ** (len(attempts) - 1))

    def _given(self, x: Tensor) -> Tensor | npt.NDArray[np.generic]:
        return x.clone() if self.takes == "tensor" else as_numpy(x)

    def _checked(self, answer: Tensor, rows: Tensor) -> Tensor:
        n = len(rows)
        wanted = (n,) if self.output == "labels" else (n, self.num_classes)
        if n == 1 and answer.shape == wanted[1:]:
            answer = answer[None]  # a function that squeezes drops the axis of a single sample
        if answer.shape != wanted:
            raise ValueError(
                f"the function must return {self.output} of shape {wanted} for {n} samples, "
                f"got shape {tuple(answer.shape)}"
            )
        if self.output == "labels":
            rejected = answer == REJECTED
            answer = checks.labels("the function's labels", answer.masked_fill(rejected, 0), rows)
            checks.labels_within("the function's labels", answer, self.num_classes, rows)
            return answer.masked_fill(rejected, REJECTED)
        if self.output == "logits":
            checks.finite_logits(answer, rows)
            checks.warn_of_probabilities(answer)
        else:
            checks.probabilities("the function", answer, rows, "use output='logits'")
        return answer.double()


def as_numpy(x: Tensor) -> npt.NDArray[np.generic]:
    """A copy of `x` that its receiver may write to; 16-bit floats become float32."""
    x = x.detach()
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    return np.array(x.cpu().numpy(), order="C")


def _as_tensor(answer: object) -> Tensor:
    """What a function answered, as int64 or as floats."""
    if isinstance(answer, Tensor):
        return answer.detach()
    checks.unmasked("the function's answer", answer)
    array = np.asarray(answer)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"the function must return numbers, got {array.dtype}")
    wide = np.float64 if array.dtype.kind == "f" else np.int64
    return torch.from_numpy(np.array(array, dtype=wide, order="C"))
