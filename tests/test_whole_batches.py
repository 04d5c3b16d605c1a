"""Modules whose answers depend on the batch: `TorchClassifier(batch="whole")`, and the warning."""

import warnings

import pytest
import torch
from torch import nn

import advkit
from advkit import Ensemble, InconclusiveWarning, QueryCounter, StraightThrough, attacks
from advkit import eval as rob
from advkit.eval.noise import noisy
from advkit.models.batch_dependence import keeps_batch
from tests.attack_cases import ATTACKS
from tests.toys import convnet

pytestmark = pytest.mark.filterwarnings("ignore:The ball of .* holds every input")

every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=repr)
WRAPPERS = [
    QueryCounter,
    lambda m: Ensemble([m, m]),
    lambda m: StraightThrough(m, lambda x: x),
]


class Recorded(nn.Module):
    """A net over the statistics of its batch, which records the batches that it is given."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.randn(6, 2, generator=generator, dtype=torch.float64)
        self.norm = nn.BatchNorm1d(6, affine=False, track_running_stats=False)
        self.batches = []
        self.rows = []

    def forward(self, x):
        self.batches.append(x.detach().clone())
        self.rows.append(advkit.current_rows().tolist())
        return 2 * self.norm(x) @ self.weight


@pytest.fixture
def net():
    return Recorded()


def data(net, n=9):
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(n, 6, generator=generator, dtype=torch.float64)
    with advkit.given_rows(range(n)):
        y = net(x).argmax(1)
    net.batches.clear()
    net.rows.clear()
    return x, y


def asked(net, x):
    with torch.no_grad(), advkit.given_rows(range(len(x))):
        return net(x).argmax(1)


@every_attack
@pytest.mark.filterwarnings("ignore::advkit.InconclusiveWarning")
def test_every_pass_sends_the_whole_batch_and_the_last_one_what_is_returned(attack, net):
    x, y = data(net)
    result = attack.run(advkit.TorchClassifier(net, batch="whole"), x, y)
    assert {len(batch) for batch in net.batches} == {9}
    assert all(rows == list(range(9)) for rows in net.rows)
    assert torch.equal(net.batches[-1], result.x_adv)
    assert torch.equal(asked(net, result.x_adv) != y, result.success)
    if getattr(attack, "eps", None) is None:
        assert torch.equal(result.x_adv[~result.success], x[~result.success])
    assert result.queries.forward.max() <= len(net.batches)


@every_attack
@pytest.mark.filterwarnings("ignore::advkit.InconclusiveWarning")
def test_an_evaluation_leaves_what_is_misclassified_in_the_batch(attack, net):
    x, y = data(net)
    y[::3] = 1 - y[::3]
    model = advkit.TorchClassifier(net, batch="whole")
    report = rob.evaluate(model, x, y, attacks=[attack], batch_size=6)
    assert {len(batch) for batch in net.batches} <= {6, 3}
    assert [0, 1, 2, 3, 4, 5] in net.rows
    assert [6, 7, 8] in net.rows
    for batch, rows in zip(net.batches, net.rows, strict=True):
        wrong = [i for i, row in enumerate(rows) if not report.clean[row]]
        assert torch.equal(batch[wrong], x[[rows[i] for i in wrong]])


def test_finished_samples_stay_as_they_were_sent_last(net):
    x, y = data(net)
    pgd = attacks.PGD(eps=0.2, steps=6, random_start=False)
    pgd.run(advkit.TorchClassifier(net, batch="whole"), x, y)
    wrong = torch.zeros(9, dtype=torch.bool)
    for before, after in zip(net.batches, net.batches[1:], strict=False):
        assert torch.equal(after[wrong], before[wrong])
        wrong |= asked(net, after) != y
        net.batches.pop()
    assert wrong.any()


def test_queries_count_what_was_asked_for(net):
    x, y = data(net)
    pgd = attacks.PGD(eps=0.2, steps=6, random_start=False)
    result = pgd.run(advkit.TorchClassifier(net, batch="whole"), x, y)
    assert result.queries.forward.min() < result.queries.forward.max() == len(net.batches)


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrappers_keep_batches_whole(wrap, net):
    x, y = data(net)
    model = wrap(advkit.TorchClassifier(net, batch="whole"))
    assert keeps_batch(model)
    result = attacks.PGD(eps=0.2, steps=6).run(model, x, y)
    assert {len(batch) for batch in net.batches} == {9}
    assert torch.equal(asked(net, result.x_adv) != y, result.success)


def test_a_surrogate_of_a_transfer_keeps_its_batches_in_an_evaluation(net):
    x, y = data(net)
    target = nn.Linear(6, 2).double()
    surrogate = advkit.TorchClassifier(net, batch="whole")
    transfer = attacks.Transfer(attack=attacks.PGD(eps=0.2, steps=3), surrogate=surrogate)
    rob.evaluate(target, x, y, attacks=[transfer], batch_size=9)
    assert {len(batch) for batch in net.batches} == {9}


def test_noise_and_examples_of_an_evaluation_are_labelled_in_the_whole_batch(net):
    x, y = data(net)
    y[0] = 1 - y[0]
    model = advkit.TorchClassifier(net, batch="whole")
    report = rob.evaluate(model, x, y, attacks=[attacks.FGSM(eps=0.3)], batch_size=9)
    with_noise = torch.cat([x[:1], noisy(x[1:], (0, 1), "linf", 0.3)])
    assert torch.equal((asked(net, with_noise) == y)[1:], report.noise[0].robust[1:])
    x_adv = torch.cat([x[:1], net.batches[-2][1:]])  # noise is sent last, after the verification
    found, labels = report.outcomes[0].examples, asked(net, x_adv)
    for example, answer in zip(found.x_adv, found.predicted, strict=True):
        assert labels[(x_adv == example).all(1).nonzero().flatten()] == answer


def test_labels_are_those_of_the_whole_batch(net):
    x, _ = data(net)
    result = attacks.FGSM(eps=0.0).run(advkit.TorchClassifier(net, batch="whole"), x)
    assert not result.success.any()
    assert len(net.batches[0]) == 9


def test_a_net_in_training_mode_keeps_its_batch_and_state():
    net = convnet()
    net.norm.train()
    x = torch.rand(6, 1, 6, 6)
    model = advkit.TorchClassifier(net, mode="keep", batch="whole")
    y, before = model.predict(x), net.norm.running_mean.clone()
    result = attacks.PGD(eps=0.3, steps=8).run(model, x, y)
    assert torch.equal(model.predict(result.x_adv) != y, result.success)
    assert result.success.any()
    assert torch.equal(net.norm.running_mean, before)


@pytest.mark.parametrize("wrap", [lambda m: m, *WRAPPERS])
def test_without_it_an_attack_warns_once(wrap, net):
    x, y = data(net)
    model = wrap(advkit.TorchClassifier(net))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attacks.FGSM(eps=0.0).run(model, x, y)
    found = [w for w in caught if 'TorchClassifier(batch="whole")' in str(w.message)]
    assert len(found) == len({id(m) for m in getattr(model, "models", [model])})
    assert all(w.category is InconclusiveWarning for w in found)


def test_training_losses_and_nets_with_running_statistics_do_not_warn(net):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train = convnet().train()
        x, y = torch.rand(6, 1, 6, 6), torch.tensor([0, 1, 2, 0, 1, 2])
        attacks.FGSM(eps=0.1).run(advkit.TorchClassifier(train), x, y)
        advkit.defenses.AdversarialTraining(attack=attacks.FGSM(eps=0.1), mode="keep")(train, x, y)


class Own(nn.modules.batchnorm._BatchNorm):
    """A batch norm of a user's."""


