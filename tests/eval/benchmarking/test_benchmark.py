"""Benchmarks of attacks: cost by a clock of the test's own, ranking by outcomes made up."""

import dataclasses
import json
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import nn

from advkit import QueryCounter, TorchClassifier, attacks
from advkit import eval as rob
from advkit.core.results import AttackResult, Queries
from advkit.eval.benchmarking.ranking import AttackCost, groups_of
from advkit.eval.robustness.outcome import AttackOutcome


class Clock:
    """Time that passes only where a test says so, faster and faster with `drift`."""

    def __init__(self):
        self.now, self.drift, self.passes = 0.0, 0.0, 0

    def spend(self, amount):
        self.now += amount * (1 + self.drift * self.passes)
        self.passes += 1


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: made.now)
    return made


class Timed(nn.Module):
    """Two logits of the sign of the first feature; a pass takes a second for each sample."""

    def __init__(self, clock):
        super().__init__()
        self.clock = clock

    def forward(self, x):
        self.clock.spend(len(x))
        first = x.flatten(1)[:, 0] - 0.5
        return torch.stack([-first, first], dim=1)


@dataclass(frozen=True, kw_only=True)
class Passes:
    """A stub that makes `passes` of a model, one list entry for each call, and turns all."""

    passes: tuple
    eps: object = 0.5
    norm: str = "linf"
    batches: list = field(default_factory=list, compare=False)
    spare: int = 0

    def __call__(self, model, x, y=None, *, target=None):
        return self.run(model, x, y, target=target).x_adv

    def run(self, model, x, y=None, *, target=None):
        passes = self.passes[len(self.batches) % len(self.passes)]
        self.batches.append((len(x), self.eps))
        held = x.new_empty(self.spare)
        for _ in range(passes):
            model.logits(x)
        n = len(x)
        sent = torch.full((n,), passes)
        turned = torch.ones(n, dtype=torch.bool)
        del held
        return AttackResult(
            x_adv=1 - x, success=turned, distance=torch.full((n,), 0.25), norm="linf",
            queries=Queries(sent, 0 * sent), no_gradient=~turned,
        )  # fmt: skip


def data(n, wrong=()):
    """Inputs that are labelled correctly by `Timed` but for those `wrong`."""
    x = torch.linspace(0, 1, 2 * n).view(n, 2)
    y = (x[:, 0] > 0.5).long()
    y[list(wrong)] = 1 - y[list(wrong)]
    return x, y


