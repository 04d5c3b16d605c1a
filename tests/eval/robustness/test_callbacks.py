"""Callbacks: order, running rates, errors, stores, shards and executors."""

import dataclasses
import itertools

import pytest
import torch

from advkit import attacks
from advkit import eval as rob
from advkit.eval.robustness import callbacks as module
from advkit.eval.robustness.callbacks import Notifier
from advkit.eval.robustness.running_rates import RunningRates
from tests.eval.evaluated import Net, Stops, data, plain, several
from tests.eval.executors import Shuffled
from tests.eval.made_up import Finds, Sure


class Keeps(rob.Callback):
    """Keeps every record, and the reports."""

    def __init__(self):
        self.records, self.reports = [], []

    def on_chunk(self, record):
        assert not self.reports
        self.records.append(record)

    def on_report(self, report):
        self.reports.append(report)


class Duck:
    """Not a subclass of `Callback`; it fails in the chunk with this number."""

    def __init__(self, number=None):
        self.number, self.seen = number, 0

    def on_chunk(self, record):
        self.seen = record.inputs
        if record.chunk == self.number:
            raise LookupError("of the callback")

    def on_report(self, report):
        if self.number == "report":
            raise LookupError("of the callback")


def evaluate(*callbacks, x=None, y=None, **changed):
    x, y = data() if x is None else (x, y)
    given = {"attacks": several(len(x)), "batch_size": 16, **changed}
    return rob.evaluate(Net(), x, y, callbacks=callbacks, **given)


def check_last(record, report):
    """The last record says what the report says."""
    assert record.clean_accuracy == report.clean_accuracy
    assert list(record.worst_cases.items()) == list(report.worst_cases.items())
    assert record.forward == sum(int(outcome.forward.sum()) for outcome in report.outcomes)
    assert record.backward == sum(int(outcome.backward.sum()) for outcome in report.outcomes)
    assert record.inputs == len(report.clean)


def test_each_record_says_what_the_report_of_its_chunks_says():
    keeps = Keeps()
    x, y = data()
    stream = rob.evaluate_stream(Net(), x, y, attacks=several(), batch_size=16, callbacks=[keeps])
    reports = list(stream)
    assert [record.chunk for record in keeps.records] == [0, 1, 2, 3]
    assert [record.chunk_inputs for record in keeps.records] == [16, 16, 16, 12]
    assert {record.total for record in keeps.records} == {60}
    for record, report in zip(keeps.records, reports, strict=True):
        check_last(record, report)
    assert keeps.records[-1].forward > keeps.records[0].forward > 0
    assert keeps.reports == [reports[-1]]
    assert keeps.reports[0] is reports[-1]


def test_the_results_do_not_depend_on_callbacks():
    assert evaluate(Keeps()).digest == evaluate().digest == evaluate(Keeps(), Duck()).digest


def test_nothing_is_computed_without_callbacks(monkeypatch):
    def update(self, *_):
        raise AssertionError("computed")

    monkeypatch.setattr(RunningRates, "update", update)
    evaluate()
    with pytest.raises(AssertionError, match="computed"):
        evaluate(Duck())


@pytest.mark.parametrize(
    "made",
    [
        [Finds(eps=0.5), Finds(1, eps=0.2), Finds(1)],
        [Finds(eps=0.3), Finds(1, eps=0.3 + 1e-9), Finds(1, norm="linf", eps=0.3)],
        [Finds(eps="each"), Finds(1, eps="each"), Finds(eps=0.3)],
        [Finds(eps="each"), Finds(1, eps="other"), Finds(1, eps="each"), Finds(eps="late")],
        [Finds(eps="each"), Finds(eps="late"), Finds(1, eps="late", norm="l1")],
        [Finds(), Finds(1)],
    ],
)
def test_rates_of_several_budgets(made):
    n = 40
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(n, 2, generator=generator)
    y = (torch.arange(n) % 7 == 2).long()  # Sure says 0
    each = torch.rand(n, generator=generator)
    late = torch.where(torch.arange(n) < 30, each, each / 2)  # tells the budgets apart at the end
    radii = {"each": each, "other": each.flip(0), "late": late}
    made = [
        dataclasses.replace(one, eps=radii[one.eps]) if isinstance(one.eps, str) else one
        for one in made
    ]
    keeps = Keeps()
    reports = list(rob.evaluate_stream(Sure(), x, y, attacks=made, batch_size=8, callbacks=[keeps]))
    for record, report in zip(keeps.records, reports, strict=True):
        check_last(record, report)


