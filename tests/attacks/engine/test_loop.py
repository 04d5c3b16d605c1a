"""The book-keeping: what is sent through the model, what is kept, what restarts take up."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from advkit import TorchClassifier, attacks
from tests.toys import Halfspace, answers, convnet, images


class Counted(nn.Module):
    """A net that remembers the batch sizes it has seen."""

    def __init__(self, net):
        super().__init__()
        self.net, self.seen = net, []

    def forward(self, x):
        self.seen.append(len(x))
        return self.net(x)


@pytest.fixture
def net():
    return Counted(convnet()).eval()


@pytest.fixture
def x():
    return images(16)


@pytest.fixture
def y(net, x):
    return answers(net.net, x)


def test_never_costs_one_pass_a_step_one_for_the_last_iterate_and_one_to_judge(net, x, y):
    result = attacks.PGD(eps=0.1, steps=7, stop="never").run(net, x, y)
    assert net.seen == [16] * 9
    assert (result.queries.forward == 9).all()
    assert (result.queries.backward == 7).all()


def test_one_step_costs_two_passes(net, x, y):
    for attack in (attacks.FGSM(eps=0.1), attacks.FGM(eps=0.1, stop="never")):
        net.seen.clear()
        assert (attack.run(net, x, y).queries.backward == 1).all()
        assert net.seen == [16, 16]


def test_passes_without_a_step_after_them_build_no_graph(net, x, y):
    graphs = []
    net.register_forward_pre_hook(lambda *_: graphs.append(torch.is_grad_enabled()))
    attacks.PGD(eps=0.1, steps=3, stop="never").run(net, x, y)
    assert graphs == [True, True, True, False, False]  # the last iterate, and the result
    graphs.clear()
    attacks.FAB(steps=4).run(net, x, (y + 1) % 3)
    assert graphs == [False, False]  # all are misclassified


def test_finished_samples_leave_the_batch(net, x, y):
    eps = torch.where(torch.arange(16) < 8, 0.3, 0.0)
    result = attacks.PGD(eps=eps, steps=20, random_start=False, loss="margin").run(net, x, y)
    assert result.success[:8].all()
    assert not result.success[8:].any()
    assert (result.queries.forward[8:] >= 22).all()
    assert (result.queries.backward[8:] == 20).all()
    assert (result.queries.forward[:8] < 15).all()
    assert net.seen[-1] == 16
    assert net.seen[-2] == 8


def test_all_finished_means_no_further_pass(net, x, y):
    attacks.PGD(eps=0.1, steps=20).run(net, x, (y + 1) % 3)
    assert net.seen == [16, 16]


def test_a_few_open_samples_are_sent_forward_again_rather_than_all_backward(net, x, y):
    wrong = (y + 1) % 3
    labels = torch.cat([y[:2], wrong[2:]])
    result = attacks.PGD(eps=0.0, steps=3, random_start=False).run(net, x, labels)
    assert net.seen == [16, 2, 2, 2, 2, 16]
    assert result.queries.backward.tolist() == [3, 3] + [0] * 14
    net.seen.clear()
    labels = torch.cat([y[:10], wrong[10:]])
    result = attacks.PGD(eps=0.0, steps=3, random_start=False).run(net, x, labels)
    assert net.seen == [16, 10, 10, 10, 16]
    assert result.queries.backward.tolist() == [3] * 10 + [1] * 6


def test_restarts_take_up_only_what_is_unsolved(net, x, y):
    attack = attacks.PGD(eps=0.04, steps=2, seed=1)
    once = attack.run(net, x, y)
    assert 0 < once.success.sum() < 16
    net.seen.clear()
    twice = replace(attack, restarts=2).run(net, x, y)
    assert (twice.success >= once.success).all()
    torch.testing.assert_close(twice.x_adv[once.success], once.x_adv[once.success])
    solved = once.success
    assert (twice.queries.forward[solved] == once.queries.forward[solved]).all()
    assert (twice.queries.forward[~solved] > once.queries.forward[~solved]).all()


def test_restarts_keep_the_strongest_of_all(net, x, y):
    def margins(restarts, seed=0):
        attack = attacks.PGD(eps=0.05, steps=2, restarts=restarts, stop="never", seed=seed)
        z = net(attack(net, x, y))
        own = z.gather(1, y[:, None])[:, 0]
        return (z.scatter(1, y[:, None], -torch.inf).amax(1) - own).detach()

    one, five = margins(1), margins(5)
    assert (five >= one - 1e-6).all()
    assert (five > one + 1e-4).any()


def test_the_strongest_iterate_is_kept_not_the_last(x):
    """On a loss with a peak inside the ball a long constant step jumps over it and back."""

    class Peak(nn.Module):
        def forward(self, x):
            v = x.flatten(1).mean(1)
            return torch.stack([0 * v, 2 - 40 * (v - 0.6).abs()], 1)

    flat = torch.full((1, 4), 0.5)
    y = torch.tensor([0])
    attack = attacks.PGD(eps=0.2, step_size=0.1, steps=3, random_start=False, stop="never")
    torch.testing.assert_close(attack(Peak(), flat, y), torch.full((1, 4), 0.6))


def test_a_tie_is_what_the_model_says_it_is():
    """Equal logits: argmax takes the first, and success follows it in both directions."""
    tied = nn.Linear(2, 2)
    nn.init.zeros_(tied.weight)
    nn.init.zeros_(tied.bias)
    x = torch.full((2, 2), 0.5)
    with pytest.warns(UserWarning, match="gradient of zero"):
        result = attacks.PGD(eps=0.1, steps=2).run(tied, x, torch.tensor([0, 1]))
    assert result.success.tolist() == [False, True]


def test_the_keep_mode_leaves_dropout_on_and_restores_what_it_moves(x, y):
    module = convnet()
    module.train()
    model = TorchClassifier(module, mode="keep")
    before = module.norm.running_mean.clone()
    over_batch = pytest.warns(UserWarning, match="batch norm that uses the statistics")
    with over_batch, pytest.warns(UserWarning, match="it is random"):
        attacks.PGD(eps=0.01, steps=3, stop="never").run(model, x, y)
    assert torch.equal(module.norm.running_mean, before)
    assert module.drop.training


def test_a_loss_of_ones_own_is_climbed(net, x, y):
    calls = []

    def loss(logits, labels):
        calls.append(logits.shape)
        return -logits.gather(1, labels[:, None]).squeeze(1)

    attack = attacks.PGD(eps=0.1, steps=3, loss=loss)
    assert attack.run(net, x, y).success.any()
    assert all(shape[1] == 3 for shape in calls)
    with pytest.raises(ValueError, match=r"`loss` must return one value for each sample.*got \(\)"):
        attacks.PGD(eps=0.1, loss=lambda z, k: loss(z, k).mean()).run(net, x, y)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: attacks.PGD(eps=-1.0), "`eps` must be at least 0"),
        (lambda: attacks.PGD(eps=float("nan")), "`eps` must be at least 0"),
        (
            lambda: attacks.PGD(eps=1.0, norm="l0"),
            "`norm` must be one of 'linf', 'l2', 'l1', got 'l0'",
        ),
        (lambda: attacks.FGM(eps=1.0, norm="L2"), "`norm` must be one of"),
        (lambda: attacks.PGD(eps=1.0, steps=0), "`steps` must be at least 1"),
        (lambda: attacks.BIM(eps=1.0, steps=0), "`steps` must be at least 1"),
        (lambda: attacks.PGD(eps=1.0, step_size=0.0), "`step_size` must be positive"),
        (lambda: attacks.BIM(eps=1.0, step_size=-1.0), "`step_size` must be positive"),
        (lambda: attacks.PGD(eps=1.0, restarts=0), "`restarts` must be at least 1"),
        (lambda: attacks.PGD(eps=1.0, restarts=2, random_start=False), "`restarts` must be 1"),
        (lambda: attacks.PGD(eps=1.0, momentum=-0.1), "`momentum` must be at least 0"),
        (lambda: attacks.PGD(eps=1.0, loss="mse"), "`loss` must be one of 'ce', 'margin', 'dlr'"),
        (
            lambda: attacks.FGSM(eps=1.0, stop="last"),
            "`stop` must be one of 'first', 'never', None",
        ),
    ],
)
def test_bad_hyper_parameters(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_bad_types():
    for make, said in [
        (lambda: attacks.PGD(eps="8/255"), "`eps` must be a number, got str"),
        (lambda: attacks.PGD(eps=1.0, steps=4.0), "`steps` must be an int, got float"),
        (lambda: attacks.PGD(eps=1.0, random_start=1), "`random_start` must be True or False"),
        (lambda: attacks.FGSM(eps=1.0, random_start="no"), "`random_start` must be True or False"),
        (lambda: attacks.PGD(eps=1.0, seed=0.5), "`seed` must be an int"),
        (lambda: attacks.FGSM(eps=1.0, seed=None), "`seed` must be an int"),
        (lambda: attacks.PGD(eps=1.0, progress=1), "`progress` must be True or False"),
        (lambda: attacks.PGD(0.1), "keyword arguments alone"),
    ]:
        with pytest.raises(TypeError, match=said):
            make()


def test_attacks_are_values():
    attack = attacks.PGD(eps=8 / 255, steps=20)
    assert attack == attacks.PGD(eps=8 / 255, steps=20)
    assert attack != replace(attack, eps=4 / 255)
    assert len({attack, replace(attack, steps=10), attacks.PGD(eps=8 / 255, steps=20)}) == 2
    assert pickle.loads(pickle.dumps(attack)) == attack
    with pytest.raises(AttributeError):
        attack.eps = 1.0


def test_attacks_print_as_the_call_that_makes_them():
    assert repr(attacks.PGD(eps=8 / 255, norm="l2", steps=20)) == (
        "PGD(norm='l2', eps=0.03137, steps=20)"
    )
    assert repr(attacks.FGSM(eps=torch.ones(3))) == "FGSM(eps=<3 values>)"
    assert repr(attacks.FGSM(eps=0.5, loss=answers)) == "FGSM(eps=0.5, loss=answers)"


def test_progress_is_shown_on_demand(net, x, y, capsys):
    attacks.PGD(eps=0.0, steps=5, random_start=False).run(net, x, y)
    assert capsys.readouterr().err == ""
    attacks.PGD(eps=0.0, steps=5, random_start=False, progress=True).run(net, x, y)
    assert "5/5" in capsys.readouterr().err


def test_predicted_labels_cost_a_forward_pass(net, x, y):
    given = attacks.FGSM(eps=0.1).run(net, x, y).queries.forward
    assert torch.equal(attacks.FGSM(eps=0.1).run(net, x).queries.forward, given + 1)


def test_all_misclassified_from_the_start_means_no_step(net, x, y):
    net.seen.clear()
    result = attacks.PGD(eps=0.1, steps=20, random_start=False).run(net, x, (y + 1) % 3)
    assert net.seen == [16, 16]
    assert (result.queries.backward == 0).all()


def test_only_misclassified_inputs_are_judged_by_the_look_before(x):
    """Where nothing works, the best try is one of the attack's own, not the clean input."""
    plane = Halfspace(torch.ones(36), b=-99.0)
    result = attacks.PGD(eps=0.1, steps=1).run(plane, x, torch.zeros(16, dtype=torch.int64))
    assert not result.success.any()
    assert (result.distance > 0.09).all()
    low = attacks.PGD(eps=0.1, steps=3, step_size=1e-6).run(
        Halfspace(-torch.ones(36), b=-99.0), x, torch.zeros(16, dtype=torch.int64)
    )
    assert (low.distance > 0.01).all()


