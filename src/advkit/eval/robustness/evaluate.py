"""Evaluation of a model under several attacks, with the worst case taken input by input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path

import torch
from torch import Tensor

from advkit.core import sample_rows
from advkit.core.batching import Data
from advkit.core.indexed_data import number_of_samples
from advkit.core.paid_answers import keeping
from advkit.core.protocols import Attack
from advkit.eval.accuracy import Rate
from advkit.eval.budgets import check_one_budget, several_budgets
from advkit.eval.robustness.attack_recorder import check_attacks
from advkit.eval.robustness.callbacks import Callback
from advkit.eval.robustness.preparation import prepare
from advkit.eval.robustness.report import Report

_KEPT = "The attribute `report` of the error holds the report on the batches before."
CHUNK_SIZE = 256  # inputs of a unit of work; two batches of the default size


def robust_accuracy(
    model: object,
    x: Data,
    y: Tensor | None = None,
    *,
    attacks: Sequence[Attack],
    batch_size: int = 128,
) -> Rate:
    """Measure the share of all inputs that stay correctly labeled under every attack.

    The attacks must share one budget: a norm and an `eps`. An adversarial example of a minimum-norm
    attack in that norm counts if it lies within the budget. Other arguments and errors are those of
    `evaluate`.

    Raises:
        ValueError: the attacks have several budgets, or none.
    """
    check_attacks(attacks, number_of_samples(x))
    check_one_budget(attacks)
    rates = evaluate(model, x, y, attacks=attacks, batch_size=batch_size).worst_cases
    if len(rates) != 1:
        raise several_budgets(rates)
    return next(iter(rates.values()))


def evaluate(
    model: object,
    x: Data,
    y: Tensor | None = None,
    *,
    attacks: Sequence[Attack],
    batch_size: int = 128,
    device: str | torch.device | None = None,
    progress: bool = False,
    store: str | Path | None = None,
    shard: tuple[int, int] | None = None,
    executor: Executor | None = None,
    factory: Callable[[], object] | None = None,
    chunk_size: int = CHUNK_SIZE,
    threads: int = 1,
    identity: str | None = None,
    about: Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
    command: str | None = None,
    callbacks: Sequence[Callback] = (),
) -> Report:
    """Attack a model and report its robust accuracy.

    Each attack is run on every input that the model labels correctly. The other inputs count as
    not robust and are not attacked. Inputs with NaN or infinite logits are among them; the report
    lists their numbers. Such logits never count as a success of an attack. An attack that leaves
    `stop` open is run with `"first"`.

    An attack with an `eps` is a budget attack and gives a robust accuracy. An attack without one,
    or with `None`, is a minimum-norm attack. It gives the distance to the nearest adversarial
    example.

    For each norm and `eps` (one number for all inputs) the report has a baseline: random noise
    drawn uniformly from that ball, once for each input. It costs one forward pass more.

    With a `store`, a killed evaluation resumes, and a repeated one computes nothing. The unit of
    work is one attack on one chunk of consecutive inputs. Each unit is one file in the store, which
    is written whole or not at all. Several processes may fill one store, each its own `shard`, and
    `merge` joins their results. The report does not depend on the number of workers or shards.

    Args:
        model: a classifier, or an `nn.Module` with inputs in [0, 1]; `None` with a `factory`.
        x: inputs `(n, *features)`, an iterable of batches `(x, y)`, or an indexed data set.
        y: true labels `(n,)`; `None` if `x` holds the labels.
        attacks: the attacks to run. An `eps` with one radius for each sample is divided among the
            batches.
        batch_size: samples passed to the model at once. It also limits the `batch_size` of an
            attack, such as that of `HopSkipJump`; the report shows the attacks as given.
        device: device that each batch is moved to; `None` leaves it where it is. In a worker of an
            `executor`, `"cuda"` is the GPU of that worker.
        progress: show the progress on standard error (on a terminal it needs the extra `report`).
        store: folder for the results, created if missing. A store of another model, of other
            inputs, attacks, versions or threads is refused.
        shard: `(number, count)`: the share of the chunks that this call evaluates. It needs a
            `store`. By default a process takes its share by RANK and WORLD_SIZE, which `torchrun`
            sets, or by the variables of a Slurm array, if there is a `store`.
        executor: `concurrent.futures.Executor` whose workers compute the units, such as a
            `ProcessPoolExecutor`, Dask's `client.get_executor()` or an `MPIPoolExecutor`. It stays
            open.
        factory: function without arguments that returns the model, in place of `model`. It is
            called once in each worker, with the worker's device as torch's default device.
        chunk_size: inputs of a chunk, rounded up to whole batches. Without `store` and `executor`
            each batch is a chunk.
        threads: intra-op threads of each worker process of the `executor`; 1 for a
            `ProcessPoolExecutor` that forks.
        identity: text that stands for the parts of the model and the attacks that cannot be hashed,
            such as a remote service. It must change whenever they change.
        about: further facts for the reader of the report, such as the data, by name. A merged
            report has those of the first run.
        class_names: name of each class, for the page of the report.
        command: shell command that repeats the evaluation, for `report.json`.
        callbacks: objects that are called after each chunk and with the complete report, such as
            the trackers of `advkit.integrations`: see `Callback`. They do not change the report.

    Returns:
        A report that prints as a table, converts to a dict and saves as HTML. That of a shard is on
        its own inputs. An error or an interrupt after the first chunk holds the report so far in
        its attribute `report`.

    Raises:
        ValueError: inputs or labels of the wrong shape or range, no attack, a shard without a
            store, or a store of another evaluation.
        TypeError: inputs, labels, attacks, callbacks or model of the wrong type, both `model` and
            `factory` or none of them, a model that cannot be hashed for the store or pickled for
            the executor.
        OSError: the store cannot be written. Its units are kept.
        RuntimeError: a worker of the executor has ended. The units in the store are kept.

    Example:
        >>> import torch
        >>> from advkit import attacks, eval
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
        >>> report = eval.evaluate(net, x, y, attacks=[attacks.FGSM(eps=0.1)])
        >>> list(report.worst_cases)
        ['linf 0.1']
        >>> float(report.worst_case) <= float(report.clean_accuracy)
        True
    """
    stream = evaluate_stream(
        model, x, y, attacks=attacks, batch_size=batch_size, device=device, progress=progress,
        store=store, shard=shard, executor=executor, factory=factory, chunk_size=chunk_size,
        threads=threads, identity=identity, about=about, class_names=class_names, command=command,
        callbacks=callbacks,
    )  # fmt: skip
    report = None
    with keeping("report", lambda: report, _KEPT):
        for report in stream:  # noqa: B007
            pass
    assert report is not None  # a stream without a sample raises
    return report


def evaluate_stream(
    model: object,
    x: Data,
    y: Tensor | None = None,
    *,
    attacks: Sequence[Attack],
    batch_size: int = 128,
    device: str | torch.device | None = None,
    progress: bool = False,
    store: str | Path | None = None,
    shard: tuple[int, int] | None = None,
    executor: Executor | None = None,
    factory: Callable[[], object] | None = None,
    chunk_size: int = CHUNK_SIZE,
    threads: int = 1,
    identity: str | None = None,
    about: Mapping[str, str] | None = None,
    class_names: Sequence[str] | None = None,
    command: str | None = None,
    callbacks: Sequence[Callback] = (),
) -> Iterator[Report]:
    """Evaluate a model and yield a report on all inputs so far after each chunk.

    Without `store` and `executor` a chunk is a batch. If you stop early, for example by an
    interrupt, you keep a report in which every attack was run on the same inputs. Later chunks do
    not change a report. It is built when it is first read, so that unread reports cost nothing;
    until then it keeps the records of the evaluation in memory. Callbacks get a chunk when the next
    report is requested, and the complete report when the stream is exhausted. Arguments and errors
    are those of `evaluate`.
    """
    evaluation = prepare(
        model, x, y, attacks=attacks, batch_size=batch_size, device=device, store=store,
        shard=shard, executor=executor, factory=factory, chunk_size=chunk_size, threads=threads,
        identity=identity, about=about, class_names=class_names, command=command,
        callbacks=callbacks,
    )  # fmt: skip
    return sample_rows.within(sample_rows.current_frame(), evaluation.reports(progress=progress))
