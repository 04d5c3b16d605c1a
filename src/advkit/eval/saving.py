"""What evaluations write: text, and JSON without NaN and infinity, whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from advkit.core.files import replacing


def save_text(path: str | Path, text: str) -> Path:
    """Write `text` to `path`."""
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def save_json(path: str | Path, plain: Mapping[str, Any]) -> Path:
    """Write `plain` values to `path`.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    return save_text(path, json.dumps(plain, indent=2, allow_nan=False) + "\n")
