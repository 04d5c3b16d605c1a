"""Substitute: what the victim is asked, what the net learns of it, and how alike they get."""

import copy
from contextlib import contextmanager

import pytest
import torch
from sklearn.tree import DecisionTreeClassifier
from torch import nn
from torch.nn import functional as F

from advkit import CallableClassifier, QueryBudgetExceeded, QueryCounter, TorchClassifier, attacks
from tests.toys import Halfspace, convnet, images

SHORT = {"epochs": 2, "lr": 0.01}


class Stripes:
    """A victim of labels only, three classes by the first feature; remembers what it was asked.

    With a `net` also the weights that it had at that time.
    """

    num_classes = 3

    def __init__(self, net=None, bounds=(0.0, 1.0)):
        self.asked, self.weights = [], []
        self.net, self.bounds = net, bounds

    def predict(self, x):
        self.asked.append(x.clone())
        if self.net is not None:
            self.weights.append(weight_of(self.net).clone())
        lower, upper = self.bounds
        return ((x[:, 0] - lower) / (upper - lower) * 3).long().clamp(max=2)

    @property
    def sizes(self):
        return [len(x) for x in self.asked]


def weight_of(net):
    """The weights `(classes, d)` of the last layer."""
    return [p for p in net.parameters() if p.ndim == 2][-1].detach()


def points(n, d=5, seed=0, bounds=(0.0, 1.0)):
    lower, upper = bounds
    x = torch.rand(n, d, generator=torch.Generator().manual_seed(seed))
    return lower + (upper - lower) * x


def linear(d=5, classes=3, seed=0):
    """The same linear net at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Linear(d, classes)


def deep(d=5, classes=3):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(d, 24), nn.ReLU(), nn.Dropout(0.2), nn.Linear(24, classes))


@pytest.mark.parametrize(
    ("seeds", "queries", "rounds", "sizes"),
    [
        (30, 100, 6, [30, 60, 100]),
        (30, 30, 6, [30]),
        (30, 31, 6, [30, 31]),
        (30, 60, 6, [30, 60]),
        (10, 1000, 3, [10, 20, 40, 80]),
        (10, 1000, 0, [10]),
        (1, 3, 6, [1, 2, 3]),
    ],
)
@pytest.mark.parametrize("test", [None, 17])
def test_the_victim_is_asked_as_often_as_it_says(seeds, queries, rounds, sizes, test):
    counter = QueryCounter(Stripes())
    substitute = attacks.Substitute(max_queries=queries, rounds=rounds, **SHORT)
    found = substitute.fit(counter, linear(), points(seeds), test and points(test, seed=1))
    assert [agreement.queries for agreement in found.history] == sizes
    assert found.queries == sizes[-1] <= queries
    assert found.test_queries == (test or 0)
    assert counter.forward == found.queries + found.test_queries


@pytest.mark.parametrize("drop", [0.0, 0.5])
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-2.0, 6.0)])
def test_what_is_asked_is_moved_along_the_gradient_of_the_victims_label(drop, bounds):
    """Of a linear net that is the sign of the label's weights, in every round anew."""
    net = nn.Sequential(nn.Dropout(drop), linear())
    victim = Stripes(net, bounds)
    x = points(30, bounds=bounds)
    attacks.Substitute(max_queries=120, step_size=0.3, **SHORT).fit(victim, net, x)
    assert victim.sizes == [30, 30, 60]
    known, others = x, 0
    rounds = zip((0.3, -0.3), victim.asked[1:], victim.weights[1:], strict=True)
    for step, asked, weight in rounds:
        y = Stripes(bounds=bounds).predict(known)
        others += int((net.eval()(known).argmax(1) != y).sum())
        moved = (known + step * weight[y].sign()).clamp(*bounds)
        torch.testing.assert_close(asked, moved)
        known = torch.cat([known, asked])
    assert not torch.equal(*victim.weights[1:])
    assert others > 0  # labels that are not the net's own
    on_walls = (known == bounds[0]) | (known == bounds[1])
    assert on_walls.any(1).any()


def test_where_the_queries_end_a_random_part_is_moved():
    net = linear()
    victim = Stripes(net)
    x = points(40)
    attacks.Substitute(max_queries=50, step_size=0.05, **SHORT).fit(victim, net, x)
    assert victim.sizes == [40, 10]
    every = (x + 0.05 * victim.weights[1][Stripes().predict(x)].sign()).clamp(0, 1)
    rows = torch.cdist(victim.asked[1], every).argmin(1)
    torch.testing.assert_close(victim.asked[1], every[rows])
    assert len(rows.unique()) == 10
    assert rows.max() > 20
    assert not torch.equal(rows, torch.arange(10))


