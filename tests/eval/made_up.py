"""Evaluations with distances that a test makes up."""

import dataclasses

import torch
from torch import nn

from advkit import eval as rob
from advkit.core.results import AttackResult, Queries


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
