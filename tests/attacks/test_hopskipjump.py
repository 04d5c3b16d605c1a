"""HopSkipJump: against planes whose distance is known, and within its queries."""

import pytest
import torch
from torch import nn

from advkit import QueryBudgetExceeded, QueryCounter, TorchClassifier
from advkit.attacks import HopSkipJump
from advkit.attacks.engine.records import Nearest
from advkit.attacks.hopskipjump import _Search
from advkit.core import checks
from advkit.core.norms import normalize
from advkit.core.results import InconclusiveWarning
from tests.toys import Halfspace, answers, convnet, images


def plane_and_inputs(n=6, d=30, b=0.0):
    """A plane through a box, and inputs at several distances from it."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(d, generator=generator, dtype=torch.float64)
    x = torch.rand(n, d, generator=generator, dtype=torch.float64) * 2 - 1
    return TorchClassifier(Halfspace(w, b), bounds=(-10, 10)), w, x


@pytest.mark.parametrize(("norm", "excess"), [("l2", 1.03), ("linf", 1.25)])
def test_it_comes_near_the_plane_and_never_under_its_distance(norm, excess):
    model, _, x = plane_and_inputs()
    result = HopSkipJump(norm=norm, max_queries=4000).run(model, x)
    exact = model.module.distance(x, norm)
    assert result.success.all()
    assert (result.distance >= exact * (1 - 1e-9)).all()
    assert (result.distance <= exact * excess).all()


def test_more_queries_come_nearer():
    model, _, x = plane_and_inputs()
    medians = [HopSkipJump(max_queries=q).run(model, x).distance.median() for q in (60, 300, 1500)]
    assert medians[0] > 1.2 * medians[1] > 1.2 * medians[2]


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("queries", [3, 4, 5, 11, 12, 13, 14, 23, 24, 33, 34, 60, 200, 333])
def test_the_queries_hold_and_are_used(norm, queries):
    model, _, x = plane_and_inputs()
    counter = QueryCounter(model)
    attack = HopSkipJump(norm=norm, max_queries=queries, init_gradient_queries=15)
    with checks.muted(InconclusiveWarning):  # of samples without a start within so few queries
        result = attack.run(counter, x, model.predict(x))
    assert counter.forward == int(result.queries.forward.sum())
    assert (result.queries.forward <= queries).all()
    if queries > 30:
        assert (result.queries.forward > queries - 30).all()
    assert torch.equal(result.success, model.predict(result.x_adv) != model.predict(x))


def test_the_normal_is_that_of_the_plane():
    model, w, x = plane_and_inputs()
    attack = HopSkipJump(max_queries=10**6)
    search = searching(attack, model, x)
    distance = model.module.distance(x, "l2")
    sign = -model.module.value(x).sign()
    on_plane = x + (sign * distance)[:, None] * w / w.norm()
    rows = torch.arange(len(x))
    found = search._normal(1, on_plane, rows, torch.full_like(rows, 3000))
    cosine = (found * w).sum(1) / w.norm() * sign
    assert (cosine > 0.95).all()
    asked = []
    model.module.register_forward_pre_hook(lambda module, args: asked.append(args[0].clone()))
    few = search._normal(2, on_plane, rows, torch.full_like(rows, 30))
    assert ((few * w).sum(1) / w.norm() * sign < cosine).all()
    assert torch.allclose(found.norm(dim=1), torch.ones(len(x), dtype=torch.float64))
    away = torch.cat(asked) - on_plane.repeat_interleave(30, dim=0)
    radius = distance.repeat_interleave(30) * 30**0.5 / 512
    torch.testing.assert_close(away.norm(dim=1), radius)


def searching(attack, model, x, kind=_Search):
    problem = attack._problem(attack._adapt_model(model), x, model.predict(x), None)
    return kind(attack, problem, Nearest.empty(problem.x))


def test_halving_ends_just_past_the_boundary():
    model, w, x = plane_and_inputs()
    sign = -model.module.value(x).sign()
    for norm, move in (("l2", w / w.norm()), ("linf", w.sign())):
        search = searching(HopSkipJump(norm=norm), model, x)
        exact = model.module.distance(x, norm)
        far = x + (3 * sign * exact)[:, None] * move
        search._bisect_to_boundary(far, torch.arange(len(x)))
        assert (search.nearest.distance >= exact * (1 - 1e-9)).all()
        assert (search.nearest.distance <= exact * (1 + 3 * 2.0**-9 + 1e-9)).all()
        assert (search.problem.statistics.forward == 9).all()


class Watched(_Search):
    """Notes the directions asked for, the normals found and those that are stepped along."""

    def _normal(self, i, x_adv, rows, counts):
        found = super()._normal(i, x_adv, rows, counts)
        self.seen.append((counts.tolist(), found))
        return found

    def _step(self, i, x_adv, normal, rows):
        self.steps.append(normal)
        return super()._step(i, x_adv, normal, rows)


def test_each_round_has_more_directions_and_remembers_half_of_the_normal():
    model, _, x = plane_and_inputs(n=2)
    search = searching(HopSkipJump(max_queries=400, init_gradient_queries=40), model, x, Watched)
    search.seen, search.steps = [], []
    search.walk(search.find_starting_points(torch.arange(2), None))
    assert [counts[0] for counts, _ in search.seen][:4] == [40, 56, 69, 80]
    before = torch.zeros_like(x)
    for (_, found), stepped in zip(search.seen, search.steps, strict=True):
        if len(found) < 2:
            break
        before = normalize(before / 2 + found, "l2")
        torch.testing.assert_close(stepped, before)
    assert len(search.seen) > 3


def test_a_step_is_halved_until_it_succeeds_or_the_queries_for_the_way_back_are_left():
    model, w, x = plane_and_inputs(n=3)
    distance = model.module.distance(x, "l2")
    outward = -model.module.value(x).sign()[:, None] * w / w.norm()
    on_plane = x + (distance * (1 + 1e-6))[:, None] * outward
    rows = torch.arange(3)
    for queries, tries in ((1000, 8), (14, 4)):
        asked = []
        search = searching(HopSkipJump(max_queries=queries), model, x)
        handle = model.module.register_forward_pre_hook(
            lambda module, args, asked=asked: asked.append(args[0].clone())
        )
        moved, stepped = search._step(4, on_plane, -outward, rows)  # into the wrong half
        handle.remove()
        assert not stepped.any()
        assert torch.equal(moved, on_plane)
        lengths = torch.stack([(points - on_plane).norm(dim=1) for points in asked])
        halves = torch.stack([distance / 2 * 0.5**k for k in range(tries)])
        torch.testing.assert_close(lengths, halves, rtol=1e-4, atol=0)
    moved, stepped = searching(HopSkipJump(), model, x)._step(9, on_plane, outward, rows)
    assert stepped.all()
    torch.testing.assert_close((moved - on_plane).norm(dim=1), distance / 3, rtol=1e-4, atol=0)


def test_the_nearest_start_is_tried_first():
    net, x = convnet(), images(3)
    y = answers(net, x)
    pool = images(40, seed=5)
    asked = []
    net.register_forward_pre_hook(lambda module, args: asked.append(args[0].clone()))
    HopSkipJump(max_queries=40, init_points=pool).run(net, x, y)
    order = torch.cdist(x.flatten(1), pool.flatten(1)).argsort(1)
    assert torch.equal(asked[1], pool[order[:, 0]])


def test_a_target_is_reached_from_starts_of_its_class():
    net, x = convnet(), images(6)
    y, pool = answers(net, x), images(60, seed=5)
    target = (y + 1) % 3
    result = HopSkipJump(max_queries=400, init_points=pool).run(net, x, target=target)
    assert torch.equal(answers(net, result.x_adv) == target, result.success)
    assert result.success.all()
    nearest = torch.cdist(x.flatten(1), pool.flatten(1))
    nearest = nearest.masked_fill(answers(net, pool)[None] != target[:, None], torch.inf).amin(1)
    assert (result.distance < 0.8 * nearest).all()


def test_starts_that_are_no_success_end_it():
    net, x = convnet(), images(4)
    y = answers(net, x)
    attack = HopSkipJump(max_queries=400, init_points=x[:1].clone(), init_trials=7)
    with pytest.warns(InconclusiveWarning, match="could not begin for .* of 4 samples"):
        result = attack.run(net, x, target=(y + 1) % 3)
    own = answers(net, x)[0]
    hopeless = (y + 1) % 3 != own
    assert not result.success[hopeless].any()
    assert torch.equal(result.no_start, hopeless)
    assert torch.equal(result.x_adv[hopeless], x[hopeless])
    assert (result.queries.forward[hopeless] == 3).all()


def test_noise_is_tried_as_often_as_said():
    class Sure(nn.Module):
        def forward(self, x):
            return torch.tensor([[2.0, 0.0]]).expand(len(x), -1)

    with pytest.warns(InconclusiveWarning, match="Pass HopSkipJump init_points="):
        result = HopSkipJump(max_queries=400, init_trials=7).run(Sure(), images(4))
    assert result.no_start.all()
    assert (result.queries.forward == 1 + 1 + 7 + 1).all()
    assert not result.success.any()
    assert torch.equal(result.x_adv, images(4))


def test_the_size_of_the_batches_is_a_matter_of_memory():
    net, x = convnet(dtype=torch.float64), images(4, torch.float64)
    sizes = []
    net.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    large = HopSkipJump(max_queries=150).run(net, x)
    assert max(sizes) > 100
    sizes.clear()
    small = HopSkipJump(max_queries=150, batch_size=7).run(net, x)
    assert max(sizes) == 7
    torch.testing.assert_close(small.x_adv, large.x_adv)
    assert torch.equal(small.queries.forward, large.queries.forward)


def test_what_was_found_when_a_budget_ends_is_near():
    model, _, x = plane_and_inputs()
    counter = QueryCounter(model, max_queries=2000)
    with pytest.raises(QueryBudgetExceeded) as error:
        HopSkipJump(max_queries=1000).run(counter, x, model.predict(x))
    found = error.value.result
    assert found.success.all()
    assert (found.distance < 2 * model.module.distance(x, "l2")).all()
    assert torch.equal(model.predict(found.x_adv) != model.predict(x), found.success)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"norm": "l1"}, ValueError, "`norm` must be one of 'l2', 'linf', got 'l1'"),
        ({"max_queries": 2}, ValueError, "`max_queries` must be at least 3, got 2"),
        (
            {"init_gradient_queries": 0},
            ValueError,
            "`init_gradient_queries` must be at least 1, got 0",
        ),
        ({"init_trials": 0}, ValueError, "`init_trials` must be at least 1, got 0"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1, got 0"),
        ({"seed": "1"}, TypeError, "`seed` must be an int"),
        ({"init_points": [0.5]}, TypeError, "`init_points` must be a torch.Tensor, got list"),
        ({"progress": None}, TypeError, "`progress` must be True or False"),
    ],
)
def test_wrong_settings(settings, error, said):
    with pytest.raises(error, match=said):
        HopSkipJump(**settings)


@pytest.mark.parametrize("shape", [(4, 6, 6), (0, 1, 6, 6), (36,)])
def test_starts_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"`init_points` must have shape \(m, 1, 6, 6\)"):
        HopSkipJump(init_points=torch.zeros(shape))(convnet(), images(2))


def test_a_model_that_overflows_everywhere_is_said_once():
    class Broken(nn.Module):
        def forward(self, v):
            clean = torch.stack([(row == x).flatten(1).all(1).any() for row in v])
            return torch.where(clean, 1.0, torch.nan)[:, None] * torch.tensor([2.0, 0.0])

    x = images(4)
    with pytest.warns(InconclusiveWarning) as said:
        result = HopSkipJump(max_queries=40).run(Broken(), x)
    assert len(said) == 1
    assert "NaN or infinite logits for 4 of 4" in str(said[0].message)
    assert result.no_start.all()


def test_a_sample_whose_queries_end_before_a_start_is_marked_whatever_the_norm():
    model, _, x = plane_and_inputs()
    with checks.muted(InconclusiveWarning):
        result = HopSkipJump(norm="linf", max_queries=3).run(model, x)
    assert torch.equal(result.no_start, ~result.success)
    assert not HopSkipJump(max_queries=60).run(model, x).no_start.any()
