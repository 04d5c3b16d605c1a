"""Norms, projections and steepest directions, each over a batch of samples of any rank."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from advkit.core.tensors import asynchronous, at_least_float32

Norm = Literal["l0", "l1", "l2", "linf"]
# The dual of the norm of a distance to a plane, in which the plane's normal is measured.
DUAL: dict[Norm, Norm] = {"l2": "l2", "linf": "l1"}
ORDER: dict[Norm, float] = {"l0": 0, "l1": 1, "l2": 2, "linf": math.inf}
_SAFE_POWER = 0.375  # of the least normal number: longer samples lose no squares that count
_FEW = 128  # features that are looked at first where only the largest matter


def per_sample(v: Tensor, like: Tensor) -> Tensor:
    """Reshape `v` of shape `(n,)` so that it broadcasts over `like` of shape `(n, *features)`."""
    return v.view(-1, *[1] * (like.ndim - 1))


def lp_norm(delta: Tensor, norm: Norm) -> Tensor:
    """Norm of each sample: `(n, *features)` to `(n,)`."""
    flat = delta.flatten(1)
    if norm == "linf":  # ten times faster than vector_norm on a CPU
        return torch.maximum(flat.amax(1), -flat.amin(1))
    length: Tensor = torch.linalg.vector_norm(flat, ord=ORDER[norm], dim=1)
    return _with_lost_squares(flat, length) if norm == "l2" else length


def _with_lost_squares(flat: Tensor, length: Tensor) -> Tensor:
    """Return the l2 `length` `(n,)` of `flat` `(n, d)`, computed again where squares are lost.

    The squares of tiny and huge entries are zero or infinite. Those samples are scaled by their
    largest entry first; the others keep their length to the bit.
    """
    least = (
        torch.finfo(at_least_float32(length).dtype).tiny ** _SAFE_POWER
    )  # 16 bits are summed in float32
    if not asynchronous(length.device) and len(length):
        shortest, longest = (float(v) for v in length.detach().aminmax())
        if shortest > least and longest < math.inf:
            return length
        rows = (~((length > least) & (length < math.inf))).nonzero().flatten()
        return length.index_put((rows,), _scaled_length(flat[rows]))
    return torch.where((length > least) & (length < math.inf), length, _scaled_length(flat))


def _scaled_length(flat: Tensor) -> Tensor:
    """Return the l2 length of each row of `flat` `(n, d)`, scaled by its largest entry first."""
    largest = lp_norm(flat, "linf")
    scale = torch.where((largest > 0) & (largest < math.inf), largest, 1)
    length: Tensor = torch.linalg.vector_norm(flat / scale[:, None], dim=1)
    return scale * length


def finite_gradient(grad: Tensor) -> Tensor:
    """Return `grad` `(n, *features)` with finite entries, each sample by itself.

    NaN counts as 0. An infinite entry keeps its sign at the largest finite magnitude of its sample,
    1 where no finite entry is nonzero. Finite entries stay as they are.
    """
    if not asynchronous(grad.device) and grad.sum().isfinite():
        return grad
    magnitude = grad.abs()
    largest = lp_norm(torch.where(magnitude < math.inf, magnitude, 0), "linf")
    return project(grad, torch.where(largest > 0, largest, 1), "linf").nan_to_num(0)


def normalize(v: Tensor, norm: Norm) -> Tensor:
    """Each sample of `v` scaled to unit norm; zero stays zero.

    Scaled by the largest entry first, so that neither tiny nor huge gradients are lost when they
    are squared.
    """
    largest = lp_norm(v, "linf")
    v = v / per_sample(torch.where(largest > 0, largest, 1), v)
    return v / per_sample(lp_norm(v, norm).clamp_min(torch.finfo(v.dtype).tiny), v)


def project(delta: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    """The point of the ball of radius `eps` that is nearest to `delta` in Euclidean distance.

    Args:
        delta: `(n, *features)`.
        eps: radius of each sample's ball `(n,)`, not negative.
        norm: `"linf"`, `"l2"` or `"l1"`; the l0 "ball" is not convex and is not offered.

    Returns:
        `(n, *features)`; samples inside their ball come back as they are.
    """
    if norm == "linf":
        radius = per_sample(eps, delta)
        return torch.maximum(torch.minimum(delta, radius), -radius)
    if norm == "l2":
        return _rescale(delta, eps, "l2")
    if norm == "l1":
        return _project_l1(delta, eps)
    raise ValueError(f"`norm` must be 'linf', 'l2' or 'l1', got {norm!r}")


def _rescale(delta: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    """Samples longer than `eps` scaled down to it, the others as they are."""
    length = lp_norm(delta, norm)
    finfo = torch.finfo(delta.dtype)  # a length above its largest number is infinite
    scale = torch.where(length > eps, eps / length.clamp(finfo.tiny, finfo.max), 1)
    return delta * per_sample(scale, delta)


def _project_l1(delta: Tensor, eps: Tensor) -> Tensor:
    """Soft threshold at the level that leaves norm `eps` (Duchi et al., 2008, algorithm of fig. 1).

    With the magnitudes sorted downwards, the level of the k largest is (their sum - eps) / k, and
    the right k is the last one whose magnitude still exceeds its level. Inside the ball that level
    is not positive and nothing is taken off.
    """
    ordered, _ = _largest(delta.flatten(1).abs(), lambda top, _: ~_above(top, eps)[0][:, -1])
    above, levels = _above(ordered, eps)
    last = (above.sum(1, keepdim=True) - 1).clamp_min(0)
    level = per_sample(levels.gather(1, last).squeeze(1).clamp_min(0), delta)
    shrunk = delta.sign() * (delta.abs() - level).clamp_min(0)
    return _rescale(shrunk, eps, "l1")  # takes off what the sums have rounded


def _above(ordered: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Which of the `ordered` magnitudes `(n, k)` exceed their level, and the levels."""
    count = torch.arange(1, ordered.shape[1] + 1, device=ordered.device, dtype=ordered.dtype)
    levels = (ordered.cumsum(1) - eps[:, None]) / count
    return ordered > levels, levels


