"""Backward passes through a model that is not trained, and errors that prevent them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

# End of the message of cuDNN, and of MIOpen on AMD's devices, such as "cudnn RNN backward ..."
_NEEDS_TRAINING_MODE = "RNN backward can only be called in training mode"


@contextmanager
def differentiating(model: object) -> Iterator[None]:
    """Explain the remedy where a backward pass through `model` needs a layer in training mode.

    Args:
        model: a module, or a classifier around one.

    Raises:
        RuntimeError: a recurrent layer on a GPU is in evaluation mode.
    """
    try:
        yield
    except RuntimeError as error:
        if _NEEDS_TRAINING_MODE not in str(error):
            raise
        raise RuntimeError(
            "`model` must have its recurrent layers in training mode for gradients on a GPU, got "
            f"{_recurrent(model)} in evaluation mode. Put only this layer in training mode, with a "
            "dropout of 0 (`net.eval(); net.lstm.train()`), and keep the modes: use "
            "TorchClassifier(net, mode='keep'), or mode='keep' of a training loss. Alternatively, "
            "turn cuDNN off with `with torch.backends.cudnn.flags(enabled=False):`."
        ) from error


def _recurrent(model: object) -> str:
    """Return the classes and names of the recurrent layers in evaluation mode, as text."""
    module = _module_of(model)
    layers = [] if module is None else list(module.named_modules())
    recurrent = [
        f"{type(layer).__name__} {name!r}"
        for name, layer in layers
        if isinstance(layer, nn.RNNBase) and not layer.training
    ]
    return ", ".join(recurrent) or "one"


def _module_of(model: object) -> nn.Module | None:
    """Return the module inside nested classifiers, `None` if there is not exactly one."""
    while not isinstance(model, nn.Module) and hasattr(model, "model"):
        model = model.model
    module = model if isinstance(model, nn.Module) else getattr(model, "module", None)
    return module if isinstance(module, nn.Module) else None