def test_never_restarts_go_on_with_solved_samples(net, x, y):
    attack = attacks.PGD(eps=0.3, steps=2, restarts=3, stop="never")
    assert (attack.run(net, x, y).queries.forward == 3 * 3 + 1).all()


def test_the_first_of_equal_iterates_is_kept():
    """A model that never changes its mind returns the clean input, not the last wander."""

    class Steps(nn.Module):
        def forward(self, x):
            z = x.flatten(1)[:, :1]
            return torch.cat([0 * z + 5, z - z.detach()], 1)

    x = torch.full((1, 2), 0.5)
    attack = attacks.PGD(eps=0.1, steps=3, random_start=False)
    assert torch.equal(attack(Steps(), x, torch.tensor([0])), x)


def test_a_callable_loss_must_have_one_value_for_each_of_the_samples(net, x, y):
    with pytest.raises(ValueError, match=r"shape \(16,\), got \(3,\)"):
        attacks.PGD(eps=0.1, loss=lambda z, k: z.mean(0)).run(net, x, y)


def test_small_differences_are_rounding_not_chance(net, x, y):
    class Rounded(nn.Module):
        """Answers that differ by a little from call to call, on logits of a large scale."""

        calls = 0

        def forward(self, x):
            self.calls += 1
            return 1000 * net(x) + 0.3 * (-1) ** self.calls * torch.tensor([1.0, 0.0, 0.0])

    attacks.PGD(eps=0.0, steps=1, stop="never").run(Rounded(), x, y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 255])
