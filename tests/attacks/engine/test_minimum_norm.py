"""What minimum-norm attacks share: the refinement of a success to the boundary."""

import pytest
import torch
from torch import nn

from advkit import InconclusiveWarning, TorchClassifier, attacks
from advkit.attacks.engine.minimum_norm import candidates, refine_to_boundary
from advkit.attacks.engine.records import Nearest
from tests.attack_cases import GRADIENT_MINIMUM_NORM
from tests.toys import convnet, images

TO_THE_BOUNDARY = [  # all but those that count features, and those on a detector too
    attack
    for attack in GRADIENT_MINIMUM_NORM
    if attack.norm != "l0" and not isinstance(attack, attacks.JointCarliniWagner)
]


def segment(logits, x, *, target=None, confidence=0.0):
    """A problem whose inputs `(n, 1)` are places on a line, and the logits there."""

    class Line(nn.Module):
        def forward(self, x):
            return logits(x[:, 0])

    y = torch.zeros(len(x), dtype=torch.int64)
    attack = attacks.CarliniWagnerL2(confidence=confidence)
    problem = attack._problem(TorchClassifier(Line(), bounds=(0, 10)), x, y, target)
    return problem, problem.logits(x)


def success_at(problem, place):
    x_adv = torch.full_like(problem.x, place)
    at = problem.forward(x_adv, differentiate=False)
    return Nearest(x_adv, at.violation, problem.distance(x_adv))


def test_one_step_finds_the_first_of_several_boundaries():
    """Of three classes the one that is passed first, though another leads at the end."""
    x = torch.zeros(2, 1, dtype=torch.float64)
    problem, logits = segment(lambda t: torch.stack([6 - t, t, 4 * t - 12, 0 * t], 1), x)
    found = refine_to_boundary(problem, x, logits, success_at(problem, 9.0), 1)
    torch.testing.assert_close(found.distance, torch.full((2,), 3.0).double(), rtol=2e-3, atol=0)
    assert found.success.all()


def test_a_target_needs_the_last_of_several_boundaries():
    x = torch.zeros(2, 1, dtype=torch.float64)
    target = torch.tensor([1, 1])
    problem, logits = segment(
        lambda t: torch.stack([6 - t, t, 4 + 0 * t, 0 * t], 1), x, target=target
    )
    found = refine_to_boundary(problem, x, logits, success_at(problem, 9.0), 1)
    torch.testing.assert_close(found.distance, torch.full((2,), 4.0).double(), rtol=2e-3, atol=0)


def test_the_confidence_is_kept():
    x = torch.zeros(1, 1, dtype=torch.float64)
    problem, logits = segment(lambda t: torch.stack([6 - t, t], 1), x, confidence=2.0)
    found = refine_to_boundary(problem, x, logits, success_at(problem, 9.0), 1)
    torch.testing.assert_close(found.distance, torch.tensor([4.0]).double(), rtol=2e-3, atol=0)


def test_bends_take_more_steps():
    x = torch.zeros(1, 1, dtype=torch.float64)
    problem, logits = segment(lambda t: torch.stack([9 + 0 * t, t**2], 1), x)
    far = [
        float(refine_to_boundary(problem, x, logits, success_at(problem, 9.0), k).distance)
        for k in range(9)
    ]
    assert far[0] == 9
    assert far[8] == pytest.approx(3, rel=1e-2)
    assert sorted(far, reverse=True) == far
    assert far[3] < 3.5


def test_a_bend_the_other_way_takes_more_steps_too():
    x = torch.zeros(1, 1, dtype=torch.float64)
    problem, logits = segment(lambda t: torch.stack([9 + 0 * t, 81 * (t / 9) ** 0.25 - 45], 1), x)
    found = refine_to_boundary(problem, x, logits, success_at(problem, 9.0), 8)
    assert float(found.distance) == pytest.approx(9 * (2 / 3) ** 4, rel=2e-2)


def test_an_inner_point_that_is_a_success_is_not_refined_to():
    x = torch.full((1, 1), 4.0, dtype=torch.float64)  # past the boundary
    problem, logits = segment(lambda t: torch.stack([6 - t, t], 1), x)
    nearest = success_at(problem, 9.0)
    before = problem.statistics.forward.clone()
    assert float(refine_to_boundary(problem, x, logits, nearest, 3).distance) == 5
    assert torch.equal(problem.statistics.forward, before)


