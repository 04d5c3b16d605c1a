"""Services that fail in the middle of an attack: what they answered before is not lost."""

import pickle
import threading

import pytest
import torch

from advkit import (
    AttackInterrupted,
    CallableClassifier,
    Ensemble,
    Expectation,
    QueryBudgetExceeded,
    QueryCounter,
    ServiceError,
    StraightThrough,
    TorchClassifier,
    attacks,
    defenses,
)
from advkit.detectors import Guard
from advkit.eval import evaluate_stream
from tests.attack_cases import BLACK_BOX, GRADIENT
from tests.toys import convnet

N, LIMITS = 8, (0, 8, 40, 77)
FAILURES = ("raises", "shape", "nan", "text", "nothing")
SQUARE, HOPSKIPJUMP = attacks.Square(eps=0.05, max_queries=40), attacks.HopSkipJump(max_queries=60)


def double_net():
    """The same net at every call, in float64."""
    return convnet(dtype=torch.float64)


class Service:
    """Probabilities of a net; after `limit` samples it fails in one of several ways."""

    def __init__(self, limit=None, failure="raises"):
        self.net, self.limit, self.failure, self.answered = double_net(), limit, failure, 0

    def __call__(self, x):
        if self.limit is not None and self.answered + len(x) > self.limit:
            return self.fail(x)
        self.answered += len(x)
        with torch.no_grad():
            return self.net(x.double()).softmax(1)

    def fail(self, x):
        if self.failure == "raises":
            raise ConnectionError("down")
        return {
            "shape": torch.zeros(len(x), 7),
            "nan": torch.full((len(x), 3), torch.nan),
            "text": ["busy"] * len(x),
            "nothing": None,
        }[self.failure]


class Calm:
    """A detector that never raises an alarm."""

    def anomaly_score(self, outputs):
        return torch.zeros(len(outputs))


class Failing(TorchClassifier):
    """A differentiable model that fails after `limit` samples, as one behind a service."""

    may_interrupt = True

    def __init__(self, module, limit):
        super().__init__(module)
        self.left = limit

    def logits(self, x):
        if len(x) > self.left:
            raise ServiceError("down")
        self.left -= len(x)
        return super().logits(x)


WRAPPED = {
    "itself": lambda model: model,
    "counter": QueryCounter,
    "ensemble": lambda model: Ensemble([model], combine="probabilities"),
    "expectation": lambda model: Expectation(model, draws=1),
    "straight through": lambda model: StraightThrough(model, lambda x: x),
    "guard": lambda model: Guard(model, Calm(), threshold=1.0, outputs="scores"),
    "validator": lambda model: defenses.InputValidator(model),
    "all of them": lambda model: QueryCounter(
        Guard(
            Ensemble([QueryCounter(model)], "probabilities"),
            Calm(),
            threshold=1.0,
            outputs="scores",
        )
    ),
}


@pytest.fixture
def x():
    return torch.rand(N, 1, 6, 6, dtype=torch.float64)


@pytest.fixture
def y(x):
    return double_net()(x).argmax(1)


def service(limit=None, failure="raises"):
    return CallableClassifier(Service(limit, failure), 3, input_type="tensor")


def interrupted(attack, model, x, y, error):
    """What an attack had found when it was ended by `error`; `None` if it came to its end."""
    try:
        attack.run(model, x, y)
    except error as caught:
        return caught.result
    return None


