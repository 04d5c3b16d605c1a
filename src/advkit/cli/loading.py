"""Functions that load the user's model, weights and data; their errors name the option."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from advkit.cli.errors import UsageError, reason, with_options
from advkit.core.archives import check_digest, read_torch
from advkit.core.content import load_state
from advkit.core.extras import require
from advkit.core.layouts import ImageMode, Layout
from advkit.core.naming import did_you_mean
from advkit.data import Dataset, ImageFolder, load_npz
from advkit.eval.units.worker_device import worker_device
from advkit.training.checkpoints import final_weights

# Keys of the state dict in checkpoints of Lightning and of many scripts.
_WRAPPED = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and its kind, and of torch.compile


def load_factory(reference: str) -> nn.Module:
    """Return the module that a factory in a Python file returns, from `FILE.py:FACTORY`.

    Raises:
        UsageError: the file or factory does not exist, or the factory fails or returns something
            other than a module.
    """
    file, colon, name = reference.rpartition(":")
    if not (file and colon and name):
        raise UsageError(f"--model must be FILE.py:FACTORY, got {reference!r}.")
    with _errors_of_the_user(f"importing {file}"):
        source = _imported(Path(file))
    with _errors_of_the_user(f"{file}:{name}"):
        factory: Any = getattr(source, name, None)
    _check_factory(factory, source, name, file)
    with _errors_of_the_user(f"{name}()"):
        module = factory()
    return _checked_module(module, name)


def _checked_module(module: Any, name: str) -> nn.Module:
    """Return what the factory `name` has returned, and raise unless it is a module."""
    if inspect.iscoroutine(module):
        module.close()  # Python would warn that it was never awaited
    if not isinstance(module, nn.Module):
        got = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
        raise UsageError(f"--model: {name}() must return a torch.nn.Module, got {got}.")
    return module


@contextmanager
def _errors_of_the_user(what: str) -> Iterator[None]:
    """Run code of the user, which may raise anything, without the arguments of the command."""
    argv, sys.argv = sys.argv, [what]  # for a parser of arguments at the top of the file
    try:
        yield
    except (KeyboardInterrupt, UsageError):
        raise
    except BaseException as error:
        raise UsageError(f"--model: {what} failed: {reason(error)}") from error
    finally:
        sys.argv = argv


def _imported(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"--model: no such file: {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"--model: {path} is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    sys.path.insert(0, str(path.parent.resolve()))  # permanently: factory and forward may import
    spec.loader.exec_module(module)
    return module


def _check_factory(factory: Any, module: ModuleType, name: str, file: str) -> None:
    """Raise unless `factory` is a function or a class that `load_factory` can call."""
    if isinstance(factory, nn.Module):
        raise UsageError(
            f"--model: {name} must be a function that returns the net, got the net itself, "
            f"{type(factory).__name__}."
        )
    if callable(factory):
        return
    own = [
        key
        for key, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    ]
    raise UsageError(f"--model: {file} has no factory {name!r}{did_you_mean(name, own) or '.'}")


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a state dict from a `.safetensors` file or a file of `torch.save` into `module`.

    It may be in a checkpoint, under `model`, `model_state_dict` or `state_dict`, and its keys may
    have the prefix of a wrapper, `module.` or `_orig_mod.`.

    Damaged files are refused. Archives of torch hold checksums. `.safetensors` files do not, and
    are compared with the digest in `PATH.sha256` if that file exists. After an error the module is
    unchanged.

    Raises:
        UsageError: the file does not exist, is damaged, or does not hold a state dict of `module`.
    """
    state = _read_state(path)
    if not isinstance(state, Mapping):
        raise UsageError(f"--weights: {path} must hold a state dict, got {type(state).__name__}.")
    try:
        load_state(module, _state_dict_in(state, module))
    except ValueError as error:
        raise UsageError(f"--weights: {path} does not fit the model: {reason(error)}") from error


def _state_dict_in(content: Mapping[Any, Any], module: nn.Module) -> Mapping[Any, Any]:
    """Return the state dict in a file, with the keys of `module` as far as that is possible."""
    of_fit = final_weights(content)
    if of_fit is not None:  # it has the buffers that a state dict leaves out, too
        left_out = dict(module.named_buffers()).keys() - module.state_dict().keys()
        return {key: value for key, value in of_fit.items() if key not in left_out}
    wrapped = (content[key] for key in _WRAPPED if isinstance(content.get(key), Mapping))
    return _without_prefix(next(wrapped, content), module)


def _without_prefix(state: Mapping[Any, Any], module: nn.Module) -> Mapping[Any, Any]:
    """Return `state` without the prefixes of wrappers, unless the keys of `module` have them."""
    own = module.state_dict().keys()
    for prefix in _PREFIXES * 2:  # a wrapper may be inside another one
        given = state.keys()
        if given and all(str(key).startswith(prefix) for key in given) and not given <= own:
            state = {str(key).removeprefix(prefix): value for key, value in state.items()}
    return state


def _read_state(path: Path) -> Any:
    try:
        if not path.is_file():
            raise UsageError(f"--weights: no such file: {path}")
        check_digest(path)
        if path.suffix == ".safetensors":
            safetensors = require("safetensors.torch", extra="report", needed_by=path.suffix)
            return safetensors.load_file(path)
        return read_torch(path)
    except UsageError:
        raise
    except ImportError as error:
        raise UsageError(f"--weights: {error}") from error
    except Exception as error:
        raise UsageError(f"--weights: cannot read {path}: {reason(error)}") from error


def load_data(path: Path, bounds: tuple[float, float], layout: Layout) -> Dataset:
    """Load the archive at `path`.

    Raises:
        UsageError: it does not exist, or `load_npz` cannot read it.
    """
    try:
        return load_npz(path, bounds, layout)
    except (OSError, ValueError) as error:
        raise UsageError(f"--data: {with_options(error)}") from error


def load_folder(
    path: Path,
    bounds: tuple[float, float],
    size: tuple[int, int] | None,
    mode: ImageMode,
) -> ImageFolder:
    """Find the images in the folder at `path`, without reading them.

    Raises:
        UsageError: it does not hold a subfolder of images for each class, or Pillow is missing.
    """
    try:
        return ImageFolder(path, bounds=bounds, size=size, mode=mode)
    except (ImportError, OSError, ValueError) as error:
        raise UsageError(f"--data: {with_options(error)}") from error


def load_lines(file: str, option: str) -> tuple[str, ...]:
    """Return the lines of a text file in UTF-8.

    Raises:
        UsageError: it cannot be read, or a line is empty.
    """
    try:
        lines = tuple(Path(file).read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError) as error:
        raise UsageError(f"{option}: cannot read {file}: {reason(error)}") from error
    if not all(map(str.strip, lines)):
        empty = 1 + [bool(line.strip()) for line in lines].index(False)
        raise UsageError(
            f"{option}: {file} must have a name in each line, got none in line {empty}."
        )
    return lines


def device_from(name: str) -> torch.device:
    """Return the device with this name; "cuda" is the GPU of the process under `torchrun`.

    Raises:
        UsageError: torch does not know the device or cannot use it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that torch is about to remove
            device = torch.device(name)
            device = worker_device(device) or device
            torch.zeros(1, device=device).cpu()
    except Exception as error:
        raise UsageError(f"--device: cannot use {name!r}: {reason(error)[:200]}") from error
    return device
