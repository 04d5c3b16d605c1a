"""Settings of the latent defenders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from advkit.core import checks
from advkit.defenses.mrr.density import DensityName
from advkit.defenses.mrr.regularizers import RegularizerName
from advkit.defenses.mrr.taps import Side


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Derivation of the training images of a defender from those of the previous one.

    Images are moved to increase the squared distance between the previous defender's features and
    their nearest center. Each step follows the raw gradient of that distance, in units of the
    model's range, and is clipped to the bounds.

    Args:
        step_size: factor on the gradient.
        steps: number of gradient steps.
        accumulate: start from the images of the previous defender instead of the clean ones.
        clean_fraction: share of the images that stay clean for the defenders after the first.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: an argument has the wrong type.
    """

    step_size: float = 1.0
    steps: int = 1
    accumulate: bool = True
    clean_fraction: float = 0.0

    def __post_init__(self) -> None:
        checks.positive("step_size", self.step_size)
        checks.integer("steps", self.steps, at_least=1)
        checks.boolean("accumulate", self.accumulate)
        checks.fraction("clean_fraction", self.clean_fraction)


@dataclass(frozen=True, kw_only=True)
class LatentDefenders:
    """Settings of the defenders at one layer (Rouhani et al., 2019).

    A defender starts as a copy of the victim with its layer's output scaled to unit length. It is
    trained by cross-entropy and a regularizer that gathers the features of a class around a center
    and separates the centers. Several defenders form a chain: each is trained on images for which
    the previous one is uncertain.

    The papers leave most details open, so deviations are from the authors' code.

    Deviations from the paper:
        - The regularizer averages over the batch instead of summing. The weights are equivalent at
          the code's batch size of 100.
        - Centers are unit vectors by construction, and start at the class means of the victim's
          features.
        - The optimizer is Adam.
        - The output of a layer with axes after the channels is averaged over those axes.

    Args:
        layer: name of a submodule of the victim, as in `named_modules()`. `None` is the
            second-to-last layer: the last hidden linear layer, before its activation, or the input
            of the linear layer in a net that has only one.
        side: the layer's `"output"` or its `"input"`. Ignored with `layer=None`.
        count: number of defenders at this layer.
        regularizer: `"nearest"` pulls features to the center of their class and pushes each center
            away from the nearest other one. `"pcl"` is the sum over all centers of the earlier
            paper (Rouhani et al., 2018, Eq. 1), whose centers leave the sphere. `"center"` only
            pulls features to their center (Wen et al., 2016).
        compactness: weight of the pulling term; with `"pcl"`, of all terms.
        separation: weight of the term that separates centers; for `"nearest"`.
        density: distance to the mean feature of the class on the principal axes, `"euclidean"`, or
            in units of the shrunk covariance of the class, `"gaussian"`.
        explained_variance: share of the variance that the principal axes explain.
        epochs: passes over the images for each defender.
        batch_size: images in a training batch.
        lr: learning rate of Adam.
        chain: derivation of a defender's images from the previous ones; `None` trains each defender
            on the clean images, in another order.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: an argument has the wrong type.
    """

    layer: str | None = None
    side: Side = "output"
    count: int = 1
    regularizer: RegularizerName = "nearest"
    compactness: float = 0.5
    separation: float = 0.01
    density: DensityName = "euclidean"
    explained_variance: float = 0.99
    epochs: int = 5
    batch_size: int = 100
    lr: float = 3e-4
    chain: Chain | None = field(default_factory=Chain)

    def __post_init__(self) -> None:
        if self.layer is not None and not isinstance(self.layer, str):
            raise TypeError(f"`layer` must be a name or None, got {type(self.layer).__name__}.")
        checks.one_of("side", self.side, ("input", "output"))
        checks.integer("count", self.count, at_least=1)
        checks.one_of("regularizer", self.regularizer, ("nearest", "pcl", "center"))
        checks.not_negative("compactness", self.compactness)
        checks.not_negative("separation", self.separation)
        checks.one_of("density", self.density, ("euclidean", "gaussian"))
        checks.fraction("explained_variance", self.explained_variance)
        checks.integer("epochs", self.epochs, at_least=1)
        checks.integer("batch_size", self.batch_size, at_least=1)
        checks.positive("lr", self.lr)
        if self.chain is not None and not isinstance(self.chain, Chain):
            raise TypeError(f"`chain` must be a Chain or None, got {self.chain!r}.")


def as_layers(latent: LatentDefenders | Sequence[LatentDefenders]) -> tuple[LatentDefenders, ...]:
    """Return the settings of one or several layers as a tuple."""
    layers = (latent,) if isinstance(latent, LatentDefenders) else latent
    if not isinstance(layers, Sequence) or not all(isinstance(v, LatentDefenders) for v in layers):
        raise TypeError(f"`latent` must be LatentDefenders or a list of them, got {latent!r}.")
    return tuple(layers)
