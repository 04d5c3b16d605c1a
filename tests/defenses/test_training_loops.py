"""Training losses in the loops that people have: all of them end with the same weights."""

import copy

import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from advkit import attacks
from advkit.defenses.adversarial_training import AdversarialTraining
from advkit.defenses.free_adversarial_training import FreeAdversarialTraining, Replay
from advkit.defenses.label_smoothing import LabelSmoothing
from advkit.defenses.logit_pairing import LogitPairing
from advkit.defenses.logit_squeezing import LogitSqueezing
from advkit.defenses.mart import MART
from advkit.defenses.trades import TRADES
from advkit.training.fit import fit
from tests.toys import convnet, images

EPOCHS = 2
PGD = attacks.PGD(eps=0.1, steps=2)


def cross_entropy(net, x, y):
    return F.cross_entropy(net(x), y)


LOSSES = {
    "madry": AdversarialTraining(attack=PGD),
    "mixture": AdversarialTraining(attack=attacks.FGSM(eps=0.1), clean_weight=0.5),
    "fast": AdversarialTraining(attack=attacks.FGSM(eps=0.1, random_start=True)),
    "in training mode": AdversarialTraining(attack=PGD, mode="keep"),
    "trades": TRADES(attack=PGD, beta=6.0),
    "mart": MART(attack=PGD, beta=5.0),
    "pairing": LogitPairing(attack=PGD, weight=0.5),
    "squeezing": LogitSqueezing(weight=0.1, sigma=0.1),
    "smoothing": LabelSmoothing(smoothing=0.1),
    "sum": 0.5 * AdversarialTraining(attack=PGD) + cross_entropy,
}
TWICE = ("mixture", "trades", "mart", "pairing", "sum")  # two outer passes


def data():
    return TensorDataset(images(20), torch.arange(20) % 3)


def sgd(net):
    return torch.optim.SGD(net.parameters(), 0.002, momentum=0.9)


def by_fit(loss):
    net = convnet()
    loader = DataLoader(data(), 8, shuffle=True)
    fit(net, loader, loss=loss, optimizer=sgd(net), epochs=EPOCHS, progress=False)
    return net


def by_hand(loss):
    net = convnet()
    loader, optimizer = DataLoader(data(), 8, shuffle=True), sgd(net)
    net.train()
    for _ in range(EPOCHS):
        for x, y in loader:
            optimizer.zero_grad()
            loss(net, x, y).backward()
            optimizer.step()
    return net.eval()


class Lit(torch.nn.Module):
    """A module as Lightning wants it: the loss is one line of the training step."""

    def __init__(self, net, loss):
        super().__init__()
        self.net, self.loss = net, loss

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return self.loss(self, *batch)

    def configure_optimizers(self):
        return sgd(self)


def by_trainer(loss):
    lit = Lit(convnet(), loss)
    loader, optimizer = DataLoader(data(), 8, shuffle=True), lit.configure_optimizers()
    lit.train()
    for _ in range(EPOCHS):
        for i, batch in enumerate(loader):

            def closure(batch=batch, i=i):
                optimizer.zero_grad()
                value = lit.training_step(batch, i)
                value.backward()
                return value

            optimizer.step(closure)
    return lit.eval().net


def assert_moved(state, start):
    """Everything has learnt but the bias before a batch norm, whose gradient is mere noise."""
    for key in state.keys() - {"conv.bias"}:
        assert not torch.equal(state[key], start[key]), key


@pytest.mark.parametrize("name", LOSSES)
def test_every_loop_gives_the_same_weights(name):
    found = []
    for train in (by_fit, by_hand, by_trainer):
        torch.manual_seed(0)
        found.append(train(LOSSES[name]).state_dict())
    assert_moved(found[0], convnet().state_dict())
    for key, value in found[0].items():
        for other in found[1:]:
            torch.testing.assert_close(other[key], value, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["madry", "free"])
def test_a_loss_goes_on_where_a_run_was_stopped(name, tmp_path):
    """What it draws comes from the random state that a checkpoint keeps."""

    def train(epochs, path):
        net = convnet()
        loader = DataLoader(data(), 8, shuffle=True)
        loss = LOSSES.get(name) or FreeAdversarialTraining(eps=0.1)
        fit(net, loader if name in LOSSES else Replay(loader, 2), loss=loss, optimizer=sgd(net),
            epochs=epochs, ema=0.9, checkpoint=path, progress=False)  # fmt: skip
        return net.state_dict()

    torch.manual_seed(0)
    known = train(3, None)
    torch.manual_seed(0)
    train(1, tmp_path / "net.pt")
    found = train(3, tmp_path / "net.pt")
    for key, value in known.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0)


def test_an_evaluation_that_attacks_changes_nothing():
    def look(model):
        x, y = data().tensors
        x_adv = attacks.PGD(eps=0.1, steps=2)(model, x, y)
        return {"robust": (model(x_adv).argmax(1) == y).double().mean()}

    states = []
    for evaluate in (None, look):
        torch.manual_seed(0)
        net = convnet()
        loader = DataLoader(data(), 8, shuffle=True)
        history = fit(net, loader, loss=LOSSES["madry"], optimizer=sgd(net), epochs=3,
                      evaluate=evaluate, progress=False)  # fmt: skip
        states.append(list(net.parameters()))
    assert all(0 <= epoch.metrics["robust"] <= 1 for epoch in history.epochs)
    for asked, alone in zip(*states, strict=True):
        torch.testing.assert_close(asked, alone, rtol=0, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_learns_from_the_outer_loss(name):
    """Autocast keeps its casts of the weights: those of an attack carry no gradient to them."""
    net = convnet()
    known, before = copy.deepcopy(net), copy.deepcopy(net)
    found = []
    optimizer = sgd(net)
    optimizer.register_step_pre_hook(
        lambda *_: found.extend(p.grad.clone() for p in net.parameters())
    )
    batch = data()[:8]
    torch.manual_seed(0)
    fit(net, [batch], loss=LOSSES[name], optimizer=optimizer, epochs=1, precision="bfloat16",
        progress=False)  # fmt: skip

    torch.manual_seed(0)
    known.train()
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        value = LOSSES[name](known, *batch)
    value.backward()
    # Two outer passes share a cast, in which their gradients are summed in bfloat16.
    rounding = 2**-7 if name in TWICE else 0
    for grad, (key, parameter) in zip(found, known.named_parameters(), strict=True):
        if key != "conv.bias":
            slack = rounding * float(grad.abs().max())
            torch.testing.assert_close(grad, parameter.grad, rtol=rounding, atol=slack)
    assert_moved(net.state_dict(), before.state_dict())
