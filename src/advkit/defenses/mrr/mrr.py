"""Modular robust redundancy: all defenders combined into one detector."""

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

from advkit.core import checks, label_checks, sample_rows
from advkit.defenses.mrr import storage
from advkit.defenses.mrr.aggregation import Rule, RuleName, pearson_correlation
from advkit.defenses.mrr.calibration_split import check_fraction, hold_out, split_given
from advkit.defenses.mrr.dictionaries import InputDefender
from advkit.defenses.mrr.fitted import Fitted, calibrate_modules
from advkit.defenses.mrr.latent_layers import fit_layers
from advkit.defenses.mrr.latent_settings import LatentDefenders, as_layers
from advkit.defenses.mrr.policy import Policy
from advkit.defenses.mrr.victim import as_victim

_FIT_INPUTS = "the inputs that MRR is fitted on"
_DEFAULT_LATENT = LatentDefenders(count=4)  # nearly as good as 16, at a quarter of the cost


class MRR:
    """Detector of unlikely inputs: modular robust redundancy (Rouhani et al., 2019).

    The victim stays as it is, and defenders that are fitted on clean data alone are added.
    `LatentDefenders` are copies of the victim whose features form tight clusters at some layer;
    `InputDefender` learns dictionaries of image patches.

    Each defender measures the distance of an input to the clean inputs of the predicted class. Its
    score is the share of clean inputs that are nearer, and the risk aggregates the scores. The fit
    needs the labels of the training data, but no adversarial examples.

    MRR is an input detector for `Guard` and the adaptive attacks. Evaluate it with
    `JointCarliniWagner`, `SelectivePGD` and `FeatureMatching`, which break it. Attacks on the
    victim alone are not enough, since MRR detects them.

    The method is patented (US 11,526,601 B2). The article's rule is `calibration_fraction=0.0`,
    `joint_threshold=False` and `aggregate="max"`.

    Deviations from the paper:
        - Scores are calibrated on clean inputs that were not used in the fit, by the victim's
          predictions. The article and its authors' code use those of the fit.
        - The false-positive rate holds for all defenders together unless `joint_threshold=False`.
        - The weights of noisy-or are constants. They are not learned from the attacks that are then
          evaluated.
        - A voting rule returns the greatest level at which it passes, which makes its risk as fine
          as the scores.

    Args:
        latent: the defenders at one layer, or a list of them for several layers.
        inputs: the defender of the input itself; for images `(n, channels, height, width)`.
        aggregate: `"max"`, any defender flags; `"vote"`, more than half flag; `"noisy_or"`, the
            noisy-or of the defenders that flag is above 1/2; `"mean"`, the mean score.
        precision: for `"noisy_or"`: the probability, between 0 and 1, that an input is adversarial
            if a defender flags it. One number for all defenders, or one for each.
        fpr: false-positive rate: the share of clean inputs, between 0 and 1, that is flagged by all
            defenders together or by each one.
        joint_threshold: whether `fpr` is the rate of all defenders together.
        calibration_fraction: share of the data that is held out for the calibration unless `fit` is
            given other clean inputs for it. With 0, the scores are calibrated on the training data.
        seed: seed of the held-out samples and of the order of the training images.

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
        >>> mrr = MRR(latent=LatentDefenders(count=2, epochs=1), fpr=0.1).fit(net, x, y)
        >>> mrr.scores(x[:5]).shape, mrr.risk(x[:5]).shape, mrr.flag(x[:5]).dtype
        (torch.Size([5, 2]), torch.Size([5]), torch.bool)
    """

    reads_inputs = True

    def __init__(
        self,
        latent: LatentDefenders | Sequence[LatentDefenders] = _DEFAULT_LATENT,
        inputs: InputDefender | None = None,
        *,
        aggregate: RuleName = "max",
        precision: float | Sequence[float] = 0.9,
        fpr: float = 0.01,
        joint_threshold: bool = True,
        calibration_fraction: float = 0.2,
        seed: int = 0,
    ) -> None:
        self.latent = as_layers(latent)
        if inputs is not None and not isinstance(inputs, InputDefender):
            raise TypeError(f"`inputs` must be an InputDefender or None, got {inputs!r}.")
        if not self.latent and inputs is None:
            raise ValueError("`latent` or `inputs` must hold a defender, got neither.")
        self.inputs = inputs
        check_fraction(calibration_fraction)
        self.calibration_fraction = float(calibration_fraction)
        checks.integer("seed", seed)
        self.seed = seed
        self._fitted: Fitted | None = None
        self._policy = Policy.of(aggregate, precision, fpr, joint_threshold)

    def __repr__(self) -> str:
        state = "not fitted" if self._fitted is None else f"{self._fitted.clean.shape[1]} defenders"
        kind = "jointly" if self.joint_threshold else "each"
        return f"MRR({state}, aggregate={self.rule.name!r}, fpr={self.fpr:g} {kind})"

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

        The model is copied and never changed. The copies keep its preprocessing.

        Args:
            model: an `nn.Module` on inputs in [0, 1], or a `TorchClassifier`.
            x: clean inputs `(n, *features)` within the model's bounds.
            y: true labels `(n,)`.
            clean: inputs `(m, *features)` for the calibration, half of them for the scores and half
                for the threshold; `None` holds out a share of `x`. Inputs that the model was not
                trained on are best. With training inputs, the false-positive rate on new inputs is
                somewhat above `fpr`.
            checkpoint: path of a file that is replaced after each latent defender. An interrupted
                fit continues after the last of them and ends with the same numbers. The file is
                kept at the end. Only one run at a time may use it.
            progress: write a line for each defender to standard error.

        Returns:
            This detector.

        Raises:
            TypeError: the model is not a torch module.
            ValueError: an argument has the wrong shape or range, or a layer does not exist. There
                are too few inputs to hold out, or none for `joint_threshold`. The checkpoint
                belongs to another fit.
            RuntimeError: another run, in this process or another one, uses the checkpoint.
            OSError: the checkpoint cannot be written or read.
        """
        victim = as_victim(model)
        x = checks.inputs("x", x, victim.bounds)
        y = label_checks.labels("y", y, x)
        checks.boolean("progress", progress)
        if clean is None and self.joint_threshold and not self.calibration_fraction:
            raise ValueError(
                "`joint_threshold` must be False with calibration_fraction=0 and clean=None, "
                "got True."
            )
        if clean is None:
            split = hold_out(x, self.calibration_fraction, self.seed)
        else:
            split = split_given(x, clean, victim.bounds, self.seed)
        with sample_rows.unnumbered(_FIT_INPUTS):
            victim.predict(x[:1])  # sets the number of classes
        label_checks.labels_within("y", y, victim.num_classes)
        unnumbered = sample_rows.unnumbered(_FIT_INPUTS)
        with torch.inference_mode(False), torch.no_grad(), unnumbered:
            data = x[split.train_rows], y[split.train_rows]
            latent = fit_layers(
                self.latent, victim, *data, seed=self.seed, checkpoint=checkpoint, progress=progress
            )
            inputs = None if self.inputs is None else self.inputs.fit(*data, victim.bounds)
            fitted = calibrate_modules(
                victim, latent, inputs, split.score_inputs, split.threshold_inputs
            )
        self._policy.check_count(fitted.clean.shape[1])
        self._fitted = fitted
        return self

    @property
    def rule(self) -> Rule:
        """Aggregation of scores to a risk."""
        return self._policy.rule

    @property
    def fpr(self) -> float:
        """Share of clean inputs that is flagged, between 0 and 1."""
        return self._policy.fpr

    @property
    def joint_threshold(self) -> bool:
        """True if `fpr` is the rate of all defenders together, False if it is that of each one."""
        return self._policy.joint_threshold

    @property
    def threshold(self) -> float:
        """Greatest risk that is not flagged.

        Raises:
            ValueError: MRR is not fitted, or has too few calibration inputs for so small an `fpr`.
        """
        return self._policy.threshold(self.fitted.clean)

    @property
    def fitted(self) -> Fitted:
        """Fitted state.

        Raises:
            ValueError: MRR is not fitted.
        """
        if self._fitted is None:
            raise ValueError(
                "`MRR` must be fitted before use. Call fit(model, x, y) or MRR.load(path, model)."
            )
        return self._fitted

    def scores(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the score of each defender.

        Args:
            x: inputs `(n, *features)`.
            labels: the victim's predictions `(n,)`, if they are known; `None` queries the victim.

        Returns:
            `(n, defenders)`, float64 in [0, 1], detached: the share of clean inputs of the
            predicted class that are nearer to it. Latent defenders come first, layer by layer.

        Raises:
            ValueError: MRR is not fitted, or `x` or `labels` have the wrong shape or range.
        """
        fitted = self.fitted
        x = checks.inputs("x", x, fitted.victim.bounds)
        with torch.no_grad():
            return fitted.scores(x, fitted.labels(x, labels))

    def risk(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the risk of the inputs, the aggregate of the scores.

        Args:
            x: inputs `(n, *features)`.
            labels: the victim's predictions `(n,)`, if they are known; `None` queries the victim.

        Returns:
            `(n,)`, float64 in [0, 1], detached. For gradients use `margin_over_threshold`.

        Raises:
            ValueError: MRR is not fitted, or `x` or `labels` have the wrong shape or range.
        """
        return self.rule.risk(self.scores(x, labels))

    def anomaly_score(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the risk `(n,)`, under the name that all detectors share; see `risk`."""
        return self.risk(x, labels)

    def flag(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return True `(n,)` where the risk is above the threshold; arguments as in `risk`."""
        return self.risk(x, labels) > self.threshold

    def margin_over_threshold(self, x: Tensor, labels: Tensor, threshold: float) -> Tensor:
        """Return how far each part is above its threshold, for adaptive attacks.

        Args:
            x: inputs `(n, *features)`; gradients flow to them.
            labels: labels `(n,)` that are assumed as the victim's predictions.
            threshold: the greatest risk that is not flagged.

        Returns:
            `(n, parts)`, in standard deviations of clean distances. With `"max"` each defender is a
            part, else the rule is the only one. An input is flagged if any part is above zero.
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
        """Return the features `(n, width)` of `x` in all defenders, differentiable."""
        return torch.cat([module.features(x) for module in self.fitted.modules], dim=1)

    def correlation(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the Pearson correlations of the defenders' scores, `(defenders, defenders)`.

        Scores are ranks among clean inputs, so this is close to Spearman's correlation. A defender
        with constant scores has NaN. Arguments are those of `scores`.

        Raises:
            ValueError: see `scores`; also for fewer than two inputs.
        """
        scores = self.scores(x, labels)
        if len(scores) < 2:
            raise ValueError(f"`x` must hold at least 2 inputs, got {len(scores)}.")
        return pearson_correlation(scores)

    def with_policy(
        self,
        *,
        aggregate: RuleName | None = None,
        precision: float | Sequence[float] | None = None,
        fpr: float | None = None,
        joint_threshold: bool | None = None,
    ) -> MRR:
        """Return the same defenders with another policy, without a fit; `None` keeps a setting."""
        other = copy.copy(self)
        other._policy = Policy.of(
            self.rule.name if aggregate is None else aggregate,
            self.rule.precision if precision is None else precision,
            self.fpr if fpr is None else fpr,
            self.joint_threshold if joint_threshold is None else joint_threshold,
        )
        if other._fitted is not None:
            other._policy.check_count(other._fitted.clean.shape[1])
        return other

    def first(self, count: int, *, inputs: bool = True) -> MRR:
        """Return a detector with fewer defenders, equal to the fit of a shorter chain.

        Args:
            count: number of latent defenders of each layer to keep, from the first one on.
            inputs: whether to keep the input defender, if there is one.

        Raises:
            ValueError: MRR is not fitted, a layer has fewer defenders, or there is a precision for
                each defender.
        """
        checks.integer("count", count, at_least=1)
        checks.boolean("inputs", inputs)
        smallest = min((layer.count for layer in self.latent), default=0)
        if count > smallest:
            raise ValueError(
                f"`count` must be at most {smallest}, the defenders of a layer, got {count}."
            )
        other = copy.copy(self)
        other.latent = tuple(replace(layer, count=count) for layer in self.latent)
        other.inputs = self.inputs if inputs else None
        other._fitted = self.fitted.first(count, inputs=inputs)
        other._policy.check_count(other._fitted.clean.shape[1])
        return other

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all but the victim to an `.npz` archive of plain arrays, atomically.

        Raises:
            ValueError: MRR is not fitted.
            OSError: the file cannot be written.
        """
        storage.write(Path(path), self._settings(), self.fitted)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: object) -> MRR:
        """Load a fitted detector from a file that `save` wrote, without running code from it.

        Args:
            path: path of the file.
            model: the victim, as in `fit`.

        Raises:
            FileNotFoundError: the file does not exist.
            ValueError: the file is damaged, of another format, or was fitted with another model.
            TypeError: the model is not a torch module.
        """
        path, victim = Path(path), as_victim(model)
        stored = storage.StoredMRR(path)
        with storage.file_error_context(path):
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
            "fpr": self.fpr,
            "joint_threshold": self.joint_threshold,
            "calibration_fraction": self.calibration_fraction,
            "seed": self.seed,
        }
