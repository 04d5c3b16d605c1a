"""Norms, projections and steepest directions of batches of samples of any rank."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from advkit.core.tensors import asynchronous, at_least_float32

# "l0" counts changed features, "l0_pixel" changed positions: features that differ in channel alone.
Norm = Literal["l0", "l0_pixel", "l1", "l2", "linf"]
Unit = Literal["feature", "pixel"]  # of a budget in l0
UNITS: tuple[Unit, ...] = ("feature", "pixel")
COUNTS: tuple[Norm, ...] = ("l0", "l0_pixel")  # norms whose distances are whole numbers
# Dual norms: a distance to a hyperplane in the key is measured with its normal in the value.
DUAL: dict[Norm, Norm] = {"l2": "l2", "linf": "l1", "l1": "linf"}
# Orders of the norms that sum over features, which are those of the minimum-norm attacks.
ORDER: dict[Norm, float] = {"l0": 0, "l1": 1, "l2": 2, "linf": math.inf}
# A sample longer than this power of the smallest normal number loses no squares that matter.
_SAFE_POWER = 0.375
_FIRST_TOP_K = 128  # features that are sorted first where only the largest matter


def per_sample(v: Tensor, like: Tensor) -> Tensor:
    """Reshape `v` of shape `(n,)` so that it broadcasts over `like` of shape `(n, *features)`."""
    return v.view(-1, *[1] * (like.ndim - 1))


def in_unit(norm: Norm, unit: str) -> Norm:
    """Return the norm in which distances are measured: `"l0_pixel"` for l0 in pixels."""
    return "l0_pixel" if norm == "l0" and unit == "pixel" else norm


def by_position(v: Tensor, norm: Norm) -> Tensor:
    """Return `v` `(n, *features)` as `(n, channels, positions)`; a position counts once in `norm`.

    In `"l0"` each feature is a position. In `"l0_pixel"` the features of all channels, axis 1 of
    `v`, share a position. A table `(n, features)` has one channel.
    """
    return v.flatten(2) if norm == "l0_pixel" and v.ndim > 2 else v.flatten(1)[:, None]


def lp_norm(delta: Tensor, norm: Norm) -> Tensor:
    """Return the norm `(n,)` of each sample of `delta` `(n, *features)`."""
    if norm == "l0_pixel":
        return (by_position(delta, norm) != 0).any(1).sum(1).to(delta.dtype)
    flat = delta.flatten(1)
    if norm == "linf":  # ten times faster than vector_norm on a CPU
        return torch.maximum(flat.amax(1), -flat.amin(1))
    length: Tensor = torch.linalg.vector_norm(flat, ord=ORDER[norm], dim=1)
    return _rescue_squares(flat, length) if norm == "l2" else length


def _rescue_squares(flat: Tensor, length: Tensor) -> Tensor:
    """Return the l2 `length` `(n,)` of `flat` `(n, d)`, computed again where squares are lost.

    The squares of tiny and huge entries are zero or infinite. Samples with such entries are scaled
    by their largest entry first. The others keep their length to the last bit.
    """
    summed_in = at_least_float32(length).dtype  # 16 bits are summed in float32
    least = torch.finfo(summed_in).tiny ** _SAFE_POWER
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
    """Return `grad` `(n, *features)` with NaN and infinite entries replaced in each sample.

    NaN becomes 0. An infinite entry keeps its sign and gets the largest finite magnitude of its
    sample, or 1 where no finite entry is nonzero. Finite entries are unchanged.
    """
    if not asynchronous(grad.device) and grad.sum().isfinite():
        return grad
    magnitude = grad.abs()
    largest = lp_norm(torch.where(magnitude < math.inf, magnitude, 0), "linf")
    return project(grad, torch.where(largest > 0, largest, 1), "linf").nan_to_num(0)


def normalize(v: Tensor, norm: Norm) -> Tensor:
    """Scale each sample of `v` to unit norm; zero stays zero.

    Samples are scaled by their largest entry first, so that the squares of tiny and huge gradients
    are not lost.
    """
    largest = lp_norm(v, "linf")
    v = v / per_sample(torch.where(largest > 0, largest, 1), v)
    return v / per_sample(lp_norm(v, norm).clamp_min(torch.finfo(v.dtype).tiny), v)


def project(delta: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    """Project `delta` onto the ball of radius `eps`, in Euclidean distance.

    Args:
        delta: `(n, *features)`.
        eps: radius of each sample's ball `(n,)`, not negative.
        norm: `"linf"`, `"l2"` or `"l1"`; the l0 "ball" is not convex and is not supported.

    Returns:
        `(n, *features)`; samples inside their ball are unchanged.
    """
    if norm == "linf":
        radius = per_sample(eps, delta)
        return torch.maximum(torch.minimum(delta, radius), -radius)
    if norm == "l2":
        return rescale(delta, eps, "l2")
    if norm == "l1":
        return _project_l1(delta, eps)
    raise ValueError(f"`norm` must be 'linf', 'l2' or 'l1', got {norm!r}.")


def rescale(delta: Tensor, eps: Tensor, norm: Norm) -> Tensor:
    """Scale samples longer than `eps` down to that length; the others are unchanged."""
    length = lp_norm(delta, norm)
    finfo = torch.finfo(delta.dtype)  # a length above the largest number is infinite
    scale = torch.where(length > eps, eps / length.clamp(finfo.tiny, finfo.max), 1)
    return delta * per_sample(scale, delta)


def _project_l1(delta: Tensor, eps: Tensor) -> Tensor:
    """Apply the soft threshold that leaves norm `eps` (Duchi et al., 2008, algorithm of fig. 1).

    With magnitudes in descending order, the threshold of the k largest is (their sum - eps) / k.
    The correct k is the last one whose magnitude still exceeds its threshold. Inside the ball that
    threshold is not positive and nothing is subtracted.
    """
    ordered, _ = largest_first(delta.flatten(1).abs(), lambda top, _: ~_above(top, eps)[0][:, -1])
    above, thresholds = _above(ordered, eps)
    last = (above.sum(1, keepdim=True) - 1).clamp_min(0)
    threshold = per_sample(thresholds.gather(1, last).squeeze(1).clamp_min(0), delta)
    shrunk = delta.sign() * (delta.abs() - threshold).clamp_min(0)
    return rescale(shrunk, eps, "l1")  # removes the rounding error of the sums


def _above(ordered: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Return which of the `ordered` magnitudes `(n, k)` exceed their threshold, and thresholds."""
    count = torch.arange(1, ordered.shape[1] + 1, device=ordered.device, dtype=ordered.dtype)
    thresholds = (ordered.cumsum(1) - eps[:, None]) / count
    return ordered > thresholds, thresholds


