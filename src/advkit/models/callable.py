"""Classifiers made from any function: your own code, or a service that is called over a network."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from advkit.core import checks, label_checks, sample_rows
from advkit.core.bounds import checked_bounds
from advkit.core.results import QueryBudgetExceeded, ServiceError
from advkit.models.protocols import REJECTED
from advkit.models.query_budget import Budget, Reservation

OutputKind = Literal["logits", "probabilities", "labels"]
InputType = Literal["numpy", "tensor"]
_LABELS = "the labels that `fn` returns"  # subject of errors


@dataclass(frozen=True, eq=False)
class Call:
    """One call to a function, with its retries.

    Attributes:
        samples: number of samples sent.
        attempts: number of times they were sent; all attempts but the last one failed.
        seconds: time from the first attempt to the end, waiting included.
        labels: int64 `(samples,)`, the predicted labels; `None` if the call returned nothing
            usable.
    """

    samples: int
    attempts: int
    seconds: float
    labels: Tensor | None


class CallableClassifier:
    """Classifier that calls a function; a `ScoreClassifier` unless the function returns labels.

    The function receives its own copy of a batch `(m, *features)`: a NumPy array (float32 for the
    16-bit dtypes, which NumPy lacks) or a tensor on the input's device. It may return anything that
    NumPy or torch reads as numbers. There are no gradients. Scores are float64, on the device of
    the input.

    Samples count as queries once the function has returned their outputs. An attempt that raises is
    not counted, since services do not charge for requests that they could not serve. If yours does,
    use the number of attempts in the log.

    Threads may share the classifier if they may call `fn` at the same time. Samples are reserved in
    the budget before they are sent, and released if no outputs came back. The log lists the calls
    in the order in which they ended.

    Args:
        fn: the function.
        num_classes: number of classes that it distinguishes, at least 2.
        bounds: lower and upper end of valid feature values, in the units of the input.
        output: what the function returns: `"probabilities"` `(m, num_classes)`; `"logits"`
            `(m, num_classes)`, to which the softmax is applied; or `"labels"` `(m,)`, the indices
            of the classes, -1 (`advkit.models.REJECTED`) for a rejection.
        input_type: what the function receives: `"numpy"` or `"tensor"`.
        max_batch: maximum number of samples in one call; `None` for no limit.
        retries: number of times that a call which raised is repeated. After the last error, and
            immediately after an output of the wrong shape or kind, `ServiceError` is raised. As for
            an exhausted budget, an attack stores what it has found in the error's `result`.
        backoff: seconds to wait before the first retry, doubled before each further one.
        max_queries: maximum number of samples sent in total; `None` for no limit.
        log: whether to keep a `Call` for each call of the function in the attribute `log`.

    Attributes:
        log: the calls in the order in which they ended; `None` unless `log=True`.

    Raises:
        TypeError: `fn` cannot be called, or an argument has the wrong type.
        ValueError: an argument is out of range or unknown.

    Example:
        >>> import numpy as np, torch, advkit
        >>> def service(rows):
        ...     score = 1 / (1 + np.exp(-rows.sum(1)))
        ...     return np.stack([1 - score, score], axis=1)
        >>> model = advkit.CallableClassifier(
        ...     service, num_classes=2, bounds=(-1, 1), max_queries=100
        ... )
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
        output: OutputKind = "probabilities",
        *,
        input_type: InputType = "numpy",
        max_batch: int | None = None,
        retries: int = 0,
        backoff: float = 0.5,
        max_queries: int | None = None,
        log: bool = False,
    ) -> None:
        if not callable(fn):
            raise TypeError(f"`fn` must be callable, got {type(fn).__name__}.")
        checks.integer("num_classes", num_classes, at_least=2)
        checks.one_of("output", output, ("logits", "probabilities", "labels"))
        checks.one_of("input_type", input_type, ("numpy", "tensor"))
        if max_batch is not None:
            checks.integer("max_batch", max_batch, at_least=1)
        checks.integer("retries", retries, at_least=0)
        checks.not_negative("backoff", backoff)
        checks.boolean("log", log)
        self.fn = fn
        self.num_classes = num_classes
        self.bounds = checked_bounds(bounds)
        self.output: OutputKind = output
        self.input_type: InputType = input_type
        self.max_batch = max_batch
        self.retries = retries
        self.backoff = backoff
        self.log: list[Call] | None = [] if log else None
        self._budget = Budget(max_queries)

    def hashed_attributes(self) -> dict[str, object]:
        """Return what decides about the outputs, for a hash: all attributes but the log."""
        return {name: value for name, value in vars(self).items() if name != "log"}

    def __repr__(self) -> str:
        name = getattr(self.fn, "__name__", type(self.fn).__name__)
        return f"{type(self).__name__}({name}, num_classes={self.num_classes})"

    @property
    def may_interrupt(self) -> bool:
        """True: a call may raise `AttackInterrupted`, so attacks keep what they find."""
        return True

    @property
    def queries(self) -> int:
        """Number of samples for which the function has returned outputs."""
        return self._budget.spent

    @property
    def max_queries(self) -> int | None:
        """Maximum number of samples sent in total; `None` for no limit."""
        return self._budget.limit

    @property
    def queries_left(self) -> int | None:
        """Number of samples that may still be sent, minus those in flight; `None` for no limit."""
        return self._budget.remaining

    @property
    def scores(self) -> Callable[[Tensor], Tensor]:
        """Function from `x` `(n, *features)` to probabilities `(n, num_classes)`, float64.

        It raises the same errors as `predict`.

        Raises:
            AttributeError: the function returns labels only, so there are no scores.
        """
        if self.output == "labels":
            raise AttributeError(f"{self!r} returns labels only, so it has no scores.")
        return self._scores

    def predict(self, x: Tensor) -> Tensor:
        """Return labels `(n,)` of `x` `(n, *features)`, int64.

        Raises:
            QueryBudgetExceeded: `x` exceeds the remaining budget; no sample was sent.
            ServiceError: the function raised at the last attempt, or its output has the wrong
                shape, is not finite, is not numeric, or is not what the argument `output` promises.
        """
        return self._labels(self._outputs(x))

    def _scores(self, x: Tensor) -> Tensor:
        outputs = self._outputs(x)
        return outputs.softmax(1) if self.output == "logits" else outputs

    def _labels(self, outputs: Tensor) -> Tensor:
        return outputs if self.output == "labels" else outputs.argmax(1)

    def _outputs(self, x: Tensor) -> Tensor:
        """Return the outputs for all of `x`: `(n,)` int64 or `(n, num_classes)` float64."""
        checks.tensor("x", x)
        if not len(x):
            labels = self.output == "labels"
            return x.new_zeros(0).long() if labels else x.new_zeros(0, self.num_classes).double()
        size = self.max_batch or len(x)
        rows = torch.arange(len(x), device=x.device)
        parts = zip(torch.split(x.detach(), size), torch.split(rows, size), strict=True)
        outputs: list[Tensor] = []
        with self._budget.reserve(len(x)) as reservation:
            try:
                for part, numbers in parts:
                    with sample_rows.selected(numbers, len(x)):
                        outputs.append(self._call(part, numbers, reservation))
            except ServiceError as error:
                error.answers = torch.cat(outputs) if outputs else None
                raise
        return torch.cat(outputs)

    def _call(self, x: Tensor, rows: Tensor, reservation: Reservation) -> Tensor:
        """Call the function once for `x`, the `rows` of a batch, and check, count and log it."""
        attempts: list[float] = []
        labels: Tensor | None = None
        try:
            raw = self._call_with_retries(x, attempts)
            self._budget.charge(reservation, len(x))
            try:
                outputs = self._checked(_as_tensor(raw).to(x.device), rows)
            except Exception as error:
                raise ServiceError(str(error), attempts=len(attempts)) from error
            labels = self._labels(outputs)
            return outputs
        finally:
            if self.log is not None and attempts:
                seconds = time.perf_counter() - attempts[0]
                self.log.append(Call(len(x), len(attempts), seconds, labels))

    def _call_with_retries(self, x: Tensor, attempts: list[float]) -> object:
        """Return the result of the first attempt that does not raise.

        The start time of each attempt is appended to `attempts`.
        """
        while True:
            fn_input = self._to_fn_input(x)
            attempts.append(time.perf_counter())
            try:
                return self.fn(fn_input)
            except QueryBudgetExceeded:  # of a classifier that the function queries
                raise
            except Exception as error:
                if len(attempts) > self.retries:
                    raise ServiceError(
                        f"`fn` raised {type(error).__name__} in attempt {len(attempts)}, the last: "
                        f"{error}",
                        attempts=len(attempts),
                    ) from error
            time.sleep(self.backoff * 2 ** (len(attempts) - 1))

    def _to_fn_input(self, x: Tensor) -> Tensor | npt.NDArray[np.generic]:
        return x.clone() if self.input_type == "tensor" else as_numpy(x)

    def _checked(self, outputs: Tensor, rows: Tensor) -> Tensor:
        """Return the outputs for the samples `rows` as int64 labels or float64 scores, checked."""
        n = len(rows)
        expected = (n,) if self.output == "labels" else (n, self.num_classes)
        if n == 1 and outputs.shape == expected[1:]:
            outputs = outputs[None]  # a function that squeezes drops the axis of a single sample
        if outputs.shape != expected:
            raise ValueError(
                f"`fn` must return {self.output} of shape {expected} for {n} samples, "
                f"got shape {tuple(outputs.shape)}."
            )
        if self.output == "labels":
            rejected = outputs == REJECTED
            outputs = label_checks.labels(_LABELS, outputs.masked_fill(rejected, 0), rows)
            label_checks.labels_within(_LABELS, outputs, self.num_classes, rows)
            return outputs.masked_fill(rejected, REJECTED)
        if self.output == "logits":
            checks.finite_logits(outputs, rows)
            checks.warn_of_probabilities(outputs)
        else:
            checks.probabilities("`fn`", outputs, rows, "Use output='logits' if it returns logits.")
        return outputs.double()


def as_numpy(x: Tensor) -> npt.NDArray[np.generic]:
    """Return a writable copy of `x` as an array; 16-bit floats become float32."""
    x = x.detach()
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    return np.array(x.cpu().numpy(), order="C")


def _as_tensor(outputs: object) -> Tensor:
    """Convert what a function returned to a tensor; arrays become int64 or float64."""
    if isinstance(outputs, Tensor):
        return outputs.detach()
    checks.unmasked("the output of `fn`", outputs)
    array = np.asarray(outputs)
    if array.dtype.kind not in "biuf":
        raise TypeError(f"`fn` must return numbers, got {array.dtype}.")
    dtype = np.float64 if array.dtype.kind == "f" else np.int64
    return torch.from_numpy(np.array(array, dtype=dtype, order="C"))
