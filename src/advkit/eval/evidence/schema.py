"""JSON schema of `report.json`."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any


def report_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of `Report.to_dict` and of `report.json`.

    Example:
        >>> from advkit import eval
        >>> eval.report_schema()["title"]
        'advkit report 1'
    """
    file = resources.files("advkit.eval.evidence").joinpath("report.schema.json")
    schema: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return schema
