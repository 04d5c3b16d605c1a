"""Benchmark of attacks on a model: attack success rate, distance and cost."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from advkit.core import checks, sample_rows
from advkit.core.attack_options import for_samples, sending_at_most
from advkit.core.batching import Data, batches
from advkit.core.indexed_data import number_of_samples
from advkit.core.paid_answers import keeping
from advkit.core.progress import progress_bar
from advkit.core.protocols import Attack
from advkit.eval.accuracy import ClassifiedBatch, Rate, classified_batches, warn_of_chance
from advkit.eval.benchmarking.cost import bare_pass, peak_memory, seconds
from advkit.eval.benchmarking.ranking import AttackCost
from advkit.eval.benchmarking.result import BarePass, Benchmark
from advkit.eval.robustness.attack_recorder import AttackRecorder, check_attacks
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.units.attack_run import attack_batches
from advkit.eval.units.descriptions import AttackDescription
from advkit.models import Classifier, as_classifier, evaluating, has_gradients
from advkit.models.batch_dependence import keeps_batch
from advkit.models.labels import given_labels

# Bare passes that are timed before each attack on a batch, and again after it; their median counts.
BARE_PASSES = 3
_KEPT = "The error's .benchmark holds the attacks that have finished a round."


def benchmark(
    model: object,
    x: Data,
    y: Tensor | None = None,
    *,
    attacks: Sequence[Attack],
    batch_size: int = 128,
    rounds: int = 3,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> Benchmark:
    """Compare attacks on a model by attack success rate and by cost in passes.

    Each attack is run on every input that the model labels correctly: once on the first batch to
    warm up, and then `rounds` times on all batches. Outcomes are those of the first round.

    The cost is the time of an attack in passes. One pass is a forward and backward pass of the
    same batch to its input, timed in the same run, just before and just after the attack. A change
    in the speed of the machine affects both. For a model without gradients a pass is a forward
    pass.

    Args:
        model: a classifier without a query budget, or an `nn.Module` with inputs in [0, 1].
        x: inputs `(n, *features)`, an iterable of batches `(x, y)`, or an indexed data set.
            All batches are kept in memory.
        y: true labels `(n,)`; `None` if `x` holds the labels.
        attacks: the attacks to run. An `eps` with one radius for each sample is divided among the
            batches.
        batch_size: samples passed to the model at once. It also limits the `batch_size` of an
            attack, such as that of `HopSkipJump`; the result shows the attacks as given.
        rounds: number of times that each attack is timed.
        device: device that all batches are moved to before the first attack; `None` leaves them
            where they are.
        progress: show a progress bar (needs the extra `report`).

    Returns:
        Outcomes and costs, which print as a table.

    Raises:
        ValueError: inputs or labels of the wrong shape or range, no input that the model labels
            correctly, no attack, a model with a query budget, or fewer than one round.
        TypeError: inputs, labels, attacks or model of the wrong type, or an attack that needs
            outputs or gradients that the model does not have.
        BaseException: an error or interrupt that ends the rounds has the attribute `benchmark`, the
            result of the attacks that have finished a round.

    Example:
        >>> import torch
        >>> from advkit import attacks, eval
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(2 * torch.eye(2))
        >>> x, y = torch.tensor([[0.6, 0.5], [0.4, 0.6]]), torch.tensor([0, 1])
        >>> result = eval.benchmark(net, x, y, attacks=[attacks.FGSM(eps=0.075)])
        >>> result.groups[0].title, str(result.groups[0].best.success_rate)
        ('Within linf 0.075', '50.00 % (1 of 2)')
    """
    classifier = as_classifier(model)
    check_attacks(attacks, number_of_samples(x))
    checks.integer("rounds", rounds, at_least=1)
    _check_budget(classifier)
    parts = list(classified_batches(classifier, batches(x, y, batch_size, device)))
    if not any(part.correct.any() for part in parts):
        n = sum(len(part.x) for part in parts)
        raise ValueError(
            f"`x` must hold inputs that the model labels correctly, got {n:,} inputs, all "
            "misclassified. There is nothing to attack: check `y` and the preprocessing of `x`."
        )
    correct = torch.cat([part.correct for part in parts])
    warn_of_chance(Rate.of(correct), classifier.num_classes)
    run = _Run(classifier, parts, batch_size, [[] for _ in attacks])
    with (
        progress_bar("runs", len(attacks) * (1 + rounds), progress) as advance,
        keeping("benchmark", run.partial, _KEPT),
    ):
        run.measure(attacks, rounds, advance)
    return run.result()


def _check_budget(model: Classifier) -> None:
    budget = getattr(model, "max_queries", None)
    if budget is not None:
        raise ValueError(
            f"`model` must have no query budget, got {budget:,} queries, which the rounds and the "
            "bare passes would spend. Create it without a budget."
        )


class _Round(NamedTuple):
    """One run of an attack on all batches.

    Attributes:
        outcome: outcome of the attack.
        bare_seconds: seconds of a bare pass of the samples to attack in each batch; zero without
            such samples.
    """

    outcome: AttackOutcome
    bare_seconds: list[float]

    @property
    def passes(self) -> float:
        """Time of the attack in bare passes."""
        return self.outcome.seconds / sum(self.bare_seconds)


@dataclass
class _Run:
    """Measurements of one benchmark so far."""

    model: Classifier
    parts: Sequence[ClassifiedBatch]
    batch_size: int
    rounds: list[list[_Round]]  # of each attack
    peaks: list[int] = field(default_factory=list)
    bare_peak: int = 0

    @property
    def first(self) -> ClassifiedBatch:
        """First batch with inputs to attack."""
        return next(part for part in self.parts if part.correct.any())

    def measure(
        self, attacks: Sequence[Attack], rounds: int, advance: Callable[[int], None]
    ) -> None:
        """Measure the memory of each attack, and then its cost in rounds."""
        _, self.bare_peak = peak_memory(lambda: _bare_seconds(self.model, self.first))
        for attack in attacks:  # before the rounds, so that an attack that cannot run fails early
            self.peaks.append(
                _peak(self.model, sending_at_most(attack, self.batch_size), self.first)
            )
            advance(1)
        for _ in range(rounds):  # so that a slow period does not affect one attack only
            for attack, of_attack in zip(attacks, self.rounds, strict=True):
                of_attack.append(_run_round(self.model, attack, self.parts, self.batch_size))
                advance(1)

    def partial(self) -> Benchmark | None:
        """Return the result of the attacks with a finished round, `None` without one."""
        return self.result() if any(self.rounds) else None

    def result(self) -> Benchmark:
        """Return the result of the attacks with a finished round."""
        both = zip(self.rounds, self.peaks, strict=True)
        finished = [(of_attack, peak) for of_attack, peak in both if of_attack]
        return Benchmark(
            model=repr(self.model),
            clean=torch.cat([part.correct for part in self.parts]).cpu(),
            attacks=tuple(_cost(of_attack, peak) for of_attack, peak in finished),
            bare_pass=self._bare_pass(),
            batch_size=self.batch_size,
            rounds=min(len(of_attack) for of_attack, _ in finished),
            device=str(self.parts[0].x.device),
            threads=torch.get_num_threads(),
        )

    def _bare_pass(self) -> BarePass:
        first = self.first
        index = next(i for i, part in enumerate(self.parts) if part is first)
        return BarePass(
            inputs=len(first.x if keeps_batch(self.model) else first.rows),
            seconds=statistics.median(
                run.bare_seconds[index] for each in self.rounds for run in each
            ),
            peak_memory=self.bare_peak,
            backward=has_gradients(self.model),
        )


def _peak(model: Classifier, attack: Any, part: ClassifiedBatch) -> int:
    """Measure the most bytes that tensors hold while an attack runs on a batch."""
    attack = for_samples(attack, part.rows.cpu() + part.first)
    x, y = part.attacked
    y = given_labels(model, y)
    with part.attacking():
        _, peak = peak_memory(lambda: attack.run(model, x, y))
    return peak


def _run_round(
    model: Classifier, attack: Attack, parts: Sequence[ClassifiedBatch], batch_size: int
) -> _Round:
    """Run an attack on all batches, with bare passes before and after each batch."""
    recorder = AttackRecorder(AttackDescription.of(attack))
    bare_seconds = []
    for part in parts:
        before = _bare_seconds(model, part)
        recorder.update(attack_batches(attack, model, [part], batch_size, report=False))
        bare_seconds.append(statistics.median([*before, *_bare_seconds(model, part)]))
    return _Round(recorder.compute(), bare_seconds)


def _bare_seconds(model: Classifier, part: ClassifiedBatch) -> list[float]:
    """Time bare passes of the samples of a batch that attacks send, zero without samples."""
    if not part.correct.any():
        return [0.0]
    whole = keeps_batch(model)
    x, y = (part.x, part.y) if whole else part.attacked
    rows = sample_rows.numbered(len(x), part.first) if whole else part.attacking()
    with evaluating(model), rows:
        return [seconds(lambda: bare_pass(model, x, y)) for _ in range(BARE_PASSES)]


def _cost(rounds: Sequence[_Round], peak: int) -> AttackCost:
    median_seconds = statistics.median(run.outcome.seconds for run in rounds)
    return AttackCost(
        outcome=replace(rounds[0].outcome, seconds=median_seconds),
        passes=statistics.median(run.passes for run in rounds),
        peak_memory=peak,
    )
