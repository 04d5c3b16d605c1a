"""File of a guard: its threshold and options, its detector, and a description of its model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from advkit.core import checks
from advkit.core.archives import digest_of, read_npz, write_npz
from advkit.core.content import check_keys, shown
from advkit.core.protocols import Detector, InputDetector
from advkit.detectors.alarm import OnAlarm
from advkit.detectors.anomaly_score import check_threshold
from advkit.detectors.confidence_scores import MaxSoftmax, OutputEntropy
from advkit.detectors.features import OUTPUTS
from advkit.detectors.forest import OutputForest
from advkit.models.inner_model import innermost
from advkit.models.torch import TorchClassifier

_FORMAT = "advkit guard 1"
_METADATA = "about"  # key of everything except the arrays of the detector, as JSON
_PREFIX = "detector/"  # of the names of these arrays
_KEYS = ("format", "threshold", "fpr", "on_alarm", "outputs", "model", "detector", "stored")
_FUNCTION = "function"  # stands for a function `on_alarm`
_KINDS = {kind.__name__: kind for kind in (MaxSoftmax, OutputEntropy, OutputForest)}


def write(
    path: Path, model: object, detector: object, on_alarm: OnAlarm, options: Mapping[str, Any]
) -> None:
    """Replace the file at `path`.

    Args:
        path: path of the file.
        model: the guarded model, of which a description is written.
        detector: the detector, which is written if it is of one of `_KINDS`.
        on_alarm: the option, of which a function is not written.
        options: the other options, plain values.

    Raises:
        ValueError: the detector is not fitted.
        OSError: the file cannot be written.
    """
    arrays = _arrays(detector)
    about = {
        "format": _FORMAT,
        **options,
        "on_alarm": _FUNCTION if callable(on_alarm) else on_alarm,
        "model": _description(model),
        "detector": type(detector).__name__,
        "stored": list(arrays),
    }
    write_npz(path, {**arrays, _METADATA: np.array(json.dumps(about))})


class StoredGuard:
    """Content of a file that `write` wrote, checked.

    Attributes:
        options: the arguments `threshold`, `fpr` and `outputs` of a guard.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, or is not one of a guard.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        arrays = read_npz(path)
        with _file_errors(path):
            self._about = about = _checked_about(arrays.pop(_METADATA, None))
            check_keys("arrays", arrays, about["stored"])
            self.options = {name: about[name] for name in ("threshold", "fpr", "outputs")}
            self._detector = self._read_detector(
                {name.removeprefix(_PREFIX): array for name, array in arrays.items()}
            )

    def _read_detector(self, arrays: dict[str, Any]) -> Detector | None:
        """Return the detector in the file; `None` if there is none."""
        if not arrays:
            return None
        kind = self._about["detector"]
        checks.one_of("detector", kind, list(_KINDS))
        return _KINDS[kind].from_arrays(arrays)

    def check_model(self, model: object) -> None:
        """Raise unless `model` is like the one that the guard was saved with.

        Raises:
            ValueError: it has other weights, or prints as another model.
        """
        if _description(model) != self._about["model"]:
            raise ValueError(
                f"`model` must be the one of the guard in {self._path}, with the same weights, "
                f"got {model!r}. Pass that model, or calibrate a new guard for this one."
            )

    def detector(self, given: Detector | InputDetector | None) -> Detector | InputDetector:
        """Return the detector in the file, or else the `given` one.

        Raises:
            ValueError: both or neither of them exist.
            TypeError: the given one is of another kind than the one of the saved guard.
        """
        kind = self._about["detector"]
        if self._detector is not None:
            if given is not None:
                raise ValueError(
                    f"`detector` must be None for {self._path}, which holds the detector of the "
                    f"guard, got {given!r}."
                )
            return self._detector
        if given is None:
            raise ValueError(
                f"`detector` must be given for {self._path}, which does not hold the {kind} of the "
                "guard, got None. Pass the fitted detector as detector=..."
            )
        if type(given).__name__ != kind:
            raise TypeError(
                f"`detector` must be of type {kind}, as in {self._path}, got {given!r}. The "
                "threshold is one for its anomaly scores."
            )
        return given

    def on_alarm(self, given: OnAlarm | None) -> OnAlarm:
        """Return the `given` option, or else the one in the file.

        Raises:
            ValueError: there is neither, since the guard was saved with a function.
        """
        if given is not None:
            return given
        stored: OnAlarm = self._about["on_alarm"]
        if stored == _FUNCTION:
            raise ValueError(
                f"`on_alarm` must be given for {self._path}, got None. A file does not hold the "
                "function of the guard. Pass it as on_alarm=..."
            )
        return stored


def _arrays(detector: object) -> dict[str, Any]:
    """Return the arrays of a detector, with a prefix; none if it cannot be saved here."""
    if type(detector) not in _KINDS.values():
        return {}
    try:
        arrays = detector.arrays()  # type: ignore[attr-defined]  # all kinds have it
    except TypeError:  # a forest around another estimator, or with other labels
        return {}
    return {_PREFIX + name: array for name, array in arrays.items()}


def _description(model: object) -> list[str]:
    """Return a model as text without addresses and names of modules, and a digest of its weights.

    A compiled module has the description of the module itself.
    """
    tensors: dict[str, Tensor] = {}
    text = repr(model)
    for i, part in enumerate(innermost(model)):
        modules = (part.preprocess, part.module) if isinstance(part, TorchClassifier) else (part,)
        text += _options(part)
        for k, module in enumerate(modules):
            state = module.state_dict() if isinstance(module, nn.Module) else {}
            for name, value in state.items():
                if isinstance(value, Tensor):
                    tensors[f"{i} {k} {name.replace('_orig_mod.', '')}"] = value
    text = re.sub(r" at 0x[0-9a-fA-F]+", "", text)
    return [re.sub(r"TorchClassifier\(\w+", "TorchClassifier(", text), digest_of(tensors)]


def _options(part: object) -> str:
    """Return the options of an innermost model that its own text does not show."""
    if not isinstance(part, TorchClassifier):
        return ""
    return f", preprocess={part.preprocess!r}, output={part.output!r}, mode={part.mode!r}"


def _checked_about(metadata: Any) -> dict[str, Any]:
    """Return the metadata of a file.

    Raises:
        TypeError: a value has the wrong type.
        ValueError: it is not metadata of a guard, or a value is out of its range.
    """
    about = json.loads(str(metadata))
    if not isinstance(about, dict) or about.get("format") != _FORMAT:
        found = about.get("format") if isinstance(about, dict) else about
        raise ValueError(f"`format` must be {_FORMAT!r}, got {shown(found)}.")
    check_keys("about", about, _KEYS)
    check_threshold(about["threshold"])
    checks.fraction("fpr", about["fpr"], "(0, 1)")
    checks.one_of("on_alarm", about["on_alarm"], ("reject", "flag", _FUNCTION))
    checks.one_of("outputs", about["outputs"], OUTPUTS)
    for name, length in (("model", 2), ("stored", None)):
        texts = about[name]
        is_list = isinstance(texts, list) and all(isinstance(text, str) for text in texts)
        if not is_list or length not in (None, len(texts)):
            raise ValueError(f"`{name}` must be a list of texts, got {shown(texts)}.")
    if not isinstance(about["detector"], str):
        raise ValueError(f"`detector` must be a name, got {shown(about['detector'])}.")
    return about


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """Turn errors in the content of the file at `path` into a ValueError that names it."""
    try:
        yield
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is not a valid file of a Guard: {error}") from error
