"""Torch's random state: restored where a module draws, left alone where it does not."""

import subprocess
import sys
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advkit import StraightThrough, TorchClassifier, attacks
from advkit.models import Expectation, random_state

from .threads import switching

X = torch.linspace(0, 1, 24).view(4, 6)


class By(nn.Module):
    """A net whose forward pass adds what `draw` makes of its hidden values."""

    def __init__(self, draw):
        super().__init__()
        self.first, self.last, self.draw = nn.Linear(6, 6), nn.Linear(6, 3), draw

    def forward(self, x):
        return self.last(self.first(x) + self.draw(self.first(x)))


def _heads(h):
    return h.view(len(h), 1, -1, 1)  # each sample by itself


OWN = torch.Generator()
DRAWS = {
    "dropout": lambda h: F.dropout(h, 0.5),
    "alpha dropout": lambda h: F.alpha_dropout(h, 0.5, training=True),
    "rrelu": lambda h: F.rrelu(h - 0.7, training=True),
    "gumbel softmax": lambda h: F.gumbel_softmax(h),
    "rand": lambda h: h + torch.rand(6),
    "randn_like": lambda h: h + torch.randn_like(h),
    "randperm": lambda h: h[:, torch.randperm(6)],
    "in-place normal": lambda h: h + torch.empty_like(h).normal_(),
    "in-place bernoulli": lambda h: h + torch.empty_like(h).bernoulli_(),
    "multinomial": lambda h: h + h.softmax(1).multinomial(6).float(),
    "attention": lambda h: F.scaled_dot_product_attention(
        _heads(h), _heads(h), _heads(h), dropout_p=0.5
    ).flatten(1),
}
SILENT = {
    "nothing": lambda h: h,
    "dropout in evaluation": lambda h: F.dropout(h, 0.5, training=False),
    "rrelu in evaluation": lambda h: F.rrelu(h, training=False),
    "a generator of its own": lambda h: (
        h + torch.rand(6, generator=torch.Generator().manual_seed(0))
    ),
    "attention without dropout": lambda h: F.scaled_dot_product_attention(
        _heads(h), _heads(h), _heads(h)
    ).flatten(1),
}
CONTEXTS = (torch.no_grad, torch.enable_grad, torch.inference_mode)


@pytest.fixture
def untouched(monkeypatch):
    """Fail on any change of torch's own random state."""

    def forbidden(*_, **__):
        raise AssertionError("the random state was set")

    class Forbidden:
        get_state = torch.default_generator.get_state
        set_state = manual_seed = seed = forbidden

    monkeypatch.setattr(torch, "default_generator", Forbidden())
    monkeypatch.setattr(torch.random, "default_generator", Forbidden())
    for name in ("set_rng_state", "manual_seed"):
        monkeypatch.setattr(torch, name, forbidden)
        monkeypatch.setattr(torch.random, name, forbidden)


def nets(draw):
    """A net by itself, and in the classifiers that hold a state of their own."""
    net = By(draw)
    yield "module", TorchClassifier(net)
    yield "mode keep", TorchClassifier(net, mode="keep")
    yield "preprocess", TorchClassifier(nn.Linear(6, 3), preprocess=draw)
    yield "straight through", StraightThrough(nn.Linear(6, 3), draw)
    yield "expectation", Expectation(TorchClassifier(net), draws=2)


@pytest.mark.parametrize("name", DRAWS)
def test_draws_are_taken_back_and_repeat_from_call_to_call(name, tally):
    t = tally("a call of a model that draws leaves the random state as it was, in one thread")
    for kind, model in nets(DRAWS[name]):
        for context in CONTEXTS:
            with t.trial(f"{name}, {kind}, {context.__name__}"), context():
                torch.manual_seed(1)
                before = torch.get_rng_state()
                first = model.logits(X)
                assert torch.equal(torch.get_rng_state(), before)
                assert torch.equal(model.logits(X), first)
                torch.rand(1)
                assert not torch.equal(model.logits(X), first)
                with model.evaluating():
                    assert not torch.equal(model.logits(X), model.logits(X))


