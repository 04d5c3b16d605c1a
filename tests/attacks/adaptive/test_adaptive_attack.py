"""Attacks on a guarded model: the losses in closed form, and what the guard says of the result."""

import dataclasses

import numpy as np
import pytest
import torch

from advkit import QueryBudgetExceeded, QueryCounter, StraightThrough, attacks
from advkit import eval as rob
from advkit.attacks.adaptive import Adaptive, Evasion, Mimicry
from advkit.core.losses import margin
from advkit.core.norms import lp_norm
from advkit.detectors.collect import collect
from advkit.detectors.forest import OutputForest
from advkit.detectors.guard import Guard
from advkit.detectors.surrogate import DetectorSurrogate
from advkit.models import REJECTED
from tests.toys import Halfspace, Linear3, answers, convnet, images

PGD = attacks.PGD(eps=0.1, steps=10)


class Between:
    """Suspicion of logits whose second one lies between two values: a strip, far from the rest."""

    def __init__(self, low, high):
        self.low, self.high = low, high

    def anomaly_score(self, outputs):
        inside = np.minimum(outputs[:, 1] - self.low, self.high - outputs[:, 1])
        return inside.astype(np.float64)

    def alarm(self, outputs):
        """The same, differentiable."""
        return torch.minimum(outputs[:, 1] - self.low, self.high - outputs[:, 1])


def plane(low, high):
    """The guard of a half-space x_0 > 1/2, whose second logit is x_0 - 1/2."""
    w = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
    return Guard(Halfspace(w, b=-0.5), Between(low, high), threshold=0.0, outputs="logits")


