"""Powers of two by which logits of extreme size are multiplied before anything is computed.

Success does not depend on a common factor of the logits, but their squares, products and gradients
do: they underflow or overflow. A factor that is a power of two changes no digit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from advkit.core.losses import split_label_logit
from advkit.core.tensors import at_least_float32

TINY, HUGE = 2.0**-14, 2.0**30  # logits of a size between the two are left as they are


class LogitScale:
    """The factors of a batch of `n` samples, which follow from the first logits of each."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._measured = False
        self._factor: Tensor | None = None  # (n,), None where all of them are one

    def applied(self, logits: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """Return the scaled logits, in float32 at least.

        Args:
            logits: of `m` samples, `(m, classes)`; in the first call of all samples to come.
            labels: to leave or to reach, `(m,)`.
            rows: where the samples stand in the batch, `(m,)`.
        """
        if not self._measured:
            self._measured = True
            found = logit_scale(logits, labels)
            if (found != 1).any():
                self._factor = found.new_ones(self._n).index_put((rows,), found)
        logits = at_least_float32(logits)
        return logits if self._factor is None else logits * self._factor[rows, None]


def logit_scale(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the factor for the logits `(n, classes)` of each sample, a power of two, `(n,)`.

    The size of a sample is the larger magnitude of the label's logit and the best of the others: a
    class that is masked by a huge negative number does not count. Tiny logits are brought to a size
    of about one, huge ones to `HUGE`, where cross-entropy still is the margin. The backward pass
    begins with the factor, which therefore stays within the dtype of the logits.
    """
    own, others = split_label_logit(at_least_float32(logits.detach()), labels)
    size = torch.maximum(own.abs(), others.amax(1).abs())
    tiny, huge = (size > 0) & (size < TINY), (size > HUGE) & size.isfinite()
    mantissa, _ = torch.frexp(size)
    to_one = mantissa / size  # exact
    limit = 1 / torch.finfo(logits.dtype).tiny
    factor = torch.where(tiny, to_one.clamp_max(limit), 1)
    return torch.where(huge, HUGE * to_one, factor)
