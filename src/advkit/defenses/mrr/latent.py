"""Latent defenders: copies of the victim whose features form tight, well separated clusters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from advkit.core.content import check_like
from advkit.core.differentiation import differentiating
from advkit.core.norms import finite_gradient
from advkit.defenses.mrr.density import Density, fit_density
from advkit.defenses.mrr.latent_settings import Chain, LatentDefenders
from advkit.defenses.mrr.regularizers import constrain_centers, regularizer
from advkit.defenses.mrr.taps import Tap, Tapped, count_runs, last_hidden
from advkit.models import TorchClassifier
from advkit.models.torch import logits_from
from advkit.training.fit import fit

Preprocess = Callable[[Tensor], Tensor]
_BATCH_SIZE = 256  # images in one forward pass of a defender
_WRONG_MODEL = "`model` must be the one that MRR was fitted with"
_MAX_BATCHED_INPUTS = 4  # measured: one batched pass is faster up to this number of inputs


class LatentDefender(nn.Module):
    """Defender: a tapped copy of the victim, with the centers that it was trained with."""

    def __init__(self, tapped: Tapped, preprocess: Preprocess | None, centers: Tensor) -> None:
        super().__init__()
        self.tapped = tapped
        self.preprocess = preprocess
        self.centers = nn.Parameter(centers)

    def train(self, mode: bool = True) -> LatentDefender:
        """Stay in evaluation mode, whatever `mode` is; see `Tapped`."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features `(n, width)` of inputs `(n, *features)`."""
        features: Tensor = self.tapped(self._preprocess(x))
        return features

    def features_and_outputs(self, x: Tensor) -> tuple[Tensor, Any]:
        """Return the features `(n, width)` and the outputs of the network."""
        return self.tapped.features_and_outputs(self._preprocess(x))

    def _preprocess(self, x: Tensor) -> Tensor:
        x = x.clone()  # the preprocessing or the net may modify it in place
        return x if self.preprocess is None else self.preprocess(x)


