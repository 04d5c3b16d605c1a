"""Nets with a layer whose output is made a unit vector: what a latent defender looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advkit.core import checks
from advkit.core.tensors import at_least_float32
from advkit.defenses.mrr.victim import without_layers

Side = Literal["input", "output"]
_EPS = 1e-10  # a layer that gives nothing stays at zero


@dataclass(frozen=True, kw_only=True)
class Tap:
    """Where a net is tapped.

    Attributes:
        layer: name of a submodule.
        side: the layer's `"output"`, or its first `"input"`.
    """

    layer: str
    side: Side

    def __post_init__(self) -> None:
        if not isinstance(self.layer, str) or not self.layer:
            raise ValueError(f"`layer` must be the name of a submodule, got {self.layer!r}")
        checks.one_of("side", self.side, ("input", "output"))


class _Reached(Exception):  # noqa: N818 - no error: what is wanted is known
    """Ends a forward pass at the tap; nothing behind it is computed."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


class Tapped(nn.Module):
    """A net that goes on from unit vectors at its tap. It owns `net`: pass a copy.

    What has axes behind its channels is averaged over those for the features; the rest of the net
    gets all of it, scaled by the same number. The net is always in evaluation mode: nothing is
    dropped, and batch norms keep the statistics of the victim.
    """

    def __init__(self, net: nn.Module, tap: Tap) -> None:
        super().__init__()
        self.net = net.eval()
        self.tap = tap
        self._onward = False
        self._seen: Tensor | None = None
        layer = net.get_submodule(tap.layer)
        if tap.side == "output":
            layer.register_forward_hook(self._after)
        else:
            layer.register_forward_pre_hook(self._before)

    def train(self, mode: bool = True) -> Tapped:
        """Evaluation mode, whatever `mode` is."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Features `(n, width)` of unit length, of preprocessed `x` `(n, *features)`."""
        self._onward = False
        try:
            self.net(x)
        except _Reached as reached:
            return reached.features
        raise RuntimeError(f"layer {self.tap.layer!r} was not run")

    def whole(self, x: Tensor) -> tuple[Tensor, Any]:
        """The features `(n, width)`, and what the net makes of them."""
        self._onward = True
        out = self.net(x)
        features, self._seen = self._seen, None
        if features is None:
            raise RuntimeError(f"layer {self.tap.layer!r} was not run")
        return features, out

    def _after(self, layer: nn.Module, args: Any, out: Tensor) -> Tensor:
        return self._unit(out)

    def _before(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return self._unit(args[0]), *args[1:]

    def _unit(self, z: Tensor) -> Tensor:
        pooled = z.flatten(2).mean(2) if z.ndim > 2 else z
        length = at_least_float32(pooled).norm(dim=1, keepdim=True).clamp_min(_EPS).to(z.dtype)
        features = pooled / length
        if not self._onward:
            raise _Reached(features)
        self._seen = features
        scaled: Tensor = z / length.reshape(-1, *[1] * (z.ndim - 1))
        return scaled


def last_hidden(net: nn.Module, x: Tensor) -> Tap:
    """The second-to-last layer: the last hidden linear layer, before its activation.

    In a net whose only linear layer is the last, as that of a residual net, the input of that; in
    one without any, the input of the last layer that has parameters.

    Args:
        net: in evaluation mode.
        x: preprocessed inputs `(n, *features)`, to see in which order the layers run.

    Raises:
        TypeError: no layer runs by itself.
    """
    leaves = [
        name
        for name, module in net.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    ran = _run(net, leaves, x)
    if not ran:
        raise without_layers(net)
    linear = [name for name in ran if isinstance(net.get_submodule(name), nn.Linear)]
    if len(linear) > 1 and ran[-1] == linear[-1]:
        return Tap(layer=linear[-2], side="output")
    return Tap(layer=(linear or ran)[-1], side="input")


def runs_of(net: nn.Module, layer: str, x: Tensor) -> int:
    """How often `layer` runs in one forward pass of preprocessed `x`."""
    return len(_run(net, [layer], x))


@torch.no_grad()
def _run(net: nn.Module, names: list[str], x: Tensor) -> list[str]:
    """Those of the submodules `names` that run on `x`, in their order, each time they do."""
    ran: list[str] = []
    handles = [
        net.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name))
        for name in names
    ]
    try:
        net(x)
    finally:
        for handle in handles:
            handle.remove()
    return ran
