"""Random forest on rows of outputs, which predicts attacks or models."""
# ruff: noqa: N803 - scikit-learn's methods call their rows X

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.tree import DecisionTreeClassifier, ExtraTreeClassifier
from sklearn.utils.validation import check_is_fitted
from typing_extensions import Self

from advkit.core import checks
from advkit.core.archives import read_npz, write_npz
from advkit.core.content import check_keys
from advkit.detectors.features import (
    Feature,
    Features,
    Floats,
    Outputs,
    Rows,
    check_finite,
    rows_to_fit,
    rows_to_score,
)
from advkit.detectors.flat_forest import FlatForest

_N_ESTIMATORS = 100  # scikit-learn's default
_TREES = (DecisionTreeClassifier, ExtraTreeClassifier)
_FORESTS = (RandomForestClassifier, ExtraTreesClassifier)
_CLEAN_LABELS = (False, "clean")  # False equals 0
_FORMAT = "advkit output forest 1"
_ARRAYS = ("format", "names", "outputs", "classes", "clean", "width")
_FLAT_ARRAYS = ("roots", "left", "feature", "threshold", "leaf", "values")


class OutputForest(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # no types there
    """A classifier of rows of outputs (Kalin, Ciolino and Noever, 2021, arXiv:2102.09695).

    It predicts the labels in `y`: whether a row is of an attack (`table.adversarial`), of which
    attack (`table.attack`), or of which model (`table.model`). It is a scikit-learn estimator.

    The default is the article's: scikit-learn's random forest with its default settings of the time
    on the raw probabilities. The fitted trees are compiled. Predictions equal scikit-learn's to the
    last bit and take about a tenth of a millisecond for one row.

    Args:
        estimator: an estimator with `predict_proba`, which is cloned; `None` for a random forest.
        n_estimators: number of trees of the random forest; not used with an `estimator`.
        features: one or more features of a row: `"raw"`, the row itself; `"sorted"`, from its
            largest entry to its smallest; `"margin"`, the largest entry minus the second largest;
            and `"entropy"`, of the row as probabilities.
        outputs: kind of the rows, `"scores"` or `"logits"`. Only entropy depends on it: it takes
            scores as probabilities, and the softmax of logits.
        clean_label: the label in `y` of rows without an attack, for `anomaly_score`; `None` for
            `False`, 0 or `"clean"`, whichever is among the labels.
        random_state: an int that determines all randomness, or a `RandomState`; `None` for a random
            seed. It is passed to an `estimator` that has this parameter.

    Attributes:
        classes_: the labels, sorted, `(classes,)`.
        n_features_in_: number of entries in a row.
        estimator_: the fitted estimator; not set for a loaded forest.
        features_: the function from rows to features.

    Example:
        >>> import numpy as np
        >>> from advkit.detectors import OutputForest
        >>> rng = np.random.default_rng(0)
        >>> confident, uncertain = rng.dirichlet([9, 1, 1], 200), rng.dirichlet([3, 3, 3], 200)
        >>> rows, attacked = np.concatenate([confident, uncertain]), np.repeat([False, True], 200)
        >>> forest = OutputForest(random_state=0).fit(rows, attacked)
        >>> scores = forest.anomaly_score([[0.4, 0.3, 0.3], [0.9, 0.05, 0.05]])
        >>> bool(scores[0] > scores[1])
        True
    """

    def __init__(
        self,
        estimator: Any = None,
        n_estimators: int = _N_ESTIMATORS,
        features: Sequence[Feature] = ("raw",),
        outputs: Outputs = "scores",
        clean_label: object = None,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.n_estimators = n_estimators
        self.features = features
        self.outputs = outputs
        self.clean_label = clean_label
        self.random_state = random_state

    def fit(self, X: npt.ArrayLike, y: npt.ArrayLike) -> Self:
        """Fit the forest to labeled rows.

        Args:
            X: rows of outputs `(n, width)`, finite.
            y: labels `(n,)` with at least two different values: bools, ints or strings.

        Returns:
            This forest.

        Raises:
            ValueError: rows or labels have the wrong shape, rows are not finite or not of the kind
                `outputs`, `y` has a single value, `clean_label` is not in `y`, or an option is out
                of its range.
            TypeError: an option has the wrong type, or the estimator lacks `predict_proba`.
        """
        features = Features(self.features, self.outputs)
        estimator = self._new_estimator()
        rows, y = rows_to_fit(self, X, y)
        features.check_fit(rows)
        classes = np.unique(y)
        if len(classes) < 2:
            raise ValueError(
                f"`y` must hold at least 2 classes, got one class: {classes.tolist()}."
            )
        self._clean = _clean_index(classes, self.clean_label)
        self.features_ = features
        self.estimator_ = estimator.fit(features(rows), y)
        self.classes_ = classes
        self._flat = _compile(self.estimator_)
        return self

    def _new_estimator(self) -> Any:
        """Return the estimator, not fitted."""
        if self.estimator is None:
            checks.integer("n_estimators", self.n_estimators, at_least=1)
            return RandomForestClassifier(self.n_estimators, random_state=self.random_state)
        if self.n_estimators != _N_ESTIMATORS:
            raise ValueError(
                f"`n_estimators` must be {_N_ESTIMATORS} with an `estimator`, got "
                f"{self.n_estimators}. Set it in `estimator`."
            )
        estimator = clone(self.estimator)
        if not callable(getattr(estimator, "predict_proba", None)):
            raise TypeError(f"`estimator` must have predict_proba, got {type(estimator).__name__}.")
        if self.random_state is not None and "random_state" in estimator.get_params(deep=False):
            estimator.set_params(random_state=self.random_state)
        return estimator

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "classes_")

    def predict_proba(self, X: npt.ArrayLike) -> Floats:
        """Return the probabilities `(n, classes)` of `classes_` for rows of outputs `(n, width)`.

        Raises:
            NotFittedError: the forest is not fitted; a subclass of ValueError.
            ValueError: rows have another width than in `fit`, or are not finite.
        """
        rows = rows_to_score(self, X)
        features = self.features_(rows)
        if self._flat is None:
            probabilities = self.estimator_.predict_proba(features)
            checks.unmasked("the estimator's probabilities", probabilities)
            return np.asarray(probabilities)
        return self._flat.probabilities(_as_float32(features))

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return the most probable labels `(n,)`; raise as `predict_proba` does."""
        most_probable = self.predict_proba(X).argmax(1)
        return np.asarray(self.classes_.take(most_probable))

    def anomaly_score(self, outputs: npt.ArrayLike) -> Floats:
        """Return one minus the probability of the clean label `(n,)` for rows `(n, width)`.

        Raises:
            NotFittedError: the forest is not fitted; a subclass of ValueError.
            ValueError: there is no clean label, rows have another width than in `fit`, or rows are
                not finite.
        """
        p = self.predict_proba(outputs)
        if self._clean is None:
            raise ValueError(
                "`y` must have a label of clean rows for anomaly_score: False, 0 or 'clean', got "
                f"{self.classes_.tolist()}. Pass clean_label=... for another label."
            )
        return 1 - p[:, self._clean]

    def save(self, path: str | Path) -> None:
        """Write the fitted forest to a `.npz` archive of plain arrays, whole or not at all.

        The file holds what prediction needs, but not the settings for another `fit`.

        Raises:
            NotFittedError: the forest is not fitted; a subclass of ValueError.
            TypeError: the estimator is not one of scikit-learn's trees or forests of trees, or
                labels are neither numbers nor strings.
        """
        write_npz(Path(path), self.arrays())

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the plain arrays that `save` writes, by name; raise as `save` does."""
        check_is_fitted(self)
        if self._flat is None:
            raise TypeError(
                "`estimator` must be a random forest, extra trees or a single tree to be saved, "
                f"got {type(self.estimator_).__name__}. Use joblib for files that only you write."
            )
        classes = np.asarray(self.classes_.tolist())
        if classes.dtype.kind not in "biufU":
            raise TypeError(f"`y` must hold numbers or strings to be saved, got {classes.dtype}.")
        metadata = {
            "format": _FORMAT,
            "names": list(self.features_.names),
            "outputs": self.features_.outputs,
            "classes": classes,
            "clean": -1 if self._clean is None else self._clean,
            "width": self.n_features_in_,
        }
        arrays = {name: np.asarray(value) for name, value in metadata.items()}
        return arrays | self._flat.arrays()

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a forest that `save` wrote; its predictions equal the saved one's to the last bit.

        Reading executes no code. Whatever the file holds, predictions read nothing outside its
        arrays and end in finite time. `fit` on a loaded forest fits a new default forest.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is damaged or does not hold a forest of outputs.
        """
        path = Path(path)
        arrays = read_npz(path, (*_ARRAYS, *_FLAT_ARRAYS))
        if str(arrays["format"]) != _FORMAT:
            raise ValueError(f"`path` must be a file of an OutputForest, got {path}.")
        try:
            return cls.from_arrays(arrays)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path} does not hold a valid OutputForest: {error}") from error

    @classmethod
    def from_arrays(cls, arrays: dict[str, npt.NDArray[Any]]) -> Self:
        """Return the forest whose `arrays` these are.

        Raises:
            TypeError: an array has the wrong type.
            ValueError: the arrays are not those of a forest.
            OverflowError: a number is too large.
        """
        check_keys("arrays", arrays, (*_ARRAYS, *_FLAT_ARRAYS))
        outputs: Any = str(arrays["outputs"])
        features = Features(tuple(arrays["names"].tolist()), outputs)
        width, clean = int(arrays["width"]), int(arrays["clean"])
        classes = arrays["classes"]
        flat = FlatForest(**{name: arrays[name] for name in _FLAT_ARRAYS})
        checks.integer("width", width, at_least=1)
        flat.check(features.columns(width))
        if classes.shape != (flat.classes,) or len(np.unique(classes)) != max(2, len(classes)):
            raise ValueError(f"`classes` must be {flat.classes} different labels, got {classes}.")
        if not -1 <= clean < len(classes):
            raise ValueError(f"`clean` must be one of {len(classes)} classes, got {clean}.")
        label = None if clean < 0 else classes[clean].item()
        forest = cls(features=features.names, outputs=features.outputs, clean_label=label)
        forest.features_, forest.classes_, forest.n_features_in_ = features, classes, width
        forest._flat, forest._clean = flat, None if clean < 0 else clean
        return forest


def _compile(estimator: Any) -> FlatForest | None:
    """Return the compiled trees of a fitted estimator; `None` if it is not a tree or forest."""
    if type(estimator) in _TREES:
        return FlatForest.of([estimator.tree_])
    if type(estimator) in _FORESTS:
        return FlatForest.of([tree.tree_ for tree in estimator.estimators_])
    return None


def _clean_index(classes: npt.NDArray[Any], clean_label: object) -> int | None:
    """Return the index of the clean label; `None` if there is none and none was given."""
    candidates = _CLEAN_LABELS if clean_label is None else (clean_label,)
    indices = [i for i, label in enumerate(classes.tolist()) if label in candidates]
    if not indices and clean_label is not None:
        raise ValueError(f"`clean_label` must be one of {classes.tolist()}, got {clean_label!r}.")
    return indices[0] if indices else None


def _as_float32(rows: Rows) -> npt.NDArray[np.float32]:
    """Return rows in float32, the dtype of scikit-learn's trees."""
    if rows.dtype != np.float32:
        with np.errstate(over="ignore"):
            rows = rows.astype(np.float32)
        check_finite(rows)
    return np.ascontiguousarray(rows, dtype=np.float32)
