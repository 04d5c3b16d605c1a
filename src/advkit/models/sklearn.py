"""Fitted scikit-learn estimators as classifiers, with gradients where they are plain functions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from advkit.core import checks
from advkit.models.callable import as_numpy
from advkit.models.torch import checked_bounds

Array = npt.NDArray[Any]
_PROBES = 8
_PRECISION = 1e-6  # float32, in which some estimators were fitted, leaves that much
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda h: h,
    "logistic": torch.sigmoid,
    "tanh": torch.tanh,
    "relu": torch.relu,
}


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

    Args:
        estimator: fitted, with one label of two or more for each sample.
        input_shape: shape of a sample that the estimator takes; `None` flattens. With more than one
            axis there are no logits.
        bounds: lower and upper end of valid feature values, in the units of the input.

    Attributes:
        estimator: the estimator.
        bounds: as given.
        classes: the labels that the estimator knows, NumPy array `(num_classes,)`.

    Raises:
        TypeError: `estimator` is a class, or no classifier with one label for each sample.
        ValueError: `estimator` is not fitted or knows a single class, or `input_shape` is not what
            it was fitted on.

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
    ) -> None:
        self.bounds = checked_bounds(bounds)
        self.classes: Array = _classes(estimator)
        self.estimator = estimator
        self.input_shape = None if input_shape is None else _checked_shape(input_shape)
        self._index = {label: i for i, label in enumerate(self.classes.tolist())}
        self._scoring = _scoring(estimator, len(self.classes))
        self._layers: _Layers | None = None  # until the estimator has been seen to be some
        self._features = self._feature_count()
        if self._features is not None:
            self._probe(self._features)

    def __repr__(self) -> str:
        lower, upper = self.bounds
        name = type(self.estimator).__name__
        return f"SklearnClassifier({name}, bounds=({lower:g}, {upper:g}))"

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
            raise ValueError(f"labels must have shape (n,), got {np.shape(labels)}")
        given = labels.tolist() if hasattr(labels, "tolist") else list(labels)
        unknown = {label: None for label in given if label not in self._index}  # in their order
        if unknown:
            raise ValueError(f"labels must be among {list(self._index)}, got {list(unknown)}")
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
        if answer.shape not in ((len(x),), (len(x), 1)):
            raise TypeError(
                "estimator must give one label for each sample, "
                f"{type(self.estimator).__name__} gave shape {answer.shape} for {len(x)} samples"
            )
        return self.encode(answer.ravel()).to(x.device)

    def _scores(self, x: Tensor) -> Tensor:
        if not len(x):
            return x.new_zeros(0, self.num_classes).double()
        scores = _columns(self._ask(str(self._scoring), x))
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
        with _nameless():
            return getattr(self.estimator, method)(given)

    def _check_features(self, x: Tensor) -> None:
        came = math.prod(x.shape[1:])
        if self._features is not None and came != self._features:
            wanted = "the estimator's n_features_in_" if self.input_shape is None else "input_shape"
            raise ValueError(
                f"x must have {self._features} features ({wanted}), "
                f"got {came} in shape {tuple(x.shape)}"
            )

    def _feature_count(self) -> int | None:
        found = getattr(self.estimator, "n_features_in_", None)
        if self.input_shape is None:
            return None if found is None else int(found)
        if len(self.input_shape) == 1 and found not in (None, *self.input_shape):
            raise ValueError(
                f"input_shape must be ({found},), the estimator's n_features_in_, "
                f"got {self.input_shape}"
            )
        return math.prod(self.input_shape)

    def _probe(self, features: int) -> None:
        """Learn at a few points what the estimator offers; a wrong kind of it is found out here."""
        lower, upper = self.bounds
        points = np.random.default_rng(0).uniform(lower, upper, (_PROBES, features))
        x = torch.from_numpy(points)
        try:
            with _silent():
                y = self.predict(x).numpy()
                if self._scoring is not None and not self._scores_each_class(x):
                    self._scoring = None
                if self.input_shape is None or len(self.input_shape) == 1:
                    self._layers = _as_layers(self.estimator, points, y, self.bounds)
        except ValueError:
            return  # it takes no made-up points, say since it looks up categories

    def _scores_each_class(self, x: Tensor) -> bool:
        """Whether there is one score for each class, not for each pair of them."""
        scores = _columns(self._ask(str(self._scoring), x))
        return scores.shape == (len(x), self.num_classes)


def _classes(estimator: Any) -> Array:
    """The labels that a fitted classifier knows, `(classes,)`."""
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_is_fitted

    name = type(estimator).__name__
    if isinstance(estimator, type):
        raise TypeError(
            f"estimator must be fitted, got the class {estimator.__name__}; "
            f"pass {estimator.__name__}(...).fit(...)"
        )
    if not callable(getattr(estimator, "predict", None)):
        raise TypeError(f"estimator must have predict, got {name}")
    try:
        check_is_fitted(estimator)
    except NotFittedError as error:
        raise ValueError(f"estimator must be fitted, got {name} before its fit") from error
    except (AttributeError, TypeError):
        pass  # one that does not derive from scikit-learn; it has classes_ or it will not do
    classes = getattr(estimator, "classes_", None)
    if classes is None:
        raise TypeError(f"estimator must be a fitted classifier with classes_, got {name}")
    if isinstance(classes, list) and any(np.ndim(part) for part in classes):
        raise TypeError(f"estimator must give one label for each sample, {name} gives several")
    if len(classes) < 2:
        raise ValueError(f"estimator must know two classes or more, {name} knows {list(classes)}")
    return np.asarray(classes)


def _checked_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    if not isinstance(shape, (tuple, list)):
        raise TypeError(f"input_shape must be a tuple of ints, got {type(shape).__name__}")
    if not shape:
        raise ValueError("input_shape must have an axis or more, got ()")
    for length in shape:
        checks.whole("input_shape", length, at_least=1)
    return tuple(shape)


def _scoring(estimator: Any, classes: int) -> str | None:
    """The method that gives one score for each class."""
    if callable(getattr(estimator, "predict_proba", None)):
        return "predict_proba"
    if callable(getattr(estimator, "decision_function", None)):
        return None if _compares_pairs(estimator, classes) else "decision_function"
    return None


def _compares_pairs(estimator: Any, classes: int) -> bool:
    """Whether decision values are those of pairs; of three classes there are three, as of one."""
    parameters = estimator.get_params() if hasattr(estimator, "get_params") else {}
    return classes > 2 and any(
        name.split("__")[-1] == "decision_function_shape" and value == "ovo"
        for name, value in parameters.items()
    )


def _columns(scores: Any) -> Array:
    """Scores `(n, classes)`, float64; a single one z for each sample becomes (0, z)."""
    array = np.array(scores, dtype=np.float64, order="C")
    single = array.ndim == 1 or array.shape[1:] == (1,)
    z = array.reshape(len(array), -1)
    return np.concatenate([np.zeros_like(z), z], axis=1) if single else array


@contextmanager
def _nameless() -> Iterator[None]:
    """No word about features without names: tensors have none."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="X does not have valid feature names")
        yield


