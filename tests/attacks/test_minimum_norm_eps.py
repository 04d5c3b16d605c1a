"""MinimumNorm with a budget: within it in every norm, and finished at the first success in it."""

import pytest
import torch

from advkit import QueryBudgetExceeded, QueryCounter, attacks
from advkit.cli.specs import attacks_from
from advkit.core.norms import keep_largest, lp_norm
from tests.toys import answers, convnet, images

NORMS = ("l0", "l1", "l2", "linf")
every_norm = pytest.mark.parametrize("norm", NORMS)
STEPS = 100


@pytest.fixture
def net():
    return convnet()


@pytest.fixture
def x():
    return images()


@pytest.fixture
def y(net, x):
    return answers(net, x)


def nearest(norm, net, x, y):
    result = attacks.MinimumNorm(norm=norm, steps=STEPS).run(net, x, y)
    assert result.success.all()
    return result


@every_norm
@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 2.0])
def test_it_succeeds_where_the_nearest_example_is_within_the_budget(norm, factor, net, x, y):
    distance = nearest(norm, net, x, y).distance
    eps = factor * distance
    result = attacks.MinimumNorm(norm=norm, steps=STEPS, eps=eps).run(net, x, y)
    assert (lp_norm(result.x_adv - x, norm) <= eps + 1e-5).all()
    assert torch.equal(result.success, answers(net, result.x_adv) != y)
    assert result.success.all() if factor > 1 else not result.success.any()


@every_norm
def test_a_failure_uses_its_budget(norm, net, x, y):
    """It is the nearest success, projected: in l0 its largest changes."""
    distance = nearest(norm, net, x, y).distance
    eps = (0.5 * distance).floor() if norm == "l0" else 0.5 * distance
    result = attacks.MinimumNorm(norm=norm, steps=STEPS, eps=eps).run(net, x, y)
    assert not result.success.any()
    torch.testing.assert_close(result.distance, eps)


def test_a_failure_in_l0_keeps_the_largest_changes_of_its_nearest_success(monkeypatch, net, x, y):
    monkeypatch.setattr(attacks.MinimumNorm, "_refine_steps", 0)
    near = nearest("l0", net, x, y)
    eps = near.distance - 1
    result = attacks.MinimumNorm(norm="l0", steps=STEPS, eps=eps).run(net, x, y)
    assert torch.equal((result.x_adv != x).flatten(1).sum(1), eps.long())
    kept = keep_largest(near.x_adv - x, eps) != 0
    assert torch.equal(result.x_adv, torch.where(kept, near.x_adv, x))


def test_failures_depend_on_the_random_starts(net, x, y):
    eps = 0.5 * nearest("l2", net, x, y).distance
    found = [attacks.MinimumNorm(steps=STEPS, eps=eps, seed=s)(net, x, y) for s in (0, 1)]
    assert not torch.equal(*found)


@every_norm
def test_a_budget_of_zero_changes_nothing(norm, net, x, y):
    labels = torch.cat([y[:4], (y[4:] + 1) % 3])
    result = attacks.MinimumNorm(norm=norm, steps=30, eps=0).run(net, x, labels)
    assert torch.equal(result.x_adv, x)
    assert result.success.tolist() == [False] * 4 + [True] * 4


def test_a_number_of_features_is_rounded_down(net, x, y):
    whole, more = (attacks.MinimumNorm(norm="l0", steps=30, eps=e).run(net, x, y) for e in (3, 3.9))
    assert torch.equal(whole.x_adv, more.x_adv)


@pytest.mark.filterwarnings("ignore:The ball of .* holds every input")
def test_more_features_than_there_are_will_do(net, x, y):
    result = attacks.MinimumNorm(norm="l0", steps=30, eps=1e30).run(net, x, y)
    assert result.success.all()


def test_a_budget_of_all_features_is_noticed(net, x):
    with pytest.warns(UserWarning, match="In l0, eps is a number of features"):
        attacks.MinimumNorm(norm="l0", steps=5, eps=x[0].numel()).run(net, x)


@every_norm
def test_finished_samples_cost_nothing_more(norm, net, x, y):
    distance = nearest(norm, net, x, y).distance
    within = torch.arange(len(x)) < 4
    eps = torch.where(within, 4 * distance, 0.5 * distance)
    queries = attacks.MinimumNorm(norm=norm, steps=STEPS, eps=eps).run(net, x, y).queries
    assert queries.backward[within].max() < 0.5 * STEPS
    assert queries.backward[~within].min() > 0.7 * STEPS
    assert queries.backward.max() <= STEPS


@every_norm
def test_a_success_is_not_refined(norm, net, x, y):
    """It costs the clean pass, those of its first walk, and that of the result."""
    calls = []
    distance = nearest(norm, net, x, y).distance
    net.register_forward_pre_hook(lambda module, args: calls.append(len(args[0])))
    attacks.MinimumNorm(norm=norm, steps=STEPS, eps=4 * float(distance.max())).run(net, x, y)
    refined = len(calls)
    calls.clear()
    attacks.MinimumNorm(norm=norm, steps=STEPS).run(net, x, y)
    assert refined < len(calls) / 2


@every_norm
@pytest.mark.parametrize("queries", [20, 60, 150])
def test_what_is_left_of_an_ended_search_is_in_the_ball(norm, queries, net, x, y):
    eps = 0.9 * nearest(norm, net, x, y).distance
    counter = QueryCounter(net, max_queries=queries)
    with pytest.raises(QueryBudgetExceeded) as error:
        attacks.MinimumNorm(norm=norm, steps=STEPS, eps=eps).run(counter, x, y)
    found = error.value.result
    assert (lp_norm(found.x_adv - x, norm) <= eps).all()
    assert torch.equal(found.success, answers(net, found.x_adv) != y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_counts_of_features_are_exact_in_16_bits(dtype):
    """bfloat16 has no 257, and would allow 256."""
    w = torch.ones(600)
    plane = torch.nn.Linear(600, 2)
    plane.weight.data, plane.bias.data = torch.stack([0 * w, w]), torch.tensor([0.0, -256.5])
    model = torch.nn.Sequential(plane.double())
    model.register_forward_pre_hook(lambda module, args: (args[0].double(),))
    x = torch.zeros(2, 600, dtype=dtype)
    result = attacks.MinimumNorm(norm="l0", steps=30, eps=257).run(model, x, torch.tensor([0, 0]))
    assert result.success.all()
    assert ((result.x_adv != x).sum(1) <= 257).all()


@pytest.mark.parametrize(
    ("eps", "error"), [(-1, ValueError), (float("nan"), ValueError), ("a", TypeError)]
)
def test_invalid_budgets_are_refused(eps, error):
    with pytest.raises(error, match="`eps`"):
        attacks.MinimumNorm(eps=eps)


def test_a_tensor_must_have_an_entry_for_each_sample(net, x):
    with pytest.raises(ValueError, match=r"tensor of shape \(8,\)"):
        attacks.MinimumNorm(eps=torch.ones(3)).run(net, x)


def test_the_command_line_takes_a_budget_of_features():
    (made,) = attacks_from(["MinimumNorm:norm=l0,eps=10"], [], seed=0)
    assert made == attacks.MinimumNorm(norm="l0", eps=10)
