"""What a benchmark of attacks found: a table, a plot and a dict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from advkit.core.files import save_json
from advkit.eval import text_tables
from advkit.eval.benchmarking.pareto_plot import found_against_floors
from advkit.eval.benchmarking.ranking import AttackCost, Group, groups_of
from advkit.eval.text_tables import counted, mebibytes
from advkit.eval.versions import versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Floor:
    """One bare pass of the first batch: the unit of cost.

    Attributes:
        inputs: samples in it.
        seconds: the median of all that were timed.
        peak_memory: the most bytes that it has in tensors at once.
        backward: whether it is a forward and a backward pass; forward alone for a model without
            gradients.
    """

    inputs: int
    seconds: float
    peak_memory: int
    backward: bool

    def __str__(self) -> str:
        passes = "forward and backward pass" if self.backward else "forward pass (no gradients)"
        return (
            f"floor: a bare {passes}; of {counted(self.inputs, 'input')} it takes "
            f"{1000 * self.seconds:.3g} ms and {mebibytes(self.peak_memory)} MiB"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "inputs": self.inputs,
            "seconds": self.seconds,
            "peak_memory": self.peak_memory,
            "backward": self.backward,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Benchmark:
    """What attacks found among `n` inputs, and what they took for it.

    Attributes:
        model: the model in words.
        clean: bool `(n,)`; labelled correctly before any attack, which is what is attacked.
        attacks: what each attack found and took, in the order given.
        floor: the unit of cost.
        batch_size: samples sent at once, at most.
        rounds: how often each attack was timed.
        device: where the batches were.
        threads: that torch had for its operations.
        about: what else a reader should know, such as data and seed, by name.
    """

    model: str
    clean: Tensor
    attacks: tuple[AttackCost, ...]
    floor: Floor
    batch_size: int
    rounds: int
    device: str
    threads: int
    about: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        table = text_tables.lines([group.table() for group in self.groups])
        notes = text_tables.wrapped(self.notes())
        heading = text_tables.wrapped(self._heading())
        return "\n".join([*heading, "", *table, "", *notes])

    @property
    def groups(self) -> tuple[Group, ...]:
        """The attacks among those that look for the same thing, the best first."""
        return groups_of(self.attacks)

    def notes(self) -> list[str]:
        """What the figures mean, and what a reader must not overlook."""
        notes = [
            "* No other attack of the group finds as much, or as near, for fewer floors.",
            "Found is a share of the attacked inputs. The median distance counts what is not found "
            "as infinity (inf). Forward and backward are samples sent through the model for each "
            "attacked input.",
            "Floors are the time of an attack in bare passes of the same batches, timed just "
            "before and after it; floors and seconds are medians of "
            f"{counted(self.rounds, 'round')}. They may exceed the passes: the last few inputs go "
            "in small batches, at a higher price for each. The peak is what tensors hold at once "
            "while the first batch is attacked.",
        ]
        if any(_has_guests(group) for group in self.groups):
            notes.append(
                "A minimum-norm attack among those with a budget counts with what it found within "
                "it, and with all that it took."
            )
        return [*notes, *self._notes_on_failures()]

    def _notes_on_failures(self) -> list[str]:
        outcomes = [cost.outcome for cost in self.attacks]
        lost = [("met no usable gradient", o.label, int(o.no_gradient.sum())) for o in outcomes]
        lost += [("could not begin", o.label, int(o.no_start.sum())) for o in outcomes]
        return [
            f"{label} {what} on {counted(count, 'input')} that it did not fool: "
            "to find nothing there says nothing."
            for what, label, count in lost
            if count
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `None` stands for an infinite distance."""
        return {
            "model": self.model,
            "about": dict(self.about),
            "inputs": len(self.clean),
            "attacked": int(self.clean.sum()),
            "batch_size": self.batch_size,
            "rounds": self.rounds,
            "device": self.device,
            "threads": self.threads,
            "floor": self.floor.to_dict(),
            "attacks": [cost.to_dict() for cost in self.attacks],
            "groups": [group.to_dict() for group in self.groups],
            "notes": self.notes(),
            "versions": versions(),
        }

    def save_json(self, path: str | Path) -> Path:
        """Write `to_dict()` to `path`, whole or not at all."""
        return save_json(path, self.to_dict())

    def plot(self) -> Figure | None:
        """What is found against floors, a panel for each group, those on the front joined by steps.

        For minimum-norm attacks it is the median distance, nearer being higher. `None` if no attack
        finds anything.

        Raises:
            ImportError: matplotlib is missing, naming the extra that brings it.
        """
        return found_against_floors(self.groups)

    def _heading(self) -> list[str]:
        return [
            f"{self.model} on {counted(len(self.clean), 'input')}",
            f"attacked: {int(self.clean.sum()):,}, those that are labelled correctly",
            *(f"{name}: {value}" for name, value in self.about.items()),
            str(self.floor),
            f"{counted(self.rounds, 'round')} in batches of {self.batch_size:,} "
            f"on {self.device}, {counted(self.threads, 'thread')}",
        ]


def _has_guests(group: Group) -> bool:
    """Whether minimum-norm attacks stand in a group with a budget."""
    return group.budget and any(row.cost.outcome.minimum_norm for row in group.rows)
