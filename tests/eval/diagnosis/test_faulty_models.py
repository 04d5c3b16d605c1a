"""Small models that deserve a finding, the remedy of each, and a net that deserves none.

The net tells dark images from bright ones in three regions, and is attacked at a budget at which a
part of the inputs is fooled.
"""

import copy
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import advkit
from advkit import attacks, defenses
from advkit import eval as rob

EPS = 0.06
CLASSES = 4


class Faulty(NamedTuple):
    """A model, the finding about it, and what its remedy and its adaptive attack evaluate."""

    model: object
    finding: str
    severity: str
    remedied: object
    adaptive: object  # attack on `remedied`


class Rounded(nn.Module):
    """A net behind rounding to eight levels."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(three_bits(x))


class OneHot(nn.Module):
    """A net that shows its label only, with a gradient of zero."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        logits = self.net(x)
        return F.one_hot(logits.argmax(1), logits.shape[1]) + 0 * logits


class Compressed(nn.Module):
    """A net behind JPEG compression outside of torch's graph."""

    def __init__(self, net, quality):
        super().__init__()
        self.net, self.step = net, defenses.JpegCompression(net, quality).step

    def forward(self, x):
        with torch.no_grad():
            x = self.step(x)
        return self.net(x)


class Noisy(nn.Module):
    """A net whose input gets noise."""

    def __init__(self, net, sigma):
        super().__init__()
        self.net, self.sigma = net, sigma

    def forward(self, x):
        return self.net(x + self.sigma * torch.randn_like(x))


class Scaled(nn.Module):
    """A net whose logits are multiplied by 200."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return 200 * self.net(x)


class Pairs(nn.Module):
    """The net for two classes."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net(x).unflatten(1, (2, 2)).logsumexp(2)


