"""Suite: which samples get which stage, and what it finds where gradients mislead."""

from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import nn

from advkit import CallableClassifier, InconclusiveWarning, TorchClassifier, attacks
from advkit.attacks.square import SquareFrom
from advkit.core.attack_options import with_seed
from tests.toys import Halfspace, answers, convnet, images

NORMS = ("linf", "l2", "l1")
FAST, MORE = 9, 6  # stages in linf, and those that thorough adds


class Recorded(attacks.Suite):
    """Suite with public stages, which remembers the samples that each one was to attack."""

    masks: ClassVar[list] = []

    def stages(self):
        return list(self._stages(10))

    def _selected(self, i, violations):
        mask = super()._selected(i, violations)
        self.masks.append(mask.tolist())
        return mask


@pytest.fixture
def masks():
    Recorded.masks.clear()
    return Recorded.masks


class Reversed(nn.Module):
    """A net whose gradient points the wrong way."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(2 * x.detach() - x)


def samples_with_left(shares, eps):
    """Return a linear net, and inputs of which an attack leaves these shares of the margin."""
    d = 16
    net = Halfspace(torch.full((d,), 1 / d, dtype=torch.float64), -0.5)
    margins = torch.tensor([eps / (1 - share) for share in shares], dtype=torch.float64)
    x = (0.5 - margins)[:, None].expand(-1, d).clone()
    return TorchClassifier(net, bounds=(-5, 5)), x, torch.zeros(len(x), dtype=torch.int64)


def test_a_sample_gets_the_stages_that_the_rest_of_its_margin_allows(masks):
    shares = [0.55, 0.45, 0.35, 0.25]
    model, x, y = samples_with_left(shares, eps=0.1)
    result = Recorded(eps=0.1).run(model, x, y)
    assert not result.success.any()
    # PGD reaches the corner of the ball, on which no later attack improves
    assert masks[:3] == [[True] * 4] * 3
    assert masks[3] == [False] * 4, "no search found more than the gradients"
    assert masks[4] == [False, True, True, True]
    assert masks[5] == [False, False, True, True]
    assert masks[6] == [False, False, False, True]
    assert masks[7:] == [[False] * 4] * 2, "the violation no longer falls"
    passes = result.queries.forward + result.queries.backward
    assert all(a < b for a, b in pairwise(passes.tolist()))
    assert passes[0] < 200


def test_the_stages():
    """The table of the docstring."""

    def described(norm, effort="fast"):
        stages = Recorded(eps=0.1, norm=norm, effort=effort).stages()
        names = ("loss", "steps", "restarts", "momentum", "candidates", "max_queries", "p_init")
        return [
            (type(attack).__name__, *(value for name in names if (value := vars(attack).get(name))))
            for attack in stages
        ]

    def first(steps, momentum):
        return [
            ("PGD", "ce", 20, 1),
            ("PGD", "margin", steps, 1, *momentum),
            ("Square", 100),
            ("Square", 5000),
            ("FAB", 60, 1),
        ]

    def added(apgd, runs):
        return [
            ("APGD", "margin", *apgd),
            ("FAB", 360, 1, 9),
            runs,
            ("Square", 2500),
            ("SquareFrom", 2500, 0.02),
            ("Square", 10000),
        ]

    linf = [
        *first(20, ()),
        ("PGD", "margin", 20, 2),
        ("SquareFrom", 200, 0.02),
        ("SquareFrom", 400, 0.02),
        ("SquareFrom", 1500, 0.01),
    ]
    assert described("linf") == linf
    assert described("linf", "thorough") == [
        *linf, *added((50, 1, 9), ("PGD", "margin", 20, 10))
    ]  # fmt: skip
    assert described("l2") == [*first(20, ()), ("PGD", "margin", 20, 2), ("PGD", "margin", 20, 4)]
    assert described("l1", "thorough") == [
        *first(40, (0.75,)),
        ("APGD", "ce", 100, 1),
        ("APGD", "margin", 100, 1),
        ("APGD", "ce", 100, 2),
        *added((100, 1, 5), ("APGD", "ce", 100, 5)),
    ]


def test_the_last_square_begins_at_the_strongest_iterates(monkeypatch):
    starts, run = [], SquareFrom.run

    def spy(attack, *args, **options):
        starts.append(attack.start)
        return run(attack, *args, **options)

    monkeypatch.setattr(SquareFrom, "run", spy)
    model, x, y = samples_with_left([0.9, 0.25], eps=0.1)
    attacks.Suite(eps=0.1).run(model, x, y)
    assert len(starts) == 1
    assert torch.allclose(starts[0], x[1:] + 0.1), "the corner that PGD reached"


@pytest.mark.parametrize("norm", ["l2", "l1"])
def test_in_l2_and_l1_the_last_stages_have_more_starts(norm, masks):
    suite = Recorded(eps={"l2": 0.05, "l1": 0.2}[norm], norm=norm)
    suite.run(convnet(), images(6))
    assert len(masks) == {"l2": 7, "l1": 8}[norm]
    assert suite.stages()[-1].restarts > 1


@pytest.mark.parametrize("norm", NORMS)
def test_gradients_that_mislead_are_noticed_and_replaced(norm):
    d = 16
    net = Halfspace(torch.full((d,), 1.0, dtype=torch.float64), -8.0)
    x = torch.full((4, d), 0.45, dtype=torch.float64)
    y = torch.zeros(4, dtype=torch.int64)
    eps = {"linf": 0.09, "l2": 0.4, "l1": 1.4}[norm]
    honest = attacks.Suite(eps=eps, norm=norm).run(net, x, y)
    assert honest.stage.tolist() == [0] * 4
    misled = attacks.Suite(eps=eps, norm=norm).run(Reversed(net), x, y)
    assert misled.success.all()
    assert set(misled.stage.tolist()) <= {2, 3}, "Square, not an attack with gradients"


def test_a_sample_that_square_cannot_fool_either_gets_all_its_queries(masks):
    net = Halfspace(torch.full((16,), 1.0, dtype=torch.float64), -8.0)
    x, y = torch.full((1, 16), 0.45, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
    result = Recorded(eps=0.049).run(Reversed(net), x, y)
    assert not result.success.any()
    assert masks[3] == [True]
    assert result.queries.forward[0] > 5000


class Blinkered(nn.Module):
    """A net whose gradient shows the first feature alone."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(torch.cat([x[:, :1], x[:, 1:].detach()], dim=1))


