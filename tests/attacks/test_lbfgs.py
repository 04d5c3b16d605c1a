"""L-BFGS beside SciPy's L-BFGS-B, image by image."""

from typing import NamedTuple

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from advkit import TorchClassifier, attacks
from advkit.attacks import lbfgs
from advkit.attacks.engine.loop import iterate
from tests.toys import Quadratic, answers, convnet, images


def objective_numpy(net, x0, label, candidate, const):
    """|x - x0|^2 + const * log(1 + exp(z_label - z_rival)) and its gradient."""
    a, w, b = net.numpy()

    def value_and_gradient(x):
        z, rows = w @ x + x @ a @ x / 2 + b, w + a @ x
        gap = z[label] - z[candidate]
        slope = const / (1 + np.exp(-gap)) * (rows[label] - rows[candidate])
        delta = x - x0
        return delta @ delta + const * np.logaddexp(0, gap), 2 * delta + slope

    return value_and_gradient


class Lowest(NamedTuple):
    """The iterates with the least objective, for one constant."""

    x_adv: torch.Tensor
    value: torch.Tensor
    const: torch.Tensor

    def improved(self, problem, at):
        loss = nn.functional.softplus(-at.value.detach())
        value = problem.distance(at.x_adv).square() + self.const * loss
        lower = value < self.value
        x_adv = torch.where(lower[:, None], at.x_adv, self.x_adv)
        return Lowest(x_adv, torch.minimum(value, self.value), self.const.clone())


def lowest_point(attack, net, x, y, candidate, const):
    """Where one constant leads to from the inputs."""
    problem = attack._problem(TorchClassifier(net), x, y, None).with_candidate(candidate)
    const = torch.full((len(x),), const, dtype=x.dtype)
    return iterate(
        problem,
        x,
        attack._initial_state(problem, const),
        attack._step,
        steps=attack.steps,
        best=Lowest(x.clone(), torch.full_like(const, torch.inf), const),
        finished=lambda _, state: state.finished,
    ).x_adv


