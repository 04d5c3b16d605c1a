"""Files of plain arrays for fitted defenders, complete or after each defender."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from advkit.core import checks
from advkit.core.archives import read_npz, write_npz
from advkit.core.content import check_keys
from advkit.defenses.mrr.calibration import Calibration
from advkit.defenses.mrr.density import Density
from advkit.defenses.mrr.dictionaries import InputDefender, InputDictionaries
from advkit.defenses.mrr.fitted import Fitted
from advkit.defenses.mrr.latent import (
    LatentDefender,
    LatentModules,
    copy_victim,
    copy_with_weights,
)
from advkit.defenses.mrr.latent_settings import Chain, LatentDefenders
from advkit.defenses.mrr.taps import Tap
from advkit.models import TorchClassifier

Arrays = dict[str, npt.NDArray[Any]]
_FORMAT = "advkit MRR 2"
_SETTINGS = (
    "latent",
    "inputs",
    "aggregate",
    "precision",
    "fpr",
    "joint_threshold",
    "calibration_fraction",
    "seed",
)
_METADATA = "about"  # key of everything except the arrays, as JSON


class Checkpoint:
    """File of the latent defenders fitted so far, which is replaced after each one.

    Args:
        path: path of the file; `None` saves nothing.
        layers: settings of the layers.
        seed: seed of the fit.
        victim: the model.
        x: the clean inputs of the fit.
        y: their labels.

    Raises:
        ValueError: the file is damaged, or belongs to another fit.
        OSError: the file cannot be written or read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        layers: Sequence[LatentDefenders],
        seed: int,
        victim: TorchClassifier,
        x: Tensor,
        y: Tensor,
    ) -> None:
        self._path = None if path is None else Path(path)
        self._weights: list[list[dict[str, Tensor]]] = [[] for _ in layers]
        if self._path is None:
            return
        self._fit = _fingerprint(layers, seed, victim, x, y)
        if self._path.exists():
            self._read(self._path)
        else:
            self._write(self._path)  # fails early if the file cannot be written

    def weights(self, layer: int) -> Sequence[Mapping[str, Tensor]]:
        """Return the weights of the defenders fitted so far at one of the layers."""
        return self._weights[layer]

    def add(self, layer: int, defender: LatentDefender) -> None:
        """Add the next defender of a layer, and save it."""
        self._weights[layer].append(defender.state_dict())
        if self._path is not None:
            self._write(self._path)

    def _write(self, path: Path) -> None:
        arrays: Arrays = {}
        for i, layer in enumerate(self._weights):
            for k, weights in enumerate(layer):
                arrays |= _with_prefix(f"latent {i} {k}", weights)
        counts = [len(layer) for layer in self._weights]
        _write(
            path, {"format": f"{_FORMAT} checkpoint", "fit": self._fit, "counts": counts}, arrays
        )

    def _read(self, path: Path) -> None:
        about, arrays = _read(path, f"{_FORMAT} checkpoint")
        with file_error_context(path):
            check_keys("about", about, ("format", "fit", "counts"))
        if about["fit"] != self._fit:
            raise ValueError(
                f"`checkpoint` must belong to this fit, got {path}, which was written with another "
                "model, other data or other settings. Remove it to start again."
            )
        with file_error_context(path):
            self._weights = _weights_of_layers(
                about["counts"], _group_by_part(arrays), len(self._weights)
            )


def _weights_of_layers(
    counts: object, parts: dict[str, Arrays], layers: int
) -> list[list[dict[str, Tensor]]]:
    """Return the weights of the defenders of each layer."""
    if not isinstance(counts, list) or len(counts) != layers:
        raise ValueError(f"`counts` must be a list of {layers} counts.")
    for count in counts:
        checks.integer("counts", count, at_least=0)
    if sum(counts) != len(parts):
        raise ValueError(f"`counts` must sum to {len(parts)} defenders, got {sum(counts)}.")
    check_keys("arrays", parts, [f"latent {i} {k}" for i, n in enumerate(counts) for k in range(n)])
    return [
        [_to_tensors(parts[f"latent {i} {k}"]) for k in range(count)]
        for i, count in enumerate(counts)
    ]


