"""An ONNX model as a classifier, run by onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from advkit.core import checks
from advkit.core.extras import require
from advkit.models.callable import CallableClassifier

_FLOATS = {
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
}
_PROVIDERS = ("CPUExecutionProvider",)


class OnnxClassifier(CallableClassifier):
    """An ONNX model seen as a `ScoreClassifier`; there are no gradients.

    It counts its queries and may hold a budget, as any `CallableClassifier`. A model with a fixed
    batch is fed batches of that size; what fills up the last one is no query. Threads may share it.

    Args:
        path: the file, or its content as bytes.
        bounds: lower and upper end of valid feature values, in the units of the input.
        output: what the model gives: `"logits"`, of which the softmax is taken, or
            `"probabilities"`.
        num_classes: number of classes; `None` reads it off the model.
        output_name: which of the model's outputs to use; `None` takes the only one of floats
            `(n, num_classes)`.
        max_batch: the most samples to run at once, where the model leaves that open; `None` for any
            number.
        providers: onnxruntime's execution providers in the order of preference; `None` runs on the
            CPU.
        max_queries: samples that may be sent in all; `None` for any number.

    Raises:
        ImportError: onnxruntime is not there.
        FileNotFoundError: the file does not exist.
        ValueError: the model does not take one input of floats, it is not clear which output to
            use, or the number of classes is not in it.

    Example:
        An exported net, judged and attacked like any other model:

            model = advkit.OnnxClassifier("net.onnx", bounds=(0, 1))
            model.predict(x)
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | bytes,
        bounds: tuple[float, float] = (0.0, 1.0),
        output: Literal["logits", "probabilities"] = "logits",
        num_classes: int | None = None,
        *,
        output_name: str | None = None,
        max_batch: int | None = None,
        providers: Sequence[str] | None = None,
        max_queries: int | None = None,
    ) -> None:
        checks.one_of("output", output, ("logits", "probabilities"))
        self._name = "bytes" if isinstance(path, bytes) else os.path.basename(path)
        self._session = _session(path, providers or _PROVIDERS)
        self._input = _only_input(self._session)
        chosen = _chosen_output(self._session, output_name)
        self._output_name = str(chosen.name)
        super().__init__(
            self._run,
            _agreed_classes(chosen, num_classes),
            bounds,
            output,
            max_batch=self._fixed(0) or max_batch,
            max_queries=max_queries,
        )

    def __repr__(self) -> str:
        return f"OnnxClassifier({self._name}, num_classes={self.num_classes})"

    def _run(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The model's output for `x` `(n, *features)`, filled up to the model's batch."""
        n, batch = len(x), self._fixed(0) or len(x)
        x = x.astype(_FLOATS[self._input.type])
        filled = np.concatenate([x, np.repeat(x[-1:], batch - n, axis=0)])
        (out,) = self._session.run([self._output_name], {self._input.name: filled})
        found = np.asarray(out)
        return found if batch == 1 else found[:n]  # a model that squeezes drops the axis of one

    def _given(self, x: Tensor) -> Tensor | npt.NDArray[np.generic]:
        """Return what the model is given for `x`, whose shape is checked."""
        self._check_shape(x)
        return super()._given(x)

    def _check_shape(self, x: Tensor) -> None:
        axes = len(self._input.shape) or x.ndim  # a model may leave all of it open
        alike = (self._fixed(i) in (None, length) for i, length in enumerate(x.shape) if i)
        if x.ndim != axes or not all(alike):
            wanted = ", ".join(["n", *map(str, self._input.shape[1:])])
            raise ValueError(
                f"`x` must have the shape ({wanted}) of the model's input, got {tuple(x.shape)}"
            )

    def _fixed(self, axis: int) -> int | None:
        """Length of an axis of the model's input; `None` where it is open."""
        shape = self._input.shape
        return shape[axis] if axis < len(shape) and isinstance(shape[axis], int) else None


def _session(path: str | os.PathLike[str] | bytes, providers: Sequence[str]) -> Any:
    onnxruntime = require("onnxruntime", extra="onnx", needed_by="OnnxClassifier")
    if not isinstance(path, bytes):
        path = os.fspath(path)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"no such file: {path}")
    try:
        return onnxruntime.InferenceSession(path, providers=list(providers))
    except Exception as error:  # onnxruntime has an exception of its own for each kind of damage
        raise ValueError(f"`path` must be a whole ONNX model: {error}") from error


def _only_input(session: Any) -> Any:
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in _FLOATS:
        raise ValueError(f"the model must take one input of floats, takes {_listed(inputs)}")
    return inputs[0]


def _chosen_output(session: Any, name: str | None) -> Any:
    """The output called `name`, or the only one that could be scores."""
    outputs = session.get_outputs()
    if name is not None:
        fitting = [out for out in outputs if out.name == name]
    else:
        fitting = [out for out in outputs if out.type in _FLOATS and len(out.shape) in (0, 2)]
    if len(fitting) != 1:
        asked = "an output of floats (n, classes)" if name is None else f"the output {name!r}"
        raise ValueError(
            f"`output_name` must say which output to use: the model gives {_listed(outputs)}, "
            f"and {len(fitting)} of them could be {asked}"
        )
    return fitting[0]


def _agreed_classes(output: Any, given: int | None) -> int:
    """The number of classes that is given, or else that the model has written down."""
    found = output.shape[1] if len(output.shape) == 2 else None
    found = found if isinstance(found, int) else None
    if given is not None and found is not None and given != found:
        raise ValueError(f"num_classes is {given}, but the model gives {found} scores")
    classes = found if given is None else given
    if classes is None:
        raise ValueError(f"`num_classes` must be given, since {output.name!r} leaves it open")
    return classes


def _listed(values: Sequence[Any]) -> str:
    return ", ".join(f"{value.name!r} ({value.type}, {value.shape})" for value in values)
