"""Result of a benchmark of attacks, as a table, a plot and a dict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from advkit.core.files import save_json
from advkit.eval import text_tables
from advkit.eval.benchmarking.pareto_plot import pareto_plot
from advkit.eval.benchmarking.ranking import AttackCost, Group, groups_of
from advkit.eval.text_tables import format_count, format_mebibytes
from advkit.eval.versions import versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class BarePass:
    """One bare pass of the first batch: the unit of cost.

    Attributes:
        inputs: number of samples in the batch.
        seconds: median time of all passes that were timed.
        peak_memory: the most bytes that its tensors hold at once.
        backward: true for a forward and a backward pass; false for a forward pass alone, of a model
            without gradients.
    """

    inputs: int
    seconds: float
    peak_memory: int
    backward: bool

    def __str__(self) -> str:
        kind = "forward and backward pass" if self.backward else "forward pass (no gradients)"
        return (
            f"1 pass = one {kind} of the batch: {1000 * self.seconds:.3g} ms and "
            f"{format_mebibytes(self.peak_memory)} MiB for {format_count(self.inputs, 'input')}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "inputs": self.inputs,
            "seconds": self.seconds,
            "peak_memory": self.peak_memory,
            "backward": self.backward,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Benchmark:
    """Outcomes and costs of attacks on `n` inputs.

    Attributes:
        model: description of the model.
        clean: bool `(n,)`; labeled correctly before any attack, and therefore attacked.
        attacks: outcome and cost of each attack, in the order given.
        bare_pass: the unit of cost.
        batch_size: samples passed to the model at once, at most.
        rounds: number of times that each attack was timed.
        device: device of the batches.
        threads: number of threads that torch used for its operations.
        about: further facts for the reader, such as data and seed, by name.
    """

    model: str
    clean: Tensor
    attacks: tuple[AttackCost, ...]
    bare_pass: BarePass
    batch_size: int
    rounds: int
    device: str
    threads: int
    about: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        notes = text_tables.wrap_notes(self.notes())
        heading = text_tables.wrap_notes(self._heading())
        return "\n".join([*heading, "", *self._tables(), *notes])

    def _tables(self) -> list[str]:
        """Return the lines of the tables; those of groups with a budget have other columns."""
        lines = []
        for has_budget in (True, False):
            tables = [group.table() for group in self.groups if group.has_budget == has_budget]
            lines += [*text_tables.format_tables(tables), ""] if tables else []
        return lines

    @property
    def groups(self) -> tuple[Group, ...]:
        """Attacks in groups with the same goal, the best first in each."""
        return groups_of(self.attacks)

    def notes(self) -> list[str]:
        """Return sentences that explain the figures, and warnings about the attacks."""
        has_budget = [group.has_budget for group in self.groups]
        times = "Passes and seconds" if any(has_budget) else "Passes"
        notes = [
            "* On the Pareto front: no other attack in the table is as good for fewer passes.",
            "The attack success rate is a share of the attacked inputs. The median distance counts "
            "a failure as infinity (inf). Forward and backward are passes of a sample through the "
            "model for each attacked input.",
            "Passes are the time of an attack, divided by the time of one forward and backward "
            "pass of the same batches just before and after it. "
            f"{times} are medians of {format_count(self.rounds, 'round')}. The time may exceed the "
            "number of forward and backward passes, because the last few inputs are sent in small "
            "batches, which cost more for each input. The peak is the most memory of tensors on "
            "the first batch.",
        ]
        if not all(has_budget):
            notes.append(
                "The distance ratio is the mean of the nearest distance that any attack in the "
                "norm found over that of this attack, at best 1. A failure counts as 0, and inputs "
                "on which every attack failed are left out."
            )
        if any(_minimum_norm_rows(group) for group in self.groups):
            notes.append(
                "Within a budget, a minimum-norm attack counts with its adversarial examples in "
                "this budget, and with its whole cost."
            )
        return [*notes, *self._notes_on_failures()]

    def _notes_on_failures(self) -> list[str]:
        outcomes = [cost.outcome for cost in self.attacks]
        failures = [("had no usable gradient", o.label, int(o.no_gradient.sum())) for o in outcomes]
        failures += [("could not begin", o.label, int(o.no_start.sum())) for o in outcomes]
        return [
            f"{label} {problem} on {format_count(count, 'input')}: its failure there is not "
            "evidence of robustness."
            for problem, label, count in failures
            if count
        ]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; an infinite distance is `None`."""
        return {
            "model": self.model,
            "about": dict(self.about),
            "inputs": len(self.clean),
            "attacked": int(self.clean.sum()),
            "batch_size": self.batch_size,
            "rounds": self.rounds,
            "device": self.device,
            "threads": self.threads,
            "bare_pass": self.bare_pass.to_dict(),
            "attacks": [cost.to_dict() for cost in self.attacks],
            "groups": [group.to_dict() for group in self.groups],
            "notes": self.notes(),
            "versions": versions(),
        }

    def save_json(self, path: str | Path) -> Path:
        """Write `to_dict()` to `path`; after an error, no partial file is left."""
        return save_json(path, self.to_dict())

    def plot(self) -> Figure | None:
        """Plot attack success rate against passes, a panel for each group, with the Pareto front.

        For minimum-norm attacks the figure shows the median distance, smaller ones higher.

        Returns:
            The figure; `None` if no attack succeeds.

        Raises:
            ImportError: matplotlib is missing; the message names the extra that installs it.
        """
        return pareto_plot(self.groups)

    def _heading(self) -> list[str]:
        return [
            f"{self.model} on {format_count(len(self.clean), 'input')}",
            f"attacked: {int(self.clean.sum()):,}, which the model labels correctly",
            *(f"{name}: {value}" for name, value in self.about.items()),
            str(self.bare_pass),
            f"{format_count(self.rounds, 'round')} in batches of {self.batch_size:,} "
            f"on {self.device}, {format_count(self.threads, 'thread')}",
        ]


def _minimum_norm_rows(group: Group) -> bool:
    """Return true if a group with a budget contains minimum-norm attacks."""
    return group.has_budget and any(row.cost.outcome.minimum_norm for row in group.rows)