def keep_largest(delta: Tensor, count: Tensor) -> Tensor:
    """Return `delta` `(n, *features)` with all but the `count` `(n,)` largest entries set to 0.

    A count is rounded down. Of equal magnitudes the first features are kept, whatever the rest of
    the batch.
    """
    kept = are_largest(delta.flatten(1).abs(), count)
    return torch.where(kept.view_as(delta), delta, 0)


def are_largest(v: Tensor, count: Tensor) -> Tensor:
    """Return a mask `(n, d)` of the `count` `(n,)` largest entries of each row of `v` `(n, d)`.

    A count is rounded down. Of equal entries the first ones are taken, whatever the rest of the
    batch.
    """
    whole = count.clamp(0, v.shape[1]).long()[:, None]
    last = (whole - 1).clamp_min(0)
    ordered, _ = largest_first(v, lambda top, _: last[:, 0] < top.shape[1])
    threshold = ordered.gather(1, last)
    above, equal = v > threshold, v == threshold
    room = whole - above.sum(1, keepdim=True)
    return above | (equal & (equal.cumsum(1) <= room))


def largest_first(v: Tensor, enough: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Return the largest entries of each row of `v` `(n, d)`, descending, and their indices.

    Equal entries come in the order of the features. The number of entries grows until `enough`,
    a function of entries and indices, is true for all rows `(n,)`. Selecting a few hundred entries
    takes a fifth of the time of a full sort.
    """
    k = _FIRST_TOP_K
    while k < v.shape[1] and not asynchronous(v.device):
        index = v.topk(k, dim=1, sorted=False).indices.sort(dim=1).values
        top, order = v.gather(1, index).sort(dim=1, descending=True, stable=True)
        index = index.gather(1, order)
        if enough(top, index).all():
            return top, index
        k *= 4
    ordered = v.sort(dim=1, descending=True, stable=True)
    return ordered.values, ordered.indices


def steepest(
    grad: Tensor, radius: Tensor, norm: Norm, x: Tensor, bounds: tuple[float, float]
) -> Tensor:
    """Return the step of length `radius` that increases a linear function of gradient `grad` most.

    In l1 the best step changes only the feature with the largest gradient. That feature soon
    reaches its bound, so the rest of the step goes to the next features. The result is the exact
    maximum over ball and box together (Croce and Hein, 2021, arXiv:2103.01208, section 3).
    In l2 and linf the caller clips to the box after the step.

    Args:
        grad: `(n, *features)`.
        radius: length of each sample's step in `norm`, `(n,)`.
        norm: `"linf"`, `"l2"` or `"l1"`.
        x: start of the step, `(n, *features)`, within `bounds`.
        bounds: lower and upper bound of the features; they limit the step in l1 only.

    Returns:
        `(n, *features)`; zero where the gradient is zero.
    """
    if norm == "linf":
        return grad.sign().mul_(per_sample(radius, grad))
    if norm == "l2":
        return normalize(grad, "l2") * per_sample(radius, grad)
    return _fill(grad, radius, torch.where(grad > 0, bounds[1] - x, x - bounds[0]))


def _fill(grad: Tensor, radius: Tensor, limit: Tensor) -> Tensor:
    """Return the steepest step in l1 that changes each feature by at most its `limit`."""
    slopes, limit = grad.flatten(1).abs(), limit.flatten(1)

    def used_up(top: Tensor, index: Tensor) -> Tensor:
        """Return whether features steeper than the last of `top` use the whole step, `(n,)`."""
        last = top[:, -1:]
        return ((top > last) * limit.gather(1, index)).sum(1).ge(radius) | (last[:, 0] <= 0)

    slope, order = largest_first(slopes, used_up)
    limits = limit.gather(1, order) * (slope > 0)
    left = (radius[:, None] - (limits.cumsum(1) - limits)).clamp_min(0)
    change = torch.zeros_like(slopes).scatter(1, order, torch.minimum(limits, left))
    return change.view_as(grad) * grad.sign()
