"""Callbacks of an evaluation: what they are told, when, and what they cannot change."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from advkit import attacks
from advkit import eval as rob
from tests.eval.evaluated import Net, data, plain
from tests.eval.made_up import Finds, Sure

N = 60


def made():
    """Attacks whose examples count within the budgets of each other."""
    eps = torch.linspace(0.01, 0.2, N)
    return [
        attacks.FGSM(eps=0.05), attacks.PGD(eps=0.05, steps=2), attacks.FGSM(eps=0.1),
        attacks.PGD(eps=eps, steps=3), attacks.FGSM(eps=eps), attacks.FGSM(eps=eps / 2),
        attacks.DeepFool(steps=5), attacks.FGM(eps=0.2), attacks.FAB(norm="linf", steps=3),
    ]  # fmt: skip


class Notes:
    """A callback that needs no base class."""

    def __init__(self):
        self.records, self.reports = [], []

    def on_chunk(self, record):
        assert not self.reports
        self.records.append(record)

    def on_report(self, report):
        self.reports.append(report)


def evaluate(notes, attacks_=None, net=None, **settings):
    tried = made() if attacks_ is None else attacks_
    return rob.evaluate(
        net or Net(), *data(N), attacks=tried, batch_size=13, callbacks=[notes], **settings
    )


def check_last(record, report):
    """A record after all inputs has the figures of the report."""
    assert record.inputs == record.total == len(report.inputs)
    assert record.clean_accuracy == report.clean_accuracy
    assert record.robust_accuracy == report.worst_cases
    outcomes = report.outcomes
    assert record.forward == sum(int(o.forward.sum()) for o in outcomes)
    assert record.backward == sum(int(o.backward.sum()) for o in outcomes)
    assert record.seconds == pytest.approx(sum(o.seconds for o in outcomes))


def test_each_record_has_the_figures_of_the_inputs_so_far():
    notes = Notes()
    stream = rob.evaluate_stream(Net(), *data(N), attacks=made(), batch_size=13, callbacks=[notes])
    for number, report in enumerate(stream, 1):
        record = notes.records[-1]
        assert (record.chunk, len(notes.records)) == (number, number)
        assert record.inputs == len(report.inputs)
        assert record.clean_accuracy == report.clean_accuracy
        assert record.robust_accuracy == report.worst_cases
    assert [record.inputs for record in notes.records] == [13, 26, 39, 52, 60]
    check_last(notes.records[-1], report)
    (last,) = notes.reports
    assert last.digest == report.digest


def test_results_do_not_depend_on_callbacks():
    assert plain(evaluate(Notes())) == plain(
        rob.evaluate(Net(), *data(N), attacks=made(), batch_size=13)
    )


def test_nothing_is_computed_without_callbacks(monkeypatch):
    def fails(*_):
        raise AssertionError

    monkeypatch.setattr("advkit.eval.robustness.callbacks.RunningResults.update", fails)
    rob.evaluate(Net(), *data(N), attacks=made(), batch_size=13)
    with pytest.raises(AssertionError):
        evaluate(Notes())


def test_the_order_is_that_of_the_inputs_with_workers():
    notes = Notes()
    with ThreadPoolExecutor(2) as executor:
        report = evaluate(notes, executor=executor, chunk_size=13)
    assert [record.inputs for record in notes.records] == [13, 26, 39, 52, 60]
    check_last(notes.records[-1], report)


def test_a_resumed_evaluation_tells_of_the_chunks_in_the_store(tmp_path):
    first, second = Notes(), Notes()
    settings = {"store": tmp_path, "chunk_size": 13}
    evaluate(first, **settings)
    report = evaluate(second, **settings)
    assert [r.robust_accuracy for r in first.records] == [r.robust_accuracy for r in second.records]
    check_last(second.records[-1], report)


def test_a_shard_tells_of_its_own_inputs(tmp_path):
    notes = Notes()
    report = evaluate(notes, store=tmp_path, chunk_size=13, shard=(1, 2))
    check_last(notes.records[-1], report)
    assert notes.records[-1].total == 26
    assert notes.reports[0].digest == report.digest


def test_a_stream_of_unknown_length():
    x, y = data(20)
    notes = Notes()
    batches = iter([(x[:12], y[:12]), (x[12:], y[12:])])
    rob.evaluate(Net(), batches, attacks=[attacks.FGSM(eps=0.1)], callbacks=[notes])
    assert [(r.inputs, r.total) for r in notes.records] == [(12, None), (20, None)]


def test_an_error_of_a_callback_loses_nothing(tmp_path):
    class Fails(rob.Callback):
        def on_chunk(self, record):
            if record.chunk == 3:
                raise ConnectionError("the tracker is gone")

    with pytest.raises(ConnectionError) as caught:
        evaluate(Fails(), store=tmp_path, chunk_size=13)
    assert len(caught.value.report.inputs) == 26
    notes = Notes()
    report = evaluate(notes, store=tmp_path, chunk_size=13)
    assert report.digest == evaluate(Notes()).digest


def test_an_error_in_the_evaluation_gives_no_report():
    class Fails(Finds):
        def run(self, model, x, y=None, *, target=None):
            if (x == 0.75).any():
                raise RuntimeError
            return super().run(model, x, y)

    notes = Notes()
    with pytest.raises(RuntimeError):
        rob.evaluate(
            Sure(), torch.arange(4)[:, None] / 4, torch.zeros(4).long(), attacks=[Fails()],
            batch_size=1, callbacks=[notes],
        )  # fmt: skip
    assert (len(notes.records), notes.reports) == (3, [])


@pytest.mark.parametrize("wrong", [[object()], [Notes], [print], "ab", 3, None, Notes()])
def test_what_is_no_callback(wrong):
    with pytest.raises(TypeError, match="`callbacks` must be"):
        rob.evaluate(Net(), *data(N), attacks=made(), callbacks=wrong)
