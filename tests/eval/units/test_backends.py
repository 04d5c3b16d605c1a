"""Backends: this process, threads, and processes that are forked."""

import multiprocessing
import os
import pickle
import threading
import warnings
from concurrent.futures import CancelledError, Executor, Future, ProcessPoolExecutor
from concurrent.futures import ThreadPoolExecutor as Threads
from types import SimpleNamespace

import pytest
import torch

import advkit
from advkit import attacks, eval
from advkit.eval.units import backends
from advkit.eval.units.backends import ExecutorBackend, LocalBackend, worker_count
from advkit.eval.units.chunks import Chunk
from advkit.eval.units.worker import Job, Unit
from advkit.eval.units.worker_warnings import caught_warnings
from tests.eval.evaluated import (
    CALLS,
    MADE,
    Centered,
    Ends,
    Fails,
    Local,
    Net,
    ServiceError,
    Stops,
    Warns,
    data,
    make,
    make_and_note,
    plain,
    several,
    with_second_inputs,
)
from tests.eval.executors import Shuffled

CHUNKS = {"batch_size": 10, "chunk_size": 20}
needs_fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="needs fork"
)


def forked(workers=2):
    return ProcessPoolExecutor(workers, multiprocessing.get_context("fork"))


@pytest.fixture(params=["shuffled", "threads", pytest.param("fork", marks=needs_fork)])
def executor(request):
    make_executor = {"shuffled": Shuffled, "threads": lambda: Threads(3), "fork": forked}
    with make_executor[request.param]() as found:
        yield found


@pytest.fixture
def forks():
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs fork")
    with forked() as found:
        yield found


def job(model):
    tried = [attacks.FGSM(eps=0.1)]
    return Job(model=model, factory=None, attacks=tried, batch_size=10, device=None)


def a_unit(n=4):
    x, y = data(n)
    return Unit(Chunk(0, ((x, y, 0),)))


def test_reports_do_not_depend_on_workers(executor, tmp_path):
    x, y = data()
    wanted = eval.evaluate(Net(), x, y, attacks=several(), batch_size=10)
    for store in (None, tmp_path):
        found = eval.evaluate(
            Net(), x, y, attacks=several(), executor=executor, store=store, **CHUNKS
        )
        assert found.digest == wanted.digest
        assert plain(found) == plain(wanted)
    CALLS.clear()
    again = eval.evaluate(Net(), x, y, attacks=several(), store=tmp_path, **CHUNKS)
    assert again.digest == wanted.digest
    assert CALLS == []  # this process finds what the workers computed


def test_models_with_second_inputs(executor):
    net, x, y = with_second_inputs(60)
    wanted = eval.evaluate(net, x, y, attacks=several(), batch_size=10)
    found = eval.evaluate(net, x, y, attacks=several(), executor=executor, **CHUNKS)
    assert plain(found) == plain(wanted)
    rows = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    with advkit.given_rows(rows):
        selected = eval.evaluate(net, x[rows], y[rows], attacks=several()[::2], batch_size=10)
        found = eval.evaluate(
            net, x[rows], y[rows], attacks=several()[::2], executor=executor, **CHUNKS
        )
    assert plain(found) == plain(selected)
    assert torch.equal(found.clean, wanted.clean[rows])


def test_models_that_need_whole_batches(executor):
    x, y = data()
    net = advkit.TorchClassifier(Centered(), batch="whole")
    wanted = eval.evaluate(net, x, y, attacks=several(), batch_size=10)
    found = eval.evaluate(net, x, y, attacks=several(), executor=executor, **CHUNKS)
    assert plain(found) == plain(wanted)


def test_the_eps_of_each_sample_follows_it(executor):
    x, y = data()
    eps = torch.linspace(0.01, 0.3, 60)
    report = eval.evaluate(
        Net(), x, y, attacks=[attacks.FGSM(eps=eps)], executor=executor, batch_size=7, chunk_size=16
    )
    outcome = report.outcomes[0]
    wanted = torch.where(report.clean, eps.double(), torch.zeros(60, dtype=torch.float64))
    assert torch.equal(outcome.radius, wanted)


def test_a_stream_in_workers(executor):
    x, y = data(230)
    tried = several(230)
    loader = [(x[i : i + 100], y[i : i + 100]) for i in range(0, 230, 100)]
    wanted = eval.evaluate(Net(), loader, attacks=tried)
    found = eval.evaluate(Net(), loader, attacks=tried, executor=executor, chunk_size=150)
    assert plain(found) == plain(wanted)


def test_the_model_and_the_executor_stay(executor):
    x, y = data()
    net = Net().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    CALLS.clear()
    eval.evaluate(net, x, y, attacks=several(), executor=executor, **CHUNKS)
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert executor.submit(len, "abc").result(10) == 3


