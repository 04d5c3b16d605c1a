"""Evaluations of many batches: work per batch does not grow, and reports describe their moment."""

import dataclasses
import weakref
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from advkit import attacks, detectors
from advkit import eval as rob
from advkit.core.batch_recorder import BatchRecorder
from advkit.eval.robustness import evaluation_recorder
from advkit.eval.robustness.report import Report
from tests.eval.evaluated import plain
from tests.toys import answers

GROWTH = "the work of an evaluation grows no faster than its batches"
MOMENT = "a report of a running evaluation describes the moment when it was given"


class Joined:
    """How many elements are joined, and how many tensors and arrays."""

    def __init__(self, monkeypatch):
        self.elements = self.parts = 0
        for library, name in ((torch, "cat"), (torch, "stack"), (np, "concatenate")):
            monkeypatch.setattr(library, name, self.counting(getattr(library, name)))

    def counting(self, join):
        def counted(parts, *args, **settings):
            parts = tuple(parts)
            self.parts += len(parts)
            self.elements += sum(
                part.numel() if isinstance(part, torch.Tensor) else np.size(part) for part in parts
            )
            return join(parts, *args, **settings)

        return counted


@pytest.fixture
def joined(monkeypatch):
    return Joined(monkeypatch)


def net_and_data(n):
    torch.manual_seed(0)
    net, x = nn.Linear(4, 3), torch.rand(n, 4)
    net.bias.data += 5  # no batch of one looks like probabilities
    return net, x, answers(net, x)


FGSM = attacks.FGSM(eps=0.02)
DATA = {"batch_size": 1}
LONG = {
    "accuracy": lambda net, x, y: rob.accuracy(net, x, y, **DATA),
    "robust_accuracy": lambda net, x, y: rob.robust_accuracy(net, x, y, attacks=[FGSM], **DATA),
    "evaluate": lambda net, x, y: rob.evaluate(
        net, x, y, attacks=[FGSM, attacks.DeepFool(steps=2), attacks.FGM(eps=0.1)], **DATA
    ),
    "evaluate_stream": lambda net, x, y: [
        0 for _ in rob.evaluate_stream(net, x, y, attacks=[FGSM], **DATA)
    ],
    "evaluate_stream, all kept": lambda net, x, y: list(
        rob.evaluate_stream(net, x, y, attacks=[FGSM], **DATA)
    ),
    "benchmark": lambda net, x, y: rob.benchmark(net, x, y, attacks=[FGSM], rounds=1, **DATA),
    "transfer_matrix": lambda net, x, y: rob.transfer_matrix([net], None, FGSM, x, y, **DATA),
    "collect": lambda net, x, y: detectors.collect([net], [FGSM], x, y, **DATA),
}


@pytest.mark.parametrize("name", LONG)
def test_what_is_joined_grows_as_the_batches(joined, tally, name):
    found = []
    for batches in (20, 60):
        job = LONG[name]
        data = net_and_data(batches)
        before = joined.elements, joined.parts
        job(*data)
        found.append((joined.elements - before[0], joined.parts - before[1]))
    (elements, parts), (more_elements, more_parts) = found
    with tally(GROWTH).trial(name):
        assert more_elements <= 3.5 * elements + 60  # the first batches have fewer pictures
        assert more_parts <= 3.5 * parts + 60


@pytest.fixture
def built(monkeypatch):
    """One entry for each report that was built."""
    calls = []

    def counted(**values):
        calls.append(len(values["inputs"]))
        return Report(**values)

    monkeypatch.setattr(evaluation_recorder, "Report", counted)
    return calls


def test_only_a_report_that_is_read_is_built(tally, built):
    promise = tally("a report of a running evaluation is built when it is first read")
    net, x, y = net_and_data(30)
    with promise.trial("evaluate builds one"):
        report = rob.evaluate(net, x, y, attacks=[FGSM], batch_size=1)
        assert built == []
        assert len(report.clean) == len(report.not_finite) == 30
        assert built == [30]
    reports = []
    built.clear()
    with promise.trial("a stream that is not read builds none"):
        reports += rob.evaluate_stream(net, x, y, attacks=[FGSM], batch_size=1)
        assert len(reports) == 30
        assert all(isinstance(report, Report) for report in reports)
        assert built == []
    with promise.trial("reading builds once"):
        assert str(reports[9])
        assert reports[9].worst_case.total == 10
        assert reports[19].clean_accuracy.total == 20
        assert built == [10, 20]


