"""Fitted defenders in a file of plain arrays, whole and after each one of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from advkit.core.archives import read_npz, write_npz
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
        if about["fit"] != self._fit:
            raise ValueError(
                f"checkpoint {path} cannot be taken up: it was begun with another model, "
                "other data or other settings; remove it to begin anew"
            )
        self._weights = [
            [_tensors(arrays, f"latent {i} {k}") for k in range(count)]
            for i, count in enumerate(about["counts"])
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


def read(path: Path, victim: TorchClassifier) -> tuple[dict[str, Any], Fitted]:
    """The settings of `MRR`, and what was fitted for `victim`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such archive, or of another model.
    """
    about, arrays = _read(path, _FORMAT)
    settings = dict(about["settings"])
    settings["latent"] = [_latent_settings(own) for own in settings["latent"]]
    settings["inputs"] = settings["inputs"] and InputDefender(**settings["inputs"])
    if isinstance(settings["precision"], list):
        settings["precision"] = tuple(settings["precision"])
    device = next(victim.module.parameters()).device
    latent = []
    for i, (own, tap) in enumerate(zip(settings["latent"], about["taps"], strict=True)):
        weights = [_tensors(arrays, f"latent {i} {k}") for k in range(own.count)]
        start = copied(victim, Tap(**tap), weights[0]["centres"].to(device))
        density = _density(_tensors(arrays, f"density {i}", device))
        latent.append(LatentModules([with_weights(start, one) for one in weights], density))
    inputs = None
    if settings["inputs"] is not None:
        learned = {k.removeprefix("inputs/"): v for k, v in arrays.items() if k[:7] == "inputs/"}
        inputs = InputDictionaries.from_arrays(settings["inputs"], learned).to(device)
    return settings, Fitted(
        victim=victim,
        latent=tuple(latent),
        inputs=inputs,
        calibration=Calibration(**_tensors(arrays, "calibration", device)),
        clean=torch.from_numpy(arrays["clean"]).to(device),
    )


def _density(tensors: dict[str, Tensor]) -> Density:
    scales = tensors.pop("scales", None)
    return Density(**tensors, scales=scales)


def _latent_settings(plain: Mapping[str, Any]) -> LatentDefenders:
    chain = plain["chain"]
    return LatentDefenders(**{**plain, "chain": None if chain is None else Chain(**chain)})


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


def _tensors(arrays: Arrays, prefix: str, device: torch.device | None = None) -> dict[str, Tensor]:
    start = f"{prefix}/"
    own = {name.removeprefix(start): v for name, v in arrays.items() if name.startswith(start)}
    return {name: torch.from_numpy(array).to(device) for name, array in own.items()}


def _write(path: Path, about: Mapping[str, Any], arrays: Arrays) -> None:
    words = json.dumps({**about, "arrays": list(arrays)})
    write_npz(path, {**arrays, _ABOUT: np.array(words)})


def _read(path: Path, kind: str) -> tuple[dict[str, Any], Arrays]:
    """What `_write` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another one.
    """
    words = str(read_npz(path, [_ABOUT])[_ABOUT])
    try:
        about = json.loads(words)
        found = about["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no file of MRR") from error
    if found != kind:
        raise ValueError(f"{path} is of the format {found!r}, not {kind!r}")
    return about, read_npz(path, about["arrays"])