def test_threads_do_not_share_the_model(monkeypatch):
    seen = {}
    forward = Net.forward
    barrier = threading.Barrier(2, timeout=10)

    def noted(self, x):
        if threading.get_ident() not in seen:
            seen[threading.get_ident()] = self
            barrier.wait()
        return forward(self, x)

    net, inputs = Net(), data()
    monkeypatch.setattr(Net, "forward", noted)
    with Threads(2) as threads:
        eval.evaluate(net, *inputs, attacks=several(), executor=threads, **CHUNKS)
    assert len({id(each) for each in seen.values()}) == 2
    assert all(each is not net for each in seen.values())
    pointers = {each.first.data_ptr() for each in (net, *seen.values())}
    assert len(pointers) == 3


def test_a_factory_is_called_once_in_each_worker(tmp_path, monkeypatch, forks):
    monkeypatch.setenv("ADVKIT_TEST_FOLDER", str(tmp_path / "calls"))
    (tmp_path / "calls").mkdir()
    x, y = data(200)
    report = eval.evaluate(
        None, x, y, attacks=[several()[0]], executor=forks, factory=make_and_note, batch_size=5,
        chunk_size=5, store=tmp_path / "store",
    )  # fmt: skip
    processes = [path.name.partition("-")[0] for path in (tmp_path / "calls").iterdir()]
    assert 1 <= len(processes) <= 2
    assert len(set(processes)) == len(processes)
    assert str(os.getpid()) not in processes
    wanted = eval.evaluate(Net(), x, y, attacks=[several()[0]], batch_size=5)
    assert report.digest == wanted.digest


def test_a_factory_in_this_process():
    MADE.clear()
    x, y = data()
    report = eval.evaluate(None, x, y, attacks=several(), factory=make, batch_size=10)
    assert len(MADE) == 1
    assert report.digest == eval.evaluate(Net(), x, y, attacks=several(), batch_size=10).digest


def a_lambda():
    return lambda: Net()


def an_attack():
    class Own(Stops):
        """A class that cannot be imported."""

    return Own()


REFUSED = [
    ({"model": Local()}, r"`model` must be picklable for `executor`, got .* Pass factory=\.\.\.,"),
    (
        {"model": None, "factory": a_lambda()},
        "`factory` must be picklable .* Define it with `def` at the top level",
    ),
    ({"attacks": [an_attack()]}, "`attacks` must be picklable .* Replace lambdas and local"),
    ({"executor": 3}, r"`executor` must be a concurrent\.futures\.Executor, such .* got int"),
    ({"factory": make}, "`model` or `factory` must be given, and not both, got both"),
    ({"model": None}, "`model` or `factory` must be given, and not both, got neither"),
    ({"model": None, "factory": 3}, "`factory` must be a function, got int"),
    ({"threads": 0}, "`threads` must be"),
    ({"chunk_size": 0}, "`chunk_size` must be"),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED)
def test_what_cannot_be_sent_is_refused(changed, message):
    with Threads(1) as threads:
        settings = {"model": Net(), "attacks": several(), "executor": threads, **changed}
        with pytest.raises((TypeError, ValueError), match=message):
            eval.evaluate(settings.pop("model"), *data(), **settings)


def test_warnings_of_a_worker_are_repeated(forks):
    x, y = data()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        eval.evaluate(Warns(), x, y, attacks=[several()[0]], executor=forks, **CHUNKS)
    ours = [each for each in caught if str(each.message) == "of the net"]
    assert len(ours) >= 6
    assert {each.category for each in ours} == {UserWarning}
    assert {each.filename for each in ours} == {__file__}


def test_threads_leave_the_filters_of_warnings(forks):
    before = list(warnings.filters), warnings.showwarning
    with Threads(4) as threads:
        for _ in range(3):
            eval.evaluate(Net(), *data(), attacks=several(), executor=threads, **CHUNKS)
            assert (list(warnings.filters), warnings.showwarning) == before


def test_threads_issue_warnings_themselves(monkeypatch):
    seen, forward = [], Net.forward

    def noted(self, x):
        seen.append((list(warnings.filters), warnings.showwarning))
        return forward(self, x)

    before, inputs = (list(warnings.filters), warnings.showwarning), data()
    monkeypatch.setattr(Net, "forward", noted)
    with Threads(1) as threads:
        eval.evaluate(Net(), *inputs, attacks=several(), executor=threads, **CHUNKS)
    assert seen
    assert all(each == before for each in seen)


