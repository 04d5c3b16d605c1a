"""Checks of the arguments that a caller passes, made once, before any work is done.

Every message names the argument, the condition and the value. Conditions are written so that NaN
fails them.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from numbers import Integral, Real
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from advkit.core import conversions
from advkit.core.naming import alternative, argument, quoted
from advkit.core.tensors import at_least_float32

Interval = Literal["[0, 1]", "[0, 1)", "(0, 1]", "(0, 1)"]

_MAX_INDICES_SHOWN = 5
_PROBABILITY_TOLERANCE = 1e-2  # of probabilities and their sum: services round what they return

# How `look_like_probabilities` tells probabilities from logits:
_MIN_ROWS_OF_SINGLE_OUTPUT = 32  # fewer outputs lie in [0, 1] by chance
_MIN_ROWS_OF_16_BITS = 8  # fewer rows have sums near one by chance
_SUM_TOLERANCE_OF_16_BITS = 2e-2  # rounding error of a sum of probabilities
_SUM_TOLERANCE = 1e-3  # rounding error of a service
_SUM_TOLERANCE_OF_FLOAT32 = 1e-6  # rounding error of a softmax over a thousand classes
_CHANCE_OF_ERROR = 1e-12  # that the rows of a batch of logits all sum to about one

_OUTSIDE_BOUNDS = (
    "Wrap the model with its own `bounds`. If the inputs are normalized, normalize in `preprocess` "
    "instead."
)


def indices(bad: Tensor, rows: Tensor | None = None) -> str:
    """Return the first few indices at which `bad` `(n,)` is true, as text: "2, 7 and 3 more".

    With `rows` `(n,)`, these are the entries of `rows` at which `bad` is true.
    """
    numbers = bad.nonzero().flatten() if rows is None else rows[bad]
    shown = ", ".join(str(number) for number in numbers[:_MAX_INDICES_SHOWN].tolist())
    hidden = len(numbers) - _MAX_INDICES_SHOWN
    return shown if hidden <= 0 else f"{shown} and {hidden} more"


def samples(bad: Tensor, rows: Tensor | None = None, *, noun: str = "sample") -> str:
    """Return `indices` after the word for them: "sample 2" or "samples 2, 7"."""
    return f"{noun if int(bad.sum()) == 1 else noun + 's'} {indices(bad, rows)}"


def warn(sentence: str, category: type[UserWarning] = UserWarning) -> None:
    """Warn the caller of the public function, unless this thread is inside `muted` for `category`.

    The warning points to the first line outside this package.
    """
    if not issubclass(category, _muted.get()):
        warnings.warn(sentence, category, stacklevel=_depth())


@contextmanager
def muted(category: type[UserWarning]) -> Iterator[None]:
    """Suppress the warnings of `category` that `warn` issues inside, in this thread alone.

    The filters of `warnings` belong to the whole process and are not changed.
    """
    before = _muted.get()
    _muted.set((*before, category))
    try:
        yield
    finally:
        _muted.set(before)


_muted: ContextVar[tuple[type[UserWarning], ...]] = ContextVar("muted", default=())


def _depth() -> int:
    """Return the number of frames from here up to the first one outside this package."""
    frame, depth = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").startswith("advkit."):
        frame, depth = frame.f_back, depth + 1
    return depth


def positive(name: str, value: float) -> None:
    """Raise unless `value` is a finite number above zero."""
    number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{argument(name)} must be positive and finite, got {value}.")


def not_negative(name: str, value: float) -> None:
    """Raise unless `value` is a finite number of at least zero."""
    number(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f"{argument(name)} must be at least 0 and finite, got {value}.")


def number(name: str, value: object) -> None:
    """Raise unless `value` is an int or a float."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument(name)} must be a number, got {_typed(value)}.")


def boolean(name: str, value: object) -> None:
    """Raise unless `value` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{argument(name)} must be True or False, got {_typed(value)}.")


def integer(name: str, value: int, *, at_least: int | None = None) -> None:
    """Raise unless `value` is an int of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{argument(name)} must be an int, got {_typed(value)}.")
    if at_least is not None and value < at_least:
        raise ValueError(f"{argument(name)} must be at least {at_least}, got {value}.")


def fraction(name: str, value: float, interval: Interval = "[0, 1]") -> None:
    """Raise unless `value` is a number in `interval`; a round bracket excludes that end."""
    number(name, value)
    above = value >= 0 if interval[0] == "[" else value > 0
    below = value <= 1 if interval[-1] == "]" else value < 1
    if not (above and below):
        raise ValueError(f"{argument(name)} must lie in {interval}, got {value}.")


def _typed(value: object) -> str:
    """Return `value` after the name of its type, for errors about the type."""
    return f"{type(value).__name__}: {value!r}"


