"""The device of a worker: each process on a machine takes its own GPU."""

from __future__ import annotations

import multiprocessing
import os
import re
from collections.abc import Mapping

import torch

# Number of a process among those of its machine, under torchrun, Slurm, Open MPI and Intel MPI.
_LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")


def worker_device(device: torch.device | None) -> torch.device | None:
    """Return the device of this process for `device`.

    "cuda" without a number becomes one of the GPUs that the process sees, by its number among the
    processes of the machine, if that is known. Any other device is returned as it is.
    """
    if device is None or device.type != "cuda" or device.index is not None:
        return device
    number = local_rank(os.environ, multiprocessing.current_process().name)
    if number is None:
        return device
    return torch.device("cuda", number % max(1, torch.cuda.device_count()))


def local_rank(environ: Mapping[str, str], process: str) -> int | None:
    """Return the number of a process among those of its machine, `None` if unknown.

    A worker of a process pool inherits the variables of its parent, so its own number is added.

    Args:
        environ: environment variables, in which launchers of processes put the number.
        process: name of the process, to which a process pool adds a number from 1.
    """
    given = (environ.get(name, "") for name in _LOCAL_RANKS)
    rank = next((int(text) for text in given if text.isdecimal()), None)
    found = re.search(r"-(\d+)$", process)
    if rank is None and found is None:
        return None
    return (rank or 0) + (int(found[1]) - 1 if found else 0)