class TestPasses:
    @pytest.mark.parametrize("passes", [1, 7])
    @pytest.mark.parametrize("drift", [0.0, 0.01])
    def test_an_attack_of_k_passes_costs_k_passes_on_a_machine_that_slows_down_too(
        self, clock, passes, drift
    ):
        clock.drift = drift
        found = rob.benchmark(
            Timed(clock), *data(6), attacks=[Passes(passes=(passes,))], batch_size=4
        )
        assert found.attacks[0].passes == pytest.approx(passes, rel=1e-9)

    def test_a_round_is_the_sum_of_its_batches(self, clock):
        # 4 and 2 samples: 4 * 1 + 2 * 9 seconds against 4 + 2; the first call warms up
        attack = Passes(passes=(50, 1, 9))
        found = rob.benchmark(Timed(clock), *data(6), attacks=[attack], batch_size=4, rounds=1)
        assert found.attacks[0].passes == pytest.approx(22 / 6)
        assert found.attacks[0].outcome.seconds == 22
        assert [n for n, _ in attack.batches] == [4, 4, 2]

    def test_passes_and_seconds_are_medians_of_the_rounds_after_the_warm_up(self, clock):
        attack = Passes(passes=(90, 5, 60, 8))
        found = rob.benchmark(Timed(clock), *data(3), attacks=[attack])
        assert found.attacks[0].passes == pytest.approx(8)
        assert found.attacks[0].outcome.seconds == 24
        assert found.attacks[0].outcome.forward.tolist() == [5, 5, 5]  # of the first round
        assert len(attack.batches) == 4

    def test_a_bare_pass_is_one_of_the_samples_to_attack(self, clock):
        x, y = data(8, wrong=[0, 1, 4, 5, 6, 7])
        attack = Passes(passes=(3,))
        found = rob.benchmark(Timed(clock), x, y, attacks=[attack], batch_size=4, rounds=2)
        assert found.attacks[0].passes == pytest.approx(3)
        assert [n for n, _ in attack.batches] == [2, 2, 2]  # nothing is left of the second batch
        assert found.clean.tolist() == [False, False, True, True] + 4 * [False]
        assert (found.bare_pass.inputs, found.bare_pass.seconds) == (2, 2)
        assert found.attacks[0].outcome.mean_of_attacked(found.attacks[0].outcome.forward) == 3

    def test_the_bare_pass_is_that_of_the_first_batch_with_something_to_attack(self, clock):
        x, y = data(6, wrong=[0, 1, 2])
        found = rob.benchmark(
            Timed(clock), x, y, attacks=[Passes(passes=(2,))], batch_size=2, rounds=2
        )
        assert (found.bare_pass.inputs, found.bare_pass.seconds) == (1, 1)

    def test_a_model_is_held_over_several_bare_passes_as_over_an_attack(self, clock):
        class Holding:
            bounds, num_classes = (0.0, 1.0), 2
            logits, held = Timed(clock), 0

            def predict(self, x):
                return self.logits(x).argmax(1)

            @contextmanager
            def evaluating(self):
                self.held += 1
                clock.spend(100)  # which is no part of a pass
                yield

        model = Holding()
        found = rob.benchmark(model, *data(3), attacks=[Passes(passes=(5,))], rounds=2)
        assert found.bare_pass.seconds == 3
        assert model.held == 1 + 2 * 2  # for the memory, then before and after each run

    def test_without_gradients_a_pass_is_a_forward_pass(self, clock):
        class Labels:
            bounds, num_classes = (0.0, 1.0), 2

            def predict(self, x):
                clock.spend(len(x))
                return (x[:, 0] > 0.5).long()

        x, y = data(4)
        attack = attacks.HopSkipJump(max_queries=40)
        found = rob.benchmark(Labels(), x, y, attacks=[attack], rounds=1)
        outcome = found.attacks[0].outcome
        assert found.attacks[0].passes == pytest.approx(int(outcome.forward.sum()) / 4)
        assert not found.bare_pass.backward
        assert "1 pass = one forward pass (no gradients) of the batch: " in str(found)

    def test_with_gradients_it_is_both(self, clock):
        found = rob.benchmark(Timed(clock), *data(2), attacks=[Passes(passes=(1,))], rounds=1)
        assert found.bare_pass.backward
        text = str(found)
        assert "1 pass = one forward and backward pass of the batch: 2e+03 ms and" in text
        assert "MiB for 2 inputs" in text


def net(seed=0, classes=4):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, classes, bias=False)
    )


@dataclass(frozen=True, kw_only=True)
class Watched:
    """An attack, and what a counter of the model's samples says of each call."""

    attack: object
    counter: object
    norm: str = "l2"
    seen: list = field(default_factory=list)

    def __call__(self, model, x, y=None, *, target=None):
        return self.run(model, x, y, target=target).x_adv

    def run(self, model, x, y=None, *, target=None):
        before = self.counter.forward, self.counter.backward
        result = self.attack.run(model, x, y, target=target)
        after = self.counter.forward, self.counter.backward
        self.seen.append(tuple(b - a for a, b in zip(before, after, strict=True)))
        return result


@pytest.mark.parametrize(
    "attack",
    [attacks.DeepFool(), attacks.PGD(eps=0.05, restarts=2), attacks.FAB(steps=5)],
    ids=repr,
)
def test_a_model_that_counts_its_samples_agrees(attack):
    counter = QueryCounter(net())
    x = torch.rand(24, 1, 3, 4)
    y = counter.predict(x)
    y[::5] += 1
    watched = Watched(attack=attack, counter=counter)
    found = rob.benchmark(counter, x, y % 4, attacks=[watched], batch_size=10, rounds=2)
    outcome = found.attacks[0].outcome
    forward, backward = zip(*watched.seen[1:4], strict=True)
    assert (int(outcome.forward.sum()), int(outcome.backward.sum())) == (
        sum(forward),
        sum(backward),
    )
    assert watched.seen[1:4] == watched.seen[4:]
    assert outcome.forward[::5].tolist() == [0, 0, 0, 0, 0]


