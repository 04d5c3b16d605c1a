"""Tables of what models answer to clean and to attacked inputs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from advkit.core import checks, sample_rows
from advkit.core.attack_options import check_length, for_samples, sending_at_most, with_stop
from advkit.core.batching import Batches, batches, offset_sample_numbers, without_empty
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

_KEPT = "The error's .table has the rows of the batches before."


def collect(
    models: NamedOrList,
    attacks: NamedOrList,
    x: Tensor | Batches,
    y: Tensor | None = None,
    *,
    outputs: Outputs = "scores",
    first_sample: int = 0,
    batch_size: int = 128,
    progress: bool = False,
) -> OutputTable:
    """Run every attack on every model, and keep what each model answers to each input.

    Each model is asked about the inputs as they are, which is the attack `"clean"`, and about what
    each attack makes of them. All inputs are attacked, also those that the model gets wrong by
    itself, and attacks that failed have their rows too, as in Kalin, Ciolino and Noever (2021,
    arXiv:2102.09695). An attack that leaves `stop` to its caller is run with `"never"`. `success`
    is what `predicted` says: that the model, asked once more about exactly the attacked input,
    gives a wrong label; a rejection is none.

    Rows are ordered by model, then attack, then sample. What is found for a sample does not depend
    on `batch_size`, except for what the model's own arithmetic rounds differently.

    Args:
        models: models by name, or a list of models, which are named after their classes. A model is
            a classifier, or whatever `as_classifier` makes one of. All have as many outputs.
        attacks: attacks by name, or a list of attacks, which are named after the calls that make
            them; none is named `"clean"`. Empty for clean rows alone. An `eps` with one radius for
            each sample is cut along with the batches.
        x: inputs `(n, *features)` within the bounds of every model, or an iterable of batches
            `(x, y)`.
        y: true labels `(n,)`; `None` if `x` is an iterable of batches.
        outputs: what to keep of an answer: `"scores"`, probabilities for most models, or
            `"logits"`, of models that have them.
        first_sample: number of the first input. Tables of different inputs that are to be
            concatenated need different numbers.
        batch_size: samples sent at once. An attack with a larger `batch_size` of its own, such as
            `HopSkipJump`, is held to it.
        progress: show a bar (needs the extra `report`).

    Returns:
        The rows. An error or an interrupt has those of the batches before as its `table`; the
        other inputs can be collected with a `first_sample`, and the tables be concatenated.

    Raises:
        ValueError: no model, models of different width, an attack named `"clean"`, or inputs or
            labels of the wrong shape or range.
        TypeError: models, attacks, inputs or labels of the wrong type, a model without such
            outputs, or without gradients under an attack that needs them.

    Example:
        >>> import torch
        >>> from advkit import attacks, detectors
        >>> nets = [torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)]
        >>> made = {"small": attacks.FGSM(eps=0.01), "large": attacks.FGSM(eps=0.3)}
        >>> table = detectors.collect(nets, made, torch.rand(5, 4), torch.arange(5) % 3)
        >>> sorted(set(table.model.tolist())), len(table)
        (['Linear', 'Linear 2'], 30)
    """
    checks.one_of("outputs", outputs, OUTPUTS)
    checks.integer("first_sample", first_sample, at_least=0)
    classifiers = _classifiers(models, outputs)
    total = len(x) if isinstance(x, Tensor) else None
    if total is not None:
        sample_rows.check_total(total)
    made = _attacks(attacks, total, batch_size)
    recorders = [_ModelRecorder(*pair, made, outputs, first_sample) for pair in classifiers.items()]
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
    """The models by name, each of which has such outputs."""
    given = assign_names("models", models, {}, kind="model", short=short_name)
    found = {name: as_classifier(model) for name, model in given.items()}
    for name, model in found.items():
        if not callable(getattr(model, outputs, None)):
            raise TypeError(f"model {name!r} has no {outputs}: {model!r}")
    check_same_labels(found.values())
    return found


def _attacks(attacks: NamedOrList, total: int | None, batch_size: int) -> dict[str, Attack]:
    """Return the attacks by name, going on to the strongest example where they leave that open.

    They send at most `batch_size` samples at once.
    """
    if isinstance(attacks, (dict, list, tuple)) and not attacks:
        return {}
    given = assign_names("attacks", attacks, {}, kind="attack", short=repr)
    if CLEAN in given:
        raise ValueError(f"`attacks` must not be named {CLEAN!r}, which stands for no attack")
    for attack in given.values():
        checks.attack("attacks", attack)
        check_length(attack, total)
    return {
        name: sending_at_most(with_stop(attack, "never"), batch_size)
        for name, attack in given.items()
    }


@dataclass
class _ModelRecorder:
    """One model, and what it has said so far."""

    name: str
    model: Classifier
    attacks: dict[str, Attack]
    outputs: Outputs
    first_sample: int
    found: dict[str, list[OutputTable]] = field(default_factory=lambda: defaultdict(list))

    def update(self, x: Tensor, y: Tensor, first: int) -> None:
        """Attack a batch, whose first sample is the `first` of the data."""
        x = checks.inputs(x, self.model.bounds)
        y = label_indices("y", y, x, self.model)
        rows = torch.arange(len(x)) + first
        clean = self._part(CLEAN, x, y, rows, torch.zeros(len(x)), "")
        checks.labels_within("y", y.cpu(), clean.width, torch.arange(len(x)))
        self.found[CLEAN].append(clean)
        for name, attack in self.attacks.items():
            labels = given_labels(self.model, y).clone()
            result = for_samples(attack, rows).run(self.model, x.clone(), labels)
            part = self._part(name, result.x_adv, y, rows, result.distance, result.norm)
            self.found[name].append(part)

    def _part(
        self, attack: str, x: Tensor, y: Tensor, rows: Tensor, distance: Tensor, norm: str
    ) -> OutputTable:
        """What the model says to `x`, which `attack` has made of the samples `rows`."""
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
        """Numbers in an answer of the model."""
        return self.found[CLEAN][0].width

    def parts(self, batches: int | None = None) -> Iterator[OutputTable]:
        """Return the parts of the table, attack by attack, of the first `batches` or of all."""
        for parts in self.found.values():
            yield from parts[:batches]

    @property
    def batches(self) -> int:
        """Batches that every attack has met."""
        return min((len(self.found[name]) for name in (CLEAN, *self.attacks)), default=0)


def _whole_batches(recorders: list[_ModelRecorder]) -> OutputTable | None:
    """Return the table of the batches that every model has answered, `None` for none.

    Outputs of several widths, which `collect` refuses after the first batch, make no table.
    """
    batches = min(recorder.batches for recorder in recorders)
    if not batches or len({recorder.width for recorder in recorders}) > 1:
        return None
    return OutputTable.concatenate(part for r in recorders for part in r.parts(batches))


def _check_widths(recorders: list[_ModelRecorder]) -> None:
    """Raise unless all models have as many outputs."""
    first, *others = recorders
    for other in others:
        if other.width != first.width:
            raise ValueError(
                f"`models` must have as many {first.outputs}, got {first.width} of "
                f"{first.name!r} and {other.width} of {other.name!r}"
            )
