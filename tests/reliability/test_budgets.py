"""Budgets and counts when several threads send, functions raise and calls are interrupted."""

import contextlib
import copy
import pickle
import random
import signal
import threading
import weakref
from functools import partial

import numpy as np
import pytest
import torch

from advkit import CallableClassifier, Ensemble, QueryBudgetExceeded, QueryCounter, ServiceError
from advkit.models.query_budget import Budget, Counter

from .threads import in_threads, switching

THREADS, BUDGET = 12, 60


@pytest.fixture(autouse=True)
def switch_often():
    with switching():
        yield
    torch.set_grad_enabled(True)  # an interrupt may leave torch's own `no_grad` in force


class Service:
    """A function that fails at random, and counts what it was sent and what it answered."""

    def __init__(self, seed, failures):
        self.draw, self.failures = random.Random(seed), failures
        self.lock, self.sent, self.answered, self.most = threading.Lock(), 0, 0, 0
        self.in_flight = 0

    def __call__(self, rows):
        with self.lock:
            self.sent += len(rows)
            self.in_flight += len(rows)
            self.most = max(self.most, self.answered + self.in_flight)
            fails = self.draw.random() < self.failures
        for _ in range(20):  # gives other threads the time to come in between
            pass
        with self.lock:
            self.in_flight -= len(rows)
            if fails:
                raise ConnectionError("down")
            self.answered += len(rows)
        return np.full((len(rows), 2), 0.5)


def net():
    """Return a net whose logits are too large to be taken for probabilities."""
    layer = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(layer.bias, 5.0)
    return layer


def use_up(model):
    """Send batches of several sizes until not even one sample fits."""
    size = 3
    while size:
        try:
            model.predict(torch.rand(size, 2))
        except QueryBudgetExceeded:
            size -= 1
        except ServiceError:
            pass


@pytest.mark.parametrize("failures", [0, 0.3])
@pytest.mark.parametrize("max_batch", [None, 1])
def test_a_service_is_never_sent_more_than_the_budget(tally, failures, max_batch):
    promise = tally("a query budget holds when threads share the model")
    for seed in range(10):
        with promise.trial(seed):
            service = Service(seed, failures)
            model = CallableClassifier(
                service, 2, max_queries=BUDGET, max_batch=max_batch, retries=1, backoff=0, log=True
            )
            in_threads(THREADS * [partial(use_up, model)])
            assert service.most <= BUDGET
            assert model.queries == service.answered <= BUDGET
            assert model.queries_left == BUDGET - model.queries
            assert sum(call.samples * call.attempts for call in model.log) == service.sent
            while model.queries_left:  # what is left can be used
                with contextlib.suppress(ServiceError):
                    model.predict(torch.rand(1, 2))
            assert service.answered == BUDGET


@pytest.mark.parametrize("budget", [None, BUDGET])
def test_a_counter_is_exact(tally, budget):
    promise = tally("forward and backward counts are exact when threads share a QueryCounter")
    for trial in range(10):
        with promise.trial(trial):
            counter, seen = QueryCounter(net(), max_queries=budget), []

            def work(i, counter=counter, seen=seen):
                for k in range(10):
                    x = torch.rand(1 + (i + k) % 3, 2, requires_grad=True)
                    try:
                        counter.logits(x).sum().backward()
                    except QueryBudgetExceeded:
                        continue
                    seen.append(len(x))

            in_threads(partial(work, i) for i in range(THREADS))
            assert counter.forward == counter.backward == sum(seen)
            assert budget is None or (counter.forward <= budget and counter.queries_left >= 0)


@contextlib.contextmanager
def interrupted_after(seconds):
    """Raise KeyboardInterrupt, as Ctrl-C does, wherever the block has got to by then."""

    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


