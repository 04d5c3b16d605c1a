"""Randomised smoothing: the paper's two procedures, what they promise, and the way to attack it."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import binom, norm
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from advkit import CallableClassifier, QueryCounter, TorchClassifier, attacks
from advkit.core.randomness import sample_keys
from advkit.defenses.certificates import (
    Certificates,
    certified_radius,
    min_draws,
    probability_bound,
)
from advkit.defenses.gaussian_noise import GaussianNoise
from advkit.defenses.randomized_smoothing import RandomizedSmoothing
from advkit.models import REJECTED, evaluating
from tests.toys import Halfspace, convnet, images

SIGMA = 0.25


def halfspace():
    """A plane through the middle of the cube."""
    w = torch.tensor([3.0, -4.0, 1.0, 2.0], dtype=torch.float64)
    return Halfspace(w, b=-float(w.sum()) / 2)


def inputs(n, seed=0):
    """Points of a cube of four dimensions."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 4, generator=generator, dtype=torch.float64)


def coin(p, n, seed=0):
    """A classifier whose answer to a noisy copy is 1 with probability `p`, else 0; `n` inputs."""
    threshold = norm.ppf(1 - p)
    model = CallableClassifier(
        lambda rows: (rows[:, 0] > 0.5 + SIGMA * threshold).astype(int), 2, output="labels"
    )
    x = inputs(n, seed)
    x[:, 0] = 0.5
    return model, x


def smoothed(model, **settings):
    return RandomizedSmoothing(model, SIGMA, **settings)


def bound_by_search(k, n, alpha):
    """The p at which k or more of n are as rare as alpha."""
    return 0.0 if k == 0 else brentq(lambda p: binom.sf(k - 1, n, p) - alpha, 0, 1, xtol=1e-15)