def points(n=20):
    x = torch.rand(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x[:, 0] = 0.5 - 0.1 * torch.linspace(0.05, 1, n, dtype=torch.float64)
    return x, torch.zeros(n, dtype=torch.int64)


class Sure:
    """Suspicion is the largest output: adversarial examples are surer than clean inputs."""

    def anomaly_score(self, outputs):
        return outputs.max(1)


def sure():
    return Guard(convnet(), Sure(), threshold=0.6)


def surest(p):
    return p.amax(1)


EVASION = Evasion(detector_score=surest, threshold=0.6)


@pytest.fixture
def x():
    return images(40)


@pytest.fixture
def y(x):
    return answers(convnet(), x)


def test_evasion_is_the_lesser_of_margin_and_room():
    logits = torch.tensor([[1.0, 3.0, 0.0], [1.0, 3.0, 0.0], [2.0, 0.0, 1.0]]).double()
    y = torch.tensor([0, 0, 0])
    for weight in (0.5, 2.0):
        loss = Evasion(
            detector_score=lambda z: z[:, 2] + torch.tensor([0.7, -9.0, 0.2]),
            threshold=0.9,
            weight=weight,
            outputs="logits",
        )
        expected = torch.tensor([0.2 * weight, 2.0, -1.0]).double()
        torch.testing.assert_close(loss(logits, y), expected)


def test_evasion_shows_the_alarm_what_outputs_names():
    logits = torch.tensor([[1.0, 3.0]]).double()
    seen = []

    def alarm(outputs):
        seen.append(outputs)
        return outputs[:, 0]

    for outputs in ("scores", "logits"):
        Evasion(detector_score=alarm, threshold=0.0, outputs=outputs)(logits, torch.tensor([0]))
    torch.testing.assert_close(seen[0], logits.softmax(1))
    assert torch.equal(seen[1], logits)


def test_evasion_climbs_what_is_worse():
    loss = Evasion(detector_score=lambda z: z[:, 2], threshold=0.0, outputs="logits")
    logits = torch.tensor([[1.0, 3.0, 9.0], [3.0, 1.0, -9.0]], requires_grad=True)
    loss(logits, torch.tensor([0, 0])).sum().backward()
    assert logits.grad.tolist() == [[0, 0, -1], [-1, 1, 0]]


def test_mimicry_is_the_distance_to_the_nearest_of_another_label():
    generator = torch.Generator().manual_seed(1)
    clean, logits = (torch.randn(n, 4, generator=generator).double() for n in (60, 30))
    y = torch.arange(30) % 4
    for outputs in ("logits", "scores"):
        rows, at = (
            (v if outputs == "logits" else torch.log(torch.exp(v) / torch.exp(v).sum(1)[:, None]))
            for v in (clean, logits)
        )
        expected = [
            -min(
                float(((rows[j] - at[i]) ** 2).sum())
                for j in range(60)
                if int(clean[j].argmax()) != int(y[i])
            )
            for i in range(30)
        ]
        found = Mimicry(logits=clean, outputs=outputs)(logits, y)
        torch.testing.assert_close(found, torch.tensor(expected).double())


def test_mimicry_pulls_straight_to_what_it_matches():
    clean = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    logits = torch.tensor([[2.0, 0.5]], requires_grad=True)
    Mimicry(logits=clean, outputs="logits")(logits, torch.tensor([0])).sum().backward()
    torch.testing.assert_close(logits.grad, 2 * (clean[1:] - logits.detach()))
    shifted = Mimicry(logits=clean + torch.tensor([[7.0], [-3.0]]))
    value = shifted(logits.detach() + 5, torch.tensor([0]))
    torch.testing.assert_close(value, Mimicry(logits=clean)(logits.detach(), torch.tensor([0])))


@pytest.mark.parametrize("loss", [EVASION, Mimicry(logits=torch.eye(3))])
def test_the_losses_are_losses_of_any_attack(x, y, loss):
    result = dataclasses.replace(PGD, loss=loss).run(convnet(), x, y)
    assert (result.distance <= 0.1 + 1e-6).all()
    before = loss(convnet()(x).detach(), y)
    assert (loss(convnet()(result.x_adv).detach(), y) > before).float().mean() > 0.9
    assert "0x" not in repr(dataclasses.replace(PGD, loss=loss))


def test_it_steps_over_what_the_guard_rejects_where_it_can():
    """Wrong and quiet is x_0 > 0.5 beyond the strip; PGD's nearest way ends within it."""
    x, y = points()
    guard, detector = plane(-0.02, 0.052), Between(-0.02, 0.052)
    loss = Evasion(detector_score=detector.alarm, threshold=0.0, outputs="logits")
    for eps in (0.08, 0.12, 0.2):
        adaptive = Adaptive(attack=attacks.PGD(eps=eps, steps=20), losses=[loss])
        result = adaptive.run(guard, x, y)
        assert torch.equal(result.success, x[:, 0] + eps > 0.552)
        assert torch.equal(result.success, plane(-0.02, 0.052).predict(result.x_adv) == 1)
        assert (result.distance <= eps + 1e-9).all()
    assert result.success.all()


def test_the_iterate_that_is_kept_is_that_of_the_greatest_loss():
    """The guard answers only just beyond the plane, where the margin is least."""
    x, y = points()
    guard, detector = plane(0.03, 9.0), Between(0.03, 9.0)
    inner = attacks.PGD(eps=0.2, steps=20)
    ignorant = Adaptive(attack=inner, losses=["margin"]).run(guard, x, y)
    assert not ignorant.success.any()  # it goes as far as it can
    assert (guard.model.predict(ignorant.x_adv) == 1).all()
    loss = Evasion(detector_score=detector.alarm, threshold=0.0, outputs="logits")
    result = Adaptive(attack=inner, losses=[loss]).run(guard, x, y)
    assert result.success.all()
    assert (result.x_adv[:, 0] - 0.515).abs().max() < 0.015  # the middle is at the greatest loss
    matching = Mimicry(logits=torch.tensor([[0.0, 0.01], [0.0, -0.2]]).double(), outputs="logits")
    result = Adaptive(attack=inner, losses=[matching]).run(guard, x, y)
    assert result.success.all()
    assert (result.x_adv[:, 0] - 0.51).abs().max() < 0.01


@pytest.mark.parametrize(
    "losses", [["ce"], [EVASION], [Mimicry(logits=4 * torch.eye(3))], ["ce", EVASION, "margin"]]
)
def test_success_is_what_the_guard_says_of_x_adv(x, y, losses):
    result = Adaptive(attack=PGD, losses=losses).run(sure(), x, y)
    answered = sure().predict(result.x_adv)
    assert torch.equal(result.success, (answered != y) & (answered != REJECTED))
    torch.testing.assert_close(result.distance, lp_norm(result.x_adv - x, "linf"))
    assert (result.distance <= 0.1 + 1e-6).all()
    assert (result.x_adv >= 0).all()
    assert (result.x_adv <= 1).all()


def test_knowing_the_guard_helps(x, y):
    known = sure().predict(x) == y
    assert known.sum() > 5
    x, y = x[known], y[known]
    unaware = sure().predict(PGD(convnet(), x, y))
    blind = ((unaware != y) & (unaware != REJECTED)).sum()
    found = Adaptive(attack=PGD, losses=[EVASION]).run(sure(), x, y).success.sum()
    assert found > blind
    every = Adaptive(attack=PGD, losses=["ce", EVASION], restarts=2).run(sure(), x, y)
    assert every.success.sum() >= found


def test_each_climb_is_judged_and_what_is_solved_is_left_alone(x, y):
    """Losses one after another are the losses one by one, in order."""
    small = attacks.PGD(eps=0.03, steps=5)
    losses = ["ce", EVASION, Mimicry(logits=4 * torch.eye(3))]
    whole = Adaptive(attack=small, losses=losses).run(sure(), x, y)
    expected, left = torch.full_like(x, torch.nan), torch.ones(40, dtype=torch.bool)
    for loss in losses:
        one = Adaptive(attack=small, losses=[loss]).run(sure(), x, y)
        expected[left] = one.x_adv[left]
        left &= ~one.success
    torch.testing.assert_close(whole.x_adv, expected)
    assert torch.equal(whole.success, ~left)
    assert 0 < left.sum() < 40


def test_restarts_begin_elsewhere(x, y):
    small = attacks.PGD(eps=0.03, steps=3)
    first, second = (
        Adaptive(attack=dataclasses.replace(small, seed=s), losses=[EVASION]).run(sure(), x, y)
        for s in (0, 1)
    )
    both = Adaptive(attack=small, losses=[EVASION], restarts=2).run(sure(), x, y)
    assert torch.equal(both.success, first.success | second.success)
    left = ~first.success
    torch.testing.assert_close(both.x_adv[left], second.x_adv[left])
    assert (first.x_adv != second.x_adv).flatten(1).any(1)[left].any()


def test_queries_are_those_of_the_model_and_of_the_guard(x, y):
    counter = QueryCounter(convnet())
    guard = Guard(counter, Sure(), threshold=0.6)
    small = attacks.PGD(eps=0.03, steps=3)
    result = Adaptive(attack=small, losses=["ce", EVASION], restarts=2).run(guard, x, y)
    forward, backward, failed = *dataclasses.astuple(result.queries), ~result.success
    assert int(forward.sum()) == counter.forward
    assert int(backward.sum()) == counter.backward
    climbs = (forward - 2) // 5  # each three steps, its end, and the guard; clean and last look
    assert torch.equal(forward, 2 + 5 * climbs)
    assert torch.equal(backward, 3 * climbs)
    assert (climbs[failed] == 4).all()
    assert failed.any()
    assert {1, 2, 4} <= set(climbs.tolist())
    assert guard.requests == int((2 + climbs).sum())
    known = sure().predict(x) != REJECTED
    unlabelled = Adaptive(attack=small, losses=["ce"]).run(sure(), x[known])
    assert set(unlabelled.queries.forward.tolist()) == {8}


@pytest.mark.parametrize("budget", [0, 39, 100, 200, 330])
def test_what_was_found_when_the_models_budget_ends_is_not_lost(x, y, budget):
    """The counter behind the guard sees climbs and judgements, and may end either."""
    counter = QueryCounter(convnet(), max_queries=budget)
    adaptive = Adaptive(attack=attacks.PGD(eps=0.1, steps=2), losses=[EVASION, "ce"], restarts=2)
    with pytest.raises(QueryBudgetExceeded) as error:
        adaptive.run(Guard(counter, Sure(), threshold=0.6), x, y)
    found = error.value.result
    assert int(found.queries.forward.sum()) == counter.forward <= budget
    assert int(found.queries.backward.sum()) == counter.backward
    answered = sure().predict(found.x_adv)
    assert torch.equal(found.success, (answered != y) & (answered != REJECTED) & (budget >= 40))
    assert (found.distance <= 0.1 + 1e-6).all()
    if budget >= 200:  # all are climbed once, and judged
        assert found.success[(x != found.x_adv).flatten(1).any(1)].any()


def test_a_counter_around_the_guard_counts_what_the_guard_is_asked(x, y):
    guard, adaptive = sure(), Adaptive(attack=PGD, losses=[EVASION])
    counter = QueryCounter(guard)
    result, expected = adaptive.run(counter, x, y), adaptive.run(sure(), x, y)
    assert torch.equal(result.x_adv, expected.x_adv)
    assert torch.equal(result.queries.forward, expected.queries.forward)
    assert counter.forward == guard.requests < int(result.queries.forward.sum())
    with pytest.raises(QueryBudgetExceeded) as error:
        adaptive.run(QueryCounter(sure(), max_queries=counter.forward - 1), x, y)
    assert torch.equal(error.value.result.success, expected.success)


def test_what_the_guard_gets_wrong_before_is_left_as_it_is(x, y):
    answered = sure().predict(x)
    wrong = answered != REJECTED
    y[wrong] = (y[wrong] + 1) % 3
    result = Adaptive(attack=PGD, losses=["ce"]).run(sure(), x, y)
    assert wrong.any()
    assert torch.equal(result.x_adv[wrong], x[wrong])
    assert (result.queries.forward[wrong] == 2).all()
    assert (result.queries.backward[wrong] == 0).all()


def test_a_sample_does_not_depend_on_its_batch(x, y):
    adaptive = Adaptive(attack=PGD, losses=["ce", EVASION], restarts=2)
    whole = adaptive.run(sure(), x, y)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    parts = [adaptive.run(sure(), x[rows], y[rows]) for rows in order.split(9)]
    torch.testing.assert_close(torch.cat([p.x_adv for p in parts]), whole.x_adv[order])
    assert torch.equal(torch.cat([p.success for p in parts]), whole.success[order])


def test_a_budget_for_each_sample_is_kept(x, y):
    eps = torch.linspace(0, 0.2, 40)
    adaptive = Adaptive(attack=dataclasses.replace(PGD, eps=eps), losses=["ce", EVASION])
    result = adaptive.run(sure(), x, y)
    assert (result.distance <= eps + 1e-6).all()
    assert adaptive.eps is eps
    for n in (30, 39):
        with pytest.raises(ValueError, match=rf"`eps` must .* shape \({n},\), got shape \(40,\)"):
            adaptive.run(sure(), x[:n], y[:n])
    alone = Adaptive(attack=dataclasses.replace(PGD, eps=eps[30:]), losses=["ce", EVASION])
    torch.testing.assert_close(alone(sure(), x[30:], y[30:]), result.x_adv[30:])


@pytest.mark.parametrize(
    "attack",
    [
        attacks.FGSM(eps=0.1), attacks.FGM(eps=0.6), attacks.BIM(eps=0.1, steps=5),
        attacks.PGD(eps=0.6, norm="l2", steps=5, restarts=2, stop="first", loss="margin"),
    ],
    ids=lambda a: type(a).__name__,
)  # fmt: skip
def test_it_takes_each_of_the_family(x, y, attack):
    adaptive = Adaptive(attack=attack, losses=[EVASION])
    result = adaptive.run(sure(), x, y)
    assert adaptive.norm == result.norm == attack.norm
    assert adaptive.eps == attack.eps
    answered = sure().predict(result.x_adv)
    assert torch.equal(result.success, (answered != y) & (answered != REJECTED))


def test_an_unguarded_model_is_attacked_as_it_is(x, y):
    plain = Adaptive(attack=PGD, losses=["margin"]).run(convnet(), x, y)
    inner = dataclasses.replace(PGD, loss="margin", stop="never")
    direct = inner(convnet(), x, y)
    torch.testing.assert_close(plain.x_adv, direct)
    assert torch.equal(plain.success, answers(convnet(), direct) != y)


def test_a_model_around_another_is_asked_itself(x, y):
    """Its `model` is not what it answers by."""
    turned = StraightThrough(convnet(), lambda v: 1 - v, backward=lambda v: 1 - v)
    plain = Adaptive(attack=PGD, losses=["margin"]).run(turned, 1 - x, y)
    torch.testing.assert_close(
        plain.x_adv, dataclasses.replace(PGD, loss="margin", stop="never")(turned, 1 - x, y)
    )
    assert plain.success.any()


def test_it_passes_through_an_evaluation(x, y):
    adaptive = Adaptive(attack=PGD, losses=["ce", EVASION])
    report = rob.evaluate(sure(), x, y, attacks=[adaptive], batch_size=16)
    known = sure().predict(x) == y
    assert torch.equal(report.clean, known)
    (outcome,) = report.outcomes
    result = adaptive.run(sure(), x[known], y[known])
    assert torch.equal(outcome.robust[known], ~result.success)
    assert outcome.eps == 0.1
    assert (
        "Adaptive(attack=PGD(eps=0.1, steps=10), losses=('ce', Evasion(detector_score=surest"
        in str(outcome.label)
    )
    eps = dataclasses.replace(adaptive, attack=dataclasses.replace(PGD, eps=torch.full((40,), 0.1)))
    cut = rob.evaluate(sure(), x, y, attacks=[eps], batch_size=16).outcomes[0]
    assert torch.equal(cut.robust, outcome.robust)


def test_a_surrogate_of_the_detector_gets_past_it(x, y):
    net = convnet()
    rows = net(torch.cat([images(400, seed=9), PGD(net, x, y)])).softmax(1).detach().numpy()
    surrogate = DetectorSurrogate(Sure(), hidden=(32,), epochs=60).fit(rows)
    assert surrogate.agreement(net(x).softmax(1).detach().numpy()) > 0.9
    loss = Evasion(detector_score=surrogate.anomaly_score, threshold=0.58)
    through = Adaptive(attack=PGD, losses=[loss]).run(sure(), x, y).success
    known = Adaptive(attack=PGD, losses=[EVASION]).run(sure(), x, y).success
    assert (through & known).sum() >= 0.8 * known.sum() > 0


def test_a_forest_on_a_real_net_falls_to_who_knows_it(real_net, mnist_test):
    net, x, y = real_net("mnist_lenet", "mnist_lenet.pt"), mnist_test.x, mnist_test.y
    pgd = attacks.PGD(eps=0.2, steps=15)
    learnt = collect({"lenet": net}, [attacks.PGD(eps=0.2, steps=5)], x[:150], y[:150])
    forest = OutputForest(random_state=0).fit(learnt.outputs, learnt.adversarial)
    guard = Guard(net, forest, fpr=0.05).calibrate(x[150:350])
    x, y = x[350:380], y[350:380]
    unaware = guard.predict(pgd(net, x, y))
    assert (unaware == REJECTED).float().mean() > 0.7
    surrogate = DetectorSurrogate(forest, epochs=20).fit(learnt.outputs)
    loss = Evasion(detector_score=surrogate.anomaly_score, threshold=guard.threshold)
    result = Adaptive(attack=pgd, losses=[loss]).run(guard, x, y)
    assert result.success.float().mean() > 0.6
    answered = guard.predict(result.x_adv)
    assert torch.equal(result.success, (answered != y) & (answered != REJECTED))


def test_a_gradient_that_fails_is_reported():
    """Nothing of the alarm's gradient is left where it counts."""
    x, y = points()
    loss = Evasion(detector_score=lambda z: 9 + 0 * z[:, 1], threshold=0.0, outputs="logits")
    adaptive = Adaptive(attack=attacks.PGD(eps=0.01, steps=3), losses=[loss])
    with pytest.warns(UserWarning, match="20 of 20 samples met a gradient of zero"):
        result = adaptive.run(plane(-0.2, 9.0), x, y)
    assert result.no_gradient.all()


def test_probabilities_behind_a_guard_are_noticed(x, y):
    net = torch.nn.Sequential(convnet(), torch.nn.Softmax(1)).eval()
    with pytest.warns(UserWarning, match="seems to return probabilities"):
        Adaptive(attack=PGD, losses=["margin"]).run(Guard(net, Sure(), threshold=0.9), x, y)


@pytest.mark.filterwarnings("ignore:.*met a gradient")
@pytest.mark.filterwarnings("ignore:.*NaN or infinite logits")
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_the_guard_is_not_asked_about_what_the_model_fails_at(value):
    """Far over the plane there are no finite logits, and the loss would be the greatest."""

    class Edge(Halfspace):
        def forward(self, x):
            broken = torch.where(x[:, 0] > 0.55, value, 0.0)
            return super().forward(x) + torch.stack([torch.zeros_like(broken), broken], 1)

    x, y = points()
    edge = Edge(torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64), b=-0.5)
    guard = Guard(edge, Between(-9, 9), threshold=9.5, outputs="logits")
    adaptive = Adaptive(attack=attacks.PGD(eps=0.12, steps=12), losses=["margin"])
    result = adaptive.run(guard, x, y)
    assert result.success.float().mean() > 0.5
    assert (result.x_adv[:, 0] <= 0.55).all()
    assert result.not_finite.any()
    assert not (result.not_finite & result.success).any()