def unmasked(name: str, values: object) -> None:
    """Raise if `values` are a masked array with a masked value, which is not a value at all."""
    if np.ma.is_masked(values):
        raise ValueError(
            f"{argument(name)} must not hold masked values, got a masked array. "
            "Fill the masked values or leave them out."
        )


def is_attack(value: object) -> bool:
    """Return whether `value` has the method `run` of attacks; a class does not count."""
    return not isinstance(value, type) and hasattr(value, "run")


def attack(name: str, value: object) -> None:
    """Raise unless `value` is callable and has the method `run` of attacks; a class is refused."""
    if not (callable(value) and is_attack(value)):
        raise TypeError(f"{argument(name)} must be an attack, such as PGD(eps=0.1), got {value!r}.")


def detector(name: str, value: object) -> None:
    """Raise unless `value` is an object with an `anomaly_score` method; a class is refused."""
    if isinstance(value, type) or not callable(getattr(value, "anomaly_score", None)):
        raise TypeError(
            f"{argument(name)} must have a method anomaly_score(outputs), got {value!r}."
        )


def one_of(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise unless `value` is one of `choices`; the message names the one that may be meant."""
    if value not in choices:
        raise ValueError(
            f"{argument(name)} must be one of {quoted(choices)}, got {value!r}."
            f"{alternative(value, choices)}"
        )


def eps(value: float | Tensor) -> None:
    """Raise unless `value` is a number or a tensor `(n,)`, finite and not negative."""
    if conversions.is_data(value):
        raise TypeError(
            f"`eps` must be a number or a tensor of shape (n,), got {conversions.describe(value)}."
            f"{conversions.remedy('eps', value)}"
        )
    if not isinstance(value, Tensor):
        not_negative("eps", value)
        return
    if value.ndim != 1 or not (value.is_floating_point() or value.dtype == torch.int64):
        raise ValueError(
            "`eps` must be a number or a tensor of floats or int64 of shape (n,), "
            f"got {value.dtype} of shape {tuple(value.shape)}."
        )
    bad = ~(value.isfinite() & (value >= 0))
    if bad.any():
        raise ValueError(
            f"`eps` must be at least 0 and finite, got {value[bad][0]:g} ({samples(bad)})."
        )


def count_eps(value: float | Tensor, unit: str = "feature", where: str = "") -> None:
    """Raise if a positive `eps`, a number of `unit`s, rounds to zero.

    Args:
        value: a checked `eps`.
        unit: `"feature"` or `"pixel"`.
        where: words after the condition, such as " for salt and pepper".
    """
    counts = torch.as_tensor(value)
    too_small = counts[(counts > 0) & (counts < 1)]
    if len(too_small):
        raise ValueError(
            f"`eps` must be 0 or a number of {unit}s of at least 1{where}, got {too_small[0]:g}. "
            f"Multiply a share of the {unit}s by their number."
        )


def radii(value: float | Tensor, x: Tensor) -> Tensor:
    """Return a checked `eps` as radii `(n,)` of the samples of `x`, rounded down to its dtype."""
    if not isinstance(value, Tensor):
        value = torch.full((len(x),), float(value), dtype=torch.float64)
    if len(value) != len(x):
        raise ValueError(
            f"`eps` must be a number or a tensor of shape ({len(x)},), got shape ({len(value)},)."
        )
    return rounded_down(value, x)


def rounded_down(values: Tensor, x: Tensor) -> Tensor:
    """Return non-negative `values` in the dtype and on the device of `x`, never rounded up."""
    exact = values.detach().cpu().double()  # not every device knows float64
    rounded = exact.to(x.dtype)
    below = rounded.nextafter(torch.zeros_like(rounded))
    return torch.where(rounded.double() > exact, below, rounded).to(x.device)


def tensor(name: str, value: object, *, when: str = "", convert: str = ".float()") -> None:
    """Raise unless `value` is a tensor. The message says how to convert an array or a table.

    Args:
        name: name of the argument, or words for it.
        value: what was given.
        when: words after the condition, such as " when `x` is one".
        convert: call after the conversion of an array.
    """
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{argument(name)} must be a torch.Tensor{when}, got {conversions.describe(value)}."
            f"{conversions.remedy(name, value, convert)}"
        )


def floats(name: str, x: Tensor) -> None:
    """Raise unless `x` is a tensor of a floating dtype."""
    tensor(name, x)
    if not x.is_floating_point():
        way_out = f" Convert it with {name}.float()." if name.isidentifier() else ""
        raise TypeError(f"{argument(name)} must have a floating dtype, got {x.dtype}.{way_out}")


def inputs(
    name: str, x: Tensor, bounds: tuple[float, float], outside: str = _OUTSIDE_BOUNDS
) -> Tensor:
    """Return `x` as a plain tensor inside `bounds`, without autograd graph or inference mode.

    Values outside the bounds by rounding alone are clamped. Values further out are refused, since
    they mean that the bounds or the preprocessing are not those of the model.

    Args:
        name: the name of the argument, or words for it.
        x: inputs `(n, *features)`.
        bounds: lower and upper end of valid values.
        outside: sentence that says what to do about values outside the bounds.
    """
    floats(name, x)
    shape = tuple(x.shape)
    if x.ndim < 2:
        raise ValueError(
            f"{argument(name)} must have shape (n, ...) of rank 2 or more, got {shape}."
        )
    x = x.detach()
    if len(x) == 0:
        return x
    if x.numel() == 0:
        raise ValueError(f"{argument(name)} must have at least one feature, got shape {shape}.")
    lower, upper = bounds
    least, greatest = map(float, x.aminmax())
    if not (lower <= least and greatest <= upper):  # also if NaN is among them
        _check_values(name, x, lower, upper, outside)
    return x.clamp(lower, upper)


def _check_values(name: str, x: Tensor, lower: float, upper: float, outside: str) -> None:
    """Raise unless `x` `(n, *features)` is finite and outside the bounds by rounding alone."""
    smallest, largest = x.flatten(1).amin(1), x.flatten(1).amax(1)
    bad = ~(smallest.isfinite() & largest.isfinite())
    if bad.any():
        raise ValueError(f"{argument(name)} must be finite, got NaN or infinity ({samples(bad)}).")
    slack = max(1e-5, torch.finfo(x.dtype).eps) * (upper - lower)
    if (smallest < lower - slack).any() or (largest > upper + slack).any():
        raise ValueError(
            f"{argument(name)} must lie in the model's bounds [{lower:g}, {upper:g}], got values "
            f"in [{smallest.min():g}, {largest.max():g}]. {outside}"
        )


def finite_logits(logits: Tensor, rows: Tensor | None = None) -> None:
    """Raise unless all logits `(n, classes)`, of the samples `rows` `(n,)`, are finite."""
    bad = ~logits.isfinite().all(1)
    if bad.any():
        raise ValueError(
            f"`model` must return finite logits, got NaN or infinity ({samples(bad, rows)})."
        )


def warn_of_probabilities(logits: Tensor) -> None:
    """Warn if the logits `(n, classes)` of a model look like probabilities."""
    if look_like_probabilities(logits):
        warn(
            "`model` seems to return probabilities where logits are expected. Their softmax is "
            "nearly uniform, and gradients vanish where it is confident. Return logits, or wrap "
            "the model with output='probabilities'."
        )


def look_like_probabilities(logits: Tensor) -> bool:
    """Return whether every row of `(n, classes)` lies in [0, 1] and sums to one.

    The fewer rows there are, the closer the sums must be to one. Logits then pass by chance in less
    than one of a million batches. A single row must sum to one up to the rounding of float32.
    Outputs in 16 bits need at least eight rows.

    A single output is the second of two columns, the first of which is zero. A few such outputs may
    lie in [0, 1] by chance, but 32 of them hardly do.
    """
    n = len(logits)
    if n == 0 or not bool(((logits >= 0) & (logits <= 1)).all()):
        return False
    many_pairs = logits.shape[1] == 2 and n >= _MIN_ROWS_OF_SINGLE_OUTPUT
    if many_pairs and bool((logits[:, 0] == 0).all()):
        return True
    error = float((at_least_float32(logits).sum(1) - 1).abs().max())
    if logits.dtype not in (torch.float32, torch.float64):
        return n >= _MIN_ROWS_OF_16_BITS and error < _SUM_TOLERANCE_OF_16_BITS
    by_chance = max(float(_CHANCE_OF_ERROR ** (1 / n)), _SUM_TOLERANCE_OF_FLOAT32)
    return error < min(_SUM_TOLERANCE, by_chance)


def probabilities(source: str, p: Tensor, rows: Tensor, way_out: str) -> None:
    """Raise unless each row of `p` `(n, classes)`, of the samples `rows` `(n,)`, is a distribution.

    Values and their sum may be off by 0.01, since services round what they return.
    """
    tolerance = _PROBABILITY_TOLERANCE
    inside = ((p >= -tolerance) & (p <= 1 + tolerance)).all(1)
    bad = ~(inside & ((p.sum(1) - 1).abs() <= tolerance))
    if bad.any():
        raise ValueError(
            f"{source} must return probabilities (in [0, 1], summing to 1), "
            f"got other values ({samples(bad, rows)}). {way_out}"
        )