def test_it_sends_batches():
    net = linear()
    victim, small = Stripes(net), attacks.Substitute(max_queries=60, batch_size=16, **SHORT)
    x = points(30)
    small.fit(victim, net, x, points(20, seed=1))
    assert victim.sizes == [16, 14, 16, 4, 16, 14]
    moved = x + 0.1 * victim.weights[-1][Stripes().predict(x)].sign()
    torch.testing.assert_close(torch.cat(victim.asked[-2:]), moved.clamp(0, 1))


def test_the_net_learns_by_adam_on_the_victims_labels():
    net, x = linear(), points(30)
    copy_ = copy.deepcopy(net)
    attacks.Substitute(max_queries=30, epochs=1, lr=0.02).fit(Stripes(), net, x)
    optimizer = torch.optim.Adam(copy_.parameters(), lr=0.02)
    F.cross_entropy(copy_(x), Stripes().predict(x)).backward()
    optimizer.step()
    torch.testing.assert_close(net.weight, copy_.weight)
    torch.testing.assert_close(net.bias, copy_.bias)


def test_in_each_round_it_goes_through_all_that_is_known():
    net, seen = linear(), []
    net.register_forward_pre_hook(lambda m, args: seen.append(args[0]) if m.training else None)
    x = points(30)
    attacks.Substitute(max_queries=100, epochs=3, batch_size=20).fit(Stripes(), net, x)
    assert [len(batch) for batch in seen] == 3 * [20, 10] + 3 * [20, 20, 20] + 3 * 5 * [20]
    first, second = torch.cat(seen[:2]), torch.cat(seen[2:4])
    assert torch.equal(first.sort(0).values, x.sort(0).values)
    assert torch.equal(second.sort(0).values, x.sort(0).values)
    assert not torch.equal(first, second)
    assert not torch.equal(first, x)
    assert not net.training


def test_agreement_is_the_share_of_the_test_inputs_that_both_label_alike():
    x, x_test = points(20), points(101, seed=1)
    said = Stripes().predict(x_test)
    histories = []
    for rounds in range(4):
        substitute = attacks.Substitute(max_queries=500, rounds=rounds, **SHORT)
        found = substitute.fit(Stripes(), deep(), x, x_test)
        same = found.model.predict(x_test) == said
        assert found.agreement == found.history[-1].rate == same.sum().item() / 101
        histories.append(found.history)
    assert len(histories[3]) == 4
    for rounds in range(3):
        assert histories[3][: rounds + 1] == histories[rounds]
    assert len({entry.rate for entry in histories[3]}) > 1


def test_without_test_inputs_there_is_no_agreement():
    found = attacks.Substitute(max_queries=60, **SHORT).fit(Stripes(), deep(), points(20))
    assert found.agreement is None
    assert [entry.rate for entry in found.history] == [None, None, None]
    assert found.test_queries == 0


def test_more_queries_make_it_more_alike():
    x, x_test = points(15), points(500, seed=1)
    substitute = attacks.Substitute(max_queries=480, epochs=20, lr=0.01)
    found = substitute.fit(Stripes(), deep(), x, x_test)
    assert found.history[-1].queries == 480
    assert found.agreement > 0.9
    assert found.agreement > found.history[0].rate + 0.1


def test_it_is_a_surrogate_for_transfer():
    x, x_test = points(50), points(300, seed=1)
    tree = DecisionTreeClassifier(random_state=0).fit(x_test.numpy(), x_test[:, 0] > 0.5)
    substitute = attacks.Substitute(max_queries=800, epochs=20, lr=0.01)
    found = substitute.fit(tree, deep(classes=2), x)
    y = torch.from_numpy(tree.predict(x_test.numpy())).long()
    transfer = attacks.Transfer(attack=attacks.FGSM(eps=0.2), surrogate=found.model)
    success = transfer.run(tree, x_test, y).success.double().mean()
    noise = attacks.RandomNoise(eps=0.2).run(tree, x_test, y).success.double().mean()
    assert success > noise + 0.15


