"""What every attack must do, whatever its algorithm."""

import dataclasses

import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import nn

from advkit import (
    InconclusiveWarning,
    Normalize,
    QueryBudgetExceeded,
    QueryCounter,
    SklearnClassifier,
    TorchClassifier,
)
from advkit.attacks import (
    FGM,
    FGSM,
    AutoAttack,
    DeepFool,
    MinimumNorm,
    RandomNoise,
    SparsePGD,
    SparseRS,
    Square,
    Suite,
    Transfer,
)
from advkit.attacks.adaptive import Adaptive
from advkit.core.attack_options import measured_norm
from advkit.core.norms import lp_norm
from tests.attack_cases import (
    ATTACKS,
    BLACK_BOX,
    BUDGET,
    GRADIENT,
    GRADIENT_BUDGET,
    MINIMUM_NORM,
    changed,
    scaled,
    used_by,
    with_eps,
)
from tests.toys import Halfspace, answers, convnet, images

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ball of .* holds every input"),
]
every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=repr)
every_gradient_attack = pytest.mark.parametrize("attack", GRADIENT, ids=repr)
every_black_box_attack = pytest.mark.parametrize("attack", BLACK_BOX, ids=repr)
every_budget_attack = pytest.mark.parametrize("attack", BUDGET, ids=repr)
every_minimum_norm_attack = pytest.mark.parametrize("attack", MINIMUM_NORM, ids=repr)

SLACK = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture
def net():
    return convnet()


@pytest.fixture
def x():
    return images()


@pytest.fixture
def y(net, x):
    return answers(net, x)


def keeps_its_word(attack, model, x, y, result):
    """The result describes itself: shape, dtype, bounds, success, distance, budget or failure."""
    lower, upper = model.bounds
    slack = SLACK[x.dtype] * (upper - lower)
    assert result.x_adv.shape == x.shape
    assert result.x_adv.dtype == x.dtype
    assert not result.x_adv.requires_grad
    assert result.x_adv.isfinite().all()
    assert (result.x_adv >= lower).all()
    assert (result.x_adv <= upper).all()
    assert torch.equal(result.success, model.predict(result.x_adv) != y)
    wanted = model.predict(result.x_adv).where(result.success, -1)
    assert torch.equal(result.prediction, wanted)
    distance = lp_norm((result.x_adv - x).double(), measured_norm(attack))
    torch.testing.assert_close(result.distance.double(), distance, rtol=1e-2, atol=slack)
    if attack in MINIMUM_NORM:
        assert torch.equal(result.x_adv[~result.success], x[~result.success])
        return
    size = x[0].numel() if attack.norm == "l1" else x[0].numel() ** 0.5
    assert (distance <= attack.eps + (1 if attack.norm == "linf" else size) * slack).all()


def with_(attack, **settings):
    """The same attack with those of `settings` that it has, or the attack that it uses."""
    return changed(
        attack,
        lambda used: dataclasses.replace(
            used, **{k: v for k, v in settings.items() if hasattr(used, k)}
        ),
    )


