"""Findings: their severity, order, verdict and text."""

import ast
import json

import pytest

from advkit import attacks
from advkit.eval.findings.finding import (
    Finding,
    format_finding,
    format_findings,
    severity_of,
    verdict,
)
from advkit.eval.findings.kinds import KINDS, in_order, make_finding


def finding(severity="high", name="random_model", **changes):
    fields = {
        "name": name, "severity": severity, "message": "It was random.", "evidence": {"inputs": 3},
        "remedy": "Average it.", "code": "first()\nsecond()",
    }  # fmt: skip
    return Finding(**fields | changes)


@pytest.mark.parametrize(
    ("affected", "total", "severity"),
    [
        (0, 0, "low"), (0, 100, "low"), (1, 100, "medium"), (4, 100, "medium"), (5, 100, "high"),
        (100, 100, "high"), (1, 20, "high"), (1, 21, "medium"), (9, 199, "medium"),
    ],
)  # fmt: skip
def test_the_severity_is_the_share_of_the_inputs_that_count_as_robust(affected, total, severity):
    assert severity_of(affected, total) == severity


def test_the_most_severe_come_first_and_causes_before_consequences():
    given = [
        finding("low", "training_mode"), finding("high", "steps_run_out"),
        finding("medium", "no_start"), finding("high", "random_model"),
    ]  # fmt: skip
    ordered = ["random_model", "steps_run_out", "no_start", "training_mode"]
    assert [f.name for f in in_order(given)] == ordered
    assert in_order([]) == ()


@pytest.mark.parametrize(
    ("severities", "sentence"),
    [
        ([], "Verdict: no check speaks against these figures."),
        (["low"], "Verdict: these figures stand (1 low finding)."),
        (["low", "low"], "Verdict: these figures stand (2 low findings)."),
        (["low", "medium"], "Verdict: doubt these figures (1 medium finding)."),
        (["high", "medium", "high"], "Verdict: do not believe these figures (2 high findings)."),
    ],
)
def test_the_verdict_follows_the_highest_severity(severities, sentence):
    assert verdict([finding(s) for s in severities]) == sentence


def test_text_of_a_finding():
    assert str(finding()) == (
        "[high] random_model\n    It was random.\n    Average it.\n    > first()\n    > second()"
    )
    long = finding(message="word " * 60)
    assert max(map(len, "\n".join(format_finding(long)).splitlines())) <= 100
    assert format_findings([finding(), finding("low")]) == [
        "Verdict: do not believe these figures (1 high finding).",
        "", *format_finding(finding()), "", *format_finding(finding("low")),
    ]  # fmt: skip
    assert format_findings([]) == [verdict([])]


def test_plain_values_are_a_copy():
    original = finding()
    plain = original.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain == {
        "name": "random_model", "severity": "high", "message": "It was random.",
        "evidence": {"inputs": 3}, "remedy": "Average it.", "code": "first()\nsecond()",
    }  # fmt: skip
    plain["evidence"]["inputs"] = 4
    assert original.evidence == {"inputs": 3}


def test_a_kind_names_its_remedy_and_the_budget():
    made = make_finding("no_gradient", "low", "None.", budget="eps=0.1, norm='l2'", inputs=2)
    assert (made.name, made.severity, made.evidence) == ("no_gradient", "low", {"inputs": 2})
    assert made.remedy == KINDS["no_gradient"].remedy
    assert made.code.splitlines()[1] == "attacks.Square(eps=0.1, norm='l2', max_queries=5000)"
    unknown = make_finding("no_gradient", "low", "None.")
    assert "attacks.Square(eps=eps, norm=norm, max_queries=5000)" in unknown.code
    with pytest.raises(KeyError):
        make_finding("unknown", "low", "None.")


@pytest.mark.parametrize("name", KINDS)
def test_the_code_of_a_remedy_can_be_typed(name):
    """It is Python, and its attacks exist and take their arguments."""
    code = make_finding(name, "low", "A sentence.", budget="eps=0.1, norm='linf'").code
    assert "{" not in code
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("attacks."):
            kind = getattr(attacks, node.func.attr)
            if not node.args and all(isinstance(k.value, ast.Constant) for k in node.keywords):
                kind(**{k.arg: k.value.value for k in node.keywords})
    remedy = KINDS[name].remedy
    assert remedy[0].isupper()
    assert remedy.endswith(".")


@pytest.mark.parametrize(
    ("norm", "call"),
    [
        ("linf", "attacks.HopSkipJump(norm='linf', max_queries=5000)"),
        ("l1", "attacks.HopSkipJump(max_queries=5000)"),  # which has no form in l1 and l0
        ("l0", "attacks.HopSkipJump(max_queries=5000)"),
    ],
)
def test_an_attack_on_labels_is_named_in_a_norm_that_it_has(norm, call):
    code = make_finding("scores_are_labels", "high", "", budget=f"eps=3, norm={norm!r}").code
    assert code == call
    eval(code, {"attacks": attacks})