def test_the_seed_decides_and_the_random_state_stays():
    x, x_test = points(30), points(50, seed=1)
    substitute = attacks.Substitute(max_queries=100, **SHORT)
    first, again, other = deep(), deep(), deep()
    before = torch.random.get_rng_state()
    found = substitute.fit(Stripes(), first, x, x_test)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    assert substitute.fit(Stripes(), again, x, x_test).history == found.history
    attacks.Substitute(max_queries=100, seed=1, **SHORT).fit(Stripes(), other, x, x_test)
    for a, b, c in zip(first.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_measuring_agreement_changes_nothing():
    x, plain, measured = points(30), deep(), deep()
    substitute = attacks.Substitute(max_queries=100, **SHORT)
    substitute.fit(Stripes(), plain, x)
    substitute.fit(Stripes(), measured, x, points(40, seed=1))
    for a, b in zip(plain.parameters(), measured.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    "victim",
    [
        Halfspace(torch.ones(5), b=-2.5),
        TorchClassifier(Halfspace(torch.ones(5), b=-2.5)),
        DecisionTreeClassifier().fit([[0.0] * 5, [1.0] * 5], ["no", "yes"]),
        CallableClassifier(lambda a: (a.sum(1) > 2.5).astype(int), 2, output="labels"),
    ],
    ids=["module", "classifier", "estimator", "labels"],
)
def test_any_victim(victim):
    found = attacks.Substitute(max_queries=40, **SHORT).fit(victim, linear(classes=2), points(20))
    assert found.model.num_classes == 2
    assert found.queries == 40


def test_the_victim_is_left_as_it_was():
    victim, net, x = convnet().train(), convnet(), images(10)
    state = copy.deepcopy(victim.state_dict())
    attacks.Substitute(max_queries=20, **SHORT).fit(victim, net, x)
    assert victim.training
    for name, value in victim.state_dict().items():
        assert torch.equal(value, state[name])
    assert all(p.grad is None for p in victim.parameters())
    assert not net.training


def test_the_victim_is_held_once_for_all_of_it():
    class Held(Stripes):
        holds = 0
        inside = False

        @contextmanager
        def evaluating(self):
            self.holds, self.inside = self.holds + 1, True
            yield
            self.inside = False

        def predict(self, x):
            assert self.inside
            return super().predict(x)

    victim = Held()
    attacks.Substitute(max_queries=60, **SHORT).fit(victim, linear(), points(20), points(9))
    assert victim.holds == 1
    assert not victim.inside


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_it_does_not_matter_whether_gradients_are_on(mode):
    x, expected, net = points(20), deep(), deep()
    attacks.Substitute(max_queries=40, **SHORT).fit(Stripes(), expected, x)
    with mode():
        attacks.Substitute(max_queries=40, **SHORT).fit(Stripes(), net, x.requires_grad_())
    assert torch.equal(weight_of(net), weight_of(expected))
    assert x.grad is None


def test_the_substitute_has_the_bounds_of_the_victim():
    victim = Stripes(bounds=(-2.0, 6.0))
    found = attacks.Substitute(max_queries=40, **SHORT).fit(victim, linear(), points(20))
    assert found.model.bounds == (-2, 6)


def test_a_budget_of_the_victims_own_ends_it():
    x, net, expected = points(30), deep(), deep()
    counter = QueryCounter(Stripes(), max_queries=59)
    with pytest.raises(QueryBudgetExceeded, match="30 more queries, got 29 of 59 left"):
        attacks.Substitute(max_queries=100, **SHORT).fit(counter, net, x)
    assert counter.forward == 30
    attacks.Substitute(max_queries=30, **SHORT).fit(Stripes(), expected, x)
    assert torch.equal(weight_of(net), weight_of(expected))
    assert not net.training


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        (
            {"x": points(101)},
            ValueError,
            "`x` must hold at least 1 sample and at most 100.*got 101",
        ),
        ({"x": points(0)}, ValueError, "`x` must hold at least 1 sample.*got 0"),
        ({"x": points(5) + 1}, ValueError, r"`x` must lie in the model's bounds \[0, 1\]"),
        ({"x": points(5).long()}, TypeError, "`x` must have a floating dtype"),
        ({"x_test": points(0)}, ValueError, "`x_test` must hold at least 1 sample or be None"),
        ({"x_test": points(5) + 1}, ValueError, r"must lie in the model's bounds \[0, 1\]"),
        ({"net": lambda x: x}, TypeError, "`net` must be a torch.nn.Module, got function"),
        ({"victim": "tree"}, TypeError, "`model` must be a torch.nn.Module.*got str"),
    ],
)
def test_wrong_arguments(changes, error, said):
    given = {"victim": Stripes(), "net": linear(), "x": points(20), **changes}
    with pytest.raises(error, match=said):
        attacks.Substitute(max_queries=100).fit(**given)
    assert given["victim"] == "tree" or not given["victim"].asked