def _largest(v: Tensor, enough: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """The largest entries of each row of `v` `(n, d)`, downwards, and where they stand.

    Equal ones come in the order of the features. As many are given as are `enough` for each row,
    bool `(n,)` of both: to pick a few hundred takes a fifth of the time of a whole sort.
    """
    few = _FEW
    while few < v.shape[1] and not asynchronous(v.device):
        where = v.topk(few, dim=1, sorted=False).indices.sort(dim=1).values
        top, order = v.gather(1, where).sort(dim=1, descending=True, stable=True)
        where = where.gather(1, order)
        if enough(top, where).all():
            return top, where
        few *= 4
    whole = v.sort(dim=1, descending=True, stable=True)
    return whole.values, whole.indices


def steepest(
    grad: Tensor, radius: Tensor, norm: Norm, x: Tensor, bounds: tuple[float, float]
) -> Tensor:
    """The step from `x`, of length `radius`, that raises a linear function of gradient `grad` most.

    In l1 the best step puts everything on the feature with the largest gradient. That feature soon
    meets the bound of its interval, so the step is filled up from the next ones: the exact maximum
    over ball and box together (Croce and Hein, 2021, arXiv:2103.01208, section 3).
    In l2 and linf the caller's clip to the box comes after the step.

    Args:
        grad: `(n, *features)`.
        radius: length of each sample's step in `norm`, `(n,)`.
        norm: `"linf"`, `"l2"` or `"l1"`.
        x: where the step begins, `(n, *features)`, within `bounds`.
        bounds: lower and upper end of the box; they limit the step in l1 only.

    Returns:
        `(n, *features)`; zero where the gradient is zero.
    """
    if norm == "linf":
        return grad.sign().mul_(per_sample(radius, grad))
    if norm == "l2":
        return normalize(grad, "l2") * per_sample(radius, grad)
    return _fill(grad, radius, torch.where(grad > 0, bounds[1] - x, x - bounds[0]))


def _fill(grad: Tensor, radius: Tensor, room: Tensor) -> Tensor:
    """The steepest step in l1 where each feature has `room` `(n, *features)` on its way."""
    slopes, room = grad.flatten(1).abs(), room.flatten(1)

    def used_up(top: Tensor, where: Tensor) -> Tensor:
        """Whether features that are steeper than the last of `top` take up the whole step."""
        last = top[:, -1:]
        return ((top > last) * room.gather(1, where)).sum(1).ge(radius) | (last[:, 0] <= 0)

    slope, order = _largest(slopes, used_up)
    share = room.gather(1, order) * (slope > 0)
    left = (radius[:, None] - (share.cumsum(1) - share)).clamp_min(0)
    taken = torch.zeros_like(slopes).scatter(1, order, torch.minimum(share, left))
    return taken.view_as(grad) * grad.sign()
