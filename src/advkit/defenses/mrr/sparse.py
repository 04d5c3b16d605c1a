"""Signals as sums of a few atoms: orthogonal matching pursuit, many signals at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

# So many signals at a time: their correlations with 225 atoms then stay in the cache.
_CHUNK = 1024


def pursue(signals: Tensor, atoms: Tensor, sparsity: int) -> Tensor:
    """The approximation of each signal by `sparsity` atoms, chosen greedily.

    Orthogonal matching pursuit (Pati, Rezaiifar and Krishnaprasad, 1993): the atom that correlates
    most with what is left of the signal joins the chosen ones, and the signal is projected anew on
    the space that they span. That space is kept as an orthonormal basis (Gram-Schmidt), so that no
    system of equations has to be solved, and a signal that is used up leaves only rounding behind.

    Args:
        signals: `(m, d)`, finite.
        atoms: `(k, d)`, of the dtype of `signals`, each row of length 1 or all zeros; some may be
            alike.
        sparsity: how many atoms each signal may use, at least 1. More than span the signals are
            of no use, and do no harm.

    Returns:
        `(m, d)`, without a graph.
    """
    with torch.no_grad():
        parts = [_projected(part, atoms, sparsity) for part in torch.split(signals, _CHUNK)]
        return torch.cat(parts)


def _projected(signals: Tensor, atoms: Tensor, sparsity: int) -> Tensor:
    """Each of `signals` `(m, d)` projected on the span of the atoms that are chosen for it."""
    left = signals
    basis = signals.new_zeros(len(signals), sparsity, signals.shape[1])
    for step in range(sparsity):
        chosen = atoms[(left @ atoms.T).abs_().argmax(1)]
        direction = _unit(_orthogonal(chosen, basis[:, :step]))
        basis[:, step] = direction
        left = left - (left * direction).sum(1, keepdim=True) * direction
    return signals - left


def _orthogonal(v: Tensor, basis: Tensor) -> Tensor:
    """The part of `v` `(m, d)` that is orthogonal to the rows of `basis` `(m, rows, d)`.

    Twice, since rounding in the first pass leaves a little of the rows in it.
    """
    for _ in range(2):
        v = v - torch.einsum("mrd,mr->md", basis, torch.einsum("mrd,md->mr", basis, v))
    return v


def _unit(v: Tensor) -> Tensor:
    """Rows of `v` `(m, d)`, parts of vectors of length 1, scaled to that length again.

    A part so short that it is mostly rounding becomes zero: such an atom is spanned already.
    """
    spanned = torch.linalg.vector_norm(v, dim=1, keepdim=True) < torch.finfo(v.dtype).eps ** 0.5
    return F.normalize(v, dim=1).masked_fill_(spanned, 0)