@every_attack
class TestResult:
    def test_describes_itself(self, attack, net, x, y):
        result = attack.run(net, x, y)
        keeps_its_word(attack, TorchClassifier(net), x, y, result)
        assert result.norm == measured_norm(attack)
        assert torch.equal(attack(net, x, y), result.x_adv)

    def test_the_attacks_work_at_all(self, attack, net, x, y):
        assert attack.run(net, x, y).success.float().mean() > 0.5

    def test_bounds_hold_when_the_input_already_touches_them(self, attack, net, x):
        if getattr(attack, "schedule", "") == "published":
            pytest.skip("features at their bounds stay there, as in the published code")
        corners = (x > 0.5).to(x.dtype)
        x_adv = attack(net, corners)
        assert (x_adv >= 0).all()
        assert (x_adv <= 1).all()
        assert (x_adv != corners).any()

    def test_wrong_inputs_are_left_alone_where_the_first_success_stops(self, attack, net, x, y):
        attack = with_(attack, stop="first")
        wrong = (y + 1) % 3
        result = attack.run(net, x, wrong)
        assert torch.equal(result.x_adv, x)
        assert result.success.all()
        assert (result.distance == 0).all()
        assert (result.queries.backward <= 1).all()

    def test_counts_are_what_the_module_saw(self, attack, net, x, y):
        seen = []
        net.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
        queries = attack.run(net, x, y).queries
        assert int(queries.forward.sum()) == sum(seen)
        assert queries.forward.dtype == torch.int64

    def test_targets_are_reached_or_missed(self, attack, net, x, y):
        target = (y + 1) % 3
        if refusal := refuses_targets(attack):
            with pytest.raises(ValueError, match=refusal):
                attack(net, x, y, target=target)
            return
        result = stronger(attack).run(net, x, y, target=target)
        predicted = answers(net, result.x_adv)
        assert torch.equal(result.success, predicted == target)
        assert torch.equal(result.prediction, predicted.where(result.success, -1))
        assert result.success.any()
        assert torch.equal(attack(net, x, target=target), attack(net, x, y, target=target))

    def test_without_labels_it_takes_the_models_own(self, attack, net, x, y):
        if isinstance(attack, Square | SparseRS) and attack.stop == "never":
            pytest.skip("to ask for the labels takes up one of its queries")
        assert torch.equal(attack(net, x), attack(net, x, y))


def refuses_targets(attack):
    """What an attack without a targeted form says, empty for the others."""
    for refuses in (DeepFool, Adaptive, AutoAttack):
        if isinstance(attack, refuses) or isinstance(getattr(attack, "attack", None), refuses):
            return f"`target` must be None for {refuses.__name__}, which has no targeted form"
    return ""


def stronger(attack):
    return attack if getattr(attack, "eps", None) is None else with_eps(attack, 3 * attack.eps)


@pytest.mark.parametrize("attack", GRADIENT_BUDGET, ids=repr)
class TestGradientBudget:
    def test_the_last_iterate_counts(self, attack, x):
        """One step of a linear model reaches the boundary only at its end."""
        if attack.norm == "l0":
            pytest.skip("the number of features that cross a plane is not in proportion to it")
        if hasattr(used_by(attack), "step_size"):
            attack = with_(attack, steps=1, step_size=attack.eps)
        attack = with_(attack, random_start=False, restarts=1)
        flat = 0 * x.double()
        plane = Halfspace(torch.linspace(-1, 1, 36, dtype=torch.float64), b=1.0)
        plane.b = 0.97 * attack.eps / float(plane.distance(flat, attack.norm)[0])
        model = TorchClassifier(plane, bounds=(-10, 10))
        assert torch.allclose(
            plane.distance(flat, attack.norm), torch.tensor(0.97 * attack.eps).double()
        )
        assert attack.run(model, flat).success.all()


@every_budget_attack
class TestBudget:
    def test_eps_may_differ_from_sample_to_sample(self, attack, net, x, y):
        eps = torch.linspace(0.0, 1.0, len(x)) * attack.eps
        whole = with_eps(attack, eps).run(net, x, y)
        assert (whole.distance <= eps + 1e-5).all()
        for i in (0, 3, 7):
            one = with_eps(attack, float(eps[i])).run(net, x[i : i + 1], y[i : i + 1])
            torch.testing.assert_close(whole.x_adv[i : i + 1], one.x_adv)


@every_minimum_norm_attack
class TestMinimumNorm:
    @pytest.mark.filterwarnings("ignore:the search could not begin")
    def test_a_failure_gives_the_clean_input(self, attack, net, x, y):
        """A class whose lead no input can make up for."""

        class Sure(nn.Module):
            def forward(self, x):
                return net(x) + torch.tensor([1e3, 0, 0])

        result = attack.run(Sure(), x, torch.zeros_like(y))
        assert not result.success.any()
        assert torch.equal(result.x_adv, x)
        assert (result.distance == 0).all()

    def test_the_rest_of_the_batch_costs_nothing_once_it_is_wrong(self, attack, net, x, y):
        labels = torch.cat([y[:1], (y[1:] + 1) % 3])
        alone, queries = attack.run(net, x[:1], y[:1]), attack.run(net, x, labels).queries
        assert (queries.forward[1:] <= 3).all()
        assert (queries.backward[1:] <= 1).all()
        assert queries.backward[0] == alone.queries.backward[0]

    def test_the_label_alone_decides_without_a_target(self, attack, net, x, y):
        """Any other class will do, also the one that was not gone for."""
        result = attack.run(net, x, y)
        assert torch.equal(result.success, answers(net, result.x_adv) != y)


