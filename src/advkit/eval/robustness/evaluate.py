"""Attacks against a model over a data set: worst case for each input, never the least of means."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from advkit.core import sample_rows
from advkit.core.batching import Batches, batches
from advkit.core.paid_answers import keeping
from advkit.core.progress import progress_bar
from advkit.core.protocols import Attack
from advkit.eval.accuracy import ClassifiedBatch, Rate, classified
from advkit.eval.robustness.attack_recorder import check_attacks
from advkit.eval.robustness.evaluation_recorder import EvaluationRecorder
from advkit.eval.robustness.report import Report
from advkit.models import as_classifier

_KEPT = "The error's .report is that of the batches before."


def robust_accuracy(
    model: object,
    x: Tensor | Batches,
    y: Tensor | None = None,
    *,
    attacks: Sequence[Attack],
    batch_size: int = 128,
) -> Rate:
    """Share of all inputs that are labelled correctly and withstand every attack.

    What a minimum-norm attack finds counts within the largest budget that a budget attack of the
    same norm has; with minimum-norm attacks alone it counts at any distance, and the share says
    little: ask `evaluate` for distances. Arguments and errors are those of `evaluate`.
    """
    return evaluate(model, x, y, attacks=attacks, batch_size=batch_size).worst_case


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
    """Attack a model and report how robust it is.

    Each attack meets every input that the model labels correctly; the others count as not robust
    and cost nothing more. An input with NaN or infinite logits is one of the others, and such
    logits are never an attack's success; the report names the inputs. What an attack's `stop`
    leaves open is `"first"` here.

    An attack with an `eps` is a budget attack and gives a robust accuracy. One without, or with
    `None`, is a minimum-norm attack: it gives the distance to the nearest adversarial example.

    For each norm and `eps` (one number for all inputs) the report has a baseline beside the
    attacks: a uniform draw from that ball for each input, at the cost of one forward pass more.

    Args:
        model: a classifier, or an `nn.Module` with inputs in [0, 1].
        x: inputs `(n, *features)`, or an iterable of batches `(x, y)`.
        y: true labels `(n,)`; `None` if `x` is an iterable of batches.
        attacks: what to attack with. An `eps` with one radius for each sample is cut along with the
            batches.
        batch_size: samples sent at once. An attack with a larger `batch_size` of its own, such as
            `HopSkipJump`, is held to it; the attacks reported are as given.
        device: where each batch is moved to; `None` leaves it where it is.
        progress: show a bar (needs the extra `report`).

    Returns:
        A report that prints as a table, converts to a dict and saves as HTML. An error or an
        interrupt after the first batch has the report so far as its `report`.

    Raises:
        ValueError: inputs or labels of the wrong shape or range, or no attack.
        TypeError: inputs, labels, attacks or model of the wrong type.

    Example:
        >>> import torch
        >>> from advkit import attacks, eval
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
        >>> report = eval.evaluate(net, x, y, attacks=[attacks.FGSM(eps=0.1)])
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
        raise ValueError("`x` must hold at least one sample, got none")
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
    """Evaluate as `evaluate` does, with a report after each batch on all inputs up to there.

    If you stop early, by an interrupt say, you keep a report in which every attack has met the same
    inputs. A report is built when it is first read, so that those you do not read cost nothing;
    later batches do not change it. Until it is read, it keeps what the evaluation has recorded.
    Arguments and errors are those of `evaluate`.
    """
    classifier = as_classifier(model)
    total = len(x) if isinstance(x, Tensor) else None
    check_attacks(attacks, total)
    parts = classified(classifier, batches(x, y, batch_size, device))
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