def test_warnings_are_caught_thread_by_thread():
    before = list(warnings.filters), warnings.showwarning
    entered, left = threading.Event(), threading.Event()
    found = {}

    def outer():
        with caught_warnings() as found["outer"]:
            entered.set()
            warnings.warn("of the outer", UserWarning, stacklevel=1)
            left.wait(10)
            warnings.warn("of the outer", UserWarning, stacklevel=1)  # no filter drops it

    thread = threading.Thread(target=outer)
    thread.start()
    entered.wait(10)
    with caught_warnings() as found["inner"]:
        warnings.warn("of the inner", RuntimeWarning, stacklevel=1)
    left.set()
    thread.join()
    assert found["outer"] == [("of the outer", UserWarning)] * 2
    assert found["inner"] == [("of the inner", RuntimeWarning)]
    assert (list(warnings.filters), warnings.showwarning) == before


def test_errors_of_a_worker(forks):
    x, y = data(400)
    x[393, 0] = 2 / 3
    with pytest.raises(ValueError, match="stopped") as caught:
        eval.evaluate(Net(), x, y, attacks=[Stops(error=ValueError)], executor=forks, **CHUNKS)
    assert len(caught.value.report.clean) in range(20, 381, 20)
    with pytest.raises(RuntimeError, match="ServiceError: 503: busy"):
        eval.evaluate(Fails(), *data(), attacks=several(), executor=forks, **CHUNKS)
    assert forks.submit(len, "abc").result(10) == 3  # the pool lives


def test_a_worker_that_ends(tmp_path):
    x, y = data()
    file = tmp_path / "ends"
    settings = {"attacks": several(), "store": tmp_path / "store", **CHUNKS}
    with forked() as executor:
        eval.evaluate(Ends(file), x[:40], y[:40], attacks=several(40), executor=executor, **CHUNKS)
        file.touch()
        with pytest.raises(
            RuntimeError, match="`executor` must have living workers, got one that has ended"
        ):
            eval.evaluate(Ends(file), x, y, executor=executor, **settings)
        with pytest.raises(RuntimeError, match=r"one that has ended .* Create a new executor"):
            eval.evaluate(Ends(file), x, y, executor=executor, **settings)
    with forked() as executor:
        found = eval.evaluate(Ends(file), x, y, executor=executor, **settings)
    assert plain(found) == plain(eval.evaluate(Ends(file), x, y, attacks=several(), batch_size=10))


class Cancels(Executor):
    """An executor that is closed while it is used."""

    def submit(self, fn, /, *args, **kwargs):
        future = Future()
        future.cancel()
        return future


def test_an_executor_that_is_closed():
    with pytest.raises(RuntimeError, match="`executor` must have living workers") as caught:
        eval.evaluate(Net(), *data(), attacks=several(), executor=Cancels())
    assert isinstance(caught.value.__cause__, CancelledError)


