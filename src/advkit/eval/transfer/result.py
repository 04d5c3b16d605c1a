"""Result of a transfer evaluation, as tables, a dict and heat maps."""

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
# Characters in a line of a column's name: several targets fit the width of the text.
TARGET_NAME_WIDTH = 14


@dataclass(frozen=True, kw_only=True, eq=False)
class TransferSource:
    """Adversarial examples of one source model for `n` inputs.

    Attributes:
        name: name of the source.
        attack: call that creates the attack.
        fooled: bool `(n,)`; the source misclassifies its own adversarial example.
        misclassified: bool `(targets, n)`; the target misclassifies that example.
        forward: int64 `(n,)`; forward passes of each input in the attack.
        backward: int64 `(n,)`; backward passes of each input in the attack.
    """

    name: str
    attack: str
    fooled: Tensor
    misclassified: Tensor
    forward: Tensor
    backward: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class TransferMatrix:
    """Error rates of targets on adversarial examples of sources, for `n` inputs.

    There are two rates with different denominators. `error_rate` is the share of all `n` inputs
    that the target misclassifies. `transfer_rate` is the same share among only those inputs whose
    adversarial example fools the source. In both, an input that a model misclassifies before any
    attack counts as misclassified, and as fooled. A rejected clean input counts as misclassified. A
    rejected adversarial example or noisy input does not.

    Attributes:
        targets: names of the targets.
        sources: adversarial examples of each source, and the results on each target.
        no_attack: bool `(targets, n)`; the target misclassifies the clean input.
        random_noise: bool `(targets, n)` for each norm and `eps` of the attacks, by budget as text;
            the target misclassifies the input under uniform noise of that size.
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
        """Share of all inputs that a target misclassifies, by source and target."""
        return {source.name: self._rates(source.misclassified) for source in self.sources}

    @property
    def transfer_rate(self) -> dict[str, dict[str, Rate]]:
        """Error rate on only those inputs that fool the source, by source and target."""
        return {s.name: self._rates(s.misclassified[:, s.fooled]) for s in self.sources}

    @property
    def fooled(self) -> dict[str, Rate]:
        """Share of all inputs whose adversarial example fools its source, by source."""
        return {source.name: Rate.of(source.fooled) for source in self.sources}

    @property
    def baselines(self) -> dict[str, dict[str, Rate]]:
        """Error rate on all inputs without an attack and under random noise, by target."""
        masks = {NO_ATTACK: self.no_attack}
        masks |= {f"random noise, {budget}": mask for budget, mask in self.random_noise.items()}
        return {name: self._rates(mask) for name, mask in masks.items()}

    def tables(self) -> list[text_tables.Table]:
        """Return the tables of error rates, transfer rates, and attacks on the sources."""
        names = tuple(textwrap.fill(name, TARGET_NAME_WIDTH) for name in self.targets)
        transfer_rate = self.transfer_rate
        return [
            text_tables.Table(
                f"Error rate: share of all {self.total:,} inputs that the target misclassifies, "
                "in %",
                ("source", *names),
                [_row(name, rates) for name, rates in self.baselines.items()],
                [_row(name, rates) for name, rates in self.error_rate.items()],
            ),
            text_tables.Table(
                "Transfer rate: the same share of only those inputs that fool the source, in %",
                ("source", *names),
                [
                    _row(f"{name} ({rate.count:,})", transfer_rate[name])
                    for name, rate in self.fooled.items()
                ],
                [],
            ),
            text_tables.Table(
                "Sources: attack, share of the inputs that fool the source, and cost",
                ("source: attack", "fooled", "forward\nper input", "backward\nper input"),
                [_cost(source) for source in self.sources],
                [],
            ),
        ]

    def notes(self) -> list[str]:
        """Return sentences that explain the figures."""
        notes = [
            f"The attack on each source makes an adversarial example of each of the {self.total:,} "
            "inputs, and each target classifies exactly these. A row is a source, a column is a "
            "target.",
            "The error rate divides by all inputs. The transfer rate divides by the inputs whose "
            "adversarial example fools the source; their number follows the name of the source. "
            "Inputs that are misclassified before any attack count as misclassified in both.",
        ]
        if self.random_noise:
            notes.append(
                "Random noise is a baseline: one random draw for each input within the budget of "
                "an attack."
            )
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; rates have the form of `Rate.to_dict`."""
        error_rate, transfer_rate = self.error_rate, self.transfer_rate
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
                    "transfer_rate": _plain(transfer_rate[s.name]),
                }
                for s in self.sources
            ],
            "no_attack": _plain(self._rates(self.no_attack)),
            "random_noise": {b: _plain(self._rates(w)) for b, w in self.random_noise.items()},
            "notes": self.notes(),
            "versions": versions(),
        }

    def save_json(self, path: str | Path) -> Path:
        """Write `to_dict()` to `path`; after an error, no partial file is left."""
        return save_json(path, self.to_dict())

    def plot(self) -> Figure:
        """Plot heat maps of error rate and transfer rate: rows are sources, columns are targets.

        Raises:
            ImportError: matplotlib is missing; the message names the extra that installs it.
        """
        return heat_maps(
            list(self.baselines.items()),
            list(self.error_rate.items()),
            list(self.transfer_rate.items()),
            list(self.fooled.values()),
            self.targets,
        )

    def _rates(self, mask: Tensor) -> dict[str, Rate]:
        """Return the rate of true values in bool `mask` `(targets, k)`, by target."""
        return {name: Rate.of(row) for name, row in zip(self.targets, mask, strict=True)}


def _row(name: str, rates: Mapping[str, Rate]) -> tuple[str, ...]:
    return (name, *(text_tables.format_percent(rate) for rate in rates.values()))


def _cost(source: TransferSource) -> tuple[str, ...]:
    means = (float(counts.double().mean()) for counts in (source.forward, source.backward))
    fooled = Rate.of(source.fooled)
    return (f"{source.name}: {source.attack}", str(fooled), *(f"{mean:.1f}" for mean in means))


def _plain(rates: Mapping[str, Rate]) -> dict[str, Any]:
    return {name: rate.to_dict() for name, rate in rates.items()}
