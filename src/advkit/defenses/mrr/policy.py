"""The policy of a detector: its rule, and the share of clean inputs that it may flag."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from advkit.core import checks
from advkit.defenses.mrr.aggregation import Rule, RuleName


@dataclass(frozen=True, kw_only=True)
class Policy:
    """When a risk raises an alarm.

    Attributes:
        rule: from the scores of all defenders to a risk.
        security: share of clean inputs that is flagged, in percent.
        jointly: whether that is the share of all defenders together, or of each.
    """

    rule: Rule
    security: float
    jointly: bool

    @classmethod
    def of(
        cls,
        aggregate: RuleName,
        precision: float | Sequence[float],
        security: float,
        jointly: bool,
    ) -> Policy:
        """Return the policy of these arguments of `MRR`.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: an argument is out of its range.
        """
        rule = Rule(
            name=aggregate,
            precision=tuple(precision) if isinstance(precision, Sequence) else precision,
        )
        checks.number("security", security)
        if not 0 < security < 100:
            raise ValueError(f"`security` must be a percentage between 0 and 100, got {security}")
        checks.boolean("jointly", jointly)
        return cls(rule=rule, security=float(security), jointly=jointly)

    def check_count(self, defenders: int) -> None:
        """Raise unless there is one precision, or one for each of the defenders."""
        given = self.rule.precision
        if isinstance(given, tuple) and len(given) != defenders:
            raise ValueError(
                f"`precision` must be one number or one for each of {defenders} defenders, "
                f"got {len(given)}"
            )

    def threshold(self, clean: Tensor) -> float:
        """Return the most risk that raises no alarm.

        Args:
            clean: scores `(m, defenders)` of clean inputs that nothing was fitted on.

        Raises:
            ValueError: there are too few of them for so small a `security`.
        """
        level = self.security / 100
        if not self.jointly:
            return 1 - level
        risks = self.rule.risk(clean).sort().values
        allowed = math.floor(level * (len(risks) + 1))  # so that a new one is above with level
        if not len(risks):
            raise ValueError(
                "`jointly` must be False: no clean inputs were held out for a threshold"
            )
        if not allowed:
            raise ValueError(
                f"`security` must be at least {100 / (len(risks) + 1):.2g} %, since {len(risks)} "
                f"inputs are held out for it, got {self.security:g} %; hold out more"
            )
        return float(risks[-allowed])
