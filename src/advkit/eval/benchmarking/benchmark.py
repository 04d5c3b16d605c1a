"""What attacks find on a user's own model and data, and what they take for it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from advkit.core import checks, sample_rows
from advkit.core.attack_options import for_samples, sending_at_most
from advkit.core.batching import batches
from advkit.core.progress import progress_bar
from advkit.core.protocols import Attack
from advkit.eval.accuracy import ClassifiedBatch, classified
from advkit.eval.benchmarking.cost import bare_pass, peak_memory, seconds
from advkit.eval.benchmarking.ranking import AttackCost
from advkit.eval.benchmarking.result import Benchmark, Floor
from advkit.eval.robustness.attack_recorder import AttackRecorder, check_attacks
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.models import Classifier, as_classifier, evaluating, has_gradients
from advkit.models.batch_dependence import keeps_batch
from advkit.models.labels import given_labels

_PASSES = 3  # bare passes before each attack on a batch, and after it


def benchmark(
    model: object,
    x: Tensor,
    y: Tensor,
    *,
    attacks: Sequence[Attack],
    batch_size: int = 128,
    rounds: int = 3,
    device: str | torch.device | None = None,
    progress: bool = False,
) -> Benchmark:
    """Find out which attack finds most on a model, and for how many passes.

    Each attack meets every input that the model labels correctly, once to warm up on the first
    batch and then `rounds` times on all of them. Its time is told in floors: bare passes of exactly
    the batch that it attacks, forward and backward to the input, timed just before and just after.
    A machine whose speed wanders moves both. Of a model without gradients a floor is a forward
    pass. What is found is that of the first round.

    Args:
        model: a classifier without a query budget, or an `nn.Module` with inputs in [0, 1].
        x: inputs `(n, *features)`.
        y: true labels `(n,)`.
        attacks: what to attack with. An `eps` with one radius for each sample is cut along with the
            batches.
        batch_size: samples sent at once. An attack with a larger `batch_size` of its own, such as
            `HopSkipJump`, is held to it; the attacks reported are as given.
        rounds: how often each attack is timed.
        device: where the batches are moved to, all before the first attack; `None` leaves them
            where they are.
        progress: show a bar (needs the extra `report`).

    Returns:
        What was found and what it took; it prints as a table.

    Raises:
        ValueError: inputs or labels of the wrong shape or range, none that the model labels
            correctly, no attack, a model with a query budget, or fewer rounds than one.
        TypeError: inputs, labels, attacks or model of the wrong type, or an attack that asks for
            what the model does not answer.

    Example:
        >>> import torch
        >>> from advkit import attacks, eval
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> _ = net.weight.data.copy_(2 * torch.eye(2))
        >>> x, y = torch.tensor([[0.6, 0.5], [0.4, 0.6]]), torch.tensor([0, 1])
        >>> found = eval.benchmark(net, x, y, attacks=[attacks.FGSM(eps=0.075)])
        >>> found.groups[0].title, str(found.groups[0].best.found)
        ('Within linf 0.075', '50.00 % (1 of 2)')
    """
    classifier = as_classifier(model)
    if not isinstance(x, Tensor):
        raise TypeError(f"`x` must be a torch.Tensor, got {type(x).__name__}")
    check_attacks(attacks, len(x))
    checks.integer("rounds", rounds, at_least=1)
    _check_budget(classifier)
    parts = list(classified(classifier, batches(x, y, batch_size, device)))
    if not any(part.right.any() for part in parts):
        raise ValueError(
            f"`x` must hold inputs that the model labels as y says, labels none of {len(x):,} so: "
            "there is nothing to attack"
        )
    with progress_bar("runs", len(attacks) * (1 + rounds), progress) as advance:
        costs, floor = _measured(classifier, parts, attacks, batch_size, rounds, advance)
    return Benchmark(
        model=repr(classifier),
        clean=torch.cat([part.right for part in parts]).cpu(),
        attacks=tuple(costs),
        floor=floor,
        batch_size=batch_size,
        rounds=rounds,
        device=str(parts[0].x.device),
        threads=torch.get_num_threads(),
    )


def _check_budget(model: Classifier) -> None:
    budget = getattr(model, "max_queries", None)
    if budget is not None:
        raise ValueError(
            f"`model` must have no query budget, got one of {budget:,} samples: rounds and floors "
            "would spend it; make it without a budget"
        )


class _Round(NamedTuple):
    """All batches attacked once.

    Attributes:
        outcome: of the attack.
        passes: seconds of a bare pass of what is attacked in each batch; zero where nothing is.
    """

    outcome: AttackOutcome
    passes: list[float]

    @property
    def floors(self) -> float:
        """Time of the attack in bare passes."""
        return self.outcome.seconds / sum(self.passes)


def _measured(
    model: Classifier,
    parts: Sequence[ClassifiedBatch],
    attacks: Sequence[Attack],
    batch_size: int,
    rounds: int,
    advance: Callable[[int], None],
) -> tuple[list[AttackCost], Floor]:
    """What each attack costs, and what a floor is."""
    first = next(i for i, part in enumerate(parts) if part.right.any())
    _, floor_peak = peak_memory(lambda: _passes(model, parts[first]))
    peaks = []
    for attack in attacks:  # all before the rounds, so that one that cannot run says so soon
        peaks.append(_peak(model, sending_at_most(attack, batch_size), parts[first]))
        advance(1)
    found: list[list[_Round]] = [[] for _ in attacks]
    for _ in range(rounds):  # round by round, so that a slow minute is not that of one attack
        for attack, mine in zip(attacks, found, strict=True):
            mine.append(_round(model, attack, parts, batch_size))
            advance(1)
    costs = [_cost(mine, peak) for mine, peak in zip(found, peaks, strict=True)]
    floor = Floor(
        inputs=len(parts[first].x if keeps_batch(model) else parts[first].rows),
        seconds=statistics.median(one.passes[first] for mine in found for one in mine),
        peak_memory=floor_peak,
        backward=has_gradients(model),
    )
    return costs, floor


def _peak(model: Classifier, attack: Any, part: ClassifiedBatch) -> int:
    """The most bytes that an attack has in tensors while it works on a batch."""
    attack = for_samples(attack, part.rows.cpu() + part.first)
    x, y = part.attacked
    y = given_labels(model, y)
    with part.attacking():
        _, most = peak_memory(lambda: attack.run(model, x, y))
    return most


def _round(
    model: Classifier, attack: Attack, parts: Sequence[ClassifiedBatch], batch_size: int
) -> _Round:
    recorder = AttackRecorder(attack, batch_size=batch_size, examples=0)
    passes = []
    for part in parts:
        before = _passes(model, part)
        recorder.update(model, part)
        passes.append(statistics.median([*before, *_passes(model, part)]))
    return _Round(recorder.compute(), passes)


def _passes(model: Classifier, part: ClassifiedBatch) -> list[float]:
    """Seconds of some bare passes of what an attack sends of a batch, zero for nothing."""
    if not part.right.any():
        return [0.0]
    whole = keeps_batch(model)
    x, y = (part.x, part.y) if whole else part.attacked
    rows = sample_rows.numbered(len(x), part.first) if whole else part.attacking()
    with evaluating(model), rows:
        return [seconds(lambda: bare_pass(model, x, y)) for _ in range(_PASSES)]


def _cost(rounds: Sequence[_Round], peak: int) -> AttackCost:
    took = statistics.median(one.outcome.seconds for one in rounds)
    return AttackCost(
        outcome=replace(rounds[0].outcome, seconds=took),
        floors=statistics.median(one.floors for one in rounds),
        peak_memory=peak,
    )