@pytest.mark.filterwarnings("ignore:.*torch.jit.:DeprecationWarning")
@pytest.mark.parametrize("mode", ["eval", "keep"])
def test_batch_statistics_are_found(mode):
    def uses(module):
        return advkit.TorchClassifier(module, mode=mode).uses_batch_statistics

    train, evaluated = nn.BatchNorm2d(3), nn.BatchNorm2d(3).eval()
    assert uses(nn.Sequential(train)) == (mode == "keep")
    assert not uses(nn.Sequential(evaluated))
    assert uses(nn.BatchNorm1d(3, track_running_stats=False).eval())
    assert uses(Own(3, track_running_stats=False))
    assert uses(torch.jit.script(nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False))))
    before = nn.BatchNorm2d(3, track_running_stats=False)
    assert advkit.TorchClassifier(nn.Flatten(), preprocess=before).uses_batch_statistics
    assert not uses(nn.InstanceNorm2d(3))


def test_the_option_is_checked(net):
    with pytest.raises(ValueError, match="`batch` must be one of"):
        advkit.TorchClassifier(net, batch="all")


@pytest.mark.filterwarnings("ignore::advkit.InconclusiveWarning")
def test_a_batch_that_becomes_too_small_for_the_net_is_told_of_the_option():
    torch.manual_seed(0)
    over_batch = nn.BatchNorm1d(8, track_running_stats=False)
    net = nn.Sequential(nn.Linear(6, 8), over_batch, nn.Linear(8, 3))
    x = torch.rand(8, 6)
    with pytest.raises(RuntimeError, match=r'on 1 of the 8 .* TorchClassifier\(batch="whole"\)'):
        attacks.PGD(eps=0.3).run(net, x, net(x).argmax(1))


def test_a_benchmark_measures_passes_of_what_is_sent(net):
    x, y = data(net, 4)
    y[1:] = 1 - y[1:]  # one is left to attack
    model = advkit.TorchClassifier(net, batch="whole")
    found = rob.benchmark(model, x, y, attacks=[attacks.FGSM(eps=0.1)], rounds=1)
    assert found.bare_pass.inputs == 4
    assert {len(batch) for batch in net.batches} == {4}
