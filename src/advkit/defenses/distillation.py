"""Distillation: a net that learns what another model answers, at a temperature."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advkit.core import checks, sample_rows
from advkit.core.checks import probabilities
from advkit.core.paid_answers import PaidAnswers
from advkit.core.results import Answers
from advkit.defenses.training_loss import TrainingLoss, cross_entropy, logits_of
from advkit.models import Classifier, TorchClassifier, as_classifier, evaluating
from advkit.models.protocols import max_batch
from advkit.training.fit import fit
from advkit.training.shuffled import shuffled

FLOOR = 1e-6


@dataclass(frozen=True, kw_only=True)
class TemperedCrossEntropy(TrainingLoss):
    """Cross-entropy of the true labels at logits / temperature (Papernot et al., 2016).

    What the teacher of defensive distillation (arXiv:1511.04508) is trained with. The net is used
    at temperature 1 afterwards, that is unchanged, and its logits are about `temperature` times as
    large as those of an ordinary net. That makes it no more robust, see `Distillation`.

    The gradient at the logits is 1 / `temperature` of what its softmax says. Adam does not mind;
    plain gradient descent needs another learning rate.

    Args:
        temperature: what the logits are divided by, positive; 1 is the ordinary cross-entropy.

    Raises:
        ValueError: `temperature` is not positive.
        TypeError: `temperature` is no number.

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
    """Cross-entropy of a teacher's answers at a temperature, for a loop of one's own.

    The teacher is asked at every call, so that inputs may be augmented; one that costs queries is
    better asked once, by `Distillation`. Its answers, the soft labels, are those of `Distillation`.
    The labels `y` are checked like those of every loss, and not used.

    Deviation: Hinton et al. (2015, arXiv:1503.02531) multiply by the squared temperature, which
    keeps the size of the gradient beside a loss of the true labels while all logits are ordinary;
    Papernot et al. (2016, arXiv:1511.04508) do not, nor is it done here. The sum of the former is
    `temperature**2 * DistillationLoss(...) + weight * loss`.

    Args:
        teacher: as for `Distillation.fit`.
        temperature: what the logits of both are divided by, positive.
        floor: as for `Distillation`.

    Raises:
        ValueError: a value is out of its range.
        TypeError: `teacher` is no model, or gives labels alone.

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
    floor: float = FLOOR

    def __post_init__(self) -> None:
        checks.positive("temperature", self.temperature)
        _check_floor(self.floor)
        _as_teacher(self.teacher)

    def _value(self, module: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        teacher = _as_teacher(self.teacher)
        inputs = checks.inputs(x, teacher.bounds)
        soft = soft_labels(teacher, inputs, self.temperature, self.floor)
        logits = logits_of(module, x)
        _check_classes(logits, soft)
        return soft_cross_entropy(logits, soft, self.temperature)


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Train a student on a teacher's answers at a temperature (Hinton et al., 2015).

    The teacher's answers become soft labels, softmax(logits / temperature), and the student (Hinton
    et al., arXiv:1503.02531) goes down their cross-entropy at its own logits / temperature. It is
    used at temperature 1, that is unchanged. A teacher that gives only probabilities p, a service
    say, has log(p) for logits, which differ from its own by a constant that softmax does not see.

    This is **no defense against who knows it**. As defensive distillation (Papernot et al., 2016,
    arXiv:1511.04508) the teacher is trained at the same temperature, with `TemperedCrossEntropy`.
    The student's logits are then about `temperature` times as large as ordinary ones, its softmax
    is 1 in float32, and the gradient of the usual cross-entropy is zero: attacks that climb it
    stand still. Divide the logits by the temperature, or attack the margin of the logits (Carlini
    and Wagner, 2016, arXiv:1607.04311; 2017, arXiv:1608.04644), and the student falls like any net.
    The losses of `advkit.attacks` do so by themselves; `docs/reproductions/distillation.md` has the
    figures. From a teacher with ordinary logits the student's are ordinary too, and nothing is
    hidden.

    Deviations: the optimizer is Adam, which does not mind the size of the loss; so there is no
    factor `temperature**2` as in Hinton et al., nor a share of the true labels (`DistillationLoss`
    can be added to anything). The teacher is asked once for each input, before training.

    Args:
        temperature: what the logits of both are divided by, positive.
        epochs: passes over the inputs.
        lr: of Adam.
        batch_size: samples in a batch of training; a last one of one sample goes into the batch
            before it. The teacher is asked in batches of the loader.
        floor: what probabilities below it are counted as, in (0, 1), where a teacher gives
            probabilities alone. Zero has no logarithm, and services round: with six digits nobody
            can tell 0 from 4e-7. It weighs more than it seems: at temperature 100 a class at 1e-6
            has 87 % of the weight of one at 1.
        seed: of order, dropout and the like, an int.
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
    floor: float = FLOOR
    seed: int = 0
    progress: bool = False

    def __post_init__(self) -> None:
        checks.positive("temperature", self.temperature)
        checks.integer("epochs", self.epochs, at_least=1)
        checks.positive("lr", self.lr)
        checks.integer("batch_size", self.batch_size, at_least=1)
        _check_floor(self.floor)
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
        """Train `student` in place to answer what `teacher` does.

        Args:
            teacher: a classifier with logits or with probabilities as scores, an `nn.Module` with
                inputs in [0, 1], or a fitted scikit-learn estimator. It is left as it was.
            student: takes the teacher's inputs `(n, *features)` and gives a logit for each of its
                classes. Inputs are moved to its device, also those that the teacher is asked about.
            loader: batches `(x, y)` or `x` alone, gone through once: labels are not used, and the
                inputs are kept in memory, where they came from.
            answers: what the teacher has answered already: the `answers` of the error that ended
                an earlier `fit` with this `floor`. Any error, an interrupt included, has them once
                the teacher has answered something. `None` for nothing.

        Returns:
            `student`, in evaluation mode.

        Raises:
            ValueError: inputs out of the teacher's bounds or none of them, scores that are no
                probabilities, a student without parameters, or with another number of logits than
                the teacher has classes, which is seen when the first batch has been answered.
            TypeError: `teacher` is no model or gives labels alone, `student` is no module, or
                `loader` gives no batches.
            QueryBudgetExceeded: the teacher's budget is spent; `student` has not been touched.
        """
        model = _as_teacher(teacher)
        if not isinstance(student, nn.Module):
            raise TypeError(f"`student` must be a torch.nn.Module, got {type(student).__name__}")
        if isinstance(loader, Tensor) or not isinstance(loader, Iterable):
            raise TypeError(
                "`loader` must be an iterable of batches (x, y) or x, such as a DataLoader or "
                f"x.split(128), got {type(loader).__name__}"
            )
        optimizer = torch.optim.Adam(student.parameters(), lr=self.lr)
        paid = PaidAnswers(answers, axes=2)
        with paid.kept():
            self._train(student, optimizer, *self._asked(model, student, loader, paid))
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

    def _asked(
        self, teacher: Classifier, student: nn.Module, loader: Iterable[object], paid: PaidAnswers
    ) -> tuple[Tensor, Tensor]:
        """Return all inputs of `loader`, and the soft labels that `teacher` has for them."""

        def ask(x: Tensor) -> Tensor:
            return _teacher_logits(teacher, x.to(device), self.floor)

        device = next(student.parameters()).device
        inputs: list[Tensor] = []
        answers: list[Tensor] = []
        with evaluating(teacher), torch.no_grad():
            for batch in loader:
                x = checks.inputs(_inputs_of(batch), teacher.bounds)
                if not len(x):
                    continue
                with sample_rows.numbered(len(x), sum(map(len, inputs))):
                    logits = paid.ask(x, ask, max_batch(teacher) or len(x))
                soft = (logits.to(device) / self.temperature).softmax(1)
                if not inputs:
                    _check_classes(TorchClassifier(student).logits(x[:1].to(device)), soft)
                inputs.append(x)
                answers.append(soft.to(x.device))
        if not inputs:
            raise ValueError("`loader` must give at least one batch, gave none")
        return torch.cat(inputs), torch.cat(answers)

    def _loss(self, module: nn.Module, x: Tensor, soft: Tensor) -> Tensor:
        return soft_cross_entropy(logits_of(module, x), soft, self.temperature)


def soft_labels(teacher: Classifier, x: Tensor, temperature: float, floor: float) -> Tensor:
    """What `teacher` answers at `temperature`: probabilities `(n, classes)`, float32 or wider.

    Args:
        teacher: a classifier with logits or scores.
        x: inputs `(n, *features)`.
        temperature: what its logits are divided by.
        floor: the least probability that counts, if it has scores alone.
    """
    return (_teacher_logits(teacher, x, floor) / temperature).softmax(1)


def _teacher_logits(teacher: Classifier, x: Tensor, floor: float) -> Tensor:
    """Return the teacher's logits `(n, classes)`, float32 or wider; logarithms of its scores."""
    rows = torch.arange(len(x), device=x.device)
    with torch.no_grad():
        if callable(getattr(teacher, "logits", None)):
            logits: Tensor = teacher.logits(x)  # type: ignore[attr-defined]  # just seen
            checks.finite_logits(logits, rows)
            checks.warn_of_probabilities(logits)
        else:
            p: Tensor = teacher.scores(x)  # type: ignore[attr-defined]  # seen by _as_teacher
            probabilities("the teacher", p, rows, "give it as a classifier with logits")
            logits = p.clamp_min(floor).log()
        return logits.to(torch.promote_types(x.dtype, torch.float32))