@pytest.mark.filterwarnings("ignore:.*model returned other logits", "ignore:.*gradient of zero")
@pytest.mark.parametrize("name", DRAWS)
def test_an_attack_takes_all_draws_back(name, tally):
    t = tally("an attack on a model that draws leaves the random state as it was, in one thread")
    for kind, model in nets(DRAWS[name]):
        with t.trial(f"{name}, {kind}"):
            before = torch.get_rng_state()
            attacks.PGD(eps=0.1, steps=2).run(model, X)
            assert torch.equal(torch.get_rng_state(), before)


def _forked(h):
    with torch.random.fork_rng(devices=[]):
        return _seeded(h)


def _seeded(h):
    torch.manual_seed(7)
    return h + torch.rand(6)


@pytest.mark.parametrize("draw", [_forked, _seeded])
def test_a_module_that_seeds_its_draws_leaves_the_random_state(draw, tally):
    t = tally("a call of a model that draws leaves the random state as it was, in one thread")
    for kind, model in nets(draw):
        with t.trial(f"{draw.__name__}, {kind}"):
            before = torch.get_rng_state()
            model.logits(X)
            attacks.PGD(eps=0.1, steps=2).run(model, X)
            assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", SILENT)
def test_a_module_that_does_not_draw_never_sets_the_random_state(name, untouched, tally):
    t = tally("a model that does not draw never sets the random state")
    for kind, model in nets(SILENT[name]):
        for context in CONTEXTS:
            with t.trial(f"{name}, {kind}, {context.__name__}"), context():
                model.predict(X)
                attacks.PGD(eps=0.1, steps=2).run(model, X)


@pytest.mark.slow("imports torch in a process")
def test_watching_does_not_import_the_compiler_of_torch():
    code = (
        "import advkit, sys, torch; advkit.TorchClassifier(torch.nn.ReLU()).predict(-torch.eye(3))"
    )
    line = [sys.executable, "-c", f"{code}; print('torch._dynamo' in sys.modules)"]
    found = subprocess.run(line, check=True, capture_output=True, text=True)
    assert found.stdout == "False\n"


def test_only_the_first_pass_of_an_attack_is_watched(monkeypatch):
    watches = []

    class Counted(random_state._Watch):
        def __init__(self):
            super().__init__()
            watches.append(self)

    monkeypatch.setattr(random_state, "_Watch", Counted)
    attacks.PGD(eps=0.1, steps=4, stop="never").run(TorchClassifier(By(lambda h: h)), X)
    assert len(watches) == 1


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_scripted_and_compiled_modules(tally):
    t = tally("a call of a model that draws leaves the random state as it was, in one thread")
    net = nn.Sequential(nn.Linear(6, 3), nn.Dropout(0.5))
    runs = []

    def backend(graph, _):
        return lambda *inputs: (runs.append(1), graph.forward(*inputs))[1]

    compiled = torch.compile(net, backend=backend, fullgraph=True)
    kinds = {"scripted": torch.jit.script(net), "compiled": compiled}
    for kind, module in kinds.items():
        model = TorchClassifier(module, mode="keep")
        with t.trial(kind):
            before = torch.get_rng_state()
            first = model.logits(X)
            assert torch.equal(torch.get_rng_state(), before)
            assert torch.equal(model.logits(X), first)
            with model.evaluating():
                assert not torch.equal(model.logits(X), model.logits(X))
            assert torch.equal(torch.get_rng_state(), before)
    assert len(runs) == 4  # each pass was compiled, the watched ones too


def test_higher_order_operators_are_watched_too():
    def net(x):
        return torch.cond(x.sum() > 0, lambda h: h + 1, lambda h: h - 1, (x,))

    model = TorchClassifier(nn.Linear(6, 3), preprocess=net)
    assert torch.equal(model.logits(X), model.module(X + 1))


def test_other_threads_keep_their_numbers(tally):
    t = tally("a thread draws different numbers while others predict with a model that does not")
    model, stop = TorchClassifier(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 3))), False

    def serve():
        while not stop:
            model.predict(X)

    threads = [threading.Thread(target=serve) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for i in range(5):
            with t.trial(i), switching():
                seen = {float(torch.rand(1, dtype=torch.float64)) for _ in range(100)}
                assert len(seen) == 100
    finally:
        stop = True
        for thread in threads:
            thread.join()
