"""From distances to scores in [0, 1]: where a distance stands among those of clean inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from advkit.core.content import check_shape

_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration:
    """Distances of clean inputs, for each defender and answer of the victim.

    The least of `m` distances has the score 0, the next ones 1 / (m + 1), 2 / (m + 1) and so on,
    with straight lines between them; beyond the last one a hyperbola rises towards m / (m + 1). So
    a clean input exchangeable with these has a score above 1 - a with a probability of at most a
    (the conformal p-value of Vovk et al., 2005), and two distances never have the same score unless
    both are below all others.

    Attributes:
        distances: float64 `(defenders, classes, most)`, ascending; of each class its own `m`, and
            then infinity.
        counts: int64 `(classes,)`, these `m`; a class without any has the score 1 throughout.
        spread: float64 `(defenders, classes)`, their standard deviation: the unit of an excess.
    """

    distances: Tensor
    counts: Tensor
    spread: Tensor

    def check(self, defenders: int, classes: int) -> None:
        """Raise ValueError unless this can be the calibration of so many defenders and classes.

        For tensors from a file, which may be damaged or made to do damage.
        """
        most = self.distances.shape[-1]
        check_shape("counts", self.counts, torch.int64, (classes,))
        check_shape("distances", self.distances, torch.float64, (defenders, classes, most))
        check_shape("spread", self.spread, torch.float64, (defenders, classes), finite=True)
        if not bool(((self.counts >= 0) & (self.counts <= most)).all()) or most < 1:
            raise ValueError(f"`counts` must be from 0 to {most}, the distances of a class")
        own = torch.arange(most, device=self.counts.device) < self.counts[:, None]
        if not bool((self.distances.isfinite() == own).all()):
            raise ValueError(
                "`distances` must be finite as far as counts says, and infinite behind"
            )
        if not bool((self.distances[..., 1:] >= self.distances[..., :-1]).all()):
            raise ValueError("`distances` must be in ascending order")
        if not bool((self.spread > 0).all()):
            raise ValueError("`spread` must be positive")

    def scores(self, distances: Tensor, labels: Tensor) -> Tensor:
        """Of `(n, defenders)` under the answers `labels` `(n,)`: the same shape, float64."""
        table, m = self.distances[:, labels], self.counts[labels]
        d = distances.T.double().contiguous()  # (defenders, n)
        above = torch.searchsorted(table, d.detach()[..., None]).squeeze(2)  # that many are less
        lower, upper = _at(table, above - 1), _at(table, above.minimum(m - 1))
        between = above - 1 + (d - lower) / (upper - lower).clamp_min(_TINY)
        beyond = m - lower / d.clamp_min(_TINY)
        rank = torch.where(above < m, between, beyond)
        score = torch.where(above == 0, 0.0, rank / (m + 1))
        return score.masked_fill(m == 0, 1.0).T

    def limits(self, threshold: float) -> Tensor:
        """The greatest distances whose score is at most `threshold`, `(defenders, classes)`.

        Infinite where no distance has a greater one; zero where the class has no distances.
        """
        m = self.counts.double()
        rank = (threshold * (m + 1)).clamp_min(0).expand(len(self.distances), -1)
        at = rank.long().minimum((self.counts - 1).clamp_min(0))
        lower = _at(self.distances, at)
        upper = _at(self.distances, (at + 1).minimum((self.counts - 1).clamp_min(0)))
        between = lower + (rank - at) * (upper - lower)
        beyond = lower / (m - rank).clamp_min(0)
        limits = torch.where(rank > m - 1, beyond, between)
        return limits.masked_fill(self.counts == 0, 0.0)

    def margin_over_threshold(self, distances: Tensor, labels: Tensor, threshold: float) -> Tensor:
        """How many spreads `distances` `(n, defenders)` are above their limits, differentiable."""
        limits = self.limits(threshold)[:, labels].T.to(distances)
        return (distances - limits) / self.spread[:, labels].T.to(distances)

    def take(self, defenders: list[int]) -> Calibration:
        """That of some of the defenders."""
        return Calibration(
            distances=self.distances[defenders],
            counts=self.counts,
            spread=self.spread[defenders],
        )


def calibrated(distances: Tensor, labels: Tensor, classes: int) -> Calibration:
    """A calibration on clean inputs.

    Args:
        distances: `(n, defenders)`, finite where the victim's answer has a density.
        labels: the victim's answers, `(n,)`.
        classes: how many there are.
    """
    known = distances.isfinite().all(1)
    distances, labels = distances[known].double(), labels[known]
    own = [distances[labels == label].sort(dim=0).values for label in range(classes)]
    table = pad_sequence(own, batch_first=True, padding_value=torch.inf)  # (classes, most, k)
    table = F.pad(table, (0, 0, 0, int(table.shape[1] == 0)), value=torch.inf)
    spread = torch.stack([_spread(rows) for rows in own], dim=1)
    return Calibration(
        distances=table.permute(2, 0, 1).contiguous(),
        counts=torch.bincount(labels, minlength=classes),
        spread=spread,
    )


def _spread(distances: Tensor) -> Tensor:
    """Standard deviation of `(m, defenders)`, 1 where there is none."""
    if len(distances) < 2:
        return distances.new_ones(distances.shape[1])
    spread = distances.std(dim=0)
    return torch.where(spread > 0, spread, 1.0)


def _at(table: Tensor, index: Tensor) -> Tensor:
    """The entries at `index` `(a, b)` of the last axis of `(a, b, most)`; below zero, the first."""
    return table.gather(2, index.clamp_min(0)[..., None]).squeeze(2)