def test_outcomes_are_those_of_evaluate():
    model, x = TorchClassifier(net()), torch.rand(20, 1, 3, 4)
    y = model.predict(x)
    y[3] = (y[3] + 1) % 4
    used = [
        attacks.PGD(eps=0.05),
        attacks.DeepFool(),
        attacks.FGSM(eps=torch.linspace(0.01, 0.2, 20)),
    ]
    found = rob.benchmark(model, x, y, attacks=used, batch_size=8, rounds=1)
    report = rob.evaluate(model, x, y, attacks=used, batch_size=8)
    assert torch.equal(found.clean, report.clean)
    for cost, outcome in zip(found.attacks, report.outcomes, strict=True):
        mine, theirs = cost.outcome.to_dict(), outcome.to_dict()
        assert {**mine, "seconds": 0} == {**theirs, "seconds": 0}


def test_the_peak_is_that_of_the_first_batch_and_of_the_attack_alone(clock):
    lean, fat = Passes(passes=(1,)), Passes(passes=(1,), spare=10_000)
    found = rob.benchmark(Timed(clock), *data(6), attacks=[lean, fat], batch_size=4, rounds=1)
    small, large = (cost.peak_memory for cost in found.attacks)
    assert 40_000 <= large <= 40_000 + small
    assert 0 < small < 4_000
    assert 0 < found.bare_pass.peak_memory < 4_000


def test_an_eps_for_each_sample_is_cut_along_the_batches_and_a_group_of_its_own(clock):
    eps = torch.arange(6) / 10
    attack = Passes(passes=(1,), eps=eps)
    plain = Passes(passes=(1,), eps=0.5)
    found = rob.benchmark(
        Timed(clock), *data(6, wrong=[1]), attacks=[attack, plain], batch_size=4, rounds=1
    )
    cut = [e.tolist() for _, e in attack.batches]
    rows = [[0, 2, 3], [0, 2, 3], [4, 5]]
    assert cut == [eps[row].tolist() for row in rows]
    late = Passes(passes=(1,), eps=eps)
    rob.benchmark(Timed(clock), *data(6, wrong=range(4)), attacks=[late], batch_size=4, rounds=1)
    assert [e.tolist() for _, e in late.batches] == 2 * [eps[4:].tolist()]
    titles = [group.title for group in found.groups]
    assert titles == ["Within linf, one budget for each input", "Within linf 0.5"]


# ---- ranking ---------------------------------------------------------------------------------


def cost(name, distances, passes, *, eps=None, norm="linf", settings=(), minimum=None, radius=None):
    """What an attack found: distances of its successes, NaN for a failure."""
    distance = torch.tensor(distances)
    n = len(distance)
    budget = math.inf if eps is None else eps
    return AttackCost(
        outcome=AttackOutcome(
            name=name,
            settings=dict(settings),
            norm=norm,
            minimum_norm=eps is None if minimum is None else minimum,
            eps=eps,
            radius=torch.full((n,), budget, dtype=torch.float64) if radius is None else radius,
            robust=distance.isnan(),
            distance=distance,
            forward=torch.full((n,), 3),
            backward=torch.full((n,), 2),
            no_gradient=torch.zeros(n, dtype=torch.bool),
            not_finite=torch.zeros(n, dtype=torch.bool),
            seconds=0.5,
            examples=None,
        ),
        passes=passes,
        peak_memory=3 * 2**20,
    )


def found(k, n=100, at=0.1):
    """Distances of `n` inputs of which `k` are found."""
    return [at] * k + [math.nan] * (n - k)


def names(rows):
    return [row.name for row in rows]


