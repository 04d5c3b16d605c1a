"""Validation of inputs: properties that every honest input has, and what happens to the others."""

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
from advkit.defenses.pixels import check_floats, check_images, on_grid, shifted
from advkit.models import REJECTED, StraightThrough, as_classifier
from advkit.models.inner_model import HasInnerModel

_CHUNK = 256  # images whose windows are in memory at once
_PASSES = 20  # of a repair
_SHOWN = 5  # reasons that are printed


@dataclass(frozen=True, eq=False)
class Validation:
    """Which of `n` inputs are valid, and why the others are not.

    Attributes:
        accepted: bool `(n,)`.
        reasons: for each input what it violates, with value, limit and place; empty if nothing.
    """

    accepted: Tensor
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        bad = [f"  {i}: {reason}" for i, reason in enumerate(self.reasons) if reason]
        more = [f"  and {len(bad) - _SHOWN} more"] if len(bad) > _SHOWN else []
        head = f"{int(self.accepted.sum())} of {len(self.accepted)} inputs are valid"
        return "\n".join([head, *bad[:_SHOWN], *more])


class InputValidator(HasInnerModel):
    """A classifier that rejects inputs without the properties of honest ones.

    Some properties can be verified without a model of the data (Goodfellow, McDaniel and Papernot,
    2018, Communications of the ACM 61(7)): values are finite and within the bounds; they lie on the
    grid that a file or a sensor has; and no pixel stands out of its neighbours more than optics and
    sensor allow. That article leaves the properties open; these three are ours.

    `predict` gives `REJECTED` for an input that lacks one, and raises for no value. There are no
    scores and no logits: they cannot say that an input is rejected.

    It limits what an attacker may send, not what he may search: he attacks the model behind a
    repair, `repaired`, whose gradient is the identity, and sends the repaired example. So what
    withstands an attack that does not know of the validator says nothing, see the example.

    Args:
        model: what answers to valid inputs; its bounds are those of the values.
        grid: how many steps there are from the lower to the upper bound, 255 for images of 8 bits;
            values may be off by what floats round. `None` for any value.
        contrast: the most that a pixel of an image `(n, channels, height, width)` may be above or
            below the median of its eight neighbours in its channel, in input units; `"fitted"` for
            what `fit` learns from clean images; `None` for any contrast.

    Raises:
        TypeError: an argument is of the wrong type, or `model` is no classifier.
        ValueError: an argument is out of its range.

    Example:
        >>> import torch
        >>> from advkit import attacks, defenses
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> x = torch.randint(0, 256, (20, 1, 8, 8)) / 255
        >>> model = defenses.InputValidator(net, grid=255, contrast="fitted").fit(x)
        >>> attack = attacks.PGD(eps=0.03, steps=10)
        >>> model.predict(attack(net, x)).unique()  # it does not know of the validator
        tensor([-1])
        >>> x_adv = model.repair(attack(model.repaired, x))  # this one does, and sends this
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
        given = f"grid={self.grid!r}, contrast={self.contrast!r}"
        return f"{type(self).__name__}({self.model!r}, {given})"

    @property
    def limit(self) -> float | None:
        """The most contrast that is accepted, in input units; `None` for any.

        Raises:
            ValueError: it is to be fitted, and is not.
        """
        if self.contrast is not None and self._limit is None:
            raise ValueError("contrast is to be fitted: call fit(x) with clean images first")
        return self._limit

    def fit(self, x: Tensor, false_rejections: float = 0.01) -> Self:
        """Learn the limit of the contrast.

        Args:
            x: clean images `(n, channels, height, width)` within the bounds.
            false_rejections: the largest share of them that may exceed the limit, in [0, 1).

        Returns:
            This validator.

        Raises:
            ValueError: `contrast` is not `"fitted"`, `false_rejections` is out of its range, or `x`
                is no batch of such images.
        """
        if self.contrast != "fitted":
            raise ValueError(f"`contrast` must be 'fitted' for fit, got {self.contrast!r}")
        checks.fraction("false_rejections", false_rejections)
        if false_rejections == 1:
            raise ValueError("`false_rejections` must be below 1, got 1")
        x = checks.inputs(x, self.bounds)
        check_images(x, "contrast")
        if not len(x):
            raise ValueError("`x` must hold at least one image, got none")
        largest = _outstanding(at_least_float32(x)).flatten(1).amax(1).sort().values
        self._limit = float(largest[-1 - math.floor(false_rejections * len(x))])
        return self

    def validate(self, x: Tensor) -> Validation:
        """Which inputs are valid, and why the others are not.

        Args:
            x: `(n, *features)`, any values.

        Raises:
            TypeError: `x` is no tensor, or not of a floating dtype.
            ValueError: it has the wrong shape for a property; the dtype is too coarse for the grid;
                or the contrast is to be fitted and is not.
        """
        self._check(x)
        reasons: list[list[str]] = [[] for _ in range(len(x))]
        for found in self._properties(x) if len(x) else ():
            for i in found.violated.nonzero().flatten().tolist():
                reasons[i].append(found.words(i))
        accepted = torch.tensor([not words for words in reasons], dtype=torch.bool)
        return Validation(accepted.to(x.device), tuple("; ".join(words) for words in reasons))

    def predict(self, x: Tensor) -> Tensor:
        """Labels `(n,)`, int64: the model's, `REJECTED` for inputs that are not valid.

        Raises as `validate` and the model do.
        """
        accepted = self.validate(x).accepted
        labels = torch.full((len(x),), REJECTED, device=x.device)
        if accepted.any():
            with sample_rows.selected(accepted.nonzero().flatten(), len(x)):
                labels[accepted] = self.model.predict(x[accepted].detach().clamp(*self.bounds))
        return labels

    def repair(self, x: Tensor, passes: int = _PASSES) -> Tensor:
        """A valid input near `x`.

        Values go to the nearest bound, outstanding pixels back to the limit, and all of them to the
        grid; again, since neighbours have moved, as long as there is an outstanding pixel. Nothing
        keeps the result within a budget around the clean input, so look at its distance.

        Args:
            x: `(n, *features)`; infinite values go to the bounds.
            passes: at most so many. What is not valid then is what comes back, and is rejected;
                that may happen where neighbours wait for each other, or a limit is below a step of
                the grid.

        Raises:
            ValueError: `x` has NaN, which no value is near to; otherwise as `validate`.
        """
        checks.integer("passes", passes, at_least=1)
        self._check(x)
        bad = x.isnan().flatten(1).any(1)
        if bad.any():
            raise ValueError(f"`x` must not be NaN, is so in sample {checks.indices(bad)}")
        repaired = at_least_float32(x.detach()).clamp(*self.bounds)
        if self.grid is not None:
            repaired = on_grid(repaired, self.bounds, self.grid)
        if self.limit is not None:
            repaired = self._pulled(repaired, self.limit, passes, self._slack(x))
        return repaired.to(x.dtype)

    @property
    def repaired(self) -> StraightThrough:
        """The model behind a repair, with the identity as its gradient: what to attack."""
        return StraightThrough(self.model, self.repair)

    def _check(self, x: Tensor) -> None:
        """Raise unless every property can be looked for in `x`."""
        check_floats(x)
        if x.ndim < 2 or (len(x) and not x.numel()):
            raise ValueError(f"`x` must have shape (n, *features), got {tuple(x.shape)}")
        if self.limit is not None:
            check_images(x, "contrast")
        if self.grid is not None and 2 * self.grid * self._slack(x) >= self._span:
            raise ValueError(f"grid={self.grid} is too fine for values of {x.dtype}")

    @property
    def _span(self) -> float:
        return self.bounds.upper - self.bounds.lower

    def _slack(self, x: Tensor) -> float:
        """What rounding may add to a value like those of `x`, in input units."""
        return max(1e-5, torch.finfo(x.dtype).eps) * self._span

    def _properties(self, x: Tensor) -> Iterator[_Property]:
        """What is looked for in `x` `(n, *features)`, one property after another."""
        lower, upper = self.bounds
        slack = self._slack(x)
        finite = x.isfinite()
        yield _Property("finite", "must be finite", x, torch.where(finite, -math.inf, math.inf))
        whole = per_sample(finite.flatten(1).all(1), x)  # nothing more is said of the others
        inside = at_least_float32(x.detach()).where(whole, lower).clamp(lower, upper)

        beyond = torch.maximum(lower - x, x - upper) - slack
        wanted = f"must lie in [{lower:g}, {upper:g}]"
        yield _Property("bounds", wanted, x, beyond.where(whole, -math.inf))
        if self.grid is not None:
            off = (inside - on_grid(inside, self.bounds, self.grid)).abs() - slack
            yield _Property("grid", f"must be {lower:g} + k * {self._span:g} / {self.grid}", x, off)
        if self.limit is not None:
            contrast = _outstanding(inside)
            wanted = f"must be at most {self.limit:.4g}"
            yield _Property("contrast", wanted, contrast, contrast - self.limit - slack)

    def _pulled(self, x: Tensor, limit: float, passes: int, slack: float) -> Tensor:
        """`x` with outstanding pixels pulled back to the limit, and on the grid."""
        for _ in range(passes):
            middle = _median_around(x)
            out = (x - middle).abs() > limit + slack
            if not out.any():
                break
            x = torch.where(out, self._between(middle - limit, middle + limit, x, slack / 2), x)
        return x

    def _between(self, least: Tensor, most: Tensor, x: Tensor, slack: float) -> Tensor:
        """The nearest value to `x` from `least` to `most`; on the grid, if there is one."""
        if self.grid is not None:
            lower, step = self.bounds.lower, self._span / self.grid
            least = lower + ((least - lower - slack) / step).ceil() * step
            most = lower + ((most - lower + slack) / step).floor() * step
        return x.clamp(least, most)


class _Property(NamedTuple):
    """What a property says of a batch."""

    name: str
    wanted: str
    value: Tensor  # (n, *features), what is looked at
    excess: Tensor  # (n, *features), by how much it is violated: above zero

    @property
    def violated(self) -> Tensor:
        """Bool `(n,)`."""
        return self.excess.flatten(1).amax(1) > 0

    def words(self, i: int) -> str:
        """The worst place in sample `i`, and what is wrong there."""
        at = torch.unravel_index(self.excess[i].argmax(), self.excess[i].shape)
        place = ", ".join(str(int(axis)) for axis in at)
        value = float(self.value[i][at])
        return f"{self.name}: {value:.6g} at ({place}), {self.wanted}"


def _outstanding(x: Tensor) -> Tensor:
    """How far each pixel of `(n, channels, height, width)` is from the median around it."""
    return (x - _median_around(x)).abs()


def _median_around(x: Tensor) -> Tensor:
    """The median of the eight neighbours of each pixel; edges are reflected."""
    return torch.cat([_median_of_eight(part) for part in torch.split(x, _CHUNK)])


def _median_of_eight(x: Tensor) -> Tensor:
    around = shifted(x, 1, 1)
    del around[4]  # the pixel itself
    ranked = torch.stack(around, dim=-1).sort(dim=-1).values
    return (ranked[..., 3] + ranked[..., 4]) / 2
