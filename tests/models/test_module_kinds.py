"""Modules that are scripted, traced, frozen, exported, symbolically traced or quantized.

They work in evaluation mode and in their own, or an error names the way out; their modes stay.
"""

import pytest
import torch
from torch import fx, nn

from advkit import StraightThrough, TorchClassifier, attacks, eval
from advkit.defenses import MRR, AdversarialTraining, LabelSmoothing, fit
from advkit.defenses.mrr import LatentDefenders
from advkit.models.module_state import ModuleState, training_of
from tests.toys import images

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*torch.jit",
    "ignore:.*torch.ao.quantization",
    "ignore:.*an autograd kernel was not registered",
    "ignore:.*LeafSpec:FutureWarning",
    "ignore:torch.quantize_per_tensor",
)

FGSM = attacks.FGSM(eps=0.1)
PGD = attacks.PGD(eps=0.1, steps=3)


class Net(nn.Module):
    """Convolution, batch norm, dropout and a linear head: `(n, 1, 6, 6)` to 3 logits."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(64, 3)

    def forward(self, x):
        return 8 * self.head(self.drop(self.norm(self.conv(x)).relu()).flatten(1))


def plain():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net().eval()


def scripted(net):
    return torch.jit.script(net)


def traced(net):
    return torch.jit.trace(net, images())


def frozen(net):
    return torch.jit.freeze(torch.jit.script(net))


def frozen_inside(net):
    return nn.Sequential(frozen(net)).eval()


def exported(net):
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(net, (images(),), dynamic_shapes=({0: batch},))
    return program.module()


def exported_inside(net):
    return nn.Sequential(exported(net))


def symbolic(net):
    return fx.symbolic_trace(net)


def quantized(net):
    return torch.ao.quantization.quantize_dynamic(net, {nn.Linear})


def fake_quantized(net):
    observer = torch.ao.quantization.MovingAverageMinMaxObserver
    quantizer = torch.ao.quantization.FakeQuantize(observer=observer)
    net = nn.Sequential(quantizer, net).train()
    net(images())
    return net.eval()


WITH_GRADIENTS = [scripted, traced, frozen, frozen_inside, symbolic, fake_quantized]
EXPORTED = [exported, exported_inside]
MODES = ["eval", "keep"]
IN_BOTH_MODES = [  # but for exported modules, which refuse the first
    *((kind, mode) for kind in WITH_GRADIENTS for mode in MODES),
    *((kind, "keep") for kind in EXPORTED),
]


@pytest.fixture
def x():
    return images()


def modes(module):
    return [(training_of(child), "training" in vars(child)) for child in module.modules()]


@pytest.mark.parametrize(("kind", "mode"), [*IN_BOTH_MODES, *((quantized, m) for m in MODES)])
def test_it_predicts_what_the_module_gives(kind, mode, x):
    module = kind(plain())
    y, before = module(x).argmax(1), modes(module)
    model = TorchClassifier(module, mode=mode)
    assert torch.equal(model.predict(x), y)
    assert eval.accuracy(model, x, y).count == len(x)
    assert modes(module) == before


@pytest.mark.parametrize(("kind", "mode"), IN_BOTH_MODES)
@pytest.mark.parametrize("attack", [FGSM, PGD], ids=repr)
def test_attacks_find_what_they_find_on_the_net(kind, mode, attack, x):
    net, module = plain(), kind(plain())
    y, before = net(x).argmax(1), modes(module)
    result = attack.run(TorchClassifier(module, mode=mode), x, y)
    assert result.success.any()
    assert not result.no_gradient.any()
    if kind is not fake_quantized:
        assert torch.equal(result.success, attack.run(net, x, y).success)
    assert modes(module) == before


@pytest.mark.parametrize("kind", [scripted, frozen_inside, symbolic, fake_quantized])
def test_training_mode_is_left_and_comes_back(kind, x):
    module = kind(plain())
    y = TorchClassifier(module).predict(x)
    module.train()
    before = modes(module)
    assert torch.equal(TorchClassifier(module).predict(x), y)
    assert modes(module) == before


def test_a_part_without_a_mode_gets_none_from_the_module_around_it(x):
    part = frozen(plain())
    around = nn.Sequential(part, nn.Dropout(0.5))
    assert around.training
    assert training_of(part) is None
    TorchClassifier(around).predict(x)
    assert around.training
    assert training_of(part) is None
    state = ModuleState(around)
    around.eval()
    for _ in range(2):
        for step in list(state.restore_steps()):
            step()
    assert training_of(part) is None
    assert around[1].training


@pytest.mark.parametrize("kind", EXPORTED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_module_that_refuses_to_evaluate_is_refused_with_the_way_out(kind, dtype, x):
    module = kind(plain())
    before = modes(module)
    refused = [
        lambda: TorchClassifier(module).predict(x),
        lambda: FGSM.run(module, x.to(dtype)),
        lambda: eval.accuracy(module, x, torch.zeros(8)),
        lambda: AdversarialTraining(attack=FGSM)(module, x, torch.zeros(8)),
        lambda: TorchClassifier(plain(), preprocess=module).predict(x),
    ]
    for call in refused:
        with pytest.raises(TypeError, match=r"must have an evaluation mode.*mode='keep'") as caught:
            call()
        assert isinstance(caught.value.__cause__, NotImplementedError)
        assert modes(module) == before
    with pytest.raises(TypeError, match="must have an evaluation mode"):
        StraightThrough(plain(), module).predict(x)
    loss = AdversarialTraining(attack=FGSM, mode="keep")
    assert loss(module, x, torch.zeros(8)).isfinite()


@pytest.mark.parametrize("kind", EXPORTED)
def test_fit_names_a_module_that_refuses_to_train(kind, x):
    module = kind(plain())
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(TypeError, match="training mode.*Train the module that `model` was"):
        fit(
            *(module, [(x, torch.zeros(8))]),
            loss=LabelSmoothing(),
            optimizer=optimizer,
            epochs=1,
            progress=False,
        )


@pytest.mark.parametrize("kind", [scripted, traced, frozen, frozen_inside, exported])
def test_mrr_needs_layers_that_run_one_by_one(kind):
    x = images(60)
    victim = TorchClassifier(kind(plain()), mode="keep")
    with pytest.raises(TypeError, match="must be an nn.Module that runs its layers one by one"):
        MRR(latent=(LatentDefenders(epochs=1),), inputs=None).fit(victim, x, victim.predict(x))


@pytest.mark.parametrize("mode", MODES)
def test_a_quantized_module_has_no_gradients(mode, x):
    model = TorchClassifier(quantized(plain()), mode=mode)
    y = model.predict(x)
    with pytest.raises(TypeError, match="can be differentiated.*without gradients"):
        FGSM.run(model, x, y)
