"""Statistics of one run: passes, failed gradients and logits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from advkit.attacks.engine.sender import Sender


class RunStatistics:
    """Numbers of passes of each of the `n` inputs of one run, and the obstacles that it met.

    The obstacles are gradients and logits that are not finite, gradients of zero, rejections, and
    searches that could not begin or ended too early. If a pass of the model may end the run, the
    best iterates so far are included.
    """

    def __init__(self, n: int, device: torch.device) -> None:
        self.n = n
        self.forward = torch.zeros(n, dtype=torch.int64, device=device)
        self.backward = torch.zeros(n, dtype=torch.int64, device=device)
        self.steps = torch.zeros(n, dtype=torch.int64, device=device)  # of `iterate`
        self.no_gradient = torch.zeros(n, dtype=torch.bool, device=device)
        self.not_finite = torch.zeros(n, dtype=torch.bool, device=device)
        self.no_start = torch.zeros(n, dtype=torch.bool, device=device)
        self.rejected = torch.zeros(n, dtype=torch.bool, device=device)
        # violations of the clean inputs, inf where none was evaluated by itself
        self.clean_violation = torch.full((n,), math.inf, dtype=torch.float64, device=device)
        self.improving = torch.zeros(n, dtype=torch.bool, device=device)  # in the last steps
        self.success_lost = torch.zeros(n, dtype=torch.bool, device=device)
        self.no_start_reported = False  # a warning has named these samples already
        self.stage: Any = None  # int64 (n,) of a cascade, else None
        self.verified_labels: Any = None  # int64 (n,), `None` before the verification
        self.sender = Sender(n)
        self.best_so_far: Any = None  # a record, or None if the model cannot end the run
        self.advance: Callable[[int], None] = lambda _: None  # moves the progress bar of the run

    def count(self, passes: Tensor, rows: Tensor) -> None:
        """Add one to `passes`, which is `forward` or `backward`, for the samples `rows`."""
        if len(rows) == len(passes):
            passes += 1  # all samples, three times as fast as with an index
        else:
            passes[rows] += 1

    def count_step(self, rows: Tensor) -> None:
        """Count a step of the samples `rows`, and move the progress bar."""
        self.count(self.steps, rows)
        self.advance(1)
