"""Findings about the results of an evaluation, on outcomes that a test makes up."""

import dataclasses

import pytest
import torch

from advkit import InconclusiveWarning, attacks
from advkit import eval as rob
from advkit.eval.budgets import budget_arguments
from advkit.eval.noise import NoiseOutcome
from advkit.eval.robustness.obstacles import MANY_QUERIES
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.robustness.own_findings import own_findings
from advkit.eval.robustness.report import Report
from advkit.eval.robustness.rivals import LONG, is_long, is_much
from advkit.eval.units.model_checks import ModelChecks
from tests.eval.made_up import PROVENANCE, Finds, inputs_of, report_on
from tests.toys import Halfspace

N = 100


def first(count, n=N):
    """A mask that is true for the first `count` of `n` inputs."""
    return torch.arange(n) < count


def outcome(fooled=0, *, name="PGD", n=N, norm="linf", eps=0.1, steps=20, settings=None, **masks):
    """The outcome of an attack that fools the first or the given inputs."""
    success = fooled if isinstance(fooled, torch.Tensor) else first(fooled, n)
    radius = torch.full((n,), torch.inf if eps is None else eps, dtype=torch.float64)
    passes = torch.full((n,), steps)
    false = torch.zeros(n, dtype=torch.bool)
    distance = torch.where(success, 0.1 if eps is None else 0.9 * eps, torch.nan)
    return AttackOutcome(
        name=name, settings={"eps": eps} if settings is None else settings, norm=norm,
        minimum_norm=eps is None, eps=eps, radius=radius, robust=~success, distance=distance,
        forward=passes + 2, backward=passes, seconds=1.0, examples=None,
        **{"no_gradient": false, "not_finite": false} | masks,
    )  # fmt: skip


def report(*outcomes, n=N, clean=None, not_finite=None, **fields):
    """A report on `n` inputs, all of them labeled correctly by default."""
    correct = torch.ones(n, dtype=torch.bool) if clean is None else clean
    given = {
        "model": "A net", "bounds": (0.0, 1.0), "inputs": inputs_of(correct, not_finite),
        "provenance": PROVENANCE, "features": 784, "num_classes": 10,
    }  # fmt: skip
    return Report(outcomes=outcomes, **given | fields)


def checked(count=8, n=N, training_mode=False, **counts):
    """Checks of the first `count` inputs, of which the first `counts` were found."""
    names = ("random", "probabilities", "labels", "saturated")
    masks = {name: first(counts.get(name, 0), n) for name in names}
    return ModelChecks(checked=first(count, n), training_mode=training_mode, **masks)


def names(results):
    """The name and the severity of each finding."""
    return [(f.name, f.severity) for f in own_findings(results)]


def only(results):
    """The only finding."""
    (found,) = own_findings(results)
    return found


def test_results_without_obstacles_give_no_finding():
    assert own_findings(report(outcome(30), outcome(20, name="FGSM", steps=1))) == ()
    assert own_findings(report(outcome(30), checks=checked())) == ()
    assert own_findings(report()) == ()


# --- figures -------------------------------------------------------------------------------------


def test_a_clean_accuracy_at_chance():
    found = only(report(clean=first(12)))
    assert (found.name, found.severity) == ("accuracy_at_chance", "high")
    assert found.evidence == {"clean_accuracy": 0.12, "chance": 0.1}
    assert found.message.startswith("The clean accuracy, 12.00 % (12 of 100), may be chance")
    assert names(report(clean=first(18))) == []
    assert names(report(clean=first(12), num_classes=None)) == []


def test_clean_inputs_without_finite_logits():
    bad = torch.arange(N) % 50 == 7
    found = only(report(clean=~bad, not_finite=bad))
    assert (found.name, found.severity, found.evidence) == (
        "not_finite_logits", "medium", {"inputs": 2},
    )  # fmt: skip
    assert "for 2 inputs (number 7, 57)" in found.message


