"""RandomNoise: how far, how evenly, from which seed, and what it costs."""

import pytest
import torch
from scipy import stats
from sklearn.ensemble import RandomForestClassifier
from torch import nn

from advkit import InconclusiveWarning, SklearnClassifier, TorchClassifier, attacks, eval
from advkit.core.norms import lp_norm
from tests.toys import Halfspace, answers, convnet, images

pytestmark = pytest.mark.filterwarnings("ignore:The ball of .* holds every input")

KINDS = [
    attacks.RandomNoise(eps=0.2),
    attacks.RandomNoise(eps=0.2, norm="l2"),
    attacks.RandomNoise(eps=0.2, norm="l1"),
    attacks.RandomNoise(eps=0.2, kind="gaussian", norm="l2"),
    attacks.RandomNoise(eps=3, kind="salt_and_pepper", norm="l0"),
]
every_kind = pytest.mark.parametrize("attack", KINDS, ids=repr)


class Labels:
    """A classifier of labels only, which remembers what it was asked."""

    bounds, num_classes = (0.0, 1.0), 3

    def __init__(self, net):
        self.net, self.asked = net, []

    def predict(self, x):
        self.asked.append(x.clone())
        return self.net(x).argmax(1)


def firm(d):
    """A model whose label 0 no noise changes."""
    return Halfspace(torch.zeros(d), b=-1.0)


def inner(n=2000, d=12, low=0.4, high=0.6):
    """Points `(n, d)` away from the bounds, in float64, all with draws of their own."""
    generator = torch.Generator().manual_seed(0)
    return low + (high - low) * torch.rand(n, d, generator=generator, dtype=torch.float64)


def noise(attack, x, bounds=(0.0, 1.0)):
    """What is added to `x` where the model is never fooled."""
    model = TorchClassifier(firm(x[0].numel()).to(x.dtype), bounds=bounds)
    result = attack.run(model, x, torch.zeros(len(x), dtype=torch.int64))
    assert not result.success.any()
    assert result.norm == attack.norm
    torch.testing.assert_close(result.distance, lp_norm(result.x_adv - x, attack.norm))
    return result.x_adv - x


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_uniform_noise_fills_the_ball(norm):
    """In d dimensions (|z| / eps)^d of a uniform point of the ball is uniform."""
    z = noise(attacks.RandomNoise(eps=0.3, norm=norm), inner())
    share = lp_norm(z, norm) / 0.3
    assert share.max() <= 1
    assert stats.kstest((share**12).numpy(), "uniform").pvalue > 1e-3
    assert ((z > 0).double().mean(0) - 0.5).abs().max() < 0.05


def test_uniform_noise_is_even_in_each_feature():
    z = noise(attacks.RandomNoise(eps=0.3), inner())
    assert stats.kstest(z.flatten().numpy(), "uniform", args=(-0.3, 0.6)).pvalue > 1e-3


def test_gaussian_noise_has_exactly_the_length_and_any_direction():
    """A coordinate of a uniform direction in d dimensions is 2 B - 1, B of Beta (d - 1) / 2."""
    z = noise(attacks.RandomNoise(eps=0.3, kind="gaussian", norm="l2"), inner())
    torch.testing.assert_close(lp_norm(z, "l2"), torch.full((2000,), 0.3).double())
    for feature in z.T:
        assert stats.kstest(feature.numpy(), "beta", args=(5.5, 5.5, -0.3, 0.6)).pvalue > 1e-3


def test_gaussian_noise_looks_normal_in_many_dimensions():
    z = noise(attacks.RandomNoise(eps=0.3, kind="gaussian", norm="l2"), inner(50, 400))
    spread = 0.3 / 400**0.5
    assert stats.kstest(z.flatten().numpy(), "norm", args=(0, spread)).pvalue > 1e-3


def test_salt_and_pepper_sets_as_many_features_as_asked():
    x = inner()
    z = noise(attacks.RandomNoise(eps=4, kind="salt_and_pepper", norm="l0"), x)
    changed = z != 0
    assert (changed.sum(1) == 4).all()
    values = (x + z)[changed]
    assert ((values - 0).abs().minimum((values - 1).abs()) < 1e-12).all()
    assert abs(float((values > 0.5).double().mean()) - 0.5) < 0.02
    # each feature in 4 of 12 samples: 667 of 2000, with a standard deviation of 21
    assert (changed.sum(0) - 667).abs().max() < 85


