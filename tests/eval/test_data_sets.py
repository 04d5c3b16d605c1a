"""Kinds of data: every function gives the same for tensors, a loader and an indexed data set."""

from importlib import import_module

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from advkit import attacks, data, detectors
from advkit import eval as rob
from advkit.core.progress import progress_bar, status_line

DIGITS = data.digits("test").head(23)
PGD = attacks.PGD(eps=0.1, steps=3)
ATTACKS = [PGD, attacks.DeepFool(steps=5)]
KINDS = {
    "loader": lambda: DataLoader(TensorDataset(DIGITS.x, DIGITS.y), batch_size=5),
    "data set of torch": lambda: TensorDataset(DIGITS.x, DIGITS.y),
    "data set of advkit": lambda: DIGITS,
}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))


@pytest.fixture(scope="module", autouse=True)
def labels(net):
    """Half of the labels are those of the net."""
    predicted = net(DIGITS.x).argmax(1)
    DIGITS.y[::2] = predicted[::2]


def without_seconds(value):
    if isinstance(value, dict):
        times = ("seconds", "date")
        return {k: without_seconds(v) for k, v in value.items() if not k.endswith(times)}
    return [*map(without_seconds, value)] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", KINDS)
class TestTheResultIsThatOfTensors:
    def test_evaluate(self, net, kind):
        def report(*given):
            found = rob.evaluate(net, *given, attacks=ATTACKS, batch_size=5)
            return without_seconds(found.to_dict())

        found, expected = report(KINDS[kind]()), report(DIGITS.x, DIGITS.y)
        assert found.pop("inputs_wanted") == (None if kind == "loader" else 23)
        assert expected.pop("inputs_wanted") == 23
        assert found == expected

    def test_accuracy(self, net, kind):
        found = rob.accuracy(net, KINDS[kind](), batch_size=5)
        assert found == rob.accuracy(net, DIGITS.x, DIGITS.y)
        assert found.total == 23

    def test_robust_accuracy(self, net, kind):
        found = rob.robust_accuracy(net, KINDS[kind](), attacks=[PGD])
        assert found == rob.robust_accuracy(net, DIGITS.x, DIGITS.y, attacks=[PGD])

    def test_benchmark(self, net, kind):
        def found(*given):
            result = rob.benchmark(net, *given, attacks=[PGD], rounds=1, batch_size=5)
            return result.clean.tolist(), str(result.groups[0].best.success_rate)

        assert found(KINDS[kind]()) == found(DIGITS.x, DIGITS.y)

    def test_transfer_matrix(self, net, kind):
        def found(*given):
            return rob.transfer_matrix([net], None, PGD, *given, batch_size=5).to_dict()

        assert found(KINDS[kind]()) == found(DIGITS.x, DIGITS.y)

    def test_collect(self, net, kind):
        def found(*given):
            return detectors.collect([net], [PGD], *given, batch_size=5).outputs.tolist()

        assert found(KINDS[kind]()) == found(DIGITS.x, DIGITS.y)


@pytest.mark.parametrize(
    ("module", "use"),
    [
        (
            "eval.transfer.transfer_matrix",
            lambda net, *given: rob.transfer_matrix([net], None, PGD, *given),
        ),
        ("detectors.collect", lambda net, *given: detectors.collect([net], [PGD], *given)),
    ],
)
def test_the_bar_knows_the_length_of_a_data_set(net, monkeypatch, module, use):
    totals = []

    def recorded(name, total, shown):
        totals.append(total)
        return progress_bar(name, total, shown)

    monkeypatch.setattr(import_module(f"advkit.{module}"), "progress_bar", recorded)
    use(net, DIGITS)
    use(net, KINDS["loader"]())
    assert totals == [23, None]


def test_the_status_knows_the_length_of_a_data_set(net, monkeypatch):
    totals = []

    def recorded(total, show, **options):
        totals.append(total)
        return status_line(total, show, **options)

    monkeypatch.setattr("advkit.eval.robustness.evaluation.status_line", recorded)
    rob.evaluate(net, DIGITS, attacks=[PGD])
    rob.evaluate(net, KINDS["loader"](), attacks=[PGD])
    assert totals == [23, None]


@pytest.mark.parametrize(
    "use",
    [
        lambda net, eps: rob.evaluate(net, DIGITS, attacks=[attacks.FGSM(eps=eps)], batch_size=5),
        lambda net, eps: rob.benchmark(net, DIGITS, attacks=[attacks.FGSM(eps=eps)], rounds=1),
        lambda net, eps: rob.transfer_matrix([net], None, attacks.FGSM(eps=eps), DIGITS),
        lambda net, eps: detectors.collect([net], [attacks.FGSM(eps=eps)], DIGITS),
    ],
)
def test_one_radius_for_each_sample_of_a_data_set(net, use):
    use(net, torch.full((23,), 0.1))
    with pytest.raises(ValueError, match="22"):
        use(net, torch.full((22,), 0.1))


def test_errors_name_the_sample(net):
    y = DIGITS.y.clone()
    y[13] = 11
    with pytest.raises(ValueError, match=r"begins at sample 10: `y` must be below 10.*sample 3"):
        rob.evaluate(net, TensorDataset(DIGITS.x, y), attacks=[PGD], batch_size=5)
    with pytest.raises(ValueError, match="must hold at least one sample, got none"):
        rob.evaluate(net, DIGITS.head(0), attacks=[PGD])
