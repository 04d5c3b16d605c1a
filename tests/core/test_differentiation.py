"""Backward passes that a recurrent layer of cuDNN refuses in evaluation mode.

Without a GPU a layer stands in that raises what torch raises there.
"""

import pytest
import torch
from torch import nn

from advkit import Ensemble, QueryCounter, TorchClassifier, attacks
from advkit.core.differentiation import differentiating
from advkit.defenses import MRR, TRADES, AdversarialTraining, LabelSmoothing, fit
from advkit.defenses.mrr import LatentDefenders
from advkit.eval import benchmark
from tests.attack_cases import GRADIENT

TORCH_SAYS = "cudnn RNN backward can only be called in training mode"
NAMED = r"got LSTM 'lstm' in evaluation mode.*net\.lstm\.train\(\).*mode='keep'"


class Refusing(torch.autograd.Function):
    """The identity, whose backward pass raises outside of training mode."""

    @staticmethod
    def forward(ctx, x, training):
        ctx.training = training
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        if not ctx.training:
            raise RuntimeError(TORCH_SAYS)
        return grad, None


class Recurrent(nn.Module):
    """An LSTM over the rows of an image, as it is on a GPU, and a linear head."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True)
        self.drop = nn.Dropout(0.5)
        self.hidden = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        out = Refusing.apply(self.lstm(x.flatten(1, 2))[0], self.lstm.training)
        return 8 * self.head(self.hidden(self.drop(out[:, -1])))


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Recurrent().eval()


@pytest.fixture
def x():
    return torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def y(net, x):
    return net(x).argmax(1)


@pytest.mark.parametrize("attack", GRADIENT, ids=repr)
def test_every_attack_names_the_layer_and_the_way_out(attack, net, x, y):
    with pytest.raises(RuntimeError, match=NAMED) as caught:
        attack.run(net, x, y)
    assert TORCH_SAYS in str(caught.value.__cause__)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_way_out_works(dtype, net, x, y):
    net, x = net.to(dtype), x.to(dtype)
    net.lstm.train()
    model = TorchClassifier(net, mode="keep")
    assert torch.equal(model.predict(x), y)
    result = attacks.PGD(eps=0.5, steps=5).run(model, x, y)
    assert result.success.any()
    assert not result.no_gradient.any()
    assert net.lstm.training
    assert not net.drop.training
    loss = AdversarialTraining(attack=attacks.FGSM(eps=0.1), mode="keep")
    loss(net, x, y).backward()


def test_wrappers_name_the_layer_too(net, x, y):
    with pytest.raises(RuntimeError, match=NAMED):
        attacks.FGSM(eps=0.1).run(QueryCounter(TorchClassifier(net)), x, y)
    with pytest.raises(RuntimeError, match=r"got one in evaluation mode"):
        attacks.FGSM(eps=0.1).run(Ensemble([net, net]), x, y)


def test_losses_that_craft(net, x, y):
    for loss in (
        AdversarialTraining(attack=attacks.FGSM(eps=0.1)),
        LabelSmoothing() + TRADES(attack=attacks.PGD(eps=0.1, steps=2)),
    ):
        with pytest.raises(RuntimeError, match=NAMED):
            loss(net.train(), x, y)


def test_other_places_that_differentiate(net, x, y):
    with pytest.raises(RuntimeError, match=NAMED):
        attacks.Substitute(max_queries=8, rounds=1, epochs=1).fit(net, net, x)
    with pytest.raises(RuntimeError, match=NAMED):
        benchmark(net, x, y, attacks=[attacks.FGSM(eps=0.1)], rounds=1)
    rows = torch.rand(90, 1, 6, 6)
    with pytest.raises(RuntimeError, match=r"LSTM 'tapped\.net\.lstm' in eval.*cudnn\.flags"):
        MRR(latent=(LatentDefenders(epochs=1),), inputs=None).fit(net, rows, net(rows).argmax(1))

    def frozen(module, x, y):
        module.eval()
        return nn.functional.cross_entropy(module(x), y)

    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(RuntimeError, match=NAMED):
        fit(net, [(x, y)], loss=frozen, optimizer=optimizer, epochs=1, progress=False)


def test_other_errors_pass_through(net):
    with pytest.raises(RuntimeError, match="^out of memory$"), differentiating(net):
        raise RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="got one in evaluation mode"), differentiating(object()):
        raise RuntimeError(f"mi{TORCH_SAYS[2:]}")


class Layers(nn.Module):
    """A layer of a transformer or a recurrent net, and a linear head."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        x = x.flatten(1, 2)
        out = (
            self.layer(x, x, x) if isinstance(self.layer, nn.MultiheadAttention) else self.layer(x)
        )
        return self.head((out[0] if isinstance(out, tuple) else out)[:, -1])


@pytest.mark.parametrize("kind", ["encoder", "attention", "LSTM", "GRU", "RNN"])
def test_layers_with_a_fast_path_have_gradients_on_a_cpu(kind, x):
    torch.manual_seed(0)
    layer = {
        "encoder": lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True),
        "attention": lambda: nn.MultiheadAttention(6, 2, batch_first=True),
        "LSTM": lambda: nn.LSTM(6, 6, batch_first=True),
        "GRU": lambda: nn.GRU(6, 6, batch_first=True),
        "RNN": lambda: nn.RNN(6, 6, batch_first=True),
    }[kind]()
    result = attacks.FGSM(eps=0.1).run(Layers(layer), x)
    assert not result.no_gradient.any()
    assert (result.queries.backward == 1).all()


class RefusingAfterwards(Recurrent):
    """As `Recurrent`, but it learns, as a defender does that was trained on a CPU."""

    def forward(self, x):
        out = Refusing.apply(self.lstm(x.flatten(1, 2))[0], self.head.weight.requires_grad)
        return 8 * self.head(self.hidden(out[:, -1]))


def test_images_for_the_next_defender():
    net, rows = RefusingAfterwards().eval(), torch.rand(90, 1, 6, 6)
    settings = LatentDefenders(epochs=1, count=2)
    with pytest.raises(RuntimeError, match=r"got LSTM 'tapped\.net\.lstm' in evaluation mode"):
        MRR(latent=(settings,), inputs=None).fit(net, rows, net(rows).argmax(1))


def test_only_layers_in_evaluation_mode_are_named():
    layers = nn.ModuleDict({"gru": nn.GRU(2, 2), "rnn": nn.RNN(2, 2).eval()})
    message = "got RNN 'rnn' in evaluation mode"
    with pytest.raises(RuntimeError, match=message), differentiating(layers):
        raise RuntimeError(TORCH_SAYS)
