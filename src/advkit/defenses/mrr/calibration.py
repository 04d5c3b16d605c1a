"""Calibration of distances to scores in [0, 1]: ranks among the distances of clean inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from advkit.core.content import check_shape

_MIN_DIVISOR = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """Distances of clean inputs, for each defender and predicted class.

    The smallest of `m` distances has the score 0, the next ones have 1 / (m + 1), 2 / (m + 1) and
    so on. Scores in between are interpolated linearly; beyond the last distance a hyperbola rises
    towards m / (m + 1).

    A clean input exchangeable with these has a score above 1 - a with a probability of at most a
    (the conformal p-value of Vovk et al., 2005). Two distances have the same score only if both are
    below all calibration distances.

    Attributes:
        distances: float64 `(defenders, classes, most)`, ascending; the `m` distances of each class,
            padded with infinity.
        counts: int64 `(classes,)`, the number `m` of each class. A class without any always has the
            score 1.
        spread: float64 `(defenders, classes)`, standard deviation of the distances: the unit of
            margins.
    """

    distances: Tensor
    counts: Tensor
    spread: Tensor

    def check(self, defenders: int, classes: int) -> None:
        """Raise ValueError unless this is a valid calibration of so many defenders and classes.

        It checks tensors from a file, which may be damaged or malicious.
        """
        most = self.distances.shape[-1]
        check_shape("counts", self.counts, torch.int64, (classes,))
        check_shape("distances", self.distances, torch.float64, (defenders, classes, most))
        check_shape("spread", self.spread, torch.float64, (defenders, classes), finite=True)
        if not bool(((self.counts >= 0) & (self.counts <= most)).all()) or most < 1:
            raise ValueError(
                f"`counts` must lie in [0, {most}], the number of distances of a class."
            )
        used = torch.arange(most, device=self.counts.device) < self.counts[:, None]
        if not bool((self.distances.isfinite() == used).all()):
            raise ValueError(
                "`distances` must be finite up to `counts` of each class, and infinite after that."
            )
        if not bool((self.distances[..., 1:] >= self.distances[..., :-1]).all()):
            raise ValueError("`distances` must be in ascending order.")
        if not bool((self.spread > 0).all()):
            raise ValueError("`spread` must be positive.")

    def scores(self, distances: Tensor, labels: Tensor) -> Tensor:
        """Return the scores of `distances`, float64 `(n, defenders)`.

        Args:
            distances: `(n, defenders)`.
            labels: predicted labels `(n,)`.
        """
        table, m = self.distances[:, labels], self.counts[labels]
        d = distances.T.double().contiguous()  # (defenders, n)
        above = torch.searchsorted(table, d.detach()[..., None]).squeeze(2)
        lower, upper = _gather(table, above - 1), _gather(table, above.minimum(m - 1))
        between = above - 1 + (d - lower) / (upper - lower).clamp_min(_MIN_DIVISOR)
        beyond = m - lower / d.clamp_min(_MIN_DIVISOR)
        rank = torch.where(above < m, between, beyond)
        score = torch.where(above == 0, 0.0, rank / (m + 1))
        return score.masked_fill(m == 0, 1.0).T

    def limits(self, threshold: float) -> Tensor:
        """Return the greatest distances with a score of at most `threshold`.

        The limit is infinite where no distance has a greater score, and zero for a class without
        distances.

        Returns:
            `(defenders, classes)`, float64.
        """
        m = self.counts.double()
        rank = (threshold * (m + 1)).clamp_min(0).expand(len(self.distances), -1)
        at = rank.long().minimum((self.counts - 1).clamp_min(0))
        lower = _gather(self.distances, at)
        upper = _gather(self.distances, (at + 1).minimum((self.counts - 1).clamp_min(0)))
        between = lower + (rank - at) * (upper - lower)
        beyond = lower / (m - rank).clamp_min(0)
        limits = torch.where(rank > m - 1, beyond, between)
        return limits.masked_fill(self.counts == 0, 0.0)

    def margin_over_threshold(self, distances: Tensor, labels: Tensor, threshold: float) -> Tensor:
        """Return how many standard deviations `distances` `(n, defenders)` are above their limits.

        The margins are differentiable.
        """
        limits = self.limits(threshold)[:, labels].T.to(distances)
        return (distances - limits) / self.spread[:, labels].T.to(distances)

    def select(self, defenders: list[int]) -> Calibration:
        """Return the calibration of the `defenders` with these indices."""
        return Calibration(
            distances=self.distances[defenders],
            counts=self.counts,
            spread=self.spread[defenders],
        )


def fit_calibration(distances: Tensor, labels: Tensor, classes: int) -> Calibration:
    """Return a calibration on clean inputs.

    Args:
        distances: `(n, defenders)`, finite where the predicted class has a density.
        labels: predicted labels `(n,)`.
        classes: number of classes.
    """
    finite = distances.isfinite().all(1)
    distances, labels = distances[finite].double(), labels[finite]
    by_class = [distances[labels == label].sort(dim=0).values for label in range(classes)]
    table = pad_sequence(by_class, batch_first=True, padding_value=torch.inf)  # (classes, most, k)
    table = F.pad(table, (0, 0, 0, int(table.shape[1] == 0)), value=torch.inf)
    spread = torch.stack([_standard_deviation(rows) for rows in by_class], dim=1)
    return Calibration(
        distances=table.permute(2, 0, 1).contiguous(),
        counts=torch.bincount(labels, minlength=classes),
        spread=spread,
    )


def _standard_deviation(distances: Tensor) -> Tensor:
    """Return the standard deviations of `(m, defenders)`, and 1 where they are not positive."""
    if len(distances) < 2:
        return distances.new_ones(distances.shape[1])
    spread = distances.std(dim=0)
    return torch.where(spread > 0, spread, 1.0)


def _gather(table: Tensor, index: Tensor) -> Tensor:
    """Return the entries at `index` `(a, b)` of the last axis of `(a, b, most)`.

    A negative index gives the first entry.
    """
    return table.gather(2, index.clamp_min(0)[..., None]).squeeze(2)
