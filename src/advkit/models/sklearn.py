"""Fitted scikit-learn estimators as classifiers, with gradients if they are plain functions."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from advkit.core import checks
from advkit.core.bounds import checked_bounds
from advkit.models.callable import as_numpy
from advkit.models.sklearn_layers import Array, Layers, as_layers, is_one_vs_one, to_columns

_PROBES = 8  # points at which the logits are compared with the estimator
Labels = Literal["class", "index"]


class SklearnClassifier:
    """Fitted estimator with scikit-learn's interface as a classifier.

    Any estimator with `predict` and `classes_` works: pipelines, boosted trees of other libraries,
    hyperparameter searches. Images are flattened. The methods depend on the estimator:

    - `predict`, always: the labels of `estimator.predict`, as indices into `classes`.
    - `scores`: those of `predict_proba`, otherwise of `decision_function`. For some estimators,
      such as an SVC with probabilities, `predict` does not always return the class with the largest
      score.
    - `logits`, if the estimator is a plain differentiable function: linear models with `coef_` and
      `intercept_`, a binary SVC with a linear kernel, MLPs, and pipelines that shift and scale each
      feature before one of them. The logits are the `decision_function`, for MLPs the input of the
      softmax, in float64. At construction they are compared with the estimator's own outputs at a
      few points within the bounds, and omitted if they differ.

    The estimator receives NumPy arrays without names, in the order of `feature_names_in_` if it was
    fitted with names. Wrap an estimator that selects columns by name in a `CallableClassifier`. An
    estimator with `logits` receives float64, so that its predictions agree with the logits. Others
    receive the dtype of `x`, or float32 for 16-bit dtypes.

    Warnings of the estimator are left to the filters of `warnings`, which all threads share. If the
    estimator itself was fitted with feature names, a copy without them is used, which does not warn
    that arrays have none. Threads may share a classifier if `predict` of the estimator may run in
    several threads at once, as in scikit-learn.

    Args:
        estimator: fitted estimator with one label for each sample, out of two or more classes.
        input_shape: shape of a sample that the estimator takes; `None` flattens samples. With more
            than one axis there are no logits.
        bounds: lower and upper end of valid feature values, in the units of the input.
        labels: meaning of `y` and `target` wherever they are passed together with this classifier
            or one that wraps it: `"index"`, positions in `classes`; or `"class"`, labels of the
            estimator, which must be integers. `predict` returns positions in both cases. `None`
            means `"index"`, and is refused if it is ambiguous: for classes that are integers other
            than 0, 1, 2, ... in this order.

    Attributes:
        estimator: the estimator.
        bounds: the argument.
        classes: the labels of the estimator, NumPy array `(num_classes,)`;
            `classes[model.predict(x)]` are the predicted ones.
        label_values: `classes` as an int64 tensor if `y` and `target` are such labels, otherwise
            `None`.

    Raises:
        TypeError: `estimator` is a class, or not a classifier with one label for each sample.
        ValueError: `estimator` is not fitted or has a single class, `input_shape` differs from the
            shape that it was fitted on, or `labels` is missing or does not fit the classes.

    Example:
        >>> import torch, advkit
        >>> from sklearn.linear_model import LogisticRegression
        >>> fitted = LogisticRegression().fit([[0.0, 0.2], [0.9, 0.7]], ["no", "yes"])
        >>> model = advkit.SklearnClassifier(fitted)
        >>> x = torch.tensor([[0.1, 0.1], [0.8, 0.9]])
        >>> model.predict(x), model.encode(["yes", "no"])
        (tensor([0, 1]), tensor([1, 0]))
        >>> advkit.attacks.FGSM(eps=0.5).run(model, x).success
        tensor([True, True])
    """

    def __init__(
        self,
        estimator: Any,
        input_shape: tuple[int, ...] | None = None,
        bounds: tuple[float, float] = (0.0, 1.0),
        *,
        labels: Labels | None = None,
    ) -> None:
        self.bounds = checked_bounds(bounds)
        self.classes: Array = _classes(estimator)
        self.label_values = _label_values(self.classes, labels)
        self.estimator = estimator
        self.input_shape = None if input_shape is None else _checked_shape(input_shape)
        self._index = {label: i for i, label in enumerate(self.classes.tolist())}
        self._scoring = _scoring(estimator, len(self.classes))
        self._layers: Layers | None = None  # until `_probe` has compared them
        self._features = self._feature_count()
        if self._features is not None:
            self._probe(self._features)

    def __repr__(self) -> str:
        lower, upper = self.bounds
        name = type(self.estimator).__name__
        labels = "" if self.label_values is None else ", labels='class'"
        return f"SklearnClassifier({name}, bounds=({lower:g}, {upper:g}){labels})"

    @property
    def num_classes(self) -> int:
        """Number of labels of the estimator."""
        return len(self.classes)

    @property
    def scores(self) -> Callable[[Tensor], Tensor]:
        """Function from `x` `(n, *features)` to scores `(n, num_classes)`, float64, detached.

        They are probabilities, or decision values if the estimator has no probabilities. A single
        decision value z becomes (0, z). The function raises the same errors as `predict`, and
        ValueError for scores that are not finite.

        Raises:
            AttributeError: the estimator returns labels only.
        """
        if self._scoring is None:
            raise AttributeError(f"{self!r} has no scores: its estimator returns labels only.")
        return self._scores

    @property
    def logits(self) -> Callable[[Tensor], Tensor]:
        """Function from `x` `(n, *features)` to logits `(n, num_classes)`, float64.

        It is differentiable with respect to `x`, and raises the same errors as `predict`.

        Raises:
            AttributeError: the estimator is not one of the supported differentiable functions.
        """
        if self._layers is None:
            raise AttributeError(
                f"{self!r} has no logits: its estimator is not a supported differentiable function."
            )
        return self._logits

    def encode(self, labels: Any) -> Tensor:
        """Convert labels of the estimator to indices `(n,)`, int64.

        Args:
            labels: sequence, array or tensor `(n,)`.

        Raises:
            ValueError: some labels are not among `classes`, or they have another shape.
        """
        if np.ndim(labels) != 1:
            raise ValueError(f"`labels` must have shape (n,), got {np.shape(labels)}.")
        values = labels.tolist() if hasattr(labels, "tolist") else list(labels)
        unknown = {label: None for label in values if label not in self._index}  # in their order
        if unknown:
            raise ValueError(f"`labels` must be among {list(self._index)}, got {list(unknown)}.")
        return torch.tensor([self._index[label] for label in values], dtype=torch.int64)

    def predict(self, x: Tensor) -> Tensor:
        """Return labels `(n,)` of `x` `(n, *features)`, int64: indices into `classes`.

        Raises:
            ValueError: `x` does not have the number of features that the estimator was fitted on.
            TypeError: the estimator returns several labels for a sample.
        """
        checks.tensor("x", x)
        if not len(x):
            return x.new_zeros(0).long()
        predicted = np.asarray(self._call_estimator("predict", x))
        if predicted.size != len(x) or predicted.shape not in ((), (len(x),), (len(x), 1)):
            raise TypeError(
                "`estimator` must return one label for each sample, got shape "
                f"{predicted.shape} for {len(x)} samples from {type(self.estimator).__name__}."
            )
        return self.encode(predicted.ravel()).to(x.device)

    def _scores(self, x: Tensor) -> Tensor:
        checks.tensor("x", x)
        if not len(x):
            return x.new_zeros(0, self.num_classes).double()
        outputs = np.asarray(self._call_estimator(str(self._scoring), x))
        if len(x) == 1 and outputs.shape in ((), (self.num_classes,)):
            outputs = outputs[None]  # an estimator that squeezes drops the axis of a single sample
        scores = to_columns(outputs)
        if scores.shape != (len(x), self.num_classes):
            raise ValueError(
                f"`{self._scoring}` must return scores of shape {(len(x), self.num_classes)} for "
                f"{len(x)} samples, got shape {scores.shape}."
            )
        bad = torch.from_numpy(~np.isfinite(scores).all(1))
        if bad.any():
            raise ValueError(
                f"`{self._scoring}` must return finite scores, got NaN or infinity "
                f"({checks.samples(bad)})."
            )
        return torch.from_numpy(scores).to(x.device)

    def _logits(self, x: Tensor) -> Tensor:
        assert self._layers is not None
        checks.tensor("x", x)
        self._check_features(x)
        return self._layers(x)

    def _call_estimator(self, method: str, x: Tensor) -> Any:
        """Return the output of the estimator's `method`; `x` `(n, *features)` is not empty."""
        self._check_features(x)
        rows = as_numpy(x).reshape(len(x), *(self.input_shape or (-1,)))
        if self._layers is not None:
            rows = rows.astype(np.float64)
        outputs = getattr(_without_feature_names(self.estimator), method)(rows)
        checks.unmasked(f"the output of the estimator's `{method}`", outputs)
        return outputs

    def _check_features(self, x: Tensor) -> None:
        count = math.prod(x.shape[1:])
        if self._features is not None and count != self._features:
            source = "the estimator's n_features_in_" if self.input_shape is None else "input_shape"
            raise ValueError(
                f"`x` must have {self._features} features ({source}), "
                f"got {count} in shape {tuple(x.shape)}."
            )

    def _feature_count(self) -> int | None:
        fitted = getattr(self.estimator, "n_features_in_", None)
        if self.input_shape is None:
            return None if fitted is None else int(fitted)
        if len(self.input_shape) == 1 and fitted not in (None, *self.input_shape):
            raise ValueError(
                f"`input_shape` must be ({fitted},), the estimator's n_features_in_, "
                f"got {self.input_shape}."
            )
        return math.prod(self.input_shape)

    def _probe(self, features: int) -> None:
        """Determine at a few points what the estimator offers; refuse one of a wrong kind."""
        lower, upper = self.bounds
        points = np.random.default_rng(0).uniform(lower, upper, (_PROBES, features))
        x = torch.from_numpy(points)
        try:
            with np.errstate(all="ignore"):  # the points are artificial
                y = self.predict(x).numpy()
                if self._scoring is not None and not self._scores_each_class(x):
                    self._scoring = None
                if self.input_shape is None or len(self.input_shape) == 1:
                    self._layers = as_layers(self.estimator, points, y, self.bounds)
        except ValueError:
            return  # it refuses artificial points, for example because it looks up categories

    def _scores_each_class(self, x: Tensor) -> bool:
        """Return True if there is one score for each class, not one for each pair of classes."""
        scores = to_columns(self._call_estimator(str(self._scoring), x))
        return scores.shape == (len(x), self.num_classes)


