"""Minimum-norm attacks next to each other, as a table, a plot and a dict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from advkit.core.files import save_json
from advkit.eval import text_tables
from advkit.eval.accuracy import Rate
from advkit.eval.benchmarking.comparison_plot import Bars, comparison_plot
from advkit.eval.robustness.outcome import NearestExamples, finite, number_or_none
from advkit.eval.text_tables import (
    Table,
    format_count,
    format_distance,
    format_percent,
    format_score,
)
from advkit.eval.versions import versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Criterion = Literal["distance_ratio", "optimality"]


@dataclass(frozen=True, kw_only=True)
class ComparedAttack:
    """A minimum-norm attack and its distances, compared with those of all attacks.

    Attributes:
        name: call that creates the attack, after the name of its report if the reports have names.
            A number follows a call that occurs again.
        norm: norm of the distances.
        success_rate: share of the attacked inputs that become misclassified.
        median_distance: lower median over the attacked inputs, a failure counted as inf; `None` if
            no input was attacked.
        distance_ratio: mean of the nearest distance of all attacks over the distance of this one,
            in [0, 1]; NaN if no attack found an example.
        optimality: local optimality of AttackBench, in [0, 1]; NaN if no attack found an example,
            or if all nearest examples are at the same distance.
    """

    name: str
    norm: str
    success_rate: Rate
    median_distance: float | None
    distance_ratio: float
    optimality: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `None` stands for an infinite or undefined value."""
        return {
            "attack": self.name,
            "norm": self.norm,
            "success_rate": self.success_rate.to_dict(),
            "median_distance": finite(self.median_distance),
            "distance_ratio": number_or_none(self.distance_ratio),
            "optimality": number_or_none(self.optimality),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class AttackComparison:
    """Minimum-norm attacks on the same inputs, compared in each norm.

    Attributes:
        criterion: figure that sorts the attacks of a norm.
        attacks: the attacks, norm after norm, the best first in each.
        nearest: nearest examples of all attacks in a norm, budget attacks included, by norm.
    """

    criterion: Criterion
    attacks: tuple[ComparedAttack, ...]
    nearest: Mapping[str, NearestExamples]

    def __str__(self) -> str:
        return text_tables.separate(self.tables(), self.notes())

    @property
    def by_name(self) -> dict[str, float]:
        """Value of the criterion for each attack, by the name of the attack."""
        return {attack.name: getattr(attack, self.criterion) for attack in self.attacks}

    def in_norm(self, norm: str) -> list[ComparedAttack]:
        """Return the attacks in a norm, the best first."""
        return [attack for attack in self.attacks if attack.norm == norm]

    def tables(self) -> list[Table]:
        """Return a table for each norm."""
        return [self._table(norm, nearest) for norm, nearest in self.nearest.items()]

    def _table(self, norm: str, nearest: NearestExamples) -> Table:
        return Table(
            f"Nearest in {norm}: {format_count(nearest.success_rate.total, 'attacked input')}",
            ("attack", "distance\nratio", "optimality", "success\nrate in %", "median\ndistance"),
            [_line(attack) for attack in self.in_norm(norm)],
            [
                ("nearest of all attacks", "", "", format_percent(nearest.success_rate),
                 format_distance(nearest.median_distance))
            ],
        )  # fmt: skip

    def notes(self) -> list[str]:
        """Return sentences that explain the figures."""
        notes = [
            "The distance ratio is the mean of the nearest distance that any attack in the norm "
            "found over the distance of this attack, at best 1. A failure counts as 0.",
            "Optimality is the local optimality of AttackBench (Cinà et al., 2024). It compares "
            "the area under the curve of robust accuracy with that of the nearest examples. It is "
            "1 for an attack that finds the nearest example of every input, and 0 for one that "
            "finds nothing. It is undefined (-) if all nearest examples have one distance.",
        ]
        for norm, nearest in self.nearest.items():
            missed = nearest.success_rate.total - nearest.success_rate.count
            if missed:
                notes.append(
                    f"In {norm} every attack failed on {format_count(missed, 'input')}, left out "
                    "of the distance ratio."
                )
            if nearest.attacks == 1:
                notes.append(
                    f"In {norm} a single attack is compared with itself, which says nothing."
                )
        return notes

    def plot(self) -> Figure:
        """Plot distance ratio and optimality as bars: a panel for each norm, the best attack first.

        Raises:
            ImportError: matplotlib is missing; the message names the extra that installs it.
        """
        return comparison_plot(
            {
                norm: [Bars(a.name, a.distance_ratio, a.optimality) for a in self.in_norm(norm)]
                for norm in self.nearest
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `None` stands for an infinite or undefined value."""
        return {
            "criterion": self.criterion,
            "attacks": [attack.to_dict() for attack in self.attacks],
            "nearest_by_norm": {norm: n.to_dict() for norm, n in self.nearest.items()},
            "notes": self.notes(),
            "versions": versions(),
        }

    def save_json(self, path: str | Path) -> Path:
        """Write `to_dict()` to `path`; after an error, no partial file is left."""
        return save_json(path, self.to_dict())


def _line(attack: ComparedAttack) -> tuple[str, ...]:
    return (
        attack.name,
        format_score(attack.distance_ratio),
        format_score(attack.optimality),
        format_percent(attack.success_rate),
        format_distance(attack.median_distance),
    )
