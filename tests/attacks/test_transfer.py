"""Transfer: what fools a surrogate, as another model judges it, and what that costs."""

import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import nn

from advkit import (
    InconclusiveWarning,
    QueryBudgetExceeded,
    QueryCounter,
    TorchClassifier,
    attacks,
    eval,
)
from advkit.core.norms import lp_norm
from tests.toys import Halfspace, answers, convnet, images

FGSM = attacks.FGSM(eps=0.1)


class Other(nn.Module):
    """Three of five logits of another net than `convnet()`, which it resembles little."""

    def forward(self, x):
        return convnet(classes=5, dtype=x.dtype)(x)[:, :3]


class Labels:
    """A classifier of labels only."""

    bounds, num_classes = (0.0, 1.0), 3

    def __init__(self, net):
        self.net = net

    def predict(self, x):
        return self.net(x).argmax(1)


class Recorder:
    """An attack that does nothing, but remembers what it was given."""

    norm = "l2"

    def __init__(self):
        self.given = []

    def __call__(self, model, x, y=None, *, target=None):
        return self.run(model, x, y, target=target).x_adv

    def run(self, model, x, y=None, *, target=None):
        self.given.append((x.clone(), y, target))
        return attacks.RandomNoise(eps=0.0).run(model, x, y, target=target)


@pytest.fixture
def net():
    return convnet()


@pytest.fixture
def x():
    return images(64)


@pytest.fixture
def y(net, x):
    return answers(net, x)


def planes(d=12, seed=0):
    """Two half-spaces that agree on some of `d` features, and points on both sides."""
    generator = torch.Generator().manual_seed(seed)
    w, v = torch.randn(2, d, generator=generator, dtype=torch.float64)
    source, target = (Halfspace(n, b=-float(n.sum()) / 2) for n in (w, w + 1.5 * v))
    x = 0.3 + 0.4 * torch.rand(200, d, generator=generator, dtype=torch.float64)
    return source, target, x


def test_a_step_against_one_plane_crosses_the_other_or_not_in_closed_form():
    source, target, x = planes()
    y = answers(target, x)
    transfer = attacks.Transfer(attack=attacks.FGSM(eps=0.1), surrogate=source)
    result = transfer.run(target, x, y)
    away = 1.0 - 2.0 * y.double()  # from label 0 up the source's normal, from 1 down
    x_adv = x + 0.1 * away[:, None] * source.w.detach().sign()
    torch.testing.assert_close(result.x_adv, x_adv)
    value = target.value(x) + 0.1 * away * (target.w @ source.w.sign())
    assert 20 < result.success.sum() < 180
    assert torch.equal(result.success, (value > 0).long() != y)
    torch.testing.assert_close(result.distance, torch.full((200,), 0.1).double())
    assert result.norm == transfer.norm == "linf"
    assert transfer.eps == 0.1


def test_a_targeted_step_goes_to_the_target():
    source, target, x = planes()
    goal, attack = torch.arange(200) % 2, attacks.FGSM(eps=0.05)
    result = attacks.Transfer(attack=attack, surrogate=source).run(target, x, target=goal)
    towards = 2.0 * goal.double() - 1.0
    value = target.value(x) + 0.05 * towards * (target.w @ source.w.sign())
    assert torch.equal(result.success, (value > 0).long() == goal)
    assert 20 < result.success.sum() < 180


def test_the_attack_meets_the_surrogate_with_the_labels_of_the_target(net, x, y):
    recorder = Recorder()
    transfer = attacks.Transfer(attack=recorder, surrogate=Other())
    transfer.run(net, x, 2 - y)
    transfer.run(net, x)
    transfer.run(net, x, y, target=(y + 1) % 3)
    given = [(y, target) for _, y, target in recorder.given]
    assert torch.equal(given[0][0], 2 - y)
    assert torch.equal(given[1][0], y)
    assert given[0][1] is given[1][1] is None
    assert given[2][0] is None
    assert torch.equal(given[2][1], (y + 1) % 3)
    assert transfer.norm == "l2"
    assert transfer.eps is None


@pytest.mark.parametrize("model", [Labels, QueryCounter, TorchClassifier])
def test_success_is_what_the_target_says_of_x_adv(model, net, x, y):
    result = attacks.Transfer(attack=FGSM, surrogate=Other()).run(model(net), x, y)
    assert torch.equal(result.x_adv, attacks.FGSM(eps=0.1, stop="never")(Other(), x, y))
    assert torch.equal(result.success, answers(net, result.x_adv) != y)
    assert 0 < result.success.sum() < 64


