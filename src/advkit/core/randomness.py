"""Random numbers that depend on the sample, not on the batch or the process.

A generator with a state gives a sample other numbers when its batch is split or shuffled
differently. Here every number is a hash of the seed, the content of the sample and the position of
the number. A sample gets the same numbers in any batch, in any order and on any device, and no
global generator is used. The hash is the finalizer of SplitMix64 (Steele, Lea and Flood, 2014).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from advkit.core.norms import Norm, by_position, lp_norm, per_sample

_WEYL = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64: 2**64 over the golden ratio
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB
_GRID_STEPS = 16  # across the box, for the content of a sample
_BLOCK_SIZE = 2**18  # numbers that are drawn at once


def _wrap(value: int) -> int:
    """Return `value` modulo 2**64, as the int64 with the same bits."""
    return (value + 2**63) % 2**64 - 2**63


def _shift(z: Tensor, bits: int) -> Tensor:
    """Shift int64 `z` right without sign extension, which torch's own shift has."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    """Map int64 `z` one to one, with each output bit depending on all input bits, in place."""
    z.bitwise_xor_(_shift(z, 30)).mul_(_MIX_1)
    z.bitwise_xor_(_shift(z, 27)).mul_(_MIX_2)
    return z.bitwise_xor_(_shift(z, 31))


def _stream(keys: Tensor, start: int, stop: int) -> Tensor:
    """Return the hashed words from `start` up to `stop` for `keys` `(n,)`, int64 `(n, words)`."""
    counter = torch.arange(start + 1, stop + 1, device=keys.device, dtype=torch.int64)
    return _mix(keys[:, None] + counter * _WEYL)


def sample_keys(x: Tensor, bounds: tuple[float, float], *words: int) -> Tensor:
    """Return a key for each sample, from `words` (seed, restart, ...) and the sample's content.

    The content is rounded to a coarse grid over the box. The same data in other units, such as
    0..255 in place of 0..1, then gets the same numbers in spite of rounding errors. Samples that
    are equal on the whole grid share their numbers, which does no harm.

    Args:
        x: `(n, *features)` within `bounds`.
        bounds: lower and upper bound of the features.
        words: any integers.

    Returns:
        int64 `(n,)`.
    """
    lower, upper = bounds
    fine = x.flatten(1).to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    cells = ((fine - lower) * (_GRID_STEPS / (upper - lower))).round().to(torch.int64)
    position = torch.arange(1, cells.shape[1] + 1, device=x.device, dtype=torch.int64)
    keys = _mix(cells + position * _WEYL).sum(1)
    for word in words:
        keys = derived_keys(keys, word)
    return keys


def derived_keys(keys: Tensor, word: int) -> Tensor:
    """Return keys `(n,)` for the `word`-th further draw of the same samples."""
    return _mix(keys + _wrap(word * _WEYL + 1))


def uniform(keys: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Return uniform numbers strictly between 0 and 1, `(n, size)` for `keys` `(n,)`.

    float64 has 52 random bits. Every other `dtype` gives float32 with 23 random bits, the most
    that keep the largest number below 1.
    """
    bits, result_dtype = (52, torch.float64) if dtype == torch.float64 else (23, torch.float32)
    numbers = torch.empty(len(keys), size, dtype=result_dtype, device=keys.device)
    block = max(1, _BLOCK_SIZE // max(1, len(keys)))
    for start in range(0, size, block):  # all words at once would cost many page faults
        words = _stream(keys, start, min(size, start + block))
        numbers[:, start : start + block] = _shift(words, 64 - bits)
    return numbers.add_(0.5).mul_(2.0**-bits)


def normal(keys: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Return standard normal numbers `(n, size)` for `keys` `(n,)`, in the dtype of `uniform`."""
    numbers: Tensor = torch.special.ndtri(uniform(keys, size, dtype))
    return numbers


def uniform_in_ball(keys: Tensor, eps: Tensor, norm: Norm, like: Tensor) -> Tensor:
    """Draw a perturbation uniformly from the volume of each sample's ball.

    linf: independent features. l2: a Gaussian direction at radius eps * u^(1/d). l1: signed
    exponential spacings, d of d + 1 (Barthe et al., 2005, arXiv:math/0503650, theorem 1).

    Args:
        keys: `(n,)` from `sample_keys`.
        eps: radius of each ball, `(n,)`.
        norm: `"linf"`, `"l2"` or `"l1"`.
        like: `(n, *features)`, whose shape and dtype the result has.

    Returns:
        `(n, *features)`.
    """
    d = math.prod(like.shape[1:])
    u = uniform(keys, d + 1, like.dtype)
    inner, extra = u[:, :d], u[:, d:]
    if norm == "linf":
        point = 2 * inner - 1
    elif norm == "l2":
        gauss = torch.special.ndtri(inner)
        point = gauss / lp_norm(gauss, "l2")[:, None] * extra ** (1 / d)
    elif norm == "l1":
        signed = 2 * inner - 1
        exponential = -torch.log(signed.abs().clamp_min(torch.finfo(u.dtype).tiny))
        point = signed.sign() * exponential / (exponential.sum(1, keepdim=True) - extra.log())
    else:
        raise ValueError(f"`norm` must be 'linf', 'l2' or 'l1', got {norm!r}.")
    return (point.view_as(like) * per_sample(eps, like)).to(like.dtype)


def uniform_noise(
    x: Tensor, eps: Tensor, norm: Norm, bounds: tuple[float, float], *words: int
) -> Tensor:
    """Return `x` plus a point drawn uniformly from the volume of each sample's ball.

    Args:
        x: `(n, *features)` within `bounds`.
        eps: radius of each ball, `(n,)`.
        norm: `"linf"`, `"l2"` or `"l1"`.
        bounds: lower and upper bound of the features; the noisy points may lie outside.
        words: any integers (seed, restart, ...) for `sample_keys`.

    Returns:
        `(n, *features)`.
    """
    return x + uniform_in_ball(sample_keys(x, bounds, *words), eps, norm, x)


def salt_and_pepper(
    keys: Tensor, counts: Tensor, x: Tensor, bounds: tuple[float, float], norm: Norm = "l0"
) -> Tensor:
    """Return `x` with random features of each sample set to the lower or the upper bound.

    Args:
        keys: `(n,)` from `sample_keys`.
        counts: number of positions to set, `(n,)`, rounded down.
        x: `(n, *features)`.
        bounds: lower and upper bound of the features.
        norm: `"l0"`, where each feature is a position, or `"l0_pixel"`, where each channel of a
            position gets its own bound.

    Returns:
        `(n, *features)`.
    """
    old = by_position(x, norm)
    _, channels, size = old.shape
    u = uniform(keys, (1 + channels) * size, x.dtype)
    order, side = u[:, :size], u[:, size:]
    chosen = order.argsort(1) < counts[:, None].floor()
    ends = x.new_tensor(bounds)[(side < 0.5).long()].view(old.shape)
    return torch.where(chosen[:, None], ends, old).view(x.shape)
