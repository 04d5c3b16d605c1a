"""Evaluations with distances that a test makes up."""

import dataclasses

import torch
from torch import nn

from advkit import eval as rob
from advkit.core.results import AttackResult, Queries
from advkit.eval.accuracy import NOT_FINITE
from advkit.eval.evidence.evaluated_inputs import EvaluatedInputs
from advkit.eval.evidence.provenance import Provenance

PROVENANCE = Provenance(
    date="2026-11-30T12:00:00+00:00", device="cpu", threads=1, batch_size=128,
    versions={"advkit": "0.1.0", "torch": "2.13.0"}, numerics={}, model="a" * 64,
    weights="b" * 64, attacks=("c" * 64,),
)  # fmt: skip


def inputs_of(correct, not_finite=None):
    """Inputs of label 0, of which those in the mask `correct` are predicted so."""
    n = len(correct)
    prediction = (~correct).long()
    if not_finite is not None:
        prediction[not_finite] = NOT_FINITE
    return EvaluatedInputs(
        index=torch.arange(n), label=torch.zeros(n, dtype=torch.int64), prediction=prediction,
        sha256=torch.arange(n).expand(32, n).to(torch.uint8),
    )  # fmt: skip


class Sure(nn.Module):
    """Says 0 to everything."""

    def forward(self, x):
        nothing = 0 * x.flatten(1).sum(1)
        return torch.stack([nothing + 2, nothing], 1)


@dataclasses.dataclass(frozen=True)
class Finds:
    """An attack that reads off its `feature` how far an adversarial example is; at 1 there is none.

    With an `eps`, a number or one for each sample, it finds those within.
    """

    feature: int = 0
    norm: str = "l2"
    eps: object = None

    def run(self, model, x, y=None, *, target=None):
        distance = x.flatten(1)[:, self.feature]
        ones = torch.ones(len(x), dtype=torch.int64)
        success = distance < 1 if self.eps is None else distance <= self.eps
        return AttackResult(
            x_adv=x, success=success, distance=distance, norm=self.norm,
            queries=Queries(3 * ones, 2 * ones), no_gradient=torch.zeros(len(x)).bool(),
        )  # fmt: skip

    def __call__(self, model, x, y=None, *, target=None):
        return self.run(model, x, y).x_adv


def report_on(distances, *made, wrong=0, batch_size=128):
    """An evaluation on inputs with these features, with `wrong` misclassified ones before them."""
    x = torch.tensor(distances)
    x = torch.cat([torch.zeros(wrong, *x.shape[1:]), x])
    y = torch.cat([torch.ones(wrong), torch.zeros(len(distances))]).long()
    return rob.evaluate(Sure(), x, y, attacks=made, batch_size=batch_size)
