"""The door of the detectors, and what they look at in a row of outputs."""
# ruff: noqa: N803 - scikit-learn's methods call their rows X

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import entr
from sklearn.utils.validation import check_is_fitted, validate_data

from advkit.core import checks

Outputs = Literal["scores", "logits"]
Feature = Literal["raw", "sorted", "margin", "entropy"]
Rows = npt.NDArray[np.floating[Any]]
Floats = npt.NDArray[np.float64]

OUTPUTS: tuple[Outputs, ...] = ("scores", "logits")
_DTYPES = [np.float64, np.float32]  # what is neither becomes the first
_TOLERANCE = 1e-2  # services round what they answer
_ALIKE = 1e-3  # how near to one the sums of probabilities in float32 are


@dataclass(frozen=True)
class Features:
    """Features of rows of outputs, side by side in the order of their names.

    Args:
        names: which, each once: `"raw"`, the row as it is; `"sorted"`, the row from its largest
            entry to its smallest; `"margin"`, the largest entry minus the second largest;
            `"entropy"`, of the row as probabilities, in nats.
        outputs: what the rows are, `"scores"` or `"logits"`. Entropy takes scores as probabilities
            and the softmax of logits; the other features look at the row as it is.

    Raises:
        TypeError: `names` is no list or tuple.
        ValueError: a name is unknown or there twice, there is none, or `outputs` is unknown.
    """

    names: Sequence[Feature]
    outputs: Outputs

    def __post_init__(self) -> None:
        checks.one_of("outputs", self.outputs, OUTPUTS)
        if not isinstance(self.names, (tuple, list)):
            raise TypeError(f"`features` must be a tuple of names, got {self.names!r}")
        for name in self.names:
            checks.one_of("features", name, tuple(_FEATURES))
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"`features` must be one name or more, each once, got {self.names!r}")

    def __call__(self, rows: Rows) -> Rows:
        """Features `(n, k)` of `rows` `(n, width)`, which are finite.

        Raises:
            ValueError: the rows have too few columns for a feature, or are to be probabilities and
                are not.
        """
        if len(self.names) == 1 and self.names[0] == "raw":
            return rows  # as it comes, for the sake of a single request
        return np.concatenate([_FEATURES[name](rows, self.outputs) for name in self.names], axis=1)

    def columns(self, width: int) -> int:
        """How many features there are of rows with `width` numbers."""
        return sum(width if name in ("raw", "sorted") else 1 for name in self.names)

    def check_learned(self, rows: Rows) -> None:
        """Raise if the `rows` to learn from are not what `outputs` says, where that counts."""
        if "entropy" in self.names:
            check_kind(rows, self.outputs)


def check_kind(rows: Rows, outputs: Outputs) -> None:
    """Raise if `rows` `(n, width)` are said to be logits and are probabilities, all of them."""
    alike = (rows >= 0).all() and (np.abs(rows.sum(1) - 1) < _ALIKE).all()
    if outputs == "logits" and alike:
        raise ValueError(
            "`outputs` must be logits, got rows that are probabilities; say outputs='scores'"
        )


def rows_to_learn(detector: Any, X: npt.ArrayLike, y: Any) -> tuple[Rows, Any]:
    """Checked rows `(n, width)` and labels for a `fit`; `y` is "no_validation" if there are none.

    Raises:
        ValueError: they have the wrong shape, or are not finite.
    """
    checks.unmasked("outputs", X)
    found = validate_data(detector, X, y, dtype=_DTYPES, ensure_all_finite=False)
    rows, labels = (found, None) if isinstance(y, str) else found
    check_finite(rows)
    return rows, labels


def rows_to_judge(detector: Any, X: npt.ArrayLike) -> Rows:
    """Checked rows `(n, width)` for a fitted detector.

    A plain array is looked at here; scikit-learn's own door, which says more of what is wrong,
    takes most of the time that a single request may take.

    Raises:
        NotFittedError: the detector is not fitted; a ValueError.
        ValueError: the rows have another width than those it has learned from, or are not finite.
    """
    plain = (
        type(X) is np.ndarray
        and X.dtype.char in "fd"
        and X.ndim == 2
        and len(X) > 0
        and X.shape[1] == getattr(detector, "n_features_in_", None)
        and not hasattr(detector, "feature_names_in_")
    )
    rows: Any = X
    if not plain:
        check_is_fitted(detector)
        checks.unmasked("outputs", X)
        rows = validate_data(detector, X, reset=False, dtype=_DTYPES, ensure_all_finite=False)
    check_finite(rows)
    return rows  # type: ignore[no-any-return]  # floats of either kind


def check_finite(rows: Rows) -> None:
    """Raise unless all of `rows` `(n, width)` are finite."""
    finite = np.isfinite(rows)
    if not finite.all():
        where = checks.indices(torch.from_numpy(~finite.all(1)))
        raise ValueError(f"`outputs` must be finite, have NaN or infinity in row {where}")


def probabilities(rows: Rows, outputs: Outputs) -> Floats:
    """`rows` `(n, width)` as probabilities: the softmax of logits, scores as they are.

    Raises:
        ValueError: there is a single column, or a row of scores is no distribution; values and
            their sum may be off by 0.01, since services round what they answer.
    """
    _check_columns(rows)
    if outputs == "logits":
        return softmax(rows)
    p = rows.astype(np.float64)
    inside = ((p >= -_TOLERANCE) & (p <= 1 + _TOLERANCE)).all(1)
    bad = ~(inside & (np.abs(p.sum(1) - 1) <= _TOLERANCE))
    if bad.any():
        where = checks.indices(torch.from_numpy(bad))
        raise ValueError(
            f"`outputs` must be probabilities (in [0, 1], summing to 1), are not in row {where}; "
            "say outputs='logits' if that is what they are"
        )
    return p.clip(0)


def softmax(rows: Rows) -> Floats:
    """Probabilities `(n, width)` of logits."""
    powers = np.exp(rows.astype(np.float64) - rows.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def entropy(p: Floats) -> Floats:
    """Entropy `(n,)` of distributions `(n, width)`, in nats."""
    return np.asarray(entr(p).sum(1))


def margin(rows: Rows) -> Floats:
    """The largest entry of each of `rows` `(n, width)` minus the second largest, `(n,)`."""
    _check_columns(rows)
    top = np.partition(rows, -2, axis=1)[:, -2:].astype(np.float64)
    return np.asarray(top[:, 1] - top[:, 0])


def _check_columns(rows: Rows) -> None:
    if rows.shape[1] < 2:
        raise ValueError(
            "`outputs` must have two columns or more to have a margin or probabilities, "
            f"got n_features = {rows.shape[1]}"
        )


_FEATURES: dict[Feature, Callable[[Rows, Outputs], Rows]] = {
    "raw": lambda rows, _: rows,
    "sorted": lambda rows, _: np.sort(rows, axis=1)[:, ::-1],
    "margin": lambda rows, _: margin(rows)[:, None],
    "entropy": lambda rows, outputs: entropy(probabilities(rows, outputs))[:, None],
}
