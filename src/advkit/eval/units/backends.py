"""Backends, which compute units of work: this process, or the workers of an executor."""

from __future__ import annotations

import os
import pickle
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from advkit.core import checks, sample_rows
from advkit.eval.units.chunks import Chunk
from advkit.eval.units.unit_result import UnitResult
from advkit.eval.units.worker import Job, Unit, Worker
from advkit.eval.units.worker_end import end_with_parent
from advkit.eval.units.worker_warnings import Caught, caught_warnings
from advkit.eval.versions import numerics

Returned = TypeVar("Returned")
_local = threading.local()  # the last worker of each thread
_IMPORT = secrets.token_hex(8)  # differs between machines, whose processes may have equal numbers


class Backend(Protocol):
    """Place where units of work are computed."""

    most_in_flight: int

    def surroundings(self, identity: str | None, *, required: bool) -> dict[str, object]:
        """Return what the results depend on: see `Worker.surroundings`."""
        ...

    def submit(self, unit: Unit) -> Future[Any]:
        """Begin to compute a unit of work."""
        ...

    def result(self, future: Future[Any]) -> UnitResult:
        """Return the result of a unit that is complete."""
        ...


class LocalBackend:
    """This process, which computes a unit as soon as it is submitted."""

    most_in_flight = 1

    def __init__(self, job: Job) -> None:
        self._worker = Worker(job)

    def surroundings(self, identity: str | None, *, required: bool) -> dict[str, object]:
        """Return what the results depend on: see `Worker.surroundings`."""
        return self._worker.surroundings(identity, required=required)

    def submit(self, unit: Unit) -> Future[Any]:
        """Compute a unit of work, and return a future that is done."""
        future: Future[Any] = Future()
        future.set_result(self._worker.compute(unit))
        return future

    def result(self, future: Future[Any]) -> UnitResult:
        """Return the result of a unit."""
        found: UnitResult = future.result()
        return found


class ExecutorBackend:
    """Workers of an executor.

    The model, or the factory, and the inputs are sent as pickled bytes, so that no worker shares
    memory with this process. The job goes with the first units alone, since a large model takes
    long to send. A worker that has not received it returns `None`, and gets the unit again.

    Args:
        executor: the executor, which stays open.
        job: what the workers need.
        threads: intra-op threads of a worker that is another process.

    Raises:
        TypeError: the model, the factory or an attack cannot be pickled.
        ValueError: several `threads` for workers that are forked.
    """

    def __init__(self, executor: Executor, job: Job, threads: int) -> None:
        _check_threads(executor, threads)
        _check_autocast()
        self._executor = executor
        self.most_in_flight = 2 * worker_count(executor)
        self._package = _Package(secrets.token_hex(8), _pickled(job), threads, _this_process())
        self._units_with_job = self.most_in_flight
        self._contents: dict[Future[Any], bytes] = {}  # of the units in flight

    def surroundings(self, identity: str | None, *, required: bool) -> dict[str, object]:
        """Return what the results depend on in one of the workers; all others must have the same.

        The settings of torch must be those of this process.
        """
        package = self._package._replace(identity=identity, hash_required=required)
        found = _living(self._submitted(_surroundings, package).result)
        found = {**found, "numerics": numerics()}
        self._package = package._replace(expected=found)
        return found

    def submit(self, unit: Unit) -> Future[Any]:
        """Send a unit of work to a worker."""
        content = pickle.dumps((_alone(unit), sample_rows.current_frame()))
        package = self._package if self._units_with_job else self._package._replace(job=None)
        self._units_with_job = max(0, self._units_with_job - 1)
        future = self._submitted(_compute, package, content)
        self._contents[future] = content
        return future

    def result(self, future: Future[Any]) -> UnitResult:
        """Return the result of a unit, and repeat the warnings of its worker.

        Raises:
            RuntimeError: the worker has ended.
        """
        sent, returned = self._contents.pop(future, None), _living(future.result)
        if returned is None:  # the worker does not know the job
            returned = _living(self._submitted(_compute, self._package, sent).result)
        content, caught = returned
        for text, category in caught:
            checks.warn(text, category)
        found: UnitResult = pickle.loads(content)
        return found

    def _submitted(self, work: Callable[..., Any], *arguments: object) -> Future[Any]:
        future = _living(lambda: self._executor.submit(work, *arguments))
        if not isinstance(future, Future):
            raise TypeError(
                "`executor` must return futures of concurrent.futures, got "
                f"{type(future).__name__}. Pass client.get_executor() in place of a Dask client."
            )
        return future


def _living(call: Callable[[], Returned]) -> Returned:
    """Return the result of a call of an executor whose workers live.

    Raises:
        RuntimeError: a worker has ended.
    """
    try:
        return call()
    except (BrokenExecutor, CancelledError) as error:
        raise RuntimeError(
            "`executor` must have living workers, got one that has ended "
            f"({type(error).__name__}), for lack of memory, or because the script has no `if "
            '__name__ == "__main__":` around the evaluation. Units that a store holds are kept. '
            "Create a new executor and run the evaluation again."
        ) from error


def _check_threads(executor: Executor, threads: int) -> None:
    """Raise for several threads in a forked process, where OpenMP would wait forever."""
    context = getattr(executor, "_mp_context", None)  # of ProcessPoolExecutor
    if threads > 1 and context is not None and context.get_start_method() == "fork":
        raise ValueError(
            f"`threads` must be 1 for an `executor` that forks its workers, got {threads}. Create "
            "it with mp_context=multiprocessing.get_context('spawn')."
        )


