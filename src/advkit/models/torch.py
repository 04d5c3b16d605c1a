"""`nn.Module` as a classifier."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advkit.core import checks, sample_rows
from advkit.core.distributed import local
from advkit.models.protocols import Bounds
from advkit.models.state import preserve_state

_BATCH_NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")  # scripted
Output = Literal["logits", "probabilities"]
Mode = Literal["eval", "keep"]
Batch = Literal["part", "whole"]


class TorchClassifier:
    """An `nn.Module` seen as a `DifferentiableClassifier` and a `ScoreClassifier`.

    The module is used, never changed: the mode of every submodule, the parameters' `grad` and
    `requires_grad`, hooks, and buffers with their persistence are after each call what they were
    before. What a forward pass writes to parameters and to other attributes stays, as do parameters
    and submodules that it adds.

    A module that draws random numbers leaves torch's random state as it was. Whether it draws is
    found out in the first pass of each call or attack; draws that begin in a later pass of an
    attack, or in a backward pass, are not taken back. The promise holds for one thread: torch has
    one random state for all threads, so that numbers drawn by another one meanwhile come again. A
    module that does not draw leaves the random state to other threads.

    Threads may share a classifier, and a module by several classifiers of one `mode`, also in
    training mode with `mode="eval"`: the first one to come saves its state, and the last one to go
    restores it. They must not train or change the module meanwhile.

    The input decides on device and dtype; the module has to be there already.

    Args:
        module: gives logits `(n, classes)`, one logit `(n,)` or `(n, 1)` whose sign decides between
            the classes 0 and 1, or these as `.logits`, under `"logits"` in a mapping, or as the
            first entry of a tuple. Of a `DistributedDataParallel` the module inside is used, which
            waits for no other process.
        bounds: lower and upper end of valid feature values, in the units of the input.
        preprocess: differentiable function of the input that runs before the module, such as
            `Normalize`; attacks then work in the units before it.
        num_classes: number of classes; `None` learns it from the first forward pass.
        output: what the module returns: `"logits"`, or `"probabilities"`, whose logarithms are then
            the logits.
        mode: `"eval"` runs the module in evaluation mode; `"keep"` leaves each submodule in the
            mode that it has, say for a model that drops units when it is served. Each call by
            itself begins from the caller's random state and puts it back, so that it repeats its
            draws; within an attack they go on. A module that refuses `eval()`, as those that
            `torch.export` makes, needs `"keep"`; so does a net with recurrent layers on a GPU,
            which must be in training mode for gradients, while the rest may be in evaluation mode.
        batch: `"part"` lets attacks leave out the samples that are finished. `"whole"` is for
            modules whose answer to a sample depends on the rest of its batch, such as batch norm
            without running statistics or in training mode under `mode="keep"`: every pass of an
            attack sends the whole batch, in its order, and finished samples stay as they were sent
            last. In `evaluate` misclassified inputs stay in the batch too. Success is the answer to
            exactly what is returned, as one batch. The cost: each pass takes as long as one of the
            whole batch, however few samples are open, and an attack that asks for several points
            of a sample at once (HopSkipJump) takes a pass for each. `queries` count the passes
            in which a sample's own answer was asked for. Wrappers that send copies of samples
            (`RandomizedSmoothing`) cut batches as before.

    Raises:
        TypeError: `module` is no `nn.Module`, its parameters are sharded over processes (FSDP), or
            a submodule is a `DistributedDataParallel`.
        ValueError: `bounds` are not finite and ordered, or an option is unknown.

    Example:
        >>> import torch, advkit
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        >>> model = advkit.TorchClassifier(net, bounds=(0, 255), num_classes=10)
        >>> model.predict(torch.full((2, 1, 8, 8), 128.0)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        module: nn.Module,
        bounds: tuple[float, float] = (0.0, 1.0),
        preprocess: Callable[[Tensor], Tensor] | None = None,
        num_classes: int | None = None,
        *,
        output: Output = "logits",
        mode: Mode = "eval",
        batch: Batch = "part",
    ) -> None:
        if preprocess is not None and not callable(preprocess):
            raise TypeError(f"`preprocess` must be callable, got {type(preprocess).__name__}")
        if not isinstance(module, nn.Module):
            raise TypeError(f"`module` must be a torch.nn.Module, got {type(module).__name__}")
        checks.one_of("output", output, ("logits", "probabilities"))
        checks.one_of("mode", mode, ("eval", "keep"))
        checks.one_of("batch", batch, ("part", "whole"))
        if num_classes is not None:
            checks.integer("num_classes", num_classes, at_least=2)
        if isinstance(preprocess, nn.Module):
            preprocess = local(preprocess)
        self.module = module = local(module)
        self._stateful = [part for part in (preprocess, module) if isinstance(part, nn.Module)]
        self.bounds = checked_bounds(bounds)
        self.preprocess = preprocess
        self._num_classes = num_classes
        self.output: Output = output
        self._mode: Mode = mode
        self.batch: Batch = batch

    def __repr__(self) -> str:
        lower, upper = self.bounds
        return f"TorchClassifier({type(self.module).__name__}, bounds=({lower:g}, {upper:g}))"

    @property
    def num_classes(self) -> int:
        """Number of classes.

        Raises:
            ValueError: it was not given, and no forward pass has shown it yet.
        """
        if self._num_classes is None:
            raise ValueError("num_classes is unknown before the first forward pass; pass it")
        return self._num_classes

    @property
    def uses_batch_statistics(self) -> bool:
        """True if a batch norm makes the answer to a sample depend on the rest of its batch."""
        keeps = self._mode == "keep"
        return any(
            _is_batch_norm(part) and (part.running_mean is None or (keeps and part.training))
            for stateful in self._stateful
            for part in stateful.modules()
        )

    def evaluating(self) -> preserve_state:
        """Keep the module in evaluation over many calls and restore its state once, at the end."""
        return preserve_state(*self._stateful, evaluate=self._mode == "eval")

    def logits(self, x: Tensor) -> Tensor:
        """Logits `(n, classes)` of `x` `(n, *features)`, differentiable with respect to `x`.

        Raises:
            ValueError: the module's output does not have the shape of logits, or under
                `mode="keep"` a `SyncBatchNorm` in training mode waits for other processes.
            TypeError: the module's output holds no logits, `x` has not the module's dtype or
                device, or the module refuses `eval()`.
        """
        held = self.evaluating()
        with held, held.first_pass(), sample_rows.given(len(x)):
            x = x.clone()  # a module may write to its input, and a leaf cannot be written to
            out = self._forward(x if self.preprocess is None else self.preprocess(x))
        logits = logits_from(out, len(x), self.output)
        if self._num_classes is None:
            self._num_classes = logits.shape[1]
        if logits.shape[1] != self._num_classes:
            raise ValueError(
                f"num_classes is {self._num_classes}, but the module returned "
                f"{logits.shape[1]} logits"
            )
        return logits

    def scores(self, x: Tensor) -> Tensor:
        """Probabilities `(n, classes)`, detached.

        Raises:
            ValueError: logits of some sample are not finite.
        """
        return self._finite_logits(x).softmax(1)

    def predict(self, x: Tensor) -> Tensor:
        """Labels `(n,)`, int64.

        Raises:
            ValueError: logits of some sample are not finite.
        """
        return self._finite_logits(x).argmax(1)

    def _finite_logits(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            logits = self.logits(x)
        checks.finite_logits(logits)
        if self.output == "logits":
            checks.warn_of_probabilities(logits)
        return logits

    def _forward(self, x: Tensor) -> object:
        try:
            return self.module(x)
        except RuntimeError as error:
            parameter = next(self.module.parameters(), None)
            if parameter is None or (parameter.dtype, parameter.device) == (x.dtype, x.device):
                raise
            raise TypeError(
                f"the module failed on x of {x.dtype} on {x.device}, its parameters are "
                f"{parameter.dtype} on {parameter.device}; move one of them with .to(...): {error}"
            ) from error


def _is_batch_norm(part: Any) -> bool:
    """Return whether a module is a batch norm, also one of a user's or a scripted one."""
    return isinstance(part, _BatchNorm) or getattr(part, "original_name", "") in _BATCH_NORMS


def checked_bounds(bounds: tuple[float, float]) -> Bounds:
    """`bounds` as `Bounds`.

    Raises:
        TypeError: they are not a pair.
        ValueError: they are not two finite numbers, the lower one first.
    """
    if not isinstance(bounds, (tuple, list)):
        raise TypeError(f"`bounds` must be a pair of numbers, got {type(bounds).__name__}")
    if len(bounds) != 2 or not -float("inf") < bounds[0] < bounds[1] < float("inf"):
        raise ValueError(f"`bounds` must be two finite numbers, lower first, got {tuple(bounds)}")
    return Bounds(float(bounds[0]), float(bounds[1]))


def logits_from(out: object, n: int, output: Output = "logits") -> Tensor:
    """Return the logits `(n, classes)` in what a module returned for `n` samples.

    For one sample they may lack the first axis: a module that squeezes its output drops it.

    Raises:
        ValueError: it does not have the shape of logits.
        TypeError: it holds no logits.
    """
    found = _find_logits(out)
    if n == 1 and (found.ndim == 0 or (found.ndim == 1 and len(found) > 1)):
        found = found[None]
    if found.shape in ((n,), (n, 1)):
        single = found.reshape(n, 1)
        if output == "probabilities":
            return _log(torch.cat([1 - single, single], dim=1))
        return torch.cat([torch.zeros_like(single), single], dim=1)
    if found.ndim != 2 or len(found) != n:
        raise ValueError(
            f"the module must return logits ({n}, classes) or ({n},) for {n} samples, "
            f"got shape {tuple(found.shape)}"
        )
    return _log(found) if output == "probabilities" else found


def _find_logits(out: object) -> Tensor:
    """The logits in what a module returned."""
    if isinstance(out, Mapping) and "logits" in out:
        out = out["logits"]
    elif hasattr(out, "logits"):
        out = out.logits
    elif isinstance(out, (tuple, list)) and out:
        out = out[0]
    if not isinstance(out, Tensor):
        raise TypeError(
            "the module must return logits as a tensor, as .logits, under 'logits' or first in a "
            f"tuple, got {type(out).__name__}"
        )
    return out


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()
