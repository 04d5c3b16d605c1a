"""The GPU of a worker."""

import pytest
import torch

from advkit.eval.units import worker_device
from advkit.eval.units.worker_device import local_rank


@pytest.mark.parametrize(
    ("environ", "process", "number"),
    [
        ({}, "MainProcess", None),
        ({}, "ForkProcess-1", 0),
        ({}, "SpawnPoolWorker-12", 11),
        ({}, "Dask Worker process (from Nanny)", None),
        ({"LOCAL_RANK": "3"}, "MainProcess", 3),
        ({"SLURM_LOCALID": "2"}, "MainProcess", 2),
        ({"OMPI_COMM_WORLD_LOCAL_RANK": "5"}, "MainProcess", 5),
        ({"MPI_LOCALRANKID": "1"}, "MainProcess", 1),
        ({"LOCAL_RANK": "1", "SLURM_LOCALID": "0"}, "MainProcess", 1),
        ({"LOCAL_RANK": "", "SLURM_LOCALID": "4"}, "MainProcess", 4),
        ({"LOCAL_RANK": "²"}, "MainProcess", None),
        ({"SLURM_LOCALID": "0"}, "ForkProcess-3", 2),  # a pool in a job of Slurm
    ],
)
def test_the_number_of_a_process(environ, process, number):
    assert local_rank(environ, process) == number


@pytest.mark.parametrize(("count", "wanted"), [(0, 0), (1, 0), (2, 1), (4, 3)])
def test_cuda_is_the_gpu_of_the_worker(monkeypatch, count, wanted):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setenv("LOCAL_RANK", "3")
    found = worker_device.worker_device(torch.device("cuda"))
    assert found == torch.device("cuda", wanted)


@pytest.mark.parametrize("device", [None, torch.device("cpu"), torch.device("cuda", 1)])
def test_other_devices_stay(monkeypatch, device):
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert worker_device.worker_device(device) == device


def test_cuda_stays_in_a_process_without_a_number(monkeypatch):
    for name in worker_device._LOCAL_RANKS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(worker_device.multiprocessing.current_process(), "_name", "MainProcess")
    assert worker_device.worker_device(torch.device("cuda")) == torch.device("cuda")
