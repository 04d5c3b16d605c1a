"""Backward passes through a model that does not learn, and what stops them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

# Of cuDNN, and of MIOpen on AMD's devices: "cudnn RNN backward can only be called in training mode"
_NEEDS_TRAINING_MODE = "RNN backward can only be called in training mode"


@contextmanager
def differentiating(model: object) -> Iterator[None]:
    """Say what to do where a backward pass through `model` needs a layer in training mode.

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
            f"{_recurrent(model)} in evaluation mode. Leave that layer alone in training mode, "
            "with a dropout of 0 (`net.eval(); net.lstm.train()`), and keep it there: "
            "TorchClassifier(net, mode='keep'), or mode='keep' of a training loss. Or turn cuDNN "
            "off: `with torch.backends.cudnn.flags(enabled=False):`."
        ) from error


def _recurrent(model: object) -> str:
    """Return names and kinds of the recurrent layers in evaluation mode."""
    module = _module_of(model)
    layers = [] if module is None else list(module.named_modules())
    found = [
        f"{type(layer).__name__} {name!r}"
        for name, layer in layers
        if isinstance(layer, nn.RNNBase) and not layer.training
    ]
    return ", ".join(found) or "one"


def _module_of(model: object) -> nn.Module | None:
    """Return the module behind classifiers around classifiers, if there is a single one."""
    while not isinstance(model, nn.Module) and hasattr(model, "model"):
        model = model.model
    module = model if isinstance(model, nn.Module) else getattr(model, "module", None)
    return module if isinstance(module, nn.Module) else None