@every_attack
class TestNoTrace:
    def test_inputs_are_untouched(self, attack, net, x, y):
        before = x.clone(), y.clone()
        attack(net, x, y)
        assert torch.equal(x, before[0])
        assert torch.equal(y, before[1])
        assert not x.requires_grad

    def test_inputs_that_require_grad_stay_leaves_without_grad(self, attack, net, x, y):
        x.requires_grad_()
        assert not attack(net, x, y).requires_grad
        assert x.grad is None

    @pytest.mark.parametrize("fails", [False, True])
    def test_the_module_is_what_it_was(self, attack, net, x, y, fails):
        net.train()
        net.norm.eval()
        net.head.bias.requires_grad_(False)
        net.conv.weight.grad = torch.ones_like(net.conv.weight)
        net.register_forward_hook(lambda module, args, out: None)
        before = _state(net)
        if fails:
            handle = net.head.register_forward_hook(_Bomb(after=2))
            with pytest.raises(ArithmeticError):
                _thrice(attack, net, x, y)
            handle.remove()
        else:
            attack(net, x, y)
        after = _state(net)
        assert before.keys() == after.keys()
        for name in before:
            assert _same(before[name], after[name]), name

    def test_the_global_random_state_is_untouched(self, attack, net, x, y):
        before = torch.get_rng_state()
        attack(net, x, y)
        assert torch.equal(torch.get_rng_state(), before)

    @pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
    def test_works_where_gradients_are_off(self, attack, net, x, y, context):
        expected = attack(net, x, y)
        with context():
            found = attack(net, x, y)
            fresh = attack(net, x.clone(), y.clone())
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(fresh, expected)
        assert not found.is_inference()

    def test_a_graph_that_is_still_wanted_survives(self, attack, net, x, y):
        loss = net(x).sum()
        attack(net, x, y)
        loss.backward()
        assert net.conv.weight.grad is not None


def _thrice(attack, net, x, y):
    for _ in range(3):
        attack(net, x, y)


class _Bomb:
    """A hook that raises once it was called often enough."""

    def __init__(self, after):
        self.left = after

    def __call__(self, *_):
        self.left -= 1
        if self.left < 0:
            raise ArithmeticError("on purpose")


def _state(net):
    state = {f"mode {name}": m.training for name, m in net.named_modules()}
    state |= {f"buffer {name}": b.clone() for name, b in net.named_buffers()}
    state |= {f"buffer id {name}": id(b) for name, b in net.named_buffers()}
    for name, p in net.named_parameters():
        state[f"parameter {name}"] = p.detach().clone()
        state[f"grad {name}"] = None if p.grad is None else p.grad.clone()
        state[f"requires_grad {name}"] = p.requires_grad
    for name, m in net.named_modules():
        state[f"hooks {name}"] = len(m._forward_hooks) + len(m._forward_pre_hooks)
    return state


