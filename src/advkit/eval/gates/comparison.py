"""Result of a comparison of two reports, as tables, a sentence and a dict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from advkit.core.boxes import format_norm
from advkit.core.files import save_json
from advkit.eval import text_tables
from advkit.eval.accuracy import Rate
from advkit.eval.gates.exact_tests import LEVEL
from advkit.eval.robustness.outcome import finite
from advkit.eval.text_tables import Table, format_count, format_distance
from advkit.eval.versions import versions

_SHOWN = 10  # numbers of inputs in a sentence


class ComparedReport(NamedTuple):
    """Origin of one of two reports.

    Attributes:
        model: description of the model.
        date: start of the evaluation in UTC.
        weights: SHA-256 of the weights; `None` for a model without a state dict.
    """

    model: str
    date: str
    weights: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class RateComparison:
    """Accuracy of two models on the same inputs, within one budget or on the clean inputs.

    Attributes:
        name: the budget, such as `"linf 0.1"`, or `"clean accuracy"`.
        old: accuracy in the old report.
        new: accuracy in the new report.
        lost: int64 `(k,)`; numbers of the inputs that count in the old report alone.
        gained: int64 `(m,)`; numbers of the inputs that count in the new report alone.
        p_value: probability of at least so many lost among those that changed, if each is as likely
            to be lost as gained.
        adjusted_p: `p_value` adjusted by Holm for the number of budgets; for the clean accuracy
            `p_value` itself.
    """

    name: str
    old: Rate
    new: Rate
    lost: Tensor
    gained: Tensor
    p_value: float
    adjusted_p: float

    @property
    def worse(self) -> bool:
        """True if the accuracy fell by more than chance explains, at a level of 5 %."""
        return self.adjusted_p < LEVEL

    @property
    def change(self) -> str:
        """Both rates, the numbers of changed inputs and the p-value, as text."""
        return (
            f"from {self.old} to {self.new}; {len(self.lost):,} lost, {len(self.gained):,} gained, "
            f"p = {format_p(self.adjusted_p)}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "old": self.old.to_dict(),
            "new": self.new.to_dict(),
            "lost": self.lost.tolist(),
            "gained": self.gained.tolist(),
            "p_value": self.p_value,
            "adjusted_p": self.adjusted_p,
            "worse": self.worse,
        }


@dataclass(frozen=True, kw_only=True)
class DistanceComparison:
    """Nearest adversarial examples of two models in one norm, for the same inputs.

    Attributes:
        norm: norm of the distances.
        old: lower median over the attacked inputs in the old report, `None` if there are none.
        new: lower median in the new report.
        nearer: number of inputs whose nearest example is nearer in the new report.
        farther: number of inputs whose nearest example is farther in the new report.
        p_value: probability of at least so many nearer ones among those that changed, if each is as
            likely to be nearer as farther.
    """

    norm: str
    old: float | None
    new: float | None
    nearer: int
    farther: int
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `None` stands for an infinite or missing distance."""
        return {**vars(self), "old": finite(self.old), "new": finite(self.new)}


