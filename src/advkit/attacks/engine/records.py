"""Records: what is kept of each sample of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self

from advkit.attacks._problem import Judged, Problem
from advkit.core.norms import per_sample
from advkit.core.tensors import asynchronous