def test_budgets_of_equal_text_share_the_greatest_radius():
    x = torch.tensor([[0.30000035, 0.9], [0.9, 0.9]])  # within the second radius alone
    made = [Finds(eps=0.3), Finds(eps=0.3000004)]
    keeps = Keeps()
    report = rob.evaluate(Sure(), x, torch.zeros(2).long(), attacks=made, callbacks=[keeps])
    assert keeps.records[-1].worst_cases == {"l2 0.3": rob.Rate(1, 2)}
    check_last(keeps.records[-1], report)


def test_a_norm_that_only_results_tell():
    @dataclasses.dataclass(frozen=True)
    class Unnamed:
        eps: float = 0.5

        def run(self, model, x, y=None, *, target=None):
            return Finds(eps=self.eps).run(model, x, y, target=target)

        def __call__(self, model, x, y=None, *, target=None):
            return x

    keeps = Keeps()
    x, y = torch.rand(9, 2), torch.tensor([1] * 3 + [0] * 6)  # nothing to attack in the first chunk
    report = rob.evaluate(Sure(), x, y, attacks=[Unnamed()], batch_size=3, callbacks=[keeps])
    assert list(keeps.records[-1].worst_cases) == ["l2 0.5"]
    assert [float(record.clean_accuracy) for record in keeps.records[:2]] == [0, 0.5]
    check_last(keeps.records[-1], report)


def test_a_chunk_costs_the_same_at_any_number_of_chunks_before_it(monkeypatch):
    sizes = []
    inside = module.RunningRates._count_robust

    def spy(self, correct):
        sizes.append(len(correct))
        return inside(self, correct)

    monkeypatch.setattr(RunningRates, "_count_robust", spy)
    keeps = Keeps()
    stream = rob.evaluate_stream(
        Net(), *data(), attacks=several(), batch_size=10, callbacks=[keeps]
    )
    unread = list(stream)
    assert sizes == [10] * 6
    assert all("_build" in object.__getattribute__(report, "__dict__") for report in unread)


def test_a_stream_has_no_total_and_empty_batches_no_record():
    keeps = Keeps()
    x, y = data()
    batches = [(x[:0], y[:0]), (x[:20], y[:20]), (x[:0], y[:0]), (x[20:30], y[20:30])]
    report = evaluate(keeps, x=batches, attacks=[attacks.FGSM(eps=0.05)])
    assert [(r.inputs, r.chunk_inputs, r.total) for r in keeps.records] == [
        (20, 20, None), (30, 10, None),
    ]  # fmt: skip
    check_last(keeps.records[-1], report)


@pytest.mark.parametrize(
    "given",
    [5, "name", Keeps(), [Keeps], [object()], [Keeps(), None], {"a": Keeps()}, iter([Keeps()])],
)
def test_anything_else_is_refused_before_any_work(given):
    with pytest.raises(TypeError, match="`callbacks` must be a list of objects with the methods"):
        rob.evaluate_stream(None, None, attacks=several(), callbacks=given, factory=Net)


