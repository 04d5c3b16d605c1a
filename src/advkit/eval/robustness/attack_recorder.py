"""What one attack does to a data set, counted and timed batch by batch."""

from __future__ import annotations

import time
from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from advkit.core.attack_options import check_length, part_of
from advkit.core.hyperparameters import settings
from advkit.core.protocols import Attack
from advkit.eval.budgets import radius_of
from advkit.eval.robustness.outcome import AttackOutcome, Examples
from advkit.models import Classifier

_EXAMPLES = 6


def check_attacks(attacks: Sequence[Attack], total: int | None) -> None:
    """Raise unless `attacks` is a list of attacks for `total` samples, `None` for any number."""
    made = isinstance(attacks, Sequence) and not any(isinstance(a, type) for a in attacks)
    if not made or not all(hasattr(a, "run") for a in attacks):
        raise TypeError(f"attacks must be a list of attacks, got {attacks!r}")
    if not attacks:
        raise ValueError("attacks must hold at least one attack, got none")
    for attack in attacks:
        check_length(attack, total)


class Tally:
    """What one attack has done so far, batch by batch.

    Args:
        attack: the attack.
        examples: how many of its successes are kept for pictures.
    """

    def __init__(self, attack: Attack, *, examples: int = _EXAMPLES) -> None:
        self.attack: Any = attack
        self.norm: str = getattr(attack, "norm", "")
        self.columns: dict[str, list[Tensor]] = {
            name: []
            for name in ("radius", "robust", "distance", "forward", "backward", "no_gradient")
        }
        self.seconds = 0.0
        self.wanted = examples
        self.examples: list[Examples] = []

    def add(self, model: Classifier, x: Tensor, y: Tensor, right: Tensor, seen: int) -> None:
        """Attack the samples of a batch where `right`; it is the data's part from `seen` on."""
        n = len(x)
        found = {
            "radius": torch.zeros(n, dtype=torch.float64),
            "robust": right.clone(),
            "distance": torch.full((n,), torch.nan),
            "forward": torch.zeros(n, dtype=torch.int64),
            "backward": torch.zeros(n, dtype=torch.int64),
            "no_gradient": torch.zeros(n, dtype=torch.bool),
        }
        if right.any():
            rows = right.nonzero().flatten()
            attack = part_of(self.attack, rows.cpu() + seen)
            start = time.perf_counter()
            result = attack.run(model, x[rows], y[rows])
            success = result.success.cpu()  # waits for the device, so that the clock is right
            self.seconds += time.perf_counter() - start
            self.norm = result.norm
            at = rows.cpu()
            found["radius"][at] = radius_of(attack)
            found["robust"] = found["robust"].cpu().index_put((at,), ~success)
            found["distance"][at[success]] = result.distance.cpu()[success].float()
            found["forward"][at] = result.queries.forward.cpu()
            found["backward"][at] = result.queries.backward.cpu()
            found["no_gradient"][at] = result.no_gradient.cpu()
            self._keep_examples(model, x[rows], y[rows], result.x_adv, result.success)
        for name, column in self.columns.items():
            column.append(found[name].cpu())

    def _keep_examples(
        self, model: Classifier, x: Tensor, y: Tensor, x_adv: Tensor, success: Tensor
    ) -> None:
        room = self.wanted - sum(len(e.y) for e in self.examples)
        wanted = success.nonzero().flatten()[: 2 * room]
        if self.examples and self.examples[0].x.shape[1:] != x.shape[1:]:
            return  # pictures of one size only
        if not len(wanted):
            return
        answer = model.predict(x_adv[wanted])
        # On the boundary a batch of another size may round to the other side.
        turned = (answer != y[wanted]).nonzero().flatten()[:room]
        if len(turned):
            rows = wanted[turned]
            parts = (x[rows], x_adv[rows], y[rows], answer[turned])
            self.examples.append(Examples(*(part.cpu() for part in parts)))

    def outcome(self) -> AttackOutcome:
        """All of it so far."""
        eps = getattr(self.attack, "eps", None)
        return AttackOutcome(
            name=type(self.attack).__name__,
            settings=settings(self.attack),
            norm=self.norm,
            minimum_norm=eps is None,
            eps=float(eps) if isinstance(eps, Real) else None,
            seconds=self.seconds,
            examples=Examples.join(self.examples),
            **{name: torch.cat(column) for name, column in self.columns.items()},
        )