@pytest.mark.parametrize(
    ("norm", "eps", "features", "fires"),
    [
        ("linf", 1.0, 784, True), ("linf", 0.999, 784, False), ("l2", 28.0, 784, True),
        ("l2", 27.9, 784, False), ("linf", 1.0, None, False), ("linf", 8.0, 784, True),
    ],
)  # fmt: skip
def test_a_budget_that_holds_every_input(norm, eps, features, fires):
    found = names(report(outcome(N, norm=norm, eps=eps), features=features))
    assert found == ([("budget_holds_every_input", "high")] if fires else [])


# --- the model -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mask", "name", "severity", "enough"),
    [
        ("random", "random_model", "high", 3),
        ("probabilities", "probabilities", "high", 5),
        ("labels", "scores_are_labels", "high", 5),
        ("saturated", "saturated_outputs", "low", 5),
    ],
)
def test_outputs_of_the_checked_inputs(mask, name, severity, enough):
    """More than half of those checked, except for random outputs, of which one is enough."""
    assert names(report(checks=checked(**{mask: enough}))) == [(name, severity)]
    assert names(report(checks=checked(**{mask: enough - 1}))) == []
    found = only(report(checks=checked(**{mask: enough})))
    assert found.evidence == {"inputs": enough, "checked": 8}
    assert f"{enough} of 8 checked inputs" in found.message


def test_a_net_in_training_mode():
    found = own_findings(report(checks=checked(training_mode=True, random=8)))
    assert [f.name for f in found] == ["training_mode", "random_model"]
    assert found[0].severity == "high"


# --- noise ---------------------------------------------------------------------------------------


def noise(fooled, eps=0.1, norm="linf"):
    return NoiseOutcome(norm=norm, eps=eps, robust=~first(fooled))


@pytest.mark.parametrize(
    ("by_attack", "severity"), [(8, None), (7, "medium"), (4, "medium"), (3, "high"), (0, "high")]
)
def test_noise_that_beats_the_attacks(by_attack, severity):
    results = report(outcome(by_attack), noise=(noise(8),))
    assert names(results) == ([("noise_beats_gradients", severity)] if severity else [])
    if severity:
        missed = 8 - by_attack
        assert only(results).evidence == {"inputs": missed, "total": N}
        assert only(results).code == "attacks.Suite(eps=0.1, norm='linf')"


def test_noise_is_compared_with_attacks_in_its_budget():
    assert names(report(outcome(8), noise=(noise(8, norm="l2"),))) == [
        ("noise_beats_gradients", "high")
    ]
    assert names(report(outcome(8, eps=0.2), noise=(noise(8, eps=0.1),))) == [
        ("noise_beats_gradients", "high")
    ]
    assert names(report(outcome(8, eps=0.05), noise=(noise(8, eps=0.1),))) == []


# --- gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "steps", "finding"),
    [
        ("FGSM", 1, "one_step_beats_many"),
        ("Square", 0, "scores_beat_gradients"),
        ("Transfer", 0, "transfer_beats_gradients"),
        ("HopSkipJump", 0, "labels_beat_gradients"),
        ("PGD", 2, None),
        ("RandomNoise", 0, None),
    ],
)
@pytest.mark.parametrize(
    ("fooled", "severity"), [(12, None), (13, "medium"), (14, "medium"), (15, "high")]
)
def test_a_weak_attack_that_beats_many_steps(name, steps, finding, fooled, severity):
    """From three inputs of 100 on; here 10 of those that it fools are fooled anyway."""
    results = report(outcome(10), outcome(fooled, name=name, steps=steps))
    assert names(results) == ([(finding, severity)] if finding and severity else [])


