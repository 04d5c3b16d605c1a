"""Fitted scikit-learn estimators as classifiers, with gradients where they are plain functions."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from advkit.core import checks
from advkit.models.callable import as_numpy
from advkit.models.sklearn_layers import Array, Layers, as_layers, columns, compares_pairs
from advkit.models.torch import checked_bounds

_PROBES = 8
Labels = Literal["class", "index"]


class SklearnClassifier:
    """A fitted estimator with scikit-learn's interface seen as a classifier.

    Any estimator with `predict` and `classes_` will do: pipelines, boosted trees of other
    libraries, searches over hyper-parameters. Images are flattened. What it offers depends on the
    estimator:

    - `predict`, always: what `estimator.predict` answers, as an index into `classes`.
    - `scores`, of `predict_proba` or else of `decision_function`. For some estimators (an SVC with
      probabilities, say) their largest is not always what `predict` answers.
    - `logits`, where the estimator is a plain differentiable function: linear models with `coef_`
      and `intercept_`, a binary SVC with a linear kernel, MLPs, and pipelines that shift and scale
      each feature before one of them. They are `decision_function`, for MLPs what the softmax is
      taken of, in float64; when the wrapper is made they are compared with the estimator's own at
      a few points within the bounds, and left out where they differ.

    The estimator gets NumPy arrays without names, in the order of `feature_names_in_` if it has
    seen any; what selects its columns by name goes into a `CallableClassifier`. An estimator with
    `logits` gets float64, so that both say the same; others get the dtype of `x`, float32 for the
    16-bit ones.

    Warnings of the estimator are left to the filters of `warnings`, which belong to all threads; of
    one that has seen names of features itself, a copy without them is used, which does not miss
    them. Threads may share a classifier if `predict` of the estimator may run in several at once,
    as it may for those of scikit-learn.

    Args:
        estimator: fitted, with one label of two or more for each sample.
        input_shape: shape of a sample that the estimator takes; `None` flattens. With more than one
            axis there are no logits.
        bounds: lower and upper end of valid feature values, in the units of the input.
        labels: what `y` and `target` are, wherever they are given together with this classifier or
            one around it: `"index"`, positions in `classes`; or `"class"`, labels as the estimator
            knows them, which have to be integers. `predict` gives positions in both cases. `None`
            is `"index"`, and is refused where it could be mistaken: for classes that are integers
            other than 0, 1, 2, ... in this order.

    Attributes:
        estimator: the estimator.
        bounds: as given.
        classes: the labels that the estimator knows, NumPy array `(num_classes,)`;
            `classes[model.predict(x)]` are those of the answers.
        label_values: the same as an int64 tensor if `y` and `target` are such labels, else `None`.

    Raises:
        TypeError: `estimator` is a class, or no classifier with one label for each sample.
        ValueError: `estimator` is not fitted or knows a single class, `input_shape` is not what
            it was fitted on, or `labels` is missing or does not fit the classes.

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
        self._layers: Layers | None = None  # until the estimator has been seen to be some
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
        """Number of labels that the estimator knows."""
        return len(self.classes)

    @property
    def scores(self) -> Callable[[Tensor], Tensor]:
        """Function from `x` `(n, *features)` to scores `(n, num_classes)`, float64, detached.

        They are probabilities, or decision values of an estimator without; a single decision value
        z becomes (0, z). The function raises as `predict` does, and ValueError for scores that are
        not finite.

        Raises:
            AttributeError: the estimator gives labels only.
        """
        if self._scoring is None:
            raise AttributeError(f"{self!r} has no scores: its estimator gives labels only")
        return self._scores

    @property
    def logits(self) -> Callable[[Tensor], Tensor]:
        """Function from `x` `(n, *features)` to logits `(n, num_classes)`, float64.

        It is differentiable with respect to `x`, and raises as `predict` does.

        Raises:
            AttributeError: the estimator is not a function that could be differentiated here.
        """
        if self._layers is None:
            raise AttributeError(f"{self!r} has no logits that could be differentiated")
        return self._logits

    def encode(self, labels: Any) -> Tensor:
        """Indices `(n,)`, int64, of labels as the estimator knows them.

        Args:
            labels: sequence, array or tensor `(n,)`.

        Raises:
            ValueError: the estimator does not know some of them, or they have another shape.
        """
        if np.ndim(labels) != 1:
            raise ValueError(f"`labels` must have shape (n,), got {np.shape(labels)}")
        given = labels.tolist() if hasattr(labels, "tolist") else list(labels)
        unknown = {label: None for label in given if label not in self._index}  # in their order
        if unknown:
            raise ValueError(f"`labels` must be among {list(self._index)}, got {list(unknown)}")
        return torch.tensor([self._index[label] for label in given], dtype=torch.int64)

    def predict(self, x: Tensor) -> Tensor:
        """Labels `(n,)` of `x` `(n, *features)`, int64: indices into `classes`.

        Raises:
            ValueError: `x` does not have the number of features that the estimator was fitted on.
            TypeError: the estimator answers with several labels for a sample.
        """
        if not len(x):
            return x.new_zeros(0).long()
        answer = np.asarray(self._ask("predict", x))
        if answer.size != len(x) or answer.shape not in ((), (len(x),), (len(x), 1)):
            raise TypeError(
                "`estimator` must give one label for each sample, "
                f"{type(self.estimator).__name__} gave shape {answer.shape} for {len(x)} samples"
            )
        return self.encode(answer.ravel()).to(x.device)

    def _scores(self, x: Tensor) -> Tensor:
        if not len(x):
            return x.new_zeros(0, self.num_classes).double()
        found = np.asarray(self._ask(str(self._scoring), x))
        if len(x) == 1 and found.shape in ((), (self.num_classes,)):
            found = found[None]  # an estimator that squeezes drops the axis of a single sample
        scores = columns(found)
        if scores.shape != (len(x), self.num_classes):
            raise ValueError(
                f"{self._scoring} must give scores {(len(x), self.num_classes)} for {len(x)} "
                f"samples, gave shape {scores.shape}"
            )
        bad = torch.from_numpy(~np.isfinite(scores).all(1))
        if bad.any():
            raise ValueError(
                f"the estimator gave NaN or infinite scores for sample {checks.indices(bad)}"
            )
        return torch.from_numpy(scores).to(x.device)

    def _logits(self, x: Tensor) -> Tensor:
        assert self._layers is not None
        self._check_features(x)
        return self._layers(x)

    def _ask(self, method: str, x: Tensor) -> Any:
        """What the estimator's `method` answers; `x` `(n, *features)` is not empty."""
        self._check_features(x)
        given = as_numpy(x).reshape(len(x), *(self.input_shape or (-1,)))
        if self._layers is not None:
            given = given.astype(np.float64)
        answer = getattr(_nameless(self.estimator), method)(given)
        checks.unmasked(f"{method} of the estimator", answer)
        return answer

    def _check_features(self, x: Tensor) -> None:
        came = math.prod(x.shape[1:])
        if self._features is not None and came != self._features:
            wanted = "the estimator's n_features_in_" if self.input_shape is None else "input_shape"
            raise ValueError(
                f"`x` must have {self._features} features ({wanted}), "
                f"got {came} in shape {tuple(x.shape)}"
            )

    def _feature_count(self) -> int | None:
        found = getattr(self.estimator, "n_features_in_", None)
        if self.input_shape is None:
            return None if found is None else int(found)
        if len(self.input_shape) == 1 and found not in (None, *self.input_shape):
            raise ValueError(
                f"`input_shape` must be ({found},), the estimator's n_features_in_, "
                f"got {self.input_shape}"
            )
        return math.prod(self.input_shape)

    def _probe(self, features: int) -> None:
        """Learn at a few points what the estimator offers; a wrong kind of it is found out here."""
        lower, upper = self.bounds
        points = np.random.default_rng(0).uniform(lower, upper, (_PROBES, features))
        x = torch.from_numpy(points)
        try:
            with np.errstate(all="ignore"):  # of points that are made up
                y = self.predict(x).numpy()
                if self._scoring is not None and not self._scores_each_class(x):
                    self._scoring = None
                if self.input_shape is None or len(self.input_shape) == 1:
                    self._layers = as_layers(self.estimator, points, y, self.bounds)
        except ValueError:
            return  # it takes no made-up points, say since it looks up categories

    def _scores_each_class(self, x: Tensor) -> bool:
        """Whether there is one score for each class, not for each pair of them."""
        scores = columns(self._ask(str(self._scoring), x))
        return scores.shape == (len(x), self.num_classes)


