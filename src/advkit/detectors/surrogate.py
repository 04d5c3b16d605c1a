"""Differentiable surrogate of a detector, for attacks that need its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from typing_extensions import Self

from advkit.core import checks
from advkit.core.protocols import Detector
from advkit.detectors.anomaly_score import checked_anomaly_score
from advkit.detectors.features import Floats
from advkit.training.fit import fit
from advkit.training.shuffled import shuffled

_BATCH_SIZE = 64  # rows in a step of Adam; small, since the nets are


class DetectorSurrogate:
    """A small net that is fitted to the anomaly scores of a detector, to have gradients.

    Forests and nearest neighbors have no gradient. An attacker who can query the detector, or has a
    similar one, fits a surrogate that has one. The surrogate is itself a detector, and its scores
    have the units of the original ones.

    A surrogate is accurate only for rows like those it was fitted on. Fit it on rows of clean
    inputs and of attacks. Check its `agreement` on other rows before you conclude that an attack
    through it has failed.

    The net is a perceptron with SiLU, whose gradient does not vanish where the detector is
    constant. Rows and anomaly scores are standardized. The loss is the mean squared error. The
    optimizer is Adam with a cosine schedule that ends at zero.

    Args:
        detector: the fitted detector to imitate, an object with `anomaly_score(outputs)`.
        hidden: number of units of each hidden layer; at least one layer.
        epochs: passes over the rows, at least 1.
        lr: initial learning rate of Adam.
        seed: int, for the initial weights and the order of the rows.

    Attributes:
        detector: the detector that was passed.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range.

    Example:
        >>> import numpy as np, torch
        >>> from advkit.detectors import DetectorSurrogate
        >>> class Unsure:
        ...     def anomaly_score(self, outputs):
        ...         return 1 - outputs.max(1)
        >>> rows = np.random.default_rng(0).dirichlet([1, 1, 1], size=600)
        >>> surrogate = DetectorSurrogate(Unsure(), epochs=20).fit(rows[:500])
        >>> surrogate.agreement(rows[500:]) > 0.9
        True
        >>> outputs = torch.tensor([[0.2, 0.3, 0.5]], requires_grad=True)
        >>> surrogate.anomaly_score(outputs).sum().backward()
        >>> outputs.grad.argmin()
        tensor(2)
    """

    def __init__(
        self,
        detector: Detector,
        hidden: Sequence[int] = (64, 64),
        epochs: int = 100,
        lr: float = 3e-3,
        seed: int = 0,
    ) -> None:
        checks.detector("detector", detector)
        if not isinstance(hidden, Sequence):
            raise TypeError(f"`hidden` must be a list of ints, got {hidden!r}.")
        if not hidden:
            raise ValueError("`hidden` must have at least one layer, got none.")
        for units in hidden:
            checks.integer("hidden", units, at_least=1)
        checks.integer("epochs", epochs, at_least=1)
        checks.positive("lr", lr)
        checks.integer("seed", seed)
        self.detector = detector
        self.hidden = tuple(hidden)
        self.epochs = epochs
        self.lr = lr
        self.seed = seed
        self._net: _StandardizedNet | None = None

    def __repr__(self) -> str:
        options = f"hidden={self.hidden}, epochs={self.epochs}, lr={self.lr:g}, seed={self.seed}"
        return f"{type(self).__name__}({self.detector!r}, {options})"

    def fit(self, outputs: npt.ArrayLike) -> Self:
        """Fit the surrogate to the detector's scores of `outputs`.

        Args:
            outputs: rows `(n, width)` like those that the detector was fitted on, clean ones and
                attacked ones. Labels are not needed.

        Returns:
            This surrogate.

        Raises:
            ValueError: `outputs` are not finite rows, or the detector returns the same score for
                all of them, or numbers that are not finite.
            TypeError: the detector returns something other than numbers.
        """
        rows = _checked_rows(outputs)
        scores = self._detector_scores(rows)
        if scores.min() == scores.max():
            raise ValueError(
                f"`outputs` must have rows with different anomaly scores, got {scores[0]:g} from "
                f"{type(self.detector).__name__} for all {len(rows)} rows."
            )
        with torch.random.fork_rng(), torch.inference_mode(False):
            torch.manual_seed(self.seed)
            net = _StandardizedNet(rows, scores, self.hidden)
            targets = torch.from_numpy((scores - scores.mean()) / scores.std()).float()
            self._train(net, shuffled(torch.from_numpy(rows), targets, _BATCH_SIZE))
        net.zero_grad()
        self._net = net.requires_grad_(False)
        return self

    @overload
    def anomaly_score(self, outputs: Tensor) -> Tensor: ...

    @overload
    def anomaly_score(self, outputs: npt.ArrayLike) -> Floats: ...

    def anomaly_score(self, outputs: Tensor | npt.ArrayLike) -> Tensor | Floats:
        """Return anomaly scores `(n,)` in the units of the detector; greater is more anomalous.

        Args:
            outputs: `(n, width)`. The scores of a tensor are a tensor of its dtype, computed in
                float32 at least and differentiable. Those of an array are a float64 array.

        Raises:
            ValueError: the surrogate is not fitted, `outputs` have another width than in `fit`, or
                an array is not finite.
        """
        if not isinstance(outputs, Tensor):
            rows = torch.from_numpy(_checked_rows(outputs))
            with torch.no_grad():
                return self.anomaly_score(rows).cpu().numpy()
        net = self._fitted(outputs.shape).to(outputs.device)
        return net.anomaly_score(outputs).to(outputs.dtype)

    def agreement(self, outputs: npt.ArrayLike) -> float:
        """Return the Spearman rank correlation with the detector on `outputs`, from -1 to 1.

        At 1 both rank the rows in the same order.

        Args:
            outputs: rows `(n, width)` that the surrogate was not fitted on, at least 2.

        Raises:
            ValueError: the surrogate is not fitted; `outputs` are too few, not finite rows or have
                another width; or all rows have the same score by the detector or the surrogate.
            TypeError: the detector returns something other than numbers.
        """
        rows = _checked_rows(outputs)
        own, original = self.anomaly_score(rows), self._detector_scores(rows)
        if own.min() == own.max() or original.min() == original.max():
            raise ValueError(
                "`outputs` must have rows with different anomaly scores by the detector and by the "
                f"surrogate, got equal scores of one of them for all {len(rows)} rows."
            )
        return float(spearmanr(own, original).statistic)

    def _train(self, net: _StandardizedNet, loader: DataLoader[Any]) -> None:
        optimizer = torch.optim.Adam(net.parameters(), lr=self.lr)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.epochs)
        fit(
            net,
            loader,
            loss=_squared_error,
            optimizer=optimizer,
            epochs=self.epochs,
            scheduler=scheduler,
            precision="float32",
            progress=False,
        )

    def _detector_scores(self, rows: Floats) -> Floats:
        """Return the detector's scores of `rows`, checked."""
        scores = self.detector.anomaly_score(rows.copy())
        return checked_anomaly_score(type(self.detector).__name__, scores, len(rows))

    def _fitted(self, shape: torch.Size) -> _StandardizedNet:
        if self._net is None:
            raise ValueError("`DetectorSurrogate` must be fitted before use. Call fit(outputs).")
        width = len(self._net.center)
        if len(shape) != 2 or shape[1] != width:
            raise ValueError(f"`outputs` must have shape (n, {width}), got {tuple(shape)}.")
        return self._net