def test_budget_attacks_are_sorted_by_what_they_find_and_the_front_is_marked():
    costs = [
        cost("Weak", found(10), 1.0, eps=0.1),
        cost("Dear", found(50), 90.0, eps=0.1),
        cost("Same", found(50), 40.0, eps=0.1),
        cost("Good", found(70), 30.0, eps=0.1),
        cost("Lost", found(10), 2.0, eps=0.1),
        cost("Mid", found(40), 9.0, eps=0.1),
    ]
    (group,) = groups_of(costs)
    assert names(group.rows) == ["Good", "Same", "Dear", "Mid", "Weak", "Lost"]
    assert names(group.pareto_front) == ["Good", "Mid", "Weak"]
    assert group.title == "Within linf 0.1"
    assert group.best.name == "Good"
    assert group.summary == "Highest success rate: Good (70.00 %, 30.0 passes)."


def test_attacks_without_a_budget_have_a_distance_ratio():
    """It counts the examples of budget attacks too, in the same norm."""
    costs = [
        cost("Near", [0.1, 0.4, math.nan, math.nan], 9.0),
        cost("Far", [0.2, 0.4, 0.3, math.nan], 3.0),
        cost("Within", [math.nan, 0.2, math.nan, math.nan], 1.0, eps=0.25),
        cost("Other", [0.01, 0.01, 0.01, 0.01], 1.0, norm="l2"),
    ]
    within, linf, l2 = groups_of(costs)
    assert [row.distance_ratio for row in within.rows] == [None, None, None]
    ratios = {row.name: row.distance_ratio for row in linf.rows}
    assert ratios == {"Near": pytest.approx(0.5), "Far": pytest.approx(2 / 3)}
    assert [row.distance_ratio for row in l2.rows] == [1]
    assert linf.table().heading[3] == "distance\nratio"
    assert [len(row) for row in linf.table().rows] == 2 * [len(linf.table().heading)]
    assert {row[0].strip(" *"): row[3] for row in linf.table().rows} == {
        "Near": "0.500", "Far": "0.667",
    }  # fmt: skip
    assert "distance\nratio" not in within.table().heading
    (nothing,) = groups_of([cost("A", found(0), 1.0)])
    assert nothing.table().rows[0][3] == "-"
    assert nothing.to_dict()["rows"][0]["distance_ratio"] is None


@pytest.mark.parametrize(
    ("k", "passes", "front"),
    [
        (50, 8.0, ["A", "B"]),  # the same in all: neither beats the other
        (50, 9.0, ["A"]),
        (50, 7.0, ["B"]),
        (51, 8.0, ["B"]),
        (49, 8.0, ["A"]),
        (49, 7.0, ["A", "B"]),
        (51, 9.0, ["A", "B"]),
    ],
)
def test_who_is_on_the_pareto_front(k, passes, front):
    costs = [cost("A", found(50), 8.0, eps=0.1), cost("B", found(k), passes, eps=0.1)]
    (group,) = groups_of(costs)
    assert sorted(names(group.pareto_front)) == front


@pytest.mark.parametrize(("k", "said"), [(69, True), (68, False)])
def test_the_cheapest_that_finds_nearly_as_much_is_named(k, said):
    costs = [
        cost("Best", found(70), 30.0, eps=0.1),
        cost("Cheap", found(k), 4.0, eps=0.1),
        cost("Other", found(70), 31.0, eps=0.1),
    ]
    (group,) = groups_of(costs)
    more = f"; cheapest within one point: Cheap ({k}.00 %, 4.0 passes)" if said else ""
    assert group.summary == f"Highest success rate: Best (70.00 %, 30.0 passes){more}."


def test_budgets_and_norms_are_apart():
    costs = [
        cost("A", found(10), 1.0, eps=0.1),
        cost("B", found(20), 1.0, eps=0.2),
        cost("C", found(30), 1.0, eps=0.1, norm="l2"),
        cost("D", found(40), 1.0, eps=0.1),
    ]
    groups = groups_of(costs)
    assert [(g.title, names(g.rows)) for g in groups] == [
        ("Within linf 0.1", ["D", "A"]),
        ("Within linf 0.2", ["B"]),
        ("Within l2 0.1", ["C"]),
    ]
    assert groups[1].summary == "Only attack: B (20.00 %, 1.0 passes)."


