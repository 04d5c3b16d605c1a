"""Calls that fail, and interrupts at any point of a call: the module is what it was before."""

import sys
import threading

import pytest
import torch
from torch import nn

from advkit import TorchClassifier, attacks
from advkit.models import module_state, random_state, state

X = torch.linspace(0, 1, 16).view(4, 4)
OURS = {module.__file__ for module in (module_state, random_state, state)}


class Changing(nn.Module):
    """A net that changes in `forward` all that is promised to be put back."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.frozen = nn.BatchNorm1d(4).eval()
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(4, 3)
        self.last.bias.requires_grad_(False)
        self.register_buffer("kept", torch.ones(1))
        self.register_buffer("transient", torch.full((1,), float("nan")), persistent=False)
        self.last.register_forward_hook(_pass)

    def forward(self, x):
        self.last.bias.requires_grad_(True)
        self.last.register_forward_pre_hook(_pass)
        self.last.register_full_backward_hook(_pass)
        self.register_state_dict_pre_hook(_pass)
        self.kept += 1
        self.kept = torch.zeros(2)
        self.register_buffer("transient", torch.ones(1))
        self.register_buffer("new", torch.ones(1))
        self.drop.train(not self.drop.training)
        return self.last(self.norm(x)) + torch.rand(1) + nn.functional.dropout(x, 0.5)[:, :3]


def _pass(*_):
    return None


def snapshot(module):
    """All that is promised, by value and by identity."""
    found = [torch.get_rng_state().tolist(), list(module.state_dict(keep_vars=True))]
    for child in module.modules():
        own = vars(child)
        found.append((child.training, own["_is_full_backward_hook"]))
        found.append([(name, p.requires_grad) for name, p in child.named_parameters()])
        found.append([(k, id(v), repr(v)) for k, v in own["_buffers"].items()])
        found.append(sorted(own["_non_persistent_buffers_set"]))
        found.append([list(own[name].items()) for name in own if "_hooks" in name])
    return found


def check_free(module, before):
    """The module is as it was, is not in use, and the next attack leaves it so too."""
    assert snapshot(module) == before
    attacks.FGSM(eps=0.1).run(module, torch.full((4, 4), 0.5), torch.zeros(4))
    assert snapshot(module) == before


class Interrupting:
    """A trace function that raises `KeyboardInterrupt` at the `k`-th event in our files."""

    def __init__(self, k, events):
        self.k, self.events, self.seen = k, events, 0

    def __call__(self, frame, event, _):
        if frame.f_code.co_filename not in OURS:
            return None
        if event in self.events:
            self.seen += 1
            if self.seen == self.k:
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


def interrupted(call, k, events=("call", "line", "return")):
    """Run `call` with an interrupt at event `k`; whether it came."""
    trace = Interrupting(k, events)
    outer = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(outer)
    return False


def is_lock_free():
    """Whether another thread can take the lock."""
    free = []

    def look():
        free.append(state._lock.acquire(blocking=False))
        if free[0]:
            state._lock.release()

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return free[0]


@pytest.fixture(autouse=True)
def nothing_in_use():
    yield
    assert not state._in_use
    assert is_lock_free()


@pytest.mark.filterwarnings("ignore:.*model returned other logits", "ignore:.*gradient of zero")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("mode", ["eval", "keep"])
def test_interrupts_at_every_line_of_entering_and_leaving(mode, tally):
    t = tally("an interrupt while state is saved or restored leaves the module as it was")
    net = Changing().train()
    net.frozen.eval()
    model = TorchClassifier(net, mode=mode)
    x = X
    before = snapshot(net)

    def call():
        with model.evaluating(), torch.no_grad():
            model.logits(x)

    k, came = 1, True
    while came:
        k += 7
        with t.trial(f"{mode}, event {k}"):
            came = interrupted(call, k)
            assert snapshot(net) == before
            assert not state._in_use
            assert is_lock_free()
            assert random_state.find_open(((id(net),), mode == "eval")) is None
    assert k > 400
    check_free(net, before)


@pytest.mark.parametrize("wrong", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_a_copy_that_fails_changes_nothing(wrong, tally):
    t = tally("a call that fails while it starts leaves the module as it was")

    class Full(torch.Tensor):
        left = 0

        def clone(self, *args, **kwargs):
            Full.left -= 1
            if Full.left == 0:
                raise wrong
            return super().clone(*args, **kwargs)

    for place in range(1, 4):
        net = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3))
        for name in "abc":
            net.register_buffer(name, torch.ones(1).as_subclass(Full))
        Full.left, before = 0, snapshot(net)
        with t.trial(f"copy {place}, {wrong!r}"):
            Full.left = place
            with pytest.raises(type(wrong)):
                attacks.FGSM(eps=0.1).run(net, X)
            Full.left = 0
            check_free(net, before)


def test_a_lazy_module_is_refused_and_runs_once_it_is_initialized(tally):
    t = tally("a call that fails while it starts leaves the module as it was")
    for layer in (nn.LazyLinear(3), nn.Sequential(nn.LazyBatchNorm1d(), nn.LazyLinear(3))):
        net = nn.Sequential(nn.BatchNorm1d(4), layer)
        with t.trial(layer):
            for grad in (True, False):
                with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="dummy batch"):
                    TorchClassifier(net).logits(X)
            net(X)
            check_free(net, snapshot(net))


def test_what_cannot_be_restored_stops_nothing_else(tally):
    t = tally("an error while state is restored leaves the rest of it restored")

    class Stubborn(nn.BatchNorm1d):
        def __setattr__(self, name, value):
            if name == "training" and value is True and "locked" in vars(self):
                raise RuntimeError("locked")
            super().__setattr__(name, value)

    net = nn.Sequential(Changing(), Stubborn(4), nn.BatchNorm1d(3))
    before = snapshot(net[0])[1:]

    def change(net):
        net[0](X)
        net[2].running_mean += 1

    with t.trial("a mode that cannot be set"):
        net[1].locked = True
        with pytest.raises(RuntimeError, match="locked"), TorchClassifier(net).evaluating():
            change(net)
        assert snapshot(net[0])[1:] == before
        assert net[2].training
        assert net[2].running_mean.sum() == 0
        assert not state._in_use


@pytest.mark.filterwarnings("ignore:.*model returned other logits", "ignore:.*gradient of zero")
def test_what_forward_changes_is_put_back(tally):
    t = tally("what forward changes in modes, gradients, hooks and buffers is put back")
    x, y = X, torch.tensor([0, 1, 2, 0])
    for attack in (attacks.FGSM(eps=0.1), attacks.PGD(eps=0.1, steps=3), attacks.DeepFool()):
        for mode in ("eval", "keep"):
            net = Changing().train()
            net.frozen.eval()
            net.norm.train(mode == "eval")  # a single sample has no statistics
            before = snapshot(net)
            with t.trial(f"{attack}, {mode}"):
                attack.run(TorchClassifier(net, mode=mode), x, y)
                assert snapshot(net) == before
                assert net(x).requires_grad


def test_a_buffer_that_forward_deletes_comes_back_in_its_place():
    class Deleting(nn.Module):
        def __init__(self):
            super().__init__()
            for name in "abc":
                self.register_buffer(name, torch.ones(1))

        def forward(self, x):
            del self.a
            return x

    net = Deleting()
    before = snapshot(net)
    TorchClassifier(net).logits(X)
    assert snapshot(net) == before


def test_an_interrupt_before_the_first_line_of_init_leaves_nothing_to_undo():
    state.preserve_state.__new__(state.preserve_state).__del__()
