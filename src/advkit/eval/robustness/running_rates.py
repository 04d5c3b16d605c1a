"""Rates of a running evaluation, chunk by chunk."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor

from advkit.eval.accuracy import Rate
from advkit.eval.robustness.attack_recorder import outcome_of, with_norm
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.robustness.worst_case import Budget, budgets_of, numbered_texts, robust_within
from advkit.eval.units.descriptions import AttackDescription
from advkit.eval.units.unit_result import UnitResult


class RunningRates:
    """Clean accuracy, robust accuracy and passes of the chunks so far.

    They are those of a report on the same chunks. The time for a chunk does not depend on the
    number of chunks before it.

    Attributes:
        inputs: number of inputs.
        forward: forward passes of all attacks.
        backward: backward passes of all attacks.
    """

    def __init__(self, attacks: Sequence[AttackDescription]) -> None:
        self.inputs = self.forward = self.backward = 0
        self._attacks = list(attacks)
        self._outcomes: list[AttackOutcome] = []  # in the last chunk
        self._correct = 0
        self._robust = [0] * len(attacks)  # inputs robust within the budget of each attack
        # Pairs of attacks with one `eps` for each input that had other radii in some chunk. Only
        # the whole data tells how many budgets they are.
        self._different: set[tuple[int, int]] = set()

    def update(self, clean: UnitResult, attacked: Sequence[UnitResult]) -> None:
        """Record the results of the next chunk: of its clean passes, and of each attack."""
        correct = clean.columns["prediction"] == clean.columns["label"]
        results = list(zip(self._attacks, attacked, strict=True))
        self._attacks = [with_norm(attack, result) for attack, result in results]
        self._outcomes = outcomes = [
            outcome_of(attack, result.columns, result.facts["seconds"])
            for attack, result in zip(self._attacks, attacked, strict=True)
        ]
        self.inputs += len(correct)
        self.forward += sum(int(outcome.forward.sum()) for outcome in outcomes)
        self.backward += sum(int(outcome.backward.sum()) for outcome in outcomes)
        self._correct += int(correct.sum())
        self._count_robust(correct)
        self._compare_radii()

    @property
    def clean_accuracy(self) -> Rate:
        """Share of the inputs that are labeled correctly before any attack."""
        return Rate(self._correct, self.inputs)

    @property
    def worst_cases(self) -> dict[str, Rate]:
        """Robust accuracy under all attacks within each budget, as `Report.worst_cases`."""
        texts = numbered_texts(self._outcomes, lambda a, b: (a, b) not in self._different)
        counts = dict(zip(reversed(texts), reversed(self._robust), strict=True))
        return {text: Rate(counts[text], self.inputs) for text in dict.fromkeys(texts) if text}

    def _count_robust(self, correct: Tensor) -> None:
        """Add the inputs `(n,)` of the last chunk that are robust within the budget of an attack.

        Attacks with the same text of their budget share the greatest radius, as in a report.
        """
        shared = budgets_of([outcome for outcome in self._outcomes if outcome.eps is not None])
        for number, outcome in enumerate(self._outcomes):
            if not outcome.minimum_norm:
                own = Budget(outcome.norm, outcome.radius)
                budget = shared.get(outcome.budget, own)
                robust = robust_within(budget, correct, self._outcomes)
                self._robust[number] += int(robust.sum())

    def _compare_radii(self) -> None:
        """Compare the attacks with one `eps` for each input in the last chunk."""
        own = [n for n, o in enumerate(self._outcomes) if not o.minimum_norm and o.eps is None]
        for a, b in combinations(own, 2):
            if not torch.equal(self._outcomes[a].radius, self._outcomes[b].radius):
                self._different.add((a, b))
