"""Checks of the outputs of a model on a few inputs."""

import math

import pytest
import torch
from torch import nn

import advkit
from advkit import InconclusiveWarning, attacks
from advkit import eval as rob
from advkit.eval.accuracy import ClassifiedBatch
from advkit.eval.units.model_checks import CHECKED_EVERY, COLUMNS, check_batch
from tests.toys import answers, convnet, images

N = 130  # inputs, of which the numbers 0, 64 and 128 are checked


class Outputs(nn.Module):
    """A model that returns the given rows, one for each input, with a gradient."""

    def __init__(self, *rows, dtype=torch.float32):
        super().__init__()
        self.rows = torch.tensor(rows, dtype=dtype)

    def forward(self, x):
        chosen = self.rows.to(x.device)[torch.arange(len(x)) % len(self.rows)]
        return chosen + 0 * x.flatten(1)[:, :1].to(chosen.dtype)


class Noisy(nn.Module):
    """Logits with noise of a given size."""

    def __init__(self, net, size):
        super().__init__()
        self.net, self.size = net, size

    def forward(self, x):
        logits = self.net(x)
        return logits + self.size * torch.randn_like(logits)


def found_by(model, x=None, first=0):
    """The columns of the checks of one batch."""
    x = torch.rand(N, 4) if x is None else x
    y = torch.zeros(len(x)).long()
    batch = ClassifiedBatch(x, y, y, first)
    return check_batch(advkit.models.as_classifier(model), batch)


def kinds(model, x=None):
    """The checks that found something on every checked input."""
    found = found_by(model, x)
    counts = {name: int(found[name].sum()) for name in COLUMNS[1:]}
    checked = int(found["checked"].sum())
    assert set(counts.values()) <= {0, checked}
    return [name for name, count in counts.items() if count]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[2.0, -1.0, 0.5]], []),
        ([[0.2, 0.5, 0.3]], ["probabilities"]),
        ([[0.2, 0.5, 0.4]], []),
        ([[-0.5, 0.5, 1.0]], []),  # which sum to one
        ([[1.0, 0.0, 0.0]], ["labels"]),
        ([[7.0, -2.0, -2.0]], []),
        ([[0.0, 0.0, 0.0]], []),
        ([[1.0, 1.0, 0.0]], []),
        ([[-math.inf, 0.0, -math.inf]], []),
        ([[0.0, 1.0]], ["labels"]),
        ([[0.0, 3.0]], []),  # two logits always have two values
        ([[0.4, 0.6]], ["probabilities"]),
        ([[0.0, 110.0, -5.0]], ["saturated"]),
        ([[0.0, 103.0, -5.0]], []),  # exp(-103) is a subnormal number of float32
        ([[0.0, 110.0]], ["saturated"]),
    ],
)
def test_kinds_of_outputs(rows, expected):
    assert kinds(Outputs(*rows)) == expected


def test_saturation_depends_on_the_dtype():
    row = [0.0, 110.0, -5.0]
    assert kinds(Outputs(row, dtype=torch.float64), torch.rand(N, 4, dtype=torch.float64)) == []
    half = Outputs([0.0, 20.0, -5.0], dtype=torch.float16)
    assert kinds(half, torch.rand(N, 4, dtype=torch.float16)) == ["saturated"]


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_a_softmax_is_recognized(classes):
    net = nn.Sequential(nn.Linear(4, classes), nn.Softmax(1))
    assert kinds(net) == ["probabilities"]
    assert kinds(net[0]) == []
    told = advkit.TorchClassifier(net, output="probabilities")
    assert kinds(told) == []


@pytest.mark.parametrize(("size", "random"), [(0.1, True), (1e-5, False), (0.0, False)])
def test_random_logits(size, random):
    net = nn.Linear(4, 3)
    assert kinds(Noisy(net, size)) == (["random"] if random else [])


def test_dropout_in_training_mode_and_expectation():
    net = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 3)).train()
    keep = advkit.TorchClassifier(net, mode="keep")
    assert found_by(keep)["random"].sum() == 3
    assert found_by(net)["random"].sum() == 0  # which runs in evaluation mode


def test_the_inputs_are_those_of_certain_numbers():
    model = Outputs([1.0, 0.0, 0.0])
    for first, rows in ((0, [0, 64, 128]), (1, [63, 127]), (64, [0, 64, 128]), (130, [62, 126])):
        found = found_by(model, first=first)
        assert found["checked"].nonzero().flatten().tolist() == rows
        assert torch.equal(found["labels"], found["checked"])
    none = found_by(model, torch.rand(5, 4), first=1)
    assert not any(mask.any() for mask in none.values())
    assert {len(mask) for mask in none.values()} == {5}


@pytest.mark.filterwarnings("ignore:.*seems to return probabilities")
@pytest.mark.parametrize("batch_size", [7, 200])
def test_results_do_not_depend_on_the_batches(batch_size):
    """Nor does the number of passes: two for each of the three inputs that are checked."""
    x = torch.rand(N, 4)
    counter = advkit.QueryCounter(nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)))
    y = counter.predict(x)
    counter.reset()
    sent = {}
    for name, patched in (("with", False), ("without", True)):
        with pytest.MonkeyPatch.context() as patch:
            if patched:
                none = lambda _, batch: {c: torch.zeros(len(batch.x)).bool() for c in COLUMNS}  # noqa: E731
                patch.setattr("advkit.eval.units.worker.check_batch", none)
            report = rob.evaluate(
                counter, x, y, attacks=[attacks.FGSM(eps=0.01)], batch_size=batch_size
            )  # fmt: skip
        sent[name] = counter.forward
        counter.reset()
        if not patched:
            assert report.checks.checked.nonzero().flatten().tolist() == [0, 64, 128]
            assert report.checks.probabilities.sum() == 3
    assert sent["with"] - sent["without"] == 6
    assert CHECKED_EVERY == 64


def test_models_that_are_not_checked():
    """Those without logits, with a query budget, and those that depend on the whole batch."""
    x, net = images(70), convnet()
    scores = advkit.CallableClassifier(
        lambda x: torch.tensor([[0.25, 0.75]]).expand(len(x), 2), num_classes=2
    )
    limited = advkit.QueryCounter(net, max_queries=1000)
    whole = advkit.TorchClassifier(net, batch="whole")
    for model in (scores, limited, whole):
        assert not found_by(model, x)["checked"].any()
    assert limited.forward == 0
    assert found_by(advkit.QueryCounter(net), x)["checked"].sum() == 2


def test_the_model_and_the_random_state_are_left_unchanged():
    net = convnet().train()
    x = images(70)
    state, calls = torch.get_rng_state(), int(net.calls)
    found_by(advkit.TorchClassifier(net, mode="keep"), x)
    found_by(net, x)
    assert net.training
    assert torch.equal(torch.get_rng_state(), state)
    assert int(net.calls) == calls


def test_training_mode_is_in_the_report():
    net, x = convnet().train(), images(8)
    y = answers(net, x)
    made = [attacks.RandomNoise(eps=0.01)]
    with pytest.warns(InconclusiveWarning, match="uses the statistics of each batch"):
        kept = rob.evaluate(advkit.TorchClassifier(net, mode="keep"), x, y, attacks=made)
    assert kept.checks.training_mode
    assert not rob.evaluate(net, x, y, attacks=made).checks.training_mode
