"""Report of an evaluation, as a table, a dict, and a folder with JSON and HTML."""

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
from advkit.eval.robustness.outcome import AttackOutcome, NearestExamples
from advkit.eval.text_tables import format_count
from advkit.eval.versions import versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """Robustness of a model on `n` inputs.

    Attributes:
        model: description of the model.
        bounds: lower and upper bound of its inputs.
        clean: bool `(n,)`; labeled correctly before any attack.
        not_finite: bool `(n,)`; NaN or infinite logits before any attack, which is not correct.
        outcomes: outcome of each attack, in the order given.
        total: number of inputs to evaluate, `None` if unknown; more than `n` if the evaluation was
            interrupted.
        noise: outcome of random noise for each budget of `outcomes` that is the same for all
            inputs. It is a baseline and does not count in the worst cases.
        about: further facts for the reader, such as data and seed, by name.
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
        table = text_tables.format_tables(self.tables())
        notes = text_tables.wrap_notes(self.notes())
        return "\n".join([*self._heading(), "", *table, "", *notes])

    @property
    def clean_accuracy(self) -> Rate:
        """Share of all inputs that are labeled correctly before any attack."""
        return Rate.of(self.clean)

    @property
    def budgeted(self) -> tuple[AttackOutcome, ...]:
        """Outcomes of the attacks with a budget."""
        return tuple(o for o in self.outcomes if not o.minimum_norm)

    @property
    def minimum_norm(self) -> tuple[AttackOutcome, ...]:
        """Outcomes of the minimum-norm attacks."""
        return tuple(o for o in self.outcomes if o.minimum_norm)

    @property
    def worst_case(self) -> Rate:
        """Robust accuracy under all attacks: share of all inputs that no attack fooled.

        An adversarial example of a minimum-norm attack counts within the largest budget that a
        budget attack of the same norm has. With minimum-norm attacks alone it counts at any
        distance.
        """
        return self._robust_accuracy(self.budgeted or self.outcomes)

    @property
    def worst_cases(self) -> dict[str, Rate]:
        """Robust accuracy under all attacks within a budget, by budget as text.

        Only budgets with more than one attack are listed. A minimum-norm attack counts for all
        budgets of its norm.
        """
        groups: dict[tuple[str, float], list[AttackOutcome]] = {}
        for outcome in self.outcomes:
            if outcome.eps is not None:
                groups.setdefault((outcome.norm, outcome.eps), []).append(outcome)
        return {
            group[0].budget: self._robust_accuracy(group)
            for (norm, _), group in groups.items()
            if len(group) > 1 or norm in self.nearest
        }

    @property
    def nearest(self) -> dict[str, NearestExamples]:
        """Nearest adversarial examples of all minimum-norm attacks, by norm."""
        groups: dict[str, list[AttackOutcome]] = {}
        for outcome in self.minimum_norm:
            groups.setdefault(outcome.norm, []).append(outcome)
        return {norm: NearestExamples.of(group) for norm, group in groups.items()}

    def tables(self) -> list[text_tables.Table]:
        """Return the tables of budget attacks, with the worst cases, and of minimum-norm attacks.

        A table without attacks is left out.
        """
        shown = []
        if self.budgeted:
            noise = {n.budget: n.robust_accuracy for n in self.noise}
            shown.append(
                tables.budget_table(self.budgeted, self.worst_cases, self.worst_case, noise)
            )
        if self.minimum_norm:
            shown.append(tables.minimum_table(self.minimum_norm, self.nearest))
        return shown

    def notes(self) -> list[str]:
        """Return sentences that explain the figures, and warnings about the evaluation."""
        n = len(self.clean)
        notes = [
            *self._notes_on_budgets(), *self._notes_on_noise(), *self._notes_on_distances()
        ]  # fmt: skip
        if self.total is not None and n < self.total:
            notes.append(f"INTERRUPTED: {n:,} of {self.total:,} inputs were evaluated.")
        for outcome in self.outcomes:
            no_gradient = int(outcome.no_gradient.sum())
            if no_gradient:
                notes.append(
                    f"{outcome.label} had no usable gradient on "
                    f"{format_count(no_gradient, 'input')} and failed there: this is not "
                    "evidence of robustness."
                )
            no_start = int(outcome.no_start.sum())
            if no_start:
                notes.append(
                    f"{outcome.label} could not begin on {format_count(no_start, 'input')}, for "
                    "lack of a starting point or of queries: this is not evidence of robustness."
                )
        return [*notes, *self._notes_on_logits()]

    def _notes_on_logits(self) -> list[str]:
        notes = []
        if self.not_finite.any():
            notes.append(
                f"The model returned NaN or infinite logits for {_numbers(self.not_finite)}. They "
                "count as misclassified and are not attacked."
            )
        for outcome in self.outcomes:
            if outcome.not_finite.any():
                notes.append(
                    f"{outcome.label} failed on {_numbers(outcome.not_finite)}, for which the "
                    "model returned NaN or infinite logits: this is not evidence of robustness."
                )
        return notes

    def _notes_on_budgets(self) -> list[str]:
        if not self.budgeted:
            return [
                "No attack has a budget: the worst case counts adversarial examples at any "
                "distance and is not a robust accuracy."
            ]
        n, misclassified = len(self.clean), int((~self.clean).sum())
        notes = [
            f"Robust accuracy is the share of all {n:,} inputs that are labeled correctly before "
            f"and after the attack. The {misclassified:,} inputs that are misclassified before any "
            "attack count as not robust."
        ]
        if {o.norm for o in self.budgeted} & self.nearest.keys():
            notes.append(
                "The worst cases also count adversarial examples that minimum-norm attacks found "
                "within the budget."
            )
        return notes

    def _notes_on_noise(self) -> list[str]:
        if not self.noise:
            return []
        notes = [
            "Random noise is a baseline, not an attack: one random draw within the budget for each "
            "input. It does not count in the worst cases."
        ]
        for noise in self.noise:
            missed = int((self._robust_within(noise.norm, noise.eps) & ~noise.robust).sum())
            if missed:
                notes.append(
                    f"Random noise of {noise.budget} fooled the model on "
                    f"{format_count(missed, 'input')} that withstood every attack "
                    "within that budget: the attacks are too weak, or the gradients are misleading."
                )
        return notes

    def _notes_on_distances(self) -> list[str]:
        notes = []
        if self.minimum_norm:
            notes.append(
                "A minimum-norm attack searches for the nearest adversarial example at any "
                "distance. Its attack success rate is a share of the "
                f"{self.clean_accuracy.count:,} attacked inputs."
            )
        notes.append(
            "Attacks are run on the inputs that are labeled correctly. The median distance is that "
            "of these inputs and counts a failure as infinity (inf). Forward and backward are "
            "passes through the model for each of them."
        )
        if any(outcome.norm == "l0" for outcome in self.outcomes):
            notes.append("A distance in l0 is the number of changed features.")
        return notes

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; an infinite or missing distance is `None`."""
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
            "nearest_by_norm": {norm: n.to_dict() for norm, n in self.nearest.items()},
            "notes": self.notes(),
            "versions": versions(),
        }

    def plot(self) -> Figure | None:
        """Plot accuracy against eps, with a panel for each norm and a curve for each attack.

        A budget attack has a point at each `eps` that it is run with. A minimum-norm attack has a
        whole curve: the share of all inputs that are labeled correctly and have no adversarial
        example within `eps`. The dashed line is random noise of the same budgets.

        Returns:
            The figure; `None` if each attack has one `eps` for each sample, which no axis can show.

        Raises:
            ImportError: matplotlib is missing; the message names the extra that installs it.
        """
        return figures.accuracy_curves(self.outcomes, self.clean, self.noise)

    def to_html(self) -> str:
        """Return one self-contained page with tables, curves, and pictures of adversarial examples.

        Raises:
            ImportError: jinja2 or matplotlib is missing; the message names the extra that installs
                it.
        """
        return self._page(run=None)

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Write `report.json` and `report.html` to `folder`, and return their paths.

        Both files hold the same `run`, a random number in hexadecimal digits, new for each call.
        `report.json` is written before the page is drawn, with `"page": null`, so that its figures
        are kept if drawing fails. It is written again after the page, with the SHA-256 digest of
        `report.html`. The files belong together if the digest matches the page: a call that was
        killed halfway leaves `null` or another digest.

        Args:
            folder: folder to write to, created if missing. Each file is complete at any time.

        Raises:
            ImportError: jinja2 or matplotlib is missing; the message names the extra that installs
                it.
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
            ...     saved = json.loads(json_path.read_text())
            ...     digest = hashlib.sha256(html_path.read_bytes()).hexdigest()
            >>> saved["page"] == {"file": "report.html", "sha256": digest}
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
        """Write `to_dict()` to `path`; after an error, no partial file is left."""
        return save_json(path, self.to_dict())

    def save_html(self, path: str | Path) -> Path:
        """Write `to_html()` to `path`; after an error, no partial file is left.

        Raises:
            ImportError: jinja2 or matplotlib is missing; the message names the extra that installs
                it.
            OSError: the file cannot be written.
        """
        return save_text(path, self.to_html())

    def _heading(self) -> list[str]:
        return [
            f"{self.model} on {format_count(len(self.clean), 'input')}",
            *(f"{name}: {value}" for name, value in self.about.items()),
            f"clean accuracy {self.clean_accuracy}",
        ]

    def _robust_within(self, norm: str, eps: float) -> Tensor:
        """Return a mask `(n,)` of the inputs that are correct and not fooled within a budget."""
        robust = self.clean
        for outcome in self.outcomes:
            if outcome.norm == norm and outcome.eps == eps:
                robust = robust & outcome.robust
            elif outcome.norm == norm:
                robust = robust & ~outcome.within(torch.full_like(outcome.radius, eps))
        return robust

    def _robust_accuracy(self, group: Sequence[AttackOutcome]) -> Rate:
        """Return robust accuracy under `group`, and minimum-norm attacks within its budgets."""
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
    """Return the count of true values in `inputs` `(n,)`, and the numbers of the first of them."""
    return f"{format_count(int(inputs.sum()), 'input')} (number {checks.indices(inputs)})"