def test_gradients_that_lead_less_far_than_random_search_mislead_too(masks):
    net = Halfspace(torch.full((16,), 1.0, dtype=torch.float64), -8.0)
    x, y = torch.full((2, 16), 0.45, dtype=torch.float64), torch.zeros(2, dtype=torch.int64)
    result = Recorded(eps=0.049).run(Blinkered(net), x, y)
    pgd = attacks.PGD(eps=0.049)(Blinkered(net), x, y)
    assert (net.value(pgd) > net.value(x)).all(), "PGD improves on the clean input"
    assert masks[3] == [True] * 2
    assert (result.queries.forward > 5000).all()


class Plateaus(nn.Module):
    """Labels alone as logits, with a gradient of zero."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        z = self.net(x)
        return 5 * nn.functional.one_hot(z.argmax(1), z.shape[1]).to(z.dtype) + 0 * z


def test_samples_on_a_plateau_get_the_queries_of_square(masks):
    net = Halfspace(torch.tensor([1.0, -1.0] * 8, dtype=torch.float64), -0.5)
    x, y = torch.full((4, 16), 0.5, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    suite = Recorded(eps=0.045)
    result = suite.run(Plateaus(net), x, y)
    assert masks[3] == [True] * 4
    square = attacks.Square(eps=0.045, max_queries=5000, seed=suite.stages()[3].seed)
    assert (result.success >= square.run(Plateaus(net), x, y).success).all()
    assert result.success.any()


def test_a_sample_whose_clean_input_is_rejected_gets_every_stage(masks):
    model, x, y = samples_with_left([0.9], eps=0.1)
    net = model.module

    class Rejecting(nn.Module):
        def forward(self, inputs):
            same = (inputs == x).flatten(1).all(1, keepdim=True)
            return net(inputs).masked_fill(same, -torch.inf)

    Recorded(eps=0.1).run(TorchClassifier(Rejecting(), bounds=(-5, 5)), x, y)
    assert masks[3:7] == [[True]] * 4


@pytest.mark.parametrize("norm", NORMS)
def test_thorough_begins_as_fast_does(norm):
    fast, thorough = (Recorded(eps=0.1, norm=norm, effort=e) for e in ("fast", "thorough"))
    starts = zip(fast.stages(), thorough.stages(), strict=False)
    assert all(repr(a) == repr(b) for a, b in starts)
    assert len(thorough.stages()) == len(fast.stages()) + MORE


def test_thorough_attacks_every_sample_that_is_left(masks):
    model, x, y = samples_with_left([0.9, 0.2], eps=0.1)
    Recorded(eps=0.1, effort="thorough").run(model, x, y)
    assert len(masks) == FAST + MORE
    assert masks[FAST:-1] == [[True, True]] * (MORE - 1)
    assert masks[-1] == [False, False], "gradients do not mislead"


def test_no_two_stages_share_random_numbers():
    suite = Recorded(eps=0.1, effort="thorough", seed=5)
    seeds = [attack.seed for attack in suite.stages()]
    following = [attack.seed for attack in with_seed(suite, 6).stages()]
    assert len({*seeds, *following}) == 2 * len(seeds)


def test_never_runs_every_stage_on_every_sample_and_returns_the_strongest():
    net, x = convnet(), images(3)
    y = answers(net, x)
    first, never = (attacks.Suite(eps=0.02, stop=s).run(net, x, y) for s in ("first", "never"))
    assert (never.queries.forward > 5000).all()
    assert (first.success <= never.success).all()


def test_the_passes_of_a_sample_do_not_depend_on_the_others():
    net, x = convnet().double(), images(8).double()
    y = answers(net, x)
    suite = attacks.Suite(eps=0.03)
    whole = suite.run(net, x, y)
    alone = [suite.run(net, x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
    assert whole.success.tolist() == [bool(one.success) for one in alone]
    assert whole.stage.tolist() == [int(one.stage) for one in alone]
    assert whole.queries.backward.tolist() == [int(one.queries.backward) for one in alone]
    assert len(set(whole.queries.backward.tolist())) > 1


class InPairs(nn.Module):
    """A net that always gets two samples at once, since one alone may be rounded differently."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        pairs = torch.cat([x, x[-1:]])[: len(x) + len(x) % 2].split(2)
        return torch.cat([self.net(pair) for pair in pairs])[: len(x)]


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.03), ("l2", 0.2), ("l1", 1.0)])
def test_equal_outputs_of_the_net_give_equal_results_in_every_batch(norm, eps):
    net, x = InPairs(convnet()), images(6)
    y = answers(net, x)
    suite = attacks.Suite(eps=eps, norm=norm)
    whole = suite.run(net, x, y)
    parts = [suite.run(net, *part) for part in zip(x.split(2), y.split(2), strict=True)]
    assert torch.equal(whole.x_adv, torch.cat([part.x_adv for part in parts]))
    assert torch.equal(whole.stage, torch.cat([part.stage for part in parts]))


