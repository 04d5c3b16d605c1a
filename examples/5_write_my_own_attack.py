"""Write your own attack and evaluate it next to built-in ones.

An attack is an object with a `run` that returns an `AttackResult`, and that returns the adversarial
inputs when called. This is the momentum attack of Dong et al. (2018) in plain PyTorch.

    python examples/5_write_my_own_attack.py
"""

import argparse
from dataclasses import dataclass

import torch
from sklearn.neural_network import MLPClassifier

from advkit import as_classifier, attacks, data
from advkit import eval as rob
from advkit.core.results import AttackResult, Queries


@dataclass(frozen=True, kw_only=True)  # a report names an attack by its class and its fields
class Momentum:
    """Steps along the sign of a running sum of gradients, in linf."""

    eps: float
    steps: int = 10

    def __call__(self, model, x, y=None, *, target=None):
        return self.run(model, x, y, target=target).x_adv

    def run(self, model, x, y=None, *, target=None):
        """Return what the attack finds for images in [0, 1]; `y` must be given."""
        assert target is None, "this attack has no targets"
        model = as_classifier(model)  # now it has `logits` and `predict`
        lower, upper = (x - self.eps).clamp_min(0), (x + self.eps).clamp_max(1)
        x_adv, momentum = x.clone(), torch.zeros_like(x)
        for _ in range(self.steps):
            x_adv.requires_grad_()
            loss = torch.nn.functional.cross_entropy(model.logits(x_adv), y, reduction="sum")
            grad = torch.autograd.grad(loss, x_adv)[0].nan_to_num(0, 1, -1)  # no slope is infinite
            momentum += grad / grad.abs().sum((1, 2, 3), keepdim=True).clamp_min(1e-12)
            x_adv = (x_adv.detach() + self.eps / self.steps * momentum.sign()).clamp(lower, upper)
        success = model.predict(x_adv) != y  # evaluated on exactly the returned inputs
        return AttackResult(
            x_adv=x_adv, success=success, norm="linf", distance=(x_adv - x).abs().amax((1, 2, 3)),
            queries=Queries(torch.full(y.shape, self.steps + 1), torch.full(y.shape, self.steps)),
            no_gradient=~success & (grad == 0).flatten(1).all(1),  # such a failure proves nothing
        )  # fmt: skip


def main() -> rob.Report:
    """Evaluate the attack next to two others on one net; print and return the report."""
    train, test = data.digits("train"), data.digits("test")
    net = MLPClassifier((64,), learning_rate_init=0.01, random_state=0)
    net.fit(train.x.flatten(1), train.y)
    tried = [Momentum(eps=0.1), attacks.FGSM(eps=0.1), attacks.PGD(eps=0.1, steps=10)]
    print(report := rob.evaluate(net, test.x, test.y, attacks=tried))
    return report


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    main()
