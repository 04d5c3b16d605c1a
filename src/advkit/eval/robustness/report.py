"""What an evaluation found: a table, a dict, and a folder with JSON and HTML."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from advkit.core import checks
from advkit.core.files import save_bytes, save_json, save_text
from advkit.eval import text_tables
from advkit.eval.accuracy import Rate
from advkit.eval.noise import NoiseOutcome
from advkit.eval.robustness import figures, html, tables
from advkit.eval.robustness.outcome import AttackOutcome, Nearest
from advkit.eval.text_tables import counted
from advkit.eval.versions import versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """How robust a model is on `n` inputs.

    Attributes:
        model: the model in words.
        bounds: its lower and upper bound.
        clean: bool `(n,)`; labelled correctly before any attack.
        not_finite: bool `(n,)`; NaN or infinite logits before any attack, so not correct.
        outcomes: one for each attack, in the order given.
        total: inputs that there were to evaluate, `None` if unknown; more than `n` when the
            evaluation was interrupted.
        noise: what random noise did, one for each budget of `outcomes` that is the same for all
            inputs: a baseline, which does not count in the worst cases.
        about: what else a reader should know, such as data and seed, by name.
    """

    model: str
    bounds: tuple[float, float]
    clean: Tensor
    not_finite: Tensor
    outcomes: tuple[AttackOutcome, ...]
    total: int | None = None
    noise: tuple[NoiseOutcome, ...] = ()
    about: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        table = text_tables.lines(self.tables())
        notes = text_tables.wrapped(self.notes())
        return "\n".join([*self._heading(), "", *table, "", *notes])

    @property
    def clean_accuracy(self) -> Rate:
        """Share of inputs labelled correctly before any attack."""
        return Rate.of(self.clean)

    @property
    def budgeted(self) -> tuple[AttackOutcome, ...]:
        """Those of `outcomes` whose attacks have a budget."""
        return tuple(o for o in self.outcomes if not o.minimum_norm)

    @property
    def minimum_norm(self) -> tuple[AttackOutcome, ...]:
        """The others: those of minimum-norm attacks."""
        return tuple(o for o in self.outcomes if o.minimum_norm)

    @property
    def worst_case(self) -> Rate:
        """Share of all inputs that withstood every attack, input by input.

        A success of a minimum-norm attack counts within the largest budget that a budget attack of
        the same norm had, and at any distance if there are minimum-norm attacks only.
        """
        return self._worst(self.budgeted or self.outcomes)

    @property
    def worst_cases(self) -> dict[str, Rate]:
        """The same for each budget in which more than one attack has a say, by its words.

        A minimum-norm attack has a say in all budgets of its norm.
        """
        groups: dict[tuple[str, float], list[AttackOutcome]] = {}
        for outcome in self.outcomes:
            if outcome.eps is not None:
                groups.setdefault((outcome.norm, outcome.eps), []).append(outcome)
        return {
            group[0].budget: self._worst(group)
            for (norm, _), group in groups.items()
            if len(group) > 1 or norm in self.nearest
        }

    @property
    def nearest(self) -> dict[str, Nearest]:
        """What the minimum-norm attacks found together, by norm."""
        groups: dict[str, list[AttackOutcome]] = {}
        for outcome in self.minimum_norm:
            groups.setdefault(outcome.norm, []).append(outcome)
        return {norm: Nearest.of(group) for norm, group in groups.items()}

    def tables(self) -> list[text_tables.Table]:
        """The budget attacks with the worst cases, and the minimum-norm attacks; what there is."""
        found = []
        if self.budgeted:
            noise = {n.budget: n.robust_accuracy for n in self.noise}
            found.append(
                tables.budget_table(self.budgeted, self.worst_cases, self.worst_case, noise)
            )
        if self.minimum_norm:
            found.append(tables.minimum_table(self.minimum_norm, self.nearest))
        return found

    def notes(self) -> list[str]:
        """What the numbers mean, and what a reader must not overlook."""
        n = len(self.clean)
        notes = [
            *self._notes_on_budgets(), *self._notes_on_noise(), *self._notes_on_distances()
        ]  # fmt: skip
        if self.total is not None and n < self.total:
            notes.append(f"INTERRUPTED: {n:,} of {self.total:,} inputs were evaluated.")
        for outcome in self.outcomes:
            lost = int(outcome.no_gradient.sum())
            if lost:
                notes.append(
                    f"{outcome.label} met no usable gradient on {lost:,} inputs that it did not "
                    "fool: that is no evidence of robustness."
                )
            unbegun = int(outcome.no_start.sum())
            if unbegun:
                notes.append(
                    f"{outcome.label} could not begin on {counted(unbegun, 'input')} that it did "
                    "not fool, for want of a point to start from or of queries: that is no "
                    "evidence of robustness."
                )
        return [*notes, *self._notes_on_logits()]

    def _notes_on_logits(self) -> list[str]:
        notes = []
        if self.not_finite.any():
            notes.append(
                f"The model returned NaN or infinite logits for {_numbers(self.not_finite)}: they "
                "count as misclassified and are not attacked."
            )
        for outcome in self.outcomes:
            if outcome.not_finite.any():
                notes.append(
                    f"{outcome.label} met NaN or infinite logits and did not fool the model on "
                    f"{_numbers(outcome.not_finite)}: that is no evidence of robustness."
                )
        return notes

    def _notes_on_budgets(self) -> list[str]:
        if not self.budgeted:
            return [
                "No attack has a budget: the worst case counts adversarial examples at any "
                "distance and is no robust accuracy."
            ]
        n, wrong = len(self.clean), int((~self.clean).sum())
        notes = [
            f"Robust accuracy is a share of all {n:,} inputs; the {wrong:,} misclassified from the "
            "start are not robust."
        ]
        if {o.norm for o in self.budgeted} & self.nearest.keys():
            notes.append(
                "The worst cases count what a minimum-norm attack found within the budget, too."
            )
        return notes

    def _notes_on_noise(self) -> list[str]:
        if not self.noise:
            return []
        notes = [
            "Random noise is a baseline and no attack: one random draw from the budget for each "
            "input. It does not count in the worst cases."
        ]
        for noise in self.noise:
            missed = int((self._unturned_within(noise.norm, noise.eps) & ~noise.robust).sum())
            if missed:
                notes.append(
                    f"Random noise of {noise.budget} turned {counted(missed, 'input')} that no "
                    "attack turned within that budget: the attacks are too weak, or gradients "
                    "mislead."
                )
        return notes

    def _notes_on_distances(self) -> list[str]:
        notes = []
        if self.minimum_norm:
            notes.append(
                "A minimum-norm attack looks for the nearest adversarial example at any distance; "
                f"success is a share of the {self.clean_accuracy.count:,} inputs that are attacked."
            )
        notes.append(
            "The median distance is that of the attacked inputs, those labelled correctly, with a "
            "failure as infinity (inf); forward and backward count the samples sent through the "
            "model for each of them."
        )
        if any(outcome.norm == "l0" for outcome in self.outcomes):
            notes.append("A distance in l0 is the number of features that differ.")
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no infinity: see `AttackOutcome.to_dict`."""
        return {
            "model": self.model,
            "bounds": list(self.bounds),
            "about": dict(self.about),
            "inputs": len(self.clean),
            "inputs_wanted": self.total,
            "inputs_not_finite": self.not_finite.nonzero().flatten().tolist(),
            "clean_accuracy": self.clean_accuracy.to_dict(),
            "attacks": [outcome.to_dict() for outcome in self.outcomes],
            "worst_case": self.worst_case.to_dict(),
            "worst_case_by_budget": {b: rate.to_dict() for b, rate in self.worst_cases.items()},
            "random_noise": {n.budget: n.robust_accuracy.to_dict() for n in self.noise},
            "nearest_by_norm": {norm: found.to_dict() for norm, found in self.nearest.items()},
            "notes": self.notes(),
            "versions": versions(),
        }

    def plot(self) -> Figure | None:
        """Accuracy against eps, a panel for each norm and a curve for each attack.

        A budget attack is measured at each `eps` that it is run with. A minimum-norm attack is a
        whole curve: the share of all inputs that are right and have no success within `eps`. The
        dashed line is random noise of the same budgets. `None` if there is nothing to draw, because
        each attack has an `eps` for each sample.

        Raises:
            ImportError: matplotlib is missing, naming the extra that brings it.
        """
        return figures.accuracy_curves(self.outcomes, self.clean, self.noise)

    def to_html(self) -> str:
        """One self-contained page: table, curves, and pictures of inputs that were turned.

        Raises:
            ImportError: jinja2 or matplotlib is missing, naming the extra that brings it.
        """
        return self._page(run=None)

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Write `report.json` and `report.html` to `folder`, and return their paths.

        Both files hold the same `run`, a random number in hexadecimal digits that is made for each
        call. `report.json` is written before the page is drawn, with `"page": null`, so that its
        figures survive whatever stops the drawing. It is written again after the page, with the
        SHA-256 digest of `report.html`. The files belong together if the digest is that of the
        page: a call that was killed halfway leaves `null` or another digest.

        Args:
            folder: made if missing. Each file is whole at any time.

        Raises:
            ImportError: jinja2 or matplotlib is missing, naming the extra that brings it.
            OSError: a file cannot be written.

        Example:
            >>> import hashlib, json, tempfile, torch
            >>> from pathlib import Path
            >>> from advkit.attacks import FGSM
            >>> from advkit.eval import evaluate
            >>> from advkit.models import TorchClassifier
            >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
            >>> x, y = torch.rand(8, 1, 4, 4), torch.arange(8) % 3
            >>> report = evaluate(TorchClassifier(net), x, y, attacks=[FGSM(eps=0.1)])
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     json_path, html_path = report.save(folder)
            ...     found = json.loads(json_path.read_text())
            ...     digest = hashlib.sha256(html_path.read_bytes()).hexdigest()
            >>> found["page"] == {"file": "report.html", "sha256": digest}
            True
        """
        json_path, html_path = (Path(folder) / f"report.{kind}" for kind in ("json", "html"))
        plain = {**self.to_dict(), "run": secrets.token_hex(16)}
        save_json(json_path, {**plain, "page": None})
        page = self._page(plain["run"]).encode()
        save_bytes(html_path, page)
        digest = hashlib.sha256(page).hexdigest()
        save_json(json_path, {**plain, "page": {"file": html_path.name, "sha256": digest}})
        return json_path, html_path

    def _page(self, run: str | None) -> str:
        shown = figures.showcase(self.outcomes)
        page = html.Page(
            run=run,
            model=self.model,
            inputs=len(self.clean),
            about=self.about,
            headlines=html.headlines(
                self.clean_accuracy, self.worst_case if self.budgeted else None, self.nearest
            ),
            tables=self.tables(),
            notes=self.notes(),
            curves=self.plot(),
            attack=shown[0].label if shown else "",
            grid=figures.example_grid(shown[1], self.bounds) if shown else None,
        )
        return html.render(page)

    def save_json(self, path: str | Path) -> Path:
        """Write `to_dict()` to `path`, whole or not at all."""
        return save_json(path, self.to_dict())

    def save_html(self, path: str | Path) -> Path:
        """Write `to_html()` to `path`, whole or not at all; errors as there."""
        return save_text(path, self.to_html())

    def _heading(self) -> list[str]:
        return [
            f"{self.model} on {len(self.clean):,} inputs",
            *(f"{name}: {value}" for name, value in self.about.items()),
            f"clean accuracy {self.clean_accuracy}",
        ]

    def _unturned_within(self, norm: str, eps: float) -> Tensor:
        """Inputs that are right and that no attack turned within a budget; bool `(n,)`."""
        unturned = self.clean
        for outcome in self.outcomes:
            if outcome.norm == norm and outcome.eps == eps:
                unturned = unturned & outcome.robust
            elif outcome.norm == norm:
                unturned = unturned & ~outcome.within(torch.full_like(outcome.radius, eps))
        return unturned

    def _worst(self, group: Sequence[AttackOutcome]) -> Rate:
        """Share of inputs that withstood `group`, and minimum-norm attacks within its budgets."""
        robust = torch.stack([outcome.robust for outcome in group]).all(0)
        radii: dict[str, Tensor] = {}
        for outcome in group:
            radius = radii.get(outcome.norm, outcome.radius)
            radii[outcome.norm] = torch.maximum(radius, outcome.radius)
        for outcome in self.minimum_norm:
            if outcome.norm in radii:
                robust &= ~outcome.within(radii[outcome.norm])
        return Rate.of(robust)


def _numbers(inputs: Tensor) -> str:
    """Return how many of the `inputs` `(n,)` are marked, and the numbers of the first of them."""
    return f"{counted(int(inputs.sum()), 'input')} (number {checks.indices(inputs)})"