def test_minimum_norm_attacks_count_within_budgets_and_in_groups_of_their_own():
    near = [0.05] * 30 + [0.15] * 40 + [0.3] * 30
    costs = [
        cost("Budget", found(40, at=0.1), 5.0, eps=0.1),
        cost("Near", near, 9.0),
        cost("Far", [0.4] * 90 + [math.nan] * 10, 3.0),
        cost("Elsewhere", near, 1.0, norm="l2"),
    ]
    within, nearest, elsewhere = groups_of(costs)
    assert [(r.name, r.success_rate.count) for r in within.rows] == [
        ("Budget", 40), ("Near", 30), ("Far", 0),
    ]  # fmt: skip
    assert [r.median_distance for r in within.rows] == 3 * [math.inf]
    assert nearest.title == "Nearest in linf, at any distance"
    assert [(r.name, r.success_rate.count) for r in nearest.rows] == [("Near", 100), ("Far", 90)]
    assert [r.median_distance for r in nearest.rows] == pytest.approx([0.15, 0.4])
    assert names(nearest.pareto_front) == ["Near", "Far"]
    assert nearest.summary == (
        "Smallest median distance: Near (100.00 %, median distance 0.15, 9.0 passes)."
    )
    assert names(elsewhere.rows) == ["Elsewhere"]


def test_among_minimum_norm_attacks_distance_decides_and_then_the_success_rate():
    costs = [
        cost("Often", found(100, at=0.2), 1.0),
        cost("Near", found(60, at=0.1), 50.0),
        cost("NearToo", found(80, at=0.1), 60.0),
    ]
    (group,) = groups_of(costs)
    assert names(group.rows) == ["NearToo", "Near", "Often"]


@pytest.mark.parametrize(
    ("at", "k", "said"), [(0.1009, 99, True), (0.1011, 100, False), (0.1, 98, False)]
)
def test_nearly_as_near_is_one_percent_of_distance_and_one_point_of_share(at, k, said):
    costs = [cost("Best", found(100, at=0.1), 30.0), cost("Cheap", found(k, at=at), 4.0)]
    (group,) = groups_of(costs)
    assert ("cheapest within 1 %: Cheap" in group.summary) is said


def test_where_less_than_half_is_found_minimum_norm_attacks_are_ranked_by_success_rate():
    costs = [
        cost("Some", found(30), 8.0),
        cost("Few", found(20), 9.0),
        cost("Cheap", found(29), 2),
    ]
    (group,) = groups_of(costs)
    assert names(group.rows) == ["Some", "Cheap", "Few"]
    assert group.summary == (
        "Highest success rate: Some (30.00 %, median distance inf, 8.0 passes); "
        "cheapest within one point: Cheap (29.00 %, median distance inf, 2.0 passes)."
    )


def test_the_summary_without_any_success():
    (group,) = groups_of([cost("A", found(0), 8.0, eps=0.1), cost("B", found(0), 9.0, eps=0.1)])
    assert group.summary == "No attack succeeds on any input."


def test_a_budget_for_each_input_is_shared_by_those_who_have_the_same():
    radius = torch.linspace(0.05, 0.15, 4, dtype=torch.float64)
    own = {"eps": None, "minimum": False}
    costs = [
        cost("A", [0.04, 0.07, math.nan, math.nan], 2.0, **own, radius=radius),
        cost("B", [0.04, 0.07, 0.1, math.nan], 2.0, **own, radius=radius.clone()),
        cost("C", [0.04, 0.07, 0.1, math.nan], 2.0, **own, radius=radius + 1),
        cost("Near", [0.06, 0.06, 0.06, 0.06], 2.0),
    ]
    first, second, _ = groups_of(costs)
    assert [(r.name, r.success_rate.count) for r in first.rows] == [("B", 3), ("Near", 3), ("A", 2)]
    assert names(second.rows) == ["Near", "C"]


def test_a_budget_attack_is_believed_about_its_own_budget():
    # in 16 bits a distance may exceed the budget by the rounding of the dtype
    (group,) = groups_of([cost("A", found(40, at=0.101), 2.0, eps=0.1)])
    assert group.best.success_rate.count == 40


