"""Logits that are infinite or NaN are never a success, and an evaluation goes on."""

import warnings

import pytest
import torch
from torch import nn

from advkit import InconclusiveWarning, QueryCounter, TorchClassifier, attacks, eval
from advkit.attacks.engine.goal import Goal
from advkit.core.results import AttackResult, Queries
from tests.attack_cases import ATTACKS, BUDGET
from tests.toys import SurrogateNet


class Overflows(nn.Module):
    """Three logits; the largest beyond a limit becomes `value`, as where 16 bits overflow.

    Args:
        value: what a logit above the limit is replaced by.
        limit: of the logits; the clean inputs are below it.
        where: "top" replaces that one; "all" the whole row.
    """

    def __init__(self, value, limit=0.6, where="top"):
        super().__init__()
        self.value, self.limit, self.where = value, limit, where

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        z = torch.stack([1 - mean, mean, 0.9 - mean], 1)
        over = z > self.limit
        if self.where == "all":
            over = over.any(1, keepdim=True).expand_as(z)
        return torch.where(over, torch.tensor(self.value, dtype=x.dtype), z)


class Cliff(nn.Module):
    """Whatever is misclassified has an infinite logit."""

    def forward(self, x):
        mean = x.flatten(1).mean(1)
        return torch.stack([2 - mean, torch.where(mean >= 0.5, torch.inf, 1 + mean)], 1)


# The label is class 0 at 0.45. Class 1 wins above 0.5, and what is above `limit` is not finite.
NETS = {
    "inf in the winner": lambda: Overflows(torch.inf),
    "inf everywhere": lambda: Overflows(torch.inf, where="all"),
    "NaN in the winner": lambda: Overflows(torch.nan),
    "NaN everywhere": lambda: Overflows(torch.nan, where="all"),
    "minus inf everywhere": lambda: Overflows(-torch.inf, where="all"),
    "no finite success": Cliff,
}


CASES = [
    *((name, torch.float32) for name in NETS),
    *((name, torch.float16) for name in ("inf in the winner", "NaN everywhere")),
]


def batch(dtype):
    return torch.full((4, 1, 6, 6), 0.45, dtype=dtype), torch.zeros(4, dtype=torch.int64)


def quietly(work):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return work()


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_no_attack_succeeds_by_them(tally, name, dtype):
    promise = tally("infinite or NaN logits are never an attack's success")
    x, y = batch(dtype)
    for attack in ATTACKS:
        with promise.trial((attack, name, dtype)):
            net = NETS[name]()
            found = quietly(lambda attack=attack, net=net: attack.run(net, x, y))
            logits = net(found.x_adv)
            finite = logits.isfinite().all(1)
            assert not (found.success & ~finite).any()
            assert torch.equal(found.success, finite & (logits.argmax(1) != y))
            assert not (found.not_finite & found.success).any()
            assert (found.success | finite | found.not_finite | (logits == -torch.inf).all(1)).all()


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_an_evaluation_goes_on_and_names_the_inputs(tally, name, dtype):
    promise = tally("an evaluation goes on over infinite logits and names the inputs")
    x, y = batch(dtype)
    x[2] = 0.9  # not finite from the start
    found = [
        *BUDGET[::3],
        attacks.DeepFool(),
        attacks.HopSkipJump(max_queries=60),
        attacks.Transfer(attack=attacks.FGSM(eps=0.2), surrogate=SurrogateNet()),
        attacks.PGD(eps=0.2, steps=3, stop="never"),
        attacks.RandomNoise(eps=0.4, stop="never"),
    ]
    for attack in found:
        with promise.trial((attack, name, dtype)):
            net = NETS[name]()
            report = quietly(
                lambda net=net, attack=attack: eval.evaluate(
                    net, x, y, attacks=[attack], batch_size=2
                )
            )
            assert report.not_finite.tolist() == [False, False, True, False]
            assert report.clean.tolist() == [True, True, False, True]
            messages = [finding.message for finding in report.findings]
            assert any("infinite logits for 1 input (number 2)" in m for m in messages)
            written = report.to_dict()
            assert written["inputs_not_finite"] == [2]
            (outcome,) = report.outcomes
            assert not (outcome.not_finite & outcome.success).any()
            rows = outcome.not_finite.nonzero().flatten().tolist()
            assert written["attacks"][0]["inputs_not_finite"] == rows
            noted = any("for which the model returned NaN or infinite" in m for m in messages)
            assert noted == bool(rows)


def test_the_case_of_a_net_that_overflows():
    x, y = batch(torch.float32)
    with pytest.warns(InconclusiveWarning, match="infinite logits for 4 of 4 samples.*0, 1, 2, 3"):
        result = attacks.FGSM(eps=0.2).run(Overflows(torch.inf), x, y)
    assert result.success.tolist() == [False] * 4
    assert result.not_finite.tolist() == [True] * 4
    with pytest.warns(InconclusiveWarning):
        report = eval.evaluate(Overflows(torch.inf), x, y, attacks=[attacks.FGSM(eps=0.2)])
    assert report.worst_case.count == 4
    assert "FGSM(eps=0.2) failed on 4 inputs (number 0, 1, 2, 3)" in str(report)
    assert report.to_dict()["attacks"][0]["inputs_not_finite"] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "attack",
    [
        attacks.HopSkipJump(max_queries=60),
        attacks.JointCarliniWagner(),
        attacks.SelectivePGD(eps=0.2),
    ],
    ids=repr,
)
@pytest.mark.filterwarnings("ignore:.*met a gradient")
def test_attacks_with_judgements_of_their_own_report_them(attack):
    x, y = batch(torch.float32)
    with pytest.warns(InconclusiveWarning, match="infinite logits for 4 of 4"):
        found = attack.run(Cliff(), x, y)
    assert found.not_finite.all()
    assert not found.success.any()


