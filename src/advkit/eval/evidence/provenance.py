"""Provenance of a report: hashes, versions and settings, and the command that repeats it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Model, attacks, device, versions and command of an evaluation, as plain values.

    Attributes:
        date: start of the evaluation in UTC, such as `"2026-11-30T12:00:00+00:00"`.
        device: device of the model, such as `"cpu"` or the name of a GPU.
        threads: intra-op threads of torch.
        batch_size: samples of a batch.
        versions: versions of advkit, Python and torch, by name.
        numerics: settings of torch that change results by rounding, by name.
        model: SHA-256 of the weights, settings and code of the model; `None` if it has parts that
            cannot be hashed, without an `identity`.
        weights: SHA-256 of the state dict of the net; `None` for a model without one.
        attacks: SHA-256 of each attack, in their order; `None` as for `model`.
        command: shell command that repeats the evaluation; `None` for one from Python.
    """

    date: str
    device: str
    threads: int
    batch_size: int
    versions: Mapping[str, str]
    numerics: Mapping[str, object]
    model: str | None
    weights: str | None
    attacks: tuple[str | None, ...]
    command: str | None = None

    def to_plain(self) -> dict[str, Any]:
        """Return plain values for JSON, from which `from_plain` makes an equal value."""
        return asdict(self)

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> Provenance:
        """Return the value that `to_plain` was called on."""
        values = {field.name: plain[field.name] for field in fields(Provenance)}
        return Provenance(**{**values, "attacks": tuple(values["attacks"])})


def now() -> str:
    """Return the time in UTC to the second, in the format of ISO 8601."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
