"""Conversion between the labels of a caller and the indices of a model's classes."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from advkit.core import checks, label_checks


def label_values(model: object) -> Tensor | None:
    """Return the labels, int64 `(num_classes,)`, by which callers name the classes of `model`.

    A `SklearnClassifier` with `labels="class"` has them, and so do classifiers that wrap one. The
    result is `None` for all other models, whose classes are named by their indices.
    """
    values: Tensor | None = getattr(model, "label_values", None)
    return values


def check_same_labels(models: Iterable[object]) -> None:
    """Raise ValueError unless callers name the classes of all `models` by the same labels."""
    values = [label_values(model) for model in models]
    distinct = {None if v is None else tuple(v.tolist()): None for v in values}
    if len(distinct) > 1:
        raise ValueError(
            f"`models` must take the same labels, got {[v and list(v) for v in distinct]} (None "
            "for indices). Give each SklearnClassifier among them labels='index'."
        )


def label_indices(name: str, y: Tensor, x: Tensor, model: object) -> Tensor:
    """Convert the labels that a caller gives for `model` to indices of its classes.

    Args:
        name: name of the argument, for errors.
        y: labels `(n,)` of an integer dtype or integral floats, or one-hot rows, whose columns are
            the classes in the order of their indices.
        x: inputs `(n, ...)`.
        model: classifier to which the labels belong.

    Returns:
        int64 `(n,)`, on the device of `x`.

    Raises:
        ValueError: the labels have the wrong shape, are not integers, are negative, or are not
            among the values by which the model names its classes.
        TypeError: `y` is not a tensor of numbers.
    """
    values = label_values(model)
    if values is None or label_checks.is_one_hot(y):
        return label_checks.labels(name, y, x)
    y = label_checks.integer_labels(name, y, x)
    hits = y[:, None] == values.to(y.device)
    unknown = ~hits.any(1)
    if unknown.any():
        raise ValueError(
            f"`{name}` must be among {values.tolist()}, the classes of the estimator "
            f"(labels='class'), got {int(y[unknown][0])} ({checks.samples(unknown)})."
        )
    return hits.byte().argmax(1)


def given_labels(model: object, indices: Tensor) -> Tensor:
    """Convert `indices` `(n,)` of the classes of `model` to the labels that a caller gives."""
    values = label_values(model)
    return indices if values is None else values.to(indices.device)[indices]
