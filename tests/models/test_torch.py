"""TorchClassifier: one face for every module, and no trace on it."""

import pytest
import torch
from torch import nn

import advkit
from advkit import Normalize, TorchClassifier, as_classifier
from advkit.models import evaluating
from tests.toys import answers, convnet, images


@pytest.fixture
def net():
    return convnet()


@pytest.fixture
def x():
    return images()


def test_it_answers_like_the_module(net, x):
    model = TorchClassifier(net)
    z = net(x)
    torch.testing.assert_close(model.logits(x), z)
    assert torch.equal(model.predict(x), z.argmax(1))
    torch.testing.assert_close(model.scores(x), z.softmax(1))
    assert not model.scores(x).requires_grad
    assert model.logits(x).requires_grad
    assert model.bounds == (0, 1)
    assert model.bounds.upper == 1


def test_the_number_of_classes_is_given_or_learnt(net, x):
    model = TorchClassifier(net)
    with pytest.raises(ValueError, match="`num_classes` must be given to be known"):
        model.num_classes  # noqa: B018
    model.predict(x)
    assert model.num_classes == 3
    assert TorchClassifier(net, num_classes=3).num_classes == 3
    with pytest.raises(ValueError, match="`num_classes` must be 3, .*, got 5"):
        TorchClassifier(net, num_classes=5).predict(x)


def test_a_single_logit_decides_by_its_sign():
    model = TorchClassifier(nn.Identity(), bounds=(-1, 1))
    z = torch.tensor([[-0.5], [0.25]])
    assert model.predict(z).tolist() == [0, 1]
    torch.testing.assert_close(model.scores(z)[:, 1], z[:, 0].sigmoid())
    assert model.num_classes == 2


def test_probabilities_become_their_logarithms(net, x):
    p = net(x).softmax(1)
    model = TorchClassifier(nn.Sequential(net, nn.Softmax(1)).eval(), output="probabilities")
    torch.testing.assert_close(model.scores(x), p)
    single = TorchClassifier(nn.Sigmoid(), bounds=(-9, 9), output="probabilities")
    torch.testing.assert_close(
        single.scores(torch.tensor([[0.0], [2.0]]))[:, 1], torch.tensor([0.5, 0.8808]), atol=1e-4,
        rtol=0,
    )  # fmt: skip


def test_it_runs_in_evaluation_mode_and_puts_every_mode_back(net, x):
    expected = net(x)
    net.train()
    net.norm.eval()
    modes = [m.training for m in net.modules()]
    model = TorchClassifier(net)
    torch.testing.assert_close(model.logits(x), expected)
    assert [m.training for m in net.modules()] == modes
    assert net.calls == 1


def test_keep_runs_in_the_mode_that_the_module_has(net, x):
    kept = TorchClassifier(net.train(), mode="keep")
    with evaluating(kept):
        assert not torch.equal(kept.logits(x), kept.logits(x))  # dropout draws anew
    assert torch.equal(kept.logits(x), kept.logits(x))  # each call alone starts from one state


def test_preprocessing_runs_first_and_is_held_too(x):
    class Jitter(nn.Module):
        def forward(self, x):
            return x + 1 if self.training else x

    jitter = Jitter().train()
    model = TorchClassifier(convnet(), preprocess=jitter)
    torch.testing.assert_close(model.logits(x), convnet()(x))
    assert jitter.training