class Wrapped(nn.Module):
    """Logits in a mapping, which the training loop cannot learn from."""

    def forward(self, x):
        return {"logits": x[:, :3]}


@pytest.mark.parametrize(
    ("net", "got"),
    [(linear(classes=2), r"\(1, 2\)"), (linear(classes=4), r"\(1, 4\)"), (Wrapped(), "dict")],
)
def test_a_net_with_other_outputs_is_refused_before_the_rest_is_paid_for(net, got):
    victim = Stripes()
    with pytest.raises(ValueError, match=rf"`net` must return logits of shape \(1, 3\).*got {got}"):
        attacks.Substitute(max_queries=100).fit(victim, net, points(20), points(20))
    assert victim.sizes == [20]


def test_it_shows_its_rounds(capsys):
    pytest.importorskip("tqdm")
    attacks.Substitute(max_queries=40, progress=True, **SHORT).fit(Stripes(), linear(), points(20))
    shown = capsys.readouterr().err
    assert "rounds" in shown
    assert "2/7" in shown
    attacks.Substitute(max_queries=40, **SHORT).fit(Stripes(), linear(), points(20))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"max_queries": 0}, ValueError, "`max_queries` must be at least 1, got 0"),
        ({"max_queries": 1e3}, TypeError, "`max_queries` must be an int, got float"),
        ({"rounds": -1}, ValueError, "`rounds` must be at least 0, got -1"),
        ({"step_size": 0.0}, ValueError, "`step_size` must be positive and finite, got 0.0"),
        ({"step_size": float("nan")}, ValueError, "`step_size` must be positive.*got nan"),
        ({"epochs": 0}, ValueError, "`epochs` must be at least 1, got 0"),
        ({"lr": -1e-3}, ValueError, "`lr` must be positive and finite, got -0.001"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1, got 0"),
        ({"seed": "0"}, TypeError, "`seed` must be an int, got str"),
        ({"progress": 1}, TypeError, "`progress` must be True or False, got int"),
    ],
)
def test_wrong_settings(settings, error, said):
    with pytest.raises(error, match=said):
        attacks.Substitute(**{"max_queries": 100, **settings})


def test_a_last_batch_of_one_is_no_batch_for_a_batch_norm():
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    found = attacks.Substitute(max_queries=65, batch_size=32, **SHORT).fit(
        Stripes(), net, points(33)
    )
    assert found.queries == 65


@pytest.mark.parametrize("limit", [0, 16, 48, 60, 80])
@pytest.mark.parametrize("tested", [False, True])
def test_answers_outlive_a_spent_budget_and_are_not_paid_twice(limit, tested):
    x, x_test = points(32), points(16, seed=7) if tested else None
    substitute = attacks.Substitute(max_queries=100, batch_size=16, **SHORT)
    plain = substitute.fit(Stripes(), deep(), x, x_test)
    with pytest.raises(QueryBudgetExceeded) as caught:
        substitute.fit(QueryCounter(Stripes(), max_queries=limit), deep(), x, x_test)
    answers = getattr(caught.value, "answers", None)
    paid = 0 if answers is None else len(answers.inputs)
    assert paid == limit - limit % 16
    rest = QueryCounter(Stripes())
    found = substitute.fit(rest, deep(), x, x_test, answers=answers)
    missing = plain.queries + plain.test_queries - paid
    assert missing - 20 < rest.forward <= missing  # less: some moves lead back to a known input
    assert torch.equal(weight_of(found.model.module), weight_of(plain.model.module))
    assert found.history == plain.history


def test_answers_outlive_an_interrupt_of_the_training():
    class Interrupted(nn.Linear):
        def forward(self, x):
            if self.training and len(x) < 16:
                raise KeyboardInterrupt
            return super().forward(x)

    with pytest.raises(KeyboardInterrupt) as caught:
        attacks.Substitute(max_queries=40, batch_size=16).fit(
            Stripes(), Interrupted(5, 3), points(20)
        )
    assert torch.equal(caught.value.answers.inputs, points(20))
    assert torch.equal(caught.value.answers.outputs, Stripes().predict(points(20)))
