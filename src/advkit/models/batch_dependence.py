"""Detection of models whose prediction for a sample depends on the rest of its batch."""

from __future__ import annotations

from collections.abc import Iterator

from advkit.core import checks
from advkit.core.results import InconclusiveWarning
from advkit.models.inner_model import innermost
from advkit.models.torch import TorchClassifier


def keeps_batch(model: object) -> bool:
    """Return True if `model`, or one that it wraps, must be given each batch whole."""
    return any(classifier.batch == "whole" for classifier in _torch_classifiers(model))


def uses_batch_statistics(model: object) -> bool:
    """Return True if `model`, or one that it wraps, normalizes over the batch that it is given."""
    return any(classifier.uses_batch_statistics for classifier in _torch_classifiers(model))


def warn_of_batch_statistics(model: object) -> None:
    """Warn if an attack may send parts of a batch to a `model` that normalizes over the batch."""
    classifiers = list(_torch_classifiers(model))
    if any(classifier.batch == "whole" for classifier in classifiers):
        return
    for classifier in classifiers:
        if classifier.uses_batch_statistics:
            checks.warn(
                f"{classifier!r} has a batch norm that uses the statistics of each batch, so its "
                "prediction for a sample depends on the rest of the batch. An attack leaves out "
                "finished samples, so its result may not hold for the batch as a whole. Use "
                'TorchClassifier(batch="whole"), or a network with running statistics.',
                InconclusiveWarning,
            )


def _torch_classifiers(model: object) -> Iterator[TorchClassifier]:
    """Yield the `TorchClassifier` that `model` is, or those that it wraps at any depth."""
    return (part for part in innermost(model) if isinstance(part, TorchClassifier))
