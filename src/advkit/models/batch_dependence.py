"""Find models whose answer to a sample depends on the rest of its batch."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from advkit.core import checks
from advkit.core.results import InconclusiveWarning
from advkit.models.torch import TorchClassifier


def keeps_batch(model: object) -> bool:
    """Return True if `model`, or one that it wraps, is to be given each batch whole."""
    return any(found.batch == "whole" for found in _torch_classifiers(model))


def warn_of_batch_statistics(model: object) -> None:
    """Warn if an attack may send parts of a batch to a `model` that normalizes over the batch."""
    found = list(_torch_classifiers(model))
    if any(one.batch == "whole" for one in found):
        return
    for one in found:
        if one.uses_batch_statistics:
            checks.warn(
                f"{one!r} has a batch norm that uses the statistics of each batch, so its answer "
                "to a sample depends on the rest of the batch, and an attack leaves out samples "
                "that are finished: its result may not hold for the batch as a whole. Use "
                'TorchClassifier(batch="whole"), or a net with running statistics',
                InconclusiveWarning,
            )


def _torch_classifiers(model: object) -> Iterator[TorchClassifier]:
    """Return the modules behind a classifier: its own, and those of the models that it wraps."""
    if isinstance(model, TorchClassifier):
        yield model
        return
    members = getattr(model, "models", ())
    inner = members if isinstance(members, tuple) else ()
    for one in {id(one): one for one in (*inner, getattr(model, "model", None))}.values():
        if one is not None and not isinstance(one, nn.Module):
            yield from _torch_classifiers(one)
