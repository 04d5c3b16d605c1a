"""Schedules of the attacks that have one of ours and that of their paper."""

from __future__ import annotations

from typing import Literal

Schedule = Literal["adaptive", "published"]
SCHEDULES: tuple[Schedule, ...] = ("adaptive", "published")
