"""Stores of `advkit evaluate` and `advkit merge`: their options, shards and errors."""

from __future__ import annotations

import argparse
import shlex

from advkit.cli.errors import UsageError, with_options
from advkit.eval import Report
from advkit.eval.store.shards import Shard, shard_of_process


def shard_from(args: argparse.Namespace) -> Shard:
    """Return the share of the inputs that this process evaluates, the whole without a store.

    Without `--shard` it is that of the process under `torchrun` or in a Slurm array.

    Raises:
        UsageError: an option needs a store, or the environment does not define a share.
    """
    if args.store is None:
        for name in ("shard", "chunk_size", "identity"):
            if getattr(args, name) is not None:
                raise UsageError(f"--store must be given with --{name.replace('_', '-')}.")
        return Shard(0, 1)
    if args.shard is not None:
        return Shard(*args.shard)
    try:
        return shard_of_process()
    except ValueError as error:
        raise UsageError(with_options(error)) from error


def shard_line(shard: Shard, report: Report, inputs: int, store: str) -> str:
    """Return the result of a shard and what to do next, in one line.

    Args:
        shard: the shard.
        report: report on the inputs of the shard so far.
        inputs: number of the inputs of all shards.
        store: the store.
    """
    done = len(report.clean)
    if report.total is not None and done < report.total:
        return (
            f"shard {shard}: {done:,} of its {report.total:,} inputs are in {store}. Run the same "
            "command again to go on."
        )
    text = f"{done:,} of {inputs:,} inputs are in {store}."
    if not done:
        text = (
            f"it has no inputs, since {inputs:,} inputs are fewer chunks than {shard.count:,}. A "
            "new store with a smaller --chunk-size has more."
        )
    merge = f"advkit merge {shlex.quote(store)}"
    return f"shard {shard}: {text} When all shards have ended: {merge}"


def store_error(error: BaseException) -> str | None:
    """Return the message of an error about a store, `None` for any other error."""
    if not isinstance(error, (OSError, TypeError, ValueError)):
        return None
    text = f"{error.strerror}." if isinstance(error, OSError) and error.strerror else str(error)
    return text if "`store`" in text else None