class Winners(nn.Module):
    """k-winners-take-all, whose largest fifth of the features keep their values."""

    def forward(self, x):
        smallest = x.topk(max(1, x.shape[1] // 5), dim=1).values[:, -1:]
        return torch.where(x >= smallest, x, 0)


class SoftWinners(Winners):
    """The same with the gradient of a sigmoid at the threshold."""

    def forward(self, x):
        smallest = x.topk(max(1, x.shape[1] // 5), dim=1).values[:, -1:]
        soft = x * ((x - smallest) / 0.3).sigmoid()
        return super().forward(x).detach() + soft - soft.detach()


def three_bits(x):
    return (7 * x).round() / 7


def draw(n, seed):
    """Images of gray levels: one of four patterns, and noise."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.rand(CLASSES, 1, 8, 8, generator=torch.Generator().manual_seed(7))
    y = torch.randint(0, CLASSES, (n,), generator=generator)
    x = 0.35 + 0.3 * patterns[y] + 0.15 * torch.randn(n, 1, 8, 8, generator=generator)
    return (255 * x.clamp(0, 1)).round() / 255, y


def learned(net, loss=F.cross_entropy, labels=None, steps=150):
    """The net after a short training."""
    x, y = draw(512, seed=1)
    target = y if labels is None else labels(x)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    for step in range(steps):
        rows = torch.arange(128) + 128 * (step % 4)
        optimizer.zero_grad()
        loss(net(x[rows]), target[rows]).backward()
        optimizer.step()
    return net.eval()


def layers(activation=nn.ReLU):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), activation(), nn.Linear(64, CLASSES))


@pytest.fixture(scope="module")
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return learned(layers())


@pytest.fixture(scope="module")
def data():
    return draw(100, seed=2)


def pgd(**options):
    """PGD that costs more than all stages of `Suite` on these nets."""
    return attacks.PGD(eps=EPS, loss="margin", steps=40, **{"restarts": 5} | options)


def stochastic(net):
    random = Noisy(net, 0.2)
    return Faulty(
        random, "random_model", "high", advkit.Expectation(random, draws=32), pgd(stop="never", restarts=1)
    )  # fmt: skip


def scaled(net):
    return Faulty(Scaled(net), "saturated_outputs", "low", Scaled(net), pgd())


def quantized(net):
    return Faulty(
        Rounded(net), "no_gradient", "high", advkit.StraightThrough(net, three_bits), pgd()
    )


def softmax(net):
    model = nn.Sequential(net, nn.Softmax(1)).eval()
    told = advkit.TorchClassifier(model, output="probabilities")
    return Faulty(model, "probabilities", "high", told, pgd())


def hard_labels(net):
    walk = attacks.HopSkipJump(norm="linf", max_queries=1000)
    return Faulty(OneHot(net), "scores_are_labels", "high", net, walk)


def dead_gradients(net):
    """Tanh on a scale at which it is one in float32."""
    body, rest = net[:2], net[2:]
    step = nn.Sequential(body, nn.Hardtanh(-1e-9, 1e-9))
    model = nn.Sequential(step, Amplified(1e9), *rest)
    sharp = advkit.StraightThrough(
        nn.Sequential(Amplified(1e9), *rest), step, lambda x: 1e-9 * body(x)
    )  # fmt: skip
    return Faulty(model, "no_gradient", "high", sharp, pgd())


class Amplified(nn.Module):
    """Multiplication by a factor."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def winners(_):
    torch.manual_seed(0)
    model = learned(
        nn.Sequential(
            nn.Flatten(), nn.Linear(64, 200), Winners(), nn.Linear(200, 200), Winners(),
            nn.Linear(200, CLASSES),
        )
    )  # fmt: skip
    soft = copy.deepcopy(model)
    soft[2], soft[4] = SoftWinners(), SoftWinners()
    return Faulty(model, "scores_beat_gradients", "high", soft, pgd())


def distilled(net):
    temperature = 100.0

    def soft_cross_entropy(logits, target):
        return F.cross_entropy(logits / temperature, target)

    torch.manual_seed(0)
    teacher = learned(layers(), soft_cross_entropy, steps=400)

    def soft_labels(x):
        with torch.no_grad():
            return (teacher(x) / temperature).softmax(1)

    student = learned(layers(), soft_cross_entropy, soft_labels, steps=400)
    return Faulty(student, "saturated_outputs", "low", student, pgd())


def dropout(net):
    part = copy.deepcopy(nn.Sequential(*net[:3], nn.Dropout(0.5), net[3])).train()
    keep = advkit.TorchClassifier(part, mode="keep")
    return Faulty(keep, "training_mode", "high", advkit.TorchClassifier(part), pgd())


def compressed(net):
    return Faulty(
        Compressed(net, 60), "no_gradient", "high", defenses.JpegCompression(net, 60), pgd()
    )


FAULTY = [stochastic, scaled, quantized, softmax, hard_labels, dead_gradients, winners, distilled,
          dropout, compressed]  # fmt: skip


def probes(eps=EPS):
    """The probes, the black boxes among them with few queries."""
    made = attacks.probes(eps)
    made["scores"] = attacks.Square(eps=eps, max_queries=300)
    made["labels"] = attacks.HopSkipJump(norm="linf", max_queries=150)
    return made


def left(outcome):
    """The robust accuracy, with that of a minimum-norm attack within the budget."""
    radius = torch.full((len(outcome.robust),), EPS, dtype=torch.float64)
    fooled = outcome.within(radius) if outcome.minimum_norm else outcome.success
    return float((outcome.attacked & ~fooled).double().mean())


def test_a_net_without_a_fault_has_no_finding(net, data):
    found = rob.diagnose(net, *data, probes=probes())
    assert found.findings == ()
    assert 0.2 < float(found.outcomes["many_steps"].robust_accuracy) < 0.8


@pytest.mark.parametrize("make", FAULTY, ids=lambda make: make.__name__)
def test_a_fault_is_found(make, net, data):
    case = make(net)
    found = rob.diagnose(case.model, *data, probes=probes())
    assert (case.finding, case.severity) in [(f.name, f.severity) for f in found.findings]


@pytest.mark.slow("the adaptive attacks and `Suite` on ten models")
@pytest.mark.filterwarnings("ignore::advkit.InconclusiveWarning")
@pytest.mark.filterwarnings("ignore:.*seems to return probabilities")
@pytest.mark.parametrize("make", FAULTY, ids=lambda make: make.__name__)
def test_after_the_remedy_suite_is_as_strong_as_an_adaptive_attack(make, net, data):
    """Within one point, that is one input."""
    case = make(net)
    against = case.model if case.finding == "scores_are_labels" else case.remedied
    suite = rob.evaluate(case.remedied, *data, attacks=[attacks.Suite(eps=EPS)])
    adaptive = rob.evaluate(against, *data, attacks=[case.adaptive])
    assert left(suite.outcomes[0]) <= left(adaptive.outcomes[0]) + 0.01 + 1e-9
    assert left(suite.outcomes[0]) < 0.9 * float(suite.clean_accuracy)


def test_two_classes_and_dlr(net, data):
    x, y = data
    model, made = Pairs(net).eval(), probes()
    made["many_steps"] = attacks.PGD(eps=EPS, loss="dlr", steps=20)
    found = rob.diagnose(model, x, y // 2, probes=made)
    assert ("too_few_classes", "medium") in [(f.name, f.severity) for f in found.findings]
    made["many_steps"] = attacks.PGD(eps=EPS, loss="margin", steps=20)
    assert rob.diagnose(model, x, y // 2, probes=made).findings == ()
    (suite,) = rob.evaluate(model, x, y // 2, attacks=[attacks.Suite(eps=EPS)]).outcomes
    (adaptive,) = rob.evaluate(model, x, y // 2, attacks=[pgd()]).outcomes
    assert left(suite) <= left(adaptive) + 0.01 + 1e-9


@pytest.mark.filterwarnings("ignore:AutoAttack maximizes the margin")
def test_two_classes_and_auto_attack(net, data):
    x, y = data[0][:4], data[1][:4] // 2
    report = rob.evaluate(Pairs(net).eval(), x, y, attacks=[attacks.AutoAttack(eps=0.5)])
    assert "too_few_classes" in [f.name for f in report.findings]


@pytest.mark.filterwarnings("ignore::advkit.InconclusiveWarning")
@pytest.mark.parametrize("make", [scaled, distilled], ids=lambda make: make.__name__)
def test_what_saturation_hides_from_the_loss_of_torch(make, net, data):
    """The naive figure is far above that of the losses of this package."""
    model = make(net).model

    def cross_entropy(logits, y):
        return F.cross_entropy(logits, y, reduction="none")

    naive = attacks.PGD(eps=EPS, loss=cross_entropy)
    report = rob.evaluate(model, *data, attacks=[naive])
    own = rob.evaluate(model, *data, attacks=[attacks.PGD(eps=EPS)])
    assert float(report.worst_case) > float(own.worst_case) + 0.1
    severities = {f.name: f.severity for f in report.findings}
    assert severities["no_gradient"] == "high"
