"""What is asked of torch around an attack is honoured: formats, precision, compiled modules."""

import collections
import dataclasses
import sys
from typing import ClassVar

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from advkit import as_classifier, attacks
from tests.attack_cases import ATTACKS, GRADIENT
from tests.attacks.test_contract import keeps_its_word
from tests.toys import answers, convnet, images

every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=repr)
every_gradient_attack = pytest.mark.parametrize("attack", GRADIENT, ids=repr)


class Noted(nn.Module):
    """A net that keeps what `note(x, logits)` says of each of its passes."""

    def __init__(self, net, note):
        super().__init__()
        self.net, self.note, self.noted = net, note, []

    def forward(self, x):
        logits = self.net(x)
        self.noted.append(self.note(x, logits))
        return logits


@pytest.fixture
def net():
    return convnet()


@pytest.fixture
def x():
    return images()


@pytest.fixture
def y(net, x):
    return answers(net, x)


# Memory formats


class Colours(nn.Module):
    """`(n, 3, 4, 4)` of float64 to 3 logits: the least size whose formats differ."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.head = nn.Linear(6 * 4 * 4, 3)

    def forward(self, x):
        return 8 * self.head(nn.functional.leaky_relu(self.conv(2 * x - 1), 0.2).flatten(1))


def colours():
    """The same random net at every call, and what it notes: whether inputs are channels_last."""
    with torch.random.fork_rng():
        torch.manual_seed(10)
        net = Colours().double().eval()
    return Noted(net, lambda x, _: x.is_contiguous(memory_format=torch.channels_last))


def coloured():
    return images(12, dtype=torch.float64).reshape(-1, 3, 4, 4)


def by_way_of(attack, net):
    """The attack, with `net` for a surrogate if it has one."""
    return dataclasses.replace(attack, surrogate=net) if hasattr(attack, "surrogate") else attack


@every_attack
def test_channels_last_reaches_every_pass_and_the_result(attack):
    net, plain, x = colours(), colours(), coloured()
    y = answers(colours(), x)
    given = x.contiguous(memory_format=torch.channels_last)
    result = by_way_of(attack, net).run(net, given, y)
    assert net.noted
    assert all(net.noted)
    assert result.x_adv.is_contiguous(memory_format=torch.channels_last)
    expected = by_way_of(attack, plain).run(plain, x, y)
    assert not any(plain.noted)
    assert expected.x_adv.is_contiguous()
    assert expected.success.any()
    assert torch.equal(result.success, expected.success)
    torch.testing.assert_close(result.distance, expected.distance)


# Precision


@every_attack
def test_autocast_is_the_nets_own_affair(attack, x):
    net = Noted(convnet(), lambda _, logits: logits.dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = answers(net, x)
        result = attack.run(net, x, y)
        assert set(net.noted) == {torch.bfloat16}
        keeps_its_word(attack, as_classifier(net), x, y, result)
    assert result.distance.dtype == torch.float32
    assert result.success.float().mean() > 0.5


# Compiled modules

# torch.compile asks each input for a gradient of its own and means to silence torch's remark on it.
quiet = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


class Graphs:
    """A backend of torch.compile that counts the runs of its graphs."""

    def __init__(self):
        self.runs = 0

    def __call__(self, graph, _):
        def run(*args):
            self.runs += 1
            return graph(*args)

        return run


@pytest.fixture(scope="module")
def compiled():
    """A compiled net for all the attacks, and its backend.

    It is an error if the batches that shrink to every size make more graphs than torch allows for,
    which is eight, or break one.
    """
    torch.compiler.reset()
    backend = Graphs()
    yield torch.compile(convnet(), backend=backend, fullgraph=True), backend
    torch.compiler.reset()


@pytest.mark.slow("compiles")
@quiet
@every_attack
def test_a_compiled_module_is_attacked_as_the_bare_one(attack, compiled, x, y):
    module, backend = compiled
    bare = Noted(convnet(), lambda x, _: len(x))
    before = backend.runs
    result, expected = attack.run(module, x, y), attack.run(bare, x, y)
    torch.testing.assert_close(result.x_adv, expected.x_adv)
    assert torch.equal(result.success, expected.success)
    assert backend.runs - before == len(bare.noted)


# Gradients of parameters


class Weights(TorchDispatchMode):
    """Counts backward passes of convolutions, and the gradients of parameters among all gradients.

    The shapes of `net` tell its parameters from everything else.
    """

    def __init__(self, net):
        super().__init__()
        shapes = {tuple(p.shape) for p in net.parameters()}
        self.shapes = shapes | {shape[::-1] for shape in shapes if len(shape) == 2}
        self.passes, self.found = 0, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.passes += name == "convolution_backward"
        if name.endswith("_backward") or name == "mm":
            self.found += [
                (name, tuple(v.shape))
                for v in tree_leaves(out)
                if isinstance(v, Tensor) and tuple(v.shape) in self.shapes
            ]
        return out


@every_gradient_attack
def test_gradients_of_parameters_are_never_computed(attack, x):
    net = convnet(classes=10)  # more than samples, so that no gradient of theirs has such a shape
    y = answers(net, x)
    with Weights(net) as seen:
        result = attack.run(net, x, y)
    assert (result.queries.backward > 0).any()
    assert seen.passes > 0
    assert not seen.found
    assert all(p.grad is None and p.requires_grad for p in net.parameters())


def test_gradients_of_parameters_would_be_seen(net, x):
    with Weights(net) as seen:
        net(x).sum().backward()
    assert {name for name, _ in seen.found} >= {"mm", "convolution_backward"}


class Weighing(torch.autograd.Function):
    """`x @ weight.T`, which notes whether the gradient of the weight is asked for."""

    asked: ClassVar[list[bool]] = []

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, grad):
        Weighing.asked.append(ctx.needs_input_grad[1])
        return grad @ ctx.saved_tensors[0], None


def test_functions_with_their_own_backward_pass_are_not_asked_for_parameters(net, x, y):
    class Weighed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(net.head.weight[:, :36].detach().clone())

        def forward(self, x):
            return Weighing.apply(x.flatten(1) - 0.5, self.weight)

    Weighing.asked.clear()
    attacks.PGD(eps=0.1, steps=3).run(Weighed(), x, y)
    assert Weighing.asked
    assert not any(Weighing.asked)


@quiet
def test_compiled_backward_passes_give_no_gradients_of_parameters(x, y):
    """The default backend is built on AOTAutograd, which differentiates to all that asks for it."""
    outputs = []

    def backwards(graph, _):
        *_, last = graph.graph.nodes
        outputs.append([v for v in last.args[0] if v is not None])
        return make_boxed_func(graph.forward)

    torch.compiler.reset()
    backend = aot_autograd(
        fw_compiler=lambda graph, _: make_boxed_func(graph.forward), bw_compiler=backwards
    )
    attacks.PGD(eps=0.1, steps=3, stop="never").run(torch.compile(convnet(), backend=backend), x, y)
    torch.compiler.reset()
    assert [len(out) for out in outputs] == [1]


# Looks at the device


class Looks(TorchDispatchMode):
    """Counts what makes the host wait for the device: a number asked for, a length that depends."""

    WAITS = ("_local_scalar_dense", "equal", "is_nonzero", "item", "masked_select", "nonzero")

    def __init__(self):
        super().__init__()
        self.count = collections.Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name.startswith(("index", "_index")) and any(
            isinstance(v, Tensor) and v.dtype == torch.bool for v in tree_leaves(args[1])
        )
        self.count[name] += by_mask or name in self.WAITS
        return func(*args, **(kwargs or {}))


def looks(attack, net, x, y):
    with Looks() as seen:
        attack.run(net, x, y)
    return {name: count for name, count in seen.count.items() if count}


def test_looks_are_seen(x):
    with Looks() as seen:
        x[x[:, 0, 0, 0] > 0.5], (x > 0.5).all().item(), (x > 0.5).nonzero()
        x[:2], x[torch.tensor([0, 1])], x.sum()
    assert sum(seen.count.values()) == 3


@pytest.mark.parametrize(
    "attack",
    [
        attacks.BIM(eps=0.1, stop="never"),
        attacks.PGD(eps=0.1, stop="never"),
        attacks.PGD(eps=0.6, norm="l2", stop="never"),
        attacks.PGD(eps=1.5, norm="l1", stop="never"),
        attacks.PGD(eps=0.1, stop="never", momentum=1.0),
        attacks.PGD(eps=0.6, norm="l2", stop="never", momentum=1.0, loss="margin"),
    ],
    ids=repr,
)
def test_a_step_waits_for_nothing(attack, net, x, y, monkeypatch):
    """On a device that works on its own; here every device passes for one."""
    for module in [m for name, m in sys.modules.items() if name.startswith("advkit.")]:
        if hasattr(module, "asynchronous"):
            monkeypatch.setattr(module, "asynchronous", lambda device: True)
    few, many = (dataclasses.replace(attack, steps=steps) for steps in (5, 25))
    assert looks(many, net, x, y) == looks(few, net, x, y)
