"""Black boxes in place of the clouds' models: boosted trees behind rows of CSV and JSON.

Two studies attack them: `cloud_automl_study.py` and `distillation_study.py`, which reproduce one
article.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from sklearn.ensemble import GradientBoostingClassifier
from study import SEED, percent

from advkit import CallableClassifier
from advkit.data import Dataset

# What the article reports, in percent: accuracy on validation data, and under FGSM by eps.
PUBLISHED = {
    "IBM": {
        "validation": 96.534, 0.0: 99.643,
        0.10: 11.002, 0.15: 10.489, 0.20: 10.001, 0.25: 9.441, 0.30: 8.903,
    },
    "Google": {
        "validation": 97.316, 0.0: 98.632,
        0.10: 21.806, 0.15: 18.073, 0.20: 15.062, 0.25: 11.290, 0.30: 10.812,
    },
}  # fmt: skip
BATCH = 1000  # rows in a request


@dataclass(frozen=True)
class BlackBox:
    """A model that is known by its answers, and its accuracy on what was held out, in percent."""

    name: str
    model: CallableClassifier
    validation: float


def black_boxes(train: Dataset, trees: int) -> list[BlackBox]:
    """Return boosted trees of scikit-learn, and others where there are any, fitted on `train`."""
    boxes = [boosted("scikit-learn", sklearn_trees(trees), train)]
    if (other := other_trees(trees)) is not None:
        boxes.append(boosted(*other, train))
    return boxes


def sklearn_trees(trees: int) -> Any:
    """IBM's pick; with a sample of rows and columns for each tree, to be done in minutes."""
    return GradientBoostingClassifier(
        n_estimators=trees, learning_rate=0.2, max_depth=6, max_features="sqrt", subsample=0.5,
        random_state=SEED,
    )  # fmt: skip


def other_trees(trees: int) -> tuple[str, Any] | None:
    """Boosted trees of LightGBM, else of XGBoost, with a name; `None` where neither is there."""
    common = {"n_estimators": trees, "learning_rate": 0.2, "random_state": SEED, "n_jobs": 1}
    if find_spec("lightgbm"):
        from lightgbm import LGBMClassifier

        alike = {"deterministic": True, "force_col_wise": True, "verbose": -1}
        return "LightGBM", LGBMClassifier(colsample_bytree=0.1, **common, **alike)
    if find_spec("xgboost"):
        from xgboost import XGBClassifier

        return "XGBoost", XGBClassifier(colsample_bytree=0.1, tree_method="hist", **common)
    return None


def boosted(name: str, estimator: Any, data: Dataset) -> BlackBox:
    """Fit on nine tenths of `data`, and hide it behind CSV and JSON."""
    rows, labels = data.x.flatten(1).numpy(), data.y.numpy()
    fitted = len(rows) - len(rows) // 10
    estimator.fit(rows[:fitted], labels[:fitted])
    model = CallableClassifier(over_text(service(estimator)), num_classes=10, max_batch=BATCH)
    held_out = model.predict(data.x[fitted:]) == data.y[fitted:]
    return BlackBox(name, model, percent(held_out))


def service(estimator: Any) -> Callable[[str], str]:
    """What a cloud offers: rows of CSV in, scores as JSON out."""

    def answer(csv: str) -> str:
        rows = np.loadtxt(io.StringIO(csv), dtype=np.float32, delimiter=",", ndmin=2)
        return json.dumps({"scores": np.round(estimator.predict_proba(rows), 6).tolist()})

    return answer


def over_text(remote: Callable[[str], str]) -> Callable[[np.ndarray], list[list[float]]]:
    """A client of `remote`: a function from images `(m, ...)` to scores `(m, classes)`."""

    def ask(images: np.ndarray) -> list[list[float]]:
        return json.loads(remote(as_csv(images)))["scores"]

    return ask


def as_csv(images: np.ndarray) -> str:
    """Float32 `(m, ...)` as `m` lines.

    Nine digits give back every float32: an eps of 0.1 or 0.3 puts pixels halfway between two of the
    256 levels, which is where trees split, so that fewer digits would move some to the other side.
    """
    rows = images.reshape(len(images), -1)
    line = ",".join(["%.9g"] * rows.shape[1])
    return "\n".join(line % tuple(row) for row in rows.tolist())


if __name__ == "__main__":
    from study import describe_module

    describe_module(__doc__)