def write(path: Path, settings: Mapping[str, Any], fitted: Fitted) -> None:
    """Replace the file at `path` by the fitted state and the `settings` of `MRR`."""
    arrays = {"clean": fitted.clean.cpu().numpy()} | _with_prefix(
        "calibration", vars(fitted.calibration)
    )
    taps = []
    for i, layer in enumerate(fitted.latent):
        density = {k: v for k, v in vars(layer.density).items() if v is not None}
        arrays |= _with_prefix(f"density {i}", density)
        taps.append(asdict(layer.defenders[0].tapped.tap))
        for k, defender in enumerate(layer.defenders):
            arrays |= _with_prefix(f"latent {i} {k}", defender.state_dict())
    if fitted.inputs is not None:
        arrays |= {f"inputs/{name}": array for name, array in fitted.inputs.arrays().items()}
    plain = {
        **settings,
        "latent": [asdict(layer) for layer in settings["latent"]],
        "inputs": None if settings["inputs"] is None else asdict(settings["inputs"]),
    }
    _write(path, {"format": _FORMAT, "settings": plain, "taps": taps}, arrays)


@contextmanager
def file_error_context(path: Path) -> Iterator[None]:
    """Turn errors in the content of the file at `path` into a ValueError that names it."""
    try:
        yield
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a valid file of MRR: {error}") from error


class StoredMRR:
    """Content of a file that `write` wrote; values are checked when they are read.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, or not one of MRR.
    """

    def __init__(self, path: Path) -> None:
        about, self._arrays = _read(path, _FORMAT)
        with file_error_context(path):
            check_keys("about", about, ("format", "settings", "taps"))
            check_keys("settings", about["settings"], _SETTINGS)
            self.settings = _settings(about["settings"])
            self._taps = about["taps"]

    def fitted(self, victim: TorchClassifier) -> Fitted:
        """Return the fitted state for `victim`.

        Raises:
            ValueError: it belongs to another model, or values are missing or impossible.
            TypeError: a value has the wrong type.
        """
        device = next(victim.module.parameters()).device
        parts = _group_by_part(self._arrays)
        layers, taps = self.settings["latent"], self._taps
        calibration = _calibration(_to_tensors(parts.pop("calibration", {}), device))
        if not isinstance(taps, list) or len(taps) != len(layers):
            raise ValueError(f"`taps` must be a list of {len(layers)} taps.")
        latent = tuple(
            _latent(layer, _tap(tap, layer), parts, i, victim, len(calibration.counts))
            for i, (layer, tap) in enumerate(zip(layers, taps, strict=True))
        )
        inputs, clean = None, parts.pop("", {})
        if self.settings["inputs"] is not None:
            learned = parts.pop("inputs", {})
            inputs = InputDictionaries.from_arrays(self.settings["inputs"], learned).to(device)
        check_keys("arrays", clean, ("clean",))
        check_keys("arrays", parts, ())
        fitted = Fitted(
            victim=victim,
            latent=latent,
            inputs=inputs,
            calibration=calibration,
            clean=_to_tensors(clean, device)["clean"],
        )
        fitted.check()
        return fitted


