"""Adversarial examples made on one model and tried on others: the cross-technique table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from advkit.core import checks, sample_rows
from advkit.core.attack_options import check_length, for_samples, sending_at_most, with_stop
from advkit.core.batch_recorder import BatchRecorder
from advkit.core.batching import Batches, batches, offset_sample_numbers, without_empty
from advkit.core.hyperparameters import format_call, non_default_fields
from advkit.core.naming import NamedOrList, assign_names, did_you_mean, error_context, quoted
from advkit.core.norms import Norm
from advkit.core.paid_answers import keeping
from advkit.core.progress import progress_bar
from advkit.core.protocols import Attack
from advkit.eval.accuracy import correct, labels_of
from advkit.eval.budgets import distinct_budgets, format_budget
from advkit.eval.noise import noisy
from advkit.eval.transfer.result import NO_ATTACK, TransferMatrix, TransferSource
from advkit.models import Classifier, as_classifier
from advkit.models.convert import short_name
from advkit.models.labels import check_same_labels, given_labels, label_indices
from advkit.models.protocols import is_misclassified

_KEPT = "The error's .matrix is that of the batches before."


def transfer_matrix(
    sources: NamedOrList,
    targets: NamedOrList | None,
    attack: Attack | Mapping[str, Attack],
    x: Tensor | Batches,
    y: Tensor | None = None,
    *,
    batch_size: int = 128,
    progress: bool = False,
) -> TransferMatrix:
    """Make adversarial examples on each source and ask each target about exactly these.

    They are made from all inputs, also from those that the source gets wrong before any attack. An
    attack that leaves `stop` to its caller is run with `"never"`: an example that barely fools its
    source fools hardly any other model.

    The answer comes in two conventions, which differ by what they divide by: `error_rate` is the
    share of all inputs that the target gets wrong, `transfer_rate` the same share among only those
    inputs whose adversarial example fools the source. Beside `error_rate` stand the share that the
    target gets wrong without any attack, and under random noise of each norm and `eps` of the
    attacks. To leave out what a model gets wrong by itself, pass only inputs that it gets right.

    Args:
        sources: models by name, or a list of models, which are then named after their classes. A
            model is a classifier, or whatever `as_classifier` makes one of.
        targets: likewise; `None` for the sources. All models have the same bounds.
        attack: what every source is attacked with, or an attack for each source by its name.
        x: inputs `(n, *features)`, or an iterable of batches `(x, y)`.
        y: true labels `(n,)`; `None` if `x` is an iterable of batches.
        batch_size: samples sent at once. An attack with a larger `batch_size` of its own, such as
            `HopSkipJump`, is held to it; the matrix has the attack as given.
        progress: show a bar (needs the extra `report`).

    Returns:
        A matrix that prints as tables, converts to a dict and plots as two heat maps. An error or
        an interrupt has that of the batches before as its `matrix`.

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
    made_on, tried_on = _classifiers(sources, targets)
    total = len(x) if isinstance(x, Tensor) else None
    if total is not None:
        sample_rows.check_total(total)
    each = _attack_of_each(attack, made_on, total)
    recorders = [
        _SourceRecorder(name, source, each[name], tried_on, batch_size)
        for name, source in made_on.items()
    ]
    budgets = distinct_budgets(each.values())
    baselines = BatchRecorder()
    bar = progress_bar("inputs x sources", total and total * len(recorders), progress)
    with bar as advance, keeping("matrix", lambda: _whole(recorders, baselines), _KEPT):
        for xb, yb, first in without_empty(batches(x, y, batch_size)):
            with offset_sample_numbers(first), sample_rows.numbered(len(xb), first):
                xb = checks.inputs(xb, recorders[0].model.bounds)
                yb = label_indices("y", yb, xb, recorders[0].model)  # those of every model
                baselines.update(_wrong_without_attack(tried_on, xb, yb, budgets))
                for recorder in recorders:
                    recorder.update(xb, yb, first)
                    advance(len(xb))
    return _matrix(recorders, baselines, len(baselines))


def _whole(recorders: Sequence[_SourceRecorder], baselines: BatchRecorder) -> TransferMatrix | None:
    """Return the matrix of the batches that every source has met, `None` for none."""
    batches = min(len(recorder.columns) for recorder in recorders)
    return _matrix(recorders, baselines, batches) if batches else None


def _matrix(
    recorders: Sequence[_SourceRecorder], baselines: BatchRecorder, batches: int
) -> TransferMatrix:
    """Return the matrix of the first `batches`."""
    wrong = baselines.compute(batches)
    return TransferMatrix(
        targets=tuple(recorders[0].targets),
        sources=tuple(recorder.compute(batches) for recorder in recorders),
        no_attack=wrong.pop(NO_ATTACK),
        random_noise=wrong,
    )


