"""The schedule of units of work."""

import gc
import weakref
from concurrent.futures import Future
from itertools import count, islice

import pytest
import torch

from advkit import eval
from advkit.eval.units.chunks import Chunk
from advkit.eval.units.schedule import Schedule
from advkit.eval.units.unit_result import UnitResult
from tests.eval.evaluated import CALLS, Net, Stops, data, plain, several
from tests.eval.executors import Shuffled

ATTACKS = 3


def chunk(number):
    return Chunk(number, ((torch.zeros(2, 1), torch.zeros(2), 2 * number),))


def named(unit):
    return unit.chunk.number, unit.attack


class Backend:
    """Computes units in threads of an executor; a result holds the name of its unit."""

    def __init__(self, executor, most=4):
        self.executor, self.most_in_flight = executor, most
        self.submitted, self.fails = [], ()

    def surroundings(self, identity):
        return {}

    def submit(self, unit):
        self.submitted.append(named(unit))
        assert (unit.attack is None) == (unit.clean is None)
        return self.executor.submit(lambda name: name, named(unit))

    def result(self, future):
        name = future.result()
        if name in self.fails:
            raise ValueError(f"failed: {name}")
        return UnitResult(columns={}, facts={"unit": name})


class Store:
    """Results by the names of their units."""

    def __init__(self, known=()):
        self.known = {name: UnitResult(columns={}, facts={"unit": name}) for name in known}
        self.saved = []
        self.interrupts = 0

    def get(self, unit):
        return self.known.get(named(unit))

    def save(self, unit, result):
        assert result.facts["unit"] == named(unit)
        if self.interrupts:
            self.interrupts -= 1
            raise KeyboardInterrupt
        self.saved.append(named(unit))


@pytest.fixture
def executor():
    with Shuffled() as found:
        yield found


def names(results):
    return [result.facts["unit"] for result in (results.clean, *results.in_order())]


ALL = [[(number, attack) for attack in (None, *range(ATTACKS))] for number in range(12)]
UNITS = [unit for units in ALL for unit in units]


@pytest.mark.parametrize("seed", range(5))
def test_results_come_in_order(seed):
    with Shuffled(seed) as executor:
        backend, store = Backend(executor), Store()
        begun, complete = [], []
        schedule = Schedule(
            backend, store, ATTACKS, lambda unit: begun.append(named(unit)),
            lambda unit: complete.append(named(unit)),
        )  # fmt: skip
        found = list(schedule.results(map(chunk, range(12))))
    assert [names(each) for each in found] == ALL
    assert {each.size for each in found} == {2}
    everything = sorted(map(str, UNITS))
    for listed in (store.saved, begun, complete, backend.submitted):
        assert sorted(map(str, listed)) == everything
    assert store.saved != UNITS  # they were not computed in order


def test_known_units_are_not_computed(executor):
    known = [(0, None), (0, 0), (0, 1), (0, 2), (1, None), (1, 2), (2, 1)]
    backend, store, complete = Backend(executor), Store(known), []
    schedule = Schedule(
        backend, store, ATTACKS, on_result=lambda unit: complete.append(named(unit))
    )
    found = list(schedule.results(map(chunk, range(3))))
    assert [names(each) for each in found] == ALL[:3]
    wanted = {(1, 0), (1, 1), (2, None), (2, 0), (2, 2)}
    assert set(backend.submitted) == set(store.saved) == wanted
    assert len(complete) == 12


def test_a_complete_chunk_comes_before_the_next_is_read(executor):
    read = []

    def chunks():
        for number in range(3):
            read.append(number)
            yield chunk(number)

    results = Schedule(Backend(executor), Store(UNITS), ATTACKS).results(chunks())
    for number in range(3):
        assert names(next(results)) == ALL[number]
        assert read == [*range(number + 1)]


def test_an_endless_stream_keeps_few_chunks():
    alive, most = [], 0

    def chunks():
        nonlocal most
        for number in count():
            made = chunk(number)
            alive.append(weakref.ref(made))
            most = max(most, sum(ref() is not None for ref in alive))
            yield made
            del made

    with Shuffled() as executor:
        backend = Backend(executor, most=4)
        results = Schedule(backend, None, ATTACKS).results(chunks())
        found = [names(each) for each in islice(results, 50)]
        results.close()
    assert [each[0] for each in found] == [(number, None) for number in range(50)]
    assert executor.most <= 4
    assert most <= 6
    assert len(alive) <= 50 + 20  # chunks behind one that takes longer
    gc.collect()
    assert not any(ref() for ref in alive)


