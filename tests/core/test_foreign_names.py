"""Names and values of other libraries: the error names ours."""

import copy
import dataclasses
import inspect
import pickle

import numpy as np
import pytest
import torch

from advkit import attacks
from advkit.cli.errors import UsageError
from advkit.cli.specs import attacks_from
from advkit.core.foreign_names import _OURS, remedy
from tests.attack_cases import ATTACKS
from tests.toys import answers, convnet, images

every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=repr)


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (attacks.PGD, {"alpha": 0.01}, "Use `step_size`."),
        (attacks.PGD, {"eps_step": 0.01}, "Use `step_size`."),
        (attacks.PGD, {"max_iter": 10}, "Use `steps`."),
        (attacks.PGD, {"nb_iter": 10}, "Use `steps`."),
        (attacks.HopSkipJump, {"max_iter": 10}, "Use `max_queries`."),
        (attacks.Square, {"n_queries": 10}, "Use `max_queries`."),
        (attacks.PGD, {"epsilons": [0.1]}, "Use `eps`."),
        (attacks.PGD, {"num_random_init": 3}, "Use `restarts`."),
        (attacks.CarliniWagnerL2, {"alpha": 0.1}, "Use `lr`."),
        (attacks.PGD, {"steeps": 3}, "Did you mean 'steps'?"),
        (attacks.PGD, {"targeted": True}, "belong to the call: attack(model, x, y, target=...)."),
        (attacks.PGD, {"clip_min": 0}, "TorchClassifier(net, bounds=(0, 1), preprocess=...)."),
        (attacks.FGSM, {"zzzzz": 1}, "), got 1."),
    ],
)
def test_a_parameter_of_another_library_is_refused_with_ours(kind, given, said):
    with pytest.raises(TypeError) as caught:
        kind(**given)
    (name,) = given
    text = str(caught.value)
    assert text.startswith(f"`{name}` must be a parameter of {kind.__name__} (")
    assert text.endswith(said)
    with pytest.raises(UsageError, match=f"{kind.__name__} has no parameter '{name}'") as caught:
        attacks_from([f"{kind.__name__}:{name}=1"], [], 0)
    assert str(caught.value).endswith(remedy(name, _parameters(kind)))


def _parameters(kind):
    return [field.name for field in dataclasses.fields(kind) if field.init]


@every_attack
def test_every_attack_refuses_unknown_and_positional_arguments(attack):
    kind = type(attack)
    with pytest.raises(TypeError, match=f"`alphabet` must be a parameter of {kind.__name__} "):
        kind(alphabet=1)
    with pytest.raises(TypeError, match=rf"Pass the model to the call: {kind.__name__}\(\.\.\.\)"):
        kind(convnet())


def test_every_name_leads_to_a_parameter_of_an_attack():
    known = {name for attack in ATTACKS for name in _parameters(type(attack))}
    for ours in _OURS.values():
        assert known.intersection(ours), ours


@pytest.mark.parametrize(
    ("value", "ours"),
    [("Linf", "linf"), ("L2", "l2"), ("l_inf", "linf"), ("inf", "linf"), (np.inf, "linf"),
     (float("inf"), "linf"), (2, "l2"), (1.0, "l1"), (np.float64(2), "l2")],
)  # fmt: skip
def test_norms_of_other_libraries_are_refused_with_ours(value, ours):
    with pytest.raises(ValueError, match=rf"`norm` must be one of .*\. Use '{ours}'\.$"):
        attacks.PGD(eps=0.1, norm=value)
    with pytest.raises(ValueError, match=rf"`norm` must be one of .*\. Use '{ours}'\.$"):
        attacks.RandomNoise(eps=0.1, norm=value)


def test_no_choice_is_named_where_none_is_meant():
    for value in (0, 3, None, "chebyshev", True, float("nan")):
        with pytest.raises(ValueError, match=r"`norm` must be one of 'linf', 'l2', 'l1', got \S+$"):
            attacks.PGD(eps=0.1, norm=value)
    with pytest.raises(ValueError, match=r"got inf\.$"):
        attacks.RandomNoise(eps=0.1, norm=np.inf, kind="gaussian")


@every_attack
@pytest.mark.parametrize("way", ["__call__", "run"])
def test_parameters_of_a_call_are_refused(attack, way):
    net, x = convnet(), images(2)
    call = getattr(attack, way)
    with pytest.raises(TypeError, match="`targeted` must not be passed .* Pass target=labels"):
        call(net, x, answers(net, x), targeted=True)
    with pytest.raises(TypeError, match="`epsilons` must not be passed .* belong to the attack"):
        call(net, x, answers(net, x), epsilons=[0.1])


def test_a_large_value_is_shortened():
    with pytest.raises(TypeError) as caught:
        attacks.PGD(eps=0.1, epsilons=torch.arange(10_000).tolist())
    assert len(str(caught.value)) < 300


class Own(attacks.PGD):
    """An attack of a user with a constructor of their own."""

    def __init__(self, strength):
        super().__init__(eps=strength / 255)


class Named:
    def __init__(self, *, title, **others):
        super().__init__(**others)
        object.__setattr__(self, "title", title)


class Mixed(Named, attacks.PGD):
    """An attack with a mixin, which takes a name of its own."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Scaled(attacks.PGD):
    """An attack with an argument that is not a field."""

    eps: float = 0.0
    levels: dataclasses.InitVar[int] = 8

    def __post_init__(self, levels):
        object.__setattr__(self, "eps", levels / 255)


@dataclasses.dataclass(frozen=True)
class Positional(attacks.PGD):
    """An attack with a positional argument."""

    foo: int = 3


def test_subclasses_of_users_take_what_they_define():
    assert Own(8).eps == Own(strength=8).eps == 8 / 255
    mixed = Mixed(title="mine", eps=0.1)
    assert (mixed.title, mixed.eps) == ("mine", 0.1)
    assert Scaled(levels=4).eps == 4 / 255
    assert Positional(5, eps=0.1).foo == 5
    with pytest.raises(TypeError, match="`alpha` must be a parameter of Scaled .* Use `step_size`"):
        Scaled(alpha=0.1)
    with pytest.raises(TypeError, match="`Scaled` must be created with keyword arguments alone"):
        Scaled(convnet())


@every_attack
def test_signatures_copies_and_pickles_are_those_of_a_dataclass(attack):
    kind = type(attack)
    assert list(inspect.signature(kind).parameters) == _parameters(kind)
    assert dataclasses.replace(attack) == attack
    assert repr(copy.deepcopy(attack)) == repr(attack)
    assert type(pickle.loads(pickle.dumps(attacks.PGD(eps=0.1)))) is attacks.PGD