@pytest.mark.filterwarnings("ignore:.*`step_size` must be large enough")
def test_sixteen_bits_round_nothing_out_of_an_linf_ball(dtype, width):
    net, x = convnet(dtype=dtype), (width * images(dtype=torch.float64)).to(dtype)
    model = TorchClassifier(net, (0, width), preprocess=lambda v: v / width)
    eps = width * 8 / 255
    for attack in (
        attacks.PGD(eps=eps, steps=5, stop="never"),
        attacks.FGSM(eps=eps, stop="never"),
        attacks.PGD(eps=torch.full((8,), eps, dtype=torch.float64), steps=1, step_size=1e-3),
    ):
        moved = (attack(model, x, answers(net, x / width)).double() - x.double()).abs()
        assert moved.max() <= eps
        assert moved.max() > 0.9 * eps


def test_numbers_of_numpy_are_numbers(net, x, y):
    attack = attacks.PGD(eps=np.float32(0.1), steps=np.int64(3))
    assert torch.equal(
        attack(net, x, y), attacks.PGD(eps=float(np.float32(0.1)), steps=3)(net, x, y)
    )


def test_a_part_of_a_part_has_the_gradients_of_the_whole(net, x, y):
    problem = attacks.PGD(eps=0.1)._problem(TorchClassifier(net), x, y, None)
    at = problem.forward(x, differentiate=True)
    whole = problem.input_gradient(at, at.value, again=True)
    first, second = torch.arange(16) % 7 != 3, torch.arange(14) % 5 != 1
    part = at.select(first).select(second)
    grad = problem.select(first).select(second).input_gradient(part, part.value)
    torch.testing.assert_close(grad, whole[first][second])
    torch.testing.assert_close(part.x_adv, x[first][second])
