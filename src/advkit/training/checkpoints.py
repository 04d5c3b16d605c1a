"""Checkpoints of a training: one file, written after each epoch, from which training resumes.

The file only holds plain values (tensors, numbers, strings), so that reading it runs no code.
"""

from __future__ import annotations

import copy
import io
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from advkit.core.archives import read_torch
from advkit.core.content import check_like, check_state
from advkit.core.files import save_bytes
from advkit.training.checkpoint_content import (
    check_optimizer,
    check_random,
    check_setup,
    checked_epochs,
    is_of_torch,
)
from advkit.training.history import Epoch

_FORMAT = "advkit training 1"
_KEYS = {"format", "epochs", "setup", "model", "averaged", "optimizer", "scheduler", "random"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """State of a training: everything that changes while a model is trained.

    Attributes:
        model: the model that is trained.
        optimizer: optimizer of its parameters.
        scheduler: scheduler of the optimizer, or `None`.
        averaged: average of the model's weights and buffers, or `None`.
        generators: random generators of the data, in addition to the global ones.
        device: device of the model, whose random state is part of the run.
        setup: settings that a resumed run must share with the first one, as text by name.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler | None
    averaged: AveragedModel | None
    generators: tuple[torch.Generator, ...]
    device: torch.device
    setup: Mapping[str, str]

    @contextmanager
    def preserve_rng(self) -> Iterator[None]:
        """Restore the states of all random generators at the end of the block."""
        state = self._random_state()
        try:
            yield
        finally:
            self._set_random_state(state)

    def state(self) -> dict[str, Any]:
        """Return the state of the run in plain values."""
        return {
            "setup": dict(self.setup),
            "model": _state(self.model),
            "averaged": None if self.averaged is None else _state(self.averaged),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "random": self._random_state(),
        }

    def check(self, state: Mapping[str, Any]) -> None:
        """Raise unless the run can resume from `state`; nothing is changed.

        Only optimizers and schedulers of torch have a known state. Those of other classes may have
        any state, and check it when it is loaded.

        Raises:
            ValueError: `state` belongs to another run, or is invalid.
        """
        self._check_same_model(state["model"])
        check_setup(state["setup"], self.setup)
        check_state("model", state["model"], _state(self.model))
        if self.averaged is None:
            check_like("averaged", state["averaged"], None)
        else:
            check_state("averaged", state["averaged"], _state(self.averaged))
        if is_of_torch(self.optimizer):
            with self.preserve_rng():  # an optimizer may draw random numbers in the trial step
                check_optimizer(state["optimizer"], self.optimizer)
        if self.scheduler is None:
            check_like("scheduler", state["scheduler"], None)
        elif is_of_torch(self.scheduler):
            check_like("scheduler", state["scheduler"], self.scheduler.state_dict())
        check_random(state["random"], self.generators, self.device)

    def _check_same_model(self, state: object) -> None:
        saved, own = _shapes(state), _shapes(_state(self.model))
        for name in {**saved, **own}:
            there, here = saved.get(name, "absent"), own.get(name, "absent")
            if there != here:
                raise ValueError(f"in its model {name} is {there}, not {here}.")

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Resume from `state`, which `check` accepts; after an error the run is unchanged."""
        before = copy.deepcopy(self.state())
        try:
            self._set(state)
        except BaseException:
            self._set(before)
            raise

    def _set(self, state: Mapping[str, Any]) -> None:
        _load(self.model, state["model"])
        if self.averaged is not None:
            _load(self.averaged, state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler is not None:
            self.scheduler.load_state_dict(state["scheduler"])
        self._set_random_state(state["random"])

    def _random_state(self) -> dict[str, Any]:
        numpy_state: Any = np.random.get_state()
        kind, words, *rest = numpy_state
        on_cuda = self.device.type == "cuda"
        return {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if on_cuda else None,
            "numpy": (kind, torch.from_numpy(words.astype(np.int64)), *rest),
            "python": random.getstate(),
            "generators": [generator.get_state() for generator in self.generators],
        }

    def _set_random_state(self, state: Mapping[str, Any]) -> None:
        kind, words, *rest = state["numpy"]
        torch.set_rng_state(state["torch"])
        if self.device.type == "cuda" and state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"], self.device)
        np.random.set_state((kind, words.numpy().astype(np.uint32), *rest))
        random.setstate(state["python"])
        for generator, own in zip(self.generators, state["generators"], strict=True):
            generator.set_state(own)


def save(path: Path, run: Run, epochs: list[Epoch]) -> None:
    """Replace the file at `path` by the current state of the run, after `epochs`.

    Raises:
        ValueError: a part of the run has other than plain values in its state.
        OSError: the file cannot be written.
    """
    content = {"format": _FORMAT, "epochs": [asdict(epoch) for epoch in epochs], **run.state()}
    buffer = io.BytesIO()
    try:
        torch.save(content, buffer)
        buffer.seek(0)
        torch.load(buffer, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle raises what the objects raise
        raise ValueError(
            f"checkpoint {path} cannot be written: the state_dict() of model, optimizer and "
            f"scheduler must only hold tensors, numbers and strings. {error}"
        ) from error
    save_bytes(path, buffer.getbuffer())


def resume(path: Path, run: Run, epochs: int) -> list[Epoch]:
    """Set `run` to the state in the file at `path`, and return the epochs done until then.

    Args:
        path: an existing file.
        run: the run to resume; it is unchanged if an error is raised.
        epochs: total number of epochs of the training.

    Raises:
        ValueError: the file is damaged or not a checkpoint, belongs to another run, or was written
            after more than `epochs` epochs.
        OSError: the file cannot be read.
    """
    content = _read(path)
    try:
        done = checked_epochs(content["epochs"])
        run.check(content)
    except ValueError as error:
        raise ValueError(
            f"`checkpoint` must belong to this run, got {path}: {error} Remove it to start again."
        ) from error
    if len(done) > epochs:
        raise ValueError(
            f"`epochs` must be at least {len(done)}, the number of epochs in checkpoint {path}, "
            f"got {epochs}."
        )
    try:
        run.set_state(content)
    except Exception as error:  # models and schedulers may have any state in addition to tensors
        raise ValueError(f"`checkpoint` must belong to this run, got {path}: {error}") from error
    return done


def final_weights(content: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the state dict that a net has after `fit`, from the content of a checkpoint.

    It is that of the averaged weights if there are any, and `None` for another kind of content.
    """
    if content.get("format") != _FORMAT:
        return None
    averaged, model = content.get("averaged"), content.get("model")
    if isinstance(averaged, Mapping):
        weights = {str(k).removeprefix("module."): v for k, v in averaged.items()}
        return {k: v for k, v in weights.items() if k != "n_averaged"}
    return model if isinstance(model, Mapping) else None


def _read(path: Path) -> dict[str, Any]:
    try:
        content = read_torch(path)
    except ValueError as error:
        raise ValueError(
            f"`checkpoint` must be a checkpoint of fit, got {path}, which is damaged or another "
            "kind of file."
        ) from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(
            f"`checkpoint` must be a checkpoint of fit, got {path}, a file of another kind."
        )
    if content.keys() != _KEYS:
        raise ValueError(
            f"`checkpoint` must hold {', '.join(sorted(_KEYS))}, got {path}, which holds "
            f"{', '.join(sorted(map(str, content)))}."
        )
    return content


def _state(module: nn.Module) -> dict[str, Any]:
    """Return the module's state, including the buffers that `state_dict` leaves out."""
    return {**module.state_dict(), **dict(module.named_buffers())}


def _shapes(state: object) -> dict[str, str]:
    if not isinstance(state, Mapping):
        raise ValueError(f"`model` must be a dict, got {type(state).__name__}.")
    return {
        name: f"{value.dtype} {tuple(value.shape)}"
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def _load(module: nn.Module, state: Mapping[str, Any]) -> None:
    module.load_state_dict({name: state[name] for name in module.state_dict()})
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            buffer.copy_(state[name])
