"""A forest that learns from outputs: clean or attacked, by what, and on which model."""
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
from advkit.detectors.features import (
    Feature,
    Features,
    Floats,
    Outputs,
    Rows,
    check_finite,
    rows_to_judge,
    rows_to_learn,
)
from advkit.detectors.flat_forest import FlatForest

_TREES = 100
_SINGLE = (DecisionTreeClassifier, ExtraTreeClassifier)
_SEVERAL = (RandomForestClassifier, ExtraTreesClassifier)
_CLEAN = (False, "clean")  # False is 0 as well
_FORMAT = "advkit output forest 1"
_ARRAYS = ("format", "names", "outputs", "classes", "clean", "width")
_FLAT = ("roots", "left", "feature", "threshold", "leaf", "values")


class OutputForest(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # no types there
    """A classifier of rows of outputs (Kalin, Ciolino and Noever, 2021, arXiv:2102.09695).

    What it tells apart is what `y` holds: whether there was an attack (`table.adversarial`), which
    one (`table.attack`), or which model answered (`table.model`). A scikit-learn estimator through
    and through.

    The article takes scikit-learn's random forest with its settings of the time on the plain
    probabilities, which is the default here. Trees are compiled once they are fitted: answers are
    scikit-learn's to the last bit, for one row within a tenth of a millisecond or so.

    Args:
        estimator: what learns, with `predict_proba`; `None` for a random forest. It is cloned.
        n_estimators: trees of the random forest; an `estimator` has its own.
        features: what it looks at: one or more of `"raw"`, the row as it is; `"sorted"`, from its
            largest entry to its smallest; `"margin"`, the largest entry minus the second largest;
            and `"entropy"`, of the row as probabilities.
        outputs: what the rows are, `"scores"` or `"logits"`. Only entropy makes a difference: it
            takes scores as probabilities, and the softmax of logits.
        clean_label: the label in `y` that stands for no attack, for `anomaly_score`; `None` for
            `False`, 0 or `"clean"`, whichever is there.
        random_state: an int from which all randomness follows, or a `RandomState`; `None` draws.
            An `estimator` gets it too, if it takes one.

    Attributes:
        classes_: the labels, sorted, `(classes,)`.
        n_features_in_: numbers in a row.
        estimator_: the fitted estimator; a loaded forest has none.
        features_: what it looks at, a function of rows.

    Example:
        >>> import numpy as np
        >>> from advkit.detectors import OutputForest
        >>> rng = np.random.default_rng(0)
        >>> sure, unsure = rng.dirichlet([9, 1, 1], 200), rng.dirichlet([3, 3, 3], 200)
        >>> attacked = np.repeat([False, True], 200)
        >>> forest = OutputForest(random_state=0).fit(np.concatenate([sure, unsure]), attacked)
        >>> bool(forest.anomaly_score([[0.4, 0.3, 0.3]]) > forest.anomaly_score([[0.9, 0.05, 0.05]]))
        True
    """

    def __init__(
        self,
        estimator: Any = None,
        n_estimators: int = _TREES,
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
        """Learn to tell the labels apart.

        Args:
            X: rows of outputs `(n, width)`, finite.
            y: labels `(n,)`, of two kinds or more: bools, ints or strings.

        Returns:
            This forest.

        Raises:
            ValueError: rows or labels of the wrong shape, rows that are not finite or not what
                `outputs` says, a single label, an unknown `clean_label`, or an option out of range.
            TypeError: an option of the wrong type, or an estimator without `predict_proba`.
        """
        features = Features(self.features, self.outputs)
        estimator = self._made()
        rows, y = rows_to_learn(self, X, y)
        features.check_learned(rows)
        classes = np.unique(y)
        if len(classes) < 2:
            raise ValueError(
                f"`y` must hold two classes or more, got one class: {classes.tolist()}"
            )
        self._clean = _clean_index(classes, self.clean_label)
        self.features_ = features
        self.estimator_ = estimator.fit(features(rows), y)
        self.classes_ = classes
        self._flat = _flattened(self.estimator_)
        return self

    def _made(self) -> Any:
        """The estimator before its fit."""
        if self.estimator is None:
            checks.integer("n_estimators", self.n_estimators, at_least=1)
            return RandomForestClassifier(self.n_estimators, random_state=self.random_state)
        if self.n_estimators != _TREES:
            raise ValueError(
                f"n_estimators={self.n_estimators} is for the default forest; set it in estimator"
            )
        made = clone(self.estimator)
        if not callable(getattr(made, "predict_proba", None)):
            raise TypeError(f"`estimator` must have predict_proba, got {type(made).__name__}")
        if self.random_state is not None and "random_state" in made.get_params(deep=False):
            made.set_params(random_state=self.random_state)
        return made

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "classes_")

    def predict_proba(self, X: npt.ArrayLike) -> Floats:
        """Probability of each of `classes_` `(n, classes)` for rows of outputs `(n, width)`.

        Raises:
            NotFittedError: before `fit`; a ValueError.
            ValueError: rows of another width, or that are not finite.
        """
        rows = rows_to_judge(self, X)
        looked_at = self.features_(rows)
        if self._flat is None:
            found = self.estimator_.predict_proba(looked_at)
            checks.unmasked("the estimator's probabilities", found)
            return np.asarray(found)
        return self._flat.probabilities(_narrowed(looked_at))

    def predict(self, X: npt.ArrayLike) -> npt.NDArray[Any]:
        """The label of the largest probability, `(n,)`; raises as `predict_proba` does."""
        best = self.predict_proba(X).argmax(1)
        return np.asarray(self.classes_.take(best))

    def anomaly_score(self, outputs: npt.ArrayLike) -> Floats:
        """One minus the probability of the clean label, `(n,)`, for rows of outputs `(n, width)`.

        Raises:
            NotFittedError: before `fit`; a ValueError.
            ValueError: there is no clean label, or as `predict_proba`.
        """
        p = self.predict_proba(outputs)
        if self._clean is None:
            raise ValueError(
                "suspicion needs a label of clean outputs (False, 0 or 'clean', or say "
                f"clean_label=...), labels are {self.classes_.tolist()}"
            )
        return 1 - p[:, self._clean]

    def save(self, path: str | Path) -> None:
        """Write the fitted forest to a `.npz` archive of plain arrays, whole or not at all.

        The file holds what is needed to answer, not to learn again.

        Raises:
            NotFittedError: before `fit`; a ValueError.
            TypeError: the estimator is none of scikit-learn's trees or forests of trees, or labels
                are neither numbers nor strings.
        """
        check_is_fitted(self)
        if self._flat is None:
            raise TypeError(
                "only random forests, extra trees and single trees can be saved as arrays, got "
                f"{type(self.estimator_).__name__}; use joblib for files that only you write"
            )
        classes = np.asarray(self.classes_.tolist())
        if classes.dtype.kind not in "biufU":
            raise TypeError(f"`labels` must be numbers or strings to be saved, got {classes.dtype}")
        about = {
            "format": _FORMAT,
            "names": list(self.features_.names),
            "outputs": self.features_.outputs,
            "classes": classes,
            "clean": -1 if self._clean is None else self._clean,
            "width": self.n_features_in_,
        }
        arrays = {name: np.asarray(value) for name, value in about.items()}
        write_npz(Path(path), arrays | self._flat.arrays())

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read what `save` wrote: a forest that answers to the last bit as the saved one.

        Reading runs no code, and whatever the file holds, an answer comes from within the arrays
        and in finite time. `fit` makes a new default forest.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: it is damaged, or no such forest.
        """
        path = Path(path)
        arrays = read_npz(path, (*_ARRAYS, *_FLAT))
        if str(arrays["format"]) != _FORMAT:
            raise ValueError(f"{path} is no forest of outputs")
        try:
            return cls._from(arrays)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path} is no valid forest of outputs: {error}") from error

    @classmethod
    def _from(cls, arrays: dict[str, npt.NDArray[Any]]) -> Self:
        """The forest of checked `arrays`."""
        outputs: Any = str(arrays["outputs"])
        features = Features(tuple(arrays["names"].tolist()), outputs)
        width, clean = int(arrays["width"]), int(arrays["clean"])
        classes, flat = arrays["classes"], FlatForest(**{name: arrays[name] for name in _FLAT})
        checks.integer("width", width, at_least=1)
        flat.check(features.columns(width))
        if classes.shape != (flat.classes,) or len(np.unique(classes)) != max(2, len(classes)):
            raise ValueError(f"`classes` must be {flat.classes} different labels, got {classes}")
        if not -1 <= clean < len(classes):
            raise ValueError(f"`clean` must be one of {len(classes)} classes, got {clean}")
        label = None if clean < 0 else classes[clean].item()
        found = cls(features=features.names, outputs=features.outputs, clean_label=label)
        found.features_, found.classes_, found.n_features_in_ = features, classes, width
        found._flat, found._clean = flat, None if clean < 0 else clean
        return found


def _flattened(estimator: Any) -> FlatForest | None:
    """The trees of a fitted estimator, compiled; `None` if it has no such trees."""
    if type(estimator) in _SINGLE:
        return FlatForest.of([estimator.tree_])
    if type(estimator) in _SEVERAL:
        return FlatForest.of([tree.tree_ for tree in estimator.estimators_])
    return None


def _clean_index(classes: npt.NDArray[Any], clean_label: object) -> int | None:
    """Where the clean label is among the labels; `None` if nobody asked and it is not there."""
    wanted = _CLEAN if clean_label is None else (clean_label,)
    found = [i for i, label in enumerate(classes.tolist()) if label in wanted]
    if not found and clean_label is not None:
        raise ValueError(f"`clean_label` must be one of {classes.tolist()}, got {clean_label!r}")
    return found[0] if found else None


def _narrowed(rows: Rows) -> npt.NDArray[np.float32]:
    """Rows in float32, as scikit-learn's trees take them."""
    if rows.dtype != np.float32:
        with np.errstate(over="ignore"):
            rows = rows.astype(np.float32)
        check_finite(rows)
    return np.ascontiguousarray(rows, dtype=np.float32)
