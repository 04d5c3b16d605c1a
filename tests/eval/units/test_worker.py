"""Workers, which compute units."""

import pytest
import torch

from advkit import attacks
from advkit.eval.units import worker
from advkit.eval.units.chunks import Chunk, Inputs
from advkit.eval.units.worker import Job, Unit, Worker
from tests.eval.evaluated import CALLS, Net, data

FGSM = attacks.FGSM(eps=0.1)


def job(**changed):
    usual = {"model": Net(), "factory": None, "attacks": [FGSM], "batch_size": 10, "device": None}
    return Job(**{**usual, **changed})


def chunks(n=40):
    return list(Inputs(*data(n), 10, 20).chunks(lambda number: True))


def test_a_factory_is_called_on_the_device():
    seen = []

    def factory():
        seen.append(torch.get_default_device().type)
        net = Net()
        net.register_buffer("late", torch.zeros(1, device="cpu"))
        seen.append(net)
        return net

    Worker(job(model=None, factory=factory, device=torch.device("meta")))
    assert seen[0] == "meta"
    assert {each.device.type for each in (*seen[1].parameters(), *seen[1].buffers())} == {"meta"}
    assert torch.get_default_device().type == "cpu"
    Worker(job(model=None, factory=factory))
    assert seen[2] == "cpu"


def test_a_worker_with_a_factory_has_its_own_device(monkeypatch):
    asked = []

    def device(given):
        asked.append(given)
        return torch.device("cpu")

    monkeypatch.setattr(worker, "worker_device", device)
    assert (
        Worker(job(model=None, factory=Net, device="cuda")).surroundings(None, required=True)[
            "device"
        ]
        == "cpu"
    )
    assert asked == ["cuda"]
    assert (
        Worker(job(device=torch.device("cpu"))).surroundings(None, required=True)["device"] == "cpu"
    )
    assert asked == ["cuda"]  # a model stays where it is


def test_the_surroundings():
    found = Worker(job()).surroundings(None, required=True)
    assert found["device"] == "cpu"
    assert found["threads"] == torch.get_num_threads()
    assert set(found["versions"]) == {"advkit", "python", "torch"}
    assert len(found["model"]) == 64
    again = Worker(job(model=None, factory=Net, device=torch.device("cpu", 0)))
    assert again.surroundings(None, required=True) == found


def test_the_inputs_are_moved_once_for_each_chunk(monkeypatch):
    moved, to = [], Chunk.to

    def noted(self, device):
        moved.append((self.number, device))
        return to(self, device)

    monkeypatch.setattr(Chunk, "to", noted)
    own = Worker(job(device=torch.device("cpu")))
    first, second = chunks()
    clean = [own.compute(Unit(chunk)) for chunk in (first, second)]
    for chunk, found in ((second, clean[1]), (first, clean[0])):
        for _ in range(2):
            own.compute(Unit(chunk, 0, found))
    assert [number for number, _ in moved] == [0, 1, 0]
    assert {device for _, device in moved} == {torch.device("cpu")}


def test_attacks_in_any_order_give_the_same():
    first, second = chunks()
    own, fresh = Worker(job()), Worker(job())
    clean = [own.compute(Unit(chunk)) for chunk in (first, second)]
    found = [own.compute(Unit(c, 0, r)) for c, r in zip((first, second), clean, strict=True)]
    CALLS.clear()
    wanted = fresh.compute(Unit(second, 0, clean[1]))
    assert 10 not in CALLS  # no clean pass
    assert found[1].columns.keys() == wanted.columns.keys()
    for name, column in wanted.columns.items():
        torch.testing.assert_close(found[1].columns[name], column, rtol=0, atol=0, equal_nan=True)


def test_errors_number_the_samples_in_the_data():
    x, y = data(40)

    class FailsOnNoise(Net):
        def forward(self, inputs):
            if len(CALLS) % 2:
                CALLS.append(0)
                raise ValueError("of sample 3")
            return super().forward(inputs)

    CALLS.clear()
    own = Worker(job(model=FailsOnNoise()))
    unit = Unit(Chunk(2, ((x[:10], y[:10], 20),)))
    with pytest.raises(ValueError, match="in the batch that begins at sample 20: of sample 3"):
        own.compute(unit)
