"""Powers of two that scale logits of extreme size before anything is computed from them.

Success does not depend on a common factor of the logits. Their squares, products and gradients do,
since they underflow or overflow. Multiplication by a power of two is exact.
"""

from __future__ import annotations

import torch
from torch import Tensor

from advkit.core.losses import split_label_logit
from advkit.core.tensors import at_least_float32

TINY, HUGE = 2.0**-14, 2.0**30  # logits with a size between the two are not scaled


class LogitScale:
    """Factors of a batch of `n` samples, computed from the first logits of each sample."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._measured = False
        self._factor: Tensor | None = None  # (n,), None where all of them are one

    def applied(self, logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """Return the scaled logits, in float32 or a wider dtype.

        Args:
            logits: logits `(m, classes)`. The first call must include all samples of later calls.
            labels: labels to leave or to reach, `(m,)`.
            rows: row of each sample in the batch, `(m,)`.
        """
        if not self._measured:
            self._measured = True
            factor = logit_scale(logits, labels)
            if (factor != 1).any():
                self._factor = factor.new_ones(self._n).index_put((rows,), factor)
        logits = at_least_float32(logits)
        return logits if self._factor is None else logits * self._factor[rows, None]


def logit_scale(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the factor for the logits `(n, classes)` of each sample, a power of two, `(n,)`.

    The size of a sample is the larger magnitude of the label's logit and the best other logit. A
    class that is masked with a huge negative number does not count. Tiny logits are scaled to a
    size of about one, huge logits to `HUGE`, where the cross-entropy is still the margin. The
    backward pass begins with the factor, which therefore stays within the dtype of the logits.
    """
    own, others = split_label_logit(at_least_float32(logits.detach()), labels)
    size = torch.maximum(own.abs(), others.amax(1).abs())
    tiny, huge = (size > 0) & (size < TINY), (size > HUGE) & size.isfinite()
    mantissa, _ = torch.frexp(size)
    to_one = mantissa / size  # exact
    limit = 1 / torch.finfo(logits.dtype).tiny
    factor = torch.where(tiny, to_one.clamp_max(limit), 1)
    return torch.where(huge, HUGE * to_one, factor)
