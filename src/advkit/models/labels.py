"""Labels as callers give them, and as indices of the model's classes."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from advkit.core import checks


def label_values(model: object) -> Tensor | None:
    """Return the labels, int64 `(num_classes,)`, by which callers name the classes of `model`.

    They are those of a `SklearnClassifier` with `labels="class"`, also behind classifiers around
    it. `None` for every other model: its classes are named by their indices.
    """
    found: Tensor | None = getattr(model, "label_values", None)
    return found


def check_same_labels(models: Iterable[object]) -> None:
    """Raise unless callers name the classes of all `models` alike."""
    values = [label_values(model) for model in models]
    named = {None if v is None else tuple(v.tolist()): None for v in values}
    if len(named) > 1:
        raise ValueError(
            f"`models` must take the same labels, got {[v and list(v) for v in named]} (None for "
            "indices). Give every SklearnClassifier among them labels='index'."
        )


def label_indices(name: str, y: Tensor, x: Tensor, model: object) -> Tensor:
    """Return labels that a caller gives for `model` as indices of its classes.

    Args:
        name: of the argument, for errors.
        y: labels `(n,)` of an integer dtype or integral floats, or one-hot rows, whose columns are
            the classes in the order of their indices.
        x: inputs `(n, ...)`.
        model: the classifier that they are labels for.

    Returns:
        int64 `(n,)`, on the device of `x`.

    Raises:
        ValueError: labels of the wrong shape, that are not integers, that are negative, or that
            the model does not know where it names its classes by values.
        TypeError: `y` is not a tensor of numbers.
    """
    values = label_values(model)
    if values is None or checks.is_one_hot(y):
        return checks.labels(name, y, x)
    y = checks.integer_labels(name, y, x)
    hits = y[:, None] == values.to(y.device)
    unknown = ~hits.any(1)
    if unknown.any():
        raise ValueError(
            f"`{name}` must be among {values.tolist()}, the classes of the estimator "
            f"(labels='class'), got {int(y[unknown][0])} (sample {checks.indices(unknown)})."
        )
    return hits.byte().argmax(1)


def given_labels(model: object, indices: Tensor) -> Tensor:
    """Return `indices` `(n,)` of the classes of `model` as a caller gives labels for it."""
    values = label_values(model)
    return indices if values is None else values.to(indices.device)[indices]
