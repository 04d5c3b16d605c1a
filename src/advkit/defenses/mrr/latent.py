"""Latent defenders: copies of the victim whose features keep the classes in tight, far clusters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from advkit.core import checks
from advkit.core.content import check_like
from advkit.core.differentiation import differentiating
from advkit.core.norms import finite_gradient
from advkit.defenses.mrr.density import Density, DensityName, fit_density
from advkit.defenses.mrr.regularizers import RegularizerName, placed, regularizer
from advkit.defenses.mrr.taps import Side, Tap, Tapped, last_hidden, runs_of
from advkit.models import TorchClassifier
from advkit.models.torch import logits_from
from advkit.training.fit import fit

Preprocess = Callable[[Tensor], Tensor]
_ASKED = 256  # images that are sent through a defender at once
_OTHER_MODEL = "model must be the one that MRR was fitted with"
_FEW = 4  # inputs up to which one batched pass is faster


@dataclass(frozen=True, kw_only=True)
class Chain:
    """How the images of a defender follow from those of the one before.

    They are moved so that the earlier defender's features leave their nearest centre: along the raw
    gradient of that squared distance, in units of the model's range, and cut to the bounds.

    Args:
        step: factor on the gradient.
        steps: how often it is taken anew.
        accumulate: go on from the images of the defender before, not from the clean ones.
        clean: share of the images that stay clean for the defenders after the first.

    Raises:
        ValueError: an argument is out of its range.
        TypeError: an argument has the wrong type.
    """

    step: float = 1.0
    steps: int = 1
    accumulate: bool = True
    clean: float = 0.0

    def __post_init__(self) -> None:
        checks.positive("step", self.step)
        checks.integer("steps", self.steps, at_least=1)
        checks.boolean("accumulate", self.accumulate)
        checks.fraction("clean", self.clean)


class LatentDefender(nn.Module):
    """One defender: a tapped copy of the victim, and the centres that it was trained around."""

    def __init__(self, tapped: Tapped, preprocess: Preprocess | None, centres: Tensor) -> None:
        super().__init__()
        self.tapped = tapped
        self.preprocess = preprocess
        self.centres = nn.Parameter(centres)

    def train(self, mode: bool = True) -> LatentDefender:
        """Evaluation mode, whatever `mode` is: see `Tapped`."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Features `(n, width)` of inputs `(n, *features)`."""
        features: Tensor = self.tapped(self._prepared(x))
        return features

    def whole(self, x: Tensor) -> tuple[Tensor, Any]:
        """Features, and what the net makes of them."""
        return self.tapped.whole(self._prepared(x))

    def _prepared(self, x: Tensor) -> Tensor:
        x = x.clone()  # the preprocessing or the net may write to it
        return x if self.preprocess is None else self.preprocess(x)


