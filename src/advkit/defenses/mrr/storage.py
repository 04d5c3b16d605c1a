"""Fitted defenders in a file of plain arrays, whole and after each one of them."""

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
    Chain,
    LatentDefender,
    LatentDefenders,
    LatentModules,
    copied,
    with_weights,
)
from advkit.defenses.mrr.taps import Tap
from advkit.models import TorchClassifier

Arrays = dict[str, npt.NDArray[Any]]
_FORMAT = "advkit MRR 1"
_SETTINGS = (
    "latent",
    "inputs",
    "aggregate",
    "precision",
    "security",
    "jointly",
    "held_out",
    "seed",
)
_ABOUT = "about"  # everything that is no array, as JSON


class Checkpoint:
    """The latent defenders that are fitted so far, in a file that is replaced after each.

    Args:
        path: of the file; `None` keeps nothing.
        layers: settings of the layers.
        seed: of the fit.
        victim: the model.
        x: the clean inputs of the fit.
        y: their labels.

    Raises:
        ValueError: the file is damaged, or of another fit.
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
            self._write(self._path)  # what cannot be written costs no defender

    def weights(self, layer: int) -> Sequence[Mapping[str, Tensor]]:
        """Those of the defenders that are fitted so far at one of the layers."""
        return self._weights[layer]

    def add(self, layer: int, defender: LatentDefender) -> None:
        """One more defender of a layer."""
        self._weights[layer].append(defender.state_dict())
        if self._path is not None:
            self._write(self._path)

    def _write(self, path: Path) -> None:
        arrays: Arrays = {}
        for i, layer in enumerate(self._weights):
            for k, weights in enumerate(layer):
                arrays |= _named(f"latent {i} {k}", weights)
        counts = [len(layer) for layer in self._weights]
        _write(
            path, {"format": f"{_FORMAT} checkpoint", "fit": self._fit, "counts": counts}, arrays
        )

    def _read(self, path: Path) -> None:
        about, arrays = _read(path, f"{_FORMAT} checkpoint")
        with named_in_errors(path):
            check_keys("about", about, ("format", "fit", "counts"))
        if about["fit"] != self._fit:
            raise ValueError(
                f"checkpoint {path} cannot be taken up: it was begun with another model, "
                "other data or other settings; remove it to begin again"
            )
        with named_in_errors(path):
            self._weights = _fitted_so_far(about["counts"], _by_part(arrays), len(self._weights))


def _fitted_so_far(
    counts: object, parts: dict[str, Arrays], layers: int
) -> list[list[dict[str, Tensor]]]:
    """The weights of the defenders of each layer."""
    if not isinstance(counts, list) or len(counts) != layers:
        raise ValueError(f"`counts` must be a list of {layers}")
    for count in counts:
        checks.integer("counts", count, at_least=0)
    if sum(counts) != len(parts):
        raise ValueError(f"`counts` must be those of {len(parts)} defenders")
    check_keys("arrays", parts, [f"latent {i} {k}" for i, n in enumerate(counts) for k in range(n)])
    return [
        [_tensors(parts[f"latent {i} {k}"]) for k in range(count)] for i, count in enumerate(counts)
    ]


def write(path: Path, settings: Mapping[str, Any], fitted: Fitted) -> None:
    """Replace the file at `path` by what was fitted, with the `settings` of `MRR`."""
    arrays = {"clean": fitted.clean.cpu().numpy()} | _named("calibration", vars(fitted.calibration))
    taps = []
    for i, own in enumerate(fitted.latent):
        density = {k: v for k, v in vars(own.density).items() if v is not None}
        arrays |= _named(f"density {i}", density)
        taps.append(asdict(own.defenders[0].tapped.tap))
        for k, defender in enumerate(own.defenders):
            arrays |= _named(f"latent {i} {k}", defender.state_dict())
    if fitted.inputs is not None:
        arrays |= {f"inputs/{name}": array for name, array in fitted.inputs.arrays().items()}
    plain = {
        **settings,
        "latent": [asdict(own) for own in settings["latent"]],
        "inputs": None if settings["inputs"] is None else asdict(settings["inputs"]),
    }
    _write(path, {"format": _FORMAT, "settings": plain, "taps": taps}, arrays)


@contextmanager
def named_in_errors(path: Path) -> Iterator[None]:
    """Turn errors at the content of the file at `path` into a ValueError that names it."""
    try:
        yield
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a valid file of MRR: {error}") from error


class Stored:
    """Content of a file that `write` wrote; values are checked when they are read.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is damaged, or not such a file.
    """

    def __init__(self, path: Path) -> None:
        about, self._arrays = _read(path, _FORMAT)
        with named_in_errors(path):
            check_keys("about", about, ("format", "settings", "taps"))
            check_keys("settings", about["settings"], _SETTINGS)
            self.settings = _settings(about["settings"])
            self._taps = about["taps"]

    def fitted(self, victim: TorchClassifier) -> Fitted:
        """Return what was fitted for `victim`.

        Raises:
            ValueError: it was another model, or values are missing or impossible.
            TypeError: a value is of the wrong type.
        """
        device = next(victim.module.parameters()).device
        parts = _by_part(self._arrays)
        layers, taps = self.settings["latent"], self._taps
        calibration = _calibration(_tensors(parts.pop("calibration", {}), device))
        if not isinstance(taps, list) or len(taps) != len(layers):
            raise ValueError(f"`taps` must be a list of {len(layers)}")
        latent = tuple(
            _latent(own, _tap(tap, own), parts, i, victim, len(calibration.counts))
            for i, (own, tap) in enumerate(zip(layers, taps, strict=True))
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
            clean=_tensors(clean, device)["clean"],
        )
        fitted.check()
        return fitted


def _settings(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `MRR` from those of a file."""
    if not isinstance(plain["latent"], list):
        raise ValueError(f"`latent` must be a list, got {type(plain['latent']).__name__}")
    inputs, precision = plain["inputs"], plain["precision"]
    return {
        **plain,
        "latent": [_latent_settings(own) for own in plain["latent"]],
        "inputs": None if inputs is None else InputDefender(**inputs),
        "precision": tuple(precision) if isinstance(precision, list) else precision,
    }