def _classifiers(
    sources: NamedOrList, targets: NamedOrList | None
) -> tuple[dict[str, Classifier], dict[str, Classifier]]:
    """Return sources and targets by name; a model that is both is one classifier."""
    known: dict[int, str] = {}
    given = assign_names("sources", sources, known, kind="model", short=short_name)
    asked = given
    if targets is not None:
        asked = assign_names("targets", targets, known, kind="model", short=short_name)
    classifiers = {id(m): as_classifier(m) for m in (*given.values(), *asked.values())}
    check_same_labels(classifiers.values())
    _check_bounds([(known[key], model) for key, model in classifiers.items()])
    made_on = {name: classifiers[id(model)] for name, model in given.items()}
    return made_on, {name: classifiers[id(model)] for name, model in asked.items()}


@dataclass
class _SourceRecorder:
    """One source, and what the targets have said to its adversarial examples so far."""

    name: str
    model: Classifier
    attack: Any
    targets: Mapping[str, Classifier]
    batch_size: int
    columns: BatchRecorder = field(default_factory=BatchRecorder)

    def update(self, x: Tensor, y: Tensor, first: int) -> None:
        """Attack a batch, whose first sample is the `first` of the data, and query all targets."""
        with error_context("source", self.name):
            attack = for_samples(self.attack, torch.arange(len(x)) + first)
            attack = sending_at_most(attack, self.batch_size)
            result = attack.run(self.model, x.clone(), given_labels(self.model, y).clone())
        wrong = _wrong(self.targets, result.x_adv, y)
        found = {
            "fooled": self._fooled(result.x_adv, y, wrong),
            "wrong": wrong,
            "forward": result.queries.forward,
            "backward": result.queries.backward,
        }
        self.columns.update(found)

    def _fooled(self, x_adv: Tensor, y: Tensor, wrong: Tensor) -> Tensor:
        """Whether the source is wrong on `x_adv`, `(n,)`; not asked again if it is a target."""
        for i, target in enumerate(self.targets.values()):
            if target is self.model:
                return wrong[i]
        with error_context("source", self.name):
            return is_misclassified(labels_of(self.model, x_adv), y)

    def compute(self, batches: int) -> TransferSource:
        """Return what came of the first `batches`."""
        return TransferSource(
            name=self.name,
            attack=format_call(type(self.attack).__name__, non_default_fields(self.attack)),
            **self.columns.compute(batches),
        )


def _wrong_without_attack(
    targets: Mapping[str, Classifier], x: Tensor, y: Tensor, budgets: list[tuple[Norm, float]]
) -> dict[str, Tensor]:
    """Return where each target is wrong on a batch, bool `(targets, n)`, by what is done to it.

    Nothing is done, or random noise is added: a uniform draw from each of the `budgets`.
    """
    right = []
    for name, target in targets.items():
        with error_context("target", name):
            right.append(correct(target, x, given_labels(target, y))[2].cpu())
    found = {NO_ATTACK: ~torch.stack(right)}
    bounds = next(iter(targets.values())).bounds
    for norm, eps in budgets:
        found[format_budget(norm, eps)] = _wrong(targets, noisy(x, bounds, norm, eps), y)
    return found


def _wrong(targets: Mapping[str, Classifier], x: Tensor, y: Tensor) -> Tensor:
    """Whether each target is wrong on each of `x` `(n, *features)`: `(targets, n)`."""
    answers = []
    for name, target in targets.items():
        with error_context("target", name):
            answers.append(labels_of(target, x))
    return is_misclassified(torch.stack(answers), y)


def _check_bounds(classifiers: Sequence[tuple[str, Classifier]]) -> None:
    """Raise unless all classifiers, each with its name, have the same bounds."""
    (first, model), *others = classifiers
    for name, other in others:
        if tuple(other.bounds) != tuple(model.bounds):
            raise ValueError(
                "sources and targets must have the same bounds, got "
                f"{_interval(model)} for {first!r} and {_interval(other)} for {name!r}"
            )


def _interval(model: Classifier) -> str:
    lower, upper = model.bounds
    return f"[{lower:g}, {upper:g}]"


def _attack_of_each(
    attack: Attack | Mapping[str, Attack], sources: Mapping[str, object], total: int | None
) -> dict[str, Attack]:
    """The attack for each source, going on to the strongest example where it leaves that open."""
    if isinstance(attack, Mapping):
        _check_names(attack, sources)
    each = attack if isinstance(attack, Mapping) else dict.fromkeys(sources, attack)
    for one in each.values():
        if not checks.is_attack(one):
            raise TypeError(
                f"`attack` must be an attack or a mapping from sources to attacks, got {one!r}"
            )
        check_length(one, total)
    return {name: with_stop(each[name], "never") for name in sources}


def _check_names(attack: Mapping[str, Attack], sources: Mapping[str, object]) -> None:
    for name in attack:
        if name not in sources:
            hint = did_you_mean(str(name), sources)
            raise ValueError(
                f"attack has one for {name!r}, which is no source{hint}; "
                f"sources are {quoted(sources)}"
            )
    missing = [name for name in sources if name not in attack]
    if missing:
        raise ValueError(f"`attack` must have one for every source, has none for {quoted(missing)}")