@contextmanager
def _silent() -> Iterator[None]:
    """No word of what an estimator thinks of made-up points."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


@dataclass(frozen=True, eq=False)
class _Layers:
    """Affine layers in float64 with an activation between them; one layer is a linear model."""

    weights: tuple[Tensor, ...]  # (inputs, outputs) each
    biases: tuple[Tensor, ...]  # (outputs,)
    activation: str = "identity"
    scale: Tensor | float = 1.0  # (features,), of what comes before the first layer
    shift: Tensor | float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        """Logits `(n, classes)`; a single output z becomes (0, z)."""
        h = x.flatten(1).double() * _on(self.scale, x) + _on(self.shift, x)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = h if i == 0 else _ACTIVATIONS[self.activation](h)
            h = h @ weight.to(x.device) + bias.to(x.device)
        return torch.cat([torch.zeros_like(h), h], dim=1) if h.shape[1] == 1 else h


def _on(value: Tensor | float, x: Tensor) -> Tensor | float:
    return value.to(x.device) if isinstance(value, Tensor) else value


def _as_layers(
    estimator: Any, points: Array, y: Array, bounds: tuple[float, float]
) -> _Layers | None:
    """The estimator as layers, if they say the same as it does.

    Args:
        estimator: fitted.
        points: within the bounds, `(m, features)`.
        y: what it predicts there, as indices `(m,)`.
        bounds: of the features.
    """
    from sklearn.pipeline import Pipeline

    steps = estimator.steps if isinstance(estimator, Pipeline) else [("", estimator)]
    layers = _linear(steps[-1][1]) or _perceptron(steps[-1][1])
    if layers is not None:
        layers = _behind([step for _, step in steps[:-1]], layers, points, bounds)
    return layers if layers is not None and _say_the_same(layers, estimator, points, y) else None


def _linear(estimator: Any) -> _Layers | None:
    coef, intercept = getattr(estimator, "coef_", None), getattr(estimator, "intercept_", None)
    if not isinstance(coef, np.ndarray) or coef.ndim not in (1, 2) or intercept is None:
        return None
    coef = np.atleast_2d(coef)
    bias = np.broadcast_to(np.ravel(intercept), (len(coef),))
    return _Layers((_double(coef.T),), (_double(bias),))


def _perceptron(estimator: Any) -> _Layers | None:
    activation = getattr(estimator, "activation", None)
    if not hasattr(estimator, "coefs_") or activation not in _ACTIVATIONS:
        return None
    weights, biases = map(_double, estimator.coefs_), map(_double, estimator.intercepts_)
    return _Layers(tuple(weights), tuple(biases), activation)


def _double(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float64, order="C"))


def _behind(
    steps: list[Any], layers: _Layers, points: Array, bounds: tuple[float, float]
) -> _Layers | None:
    """The layers behind the steps of a pipeline, if these shift and scale each feature.

    The ends of the bounds give shift and scale; the points show whether that is all they do.
    """
    if not steps:
        return layers
    lower, upper = bounds
    ends = np.stack([np.full(points.shape[1], end, dtype=np.float64) for end in bounds])
    images = _through(steps, np.concatenate([ends, points]))
    if images is None:
        return None
    scale = (images[1] - images[0]) / (upper - lower)
    shift = images[0] - lower * scale
    if not _close(points * scale + shift, images[2:]):
        return None
    return replace(layers, scale=_double(scale), shift=_double(shift))


def _through(steps: list[Any], points: Array) -> Array | None:
    """What a pipeline's steps make of points; `None` unless it is of the same shape."""
    out: Any = points
    for step in steps:
        if step is not None and step != "passthrough":
            out = step.transform(out)
    same = isinstance(out, np.ndarray) and out.shape == points.shape
    return out.astype(np.float64) if same else None


def _say_the_same(layers: _Layers, estimator: Any, points: Array, y: Array) -> bool:
    """Whether the layers give the estimator's labels and decision values, or its probabilities."""
    classes = len(estimator.classes_)
    if layers.weights[0].shape[0] != points.shape[1] or _compares_pairs(estimator, classes):
        return False
    claimed = layers(torch.from_numpy(points))
    if (claimed.argmax(1).numpy() != y).any():
        return False
    if hasattr(estimator, "decision_function"):
        return _close(claimed.numpy(), _columns(estimator.decision_function(points)))
    if hasattr(estimator, "predict_proba"):
        return _close(claimed.softmax(1).numpy(), _columns(estimator.predict_proba(points)))
    return False


def _close(claimed: Array, found: Array) -> bool:
    if claimed.shape != found.shape:
        return False
    size = 1 + np.abs(found).max(0)
    return bool((np.abs(claimed - found) <= _PRECISION * size).all())
