"""Shards: the share of an evaluation that one of several processes computes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from advkit.core import checks


@dataclass(frozen=True)
class Shard:
    """Share `number` of `count`: the chunks `number`, `number + count`, ...

    Attributes:
        number: number of the shard, from 0.
        count: number of shards.
    """

    number: int
    count: int

    def holds(self, chunk: int) -> bool:
        """Return whether the chunk with this number belongs to the shard."""
        return chunk % self.count == self.number

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def checked_shard(shard: object) -> Shard:
    """Return `shard`, a pair of its number and the number of shards, as a `Shard`.

    Raises:
        TypeError: it is not a pair of integers.
        ValueError: the number is not in 0, ..., count - 1.
    """
    if not isinstance(shard, (tuple, list)) or len(shard) != 2:
        raise TypeError(
            "`shard` must be a pair (number, count), such as (0, 4) for the first of four, "
            f"got {shard!r}."
        )
    number, count = shard
    checks.integer("`shard[1]`", count, at_least=1)
    checks.integer("`shard[0]`", number, at_least=0)
    if number >= count:
        raise ValueError(
            f"`shard` must have a number below its count, got {(number, count)}. Shards are "
            f"numbered from 0 to {count - 1}."
        )
    return Shard(int(number), int(count))


def shard_of_process(environ: Mapping[str, str] = os.environ) -> Shard:
    """Return the shard of this process by its environment, the whole without one.

    `torchrun` sets RANK and WORLD_SIZE. An array of Slurm jobs sets SLURM_ARRAY_TASK_ID, _MIN, _MAX
    and _COUNT; the ids may begin at any number and have any regular step.

    Raises:
        ValueError: RANK is not below WORLD_SIZE, or the ids of the array have gaps.
    """
    rank, size = (_number(environ, name) for name in ("RANK", "WORLD_SIZE"))
    if rank is not None and size is not None and size > 1:
        if rank >= size:
            raise ValueError(
                f"`RANK` must be below WORLD_SIZE, got {rank} of {size}. Pass "
                "shard=(number, count)."
            )
        return Shard(rank, size)
    fields = ("ID", "MIN", "MAX", "COUNT")
    task, least, most, count = (_number(environ, f"SLURM_ARRAY_TASK_{part}") for part in fields)
    if task is None or least is None or most is None or count is None or count <= 1:
        return Shard(0, 1)
    step, rest = divmod(most - least, count - 1)
    if rest or step < 1 or (task - least) % step:
        raise ValueError(
            "`SLURM_ARRAY_TASK_ID` must be one of a regular range, such as --array=0-15, got an "
            f"array of {count} from {least} to {most}. Pass shard=(number, count)."
        )
    return Shard((task - least) // step, count)


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    return int(text) if text.isdecimal() else None
