"""Free adversarial training against the same steps in NumPy, and in the loops that it meets."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from advkit.defenses.free_adversarial_training import FreeAdversarialTraining, Replay
from advkit.training.fit import fit
from tests.defenses.losses import Watched, softmax, table
from tests.toys import Linear3, convnet, images

W = np.array(Linear3.W)


def signs(inputs, weight, y):
    """Of the gradient of the cross-entropy of a linear model, in NumPy."""
    return np.sign((softmax(inputs @ weight.T) - np.eye(3)[y]) @ weight)


def test_each_step_climbs_from_the_last_by_the_gradient_that_trains():
    """The parameters move too, so each step sees those of its own pass."""
    x, y = table()
    net, loss = Watched(Linear3()), FreeAdversarialTraining(eps=0.3, step_size=0.1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    weights, values = [], []
    for _ in range(5):
        weights.append(net.inner.weight.detach().numpy().copy())
        optimizer.zero_grad()
        value = loss(net, x, y)
        values.append(value.item())
        value.backward()
        optimizer.step()
    clean = x.numpy()
    inside = (clean > 0.3) & (clean < 0.7)  # where the clip to the bounds has no part
    delta = net.arrays()[0] - clean
    assert np.abs(delta).max() <= 0.3 + 1e-12
    for weight, value, seen in zip(weights, values, net.arrays(), strict=True):
        np.testing.assert_allclose(seen[inside], (clean + delta)[inside], atol=1e-12)
        delta = np.where(inside, delta, seen - clean)
        p = softmax(seen @ weight.T)
        np.testing.assert_allclose(value, -np.log(p[np.arange(12), y]).mean(), rtol=1e-12)
        delta = np.clip(delta + 0.1 * signs(seen, weight, y), -0.3, 0.3)


def test_the_gradient_is_that_of_the_outer_loss_alone():
    net, x, y = Watched(convnet(dtype=torch.float64)), images(8, torch.float64), torch.arange(8) % 3
    by_hand = copy.deepcopy(net.inner)
    loss = FreeAdversarialTraining(eps=0.1)
    for _ in range(3):
        net.zero_grad()
        loss(net, x, y).backward()
    F.cross_entropy(by_hand(net.seen[-1]), y).backward()
    for p, q in zip(net.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_a_step_costs_one_pass_and_the_loss_goes_up_with_the_steps():
    net, x, y = convnet(), images(32), torch.arange(32) % 3
    loss = FreeAdversarialTraining(eps=0.1, step_size=0.05)
    values = []
    for _ in range(6):  # of a net that does not learn
        value = loss(net, x, y)
        value.backward()
        values.append(value.item())
    assert net.calls == 6
    assert values[5] > values[1] > values[0]


def test_a_new_batch_begins_at_a_random_point_of_the_ball():
    net = Watched(torch.nn.Linear(1000, 2))
    x, y = torch.full((20, 1000), 0.5), torch.zeros(20, dtype=torch.int64)
    loss = FreeAdversarialTraining(eps=0.2)
    torch.manual_seed(0)
    for inputs in (x, x, x + 0.1, x + 0.1):
        loss(net, inputs, y).backward()
    for start, clean in ((net.seen[0], x), (net.seen[2], x + 0.1)):
        delta = start - clean
        assert delta.abs().max() <= 0.2 + 1e-6
        assert delta.mean().item() == pytest.approx(0, abs=0.003)
        assert delta.square().mean().item() == pytest.approx(0.04 / 3, rel=0.02)
    assert (net.seen[1] - x).abs().min() > 0  # a step as long as eps from there
    assert ((net.seen[1] - net.seen[0]).abs() <= 0.2 + 1e-6).all()
    torch.manual_seed(0)
    FreeAdversarialTraining(eps=0.2)(net, x, y)
    assert torch.equal(net.seen[-1], net.seen[0])


def test_inputs_stay_within_the_bounds():
    net, y = Watched(torch.nn.Linear(10, 2)), torch.zeros(4, dtype=torch.int64)
    x = torch.rand(4, 10).round() * 8 - 3
    loss = FreeAdversarialTraining(eps=1, bounds=(-3, 5))
    for _ in range(3):
        loss(net, x, y).backward()
    assert min(seen.min() for seen in net.seen) == -3
    assert max(seen.max() for seen in net.seen) == 5
    with pytest.raises(ValueError, match=r"bounds \[0, 1\]"):
        FreeAdversarialTraining(eps=1)(net, x, y)


def test_a_gradient_that_overflows_moves_nothing():
    x, y = table()
    net, loss = Watched(Linear3()), FreeAdversarialTraining(eps=0.3)
    for scale in (1.0, float("nan"), 1.0):
        (scale * loss(net, x, y)).backward()
    assert torch.equal(net.seen[2], net.seen[1])


def test_only_backward_moves_it():
    x, y = table()
    net, loss = Watched(Linear3()), FreeAdversarialTraining(eps=0.3)
    loss(net, x, y).backward()
    loss(net, x, y)
    with torch.no_grad():
        loss(net, x, y)
    torch.autograd.grad(loss(net, x, y), net.inner.weight)
    loss(net, x, y)
    assert all(torch.equal(seen, net.seen[1]) for seen in net.seen[2:])
    assert not torch.equal(net.seen[1], net.seen[0])


def test_a_part_of_a_sum_climbs_as_well():
    x, y = table()
    net, loss = Watched(Linear3()), FreeAdversarialTraining(eps=0.3)
    total = 0.5 * loss + (lambda module, x, y: module.inner.weight.square().sum())
    total(net, x, y).backward()
    total(net, x, y).backward()
    assert not torch.equal(net.seen[1], net.seen[0])


def test_batches_that_come_once_are_a_warning():
    net, y = Linear3(), table()[1]
    loss = FreeAdversarialTraining(eps=0.3)
    loss(net, table()[0], y).backward()
    with pytest.warns(UserWarning, match=r"got a batch only once.*Replay\(loader, times="):
        loss(net, table(seed=1)[0], y).backward()


def test_pickled_in_the_middle_of_a_batch_it_goes_on():
    x, y = table()
    net, loss = Watched(Linear3()), FreeAdversarialTraining(eps=0.3, step_size=0.1)
    loss(net, x, y).backward()
    again = pickle.loads(pickle.dumps(loss))
    assert again(net, x, y) == loss(net, x, y)
    assert repr(again) == "FreeAdversarialTraining(eps=0.3, step_size=0.1, bounds=(0, 1))"


class TestInFit:
    def loader(self, x, y):
        generator = torch.Generator().manual_seed(0)
        data = TensorDataset(x, y)
        return Replay(DataLoader(data, batch_size=4, shuffle=True, generator=generator), times=3)

    def trained(self, x, y, epochs, **options):
        torch.manual_seed(7)
        net = convnet()
        fit(
            net,
            self.loader(x, y),
            loss=FreeAdversarialTraining(eps=0.1),
            optimizer=torch.optim.SGD(net.parameters(), lr=0.005, momentum=0.9),
            epochs=epochs,
            progress=False,
            **options,
        )
        return net

    def test_a_training_that_is_resumed_ends_as_one_that_was_not(self, tmp_path):
        x, y = images(10), torch.arange(10) % 3
        whole = self.trained(x, y, 4)
        self.trained(x, y, 2, checkpoint=tmp_path / "run.pt")
        torch.rand(3)
        resumed = self.trained(x, y, 4, checkpoint=tmp_path / "run.pt")
        for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
            assert torch.equal(p, q)


class TestReplay:
    def test_each_batch_comes_in_a_row_in_every_epoch(self):
        batches = [(torch.rand(2, 3), torch.arange(2)) for _ in range(3)]
        replay = Replay(batches, times=2)
        assert len(replay) == 6
        for _ in range(2):
            for i, batch in enumerate(replay):
                assert batch is batches[i // 2]
        assert len(list(replay)) == 6

    def test_it_shows_what_the_loader_has(self):
        loader = DataLoader(TensorDataset(torch.rand(5, 3)), batch_size=2)
        replay = pickle.loads(pickle.dumps(Replay(loader, times=3)))
        assert replay.batch_size == 2
        assert len(replay) == 9
        with pytest.raises(AttributeError, match="colour"):
            _ = replay.colour

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="`times` must be at least 1"):
            Replay([], times=0)
        with pytest.raises(TypeError, match="`times` must be an int"):
            Replay([], times=2.0)
        for once in (iter([]), 3):
            with pytest.raises(TypeError, match="`loader` must be (an )?iterable"):
                Replay(once, times=2)
        with pytest.raises(TypeError, match="has no len"):
            len(Replay(Endless(), times=2))


class Endless:
    def __iter__(self):
        yield


def test_bad_arguments():
    for bad in (-1, float("nan")):
        with pytest.raises(ValueError, match="`eps` must be at least 0"):
            FreeAdversarialTraining(eps=bad)
    for bad in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="`step_size` must be positive"):
            FreeAdversarialTraining(eps=0.1, step_size=bad)
    with pytest.raises(TypeError, match="`eps` must be a number"):
        FreeAdversarialTraining(eps=torch.tensor([0.1]))
    with pytest.raises(ValueError, match="`bounds` must be two finite numbers"):
        FreeAdversarialTraining(eps=0.1, bounds=(1, 0))