def test_salt_and_pepper_counts_features_that_were_there_already():
    x = (inner() > 0.5).double()
    z = noise(attacks.RandomNoise(eps=4, kind="salt_and_pepper", norm="l0"), x)
    changed = (z != 0).sum(1)
    assert changed.max() == 4
    assert abs(float(changed.double().mean()) - 2) < 0.1


@pytest.mark.parametrize(("eps", "features"), [(0, 0), (2.7, 2), (12, 12), (99, 12)])
def test_salt_and_pepper_takes_the_whole_part_and_at_most_all_features(eps, features):
    z = noise(attacks.RandomNoise(eps=eps, kind="salt_and_pepper", norm="l0"), inner(20))
    assert ((z != 0).sum(1) == features).all()


def test_salt_and_pepper_goes_to_the_bounds_of_the_model():
    x = inner(50, 4, low=-1, high=2)
    attack = attacks.RandomNoise(eps=4, kind="salt_and_pepper", norm="l0")
    x_adv = x + noise(attack, x, bounds=(-3.0, 5.0))
    assert sorted(x_adv.round().unique().tolist()) == [-3, 5]
    torch.testing.assert_close(x_adv, x_adv.round())


@every_kind
def test_at_the_walls_it_stays_within_the_bounds(attack):
    x = (inner(200) > 0.5).double()
    x_adv = x + noise(attack, x)
    assert (x_adv >= 0).all()
    assert (x_adv <= 1).all()
    assert (lp_norm(x_adv - x, attack.norm) <= attack.eps * (1 + 1e-12)).all()


def test_gaussian_noise_at_a_wall_is_cut_off_not_scaled_up():
    z = noise(attacks.RandomNoise(eps=0.3, kind="gaussian", norm="l2"), torch.zeros(1, 400))
    kept = z > 0
    assert abs(float(kept.double().mean()) - 0.5) < 0.13
    assert abs(float(lp_norm(z, "l2")) - 0.3 * 0.5**0.5) < 0.04


@every_kind
def test_the_seed_decides(attack):
    x = inner(20)
    again = {"eps": attack.eps, "kind": attack.kind, "norm": attack.norm}
    before = torch.random.get_rng_state()
    z = noise(attack, x)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(noise(attack, x), z)
    other = noise(attacks.RandomNoise(**again, seed=1), x)
    assert ((other != z).any(1)).double().mean() > 0.8


@every_kind
def test_images_of_any_shape_and_dtype(attack):
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        x = images(dtype=dtype)
        result = attack.run(Labels(lambda v: -v.flatten(1)[:, :3].float()), x)
        assert result.x_adv.shape == x.shape
        assert result.x_adv.dtype == dtype
        assert (lp_norm((result.x_adv - x).float(), attack.norm) <= 1.01 * attack.eps).all()


@every_kind
def test_eps_may_differ_from_sample_to_sample(attack):
    x, scale = inner(4), torch.tensor([0.0, 0.4, 1.0, 0.7], dtype=torch.float64)
    attack = attacks.RandomNoise(eps=scale * attack.eps, kind=attack.kind, norm=attack.norm)
    distance = lp_norm(noise(attack, x), attack.norm)
    assert (distance <= attack.eps * (1 + 1e-12)).all()
    assert distance[0] == 0
    if attack.kind != "uniform":  # which has this length
        whole = attack.eps.floor() if attack.norm == "l0" else attack.eps
        torch.testing.assert_close(distance, whole)


class Alternate(nn.Module):
    """Labels every other sample wrong and the rest right, for the label 0 of all."""

    def forward(self, x):
        wrong = (x.flatten(1)[:, 0] > 0.5).float()
        return torch.stack([1 - wrong, wrong], dim=1)


