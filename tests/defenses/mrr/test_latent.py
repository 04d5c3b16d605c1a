import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advkit import Normalize, TorchClassifier
from advkit.defenses.mrr import latent
from advkit.defenses.mrr.latent import fit_latent
from advkit.defenses.mrr.latent_settings import Chain, LatentDefenders
from tests.defenses.mrr.victims import convolutional, digits, mlp

QUICK = {"epochs": 1, "batch_size": 100}


@pytest.fixture(scope="module")
def victim():
    return TorchClassifier(mlp(), num_classes=10)


def fitted(victim, settings, *, seed=0, saved=(), on_fitted=lambda _: None, n=600):
    x, y = digits(n)
    return fit_latent(settings, victim, x, y, seed=seed, saved=saved, on_fitted=on_fitted)


@pytest.fixture(scope="module")
def three(victim):
    return fitted(victim, LatentDefenders(count=3, **QUICK))


class TestTraining:
    def test_features_of_a_class_gather_and_classes_part(self, victim):
        x, y = digits(600)
        found = fitted(victim, LatentDefenders(count=1, epochs=6, lr=3e-3))

        def tightness(features):
            means = torch.stack([features[y == c].mean(0) for c in range(10)])
            within = (features - means[y]).square().sum(1).mean()
            return float(within / torch.pdist(means).square().min())

        before = F.normalize(victim.module[:5](x)).detach()
        assert tightness(found.defenders[0](x)) < 0.75 * tightness(before)

    def test_the_copy_still_classifies(self, victim):
        x, y = digits(600)
        found = fitted(victim, LatentDefenders(count=1, epochs=6, lr=3e-3))
        out = found.defenders[0].features_and_outputs(x)[1]
        assert (out.argmax(1) == y).float().mean() > 0.95

    def test_centers_end_on_the_sphere_where_they_are_kept_there(self, three):
        for defender in three.defenders:
            torch.testing.assert_close(defender.centers.norm(dim=1), torch.ones(10))

    def test_each_begins_from_the_victims_weights_and_not_from_the_one_before(
        self, victim, monkeypatch
    ):
        seen = []
        train = latent._train

        def spy(settings, model, start, x, y, *, seed):
            seen.append((copy.deepcopy(start.tapped.net.state_dict()), x, seed))
            return train(settings, model, start, x, y, seed=seed)

        monkeypatch.setattr(latent, "_train", spy)
        fitted(victim, LatentDefenders(count=2, **QUICK), seed=5)
        for weights, _, _ in seen:
            for name, value in victim.module.state_dict().items():
                assert torch.equal(weights[name], value)
        assert [seed for *_, seed in seen] == [5, 6]

    def test_nothing_of_it_learns_any_more(self, three):
        assert not any(p.requires_grad for d in three.defenders for p in d.parameters())

    def test_frozen_weights_of_the_victim_learn_in_the_copy(self):
        net = mlp().requires_grad_(False)
        found = fitted(TorchClassifier(net, num_classes=10), LatentDefenders(**QUICK))
        assert not torch.equal(found.defenders[0].tapped.net[1].weight, net[1].weight)
        assert not any(p.requires_grad for p in net.parameters())

    def test_batch_norms_keep_the_statistics_of_the_victim(self):
        net = convolutional()
        found = fitted(TorchClassifier(net, num_classes=10), LatentDefenders(**QUICK))
        norm = found.defenders[0].tapped.net.norm
        assert torch.equal(norm.running_mean, net.norm.running_mean)
        assert not torch.equal(norm.weight, net.norm.weight)

    @pytest.mark.parametrize("kind", ["pcl", "center"])
    def test_other_regularizers_learn_too(self, victim, kind):
        settings = LatentDefenders(regularizer=kind, compactness=0.1, **QUICK)
        defender = fitted(victim, settings).defenders[0]
        assert not torch.allclose(defender.centers.norm(dim=1), torch.ones(10), atol=1e-4)

    def test_the_seed_decides_on_the_order_alone(self, victim):
        settings = LatentDefenders(**QUICK)
        one, same, other = (fitted(victim, settings, seed=s).defenders[0] for s in (0, 0, 1))
        for name, value in one.state_dict().items():
            assert torch.equal(value, same.state_dict()[name])
        assert not torch.equal(one.centers, other.centers)

    def test_the_global_random_state_is_untouched(self, victim):
        before = torch.get_rng_state()
        fitted(victim, LatentDefenders(count=2, chain=Chain(clean_fraction=0.5), **QUICK))
        assert torch.equal(torch.get_rng_state(), before)


