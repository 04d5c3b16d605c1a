"""Networks whose output at one layer, the features, is scaled to unit length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advkit.core import checks
from advkit.core.tensors import at_least_float32
from advkit.defenses.mrr.victim import no_layers_error

Side = Literal["input", "output"]
_MIN_NORM = 1e-10  # keeps the features of an all-zero output at zero


@dataclass(frozen=True, kw_only=True)
class Tap:
    """Location of the features in a network.

    Attributes:
        layer: name of a submodule.
        side: the layer's `"output"`, or its first `"input"`.
    """

    layer: str
    side: Side

    def __post_init__(self) -> None:
        if not isinstance(self.layer, str) or not self.layer:
            raise ValueError(f"`layer` must be the name of a submodule, got {self.layer!r}.")
        checks.one_of("side", self.side, ("input", "output"))


class _TapReached(Exception):  # noqa: N818 - control flow, not an error
    """End of a forward pass at the tap; later layers are not computed."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


class Tapped(nn.Module):
    """Network that continues from unit vectors at its tap. It modifies `net`: pass a copy.

    Features are averaged over all axes after the channels. The rest of the network receives the
    complete tensor, scaled by the same number. The network is always in evaluation mode: dropout is
    off, and batch norms keep the statistics of the victim.
    """

    def __init__(self, net: nn.Module, tap: Tap) -> None:
        super().__init__()
        self.net = net.eval()
        self.tap = tap
        self._continue_after_tap = False
        self._features: Tensor | None = None
        layer = net.get_submodule(tap.layer)
        if tap.side == "output":
            layer.register_forward_hook(self._output_hook)
        else:
            layer.register_forward_pre_hook(self._input_hook)

    def train(self, mode: bool = True) -> Tapped:
        """Stay in evaluation mode, whatever `mode` is."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features `(n, width)` of unit length, of preprocessed `x` `(n, *features)`."""
        self._continue_after_tap = False
        try:
            self.net(x)
        except _TapReached as reached:
            return reached.features
        raise RuntimeError(f"layer {self.tap.layer!r} must run in a forward pass, but did not run.")

    def features_and_outputs(self, x: Tensor) -> tuple[Tensor, Any]:
        """Return the features `(n, width)` and the outputs of the network."""
        self._continue_after_tap = True
        out = self.net(x)
        features, self._features = self._features, None
        if features is None:
            raise RuntimeError(
                f"layer {self.tap.layer!r} must run in a forward pass, but did not run."
            )
        return features, out

    def _output_hook(self, layer: nn.Module, args: Any, out: Tensor) -> Tensor:
        return self._scale_to_unit(out)

    def _input_hook(self, layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return self._scale_to_unit(args[0]), *args[1:]

    def _scale_to_unit(self, z: Tensor) -> Tensor:
        pooled = z.flatten(2).mean(2) if z.ndim > 2 else z
        norm = at_least_float32(pooled).norm(dim=1, keepdim=True).clamp_min(_MIN_NORM).to(z.dtype)
        features = pooled / norm
        if not self._continue_after_tap:
            raise _TapReached(features)
        self._features = features
        scaled: Tensor = z / norm.reshape(-1, *[1] * (z.ndim - 1))
        return scaled


def last_hidden(net: nn.Module, x: Tensor) -> Tap:
    """Return the second-to-last layer: the last hidden linear layer, before its activation.

    If the only linear layer is the last one, as in a residual net, the tap is its input. Without
    any linear layer it is the input of the last layer that has parameters.

    Args:
        net: network in evaluation mode.
        x: preprocessed inputs `(n, *features)`, to determine the order of the layers.

    Raises:
        TypeError: no layer runs on its own.
    """
    leaves = [
        name
        for name, module in net.named_modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    order = _run_order(net, leaves, x)
    if not order:
        raise no_layers_error(net)
    linear = [name for name in order if isinstance(net.get_submodule(name), nn.Linear)]
    if len(linear) > 1 and order[-1] == linear[-1]:
        return Tap(layer=linear[-2], side="output")
    return Tap(layer=(linear or order)[-1], side="input")


def count_runs(net: nn.Module, layer: str, x: Tensor) -> int:
    """Count how often `layer` runs in one forward pass of preprocessed `x`."""
    return len(_run_order(net, [layer], x))


@torch.no_grad()
def _run_order(net: nn.Module, names: list[str], x: Tensor) -> list[str]:
    """List the submodules of `names` that run on `x`, in order, once for each run."""
    order: list[str] = []
    handles = [
        net.get_submodule(name).register_forward_hook(lambda *_, name=name: order.append(name))
        for name in names
    ]
    try:
        net(x)
    finally:
        for handle in handles:
            handle.remove()
    return order
