"""Inputs of an evaluation: their numbers, labels, clean predictions and hashes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from advkit.eval.accuracy import NOT_FINITE
from advkit.eval.units.input_columns import hash_of_data


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluatedInputs:
    """The `n` inputs of an evaluation, apart from their features.

    Attributes:
        index: int64 `(n,)`; number of the input in the data.
        label: int64 `(n,)`; true label, an index of the model's classes.
        prediction: int64 `(n,)`; label that the model predicts before any attack, -1 for a
            rejection and -2 for NaN or infinite logits.
        sha256: uint8 `(32, n)`; hash of each input and its label.
    """

    index: Tensor
    label: Tensor
    prediction: Tensor
    sha256: Tensor

    def __len__(self) -> int:
        return len(self.index)

    @property
    def correct(self) -> Tensor:
        """Bool `(n,)`; labeled correctly before any attack."""
        return self.prediction == self.label

    @property
    def not_finite(self) -> Tensor:
        """Bool `(n,)`; NaN or infinite logits before any attack, which is not correct."""
        return self.prediction == NOT_FINITE

    @property
    def data_sha256(self) -> str:
        """SHA-256 of all inputs and labels in their order, in hexadecimal.

        It is the hash of the hashes of all inputs. Batches and workers do not change it.
        """
        return hash_of_data(self.sha256)