def _check_autocast() -> None:
    """Raise inside `torch.autocast`, which a worker does not know."""
    if any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")):
        raise ValueError(
            "`executor` must be used outside of torch.autocast, which belongs to one thread, got "
            "an evaluation inside it. Enter torch.autocast in the forward pass of the model."
        )


def worker_count(executor: Executor) -> int:
    """Return the number of workers of an executor, that of processors if it does not tell."""
    for name in ("num_workers", "_max_workers"):  # of mpi4py; of Python and loky
        if isinstance(count := getattr(executor, name, None), int) and count > 0:
            return count
    client = getattr(executor, "_client", None)  # of Dask
    nthreads = getattr(client, "nthreads", None)
    return sum(nthreads().values()) if callable(nthreads) else os.cpu_count() or 1


class _Package(NamedTuple):
    """Parts of a message to a worker that all units share.

    Attributes:
        token: random text by which a worker knows the job again.
        job: pickled `Job`; `None` for a worker that should know it.
        threads: intra-op threads of a worker that is another process.
        parent: process that submits the units; see `_this_process`.
        expected: surroundings that each worker must have; `None` compares none.
        identity: text for parts of the model that cannot be hashed; see `Worker.surroundings`.
        hash_required: whether the hash of the model must be known.
    """

    token: str
    job: bytes | None
    threads: int
    parent: tuple[str, int]
    expected: Mapping[str, object] | None = None
    identity: str | None = None
    hash_required: bool = False


def _this_process() -> tuple[str, int]:
    """Return an identifier that no other process has, on this machine or another one."""
    return _IMPORT, os.getpid()


def _pickled(job: Job) -> bytes:
    """Pickle a job, or raise an error that names the argument at fault."""
    for name in ("factory", "model", "attacks"):
        try:
            pickle.dumps(getattr(job, name))
        except Exception as error:
            remedy = {
                "factory": "Define it with `def` at the top level of a module.",
                "model": "Pass factory=..., a function that returns the model.",
                "attacks": "Replace lambdas and local functions by functions of a module.",
            }[name]
            raise TypeError(
                f"`{name}` must be picklable for `executor`, got an error: "
                f"{type(error).__name__}: {error}. {remedy}"
            ) from error
    return pickle.dumps(job)


def _alone(unit: Unit) -> Unit:
    """Return a unit whose tensors are not parts of larger ones, which would be pickled whole."""
    parts = tuple((x.clone(), y.clone(), first) for x, y, first in unit.chunk.batches)
    return unit._replace(chunk=Chunk(unit.chunk.number, parts))


def _worker(package: _Package) -> Worker | None:
    """Return the worker of this thread for a job, created at its first unit.

    `None` if this thread has not received the job.
    """
    token, worker = getattr(_local, "last", ("", None))
    if token != package.token or worker is None:
        if package.job is None:
            return None
        if _this_process() != package.parent:
            torch.set_num_threads(package.threads)
            end_with_parent(package.parent[1])
        worker = Worker(_unpickled(package.job))
        _local.last = (package.token, worker)
    return worker


def _unpickled(content: bytes) -> Job:
    """Unpickle a job in a worker, which must be able to import its classes and functions."""
    try:
        job: Job = pickle.loads(content)
    except (AttributeError, ImportError) as error:
        raise TypeError(
            "`executor` must have workers that can import the classes and functions of the model "
            f"and the attacks, got an error: {type(error).__name__}: {error}. Define them in a "
            "module that is installed there, not in a script."
        ) from error
    return job


@contextmanager
def _errors_that_return() -> Iterator[None]:
    """Replace an error that cannot be pickled and unpickled, which would end a process pool."""
    try:
        yield
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # noqa: BLE001 - it may raise anything
            raise RuntimeError(f"{type(error).__name__}: {error}") from error
        raise


def _check_equal(worker: Worker, package: _Package) -> None:
    """Raise unless a worker has the model, the versions and the settings of the others.

    Raises:
        RuntimeError: something differs. The first unit of each thread finds out.
    """
    if package.expected is None or getattr(_local, "checked", None) == package.token:
        return
    found = worker.surroundings(package.identity, required=package.hash_required)
    names = [name for name, value in package.expected.items() if found[name] != value]
    if names:
        raise RuntimeError(
            f"`executor` must have equal workers, got one that differs in {' and '.join(names)}. A "
            "`factory` must return the same model each time, and settings of torch (numerics) must "
            "be made in each worker, for example in the module of the factory."
        )
    _local.checked = package.token


def _surroundings(package: _Package) -> dict[str, object]:
    with _errors_that_return():
        worker = _worker(package)
        assert worker is not None  # the package holds the job
        return worker.surroundings(package.identity, required=package.hash_required)


def _compute(package: _Package, content: bytes) -> tuple[bytes, Caught] | None:
    """Compute a unit in a worker, and return its pickled result and its warnings.

    `None` if the worker has not received the job.

    A thread of the process that submits the units issues its warnings itself.
    """
    none: Caught = []
    inside = _this_process() == package.parent
    with _errors_that_return(), nullcontext(none) if inside else caught_warnings() as caught:
        worker = _worker(package)  # which sets the threads before there are tensors
        if worker is None:
            return None
        _check_equal(worker, package)
        unit, frame = pickle.loads(content)
        with sample_rows.opened(frame):
            result = worker.compute(unit)
    return pickle.dumps(result), caught
