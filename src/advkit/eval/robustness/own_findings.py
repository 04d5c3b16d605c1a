"""Findings that follow from the results of an evaluation, without another pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from advkit.core import checks
from advkit.core.boxes import diameter, whole_box_sentence
from advkit.eval.accuracy import Rate, chance_sentence
from advkit.eval.findings.finding import Finding, in_order, severity_of
from advkit.eval.findings.kinds import make_finding
from advkit.eval.noise import NoiseOutcome
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.robustness.worst_case import Budget, budgets_of, robust_within
from advkit.eval.text_tables import format_count
from advkit.eval.units.model_checks import ModelChecks

_NO_EVIDENCE = "this is not evidence of robustness"
# Share of the failures of an attack from which on their progress in the last steps is a finding.
MANY_IMPROVING = 0.1
_FEWEST_IMPROVING = 3
# Lower end of the 95 % interval of the successes that rounding undoes, from which on it is one.
# Examples that are barely misclassified are undone half the time.
MOST_UNDONE, _FEWEST_UNDONE = 0.5, 5
# Inputs that an attack fools and a stronger one does not, from which on it is one: share, number.
MANY_BEATEN, _FEWEST_BEATEN = 0.03, 3
LONG = 10  # backward passes of a failure from which on an attack has many steps
DLR_CLASSES = 4  # that targeted DLR needs; the untargeted loss is constant on a part of three


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
    found = [
        *_on_figures(results),
        *_on_model(results),
        *_on_noise(results),
        *_on_gradients(results),
    ]
    for outcome in results.outcomes:
        found += _on_attack(outcome, results)
    return in_order(found)


def budget_arguments(norm: str, eps: float | None) -> str:
    """Return the arguments `eps` and `norm` of an attack as code; empty for no single budget."""
    if eps is None:
        return ""
    named = "'l0', unit='pixel'" if norm == "l0_pixel" else repr(norm)
    return f"eps={eps:.6g}, norm={named}"


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
            "medium",
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
                "budget_holds_every_input", "high", sentence, eps=radius, largest_distance=limit
            )


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
    for name, mask, most, sentence in (
        ("random_model", found.random, 0.0, "other logits for {} when it was evaluated again"),
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
                f"{format_count(missed, 'input')} that withstood every attack within that budget: "
                "the attacks are too weak, or the gradients are misleading.",
                budget=budget_arguments(noise.norm, noise.eps),
                inputs=missed,
                total=len(robust),
            )


def _on_gradients(results: Evaluated) -> Iterator[Finding]:
    """Yield findings about attacks that fooled the model where stronger ones failed.

    An attack of one step, one without gradients and one on a surrogate are compared with all
    attacks of many steps within the same budget.
    """
    for text, budget in budgets_of(results.outcomes).items():
        same = [o for o in results.outcomes if o.norm == budget.norm]
        many = [o for o in same if is_long(o) and not o.minimum_norm]
        if not many:
            continue
        robust = robust_within(budget, results.clean, many)
        for outcome in same:
            name = _kind_of_rival(outcome)
            beaten = robust & (outcome.within(budget.radius) if name else torch.tensor(False))
            if name and is_much(int(beaten.sum()), len(beaten)):
                yield rival_finding(
                    name, outcome.label, int(beaten.sum()), len(beaten), text,
                    budget_arguments(budget.norm, many[0].eps),
                )  # fmt: skip


def rival_finding(
    name: str, label: str, beaten: int, total: int, against: str, budget: str
) -> Finding:
    """Return the finding that an attack fooled the model where attacks of many steps failed."""
    return make_finding(
        name,
        severity_of(beaten, total),
        f"{label} fooled the model on {format_count(beaten, 'input')} of {total:,} that withstood "
        f"the attacks with many gradient steps ({against}).",
        budget=budget,
        inputs=beaten,
        total=total,
    )


def is_much(count: int, total: int) -> bool:
    """Return whether `count` of `total` inputs are more than chance and rounding explain."""
    return count >= max(_FEWEST_BEATEN, MANY_BEATEN * total)


def is_long(outcome: AttackOutcome) -> bool:
    """Return whether an attack took many gradient steps wherever it failed."""
    failed = outcome.attacked & ~outcome.success
    return bool(failed.any()) and int(outcome.backward[failed].min()) >= LONG


def _kind_of_rival(outcome: AttackOutcome) -> str | None:
    """Return the finding that an attack gives if it beats many gradient steps."""
    if not outcome.attacked.any() or outcome.name == "RandomNoise":
        return None
    most = int(outcome.backward.max())
    if most == 1:
        return "one_step_beats_many"
    if most:
        return None
    return "transfer_beats_gradients" if outcome.name == "Transfer" else "scores_beat_gradients"


def _on_attack(outcome: AttackOutcome, results: Evaluated) -> Iterator[Finding]:
    """Yield findings about one attack."""
    robust = robust_within(Budget(outcome.norm, outcome.radius), results.clean, results.outcomes)
    for name, (mask, sentence) in _obstacles(outcome).items():
        if (count := int(mask.sum())) and _is_enough(name, count, outcome):
            affected = int((mask & robust).sum())
            inputs = numbered(mask) if name == "not_finite_logits" else _count(mask)
            yield make_finding(
                name,
                severity_of(affected, len(robust)),
                f"{outcome.label} {sentence.format(inputs)}.{_fooled_by_another(affected)}",
                budget=budget_arguments(outcome.norm, outcome.eps),
                inputs=count,
                counted_as_robust=affected,
                total=len(robust),
            )
    yield from _on_rounding(outcome)
    yield from _on_classes(outcome, results.num_classes)


def _obstacles(outcome: AttackOutcome) -> Mapping[str, tuple[Tensor, str]]:
    """Return the failures that say little about robustness, with what they are, by finding.

    Each text has a place for the number of inputs.
    """
    return {
        "no_gradient": (
            outcome.no_gradient,
            "had no usable gradient on {} and failed there: " + _NO_EVIDENCE,
        ),
        "no_start": (
            outcome.no_start,
            "could not begin on {}, for lack of a starting point or of queries: " + _NO_EVIDENCE,
        ),
        "not_finite_logits": (
            outcome.not_finite,
            "failed on {}, for which the model returned NaN or infinite logits: " + _NO_EVIDENCE,
        ),
        "rejection_counts_as_robust": (
            outcome.rejected,
            "failed on {}, of which the model rejected an iterate. A rejection counts as robust, "
            "also where a clean input of the same kind would be rejected",
        ),
        "steps_run_out": (
            outcome.improving,
            "failed on {} while the margin still shrank. In the last tenth of the steps it shrank "
            "at least half as fast as on average",
        ),
        "last_iterate_returned": (
            outcome.success_lost,
            "returned its last iterate on {}, where an earlier one was misclassified",
        ),
    }


def _is_enough(name: str, count: int, outcome: AttackOutcome) -> bool:
    """Return whether `count` inputs make a finding; each one does, except for late progress."""
    if name != "steps_run_out":
        return True
    failed = int((outcome.attacked & ~outcome.success).sum())
    return count >= max(_FEWEST_IMPROVING, MANY_IMPROVING * failed)


def _on_rounding(outcome: AttackOutcome) -> Iterator[Finding]:
    """Yield a finding if rounding to bytes undoes more than a few of the successes."""
    undone = Rate(int(outcome.undone.sum()), int(outcome.rounded.sum()))
    if undone.count >= _FEWEST_UNDONE and undone.interval[0] > MOST_UNDONE:
        yield make_finding(
            "rounding_undoes_attack",
            "medium",
            f"Rounding to bytes undoes {undone.count} of {undone.total} checked adversarial "
            f"examples of {outcome.label}, although the clean inputs are bytes. An attacker who "
            "must send image files would find fewer.",
            undone=undone.count,
            rounded=undone.total,
        )


def _on_classes(outcome: AttackOutcome, classes: int | None) -> Iterator[Finding]:
    """Yield a finding if an attack used a loss for more classes than the model has."""
    uses_dlr = outcome.name == "AutoAttack" or outcome.settings.get("loss") == "dlr"
    if uses_dlr and classes is not None and classes < DLR_CLASSES:
        yield few_classes(outcome.label, classes, budget_arguments(outcome.norm, outcome.eps))


def few_classes(label: str, classes: int, budget: str) -> Finding:
    """Return the finding that the attack `label` uses DLR on a model of few `classes`."""
    return make_finding(
        "too_few_classes",
        "medium",
        f"{label} uses the DLR loss, whose targeted form needs {DLR_CLASSES} classes, on a model "
        f"of {classes}. AutoAttack takes the margin in its place, and is not the published attack.",
        budget=budget,
        classes=classes,
        needed=DLR_CLASSES,
    )


def _fooled_by_another(affected: int) -> str:
    return "" if affected else " Another attack fooled the model on all of them."


def _count(mask: Tensor) -> str:
    return format_count(int(mask.sum()), "input")


def numbered(mask: Tensor) -> str:
    """Return the count of true values in `mask` `(n,)`, and the numbers of the first of them."""
    return f"{_count(mask)} (number {checks.indices(mask)})"