def test_each_sample_costs_one_query_of_the_target_alone(net, x, y):
    transfer = attacks.Transfer(attack=attacks.PGD(eps=0.1, steps=5), surrogate=Other())
    counter = QueryCounter(net)
    result = transfer.run(counter, x, y)
    assert (result.queries.forward == 1).all()
    assert (result.queries.backward == 0).all()
    assert counter.forward == 64
    counter.reset()
    assert (transfer.run(counter, x).queries.forward == 2).all()
    assert counter.forward == 128


def test_a_failure_of_a_minimum_norm_attack_costs_another(net, x, y):
    transfer = attacks.Transfer(attack=attacks.DeepFool(), surrogate=Other())
    counter = QueryCounter(net)
    result = transfer.run(counter, x, y)
    assert torch.equal(result.queries.forward, 2 - result.success.long())
    assert 0 < result.success.sum() < 64
    assert counter.forward == int(result.queries.forward.sum())
    counter.reset()
    assert torch.equal(transfer.run(counter, x).queries.forward, result.queries.forward + 1)
    assert counter.forward == int(result.queries.forward.sum()) + 64


def test_a_minimum_norm_attack_gives_the_clean_input_where_it_fails(net, x, y):
    result = attacks.Transfer(attack=attacks.DeepFool(), surrogate=Other()).run(net, x, y)
    on_surrogate = attacks.DeepFool()(Other(), x, y)
    expected = answers(net, on_surrogate) != y
    assert torch.equal(result.success, expected)
    assert torch.equal(result.x_adv[expected], on_surrogate[expected])
    assert torch.equal(result.x_adv[~expected], x[~expected])
    assert (result.distance[~expected] == 0).all()
    assert (on_surrogate[~expected] != x[~expected]).any()


def test_where_all_are_fooled_the_model_is_asked_once(net, x, y):
    sizes = []
    net.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    transfer = attacks.Transfer(attack=attacks.DeepFool(), surrogate=convnet())
    assert transfer.run(net, x, y).success.all()
    assert sizes == [64]


def test_a_budget_attack_gives_its_try_where_it_fails(net, x, y):
    attack = attacks.DeepFool(eps=0.3)
    result = attacks.Transfer(attack=attack, surrogate=Other()).run(net, x, y)
    assert not result.success.all()
    assert torch.equal(result.x_adv, attack(Other(), x, y))
    assert (result.queries.forward == 1).all()


def test_clean_inputs_that_the_target_misclassifies_are_successes():
    """A surrogate that takes it the other way moves some to where the target is right."""
    source, target, x = planes()
    source = Halfspace(-source.w.detach(), b=-source.b)
    y = 1 - answers(target, x)
    result = attacks.Transfer(attack=attacks.DeepFool(), surrogate=source).run(target, x, y)
    on_surrogate = attacks.DeepFool()(source, x, y)
    cured = answers(target, on_surrogate) == y
    assert 0 < cured.sum() < 200
    assert result.success.all()
    assert torch.equal(result.x_adv[cured], x[cured])
    assert torch.equal(result.x_adv[~cured], on_surrogate[~cured])
    assert torch.equal(answers(target, result.x_adv) != y, result.success)
    assert torch.equal(result.queries.forward, 1 + cured.long())


def test_the_inner_attack_goes_on_unless_it_is_told_to_stop(net, x, y):
    source = Other()
    wrong = answers(source, x) != y
    assert 0 < wrong.sum() < 64
    for attack, moves in ((FGSM, True), (attacks.FGSM(eps=0.1, stop="never"), True),
                          (attacks.FGSM(eps=0.1, stop="first"), False)):  # fmt: skip
        result = attacks.Transfer(attack=attack, surrogate=source).run(net, x, y)
        moved = (result.distance > 0)[wrong]
        assert moved.all() if moves else not moved.any()
        assert (result.distance > 0)[~wrong].all()


class HalfDead(nn.Module):
    """Logits without a gradient where the first feature is above one half."""

    def forward(self, x):
        z = x.flatten(1).sum(1) - 0.5 * x[0].numel()
        z = torch.where(x.flatten(1)[:, 0] > 0.5, z.detach() + 0 * z, z)
        return torch.stack([-z, z], dim=1)


@pytest.mark.filterwarnings("ignore:.*met a gradient")
def test_a_gradient_that_failed_is_reported_where_the_target_was_not_fooled():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(80, 4, generator=generator)
    source = HalfDead()
    target = Halfspace(torch.tensor([0.0, 1.0, 0.0, 0.0]), b=-0.5)  # of the second feature
    y = answers(source, x)
    transfer = attacks.Transfer(attack=attacks.FGSM(eps=0.01), surrogate=source)
    result = transfer.run(target, x, y)
    no_gradient = x[:, 0] > 0.5
    assert torch.equal(result.no_gradient, no_gradient & ~result.success)
    assert (no_gradient & result.success).any()
    assert result.no_gradient.any()
    assert (~no_gradient & ~result.success).any()