def test_targets():
    net, x = convnet(), images(4)
    target = (answers(net, x) + 1) % 3
    result = attacks.Suite(eps=0.5).run(net, x, target=target)
    assert result.success.all()
    assert torch.equal(answers(net, result.x_adv), target)


@pytest.mark.filterwarnings("default:Recorded left out")
def test_a_model_without_gradients_is_attacked_by_square_alone():
    x = torch.rand(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    forest = RandomForestClassifier(20, random_state=0).fit(x.numpy(), x[:, 0] > 0.5)
    suite = Recorded(eps=0.3)
    with pytest.warns(InconclusiveWarning, match="left out PGD"):
        result = suite.run(forest, x[:20])
    square = attacks.Square(eps=0.3, max_queries=100, seed=suite.stages()[2].seed)
    assert (result.success >= square.run(forest, x[:20]).success).all()
    assert not result.queries.backward.any()
    assert not result.no_gradient.any()


def test_labels_alone_are_not_enough():
    labels = CallableClassifier(lambda rows: (rows[:, 0] > 0.5).astype(int), 2, output="labels")
    with pytest.raises(TypeError, match="Suite.*Use HopSkipJump"):
        attacks.Suite(eps=0.1).run(labels, torch.rand(3, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"effort": "slow"}, "`effort` must be .*'fast'.*'thorough', got 'slow'"),
        ({"norm": "lp"}, "`norm` must be one of 'linf', 'l2', 'l1', 'l0', got 'lp'"),
        ({"eps": -0.1}, "`eps` must be at least 0 and finite, got -0.1"),
        ({"stop": "last"}, "`stop` must be"),
        ({"seed": 0.5}, "`seed` must be an int"),
        ({"progress": 1}, "`progress` must be"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        attacks.Suite(**{"eps": 0.1, **options})


@pytest.mark.parametrize("norm", NORMS)
class TestSquareFrom:
    """The search from given iterates, which belongs to no one but Suite."""

    def test_it_begins_at_the_iterates_and_only_improves_on_them(self, norm):
        net, x = convnet(), images(4)
        y, eps = answers(net, x), {"linf": 0.05, "l2": 0.3, "l1": 1.0}[norm]
        pgd = attacks.PGD(eps=eps / 2, norm=norm, steps=3, stop="never")(net, x, y)
        sent = []
        net.register_forward_pre_hook(lambda _, args: sent.append(args[0].clone()))
        options = {"eps": eps, "norm": norm, "p_init": 0.1, "start": pgd, "stop": "never"}
        result = SquareFrom(**options, max_queries=60).run(net, x, y)
        assert torch.allclose(sent[0], pgd, atol=1e-6)
        assert (margins(net, result.x_adv, y) >= margins(net, pgd, y)).all()
        assert (margins(net, result.x_adv, y) > margins(net, pgd, y)).any()
        assert (result.distance <= eps * (1 + 1e-5)).all()
        assert (result.queries.forward == 60).all()

    def test_iterates_outside_the_ball_are_projected_onto_it(self, norm):
        net, x = convnet(), images(4)
        options = {"eps": 0.05, "norm": norm, "p_init": 0.1, "stop": "never", "max_queries": 3}
        result = SquareFrom(**options, start=1 - x).run(net, x, answers(net, x))
        assert (result.distance <= 0.05 * (1 + 1e-5)).all()


def test_its_boxes_have_one_size():
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), torch.full((1, 1, 8, 8), 0.5)
    net.requires_grad_(False)[1].weight.zero_()  # on a plateau every change is kept
    y, sent = answers(net, x), []
    net.register_forward_pre_hook(lambda _, args: sent.append(args[0].clone()))
    options = {"eps": 0.1, "p_init": 16 / 64, "start": x, "stop": "never", "max_queries": 60}
    SquareFrom(**options).run(net, x, y)
    changed = [int((b != a).sum()) for a, b in pairwise(sent[:-1])]
    assert changed[0] == 16
    assert max(changed) == 16
    assert max(changed[-10:]) > 4, "the boxes of Square have one feature here"


def margins(net, x, y):
    z = net(x)
    own = z.gather(1, y[:, None])
    return (z.scatter(1, y[:, None], -torch.inf).amax(1, keepdim=True) - own).flatten()
