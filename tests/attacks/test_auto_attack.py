"""AutoAttack: its stages, its losses by the number of classes, and what it refuses."""

import pytest
import torch
from torch import nn

from advkit import TorchClassifier, attacks
from tests.toys import Halfspace, convnet, images


class Recorded(attacks.AutoAttack):
    """AutoAttack with public stages."""

    def stages(self, classes):
        return list(self._stages(classes))


SHARED = {"eps": 0.1, "norm": "linf", "seed": 3}


def apgd(**options):
    return attacks.APGD(**{**SHARED, "steps": 100, **options})


def fab(**options):
    return attacks.FAB(**{**SHARED, "steps": 100, "schedule": "published", **options})


SQUARE = attacks.Square(**SHARED, max_queries=5000, p_init=0.8)


def test_the_standard_version():
    assert Recorded(**SHARED).stages(10) == [
        apgd(loss="ce"), apgd(loss="dlr", candidates=9), fab(candidates=9), SQUARE
    ]  # fmt: skip


def test_the_standard_version_in_l1():
    assert Recorded(eps=0.1, norm="l1", seed=3).stages(10)[:2] == [
        apgd(norm="l1", loss="ce", restarts=5), apgd(norm="l1", loss="dlr", candidates=5)
    ]  # fmt: skip


def test_the_version_plus():
    assert Recorded(**SHARED, version="plus").stages(10) == [
        apgd(loss="ce", restarts=5),
        apgd(loss="dlr", restarts=5),
        fab(candidates=9, restarts=5),
        SQUARE,
        apgd(loss="dlr", candidates=9),
    ]


def test_the_version_for_random_models():
    assert Recorded(**SHARED, version="rand").stages(10) == [
        apgd(loss="ce", gradient_samples=20), apgd(loss="dlr", gradient_samples=20)
    ]  # fmt: skip


@pytest.mark.filterwarnings("default:AutoAttack maximizes the margin")
def test_with_few_classes_the_margin_replaces_dlr_and_a_warning_says_so():
    with pytest.warns(
        UserWarning, match="in place of the DLR loss, which needs 4 classes here, got 3"
    ):
        stages = Recorded(**SHARED).stages(3)
    assert [attack.loss for attack in stages[:2]] == ["ce", "margin"]
    assert Recorded(**SHARED, version="rand").stages(3)[1].loss == "dlr"
    with pytest.warns(UserWarning, match="needs 3 classes here, got 2"):
        assert Recorded(**SHARED, version="rand").stages(2)[1].loss == "margin"


@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_every_version_fools_a_plain_net(version, norm):
    net, x = convnet(), images(4)
    eps = {"linf": 0.3, "l2": 2, "l1": 8}[norm]
    result = attacks.AutoAttack(eps=eps, norm=norm, version=version).run(net, x)
    assert result.success.all()
    assert (result.distance <= eps * (1 + 1e-5)).all()
    assert (result.stage >= 0).all()


def test_a_target_is_refused_with_the_way_out():
    x, y = torch.rand(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="`target` must be None for AutoAttack.*Cascade of APGD"):
        attacks.AutoAttack(eps=0.1)(nn.Linear(3, 4), x, y, target=y)


def test_a_custom_version_is_a_cascade():
    with pytest.raises(ValueError, match=r"got 'custom'. Use Cascade\(attacks="):
        attacks.AutoAttack(eps=0.1, version="custom")


@pytest.mark.parametrize("option", [{"version": "fast"}, {"norm": "l0"}, {"stop": "last"}])
def test_options_out_of_range(option):
    with pytest.raises(ValueError, match=f"`{next(iter(option))}` must be"):
        attacks.AutoAttack(**{"eps": 0.1, **option})


def halfspace(norm):
    """A model with a plane as boundary, one input, and its distance from the plane."""
    plane = Halfspace(torch.linspace(-1, 1, 12, dtype=torch.float64), b=0.3)
    x = torch.full((1, 12), 0.5, dtype=torch.float64)
    return TorchClassifier(plane, bounds=(-9, 9)), x, float(plane.distance(x, norm))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_halfspace_within_the_budget_is_left(norm):
    model, x, distance = halfspace(norm)
    assert attacks.AutoAttack(eps=1.01 * distance, norm=norm).run(model, x).success.all()


@pytest.mark.slow  # a robust sample takes all 5,000 queries of Square
def test_a_halfspace_beyond_the_budget_is_not_left():
    model, x, distance = halfspace("linf")
    result = attacks.AutoAttack(eps=0.99 * distance).run(model, x)
    assert not result.success.any()
    assert int(result.stage) == -1
    assert float(result.distance) == pytest.approx(0.99 * distance)
