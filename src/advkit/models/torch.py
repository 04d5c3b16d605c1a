"""PyTorch modules as classifiers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advkit.core import checks, sample_rows
from advkit.core.bounds import checked_bounds
from advkit.core.distributed import local
from advkit.models.module_state import in_training_mode, training_of
from advkit.models.state import preserve_state

_BATCH_NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm")  # scripted
Output = Literal["logits", "probabilities"]
Mode = Literal["eval", "keep"]
Batch = Literal["part", "whole"]


class TorchClassifier:
    """PyTorch module as a `DifferentiableClassifier` and a `ScoreClassifier`.

    The module is used, but not changed. Each call restores the mode of every submodule, the
    parameters' `grad` and `requires_grad`, hooks, and buffers with their persistence. What a
    forward pass writes to parameters and to other attributes stays, as do parameters and submodules
    that it adds.

    A module that draws random numbers leaves torch's random state unchanged. The first pass of each
    call or attack shows whether the module draws. Draws that begin in a later pass of an attack, or
    in a backward pass, are not undone. This holds for one thread: torch has one random state for
    all threads, so numbers that another thread draws in the meantime are repeated. A module that
    does not draw leaves the random state to other threads.

    Threads may share a classifier, and a module in several classifiers with the same `mode`, also
    if the module is in training mode and `mode="eval"`. The first thread saves the state of the
    module, and the last one restores it. They must not train or change the module in the meantime.

    The device and the dtype are those of the input, and the module must already have both.

    Args:
        module: returns logits `(n, classes)`, or one logit `(n,)` or `(n, 1)` whose sign decides
            between the classes 0 and 1. They may also be the attribute `.logits` of its output, the
            entry `"logits"` of a mapping, or the first entry of a tuple. For a
            `DistributedDataParallel` the inner module is used, which waits for no other process.
        bounds: lower and upper end of valid feature values, in the units of the input.
        preprocess: differentiable function of the input that runs before the module, such as
            `Normalize`; attacks then work in the units before it.
        num_classes: number of classes; `None` infers it from the first forward pass.
        output: what the module returns: `"logits"`, or `"probabilities"`, whose logarithms are then
            the logits.
        mode: `"eval"` runs the module in evaluation mode. `"keep"` leaves each submodule in its
            mode, for example for a model that uses dropout in production. Outside of attacks, each
            call starts from the caller's random state and restores it, so calls repeat their draws;
            within an attack the draws continue. A module that refuses `eval()`, such as the result
            of `torch.export`, needs `"keep"`. So does a network with recurrent layers on a GPU:
            these must be in training mode for gradients, and the rest may be in evaluation mode.
        batch: `"part"` lets attacks leave out finished samples. `"whole"` is for modules whose
            prediction for a sample depends on the rest of its batch, such as batch norm without
            running statistics or in training mode under `mode="keep"`. With `"whole"`:

            - Every pass of an attack sends the whole batch, in its order. Finished samples stay as
              they were last sent. In `evaluate`, misclassified inputs stay in the batch too.
            - Success is determined by the predictions for exactly what is returned, as one batch.
            - Each pass takes as long as one of the whole batch, even if few samples are unfinished.
              An attack that queries several points of a sample at once (HopSkipJump) takes one
              pass for each.
            - `queries` counts the passes in which a sample's own output was requested.
            - Wrappers that send copies of samples (`RandomizedSmoothing`) still split batches.

    Raises:
        TypeError: `module` is not an `nn.Module`, its parameters are sharded over processes (FSDP),
            a submodule is a `DistributedDataParallel`, or `bounds` are not two numbers.
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
            raise TypeError(f"`preprocess` must be callable, got {type(preprocess).__name__}.")
        if not isinstance(module, nn.Module):
            raise TypeError(f"`module` must be a torch.nn.Module, got {type(module).__name__}.")
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
        self.mode: Mode = mode
        self.batch: Batch = batch

    def hashed_attributes(self) -> dict[str, object]:
        """Return what decides about the outputs, for a hash.

        The number of classes follows from the module, whose mode counts under `mode="keep"` only.
        """
        found = {name: value for name, value in vars(self).items() if name != "_num_classes"}
        if self.mode == "keep":
            parts = (part for stateful in self._stateful for part in stateful.modules())
            found["training"] = [training_of(part) for part in parts]
        return found

    def __repr__(self) -> str:
        lower, upper = self.bounds
        return f"TorchClassifier({type(self.module).__name__}, bounds=({lower:g}, {upper:g}))"

    @property
    def num_classes(self) -> int:
        """Number of classes.

        Raises:
            ValueError: it was not given, and there has been no forward pass yet.
        """
        if self._num_classes is None:
            raise ValueError(
                "`num_classes` must be given to be known before the first forward pass, got None. "
                "Pass num_classes=... to TorchClassifier."
            )
        return self._num_classes

    @property
    def uses_batch_statistics(self) -> bool:
        """True if a batch norm makes predictions for a sample depend on the rest of its batch."""
        keeps = self.mode == "keep"
        return any(
            _is_batch_norm(part) and (part.running_mean is None or (keeps and part.training))
            for stateful in self._stateful
            for part in stateful.modules()
        )

    @property
    def runs_in_training_mode(self) -> bool:
        """True if `mode="keep"` runs a submodule in training mode."""
        return self.mode == "keep" and any(map(in_training_mode, self._stateful))

    def evaluating(self) -> preserve_state:
        """Return a context for many calls, which saves and restores the state once."""
        return preserve_state(*self._stateful, evaluate=self.mode == "eval")

    def logits(self, x: Tensor) -> Tensor:
        """Return logits `(n, classes)` of `x` `(n, *features)`, differentiable with respect to `x`.

        Raises:
            ValueError: the module's output does not have the shape of logits, or under
                `mode="keep"` a `SyncBatchNorm` in training mode waits for other processes.
            TypeError: the module's output does not contain logits, `x` does not have the module's
                dtype or device, or the module refuses `eval()`.
        """
        checks.tensor("x", x)
        state = self.evaluating()
        with state, state.first_pass(), sample_rows.given(len(x)):
            x = x.clone()  # a module may write to its input, and a leaf cannot be written to
            out = self._forward(x if self.preprocess is None else self.preprocess(x))
        logits = logits_from(out, len(x), self.output)
        if self._num_classes is None:
            self._num_classes = logits.shape[1]
        if logits.shape[1] != self._num_classes:
            raise ValueError(
                f"`num_classes` must be {logits.shape[1]}, the number of logits that the module "
                f"returned, got {self._num_classes}."
            )
        return logits

    def scores(self, x: Tensor) -> Tensor:
        """Return probabilities `(n, classes)`, detached.

        Raises:
            ValueError: the logits of a sample are not finite.
        """
        return self._finite_logits(x).softmax(1)

    def predict(self, x: Tensor) -> Tensor:
        """Return labels `(n,)`, int64.

        Raises:
            ValueError: the logits of a sample are not finite.
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
                f"`x` must have the dtype and device of the module's parameters, {parameter.dtype} "
                f"on {parameter.device}, got {x.dtype} on {x.device}. Move one of them with "
                f".to(...). The module raised: {error}"
            ) from error


def _is_batch_norm(part: Any) -> bool:
    """Return True if a module is a batch norm, a subclass of one, or a scripted one."""
    return isinstance(part, _BatchNorm) or getattr(part, "original_name", "") in _BATCH_NORMS


def logits_from(out: object, n: int, output: Output = "logits") -> Tensor:
    """Extract the logits `(n, classes)` from the output of a module for `n` samples.

    For one sample the first axis may be missing, since a module that squeezes its output drops it.

    Raises:
        ValueError: the output does not have the shape of logits.
        TypeError: the output does not contain logits.
    """
    logits = _find_logits(out)
    if n == 1 and (logits.ndim == 0 or (logits.ndim == 1 and len(logits) > 1)):
        logits = logits[None]
    if logits.shape in ((n,), (n, 1)):
        single = logits.reshape(n, 1)
        if output == "probabilities":
            return _log(torch.cat([1 - single, single], dim=1))
        return torch.cat([torch.zeros_like(single), single], dim=1)
    if logits.ndim != 2 or len(logits) != n:
        raise ValueError(
            f"`module` must return logits of shape ({n}, classes) or ({n},) for {n} samples, "
            f"got shape {tuple(logits.shape)}."
        )
    return _log(logits) if output == "probabilities" else logits


def _find_logits(out: object) -> Tensor:
    """Find the logits in the output of a module."""
    if isinstance(out, Mapping) and "logits" in out:
        out = out["logits"]
    elif hasattr(out, "logits"):
        out = out.logits
    elif isinstance(out, (tuple, list)) and out:
        out = out[0]
    if not isinstance(out, Tensor):
        raise TypeError(
            "`module` must return logits as a tensor, as .logits, under 'logits' or first in a "
            f"tuple, got {type(out).__name__}."
        )
    if not out.is_floating_point():
        raise TypeError(f"`module` must return logits of a floating dtype, got {out.dtype}.")
    return out


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()
