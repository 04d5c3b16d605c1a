"""What an evaluation found: a table, a dict, and a folder with JSON and HTML."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from advkit.core.describe import call
from advkit.core.files import replacing
from advkit.eval.rates import Rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Examples:
    """A few inputs that an attack has turned, for pictures.

    Attributes:
        x: clean `(k, *features)`, labelled correctly by the model.
        x_adv: adversarial `(k, *features)`.
        y: true labels `(k,)`, which are the model's answers to `x`.
        answer: the model's answers to `x_adv`, `(k,)`.
    """

    x: Tensor
    x_adv: Tensor
    y: Tensor
    answer: Tensor

    @staticmethod
    def join(parts: Sequence[Examples]) -> Examples | None:
        """All of `parts`, `None` for none."""
        if not parts:
            return None
        rows = ((part.x, part.x_adv, part.y, part.answer) for part in parts)
        return Examples(*(torch.cat(column) for column in zip(*rows, strict=True)))


@dataclass(frozen=True, kw_only=True, eq=False)
class AttackOutcome:
    """What one attack did to `n` inputs.

    Attributes:
        name: of the attack.
        settings: its hyper-parameters that are not at their defaults.
        norm: what `distance` is measured in.
        eps: its budget in input units, `None` without one or with one for each sample.
        robust: bool `(n,)`; labelled correctly before and after.
        distance: `(n,)`; of the successes, NaN elsewhere.
        forward: int64 `(n,)`; samples sent forward, zero for inputs that were never attacked.
        backward: int64 `(n,)`; likewise backward.
        no_gradient: bool `(n,)`; not fooled, but without a usable gradient.
        seconds: the attack alone.
        examples: a few successes, `None` if there are none.
    """

    name: str
    settings: dict[str, object]
    norm: str
    eps: float | None
    robust: Tensor
    distance: Tensor
    forward: Tensor
    backward: Tensor
    no_gradient: Tensor
    seconds: float
    examples: Examples | None

    @property
    def label(self) -> str:
        """The call that makes the attack."""
        return call(self.name, self.settings)

    @property
    def family(self) -> str:
        """The same without its budget: what one curve shows."""
        rest = {k: v for k, v in self.settings.items() if k not in ("eps", "norm")}
        return call(self.name, rest) if rest else self.name

    @property
    def budget(self) -> str:
        """Norm and `eps` in words, empty without an `eps`."""
        return "" if self.eps is None else f"{self.norm} {self.eps:.6g}"

    @property
    def robust_accuracy(self) -> Rate:
        """Share of all inputs that are labelled correctly and withstood this attack."""
        return Rate.of(self.robust)

    @property
    def median_distance(self) -> float | None:
        """Median `distance` over the successes, `None` if there are none."""
        found = self.distance[~self.distance.isnan()]
        return float(np.median(found.numpy())) if len(found) else None

    def sent(self, way: Tensor) -> float | None:
        """Mean of `forward` or `backward` over the inputs that were attacked."""
        attacked = self.forward > 0
        return float(way[attacked].double().mean()) if attacked.any() else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "attack": self.label,
            "name": self.name,
            "settings": self.settings,
            "norm": self.norm,
            "eps": self.eps,
            "robust_accuracy": self.robust_accuracy.to_dict(),
            "median_distance_of_successes": self.median_distance,
            "forward_per_attacked_input": self.sent(self.forward),
            "backward_per_attacked_input": self.sent(self.backward),
            "inputs_without_gradient": int(self.no_gradient.sum()),
            "seconds": self.seconds,
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """How robust a model is on `n` inputs.

    Attributes:
        model: the model in words.
        bounds: its lower and upper bound.
        clean: bool `(n,)`; labelled correctly before any attack.
        outcomes: one for each attack, in the order given.
        total: inputs that there were to evaluate, `None` if unknown; more than `n` when the
            evaluation was interrupted.
        about: what else a reader should know, such as data and seed, by name.
    """

    model: str
    bounds: tuple[float, float]
    clean: Tensor
    outcomes: tuple[AttackOutcome, ...]
    total: int | None = None
    about: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return "\n".join([*self._heading(), "", *_table(self.rows()), "", *self.notes()])

    @property
    def clean_accuracy(self) -> Rate:
        """Share of inputs labelled correctly before any attack."""
        return Rate.of(self.clean)

    @property
    def worst_case(self) -> Rate:
        """Share of all inputs that withstood every attack, input by input."""
        return self._worst(self.outcomes)

    @property
    def worst_cases(self) -> dict[str, Rate]:
        """The same for each budget that more than one attack shares, by its words."""
        groups: dict[tuple[str, float], list[AttackOutcome]] = {}
        for outcome in self.outcomes:
            if outcome.eps is not None:
                groups.setdefault((outcome.norm, outcome.eps), []).append(outcome)
        return {g[0].budget: self._worst(g) for g in groups.values() if len(g) > 1}

    def rows(self) -> list[tuple[str, ...]]:
        """The table: a heading, a row for each attack, and the worst cases."""
        heading = (
            "attack",
            "norm",
            "robust accuracy",
            "median distance",
            "forward/input",
            "backward/input",
            "seconds",
        )
        body = [
            (
                outcome.label,
                outcome.norm,
                str(outcome.robust_accuracy),
                _number(outcome.median_distance, ".4g"),
                _number(outcome.sent(outcome.forward), ".1f"),
                _number(outcome.sent(outcome.backward), ".1f"),
                f"{outcome.seconds:.2f}",
            )
            for outcome in self.outcomes
        ]
        worst = [(f"worst case, {b}", rate) for b, rate in self.worst_cases.items()]
        worst.append(("worst case over all", self.worst_case))
        return [heading, *body, *((name, "", str(rate), "", "", "", "") for name, rate in worst)]

    def notes(self) -> list[str]:
        """What the numbers mean, and what a reader must not overlook."""
        n, wrong = len(self.clean), int((~self.clean).sum())
        notes = [
            f"Robust accuracy is a share of all {n:,} inputs; the {wrong:,} misclassified from the "
            "start are not robust.",
            "The median distance is that of the successes; forward and backward count the samples "
            "sent through the model for each attacked input.",
        ]
        if self.total is not None and n < self.total:
            notes.append(f"INTERRUPTED: {n:,} of {self.total:,} inputs were evaluated.")
        for outcome in self.outcomes:
            lost = int(outcome.no_gradient.sum())
            if lost:
                notes.append(
                    f"{outcome.label} met no usable gradient on {lost:,} inputs that it did not "
                    "fool: that is no evidence of robustness."
                )
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "model": self.model,
            "bounds": list(self.bounds),
            "about": dict(self.about),
            "inputs": len(self.clean),
            "inputs_wanted": self.total,
            "clean_accuracy": self.clean_accuracy.to_dict(),
            "attacks": [outcome.to_dict() for outcome in self.outcomes],
            "worst_case": self.worst_case.to_dict(),
            "worst_case_by_budget": {b: rate.to_dict() for b, rate in self.worst_cases.items()},
            "notes": self.notes(),
            "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        }

    def plot(self) -> Figure | None:
        """Accuracy against eps, a curve for each attack; `None` if no attack has an `eps`.

        Raises:
            ImportError: matplotlib is missing, naming the extra that brings it.
        """
        from advkit.eval.figures import accuracy_curves

        return accuracy_curves(self)

    def to_html(self) -> str:
        """One self-contained page: table, curves, and pictures of inputs that were turned.

        Raises:
            ImportError: jinja2 or matplotlib is missing, naming the extra that brings it.
        """
        from advkit.eval.html import page

        return page(self)

    def save_json(self, path: str | Path) -> Path:
        """Write `to_dict()` to `path`, whole or not at all."""
        return _write(Path(path), json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n")

    def save_html(self, path: str | Path) -> Path:
        """Write `to_html()` to `path`, whole or not at all; errors as there."""
        return _write(Path(path), self.to_html())

    def _heading(self) -> list[str]:
        return [
            f"{self.model} on {len(self.clean):,} inputs",
            *(f"{name}: {value}" for name, value in self.about.items()),
            f"clean accuracy {self.clean_accuracy}",
        ]

    @staticmethod
    def _worst(outcomes: Sequence[AttackOutcome]) -> Rate:
        return Rate.of(torch.stack([o.robust for o in outcomes]).all(0))


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows of text with columns of even width, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return [lines[0], "-" * max(map(len, lines)), *lines[1:]]


def _write(path: Path, text: str) -> Path:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path
