"""Models, data and attacks for the tests of stores and executors, which workers can import."""

import dataclasses
import os
import time
import warnings
from pathlib import Path

import torch
from torch import nn

from advkit import attacks
from tests.second_inputs import data as data_with_second_inputs

CALLS = []  # number of inputs in each call of a net in this process
MADE = []  # one entry for each call of `make` in this process


class Net(nn.Module):
    """A smooth net of three classes for inputs `(n, 6)`, which counts its calls."""

    def __init__(self, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.first = nn.Parameter(torch.randn(6, 5, generator=generator))
        self.second = nn.Parameter(torch.randn(5, 3, generator=generator))

    def forward(self, x):
        CALLS.append(len(x))
        return (x @ self.first).tanh() @ self.second


class Slow(Net):
    """A net that takes a while for each call."""

    seconds = 0.003

    def forward(self, x):
        time.sleep(self.seconds)
        return super().forward(x)


class Ends(Net):
    """A net whose process ends when the file `path` exists, which is removed."""

    def __init__(self, path):
        super().__init__()
        self.path = str(path)

    def forward(self, x):
        if len(MADE) >= 2 or x.requires_grad:
            try:
                os.unlink(self.path)
            except FileNotFoundError:
                pass
            else:
                os._exit(1)
        return super().forward(x)


class Warns(Net):
    """A net that warns at each call."""

    def forward(self, x):
        warnings.warn("of the net", UserWarning, stacklevel=1)
        return super().forward(x)


class Centered(Net):
    """A net whose logits depend on the whole batch."""

    def forward(self, x):
        return super().forward(x) + x.mean(0).sum() * torch.tensor([0.3, -0.3, 0.1])


class Local(nn.Module):
    """A net that cannot be pickled."""

    def __init__(self):
        super().__init__()
        self.net, self.function = Net(), lambda x: x

    def forward(self, x):
        return self.function(self.net(x))


class ServiceError(Exception):
    """An error that can be pickled and not unpickled."""

    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")


class Fails(Net):
    """A net whose service fails."""

    def forward(self, x):
        raise ServiceError(503, "busy")


def make():
    """A net, and an entry in `MADE`."""
    MADE.append(os.getpid())
    return Net()


def make_and_note():
    """A net, and a file for each call in the folder that an environment variable names."""
    Path(os.environ["ADVKIT_TEST_FOLDER"], f"{os.getpid()}-{time.monotonic_ns()}").touch()
    return Net()


def data(n=60):
    """Inputs `(n, 6)`, and labels of which every seventh is wrong; no call is counted."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, 6, generator=generator)
    y = Net()(x).argmax(1)
    CALLS.pop()
    y[::7] = (y[::7] + 1) % 3
    return x, y


def several(n=60):
    """Attacks of several kinds, one with an `eps` for each of `n` samples."""
    return [
        attacks.FGSM(eps=0.05),
        attacks.PGD(eps=torch.linspace(0.01, 0.2, n), steps=3),
        attacks.DeepFool(steps=5),
    ]


def with_second_inputs(n=60):
    """A net that reads `current_rows`, inputs and labels."""
    return data_with_second_inputs(n)


OF_THE_RUN = ("date", "command", "threads", "batch_size", "device")


def plain(report):
    """What a report says, without times and what belongs to the run."""
    found = {name: value for name, value in report.to_dict().items() if name not in OF_THE_RUN}
    for attack in found["attacks"]:
        attack.pop("seconds")
    return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stops:
    """FGSM that raises an error in the batch with an input that begins with 2 / 3."""

    error: type[BaseException] = KeyboardInterrupt
    norm: str = "linf"
    eps: float = 0.05

    def run(self, model, x, y=None, *, target=None):
        if (x[:, 0] == 2 / 3).any():
            raise self.error("stopped")
        return attacks.FGSM(eps=self.eps).run(model, x, y)

    def __call__(self, model, x, y=None, *, target=None):
        return self.run(model, x, y).x_adv
