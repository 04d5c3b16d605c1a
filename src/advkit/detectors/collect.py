"""Function that fills a table with the outputs of models for clean and attacked inputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from advkit.core import checks, label_checks, sample_rows
from advkit.core.attack_options import check_length, for_samples, sending_at_most, with_stop
from advkit.core.batching import Data, batches, offset_sample_numbers, without_empty
from advkit.core.indexed_data import number_of_samples
from advkit.core.naming import NamedOrList, assign_names, error_context
from advkit.core.paid_answers import keeping
from advkit.core.progress import progress_bar
from advkit.core.protocols import Attack
from advkit.detectors.features import OUTPUTS, Outputs
from advkit.detectors.output_table import CLEAN, OutputTable
from advkit.models import Classifier, as_classifier
from advkit.models.convert import short_name
from advkit.models.labels import check_same_labels, given_labels, label_indices
from advkit.models.protocols import is_misclassified

_KEPT = "The error's .table has the rows of the completed batches."


def collect(
    models: NamedOrList,
    attacks: NamedOrList,
    x: Data,
    y: Tensor | None = None,
    *,
    outputs: Outputs = "scores",
    first_sample: int = 0,
    batch_size: int = 128,
    progress: bool = False,
) -> OutputTable:
    """Run every attack on every model and record the outputs of the models.

    Each model is evaluated on the clean inputs, recorded as the attack `"clean"`, and on the
    inputs that each attack returns. As in Kalin, Ciolino and Noever (2021, arXiv:2102.09695), all
    inputs are attacked, including misclassified ones, and failed attacks have rows too. An attack
    that leaves `stop` to its caller runs with `"never"`. `success` follows from `predicted`: the
    model is evaluated once more on the attacked input and predicts a wrong label. A rejection is
    not a success.

    Rows are ordered by model, then attack, then sample. The results for a sample do not depend on
    `batch_size`, except for rounding in the model itself.

    Args:
        models: a mapping from names to models, or a list, whose models are named after their
            classes. A model is a classifier or anything that `as_classifier` accepts. All models
            have the same number of outputs.
        attacks: a mapping from names to attacks, or a list, whose attacks are named after the calls
            that create them. `"clean"` is not allowed as a name. If empty, there are clean rows
            only. An `eps` with one radius for each sample is split along with the batches.
        x: inputs `(n, *features)` within the bounds of every model, an iterable of batches
            `(x, y)`, or an indexed data set.
        y: true labels `(n,)`; `None` if `x` holds the labels.
        outputs: the outputs to record: `"scores"`, which are probabilities for most models, or
            `"logits"`.
        first_sample: number of the first input. Tables of different inputs need different numbers
            if they are to be concatenated.
        batch_size: number of inputs in one batch. It also limits the `batch_size` of an attack that
            has one, such as `HopSkipJump`.
        progress: show a progress bar (needs the extra `report`).

    Returns:
        The table. An error or an interrupt has the rows of the completed batches as its `table`;
        the other inputs can be collected with `first_sample`, and the tables concatenated.

    Raises:
        ValueError: there is no model, models have different numbers of outputs, an attack is named
            `"clean"`, or inputs or labels have the wrong shape or range.
        TypeError: models, attacks, inputs or labels have the wrong type, or a model lacks the
            outputs, or gradients for an attack that needs them.

    Example:
        >>> import torch
        >>> from advkit import attacks, detectors
        >>> nets = [torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)]
        >>> steps = {"small": attacks.FGSM(eps=0.01), "large": attacks.FGSM(eps=0.3)}
        >>> table = detectors.collect(nets, steps, torch.rand(5, 4), torch.arange(5) % 3)
        >>> sorted(set(table.model.tolist())), len(table)
        (['Linear', 'Linear 2'], 30)
    """
    checks.one_of("outputs", outputs, OUTPUTS)
    checks.integer("first_sample", first_sample, at_least=0)
    classifiers = _classifiers(models, outputs)
    total = number_of_samples(x)
    if total is not None:
        sample_rows.check_total(total)
    named_attacks = _attacks(attacks, total, batch_size)
    recorders = [
        _ModelRecorder(name, model, named_attacks, outputs, first_sample)
        for name, model in classifiers.items()
    ]
    bar = progress_bar("inputs x models", total and total * len(recorders), progress)
    with bar as advance, keeping("table", lambda: _whole_batches(recorders), _KEPT):
        for xb, yb, first in without_empty(batches(x, y, batch_size)):
            for recorder in recorders:
                numbered = sample_rows.numbered(len(xb), first)
                with offset_sample_numbers(first), error_context("model", recorder.name), numbered:
                    recorder.update(xb, yb, first)
                advance(len(xb))
            _check_widths(recorders)
    return OutputTable.concatenate(part for recorder in recorders for part in recorder.parts())


def _classifiers(models: NamedOrList, outputs: Outputs) -> dict[str, Classifier]:
    """Return the models by name as classifiers, and raise unless each has the outputs."""
    named = assign_names("models", models, {}, kind="model", short=short_name)
    classifiers = {name: as_classifier(model) for name, model in named.items()}
    for name, model in classifiers.items():
        if not callable(getattr(model, outputs, None)):
            raise TypeError(
                f"`models` must have a method {outputs}(x), got {name!r} ({model!r}), which has "
                "none."
            )
    check_same_labels(classifiers.values())
    return classifiers


def _attacks(attacks: NamedOrList, total: int | None, batch_size: int) -> dict[str, Attack]:
    """Return the attacks by name, with `stop="never"` where they leave `stop` open.

    They send at most `batch_size` samples to the model at once.
    """
    if isinstance(attacks, (dict, list, tuple)) and not attacks:
        return {}
    named = assign_names("attacks", attacks, {}, kind="attack", short=repr)
    if CLEAN in named:
        raise ValueError(
            f"`attacks` must not be named {CLEAN!r}, got that name. It stands for no attack."
        )
    for attack in named.values():
        checks.attack("attacks", attack)
        check_length(attack, total)
    return {
        name: sending_at_most(with_stop(attack, "never"), batch_size)
        for name, attack in named.items()
    }


@dataclass
class _ModelRecorder:
    """One model and its rows of the table so far."""

    name: str
    model: Classifier
    attacks: dict[str, Attack]
    outputs: Outputs
    first_sample: int
    tables: dict[str, list[OutputTable]] = field(default_factory=lambda: defaultdict(list))

    def update(self, x: Tensor, y: Tensor, first: int) -> None:
        """Record the rows of a batch; `first` is the number of its first sample in the data."""
        x = checks.inputs("x", x, self.model.bounds)
        y = label_indices("y", y, x, self.model)
        rows = torch.arange(len(x)) + first
        clean = self._part(CLEAN, x, y, rows, torch.zeros(len(x)), "")
        label_checks.labels_within("y", y.cpu(), clean.width)
        self.tables[CLEAN].append(clean)
        for name, attack in self.attacks.items():
            labels = given_labels(self.model, y).clone()
            result = for_samples(attack, rows).run(self.model, x.clone(), labels)
            part = self._part(name, result.x_adv, y, rows, result.distance, result.norm)
            self.tables[name].append(part)

    def _part(
        self, attack: str, x: Tensor, y: Tensor, rows: Tensor, distance: Tensor, norm: str
    ) -> OutputTable:
        """Return the rows of the inputs `x`, which `attack` returned for the samples `rows`."""
        with torch.no_grad():
            outputs = getattr(self.model, self.outputs)(x)
            if self.outputs == "logits":
                checks.warn_of_probabilities(outputs)
            predicted = self.model.predict(x)
        success = is_misclassified(predicted, y) & (attack != CLEAN)
        return OutputTable(
            outputs=outputs.float().cpu().numpy(),
            sample=rows.numpy() + self.first_sample,
            model=np.full(len(x), self.name),
            attack=np.full(len(x), attack),
            label=y.cpu().numpy(),
            predicted=predicted.cpu().numpy(),
            success=success.cpu().numpy(),
            distance=distance.cpu().numpy(),
            norm=np.full(len(x), norm),
            kind=self.outputs,
        )

    @property
    def width(self) -> int:
        """Number of outputs of the model."""
        return self.tables[CLEAN][0].width

    def parts(self, batches: int | None = None) -> Iterator[OutputTable]:
        """Yield the tables, attack by attack, of the first `batches` batches or of all."""
        for tables in self.tables.values():
            yield from tables[:batches]

    @property
    def batches(self) -> int:
        """Number of batches that every attack has completed."""
        return min((len(self.tables[name]) for name in (CLEAN, *self.attacks)), default=0)


def _whole_batches(recorders: list[_ModelRecorder]) -> OutputTable | None:
    """Return the table of the batches that every model has completed; `None` if there is none.

    There is also none if models differ in width, which `collect` checks after the first batch.
    """
    batches = min(recorder.batches for recorder in recorders)
    if not batches or len({recorder.width for recorder in recorders}) > 1:
        return None
    return OutputTable.concatenate(part for r in recorders for part in r.parts(batches))


def _check_widths(recorders: list[_ModelRecorder]) -> None:
    """Raise unless all models have the same number of outputs."""
    first, *others = recorders
    for other in others:
        if other.width != first.width:
            raise ValueError(
                f"`models` must have the same number of {first.outputs}, got {first.width} of "
                f"{first.name!r} and {other.width} of {other.name!r}."
            )
