"""The net that `advkit evaluate` attacks when it is given none: trained here, once, in seconds."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advkit.core.archives import digest_of, read_torch
from advkit.core.content import check_keys, check_state, load_state
from advkit.core.files import save_bytes
from advkit.data import digits
from advkit.training.fit import fit
from advkit.training.shuffled import shuffled

EPOCHS = 40
_BATCH = 64


def digits_net(*, progress: bool) -> nn.Module:
    """A small convolutional net for `data.digits`, from the cache or trained into it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = DigitsNet()
        path = cache_folder() / "digits-net-2.pt"
        if not _load(net, path):
            _train(net, progress=progress)
            _store(net, path)
    return net.eval()


@contextmanager
def one_thread() -> Iterator[None]:
    """Everything inside in one thread: this net is too small to share.

    Threads would gain a little on an idle machine, and wait for each other most of the time on a
    busy one.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class DigitsNet(nn.Sequential):
    """Two convolutions and two linear layers: `(n, 1, 8, 8)` to logits `(n, 10)`."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(512, 64),
            nn.ReLU(),
            nn.Dropout(0.3),
            nn.Linear(64, 10),
        )


def cache_folder() -> Path:
    """Where trained nets are kept: `$ADVKIT_CACHE`, or `advkit` in the user's cache folder."""
    own = os.environ.get("ADVKIT_CACHE")
    base = os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path(base or Path.home() / ".cache") / "advkit"


def _train(net: nn.Module, *, progress: bool) -> None:
    train = digits("train")
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    loader = shuffled(train.x, train.y, _BATCH)
    fit(net, loader, loss=_loss, optimizer=optimizer, epochs=EPOCHS, progress=progress)


def _loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x), y)


def _load(net: nn.Module, path: Path) -> bool:
    """Load the cached net; one that is not whole is reported and leaves `net` as it is."""
    if not path.is_file():
        return False
    try:
        cached = read_torch(path)
        check_keys("the file", cached, ("weights", "sha256"))
        check_state("weights", cached["weights"], net.state_dict())
        if cached["sha256"] != digest_of(cached["weights"]):
            raise ValueError("its weights do not have the digest that it holds")
        load_state(net, cached["weights"])
    except (OSError, ValueError) as error:
        _say(f"the cached net cannot be read and is trained again: {error}")
        return False
    return True


def _store(net: nn.Module, path: Path) -> None:
    weights = net.state_dict()
    content = io.BytesIO()
    torch.save(
        {"weights": weights, "sha256": digest_of(weights)}, content
    )  # a file hides a full disk
    try:
        save_bytes(path, content.getbuffer())
    except OSError as error:
        _say(f"the trained net could not be cached: {error}")


def _say(sentence: str) -> None:
    print(f"advkit: {sentence}", file=sys.stderr)  # noqa: T201 - this is the command line
