"""The door: what comes from a caller is checked here, once, before any work is done.

Every sentence names the argument, what came and what is wanted. Conditions are written so that NaN
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

import numpy as np
import torch
from torch import Tensor

from advkit.core.naming import argument, quoted
from advkit.core.tensors import at_least_float32

_SHOWN = 5
_MANY = 32
_MANY_OF_16_BITS = 8
_SUM_OF_16_BITS = 2e-2  # how far sums of probabilities are off one, by rounding
_SUM = 1e-3  # how far off a service may round them
_ROUNDED_SUM = 1e-6  # how far off float32 rounds a softmax of a thousand classes
_CHANCE = 1e-12  # of as many rows of logits, each of which sums to about one now and then
_TOLERANCE = 1e-2  # of probabilities: services round what they answer


def indices(bad: Tensor, rows: Tensor | None = None) -> str:
    """The first few indices at which `bad` `(n,)` is true, or `rows` `(n,)` there, as words."""
    found = bad.nonzero().flatten() if rows is None else rows[bad]
    shown = ", ".join(str(row) for row in found[:_SHOWN].tolist())
    return shown if len(found) <= _SHOWN else f"{shown} and {len(found) - _SHOWN} more"


def warn(sentence: str, category: type[UserWarning] = UserWarning) -> None:
    """Warn the caller of the public function, unless this thread is inside `muted` for `category`.

    The warning points at the first line outside this package.
    """
    if not issubclass(category, _muted.get()):
        warnings.warn(sentence, category, stacklevel=_depth())


@contextmanager
def muted(category: type[UserWarning]) -> Iterator[None]:
    """Let `warn` keep warnings of `category` to itself inside, in this thread alone.

    The filters of `warnings` belong to the whole process, so they stay as they are.
    """
    before = _muted.get()
    _muted.set((*before, category))
    try:
        yield
    finally:
        _muted.set(before)


_muted: ContextVar[tuple[type[UserWarning], ...]] = ContextVar("muted", default=())


def _depth() -> int:
    """How many frames up the first one outside this package is."""
    frame, depth = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").startswith("advkit."):
        frame, depth = frame.f_back, depth + 1
    return depth


def positive(name: str, value: float) -> None:
    """Raise unless `value` is a finite number above zero."""
    number(name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{argument(name)} must be positive and finite, got {value}")


def not_negative(name: str, value: float) -> None:
    """Raise unless `value` is a finite number of at least zero."""
    number(name, value)
    if not 0 <= value < math.inf:
        raise ValueError(f"{argument(name)} must be at least 0 and finite, got {value}")


def number(name: str, value: object) -> None:
    """Raise unless `value` is an int or a float."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{argument(name)} must be a number, got {type(value).__name__}: {value!r}")


def boolean(name: str, value: object) -> None:
    """Raise unless `value` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(
            f"{argument(name)} must be True or False, got {type(value).__name__}: {value!r}"
        )


def integer(name: str, value: int, *, at_least: int | None = None) -> None:
    """Raise unless `value` is an int of at least `at_least`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{argument(name)} must be an int, got {type(value).__name__}: {value!r}")
    if at_least is not None and value < at_least:
        raise ValueError(f"{argument(name)} must be at least {at_least}, got {value}")


def fraction(name: str, value: float) -> None:
    """Raise unless `value` is a number from 0 to 1."""
    number(name, value)
    if not 0 <= value <= 1:
        raise ValueError(f"{argument(name)} must lie in [0, 1], got {value}")


def unmasked(name: str, values: object) -> None:
    """Raise if `values` are a masked array with a masked value: what lies behind a mask is none."""
    if np.ma.is_masked(values):
        raise ValueError(
            f"{argument(name)} must not hold masked values, got a masked array; fill them or leave them out"
        )


def is_attack(value: object) -> bool:
    """Return whether `value` can be run as attacks are; a class cannot."""
    return not isinstance(value, type) and hasattr(value, "run")


def attack(name: str, value: object) -> None:
    """Raise unless `value` can be called and run as attacks are; a class cannot."""
    if not (callable(value) and is_attack(value)):
        raise TypeError(f"{argument(name)} must be an attack, such as PGD(eps=0.1), got {value!r}")


def detector(name: str, value: object) -> None:
    """Raise unless `value` is an object with an `anomaly_score` method; a class is refused."""
    if isinstance(value, type) or not callable(getattr(value, "anomaly_score", None)):
        raise TypeError(f"{argument(name)} must have anomaly_score(outputs), got {value!r}")