def test_candidates_are_the_likeliest_classes_without_the_label():
    x = torch.tensor([[1.0], [9.0]], dtype=torch.float64)
    problem, _ = segment(lambda t: torch.stack([5 + 0 * t, t, 10 - t], 1), x)
    at = problem.forward(x, differentiate=False)
    found = candidates(at, problem.goal, 5)
    assert torch.stack(found, 1).tolist() == [[2, 1], [1, 2]]
    assert torch.stack(candidates(at, problem.goal, 1), 1).tolist() == [[2], [1]]


def test_what_is_no_success_and_what_begins_as_one_stay_as_they_are():
    x = torch.tensor([[0.0], [4.0]], dtype=torch.float64)  # the second is past the boundary
    problem, logits = segment(lambda t: torch.stack([6 - t, t], 1), x)
    nearest = success_at(problem, 2.0)  # no success
    nearest = Nearest(nearest.x_adv, nearest.violation, torch.tensor([torch.inf, 2.0]))
    before = problem.statistics.forward.clone()
    assert refine_to_boundary(problem, x, logits, nearest, 3) is nearest
    assert torch.equal(problem.statistics.forward, before)


def test_a_tie_is_no_reason_to_stop():
    """An inner point on the boundary itself that argmax gives to the label."""
    x = torch.full((1, 1), 3.0, dtype=torch.float64)
    problem, logits = segment(lambda t: torch.stack([6 - t, t], 1), x)
    assert not problem.forward(x, differentiate=False).success
    found = refine_to_boundary(problem, x, logits, success_at(problem, 5.0), 2)
    assert found.distance < 0.05


@pytest.mark.parametrize(
    "kind",
    [
        *(attacks.LBFGS, attacks.CarliniWagnerL2, attacks.FAB),
        *(attacks.DDN, attacks.FMN, attacks.SigmaZero),
    ],
)
def test_progress_is_shown_on_demand(kind, capsys):
    kind(progress=True, steps=10).run(convnet(), images())
    assert kind.__name__ in capsys.readouterr().err


@pytest.mark.parametrize("attack", TO_THE_BOUNDARY, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("bounds", [(0, 1), (-1, 1)])
def test_clean_inputs_on_the_boundary_are_left(attack, dtype, bounds):
    torch.manual_seed(0)
    model = TorchClassifier(nn.Linear(4, 3, bias=False, dtype=dtype), bounds)
    x, y = torch.zeros(2, 4, dtype=dtype), torch.zeros(2, dtype=torch.long)
    result = attack.run(model, x, y)
    assert result.success.all()
    if not attack._confidence:
        assert result.distance.max() < 0.05
    aimed = attacks.FAB(steps=5).run(model, x, y, target=y + 1)
    assert aimed.success.all()
    assert aimed.distance.max() < 0.05


def test_a_tie_without_a_gradient_is_marked():
    class Tied(nn.Module):
        def forward(self, x):
            return 0 * x[:, :2]

    with pytest.warns(InconclusiveWarning, match="gradient of zero"):
        result = attacks.FAB(steps=4).run(Tied(), torch.rand(2, 4), torch.zeros(2))
    assert result.no_gradient.all()


class Coarse(nn.Module):
    """Logits in units of 2 ** -14, with the gradients of those without rounding."""

    def forward(self, x):
        value = x.flatten(1).sum(1) - 2
        coarse = value + ((value * 2**14).round() / 2**14 - value).detach()
        return torch.stack([0 * coarse, coarse], 1)


def test_a_tie_on_a_strip_is_left_by_longer_steps():
    x, y = torch.full((2, 4), 0.5), torch.zeros(2, dtype=torch.long)
    result = attacks.FAB(steps=5).run(Coarse(), x, y)
    assert result.success.all()
    assert 2**-16 < result.distance.min() <= result.distance.max() < 2**-12


def test_a_success_from_a_tie_is_kept():
    net = nn.Linear(4, 2, bias=False)
    net.weight.data[:] = torch.tensor([[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, -1.0, -1.0]])
    result = attacks.JSMA(theta=0.4, gamma=0.5).run(net, torch.zeros(2, 4), torch.zeros(2))
    assert result.success.all()
    assert result.distance.tolist() == [2, 2]