@dataclass(frozen=True, kw_only=True)
class LatentDefenders:
    """Settings of the defenders at one layer (Rouhani et al., 2019).

    A defender begins as a copy of the victim with its layer's output scaled to unit length, and is
    trained by cross-entropy and a regulariser that gathers the features of a class around a centre
    and drives the centres apart. Several of them form a chain: each learns from images on which the
    one before is unsure.

    Deviations from the authors' code, whose papers leave most of this open: the batch's sum in the
    regulariser is a mean, with weights that are the same at its batches of 100; centres are unit
    vectors by construction and begin at the class means of the victim's features; Adam. A layer
    with axes behind its channels is averaged over those.

    Args:
        layer: name of a submodule of the victim, as in `named_modules()`; `None` is the
            second-to-last one: the last hidden linear layer, before its activation, or in a net
            with a single linear layer the input of that.
        side: look at the layer's `"output"` or its `"input"`. Without meaning for `layer=None`.
        count: defenders at this layer.
        regularizer: `"nearest"` pulls features to their class's centre and drives each centre from
            the one that is nearest to it; `"pcl"` is the sum over all centres of the earlier paper
            (Rouhani et al., 2018, Eq. 1), whose centres leave the sphere; `"center"` pulls alone
            (Wen et al., 2016).
        compactness: weight of what pulls; of all the terms of `"pcl"`.
        separation: weight of what drives centres apart; for `"nearest"`.
        density: distance to the class's mean feature on the principal axes, `"euclidean"`, or in
            units of the class's own covariance, shrunk, `"gaussian"`.
        explained: share of the variance that the principal axes have.
        epochs: passes over the images for each defender.
        batch_size: images in a training batch.
        lr: learning rate of Adam.
        chain: how the images of a defender follow from the one before; `None` trains each on the
            clean ones, in another order.

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
    explained: float = 0.99
    epochs: int = 5
    batch_size: int = 100
    lr: float = 3e-4
    chain: Chain | None = field(default_factory=Chain)

    def __post_init__(self) -> None:
        if self.layer is not None and not isinstance(self.layer, str):
            raise TypeError(f"`layer` must be a name or None, got {type(self.layer).__name__}")
        checks.one_of("side", self.side, ("input", "output"))
        checks.integer("count", self.count, at_least=1)
        checks.one_of("regularizer", self.regularizer, ("nearest", "pcl", "center"))
        checks.not_negative("compactness", self.compactness)
        checks.not_negative("separation", self.separation)
        checks.one_of("density", self.density, ("euclidean", "gaussian"))
        checks.fraction("explained", self.explained)
        checks.integer("epochs", self.epochs, at_least=1)
        checks.integer("batch_size", self.batch_size, at_least=1)
        checks.positive("lr", self.lr)
        if self.chain is not None and not isinstance(self.chain, Chain):
            raise TypeError(f"`chain` must be a Chain or None, got {self.chain!r}")


class LatentModules:
    """Fitted defenders at one layer, which look at a batch together."""

    def __init__(self, defenders: Sequence[LatentDefender], density: Density) -> None:
        self.defenders = list(defenders)
        self.density = density
        self.count = len(self.defenders)
        self._weights = _stacked(self.defenders)

    def distances(self, x: Tensor, labels: Tensor) -> Tensor:
        """`(n, count)`: of `x` `(n, *features)` to the densities of the classes `labels`."""
        return self.density.distances(self._projected(x), labels)

    def features(self, x: Tensor) -> Tensor:
        """`(n, width)`, what all defenders see on their principal axes."""
        return self._projected(x).transpose(0, 1).flatten(1)

    def first(self, count: int) -> LatentModules:
        """The first `count` of them."""
        return LatentModules(self.defenders[:count], self.density.first(count))

    def _projected(self, x: Tensor) -> Tensor:
        return self.density.project(self._seen(x))

    def _seen(self, x: Tensor) -> Tensor:
        """Features `(k, n, width)`.

        One batched pass has a fifth to a third less overhead for a request of a few inputs; for
        many of them a matrix product for each defender is faster than a batched one, and a
        convolution two or three times as fast as one in as many groups.
        """
        if len(x) > _FEW:
            return torch.stack([defender(x) for defender in self.defenders])
        features: Tensor = torch.vmap(
            lambda own: functional_call(self.defenders[0], own, (x,)), randomness="same"
        )(self._weights)
        return features


def fit_latent(
    settings: LatentDefenders,
    victim: TorchClassifier,
    x: Tensor,
    y: Tensor,
    *,
    seed: int,
    saved: Sequence[Mapping[str, Tensor]],
    done: Callable[[LatentDefender], None],
) -> LatentModules:
    """The chain of one layer.

    Args:
        settings: of the layer.
        victim: what is copied.
        x: clean images `(n, *features)`.
        y: true labels `(n,)`.
        seed: of the orders in which images are seen.
        saved: weights of the first defenders, if they were fitted before.
        done: told of each defender that is fitted now.
    """
    classes = victim.num_classes
    start = untrained(settings, victim, x, y)
    images, defenders = x, list[LatentDefender]()
    last = settings.count - 1 if len(saved) < settings.count else 0  # nobody learns after that one
    for k in range(settings.count):
        if k < len(saved):
            defender = with_weights(start, saved[k])
        else:
            defender = _trained(settings, victim, start, images, y, seed=seed + k)
            done(defender)
        defenders.append(defender)
        if settings.chain is not None and k < last:
            onward = images if settings.chain.accumulate else x
            images = _moved(settings.chain, victim, defender, onward)
            images = _mixed(settings.chain, images, x, seed=seed + k)
    features = torch.stack([_features(defender, x) for defender in defenders])
    kind, explained = settings.density, settings.explained
    try:
        density = fit_density(features, y, classes, kind=kind, explained=explained)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # it is public
        raise ValueError(
            "latent: features are NaN or all alike, so that no density fits"
        ) from error
    return LatentModules(defenders, density)


def untrained(
    settings: LatentDefenders, victim: TorchClassifier, x: Tensor, y: Tensor
) -> LatentDefender:
    """A defender before its training: the victim's weights, centres at the means of the classes."""
    first = x[:1].clone()
    prepared = first if victim.preprocess is None else victim.preprocess(first)
    tap = _tap(settings, copy.deepcopy(victim.module).eval(), prepared)
    defender = copied(victim, tap, x.new_zeros(0))
    features = _features(defender, x)
    classes = victim.num_classes
    sums = features.new_zeros(classes, features.shape[1]).index_add(0, y, features)
    counts = torch.bincount(y, minlength=classes).clamp_min(1)
    defender.centres = nn.Parameter(sums / counts[:, None])
    return defender


def copied(victim: TorchClassifier, tap: Tap, centres: Tensor) -> LatentDefender:
    """A tapped copy of the victim, with its preprocessing; what weights that has learn too.

    Raises:
        ValueError: it has no such layer.
    """
    net = copy.deepcopy(victim.module)
    if tap.layer not in dict(net.named_modules()):
        raise ValueError(f"{_OTHER_MODEL}: it has no layer {tap.layer!r}")
    return LatentDefender(Tapped(net, tap), copy.deepcopy(victim.preprocess), centres)