def _classes(estimator: Any) -> Array:
    """The labels that a fitted classifier knows, `(classes,)`."""
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    name = type(estimator).__name__
    if isinstance(estimator, type):
        raise TypeError(
            f"`estimator` must be fitted, got the class {estimator.__name__}; "
            f"pass {estimator.__name__}(...).fit(...)"
        )
    if not callable(getattr(estimator, "predict", None)):
        raise TypeError(f"`estimator` must have predict, got {name}")
    try:
        check_is_fitted(estimator)
    except NotFittedError as error:
        raise ValueError(f"`estimator` must be fitted, got {name} before its fit") from error
    except (AttributeError, TypeError):
        pass  # one that does not derive from scikit-learn; it has classes_ or it will not do
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        raise TypeError(f"`estimator` must be a fitted classifier with classes_, got {name}")
    if isinstance(classes, list) and any(np.ndim(part) for part in classes):
        raise TypeError(f"`estimator` must give one label for each sample, {name} gives several")
    if len(classes) < 2:
        raise ValueError(f"`estimator` must know two classes or more, {name} knows {list(classes)}")
    return np.asarray(classes)


def _label_values(classes: Array, labels: Labels | None) -> Tensor | None:
    """Return the classes as labels to be given, `None` where positions are given."""
    if labels is not None:
        checks.one_of("labels", labels, ("class", "index"))
    known = classes.tolist()
    if not all(isinstance(label, (bool, int, float)) and label == label // 1 for label in known):
        if labels == "class":
            raise ValueError(
                f"`labels` must be 'index' for classes that are not integers, got 'class' for "
                f"{known}. Turn labels into positions with `model.encode(y)`."
            )
        return None
    values = [int(label) for label in known]
    if values == list(range(len(values))):
        return None
    if labels is None:
        raise ValueError(
            f"`labels` must be 'class' or 'index', since the estimator's classes are {values} and "
            f"their positions are {list(range(len(values)))}. "
            "SklearnClassifier(estimator, labels='class') takes `y` and `target` as these classes, "
            "SklearnClassifier(estimator, labels='index') as positions, which `model.encode(y)` "
            "gives."
        )
    return torch.tensor(values) if labels == "class" else None


def _checked_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(shape, (tuple, list)):
        raise TypeError(f"`input_shape` must be a tuple of ints, got {type(shape).__name__}")
    if not shape:
        raise ValueError("`input_shape` must have an axis or more, got ()")
    for length in shape:
        checks.integer("input_shape", length, at_least=1)
    return tuple(shape)


def _scoring(estimator: Any, classes: int) -> str | None:
    """The method that gives one score for each class."""
    if callable(getattr(estimator, "predict_proba", None)):
        return "predict_proba"
    if callable(getattr(estimator, "decision_function", None)):
        return None if compares_pairs(estimator, classes) else "decision_function"
    return None


def _nameless(estimator: Any) -> Any:
    """The estimator without names of features: it would warn that arrays have none.

    A shallow copy; what an estimator keeps elsewhere, such as inside of a pipeline, stays.
    """
    if "feature_names_in_" not in getattr(estimator, "__dict__", ()):
        return estimator
    copied = copy.copy(estimator)
    del copied.feature_names_in_
    return copied
