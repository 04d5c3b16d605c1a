"""Evaluation of adversarial examples of each source model on each target model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from advkit.core import checks, sample_rows
from advkit.core.attack_options import check_length, for_samples, sending_at_most, with_stop
from advkit.core.batch_recorder import BatchRecorder
from advkit.core.batching import Data, batches, offset_sample_numbers, without_empty
from advkit.core.hyperparameters import format_call, non_default_fields
from advkit.core.indexed_data import number_of_samples
from advkit.core.naming import NamedOrList, assign_names, did_you_mean, error_context, quoted
from advkit.core.norms import Norm
from advkit.core.paid_answers import keeping
from advkit.core.progress import progress_bar
from advkit.core.protocols import Attack
from advkit.eval.accuracy import Rate, classify, predict_labels, warn_of_chance
from advkit.eval.budgets import distinct_budgets, format_budget
from advkit.eval.noise import noisy
from advkit.eval.transfer.result import NO_ATTACK, TransferMatrix, TransferSource
from advkit.models import Classifier, as_classifier
from advkit.models.convert import short_name
from advkit.models.labels import check_same_labels, given_labels, label_indices
from advkit.models.protocols import is_misclassified

_KEPT = "The attribute `matrix` of the error holds the matrix of the batches before."


def transfer_matrix(
    sources: NamedOrList,
    targets: NamedOrList | None,
    attack: Attack | Mapping[str, Attack],
    x: Data,
    y: Tensor | None = None,
    *,
    batch_size: int = 128,
    progress: bool = False,
) -> TransferMatrix:
    """Make adversarial examples on each source and evaluate each target on exactly these.

    They are made from all inputs, including those that the source misclassifies before any attack.
    An attack that leaves `stop` open is run with `"never"`, because an example that barely fools
    its source rarely fools another model.

    There are two rates with different denominators. `error_rate` is the share of all inputs that
    the target misclassifies. `transfer_rate` is the same share among only those inputs whose
    adversarial example fools the source. Baselines of `error_rate` are the error rates without an
    attack, and under random noise of each norm and `eps` of the attacks. To exclude errors without
    an attack, pass only inputs that the models classify correctly.

    Args:
        sources: models by name, or a list of models, which are then named after their classes. A
            model is a classifier, or anything that `as_classifier` accepts.
        targets: models by name, or a list of models; `None` for the sources. All models have the
            same bounds.
        attack: the attack on every source, or an attack for each source by its name.
        x: inputs `(n, *features)`, an iterable of batches `(x, y)`, or an indexed data set.
        y: true labels `(n,)`; `None` if `x` holds the labels.
        batch_size: samples passed to a model at once. It also limits the `batch_size` of an attack,
            such as that of `HopSkipJump`; the matrix shows the attack as given.
        progress: show a progress bar (needs the extra `report`).

    Returns:
        A matrix that prints as tables, converts to a dict and plots as two heat maps. An error or
        an interrupt holds the matrix of the batches before in its attribute `matrix`.

    Raises:
        ValueError: no model, models of different bounds, a source without an attack or an attack
            without a source, or inputs or labels of the wrong shape or range.
        TypeError: models, attacks, inputs or labels of the wrong type, or a source without
            gradients under an attack that needs them.

    Example:
        >>> import torch
        >>> from advkit import attacks, eval
        >>> nets = {name: torch.nn.Linear(2, 1, bias=False) for name in ("even", "uneven")}
        >>> _ = nets["even"].weight.data.copy_(torch.tensor([[1.0, -1.0]]))
        >>> _ = nets["uneven"].weight.data.copy_(torch.tensor([[1.0, -1.7]]))
        >>> x, y = torch.tensor([[0.9, 0.5], [0.2, 0.6]]), torch.tensor([1, 0])
        >>> matrix = eval.transfer_matrix(nets, None, attacks.FGSM(eps=0.3), x, y)
        >>> print(matrix.error_rate["even"]["even"], "|", matrix.error_rate["even"]["uneven"])
        100.00 % (2 of 2) | 50.00 % (1 of 2)
    """
    source_models, target_models = _classifiers(sources, targets)
    total = number_of_samples(x)
    if total is not None:
        sample_rows.check_total(total)
    each = _attack_of_each(attack, source_models, total)
    recorders = [
        _SourceRecorder(name, source, each[name], target_models, batch_size)
        for name, source in source_models.items()
    ]
    budgets = distinct_budgets(each.values())
    baselines = BatchRecorder()
    bar = progress_bar("inputs x sources", total and total * len(recorders), progress)
    with bar as advance, keeping("matrix", lambda: _partial_matrix(recorders, baselines), _KEPT):
        for xb, yb, first in without_empty(batches(x, y, batch_size)):
            with offset_sample_numbers(first), sample_rows.numbered(len(xb), first):
                xb = checks.inputs("x", xb, recorders[0].model.bounds)
                yb = label_indices("y", yb, xb, recorders[0].model)  # the same for every model
                baselines.update(_baselines(target_models, xb, yb, budgets))
                for recorder in recorders:
                    recorder.update(xb, yb, first)
                    advance(len(xb))
    matrix = _matrix(recorders, baselines, len(baselines))
    for mask, (name, model) in zip(matrix.no_attack, target_models.items(), strict=True):
        warn_of_chance(Rate.of(~mask), model.num_classes, f"The clean accuracy of {name}")
    return matrix


def _partial_matrix(
    recorders: Sequence[_SourceRecorder], baselines: BatchRecorder
) -> TransferMatrix | None:
    """Return the matrix of the batches that every source has completed, `None` for none."""
    batches = min(len(recorder.columns) for recorder in recorders)
    return _matrix(recorders, baselines, batches) if batches else None


def _matrix(
    recorders: Sequence[_SourceRecorder], baselines: BatchRecorder, batches: int
) -> TransferMatrix:
    """Return the matrix of the first `batches`."""
    masks = baselines.compute(batches)
    return TransferMatrix(
        targets=tuple(recorders[0].targets),
        sources=tuple(recorder.compute(batches) for recorder in recorders),
        no_attack=masks.pop(NO_ATTACK),
        random_noise=masks,
    )


def _classifiers(
    sources: NamedOrList, targets: NamedOrList | None
) -> tuple[dict[str, Classifier], dict[str, Classifier]]:
    """Return sources and targets by name; a model that is both is one classifier."""
    known: dict[int, str] = {}
    named_sources = assign_names("sources", sources, known, kind="model", short=short_name)
    named_targets = named_sources
    if targets is not None:
        named_targets = assign_names("targets", targets, known, kind="model", short=short_name)
    classifiers = {
        id(m): as_classifier(m) for m in (*named_sources.values(), *named_targets.values())
    }
    check_same_labels(classifiers.values())
    _check_bounds([(known[key], model) for key, model in classifiers.items()])
    return (
        {name: classifiers[id(model)] for name, model in named_sources.items()},
        {name: classifiers[id(model)] for name, model in named_targets.items()},
    )


@dataclass
class _SourceRecorder:
    """Recorder of one source, its adversarial examples, and the predictions of the targets."""

    name: str
    model: Classifier
    attack: Any
    targets: Mapping[str, Classifier]
    batch_size: int
    columns: BatchRecorder = field(default_factory=BatchRecorder)

    def update(self, x: Tensor, y: Tensor, first: int) -> None:
        """Attack a batch, which begins at sample number `first`, and query all targets."""
        with error_context("source", self.name):
            attack = for_samples(self.attack, torch.arange(len(x)) + first)
            attack = sending_at_most(attack, self.batch_size)
            result = attack.run(self.model, x.clone(), given_labels(self.model, y).clone())
        misclassified = _misclassified(self.targets, result.x_adv, y)
        columns = {
            "fooled": self._fooled(result.x_adv, y, misclassified),
            "misclassified": misclassified,
            "forward": result.queries.forward,
            "backward": result.queries.backward,
        }
        self.columns.update(columns)

    def _fooled(self, x_adv: Tensor, y: Tensor, misclassified: Tensor) -> Tensor:
        """Return a mask `(n,)` of the `x_adv` that fool the source.

        A source that is also a target is not queried again; its row of `misclassified` is returned.
        """
        for i, target in enumerate(self.targets.values()):
            if target is self.model:
                return misclassified[i]
        with error_context("source", self.name):
            return is_misclassified(predict_labels(self.model, x_adv), y)

    def compute(self, batches: int) -> TransferSource:
        """Return the results of the first `batches`."""
        return TransferSource(
            name=self.name,
            attack=format_call(type(self.attack).__name__, non_default_fields(self.attack)),
            **self.columns.compute(batches),
        )


def _baselines(
    targets: Mapping[str, Classifier], x: Tensor, y: Tensor, budgets: list[tuple[Norm, float]]
) -> dict[str, Tensor]:
    """Return masks `(targets, n)` of the errors of each target on a batch, by baseline.

    The baselines are the clean inputs, and uniform random noise from each of the `budgets`.
    """
    correct = []
    for name, target in targets.items():
        with error_context("target", name):
            _, labels, predicted = classify(target, x, given_labels(target, y))
            correct.append((predicted == labels).cpu())
    masks = {NO_ATTACK: ~torch.stack(correct)}
    bounds = next(iter(targets.values())).bounds
    for norm, eps in budgets:
        masks[format_budget(norm, eps)] = _misclassified(targets, noisy(x, bounds, norm, eps), y)
    return masks


def _misclassified(targets: Mapping[str, Classifier], x: Tensor, y: Tensor) -> Tensor:
    """Return a mask `(targets, n)` of the errors of each target on `x` `(n, *features)`."""
    predicted = []
    for name, target in targets.items():
        with error_context("target", name):
            predicted.append(predict_labels(target, x))
    return is_misclassified(torch.stack(predicted), y)


def _check_bounds(classifiers: Sequence[tuple[str, Classifier]]) -> None:
    """Raise unless all classifiers, each with its name, have the same bounds."""
    (first, model), *others = classifiers
    for name, other in others:
        if tuple(other.bounds) != tuple(model.bounds):
            raise ValueError(
                "`sources` and `targets` must have the same bounds, got "
                f"{_interval(model)} for {first!r} and {_interval(other)} for {name!r}."
            )


def _interval(model: Classifier) -> str:
    lower, upper = model.bounds
    return f"[{lower:g}, {upper:g}]"


def _attack_of_each(
    attack: Attack | Mapping[str, Attack], sources: Mapping[str, object], total: int | None
) -> dict[str, Attack]:
    """Return the attack on each source; one that leaves `stop` open gets `"never"`."""
    if isinstance(attack, Mapping):
        _check_names(attack, sources)
    each = attack if isinstance(attack, Mapping) else dict.fromkeys(sources, attack)
    for one in each.values():
        if not checks.is_attack(one):
            raise TypeError(
                f"`attack` must be an attack or a mapping from sources to attacks, got {one!r}."
            )
        check_length(one, total)
    return {name: with_stop(each[name], "never") for name in sources}


def _check_names(attack: Mapping[str, Attack], sources: Mapping[str, object]) -> None:
    for name in attack:
        if name not in sources:
            hint = did_you_mean(str(name), sources)
            raise ValueError(
                f"`attack` must map names of sources to attacks, got {name!r}{hint or '.'} "
                f"Sources are {quoted(sources)}."
            )
    missing = [name for name in sources if name not in attack]
    if missing:
        raise ValueError(
            f"`attack` must have an attack for every source, got none for {quoted(missing)}."
        )