def one_of(name: str, value: object, choices: Sequence[object]) -> None:
    """Raise unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{argument(name)} must be one of {quoted(choices)}, got {value!r}")


def eps(value: float | Tensor) -> None:
    """Raise unless `value` is a number or a tensor `(n,)`, finite and not negative."""
    if not isinstance(value, Tensor):
        not_negative("eps", value)
        return
    if value.ndim != 1 or not (value.is_floating_point() or value.dtype == torch.int64):
        raise ValueError(
            "`eps` must be a number or a tensor (n,), "
            f"got {value.dtype} of shape {tuple(value.shape)}"
        )
    bad = ~(value.isfinite() & (value >= 0))
    if bad.any():
        raise ValueError(f"`eps` must be at least 0 and finite, is not at index {indices(bad)}")


def radii(value: float | Tensor, x: Tensor) -> Tensor:
    """A checked `eps` as one radius for each sample of `x`, `(n,)`, rounded down to its dtype."""
    if not isinstance(value, Tensor):
        value = torch.full((len(x),), float(value), dtype=torch.float64)
    if len(value) != len(x):
        raise ValueError(f"eps has {len(value)} values, but x has {len(x)} samples")
    exact = value.detach().cpu().double()  # not every device knows float64
    rounded = exact.to(x.dtype)
    below = rounded.nextafter(torch.zeros_like(rounded))
    return torch.where(rounded.double() > exact, below, rounded).to(x.device)


def inputs(x: Tensor, bounds: tuple[float, float]) -> Tensor:
    """`x` as a plain tensor inside `bounds`, detached from any graph and any inference mode.

    Values that leave the bounds by rounding alone are clamped; anything further out is refused,
    since it means that the bounds or the preprocessing are not those of the model.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"`x` must be a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"`x` must be of a floating dtype, got {x.dtype}; convert it, x.float()")
    if x.ndim < 2:
        raise ValueError(f"`x` must have shape (n, ...) of rank 2 or more, got {tuple(x.shape)}")
    x = x.detach()
    if len(x) == 0:
        return x
    if x.numel() == 0:
        raise ValueError(f"`x` must have features, got shape {tuple(x.shape)}")
    smallest, largest = x.flatten(1).amin(1), x.flatten(1).amax(1)
    bad = ~(smallest.isfinite() & largest.isfinite())
    if bad.any():
        raise ValueError(f"`x` must be finite, has NaN or infinity in sample {indices(bad)}")
    lower, upper = bounds
    slack = max(1e-5, torch.finfo(x.dtype).eps) * (upper - lower)
    if (smallest < lower - slack).any() or (largest > upper + slack).any():
        raise ValueError(
            f"`x` must lie in the model's bounds [{lower:g}, {upper:g}], got values in "
            f"[{smallest.min():g}, {largest.max():g}]; wrap the model with its own bounds=..., "
            "and if the inputs are normalized, normalize in preprocess=... instead"
        )
    return x.clamp(lower, upper)


def labels(name: str, y: Tensor, x: Tensor) -> Tensor:
    """Return `y` as `integer_labels` does, and raise if one is negative."""
    y = integer_labels(name, y, x)
    if len(y) and y.min() < 0:
        raise ValueError(
            f"{argument(name)} must not be negative, got {int(y.min())} (sample {indices(y < 0)})"
        )
    return y


def integer_labels(name: str, y: Tensor, x: Tensor) -> Tensor:
    """`y` as plain int64 `(n,)` on the device of `x`; accepts integral floats and one-hot rows."""
    tensor_of_labels(name, y)
    if y.is_complex():
        raise TypeError(f"{argument(name)} must be of an integer dtype, got {y.dtype}")
    y = y.detach().to(x.device)
    if y.is_floating_point():
        bad = ~(y.isfinite() & (y == y.round())).flatten(1 if y.ndim > 1 else 0)
        bad = bad.any(1) if bad.ndim > 1 else bad
        if bad.any():
            raise ValueError(f"{argument(name)} must be integers, is not for sample {indices(bad)}")
    y = y.to(torch.int64)
    if is_one_hot(y):
        y = _from_one_hot(name, y)
    if y.shape != (len(x),):
        raise ValueError(
            f"{argument(name)} must have shape ({len(x)},) or one-hot ({len(x)}, classes), "
            f"got {tuple(y.shape)}"
        )
    return y.clone() if y.is_inference() else y  # such tensors cannot be part of a graph


