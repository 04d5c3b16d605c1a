"""Distillation: training of a net on the outputs of another model at a temperature."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advkit.core import checks, conversions, sample_rows
from advkit.core.batching import is_pair
from advkit.core.checks import probabilities
from advkit.core.entries import INPUT_KEYS, first_entry
from advkit.core.paid_answers import PaidAnswers
from advkit.core.results import Answers
from advkit.defenses.training_loss import TrainingLoss, cross_entropy, logits_of
from advkit.models import Classifier, TorchClassifier, as_classifier, evaluating
from advkit.models.protocols import max_batch
from advkit.training.fit import fit
from advkit.training.shuffled import shuffled

MIN_PROBABILITY = 1e-6  # the last digit of services that round to six digits
_INPUTS = "the inputs in `loader`"  # subject of errors


@dataclass(frozen=True, kw_only=True)
class TemperedCrossEntropy(TrainingLoss):
    """Cross-entropy of the true labels at logits / temperature (Papernot et al., 2016).

    The teacher of defensive distillation (arXiv:1511.04508) is trained with it. Afterwards the net
    is used unchanged, at temperature 1. Its logits are about `temperature` times as large as those
    of an ordinary net, which does not make it more robust; see `Distillation`.

    The gradient at the logits is divided by `temperature`. Adam is invariant to this scale, but
    plain gradient descent needs another learning rate.

    Args:
        temperature: divisor of the logits, positive; 1 is the ordinary cross-entropy.

    Raises:
        ValueError: `temperature` is not positive.
        TypeError: `temperature` is not a number.

    Example:
        >>> import torch
        >>> from advkit import defenses
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x, y = torch.rand(5, 1, 8, 8), torch.arange(5)
        >>> defenses.TemperedCrossEntropy(temperature=100.0)(net, x, y).backward()
    """

    temperature: float

    def __post_init__(self) -> None:
        checks.positive("temperature", self.temperature)

    def _value(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(logits_of(module, x) / self.temperature, y)


@dataclass(frozen=True, kw_only=True)
class DistillationLoss(TrainingLoss):
    """Cross-entropy of a teacher's soft labels at a temperature, for your own training loop.

    The teacher is queried at every call, so inputs may be augmented. If queries are expensive, use
    `Distillation`, which queries each input once. The soft labels are those of `Distillation`. The
    labels `y` are checked like those of every loss, but not used.

    Deviations from the paper:
        - The loss is not multiplied by the squared temperature. Hinton et al. (2015,
          arXiv:1503.02531) do so, which preserves the size of the gradient next to a loss of the
          true labels while all logits are ordinary. Papernot et al. (2016, arXiv:1511.04508) do
          not. The sum of the former is `temperature**2 * DistillationLoss(...) + weight * loss`.

    Args:
        teacher: see `Distillation.fit`.
        temperature: divisor of the logits of both models, positive.
        min_probability: see `Distillation`.

    Raises:
        ValueError: a value is out of its range.
        TypeError: `teacher` is not a model, or returns labels only.

    Example:
        >>> import torch
        >>> from advkit import defenses
        >>> teacher, student = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
        >>> loss = defenses.DistillationLoss(teacher=teacher, temperature=20.0)
        >>> loss(student, torch.rand(5, 4), torch.zeros(5)).backward()
        >>> teacher.weight.grad is None
        True
    """

    teacher: object
    temperature: float
    min_probability: float = MIN_PROBABILITY

    def __post_init__(self) -> None:
        checks.positive("temperature", self.temperature)
        _check_min_probability(self.min_probability)
        _as_teacher(self.teacher)

    def _value(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        teacher = _as_teacher(self.teacher)
        inputs = checks.inputs("x", x, teacher.bounds)
        soft = soft_labels(teacher, inputs, self.temperature, self.min_probability)
        logits = logits_of(module, x)
        _check_classes(logits, soft)
        return soft_cross_entropy(logits, soft, self.temperature)


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Training of a student on a teacher's soft labels at a temperature (Hinton et al., 2015).

    The soft labels are softmax(logits / temperature) of the teacher. The student (Hinton et al.,
    arXiv:1503.02531) minimizes the cross-entropy to them at its own logits / temperature, and is
    then used unchanged, at temperature 1. For a teacher that returns only probabilities p, such as
    a service, log(p) are the logits. They differ from its own logits by a constant, which softmax
    ignores.

    This is **not a defense against an adaptive attacker**. In defensive distillation (Papernot et
    al., 2016, arXiv:1511.04508) the teacher is trained at the same temperature, with
    `TemperedCrossEntropy`. The student's logits are then about `temperature` times as large as
    ordinary ones. Its softmax is 1 in float32 and the gradient of the usual cross-entropy is zero,
    which stops attacks that use it.

    An attack that divides the logits by the temperature, or maximizes their margin, breaks the
    student like any other net (Carlini and Wagner, 2016, arXiv:1607.04311; 2017, arXiv:1608.04644).
    The losses of `advkit.attacks` do so by default; `docs/reproductions/distillation.md` has the
    figures. With a teacher with ordinary logits the student's are ordinary too, and its gradients
    are not masked.

    Deviations from the paper:
        - The optimizer is Adam, which is invariant to the scale of the loss. The factor
          `temperature**2` of Hinton et al. is therefore left out.
        - The true labels are not used. `DistillationLoss` can be added to any other loss.
        - The teacher is queried once for each input, before training.

    Args:
        temperature: divisor of the logits of both models, positive.
        epochs: passes over the inputs.
        lr: learning rate of Adam.
        batch_size: samples in a training batch; a last batch of one sample is joined with the
            previous one. The teacher is queried in batches of the loader.
        min_probability: lower limit, in (0, 1), of the probabilities of a teacher without logits;
            smaller ones are raised to it. Zero has no logarithm, and services round: with six
            digits, 0 and 4e-7 are the same. The limit matters more than it seems: at temperature
            100 a class at 1e-6 has 87 % of the weight of one at 1.
        seed: seed of order, dropout and other random numbers, an int.
        progress: write a line for each epoch to standard error.

    Raises:
        ValueError: a value is out of its range.
        TypeError: a value has the wrong type.

    Example:
        >>> import torch
        >>> from sklearn.tree import DecisionTreeClassifier
        >>> from advkit import defenses
        >>> x = torch.rand(200, 4)
        >>> tree = DecisionTreeClassifier(max_depth=3).fit(x, x[:, 0] > 0.5)
        >>> net = torch.nn.Linear(4, 2)
        >>> distillation = defenses.Distillation(temperature=2.0, epochs=40, lr=0.05)
        >>> student = distillation.fit(tree, net, x.split(50))
        >>> float((student(x)[:, 1] > student(x)[:, 0]).eq(x[:, 0] > 0.5).double().mean()) > 0.9
        True
    """

    temperature: float
    epochs: int = 10
    lr: float = 1e-3
    batch_size: int = 128
    min_probability: float = MIN_PROBABILITY
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        checks.positive("temperature", self.temperature)
        checks.integer("epochs", self.epochs, at_least=1)
        checks.positive("lr", self.lr)
        checks.integer("batch_size", self.batch_size, at_least=1)
        _check_min_probability(self.min_probability)
        checks.integer("seed", self.seed)
        checks.boolean("progress", self.progress)

    def fit(
        self,
        teacher: object,
        student: nn.Module,
        loader: Iterable[object],
        *,
        answers: Answers | None = None,
    ) -> nn.Module:
        """Train `student` in place to reproduce the outputs of `teacher`.

        Args:
            teacher: a classifier with logits or with probabilities as scores, an `nn.Module` with
                inputs in [0, 1], or a fitted scikit-learn estimator. It is left unchanged.
            student: module that takes the teacher's inputs `(n, *features)` and returns a logit for
                each of its classes. Inputs are moved to its device, also for the teacher.
            loader: batches `(x, y)` or `x` alone, iterated once. Labels are not used. The inputs
                are kept in memory, on their own device.
            answers: answers of the teacher so far: the `answers` of the error that ended an earlier
                `fit` with this `min_probability`. Any error, an interrupt included, has them once
                the teacher has answered a query. `None` for none.

        Returns:
            `student`, in evaluation mode.

        Raises:
            ValueError: there are no inputs or they are out of the teacher's bounds, scores are not
                probabilities, or the student has no parameters or the wrong number of logits. The
                number of logits is checked after the first batch of answers.
            TypeError: `teacher` is not a model or returns labels only, `student` is not a module,
                or `loader` does not give batches.
            QueryBudgetExceeded: the teacher's budget is spent; `student` has not been changed.
        """
        model = _as_teacher(teacher)
        if not isinstance(student, nn.Module):
            raise TypeError(f"`student` must be a torch.nn.Module, got {type(student).__name__}.")
        is_data = isinstance(loader, Tensor) or conversions.is_data(loader) or is_pair(loader)
        if is_data or not isinstance(loader, Iterable):
            raise TypeError(
                "`loader` must be an iterable of batches (x, y) or x, such as a DataLoader or "
                f"x.split(128), got {conversions.describe(loader)}."
            )
        optimizer = torch.optim.Adam(student.parameters(), lr=self.lr)
        paid = PaidAnswers(answers, axes=2)
        with paid.kept():
            self._train(
                student, optimizer, *self._collect_soft_labels(model, student, loader, paid)
            )
        return student

    def _train(
        self, student: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, soft: Tensor
    ) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            fit(
                student,
                shuffled(x, soft, self.batch_size),
                loss=self._loss,
                optimizer=optimizer,
                epochs=self.epochs,
                precision="float32",  # 16 bits are too few for logits / 100
                progress=self.progress,
            )

    def _collect_soft_labels(
        self, teacher: Classifier, student: nn.Module, loader: Iterable[object], paid: PaidAnswers
    ) -> tuple[Tensor, Tensor]:
        """Return all inputs of `loader`, and the soft labels of `teacher` for them."""

        def query(x: Tensor) -> Tensor:
            return _teacher_logits(teacher, x.to(device), self.min_probability)

        device = next(student.parameters()).device
        inputs: list[Tensor] = []
        answers: list[Tensor] = []
        with evaluating(teacher), torch.no_grad():
            for batch in loader:
                x = checks.inputs(_INPUTS, _get_inputs(batch), teacher.bounds)
                if not len(x):
                    continue
                with sample_rows.numbered(len(x), sum(map(len, inputs))):
                    logits = paid.ask(x, query, max_batch(teacher) or len(x))
                soft = (logits.to(device) / self.temperature).softmax(1)
                if not inputs:
                    _check_classes(TorchClassifier(student).logits(x[:1].to(device)), soft)
                inputs.append(x)
                answers.append(soft.to(x.device))
        if not inputs:
            raise ValueError("`loader` must give at least one batch, got none.")
        return torch.cat(inputs), torch.cat(answers)

    def _loss(self, module: nn.Module, x: Tensor, soft: Tensor) -> Tensor:
        return soft_cross_entropy(logits_of(module, x), soft, self.temperature)


