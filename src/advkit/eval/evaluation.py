"""Attacks against a model over a data set: worst case for each input, never the least of means."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from advkit.core.batching import Batches, batches, counted_from, progress_bar
from advkit.core.describe import settings
from advkit.core.results import Attack, check_length, part_of
from advkit.eval.budgets import distinct_budgets, radius_of
from advkit.eval.noise import NoiseTally
from advkit.eval.outcome import AttackOutcome, Examples
from advkit.eval.rates import Rate, correct
from advkit.eval.report import Report
from advkit.models import Classifier, as_classifier

_EXAMPLES = 6


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
    and cost nothing more. What an attack's `stop` leaves open is `"first"` here.

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
        batch_size: samples sent at once.
        device: where each batch is moved to; `None` leaves it where it is.
        progress: show a bar (needs the extra `report`).

    Returns:
        A report that prints as a table, converts to a dict and saves as HTML.

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
    for report in stream:  # noqa: B007
        pass
    if report is None or len(report.clean) == 0:
        raise ValueError("x must hold at least one sample, got none")
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
    """`evaluate`, with a report after each batch on all inputs up to there.

    Whoever stops early, by an interrupt say, keeps a report in which every attack has met the same
    inputs. Arguments and errors are those of `evaluate`.
    """
    classifier = as_classifier(model)
    _check_attacks(attacks, len(x) if isinstance(x, Tensor) else None)
    pairs = batches(x, y, batch_size)
    total = len(x) if isinstance(x, Tensor) else None
    return _stream(classifier, pairs, attacks, total, device, progress=progress)


def _check_attacks(attacks: Sequence[Attack], total: int | None) -> None:
    made = isinstance(attacks, Sequence) and not any(isinstance(a, type) for a in attacks)
    if not made or not all(hasattr(a, "run") for a in attacks):
        raise TypeError(f"attacks must be a list of attacks, got {attacks!r}")
    if not attacks:
        raise ValueError("attacks must hold at least one attack, got none")
    for attack in attacks:
        check_length(attack, total)


def _stream(
    classifier: Classifier,
    pairs: Batches,
    attacks: Sequence[Attack],
    total: int | None,
    device: str | torch.device | None,
    *,
    progress: bool,
) -> Iterator[Report]:
    tallies = [_Tally(attack) for attack in attacks]
    noises = [NoiseTally(norm, eps) for norm, eps in distinct_budgets(attacks)]
    clean: list[Tensor] = []
    seen = 0
    with progress_bar("inputs", total, progress) as advance:
        for xb, yb in pairs:
            if device is not None:
                xb, yb = xb.to(device), yb.to(device)
            with counted_from(seen):
                xb, yb, right = correct(classifier, xb, yb)
                for tally in tallies:
                    tally.add(classifier, xb, yb, right, seen)
                for noise in noises:
                    noise.add(classifier, xb, yb, right)
            clean.append(right.cpu())
            seen += len(xb)
            advance(len(xb))
            yield Report(
                model=repr(classifier),
                bounds=classifier.bounds,
                clean=torch.cat(clean),
                outcomes=tuple(tally.outcome() for tally in tallies),
                noise=tuple(noise.outcome() for noise in noises),
                total=total,
            )


class _Tally:
    """What one attack has done so far, batch by batch."""

    def __init__(self, attack: Attack) -> None:
        self.attack: Any = attack
        self.norm: str = getattr(attack, "norm", "")
        self.columns: dict[str, list[Tensor]] = {
            name: []
            for name in ("radius", "robust", "distance", "forward", "backward", "no_gradient")
        }
        self.seconds = 0.0
        self.examples: list[Examples] = []

    def add(self, model: Classifier, x: Tensor, y: Tensor, right: Tensor, seen: int) -> None:
        """Attack the samples of a batch where `right`; it is the data's part from `seen` on."""
        n = len(x)
        found = {
            "radius": torch.zeros(n, dtype=torch.float64),
            "robust": right.clone(),
            "distance": torch.full((n,), torch.nan),
            "forward": torch.zeros(n, dtype=torch.int64),
            "backward": torch.zeros(n, dtype=torch.int64),
            "no_gradient": torch.zeros(n, dtype=torch.bool),
        }
        if right.any():
            rows = right.nonzero().flatten()
            attack = part_of(self.attack, rows.cpu() + seen)
            start = time.perf_counter()
            result = attack.run(model, x[rows], y[rows])
            success = result.success.cpu()  # waits for the device, so that the clock is right
            self.seconds += time.perf_counter() - start
            self.norm = result.norm
            at = rows.cpu()
            found["radius"][at] = radius_of(attack)
            found["robust"] = found["robust"].cpu().index_put((at,), ~success)
            found["distance"][at[success]] = result.distance.cpu()[success].float()
            found["forward"][at] = result.queries.forward.cpu()
            found["backward"][at] = result.queries.backward.cpu()
            found["no_gradient"][at] = result.no_gradient.cpu()
            self._keep_examples(model, x[rows], y[rows], result.x_adv, result.success)
        for name, column in self.columns.items():
            column.append(found[name].cpu())

    def _keep_examples(
        self, model: Classifier, x: Tensor, y: Tensor, x_adv: Tensor, success: Tensor
    ) -> None:
        room = _EXAMPLES - sum(len(e.y) for e in self.examples)
        wanted = success.nonzero().flatten()[: 2 * room]
        if self.examples and self.examples[0].x.shape[1:] != x.shape[1:]:
            return  # pictures of one size only
        if not len(wanted):
            return
        answer = model.predict(x_adv[wanted])
        # On the boundary a batch of another size may round to the other side.
        turned = (answer != y[wanted]).nonzero().flatten()[:room]
        if len(turned):
            rows = wanted[turned]
            parts = (x[rows], x_adv[rows], y[rows], answer[turned])
            self.examples.append(Examples(*(part.cpu() for part in parts)))

    def outcome(self) -> AttackOutcome:
        """All of it so far."""
        eps = getattr(self.attack, "eps", None)
        return AttackOutcome(
            name=type(self.attack).__name__,
            settings=settings(self.attack),
            norm=self.norm,
            minimum_norm=eps is None,
            eps=float(eps) if isinstance(eps, Real) else None,
            seconds=self.seconds,
            examples=Examples.join(self.examples),
            **{name: torch.cat(column) for name, column in self.columns.items()},
        )
