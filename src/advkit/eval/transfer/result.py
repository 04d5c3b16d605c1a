"""What models say to each other's adversarial examples: tables, a dict, and heat maps."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from advkit.core.files import save_json
from advkit.eval import text_tables
from advkit.eval.accuracy import Rate
from advkit.eval.transfer.heat_maps import heat_maps
from advkit.eval.versions import versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NO_ATTACK = "no attack"  # name of the baseline without an attack
_BROAD = 14  # of a column's name, in characters


@dataclass(frozen=True, kw_only=True, eq=False)
class TransferSource:
    """Adversarial examples for `n` inputs, made on one model.

    Attributes:
        name: of the model.
        attack: the call that makes the attack.
        fooled: bool `(n,)`; the source is wrong on its own adversarial example.
        wrong: bool `(targets, n)`; the target is wrong on that example.
        forward: int64 `(n,)`; samples that the attack sent forward.
        backward: int64 `(n,)`; likewise backward.
    """

    name: str
    attack: str
    fooled: Tensor
    wrong: Tensor
    forward: Tensor
    backward: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class TransferMatrix:
    """How adversarial examples of each source do against each target, on `n` inputs.

    Two conventions, which differ by what they divide by. `error_rate` is the share of all `n` inputs
    that the target gets wrong; `transfer_rate` is the same share among only those inputs whose
    adversarial example fools the source. Inputs that a model gets wrong before any attack count as
    wrong, and as fooled, in both. An input that a model rejects counts as wrong without an attack,
    and not under one or under noise, which it has not got through.

    Attributes:
        targets: their names.
        sources: what was made on each source, and what came of it.
        no_attack: bool `(targets, n)`; the target is wrong on the clean input.
        random_noise: bool `(targets, n)` for each norm and `eps` of the attacks, by their words;
            the target is wrong on the input under uniform noise of that size.
    """

    targets: tuple[str, ...]
    sources: tuple[TransferSource, ...]
    no_attack: Tensor
    random_noise: Mapping[str, Tensor]

    def __str__(self) -> str:
        return text_tables.separate(self.tables(), self.notes())

    @property
    def total(self) -> int:
        """Number of inputs."""
        return self.no_attack.shape[1]

    @property
    def error_rate(self) -> dict[str, dict[str, Rate]]:
        """Share of all inputs that a target gets wrong, by source and target."""
        return {source.name: self._rates(source.wrong) for source in self.sources}

    @property
    def transfer_rate(self) -> dict[str, dict[str, Rate]]:
        """The same share among only those inputs that fool the source, by source and target."""
        return {s.name: self._rates(s.wrong[:, s.fooled]) for s in self.sources}

    @property
    def fooled(self) -> dict[str, Rate]:
        """Share of all inputs whose adversarial example fools its source, by source."""
        return {source.name: Rate.of(source.fooled) for source in self.sources}

    @property
    def baselines(self) -> dict[str, dict[str, Rate]]:
        """Share of all inputs that a target gets wrong without an attack, and under noise."""
        noise = {f"random noise, {budget}": w for budget, w in self.random_noise.items()}
        return {
            name: self._rates(wrong) for name, wrong in {NO_ATTACK: self.no_attack, **noise}.items()
        }

    def tables(self) -> list[text_tables.Table]:
        """Over all, given fooled, and what was run on the sources."""
        names = tuple(textwrap.fill(name, _BROAD) for name in self.targets)
        given = self.transfer_rate
        return [
            text_tables.Table(
                f"Over all: share of all {self.total:,} inputs that the target gets wrong, in %",
                ("source", *names),
                [_row(name, rates) for name, rates in self.baselines.items()],
                [_row(name, rates) for name, rates in self.error_rate.items()],
            ),
            text_tables.Table(
                "Given fooled: the same share of only those inputs that fool the source, in %",
                ("source", *names),
                [_row(f"{n} ({rate.count:,})", given[n]) for n, rate in self.fooled.items()],
                [],
            ),
            text_tables.Table(
                "Sources: what was run on each",
                ("source: attack", "fooled", "forward\nper input", "backward\nper input"),
                [_cost(source) for source in self.sources],
                [],
            ),
        ]

    def notes(self) -> list[str]:
        """What the numbers mean."""
        notes = [
            f"Each source's attack makes an adversarial example of all {self.total:,} inputs, and "
            "each target answers to exactly these. A row is a source, a column is a target.",
            "Over all divides by all inputs. Given fooled divides by the inputs whose adversarial "
            "example the source itself gets wrong; their number stands behind its name. What a "
            "model gets wrong before any attack counts as wrong in both.",
        ]
        if self.random_noise:
            notes.append(
                "Random noise is a baseline: one random draw for each input from a budget that "
                "some attack has."
            )
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; rates as `Rate.to_dict`."""
        error_rate, given = self.error_rate, self.transfer_rate
        return {
            "inputs": self.total,
            "targets": list(self.targets),
            "sources": [
                {
                    "name": s.name,
                    "attack": s.attack,
                    "fooled": self.fooled[s.name].to_dict(),
                    "forward_per_input": float(s.forward.double().mean()),
                    "backward_per_input": float(s.backward.double().mean()),
                    "error_rate": _plain(error_rate[s.name]),
                    "transfer_rate": _plain(given[s.name]),
                }
                for s in self.sources
            ],
            "no_attack": _plain(self._rates(self.no_attack)),
            "random_noise": {b: _plain(self._rates(w)) for b, w in self.random_noise.items()},
            "notes": self.notes(),
            "versions": versions(),
        }

    def save_json(self, path: str | Path) -> Path:
        """Write `to_dict()` to `path`, whole or not at all."""
        return save_json(path, self.to_dict())

    def plot(self) -> Figure:
        """Two heat maps, one for each convention: rows are sources, columns are targets.

        Raises:
            ImportError: matplotlib is missing, naming the extra that brings it.
        """
        return heat_maps(
            list(self.baselines.items()),
            list(self.error_rate.items()),
            list(self.transfer_rate.items()),
            list(self.fooled.values()),
            self.targets,
        )

    def _rates(self, wrong: Tensor) -> dict[str, Rate]:
        """By target, of bool `(targets, k)`."""
        return {name: Rate.of(row) for name, row in zip(self.targets, wrong, strict=True)}


def _row(name: str, rates: Mapping[str, Rate]) -> tuple[str, ...]:
    return (name, *(text_tables.percent(rate) for rate in rates.values()))


def _cost(source: TransferSource) -> tuple[str, ...]:
    means = (float(way.double().mean()) for way in (source.forward, source.backward))
    fooled = Rate.of(source.fooled)
    return (f"{source.name}: {source.attack}", str(fooled), *(f"{mean:.1f}" for mean in means))


def _plain(rates: Mapping[str, Rate]) -> dict[str, Any]:
    return {name: rate.to_dict() for name, rate in rates.items()}
