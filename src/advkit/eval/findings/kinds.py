"""Kinds of findings, with the remedy of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from advkit.eval.findings.finding import SEVERITIES, Finding, Severity

_SUITE = "attacks.Suite({budget})"
_THOROUGH = "attacks.Suite({budget}, effort='thorough')"


class Kind(NamedTuple):
    """Remedy of the findings of one kind.

    Attributes:
        remedy: sentence that says what to do.
        code: code to type, with `{budget}` for the arguments `eps` and `norm`, and `{norm}` for the
            latter alone.
    """

    remedy: str
    code: str


KINDS = {  # a cause before its consequences
    "training_mode": Kind(
        "Evaluate the net in the mode in which it is deployed. If it draws random numbers there, "
        "attack its expectation.",
        "model = advkit.TorchClassifier(net, mode='eval')",
    ),
    "random_model": Kind(
        "Attack the expectation of the model over its random draws, with all steps of the attack.",
        "model = advkit.Expectation(model, draws=32)\nattacks.PGD({budget}, stop='never')",
    ),
    "probabilities": Kind(
        "Declare that the model returns probabilities. Their logarithms are then the logits.",
        "model = advkit.TorchClassifier(net, output='probabilities')",
    ),
    "saturated_outputs": Kind(
        "Use a built-in loss, whose gradient does not vanish. Do not trust a figure that was "
        "measured with the cross-entropy of torch or with another library.",
        "attacks.PGD({budget}, loss='margin')",
    ),
    "scores_are_labels": Kind(
        "Attack the labels, or the net in front of the step that hides its scores.",
        "attacks.HopSkipJump({norm}, max_queries=5000)",
    ),
    "no_gradient": Kind(
        "Give the step that blocks the gradients a substitute gradient. If you do not know the "
        "step, attack without gradients.",
        "model = advkit.StraightThrough(net, step)\nattacks.Square({budget}, max_queries=5000)",
    ),
    "not_finite_logits": Kind(
        "Evaluate the model in a dtype in which its logits are finite.",
        "model = advkit.TorchClassifier(net.double())\nx = x.double()",
    ),
    "no_start": Kind(
        "Give the search inputs of other classes to begin at, or more queries.",
        "attacks.HopSkipJump({norm}, max_queries=5000, init_points=x_of_other_classes)",
    ),
    "steps_run_out": Kind(
        "Increase the number of steps until the robust accuracy no longer falls.",
        "attacks.PGD({budget}, steps={steps})",
    ),
    "more_steps_help": Kind(
        "Increase the number of steps until the robust accuracy no longer falls.",
        "attacks.PGD({budget}, steps=400)\n" + _THOROUGH,
    ),
    "restarts_help": Kind(
        "Increase the number of restarts until the robust accuracy no longer falls, or run Suite.",
        _SUITE,
    ),
    "one_step_beats_many": Kind(
        "The gradients mislead the search. Also run attacks that do not follow them.", _THOROUGH
    ),
    "noise_beats_gradients": Kind(
        "The attacks are too weak, or the gradients mislead them. Run Suite.", _SUITE
    ),
    "transfer_beats_gradients": Kind(
        "The gradients of the model mislead the search. Attack the surrogate as well, and run "
        "Suite on the model.",
        "attacks.Transfer(attack=attacks.PGD({budget}), surrogate=surrogate)\n" + _THOROUGH,
    ),
    "scores_beat_gradients": Kind(
        "The gradients mislead the search. Also run attacks that do not follow them, or give the "
        "step that spoils them a substitute gradient.",
        _THOROUGH + "\nmodel = advkit.StraightThrough(net, step, backward=smooth_step)",
    ),
    "labels_beat_gradients": Kind(
        "The gradients mislead the search. Also run attacks that do not follow them.",
        "attacks.HopSkipJump({norm}, max_queries=5000)\n" + _THOROUGH,
    ),
    "unbounded_attack_fails": Kind(
        "An attack without a budget should fool the model on every input, so the search is broken. "
        "Look for a step that blocks or reverses gradients, and for bounds that are not those of "
        "the inputs.",
        "model = advkit.TorchClassifier(net, bounds=(lower, upper))",
    ),
    "too_few_classes": Kind(
        "Use a loss that is defined for this number of classes.",
        "attacks.PGD({budget}, loss='margin')",
    ),
    "rounding_undoes_attack": Kind(
        "If the attacker must send bytes, put the rounding into the model, so that attacks take it "
        "into account.",
        "step = lambda x: (255 * x).round() / 255\nmodel = advkit.StraightThrough(model, step)",
    ),
    "accuracy_at_chance": Kind(
        "Measure the clean accuracy first. The robust accuracy of a model that does not work means "
        "nothing.",
        "eval.accuracy(model, x, y)",
    ),
    "rejection_counts_as_robust": Kind(
        "Attack the model and its detector together, and report the share of clean inputs that it "
        "rejects.",
        "mimicry = attacks.Mimicry(logits=clean_logits)\n"
        "attacks.Adaptive(attack=attacks.PGD({budget}), losses=['ce', mimicry])",
    ),
    "last_iterate_returned": Kind(
        "Stop the attack at its first success, or use one that returns its strongest iterate.",
        "attacks.PGD({budget}, stop='first')",
    ),
    "budget_holds_every_input": Kind(
        "Choose a budget within which the true label does not change.",
        "attacks.Suite({norm}, eps=eps)",
    ),
    "stronger_attack_found": Kind(
        "The robust accuracy of the report is too high. Evaluate with a stronger attack.",
        _THOROUGH,
    ),
}


def in_order(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return `findings` by severity, the highest first; a cause comes before its consequences."""
    kinds = list(KINDS)
    return tuple(
        sorted(findings, key=lambda f: (SEVERITIES.index(f.severity), kinds.index(f.name)))
    )


def make_finding(
    name: str,
    severity: Severity,
    message: str,
    *,
    budget: str = "",
    steps: int = 100,
    **evidence: float | int | str,
) -> Finding:
    """Return a finding of the kind `name`.

    Args:
        name: a key of `KINDS`.
        severity: `"high"`, `"medium"` or `"low"`.
        message: sentences with the numbers.
        budget: arguments `eps` and `norm` for the code of the remedy; empty if they are unknown.
        steps: number of steps for the code of the remedy.
        **evidence: the numbers.
    """
    kind = KINDS[name]
    return Finding(
        name=name,
        severity=severity,
        message=message,
        evidence=evidence,
        remedy=kind.remedy,
        code=_with_budget(kind.code, budget or "eps=eps, norm=norm").replace("{steps}", str(steps)),
    )


def _with_budget(code: str, budget: str) -> str:
    """Return `code` with the arguments `budget`, in l0 of the attacks that have this norm."""
    in_l0 = ", norm='l0'"
    if in_l0 in budget:
        for dense, sparse in (("PGD", "SparsePGD"), ("Square", "SparseRS")):
            fixed = budget.replace(in_l0, "")
            code = code.replace(f"attacks.{dense}({{budget}}", f"attacks.{sparse}({fixed}")
    norm = next(argument for argument in budget.split(", ") if argument.startswith("norm="))
    if norm in ("norm='l0'", "norm='l1'"):  # in which HopSkipJump has no form
        code = code.replace("HopSkipJump({norm}, ", "HopSkipJump(")
    return code.replace("{budget}", budget).replace("{norm}", norm)
