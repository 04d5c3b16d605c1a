"""Cascades: who attacks what, what is added up, and what a failure keeps."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import nn

from advkit import InconclusiveWarning, QueryBudgetExceeded, QueryCounter, TorchClassifier, attacks
from advkit import eval as rob
from advkit.core.attack_options import for_samples, sending_at_most, with_seed, with_stop
from advkit.core.results import AttackResult, Queries
from tests.toys import answers, convnet, images

FGSM, PGD = attacks.FGSM(eps=0.1), attacks.PGD(eps=0.1, steps=10)
SQUARE = attacks.Square(eps=0.1, max_queries=60)


@dataclass(frozen=True)
class Scripted:
    """An attack written in advance: it moves features by `shift`, those of some samples to 0.9."""

    shift: float
    wins: tuple[int, ...] = ()  # numbers of the samples, a hundredth of which is their feature
    backward: int = 0
    no_gradient: bool = False
    no_start: bool = False
    not_finite: bool = False
    eps: float = 0.5
    norm: str = "linf"
    stop: str | None = None
    log: list = None

    def run(self, model, x, y=None, *, target=None):
        numbers = [round(float(v) * 100) for v in x[:, 0]]
        if self.log is not None:
            self.log.append((self.stop, numbers, (y if target is None else target).tolist()))
        wins = torch.tensor([k in self.wins for k in numbers])
        x_adv = torch.where(wins[:, None], 0.9, (x + self.shift).clamp(0, 1))
        success = model.predict(x_adv) != y
        ones = torch.ones(len(x), dtype=torch.int64)
        return AttackResult(
            x_adv=x_adv,
            success=success,
            distance=(x_adv - x).abs().amax(1),
            norm="linf",
            queries=Queries(3 * ones, self.backward * ones),
            no_gradient=~success & self.no_gradient,
            no_start=~success & self.no_start,
            not_finite=~success & self.not_finite,
        )

    def __call__(self, model, x, y=None, *, target=None):
        return self.run(model, x, y, target=target).x_adv


class Threshold(nn.Module):
    """Class 1 where the last feature is above 0.8, with the feature itself as margin."""

    def forward(self, x):
        return torch.stack([0 * x[:, 1], x[:, 1] - 0.8], 1)


X = torch.tensor([[0.0, 0.5], [0.01, 0.5], [0.02, 0.5], [0.03, 0.9]])  # the last one is wrong
Y = torch.zeros(4, dtype=torch.int64)


def test_each_attack_gets_what_is_still_robust_and_stage_says_who_succeeded():
    log = []
    cascade = attacks.Cascade(
        attacks=[
            Scripted(0.1, (1,), backward=2, log=log),
            Scripted(0.2, (), log=log),
            Scripted(0.05, (0,), log=log),
        ]
    )
    result = cascade.run(Threshold(), X, Y)
    assert [numbers for _, numbers, _ in log] == [[0, 1, 2], [0, 2], [0, 2]]
    assert result.success.tolist() == [True, True, False, True]
    assert result.stage.tolist() == [2, 0, -1, -1]  # the last one was wrong from the start
    # one pass at the start, 3 of each attack and one of its result, one at the end
    assert result.queries.forward.tolist() == [14, 6, 14, 2]
    assert result.queries.backward.tolist() == [2, 2, 2, 0]


def test_a_failure_keeps_the_strongest_iterate():
    cascade = attacks.Cascade(attacks=[Scripted(0.1), Scripted(0.2), Scripted(0.05)])
    x_adv = cascade(Threshold(), X, Y)
    torch.testing.assert_close(x_adv[:3], X[:3] + 0.2)
    assert torch.equal(x_adv[3], X[3])


def test_without_a_stop_every_attack_runs_on_every_sample():
    log = []
    cascade = attacks.Cascade(
        attacks=[Scripted(0.1, (1,), log=log), Scripted(0.35, log=log)], stop="never"
    )
    result = cascade.run(Threshold(), X, Y)
    assert log == [("never", [0, 1, 2, 3], [0] * 4)] * 2
    assert result.stage.tolist() == [1, 0, 1, -1]  # the last one was wrong from the start
    torch.testing.assert_close(
        result.x_adv[:, 1], torch.tensor([0.85, 0.9, 0.85, 1.25]).clamp(0, 1)
    )


def test_no_gradient_only_where_every_gradient_attack_met_none():
    blind, fine = Scripted(0, backward=1, no_gradient=True), Scripted(0, backward=1)
    black_box = Scripted(0)
    for members, expected in (
        ([blind, black_box], True), ([blind, fine], False), ([black_box], False),
        ([blind, blind, black_box], True),
    ):  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InconclusiveWarning)
            result = attacks.Cascade(attacks=members).run(Threshold(), X, Y)
        assert result.no_gradient.tolist() == [expected] * 3 + [False]


def test_no_start_only_where_no_attack_could_begin():
    stuck = Scripted(0, no_start=True)
    with pytest.warns(InconclusiveWarning, match="could not begin for 3 of 4"):
        assert attacks.Cascade(attacks=[stuck]).run(Threshold(), X, Y).no_start[:3].all()
    assert not attacks.Cascade(attacks=[stuck, Scripted(0)]).run(Threshold(), X, Y).no_start.any()


def test_not_finite_where_any_attack_met_such_logits():
    members = [Scripted(0, not_finite=True), Scripted(0)]
    with pytest.warns(InconclusiveWarning, match="NaN or infinite logits for 3 of 4"):
        result = attacks.Cascade(attacks=members).run(Threshold(), X, Y)
    assert result.not_finite.tolist() == [True, True, True, False]


def test_a_cascade_warns_once_for_all_its_attacks():
    class Flat(nn.Module):
        def forward(self, x):
            return torch.stack([5 + 0 * x[:, 0], 0 * x[:, 0]], 1)

    cascade = attacks.Cascade(attacks=[FGSM, PGD])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cascade.run(Flat(), X, Y)
    assert len(caught) == 1
    assert "4 of 4 samples met a gradient of zero" in str(caught[0].message)
    assert caught[0].filename == __file__


def test_models_without_gradients_are_attacked_by_those_that_can():
    x = torch.rand(40, 4)
    forest = RandomForestClassifier(10, random_state=0).fit(x.numpy(), (x[:, 0] > 0.5).numpy())
    cascade = attacks.Cascade(attacks=[attacks.PGD(eps=0.6), attacks.Square(eps=0.6)])
    with pytest.warns(InconclusiveWarning, match="Cascade left out PGD: .*lacks the outputs"):
        result = cascade.run(forest, x)
    assert result.success.any()
    assert (result.stage[result.success] == 1).all()
    assert (result.queries.backward == 0).all()


def test_options_reach_the_attacks():
    cascade = attacks.Cascade(attacks=[PGD, SQUARE])
    assert with_seed(cascade, 7) == attacks.Cascade(
        attacks=[
            attacks.PGD(eps=0.1, steps=10, seed=7), attacks.Square(eps=0.1, max_queries=60, seed=7)
        ]
    )  # fmt: skip
    assert with_stop(cascade, "never").stop == "never"
    eps = torch.tensor([0.1, 0.2, 0.3])
    each = attacks.Cascade(attacks=[attacks.FGSM(eps=eps), attacks.PGD(eps=eps)])
    assert for_samples(each, torch.tensor([0, 2])).attacks[1].eps.tolist() == pytest.approx(
        [0.1, 0.3]
    )
    mine = attacks.Transfer(attack=PGD, surrogate=nn.Linear(2, 2))
    assert with_seed(mine, 3).attack.seed == 3
    assert sending_at_most(cascade, 5) is cascade
    hop = attacks.Cascade(attacks=[attacks.Transfer(attack=PGD, surrogate=nn.Linear(2, 2))])
    assert sending_at_most(hop, 5) is hop


def test_an_equal_call_inside_an_evaluation():
    """Per-sample budgets and batches smaller than the data."""
    net, x = convnet(), images()
    eps = torch.linspace(0.02, 0.2, len(x))
    cascade = attacks.Cascade(attacks=[attacks.FGSM(eps=eps), attacks.PGD(eps=eps, steps=5)])
    y = answers(net, x)
    report = rob.evaluate(net, x, y, attacks=[cascade], batch_size=3)
    direct = cascade.run(net, x, y)
    assert torch.equal(report.outcomes[0].success.cpu(), direct.success)


@pytest.mark.parametrize(
    ("members", "error", "message"),
    [
        ([], ValueError, "at least one attack, got none"),
        (PGD, TypeError, "`attacks` must be a list of attacks"),
        ([attacks.PGD], TypeError, r"`attacks` must be attacks, such as PGD\(eps=0.1\)"),
        ([PGD, attacks.PGD(eps=0.2)], ValueError, "the same `eps`"),
        ([PGD, attacks.PGD(eps=0.1, norm="l2")], ValueError, "the same `norm`"),
        ([attacks.DeepFool()], ValueError, r"each have `eps`, got DeepFool\(\) without one"),
        ([PGD, attacks.PGD(eps=torch.tensor([0.1]))], ValueError, "the same `eps`"),
    ],
)
def test_what_a_cascade_may_consist_of(members, error, message):
    with pytest.raises(error, match=message):
        attacks.Cascade(attacks=members)


@pytest.mark.parametrize("max_queries", range(8, 400, 31))
def test_a_budget_that_runs_out_inside_an_attack_keeps_what_was_found(max_queries):
    net, x = convnet(), images()
    y = answers(net, x)
    cascade = attacks.Cascade(attacks=[attacks.FGSM(eps=0.1), PGD, SQUARE])
    counted = QueryCounter(TorchClassifier(net), max_queries=max_queries)
    try:
        result = cascade.run(counted, x, y)
    except QueryBudgetExceeded as error:
        result = error.result
    assert int(result.queries.forward.sum()) == counted.forward <= max_queries
    assert torch.equal(result.success, answers(net, result.x_adv) != y)
    assert (result.distance <= 0.1 + 1e-6).all()
    assert torch.equal(result.stage >= 0, result.success & (answers(net, x) == y))


def test_more_budget_never_loses_a_success():
    """Also where it ends in the pass that compares a stage with the others."""
    net, x = convnet(), images(1)
    y, found = answers(net, x), False
    for max_queries in range(1, 60):
        counted = QueryCounter(TorchClassifier(net), max_queries=max_queries)
        try:
            result = attacks.Cascade(attacks=[FGSM, PGD, SQUARE]).run(counted, x, y)
        except QueryBudgetExceeded as error:
            result = error.result
        assert bool(result.success) >= found
        assert bool(result.stage >= 0) == bool(result.success)
        found = bool(result.success)
    assert found


def test_an_empty_batch_has_stages():
    result = attacks.Cascade(attacks=[FGSM]).run(convnet(), images()[:0])
    assert result.stage.shape == (0,)
    assert result.stage.dtype == torch.int64


def test_a_cascade_of_cascades():
    inner = attacks.Cascade(attacks=[FGSM, PGD])
    net, x = convnet(), images()
    y = answers(net, x)
    result = attacks.Cascade(attacks=[inner, SQUARE]).run(net, x, y)
    assert torch.equal(
        result.success, attacks.Cascade(attacks=[FGSM, PGD, SQUARE]).run(net, x, y).success
    )


def test_the_whole_batch_reaches_a_model_that_needs_it():
    class Centered(nn.Module):
        """Its outputs depend on the mean of the batch."""

        def forward(self, x):
            assert len(x) == 4
            return torch.stack([0 * x[:, 1], x[:, 1] - 0.6 - 0.1 * x.mean()], 1)

    model = TorchClassifier(Centered(), batch="whole")
    cascade = attacks.Cascade(attacks=[attacks.FGSM(eps=0.15), attacks.PGD(eps=0.15, steps=5)])
    result = cascade.run(model, X, Y)
    assert torch.equal(result.success, model.predict(result.x_adv) != Y)
