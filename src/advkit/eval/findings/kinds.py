"""Kinds of findings, with the remedy of each."""

from __future__ import annotations

from typing import NamedTuple

from advkit.eval.findings.finding import Finding, Severity

_SUITE = "attacks.Suite({budget})"
_THOROUGH = "attacks.Suite({budget}, effort='thorough')"


class Kind(NamedTuple):
    """Remedy of the findings of one kind.

    Attributes:
        remedy: sentence that says what to do.
        code: code to type, with `{budget}` for the arguments `eps` and `norm`.
    """

    remedy: str
    code: str


KINDS = {
    "random_model": Kind(
        "Attack the expectation of the model over its random draws.",
        "model = advkit.Expectation(model, draws=32)",
    ),
    "training_mode": Kind(
        "Evaluate the net in the mode in which it is deployed. If it draws random numbers there, "
        "attack its expectation.",
        "model = advkit.TorchClassifier(net, mode='eval')",
    ),
    "probabilities": Kind(
        "Say that the model returns probabilities, whose logarithms are then the logits.",
        "model = advkit.TorchClassifier(net, output='probabilities')",
    ),
    "saturated_outputs": Kind(
        "Use a loss of this package: their gradients do not vanish. Read a figure that was "
        "measured with torch's cross-entropy or by another library with care.",
        "attacks.PGD({budget}, loss='margin')",
    ),
    "scores_are_labels": Kind(
        "Attack the labels, or the net before the step that hides its scores.",
        "attacks.HopSkipJump(max_queries=5000)",
    ),
    "no_gradient": Kind(
        "Let gradients pass the step that blocks them. If the step is unknown, attack without "
        "gradients.",
        "model = advkit.StraightThrough(net, step)\nattacks.Square({budget}, max_queries=5000)",
    ),
    "not_finite_logits": Kind(
        "Evaluate the model in a dtype in which its logits are finite.",
        "model = advkit.TorchClassifier(net.double())",
    ),
    "no_start": Kind(
        "Give the search more queries, or inputs of other classes to begin at.",
        "attacks.HopSkipJump(max_queries=5000, init_points=x_of_other_classes)",
    ),
    "steps_run_out": Kind(
        "Give the attack more steps, until more of them find nothing.",
        "attacks.PGD({budget}, steps=100)",
    ),
    "more_steps_help": Kind(
        "Give the attack more steps, until more of them find nothing. Suite does so by itself.",
        _SUITE,
    ),
    "restarts_help": Kind(
        "Give the attack restarts, until more of them find nothing. Suite does so by itself.",
        _SUITE,
    ),
    "one_step_beats_many": Kind(
        "The gradients mislead the search. Run attacks that do not follow them, too.", _THOROUGH
    ),
    "noise_beats_gradients": Kind(
        "The attacks are too weak, or the gradients mislead them. Run Suite.", _SUITE
    ),
    "transfer_beats_gradients": Kind(
        "The gradients of the model mislead the search. Attack the surrogate, and Suite on the "
        "model.",
        "attacks.Transfer(attack=attacks.PGD({budget}), surrogate=surrogate)\n" + _THOROUGH,
    ),
    "scores_beat_gradients": Kind(
        "The gradients mislead the search. Run attacks that do not follow them, too, or let "
        "gradients pass the step that spoils them.",
        _THOROUGH + "\nmodel = advkit.StraightThrough(net, step, backward=smooth_step)",
    ),
    "labels_beat_gradients": Kind(
        "The gradients mislead the search. Run attacks that do not follow them, too.",
        "attacks.HopSkipJump(max_queries=5000)\n" + _THOROUGH,
    ),
    "unbounded_attack_fails": Kind(
        "An attack without a budget reaches every class, so the search is broken. Look for a step "
        "without gradients in the model, and for bounds that are not those of its inputs.",
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
        "Check the weights, the normalization and the order of the labels, or evaluate more "
        "inputs.",
        "eval.accuracy(model, x, y)",
    ),
    "rejection_counts_as_robust": Kind(
        "Attack the model and its detector together, and report the share of clean inputs that it "
        "rejects.",
        "attacks.Adaptive(attack=attacks.PGD({budget}), losses=['ce', attacks.Mimicry(...)])",
    ),
    "last_iterate_returned": Kind(
        "End the attack at its first success, or keep the strongest iterate.",
        "attacks.PGD({budget}, stop='first')",
    ),
    "budget_holds_every_input": Kind(
        "Give eps in the units of the inputs.", "attacks.Suite(eps=8 / 255, norm='linf')"
    ),
    "stronger_attack_found": Kind(
        "The report is an upper bound that the probes undercut. Evaluate with a stronger attack.",
        _THOROUGH,
    ),
}


def make_finding(
    name: str, severity: Severity, message: str, *, budget: str = "", **evidence: float | int | str
) -> Finding:
    """Return a finding of the kind `name`.

    Args:
        name: a key of `KINDS`.
        severity: `"high"`, `"medium"` or `"low"`.
        message: sentences with the numbers.
        budget: arguments `eps` and `norm` for the code of the remedy; empty if they are unknown.
        **evidence: the numbers.
    """
    kind = KINDS[name]
    return Finding(
        name=name,
        severity=severity,
        message=message,
        evidence=evidence,
        remedy=kind.remedy,
        code=_with_budget(kind.code, budget or "eps=eps, norm=norm"),
    )


def _with_budget(code: str, budget: str) -> str:
    """Return `code` with the arguments `budget`, in l0 of the attacks that have this norm."""
    in_l0 = ", norm='l0'"
    if in_l0 in budget:
        for dense, sparse in (("PGD", "SparsePGD"), ("Square", "SparseRS")):
            fixed = budget.replace(in_l0, "")
            code = code.replace(f"attacks.{dense}({{budget}}", f"attacks.{sparse}({fixed}")
    return code.replace("{budget}", budget)