def _settings(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of `MRR` from those of a file."""
    if not isinstance(plain["latent"], list):
        raise ValueError(f"`latent` must be a list, got {type(plain['latent']).__name__}.")
    inputs, precision = plain["inputs"], plain["precision"]
    return {
        **plain,
        "latent": [_latent_settings(layer) for layer in plain["latent"]],
        "inputs": None if inputs is None else InputDefender(**inputs),
        "precision": tuple(precision) if isinstance(precision, list) else precision,
    }


def _latent_settings(plain: Mapping[str, Any]) -> LatentDefenders:
    check_keys("latent", plain, [field.name for field in fields(LatentDefenders)])
    chain = plain["chain"]
    return LatentDefenders(**{**plain, "chain": None if chain is None else Chain(**chain)})


def _tap(plain: Mapping[str, Any], settings: LatentDefenders) -> Tap:
    """Return the tap stored in a file, which must match the settings if they name a layer."""
    tap = Tap(**plain)
    if settings.layer is not None and tap != Tap(layer=settings.layer, side=settings.side):
        raise ValueError(f"`taps` must be those of the settings, got {tap}.")
    return tap


def _latent(
    settings: LatentDefenders,
    tap: Tap,
    parts: dict[str, Arrays],
    layer: int,
    victim: TorchClassifier,
    classes: int,
) -> LatentModules:
    """Return the defenders of a layer, and remove their arrays from `parts`."""
    device = next(victim.module.parameters()).device
    if settings.count > len(parts):
        raise ValueError(f"`arrays` must be those of {settings.count:,} defenders, got fewer.")
    weights = [_to_tensors(parts.pop(f"latent {layer} {k}", {})) for k in range(settings.count)]
    centers = weights[0].get("centers", torch.empty(0))
    if centers.ndim != 2 or len(centers) != classes:
        raise ValueError(f"`centers` must be those of {classes} classes.")
    density = _density(_to_tensors(parts.pop(f"density {layer}", {}), device))
    density.check(settings.count, centers.shape[1], classes, settings.density)
    start = copy_victim(victim, tap, centers.to(device))
    return LatentModules([copy_with_weights(start, one) for one in weights], density)


def _density(tensors: dict[str, Tensor]) -> Density:
    scales = tensors.pop("scales", None)
    return Density(**tensors, scales=scales)


def _calibration(tensors: dict[str, Tensor]) -> Calibration:
    calibration = Calibration(**tensors)
    calibration.check(len(calibration.distances), calibration.counts.numel())
    return calibration


def _fingerprint(
    layers: Sequence[LatentDefenders], seed: int, victim: TorchClassifier, x: Tensor, y: Tensor
) -> str:
    """Return a hash of all that determines the weights of the defenders, except their number."""
    plain = [{**asdict(layer), "count": None} for layer in layers]
    digest = hashlib.sha256(json.dumps([plain, seed, repr(victim)]).encode())
    for tensor in (x, y, *victim.module.state_dict().values()):
        digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(np.ascontiguousarray(_to_numpy(tensor)).tobytes())
    return digest.hexdigest()


def _with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> Arrays:
    return {f"{prefix}/{name}": _to_numpy(tensor) for name, tensor in tensors.items()}


def _to_numpy(tensor: Tensor) -> npt.NDArray[Any]:
    """Convert a tensor to NumPy; bfloat16 becomes float32 and is cast back when it is read."""
    plain = tensor.detach().cpu()
    array: npt.NDArray[Any] = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    return array


def _group_by_part(arrays: Arrays) -> dict[str, Arrays]:
    """Group arrays named `part/name` by part and name; names without a part are in the part ""."""
    parts: dict[str, Arrays] = {}
    for name, array in arrays.items():
        part, slash, key = name.partition("/")
        parts.setdefault(part if slash else "", {})[key if slash else name] = array
    return parts


def _to_tensors(arrays: Arrays, device: torch.device | None = None) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def _write(path: Path, about: Mapping[str, Any], arrays: Arrays) -> None:
    words = json.dumps({**about, "arrays": list(arrays)})
    write_npz(path, {**arrays, _METADATA: np.array(words)})


def _read(path: Path, kind: str) -> tuple[dict[str, Any], Arrays]:
    """Read a file that `_write` wrote.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is damaged, or of another kind.
    """
    arrays = read_npz(path)
    try:
        about = json.loads(str(arrays.pop(_METADATA)))
        format_ = about["format"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is not a file of MRR.") from error
    if format_ != kind:
        raise ValueError(
            f"{path} must have the format {kind!r}, got {format_!r:.50}. Fit MRR again and save it "
            "with this version of advkit."
        )
    if about.pop("arrays", None) != list(arrays):
        raise ValueError(f"{path} must hold exactly the arrays that it lists.")
    return about, arrays