class LatentModules:
    """Fitted defenders at one layer, which are evaluated together."""

    def __init__(self, defenders: Sequence[LatentDefender], density: Density) -> None:
        self.defenders = list(defenders)
        self.density = density
        self.count = len(self.defenders)
        self._weights = _stack_states(self.defenders)

    def distances(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the distances `(n, count)` of `x` to the densities of the classes `labels`."""
        return self.density.distances(self._projected(x), labels)

    def features(self, x: Tensor) -> Tensor:
        """Return the features `(n, width)` of all defenders on their principal axes."""
        return self._projected(x).transpose(0, 1).flatten(1)

    def first(self, count: int) -> LatentModules:
        """Return the first `count` defenders."""
        return LatentModules(self.defenders[:count], self.density.first(count))

    def _projected(self, x: Tensor) -> Tensor:
        return self.density.project(self._features(x))

    def _features(self, x: Tensor) -> Tensor:
        """Return features `(k, n, width)`.

        One batched pass has a fifth to a third less overhead for a few inputs. For many inputs,
        separate matrix products are faster than a batched one, and separate convolutions are two or
        three times as fast as a grouped one.
        """
        if len(x) > _MAX_BATCHED_INPUTS:
            return torch.stack([defender(x) for defender in self.defenders])
        features: Tensor = torch.vmap(
            lambda state: functional_call(self.defenders[0], state, (x,)), randomness="same"
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
    on_fitted: Callable[[LatentDefender], None],
) -> LatentModules:
    """Fit the defenders of one layer.

    Args:
        settings: settings of the layer.
        victim: the model that is copied.
        x: clean images `(n, *features)`.
        y: true labels `(n,)`.
        seed: seed of the order of the training images.
        saved: weights of the first defenders, if they were fitted before.
        on_fitted: function that is called with each newly fitted defender.
    """
    classes = victim.num_classes
    start = build_untrained(settings, victim, x, y)
    images, defenders = x, list[LatentDefender]()
    last = settings.count - 1 if len(saved) < settings.count else 0  # no defender follows it
    for k in range(settings.count):
        if k < len(saved):
            defender = copy_with_weights(start, saved[k])
        else:
            defender = _train(settings, victim, start, images, y, seed=seed + k)
            on_fitted(defender)
        defenders.append(defender)
        if settings.chain is not None and k < last:
            source = images if settings.chain.accumulate else x
            images = _perturb(settings.chain, victim, defender, source)
            images = _mix_in_clean(settings.chain, images, x, seed=seed + k)
    features = torch.stack([_batched_features(defender, x) for defender in defenders])
    kind, explained = settings.density, settings.explained_variance
    try:
        density = fit_density(features, y, classes, kind=kind, explained=explained)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # missing in the stubs
        raise ValueError(
            "features of `latent` must be finite and must differ, got NaN or equal ones, which "
            "have no density."
        ) from error
    return LatentModules(defenders, density)


def build_untrained(
    settings: LatentDefenders, victim: TorchClassifier, x: Tensor, y: Tensor
) -> LatentDefender:
    """Build a defender with the victim's weights and centers at the class means of its features."""
    first = x[:1].clone()
    prepared = first if victim.preprocess is None else victim.preprocess(first)
    tap = _tap(settings, copy.deepcopy(victim.module).eval(), prepared)
    defender = copy_victim(victim, tap, x.new_zeros(0))
    features = _batched_features(defender, x)
    classes = victim.num_classes
    sums = features.new_zeros(classes, features.shape[1]).index_add(0, y, features)
    counts = torch.bincount(y, minlength=classes).clamp_min(1)
    defender.centers = nn.Parameter(sums / counts[:, None])
    return defender


def copy_victim(victim: TorchClassifier, tap: Tap, centers: Tensor) -> LatentDefender:
    """Build a defender from a copy of the victim, its preprocessing and `centers`.

    Preprocessing with weights is trained, too.

    Raises:
        ValueError: the victim has no such layer.
    """
    net = copy.deepcopy(victim.module)
    if tap.layer not in dict(net.named_modules()):
        raise ValueError(f"{_WRONG_MODEL}: it has no layer {tap.layer!r}.")
    return LatentDefender(Tapped(net, tap), copy.deepcopy(victim.preprocess), centers)


def copy_with_weights(start: LatentDefender, weights: Mapping[str, Tensor]) -> LatentDefender:
    """Copy `start` with other weights and buffers, frozen.

    Raises:
        ValueError: they belong to another network, or are not finite where those of `start` are.
    """
    expected = {  # files store bfloat16 as float32
        name: tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        for name, tensor in start.state_dict().items()
    }
    try:
        check_like("weights", weights, expected)
    except ValueError as error:
        raise ValueError(f"{_WRONG_MODEL}: {error}") from error
    defender = copy.deepcopy(start)
    defender.load_state_dict(dict(weights))
    return defender.requires_grad_(False)


def _tap(settings: LatentDefenders, net: nn.Module, prepared: Tensor) -> Tap:
    """Return the tap of these settings, checked on one input.

    Raises:
        ValueError: there is no such layer, or it does not run exactly once.
    """
    if settings.layer is None:
        return last_hidden(net, prepared)
    names = [name for name, _ in net.named_modules() if name]
    if settings.layer not in names:
        raise ValueError(f"`layer` must be one of {', '.join(names)}, got {settings.layer!r}.")
    tap = Tap(layer=settings.layer, side=settings.side)
    runs = count_runs(net, tap.layer, prepared)
    if runs != 1:
        raise ValueError(
            f"layer {tap.layer!r} must run once in a forward pass, got {runs} runs. Choose another "
            "layer."
        )
    return tap


def _train(
    settings: LatentDefenders,
    victim: TorchClassifier,
    start: LatentDefender,
    x: Tensor,
    y: Tensor,
    *,
    seed: int,
) -> LatentDefender:
    """Train a copy of `start` on `x` and `y`, and freeze it."""
    defender = copy.deepcopy(start).requires_grad_(True)

    def loss(learner: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        assert isinstance(learner, LatentDefender)
        features, out = learner.features_and_outputs(images)
        cross_entropy = F.cross_entropy(logits_from(out, len(images), victim.output), labels)
        return cross_entropy + regularizer(
            features,
            constrain_centers(learner.centers, settings.regularizer),
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
        defender.centers.copy_(constrain_centers(defender.centers, settings.regularizer))
    return defender.requires_grad_(False)


class _Shuffled:
    """Batches in a new order for each epoch, drawn from a separate generator."""

    def __init__(self, x: Tensor, y: Tensor, size: int, seed: int) -> None:
        self.x, self.y, self.size = x, y, size
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.x) // self.size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.x), generator=self.generator).to(self.x.device)
        for rows in torch.split(order, self.size):
            yield self.x[rows], self.y[rows]


def _perturb(chain: Chain, victim: TorchClassifier, defender: LatentDefender, x: Tensor) -> Tensor:
    """Move images so that the defender's features are further from their nearest center."""
    lower, upper = victim.bounds
    rate = chain.step_size * (upper - lower) ** 2  # the gradient of a scaled input is scaled too
    parts = []
    for part in torch.split(x, _BATCH_SIZE):
        for _ in range(chain.steps):
            leaf = part.detach().requires_grad_()
            with torch.enable_grad(), differentiating(defender):
                squares = (defender(leaf)[:, None] - defender.centers).square().sum(2)
                (gradient,) = torch.autograd.grad(squares.amin(1).sum(), leaf)
            part = (leaf.detach() + rate * finite_gradient(gradient)).clamp(lower, upper)
        parts.append(part)
    return torch.cat(parts)


def _mix_in_clean(chain: Chain, images: Tensor, clean: Tensor, *, seed: int) -> Tensor:
    """Replace a share of `images` by the clean ones."""
    if not chain.clean_fraction:
        return images
    generator = torch.Generator().manual_seed(seed)
    restored = torch.rand(len(images), generator=generator).to(images.device) < chain.clean_fraction
    return torch.where(restored.reshape(-1, *[1] * (images.ndim - 1)), clean, images)


@torch.no_grad()
def _batched_features(defender: LatentDefender, x: Tensor) -> Tensor:
    return torch.cat([defender(part) for part in torch.split(x, _BATCH_SIZE)])


def _stack_states(defenders: Sequence[LatentDefender]) -> dict[str, Tensor]:
    """Return weights and buffers by name, stacked over all defenders."""
    states = [{**dict(d.named_parameters()), **dict(d.named_buffers())} for d in defenders]
    return {name: torch.stack([state[name].detach() for state in states]) for name in states[0]}
