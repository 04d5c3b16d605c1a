"""Classifiers around a classifier: randomness, steps without gradients, counts."""

import math

import pytest
import torch
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from advkit import (
    CallableClassifier,
    Ensemble,
    Expectation,
    QueryBudgetExceeded,
    QueryCounter,
    StraightThrough,
    TorchClassifier,
    attacks,
)
from advkit.models import evaluating
from tests.toys import Linear3, convnet, images

WRAPPERS = [
    lambda model: Expectation(model, draws=2),
    lambda model: StraightThrough(model, lambda x: x),
    QueryCounter,
]


def coarse(x):
    """Sixteen levels."""
    return (15 * x).round() / 15


@pytest.fixture
def x():
    return images()


@pytest.fixture
def noisy():
    """A net whose dropout is never switched off."""
    return TorchClassifier(convnet().train(), mode="keep")


class Noise:
    """A random model of one's own, which keeps no state and has no `evaluating`."""

    bounds, num_classes = (0.0, 1.0), 3

    def logits(self, x):
        return x.flatten(1)[:, :3] + torch.randn(len(x), 3)

    def predict(self, x):
        return self.logits(x).argmax(1)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_wrapper_offers_what_the_inner_model_offers(x, wrap):
    net = wrap(convnet())
    torch.testing.assert_close(net.logits(x).log_softmax(1), convnet()(x).log_softmax(1))
    torch.testing.assert_close(net.scores(x), convnet()(x).softmax(1))
    assert torch.equal(net.predict(x), convnet()(x).argmax(1))
    assert not net.scores(x).requires_grad
    assert (net.bounds, net.num_classes) == ((0, 1), 3)

    tree = DecisionTreeClassifier(random_state=0).fit(x.flatten(1), torch.arange(8) % 3)
    wrapped = wrap(tree)
    assert not hasattr(wrapped, "logits")
    assert (wrapped.scores(x).numpy() == tree.predict_proba(x.flatten(1))).all()
    assert wrapped.predict(x).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    with pytest.raises(TypeError, match=", a ScoreClassifier"):
        attacks.FGSM(eps=0.1)(wrapped, x)

    far = wrap(TorchClassifier(convnet(), bounds=(-2, 3)))
    assert far.bounds == (-2, 3)
    with pytest.raises(ValueError, match="`num_classes` must be given to be known"):
        far.num_classes  # noqa: B018


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: Expectation(model, draws=2, combine="vote"),
        lambda model: StraightThrough(model, lambda x: x),
        QueryCounter,
    ],
)
def test_labels_alone_are_enough(x, wrap):
    labels = wrap(CallableClassifier(lambda rows: [1] * len(rows), 3, output="labels"))
    assert labels.predict(x).tolist() == [1] * 8
    assert not hasattr(labels, "logits")


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_the_inner_model_is_held_and_put_back(x, wrap):
    net = convnet().train()
    model = wrap(net)
    with evaluating(model):
        assert not net.training
        model.logits(x)
        assert net.calls > 0
    assert net.training
    assert net.calls == 0
    assert "TorchClassifier(ConvNet" in repr(model)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_what_is_no_model_is_refused(wrap):
    with pytest.raises(TypeError, match="got int"):
        wrap(3)


def test_the_expectation_is_that_of_as_many_draws(x, noisy):
    model = Expectation(noisy, draws=5)
    with torch.random.fork_rng(), evaluating(noisy):
        torch.manual_seed(3)
        p = torch.stack([noisy.scores(x) for _ in range(5)]).mean(0)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        torch.testing.assert_close(model.scores(x), p)
        torch.testing.assert_close(model.logits(x), p.log())
        assert torch.equal(model.predict(x), p.argmax(1))


@pytest.mark.parametrize("combine", ["logits", "probabilities", "vote"])
def test_what_is_averaged_is_that_of_the_ensemble(x, noisy, combine):
    model = Expectation(noisy, draws=4, combine=combine)
    with evaluating(noisy):
        expected = Ensemble([noisy] * 4, combine=combine).scores(x)
    torch.testing.assert_close(model.scores(x), expected)
    assert hasattr(model, "logits") is (combine != "vote")