@dataclass(frozen=True, kw_only=True, eq=False)
class Comparison:
    """Two reports on the same inputs, compared input by input.

    Attributes:
        inputs: number of inputs.
        old: origin of the old report.
        new: origin of the new report.
        clean: the clean accuracy, for information: a fall lowers the robust accuracy, too.
        budgets: robust accuracy within each common budget.
        distances: nearest adversarial examples in each common norm, for information.
        only_old: budgets of the old report alone.
        only_new: budgets of the new report alone.
        differences: sentences on attacks, models and versions.
    """

    inputs: int
    old: ComparedReport
    new: ComparedReport
    clean: RateComparison
    budgets: tuple[RateComparison, ...]
    distances: tuple[DistanceComparison, ...]
    only_old: tuple[str, ...]
    only_new: tuple[str, ...]
    differences: tuple[str, ...]

    def __str__(self) -> str:
        heading = [
            f"old: {self.old.model}, {self.old.date}",
            f"new: {self.new.model}, {self.new.date}",
            format_count(self.inputs, "input"),
        ]
        verdict = text_tables.wrap_notes([self.verdict])
        tables = text_tables.separate(self.tables(), self.notes())
        return "\n".join([*heading, "", *verdict, "", tables])

    @property
    def by_budget(self) -> dict[str, RateComparison]:
        """Comparison within each common budget, by the budget as text."""
        return {compared.name: compared for compared in self.budgets}

    @property
    def worse(self) -> bool:
        """True if the robust accuracy in any budget fell by more than chance explains."""
        return any(compared.worse for compared in self.budgets)

    @property
    def verdict(self) -> str:
        """Sentence that says whether the robust accuracy fell by more than chance explains."""
        if not self.budgets:
            return "Verdict: none, since the reports have no budget in common."
        if not self.worse:
            return (
                "Verdict: not worse. The robust accuracy fell in no budget by more than chance "
                "explains."
            )
        fallen = "; ".join(f"{c.name} {c.change}" for c in self.budgets if c.worse)
        return f"Verdict: worse. The robust accuracy fell by more than chance explains: {fallen}."

    def tables(self) -> list[Table]:
        """Return the table of accuracies, and that of distances if there is a common norm."""
        rates = Table(
            "Accuracy on the same inputs",
            ("budget", "old", "new", "lost", "gained", "p", "adjusted\np"),
            [_rate_row(compared) for compared in self.budgets],
            [_rate_row(self.clean)],
        )
        if not self.distances:
            return [rates]
        heading = ("norm", "old\nmedian", "new\nmedian", "nearer", "farther", "p")
        rows = [_distance_row(compared) for compared in self.distances]
        return [rates, Table("Nearest adversarial examples of the same inputs", heading, rows, [])]

    def notes(self) -> list[str]:
        """Return sentences that explain the figures."""
        notes = [
            "Lost inputs are robust in the old report alone, gained ones in the new report alone. "
            "The p-value is that of the exact one-sided test of McNemar, adjusted by Holm for the "
            "number of budgets. A fall is more than chance explains if it is below 0.05.",
            "The clean accuracy is information. The verdict is about the budgets, where a "
            "misclassified input is not robust.",
        ]
        if self.distances:
            notes.append(
                "Distances are information. Nearer are the inputs with a nearer example in the "
                "new report; a misclassified input has the distance 0."
            )
        notes += [
            f"Numbers of the inputs lost in {c.name}: {_listed(c.lost)}."
            for c in self.budgets
            if len(c.lost)
        ]
        for name, budgets in (("old", self.only_old), ("new", self.only_new)):
            if budgets:
                notes.append(f"Only the {name} report has: {'; '.join(budgets)}.")
        return [*notes, *self.differences]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `None` stands for an infinite or missing distance."""
        return {
            "verdict": self.verdict,
            "worse": self.worse,
            "inputs": self.inputs,
            "old": self.old._asdict(),
            "new": self.new._asdict(),
            "clean_accuracy": self.clean.to_dict(),
            "robust_accuracy_by_budget": {c.name: c.to_dict() for c in self.budgets},
            "nearest_by_norm": {c.norm: c.to_dict() for c in self.distances},
            "budgets_of_old_alone": list(self.only_old),
            "budgets_of_new_alone": list(self.only_new),
            "notes": self.notes(),
            "versions": versions(),
        }

    def save_json(self, path: str | Path) -> Path:
        """Write `to_dict()` to `path`; after an error, no partial file is left."""
        return save_json(path, self.to_dict())


def format_p(p: float) -> str:
    """Format a p-value with two digits."""
    return f"{p:.2g}"


def _rate_row(compared: RateComparison) -> tuple[str, ...]:
    return (
        compared.name,
        str(compared.old),
        str(compared.new),
        f"{len(compared.lost):,}",
        f"{len(compared.gained):,}",
        format_p(compared.p_value),
        format_p(compared.adjusted_p),
    )


def _distance_row(compared: DistanceComparison) -> tuple[str, ...]:
    return (
        format_norm(compared.norm),
        format_distance(compared.old),
        format_distance(compared.new),
        f"{compared.nearer:,}",
        f"{compared.farther:,}",
        format_p(compared.p_value),
    )


def _listed(numbers: Tensor) -> str:
    """Return the numbers of inputs as text, of many the first ones."""
    text = ", ".join(map(str, numbers[:_SHOWN].tolist()))
    more = len(numbers) - _SHOWN
    return text + (f" and {more:,} more" if more > 0 else "")