def soft_labels(
    teacher: Classifier, x: Tensor, temperature: float, min_probability: float
) -> Tensor:
    """Return the teacher's soft labels `(n, classes)` at `temperature`, float32 or wider.

    Args:
        teacher: a classifier with logits or scores.
        x: inputs `(n, *features)`.
        temperature: divisor of its logits.
        min_probability: lower limit of its probabilities, if it has only scores.
    """
    return (_teacher_logits(teacher, x, min_probability) / temperature).softmax(1)


def _teacher_logits(teacher: Classifier, x: Tensor, min_probability: float) -> Tensor:
    """Return the teacher's logits, or the logarithms of its scores, float32 or wider."""
    rows = torch.arange(len(x), device=x.device)
    with torch.no_grad():
        if callable(getattr(teacher, "logits", None)):
            logits: Tensor = teacher.logits(x)  # type: ignore[attr-defined]  # checked above
            checks.finite_logits(logits, rows)
            checks.warn_of_probabilities(logits)
        else:
            p: Tensor = teacher.scores(x)  # type: ignore[attr-defined]  # checked by _as_teacher
            probabilities(
                "`teacher`", p, rows, "Pass a classifier with logits if it returns logits."
            )
            logits = p.clamp_min(min_probability).log()
        return logits.to(torch.promote_types(x.dtype, torch.float32))


