"""Losses that know of a detector of outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from advkit.attacks.engine.black_box import BlackBoxAttack, ByLabels
from advkit.attacks.engine.records import Best, nothing_yet
from advkit.attacks.engine.budget import BudgetAttack
from advkit.attacks.engine.problem import Judged, Ledger, Problem
from advkit.core import checks
from advkit.core.attack_options import part_of, with_seed
from advkit.core.hyperparameters import call, settings
from advkit.core.losses import Loss, LossName, check_loss, get_loss, margin
from advkit.core.norms import Norm
from advkit.models import DifferentiableClassifier, as_classifier, as_differentiable