def _same(a, b):
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@every_attack
class TestBatches:
    def test_a_sample_does_not_depend_on_its_batch(self, attack):
        net, x = convnet(dtype=torch.float64), images(6, torch.float64)
        y = answers(net, x)
        y[0] = (y[0] + 1) % 3
        whole = attack(net, x, y)
        alone = torch.cat([attack(net, x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
        torch.testing.assert_close(whole, alone)
        order = torch.tensor([4, 2, 0, 5, 1, 3])
        torch.testing.assert_close(attack(net, x[order], y[order]), whole[order])

    def test_the_same_call_gives_the_same_result(self, attack, net, x, y):
        assert torch.equal(attack(net, x, y), attack(net, x, y))

    def test_another_seed_gives_another_result(self, attack, net, x, y):
        used = used_by(attack)
        random = getattr(used, "random_start", getattr(used, "restarts", 2) > 1)
        if not hasattr(used, "seed") or not random:
            pytest.skip("draws no random numbers")
        if isinstance(used, MinimumNorm) and used.norm == "l0":
            pytest.skip("searches from the input find the fewest features of this net")
        if isinstance(used, MinimumNorm) and used.eps is not None:
            pytest.skip("the first searches, which are not random, succeed within this budget")
        found = [with_(attack, seed=seed, stop="never")(net, x, y) for seed in (0, 1)]
        assert not torch.equal(*found)

    def test_an_empty_batch_gives_an_empty_result(self, attack, net, x, y):
        result = attack.run(net, x[:0], y[:0])
        assert result.x_adv.shape == (0, 1, 6, 6)
        assert result.success.shape == result.distance.shape == (0,)
        assert attack.run(net, x[:0]).queries.forward.shape == (0,)


@every_attack
class TestInputs:
    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
    def test_any_float_dtype(self, attack, dtype):
        net, x = convnet(dtype=dtype), images(dtype=dtype)
        y = answers(net, x)
        result = attack.run(net, x, y)
        keeps_its_word(attack, TorchClassifier(net), x, y, result)
        assert result.success.all() if attack in MINIMUM_NORM else result.success.any()

    @pytest.mark.parametrize("shape", [(7,), (3, 4), (2, 3, 4), (2, 3, 2, 2)])
    def test_any_rank(self, attack, shape):
        w = torch.linspace(-1, 2, torch.Size(shape).numel(), dtype=torch.float64)
        x = torch.full((3, *shape), 0.5, dtype=torch.float64)
        plane = Halfspace(w, b=-0.5 * float(w.sum()) + 0.05)
        result = attack.run(plane, x)
        assert result.x_adv.shape == x.shape
        assert result.success.all() or isinstance(attack, RandomNoise)

    def test_channels_last_and_strided(self, attack, net, x, y):
        expected = attack(net, x, y)
        last = x.to(memory_format=torch.channels_last)
        torch.testing.assert_close(attack(net, last, y), expected)
        wide = torch.zeros(8, 1, 6, 12)
        wide[..., ::2] = x
        assert not wide[..., ::2].is_contiguous()
        torch.testing.assert_close(attack(net, wide[..., ::2], y), expected)

    @pytest.mark.parametrize("bounds", [(0, 255), (-1, 1), (-3.0, 5.0)])
    def test_other_bounds_give_the_same_attack_up_to_scale(self, attack, bounds):
        if isinstance(attack, Transfer):
            pytest.skip("its surrogate has other bounds")
        net, x = convnet(dtype=torch.float64), images(dtype=torch.float64)
        lower, upper = bounds
        width = upper - lower
        y = answers(net, x)
        wide = TorchClassifier(net, bounds, preprocess=lambda v: (v - lower) / width)
        expected = attack.run(net, x, y)
        found = scaled(attack, width).run(wide, x * width + lower, y)
        torch.testing.assert_close((found.x_adv - lower) / width, expected.x_adv)
        assert torch.equal(found.success, expected.success)

    def test_bounds_for_each_channel_come_from_preprocessing(self, attack, net, x, y):
        model = TorchClassifier(net, preprocess=Normalize((0.3,), (0.2,)))
        y = model.predict(x)
        keeps_its_word(attack, model, x, y, attack.run(model, x, y))

    def test_rounding_outside_the_bounds_is_forgiven(self, attack, net, x, y):
        x_adv = attack(net, (x > 0.5).float() * (1 + 1e-6) - 1e-7, y)
        assert (x_adv >= 0).all()
        assert (x_adv <= 1).all()

    def test_inputs_outside_the_bounds_are_refused(self, attack, net, x, y):
        with pytest.raises(ValueError, match=r"\[0, 1\].*got values in .*bounds.*preprocess"):
            attack(net, 4 * x - 2, y)

    @pytest.mark.parametrize("value", [torch.nan, torch.inf])
    def test_inputs_that_are_not_finite_are_refused(self, attack, net, x, y, value):
        x[3, 0, 2, 2] = value
        with pytest.raises(ValueError, match="finite.*sample 3"):
            attack(net, x, y)

    def test_integer_images_are_refused(self, attack, net, x, y):
        with pytest.raises(TypeError, match="floating dtype"):
            attack(net, (255 * x).to(torch.uint8), y)

    def test_a_vector_is_refused(self, attack, net):
        with pytest.raises(ValueError, match="rank 2"):
            attack(net, torch.zeros(5))


@every_attack
class TestLabels:
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.float32])
    def test_any_integer_dtype(self, attack, net, x, y, dtype):
        assert torch.equal(attack(net, x, y.to(dtype)), attack(net, x, y))

    def test_one_hot(self, attack, net, x, y):
        rows = nn.functional.one_hot(y, 3)
        assert torch.equal(attack(net, x, rows), attack(net, x, y))

    def test_out_of_range(self, attack, net, x, y):
        y[5] = 3
        with pytest.raises(ValueError, match="`y` must be below 3.*got 3.*sample 5"):
            attack(net, x, y)
        if isinstance(attack, Transfer) or refuses_targets(with_(attack, loss="ce")):
            return
        with pytest.raises(ValueError, match="`target` must be below 3"):
            with_(attack, loss="ce")(net, x, target=y)
        with pytest.raises(ValueError, match="`y` must be below 3.*got 3"):
            with_(attack, loss="ce")(net, x, y, target=torch.zeros_like(y))

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            (torch.tensor([0, 1]), r"shape \(8,\).*got \(2,\)"),
            (torch.full((8,), -1), "negative.*samples? 0"),
            (torch.full((8,), 0.5), "integers.*samples? 0"),
            (torch.ones(8, 3), "one-hot"),
        ],
    )
    def test_wrong_labels(self, attack, net, x, wrong, said):
        with pytest.raises(ValueError, match=said):
            attack(net, x, wrong)

    def test_a_list_is_refused(self, attack, net, x):
        with pytest.raises(TypeError, match=r"`y` must be a torch.Tensor, got list"):
            attack(net, x, [0] * 8)


