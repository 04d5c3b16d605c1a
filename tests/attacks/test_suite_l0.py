"""Suite in l0: its stages, which samples get them, and the two units."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from advkit import InconclusiveWarning, attacks
from advkit.attacks.suite import THOROUGH, TUNING
from advkit.core.attack_options import measured_norm
from tests.toys import Halfspace, answers, convnet, images

UNITS = ("feature", "pixel")
every_unit = pytest.mark.parametrize("unit", UNITS)


class Opened(attacks.Suite):
    """Suite with a public list of stages."""

    def stages(self):
        return list(self._stages(10))


class Reversed(nn.Module):
    """A net whose gradient points the wrong way."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(2 * x.detach() - x)


def names(stages):
    return [type(stage).__name__ for stage in stages]


@every_unit
def test_its_stages_share_the_budget_and_no_random_numbers(unit):
    eps = torch.tensor([4.0, 6.0])
    fast, thorough = (
        Opened(eps=eps, norm="l0", unit=unit, effort=effort, seed=5).stages()
        for effort in ("fast", "thorough")
    )
    walk = ["MinimumNorm"] if unit == "feature" else []
    first = ["SparsePGD", "SparsePGD", "SparseRS", "SparseRS", *walk, "SparsePGD", "SparsePGD"]
    assert names(fast) == first
    assert names(thorough) == [*first, "SparsePGD", "SparsePGD", "SparseRS", *walk, "SparseRS"]
    assert thorough[: len(fast)] == fast
    assert {measured_norm(s) for s in thorough} == {"l0" if unit == "feature" else "l0_pixel"}
    assert all(torch.equal(s.eps, eps) for s in thorough)
    assert len({s.seed for s in thorough}) == len(thorough)
    kinds = {(s.loss, s.gradient) for s in fast if isinstance(s, attacks.SparsePGD)}
    assert kinds == {("ce", "unprojected"), ("margin", "projected"),
                     ("margin", "unprojected"), ("ce", "projected")}  # fmt: skip
    searches = [s.max_queries for s in thorough if isinstance(s, attacks.SparseRS)]
    assert searches == [TUNING.probe_queries, TUNING.misled_queries,
                        THOROUGH.queries_l0, THOROUGH.misled_queries]  # fmt: skip


@every_unit
def test_it_finds_what_its_parts_find(unit):
    net, x = convnet(), images()
    y = answers(net, x)
    eps = torch.arange(1, 9)
    result = attacks.Suite(eps=eps, norm="l0", unit=unit).run(net, x, y)
    part = attacks.SparsePGD(eps=eps, unit=unit, steps=TUNING.first_steps_l0).run(net, x, y)
    assert (result.success | ~part.success).all()
    assert result.success.any()
    assert (result.distance <= eps).all()
    assert torch.equal(result.success, answers(net, result.x_adv) != y)
    assert result.norm == ("l0" if unit == "feature" else "l0_pixel")


@every_unit
def test_samples_far_from_the_boundary_get_the_first_stages_alone(unit):
    net = Halfspace(torch.linspace(1, 2, 12, dtype=torch.float64), b=100.0)
    x = torch.full((2, 3, 4), 0.5, dtype=torch.float64)
    result = attacks.Suite(eps=2, norm="l0", unit=unit).run(net, x, torch.ones(2).long())
    assert not result.success.any()
    steps = 2 * TUNING.first_steps_l0
    assert result.queries.backward.tolist() == [steps] * 2
    assert (result.queries.forward < steps + TUNING.probe_queries + 20).all()


def test_samples_near_the_boundary_get_all_but_the_search_for_misled_ones():
    net = Halfspace(torch.ones(12, dtype=torch.float64), b=0.0)
    x = torch.full((1, 3, 4), 0.5, dtype=torch.float64)
    net.b = -4.95  # the value is 1.05, and two features move it by 1
    result = attacks.Suite(eps=2, norm="l0").run(net, x, torch.ones(1).long())
    assert not result.success.any()
    assert result.queries.backward.item() > 2 * TUNING.first_steps_l0 + 2 * TUNING.steps_l0
    assert result.queries.forward.item() < TUNING.misled_queries


@every_unit
def test_misleading_gradients_are_recognized_by_the_random_search(unit):
    plane = Halfspace(torch.linspace(-2, 3, 12, dtype=torch.float64), b=0.0)
    x = torch.full((1, 3, 4), 0.5, dtype=torch.float64)
    gain = plane.w.detach().abs().view(3, 4).sum(0) if unit == "pixel" else plane.w.detach().abs()
    plane.b = (
        float(gain.topk(2).values.sum() / 2 - plane.value(x).detach()) - 1e-3
    )  # only the best two do
    result = attacks.Suite(eps=2, norm="l0", unit=unit).run(
        Reversed(plane), x, torch.ones(1).long()
    )
    assert result.success.all()
    assert result.stage.item() in (2, 3)


def test_a_model_without_gradients_meets_the_random_searches():
    x = torch.rand(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = (x[:, 0] > x[:, 1]).long()
    model = LogisticRegression(C=100.0).fit(x, y)
    without = type("Scores", (), {
        "bounds": (0.0, 1.0), "num_classes": 2,
        "predict": lambda self, v: torch.as_tensor(model.predict(v)),
        "scores": lambda self, v: torch.as_tensor(model.predict_proba(v)),
    })()  # fmt: skip
    with pytest.warns(InconclusiveWarning, match="Suite left out SparsePGD, MinimumNorm"):
        result = attacks.Suite(eps=2, norm="l0").run(without, x[:4], y[:4])
    assert result.success.all()
    assert not result.queries.backward.any()


def test_units_belong_to_l0():
    for norm in ("linf", "l2", "l1"):
        with pytest.raises(
            ValueError, match=rf"`unit` must be 'feature' with norm '{norm}', got 'pixel'. Only"
        ):
            attacks.Suite(eps=1.0, norm=norm, unit="pixel")
    with pytest.raises(ValueError, match="`unit` must be one of 'feature', 'pixel', got 'patch'"):
        attacks.Suite(eps=3, norm="l0", unit="patch")
    with pytest.raises(ValueError, match="`eps` must be 0 or a number of pixels of at least 1"):
        attacks.Suite(eps=8 / 255, norm="l0", unit="pixel")
    with pytest.raises(ValueError, match="'linf', 'l2', 'l1', 'l0', got 'l0_pixel'"):
        attacks.Suite(eps=3, norm="l0_pixel")


def test_a_cascade_holds_one_unit():
    pixels = [attacks.SparsePGD(eps=4, unit="pixel"), attacks.SparseRS(eps=4, unit="pixel")]
    cascade = attacks.Cascade(attacks=pixels)
    assert (cascade.norm, cascade.eps) == ("l0_pixel", 4)
    net, x = convnet(), images(3)
    assert cascade.run(net, x).norm == "l0_pixel"
    with pytest.raises(ValueError, match="same `norm`, got .*'l0_pixel', 'l0'.*Pass unit= to each"):
        attacks.Cascade(attacks=[pixels[0], attacks.SparsePGD(eps=4)])
    transfer = attacks.Transfer(attack=pixels[0], surrogate=convnet())
    assert transfer.run(net, x).norm == "l0_pixel"
