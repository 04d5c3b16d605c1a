"""Modular robust redundancy: the modules together, as one detector."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from advkit.core import checks, sample_rows
from advkit.defenses.mrr import storage
from advkit.defenses.mrr.aggregation import Rule, RuleName
from advkit.defenses.mrr.calibration_split import hold_out, split_given
from advkit.defenses.mrr.dictionaries import InputDefender
from advkit.defenses.mrr.fitted import Fitted, calibrated_on
from advkit.defenses.mrr.latent import LatentDefenders
from advkit.defenses.mrr.latent_layers import fit_layers
from advkit.defenses.mrr.policy import Policy
from advkit.defenses.mrr.victim import as_victim

_PARTS = "the inputs that MRR is fitted on"
_FOUR = LatentDefenders(count=4)  # most of what sixteen find, at a quarter of the cost


class MRR:
    """A detector of unlikely inputs: modular robust redundancy (Rouhani et al., 2019).

    Beside the victim, which stays as it is, stand defenders that know clean data alone: copies of
    it whose features form tight clusters at some layer (`LatentDefenders`), and dictionaries of
    image patches (`InputDefender`). Each tells how far an input is from the clean inputs of the
    class that the victim answers, and scores that by how many clean inputs are as far; the risk
    aggregates the scores. No adversarial input is needed. The labels of the training data are.

    An input detector as `Guard` and the adaptive attacks know it: judge it by `JointCarliniWagner`,
    `SelectivePGD` and `FeatureMatching`, which break it, and not by attacks on the victim alone,
    which it detects.

    The method is patented (US 11,526,601 B2).

    Deviations from the article and its authors' code: scores are calibrated on clean inputs that
    are not fitted on, by the victim's answers, and not on the fit's own; the security parameter is
    that of all defenders together unless `jointly=False`; the weights of noisy-or are constants and
    not learned from the attacks that are then evaluated; a rule that votes gives the greatest level
    at which it carries, so that its risk is no coarser than the scores. With `held_out=0.0`,
    `jointly=False` and `aggregate="max"` it is the article's rule.

    Args:
        latent: the defenders at one layer, or several of these for several layers.
        inputs: the defender of the input itself; for images `(n, channels, height, width)`.
        aggregate: `"max"`, any defender's alarm is one; `"vote"`, more than half; `"noisy_or"`,
            alarms whose noisy-or is above 1/2; `"mean"` of the scores.
        precision: of `"noisy_or"`: the probability, between 0 and 1, that an input is adversarial
            if a defender alarms; one for all, or one for each.
        security: the security parameter, in percent: the share of clean inputs that is flagged, by
            all defenders together, or by each.
        jointly: whether it is that of all together.
        held_out: share of the data that is not fitted on but calibrated on, unless `fit` is given
            other clean inputs for that; 0 calibrates the scores on the data of the fit.
        seed: of what is held out, and of the orders in which defenders see their images.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range, or two do not fit together.

    Example:
        >>> import torch
        >>> from advkit import data
        >>> from advkit.defenses import MRR, LatentDefenders
        >>> x, y = data.digits("train").x[:600], data.digits("train").y[:600]
        >>> net = torch.nn.Sequential(
        ...     torch.nn.Flatten(),
        ...     torch.nn.Linear(64, 30),
        ...     torch.nn.ReLU(),
        ...     torch.nn.Linear(30, 10),
        ... )
        >>> mrr = MRR(latent=LatentDefenders(count=2, epochs=1), security=10).fit(net, x, y)
        >>> mrr.scores(x[:5]).shape, mrr.risk(x[:5]).shape, mrr.flag(x[:5]).dtype
        (torch.Size([5, 2]), torch.Size([5]), torch.bool)
    """

    reads_inputs = True

    def __init__(
        self,
        latent: LatentDefenders | Sequence[LatentDefenders] = _FOUR,
        inputs: InputDefender | None = None,
        *,
        aggregate: RuleName = "max",
        precision: float | Sequence[float] = 0.9,
        security: float = 1.0,
        jointly: bool = True,
        held_out: float = 0.2,
        seed: int = 0,
    ) -> None:
        self.latent = _layers(latent)
        if inputs is not None and not isinstance(inputs, InputDefender):
            raise TypeError(f"`inputs` must be an InputDefender or None, got {inputs!r}")
        if not self.latent and inputs is None:
            raise ValueError("latent or inputs must hold a defender, both are empty")
        self.inputs = inputs
        checks.fraction("held_out", held_out)
        if held_out == 1:
            raise ValueError("`held_out` must be below 1: nothing would be left to fit on")
        self.held_out = float(held_out)
        checks.integer("seed", seed)
        self.seed = seed
        self._fitted: Fitted | None = None
        self._policy = Policy.of(aggregate, precision, security, jointly)

    def __repr__(self) -> str:
        state = "not fitted" if self._fitted is None else f"{self._fitted.clean.shape[1]} defenders"
        kind = "jointly" if self.jointly else "each"
        return f"MRR({state}, aggregate={self.rule.name!r}, security={self.security:g} % {kind})"

    def fit(
        self,
        model: object,
        x: Tensor,
        y: Tensor,
        clean: Tensor | None = None,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool = False,
    ) -> Self:
        """Fit all defenders on clean data.

        The model is copied, never changed. The copies keep its preprocessing.

        Args:
            model: an `nn.Module` on inputs in [0, 1], or a `TorchClassifier`.
            x: clean inputs `(n, *features)` within the model's bounds.
            y: true labels `(n,)`.
            clean: inputs `(m, *features)` to calibrate on, half of them for the scores and half for
                the threshold, best such that the model has not learned from; `None` holds out a
                share of `x`. A model that was trained on those knows them, and flags somewhat more
                of new inputs than is asked for.
            checkpoint: path of a file that is replaced after each latent defender: a fit that was
                killed goes on after the last of them and ends with the same numbers. Kept at the
                end. One run at a time may use it.
            progress: write a line for each defender to standard error.

        Returns:
            This detector.

        Raises:
            TypeError: the model is no torch module.
            ValueError: an argument has the wrong shape or range, there are too few inputs to hold
                some out, or none for `jointly`, a layer is not there, or the checkpoint is of
                another fit.
            RuntimeError: another run, in this process or another one, uses the checkpoint.
            OSError: the checkpoint cannot be written or read.
        """
        victim = as_victim(model)
        x = checks.inputs(x, victim.bounds)
        y = checks.labels("y", y, x)
        checks.boolean("progress", progress)
        if clean is None and self.jointly and not self.held_out:
            raise ValueError("`jointly` must be False with held_out=0 and without clean inputs")
        if clean is None:
            learn, scale, decide = hold_out(x, self.held_out, self.seed)
        else:
            learn, scale, decide = split_given(x, clean, victim.bounds, self.seed)
        with sample_rows.unnumbered(_PARTS):
            victim.predict(x[:1])  # learns the number of classes, and fails here if at all
        checks.labels_within("y", y, victim.num_classes, torch.arange(len(y), device=y.device))
        unnumbered = sample_rows.unnumbered(_PARTS)
        with torch.inference_mode(False), torch.no_grad(), unnumbered:
            data = x[learn], y[learn]
            latent = fit_layers(
                self.latent,
                victim,
                *data,
                seed=self.seed,
                checkpoint=checkpoint,
                progress=progress,
            )
            inputs = None if self.inputs is None else self.inputs.fit(*data, victim.bounds)
            fitted = calibrated_on(victim, latent, inputs, scale, decide)
        self._policy.check_count(fitted.clean.shape[1])
        self._fitted = fitted
        return self

    @property
    def rule(self) -> Rule:
        """How scores become a risk."""
        return self._policy.rule

    @property
    def security(self) -> float:
        """Share of clean inputs that is flagged, in percent."""
        return self._policy.security

    @property
    def jointly(self) -> bool:
        """True if `security` is that of all defenders together, and not of each."""
        return self._policy.jointly

    @property
    def threshold(self) -> float:
        """The most risk that raises no alarm.

        Raises:
            ValueError: before `fit`, or without enough held out for so small a `security`.
        """
        return self._policy.threshold(self.fitted.clean)

    @property
    def fitted(self) -> Fitted:
        """What `fit` left.

        Raises:
            ValueError: before `fit`.
        """
        if self._fitted is None:
            raise ValueError("MRR is not fitted: call fit(model, x, y), or MRR.load(path, model)")
        return self._fitted

    def scores(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """The score of each defender.

        Args:
            x: inputs `(n, *features)`.
            labels: the victim's answers `(n,)`, if they are known; `None` asks it.

        Returns:
            `(n, defenders)`, float64 in [0, 1], detached: the share of clean inputs with that
            answer that are nearer to their class. Latent defenders come first, layer by layer.

        Raises:
            ValueError: before `fit`, or `x` or `labels` have the wrong shape or range.
        """
        fitted = self.fitted
        x = checks.inputs(x, fitted.victim.bounds)
        with torch.no_grad():
            return fitted.scores(x, fitted.labels(x, labels))

    def risk(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """How risky the victim's answers are.

        Args:
            x: inputs `(n, *features)`.
            labels: the victim's answers `(n,)`, if they are known; `None` asks it.

        Returns:
            `(n,)`, float64 in [0, 1], detached; `margin_over_threshold` is what has gradients.

        Raises:
            ValueError: before `fit`, or `x` or `labels` have the wrong shape or range.
        """
        return self.rule.risk(self.scores(x, labels))

    def anomaly_score(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the risk `(n,)`, by the name that all detectors share; see `risk`."""
        return self.risk(x, labels)

    def flag(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Whether the risk is above the threshold, bool `(n,)`; arguments and errors as `risk`."""
        return self.risk(x, labels) > self.threshold

    def margin_over_threshold(self, x: Tensor, labels: Tensor, threshold: float) -> Tensor:
        """How far each part is above what it lets pass, for attacks that know of the detector.

        Args:
            x: inputs `(n, *features)`; gradients go to them.
            labels: the answers that the victim is taken to give, `(n,)`.
            threshold: the most risk that raises no alarm.

        Returns:
            `(n, parts)`, in standard deviations of clean distances: each defender's if one alarm is
            enough, else that of the rule. An alarm needs one above zero.
        """
        fitted = self.fitted
        distances = fitted.distances(x, labels)
        if self.rule.name == "mean":
            scores = fitted.calibration.scores(distances, labels)
            return self.rule.risk(scores)[:, None] - threshold
        return self.rule.parts(
            fitted.calibration.margin_over_threshold(distances, labels, threshold)
        )

    def features(self, x: Tensor) -> Tensor:
        """What the latent defenders see of `x` `(n, *features)`: `(n, width)`, differentiable."""
        return torch.cat([own.features(x) for own in self.fitted.modules], dim=1)

    def correlation(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Pearson correlations of the defenders' scores of `x`: `(defenders, defenders)`.

        Of scores that are ranks among clean inputs this is about Spearman's. A defender whose
        scores are all the same has NaN.

        Raises:
            ValueError: as `scores`, or fewer than two inputs.
        """
        scores = self.scores(x, labels)
        if len(scores) < 2:
            raise ValueError(f"`x` must hold at least 2 inputs, got {len(scores)}")
        gaps = scores - scores.mean(0)
        products = gaps.T @ gaps
        lengths = products.diag().sqrt()
        return products / (lengths[:, None] * lengths)

    def with_policy(
        self,
        *,
        aggregate: RuleName | None = None,
        precision: float | Sequence[float] | None = None,
        security: float | None = None,
        jointly: bool | None = None,
    ) -> MRR:
        """The same defenders under another policy; `None` keeps what is set. Nothing is fitted."""
        other = copy.copy(self)
        other._policy = Policy.of(
            self.rule.name if aggregate is None else aggregate,
            self.rule.precision if precision is None else precision,
            self.security if security is None else security,
            self.jointly if jointly is None else jointly,
        )
        if other._fitted is not None:
            other._policy.check_count(other._fitted.clean.shape[1])
        return other

    def first(self, count: int, *, inputs: bool = True) -> MRR:
        """With fewer defenders. A chain's beginning is what a shorter chain would be.

        Args:
            count: how many latent defenders of each layer to keep, from the first one on.
            inputs: whether to keep the input defender, if there is one.

        Raises:
            ValueError: before `fit`, a layer has fewer, or there is a precision for each defender.
        """
        checks.integer("count", count, at_least=1)
        checks.boolean("inputs", inputs)
        least = min((own.count for own in self.latent), default=0)
        if count > least:
            raise ValueError(
                f"`count` must be at most {least}, the defenders of a layer, got {count}"
            )
        other = copy.copy(self)
        other.latent = tuple(replace(own, count=count) for own in self.latent)
        other.inputs = self.inputs if inputs else None
        other._fitted = self.fitted.first(count, inputs=inputs)
        other._policy.check_count(other._fitted.clean.shape[1])
        return other

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all but the victim to an `.npz` archive of plain arrays, whole or not at all.

        Raises:
            ValueError: before `fit`.
            OSError: the file cannot be written.
        """
        storage.write(Path(path), self._settings(), self.fitted)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: object) -> MRR:
        """A fitted detector from a file that `save` wrote; reading it runs no code.

        Args:
            path: of the file.
            model: the victim, as in `fit`.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: it is damaged, not such a file, or was fitted with another model.
            TypeError: the model is no torch module.
        """
        path, victim = Path(path), as_victim(model)
        stored = storage.Stored(path)
        with storage.named_in_errors(path):
            mrr = cls(**stored.settings)
            fitted = stored.fitted(victim)
            mrr._policy.check_count(fitted.clean.shape[1])
        mrr._fitted = fitted
        return mrr

    def _settings(self) -> dict[str, Any]:
        return {
            "latent": self.latent,
            "inputs": self.inputs,
            "aggregate": self.rule.name,
            "precision": self.rule.precision,
            "security": self.security,
            "jointly": self.jointly,
            "held_out": self.held_out,
            "seed": self.seed,
        }


def _layers(latent: LatentDefenders | Sequence[LatentDefenders]) -> tuple[LatentDefenders, ...]:
    layers = (latent,) if isinstance(latent, LatentDefenders) else latent
    if not isinstance(layers, Sequence) or not all(isinstance(v, LatentDefenders) for v in layers):
        raise TypeError(f"`latent` must be LatentDefenders or a list of them, got {latent!r}")
    return tuple(layers)
