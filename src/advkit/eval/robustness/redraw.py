"""Pictures of chosen adversarial examples of a report, made again by its attacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from advkit.core import checks
from advkit.core.fingerprints import fingerprint_if_any
from advkit.core.indexed_data import IndexedData, number_of_samples, select
from advkit.core.protocols import Attack
from advkit.eval.robustness.attack_recorder import check_attacks
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.robustness.report import Report
from advkit.eval.units.chunks import Chunk
from advkit.eval.units.descriptions import AttackDescription
from advkit.eval.units.examples import MAX_EXAMPLES, Examples
from advkit.eval.units.input_columns import hashes_of_inputs
from advkit.eval.units.worker import Job, Unit, Worker


def redraw(
    report: Report,
    model: object,
    x: Tensor | IndexedData,
    y: Tensor | None = None,
    *,
    attacks: Sequence[Attack],
    indices: Sequence[int] | None = None,
    device: str | torch.device | None = None,
) -> Report:
    """Make the pictures of chosen inputs again, for any row of the records.

    Each attack is run on these inputs alone. What it finds is compared with the records.

    Args:
        report: report of an evaluation, such as one from `load_report`.
        model: the model of the evaluation.
        x: all inputs of the evaluation `(n, *features)`, or its indexed data set.
        y: their labels `(n,)`; `None` if `x` holds them.
        attacks: attacks of the evaluation whose pictures are wanted.
        indices: numbers of the inputs, as in the column `index` of the records. By default the
            inputs with the nearest adversarial examples of each attack, at most six.
        device: device that the inputs are moved to; `None` leaves them where they are.

    Returns:
        The report with these `examples` in the outcomes of `attacks`, in the order of `indices`. An
        input that the attack did not fool has none. Everything else is as before.

    Raises:
        ValueError: an attack or an input is not one of the report, or model, inputs or attacks are
            not those of the evaluation, so that their results differ.
        TypeError: an argument is of the wrong type.

    Example:
        >>> import torch
        >>> from advkit import attacks, eval
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x = torch.rand(9, 1, 8, 8)
        >>> y = net(x).argmax(1)
        >>> attack = attacks.FGSM(eps=0.3)
        >>> report = eval.evaluate(net, x, y, attacks=[attack])
        >>> shown = eval.redraw(report, net, x, y, attacks=[attack], indices=[7, 2])
        >>> shown.outcomes[0].examples.index.tolist()
        [7, 2]
    """
    _check_inputs(report, x)
    check_attacks(attacks, number_of_samples(x))
    numbers = [_number_of(report, attack, at) for at, attack in enumerate(attacks)]
    worker = _worker(report, model, attacks, device)
    outcomes = list(report.outcomes)
    for attack, number in enumerate(numbers):
        outcome = outcomes[number]
        parts = [
            _examples(worker, _chunk(report, x, y, row), attack, outcome, row)
            for row in _rows(report, outcome, indices)
        ]
        outcomes[number] = replace(outcome, examples=Examples.join(parts))
    return replace(report, outcomes=tuple(outcomes))


def _check_inputs(report: Report, x: object) -> None:
    if not isinstance(report, Report):
        raise TypeError(f"`report` must be a Report, got {type(report).__name__}.")
    if number_of_samples(x) is None:
        raise TypeError(
            f"`x` must be a tensor or an indexed data set, got {type(x).__name__}, whose inputs "
            "cannot be chosen."
        )


def _number_of(report: Report, attack: Attack, at: int) -> int:
    """Return the number of an attack in a report, by its hash or else by its hyperparameters."""
    known = fingerprint_if_any(attack, f"attacks[{at}]")
    described = AttackDescription.of(attack)
    for number, outcome in enumerate(report.outcomes):
        wanted = report.provenance.attacks[number]
        same = (outcome.name, outcome.parameters) == (described.name, described.parameters)
        if same and (wanted == known or None in (wanted, known)):
            return number
    raise ValueError(
        f"`attacks` must be attacks of the report, got {described.label}. Its attacks are "
        f"{', '.join(outcome.label for outcome in report.outcomes)}."
    )


def _worker(
    report: Report, model: object, attacks: Sequence[Attack], device: str | torch.device | None
) -> Worker:
    """Return a worker with the model of the report.

    Raises:
        ValueError: the model has other weights.
    """
    place = None if device is None else torch.device(device)
    size = report.provenance.batch_size
    worker = Worker(
        Job(model=model, factory=None, attacks=tuple(attacks), batch_size=size, device=place)
    )
    found, wanted = worker.surroundings(None, required=False)["weights"], report.provenance.weights
    if None not in (found, wanted) and found != wanted:
        raise ValueError(
            "`model` must be the model of the report, got one with other weights. Load the weights "
            f"with the SHA-256 {wanted}."
        )
    return worker


def _rows(report: Report, outcome: AttackOutcome, indices: Sequence[int] | None) -> list[int]:
    """Return the rows of the inputs `indices`, or of the nearest adversarial examples.

    Raises:
        ValueError: an input is not in the report.
    """
    if indices is None:
        order = outcome.distance.nan_to_num(torch.inf).argsort(stable=True)
        return order[: min(MAX_EXAMPLES, int(outcome.success.sum()))].tolist()
    row_of = {index: row for row, index in enumerate(report.inputs.index.tolist())}
    rows = []
    for index in indices:
        checks.integer("indices", index)
        if index not in row_of:
            raise ValueError(
                f"`indices` must be numbers of inputs of the report, got {index}. They are the "
                'values of report.records.columns["index"].'
            )
        rows.append(row_of[index])
    return [row for row in rows if outcome.success[row]]


def _chunk(report: Report, x: Tensor | IndexedData, y: Tensor | None, row: int) -> Chunk:
    """Return a chunk of one input, which must be that of the report."""
    index = int(report.inputs.index[row])
    total = number_of_samples(x)
    if total is not None and index < total:
        one, label = select(x, y, index, index + 1)
        if hashes_of_inputs(one, label)[:, 0].equal(report.inputs.sha256[:, row]):
            return Chunk(0, ((one, label, index),))
    raise ValueError(
        f"`x` must hold the inputs of the report, got another one or another label for input "
        f"{index}, or none. Pass all inputs of the evaluation in their order."
    )


def _examples(
    worker: Worker, chunk: Chunk, attack: int, outcome: AttackOutcome, row: int
) -> Examples:
    """Attack one input again, and return its adversarial example.

    Raises:
        ValueError: the attack finds something else than in the report.
    """
    clean = worker.compute(Unit(chunk))
    found = worker.compute(Unit(chunk, attack, clean))
    label, wanted = int(found.columns["prediction"][0]), int(outcome.prediction[row])
    if found.examples is None or label != wanted:
        raise ValueError(
            f"`model` must be the model of the report, got one for which {outcome.label} finds "
            f"label {label} for input {chunk.first} in place of {wanted}. Repeat the evaluation "
            "with this model, device and version of torch."
        )
    return found.examples
