"""Preparation of an evaluation: its arguments are checked and become an `Evaluation`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path

import torch
from torch import Tensor

from advkit.core import checks, sample_rows
from advkit.core.batching import Data
from advkit.core.fingerprints import fingerprint, fingerprint_if_any
from advkit.core.indexed_data import number_of_samples
from advkit.core.protocols import Attack
from advkit.eval.budgets import distinct_budgets
from advkit.eval.evidence.provenance import Provenance, now
from advkit.eval.robustness.attack_recorder import check_attacks
from advkit.eval.robustness.callbacks import Callback, check_callbacks
from advkit.eval.robustness.evaluation import Evaluation
from advkit.eval.store.manifest import Manifest
from advkit.eval.store.shards import Shard, checked_shard, shard_of_process
from advkit.eval.store.store import Store
from advkit.eval.units.backends import Backend, ExecutorBackend, LocalBackend
from advkit.eval.units.chunks import Inputs
from advkit.eval.units.descriptions import AttackDescription, EvaluationDescription
from advkit.eval.units.worker import Job


def prepare(
    model: object,
    x: Data,
    y: Tensor | None,
    *,
    attacks: Sequence[Attack],
    batch_size: int,
    device: str | torch.device | None,
    store: str | Path | None,
    shard: tuple[int, int] | None,
    executor: Executor | None,
    factory: Callable[[], object] | None,
    chunk_size: int,
    threads: int,
    identity: str | None,
    about: Mapping[str, str] | None,
    class_names: Sequence[str] | None,
    command: str | None,
    callbacks: Sequence[Callback],
) -> Evaluation:
    """Check the arguments of `evaluate` and prepare its run; errors are those of `evaluate`."""
    _check_options(model, factory, executor, chunk_size, threads)
    check_attacks(attacks, number_of_samples(x))
    check_callbacks(callbacks)
    own = _shard_for(shard, store)
    _check_budget(model, executor, own)
    inputs = Inputs(x, y, batch_size, 1 if store is None and executor is None else chunk_size)
    if inputs.total is not None:
        sample_rows.check_total(inputs.total)
    place = _place(x, device)
    job = Job(
        model=model, factory=factory, attacks=tuple(attacks), batch_size=batch_size, device=place
    )
    backend = LocalBackend(job) if executor is None else ExecutorBackend(executor, job, threads)
    described = describe(attacks, inputs, about, class_names)
    provenance = _provenance(job, backend, store is not None, identity, command)
    kept = None if store is None else _opened(store, Manifest.of(described, provenance, inputs))
    return Evaluation(
        inputs=inputs, description=described, backend=backend, shard=own, store=kept,
        provenance=provenance, callbacks=tuple(callbacks),
    )  # fmt: skip


def _place(x: Data, device: str | torch.device | None) -> torch.device | None:
    """Return the device of the batches, that of `x` by default; `None` leaves them alone."""
    if device is None and isinstance(x, Tensor):
        device = x.device
    return None if device is None else torch.device(device)


def _check_options(
    model: object,
    factory: Callable[[], object] | None,
    executor: Executor | None,
    chunk_size: int,
    threads: int,
) -> None:
    """Raise unless the options of an evaluation fit each other."""
    if (model is None) == (factory is None):
        given = "neither" if model is None else "both"
        raise TypeError(
            f"`model` or `factory` must be given, and not both, got {given}. Pass None as the "
            "model with a factory."
        )
    if factory is not None and not callable(factory):
        raise TypeError(f"`factory` must be a function, got {type(factory).__name__}.")
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise TypeError(
            "`executor` must be a concurrent.futures.Executor, such as a ProcessPoolExecutor, got "
            f"{type(executor).__name__}."
        )
    checks.integer("chunk_size", chunk_size, at_least=1)
    checks.integer("threads", threads, at_least=1)


def _check_budget(model: object, executor: Executor | None, shard: Shard) -> None:
    """Raise for a query budget that several processes would spend, each all of it."""
    budget = getattr(model, "max_queries", None)
    if budget is not None and (executor is not None or shard.count > 1):
        raise ValueError(
            f"`model` must have no query budget with a `shard` or an `executor`, got {budget:,} "
            "queries, all of which each process would spend. Create it without a budget."
        )


def _shard_for(shard: tuple[int, int] | None, store: str | Path | None) -> Shard:
    """Return the shard of this process: the one given, or that of its environment for a store.

    Raises:
        ValueError: a shard is given without a store.
    """
    if shard is None:
        return Shard(0, 1) if store is None else shard_of_process()
    found = checked_shard(shard)
    if store is None and found.count > 1:
        raise ValueError(
            f"`store` must be given with `shard`, got None. The shards of {found.count} processes "
            "meet there."
        )
    return found


def describe(
    attacks: Sequence[Attack],
    inputs: Inputs,
    about: Mapping[str, str] | None,
    class_names: Sequence[str] | None,
) -> EvaluationDescription:
    """Describe an evaluation for its report."""
    return EvaluationDescription(
        attacks=tuple(map(AttackDescription.of, attacks)),
        budgets=tuple(distinct_budgets(attacks)),
        total=inputs.total,
        about=dict(about or {}),
        class_names=_checked_names(class_names),
    )


def _checked_names(class_names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of classes, and raise unless they are a list of texts."""
    names = class_names or ()
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise TypeError(f"`class_names` must be a list of str, got {class_names!r}.")
    return tuple(names)


def _provenance(
    job: Job, backend: Backend, stored: bool, identity: str | None, command: str | None
) -> Provenance:
    """Return what an evaluation is computed with.

    Raises:
        TypeError: a part of the model or of an attack cannot be hashed for a store, without an
            `identity`.
    """
    hash_of = fingerprint if stored else fingerprint_if_any
    hashes = [
        hash_of(attack, f"attacks[{number}]", identity=identity)
        for number, attack in enumerate(job.attacks)
    ]
    surroundings = backend.surroundings(identity, required=stored)
    return Provenance(
        date=now(),
        batch_size=job.batch_size,
        attacks=tuple(hashes),
        command=command,
        **surroundings,  # type: ignore[arg-type]
    )


def _opened(folder: str | Path, manifest: Manifest) -> Store:
    """Open the store of an evaluation.

    Raises:
        TypeError: `folder` is not a path.
        ValueError: the store holds another evaluation.
        OSError: the store cannot be written.
    """
    if not isinstance(folder, (str, Path)) or not str(folder):
        raise TypeError(f"`store` must be the path of a folder, got {folder!r}.")
    return Store(Path(folder), manifest)