def with_weights(start: LatentDefender, weights: Mapping[str, Tensor]) -> LatentDefender:
    """A copy of `start` with other weights and buffers, frozen.

    Raises:
        ValueError: they are those of another net, or not finite where those of `start` are.
    """
    own = {
        name: tensor.float() if tensor.dtype == torch.bfloat16 else tensor  # as files hold it
        for name, tensor in start.state_dict().items()
    }
    try:
        check_like("weights", weights, own)
    except ValueError as error:
        raise ValueError(f"{_OTHER_MODEL}: {error}") from error
    defender = copy.deepcopy(start)
    defender.load_state_dict(dict(weights))
    return defender.requires_grad_(False)


def _tap(settings: LatentDefenders, net: nn.Module, prepared: Tensor) -> Tap:
    """Where to look, checked on one input.

    Raises:
        ValueError: there is no such layer, or it does not run exactly once.
    """
    if settings.layer is None:
        return last_hidden(net, prepared)
    names = [name for name, _ in net.named_modules() if name]
    if settings.layer not in names:
        raise ValueError(f"`layer` must be one of {', '.join(names)}; got {settings.layer!r}")
    tap = Tap(layer=settings.layer, side=settings.side)
    runs = runs_of(net, tap.layer, prepared)
    if runs != 1:
        raise ValueError(f"layer {tap.layer!r} must run once in a forward pass, runs {runs} times")
    return tap


def _trained(
    settings: LatentDefenders,
    victim: TorchClassifier,
    start: LatentDefender,
    x: Tensor,
    y: Tensor,
    *,
    seed: int,
) -> LatentDefender:
    """A copy of `start` after its training on `x` and `y`, frozen."""
    defender = copy.deepcopy(start).requires_grad_(True)

    def loss(learner: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        assert isinstance(learner, LatentDefender)
        features, out = learner.whole(images)
        told = F.cross_entropy(logits_from(out, len(images), victim.output), labels)
        return told + regularizer(
            features,
            placed(learner.centres, settings.regularizer),
            labels,
            kind=settings.regularizer,
            compactness=settings.compactness,
            separation=settings.separation,
        )

    fit(
        defender,
        _Shuffled(x, y, settings.batch_size, seed),
        loss=loss,
        optimizer=torch.optim.Adam(defender.parameters(), lr=settings.lr),
        epochs=settings.epochs,
        precision="float32",
        progress=False,
    )
    with torch.no_grad():
        defender.centres.copy_(placed(defender.centres, settings.regularizer))
    return defender.requires_grad_(False)


class _Shuffled:
    """Batches in another order each time, drawn from a generator of their own."""

    def __init__(self, x: Tensor, y: Tensor, size: int, seed: int) -> None:
        self.x, self.y, self.size = x, y, size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.x) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.x), generator=self.generator).to(self.x.device)
        for rows in torch.split(order, self.size):
            yield self.x[rows], self.y[rows]


def _moved(chain: Chain, victim: TorchClassifier, defender: LatentDefender, x: Tensor) -> Tensor:
    """Images on which the defender's features are further from their nearest centre."""
    lower, upper = victim.bounds
    rate = chain.step * (upper - lower) ** 2  # the gradient of a scaled input is scaled too
    parts = []
    for part in torch.split(x, _ASKED):
        for _ in range(chain.steps):
            leaf = part.detach().requires_grad_()
            with torch.enable_grad(), differentiating(defender):
                squares = (defender(leaf)[:, None] - defender.centres).square().sum(2)
                (gradient,) = torch.autograd.grad(squares.amin(1).sum(), leaf)
            part = (leaf.detach() + rate * finite_gradient(gradient)).clamp(lower, upper)
        parts.append(part)
    return torch.cat(parts)


def _mixed(chain: Chain, images: Tensor, clean: Tensor, *, seed: int) -> Tensor:
    """`images`, a share of which is put back to the clean ones."""
    if not chain.clean:
        return images
    generator = torch.Generator().manual_seed(seed)
    back = torch.rand(len(images), generator=generator).to(images.device) < chain.clean
    return torch.where(back.reshape(-1, *[1] * (images.ndim - 1)), clean, images)


@torch.no_grad()
def _features(defender: LatentDefender, x: Tensor) -> Tensor:
    return torch.cat([defender(part) for part in torch.split(x, _ASKED)])


def _stacked(defenders: Sequence[LatentDefender]) -> dict[str, Tensor]:
    """Weights and buffers by name, those of all defenders in one tensor."""
    states = [{**dict(d.named_parameters()), **dict(d.named_buffers())} for d in defenders]
    return {name: torch.stack([own[name].detach() for own in states]) for name in states[0]}
