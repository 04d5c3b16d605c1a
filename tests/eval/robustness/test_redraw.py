"""Pictures of chosen rows of the records, made again."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import advkit
from advkit import attacks
from advkit import eval as rob
from advkit.eval.units.examples import Examples
from tests.second_inputs import data as with_second_inputs
from tests.toys import answers, convnet, images

N = 14
FGSM = attacks.FGSM(eps=0.1)
EACH = attacks.PGD(eps=torch.linspace(0.02, 0.2, N), steps=3)
NEAREST = attacks.DeepFool(steps=20)
ATTACKS = [FGSM, EACH, NEAREST, attacks.Suite(eps=0.1)]


@pytest.fixture(scope="module")
def subject():
    net, x = convnet(), images(N)
    y = answers(net, x)
    y[3] = (y[3] + 1) % 3
    return net, x, y


@pytest.fixture(scope="module")
def report(subject):
    return rob.evaluate(*subject, attacks=ATTACKS, batch_size=5)


def same(one: Examples, other: Examples):
    names = [field.name for field in dataclasses.fields(Examples)]
    return all(torch.allclose(getattr(one, n).double(), getattr(other, n).double()) for n in names)


def test_the_nearest_ones_are_those_of_the_evaluation(report, subject, tmp_path):
    report.save(tmp_path)
    drawn = rob.redraw(rob.load_report(tmp_path), *subject, attacks=ATTACKS)
    for found, wanted in zip(drawn.outcomes, report.outcomes, strict=True):
        assert 0 < len(found.examples) <= 6
        assert same(found.examples, wanted.examples)
    assert drawn.digest == report.digest


@pytest.mark.parametrize("attack", range(len(ATTACKS)))
def test_any_row_of_the_records(report, subject, attack):
    net, x, y = subject
    outcome = report.outcomes[attack]
    fooled = report.inputs.index[outcome.success].tolist()
    wanted = [fooled[-1], 3, fooled[0]]  # 3 is mislabeled without an attack
    drawn = rob.redraw(report, net, x, y, attacks=[ATTACKS[attack]], indices=wanted)
    examples = drawn.outcomes[attack].examples
    assert examples.index.tolist() == [fooled[-1], fooled[0]]
    assert examples.x.equal(x[examples.index])
    assert examples.y.equal(y[examples.index])
    assert examples.predicted.equal(outcome.prediction[examples.index])
    assert torch.allclose(examples.distance, outcome.distance[examples.index], rtol=1e-4)
    others = [o for number, o in enumerate(drawn.outcomes) if number != attack]
    kept = [o for number, o in enumerate(report.outcomes) if number != attack]
    assert all(one is other for one, other in zip(others, kept, strict=True))


def test_an_input_that_was_not_fooled_has_none(report, subject):
    drawn = rob.redraw(report, *subject, attacks=[FGSM], indices=[3])
    assert drawn.outcomes[0].examples is None


def test_a_data_set(report, subject):
    net, x, y = subject
    drawn = rob.redraw(report, net, TensorDataset(x, y), attacks=[FGSM], indices=[13, 0])
    wanted = rob.redraw(report, net, x, y, attacks=[FGSM], indices=[13, 0])
    assert same(drawn.outcomes[0].examples, wanted.outcomes[0].examples)


def test_a_model_that_reads_second_inputs():
    net, x, y = with_second_inputs(12)
    with advkit.given_rows(range(12)):
        report = rob.evaluate(net, x, y, attacks=[FGSM], batch_size=5)
        drawn = rob.redraw(report, net, x, y, attacks=[FGSM])
    assert same(drawn.outcomes[0].examples, report.outcomes[0].examples)


class TestWhatIsRefused:
    def test_other_weights(self, report, subject):
        net, x, y = subject
        other = copy.deepcopy(net)
        with torch.no_grad():
            next(other.parameters()).view(-1)[0] += 1e-3
        with pytest.raises(ValueError, match="`model` must be the model of the report, got one wi"):
            rob.redraw(report, other, x, y, attacks=[FGSM])

    def test_other_results(self, report, subject):
        net, x, y = subject

        class Turned(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = net

            def forward(self, x):
                return self.net(x).roll(1, 1) if x.requires_grad else self.net(x)

        unknown = dataclasses.replace(report.provenance, weights=None)
        changed = dataclasses.replace(report.outcomes[0], prediction=report.outcomes[0].stage)
        other = dataclasses.replace(
            report, provenance=unknown, outcomes=(changed, *report.outcomes[1:])
        )
        with pytest.raises(ValueError, match="`model` must be the model of the report, got one fo"):
            rob.redraw(other, net, x, y, attacks=[FGSM])

    def test_another_attack(self, report, subject):
        for other in (attacks.FGSM(eps=0.2), attacks.PGD(eps=EACH.eps / 2, steps=3)):
            with pytest.raises(ValueError, match="`attacks` must be attacks of the report, got "):
                rob.redraw(report, *subject, attacks=[other])

    def test_other_inputs(self, report, subject):
        net, x, y = subject
        index = int(report.outcomes[0].success.nonzero()[0])
        with pytest.raises(ValueError, match=f"`x` must hold the inputs .* for input {index}"):
            rob.redraw(report, net, x + 1e-6, y, attacks=[FGSM], indices=[index])
        with pytest.raises(ValueError, match=f"another label for input {index}"):
            rob.redraw(report, net, x, (y + 1) % 3, attacks=[FGSM], indices=[index])
        last = int(report.outcomes[0].success.nonzero()[-1])
        with pytest.raises(ValueError, match=f"for input {last}, or none"):
            rob.redraw(report, net, x[:last], y[:last], attacks=[FGSM], indices=[last])

    def test_wrong_arguments(self, report, subject):
        net, x, y = subject
        with pytest.raises(ValueError, match="`indices` must be numbers of inputs of the report"):
            rob.redraw(report, net, x, y, attacks=[FGSM], indices=[N])
        with pytest.raises(TypeError, match="`indices` must be an int"):
            rob.redraw(report, net, x, y, attacks=[FGSM], indices=[0.5])
        with pytest.raises(TypeError, match="`report` must be a Report, got str"):
            rob.redraw("report", net, x, y, attacks=[FGSM])
        with pytest.raises(
            TypeError, match="`x` must be a tensor or an indexed data set, got list"
        ):
            rob.redraw(report, net, [(x, y)], attacks=[FGSM])