def assert_alike(found, expected):
    assert (found is None) == (expected is None)
    if found is None:
        return
    for name in ("x_adv", "success", "distance"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.equal(found.queries.forward, expected.queries.forward)


def test_black_box_attacks_keep_what_was_answered(tally, x, y):
    promise = tally("an error of a service leaves what the attack had found")
    for attack in BLACK_BOX:
        for limit in LIMITS:
            budgeted = QueryCounter(service(), max_queries=limit)
            expected = interrupted(attack, budgeted, x, y, QueryBudgetExceeded)
            for failure in FAILURES if limit == 40 else FAILURES[:1]:
                with promise.trial((attack, limit, failure)):
                    found = interrupted(attack, service(limit, failure), x, y, ServiceError)
                    assert_alike(found, expected)


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_pass_it_on(tally, x, y, name):
    promise = tally("an error of a service leaves what the attack had found")
    for attack in (HOPSKIPJUMP,) if name == "validator" else (SQUARE, HOPSKIPJUMP):
        for limit in LIMITS:
            with promise.trial((name, attack, limit)):
                healthy = QueryCounter(WRAPPED[name](service()), max_queries=limit)
                expected = interrupted(attack, healthy, x, y, QueryBudgetExceeded)
                assert expected is not None
                found = interrupted(attack, WRAPPED[name](service(limit)), x, y, ServiceError)
                assert_alike(found, expected)


def test_gradient_attacks_keep_what_was_answered(tally, x, y):
    promise = tally("an error of a service leaves what the attack had found")
    net = double_net()
    for attack in GRADIENT:
        for limit in LIMITS[1:3]:
            with promise.trial((attack, limit)):
                budgeted = QueryCounter(net, max_queries=limit)
                expected = interrupted(attack, budgeted, x, y, QueryBudgetExceeded)
                found = interrupted(attack, Failing(net, limit), x, y, ServiceError)
                assert_alike(found, expected)


def test_something_is_found_before_the_failure(x, y):
    found = interrupted(attacks.Square(eps=0.1), service(40), x, y, ServiceError)
    assert found.success.any()
    assert (double_net()(found.x_adv).argmax(1) != y)[found.success].all()


def test_a_budget_inside_a_wrapper_keeps_what_was_found(x, y):
    attack = SQUARE
    expected = interrupted(attack, QueryCounter(service(), 77), x, y, QueryBudgetExceeded)
    inner = Expectation(QueryCounter(service(), 77), draws=1)
    assert_alike(interrupted(attack, inner, x, y, QueryBudgetExceeded), expected)


@pytest.mark.parametrize("victim", [service, double_net])
def test_a_surrogate_that_fails_leaves_the_clean_inputs(x, y, victim):
    """What it had found fools the surrogate, which says nothing of the model."""
    transfer = attacks.Transfer(attack=SQUARE, surrogate=service(77))
    found = interrupted(transfer, victim(), x, y, ServiceError)
    assert torch.equal(found.x_adv, x)
    assert not found.success.any()
    assert (found.queries.forward == 0).all()


def test_a_substitute_is_as_far_as_it_got(x):
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 3)).double()
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(ServiceError):
        attacks.Substitute(max_queries=32).fit(service(16), net, x)
    assert not any(map(torch.equal, before, net.parameters()))


def test_an_evaluation_keeps_the_reports_before(x, y):
    reports = []
    model = service(40)
    attack = attacks.Square(eps=0.3, max_queries=9)
    stream = evaluate_stream(model, x, y, attacks=[attack], batch_size=2)
    with pytest.raises(AttackInterrupted):
        reports.extend(stream)
    assert 0 < len(reports) < 4
    assert len(reports[-1].clean) == 2 * len(reports)


def test_the_error_can_be_pickled_with_its_result(x, y):
    with pytest.raises(ServiceError) as caught:
        SQUARE.run(service(77), x, y)
    twin = pickle.loads(pickle.dumps(caught.value))
    assert (str(twin), twin.attempts) == (str(caught.value), 1)
    assert torch.equal(twin.result.x_adv, caught.value.result.x_adv)


def test_threads_fail_by_themselves(tally, x, y):
    """Each attack gets its own error, with what it had found itself."""
    promise = tally("an error of a service leaves what the attack had found")
    found, models = [None] * 6, [service(40 + 8 * i) for i in range(6)]

    def work(i):
        found[i] = interrupted(attacks.Square(eps=0.05, seed=i), models[i], x, y, ServiceError)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, one in enumerate(found):
        with promise.trial(i):
            attack = attacks.Square(eps=0.05, seed=i)
            alone = interrupted(attack, service(40 + 8 * i), x, y, ServiceError)
            assert_alike(one, alone)