def test_nan_logits_of_the_target_are_reported(net, x, y):
    class Broken(nn.Module):
        def forward(self, x):
            return net(x) + torch.tensor([0.0, 0.0, torch.nan])

    with pytest.warns(InconclusiveWarning, match="infinite logits for 64 of 64 samples"):
        result = attacks.Transfer(attack=FGSM, surrogate=net).run(Broken(), x, y)
    assert result.not_finite.all()
    assert not result.success.any()


def test_a_warning_says_so():
    x, y = torch.full((3, 4), 0.6), torch.ones(3, dtype=torch.int64)
    transfer = attacks.Transfer(attack=FGSM, surrogate=HalfDead())
    with pytest.warns(UserWarning, match="3 of 3 samples met a gradient of zero or NaN"):
        transfer.run(Halfspace(torch.ones(4), b=-1.0), x, y)


def test_bounds_that_differ_are_refused(net, x, y):
    surrogate = TorchClassifier(Other(), bounds=(-1, 1))
    with pytest.raises(
        ValueError, match=r"`surrogate` must have the bounds.*\(0.0, 1.0\), got \(-1"
    ):
        attacks.Transfer(attack=FGSM, surrogate=surrogate).run(net, x, y)
    same = TorchClassifier(Other(), bounds=(0, 1))
    assert attacks.Transfer(attack=FGSM, surrogate=same).run(net, x, y).success.any()


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (0.0, 255.0)])
def test_bounds_that_both_share(bounds):
    source, target, x = planes()
    lower, upper = bounds
    x = lower + (upper - lower) * x
    models = [TorchClassifier(plane, bounds=bounds) for plane in (source, target)]
    attack = attacks.FGSM(eps=0.3 * (upper - lower))
    result = attacks.Transfer(attack=attack, surrogate=models[0]).run(models[1], x)
    assert result.x_adv.min() >= lower
    assert result.x_adv.max() <= upper
    assert result.x_adv.max() > 0.9 * upper


@pytest.mark.parametrize("attack", [attacks.FGSM, "FGSM", None])
def test_what_is_no_attack_is_refused(attack):
    with pytest.raises(TypeError, match=r"`attack` must be an attack, such as PGD\(eps=0.1\), got"):
        attacks.Transfer(attack=attack, surrogate=nn.Linear(2, 2))


@pytest.mark.parametrize("surrogate", ["net", None, lambda x: x])
def test_a_surrogate_that_is_no_model_is_refused(surrogate):
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module, a fitted"):
        attacks.Transfer(attack=FGSM, surrogate=surrogate)


def test_a_surrogate_that_the_attack_cannot_attack_is_refused(net, x, y):
    forest = RandomForestClassifier(3, random_state=0).fit(x.flatten(1).numpy(), y.numpy())
    transfer = attacks.Transfer(attack=FGSM, surrogate=forest)
    with pytest.raises(TypeError, match=r"gradients .* for FGSM, got .*RandomForestClassifier"):
        transfer.run(net, x, y)


def test_an_attack_without_gradients_on_a_surrogate_without_them(net, x, y):
    forest = RandomForestClassifier(9, random_state=0).fit(x.flatten(1).numpy(), y.numpy())
    attack = attacks.RandomNoise(eps=0.4, restarts=3)
    result = attacks.Transfer(attack=attack, surrogate=forest).run(net, x, y)
    on_surrogate = attacks.RandomNoise(eps=0.4, restarts=3, stop="never")(forest, x, y)
    assert torch.equal(result.x_adv, on_surrogate)
    assert torch.equal(result.success, answers(net, on_surrogate) != y)


def test_transfer_within_transfer(net, x, y):
    """The nearer model is asked by the inner attack, the target only about what comes of it."""
    inner = attacks.Transfer(attack=FGSM, surrogate=Other())
    outer = attacks.Transfer(attack=inner, surrogate=convnet())
    counter = QueryCounter(net)
    result = outer.run(counter, x, y)
    expected = inner.run(net, x, y)
    assert torch.equal(result.x_adv, expected.x_adv)
    assert torch.equal(result.success, expected.success)
    assert counter.forward == 64
    assert (outer.norm, outer.eps) == ("linf", 0.1)


