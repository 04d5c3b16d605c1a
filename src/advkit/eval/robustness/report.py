"""Report of an evaluation, as a table, a dict, and a folder with JSON and HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from advkit.core.archives import write_npz
from advkit.core.boxes import count_sentences
from advkit.core.files import save_json, save_text
from advkit.eval import text_tables
from advkit.eval.accuracy import Rate
from advkit.eval.evidence.evaluated_inputs import EvaluatedInputs
from advkit.eval.evidence.gate import Gate
from advkit.eval.evidence.provenance import Provenance
from advkit.eval.evidence.records import Records
from advkit.eval.findings.finding import Finding, format_findings, verdict
from advkit.eval.noise import NoiseOutcome
from advkit.eval.page import render
from advkit.eval.robustness import figures, plain_report, report_arrays, tables
from advkit.eval.robustness.outcome import AttackOutcome, NearestExamples
from advkit.eval.robustness.own_findings import own_findings
from advkit.eval.robustness.page_content import page_content
from advkit.eval.robustness.worst_case import budgets_of, robust_within
from advkit.eval.text_tables import format_count
from advkit.eval.units.model_checks import ModelChecks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES = ("report.json", "records.npz", "report.html")  # of a saved report


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """Robustness of a model on `n` inputs.

    Attributes:
        model: description of the model.
        bounds: lower and upper bound of its inputs.
        inputs: numbers, labels, clean predictions and hashes of the inputs.
        outcomes: outcome of each attack, in the order given.
        provenance: model, attacks, device, versions and command of the evaluation.
        total: number of inputs to evaluate, `None` if unknown; more than `n` if the evaluation was
            interrupted.
        noise: outcome of random noise for each budget of `outcomes` that is the same for all
            inputs. It is a baseline and does not count in the worst cases.
        about: further facts for the reader, such as data and seed, by name.
        features: number of features of an input, `None` if unknown.
        positions: number of positions across channels of an input, `None` if unknown.
        num_classes: number of classes of the model, `None` if unknown.
        checks: outcome of the checks of the model on a few inputs; `None` without them.
        class_names: name of each class; empty if they are unknown.
        gates: conditions that the report must meet: see `gate`.
    """

    model: str
    bounds: tuple[float, float]
    inputs: EvaluatedInputs
    outcomes: tuple[AttackOutcome, ...]
    provenance: Provenance
    total: int | None = None
    noise: tuple[NoiseOutcome, ...] = ()
    about: Mapping[str, str] = field(default_factory=dict)
    features: int | None = None
    positions: int | None = None
    num_classes: int | None = None
    checks: ModelChecks | None = None
    class_names: tuple[str, ...] = ()
    gates: tuple[Gate, ...] = ()

    def __str__(self) -> str:
        table = text_tables.format_tables(self.tables())
        notes = text_tables.wrap_notes(self.notes())
        found = format_findings(self.findings)
        gates = text_tables.wrap_notes([str(gate) for gate in self.gates])
        shown = [*([*gates, ""] if gates else []), *found]
        return "\n".join([*self._heading(), "", *shown, "", *table, "", *notes])

    @property
    def clean(self) -> Tensor:
        """Bool `(n,)`; labeled correctly before any attack."""
        return self.inputs.correct

    @property
    def not_finite(self) -> Tensor:
        """Bool `(n,)`; NaN or infinite logits before any attack, which is not correct."""
        return self.inputs.not_finite

    @property
    def passed(self) -> bool:
        """True if the report meets all its gates, also if it has none."""
        return all(gate.passed for gate in self.gates)

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
        """Robust accuracy under all attacks within the only budget: see `worst_cases`.

        Raises:
            ValueError: the attacks have several budgets, or none.
        """
        rates = self.worst_cases
        if len(rates) == 1:
            return next(iter(rates.values()))
        if rates:
            raise ValueError(
                f"`worst_case` must belong to one budget, got {'; '.join(rates)}. Read "
                "`worst_cases`, which has the robust accuracy for each budget."
            )
        raise ValueError(
            "`worst_case` must belong to one budget, got minimum-norm attacks alone. Read "
            "`nearest`, which has the distances."
        )

    @property
    def worst_cases(self) -> dict[str, Rate]:
        """Robust accuracy under all attacks within each budget, by budget as text: "linf 0.1".

        This is the share of all inputs that are labeled correctly and that no attack in the norm of
        the budget fooled within it. An adversarial example counts for every budget that holds it,
        also if a minimum-norm attack or an attack with another budget found it.
        """
        return {
            text: Rate.of(robust_within(budget, self.clean, self.outcomes))
            for text, budget in budgets_of(self.outcomes).items()
        }

    @property
    def nearest(self) -> dict[str, NearestExamples]:
        """Nearest adversarial examples of all minimum-norm attacks, by norm."""
        groups: dict[str, list[AttackOutcome]] = {}
        for outcome in self.minimum_norm:
            groups.setdefault(outcome.norm, []).append(outcome)
        return {norm: NearestExamples.of(group) for norm, group in groups.items()}

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Reasons to doubt the figures that follow from these results, the most severe first."""
        return own_findings(self)

    @property
    def verdict(self) -> str:
        """Sentence that says whether to believe the figures."""
        return verdict(self.findings)

    def tables(self) -> list[text_tables.Table]:
        """Return the tables of budget attacks, with the worst cases, and of minimum-norm attacks.

        A table without attacks is left out.
        """
        shown = []
        if self.budgeted:
            noise = {n.budget: n.robust_accuracy for n in self.noise}
            shown.append(tables.budget_table(self.budgeted, self.worst_cases, noise))
        if self.minimum_norm:
            shown.append(tables.minimum_table(self.minimum_norm, self.nearest))
        return shown

    def notes(self) -> list[str]:
        """Return sentences that explain the figures."""
        n = len(self.clean)
        notes = [
            *self._notes_on_budgets(),
            *self._notes_on_noise(),
            *self._notes_on_distances(),
        ]
        if self.total is not None and n < self.total:
            notes.append(f"INTERRUPTED: {n:,} of {self.total:,} inputs were evaluated.")
        return notes

    def _notes_on_budgets(self) -> list[str]:
        if not self.budgeted:
            return [
                "The attacks have no budget. The report has distances instead of robust accuracy."
            ]
        n, misclassified = len(self.clean), int((~self.clean).sum())
        notes = [
            f"Robust accuracy is the share of all {n:,} inputs that are labeled correctly before "
            f"and after the attack. The {misclassified:,} inputs that are misclassified before any "
            "attack count as not robust."
        ]
        notes.append(
            "A worst case counts an input as robust if no attack in the norm found an adversarial "
            "example within the budget."
        )
        return notes

    def _notes_on_noise(self) -> list[str]:
        if not self.noise:
            return []
        return [
            "Random noise is a baseline, not an attack: one random draw within the budget for each "
            "input. It does not count in the worst cases."
        ]

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
        return [*notes, *count_sentences({outcome.norm for outcome in self.outcomes})]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; an infinite or missing distance is `None`."""
        run, outcomes = self.provenance, self.outcomes
        return {
            "format": plain_report.FORMAT,
            "advkit": run.versions["advkit"],
            "model": self.model,
            "bounds": list(self.bounds),
            "features": self.features,
            "positions": self.positions,
            "num_classes": self.num_classes,
            "class_names": list(self.class_names),
            "about": dict(self.about),
            "inputs": len(self.inputs),
            "inputs_wanted": self.total,
            "inputs_not_finite": self.not_finite.nonzero().flatten().tolist(),
            "checks": self.checks and {"training_mode": self.checks.training_mode},
            "threat_model": plain_report.threat_model_of(outcomes).to_dict(),
            "clean_accuracy": self.clean_accuracy.to_dict(),
            "attacks": plain_report.plain_outcomes(outcomes),
            "worst_case_by_budget": {b: rate.to_dict() for b, rate in self.worst_cases.items()},
            "random_noise": {n.budget: n.to_dict() for n in self.noise},
            "nearest_by_norm": {norm: n.to_dict() for norm, n in self.nearest.items()},
            "verdict": self.verdict,
            "findings": [finding.to_dict() for finding in self.findings],
            "gates": [gate.to_dict() for gate in self.gates],
            "notes": self.notes(),
            **plain_report.plain_conditions(run, outcomes),
            "sha256": plain_report.plain_hashes(run, self.inputs, self._arrays()),
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
        """Return one self-contained page: threat models, findings, curves, tables and pictures.

        It has no scripts and needs no network.

        Raises:
            ImportError: jinja2 or Pillow is missing; the message names the extra that installs it.
        """
        return self._page(digest=None)

    def save(self, folder: str | Path) -> tuple[Path, Path, Path]:
        """Write `report.json`, `records.npz` and `report.html` to `folder`, and return their paths.

        `load_report` makes the report again from the first two, apart from pictures. All three
        files hold the same `digest`. `report.json` is written before the page is drawn, with
        `"page": null`, so that its figures are kept if drawing fails. It is written again after the
        page, with the name of the page.

        Args:
            folder: folder to write to, created if missing. Each file is complete at any time.

        Raises:
            ImportError: jinja2 or Pillow is missing; the message names the extra that installs it.
            OSError: a file cannot be written.

        Example:
            >>> import json, tempfile, torch
            >>> from advkit.attacks import FGSM
            >>> from advkit.eval import evaluate, load_report
            >>> from advkit.models import TorchClassifier
            >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
            >>> x, y = torch.rand(8, 1, 4, 4), torch.arange(8) % 3
            >>> report = evaluate(TorchClassifier(net), x, y, attacks=[FGSM(eps=0.1)])
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     json_path, _, html_path = report.save(folder)
            ...     saved = json.loads(json_path.read_text())
            ...     page = html_path.read_text()
            ...     loaded = load_report(folder)
            >>> saved["page"], f"digest: {saved['digest']}" in page
            ('report.html', True)
            >>> loaded.digest == report.digest
            True
        """
        json_path, records_path, html_path = (Path(folder) / name for name in FILES)
        plain = self.to_dict()
        plain["digest"] = digest = plain_report.digest_of_plain(plain)
        arrays = {"digest": np.array(digest), **self._arrays()}
        write_npz(records_path, arrays)
        save_json(json_path, {**plain, "page": None})
        save_text(html_path, self._page(digest))
        save_json(json_path, {**plain, "page": html_path.name})
        return json_path, records_path, html_path

    @property
    def digest(self) -> str:
        """SHA-256 of all results and hashes, in hexadecimal.

        Reports of equal evaluations have equal digests: date, times, command, device, threads,
        batch size and gates do not count.
        """
        return plain_report.digest_of_plain(self.to_dict())

    @property
    def records(self) -> Records:
        """One row for each attack and input: see `Records`."""
        return report_arrays.records_of(self.inputs, self.outcomes)

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        return report_arrays.arrays_of(self.inputs, self.outcomes, self.noise, self.checks)

    def _page(self, digest: str | None) -> str:
        return render.render(page_content(self, digest))

    def save_json(self, path: str | Path) -> Path:
        """Write `to_dict()` to `path`; after an error, no partial file is left."""
        return save_json(path, self.to_dict())

    def save_html(self, path: str | Path) -> Path:
        """Write `to_html()` to `path`; after an error, no partial file is left.

        Raises:
            ImportError: jinja2 or Pillow is missing; the message names the extra that installs it.
            OSError: the file cannot be written.
        """
        return save_text(path, self.to_html())

    def _heading(self) -> list[str]:
        return [
            f"{self.model} on {format_count(len(self.clean), 'input')}",
            *(f"{name}: {value}" for name, value in self.about.items()),
            f"clean accuracy {self.clean_accuracy}",
        ]