def test_what_beats_many_steps_is_within_the_same_budget():
    steps = outcome(10)
    assert names(report(steps, outcome(20, name="Square", steps=0, norm="l2", eps=1.0))) == []
    assert names(report(steps, outcome(20, name="Square", steps=0, eps=0.2))) == []
    smaller = outcome(20, name="Square", steps=0, eps=0.05)
    assert only(report(steps, smaller)).evidence == {"inputs": 10, "total": N}
    assert names(report(outcome(20), smaller)) == []  # which did not search within 0.05
    nearest = outcome(20, name="HopSkipJump", steps=0, eps=None)  # of distance 0.1
    assert names(report(steps, nearest)) == [("labels_beat_gradients", "high")]


def test_an_attack_that_wins_at_its_first_step_has_many_steps():
    """Its passes are those of one step, or of none if the random start is a success."""
    slow = outcome(10)
    for steps in (0, 1):
        at_once = outcome(N, steps=steps, settings={"eps": 0.1, "steps": 20})
        assert names(report(slow, at_once)) == []
        square = outcome(60, name="Square", steps=0)
        assert names(report(slow, at_once, square)) == []  # nothing withstood the first
    own = dataclasses.replace(outcome(60, name="Mine", steps=0), forward=torch.full((N,), 50))
    assert names(report(slow, own)) == [("scores_beat_gradients", "high")]
    assert names(report(slow, outcome(60, settings={"steps": 1}, steps=1))) == [
        ("one_step_beats_many", "high")
    ]


def test_the_remedy_has_the_budget_of_the_comparison():
    smaller, slow = outcome(5, eps=0.01), outcome(10, eps=0.05)
    square = outcome(60, name="Square", steps=0, eps=0.05)
    found = [f for f in own_findings(report(smaller, slow, square)) if "linf 0.05" in f.message]
    assert "eps=0.05" in found[0].code


def test_all_attacks_of_many_steps_count_together():
    rival = outcome(20, name="Square", steps=0)
    rest = outcome(first(30) & ~first(10), name="APGD")
    assert names(report(outcome(10), rival)) == [("scores_beat_gradients", "high")]
    assert names(report(outcome(10), rest, rival)) == []
    short = outcome(torch.zeros(N, dtype=torch.bool), steps=LONG - 1)
    assert names(report(short, rival)) == []


@pytest.mark.parametrize(
    ("count", "total", "much"),
    [(2, 10, False), (3, 10, True), (3, 100, True), (3, 101, False), (30, 1000, True),
     (29, 1000, False), (0, 0, False)],
)  # fmt: skip
def test_much_is_three_inputs_and_three_percent(count, total, much):
    assert is_much(count, total) is much


def test_many_steps_are_counted_where_the_attack_failed():
    steps = torch.where(first(50), 2, LONG)
    found = outcome(50)
    assert is_long(dataclasses.replace(found, backward=steps))
    assert not is_long(dataclasses.replace(found, backward=steps - 1))
    assert not is_long(outcome(N))  # which failed nowhere


# --- obstacles of an attack ----------------------------------------------------------------------

OBSTACLES = {
    "no_gradient": ("no_gradient", "had no usable gradient on 8 inputs"),
    "no_start": ("no_start", "could not begin on 8 inputs"),
    "not_finite": (
        "not_finite_logits", "failed on 8 inputs (number 20, 21, 22, 23, 24 and 3 more)",
    ),
    "rejected": ("rejection_counts_as_robust", "failed on 8 inputs after the model rejected"),
    "improving": ("steps_run_out", "failed on 8 inputs while the margin still shrank"),
    "success_lost": ("last_iterate_returned", "returned its last iterate on 8 inputs"),
}  # fmt: skip


@pytest.mark.parametrize("column", OBSTACLES)
@pytest.mark.parametrize(
    ("others", "severity"), [(0, "high"), (23, "high"), (24, "medium"), (27, "medium"), (28, "low")]
)
def test_obstacles_matter_where_no_other_attack_succeeds(column, others, severity):
    """Inputs 20 to 27 met the obstacle; another attack fools those before `others`."""
    mask = first(28) & ~first(20)
    met = outcome(20, **{column: mask})
    results = report(met, outcome(others, name="DDN", steps=5))
    name, sentence = OBSTACLES[column]
    found = only(results)
    assert (found.name, found.severity) == (name, severity)
    assert found.message.startswith(f"PGD(eps=0.1) {sentence}")
    assert found.evidence == {
        "inputs": 8, "in_doubt": 8 - max(0, others - 20), "total": N,
    }  # fmt: skip
    settled = "The figures do not rest on these failures" in found.message
    assert settled is (severity == "low")