class Wrapped(nn.Module):
    """Another way to return the logits of a net."""

    def __init__(self, net, form):
        super().__init__()
        self.net, self.form = net, form

    def forward(self, x):
        z = self.net(x)
        if self.form == "tuple":
            return z, x
        if self.form == "mapping":
            return {"logits": z, "hidden": x}
        out = type("Output", (), {})()
        out.logits = z
        return out


class Single(nn.Module):
    """One logit, of the second class."""

    def __init__(self, net, flat):
        super().__init__()
        self.net, self.flat = net, flat

    def forward(self, x):
        z = self.net(x)
        z = z[:, 1:] - z[:, :1]
        return z[:, 0] if self.flat else z


@every_attack
class TestModels:
    @pytest.mark.parametrize("form", ["tuple", "mapping", "attribute"])
    def test_outputs_that_hold_logits(self, attack, net, x, y, form):
        assert torch.equal(attack(Wrapped(net, form).eval(), x, y), attack(net, x, y))

    @pytest.mark.parametrize("flat", [False, True])
    def test_a_single_logit(self, attack, x, flat):
        net = convnet(classes=2)
        y = answers(net, x)
        torch.testing.assert_close(attack(Single(net, flat).eval(), x, y), attack(net, x, y))

    def test_more_than_ten_classes(self, attack, x):
        if isinstance(attack, Transfer):
            pytest.skip("its surrogate has three")
        net = convnet(classes=12)
        assert attack.run(net, x).success.any()

    def test_a_model_without_parameters(self, attack, x):
        class Bare(nn.Module):
            def forward(self, x):
                x = x.flatten(1)
                return torch.stack([x[:, :12].sum(1), x[:, 12:24].sum(1), x[:, 24:].sum(1)], 1)

        result = attack.run(Bare(), x)
        assert result.success.any() or isinstance(attack, Transfer)

    def test_a_classifier_of_five_lines(self, attack, net, x, y):
        class Mine:
            bounds, num_classes = (0.0, 1.0), 3

            def logits(self, x):
                return net(x)

            def predict(self, x):
                return net(x).argmax(1)

        torch.testing.assert_close(attack(Mine(), x, y), attack(net, x, y))

    def test_a_model_that_computes_in_another_precision(self, attack, net, x, y):
        class Upcast(nn.Module):
            def forward(self, x):
                return twin(x.double())

        class Downcast(nn.Module):
            def forward(self, x):
                return net(x.float())

        twin = convnet(dtype=torch.float64)
        keeps_its_word(attack, TorchClassifier(Upcast()), x, y, attack.run(Upcast(), x, y))
        double = x.double()
        result = attack.run(Downcast(), double, y)
        keeps_its_word(attack, TorchClassifier(Downcast()), double, y, result)

    def test_data_parallel(self, attack, net, x, y):
        torch.testing.assert_close(attack(nn.DataParallel(net), x, y), attack(net, x, y))

    def test_frozen_parameters(self, attack, net, x, y):
        expected = attack(net, x, y)
        assert torch.equal(attack(net.requires_grad_(False), x, y), expected)

    def test_logits_of_large_scale_saturate_nothing(self, attack, net, x, y):
        class Scaled(nn.Module):
            def forward(self, x):
                return 200 * net(x)

        plain, saturated = attack.run(net, x, y), attack.run(Scaled(), x, y)
        assert not saturated.no_gradient.any()
        assert saturated.success.sum() >= plain.success.sum() - 1

    @pytest.mark.parametrize("scale", [1e-12, 1e-24])
    @pytest.mark.filterwarnings("ignore:.*met a gradient")
    def test_logits_of_small_scale_lead_to_nothing_that_is_not_finite(
        self, attack, net, x, y, scale
    ):
        class Scaled(nn.Module):
            def forward(self, v):
                assert v.isfinite().all()
                return scale * net(v)

        plain, small = attack.run(net, x, y), attack.run(Scaled(), x, y)
        assert small.x_adv.isfinite().all()
        assert small.distance.isfinite().all()
        if (
            scale == 1e-12 and getattr(attack, "schedule", "") != "published"
        ):  # its constant is given
            assert small.success.sum() >= plain.success.sum() - 1

    def test_probabilities_as_such_give_the_attack_on_logits(self, attack, net, x, y):
        model = TorchClassifier(nn.Sequential(net, nn.Softmax(1)).double(), output="probabilities")
        net = net.double()
        torch.testing.assert_close(attack(model, x.double(), y), attack(net, x.double(), y))

    def test_another_dtype_than_the_modules_is_refused(self, attack, net, x, y):
        with pytest.raises(TypeError, match=r"torch.float32 on cpu, got torch.float64 on cpu"):
            attack(net, x.double(), y)

    @pytest.mark.filterwarnings("ignore:.*met a gradient")
    def test_a_random_model_is_noticed(self, attack, net, x, y):
        class Noisy(nn.Module):
            def forward(self, x):
                return net(x) + 20 * torch.randn(len(x), 3)

        if (isinstance(attack, FGSM) and attack.stop == "never") or isinstance(attack, Transfer):
            pytest.skip("asks about what it returns only once")
        torch.manual_seed(0)  # labels alone tell of it by chance
        with pytest.warns(UserWarning, match="[Ii]t is random"):
            attack(Noisy(), x, y)