class _StandardizedNet(nn.Module):
    """A perceptron from rows to anomaly scores that standardizes both."""

    def __init__(self, rows: Floats, scores: Floats, hidden: Sequence[int]) -> None:
        super().__init__()
        spread = rows.std(0)
        self.register_buffer("center", torch.from_numpy(rows.mean(0)).float())
        self.register_buffer("spread", torch.from_numpy(np.where(spread > 0, spread, 1)).float())
        self.center: Tensor
        self.spread: Tensor
        self.level, self.scale = float(scores.mean()), float(scores.std())
        widths = [rows.shape[1], *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, rows: Tensor) -> Tensor:
        """Return standardized anomaly scores `(n,)`."""
        scores: Tensor = self.layers(((rows - self.center) / self.spread).float())
        return scores.squeeze(1)

    def anomaly_score(self, rows: Tensor) -> Tensor:
        """Return anomaly scores `(n,)` in the units of the detector."""
        standardized: Tensor = self(rows)
        return self.level + self.scale * standardized


def _squared_error(net: nn.Module, rows: Tensor, scores: Tensor) -> Tensor:
    return F.mse_loss(net(rows), scores)


def _checked_rows(outputs: npt.ArrayLike) -> Floats:
    """Return `outputs` as rows `(n, width)` of float64.

    Raises:
        ValueError: `outputs` are not rows or not finite.
    """
    checks.unmasked("outputs", outputs)
    rows: Floats = np.asarray(outputs).astype(np.float64)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(
            f"`outputs` must have shape (n, width) with at least one row, got {rows.shape}."
        )
    bad = torch.from_numpy(~np.isfinite(rows).all(1))
    if bad.any():
        raise ValueError(
            f"`outputs` must be finite, got NaN or infinity ({checks.samples(bad, noun='row')})."
        )
    return rows
