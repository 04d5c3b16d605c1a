"""What attacks cost: bare passes, and the memory of tensors."""

import time

import pytest
import torch
from torch import nn

from advkit import TorchClassifier
from advkit.eval.benchmarking.cost import bare_pass, peak_memory, seconds

KIB = 1024  # bytes of 256 floats
BEFORE = torch.ones(256)


def ones():
    return torch.ones(256)


def grown_from(leaf):
    """Two results that the backward pass needs, and one that it does not."""
    return leaf.exp().exp().add(1)


def gradient():
    leaf = BEFORE.clone().requires_grad_()
    return torch.autograd.grad(grown_from(leaf).sum(), leaf)[0]


@pytest.mark.parametrize(
    ("job", "most"),
    [
        pytest.param(lambda: ones(), 1, id="one"),
        pytest.param(lambda: [ones() for _ in range(5)], 5, id="all are kept"),
        pytest.param(lambda: [ones().sum().item() for _ in range(5)], 1, id="freed"),
        pytest.param(lambda: ones() + 1, 2, id="argument and result"),
        pytest.param(lambda: ones().add_(1).mul_(2), 1, id="in place"),
        pytest.param(lambda: ones().view(16, 16)[3:].t(), 1, id="views"),
        pytest.param(lambda: ones().view(16, 16)[:1].clone(), 1 + 1 / 16, id="part"),
        pytest.param(lambda: BEFORE.add_(0).view(16, 16)[2], 0, id="there before"),
        pytest.param(lambda: BEFORE.double(), 2, id="eight bytes each"),
        pytest.param(lambda: (ones(), [ones()], {"a": ones()}), 3, id="nested"),
        pytest.param(lambda: ones().split(16), 1, id="several of one storage"),
        pytest.param(lambda: grown_from(BEFORE.clone()), 3, id="chain without a graph"),
        pytest.param(lambda: grown_from(BEFORE.clone().requires_grad_()), 4, id="with a graph"),
    ],
)
def test_the_peak_counts_each_storage_while_it_lives(job, most):
    _, found = peak_memory(job)
    assert found // 4 * 4 == found
    assert found - most * KIB in (0, 4)  # a sum is four bytes more


def test_the_peak_of_a_backward_pass_has_results_and_gradients_at_once():
    result, found = peak_memory(gradient)
    assert result.shape == (256,)
    leaf, first, second, grad = 4 * [KIB]
    assert found >= leaf + first + second + grad
    assert found <= 6 * KIB


def test_what_is_freed_after_the_peak_does_not_lower_it():
    def job():
        large = torch.ones(1000)
        del large
        return ones()

    assert peak_memory(job)[1] == 4000


def test_a_storage_in_the_place_of_a_dead_one_is_counted():
    assert peak_memory(lambda: [len(torch.ones(n)) for n in range(1, 51)])[1] == 200


def test_a_storage_that_dies_leaves_room_for_its_successors():
    def job():
        kept = ones()
        for _ in range(20):
            kept = kept + 1
        return kept

    assert peak_memory(job)[1] == 2 * KIB


def test_what_was_there_before_and_dies_inside_counts_nothing():
    box = [ones()]

    def job():
        box[0].add_(1)
        box.clear()
        return ones()

    assert peak_memory(job)[1] == KIB


def test_each_call_counts_anew_and_calls_may_be_nested():
    outer = peak_memory(lambda: peak_memory(ones)[1])
    assert outer == (KIB, KIB)
    assert peak_memory(ones)[1] == KIB


def test_an_error_comes_out_and_ends_the_counting():
    with pytest.raises(ZeroDivisionError):
        peak_memory(lambda: 1 / 0)
    assert peak_memory(ones)[1] == KIB


def test_inference_mode_is_counted_too():
    with torch.inference_mode():
        assert peak_memory(lambda: ones() + 1)[1] == 2 * KIB


class Counting(nn.Module):
    """A linear net that notes what is sent forward and comes back."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.forward_, self.backward_ = [], []

    def forward(self, x):
        self.forward_.append(len(x))
        if x.requires_grad:
            x.register_hook(lambda grad: self.backward_.append(len(grad)))
        return self.linear(x)


@pytest.mark.parametrize("around", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_bare_pass_is_one_forward_and_one_backward_to_the_input_alone(around):
    net = Counting()
    x, y = torch.rand(5, 4), torch.arange(5) % 3
    with around():
        bare_pass(TorchClassifier(net), x, y)
    assert (net.forward_, net.backward_) == ([5], [5])
    assert all(p.grad is None for p in net.parameters())
    assert x.grad is None
    assert not x.requires_grad


def test_a_bare_pass_computes_no_gradient_of_parameters():
    net = TorchClassifier(nn.Linear(200, 200))
    _, most = peak_memory(lambda: bare_pass(net, torch.rand(2, 200), torch.tensor([0, 1])))
    assert most < 4 * 200 * 200  # that of the weights alone would be so large


def test_without_gradients_a_bare_pass_is_one_prediction():
    class Labels:
        bounds, num_classes = (0.0, 1.0), 3
        asked = 0

        def predict(self, x):
            self.asked += len(x)
            return torch.zeros(len(x), dtype=torch.int64)

    model = Labels()
    bare_pass(model, torch.rand(5, 4), torch.arange(5) % 3)
    assert model.asked == 5


def test_seconds_are_those_of_the_job(monkeypatch):
    now = [3.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def job():
        now[0] += 2.5

    assert seconds(job) == 2.5