def soft_cross_entropy(logits: Tensor, soft: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy to soft labels `(n, classes)` at logits / temperature."""
    return F.cross_entropy(logits / temperature, soft.to(logits.dtype))


def _as_teacher(obj: object) -> Classifier:
    model = as_classifier(obj)
    if not (callable(getattr(model, "logits", None)) or callable(getattr(model, "scores", None))):
        raise TypeError(
            "`teacher` must have logits or scores for soft labels, got "
            f"{type(model).__name__}, which returns labels only. Use attacks.Substitute, which "
            "learns from labels."
        )
    return model


def _get_inputs(batch: Any) -> Any:
    """Return the inputs of a batch `(x, y)`, `(x,)`, `x` or of a dictionary."""
    if isinstance(batch, Mapping):
        return first_entry(batch, INPUT_KEYS)
    return batch[0] if isinstance(batch, (tuple, list)) and batch else batch


def _check_classes(logits: Tensor, soft: Tensor) -> None:
    if logits.shape[1] != soft.shape[1]:
        raise ValueError(
            f"`student` must return {soft.shape[1]} logits, one for each class of the teacher, "
            f"got {logits.shape[1]}."
        )


def _check_min_probability(min_probability: float) -> None:
    checks.fraction("min_probability", min_probability, "(0, 1)")