class Labels:
    bounds, num_classes = (0.0, 1.0), 3

    def predict(self, x):
        return torch.zeros(len(x), dtype=torch.int64)


def test_a_guard_without_gradients_is_refused(x, y):
    class Behind(Labels):
        model = Labels()

    for model in (Labels(), Behind()):
        with pytest.raises(
            TypeError, match="must have gradients .* for Adaptive.*, got Labels, a Classifier"
        ):
            Adaptive(attack=PGD, losses=["ce"]).run(model, x, y)


def test_targets_are_refused(x, y):
    with pytest.raises(ValueError, match="`target` must be None for Adaptive"):
        Adaptive(attack=PGD, losses=["ce"]).run(sure(), x, y, target=(y + 1) % 3)


def test_rejected_inputs_need_labels(x):
    with pytest.raises(ValueError, match=r"`y` must be given .* got None \(sample"):
        Adaptive(attack=PGD, losses=["ce"]).run(sure(), x)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Adaptive(attack=PGD, losses=[]), ValueError, "`losses` must have at least"),
        (lambda: Adaptive(attack=PGD, losses="ce"), TypeError, "`losses` must be a list"),
        (lambda: Adaptive(attack=PGD, losses=EVASION), TypeError, "`losses` must be a list"),
        (lambda: Adaptive(attack=PGD, losses=["c"]), ValueError, "`loss` must be one of"),
        (lambda: Adaptive(attack=attacks.DeepFool(), losses=["ce"]), TypeError, "must be an FGSM"),
        (lambda: Adaptive(attack=attacks.PGD, losses=["ce"]), TypeError, "must be an FGSM"),
        (lambda: Adaptive(attack=PGD, losses=["ce"], restarts=0), ValueError, "`restarts` must be"),
        (
            lambda: Adaptive(attack=attacks.BIM(eps=0.1), losses=["ce"], restarts=2),
            ValueError,
            "`restarts` must be 1 without random starts",
        ),
        (
            lambda: Evasion(detector_score=3, threshold=0.5),
            TypeError,
            "`detector_score` must be a function",
        ),
        (
            lambda: Evasion(detector_score=surest, threshold="a"),
            TypeError,
            "`threshold` must be a number",
        ),
        (
            lambda: Evasion(detector_score=surest, threshold=float("nan")),
            ValueError,
            "finite, got nan",
        ),
        (
            lambda: Evasion(detector_score=surest, threshold=-float("inf")),
            ValueError,
            "finite, got -inf",
        ),
        (
            lambda: Evasion(detector_score=surest, threshold=0.5, weight=0),
            ValueError,
            "`weight` must be pos",
        ),
        (
            lambda: Evasion(detector_score=surest, threshold=0.5, outputs="x"),
            ValueError,
            "`outputs` must be",
        ),
        (
            lambda: Mimicry(logits=[[1.0]]),
            TypeError,
            "`logits` must be a tensor of floats, got list",
        ),
        (lambda: Mimicry(logits=torch.eye(3).long()), TypeError, "got torch.int64"),
        (lambda: Mimicry(logits=torch.ones(3)), ValueError, r"shape \(m, classes\), got \(3,\)"),
        (lambda: Mimicry(logits=torch.ones(3, 2)), ValueError, "rows of at least two labels"),
        (lambda: Mimicry(logits=torch.ones(0, 2)), ValueError, "rows of at least two labels"),
        (
            lambda: Mimicry(logits=torch.eye(2) / 0),
            ValueError,
            "got NaN or infinity .rows 0, 1",
        ),
        (lambda: Mimicry(logits=torch.eye(2), outputs="x"), ValueError, "`outputs` must be one of"),
    ],
)
def test_wrong_arguments_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_an_alarm_of_the_wrong_shape_is_refused():
    loss = Evasion(detector_score=lambda p: p, threshold=0.5)
    with pytest.raises(ValueError, match=r"scores of shape \(2,\), got \(2, 3\)"):
        loss(torch.eye(3)[:2], torch.tensor([0, 0]))