class TestChain:
    def images(self, victim, chain, count=3):
        """What each defender of a chain learned from."""
        seen = []

        def spy(settings, model, start, x, y, *, seed):
            seen.append(x)
            return copy.deepcopy(start)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(latent, "_train", spy)
            found = fitted(victim, LatentDefenders(count=count, chain=chain))
        return seen, found.defenders

    def away(self, defender, x):
        """Squared distance of the features to the nearest center, `(n,)`."""
        return torch.cdist(defender(x), defender.centers).amin(1).square()

    def test_the_first_step_is_the_raw_gradient_cut_to_the_bounds(self, victim):
        (clean, moved), (defender, _) = self.images(victim, Chain(), count=2)
        assert torch.equal(clean, digits(600)[0])
        for i in (0, 7):
            x = clean[i : i + 1].clone().requires_grad_()
            self.away(defender, x).sum().backward()
            torch.testing.assert_close(
                moved[i : i + 1], (x.detach() + x.grad).clamp(0, 1), rtol=1e-4, atol=1e-6
            )

    def test_images_move_away_from_the_centers_of_the_defender_before(self, victim):
        (clean, moved, _), (defender, *_) = self.images(victim, Chain(step_size=0.1))
        before, after = self.away(defender, clean), self.away(defender, moved)
        assert (after - before).mean() > 0
        assert (after > before).float().mean() > 0.9

    def test_perturbations_add_up_or_begin_anew(self, victim):
        *_, on = self.images(victim, Chain(step_size=0.1))[0]
        _, once, anew = self.images(victim, Chain(step_size=0.1, accumulate=False))[0]
        assert torch.equal(once, anew)  # the same defender twice, untrained
        clean = digits(600)[0]
        assert (on - clean).norm() > 1.5 * (once - clean).norm()

    def test_several_steps_follow_the_gradient_anew(self, victim):
        twice = self.images(victim, Chain(step_size=0.1, steps=2), count=2)[0][1]
        on = self.images(victim, Chain(step_size=0.1), count=3)[0][2]
        assert torch.equal(twice, on)  # of a defender that is always the same

    def test_a_share_stays_clean(self, victim):
        clean, moved = self.images(victim, Chain(clean_fraction=0.3), count=2)[0]
        same = (moved == clean).flatten(1).all(1).float().mean()
        assert 0.2 < same < 0.4

    def test_without_a_chain_all_learn_from_the_clean_ones(self, victim):
        seen, _ = self.images(victim, None)
        assert all(torch.equal(x, digits(600)[0]) for x in seen)

    def test_a_chains_beginning_is_a_shorter_chain(self, victim, three):
        two = fitted(victim, LatentDefenders(count=2, **QUICK))
        for one, other in zip(two.defenders, three.defenders, strict=False):
            for name, value in one.state_dict().items():
                assert torch.equal(value, other.state_dict()[name])

    def test_bounds_are_units(self):
        """On inputs of 0 to 255 everything is as on 0 to 1."""
        net = mlp()
        scaled = TorchClassifier(net, bounds=(0, 255), preprocess=lambda x: x / 255, num_classes=10)
        x, y = digits(200)
        settings = LatentDefenders(count=2, **QUICK)
        found = fit_latent(settings, scaled, 255 * x, y, seed=0, saved=(), on_fitted=lambda _: None)
        plain = fitted(TorchClassifier(net, num_classes=10), settings, n=200)
        torch.testing.assert_close(found.features(255 * x), plain.features(x), rtol=0.05, atol=0.01)

    def test_the_gradient_of_a_scaled_input_is_scaled_too(self, victim):
        x, y = digits(50)
        scaled = TorchClassifier(
            victim.module, bounds=(0, 255), preprocess=lambda x: x / 255, num_classes=10
        )
        start = latent.build_untrained(LatentDefenders(), victim, x, y)
        moved = latent._perturb(Chain(step_size=0.1), victim, start, x)
        start = latent.build_untrained(LatentDefenders(), scaled, 255 * x, y)
        same = latent._perturb(Chain(step_size=0.1), scaled, start, 255 * x)
        torch.testing.assert_close(same / 255, moved, rtol=1e-4, atol=1e-5)
        assert (moved - x).abs().max() > 1e-3

    def test_an_infinite_slope_at_black_pixels_spoils_no_image(self, victim):
        rooted = TorchClassifier(
            victim.module, preprocess=lambda x: x**0.5 + 0 * x.clamp(max=0) ** 0.5, num_classes=10
        )
        x, y = digits(50)
        start = latent.build_untrained(LatentDefenders(), rooted, x, y)
        moved = latent._perturb(Chain(step_size=0.1), rooted, start, x)
        assert moved.isfinite().all()
        assert (moved - x).abs().max() > 1e-3


