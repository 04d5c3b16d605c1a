"""Evaluation of a model under several attacks, with the worst case taken input by input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from advkit.core import sample_rows
from advkit.core.batching import Batches, batches
from advkit.core.paid_answers import keeping
from advkit.core.progress import progress_bar
from advkit.core.protocols import Attack
from advkit.eval.accuracy import ClassifiedBatch, Rate, classified_batches
from advkit.eval.budgets import check_one_budget, several_budgets
from advkit.eval.robustness.attack_recorder import check_attacks
from advkit.eval.robustness.evaluation_recorder import EvaluationRecorder
from advkit.eval.robustness.report import Report
from advkit.models import as_classifier

_KEPT = "The attribute `report` of the error holds the report on the batches before."


def robust_accuracy(
    model: object,
    x: Tensor | Batches,
    y: Tensor | None = None,
    *,
    attacks: Sequence[Attack],
    batch_size: int = 128,
) -> Rate:
    """Measure the share of all inputs that stay correctly labeled under every attack.

    The attacks must share one budget: a norm and an `eps`. An adversarial example of a minimum-norm
    attack in that norm counts if it lies within the budget. Other arguments and errors are those of
    `evaluate`.

    Raises:
        ValueError: the attacks have several budgets, or none.
    """
    check_attacks(attacks, len(x) if isinstance(x, Tensor) else None)
    check_one_budget(attacks)
    rates = evaluate(model, x, y, attacks=attacks, batch_size=batch_size).worst_cases
    if len(rates) != 1:
        raise several_budgets(rates)
    return next(iter(rates.values()))


def evaluate(
    model: object,
    x: Tensor | Batches,
    y: Tensor | None = None,
    *,
    attacks: Sequence[Attack],
    batch_size: int = 128,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> Report:
    """Attack a model and report its robust accuracy.

    Each attack is run on every input that the model labels correctly. The other inputs count as
    not robust and are not attacked. Inputs with NaN or infinite logits are among them; the report
    lists their numbers. Such logits never count as a success of an attack. An attack that leaves
    `stop` open is run with `"first"`.

    An attack with an `eps` is a budget attack and gives a robust accuracy. An attack without one,
    or with `None`, is a minimum-norm attack. It gives the distance to the nearest adversarial
    example.

    For each norm and `eps` (one number for all inputs) the report has a baseline: random noise
    drawn uniformly from that ball, once for each input. It costs one forward pass more.

    Args:
        model: a classifier, or an `nn.Module` with inputs in [0, 1].
        x: inputs `(n, *features)`, or an iterable of batches `(x, y)`.
        y: true labels `(n,)`; `None` if `x` is an iterable of batches.
        attacks: the attacks to run. An `eps` with one radius for each sample is divided among the
            batches.
        batch_size: samples passed to the model at once. It also limits the `batch_size` of an
            attack, such as that of `HopSkipJump`; the report shows the attacks as given.
        device: device that each batch is moved to; `None` leaves it where it is.
        progress: show a progress bar (needs the extra `report`).

    Returns:
        A report that prints as a table, converts to a dict and saves as HTML. An error or an
        interrupt after the first batch holds the report so far in its attribute `report`.

    Raises:
        ValueError: inputs or labels of the wrong shape or range, or no attack.
        TypeError: inputs, labels, attacks or model of the wrong type.

    Example:
        >>> import torch
        >>> from advkit import attacks, eval
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
        >>> report = eval.evaluate(net, x, y, attacks=[attacks.FGSM(eps=0.1)])
        >>> list(report.worst_cases)
        ['linf 0.1']
        >>> float(report.worst_case) <= float(report.clean_accuracy)
        True
    """
    stream = evaluate_stream(
        model, x, y, attacks=attacks, batch_size=batch_size, device=device, progress=progress
    )
    report = None
    with keeping("report", lambda: report, _KEPT):
        for report in stream:  # noqa: B007
            pass
    if report is None or len(report.clean) == 0:
        raise ValueError("`x` must hold at least one sample, got none.")
    return report


def evaluate_stream(
    model: object,
    x: Tensor | Batches,
    y: Tensor | None = None,
    *,
    attacks: Sequence[Attack],
    batch_size: int = 128,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> Iterator[Report]:
    """Evaluate a model and yield a report on all inputs so far after each batch.

    If you stop early, for example by an interrupt, you keep a report in which every attack was run
    on the same inputs. Later batches do not change a report. It is built when it is first read, so
    that unread reports cost nothing; until then it keeps the records of the evaluation in memory.
    Arguments and errors are those of `evaluate`.
    """
    classifier = as_classifier(model)
    total = len(x) if isinstance(x, Tensor) else None
    check_attacks(attacks, total)
    parts = classified_batches(classifier, batches(x, y, batch_size, device))
    recorder = EvaluationRecorder(classifier, attacks, total, batch_size)
    if total is not None:
        sample_rows.check_total(total)
    stream = _stream(recorder, parts, total, progress=progress)
    return sample_rows.within(sample_rows.current_frame(), stream)


def _stream(
    recorder: EvaluationRecorder,
    parts: Iterator[ClassifiedBatch],
    total: int | None,
    *,
    progress: bool,
) -> Iterator[Report]:
    with progress_bar("inputs", total, progress) as advance:
        for batch in parts:
            recorder.update(batch)
            advance(len(batch.x))
            yield recorder.report()
    recorder.warn_of_chance()
