"""Robust accuracy against eps from one run of each minimum-norm attack."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advkit.core.boxes import count_sentences, format_norm
from advkit.core.files import save_json
from advkit.core.norms import COUNTS
from advkit.eval import text_tables
from advkit.eval.accuracy import Rate
from advkit.eval.budgets import no_minimum_norm
from advkit.eval.robustness import figures
from advkit.eval.robustness.accuracy_curve import AccuracyCurve, round_eps, shown_limit
from advkit.eval.robustness.report import Report
from advkit.eval.text_tables import Table, format_count, format_percent
from advkit.eval.versions import versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, eq=False)
class SecurityCurves:
    """Robust accuracy against eps under each minimum-norm attack and under all attacks.

    Attributes:
        model: description of the model.
        curves: curve of each minimum-norm attack, in the order of the report. Its `attack` is the
            call that creates the attack, without the norm.
        worst_cases: curve under all attacks of the report in a norm, budget attacks included, for
            each norm with a minimum-norm attack.
    """

    model: str
    curves: tuple[AccuracyCurve, ...]
    worst_cases: Mapping[str, AccuracyCurve]

    def __str__(self) -> str:
        heading = f"{self.model} on {format_count(self.curves[0].total, 'input')}"
        clean = f"clean accuracy {self.clean_accuracy}"
        return "\n".join([heading, clean, "", text_tables.separate(self.tables(), self.notes())])

    @property
    def clean_accuracy(self) -> Rate:
        """Share of all inputs that are labeled correctly before any attack."""
        return Rate(self.curves[0].correct, self.curves[0].total)

    def tables(self) -> list[Table]:
        """Return a table for each norm: robust accuracy at a few round values of eps."""
        return [self._table(norm) for norm in self.worst_cases]

    def _table(self, norm: str) -> Table:
        inside = [curve for curve in self.curves if curve.norm == norm]
        limit = shown_limit([curve.distances for curve in inside], figures.SHOWN_QUANTILE) or 1.0
        columns = round_eps(limit, whole=norm in COUNTS)

        def line(curve: AccuracyCurve) -> tuple[str, ...]:
            return (curve.attack, *(format_percent(curve.at(eps)) for eps in columns))

        return Table(
            f"Robust accuracy in % within eps, {format_norm(norm)}",
            ("attack", *(f"{eps:g}" for eps in columns)),
            [line(curve) for curve in inside],
            [line(self.worst_cases[norm])],
        )

    def notes(self) -> list[str]:
        """Return sentences that explain the figures."""
        notes = [
            f"Robust accuracy is the share of all {self.curves[0].total:,} inputs that are labeled "
            "correctly and have no adversarial example within eps. Inputs that are misclassified "
            "before any attack count as not robust at every eps.",
            "The worst case is that of all attacks in the norm, budget attacks included. An attack "
            "that misses the nearest examples leaves its curve too high.",
        ]
        return [*notes, *count_sentences(self.worst_cases)]

    def plot(self) -> Figure:
        """Plot robust accuracy against eps: a panel for each norm, a curve for each attack.

        The gray curve is the worst case. A panel ends where each attack has found 99 % of its
        adversarial examples.

        Raises:
            ImportError: matplotlib is missing; the message names the extra that installs it.
        """
        return figures.security_curves(self.curves, self.worst_cases)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "model": self.model,
            "inputs": self.curves[0].total,
            "clean_accuracy": self.clean_accuracy.to_dict(),
            "curves": [curve.to_dict() for curve in self.curves],
            "worst_cases": {norm: curve.to_dict() for norm, curve in self.worst_cases.items()},
            "notes": self.notes(),
            "versions": versions(),
        }

    def save_json(self, path: str | Path) -> Path:
        """Write `to_dict()` to `path`; after an error, no partial file is left."""
        return save_json(path, self.to_dict())


def security_curve(report: Report) -> SecurityCurves:
    """Return robust accuracy against eps from the minimum-norm attacks of a report.

    A minimum-norm attack finds the distance of the nearest adversarial example of each input, and
    therefore the robust accuracy at every eps from one run. The curves are exact step functions of
    these distances. A misclassified input counts as not robust at every eps, and a failure of the
    attack as an infinite distance.

    Args:
        report: result of `evaluate` with at least one minimum-norm attack.

    Returns:
        A curve for each minimum-norm attack, and the worst case of all attacks in each norm. They
        print as a table.

    Raises:
        ValueError: the report has budget attacks alone.
        TypeError: `report` is not a `Report`.

    References:
        Biggio and Roli, "Wild patterns", 2018, arXiv:1712.03141: security evaluation curves.

    Example:
        >>> import torch
        >>> from advkit import attacks, eval
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(2 * torch.eye(2))
        >>> x = torch.tensor([[0.6, 0.5], [0.4, 0.6], [0.9, 0.1], [0.1, 0.3]])
        >>> y = torch.tensor([0, 1, 0, 0])
        >>> report = eval.evaluate(net, x, y, attacks=[attacks.FAB(norm="linf")])
        >>> curve = eval.security_curve(report).worst_cases["linf"]
        >>> [str(curve.at(eps)) for eps in (0, 0.07, 0.5)]
        ['75.00 % (3 of 4)', '50.00 % (2 of 4)', '0.00 % (0 of 4)']
    """
    if not isinstance(report, Report):
        raise TypeError(
            f"`report` must be a Report, got {type(report).__name__}. Pass the result of "
            "`evaluate`."
        )
    if not report.minimum_norm:
        raise no_minimum_norm("report", [outcome.label for outcome in report.outcomes])
    norms = dict.fromkeys(outcome.norm for outcome in report.minimum_norm)
    inside = {norm: [o for o in report.outcomes if o.norm == norm] for norm in norms}
    return SecurityCurves(
        model=report.model,
        curves=tuple(
            AccuracyCurve.of(outcome.family, [outcome], report.clean)
            for outcome in report.minimum_norm
        ),
        worst_cases={
            norm: AccuracyCurve.of(figures.WORST_CASE, outcomes, report.clean)
            for norm, outcomes in inside.items()
        },
    )
