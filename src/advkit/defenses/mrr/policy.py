"""Detection policy of MRR: its aggregation rule and its false-positive rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from advkit.core import checks
from advkit.defenses.mrr.aggregation import Rule, RuleName


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Aggregation rule and false-positive rate of a detector.

    Attributes:
        rule: aggregation of the scores of all defenders to a risk.
        fpr: false-positive rate: the share of clean inputs that is flagged.
        joint_threshold: whether `fpr` is the rate of all defenders together, or of each one.
    """

    rule: Rule
    fpr: float
    joint_threshold: bool

    @classmethod
    def of(
        cls,
        aggregate: RuleName,
        precision: float | Sequence[float],
        fpr: float,
        joint_threshold: bool,
    ) -> Policy:
        """Return the policy for these arguments of `MRR`.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument is out of its range.
        """
        rule = Rule(
            name=aggregate,
            precision=tuple(precision) if isinstance(precision, Sequence) else precision,
        )
        checks.number("fpr", fpr)
        if fpr >= 1:
            raise ValueError(
                f"`fpr` must lie in (0, 1), got {fpr}. It is a share, not a percentage."
            )
        checks.fraction("fpr", fpr, "(0, 1)")
        checks.boolean("joint_threshold", joint_threshold)
        return cls(rule=rule, fpr=float(fpr), joint_threshold=joint_threshold)

    def check_count(self, defenders: int) -> None:
        """Raise unless `precision` is one number, or one for each defender."""
        given = self.rule.precision
        if isinstance(given, tuple) and len(given) != defenders:
            raise ValueError(
                f"`precision` must be one number or one for each of {defenders} defenders, "
                f"got {len(given)}."
            )

    def threshold(self, clean: Tensor) -> float:
        """Return the greatest risk that is not flagged.

        Args:
            clean: scores `(m, defenders)` of clean inputs that were not used in the fit.

        Raises:
            ValueError: there are too few of them for so small an `fpr`.
        """
        level = self.fpr
        if not self.joint_threshold:
            return 1 - level
        risks = self.rule.risk(clean).sort().values
        allowed = math.floor(level * (len(risks) + 1))  # a new risk is above with probability level
        if not len(risks):
            raise ValueError(
                "`joint_threshold` must be False with calibration_fraction=0, "
                "which holds out no clean inputs for a threshold."
            )
        if not allowed:
            raise ValueError(
                f"`fpr` must be at least {1 / (len(risks) + 1):.2g} with {len(risks)} clean inputs "
                f"for the threshold, got {self.fpr:g}. Raise `calibration_fraction`, or pass more "
                "inputs as `clean`."
            )
        return float(risks[-allowed])