def begins_at_random(attack):
    """Whether no look is at the clean input."""
    random = getattr(attack, "random_start", False) or isinstance(attack, RandomNoise)
    return isinstance(attack, Transfer) or (random and attack.stop == "never")


class Broken(nn.Module):
    """NaN logits for every input but the clean ones."""

    def __init__(self, net, x):
        super().__init__()
        self.net, self.clean = net, x

    def forward(self, x):
        here = torch.stack([(row == self.clean).flatten(1).all(1).any() for row in x])
        return self.net(x).where(here[:, None], torch.nan)


@every_attack
class TestNaN:
    @pytest.mark.filterwarnings("ignore:.*met a gradient")
    def test_nan_logits_are_never_a_success(self, attack, net, x, y):
        with pytest.warns(InconclusiveWarning, match="NaN or infinite logits for 8 of 8"):
            result = attack.run(Broken(net, x), x, y)
        assert not result.success.any()
        assert result.not_finite.all()
        assert result.x_adv.isfinite().all()

    @pytest.mark.filterwarnings("ignore:.*met a gradient")
    def test_nan_logits_with_gradients_lead_nowhere(self, attack, net, x, y):
        """The net is never shown NaN, and nothing that it answered with NaN is returned."""

        class Poisoned(nn.Module):
            def forward(self, v):
                assert v.isfinite().all()
                here = torch.stack([(row == x).flatten(1).all(1).any() for row in v])
                return net(v) + torch.where(here, 0, torch.nan)[:, None]

        with pytest.warns(InconclusiveWarning, match="NaN or infinite logits for 8 of 8"):
            result = attack.run(Poisoned(), x, y)
        assert not result.success.any()
        assert result.not_finite.all()
        assert result.x_adv.isfinite().all()

    @pytest.mark.filterwarnings("ignore:.*met a gradient")
    def test_nan_logits_at_the_first_look_are_an_error(self, attack, x, y):
        class Never(nn.Module):
            def forward(self, x):
                z = x.flatten(1)[:, :3].clone()
                return z.index_fill(0, torch.tensor([2]), torch.nan) if len(z) > 2 else z

        if begins_at_random(attack):
            with pytest.warns(InconclusiveWarning, match="NaN or infinite logits"):
                assert attack.run(Never(), x, torch.full_like(y, 2)).not_finite[2]
            return
        with pytest.raises(ValueError, match=r"finite logits, got NaN or infinity \(sample 2\)"):
            attack(Never(), x, torch.full_like(y, 2))


