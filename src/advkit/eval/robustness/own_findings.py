"""Findings that follow from the results of an evaluation, without another pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from advkit.core.boxes import diameter, whole_box_sentence
from advkit.eval.accuracy import Rate, chance_sentence
from advkit.eval.budgets import budget_arguments
from advkit.eval.findings.finding import Finding, severity_of
from advkit.eval.findings.kinds import in_order, make_finding
from advkit.eval.noise import NoiseOutcome
from advkit.eval.robustness.obstacles import numbered, on_obstacles
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.robustness.rivals import on_rivals
from advkit.eval.robustness.worst_case import Budget, budgets_of, robust_within
from advkit.eval.text_tables import format_count
from advkit.eval.units.model_checks import ModelChecks


class Evaluated(Protocol):
    """Results of an evaluation of `n` inputs; see `Report`."""

    @property
    def bounds(self) -> tuple[float, float]:
        """Lower and upper bound of the inputs."""
        ...

    @property
    def clean(self) -> Tensor:
        """Bool `(n,)`; labeled correctly before any attack."""
        ...

    @property
    def not_finite(self) -> Tensor:
        """Bool `(n,)`; NaN or infinite logits before any attack."""
        ...

    @property
    def outcomes(self) -> tuple[AttackOutcome, ...]:
        """Outcome of each attack."""
        ...

    @property
    def noise(self) -> tuple[NoiseOutcome, ...]:
        """Outcome of random noise for each budget."""
        ...

    @property
    def features(self) -> int | None:
        """Number of features of an input, `None` if unknown."""
        ...

    @property
    def positions(self) -> int | None:
        """Number of positions across channels of an input, `None` if unknown."""
        ...

    @property
    def num_classes(self) -> int | None:
        """Number of classes of the model, `None` if unknown."""
        ...

    @property
    def checks(self) -> ModelChecks | None:
        """Outcome of the checks of the model, `None` without them."""
        ...


def own_findings(results: Evaluated) -> tuple[Finding, ...]:
    """Return the findings about an evaluation, the most severe first."""
    compared = on_rivals(results.clean, results.outcomes)
    return in_order([*findings_without_comparison(results), *compared])


def findings_without_comparison(results: Evaluated) -> list[Finding]:
    """Return the findings about the figures, the model, the noise and each attack."""
    found = [*_on_figures(results), *_on_model(results), *_on_noise(results)]
    for outcome in results.outcomes:
        found += on_obstacles(outcome, results.clean, results.outcomes, results.num_classes)
    return found


def _on_figures(results: Evaluated) -> Iterator[Finding]:
    """Yield findings about figures that cannot be right."""
    if results.num_classes is not None:
        clean = Rate.of(results.clean)
        if (sentence := chance_sentence(clean, results.num_classes)) is not None:
            chance = 1 / results.num_classes
            yield make_finding(
                "accuracy_at_chance", "high", sentence, clean_accuracy=float(clean), chance=chance
            )
    if results.not_finite.any():
        count = int(results.not_finite.sum())
        yield make_finding(
            "not_finite_logits",
            severity_of(count, len(results.clean)),
            f"The model returned NaN or infinite logits for {numbered(results.not_finite)}. They "
            "count as misclassified and are not attacked.",
            inputs=count,
        )
    for text, budget in budgets_of(results.outcomes).items():
        size = results.positions if budget.norm == "l0_pixel" else results.features
        if size is None:
            continue
        limit = diameter(budget.norm, size, results.bounds)
        if budget.radius.amax() >= limit:
            sentence = whole_box_sentence(budget.norm, text, results.bounds)
            radius = float(budget.radius.amax())
            yield make_finding(
                "budget_holds_every_input", "high", sentence,
                budget=budget_arguments(budget.norm, radius), eps=radius, largest_distance=limit,
            )  # fmt: skip


def _on_model(results: Evaluated) -> Iterator[Finding]:
    """Yield findings about the outputs of the model on a few clean inputs."""
    found = results.checks
    if found is None:
        return
    if found.training_mode:
        yield make_finding(
            "training_mode",
            "high",
            "The net was evaluated in training mode, so that dropout and batch norm act as they do "
            "during training.",
        )
    total = int(found.checked.sum())
    budget = next((budget_arguments(o.norm, o.eps) for o in results.outcomes if o.eps), "")
    for name, mask, most, sentence in (
        ("random_model", found.random, 0.25, "other logits for {} when it was evaluated again"),
        ("probabilities", found.probabilities, 0.5, "probabilities instead of logits for {}"),
        ("scores_are_labels", found.labels, 0.5, "one at the label and zero elsewhere for {}"),
        ("saturated_outputs", found.saturated, 0.5, "logits so far apart for {} that the softmax "
         "of the other classes is zero"),
    ):  # fmt: skip
        count = int(mask.sum())
        if count > most * total:
            yield make_finding(
                name,
                "low" if name == "saturated_outputs" else "high",
                f"The model returned {sentence.format(f'{count} of {total} checked inputs')}.",
                budget=budget,
                inputs=count,
                checked=total,
            )


def _on_noise(results: Evaluated) -> Iterator[Finding]:
    """Yield findings about random noise that fooled the model where attacks failed."""
    for noise in results.noise:
        radius = torch.full((len(results.clean),), noise.eps, dtype=torch.float64)
        robust = robust_within(Budget(noise.norm, radius), results.clean, results.outcomes)
        missed = int((robust & ~noise.robust).sum())
        if missed:
            yield make_finding(
                "noise_beats_gradients",
                severity_of(missed, len(robust)),
                f"Random noise of {noise.budget} fooled the model on "
                f"{format_count(missed, 'input')} that withstood every attack within that budget.",
                budget=budget_arguments(noise.norm, noise.eps),
                inputs=missed,
                total=len(robust),
            )