@pytest.mark.parametrize("n", [1, 7, 100, 10_000])
@pytest.mark.parametrize("alpha", [0.001, 0.05, 0.6])
def test_the_bound_is_that_of_the_binomial_distribution(n, alpha):
    counts = torch.tensor(sorted({0, 1, n // 2, n - 1, n}))
    bound = probability_bound(counts, n, alpha)
    expected = [bound_by_search(k, n, alpha) for k in counts.tolist()]
    torch.testing.assert_close(
        bound, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0
    )


def test_the_bound_at_its_ends_is_known_in_closed_form():
    assert probability_bound(torch.tensor([0]), 50, 0.1).item() == 0
    (all_of_them,) = probability_bound(torch.tensor([50]), 50, 0.1).tolist()
    assert all_of_them == pytest.approx(0.1 ** (1 / 50), rel=1e-12)


def test_the_radius_is_the_quantile_of_the_noise():
    p = torch.tensor([0.0, 0.3, 0.5, 0.6, 0.99], dtype=torch.float64)
    expected = [0, 0, 0, 0.25 * norm.ppf(0.6), 0.25 * norm.ppf(0.99)]
    np.testing.assert_allclose(certified_radius(p, 0.25).numpy(), expected, rtol=1e-12)


def test_of_all_certificates_a_share_of_alpha_is_too_large():
    """p is known, so each bound can be judged: it may exceed p in alpha of the cases, and does.

    Clopper and Pearson's interval is exact up to the steps of the binomial distribution, whose own
    share of misses is computed here.
    """
    p, n, alpha, m = 0.8, 200, 0.05, 1500
    model, x = coin(p, m)
    certificates = smoothed(model, n0=20, n=n, alpha=alpha).certify(x)
    misses = int((certificates.p_lower > p).sum())
    counts = np.arange(n + 1)
    too_large = np.array([bound_by_search(k, n, alpha) > p for k in counts])
    share = binom.pmf(counts, n, p)[too_large].sum()
    assert 0.03 < share <= alpha
    low, high = binom.interval(0.9999, m, share)
    assert low <= misses <= high
    truth = SIGMA * norm.ppf(p)
    assert int((certificates.radius > truth).sum()) == misses


def test_the_counts_are_binomial():
    p, n, m = 0.7, 100, 1500
    model, x = coin(p, m)
    counts = smoothed(model, n0=300, n=n).certify(x).counts.double()
    assert counts.mean().item() == pytest.approx(n * p, abs=5 * math.sqrt(n * p * (1 - p) / m))
    assert counts.var().item() == pytest.approx(n * p * (1 - p), rel=0.15)


def test_the_radius_of_a_halfspace_is_at_most_the_distance_to_it():
    """The smoothed classifier of a half-space is the half-space itself."""
    net, x, alpha = halfspace(), inputs(1000), 0.05
    certificates = smoothed(net, n=500, alpha=alpha).certify(x)
    distance = net.distance(x, "l2")
    right = certificates.labels == net(x).argmax(1)
    known = certificates.labels != REJECTED
    wrong = int((known & (~right | (certificates.radius > distance))).sum())
    low, high = binom.interval(0.9999, len(x), alpha)
    assert low / 3 <= wrong <= high  # the steps of the binomial distribution leave less than alpha
    near = known & (distance < SIGMA)
    assert near.sum() > 200
    gap = (distance - certificates.radius)[near]
    assert gap.max() < 0.4 * SIGMA
    assert gap.median() > 0.03 * SIGMA


def test_who_abstains_when_the_answer_is_a_toss_up():
    """At p = 1/2 either class is an error, so that all but alpha of the answers are abstentions."""
    model, x = coin(0.5, 1500)
    answers = smoothed(model, n0=100, n=100, alpha=0.1)
    tails = 2 * binom.sf(np.arange(101) - 1, 100, 0.5)
    share = 2 * binom.pmf(np.arange(101), 100, 0.5)[(tails <= 0.1)].sum()
    assert 0.05 < share <= 0.1
    low, high = binom.interval(0.9999, len(x), share)
    assert low <= int((answers.predict(x) != REJECTED).sum()) <= high
    certified = int((answers.certify(x).labels != REJECTED).sum())
    assert 0.03 * len(x) < certified <= binom.ppf(0.9999, len(x), 0.1)


def test_predict_is_the_test_of_the_two_most_frequent_answers():
    """Each input's votes are set by hand, of three classes and ten draws."""
    votes = [[10, 0, 0], [9, 1, 0], [8, 2, 0], [5, 5, 0], [1, 0, 9], [4, 3, 3], [8, 1, 1]]
    answers = iter([label for row in votes for c, k in enumerate(row) for label in [c] * k])
    model = CallableClassifier(lambda rows: [next(answers) for _ in rows], 3, output="labels")
    got = smoothed(model, n0=10, alpha=0.05).predict(inputs(len(votes)))
    # P(10 of 10) = 2/1024, P(9 or more of 10) = 22/1024, P(8 or more) = 112/1024, each two-sided;
    # of 9, as the third answer is not counted: P(8 or more of 9) = 20/512
    assert got.tolist() == [0, 0, REJECTED, REJECTED, 2, REJECTED, 0]
    assert got.dtype == torch.int64
    always = CallableClassifier(lambda rows: [1] * len(rows), 2, output="labels")
    assert smoothed(always, n0=2, alpha=0.5).predict(inputs(1)).tolist() == [
        1
    ]  # P = alpha is enough
    with pytest.raises(ValueError, match="`n0` must be at least 3 and `n` at least 2"):
        smoothed(always, n0=2, alpha=0.49)


def test_the_draws_that_bound_are_not_those_that_choose():
    """An answer of its own for each call: the first is for the choice, the second for the bound."""
    calls = []

    def answer(rows):
        calls.append(rows.copy())
        return [0] * len(rows) if len(calls) == 1 else [1, 0] * (len(rows) // 2)

    model = CallableClassifier(answer, 2, output="labels")
    certificates = smoothed(model, n0=20, n=40).certify(inputs(1))
    assert [len(rows) for rows in calls] == [20, 40]
    assert not np.isin(calls[0], calls[1]).any()
    assert certificates.counts.tolist() == [20]
    assert certificates.labels.tolist() == [REJECTED]
    assert certificates.radius.tolist() == [0]


def test_the_noise_is_normal_of_the_size_asked_for_and_goes_beyond_the_bounds():
    seen = []
    model = CallableClassifier(
        lambda rows: seen.append(rows) or [0] * len(rows), 2, bounds=(-1, 3), output="labels"
    )
    x = torch.full((1, 2, 3), 2.9)
    smoothed(model, n=20_000).certify(x)
    rows = np.concatenate(seen)[100:]
    assert rows.shape == (20_000, 2, 3)
    assert rows.dtype == np.float32
    noise = (rows - 2.9) / SIGMA
    assert np.abs(noise.mean(0)).max() < 4 / math.sqrt(20_000)
    assert np.abs(noise.std(0) - 1).max() < 0.02
    assert abs((noise > 1).mean() - norm.sf(1)) < 0.004
    assert np.abs(np.corrcoef(noise.reshape(20_000, 6).T) - np.eye(6)).max() < 0.03
    assert rows.max() > 3


@pytest.mark.parametrize("n0", [64, 130])
def test_a_sample_draws_the_same_whatever_its_batch(n0):
    x = inputs(12)
    settings = {"n0": n0, "n": 250, "alpha": 0.3, "draws": n0}
    model = smoothed(halfspace(), **settings)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    for size in (1, 100, 333, 5000):
        other = smoothed(halfspace(), batch_size=size, **settings)
        assert torch.equal(other.predict(x[order]), model.predict(x)[order])
        assert torch.equal(other.certify(x[order]).counts, model.certify(x).counts[order])
        alone = torch.cat([other.logits(row[None]) for row in x])
        torch.testing.assert_close(alone, model.logits(x), rtol=0, atol=1e-12)
        assert torch.equal(other.scores(x[:1]), model.scores(x)[:1])
    fresh = smoothed(halfspace(), seed=1, **settings)
    assert not torch.equal(fresh.certify(x).counts, model.certify(x).counts)


def test_errors_of_inputs_that_are_alike_are_their_own():
    """Points within a sixteenth of the box, all at p = 0.7."""
    model, x = coin(0.7, 300)
    x = 0.5 + (x - 0.5) / 20
    counts = smoothed(model, n0=300, n=100).certify(x).counts
    assert len(counts.unique()) > 15
    same = smoothed(model, n0=300, n=100).certify(x[:1].expand(5, 4)).counts
    assert len(same.unique()) == 1


def test_no_more_than_the_batch_size_is_sent_at_once():
    sizes = []
    model = CallableClassifier(
        lambda rows: sizes.append(len(rows)) or [0] * len(rows), 2, output="labels"
    )
    wrapped = smoothed(model, n0=30, n=1050, batch_size=300)
    wrapped.certify(inputs(11))
    assert sizes[:2] == [300, 30]
    assert sizes[2:] == [300, 300, 300, 150] * 11


def test_progress_is_shown_if_asked_for(capsys):
    model = smoothed(halfspace(), n=50)
    model.certify(inputs(11))
    assert capsys.readouterr().err == ""
    model.certify(inputs(11), progress=True)
    assert "11/11" in capsys.readouterr().err


def test_the_cost_is_what_was_asked_for():
    counter = QueryCounter(halfspace())
    model = smoothed(counter, n0=30, n=70, draws=9)
    model.predict(inputs(5))
    assert counter.forward == 5 * 30
    model.certify(inputs(5))
    assert counter.forward == 5 * (30 + 30 + 70)
    counter.reset()
    model.logits(inputs(5))
    model.scores(inputs(5))
    assert counter.forward == 5 * (9 + 9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_noise_of_few_bits_is_rounded_once(dtype):
    seen = []
    model = CallableClassifier(
        lambda rows: seen.append(rows) or [0] * len(rows), 2, output="labels", input_type="tensor"
    )
    x = inputs(1).to(dtype)
    smoothed(model, n0=50).predict(x)
    (key,) = sample_keys(x, (0, 1 / 64), 0, 0).tolist()
    noise = torch.randn(50, 4, generator=torch.Generator().manual_seed(key))
    assert torch.equal(seen[0], (x.float() + SIGMA * noise).to(dtype))


def by_hand(net, model, x):
    """The logits of the noisy copies, `(n, draws, classes)`, each input with its own generator."""
    keys = sample_keys(x, (0, 1 / 64), model.seed, 2).tolist()
    found = []
    for row, key in zip(x, keys, strict=True):
        generator = torch.Generator().manual_seed(key)
        noise = torch.randn(model.draws, *row.shape, generator=generator, dtype=x.dtype)
        found.append(net(row + model.sigma * noise))
    return torch.stack(found)


def test_the_logits_are_votes_and_their_gradient_that_of_the_mean_softmax():
    net, x = convnet(dtype=torch.float64), images(6, torch.float64)
    model = smoothed(net, draws=20, batch_size=50)
    leaf = x.clone().requires_grad_()
    logits = model.logits(leaf)
    copies = by_hand(net, model, other := x.clone().requires_grad_())
    mean = copies.softmax(2).mean(1)
    votes = nn.functional.one_hot(copies.argmax(2), 3).sum(1)
    torch.testing.assert_close(logits.exp(), (votes + mean) / 21)
    torch.testing.assert_close(model.scores(x), votes.double() / 20)
    weights = torch.linspace(-1, 2, 18, dtype=torch.float64).view(6, 3)
    (got,) = torch.autograd.grad((weights * logits).sum(), leaf)
    (expected,) = torch.autograd.grad((weights * mean.log()).sum(), other)
    torch.testing.assert_close(got, expected)
    assert got.abs().sum() > 0


def test_ties_of_the_votes_are_decided_by_the_mean_softmax_and_nothing_else_is():
    """One confident copy does not outweigh two that are not; alike in number, it does."""

    class Fixed(nn.Module):
        def __init__(self, rows):
            super().__init__()
            self.rows = torch.tensor(rows)

        def forward(self, x):
            return self.rows + 0 * x.sum()

    confident = [[90.0, 0.0], [0.0, 0.01]]
    x = torch.full((1, 2), 0.5)
    tie = smoothed(Fixed(confident), draws=2)
    assert tie.logits(x).argmax(1).tolist() == [0]
    majority = smoothed(Fixed([*confident, [0.0, 0.01]]), draws=3)
    assert majority.logits(x).argmax(1).tolist() == [1]
    sure = smoothed(Fixed([[900.0, 0.0]] * 4), draws=4).logits(x)
    assert sure.isfinite().all()  # no share is zero


def test_an_attack_on_the_model_is_the_adaptive_attack():
    """The smoothed classifier of a half-space falls just beyond the distance to it."""
    net, x = halfspace(), inputs(40)
    x = x[net.distance(x, "l2") > 0.05]
    distance, y = net.distance(x, "l2"), net(x).argmax(1)
    model = RandomizedSmoothing(net, 0.05, draws=64)
    for ratio, success in ((0.7, False), (1.3, True)):
        wide = TorchClassifier(net, bounds=(-9, 9))
        inner = RandomizedSmoothing(wide, 0.05, draws=64)
        result = attacks.PGD(norm="l2", eps=ratio * distance, steps=10).run(inner, x, y)
        assert (result.success == success).float().mean() > 0.9
    assert model.predict(x).eq(y).float().mean() > 0.5


def test_a_model_without_logits_or_scores_is_smoothed_too():
    x = images(8)
    tree = DecisionTreeClassifier(random_state=0).fit(x.flatten(1), torch.arange(8) % 3)
    model = smoothed(tree, n=100)
    assert not hasattr(model, "logits")
    assert model.certify(x).labels.shape == (8,)
    with pytest.raises(TypeError, match=", a ScoreClassifier"):
        attacks.FGSM(eps=0.1)(model, x)
    labels = CallableClassifier(lambda rows: [1] * len(rows), 3, output="labels")
    assert smoothed(labels).predict(x).tolist() == [1] * 8
    assert smoothed(labels).scores(x).tolist() == [[0, 1, 0]] * 8


class Picky:
    """Accepts an input in the half of the noise that raises its first feature."""

    bounds, num_classes = (0.0, 1.0), 2

    def __init__(self, threshold):
        self.threshold = threshold

    def predict(self, x):
        return torch.where(x[:, 0] > self.threshold, 1, REJECTED)


def test_rejections_by_the_model_are_one_more_answer():
    x = torch.full((1, 2), 0.5)
    mostly = smoothed(Picky(0.3), draws=500, n=1000)
    assert mostly.predict(x).tolist() == [1]
    share = norm.cdf(0.2 / SIGMA)
    assert mostly.scores(x)[0].tolist() == [0, pytest.approx(share, abs=0.08)]
    certificates = mostly.certify(x)
    assert certificates.labels.tolist() == [1]
    assert 0.1 < certificates.radius.item() < 0.2
    never = smoothed(Picky(2.0), n=1000)
    assert never.predict(x).tolist() == [REJECTED]
    certificates = never.certify(x)
    assert certificates.labels.tolist() == [REJECTED]
    assert certificates.radius.tolist() == [0]


def test_the_model_is_held_and_left_as_it_was():
    net, x = convnet().train(), images(3)
    model = smoothed(net, n0=20, n=40, draws=5)
    before = torch.get_rng_state()
    model.predict(x)
    model.certify(x)
    model.scores(x)
    leaf = x.clone().requires_grad_()
    model.logits(leaf).sum().backward()
    with evaluating(model):
        assert not net.training
    assert net.training
    assert net.calls == 0
    assert all(p.requires_grad for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_draws_of_the_model_itself_go_on_from_pass_to_pass():
    class Chance(nn.Module):
        def forward(self, x):
            return torch.randn(len(x), 10) + 0 * x.sum()

    x = inputs(2).float()
    model = smoothed(TorchClassifier(Chance(), mode="keep"), draws=100, batch_size=100)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for answer in (model.logits(x), model.scores(x)):
            assert not torch.equal(answer[0], answer[1])
        assert torch.equal(model.logits(x), model.logits(x))


def test_it_says_what_it_is():
    model = smoothed(TorchClassifier(convnet(), bounds=(-2, 3), num_classes=3))
    assert (
        repr(model) == "RandomizedSmoothing(TorchClassifier(ConvNet, bounds=(-2, 3)), sigma=0.25)"
    )
    assert (model.bounds, model.num_classes) == ((-2, 3), 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_dtype_is_certified_and_nothing_is_rounded_up(dtype):
    x = torch.full((1, 2), 0.5, dtype=dtype)
    always = CallableClassifier(lambda rows: [1] * len(rows), 2, output="labels")
    certificates = smoothed(always, n=1000).certify(x)
    exact = 0.001 ** (1 / 1000)
    assert certificates.p_lower.dtype == certificates.radius.dtype == dtype
    eps = torch.finfo(dtype).eps
    assert exact * (1 - eps) <= certificates.p_lower.item() <= exact
    assert certificates.radius.item() <= SIGMA * norm.ppf(exact)
    assert certificates.radius.item() >= SIGMA * norm.ppf(exact) * (1 - eps)
    model = smoothed(convnet(dtype=dtype), draws=5)
    leaf = images(2, dtype).requires_grad_()
    logits = model.logits(leaf)
    assert logits.dtype == model.scores(leaf).dtype == torch.promote_types(dtype, torch.float32)
    logits[:, 0].sum().backward()
    assert leaf.grad.abs().sum() > 0


def test_no_inputs_have_no_answers():
    x = torch.zeros(0, 1, 6, 6)
    model = smoothed(convnet())
    assert model.predict(x).shape == (0,)
    assert model.scores(x).shape == model.logits(x).shape == (0, 3)
    certificates = model.certify(x)
    assert certificates.labels.shape == certificates.radius.shape == (0,)


def certificates_of(labels, radii):
    return Certificates(
        labels=torch.tensor(labels),
        radius=torch.tensor(radii),
        counts=torch.tensor([90] * len(labels)),
        p_lower=torch.tensor([0.8] * len(labels)),
        sigma=0.5,
        n=100,
        alpha=0.001,
    )


def test_certified_accuracy_counts_what_is_right_and_proved():
    certificates = certificates_of([0, 1, REJECTED, 1], [0.25, 0.5, 0.0, 0.1])
    y = torch.tensor([0, 1, 1, 0])
    assert certificates.certified_accuracy(y, 0) == 0.5
    assert certificates.certified_accuracy(y, 0.2) == 0.5
    assert certificates.certified_accuracy(y, 0.25) == 0.25  # a label holds within, not at, it
    assert certificates.certified_accuracy(y, 0.5) == 0
    exact = certificates_of([0], [0.3])
    assert exact.certified_accuracy(torch.tensor([0]), float(exact.radius)) == 0
    assert exact.certified_accuracy(torch.tensor([0]), 0.3) == 1  # 0.3 of float32 is above 0.3
    with pytest.raises(ValueError, match=r"`y` must have shape \(4,\)"):
        certificates.certified_accuracy(y[:3], 0.1)
    with pytest.raises(ValueError, match="`radius` must be at least 0"):
        certificates.certified_accuracy(y, -0.1)


def test_certificates_print_as_a_table():
    certificates = certificates_of([0, 1, REJECTED, 1], [0.25, 0.6, 0.0, 0.1])
    assert str(certificates).splitlines() == [
        "4 inputs, sigma 0.5, 100 draws, alpha 0.001; 1 abstained",
        "l2 radius  certified",
        "     0.000          3",
        "     0.250          1",
        "     0.500          1",
        "     0.750          0",
    ]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"sigma": 0}, ValueError, "`sigma` must be positive"),
        ({"sigma": math.nan}, ValueError, "`sigma` must be positive"),
        ({"sigma": "1"}, TypeError, "`sigma` must be a number"),
        ({"n0": 0}, ValueError, "`n0` must be at least 1"),
        ({"n": 0}, ValueError, "`n` must be at least 1"),
        ({"n": 1e4}, TypeError, "`n` must be an int"),
        ({"draws": 0}, ValueError, "`draws` must be at least 1"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1"),
        ({"seed": 0.5}, TypeError, "`seed` must be an int"),
        ({"alpha": 0}, ValueError, "`alpha` must lie in .0, 1."),
        ({"alpha": 1}, ValueError, "`alpha` must lie in .0, 1."),
        ({"alpha": math.nan}, ValueError, "`alpha` must lie in .0, 1."),
        ({"alpha": None}, TypeError, "`alpha` must be a number"),
        ({"model": 3}, TypeError, "got int"),
    ],
)
def test_what_cannot_be_is_refused(settings, error, message):
    with pytest.raises(error, match=message):
        RandomizedSmoothing(**{"model": convnet(), "sigma": SIGMA, **settings})


@pytest.mark.parametrize("call", ["predict", "certify", "scores"])
def test_inputs_are_checked_before_any_draw(call):
    def never(rows):
        raise AssertionError("asked")

    model = smoothed(CallableClassifier(never, 2, output="labels"))
    x = torch.full((3, 2), 0.5)
    x[1, 0] = math.nan
    with pytest.raises(ValueError, match=r"got NaN or infinity \(sample 1\)"):
        getattr(model, call)(x)
    with pytest.raises(ValueError, match=r"must lie in the model's bounds \[0, 1\]"):
        getattr(model, call)(torch.full((3, 2), 1.5))


def test_inputs_of_logits_are_checked_and_have_gradients():
    model = smoothed(convnet())
    x = images(2).requires_grad_()
    model.logits(x).sum().backward()
    assert x.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"must lie in the model's bounds \[0, 1\]"):
        model.logits(1000 * images(2))


def test_logits_that_are_not_finite_are_an_error_of_their_input():
    class Broken(nn.Module):
        def forward(self, x):
            return x.where(x > 0.5, math.nan)

    x = torch.tensor([[99.0, 99.0], [99.0, 0.6]])
    model = smoothed(TorchClassifier(Broken(), bounds=(0, 100)))
    with pytest.raises(ValueError, match=r"finite logits, got NaN or infinity \(sample 1\)"):
        model.logits(x)


def test_gaussian_noise_is_cross_entropy_at_noisy_inputs():
    net, x = convnet(), images(5)
    y = torch.arange(5) % 3
    with torch.random.fork_rng():
        torch.manual_seed(4)
        noise = torch.randn_like(x)
        torch.manual_seed(4)
        loss = GaussianNoise(sigma=0.3)(net, x, y)
        assert not torch.equal(GaussianNoise(sigma=0.3)(net, x, y), loss)
    expected = nn.functional.cross_entropy(net(x + 0.3 * noise), y)
    torch.testing.assert_close(loss, expected)
    for sigma in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="`sigma` must be positive"):
            GaussianNoise(sigma=sigma)
    with pytest.raises(ValueError, match="`y` must be below 3"):
        GaussianNoise(sigma=0.3)(net, x, y + 1)
    grads = torch.autograd.grad(loss, list(net.parameters()))
    wanted = torch.autograd.grad(expected, list(net.parameters()))
    for got, want in zip(grads, wanted, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("alpha", [0.999, 0.5, 0.49, 0.1, 0.05, 0.001, 2.0**-10, 1e-12])
def test_the_fewest_draws_are_those_that_decide_when_all_agree(alpha):
    always = CallableClassifier(lambda rows: [1] * len(rows), 2, output="labels")
    n0, n = min_draws(alpha)
    assert 2 * 0.5**n0 <= alpha < 2 * 0.5 ** (n0 - 1)
    assert alpha ** (1 / n) > 0.5
    assert alpha <= 0.5 ** (n - 1)
    model = smoothed(always, n0=n0, n=n, alpha=alpha)
    x = inputs(1).double()
    assert model.predict(x).tolist() == [1]
    assert model.certify(x).labels.tolist() == [1]
    wanted = f"`n0` must be at least {n0} and `n` at least {n} to decide at alpha="
    for fewer in ({"n0": n0 - 1, "n": n}, {"n0": n0, "n": n - 1}):
        if min(fewer.values()) > 0:
            with pytest.raises(ValueError, match=wanted):
                smoothed(always, alpha=alpha, **fewer)
            # what it would have answered: nothing
            model.n0, model.n = fewer["n0"], fewer["n"]
            answers = (model.predict(x).tolist(), model.certify(x).labels.tolist())
            assert [REJECTED] in answers