WITHSTOOD = {
    "many steps": ({}, "low"),
    "a larger ball": ({"eps": 0.2}, "low"),
    "a smaller ball": ({"eps": 0.05}, "high"),
    "another norm": ({"norm": "l2"}, "high"),
    "few steps": ({"steps": LONG - 1}, "high"),
    "a nearest example outside": ({"eps": None, "distance": 0.3, "fooled": N}, "low"),
    "the same obstacle": ({"improving": first(28)}, "high"),
    "another obstacle": ({"no_gradient": first(28)}, "high"),
}


@pytest.mark.parametrize("case", WITHSTOOD)
def test_obstacles_matter_where_no_other_attack_fails_without_one(case):
    given, severity = WITHSTOOD[case]
    met = outcome(20, improving=first(28) & ~first(20))
    given = dict(given)
    distance = given.pop("distance", None)
    other = outcome(given.pop("fooled", 20), name="Suite", **given)
    if distance is not None:
        found_at = torch.where(other.success, distance, torch.nan)
        other = dataclasses.replace(other, distance=found_at)
    found = own_findings(report(met, other))
    assert next(f.severity for f in found if f.name == "steps_run_out") == severity


@pytest.mark.parametrize(("taken", "named"), [(20, 100), (25, 100), (26, 104), (500, 2000)])
def test_the_remedy_names_more_steps_than_were_taken(taken, named):
    found = only(report(outcome(20, improving=first(28), steps=taken)))
    assert f"steps={named})" in found.code


def test_queries_settle_what_a_search_without_steps_left_open_but_not_gradients():
    mask = first(28) & ~first(20)
    square = outcome(20, name="Square", steps=0)
    square = dataclasses.replace(square, forward=torch.full((N,), 100))
    assert only(report(outcome(20, improving=mask), square)).severity == "low"
    assert only(report(outcome(20, no_gradient=mask), square)).severity == "high"
    short = dataclasses.replace(square, forward=torch.full((N,), 99))
    assert only(report(outcome(20, improving=mask), short)).severity == "high"


@pytest.mark.parametrize("column", OBSTACLES)
@pytest.mark.parametrize(
    ("changes", "settles"),
    [
        ({}, True),  # 20 steps without an obstacle
        ({"steps": LONG - 1}, False),
        ({"eps": 0.2}, True),
        ({"eps": 0.05}, False),
        ({"norm": "l2"}, False),
        ({"eps": None}, True),  # which searched at any distance
    ],
)
def test_an_attack_without_the_obstacle_decides(column, changes, settles):
    """Inputs 20 to 27 met the obstacle; another attack withstood them with many passes."""
    mask = first(28) & ~first(20)
    met = outcome(20, **{column: mask})
    other = outcome(20, name="APGD", **changes)
    severities = dict(names(report(met, other)))
    assert severities[OBSTACLES[column][0]] == ("low" if settles else "high")
    both = dataclasses.replace(other, **{column: mask})
    assert dict(names(report(met, both)))[OBSTACLES[column][0]] == "high"


def test_rejections_are_expected_of_attacks_on_a_detector():
    for name, severity in (("Adaptive", "low"), ("SelectivePGD", "low"), ("PGD", "high")):
        met = outcome(20, name=name, rejected=first(28) & ~first(20))
        assert names(report(met)) == [("rejection_counts_as_robust", severity)]