def test_each_radius_stays_with_its_sample_where_some_are_left_alone():
    x = inner(40)
    x[:, 0] = torch.arange(40) % 2
    eps = torch.linspace(0.3, 0.01, 40).double()
    attack = attacks.RandomNoise(eps=eps, kind="gaussian", norm="l2")
    result = attack.run(Alternate(), x, torch.zeros(40, dtype=torch.int64))
    assert torch.equal(result.success, torch.arange(40) % 2 == 1)
    assert (result.distance[1::2] == 0).all()
    delta = result.x_adv - x
    delta[:, 0] = 0  # at a wall, where it is cut off
    assert (lp_norm(delta, "l2") <= eps * (1 + 1e-12)).all()
    assert (lp_norm(delta, "l2")[::2] > 0.5 * eps[::2]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_round_nothing_out_of_the_ball(dtype):
    x = inner(64, 400, low=0.5, high=0.9).to(dtype)
    x[:, 0] = torch.arange(64) % 2
    eps = torch.linspace(0.1, 0.02, 64)
    result = attacks.RandomNoise(eps=eps).run(Alternate(), x, torch.zeros(64, dtype=torch.int64))
    distance = lp_norm(result.x_adv.double() - x.double(), "linf")
    assert not result.success[::2].any()
    assert (distance <= eps).all()
    assert (distance[::2] > 0.9 * eps[::2]).all()


def test_one_radius_for_each_sample_or_one_for_all():
    with pytest.raises(ValueError, match=r"`eps` must .* shape \(4,\), got shape \(3,\)"):
        noise(attacks.RandomNoise(eps=torch.ones(3)), inner(4))


def test_each_restart_is_another_draw_for_what_is_unsolved():
    net, x = convnet(), images(64)
    y = answers(net, x)
    model = Labels(net)
    attack = attacks.RandomNoise(eps=0.15, restarts=3)
    result = attack.run(model, x, y)
    clean, *draws, last = model.asked
    assert torch.equal(clean, x)
    assert torch.equal(last, result.x_adv)
    assert len(draws) == 3

    rows, queries, found = torch.arange(64), torch.full((64,), 2), x.clone()
    seen = [x]
    for draw in draws:
        assert len(draw) == len(rows)
        for earlier in seen:
            assert (draw != earlier[rows]).flatten(1).any(1).all()
        queries[rows] += 1
        found[rows] = draw
        seen.append(found.clone())
        rows = rows[answers(net, draw) == y[rows]]
    assert 10 < len(rows) < 64 - 10
    assert torch.equal(result.x_adv, found)
    assert torch.equal(~result.success, torch.isin(torch.arange(64), rows))
    assert torch.equal(result.queries.forward, queries)
    assert (result.queries.backward == 0).all()


def test_no_restart_where_all_are_solved():
    x = inner(5)
    y = torch.ones(5, dtype=torch.int64)
    model = Labels(firm(12).double())
    result = attacks.RandomNoise(eps=0.1, restarts=9, stop="never").run(model, x, y)
    assert result.success.all()
    assert len(model.asked) == 2  # one draw, and what is returned


@pytest.mark.parametrize("stop", ["first", None, "never"])
def test_stop_decides_on_inputs_that_are_misclassified(stop):
    x, y = inner(5), torch.ones(5, dtype=torch.int64)
    result = attacks.RandomNoise(eps=0.1, stop=stop).run(firm(12).double(), x, y)
    assert result.success.all()
    assert (result.queries.forward == 2).all()
    moved = result.distance > 0
    assert moved.all() if stop == "never" else not moved.any()


class Broken(nn.Module):
    """NaN logits in a part of the space."""

    def __init__(self, net, bad):
        super().__init__()
        self.net, self.bad = net, bad

    def forward(self, x):
        return self.net(x) + torch.where(self.bad(x), torch.nan, 0.0)[:, None]


def test_noise_that_meets_nan_is_no_success():
    net, x = convnet(), images()
    y = answers(net, x)
    broken = Broken(net, lambda v: ~torch.stack([(row == x).flatten(1).all(1).any() for row in v]))
    with pytest.warns(InconclusiveWarning, match="infinite logits for"):
        result = attacks.RandomNoise(eps=0.3, restarts=2).run(broken, x, y)
    assert not result.success.any()
    assert result.not_finite.all()
    assert (result.queries.forward == 4).all()


def test_nan_at_a_clean_input_is_an_error():
    net, x = convnet(), images()
    broken = Broken(net, lambda v: torch.arange(len(v)) == 3)
    with pytest.raises(ValueError, match=r"finite logits, got NaN or infinity \(sample 3\)"):
        attacks.RandomNoise(eps=0.3).run(broken, x, answers(net, x))


def test_nan_at_the_first_noise_is_reported():
    net, x = convnet(), images()
    broken = Broken(net, lambda v: torch.arange(len(v)) == 3)
    with pytest.warns(InconclusiveWarning, match=r"infinite logits for 1 of .*\(sample 3\)"):
        result = attacks.RandomNoise(eps=0.3, stop="never").run(broken, x, answers(net, x))
    assert result.not_finite.nonzero().tolist() == [[3]]


def test_without_labels_the_models_own_cost_one_query():
    net, x = convnet(), images()
    given = attacks.RandomNoise(eps=0.3).run(net, x, answers(net, x))
    own = attacks.RandomNoise(eps=0.3).run(net, x)
    assert torch.equal(own.x_adv, given.x_adv)
    assert torch.equal(own.queries.forward, given.queries.forward + 1)


def test_a_target_is_reached_or_not():
    net, x = convnet(), images(64)
    target = (answers(net, x) + 1) % 3
    result = attacks.RandomNoise(eps=0.4, restarts=5).run(net, x, target=target)
    assert 0 < result.success.sum() < 64
    assert torch.equal(result.success, answers(net, result.x_adv) == target)


@every_kind
def test_success_is_what_the_labels_say(attack):
    net, x = convnet(), images(32)
    y = answers(net, x)
    attack = attacks.RandomNoise(eps=4 * attack.eps, kind=attack.kind, norm=attack.norm)
    result = attack.run(Labels(net), x, y)
    assert torch.equal(result.success, answers(net, result.x_adv) != y)
    assert torch.equal(result.x_adv, attack(net, x, y))


def test_a_forest_that_has_no_gradients():
    x, y = images(40), torch.arange(40) % 3
    forest = RandomForestClassifier(5, random_state=0).fit(x.flatten(1).numpy(), y.numpy() + 7)
    model = SklearnClassifier(forest, labels="class")
    result = attacks.RandomNoise(eps=0.5, restarts=3).run(model, x, y + 7)
    said = forest.predict(result.x_adv.flatten(1).numpy())
    assert result.success.any()
    assert torch.equal(result.success, torch.from_numpy(said) != y + 7)


def test_it_has_a_row_in_an_evaluation():
    net, x = convnet(), images(64)
    report = eval.evaluate(net, x, answers(net, x), attacks=[attacks.RandomNoise(eps=0.2)])
    assert 0 < report.outcomes[0].robust.sum() < 64
    assert "RandomNoise" in str(report)


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"eps": -0.1}, ValueError, "`eps` must be at least 0.*got -0.1"),
        ({"eps": float("nan")}, ValueError, "`eps` must be at least 0.*got nan"),
        ({"eps": "0.1"}, TypeError, "`eps` must be a number, got str"),
        (
            {"kind": "pink"},
            ValueError,
            "`kind` must be one of 'uniform', 'gaussian', 'salt_and_pep",
        ),
        ({"norm": "l0"}, ValueError, "`norm` must be one of 'linf', 'l2', 'l1' for kind 'uniform'"),
        ({"norm": "l3"}, ValueError, "`norm` must be one of .* for kind 'uniform', got 'l3'"),
        (
            {"kind": "gaussian"},
            ValueError,
            "`norm` must be one of 'l2' for kind 'gaussian', got 'l",
        ),
        (
            {"kind": "salt_and_pepper"},
            ValueError,
            "`norm` must be one of 'l0' for kind 'salt_and_p",
        ),
        ({"restarts": 0}, ValueError, "`restarts` must be at least 1, got 0"),
        ({"restarts": 1.5}, TypeError, "`restarts` must be an int, got float"),
        ({"stop": "last"}, ValueError, "`stop` must be one of 'first', 'never', None, got 'last'"),
        ({"seed": None}, TypeError, "`seed` must be an int, got NoneType"),
    ],
)
def test_wrong_settings(settings, error, said):
    with pytest.raises(error, match=said):
        attacks.RandomNoise(**{"eps": 0.1, **settings})


@pytest.mark.parametrize("eps", [0.1, torch.tensor([0.0, 3.0, 0.9])])
def test_a_number_of_features_that_rounds_to_none_is_refused(eps):
    with pytest.raises(ValueError, match=r"`eps` must be 0 or a number of features.*got 0\.[19]"):
        attacks.RandomNoise(eps=eps, kind="salt_and_pepper", norm="l0")
    attacks.RandomNoise(eps=0.1)
    attacks.RandomNoise(eps=0, kind="salt_and_pepper", norm="l0")