def soft_cross_entropy(logits: Tensor, soft: Tensor, temperature: float) -> Tensor:
    """Mean cross-entropy of the probabilities `soft` `(n, classes)` at logits / temperature."""
    return F.cross_entropy(logits / temperature, soft.to(logits.dtype))


def _as_teacher(obj: object) -> Classifier:
    model = as_classifier(obj)
    if not (callable(getattr(model, "logits", None)) or callable(getattr(model, "scores", None))):
        raise TypeError(
            "`teacher` must give logits or scores, which become soft labels; "
            f"{type(model).__name__} gives labels alone. attacks.Substitute learns from those"
        )
    return model


def _inputs_of(batch: Any) -> Any:
    """The inputs of a batch `(x, y)`, `(x,)` or `x`."""
    return batch[0] if isinstance(batch, (tuple, list)) and batch else batch


def _check_classes(logits: Tensor, soft: Tensor) -> None:
    if logits.shape[1] != soft.shape[1]:
        raise ValueError(
            f"`student` must give {soft.shape[1]} logits, one for each of the teacher's classes, "
            f"gives {logits.shape[1]}"
        )


def _check_floor(floor: float) -> None:
    checks.number("floor", floor)
    if not 0 < floor < 1:
        raise ValueError(f"`floor` must lie between 0 and 1, got {floor}")