def is_one_hot(y: object) -> bool:
    """Return whether labels have two axes, as one-hot rows do."""
    return isinstance(y, Tensor) and y.ndim == 2 and y.shape[1] > 1


def tensor_of_labels(name: str, y: object, when: str = "") -> None:
    """Raise unless `y` is a tensor; labels that are strings have a way to become one."""
    if isinstance(y, Tensor):
        return
    if isinstance(y, (list, tuple, np.ndarray)) and len(y) and isinstance(y[0], str):
        raise TypeError(
            f"`{name}` must be a torch.Tensor of integers, got strings such as {str(y[0])!r}. "
            f"Pass `model.encode({name})` of the SklearnClassifier."
        )
    raise TypeError(f"{argument(name)} must be a torch.Tensor{when}, got {type(y).__name__}")


def _from_one_hot(name: str, y: Tensor) -> Tensor:
    bad = (y.min(1).values < 0) | (y.sum(1) != 1)
    if bad.any():
        raise ValueError(
            f"{argument(name)} must be one-hot if it has two axes, is not at {indices(bad)}"
        )
    return y.argmax(1)


def no_rejections(predicted: Tensor) -> None:
    """Raise if a label `(n,)` that a model gave says that it has none: that no attack can leave."""
    bad = predicted < 0
    if bad.any():
        raise ValueError(
            f"`y` must be given: the model rejects sample {indices(bad)}, so that there is no label "
            "of its own to leave"
        )


def labels_within(name: str, y: Tensor, num_classes: int, rows: Tensor) -> None:
    """Raise unless the labels `y` `(n,)`, of the samples `rows` `(n,)`, are below `num_classes`."""
    bad = y >= num_classes
    if bad.any():
        raise ValueError(
            f"{argument(name)} must be below {num_classes}, the number of the model's classes, "
            f"got {int(y.max())}, for sample {indices(bad, rows)}"
        )


def finite_logits(logits: Tensor, rows: Tensor | None = None) -> None:
    """Raise unless all logits `(n, classes)`, of the samples `rows` `(n,)`, are finite."""
    bad = ~logits.isfinite().all(1)
    if bad.any():
        raise ValueError(
            f"the model returned NaN or infinite logits for sample {indices(bad, rows)}"
        )


def warn_of_probabilities(logits: Tensor) -> None:
    """Warn if the logits `(n, classes)` of a model look like probabilities."""
    if look_like_probabilities(logits):
        warn(
            "the model seems to return probabilities where logits are wanted: their softmax is "
            "nearly uniform, and gradients vanish where it is confident. Return logits, or wrap "
            "the model with output='probabilities'"
        )


def look_like_probabilities(logits: Tensor) -> bool:
    """Return whether every row of `(n, classes)` lies in [0, 1] and sums to one.

    The fewer the rows, the closer the sums must be to one, so that logits pass by chance less than
    once in a million batches. A single row must sum to one up to the rounding of float32, and 16
    bits need eight rows.

    A single output stands in the second of two columns, the first being zero; a few of them may lie
    in [0, 1] by chance, 32 of them hardly.
    """
    n = len(logits)
    if n == 0 or not bool(((logits >= 0) & (logits <= 1)).all()):
        return False
    if logits.shape[1] == 2 and n >= _MANY and bool((logits[:, 0] == 0).all()):
        return True
    off = float((at_least_float32(logits).sum(1) - 1).abs().max())
    if logits.dtype not in (torch.float32, torch.float64):
        return n >= _MANY_OF_16_BITS and off < _SUM_OF_16_BITS
    return off < min(_SUM, max(float(_CHANCE ** (1 / n)), _ROUNDED_SUM))


def probabilities(source: str, p: Tensor, rows: Tensor, way_out: str) -> None:
    """Raise unless each row of `p` `(n, classes)`, of the samples `rows` `(n,)`, is a distribution.

    Values and their sum may be off by 0.01, since services round what they answer.
    """
    inside = ((p >= -_TOLERANCE) & (p <= 1 + _TOLERANCE)).all(1)
    bad = ~(inside & ((p.sum(1) - 1).abs() <= _TOLERANCE))
    if bad.any():
        raise ValueError(
            f"{source} returned no probabilities (in [0, 1], summing to 1) "
            f"for sample {indices(bad, rows)}; {way_out}"
        )
