"""Sparse approximation: orthogonal matching pursuit of many signals at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK_SIZE = 1024  # signals whose correlations with 225 atoms stay in the cache


def orthogonal_matching_pursuit(signals: Tensor, atoms: Tensor, sparsity: int) -> Tensor:
    """Approximate each signal by `sparsity` atoms, chosen greedily.

    Orthogonal matching pursuit (Pati, Rezaiifar and Krishnaprasad, 1993): each step adds the atom
    that correlates most with the residual, and projects the signal onto the span of the chosen
    atoms.

    The span is stored as an orthonormal basis (Gram-Schmidt), which avoids a system of equations. A
    signal that is fully explained leaves only rounding errors.

    Args:
        signals: `(m, d)`, finite.
        atoms: `(k, d)`, of the dtype of `signals`, each row of length 1 or all zeros. Rows may be
            equal.
        sparsity: number of atoms for each signal, at least 1. Atoms beyond the rank of the
            dictionary have no effect.

    Returns:
        `(m, d)`, without a graph.
    """
    with torch.no_grad():
        chunks = [_project(chunk, atoms, sparsity) for chunk in torch.split(signals, _CHUNK_SIZE)]
        return torch.cat(chunks)


def _project(signals: Tensor, atoms: Tensor, sparsity: int) -> Tensor:
    """Project each of `signals` `(m, d)` onto the span of the atoms chosen for it."""
    residual = signals
    basis = signals.new_zeros(len(signals), sparsity, signals.shape[1])
    for step in range(sparsity):
        atom = atoms[(residual @ atoms.T).abs_().argmax(1)]
        direction = _normalize(_orthogonal_part(atom, basis[:, :step]))
        basis[:, step] = direction
        residual = residual - (residual * direction).sum(1, keepdim=True) * direction
    return signals - residual


def _orthogonal_part(v: Tensor, basis: Tensor) -> Tensor:
    """Return the part of `v` `(m, d)` that is orthogonal to the rows of `basis` `(m, rows, d)`.

    The projection is done twice, since rounding leaves a small component after the first pass.
    """
    for _ in range(2):
        v = v - torch.einsum("mrd,mr->md", basis, torch.einsum("mrd,md->mr", basis, v))
    return v


def _normalize(v: Tensor) -> Tensor:
    """Scale rows of `v` `(m, d)`, parts of unit vectors, to length 1.

    A row that is short enough to be mostly rounding becomes zero: its atom is in the span already.
    """
    spanned = torch.linalg.vector_norm(v, dim=1, keepdim=True) < torch.finfo(v.dtype).eps ** 0.5
    return F.normalize(v, dim=1).masked_fill_(spanned, 0)
