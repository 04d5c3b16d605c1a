"""Input validation: rejection of inputs without the properties of genuine ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from typing_extensions import Self

from advkit.core import checks, sample_rows
from advkit.core.norms import per_sample
from advkit.core.tensors import at_least_float32
from advkit.defenses.pixels import check_images, round_to_grid, window_pixels
from advkit.models import REJECTED, StraightThrough, as_classifier
from advkit.models.inner_model import HasInnerModel

_CHUNK_SIZE = 256  # images whose windows are in memory at once
_MAX_PASSES = 20  # default limit of a repair
_MAX_SHOWN = 5  # reasons that are printed


@dataclass(frozen=True, eq=False)
class Validation:
    """Validity of `n` inputs, and the reasons for invalid ones.

    Attributes:
        accepted: bool `(n,)`.
        reasons: violated properties of each input, with value, limit and position; empty for a
            valid input.
    """

    accepted: Tensor
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        bad = [f"  {i}: {reason}" for i, reason in enumerate(self.reasons) if reason]
        more = [f"  and {len(bad) - _MAX_SHOWN} more"] if len(bad) > _MAX_SHOWN else []
        head = f"{int(self.accepted.sum())} of {len(self.accepted)} inputs are valid"
        return "\n".join([head, *bad[:_MAX_SHOWN], *more])


class InputValidator(HasInnerModel):
    """Classifier that rejects inputs without the properties of genuine ones.

    Some properties can be verified without a model of the data (Goodfellow, McDaniel and Papernot,
    2018, Communications of the ACM 61(7)). Values are finite, within the bounds, and on the grid of
    a file or sensor. No pixel differs from its neighbors more than optics and sensor allow. The
    article does not specify the properties; these three are a choice of this package.

    `predict` returns `REJECTED` for an input that violates a property, and does not raise for any
    value. There are no scores and no logits, since they cannot express a rejection.

    The validator limits the inputs an attacker can submit, not their search. The adaptive attacker
    attacks the model behind a repair, `repaired`, whose gradient is the identity, and submits the
    repaired example. Resistance to an attack that ignores the validator is therefore not evidence
    of robustness; see the example.

    Args:
        model: classifier of valid inputs; its bounds are those of the values.
        grid: number of steps from the lower to the upper bound, 255 for images of 8 bits. Values
            may deviate by rounding errors of floats. `None` for any value.
        contrast: largest difference of a pixel of an image `(n, channels, height, width)` from the
            median of its eight neighbors in its channel, in input units. `"fitted"` for a limit
            that `fit` learns from clean images; `None` for any contrast.

    Raises:
        TypeError: an argument has the wrong type, or `model` is not a classifier.
        ValueError: an argument is out of its range.

    Example:
        >>> import torch
        >>> from advkit import attacks, defenses
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x = torch.randint(0, 256, (20, 1, 8, 8)) / 255
        >>> model = defenses.InputValidator(net, grid=255, contrast="fitted").fit(x)
        >>> attack = attacks.PGD(eps=0.03, steps=10)
        >>> model.predict(attack(net, x)).unique()  # ignores the validator
        tensor([-1])
        >>> x_adv = model.repair(attack(model.repaired, x))  # adaptive
        >>> bool(model.validate(x_adv).accepted.any())
        True
    """

    def __init__(
        self,
        model: object,
        grid: int | None = None,
        contrast: float | Literal["fitted"] | None = None,
    ) -> None:
        if grid is not None:
            checks.integer("grid", grid, at_least=1)
        if isinstance(contrast, str):
            checks.one_of("contrast", contrast, ("fitted",))
        elif contrast is not None:
            checks.positive("contrast", contrast)
        self.model = as_classifier(model)
        self.grid = grid
        self.contrast = contrast
        self._limit = None if isinstance(contrast, str) else contrast

    def __repr__(self) -> str:
        options = f"grid={self.grid!r}, contrast={self.contrast!r}"
        return f"{type(self).__name__}({self.model!r}, {options})"

    @property
    def limit(self) -> float | None:
        """Largest accepted contrast, in input units; `None` for any.

        Raises:
            ValueError: the limit must be fitted first.
        """
        if self.contrast is not None and self._limit is None:
            raise ValueError(
                "`InputValidator` must be fitted before use. Call fit(x) with clean images."
            )
        return self._limit

    def fit(self, x: Tensor, fpr: float = 0.01) -> Self:
        """Learn the limit of the contrast.

        Args:
            x: clean images `(n, channels, height, width)` within the bounds.
            fpr: largest share of them that may exceed the limit, in [0, 1).

        Returns:
            This validator.

        Raises:
            ValueError: `contrast` is not `"fitted"`, `fpr` is out of its range, or `x` is not a
                batch of such images.
        """
        if self.contrast != "fitted":
            raise ValueError(f"`contrast` must be 'fitted' for fit, got {self.contrast!r}.")
        checks.fraction("fpr", fpr, "[0, 1)")
        x = checks.inputs("x", x, self.bounds)
        check_images(x, "contrast")
        if not len(x):
            raise ValueError("`x` must hold at least one image, got none.")
        largest = _local_contrast(at_least_float32(x)).flatten(1).amax(1).sort().values
        self._limit = float(largest[-1 - math.floor(fpr * len(x))])
        return self

    def validate(self, x: Tensor) -> Validation:
        """Verify the properties of all inputs.

        Args:
            x: `(n, *features)`, any values.

        Raises:
            TypeError: `x` is not a tensor, or not of a floating dtype.
            ValueError: `x` has the wrong shape for a property, its dtype is too coarse for the
                grid, or the contrast must be fitted first.
        """
        self._check(x)
        reasons: list[list[str]] = [[] for _ in range(len(x))]
        for checked in self._properties(x) if len(x) else ():
            for i in checked.violated.nonzero().flatten().tolist():
                reasons[i].append(checked.describe(i))
        accepted = torch.tensor([not texts for texts in reasons], dtype=torch.bool)
        return Validation(accepted.to(x.device), tuple("; ".join(texts) for texts in reasons))

    def predict(self, x: Tensor) -> Tensor:
        """Return the model's labels `(n,)`, int64, or `REJECTED` for invalid inputs.

        Errors are those of `validate` and of the model.
        """
        accepted = self.validate(x).accepted
        labels = torch.full((len(x),), REJECTED, device=x.device)
        if accepted.any():
            with sample_rows.selected(accepted.nonzero().flatten(), len(x)):
                labels[accepted] = self.model.predict(x[accepted].detach().clamp(*self.bounds))
        return labels

    def repair(self, x: Tensor, max_iterations: int = _MAX_PASSES) -> Tensor:
        """Return valid inputs near `x`.

        Values are clipped to the bounds, pixels with too much contrast are moved to the limit, and
        all values are rounded to the grid. This is repeated while a pixel has too much contrast,
        since its neighbors have changed. The result is not kept within a perturbation budget of the
        clean input; check its distance.

        Args:
            x: `(n, *features)`; infinite values are clipped to the bounds.
            max_iterations: largest number of repetitions. An input that is still invalid afterwards
                is returned and will be rejected. This can happen where neighbors depend on each
                other, or if the limit is below a step of the grid.

        Raises:
            ValueError: `x` has NaN, which has no nearest value, or any reason of `validate`.
        """
        checks.integer("max_iterations", max_iterations, at_least=1)
        self._check(x)
        bad = x.isnan().flatten(1).any(1)
        if bad.any():
            raise ValueError(f"`x` must not hold NaN, got NaN ({checks.samples(bad)}).")
        repaired = at_least_float32(x.detach()).clamp(*self.bounds)
        if self.grid is not None:
            repaired = round_to_grid(repaired, self.bounds, self.grid)
        if self.limit is not None:
            repaired = self._pull_to_limit(repaired, self.limit, max_iterations, self._tolerance(x))
        return repaired.to(x.dtype)

    @property
    def repaired(self) -> StraightThrough:
        """Model behind a repair, with the identity as gradient, for adaptive attacks."""
        return StraightThrough(self.model, self.repair)

    def _check(self, x: Tensor) -> None:
        """Raise unless every property can be verified for `x`."""
        checks.floats("x", x)
        if x.ndim < 2 or (len(x) and not x.numel()):
            raise ValueError(f"`x` must have shape (n, *features), got {tuple(x.shape)}.")
        if self.limit is not None:
            check_images(x, "contrast")
        if self.grid is not None and 2 * self.grid * self._tolerance(x) >= self._span:
            raise ValueError(
                f"`x` must have a more precise dtype for grid={self.grid}, got {x.dtype}. Use "
                "another dtype or a coarser grid."
            )

    @property
    def _span(self) -> float:
        return self.bounds.upper - self.bounds.lower

    def _tolerance(self, x: Tensor) -> float:
        """Return the possible rounding error of values like those of `x`, in input units."""
        return max(1e-5, torch.finfo(x.dtype).eps) * self._span

    def _properties(self, x: Tensor) -> Iterator[_Property]:
        """Yield the properties of `x` `(n, *features)`, one after another."""
        lower, upper = self.bounds
        tolerance = self._tolerance(x)
        finite = x.isfinite()
        yield _Property("finite", "must be finite", x, torch.where(finite, -math.inf, math.inf))
        is_finite = per_sample(finite.flatten(1).all(1), x)  # others are not checked further
        inside = at_least_float32(x.detach()).where(is_finite, lower).clamp(lower, upper)

        outside = torch.maximum(lower - x, x - upper) - tolerance
        requirement = f"must lie in [{lower:g}, {upper:g}]"
        yield _Property("bounds", requirement, x, outside.where(is_finite, -math.inf))
        if self.grid is not None:
            off_grid = (inside - round_to_grid(inside, self.bounds, self.grid)).abs() - tolerance
            yield _Property(
                "grid", f"must be {lower:g} + k * {self._span:g} / {self.grid}", x, off_grid
            )
        if self.limit is not None:
            contrast = _local_contrast(inside)
            requirement = f"must be at most {self.limit:.4g}"
            yield _Property("contrast", requirement, contrast, contrast - self.limit - tolerance)

    def _pull_to_limit(
        self, x: Tensor, limit: float, max_iterations: int, tolerance: float
    ) -> Tensor:
        """Move pixels with too much contrast to the limit, and onto the grid."""
        for _ in range(max_iterations):
            median = _neighbor_median(x)
            exceeding = (x - median).abs() > limit + tolerance
            if not exceeding.any():
                break
            x = torch.where(
                exceeding, self._clamp_to_grid(median - limit, median + limit, x, tolerance / 2), x
            )
        return x

    def _clamp_to_grid(self, low: Tensor, high: Tensor, x: Tensor, tolerance: float) -> Tensor:
        """Return the nearest values to `x` from `low` to `high`, on the grid if there is one."""
        if self.grid is not None:
            lower, step = self.bounds.lower, self._span / self.grid
            low = lower + ((low - lower - tolerance) / step).ceil() * step
            high = lower + ((high - lower + tolerance) / step).floor() * step
        return x.clamp(low, high)


class _Property(NamedTuple):
    """Property of a batch."""

    name: str
    requirement: str
    value: Tensor  # (n, *features), the checked quantity
    violation: Tensor  # (n, *features), positive where the property is violated

    @property
    def violated(self) -> Tensor:
        """Mask `(n,)` of the inputs that violate the property."""
        return self.violation.flatten(1).amax(1) > 0

    def describe(self, i: int) -> str:
        """Describe the largest violation in sample `i`."""
        index = torch.unravel_index(self.violation[i].argmax(), self.violation[i].shape)
        place = ", ".join(str(int(axis)) for axis in index)
        value = float(self.value[i][index])
        return f"{self.name}: {value:.6g} at ({place}), {self.requirement}"


def _local_contrast(x: Tensor) -> Tensor:
    """Return the absolute difference of each pixel from the median of its neighbors."""
    return (x - _neighbor_median(x)).abs()


def _neighbor_median(x: Tensor) -> Tensor:
    """Return the median of the eight neighbors of each pixel; edges are reflected."""
    return torch.cat([_median_of_eight(part) for part in torch.split(x, _CHUNK_SIZE)])


def _median_of_eight(x: Tensor) -> Tensor:
    neighbors = window_pixels(x, 1, 1)
    del neighbors[4]  # the pixel itself
    ranked = torch.stack(neighbors, dim=-1).sort(dim=-1).values
    return (ranked[..., 3] + ranked[..., 4]) / 2