def _classes(estimator: Any) -> Array:
    """Return the labels of a fitted classifier, `(classes,)`."""
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    name = type(estimator).__name__
    if isinstance(estimator, type):
        raise TypeError(
            f"`estimator` must be fitted, got the class {estimator.__name__}. "
            f"Pass {estimator.__name__}(...).fit(...)."
        )
    if not callable(getattr(estimator, "predict", None)):
        raise TypeError(f"`estimator` must have a method predict, got {name}.")
    try:
        check_is_fitted(estimator)
    except NotFittedError as error:
        raise ValueError(
            f"`estimator` must be fitted, got {name} before its fit. Call its fit first."
        ) from error
    except (AttributeError, TypeError):
        pass  # not derived from scikit-learn; `classes_` decides below
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        raise TypeError(f"`estimator` must be a fitted classifier with classes_, got {name}.")
    if isinstance(classes, list) and any(np.ndim(part) for part in classes):
        raise TypeError(
            f"`estimator` must return one label for each sample, got {name}, which returns several."
        )
    if len(classes) < 2:
        raise ValueError(
            "`estimator` must be fitted on at least two classes, got "
            f"{name} with the classes {list(classes)}."
        )
    return np.asarray(classes)


def _label_values(classes: Array, labels: Labels | None) -> Tensor | None:
    """Return the classes that callers pass as labels; `None` if callers pass positions."""
    if labels is not None:
        checks.one_of("labels", labels, ("class", "index"))
    known = classes.tolist()
    if not all(isinstance(label, (bool, int, float)) and label == label // 1 for label in known):
        if labels == "class":
            raise ValueError(
                f"`labels` must be 'index' for classes that are not integers, got 'class' for "
                f"{known}. Convert labels to positions with `model.encode(y)`."
            )
        return None
    values = [int(label) for label in known]
    if values == list(range(len(values))):
        return None
    if labels is None:
        raise ValueError(
            f"`labels` must be 'class' or 'index', since the estimator's classes are {values} and "
            f"their positions are {list(range(len(values)))}, got None. "
            "SklearnClassifier(estimator, labels='class') takes `y` and `target` as these classes. "
            "SklearnClassifier(estimator, labels='index') takes them as positions, which "
            "`model.encode(y)` returns."
        )
    return torch.tensor(values) if labels == "class" else None


def _checked_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(shape, (tuple, list)):
        raise TypeError(f"`input_shape` must be a tuple of ints, got {type(shape).__name__}.")
    if not shape:
        raise ValueError("`input_shape` must have at least one axis, got ().")
    for length in shape:
        checks.integer("input_shape", length, at_least=1)
    return tuple(shape)


def _scoring(estimator: Any, classes: int) -> str | None:
    """Return the name of the method with one score for each class; `None` if there is none."""
    if callable(getattr(estimator, "predict_proba", None)):
        return "predict_proba"
    if callable(getattr(estimator, "decision_function", None)):
        return None if is_one_vs_one(estimator, classes) else "decision_function"
    return None


def _without_feature_names(estimator: Any) -> Any:
    """Return a shallow copy without feature names, since the estimator warns if arrays have none.

    Names that an estimator keeps elsewhere, for example inside a pipeline, stay.
    """
    if "feature_names_in_" not in getattr(estimator, "__dict__", ()):
        return estimator
    copied = copy.copy(estimator)
    del copied.feature_names_in_
    return copied