def test_a_report_that_is_dropped_is_freed(tally):
    net, x, y = net_and_data(10)
    alive = []
    promise = tally("a report of a running evaluation that is dropped is freed")
    for read in (False, True):
        with promise.trial(f"read: {read}"):
            alive.clear()
            for report in rob.evaluate_stream(net, x, y, attacks=[FGSM], batch_size=1):
                assert sum(ref() is not None for ref in alive) <= 1  # the loop holds the last
                alive.append(weakref.ref(report))
                if read:
                    assert float(report.clean_accuracy) == 1


def test_a_report_does_not_keep_the_attacks():
    net, x, y = net_and_data(3)
    attack = attacks.FGSM(eps=0.02)
    stream = rob.evaluate_stream(net, x, y, attacks=[attack], batch_size=1)
    reports = [next(stream), next(stream)]
    kept = weakref.ref(attack)
    stream.close()
    del attack, stream
    assert kept() is None  # descriptions of the attacks are enough
    assert [str(report).count("on 1 input\n") for report in reports] == [1, 0]
    assert [len(report.clean) for report in reports] == [1, 2]


def same_examples(one, other):
    pairs = [(a.examples, b.examples) for a, b in zip(one.outcomes, other.outcomes, strict=True)]
    return all(
        a is b is None or (torch.equal(a.x_adv, b.x_adv) and torch.equal(a.y, b.y))
        for a, b in pairs
    )


def test_a_report_describes_its_moment_whenever_it_is_read(tally):
    net, x, y = net_and_data(40)
    y[::7] = (y[::7] + 1) % 3
    tried = [attacks.FGSM(eps=0.3), attacks.DeepFool(steps=5)]
    late = list(rob.evaluate_stream(net, x, y, attacks=tried, batch_size=3))
    promise = tally(MOMENT)
    stream = rob.evaluate_stream(net, x, y, attacks=tried, batch_size=3)
    for number, early in enumerate(stream):
        with promise.trial(f"after {number + 1} batches"):
            said, seconds = plain(early), [outcome.seconds for outcome in early.outcomes]
            assert plain(late[number]) == said
            assert same_examples(early, late[number])
            part = x[: 3 * number + 3], y[: 3 * number + 3]
            alone = rob.evaluate(net, *part, attacks=tried, batch_size=3)
            assert torch.equal(alone.outcomes[0].robust, early.outcomes[0].robust)
            assert same_examples(alone, early)
            assert [outcome.seconds for outcome in early.outcomes] == seconds
    for before, after in pairwise(late):
        for a, b in zip(before.outcomes, after.outcomes, strict=True):
            assert a.seconds < b.seconds


@dataclasses.dataclass(frozen=True)
class Interrupts:
    """FGSM that is interrupted in the fourth batch, before or after it has attacked."""

    late: bool
    norm: str = "linf"
    eps: float = 0.3

    def run(self, model, x, y=None, *, target=None):
        found = attacks.FGSM(eps=self.eps).run(model, x, y) if self.late or x[0, 0] < 0.9 else None
        if x[0, 0] >= 0.9:
            raise KeyboardInterrupt
        return found

    def __call__(self, model, x, y=None, *, target=None):
        return self.run(model, x, y).x_adv


@pytest.mark.parametrize("late", [False, True])
def test_an_interrupt_leaves_a_report_on_whole_batches(tally, late):
    net, x, _ = net_and_data(30)
    x[:, 0] = 0.5
    x[15, 0] = 0.95
    y = answers(net, x)
    tried = [attacks.FGSM(eps=0.3), Interrupts(late), attacks.FGM(eps=0.3)]
    report = None
    with pytest.raises(KeyboardInterrupt):
        for report in rob.evaluate_stream(net, x, y, attacks=tried, batch_size=5):  # noqa: B007
            pass
    with tally(MOMENT).trial(f"interrupted, late: {late}"):
        assert len(report.clean) == 15
        assert {len(outcome.robust) for outcome in report.outcomes} == {15}
        assert {len(noise.robust) for noise in report.noise} == {15}
        expected = rob.evaluate(net, x[:15], y[:15], attacks=[tried[0]], batch_size=5)
        assert torch.equal(report.outcomes[0].robust, expected.outcomes[0].robust)
        assert same_examples(dataclasses.replace(report, outcomes=report.outcomes[:1]), expected)


def test_a_recorder_copies_each_sample_a_few_times(monkeypatch):
    capacities, empty = [], torch.empty
    monkeypatch.setattr(
        torch,
        "empty",
        lambda *shape, **options: capacities.append(shape) or empty(*shape, **options),
    )
    recorder, one = BatchRecorder(), {"a": torch.zeros(2)}
    for _ in range(10_000):
        recorder.update(one)
    sizes = [shape[-1] for shape in capacities]
    assert sum(sizes) <= 4 * 20_000
    assert len(sizes) <= 8
