"""JSMA against a NumPy version with the whole table of pairs."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from advkit import attacks
from advkit.attacks.jsma import best_pair, top_pair
from tests.toys import Halfspace, Quadratic, answers, convnet, images


def pair_of_table(raised, lowered, choice):
    """The best of all pairs by score, `None` without a pair of positive score."""
    best, pair = 0.0, None
    for p in range(len(raised)):
        for q in range(p + 1, len(raised)):
            a, b = raised[p] + raised[q], lowered[p] + lowered[q]
            if choice[p] and choice[q] and a > 0 and b > 0 and a * b > best:
                best, pair = a * b, (p, q)
    return best, pair


def jsma_numpy(net, x0, target, theta, gamma, output):
    """One sample towards one class; the changed input or `None`."""
    a, w, b = net.numpy()
    x, most = x0.copy(), int(gamma * len(x0) * (1 + 1e-12))
    while True:
        z = w @ x + x @ a @ x / 2 + b
        if z.argmax() == target:
            return x
        rows = w + a @ x
        own, others = rows[target], rows.sum(0) - rows[target]
        if output == "probabilities":
            p = np.exp(z - z.max())
            p /= p.sum()
            jacobian = p[:, None] * (rows - p @ rows)
            own, others = jacobian[target], jacobian.sum(0) - jacobian[target]
        changed = x != x0
        choice = x < 1 if theta > 0 else x > 0
        if changed.sum() + 2 > most:
            choice &= changed
        sign = np.sign(theta)
        _, pair = pair_of_table(sign * own, -sign * others, choice)
        if pair is None:
            return None
        x[list(pair)] = np.clip(x[list(pair)] + theta, 0, 1)


CASES = [(1.0, "probabilities"), (-1.0, "probabilities"), (0.3, "logits"), (-0.3, "logits")]


@pytest.mark.parametrize(("theta", "output"), CASES)
@pytest.mark.parametrize("seed", [3, 5, 9])
def test_numpy_targeted(theta, output, seed):
    net = Quadratic(features=10, seed=seed, bend=0.4)
    x = torch.rand(10, 10, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x[:2] = (x[:2] > 0.5).double()
    target = net(x).topk(2, dim=1).indices[:, 1]
    result = attacks.JSMA(theta=theta, gamma=0.65, output=output).run(net, x, target=target)
    for i in range(len(x)):
        expected = jsma_numpy(net, x[i].numpy(), int(target[i]), theta, 0.65, output)
        assert result.success[i].item() is (expected is not None)
        if expected is not None:
            np.testing.assert_allclose(result.x_adv[i].numpy(), expected, atol=1e-12)
    assert result.success.any()


@pytest.mark.parametrize("theta", [1.0, -1.0])
def test_without_a_target_the_best_class_is_taken(theta):
    net = Quadratic(features=10, seed=3, bend=0.4)
    x = torch.rand(12, 10, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    y = answers(net, x)
    result = attacks.JSMA(theta=theta, gamma=0.8).run(net, x, y)
    attempts = [
        attacks.JSMA(theta=theta, gamma=0.8).run(net, x, target=torch.full_like(y, k))
        for k in range(4)
    ]
    fewest = torch.stack(
        [r.distance.where(r.success & (y != k), torch.inf) for k, r in enumerate(attempts)]
    ).amin(0)
    found = result.distance.where(result.success, torch.inf)
    assert result.success.sum() > 6
    # a run for one class may end in another, earlier
    assert (found <= fewest).all()
    assert (found == fewest).float().mean() > 0.6


def test_classes_that_take_more_features_are_given_up():
    """After a success by two features no other class can take fewer: one look at each will do."""
    net, x = convnet(classes=10), images(16)
    one, all_ = (attacks.JSMA(gamma=1.0, candidates=c).run(net, x) for c in (1, 9))
    quick = one.distance <= 2
    assert quick.sum() > 3
    assert (all_.queries.backward[quick] <= one.queries.backward[quick] + 8).all()


def test_no_more_features_change_than_gamma_allows():
    net, x = Quadratic(features=20, bend=0.1), torch.full((6, 20), 0.5, dtype=torch.float64)
    for gamma, most in ((0.1, 2), (0.15, 3), (0.3, 6)):
        result = attacks.JSMA(theta=0.2, gamma=gamma).run(net, x + 0.01 * torch.arange(6)[:, None])
        assert (result.distance <= most).all()


def test_a_feature_at_its_bound_is_left_alone():
    """The two steepest features are full: the next two are taken."""
    net = nn.Linear(4, 2, bias=False).double()
    net.weight.data = torch.tensor([[0.0] * 4, [9.0, 9.0, 2.0, 1.0]]).double()
    net.bias = nn.Parameter(torch.tensor([19.0, 0.0]).double())
    x = torch.tensor([[1.0, 1.0, 0.0, 0.0]]).double()
    result = attacks.JSMA(gamma=0.5).run(net, x)
    assert result.x_adv.tolist() == [[1, 1, 1, 1]]
    assert result.success.all()


@given(
    st.integers(2, 30),
    st.integers(0, 2**31 - 1),
    st.sampled_from(["free", "alike", "few values", "against"]),
)
def test_the_best_pair_is_the_best_of_the_table(features, seed, kind):
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn(2, 3, features, generator=generator, dtype=torch.float64)
    if kind == "alike":
        b = a
    elif kind == "few values":  # ties
        a, b = a.round(), b.round()
    elif kind == "against":  # all on a front: none dominates another
        a, b = a.abs(), 3 - a.abs()
    choice = torch.rand(3, features, generator=generator) < 0.8
    pair, found = top_pair(a, choice) if b is a else best_pair(a, b, choice)
    for i in range(3):
        best, expected = pair_of_table(a[i].numpy(), b[i].numpy(), choice[i].numpy())
        assert found[i].item() is (expected is not None)
        if expected is None:
            continue
        p, q = pair[i].tolist()
        assert p != q
        assert choice[i, [p, q]].all()
        assert float((a[i, p] + a[i, q]) * (b[i, p] + b[i, q])) == pytest.approx(best, rel=1e-12)


def test_pairs_are_scored_in_blocks(monkeypatch):
    a = torch.rand(2, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    choice = torch.ones(2, 40, dtype=torch.bool)
    whole = best_pair(a, 1 - a, choice)
    monkeypatch.setattr("advkit.attacks.jsma.MAX_PAIRS", 100)
    for part, same in zip(best_pair(a, 1 - a, choice), whole, strict=True):
        assert torch.equal(part, same)


@pytest.mark.parametrize("output", ["probabilities", "logits"])
def test_images_of_imagenet_size(output):
    """A table of pairs would take 90 GB for each image."""
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(10, 3 * 224 * 224, generator=generator)

    class Net(nn.Module):
        def forward(self, x):
            return x.flatten(1) @ w.T / 20

    x = torch.rand(2, 3, 224, 224, generator=generator)
    result = attacks.JSMA(gamma=2e-3, output=output, candidates=1).run(Net(), x)
    assert result.success.all()
    assert (result.distance <= 300).all()


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"theta": 0.0}, ValueError, "`theta` must be finite and not zero, got 0"),
        ({"theta": float("nan")}, ValueError, "`theta` must be finite and not zero, got nan"),
        ({"theta": "1"}, TypeError, "`theta` must be a number"),
        ({"gamma": 0.0}, ValueError, "`gamma` must lie in"),
        ({"gamma": 1.1}, ValueError, "`gamma` must lie in .0, 1., got 1.1"),
        ({"output": "softmax"}, ValueError, "`output` must be .*'probabilities'.*got 'softmax'"),
        ({"candidates": 0}, ValueError, "`candidates` must be"),
    ],
)
def test_wrong_settings(settings, error, said):
    with pytest.raises(error, match=said):
        attacks.JSMA(**settings)


@pytest.mark.parametrize("features", [2, 3, 13])
@pytest.mark.parametrize("theta", [1.0, -1.0])
def test_one_pair_may_always_change(features, theta):
    w = torch.tensor([1.0, 2.0] + [0.5] * (features - 2), dtype=torch.float64)
    plane = Halfspace(w * theta, b=0.0)
    x = torch.full((1, features), 0.5, dtype=torch.float64)
    plane.b = -float(plane.value(x).detach()) - 1.4  # the two steepest gain 1.5, less one of them
    result = attacks.JSMA(theta=theta, gamma=1e-3).run(plane, x, torch.tensor([0]))
    assert result.success.all()
    assert result.distance.tolist() == [2]


def test_one_feature_has_no_pair():
    plane = Halfspace(torch.ones(1, dtype=torch.float64), b=-0.7)
    for shape in ((3, 1), (3, 1, 1, 1)):
        x = torch.full(shape, 0.5, dtype=torch.float64)
        with pytest.raises(ValueError, match="`x` must have at least 2 features for JSMA.*got 1"):
            attacks.JSMA().run(plane, x, torch.zeros(3, dtype=torch.int64))