def test_where_the_detector_is_quiet_evasion_is_the_margin():
    x = torch.rand(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    logits, y = Linear3()(x), torch.arange(30) % 3
    quiet = Evasion(detector_score=lambda p: p[:, 0] - 99, threshold=0.0)
    torch.testing.assert_close(quiet(logits, y), margin(logits, y))


@pytest.mark.parametrize("seed", range(4))
def test_an_alarm_that_squeezes_a_single_sample(seed, x):
    torch.manual_seed(seed)
    alarm = torch.nn.Linear(3, 1)
    plain = Evasion(detector_score=lambda p: alarm(p)[:, 0], threshold=0.5)
    squeezing = Evasion(detector_score=lambda p: alarm(p).squeeze(), threshold=0.5)
    found = [attacks.PGD(eps=0.2, loss=loss)(convnet(), x[:1]) for loss in (plain, squeezing)]
    assert torch.equal(*found)


def test_apgd_as_the_inner_attack_starts_at_random_and_aims_at_no_class():
    inner = attacks.APGD(eps=0.1, steps=5)
    assert Adaptive(attack=inner, losses=["ce"], restarts=2).attack is inner
    with pytest.raises(ValueError, match="`attack` must not aim at classes, got APGD"):
        Adaptive(attack=attacks.APGD(eps=0.1, candidates=3), losses=["ce"])
