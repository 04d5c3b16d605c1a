"""Evaluate a small net in this process or in the workers of an executor, for tests.

    python -m tests.eval.store.run_evaluation REPORT.json [--store FOLDER] [--engine NAME] ...

Writes the digest of the report and what it says. Prints "ready" before it begins.
"""

import argparse
import json
import multiprocessing
import os
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch

from advkit import eval
from tests.eval.evaluated import Net, Slow, data, plain, several


@contextmanager
def dask(workers):
    """Dask's executor, with workers of one thread."""
    from distributed import Client, LocalCluster

    cluster = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
    with cluster, Client(cluster) as client:
        yield client.get_executor()


@contextmanager
def mpi(workers):
    """The executor of mpi4py, whose workers `mpiexec` has started."""
    from mpi4py.futures import MPIPoolExecutor

    with MPIPoolExecutor(workers) as executor:
        yield executor


def executor(engine, workers):
    """A context with the executor of an engine, `None` for this process."""
    if engine in ("fork", "spawn"):
        return ProcessPoolExecutor(workers, multiprocessing.get_context(engine))
    return {"dask": dask, "mpi": mpi}[engine](workers) if engine else nullcontext(None)


def run(report, store, engine, workers, shard, inputs, slow):
    """Evaluate, and write the report."""
    torch.set_num_threads(1)
    x, y = data(inputs)
    with executor(engine, workers) as found:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        made = eval.evaluate(
            Slow() if slow else Net(), x, y, attacks=several(inputs), batch_size=8,
            chunk_size=16, store=store, shard=shard, executor=found,
        )  # fmt: skip
    rank = os.environ.get("RANK", "")
    Path(f"{report}{rank}").write_text(json.dumps({"digest": made.digest, **plain(made)}))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("report")
    parser.add_argument("--store")
    parser.add_argument("--engine", choices=["fork", "spawn", "dask", "mpi"])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard", type=int, nargs=2)
    parser.add_argument("--inputs", type=int, default=60)
    parser.add_argument("--slow", action="store_true")
    run(**vars(parser.parse_args()))
