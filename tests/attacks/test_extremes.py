"""Extreme numbers: logits of any scale, slopes that are infinite, budgets beyond all inputs."""

import pytest
import torch
from torch import nn

from advkit import TorchClassifier, attacks
from tests.attack_cases import ATTACKS, BUDGET, GRADIENT, MINIMUM_NORM, used_by, with_eps
from tests.toys import convnet, images

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*met a gradient"),
    pytest.mark.filterwarnings("ignore:The ball of .* holds every input"),
]
# those whose budget is a length, on the net itself
BALLS = [a for a in BUDGET if a.norm != "l0" and not isinstance(a, attacks.Transfer)]
DTYPES = [torch.float16, torch.float32, torch.float64]


class Scaled(nn.Module):
    """A linear net of three classes whose logits are multiplied by a number."""

    def __init__(self, scale, dtype=torch.float32):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = (torch.rand(3, 36, generator=generator) / 3 - 1 / 6).to(dtype)
        self.scale = scale

    def forward(self, x):
        return self.scale * (x.flatten(1) @ self.weight.T)


SCALES = {torch.float32: [1e-30, 1e-10, 1e20, 1e30], torch.float64: [1e-300, 1e250]}


def depends_on_scale(attack):
    """Whether the first constant is given, or the attack follows the cross-entropy.

    The constant is in units of the logits. The direction of the cross-entropy is a mean over the
    classes whose weights depend on the scale.
    """
    return getattr(attack, "initial_const", None) is not None or isinstance(attack, attacks.DDN)


@pytest.mark.slow("every attack several times")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_success_does_not_depend_on_the_scale_of_the_logits(attack, dtype):
    x = images(3, dtype)
    y = Scaled(1.0, dtype)(x).argmax(1)
    plain = attack.run(Scaled(1.0, dtype), x, y)
    for scale in SCALES[dtype]:
        found = attack.run(Scaled(scale, dtype), x, y)
        assert found.x_adv.isfinite().all()
        assert not found.not_finite.any()
        assert ((found.success | found.no_gradient) >= plain.success).all(), scale
        if attack in MINIMUM_NORM and attack.norm != "l0" and not depends_on_scale(attack):
            torch.testing.assert_close(found.distance, plain.distance, rtol=0.02, atol=0)


@pytest.mark.parametrize(
    "attack",
    [attacks.FAB(), attacks.DeepFool(), attacks.CarliniWagnerL2(steps=20), attacks.LBFGS()],
    ids=repr,
)
def test_half_precision_finds_what_it_finds_at_scale_one(attack):
    x = images(4, torch.float16)
    y = Scaled(1.0, torch.float16)(x).argmax(1)
    plain = attack.run(Scaled(1.0, torch.float16), x, y)
    small = attack.run(Scaled(1e-5, torch.float16), x, y)
    assert plain.success.all()
    assert small.success.all()
    assert (small.distance <= 1.3 * plain.distance).all()


def test_a_confidence_is_reached_at_huge_logits():
    x = images(4)
    y = Scaled(1.0)(x).argmax(1)
    attack = attacks.CarliniWagnerL2(search_steps=3, steps=20)
    sure = attacks.CarliniWagnerL2(search_steps=3, steps=20, confidence=1.0)
    plain, found = attack.run(Scaled(1.0), x, y), sure.run(Scaled(1e25), x, y)
    assert found.success.all()
    torch.testing.assert_close(found.distance, plain.distance, rtol=0.05, atol=0)


class Gamma(nn.Module):
    """A net behind a gamma correction, which refuses iterates that are not finite."""

    def __init__(self, dtype):
        super().__init__()
        self.net = convnet(dtype=dtype)

    def forward(self, x):
        assert x.isfinite().all()
        return self.net(x**0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("attack", GRADIENT, ids=repr)
def test_black_pixels_under_a_root_stop_no_attack(attack, dtype):
    net = Gamma(dtype).eval()
    x = images(4, dtype) * (images(4, dtype, seed=1) > 0.3)
    y = net(x).argmax(1)
    result = attack.run(net, x, y)
    assert result.x_adv.isfinite().all()
    assert result.distance.isfinite().all()
    assert not result.no_gradient.any()
    moved = (result.x_adv != x).flatten(1).any(1)
    assert (moved | ~result.success).all()
    if attack in MINIMUM_NORM:
        assert result.success.all()
    else:
        assert moved.all()


@pytest.mark.parametrize("eps", [1e20, 1e30, 1e38, 1e60])
@pytest.mark.parametrize("attack", BALLS, ids=repr)
def test_a_huge_budget_is_the_whole_box(attack, eps):
    x = images(4)
    net = Scaled(1.0)
    result = with_eps(attack, eps).run(net, x, net(x).argmax(1))
    assert result.x_adv.isfinite().all()
    assert (result.x_adv != x).flatten(1).any(1).all()
    if not isinstance(used_by(attack), attacks.RandomNoise):
        assert result.success.all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_huge_step_reaches_the_edge_of_the_ball(norm, dtype):
    x = images(4, dtype)
    net = Scaled(1.0, dtype)
    y = net(x).argmax(1)
    attack = attacks.PGD(
        eps=0.5, norm=norm, steps=1, step_size=1e30, random_start=False, stop="never"
    )
    result = attack.run(TorchClassifier(net, bounds=(-9, 9)), x, y)
    torch.testing.assert_close(
        result.distance, torch.full_like(x[:, 0, 0, 0], 0.5), rtol=0.01, atol=0
    )


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_loss_that_nothing_is_left_of_is_flagged(scale):
    def softmax_cross_entropy(logits, y):
        return nn.functional.cross_entropy(logits, y, reduction="none")

    x = images(3)
    y = Scaled(1.0)(x).argmax(1)
    attack = attacks.PGD(eps=0.01, steps=2, loss=softmax_cross_entropy, random_start=False)
    result = attack.run(Scaled(scale), x, y)
    assert (result.success | result.no_gradient | (result.distance > 0)).all()


@pytest.mark.parametrize("scale", [2.0**-20, 2.0**40])
def test_features_are_matched_in_the_units_of_natural_images(scale):
    x, natural = images(4), images(30, seed=3)
    y = Scaled(1.0)(x).argmax(1)
    attack = attacks.FeatureMatching(eps=0.2, start_images=natural, steps=10)
    plain, found = attack.run(Scaled(1.0), x, y), attack.run(Scaled(scale), x, y)
    assert plain.success.all()
    torch.testing.assert_close(found.x_adv, plain.x_adv)
