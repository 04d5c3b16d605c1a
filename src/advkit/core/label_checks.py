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
    if y.is_floating_point():
        bad = ~(y.isfinite() & (y == y.round())).flatten(1 if y.ndim > 1 else 0)
        bad = bad.any(1) if bad.ndim > 1 else bad
        if bad.any():
            raise ValueError(
                f"{argument(name)} must be integers, got other values ({checks.samples(bad)})."
            )
    y = y.to(torch.int64)
    if is_one_hot(y):
        y = _from_one_hot(name, y)
    if y.shape != (len(x),):
        raise ValueError(
            f"{argument(name)} must have shape ({len(x)},) or one-hot ({len(x)}, classes), "
            f"got {tuple(y.shape)}."
        )
    return y.clone() if y.is_inference() else y  # inference tensors cannot be part of a graph


def is_one_hot(y: object) -> bool:
    """Return whether labels have two axes and more than one column, as one-hot rows do."""
    return isinstance(y, Tensor) and y.ndim == 2 and y.shape[1] > 1


def tensor_of_labels(name: str, y: object, when: str = "") -> None:
    """Raise unless `y` is a tensor. The message for strings names the method that encodes them."""
    if isinstance(y, Tensor):
        return
    if isinstance(y, (list, tuple, np.ndarray)) and len(y) and isinstance(y[0], str):
        raise TypeError(
            f"`{name}` must be a torch.Tensor of integers, got strings such as {str(y[0])!r}. "
            f"Pass `model.encode({name})` of the SklearnClassifier."
        )
    raise TypeError(f"{argument(name)} must be a torch.Tensor{when}, got {type(y).__name__}.")


def _from_one_hot(name: str, y: Tensor) -> Tensor:
    bad = (y.min(1).values < 0) | (y.sum(1) != 1)
    if bad.any():
        raise ValueError(
            f"{argument(name)} must be one-hot if it has two axes, got other rows "
            f"({checks.samples(bad)})."
        )
    return y.argmax(1)


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


def labels_within(name: str, y: Tensor, num_classes: int, rows: Tensor) -> None:
    """Raise unless the labels `y` `(n,)`, of the samples `rows` `(n,)`, are below `num_classes`."""
    bad = y >= num_classes
    if bad.any():
        raise ValueError(
            f"{argument(name)} must be below {num_classes}, the model's number of classes, "
            f"got {int(y.max())} ({checks.samples(bad, rows)})."
        )