MODELS = {
    "service": lambda fn: CallableClassifier(fn, 2, max_queries=10_000, max_batch=3, log=True),
    "counter": lambda fn: QueryCounter(net(), max_queries=10_000),
}


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs POSIX timers")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in a `__del__`
@pytest.mark.parametrize("name", MODELS)
def test_an_interrupt_leaves_nothing_reserved(tally, name):
    promise = tally("what an interrupted call reserved in a budget is given back")
    draw, x = random.Random(0), torch.rand(7, 2)
    for trial in range(300):
        with promise.trial((name, trial)):
            model = MODELS[name](Service(0, 0))
            stop = interrupted_after(draw.uniform(1e-6, 1e-3))
            with contextlib.suppress(KeyboardInterrupt), stop:
                for _ in range(20):
                    model.predict(x[: draw.randint(1, 7)])
            counted = model.forward if name == "counter" else model.queries
            assert model.queries_left == model.max_queries - counted
            model.predict(torch.rand(min(model.queries_left, 5), 2))  # no lock is held


def test_a_function_that_is_interrupted_gives_back_what_it_did_not_answer():
    calls = []

    def stopped(rows):
        calls.append(len(rows))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return np.full((len(rows), 2), 0.5)

    model = CallableClassifier(stopped, 2, max_queries=10, max_batch=4)
    with pytest.raises(KeyboardInterrupt):
        model.predict(torch.rand(10, 2))
    assert (model.queries, model.queries_left) == (4, 6)


def test_an_interrupt_while_samples_are_given_back_leaves_nothing_reserved(monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    budget = Budget(10)
    with monkeypatch.context() as patched:
        patched.setattr(weakref.WeakSet, "discard", stop)
        with contextlib.suppress(KeyboardInterrupt), budget.reserve(3):
            pass
    assert budget.remaining == 10


def test_samples_in_flight_are_reserved_for_the_whole_call():
    left = []
    model = CallableClassifier(
        lambda rows: left.append(model.queries_left) or np.full((len(rows), 2), 0.5),
        2,
        max_queries=10,
        max_batch=4,
    )
    model.predict(torch.rand(8, 2))
    assert left == [2, 2]
    assert (model.queries, model.queries_left) == (8, 2)


def test_a_raising_model_is_not_counted():
    def fails(rows):
        raise ConnectionError

    counter = QueryCounter(CallableClassifier(fails, 2), max_queries=5)
    with pytest.raises(ServiceError):
        counter.predict(torch.rand(3, 2))
    assert (counter.forward, counter.queries_left) == (0, 5)


def test_budgets_and_counters_are_copied_and_pickled():
    budget, counter = Budget(10), Counter()
    with budget.reserve(3) as reservation:
        budget.charge(reservation, 1)
        for twin in (copy.deepcopy(budget), pickle.loads(pickle.dumps(budget))):
            assert (twin.limit, twin.spent, twin.remaining) == (10, 1, 9)
            with twin.reserve(9):
                assert twin.remaining == 0
        assert budget.remaining == 7
    for value in (0, 4):
        counter.reset()
        counter.add(value)
        twin = pickle.loads(pickle.dumps(copy.deepcopy(counter)))
        twin.add(1)
        assert (counter.value, twin.value) == (value, value + 1)


def test_a_reset_leaves_calls_in_flight_their_room():
    budget = Budget(10)
    with budget.reserve(3) as reservation:
        budget.reset()
        assert budget.remaining == 7
        budget.charge(reservation, 3)
    assert (budget.spent, budget.remaining) == (3, 7)


def test_members_that_share_a_budget(tally):
    promise = tally("a query budget holds when threads share the model")
    for seed in range(5):
        with promise.trial(("ensemble", seed)):
            service = Service(seed, 0.2)
            model = CallableClassifier(service, 2, max_queries=BUDGET)
            both = Ensemble([model, QueryCounter(model)], combine="probabilities")
            in_threads(THREADS * [partial(use_up, both)])
            assert service.most <= BUDGET
            assert model.queries == service.answered
            assert model.queries_left == BUDGET - service.answered