class TestErrors:
    def test_an_error_in_a_callback_loses_nothing(self, tmp_path):
        keeps = Keeps()
        with pytest.raises(LookupError, match="of the callback") as caught:
            evaluate(keeps, Duck(number=1), store=tmp_path, chunk_size=16)
        assert len(caught.value.report.clean) == 32  # with the chunk of the error
        assert [record.chunk for record in keeps.records] == [0, 1]
        assert keeps.reports == []
        assert len(list((tmp_path / "units").iterdir())) >= 8

    def test_an_error_in_on_report_has_the_complete_report(self):
        with pytest.raises(LookupError) as caught:
            evaluate(Duck(number="report"))
        assert len(caught.value.report.clean) == 60

    def test_a_stream_has_yielded_the_report_before_an_error(self):
        stream = rob.evaluate_stream(
            Net(), *data(), attacks=several(), batch_size=16, callbacks=[Duck(number=1)]
        )
        reports = []
        with pytest.raises(LookupError):
            reports.extend(stream)
        assert [len(report.clean) for report in reports] == [16, 32]

    def test_units_in_flight_are_kept(self, tmp_path):
        pool = Shuffled()
        with pytest.raises(LookupError):
            evaluate(Duck(number=0), store=tmp_path, chunk_size=16, executor=pool)
        pool.shutdown()
        again = evaluate(Keeps(), store=tmp_path, chunk_size=16)
        assert plain(again) == plain(evaluate())

    def test_workers_stop_after_an_error_in_a_callback(self):
        cancelled = []

        class Watched(Shuffled):
            def submit(self, *args, **kwargs):
                future = super().submit(*args, **kwargs)
                cancel = future.cancel
                future.cancel = lambda: cancelled.append(future) or cancel()
                return future

        pool = Watched()
        with pytest.raises(LookupError) as caught:
            evaluate(Duck(number=0), chunk_size=16, executor=pool)
        assert cancelled  # at once, although the traceback holds the frames of the evaluation
        assert caught.tb
        pool.shutdown()

    def test_no_report_after_an_interrupt(self):
        x, _ = data()
        x[40, 0] = 2 / 3
        keeps = Keeps()
        with pytest.raises(KeyboardInterrupt):
            evaluate(keeps, x=x, y=Net()(x).argmax(1), attacks=[Stops()])
        assert [record.inputs for record in keeps.records] == [16, 32]
        assert keeps.reports == []

    def test_no_report_of_a_stream_that_is_left(self):
        keeps = Keeps()
        stream = rob.evaluate_stream(
            Net(), *data(), attacks=several(), batch_size=16, callbacks=[keeps]
        )
        next(stream)
        assert keeps.records == []  # it gets the chunk when the next report is requested
        next(stream)
        stream.close()
        assert [record.chunk for record in keeps.records] == [0]
        assert keeps.reports == []


def without_time(records):
    return [dataclasses.replace(record, seconds=0) for record in records]


class TestStoresAndWorkers:
    def test_a_resumed_evaluation_has_the_chunks_of_the_store(self, tmp_path):
        first, second, plainly = Keeps(), Keeps(), Keeps()
        settings = {"store": tmp_path, "chunk_size": 16}
        with pytest.raises(LookupError):
            evaluate(first, Duck(number=2), **settings)
        report = evaluate(second, **settings)
        evaluate(plainly)
        assert without_time(second.records) == without_time(plainly.records)
        assert without_time(second.records[:3]) == without_time(first.records)
        assert second.reports == [report]

    def test_workers_do_not_change_the_order(self):
        pool, plainly, keeps = Shuffled(), Keeps(), Keeps()
        report = evaluate(keeps, executor=pool, chunk_size=16)
        pool.shutdown()
        evaluate(plainly)
        assert pool.most > 1
        assert without_time(keeps.records) == without_time(plainly.records)
        check_last(keeps.records[-1], report)

    def test_a_shard_has_its_own_chunks_and_report(self, tmp_path):
        shards = [Keeps(), Keeps()]
        for number, keeps in enumerate(shards):
            report = evaluate(keeps, store=tmp_path, chunk_size=16, shard=(number, 2))
            check_last(keeps.records[-1], report)
            assert keeps.reports == [report]
        assert [[r.chunk for r in keeps.records] for keeps in shards] == [[0, 2], [1, 3]]
        assert [{r.total for r in keeps.records} for keeps in shards] == [{32}, {28}]

    def test_a_shard_without_a_chunk_has_a_report_alone(self, tmp_path):
        keeps = Keeps()
        report = evaluate(keeps, store=tmp_path / "store", chunk_size=16, shard=(5, 6))
        assert keeps.records == []
        assert keeps.reports == [report]
        report.save(tmp_path / "report")
        assert rob.load_report(tmp_path / "report").digest == report.digest


def test_seconds_are_those_since_the_start(monkeypatch):
    ticks = itertools.count(10)
    made = []

    def with_clock(*args):
        made.append(Notifier(*args, clock=lambda: float(next(ticks))))
        return made[-1]

    monkeypatch.setattr("advkit.eval.robustness.evaluation.Notifier", with_clock)
    keeps = Keeps()
    evaluate(keeps)
    assert [record.seconds for record in keeps.records] == [1, 2, 3, 4]
