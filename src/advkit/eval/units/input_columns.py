"""Columns that identify the inputs of an evaluation and hold their clean predictions."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from advkit.core.archives import digest_of_tensor
from advkit.eval.accuracy import ClassifiedBatch

HASH_BYTES = 32  # of SHA-256


def input_columns(parts: Sequence[ClassifiedBatch]) -> dict[str, Tensor]:
    """Return the columns of consecutive batches of `n` inputs together.

    Returns:
        Tensors on the CPU: `index` int64 `(n,)`, the number of the input in the data, `label` and
        `prediction` int64 `(n,)`, and `sha256` uint8 `(32, n)`, the hash of input and label.
    """
    columns = [
        {
            "index": torch.arange(part.first, part.first + len(part.x)),
            "label": part.y.long().cpu(),
            "prediction": part.predicted.long().cpu(),
            "sha256": hashes_of_inputs(part.x, part.y),
        }
        for part in parts
    ]
    return {name: torch.cat([each[name] for each in columns], dim=-1) for name in columns[0]}


def hashes_of_inputs(x: Tensor, y: Tensor) -> Tensor:
    """Return the SHA-256 of each input and its label, uint8 `(32, n)`.

    The hashed bytes are those of the text "HASH LABEL", where HASH is `digest_of_tensor` of the
    input in hexadecimal. A hash does not depend on the batch.
    """
    labels = y.long().tolist()
    rows = zip(x.detach().cpu(), labels, strict=True)
    texts = (f"{digest_of_tensor(row)} {label}" for row, label in rows)
    joined = b"".join(hashlib.sha256(text.encode()).digest() for text in texts)
    array = np.frombuffer(joined, np.uint8).reshape(len(labels), HASH_BYTES)
    return torch.from_numpy(array.T.copy())


def hash_of_data(hashes: Tensor) -> str:
    """Return the SHA-256, in hexadecimal, of the hashes uint8 `(32, n)` of all inputs in order."""
    return hashlib.sha256(hashes.T.contiguous().numpy().tobytes()).hexdigest()
