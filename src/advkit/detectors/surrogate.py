"""A differentiable copy of a detector: what an attacker climbs through."""

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

_BATCH = 64


class DetectorSurrogate:
    """A small net that learns what a detector says, so that it can be differentiated.

    Forests and neighbours have no gradient; an attacker who can ask the detector, or has one like
    it, learns a copy that has one. It is a detector in its own right, in the units of the first.
    Only what it learnt on can be trusted: give it rows of clean inputs and of attacks, and look at
    `agreement` on others before believing that an attack through it has failed.

    The net is a perceptron with SiLU, whose gradient does not vanish where the detector is flat;
    inputs and suspicion are standardised, the error is the mean square, the optimizer Adam with a
    rate that falls to zero along a cosine.

    Args:
        detector: what is imitated: an object with `anomaly_score(outputs)`, fitted.
        hidden: units of each hidden layer; at least one layer.
        epochs: passes over the rows, at least 1.
        lr: the first rate of Adam.
        seed: of weights and order, an int.

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
            raise TypeError(f"`hidden` must be a list of numbers of units, got {hidden!r}")
        if not hidden:
            raise ValueError("`hidden` must have a layer or more, got none")
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
        self._net: _Standardised | None = None

    def __repr__(self) -> str:
        given = f"hidden={self.hidden}, epochs={self.epochs}, lr={self.lr:g}, seed={self.seed}"
        return f"{type(self).__name__}({self.detector!r}, {given})"

    def fit(self, outputs: npt.ArrayLike) -> Self:
        """Learn what the detector says of `outputs`.

        Args:
            outputs: rows `(n, width)` like those that the detector was fitted on, clean ones and
                attacked ones; no labels needed.

        Returns:
            This surrogate.

        Raises:
            ValueError: `outputs` are no finite rows; the detector finds all of them equally
                suspicious, or answers no finite numbers.
            TypeError: the detector answers something other than numbers.
        """
        rows = _checked_rows(outputs)
        wanted = self._wanted(rows)
        if wanted.min() == wanted.max():
            raise ValueError(
                f"{type(self.detector).__name__} gives all {len(rows)} rows the suspicion "
                f"{wanted[0]:g}: there is nothing to learn"
            )
        with torch.random.fork_rng(), torch.inference_mode(False):
            torch.manual_seed(self.seed)
            net = _Standardised(rows, wanted, self.hidden)
            targets = torch.from_numpy((wanted - wanted.mean()) / wanted.std()).float()
            self._learn(net, shuffled(torch.from_numpy(rows), targets, _BATCH))
        net.zero_grad()
        self._net = net.requires_grad_(False)
        return self

    @overload
    def anomaly_score(self, outputs: Tensor) -> Tensor: ...

    @overload
    def anomaly_score(self, outputs: npt.ArrayLike) -> Floats: ...

    def anomaly_score(self, outputs: Tensor | npt.ArrayLike) -> Tensor | Floats:
        """Return scores `(n,)` in the units of the detector; greater is more anomalous.

        Args:
            outputs: `(n, width)`. The scores of a tensor are a tensor of its dtype, computed in
                float32 at least and differentiable. Those of an array are a float64 array.

        Raises:
            ValueError: the surrogate is not fitted, `outputs` have another width than it was
                fitted on, or an array is not finite.
        """
        if not isinstance(outputs, Tensor):
            rows = torch.from_numpy(_checked_rows(outputs))
            with torch.no_grad():
                return self.anomaly_score(rows).cpu().numpy()
        net = self._fitted(outputs.shape).to(outputs.device)
        return net.anomaly_score(outputs).to(outputs.dtype)

    def agreement(self, outputs: npt.ArrayLike) -> float:
        """Rank correlation (Spearman) with the detector on `outputs`, from -1 to 1.

        At 1 both put the rows in the same order.

        Args:
            outputs: rows `(n, width)` that it was not fitted on, at least 2.

        Raises:
            ValueError: it is not fitted; `outputs` are too few, no finite rows or of another width;
                one of the two finds all of them equally suspicious.
            TypeError: the detector answers something other than numbers.
        """
        rows = _checked_rows(outputs)
        own, wanted = self.anomaly_score(rows), self._wanted(rows)
        if own.min() == own.max() or wanted.min() == wanted.max():
            raise ValueError(
                "`outputs` must have rows that differ in suspicion, for the detector and for the "
                f"surrogate; all {len(rows)} are equally suspicious to one of them"
            )
        return float(spearmanr(own, wanted).statistic)

    def _learn(self, net: _Standardised, loader: DataLoader[Any]) -> None:
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

    def _wanted(self, rows: Floats) -> Floats:
        """What the detector says of `rows`, checked."""
        found = self.detector.anomaly_score(rows.copy())
        return checked_anomaly_score(type(self.detector).__name__, found, len(rows))

    def _fitted(self, shape: torch.Size) -> _Standardised:
        if self._net is None:
            raise ValueError("the surrogate is not fitted: call fit(outputs) first")
        width = len(self._net.centre)
        if len(shape) != 2 or shape[1] != width:
            raise ValueError(f"`outputs` must have shape (n, {width}), got {tuple(shape)}")
        return self._net


class _Standardised(nn.Module):
    """A perceptron between rows and suspicion in their own units."""

    def __init__(self, rows: Floats, wanted: Floats, hidden: Sequence[int]) -> None:
        super().__init__()
        spread = rows.std(0)
        self.register_buffer("centre", torch.from_numpy(rows.mean(0)).float())
        self.register_buffer("spread", torch.from_numpy(np.where(spread > 0, spread, 1)).float())
        self.centre: Tensor
        self.spread: Tensor
        self.level, self.scale = float(wanted.mean()), float(wanted.std())
        widths = [rows.shape[1], *hidden]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, rows: Tensor) -> Tensor:
        """Standardised suspicion `(n,)`."""
        found: Tensor = self.layers(((rows - self.centre) / self.spread).float())
        return found.squeeze(1)

    def anomaly_score(self, rows: Tensor) -> Tensor:
        """Suspicion `(n,)` in the units of the detector."""
        found: Tensor = self(rows)
        return self.level + self.scale * found


def _squared_error(net: nn.Module, rows: Tensor, wanted: Tensor) -> Tensor:
    return F.mse_loss(net(rows), wanted)


def _checked_rows(outputs: npt.ArrayLike) -> Floats:
    """`outputs` as rows `(n, width)` of float64.

    Raises:
        ValueError: they are no rows, or not finite.
    """
    checks.unmasked("outputs", outputs)
    rows: Floats = np.asarray(outputs).astype(np.float64)
    if rows.ndim != 2 or not rows.size:
        raise ValueError(f"`outputs` must be rows (n, width), at least one, got shape {rows.shape}")
    bad = torch.from_numpy(~np.isfinite(rows).all(1))
    if bad.any():
        raise ValueError(f"`outputs` must be finite, are not in row {checks.indices(bad)}")
    return rows
