"""Validation of rows of outputs, and features of them."""
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
_DTYPES = [np.float64, np.float32]  # other dtypes are converted to the first
_SCORE_TOLERANCE = 1e-2  # of probabilities and their sum: services round the scores they return
_SUM_TOLERANCE = 1e-3  # of the sum of exact probabilities: far above the rounding of float32


@dataclass(frozen=True)
class Features:
    """Features of rows of outputs, side by side in the order of their names.

    Args:
        names: names of the features, each once: `"raw"`, the row itself; `"sorted"`, the row from
            its largest entry to its smallest; `"margin"`, the largest entry minus the second
            largest; `"entropy"`, of the row as probabilities, in nats.
        outputs: kind of the rows, `"scores"` or `"logits"`. Entropy takes scores as probabilities
            and the softmax of logits; the other features do not depend on it.

    Raises:
        TypeError: `names` is not a list or tuple.
        ValueError: `names` is empty or has an unknown or repeated name, or `outputs` is unknown.
    """

    names: Sequence[Feature]
    outputs: Outputs

    def __post_init__(self) -> None:
        checks.one_of("outputs", self.outputs, OUTPUTS)
        if not isinstance(self.names, (tuple, list)):
            raise TypeError(f"`features` must be a tuple of names, got {self.names!r}.")
        for name in self.names:
            checks.one_of("features", name, tuple(_FEATURES))
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(
                f"`features` must hold at least one name, each once, got {self.names!r}."
            )

    def __call__(self, rows: Rows) -> Rows:
        """Return the features `(n, k)` of finite `rows` `(n, width)`.

        Raises:
            ValueError: the rows have too few columns for a feature, or must be probabilities for it
                and are not.
        """
        if len(self.names) == 1 and self.names[0] == "raw":
            return rows  # no copy, which keeps single requests fast
        return np.concatenate([_FEATURES[name](rows, self.outputs) for name in self.names], axis=1)

    def columns(self, width: int) -> int:
        """Return the number of features of rows with `width` entries."""
        return sum(width if name in ("raw", "sorted") else 1 for name in self.names)

    def check_fit(self, rows: Rows) -> None:
        """Raise if `rows` to fit on are not of the kind `outputs` and a feature depends on it."""
        if "entropy" in self.names:
            check_kind(rows, self.outputs)


def check_kind(rows: Rows, outputs: Outputs) -> None:
    """Raise if `outputs` is `"logits"` but all of `rows` `(n, width)` are probabilities."""
    are_probabilities = (rows >= 0).all() and (np.abs(rows.sum(1) - 1) < _SUM_TOLERANCE).all()
    if outputs == "logits" and are_probabilities:
        raise ValueError(
            "`outputs` must be logits, got rows that are probabilities. Pass outputs='scores'."
        )


def rows_to_fit(detector: Any, X: npt.ArrayLike, y: Any) -> tuple[Rows, Any]:
    """Return checked rows `(n, width)` and labels for `fit`; `y` "no_validation" is for no labels.

    Raises:
        ValueError: rows or labels have the wrong shape, or rows are not finite.
    """
    checks.unmasked("outputs", X)
    checked = validate_data(detector, X, y, dtype=_DTYPES, ensure_all_finite=False)
    rows, labels = (checked, None) if isinstance(y, str) else checked
    check_finite(rows)
    return rows, labels


def rows_to_score(detector: Any, X: npt.ArrayLike) -> Rows:
    """Return checked rows `(n, width)` for a fitted detector.

    Plain arrays are checked here. Everything else goes through scikit-learn's `validate_data`,
    whose errors are more detailed but which dominates the time of a single request.

    Raises:
        NotFittedError: the detector is not fitted; a subclass of ValueError.
        ValueError: the rows have another width than in `fit`, or are not finite.
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
    return rows  # type: ignore[no-any-return]  # float32 or float64


def check_finite(rows: Rows) -> None:
    """Raise unless all of `rows` `(n, width)` are finite."""
    finite = np.isfinite(rows)
    if not finite.all():
        bad = checks.samples(torch.from_numpy(~finite.all(1)), noun="row")
        raise ValueError(f"`outputs` must be finite, got NaN or infinity ({bad}).")


def probabilities(rows: Rows, outputs: Outputs) -> Floats:
    """Return `rows` `(n, width)` as probabilities: the softmax of logits, or the scores themselves.

    Raises:
        ValueError: there is a single column, or a row of scores is not a distribution. Values and
            their sum may be off by 0.01, since services round the scores that they return.
    """
    _check_columns(rows)
    if outputs == "logits":
        return softmax(rows)
    p = rows.astype(np.float64)
    inside = ((p >= -_SCORE_TOLERANCE) & (p <= 1 + _SCORE_TOLERANCE)).all(1)
    bad = ~(inside & (np.abs(p.sum(1) - 1) <= _SCORE_TOLERANCE))
    if bad.any():
        where = checks.samples(torch.from_numpy(bad), noun="row")
        raise ValueError(
            "`outputs` must be probabilities in [0, 1] that sum to 1, got a row with the sum "
            f"{p[bad][0].sum():g} ({where}). Pass outputs='logits' if they are logits."
        )
    return p.clip(0)


def softmax(rows: Rows) -> Floats:
    """Return the softmax `(n, width)` of logits, float64."""
    powers = np.exp(rows.astype(np.float64) - rows.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True))


def entropy(p: Floats) -> Floats:
    """Return the entropy `(n,)` of distributions `(n, width)`, in nats."""
    return np.asarray(entr(p).sum(1))


def margin(rows: Rows) -> Floats:
    """Return the largest minus the second largest entry of each of `rows` `(n, width)`, `(n,)`."""
    _check_columns(rows)
    top = np.partition(rows, -2, axis=1)[:, -2:].astype(np.float64)
    return np.asarray(top[:, 1] - top[:, 0])


def _check_columns(rows: Rows) -> None:
    if rows.shape[1] < 2:
        raise ValueError(
            "`outputs` must have at least two columns for a margin or probabilities, "
            f"got n_features = {rows.shape[1]}."
        )


_FEATURES: dict[Feature, Callable[[Rows, Outputs], Rows]] = {
    "raw": lambda rows, _: rows,
    "sorted": lambda rows, _: np.sort(rows, axis=1)[:, ::-1],
    "margin": lambda rows, _: margin(rows)[:, None],
    "entropy": lambda rows, outputs: entropy(probabilities(rows, outputs))[:, None],
}