def test_names_leave_out_what_the_group_shares_unless_two_would_be_alike():
    costs = [
        cost("PGD", found(4), 1.0, eps=0.1, settings={"eps": 0.1, "norm": "l2", "steps": 9}),
        cost("DeepFool", found(3), 2.0, eps=0.1, settings={"eps": 0.1}),
        cost("DeepFool", found(2), 3.0),
    ]
    within, nearest = groups_of(costs)
    assert names(within.rows) == ["PGD(steps=9)", "DeepFool(eps=0.1)", "DeepFool()"]
    assert names(nearest.rows) == ["DeepFool"]


# ---- what is shown and saved -----------------------------------------------------------------


def made(*costs, **more):
    """A benchmark of made-up attacks on 100 inputs."""
    return rob.Benchmark(
        model="Model", clean=torch.ones(100, dtype=torch.bool), attacks=costs,
        bare_pass=rob.BarePass(inputs=64, seconds=0.01234, peak_memory=2**21, backward=True),
        batch_size=64, rounds=3, device="cpu", threads=2, **more,
    )  # fmt: skip


LONG = {f"a_long_parameter_{i}": 0.125 for i in range(5)}
SHOWN = made(
    cost("Best", found(97), 1234.56, eps=0.1, settings=LONG),
    cost("Weak", found(20), 2.0, eps=0.1),
    cost("Lost", found(10), 3.0, eps=0.1),
    cost("Near", found(100, at=0.05), 300.0),
    about={"data": "mine"},
)


def test_the_table():
    lines = str(SHOWN).splitlines()
    assert lines[:6] == [
        "Model on 100 inputs",
        "attacked: 100, which the model labels correctly",
        "data: mine",
        "1 pass = one forward and backward pass of the batch: 12.3 ms and 2.00 MiB for 64 inputs",
        "3 rounds in batches of 64 on cpu, 2 threads",
        "",
    ]
    assert max(map(len, lines)) <= 100
    weak = next(line for line in lines if "Weak" in line)
    assert weak.split() == ["*", "Weak", "20.00", "inf", "2.0", "3.0", "2.0", "0.500", "3.00"]
    assert next(line for line in lines if "Lost" in line).startswith("  Lost  ")
    first = lines.index("Within linf 0.1")
    summary = next(
        i for i, line in enumerate(lines) if line.startswith("Highest success rate: Near")
    )
    assert first < summary < lines.index("Nearest in linf, at any distance")
    text = " ".join(str(SHOWN).split())
    assert (
        "* On the Pareto front: no other attack in the table is as good for fewer passes." in text
    )
    assert "medians of 3 rounds" in text
    assert "The distance ratio is the mean of the nearest distance" in text
    assert "Within a budget, a minimum-norm attack counts" in text


def test_notes_say_only_what_is_there():
    assert "distance ratio" not in str(made(cost("A", found(3), 1.0, eps=0.1)))
    text = str(made(cost("A", found(3), 1.0, eps=0.1), cost("B", found(3), 1.0, norm="l2")))
    assert "minimum-norm" not in text
    assert "usable gradient" not in text


def test_names_of_any_usual_length_fit_the_width():
    long = cost("A" * 30, found(100), 1234.5)
    text = str(made(long, cost("B" * 30, found(90), 1.0, eps=0.1)))
    assert max(map(len, text.splitlines())) <= 100
    assert "Passes and seconds are medians of 3 rounds" in " ".join(text.split())
    assert "it. Passes are medians of 3 rounds" in " ".join(str(made(long)).split())


def test_blind_attacks_are_named():
    blind = cost("A", found(3), 1.0, eps=0.1, settings={"eps": 0.1})
    lost = torch.zeros(100, dtype=torch.bool)
    lost[:7] = True
    outcome = dataclasses.replace(blind.outcome, no_gradient=lost)
    text = " ".join(str(made(dataclasses.replace(blind, outcome=outcome))).split())
    assert "A(eps=0.1) had no usable gradient on 7 inputs" in text


def test_attacks_that_could_not_begin_are_named():
    idle = cost("A", found(3), 1.0, eps=0.1, settings={"eps": 0.1})
    lost = torch.zeros(100, dtype=torch.bool)
    lost[:7] = True
    outcome = dataclasses.replace(idle.outcome, no_start=lost)
    text = " ".join(str(made(dataclasses.replace(idle, outcome=outcome))).split())
    assert "A(eps=0.1) could not begin on 7 inputs" in text
    assert "usable gradient" not in text