def test_a_success_that_overflows_in_a_smaller_batch_gives_no_picture():
    class Small(nn.Module):
        def forward(self, x):
            z = Overflows(torch.inf, limit=9.0)(x)
            return z if len(x) == 4 else z.masked_fill(z > 0.6, torch.inf)

    class Half:
        eps, norm = 0.4, "linf"

        def run(self, model, x, y):
            x_adv = torch.where(torch.arange(4).view(4, 1, 1, 1) < 2, 0.8, x)
            zero = torch.zeros(4, dtype=torch.int64)
            return AttackResult(
                x_adv=x_adv,
                success=model.predict(x_adv) != y,
                distance=(x_adv - x).flatten(1).amax(1),
                norm="linf",
                queries=Queries(zero, zero),
                no_gradient=zero.bool(),
            )

    x, y = batch(torch.float32)
    with pytest.warns(InconclusiveWarning, match="infinite logits for 2 of 2 inputs"):
        report = eval.evaluate(Small(), x, y, attacks=[Half()])
    assert report.outcomes[0].success.tolist() == [True, True, False, False]
    assert report.outcomes[0].examples is None
    assert not report.outcomes[0].not_finite.any()


def test_a_success_on_the_way_is_kept():
    x, y = batch(torch.float32)
    found = attacks.PGD(eps=0.2, steps=20, step_size=0.02).run(Overflows(torch.inf), x, y)
    assert found.success.all()
    assert not found.not_finite.any()


@pytest.mark.parametrize(
    ("logits", "leaves", "reaches"),  # leaving class 0, and reaching it
    [
        ([0, 1, 2], True, False),
        ([2, 1, 0], False, True),
        ([0, 1, torch.inf], False, False),
        ([torch.inf, 1, 2], False, False),
        ([torch.inf, 1, torch.inf], False, False),
        ([0, torch.inf, torch.inf], False, False),
        ([torch.inf] * 3, False, False),
        ([-torch.inf, 1, 2], False, False),  # the label overflowed
        ([-torch.inf] * 3, False, False),  # a rejection
        ([2, -torch.inf, -torch.inf], False, False),
        ([0, 1, -torch.inf], True, False),  # a masked class decides nothing
        ([1, 0, -torch.inf], False, True),
        ([-torch.inf, torch.inf, 0], False, False),
        ([0, torch.nan, 2], False, False),
        ([2, torch.nan, 0], False, False),
        ([torch.nan, 1, 0], False, False),
        ([torch.nan] * 3, False, False),
    ],
)
@pytest.mark.parametrize("confidence", [0.0, 0.5])
def test_every_mix_of_logits(tally, logits, leaves, reaches, confidence):
    promise = tally("infinite or NaN logits are never an attack's success")
    for targeted, succeeds in ((False, leaves), (True, reaches)):
        with promise.trial((logits, targeted, confidence)):
            goal = Goal(torch.tensor([0]), 0, targeted, confidence)
            violation = goal.violation(torch.tensor([logits], dtype=torch.float32))
            assert (violation <= 0).tolist() == [succeeds]
            assert succeeds or not (violation < -1).any()


def test_noise_that_meets_them_has_turned_nothing():
    class Fragile(nn.Module):
        def forward(self, x):
            changed = (x != 0.45).flatten(1).any(1, keepdim=True)
            return torch.where(changed, torch.inf, Overflows(torch.inf)(x))

    x, y = batch(torch.float32)
    with pytest.warns(InconclusiveWarning, match="infinite logits for 4 of 4"):
        report = eval.evaluate(Fragile(), x, y, attacks=[attacks.RandomNoise(eps=0.2)])
    assert report.noise[0].robust.all()
    assert report.outcomes[0].not_finite.all()


def test_accuracy_counts_them_as_misclassified():
    x, y = batch(torch.float32)
    x[1] = 0.9
    with pytest.warns(InconclusiveWarning, match="infinite logits for 1 of 4 inputs"):
        rate = eval.accuracy(Overflows(torch.inf), x, y)
    assert (rate.count, rate.total) == (3, 4)
    counter = QueryCounter(Overflows(torch.inf))
    assert eval.accuracy(counter, x[:1], y[:1]).count == 1
    assert counter.forward == 1  # one pass where all is well


def test_other_errors_of_a_model_are_not_hidden():
    class Odd(TorchClassifier):
        def predict(self, x):
            raise ValueError("of another kind")

    class Labels:
        bounds, num_classes = (0.0, 1.0), 3

        def predict(self, x):
            raise ValueError("of another kind")

    x, y = batch(torch.float32)
    for model in (Odd(Overflows(torch.inf)), Labels()):
        with pytest.raises(ValueError, match="of another kind"):
            eval.accuracy(model, x, y)


def test_transfer_between_nets_that_overflow():
    x, y = batch(torch.float32)
    nets = {"a": Overflows(torch.inf), "b": SurrogateNet()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        matrix = eval.transfer_matrix(nets, None, attacks.FGSM(eps=0.2), x, y)
    assert matrix.fooled["a"].count == 0  # all are infinite there, which fools nothing
