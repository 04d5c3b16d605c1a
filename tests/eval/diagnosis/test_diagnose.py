"""Comparisons of probes by their roles, with attacks whose successes a test prescribes."""

import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import advkit
from advkit import attacks
from advkit import eval as rob
from advkit.core.results import AttackResult, Queries
from advkit.eval.diagnosis.comparisons import RIVALS, ROLES
from tests.toys import Halfspace, answers, convnet, images

N = 100
EPS = 0.1


class Sure(nn.Module):
    """Label 0 for every input; the number of an input is its feature."""

    def forward(self, x):
        zero = 0 * x.flatten(1).sum(1)
        return torch.stack([zero + 2, zero, zero - 1, zero - 0.5], 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fools:
    """An attack that fools the inputs with the numbers from `begin` to before `end`."""

    end: int
    begin: int = 0
    norm: str = "linf"
    eps: float | None = EPS
    steps: int = 20
    obstacle: str = ""  # column that is true for the failures
    loss: str = "ce"

    def run(self, model, x, y=None, *, target=None):
        number = (x.flatten(1)[:, 0] * 1000).round()
        success = (number >= self.begin) & (number < self.end)
        ones = torch.ones(len(x), dtype=torch.int64)
        distance = torch.where(success, 0.05 if self.eps is None else self.eps, 0.0)
        false = torch.zeros_like(success)
        masks = {"no_gradient": false} | ({self.obstacle: ~success} if self.obstacle else {})
        return AttackResult(
            x_adv=x, success=success, distance=distance, norm=self.norm,
            queries=Queries(self.steps * ones, self.steps * ones), **masks,
        )  # fmt: skip

    def __call__(self, model, x, y=None, *, target=None):
        return self.run(model, x, y).x_adv


class HopSkipJump(Fools):
    """An attack by labels, for the findings of `evaluate`, which go by the name."""


class Transfer(Fools):
    """An attack on a surrogate."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refuses(Fools):
    """An attack that raises an error."""

    end: int = 0
    error: type[Exception] = TypeError

    def run(self, model, x, y=None, *, target=None):
        raise self.error("`model` must have gradients, got none.")


def data(n=N):
    return torch.arange(n)[:, None] / 1000, torch.zeros(n, dtype=torch.int64)


def diagnosis(report=None, model=None, n=N, **probes):
    return rob.diagnose(model or Sure(), *data(n), probes=probes, report=report)


def names(found):
    return [(finding.name, finding.severity) for finding in found.findings]


def reported(*made, n=N):
    return rob.evaluate(Sure(), *data(n), attacks=made)


# --- one role at a time --------------------------------------------------------------------------


@pytest.mark.parametrize("role", RIVALS)
@pytest.mark.parametrize(
    ("fooled", "severity"), [(40, None), (42, None), (43, "medium"), (44, "medium"), (45, "high")]
)
def test_a_rival_that_beats_the_reference(role, fooled, severity):
    kind = {"labels": HopSkipJump, "transfer": Transfer}.get(role, Fools)
    steps = {"more_steps": 100, "restarts": 20, "one_step": 1}.get(role, 0)
    found = diagnosis(many_steps=Fools(end=40), **{role: kind(end=fooled, steps=steps)})
    assert names(found) == ([(RIVALS[role], severity)] if severity else [])
    if severity:
        (finding,) = found.findings
        assert finding.evidence == {
            "inputs": fooled - 40, "attacked": N, "counted_as_robust": fooled - 40,
        }  # fmt: skip
        assert f"on {fooled - 40} inputs of 100 that withstood" in finding.message
        assert "eps=0.1, norm='linf'" in finding.code or role == "labels"


def test_all_roles_are_known():
    assert {*RIVALS, "many_steps", "unbounded"} == set(ROLES)


def test_what_the_reference_fooled_and_the_rival_did_not_is_not_a_finding():
    assert names(diagnosis(many_steps=Fools(end=40), scores=Fools(end=10, steps=0))) == []
    other = Fools(begin=20, end=60, steps=0)
    assert names(diagnosis(many_steps=Fools(end=40), scores=other)) == [
        ("scores_beat_gradients", "high")
    ]


def test_a_rival_counts_within_the_budget_and_in_the_norm():
    many = Fools(end=40)
    assert names(diagnosis(many_steps=many, scores=Fools(end=60, steps=0, eps=0.2))) == []
    with pytest.raises(ValueError, match="must have the norm of 'many_steps', linf, got l2"):
        diagnosis(many_steps=many, scores=Fools(end=60, steps=0, norm="l2"))
    nearest = HopSkipJump(end=60, steps=0, eps=None)  # at a distance of 0.05
    assert names(diagnosis(many_steps=many, labels=nearest)) == [("labels_beat_gradients", "high")]


def test_the_same_net_with_few_inputs():
    """Three inputs are needed, however few there are."""
    for fooled, expected in ((6, []), (7, [("scores_beat_gradients", "high")])):
        rival = Fools(end=fooled, steps=0)
        assert names(diagnosis(many_steps=Fools(end=4), scores=rival, n=10)) == expected


@pytest.mark.parametrize(
    ("fooled", "fires"), [(100, False), (98, False), (97, True), (0, True)]
)  # fmt: skip
def test_an_attack_without_a_budget(fooled, fires):
    found = diagnosis(unbounded=Fools(end=fooled, eps=1.0))
    assert names(found) == ([("unbounded_attack_fails", "high")] if fires else [])
    if fires:
        assert found.findings[0].evidence == {"inputs": N - fooled, "attacked": N}


def test_the_ball_of_the_unbounded_attack_holds_every_input():
    with pytest.raises(ValueError, match=r"`probes\['unbounded'\]` must have an eps of at least 1"):
        diagnosis(unbounded=Fools(end=N, eps=0.9))


def test_the_budget_of_the_unbounded_attack_is_not_a_mistake():
    """It holds every input on purpose, and its successes are not within the other budget."""
    found = diagnosis(many_steps=Fools(end=40), unbounded=Fools(end=N, eps=1.0))
    assert found.findings == ()


def test_rivals_are_refused_without_the_reference():
    with pytest.raises(ValueError, match="`probes` must have the role 'many_steps', with which"):
        diagnosis(scores=Fools(end=60, steps=0), one_step=Fools(end=10, steps=1))


# --- obstacles of the probes ---------------------------------------------------------------------


def test_an_obstacle_of_the_reference_is_a_finding():
    found = diagnosis(many_steps=Fools(end=40, obstacle="no_gradient"))
    assert names(found) == [("no_gradient", "high")]
    covered = diagnosis(
        many_steps=Fools(end=40, obstacle="no_gradient"), restarts=Fools(end=N)
    )  # fmt: skip
    assert names(covered) == [("restarts_help", "high"), ("no_gradient", "low")]


def test_a_comparison_that_could_not_begin_is_not_a_finding():
    """The starting points of HopSkipJump may all have the label of a robust net."""
    rival = Fools(end=0, eps=None, steps=0, obstacle="no_start")
    assert diagnosis(many_steps=Fools(end=40), labels=rival).findings == ()
    many = Fools(end=40, obstacle="no_start")
    assert names(diagnosis(many_steps=many)) == [("no_start", "high")]


def test_each_finding_is_given_once_with_its_highest_severity():
    probes = {role: Fools(end=40, obstacle="no_gradient") for role in ("more_steps", "restarts")}
    found = diagnosis(many_steps=Fools(end=40, obstacle="no_gradient"), **probes)
    assert names(found) == [("no_gradient", "high")]


# --- with a report -------------------------------------------------------------------------------


def test_the_figure_of_a_report_decides_about_the_severity():
    many, scores = Fools(end=40), Fools(end=60, steps=0)
    for end, severity, more in (
        (60, "low", []), (80, "low", []),
        (57, "medium", [("stronger_attack_found", "medium")]),
        (40, "high", [("stronger_attack_found", "high")]),
        (0, "high", [("stronger_attack_found", "high")]),
    ):  # fmt: skip
        found = diagnosis(reported(Fools(end=end, steps=1)), many_steps=many, scores=scores)
        assert sorted(names(found)) == sorted([("scores_beat_gradients", severity), *more])
        assert found.figure == rob.Rate(N - end, N)
        known = "The report counts all of them as fooled already." in str(found).replace(
            "\n    ", " "
        )
        assert known is (severity == "low")


def test_a_report_that_compares_attacks_itself():
    report = reported(Fools(end=40), HopSkipJump(end=60, steps=0))
    found = diagnosis(report, many_steps=Fools(end=40), scores=Fools(end=60, steps=0))
    assert names(found) == [("labels_beat_gradients", "high"), ("scores_beat_gradients", "low")]


def test_the_probes_may_undercut_a_report():
    report = reported(Fools(end=30))
    found = diagnosis(report, many_steps=Fools(begin=20, end=45))
    (finding,) = found.findings
    assert (finding.name, finding.severity) == ("stronger_attack_found", "high")
    assert finding.evidence == {"inputs": 15, "total": N}
    assert "The robust accuracy is at most 55.00 %." in finding.message
    assert diagnosis(report, many_steps=Fools(end=30)).findings == ()


def test_findings_of_the_report_are_included():
    report = reported(Fools(end=40, obstacle="success_lost"))
    same = Fools(end=40, obstacle="success_lost")
    assert names(diagnosis(report, many_steps=same)) == [("last_iterate_returned", "high")]
    settled = diagnosis(report, many_steps=Fools(end=40))  # which failed in many steps
    assert names(settled) == [("last_iterate_returned", "low")]


def test_a_report_on_other_inputs():
    with pytest.raises(
        ValueError, match=r"`report` must be on the same inputs .* 100, got one on 50"
    ):
        diagnosis(reported(Fools(end=3), n=50), many_steps=Fools(end=40))


def test_a_report_without_the_budget():
    wanted = "`report` must have the budget of the probes, linf 0.1, or a minimum-norm attack in"
    for other in ({"norm": "l2"}, {"eps": 0.2}, {"norm": "l1", "eps": None}):
        with pytest.raises(ValueError, match=wanted):
            diagnosis(reported(Fools(end=3, **other)), many_steps=Fools(end=40))
    both = reported(Fools(end=3, norm="l2"), Fools(end=40))
    assert diagnosis(both, many_steps=Fools(end=40)).figure == rob.Rate(60, N)
    nearest = reported(Fools(end=40, eps=None))
    assert diagnosis(nearest, many_steps=Fools(end=40)).figure == rob.Rate(60, N)


def test_other_clean_predictions_and_other_types_of_reports():
    report = reported(Fools(end=40))
    prediction = torch.where(torch.arange(N) > 3, report.inputs.prediction, 1)
    inputs = dataclasses.replace(report.inputs, prediction=prediction)
    other = dataclasses.replace(report, inputs=inputs)
    with pytest.raises(ValueError, match="with other clean predictions for 4 of 100 inputs"):
        diagnosis(other, many_steps=Fools(end=40))
    with pytest.raises(TypeError, match="`report` must be the report of an evaluation, got str"):
        diagnosis("report", many_steps=Fools(end=40))


def test_data_in_another_order_each_time():
    net, x = convnet(), images(40)
    y = answers(net, x)
    shuffled = DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)
    both = {"many_steps": attacks.PGD(eps=0.05, steps=2), "one_step": attacks.FGSM(eps=0.05)}
    with pytest.raises(ValueError, match="`x` must come in the same order each time"):
        rob.diagnose(net, shuffled, probes=both)
    kept = DataLoader(TensorDataset(x, y), batch_size=8)
    assert set(rob.diagnose(net, kept, probes=both).outcomes) == set(both)


def test_the_order_shows_in_labels_too():
    class Turns:
        """A batch whose labels change at each read."""

        labels = torch.arange(4) % 2

        def __iter__(self):
            self.labels = (self.labels + 1) % 2
            yield torch.zeros(4, 1), self.labels

    both = {"many_steps": Fools(end=40), "one_step": Fools(end=30)}
    with pytest.raises(ValueError, match="`x` must come in the same order each time"):
        rob.diagnose(Sure(), Turns(), probes=both)


def test_a_report_on_other_inputs_of_the_same_number():
    x, y = data(N)
    report = reported(Fools(end=40))
    moved = rob.evaluate(Sure(), x + torch.eye(N, x[0].numel()).view_as(x) / 64, y,
                         attacks=[Fools(end=40)])  # fmt: skip
    other = dataclasses.replace(report, inputs=moved.inputs)
    different = int((report.inputs.sha256 != moved.inputs.sha256).any(0).sum())
    assert 0 < different <= x[0].numel()
    with pytest.raises(ValueError, match=f"one with {different} other ones of {N}"):
        diagnosis(other, many_steps=Fools(end=40))


def test_one_probe_that_cannot_be_run_is_in_the_singular():
    class Detached(nn.Module):
        def forward(self, x):
            return net(x).detach()

    net, x = convnet().eval(), images(8)
    probes = {
        "many_steps": attacks.PGD(eps=0.05, steps=2),
        "scores": attacks.Square(eps=0.05, max_queries=5),
    }
    found = rob.diagnose(Detached(), x, answers(net, x), probes=probes)
    messages = [finding.message for finding in found.findings if finding.name == "no_gradient"]
    assert any("so 1 probe could not be run: many_steps." in message for message in messages)


def test_a_single_output_in_0_1_is_found_by_the_first_batch():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 1), torch.nn.Sigmoid())
    x = images(64)
    y = (net(x) > 0.5).long().flatten()
    found = rob.diagnose(net, x, y, probes={"many_steps": attacks.PGD(eps=0.001, steps=2)})
    assert "probabilities" in names_only(found)


def test_one_hot_labels_are_not_called_probabilities():
    class Labels(nn.Module):
        def forward(self, x):
            return nn.functional.one_hot(net(x).argmax(1), 3).float() + 0 * x.sum()

    net, x = convnet().eval(), images(64)
    y = answers(net, x)
    found = rob.diagnose(Labels(), x, y, probes={"many_steps": attacks.PGD(eps=0.01, steps=2)})
    assert "scores_are_labels" in names_only(found)
    assert "probabilities" not in names_only(found)


def test_an_error_of_an_attack_is_not_a_missing_output():
    class Broken(Fools):
        def run(self, model, x, y):
            return None + 1

    with pytest.raises(TypeError, match="unsupported operand"):
        diagnosis(many_steps=Fools(end=40), scores=Broken(end=1))


def names_only(found):
    return [finding.name for finding in found.findings]


# --- probes that are left out --------------------------------------------------------------------


def test_probes_that_cannot_attack_the_model_are_left_out():
    forest = advkit.CallableClassifier(
        lambda x: torch.tensor([[0.9, 0.1]]).expand(len(x), 2), num_classes=2
    )
    found = diagnosis(model=forest, many_steps=Refuses(), scores=Fools(end=40, steps=0))
    assert found.findings == ()
    assert list(found.outcomes) == ["scores"]
    assert found.left_out == {"many_steps": "`model` must have gradients, got none."}
    assert "many_steps was left out: `model` must have gradients" in str(found)


def test_a_module_that_torch_cannot_differentiate():
    found = diagnosis(many_steps=Refuses(), one_step=Refuses(), scores=Fools(end=40, steps=0))
    assert names(found) == [("no_gradient", "high")]
    assert found.findings[0].evidence == {"probes": 2}
    assert "2 probes could not be run: many_steps, one_step." in found.findings[0].message


def test_no_probe_can_attack():
    with pytest.raises(TypeError, match="must have gradients, got none"):
        diagnosis(many_steps=Refuses(), scores=Refuses())


def test_other_errors_are_raised():
    for error in (ValueError, RuntimeError):
        with pytest.raises(error, match="must have gradients"):
            diagnosis(many_steps=Refuses(error=error), scores=Fools(end=40))


@pytest.mark.parametrize(("classes", "fires"), [(2, True), (4, False)])
def test_dlr_on_few_classes(classes, fires):
    net, x = nn.Linear(6, classes), torch.rand(20, 6)
    probes = {
        "many_steps": attacks.PGD(eps=1e-6, loss="dlr", steps=3),
        "one_step": attacks.FGSM(eps=1e-6),
    }
    found = rob.diagnose(net, x, answers(net, x), probes=probes)
    assert [f.name for f in found.findings] == (["too_few_classes"] if fires else [])
    assert list(found.left_out) == (["many_steps"] if fires else [])


# --- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("probes", "error", "message"),
    [
        ({}, ValueError, "`probes` must hold at least one attack, got none"),
        ([attacks.PGD(eps=0.1)], TypeError, "`probes` must be a dictionary of attacks by role"),
        ({"many_step": Fools(end=3)}, ValueError, "must be one of .* got 'many_step'"),
        ({"many_steps": attacks.PGD}, TypeError, r"probes\['many_steps'\].* must be an attack"),
        ({"many_steps": 3}, TypeError, "must be an attack"),
    ],
)
def test_bad_probes(probes, error, message):
    with pytest.raises(error, match=message):
        rob.diagnose(Sure(), *data(), probes=probes)


def test_data_that_can_be_read_once():
    x, y = data()
    with pytest.raises(TypeError, match="`x` must be data that can be read again"):
        rob.diagnose(Sure(), iter([(x, y)]), probes={"many_steps": Fools(end=3)})


def test_bad_inputs():
    x, y = data()
    for bad, error in (((x, y[:5]), ValueError), ((2 + x, y), ValueError), ((x, None), Exception)):
        with pytest.raises(error):
            rob.diagnose(Sure(), *bad, probes={"many_steps": Fools(end=3)})
    with pytest.raises(TypeError, match="`model` must be"):
        rob.diagnose("net", x, y, probes={"many_steps": Fools(end=3)})


def test_batches_and_a_list_of_them():
    x, y = data()
    made = {"many_steps": Fools(end=40), "scores": Fools(end=60, steps=0)}
    whole = rob.diagnose(Sure(), x, y, probes=made)
    listed = rob.diagnose(Sure(), [(x[:30], y[:30]), (x[30:], y[30:])], probes=made)
    small = rob.diagnose(Sure(), x, y, probes=made, batch_size=7)
    assert whole.findings == listed.findings == small.findings


def test_inputs_that_are_misclassified_already():
    x, y = data()
    y[90:] = 1
    made = {"many_steps": Fools(end=40), "scores": Fools(end=100, steps=0)}
    found = rob.diagnose(Sure(), x, y, probes=made)
    assert found.findings[0].evidence["inputs"] == 50
    assert found.findings[0].evidence["attacked"] == 90
    assert found.clean_accuracy == rob.Rate(90, N)


# --- output --------------------------------------------------------------------------------------


def test_text_and_json(tmp_path):
    made = {"many_steps": Fools(end=40), "scores": Fools(end=60, steps=0),
            "labels": Fools(end=0, eps=None, steps=0)}  # fmt: skip
    found = diagnosis(reported(Fools(end=50)), **made)
    text = str(found)
    assert text.splitlines()[:3] == [
        "TorchClassifier(Sure, bounds=(0, 1))",
        "clean accuracy 100.00 % (100 of 100)",
        "robust accuracy in the report 50.00 % (50 of 100)",
    ]
    assert found.verdict == "Verdict: do not believe these figures (2 high findings)."
    assert found.verdict in text
    assert "at any distance" in text
    assert max(map(len, text.splitlines())) <= 100
    plain = json.loads(found.save_json(tmp_path / "d.json").read_text())
    assert plain == json.loads(json.dumps(found.to_dict()))
    assert plain["verdict"] == found.verdict
    assert [f["name"] for f in plain["findings"]] == [f.name for f in found.findings]
    assert list(plain["probes"]) == list(made)
    assert plain["robust_accuracy_in_report"]["count"] == 50
    alone = diagnosis(many_steps=Fools(end=40))
    assert alone.to_dict()["robust_accuracy_in_report"] is None
    assert "in the report" not in str(alone)


def test_warnings_are_findings_instead():
    """No warning is raised, and the model stays as it was."""
    net, x = convnet(), images(32)
    y = answers(net, x)
    softmax = nn.Sequential(net, nn.Softmax(1)).eval()
    calls = int(net.calls)
    probes = attacks.probes(0.02)
    del probes["labels"]
    probes["scores"] = attacks.Square(eps=0.02, max_queries=20)
    found = rob.diagnose(softmax, x, y, probes=probes)
    assert "probabilities" in [f.name for f in found.findings]
    assert int(net.calls) == calls


def test_dead_gradients_and_the_unbounded_attack():
    dead = nn.Sequential(nn.Hardtanh(2, 3), Halfspace(torch.ones(6), b=-9.0)).eval()
    x = torch.rand(20, 6)
    probes = {"many_steps": attacks.PGD(eps=0.05, steps=12),
              "unbounded": attacks.PGD(eps=1.0, steps=12)}  # fmt: skip
    found = rob.diagnose(dead, x, answers(dead, x), probes=probes)
    assert {"no_gradient", "unbounded_attack_fails"} <= {f.name for f in found.findings}
