"""The attacks of a diagnosis, by their role."""

import inspect

import pytest
import torch

from advkit import attacks
from advkit.core.hyperparameters import non_default_fields
from advkit.eval.diagnosis.comparisons import ROLES
from tests.toys import Halfspace, answers, convnet, images

ALWAYS = ["one_step", "many_steps", "more_steps", "restarts", "scores", "labels", "unbounded"]


def test_roles_are_those_of_a_diagnosis():
    surrogate = Halfspace(torch.ones(2))
    assert list(attacks.probes(eps=0.1)) == ALWAYS
    assert list(attacks.probes(0.1, "l2", surrogate=surrogate)) == [*ALWAYS, "transfer"]
    assert set(attacks.probes(0.1, surrogate=surrogate)) == set(ROLES)
    assert "labels" not in attacks.probes(0.1, "l1")


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_budgets(norm):
    made = attacks.probes(0.25, norm, surrogate=Halfspace(torch.ones(2)))
    for role, attack in made.items():
        if role == "unbounded":
            assert (attack.norm, attack.eps) == ("linf", 1.0)
        elif role == "labels":
            assert attack.norm == norm
            assert getattr(attack, "eps", None) is None
        else:
            assert (attack.norm, attack.eps) == (norm, 0.25)


def test_each_attack_has_its_strength():
    made = attacks.probes(0.25, "l2")
    shared = {"eps": 0.25, "norm": "l2"}
    assert made == {
        "one_step": attacks.FGM(**shared),
        "many_steps": attacks.PGD(**shared, steps=20),
        "more_steps": attacks.PGD(**shared, steps=100),
        "restarts": attacks.PGD(**shared, steps=20, restarts=5, seed=1),
        "scores": attacks.Square(**shared, max_queries=1000),
        "labels": attacks.HopSkipJump(norm="l2", max_queries=1000),
        "unbounded": attacks.PGD(eps=1.0, norm="linf", steps=20),
    }
    assert attacks.probes(0.25)["one_step"] == attacks.FGSM(eps=0.25)


@pytest.mark.parametrize("bounds", [(0.0, 255.0), (-1.0, 1.0)])
def test_the_unbounded_attack_spans_the_bounds(bounds):
    assert attacks.probes(0.1, bounds=bounds)["unbounded"].eps == bounds[1] - bounds[0]


def test_the_seed_reaches_every_random_attack():
    """And the restarts are other draws than the reference."""
    made = attacks.probes(0.1, seed=7, surrogate=Halfspace(torch.ones(2)))
    seeds = {role: attack.seed for role, attack in made.items() if hasattr(attack, "seed")}
    assert seeds == {
        "many_steps": 7, "more_steps": 7, "restarts": 8, "scores": 7, "labels": 7, "unbounded": 7,
        "one_step": 0,  # which draws nothing
    }  # fmt: skip
    assert not made["one_step"].random_start
    assert made["transfer"].attack == made["many_steps"]


def test_the_defaults_are_those_of_the_signature():
    assert attacks.probes(0.1) == attacks.probes(
        0.1, "linf", unit="feature", bounds=(0.0, 1.0), seed=0
    )
    assert attacks.probes(0.1) is not attacks.probes(0.1)
    parameters = list(inspect.signature(attacks.probes).parameters)
    assert parameters == ["eps", "norm", "unit", "bounds", "seed", "surrogate"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"eps": 0.0}, ValueError, r"`eps` must be positive and finite, got 0\.0"),
        ({"eps": -1}, ValueError, "`eps` must be positive"),
        ({"eps": float("nan")}, ValueError, "`eps` must be positive"),
        ({"eps": "0.1"}, TypeError, "`eps` must be a number"),
        ({"eps": torch.tensor([0.1])}, TypeError, "`eps` must be a number"),
        ({"eps": 0.1, "norm": "l0"}, ValueError, "`eps` must be 0 or a number of features"),
        ({"eps": 0.1, "unit": "pixel"}, ValueError, "`unit` must be 'feature' with norm 'linf'"),
        ({"eps": 0.1, "norm": "Linf"}, ValueError, "`norm` must be one of"),
        ({"eps": 0.1, "bounds": (1.0, 0.0)}, ValueError, "`bounds`"),
        ({"eps": 0.1, "bounds": 1.0}, TypeError, "`bounds`"),
        ({"eps": 0.1, "seed": 0.5}, TypeError, "`seed` must be an int"),
        ({"eps": 0.1, "surrogate": "net"}, TypeError, "got str"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        attacks.probes(**arguments)


@pytest.mark.filterwarnings("ignore:The ball of linf 1 holds every input")
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_they_attack_a_net(norm):
    net, x = convnet(), images(4)
    y = answers(net, x)
    eps = {"linf": 0.05, "l2": 0.5, "l1": 3.0}[norm]
    for role, attack in attacks.probes(eps, norm, surrogate=net).items():
        small = attack
        if "max_queries" in non_default_fields(attack) or role in ("scores", "labels"):
            small = type(attack)(**non_default_fields(attack) | {"max_queries": 30})
        result = small.run(net, x, y)
        if role not in ("labels", "unbounded"):
            assert (result.distance <= eps * (1 + 1e-6)).all()