class Held:
    """Futures that the test completes; the first `done` are complete at once."""

    most_in_flight = 100

    def __init__(self, done):
        self.done, self.futures = done, {}

    def submit(self, unit):
        future = self.futures[named(unit)] = Future()
        if len(self.futures) <= self.done:
            self.finish(named(unit))
        return future

    def finish(self, name):
        self.futures[name].set_result(name)

    def result(self, future):
        return UnitResult(columns={}, facts={"unit": future.result()})


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_keeps_complete_units_and_cancels_the_others(error):
    backend, store = Held(1), Store()

    def chunks():
        yield chunk(0)
        yield chunk(1)
        backend.finish((0, 1))
        raise error("of the data")

    with pytest.raises(error, match="of the data"):
        list(Schedule(backend, store, ATTACKS).results(chunks()))
    assert store.saved == [(0, None), (0, 1)]
    cancelled = {name for name, future in backend.futures.items() if future.cancelled()}
    assert cancelled == {(0, 0), (0, 2), (1, None)}


def test_an_interrupt_while_a_unit_is_saved_keeps_it():
    backend, store = Held(1), Store()
    store.interrupts = 1
    with pytest.raises(KeyboardInterrupt):
        list(Schedule(backend, store, ATTACKS).results([chunk(0)]))
    assert store.saved == [(0, None)]


def test_the_error_that_ends_an_evaluation_counts():
    """Another unit has failed at the same time, and a third one is complete."""
    backend, store = Held(1), Store()

    def chunks():
        yield chunk(0)
        backend.futures[0, 0].set_exception(ValueError("of a unit"))
        backend.finish((0, 1))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Schedule(backend, store, ATTACKS).results(chunks()))
    assert store.saved == [(0, None), (0, 1)]


def test_a_failed_unit_ends_the_evaluation(executor):
    backend, store = Backend(executor), Store()
    backend.fails = {(1, 2)}
    with pytest.raises(ValueError, match=r"failed: \(1, 2\)"):
        list(Schedule(backend, store, ATTACKS).results(map(chunk, range(12))))
    assert (1, 2) not in store.saved
    assert len(store.saved) < 48


def test_a_reader_that_stops_cancels_what_is_in_flight():
    """The second chunk begins before the first is complete."""
    held = Held(1)  # the clean passes of the first chunk

    def chunks():
        yield chunk(0)
        held.most_in_flight = 2
        held.finish((0, 0))
        yield chunk(1)

    results = Schedule(held, None, 1).results(chunks())
    assert names(next(results)) == ALL[0][:2]
    assert not held.futures[1, None].done()
    results.close()
    assert held.futures[1, None].cancelled()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_evaluation_that_stops_resumes(tmp_path, error):
    x, y = data()
    x[33, 0] = 2 / 3
    tried = [several()[0], Stops(error=error)]
    settings = {"attacks": tried, "batch_size": 5, "chunk_size": 10, "store": tmp_path}
    with pytest.raises(error, match="stopped") as caught:
        eval.evaluate(Net(), x, y, **settings)
    assert len(caught.value.report.clean) == 30
    assert len(list((tmp_path / "units").iterdir())) == 3 * 3 + 2
    CALLS.clear()
    with pytest.raises(error):
        eval.evaluate(Net(), x, y, **settings)
    assert CALLS == []  # the attack stops before it queries the model


def test_a_stream_of_reports_with_an_executor():
    x, y = data()
    wanted = eval.evaluate(Net(), x, y, attacks=several(), batch_size=5)
    with Shuffled() as executor:
        reports = list(
            eval.evaluate_stream(
                Net(), x, y, attacks=several(), batch_size=5, chunk_size=10, executor=executor
            )
        )
    assert [len(report.clean) for report in reports] == [10, 20, 30, 40, 50, 60]
    assert plain(reports[-1]) == plain(wanted)