def test_json_has_neither_nan_nor_infinity(tmp_path):
    path = made(
        cost("A", found(20), 2.0, eps=0.1), cost("B", found(0), 3.0), about={"seed": "0"}
    ).save_json(tmp_path / "found.json")

    def refused(word):
        raise AssertionError(word)

    read = json.loads(path.read_text(), parse_constant=refused)
    assert read["about"] == {"seed": "0"}
    assert (read["inputs"], read["attacked"], read["rounds"], read["threads"]) == (100, 100, 3, 2)
    assert read["bare_pass"] == {
        "inputs": 64, "seconds": 0.01234, "peak_memory": 2**21, "backward": True,
    }  # fmt: skip
    assert read["attacks"][0]["passes"] == 2.0
    assert read["attacks"][0]["peak_memory"] == 3 * 2**20
    assert read["attacks"][1]["median_distance_of_attacked"] is None
    within, nearest = read["groups"]
    assert within["rows"][0] == {
        "attack": "A()", "success_rate": rob.Rate(20, 100).to_dict(),
        "median_distance": None, "distance_ratio": None, "passes": 2.0, "pareto_front": True,
    }  # fmt: skip
    assert within["rows"][1]["pareto_front"] is False
    assert (within["norm"], within["has_budget"], nearest["has_budget"]) == ("linf", True, False)
    assert nearest["summary"] == "No attack succeeds on any input."


def test_the_plot_has_a_panel_for_each_group_and_a_point_for_each_attack():
    pytest.importorskip("matplotlib")
    within, nearest = SHOWN.plot().axes
    assert within.get_title() == "Within linf 0.1"
    assert within.get_xscale() == "log"
    points = [line for line in within.lines if line.get_marker() == "o"]
    assert sorted((*line.get_xdata(), *line.get_ydata()) for line in points) == [
        (2.0, 20.0), (3.0, 10.0), (300.0, 100.0), (1234.56, 97.0),
    ]  # fmt: skip
    (front,) = (line for line in within.lines if line.get_marker() != "o")
    assert list(front.get_xdata()) == [2.0, 300.0]
    assert list(front.get_ydata()) == [20.0, 100.0]
    assert front.get_drawstyle() == "steps-post"
    assert {text.get_text() for text in within.texts} >= {"Weak", "Lost", "Near"}
    assert nearest.get_ylabel().startswith("median distance (linf)")
    assert nearest.yaxis_inverted()


def test_there_is_no_plot_of_nothing():
    assert made(cost("A", found(0), 1.0, eps=0.1), cost("B", found(0), 1.0)).plot() is None


# ---- arguments --------------------------------------------------------------------------------


def test_a_query_budget_is_refused_and_not_spent():
    model = QueryCounter(net(), max_queries=10_000)
    x = torch.rand(4, 1, 3, 4)
    with pytest.raises(ValueError, match="`model` must have no query budget, got 10,000 queries"):
        rob.benchmark(model, x, torch.zeros(4).long(), attacks=[attacks.DeepFool()])
    assert model.forward == 0
    zero = QueryCounter(net(), max_queries=0)
    with pytest.raises(ValueError, match="no query budget"):
        rob.benchmark(zero, x, torch.zeros(4).long(), attacks=[attacks.DeepFool()])


