"""Checks of labels: tensors of integers, one for each input."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from advkit.core import checks
from advkit.core.naming import argument


def labels(name: str, y: Tensor, x: Tensor) -> Tensor:
    """Return `y` as int64 `(n,)` on the device of `x`, and raise if a label is negative."""
    y = integer_labels(name, y, x)
    if len(y) and y.min() < 0:
        raise ValueError(
            f"{argument(name)} must not be negative, got {int(y.min())} ({checks.samples(y < 0)})."
        )
    return y


def integer_labels(name: str, y: Tensor, x: Tensor) -> Tensor:
    """Return `y` as plain int64 `(n,)` on the device of `x`.

    Floats with integer values and one-hot rows are accepted, and so are negative labels.
    """
    tensor_of_labels(name, y)
    if y.is_complex():
        raise TypeError(f"{argument(name)} must have an integer dtype, got {y.dtype}.")
    y = y.detach().to(x.device)
    if is_one_hot(y):
        y = _from_one_hot(name, y)
    if y.shape != (len(x),):
        column = f" Pass {name}[:, 0]." if y.shape == (len(x), 1) and name.isidentifier() else ""
        raise ValueError(
            f"{argument(name)} must have shape ({len(x)},) or one-hot ({len(x)}, classes), "
            f"got {tuple(y.shape)}.{column}"
        )
    if y.is_floating_point():
        bad = ~(y.isfinite() & (y == y.round()))
        if bad.any():
            raise ValueError(
                f"{argument(name)} must be integers, got {y[bad][0]:g} ({checks.samples(bad)})."
            )
    y = y.to(torch.int64)
    return y.clone() if y.is_inference() else y  # inference tensors cannot be part of a graph


def is_one_hot(y: object) -> bool:
    """Return whether labels have two axes and more than one column, as one-hot rows do."""
    return isinstance(y, Tensor) and y.ndim == 2 and y.shape[1] > 1


def tensor_of_labels(name: str, y: object, when: str = "") -> None:
    """Raise unless `y` is a tensor. The message for strings names the method that encodes them."""
    first = _first_entry(y)
    if isinstance(first, str):
        raise TypeError(
            f"{argument(name)} must be a torch.Tensor of integers, got strings such as "
            f"{str(first)!r}. Pass `model.encode({name})` of the SklearnClassifier."
        )
    checks.tensor(name, y, when=when, convert="")


def _first_entry(y: object) -> object:
    """Return the first entry of a list, an array or a column; `None` without one."""
    if isinstance(y, (list, tuple, np.ndarray)) or callable(getattr(y, "to_numpy", None)):
        return next(iter(y), None) if getattr(y, "ndim", 1) == 1 else None  # type: ignore[call-overload]
    return None


def _from_one_hot(name: str, y: Tensor) -> Tensor:
    ones = y == 1
    count = ones.sum(1)
    other = ~(ones | (y == 0)).all(1)
    bad = other | (count != 1)
    if not bad.any():
        return ones.byte().argmax(1)
    row = int(bad.byte().argmax())
    found = "other values than 0 and 1" if other[row] else f"{int(count[row])} ones"
    raise ValueError(
        f"{argument(name)} must be one-hot if it has two axes, got a row with {found} "
        f"({checks.samples(bad)}). Multi-label and soft targets are not supported: pass one label "
        f"for each input, integers of shape ({len(y)},)."
    )


def no_rejections(predicted: Tensor) -> None:
    """Raise if a predicted label `(n,)` is negative, which means that the model rejects the sample.

    Without `y`, an attack has to change the predicted label, and a rejected sample has none.
    """
    bad = predicted < 0
    if bad.any():
        raise ValueError(
            "`y` must be given for inputs that the model rejects, got None "
            f"({checks.samples(bad)}). A rejected input has no predicted label to attack."
        )


def labels_within(name: str, y: Tensor, num_classes: int, rows: Tensor | None = None) -> None:
    """Raise unless all labels `y` `(n,)` are below `num_classes`.

    Args:
        name: name of the argument, or words for it.
        y: labels, int64.
        num_classes: number of classes of the model.
        rows: numbers of the samples `(n,)` in the data; `None` for 0, 1, 2, ...
    """
    bad = y >= num_classes
    if bad.any():
        raise ValueError(
            f"{argument(name)} must be below {num_classes}, the model's number of classes, "
            f"got {int(y.max())} ({checks.samples(bad, rows)})."
        )