def test_a_fork_after_many_threads_does_not_hang():
    """OpenMP waits forever for threads that a fork does not have, unless there is one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        torch.rand(2_000_000).exp().sum()  # begins the threads
        x, y = data()
        with forked(1) as executor:
            small = eval.evaluate(Net(), x, y, attacks=several(), executor=executor, **CHUNKS)
            many = x.repeat(3_000, 1)  # large enough for several threads
            eval.evaluate(
                Net(), many, y.repeat(3_000), attacks=[attacks.FGSM(eps=0.05)], executor=executor,
                batch_size=len(many), chunk_size=len(many),
            )  # fmt: skip
    finally:
        torch.set_num_threads(before)
    assert small.digest == eval.evaluate(Net(), x, y, attacks=several(), batch_size=10).digest


def test_several_threads_in_forked_workers_are_refused(forks):
    with pytest.raises(
        ValueError, match=r"`threads` must be 1 .* got 2. Create it with mp_context"
    ):
        eval.evaluate(Net(), *data(), attacks=several(), executor=forks, threads=2)
    ExecutorBackend(ProcessPoolExecutor(1, multiprocessing.get_context("spawn")), job(Net()), 2)


def test_threads_of_workers(forks):
    backend = ExecutorBackend(forks, job(Net()), 1)
    assert backend.surroundings(None, required=True)["threads"] == 1
    assert backend.surroundings(None, required=True) == LocalBackend(job(Net())).surroundings(
        None, required=True
    )
    before = torch.get_num_threads()
    with Threads(1) as threads:  # of this process, whose number of threads stays
        found = ExecutorBackend(threads, job(Net()), before + 1).surroundings(None, required=True)
    assert found["threads"] == torch.get_num_threads() == before


def test_a_process_is_not_one_of_the_same_number_on_another_machine(monkeypatch):
    here = backends._this_process()
    monkeypatch.setattr(backends, "_IMPORT", "other")
    assert backends._this_process() != here
    assert backends._this_process()[1] == here[1]


def test_a_worker_belongs_to_one_evaluation():
    x, y = data()
    with Threads(1) as threads:
        for seed in range(3):
            net = Net(seed)
            found = eval.evaluate(net, x, y, attacks=several(), executor=threads, **CHUNKS)
            wanted = eval.evaluate(net, x, y, attacks=several(), batch_size=10)
            assert found.digest == wanted.digest


def test_classes_that_a_worker_cannot_import(monkeypatch):
    package = pickle.dumps(job(Net()))
    monkeypatch.delattr("tests.eval.evaluated.Net")
    with pytest.raises(TypeError, match="`executor` must have workers that can import the classes"):
        backends._unpickled(package)


def test_a_unit_does_not_carry_the_data():
    x, y = data(10_000)
    sent = []

    class Notes(Executor):
        def submit(self, fn, package, content):
            sent.append(len(content))
            return Future()

    backend = ExecutorBackend(Notes(), job(Net()), 1)
    backend.submit(Unit(Chunk(0, ((x[:10], y[:10], 0),))))
    assert sent[0] < 10_000


class Sends(Executor):
    """Two threads, which take turns, and the sizes of what they are sent."""

    def __init__(self, forgets=()):
        self._max_workers, self.sizes, self.forgets = 1, [], forgets

    def submit(self, fn, /, *args):
        self.sizes.append(len(pickle.dumps(args)))
        if len(self.sizes) in self.forgets:  # as a new worker that takes the place of another
            backends._local.last = ("", None)
        future = Future()
        future.set_result(fn(*args))
        return future


def test_the_job_is_sent_with_the_first_units_alone():
    x, y = data(200)
    net = Net()
    net.large = torch.zeros(100_000)
    wanted = eval.evaluate(net, x, y, attacks=[several()[0]], batch_size=10)
    settings = {"attacks": [several()[0]], "batch_size": 10, "chunk_size": 10}
    for forgets in ((), (1, 7, 20)):
        executor = Sends(forgets)
        found = eval.evaluate(net, x, y, **settings, executor=executor)
        assert found.digest == wanted.digest
        large = [number for number, size in enumerate(executor.sizes, 1) if size > 400_000]
        assert large == ([1, 2, 3] if not forgets else [1, 2, 3, 8, 21])
        assert len(executor.sizes) == 40 + len(large) - 2


def test_the_local_backend_computes_at_once():
    backend = LocalBackend(job(Net()))
    future = backend.submit(a_unit())
    assert future.done()
    columns = backend.result(future).columns
    correct = columns["prediction"] == columns["label"]
    assert correct.tolist() == [False, True, True, True]
    assert backend.most_in_flight == 1


@pytest.mark.parametrize(
    ("executor", "count"),
    [
        (SimpleNamespace(num_workers=3), 3),
        (SimpleNamespace(num_workers=0, _max_workers=5), 5),
        (SimpleNamespace(_client=SimpleNamespace(nthreads=lambda: {"a": 2, "b": 1})), 3),
        (SimpleNamespace(), os.cpu_count()),
        (SimpleNamespace(num_workers="three"), os.cpu_count()),
    ],
)
def test_the_number_of_workers(executor, count):
    assert worker_count(executor) == count


def test_the_units_in_flight_follow_the_workers():
    assert ExecutorBackend(Threads(3), job(Net()), 1).most_in_flight == 6


def test_service_errors_are_such():
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        pickle.loads(pickle.dumps(ServiceError(503, "busy")))


def test_autocast_belongs_to_the_model():
    with (
        Threads(1) as pool,
        torch.autocast("cpu", dtype=torch.bfloat16),
        pytest.raises(ValueError, match="`executor` must be used outside of torch.autocast"),
    ):
        eval.evaluate(Net(), *data(), attacks=several(), executor=pool)


def test_futures_are_those_of_python():
    class Client:
        def submit(self, function, *arguments):
            return object()

    with pytest.raises(TypeError, match=r"got object\. Pass client\.get_executor\(\)"):
        eval.evaluate(Net(), *data(), attacks=several(), executor=Client())


def make_another():
    """A net with other weights at each call in a process."""
    MADE.append(0)
    return Net(seed=len(MADE))


def test_a_factory_returns_the_same_model_in_each_worker():
    settings = {"attacks": several(), "factory": make_another, "chunk_size": 10}
    MADE.clear()
    with Threads(2) as pool, pytest.raises(RuntimeError, match="equal workers, got one .* model"):
        eval.evaluate(None, *data(), executor=pool, **settings)


def test_settings_of_torch_are_those_of_this_process():
    before = torch.get_default_dtype()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        eval.evaluate(None, *data(), attacks=several(), executor=pool, factory=make)
        x, y = data()
        try:
            torch.set_default_dtype(torch.float64)
            with pytest.raises(RuntimeError, match="differs in numerics"):
                eval.evaluate(None, x, y, attacks=several(), executor=pool, factory=make)
        finally:
            torch.set_default_dtype(before)