@pytest.mark.parametrize("const", [0.3, 3.0, 30.0])
@pytest.mark.parametrize("memory", [1, 8])
@pytest.mark.parametrize("seed", range(3))
def test_the_minimizer_is_scipys(const, memory, seed):
    """With walls in the way; few bends, so that there is one minimum to find."""
    net = Quadratic(features=8, classes=3, seed=seed, bend=0.05)
    x = torch.rand(10, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = answers(net, x)
    candidate = (y + 1) % 3
    attack = attacks.LBFGS(steps=200, memory=memory)
    ours = lowest_point(attack, net, x, y, candidate, const).numpy()
    held = 0
    for i in range(len(x)):
        function = objective_numpy(net, x[i].numpy(), int(y[i]), int(candidate[i]), const)
        theirs = minimize(
            function, x[i].numpy(), jac=True, method="L-BFGS-B", bounds=[(0, 1)] * 8,
            options={"ftol": 1e-14, "gtol": 1e-10},
        )  # fmt: skip
        assert function(ours[i])[0] <= theirs.fun * (1 + 1e-4)
        held += ((theirs.x == 0) | (theirs.x == 1)).any()
    assert const < 1 or held > 0


def scipy_search(net, x0, label):
    """Nearest success over all rivals and 12 constants, one image at a time."""
    nearest, features = np.inf, x0.numel()
    start = x0.flatten().double().numpy()

    def logits(v):
        return net(torch.from_numpy(v).view(1, *x0.shape))[0]

    for candidate in (k for k in range(3) if k != label):
        for const in 10.0 ** np.linspace(-2, 2, 12):

            def function(v, candidate=candidate, const=const):
                leaf = torch.from_numpy(v).requires_grad_()
                z = net(leaf.view(1, *x0.shape))[0]
                loss = nn.functional.softplus(z[label] - z[candidate])
                value = ((leaf - torch.from_numpy(start)) ** 2).sum() + const * loss
                value.backward()
                return value.item(), leaf.grad.numpy()

            found = minimize(
                function, start, jac=True, method="L-BFGS-B", bounds=[(0, 1)] * features,
                options={"maxiter": 60},
            ).x  # fmt: skip
            if logits(found).argmax() != label:
                nearest = min(nearest, np.linalg.norm(found - start))
    return nearest


@pytest.mark.slow("searches for constants in SciPy")
def test_the_search_is_nearer_than_scipys():
    net, x = convnet(dtype=torch.float64), images(4, torch.float64)
    y = answers(net, x)
    result = attacks.LBFGS().run(net, x, y)
    theirs = torch.tensor([scipy_search(net, x[i], int(y[i])) for i in range(len(x))])
    assert result.success.all()
    assert (result.distance <= 1.01 * theirs).all()


def test_samples_that_have_converged_leave():
    net = Quadratic(features=8, classes=3, bend=0.05)
    x = torch.rand(10, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    result = attacks.LBFGS(search_steps=1, candidates=1, steps=500).run(net, x)
    assert (result.queries.backward < 100).all()


def begun(memory=2):
    x = torch.full((1, 4), 0.5, dtype=torch.float64)
    attack = attacks.LBFGS(memory=memory)
    problem = attack._problem(TorchClassifier(Quadratic(features=4)), x, None, None)
    state = attack._initial_state(problem, torch.ones(1, dtype=torch.float64))
    slope = torch.tensor([[1.0, -2.0, 0.5, 0.0]]).double()
    return state._replace(point=x, gradient=slope)


def test_pairs_without_curvature_are_not_kept():
    taken, move = torch.tensor([True]), torch.tensor([[1.0, 0, 0, 0]]).double()
    for turn, kept in ((2 * move, True), (-2 * move, False), (0 * move, False)):
        state = lbfgs._with_pair(begun(), taken, move, turn)
        assert (state.rho[0, 0] != 0).item() is kept
        assert int(state.place) == int(kept)
    state = lbfgs._with_pair(begun(), ~taken, move, 2 * move)
    assert (state.rho == 0).all()


def two_loops(slope, free, pairs):
    """Nocedal and Wright, Numerical Optimization, algorithm 7.4, on the free features."""
    q, shares = slope * free, []
    for move, turn in reversed(pairs):
        shares.append(move @ q / (move @ turn))
        q = q - shares[-1] * turn
    move, turn = pairs[-1]
    q = q * (move @ turn) / (turn @ turn)
    for (move, turn), share in zip(pairs, reversed(shares), strict=True):
        q = q + (share - turn @ q / (move @ turn)) * move
    return -q * free


@pytest.mark.parametrize("count", [1, 3, 5])
def test_the_course_is_that_of_the_published_two_loops(count):
    rng, state = np.random.default_rng(count), begun(memory=3)
    state = state._replace(point=torch.tensor([[0.0, 0.5, 0.5, 0.5]]).double())  # the first is held
    bend = rng.normal(size=(4, 4))
    bend = bend @ bend.T + np.eye(4)
    moves = rng.normal(size=(count, 4))
    pairs = [(move, bend @ move) for move in moves]
    taken = torch.tensor([True])
    for move, turn in pairs:
        rows = (torch.from_numpy(v)[None] for v in (move, turn))
        state = lbfgs._with_pair(state, taken, *rows)
    expected = two_loops(state.gradient[0].numpy(), np.array([0, 1, 1, 1]), pairs[-3:])
    np.testing.assert_allclose(lbfgs._direction(state)[0], expected, rtol=1e-9)


def test_a_course_that_would_climb_is_replaced_by_steepest_descent():
    state = begun()
    torch.testing.assert_close(lbfgs._direction(state), -0.5 * state.gradient)
    state.s[0, 1], state.y[0, 1] = state.gradient[0], -state.gradient[0]
    state.sy[0, 1, 1] = state.s[0, 1] @ state.y[0, 1]
    state.yy[0, 1, 1] = state.y[0, 1] @ state.y[0, 1]
    state.rho[0, 1] = 1 / state.sy[0, 1, 1]  # negative curvature
    torch.testing.assert_close(lbfgs._direction(state), -0.5 * state.gradient)


def test_memory_is_used():
    """On a long valley more pairs need fewer evaluations."""
    generator = torch.Generator().manual_seed(0)
    net = Quadratic(features=30, classes=2, bend=0.3)
    x = torch.rand(16, 30, generator=generator, dtype=torch.float64)
    y = answers(net, x)
    values = []
    for memory in (1, 8):
        attack = attacks.LBFGS(steps=12, memory=memory)
        x_adv = lowest_point(attack, net, x, y, 1 - y, 20.0)
        functions = [
            objective_numpy(net, x[i].numpy(), int(y[i]), 1 - int(y[i]), 20.0) for i in range(16)
        ]
        values.append(sum(f(v)[0] for f, v in zip(functions, x_adv.numpy(), strict=True)))
    assert values[1] < values[0]


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"memory": 0}, ValueError, "`memory` must be .*at least 1"),
        ({"search_steps": 0}, ValueError, "`search_steps` must be .*at least 1"),
        ({"steps": 2.5}, TypeError, "`steps` must be"),
        ({"initial_const": 0.0}, ValueError, "`initial_const` must be"),
    ],
)
def test_wrong_settings(settings, error, said):
    with pytest.raises(error, match=said):
        attacks.LBFGS(**settings)


def test_a_targeted_search_descends_the_cross_entropy_over_all_classes():
    """Three classes: with two, or with a candidate, the margin would do as well."""
    net = convnet(classes=3)
    x, target = images(4), torch.tensor([1, 2, 0, 1])
    problem = attacks.LBFGS()._problem(TorchClassifier(net), x, None, target)
    value = problem.forward(x, differentiate=False).value
    expected = -nn.functional.cross_entropy(net(x), target, reduction="none")
    torch.testing.assert_close(-nn.functional.softplus(-value), expected)
