"""The default net of `advkit evaluate`: trained once, in seconds, and cached."""

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
    """Return a small convolutional net for `data.digits`, from the cache or newly trained."""
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
    """Run the block in one thread, since the net is too small for several.

    More threads are a little faster on an idle machine, but on a busy one they wait for each other
    most of the time.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class DigitsNet(nn.Sequential):
    """Net of two convolutions and two linear layers, from `(n, 1, 8, 8)` to logits `(n, 10)`."""

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
    """Return the folder of trained nets: `$ADVKIT_CACHE`, or `advkit` in the user's cache."""
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
    """Load the cached net; a damaged one is reported and leaves `net` unchanged."""
    if not path.is_file():
        return False
    try:
        cached = read_torch(path)
        check_keys("file", cached, ("weights", "sha256"))
        check_state("weights", cached["weights"], net.state_dict())
        if cached["sha256"] != digest_of(cached["weights"]):
            raise ValueError("its digest belongs to other weights.")
        load_state(net, cached["weights"])
    except (OSError, ValueError) as error:
        _report(f"the cached net cannot be read and is trained again: {error}")
        return False
    return True


def _store(net: nn.Module, path: Path) -> None:
    weights = net.state_dict()
    content = io.BytesIO()
    # Into memory first: a write of torch.save to a file hides a full disk.
    torch.save({"weights": weights, "sha256": digest_of(weights)}, content)
    try:
        save_bytes(path, content.getbuffer())
    except OSError as error:
        _report(f"the trained net could not be cached: {error}")


def _report(sentence: str) -> None:
    print(f"advkit: {sentence}", file=sys.stderr)  # noqa: T201 - this is the command line
