"""What counts as success, and what is climbed to get there."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from advkit.core import checks
from advkit.core.losses import Loss, margin
from advkit.core.norms import Norm, lp_norm, per_sample
from advkit.core.tensors import asynchronous, wide
from advkit.models import DifferentiableClassifier