def _latent_settings(plain: Mapping[str, Any]) -> LatentDefenders:
    check_keys("latent", plain, [field.name for field in fields(LatentDefenders)])
    chain = plain["chain"]
    return LatentDefenders(**{**plain, "chain": None if chain is None else Chain(**chain)})


def _tap(plain: Mapping[str, Any], settings: LatentDefenders) -> Tap:
    """The place that a file names, which is that of the settings if they have one."""
    tap = Tap(**plain)
    if settings.layer is not None and tap != Tap(layer=settings.layer, side=settings.side):
        raise ValueError(f"`taps` must be those of the settings, got {tap}")
    return tap


def _latent(
    settings: LatentDefenders,
    tap: Tap,
    parts: dict[str, Arrays],
    layer: int,
    victim: TorchClassifier,
    classes: int,
) -> LatentModules:
    """The defenders of a layer; their arrays are taken out of `parts`."""
    device = next(victim.module.parameters()).device
    if settings.count > len(parts):
        raise ValueError(f"`arrays` must be those of {settings.count:,} defenders, got fewer")
    weights = [_tensors(parts.pop(f"latent {layer} {k}", {})) for k in range(settings.count)]
    centres = weights[0].get("centres", torch.empty(0))
    if centres.ndim != 2 or len(centres) != classes:
        raise ValueError(f"`centres` must be those of {classes} classes")
    density = _density(_tensors(parts.pop(f"density {layer}", {}), device))
    density.check(settings.count, centres.shape[1], classes, settings.density)
    start = copied(victim, tap, centres.to(device))
    return LatentModules([with_weights(start, one) for one in weights], density)


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
    """What decides on the weights of the defenders, except how many there are to be."""
    plain = [{**asdict(layer), "count": None} for layer in layers]
    digest = hashlib.sha256(json.dumps([plain, seed, repr(victim)]).encode())
    for tensor in (x, y, *victim.module.state_dict().values()):
        digest.update(str((tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(np.ascontiguousarray(_array(tensor)).tobytes())
    return digest.hexdigest()


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> Arrays:
    return {f"{prefix}/{name}": _array(tensor) for name, tensor in tensors.items()}


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    """As NumPy's, which has no bfloat16; what reads it casts back."""
    plain = tensor.detach().cpu()
    array: npt.NDArray[Any] = (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()
    return array


def _by_part(arrays: Arrays) -> dict[str, Arrays]:
    """Arrays `part/name` by part and name; one without a part is in the part ""."""
    parts: dict[str, Arrays] = {}
    for name, array in arrays.items():
        part, slash, own = name.partition("/")
        parts.setdefault(part if slash else "", {})[own if slash else name] = array
    return parts


def _tensors(arrays: Arrays, device: torch.device | None = None) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}


def _write(path: Path, about: Mapping[str, Any], arrays: Arrays) -> None:
    words = json.dumps({**about, "arrays": list(arrays)})
    write_npz(path, {**arrays, _ABOUT: np.array(words)})


def _read(path: Path, kind: str) -> tuple[dict[str, Any], Arrays]:
    """Read what `_write` wrote.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it is damaged, or another one.
    """
    arrays = read_npz(path)
    try:
        about = json.loads(str(arrays.pop(_ABOUT)))
        found = about["format"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is no file of MRR") from error
    if found != kind:
        raise ValueError(f"{path} is of the format {found!r:.50}, not {kind!r}")
    if about.pop("arrays", None) != list(arrays):
        raise ValueError(f"{path} must hold the arrays that it lists, and no others")
    return about, arrays
