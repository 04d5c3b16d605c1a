"""What is asked of torch around an attack is honoured."""

import collections
import dataclasses
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from advkit import attacks
from tests.contract import ATTACKS, GRADIENT
from tests.toys import answers, convnet, images

pytestmark = pytest.mark.filterwarnings("ignore:loss 'dlr' needs three classes")
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