@every_gradient_attack
class TestGradients:
    def test_probabilities_are_noticed(self, attack, net, x, y):
        with pytest.warns(UserWarning, match="probabilities"):
            attack(nn.Sequential(net, nn.Softmax(1)).eval(), x, y)

    def test_a_model_without_gradients_is_refused(self, attack, net, x, y):
        class Detached(nn.Module):
            def forward(self, x):
                return net(x.detach())

        class Labels:
            bounds, num_classes = (0.0, 1.0), 3

            def predict(self, x):
                return y

        with pytest.raises(TypeError, match="can be differentiated"):
            attack(Detached(), x, y)
        with pytest.raises(TypeError, match=f"{type(attack).__name__}.*Labels(,| is) a Classifier"):
            attack(Labels(), x, y)
        with pytest.raises(TypeError, match=r"`model` must be a torch.nn.Module"):
            attack("net", x, y)

    def test_nan_gradients_move_nothing_and_are_reported(self, attack, net, x, y):
        if isinstance(attack, AutoAttack | Suite):
            pytest.skip("Square, one of its attacks, needs no gradients")
        if isinstance(attack, MinimumNorm | SparsePGD):
            pytest.skip("one of its random starts may be a success, which needs no gradient")

        class Cusp(nn.Module):
            def forward(self, x):
                z = net(x)
                cusp = z[:1] + (0 * x[:1]).sqrt().flatten(1).sum(1)  # 0 * inf backwards
                return torch.cat([cusp, z[1:]])

        frozen = with_(attack, stop="never", restarts=1)  # a random start may be a success
        with pytest.warns(UserWarning, match=r"gradient of zero or NaN .*\(sample 0\)"):
            result = frozen.run(Cusp(), x, torch.cat([y[:1], (y[1:] + 1) % 3]))
        assert result.x_adv.isfinite().all()
        assert result.no_gradient.tolist() == [True] + [False] * 7

    def test_zero_gradients_are_reported(self, attack, net, x, y):
        class Dead(nn.Module):
            def forward(self, x):
                return net(torch.full_like(x, 0.5) + 0 * x)

        y = answers(Dead(), x)
        with pytest.warns(UserWarning, match="8 of 8 samples met a gradient of zero"):
            result = attack.run(Dead(), x, y)
        assert result.no_gradient.all()
        assert not result.success.any()