def test_queries_decide_except_about_gradients():
    mask = first(28) & ~first(20)
    for column, (name, _) in OBSTACLES.items():
        for queries, severity in ((MANY_QUERIES - 1, "high"), (MANY_QUERIES, "low")):
            square = outcome(20, name="Square", steps=0)
            square = dataclasses.replace(square, forward=torch.full((N,), queries))
            found = dict(names(report(outcome(20, **{column: mask}), square)))
            assert found[name] == ("high" if column == "no_gradient" else severity)


@pytest.mark.parametrize(
    ("improving", "failed", "fires"),
    [(2, 2, False), (3, 3, True), (3, 30, True), (3, 31, False), (9, 91, False), (10, 100, True)],
)
def test_late_progress_needs_three_failures_and_a_tenth_of_them(improving, failed, fires):
    met = outcome(~first(failed), improving=first(improving))
    expected = [("steps_run_out", "high" if improving >= 5 else "medium")]
    assert names(report(met)) == (expected if fires else [])


@pytest.mark.parametrize(
    ("undone", "rounded", "fires"), [(4, 4, False), (5, 5, True), (5, 6, False), (8, 10, False),
                                     (9, 10, True), (60, 100, True), (59, 100, False)]
)  # fmt: skip
def test_rounding_that_undoes_more_than_half(undone, rounded, fires):
    """The lower end of the 95 % interval is above one half, and there are five of them."""
    found = outcome(N, undone=first(undone), rounded=first(rounded))
    assert names(report(found)) == ([("rounding_undoes_attack", "medium")] if fires else [])
    if fires:
        message = f"Rounding to bytes undoes {undone} of {rounded} checked adversarial examples"
        assert only(report(found)).message.startswith(message)


@pytest.mark.parametrize(
    ("name", "settings", "classes", "fires"),
    [
        ("AutoAttack", {"eps": 0.1}, 2, True), ("AutoAttack", {"eps": 0.1}, 3, True),
        ("AutoAttack", {"eps": 0.1}, 4, False), ("PGD", {"loss": "dlr"}, 3, True),
        ("PGD", {"loss": "margin"}, 2, False), ("PGD", {"loss": "dlr"}, None, False),
    ],
)  # fmt: skip
def test_dlr_needs_four_classes(name, settings, classes, fires):
    found = names(report(outcome(N, name=name, settings=settings), num_classes=classes))
    severity = "low" if classes == 3 else "medium"
    assert found == ([("too_few_classes", severity)] if fires else [])


def test_the_budget_as_arguments():
    assert budget_arguments("l2", 0.5) == "eps=0.5, norm='l2'"
    assert budget_arguments("linf", 8 / 255) == "eps=0.0313725, norm='linf'"
    assert budget_arguments("l2", None) == ""


def test_findings_are_in_order_and_in_the_report():
    met = outcome(20, no_start=first(28) & ~first(20), no_gradient=first(21) & ~first(20))
    results = report(met, checks=checked(saturated=8))
    severities = [f.severity for f in results.findings]
    assert severities == ["high", "medium", "low"]
    text = str(results)
    assert "Verdict: do not believe these figures (1 high finding)." in text
    assert text.index("[high] no_start") < text.index("[medium] no_gradient")
    assert [f["name"] for f in results.to_dict()["findings"]] == [
        "no_start", "no_gradient", "saturated_outputs",
    ]  # fmt: skip


def test_an_evaluation_on_users_own_attacks():
    """Without the columns that only built-in attacks fill, and with an error of none."""
    found = report_on([[0.1], [0.2], [0.9], [0.95]] * 5, Finds(eps=0.5), Finds())
    assert found.findings == ()


def test_an_evaluation_with_dead_gradients():
    net, x = Halfspace(torch.ones(6), b=-9.0), torch.rand(20, 6)
    dead = torch.nn.Sequential(torch.nn.Hardtanh(2, 3), net)
    with pytest.warns(InconclusiveWarning, match="met a gradient of zero"):
        found = rob.evaluate(dead, x, dead(x).argmax(1), attacks=[attacks.FGSM(eps=0.05)])
    assert ("no_gradient", "high") in [(f.name, f.severity) for f in found.findings]