def test_a_buffer_that_is_replaced_comes_back():
    class Replaces(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("last", torch.zeros(1))

        def forward(self, x):
            self.last = x.sum(0)
            return x

    module = Replaces()
    before = module.last
    TorchClassifier(module).predict(torch.rand(2, 3))
    assert module.last is before
    assert module.last.tolist() == [0.0]


@pytest.mark.parametrize(
    ("out", "said"),
    [
        (lambda x: x.flatten(1)[:-1], "got shape"),
        (lambda x: x, r"logits of shape \(8, classes\) or \(8,\) for 8 samples, got shape"),
        (lambda x: x.sum(), r"got shape \(\)"),
    ],
)
def test_outputs_that_are_no_logits(x, out, said):
    class Odd(nn.Module):
        def forward(self, x):
            return out(x)

    with pytest.raises(ValueError, match=said):
        TorchClassifier(Odd()).predict(x)


@pytest.mark.parametrize("out", [None, {"scores": 1}, [], "logits"])
def test_outputs_that_hold_none(x, out):
    class Odd(nn.Module):
        def forward(self, x):
            return out

    with pytest.raises(TypeError, match="`module` must return logits"):
        TorchClassifier(Odd()).predict(x)


def test_nan_logits_have_no_label(x):
    class Broken(nn.Module):
        def forward(self, x):
            z = x.flatten(1)[:, :3].clone()
            z[4, 1] = torch.nan
            return z

    for ask in (TorchClassifier(Broken()).predict, TorchClassifier(Broken()).scores):
        with pytest.raises(ValueError, match=r"finite logits, got NaN or infinity \(sample 4\)"):
            ask(x)


def test_a_list_of_outputs_and_a_module_that_fails_without_parameters(net, x):
    class Lists(nn.Module):
        def forward(self, x):
            return [net(x), x]

    class Fails(nn.Module):
        def forward(self, x):
            return x @ x

    assert torch.equal(TorchClassifier(Lists()).predict(x), net(x).argmax(1))
    with pytest.raises(RuntimeError, match="size|shape"):
        TorchClassifier(Fails()).predict(torch.rand(2, 3))


def test_a_score_classifier_is_called_one(x):
    class Scores:
        bounds, num_classes = (0.0, 1.0), 2

        def predict(self, x):
            return torch.zeros(len(x)).long()

        def scores(self, x):
            return torch.zeros(len(x), 2)

    with pytest.raises(TypeError, match="Scores, a ScoreClassifier"):
        advkit.attacks.FGSM(eps=0.1)(Scores(), x)


def test_errors_of_the_module_pass_through(net):
    with pytest.raises(RuntimeError, match="size|shape|channels"):
        TorchClassifier(net).predict(torch.rand(2, 3, 6, 6))


@pytest.mark.parametrize(
    "bounds", [(1, 0), (0, 0), (0, float("inf")), (float("nan"), 1), (0, 1, 2)]
)
def test_bounds_are_two_ordered_numbers(net, bounds):
    with pytest.raises(ValueError, match="`bounds` must be two finite numbers"):
        TorchClassifier(net, bounds)


def test_bad_arguments(net):
    with pytest.raises(TypeError, match=r"`module` must be a torch.nn.Module, got str"):
        TorchClassifier("resnet")
    with pytest.raises(ValueError, match="`num_classes` must be at least 2"):
        TorchClassifier(net, num_classes=1)
    with pytest.raises(ValueError, match="`mode` must be one of"):
        TorchClassifier(net, mode="train")
    with pytest.raises(ValueError, match="`output` must be one of"):
        TorchClassifier(net, output="labels")


def test_normalize_is_per_channel():
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    found = Normalize((0.1, 0.2, 0.3), (1.0, 2.0, 4.0))(x)
    for c, (mean, std) in enumerate(((0.1, 1.0), (0.2, 2.0), (0.3, 4.0))):
        torch.testing.assert_close(found[:, c], (x[:, c] - mean) / std)
    torch.testing.assert_close(
        Normalize((0.5,), (2.0,))(x[:, :2, 0, 0]), (x[:, :2, 0, 0] - 0.5) / 2
    )
    with pytest.raises(ValueError, match="`x` must have 2 channels, .*, got 3"):
        Normalize((0, 0), (1, 1))(x)
    with pytest.raises(ValueError, match="`std` must be positive"):
        Normalize((0,), (0,))
    with pytest.raises(ValueError, match="the same number of values, got 1 and 2"):
        Normalize((0,), (1, 1))


def test_as_classifier_wraps_modules_and_passes_classifiers(net):
    wrapped = as_classifier(net)
    assert isinstance(wrapped, TorchClassifier)
    assert as_classifier(wrapped) is wrapped
    assert repr(wrapped) == "TorchClassifier(ConvNet, bounds=(0, 1))"
    with pytest.raises(TypeError, match="got int"):
        as_classifier(3)


def test_public_names_exist():
    for name in advkit.__all__:
        assert hasattr(advkit, name)


def test_modules_in_two_wrappers_are_held_once(net, x):
    net.train()
    first, second = TorchClassifier(net), TorchClassifier(net)
    with evaluating(first):
        assert not net.training
        second.predict(x)
        assert not net.training
        assert net.calls > 0
    assert net.training
    assert net.calls == 0
    assert torch.equal(answers(net, x), first.predict(x))


def test_buffers_that_appear_grow_or_hold_nan_come_back():
    class Wild(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("empty", None)
            self.register_buffer("grows", torch.zeros(2))
            self.register_buffer("nan", torch.full((2,), torch.nan))

        def forward(self, x):
            self.empty = x.sum(0)
            self.register_buffer("fresh", x)
            self.grows.resize_(3)
            return x

    module = Wild()
    version = module.nan._version
    for _ in range(2):
        TorchClassifier(module).predict(torch.rand(2, 3))
        assert module.empty is None
        assert list(dict(module.named_buffers())) == ["grows", "nan"]
        assert module.grows.tolist() == [0.0, 0.0]
        assert module.nan._version == version


def test_statistics_that_come_back_leave_an_earlier_graph_usable(x):
    module = convnet().train()
    module.drop.eval()
    wanted = torch.autograd.grad(module(x).sum(), module.conv.weight)
    out = module(x).sum()
    TorchClassifier(module, mode="keep").predict(x)  # writes to the statistics of batch norm
    assert all(map(torch.equal, torch.autograd.grad(out, module.conv.weight), wanted))


def test_a_graph_that_saved_a_buffer_is_refused_after_writing_to_it(x):
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(()))

        def forward(self, x):
            return x.flatten(1) * self.scale.mul_(2)

    module, leaf = Counts(), x.clone().requires_grad_()
    logits = TorchClassifier(module, mode="keep").logits(leaf)
    assert module.scale == 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(logits.sum(), leaf)  # would be multiplied by 1 instead of 2


def test_an_evaluation_wrapper_evaluates_inside_a_keeping_one(x):
    module = convnet().train()
    with evaluating(TorchClassifier(module, mode="keep")):
        torch.testing.assert_close(TorchClassifier(module).logits(x), convnet()(x))
        assert module.training


def test_a_module_that_is_a_classifier_is_taken_as_one(net):
    class Own(nn.Module):
        bounds, num_classes = (0.0, 255.0), 3

        def predict(self, x):
            return net(x).argmax(1)

    own = Own()
    assert as_classifier(own) is own

    class NoBounds:
        def predict(self, x):
            return x

    with pytest.raises(TypeError, match="got NoBounds"):
        as_classifier(NoBounds())


def test_normalize_takes_tensors_and_lists():
    x = torch.rand(2, 2, 3)
    expected = Normalize((0.1, 0.2), (1.0, 2.0))(x)
    assert torch.equal(Normalize([0.1, 0.2], [1.0, 2.0])(x), expected)
    assert torch.equal(Normalize(torch.tensor([0.1, 0.2]), torch.tensor([1.0, 2.0]))(x), expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_compiled_modules_are_taken_too(net, x):
    traced = torch.jit.trace(net, x)
    y = answers(net, x)  # net and its trace share their buffers
    before = {name: b.clone() for name, b in traced.named_buffers()}
    model = TorchClassifier(traced)
    assert torch.equal(model.predict(x), y)
    assert advkit.attacks.FGSM(eps=0.1).run(model, x).success.any()
    assert all(torch.equal(b, before[name]) for name, b in traced.named_buffers())


def test_a_module_that_writes_to_its_input_hurts_nobody(net, x):
    class Inplace(nn.Module):
        def forward(self, x):
            return net(x.mul_(0.5))

    y = answers(net, 0.5 * x)
    before = x.clone()
    assert torch.equal(TorchClassifier(Inplace()).predict(x), y)
    for attack in (advkit.attacks.FGSM(eps=0.1), advkit.attacks.PGD(eps=0.1, steps=3)):
        result = attack.run(Inplace(), x, y)
        assert torch.equal(x, before)
        torch.testing.assert_close(result.distance, (result.x_adv - x).flatten(1).abs().amax(1))
        assert (result.distance <= 0.1 + 1e-6).all()


def test_a_single_probability_is_noticed():
    sigmoid = nn.Sequential(nn.Linear(2, 1), nn.Sigmoid())
    x = torch.rand(32, 2)
    with pytest.warns(UserWarning, match="seems to return probabilities"):
        TorchClassifier(sigmoid).predict(x)
    TorchClassifier(sigmoid, output="probabilities").predict(x)
    TorchClassifier(sigmoid).predict(x[:31])


def test_arguments_of_the_wrong_kind(net):
    with pytest.raises(TypeError, match="`preprocess` must be callable, got tuple"):
        TorchClassifier(net, preprocess=((0.5,), (0.2,)))
    with pytest.raises(TypeError, match="`bounds` must be a pair of numbers, got int"):
        TorchClassifier(net, bounds=1)
    with pytest.raises(
        TypeError, match="`mean` and `std` must be sequences .*, got float and float"
    ):
        Normalize(0.5, 0.25)