def test_one_line_says_what_it_is(net):
    transfer = attacks.Transfer(attack=attacks.DeepFool(steps=7), surrogate=TorchClassifier(net))
    assert repr(transfer) == (
        "Transfer(attack=DeepFool(steps=7), surrogate=TorchClassifier(ConvNet, bounds=(0, 1)))"
    )


def test_what_a_budget_leaves_is_whole(net, x, y):
    """It ends before the clean inputs of the failures are asked about; they come back."""
    transfer = attacks.Transfer(attack=attacks.DeepFool(), surrogate=Other())
    whole = transfer.run(net, x, y)
    with pytest.raises(QueryBudgetExceeded) as error:
        transfer.run(QueryCounter(net, max_queries=64), x, y)
    found = error.value.result
    assert torch.equal(found.success, whole.success)
    assert torch.equal(found.x_adv, whole.x_adv)
    assert (found.queries.forward == 1).all()
    with pytest.raises(QueryBudgetExceeded) as error:
        transfer.run(QueryCounter(net, max_queries=63), x, y)
    assert torch.equal(error.value.result.x_adv, x)
    assert not error.value.result.success.any()


def test_a_budget_too_small_for_a_budget_attack_leaves_the_clean_inputs(net, x, y):
    transfer = attacks.Transfer(attack=FGSM, surrogate=Other())
    with pytest.raises(QueryBudgetExceeded) as error:
        transfer.run(QueryCounter(net, max_queries=63), x, y)
    assert torch.equal(error.value.result.x_adv, x)
    assert (error.value.result.queries.forward == 0).all()


def evaluated(attack, x, y):
    """A random forest, what became of an attack on it, and the report in words."""
    forest = RandomForestClassifier(10, random_state=0).fit(x.flatten(1).numpy(), y.numpy())
    report = eval.evaluate(forest, x, y, attacks=[attack], batch_size=25)
    return forest, report.outcomes[0], str(report)


def test_an_evaluation_of_a_random_forest_has_a_row_for_it(net, x, y):
    transfer = attacks.Transfer(attack=attacks.FGSM(eps=0.2), surrogate=net)
    forest, outcome, text = evaluated(transfer, x, y)
    x_adv = attacks.FGSM(eps=0.2, stop="never")(net, x, y)
    both = [torch.from_numpy(forest.predict(v.flatten(1).numpy())) == y for v in (x, x_adv)]
    assert torch.equal(outcome.robust, both[0] & both[1])
    assert torch.equal(outcome.forward, both[0].long())
    assert 0 < outcome.robust.sum() < both[0].sum()
    assert "Transfer" in text
    assert "random noise" in text


def test_an_evaluation_cuts_the_budgets_of_the_inner_attack(net, x, y):
    eps = torch.linspace(0.0, 0.4, 64)
    inner = attacks.Transfer(attack=attacks.FGSM(eps=eps), surrogate=net)
    for transfer in (inner, attacks.Transfer(attack=inner, surrogate=net)):
        _, outcome, text = evaluated(transfer, x, y)
        done = ~outcome.robust & (outcome.forward > 0)
        assert done.any()
        assert (outcome.distance[done] <= eps[done] + 1e-6).all()
        assert (outcome.distance[done] > 0.1).any()
        assert "Transfer" in text


def test_an_evaluation_counts_distances_of_a_minimum_norm_attack(net, x, y):
    transfer = attacks.Transfer(attack=attacks.DeepFool(norm="linf"), surrogate=net)
    _, outcome, text = evaluated(transfer, x, y)
    assert outcome.minimum_norm
    assert outcome.norm == "linf"
    done = outcome.distance.isfinite()
    assert torch.equal(done, ~outcome.robust & (outcome.forward > 0))
    torch.testing.assert_close(
        outcome.distance[done],
        lp_norm(attacks.DeepFool(norm="linf")(net, x, y) - x, "linf")[done],
    )
    assert "Transfer" in text


def test_what_fools_the_model_was_begun_whatever_the_surrogate_says():
    class Sure(nn.Module):
        def forward(self, x):
            return torch.tensor([[2.0, 0.0, 1.0]]).expand(len(x), -1)

    net, x = convnet(), images(8)
    y = answers(net, x)
    hopeless = attacks.HopSkipJump(max_queries=20, init_trials=2)
    transfer = attacks.Transfer(attack=hopeless, surrogate=Sure())
    with pytest.warns(InconclusiveWarning, match="could not begin"):
        result = transfer.run(net, x, torch.zeros_like(y))
    assert torch.equal(result.success, y != 0)
    assert torch.equal(result.no_start, y == 0)