@pytest.mark.parametrize("kind", ["net", "own"])
def test_the_expectation_repeats_its_draws_alone_and_goes_on_within_a_hold(x, noisy, kind):
    model = Expectation(noisy if kind == "net" else Noise(), draws=3)
    before = torch.get_rng_state()
    first = model.logits(x)
    assert torch.equal(model.logits(x), first)
    assert torch.equal(torch.get_rng_state(), before)
    with evaluating(model):
        assert torch.equal(model.logits(x), first)
        assert not torch.equal(model.logits(x), first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:The model returned other logits")
@pytest.mark.filterwarnings("ignore:TorchClassifier.ConvNet.*batch norm")
def test_the_expectation_of_a_random_net_is_attacked(x, noisy):
    model = Expectation(noisy, draws=16)
    y = model.predict(x)
    before = torch.get_rng_state()
    result = attacks.PGD(eps=0.3, steps=8).run(model, x, y)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(attacks.PGD(eps=0.3, steps=8)(model, x, y), result.x_adv)
    fooled = Expectation(noisy, draws=200).predict(result.x_adv) != y
    assert fooled.float().mean() > 0.7
    assert noisy.module.training


def test_arguments_of_the_expectation(noisy):
    with pytest.raises(ValueError, match="`draws` must be at least 1, got 0"):
        Expectation(noisy, draws=0)
    with pytest.raises(ValueError, match="`combine` must be one of"):
        Expectation(noisy, combine="mean")
    with pytest.raises(TypeError, match="Use combine='vote'"):
        Expectation(CallableClassifier(len, 3, output="labels"))


def test_straight_through_is_the_step_forward_and_the_identity_backward(x):
    model = StraightThrough(convnet(), coarse)
    leaf = x.clone().requires_grad_()
    logits = model.logits(leaf)
    inner = coarse(x).requires_grad_()
    expected = convnet()(inner)
    assert torch.equal(logits, expected)
    (grad,) = torch.autograd.grad(logits.square().sum(), leaf)
    assert torch.equal(grad, torch.autograd.grad(expected.square().sum(), inner)[0])
    for ask in ("scores", "predict"):
        found = getattr(TorchClassifier(convnet()), ask)(coarse(x))
        assert torch.equal(getattr(model, ask)(x), found)


def test_the_step_forward_is_exact_to_the_bit():
    """`x + (step(x) - x).detach()` would lose the last bits here."""
    step = lambda x: x * 0 + 0.1  # noqa: E731
    model = StraightThrough(nn.Identity(), step, bounds=(-1e8, 1e8))
    x = torch.tensor([[1e7, -3e7]], requires_grad=True)
    assert torch.equal(model.logits(x), torch.full((1, 2), 0.1))


def test_another_function_backward():
    x = torch.rand(4, 3, dtype=torch.float64, requires_grad=True)
    model = StraightThrough(Linear3(), lambda x: x.round(), backward=lambda x: x**3)
    logits = model.logits(x)
    assert torch.equal(logits, Linear3()(x.round()))
    (grad,) = torch.autograd.grad(logits[:, 0].sum(), x)
    torch.testing.assert_close(grad, 3 * x.detach() ** 2 * Linear3().weight[0].detach())


def test_a_step_that_changes_the_shape_needs_a_function_backward():
    def doubled(x):
        return torch.cat([x, x], 1)[:, :3].round()

    x = torch.rand(2, 2, dtype=torch.float64)
    assert StraightThrough(Linear3(), doubled).predict(x).shape == (2,)
    with pytest.raises(ValueError, match=r"`backward` must return .* \(2, 3\), got \(2, 2\)"):
        StraightThrough(Linear3(), doubled).logits(x.requires_grad_())
    model = StraightThrough(Linear3(), doubled, backward=lambda x: torch.cat([x, x], 1)[:, :3])
    (grad,) = torch.autograd.grad(model.logits(x)[:, 1].sum(), x)
    w = Linear3.W[1]
    torch.testing.assert_close(grad[0], torch.tensor([w[0] + w[2], w[1]], dtype=torch.float64))


def test_steps_outside_torch_that_write_to_their_input_or_keep_it(x):
    before = x.clone()
    kept = []

    def step(x):
        assert not torch.is_grad_enabled()
        x.clamp_(0.2, 0.8)
        kept.append(x)
        return x

    model = StraightThrough(convnet(), step)
    leaf = x.requires_grad_()
    assert torch.equal(model.logits(leaf), convnet()(before.clamp(0.2, 0.8)))
    assert torch.equal(x, before)
    assert not kept[0].requires_grad
    with pytest.raises(TypeError, match=r"`step` must return a torch.Tensor, got ndarray"):
        StraightThrough(convnet(), lambda x: x.numpy()).predict(x)


def test_a_random_step_leaves_the_random_state_alone(x):
    model = StraightThrough(convnet(), lambda x: x + 0.1 * torch.randn_like(x))
    before = torch.get_rng_state()
    first = model.logits(x)
    assert torch.equal(model.logits(x), first)
    with evaluating(model):
        model.logits(x)
        assert not torch.equal(model.logits(x), first)
    assert torch.equal(torch.get_rng_state(), before)
    mean = Expectation(model, draws=3)
    assert not torch.equal(mean.logits(x), first.log_softmax(1))
    assert torch.equal(mean.logits(x), mean.logits(x))


def test_a_step_that_is_a_module_runs_in_evaluation(x):
    step = nn.Dropout(0.9).train()
    assert torch.equal(StraightThrough(convnet(), step).logits(x), convnet()(x))
    assert step.training


def test_attacks_go_through_what_rounds(x):
    model = StraightThrough(convnet(), coarse)
    y = model.predict(x)

    class Rounded(nn.Module):
        def forward(self, x):
            return convnet()(coarse(x))

    with pytest.warns(UserWarning, match="gradient of zero"):
        assert attacks.PGD(eps=0.2, steps=8).run(Rounded(), x, y).success.float().mean() < 0.5
    result = attacks.PGD(eps=0.2, steps=8).run(model, x, y)
    assert result.success.float().mean() > 0.8
    assert torch.equal(result.success, Rounded()(result.x_adv).argmax(1) != y)


def test_the_bounds_are_those_of_what_comes_before_the_step(x):
    model = StraightThrough(convnet(), lambda x: x / 255, bounds=(0, 255))
    assert model.bounds == (0, 255)
    torch.testing.assert_close(model.logits(255 * x), convnet()(x))
    result = attacks.FGSM(eps=25.5).run(model, (255 * x).requires_grad_())
    assert result.success.any()
    for wrong, said in (((2, "no"), "`step` must be callable"), ((len, 2), "`backward` must be")):
        with pytest.raises(TypeError, match=said):
            StraightThrough(convnet(), *wrong)
    with pytest.raises(ValueError, match="`bounds` must be two finite numbers"):
        StraightThrough(convnet(), len, bounds=(1, 0))


@pytest.mark.parametrize(
    "attack",
    [
        attacks.FGSM(eps=0.1),
        attacks.PGD(eps=0.05, steps=6, restarts=2),
        attacks.PGD(eps=0.05, steps=4, stop="never"),
        attacks.FAB(steps=5),
        attacks.DeepFool(),
        attacks.CarliniWagnerL2(search_steps=2, steps=5),
    ],
    ids=repr,
)
@pytest.mark.parametrize("labels", [False, True])
def test_the_counter_agrees_with_the_result(x, attack, labels):
    model = QueryCounter(convnet())
    y = convnet()(x).argmax(1) if labels else None
    result = attack.run(model, x, y)
    assert model.forward == result.queries.forward.sum()
    assert model.backward == result.queries.backward.sum() > 0
    model.reset()
    assert (model.forward, model.backward) == (0, 0)


def test_every_question_counts(x):
    model = QueryCounter(convnet())
    model.predict(x)
    model.scores(x[:3])
    logits = model.logits(x[:2].requires_grad_())
    assert (model.forward, model.backward) == (13, 0)
    logits.sum().backward(retain_graph=True)
    logits[:1].sum().backward()
    assert model.backward == 4


def test_a_budget_stops_before_anything_is_sent(x):
    net = convnet().eval()
    model = QueryCounter(net, max_queries=20)
    with evaluating(model):
        model.predict(x)
        model.logits(x)
        assert (model.max_queries, model.queries_left, model.forward) == (20, 4, 16)
        for ask in (model.predict, model.scores, model.logits):
            with pytest.raises(
                QueryBudgetExceeded, match="8 more queries, got 4 of 20 left"
            ) as caught:
                ask(x)
        assert (caught.value.max_queries, caught.value.spent, caught.value.requested) == (20, 16, 8)
        assert net.calls == 2
        model.predict(x[:4])
        assert model.queries_left == 0
    model.reset()
    assert model.queries_left == 20
    assert QueryCounter(net).queries_left is QueryCounter(net).max_queries is None
    with pytest.raises(TypeError, match="`max_queries` must be an int"):
        QueryCounter(net, max_queries=math.inf)


def test_wrappers_go_around_wrappers(x):
    counted = QueryCounter(convnet())
    model = Expectation(StraightThrough(counted, coarse), draws=3)
    torch.testing.assert_close(model.scores(x), convnet()(coarse(x)).softmax(1))
    assert counted.forward == 24
