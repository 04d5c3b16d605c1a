"""Records of an evaluation: one row for each attack and input."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from advkit.core.extras import require
from advkit.core.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Records:
    """Results of each attack on each input, as columns of equal length.

    The rows of the first attack come first, in the order of the inputs.

    Attributes:
        attacks: the call that creates each attack.
        columns: columns `(rows,)` on the CPU, by name:

            - `attack` int64: number of the attack in `attacks`.
            - `index` int64: number of the input in the data.
            - `label` int64: true label.
            - `clean_prediction` int64: label that the model predicts before any attack, -1 for a
              rejection, -2 for NaN or infinite logits.
            - `adversarial_prediction` int64: label that it predicts for the adversarial example, -1
              without one.
            - `success` bool: labeled correctly before the attack, but not after it.
            - `distance` float64: distance of the adversarial example, NaN without one.
            - `radius` float64: budget, inf for a minimum-norm attack, zero for an input that was
              not attacked because the model mislabels it.
            - `forward`, `backward` int64: passes of the input through the model.
            - `seconds` float64: time of the unit of work of the input, divided by its attacked
              inputs.
            - `stage` int64: number of the attack inside a `Suite`, `AutoAttack` or `Cascade` that
              succeeded, -1 without one.
            - the masks of `AttackResult` that say why an attack failed, bool.

    Example:
        >>> import torch
        >>> from advkit import attacks, eval
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
        >>> report = eval.evaluate(net, x, y, attacks=[attacks.FGSM(eps=0.1)])
        >>> len(report.records), report.records.columns["index"].tolist()
        (5, [0, 1, 2, 3, 4])
    """

    attacks: tuple[str, ...]
    columns: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.columns["index"])

    def to_pandas(self) -> pd.DataFrame:
        """Return a data frame with the columns, and the call of each attack in `attack_call`.

        Raises:
            ImportError: pandas is missing; the message names the extra that installs it.
        """
        pandas = require("pandas", extra="records", needed_by="`to_pandas`")
        arrays = {name: column.numpy() for name, column in self.columns.items()}
        calls = np.array([*self.attacks], dtype=object)[arrays["attack"]]
        frame: pd.DataFrame = pandas.DataFrame({"attack_call": calls, **arrays})
        return frame

    def save_parquet(self, path: str | Path) -> Path:
        """Write the data frame of `to_pandas` to `path`; after an error, no partial file is left.

        Raises:
            ImportError: pandas or pyarrow is missing; the message names the extra that installs it.
            OSError: the file cannot be written.
        """
        require("pyarrow", extra="records", needed_by="Parquet")
        frame = self.to_pandas()
        with atomic_write(Path(path)) as temporary:
            frame.to_parquet(temporary, engine="pyarrow", index=False)
        return Path(path)