WRONG = [
    ({"x": np.zeros((4, 12))}, TypeError, "`x` must be a torch.Tensor, got a NumPy array"),
    (
        {"x": [(torch.rand(4, 12), torch.zeros(4))]},
        TypeError,
        "`y` must be None when `x` is an iterable of batches",
    ),
    ({"x": [torch.rand(4, 1, 3, 4)], "y": None}, TypeError, "`x` must give batches with labels"),
    ({"x": torch.rand(3, 1, 3, 4)}, ValueError, "one label for each of 3 samples, got 4"),
    ({"x": 2 + torch.rand(4, 1, 3, 4)}, ValueError, r"`x` must lie in the model's bounds \[0, 1\]"),
    ({"y": None}, TypeError, "`y` must be a torch.Tensor"),
    ({"y": torch.full((4,), 9)}, ValueError, "`y` must be below 4"),
    ({"attacks": []}, ValueError, "at least one attack"),
    ({"attacks": [attacks.PGD]}, TypeError, "`attacks` must be a list of attacks"),
    ({"attacks": attacks.DeepFool()}, TypeError, "`attacks` must be a list of attacks"),
    (
        {"attacks": [attacks.FGSM(eps=torch.ones(3))]},
        ValueError,
        r"a tensor of shape \(4,\), got shape \(3,\)",
    ),
    ({"rounds": 0}, ValueError, "`rounds` must be at least 1, got 0"),
    ({"rounds": 1.5}, TypeError, "`rounds` must be an int"),
    ({"batch_size": 0}, ValueError, "`batch_size` must be at least 1"),
    ({"model": 3}, TypeError, "`model` must be a torch.nn.Module"),
]


@pytest.mark.parametrize(("given", "kind", "said"), WRONG, ids=[said[:40] for *_, said in WRONG])
def test_what_is_wrong_is_named(given, kind, said):
    x = torch.rand(4, 1, 3, 4)
    model = net()
    right = {"model": model, "x": x, "y": TorchClassifier(model).predict(x)}
    arguments = {**right, "attacks": [attacks.DeepFool()], **given}
    with pytest.raises(kind, match=said):
        rob.benchmark(arguments.pop("model"), arguments.pop("x"), arguments.pop("y"), **arguments)


def test_batches_of_a_loader_are_measured_as_those_of_a_tensor():
    model, x = TorchClassifier(net()), torch.rand(10, 1, 3, 4)
    y = model.predict(x)
    used = [attacks.FGSM(eps=0.1), attacks.DeepFool()]
    whole = rob.benchmark(model, x, y, attacks=used, batch_size=4, rounds=1)
    for batches in (
        list(zip(x.split(4), y.split(4), strict=True)),
        ({"image": a, "label": b, "id": 3} for a, b in zip(x.split(4), y.split(4), strict=True)),
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4),
    ):
        found = rob.benchmark(model, batches, attacks=used, rounds=1)
        assert torch.equal(found.clean, whole.clean)
        for ours, theirs in zip(found.attacks, whole.attacks, strict=True):
            assert torch.equal(ours.outcome.robust, theirs.outcome.robust)
            assert torch.equal(ours.outcome.forward, theirs.outcome.forward)


@pytest.mark.parametrize("n", [4, 0])
def test_without_anything_to_attack_there_is_no_benchmark(n):
    model, x = TorchClassifier(net()), torch.rand(n, 1, 3, 4)
    y = (model.predict(x) + 1) % 4
    with pytest.raises(ValueError, match=f"got {n} inputs, all misclassified"):
        rob.benchmark(model, x, y, attacks=[attacks.DeepFool()])


def test_an_attack_that_the_model_cannot_answer_ends_it_before_any_round():
    class Labels:
        bounds, num_classes = (0.0, 1.0), 2

        def predict(self, x):
            return (x[:, 0] > 0.5).long()

        def scores(self, x):
            return torch.stack([1 - x[:, 0], x[:, 0]], dim=1)

    first = Watched(attack=attacks.Square(eps=0.1, max_queries=5), counter=QueryCounter(net()))
    with pytest.raises(TypeError, match="must have gradients .* for FGSM"):
        rob.benchmark(Labels(), *data(4), attacks=[first, attacks.FGSM(eps=0.1)])
    assert len(first.seen) == 1


def test_the_batches_are_moved_to_the_device(clock):
    found = rob.benchmark(
        Timed(clock), *data(3), attacks=[Passes(passes=(1,))], rounds=1, device="cpu"
    )
    assert found.device == "cpu"
    assert found.threads == torch.get_num_threads()


def test_a_bar_counts_the_runs(clock, capsys):
    pytest.importorskip("tqdm")
    stubs = [Passes(passes=(1,)), Passes(passes=(2,))]
    rob.benchmark(Timed(clock), *data(3), attacks=stubs, rounds=2, progress=True)
    assert "6/6" in capsys.readouterr().err