class TestModules:
    def test_densities_are_those_of_clean_images(self, three):
        seen = torch.stack([d(digits(600)[0]) for d in three.defenders])
        mean = three.density.project(seen).mean(1)
        torch.testing.assert_close(mean, torch.zeros_like(mean), rtol=0, atol=1e-5)

    def test_a_few_together_are_as_many_one_after_another(self, three):
        x = digits(9)[0]
        whole = three.features(x)
        for i in range(9):
            torch.testing.assert_close(three.features(x[i : i + 1]), whole[i : i + 1])
        torch.testing.assert_close(three.features(x[:4]), whole[:4])

    def test_a_net_with_convolutions_and_batch_norm_too(self):
        settings = LatentDefenders(count=2, **QUICK)
        found = fitted(TorchClassifier(convolutional(), num_classes=10), settings)
        x = digits(9)[0]
        torch.testing.assert_close(found.features(x[:2]), found.features(x)[:2])

    @pytest.mark.parametrize("n", [2, 9])
    def test_gradients_reach_the_input(self, three, n):
        x, y = digits(n)
        x = x.double().requires_grad_()
        modules = fit_double(three)
        distances = modules.distances(x, y)
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0)).double()
        (gradient,) = torch.autograd.grad(distances.sum(), x)
        ahead, behind = (
            modules.distances(x.detach() + h * direction, y).sum() for h in (1e-6, -1e-6)
        )
        slope = float((gradient * direction).sum())
        assert float(ahead - behind) / 2e-6 == pytest.approx(slope, rel=1e-4)

    def test_features_are_what_distances_are_between(self, three):
        """The distance of two inputs' features is that on all defenders' principal axes."""
        x = digits(2)[0]
        a, b = three.features(x)
        seen = torch.stack([d(x) for d in three.defenders])
        on_axes = seen @ three.density.projection
        torch.testing.assert_close((a - b).norm(), (on_axes[:, 0] - on_axes[:, 1]).norm())

    def test_preprocessing_is_the_victims(self):
        x, y = digits(300)
        normal = Normalize(mean=[0.3], std=[0.4])
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 10))
        victim = TorchClassifier(net, preprocess=normal, num_classes=10)
        found = fit_latent(
            LatentDefenders(**QUICK), victim, x, y, seed=0, saved=(), on_fitted=lambda _: None
        ).defenders[0]
        weight, bias = found.tapped.net[1].weight, found.tapped.net[1].bias
        expected = F.normalize(F.linear(normal(x).flatten(1), weight, bias))
        torch.testing.assert_close(found(x), expected)

    def test_several_layers_can_be_named(self, victim):
        x = digits(5)[0]
        at = {"1": 40, "4": 20}
        for layer, width in at.items():
            found = fitted(victim, LatentDefenders(layer=layer, **QUICK))
            assert found.defenders[0](x).shape == (5, width)
        entry = fitted(victim, LatentDefenders(layer="4", side="input", **QUICK))
        assert entry.defenders[0](x).shape == (5, 40)

    def test_the_first_ones(self, three):
        x, y = digits(9)
        assert torch.equal(three.first(2).distances(x, y), three.distances(x, y)[:, :2])
        assert three.first(2).count == 2


def fit_double(modules):
    """The same modules in float64."""
    density = modules.density
    double = {
        field.name: getattr(density, field.name) for field in dataclasses.fields(type(density))
    }
    double |= {k: v.double() for k, v in double.items() if v is not None and v.is_floating_point()}
    defenders = [copy.deepcopy(d).double() for d in modules.defenders]
    return latent.LatentModules(defenders, type(density)(**double))


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        ("fc1", "`layer` must be one of 0, 1, 2, 3, 4, 5, 6, got 'fc1'"),
        ("", "`layer` must be one of"),
    ],
)
def test_a_layer_that_is_not_there(victim, layer, sentence):
    with pytest.raises(ValueError, match=sentence):
        fitted(victim, LatentDefenders(layer=layer, **QUICK))


def test_a_layer_that_runs_twice():
    shared = nn.Linear(64, 64)
    net = nn.Sequential(nn.Flatten(), shared, nn.ReLU(), shared, nn.Linear(64, 10))
    with pytest.raises(ValueError, match="layer '1' must run once in a forward pass, got 2 runs"):
        fitted(TorchClassifier(net, num_classes=10), LatentDefenders(layer="1", **QUICK))


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"layer": 3}, TypeError, "`layer` must be a name or None, got int"),
        ({"side": "left"}, ValueError, "`side` must be one of 'input', 'output'"),
        ({"count": 0}, ValueError, "`count` must be at least 1, got 0"),
        ({"regularizer": "far"}, ValueError, "`regularizer` must be one of"),
        ({"compactness": -1}, ValueError, "`compactness` must be at least 0"),
        ({"separation": float("nan")}, ValueError, "`separation` must be at least 0"),
        ({"density": "hdda"}, ValueError, "`density` must be one of 'euclidean', 'gaussian'"),
        ({"explained_variance": 1.1}, ValueError, "`explained_variance` must lie in"),
        ({"epochs": 0}, ValueError, "`epochs` must be at least 1"),
        ({"batch_size": 1.5}, TypeError, "`batch_size` must be an int"),
        ({"lr": 0}, ValueError, "`lr` must be positive"),
        ({"chain": True}, TypeError, "`chain` must be a Chain or None, got True"),
    ],
)
def test_errors_of_defenders(settings, error, sentence):
    with pytest.raises(error, match=sentence):
        LatentDefenders(**settings)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"step_size": 0}, "`step_size` must be positive"),
        ({"steps": 0}, "`steps` must be at least 1"),
        ({"clean_fraction": 2}, "`clean_fraction` must lie in"),
    ],
)
def test_errors_of_chains(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        Chain(**settings)