@every_black_box_attack
class TestBlackBox:
    def test_no_gradient_is_asked_for(self, attack, net, x, y):
        def check(module, args):
            assert not torch.is_grad_enabled()
            assert not args[0].requires_grad

        net.register_forward_pre_hook(check)
        result = attack.run(net, x, y)
        assert (result.queries.backward == 0).all()
        assert not result.no_gradient.any()

    def test_labels_are_enough(self, attack, net, x, y):
        class Labels:
            bounds, num_classes = (0.0, 1.0), 3

            def predict(self, x):
                return net(x).argmax(1)

        if isinstance(used_by(attack), Square | SparseRS):
            name = type(attack).__name__
            with pytest.raises(
                TypeError, match=rf"must have .*scores.*for {name}, got Labels.*HopSkipJump"
            ):
                attack(Labels(), x, y)
            return
        assert torch.equal(attack(Labels(), x, y), attack(net, x, y))

    def test_any_estimator(self, attack, net, x, y):
        forest = RandomForestClassifier(10, random_state=0)
        forest.fit(x.flatten(1).numpy(), y.numpy() + 5)
        model = SklearnClassifier(forest, labels="index")
        result = attack.run(model, x, y)
        said = forest.predict(result.x_adv.flatten(1).numpy())
        assert torch.equal(result.success, model.encode(said) != y)

    def test_probabilities_will_do(self, attack, net, x, y):
        class Scores:
            bounds, num_classes = (0.0, 1.0), 3

            def scores(self, x):
                return net(x).softmax(1)

            def predict(self, x):
                return net(x).argmax(1)

        result, expected = attack.run(Scores(), x, y), attack.run(net, x, y)
        assert result.success.sum() >= expected.success.sum() - 1


@every_attack
class TestQueryBudget:
    def test_a_counter_agrees(self, attack, net, x, y):
        counter = QueryCounter(net)
        result = attack.run(counter, x, y)
        assert counter.forward == int(result.queries.forward.sum())
        assert counter.backward == int(result.queries.backward.sum())
        if hasattr(attack, "max_queries"):
            assert int(result.queries.forward.max()) <= attack.max_queries

    @pytest.mark.parametrize("budget", [0, 8, 20, 77])
    def test_what_was_found_when_it_ends_is_not_lost(self, attack, net, x, y, budget):
        wanted = int(attack.run(net, x, y).queries.forward.sum())
        counter = QueryCounter(net, max_queries=budget)
        if wanted <= budget:
            attack.run(counter, x, y)
            return
        with pytest.raises(QueryBudgetExceeded) as error:
            attack.run(counter, x, y)
        assert counter.forward <= budget
        found = error.value.result
        assert int(found.queries.forward.sum()) == counter.forward
        said = answers(net, found.x_adv)
        assert (said != y)[found.success].all()
        distance = lp_norm(found.x_adv - x, measured_norm(attack))
        torch.testing.assert_close(found.distance, distance)
        assert torch.equal(found.x_adv[~found.success], x[~found.success]) or attack in BUDGET
        eps = getattr(attack, "eps", None)
        assert eps is None or (found.distance <= eps + 1e-5).all()

    def test_next_to_nothing_is_lost_at_the_last_look(self, attack, net, x, y):
        if isinstance(attack, (FGSM, FGM, Transfer)) or getattr(attack, "candidates", 0) is None:
            pytest.skip("one formula, or judged at the last look only, or cut to a ball there")
        whole = attack.run(net, x, y)
        counter = QueryCounter(net, max_queries=int(whole.queries.forward.sum()) - 1)
        with pytest.raises(QueryBudgetExceeded) as error:
            attack.run(counter, x, y)
        assert torch.equal(error.value.result.success, whole.success)
        near = error.value.result.distance <= 1.01 * whole.distance + 1e-5
        assert near.all() or attack in BUDGET
