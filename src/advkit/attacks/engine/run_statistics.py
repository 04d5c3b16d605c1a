"""The ledger of one run: passes, and gradients and logits that failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from advkit.attacks.engine.sender import Sender


class RunStatistics:
    """Passes of one run for each of its `n` inputs, and what kept it from finding more.

    That is gradients and logits that failed, and searches that could not begin.

    Where the model may end the run at any pass, also what is found so far.
    """

    def __init__(self, n: int, device: torch.device) -> None:
        self.n = n
        self.forward = torch.zeros(n, dtype=torch.int64, device=device)
        self.backward = torch.zeros(n, dtype=torch.int64, device=device)
        self.no_gradient = torch.zeros(n, dtype=torch.bool, device=device)
        self.not_finite = torch.zeros(n, dtype=torch.bool, device=device)
        self.no_start = torch.zeros(n, dtype=torch.bool, device=device)
        self.no_start_told = False  # a warning has named these samples already
        self.sender = Sender(n)
        self.best_so_far: Any = None  # a record of the engine, or None where nothing ends the run
        self.advance: Callable[[int], None] = lambda _: None  # moves the progress bar of the run

    def count(self, passes: Tensor, rows: Tensor) -> None:
        """One more of `passes`, which is `forward` or `backward`, for the samples `rows`."""
        if len(rows) == len(passes):
            passes += 1  # the rows are all of them: three times as fast as the index
        else:
            passes[rows] += 1
