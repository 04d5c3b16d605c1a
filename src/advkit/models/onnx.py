"""ONNX models as classifiers, run by onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
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
_OF_SESSION = ("_session", "_input", "fn")  # attributes that belong to one process


class OnnxClassifier(CallableClassifier):
    """ONNX model as a `ScoreClassifier`, without gradients.

    It counts its queries and may have a query budget, like any `CallableClassifier`. A model with a
    fixed batch size receives batches of that size; the samples that pad the last batch do not
    count as queries. Threads may share the classifier.

    Copies and unpickled classifiers load the model again, from the same bytes or from the file at
    the same absolute path, which must still exist. Deep copies count their own queries.

    Args:
        path: the file, or its content as bytes.
        bounds: lower and upper end of valid feature values, in the units of the input.
        output: what the model returns: `"logits"`, to which the softmax is applied, or
            `"probabilities"`.
        num_classes: number of classes; `None` reads it from the model.
        output_name: name of the model's output to use; `None` takes the only output of floats
            `(n, num_classes)`.
        max_batch: maximum number of samples to run at once, if the model does not fix it; `None`
            for no limit.
        providers: onnxruntime's execution providers in the order of preference; `None` runs on the
            CPU.
        max_queries: maximum number of samples sent in total; `None` for no limit.

    Raises:
        ImportError: onnxruntime is not installed.
        FileNotFoundError: the file does not exist.
        ValueError: the model does not take exactly one input of floats, the output to use is
            ambiguous, or the model does not state the number of classes.

    Example:
        An exported network, evaluated and attacked like any other model:

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
        self._source = path if isinstance(path, bytes) else os.path.abspath(path)
        self._providers = tuple(providers or _PROVIDERS)
        self._load()
        selected = _select_output(self._session, output_name)
        self._output_name = str(selected.name)
        super().__init__(
            self._run,
            _number_of_classes(selected, num_classes),
            bounds,
            output,
            max_batch=self._fixed_length(0) or max_batch,
            max_queries=max_queries,
        )

    def __repr__(self) -> str:
        name = "bytes" if isinstance(self._source, bytes) else os.path.basename(self._source)
        return f"OnnxClassifier({name}, num_classes={self.num_classes})"

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes but the session, which another process has to create itself."""
        return {name: value for name, value in vars(self).items() if name not in _OF_SESSION}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._load()
        self.fn = self._run

    def hashed_attributes(self) -> dict[str, object]:
        """Return what decides about the outputs, for a hash: the content of the file, not its path.

        Raises:
            OSError: the file cannot be read any more.
        """
        path = self._source
        content = path if isinstance(path, bytes) else Path(path).read_bytes()
        found = super().hashed_attributes().items()
        return {**{k: v for k, v in found if k not in _OF_SESSION}, "_source": content}

    def _load(self) -> None:
        """Create the session."""
        self._session = _session(self._source, self._providers)
        self._input = _single_input(self._session)

    def _run(self, x: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the model's output for `x` `(n, *features)`, padded to the model's batch size."""
        n, batch = len(x), self._fixed_length(0) or len(x)
        x = x.astype(_FLOATS[self._input.type])
        padded = np.concatenate([x, np.repeat(x[-1:], batch - n, axis=0)])
        (out,) = self._session.run([self._output_name], {self._input.name: padded})
        outputs = np.asarray(out)
        return outputs if batch == 1 else outputs[:n]  # a model that squeezes drops an axis of one

    def _to_fn_input(self, x: Tensor) -> Tensor | npt.NDArray[np.generic]:
        """Convert `x` to the model's input after a check of its shape."""
        self._check_shape(x)
        return super()._to_fn_input(x)

    def _check_shape(self, x: Tensor) -> None:
        axes = len(self._input.shape) or x.ndim  # a model may leave its whole shape open
        equal = (self._fixed_length(i) in (None, length) for i, length in enumerate(x.shape) if i)
        if x.ndim != axes or not all(equal):
            expected = ", ".join(["n", *map(str, self._input.shape[1:])])
            raise ValueError(
                f"`x` must have the shape ({expected}) of the model's input, got {tuple(x.shape)}."
            )

    def _fixed_length(self, axis: int) -> int | None:
        """Return the length of an axis of the model's input; `None` if the model leaves it open."""
        shape = self._input.shape
        return shape[axis] if axis < len(shape) and isinstance(shape[axis], int) else None


def _session(path: str | os.PathLike[str] | bytes, providers: Sequence[str]) -> Any:
    onnxruntime = require("onnxruntime", extra="onnx", needed_by="OnnxClassifier")
    if not isinstance(path, bytes):
        path = os.fspath(path)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"`path` must be an existing file, got {path!r}.")
    try:
        return onnxruntime.InferenceSession(path, providers=list(providers))
    except Exception as error:  # onnxruntime has a different exception for each kind of damage
        raise ValueError(
            f"`path` must be a complete ONNX model, got one that onnxruntime refuses: {error}"
        ) from error


def _single_input(session: Any) -> Any:
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in _FLOATS:
        raise ValueError(
            f"`path` must be a model with one input of floats, got {_format_nodes(inputs)}."
        )
    return inputs[0]


def _select_output(session: Any, name: str | None) -> Any:
    """Return the output called `name`, or the only output that could be scores."""
    outputs = session.get_outputs()
    if name is not None:
        candidates = [out for out in outputs if out.name == name]
    else:
        candidates = [out for out in outputs if out.type in _FLOATS and len(out.shape) in (0, 2)]
    if len(candidates) != 1:
        needed = "are floats (n, classes)" if name is None else f"have the name {name!r}"
        raise ValueError(
            "`output_name` must be the name of one of the model's outputs, which are "
            f"{_format_nodes(outputs)}, got {name!r}: {len(candidates)} of them {needed}."
        )
    return candidates[0]


def _number_of_classes(output: Any, num_classes: int | None) -> int:
    """Return `num_classes` if it is given, otherwise the number that the model states."""
    stated = output.shape[1] if len(output.shape) == 2 else None
    stated = stated if isinstance(stated, int) else None
    if num_classes is not None and stated is not None and num_classes != stated:
        raise ValueError(
            f"`num_classes` must be {stated}, the number of scores that the model returns, "
            f"got {num_classes}."
        )
    classes = stated if num_classes is None else num_classes
    if classes is None:
        raise ValueError(
            "`num_classes` must be an int, since the model does not state the width of its output "
            f"{output.name!r}, got None."
        )
    return classes


def _format_nodes(nodes: Sequence[Any]) -> str:
    return ", ".join(f"{node.name!r} ({node.type}, {node.shape})" for node in nodes)
