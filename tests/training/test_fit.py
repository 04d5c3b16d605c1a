"""The training loop."""

import json
import math
import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from advkit.training.fit import fit
from advkit.training.history import Epoch, History
from tests.toys import convnet, images


def loss(net, x, y):
    return F.mse_loss(net(x)[:, 0], y)


def cross_entropy(net, x, y):
    return F.cross_entropy(net(x), y)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Linear(1, 1)


@pytest.fixture
def line():
    x = torch.linspace(-1, 1, 32)[:, None]
    return [(x[:16], 2 * x[:16, 0] + 1), (x[16:], 2 * x[16:, 0] + 1)]


@pytest.fixture
def pictures():
    x = images(12)
    return [(x[:8], torch.arange(8) % 3), (x[8:], torch.arange(4) % 3)]


def sgd(net, lr=0.1, **options):
    return torch.optim.SGD(net.parameters(), lr=lr, **options)


def quietly(net, loader, **options):
    """`fit` for two epochs of SGD unless told otherwise."""
    given = {"loss": loss, "epochs": 2, "progress": False, **options}
    given.setdefault("optimizer", sgd(net))
    return fit(net, loader, **given)


def weights(net):
    return [v.clone() for v in (*net.parameters(), *net.buffers())]


def assert_same(found, wanted):
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


def test_it_finds_a_line(net, line):
    history = quietly(net, line, optimizer=sgd(net, lr=0.5), epochs=60)
    assert not net.training
    torch.testing.assert_close(net.weight.item(), 2.0, atol=1e-3, rtol=0)
    torch.testing.assert_close(net.bias.item(), 1.0, atol=1e-3, rtol=0)
    assert [epoch.epoch for epoch in history.epochs] == list(range(1, 61))
    assert history.epochs[-1].loss < 1e-6 < history.epochs[0].loss


def test_a_step_is_that_of_the_textbook(net, line):
    w, b = net.weight.item(), net.bias.item()
    values = []
    for x, y in 2 * line:
        x = x[:, 0]
        error = w * x + b - y
        values.append(float((error**2).mean()))
        w -= 0.1 * float((2 * error * x).mean())
        b -= 0.1 * float((2 * error).mean())
    history = quietly(net, line)
    assert net.weight.item() == pytest.approx(w, abs=1e-5)
    assert net.bias.item() == pytest.approx(b, abs=1e-5)
    means = [sum(values[:2]) / 2, sum(values[2:]) / 2]
    assert [epoch.loss for epoch in history.epochs] == pytest.approx(means, abs=1e-5)


def test_each_epoch_takes_one_step_for_each_batch(net, line):
    net.eval()
    steps = []

    def counted(net, x, y):
        assert net.training
        steps.append(len(x))
        return loss(net, x, y)

    quietly(net, line, loss=counted, epochs=3)
    assert steps == [16] * 6


def test_gradients_that_lie_about_do_not_count(net, line):
    other = nn.Linear(1, 1)
    other.load_state_dict(net.state_dict())
    net.weight.grad = torch.full((1, 1), 100.0)

    def messy(net, x, y):
        net.bias.grad = torch.full((1,), 100.0)
        return loss(net, x, y)

    quietly(net, line, loss=messy)
    quietly(other, line)
    assert_same(weights(net), weights(other))


def test_it_learns_where_gradients_are_off(net, line):
    before = net.weight.item()
    with torch.no_grad():
        quietly(net, line)
    assert net.weight.item() != before


def test_the_mean_loss_weighs_samples_alike(net):
    x = torch.zeros(5, 1)
    batches = [(x[:4], torch.zeros(4)), (x[:1], torch.ones(1))]
    history = quietly(net, batches, loss=lambda net, x, y: 0 * net.bias.sum() + y.mean(), epochs=1)
    assert history.epochs[0].loss == pytest.approx(0.2)


class TestSchedules:
    def test_once_an_epoch(self, net, line):
        optimizer = sgd(net)
        scheduler = lr_scheduler.StepLR(optimizer, 2, gamma=0.5)
        history = quietly(net, line, optimizer=optimizer, scheduler=scheduler, epochs=5)
        rates = [epoch.lr for epoch in history.epochs]
        assert rates == pytest.approx([0.1, 0.1, 0.05, 0.05, 0.025])

    def test_once_a_batch(self, net, line):
        optimizer, rates = sgd(net, momentum=0.9), []
        scheduler = lr_scheduler.OneCycleLR(optimizer, 1.0, epochs=3, steps_per_epoch=2)

        def watched(net, x, y):
            rates.append(optimizer.param_groups[0]["lr"])
            return 0 * loss(net, x, y)

        history = quietly(
            net, line, loss=watched, optimizer=optimizer, scheduler=scheduler, schedule="batch",
            epochs=3,
        )  # fmt: skip
        other = sgd(net, momentum=0.9)
        known = lr_scheduler.OneCycleLR(other, 1.0, epochs=3, steps_per_epoch=2)
        wanted = []
        for _ in range(6):
            wanted.append(other.param_groups[0]["lr"])
            other.step()
            known.step()
        assert rates == pytest.approx(wanted)
        assert [epoch.lr for epoch in history.epochs] == pytest.approx(wanted[::2])


class TestAverage:
    def test_it_is_the_moving_average_of_what_follows_each_step(self, pictures):
        net = convnet()
        states = []
        optimizer = sgd(net)
        optimizer.register_step_post_hook(lambda *_: states.append(weights(net)))
        quietly(net, pictures, loss=cross_entropy, optimizer=optimizer, ema=0.7, epochs=3)
        assert len(states) == 6
        wanted = [v.double() for v in states[0]]
        for state in states[1:]:
            wanted = [0.7 * old + 0.3 * new for old, new in zip(wanted, state, strict=True)]
        for got, want, last in zip(weights(net), wanted, states[-1], strict=True):
            if got.is_floating_point():
                torch.testing.assert_close(got, want.float())
            else:
                assert got == last == 6  # a counter: batches seen, calls

    def test_evaluation_sees_it_and_training_does_not(self, net, line):
        plain, raw, seen = nn.Linear(1, 1), [], []
        plain.load_state_dict(net.state_dict())

        def watched(net, x, y):
            raw.append(net.weight.item())
            return loss(net, x, y)

        def look(model):
            seen.append(model.weight.item())
            return {}

        quietly(net, line, loss=watched, ema=0.5, evaluate=look, epochs=3)
        quietly(plain, line, epochs=3)
        averages = [raw[1]]
        for value in [*raw[2:], plain.weight.item()]:
            averages.append((averages[-1] + value) / 2)
        assert seen == pytest.approx(averages[1::2])
        assert net.weight.item() == seen[-1] != plain.weight.item()

    @pytest.mark.parametrize("decay", [0, 1, 1.5, math.nan])
    def test_its_decay_lies_between_0_and_1(self, net, line, decay):
        with pytest.raises(ValueError, match=r"`ema` must lie in \(0, 1\), got"):
            quietly(net, line, ema=decay)


class TestEvaluation:
    def test_its_numbers_are_kept(self, net, line):
        values = iter([0.5, np.float32(0.25), torch.tensor(1.0)])

        def look(model):
            assert model is net
            assert not model.training
            assert not torch.is_grad_enabled()
            return {"clean": next(values)}

        history = quietly(net, line, evaluate=look, epochs=3)
        assert [epoch.metrics for epoch in history.epochs] == [
            {"clean": 0.5}, {"clean": 0.25}, {"clean": 1.0},
        ]  # fmt: skip
        assert all(type(epoch.metrics["clean"]) is float for epoch in history.epochs)

    @pytest.mark.parametrize("ema", [None, 0.9])
    def test_training_goes_on_as_if_it_had_not_been_asked(self, pictures, ema):
        x, y = (torch.cat(parts) for parts in zip(*pictures, strict=True))

        def trained(evaluate):
            torch.manual_seed(1), np.random.seed(1), random.seed(1)
            net, generator = convnet(), torch.Generator().manual_seed(1)
            data = TensorDataset(x, y)
            loader = DataLoader(data, batch_size=4, shuffle=True, generator=generator)

            def noisy(net, x, y):
                noise = random.random() + np.random.rand()
                return cross_entropy(net, x + 0.1 * noise, y)

            def look(model):
                torch.rand(3), np.random.rand(3), random.random()
                model(next(iter(loader))[0])
                return {}

            quietly(net, loader, loss=noisy, ema=ema, evaluate=look if evaluate else None)
            return net

        asked, alone = trained(True), trained(False)
        assert_same(list(asked.parameters()), list(alone.parameters()))

    def test_what_is_no_mapping_of_numbers(self, net, line):
        with pytest.raises(TypeError, match="`evaluate` must return .*, got float"):
            quietly(net, line, evaluate=lambda _: 0.5)
        with pytest.raises(TypeError, match="got str as 'clean'"):
            quietly(net, line, evaluate=lambda _: {"clean": "0.5"})


class TestPrecision:
    @pytest.mark.parametrize(
        ("precision", "wanted"),
        [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)],
    )
    def test_the_loss_is_computed_in_it(self, net, line, precision, wanted):
        seen = []

        def watched(net, x, y):
            out = net(x)
            seen.append(out.dtype)
            return F.mse_loss(out[:, 0].float(), y)

        def look(model):
            seen.append(model(line[0][0]).dtype)
            return {}

        with torch.autocast("cpu", torch.float16):  # of the caller, which is none of our business
            quietly(net, line, loss=watched, epochs=1, precision=precision)
        quietly(net, line, loss=watched, epochs=1, precision=precision, evaluate=look)
        assert seen == [wanted] * 4 + [torch.float32]
        assert net.weight.dtype == net.weight.grad.dtype == torch.float32

    def test_bfloat16_learns_as_well(self, net, line):
        quietly(net, line, optimizer=sgd(net, lr=0.5), epochs=60, precision="bfloat16")
        assert net.weight.item() == pytest.approx(2, abs=0.03)


class TestHistory:
    HISTORY = History((
        Epoch(epoch=1, loss=0.693147, seconds=12.34, lr=0.1),
        Epoch(epoch=2, loss=1e-5, seconds=1.0, lr=1e-3, metrics={"clean": 0.5}),
        Epoch(epoch=3, loss=2.0, seconds=600, lr=0.1, metrics={"robust accuracy": 1 / 3}),
    ))  # fmt: skip

    def test_it_prints_as_a_table(self):
        assert str(self.HISTORY).splitlines() == [
            "    epoch       loss         lr    seconds      clean  robust accuracy",
            "      1/3     0.6931        0.1       12.3          -                -",
            "      2/3      1e-05      0.001        1.0        0.5                -",
            "      3/3          2        0.1      600.0          -           0.3333",
        ]

    def test_it_is_plain_values(self):
        plain = json.loads(json.dumps(self.HISTORY.to_dict()))
        assert plain == self.HISTORY.to_dict()
        assert plain["epochs"][1] == {
            "epoch": 2, "loss": 1e-5, "seconds": 1.0, "lr": 0.001, "metrics": {"clean": 0.5},
        }  # fmt: skip

    def test_seconds_are_those_of_training(self, net, line, monkeypatch):
        clock = [0.0]
        monkeypatch.setattr("time.perf_counter", lambda: clock[0])

        def tick(seconds, value):
            clock[0] += seconds
            return value

        history = quietly(
            net, line, loss=lambda *batch: tick(2, loss(*batch)), evaluate=lambda _: tick(50, {})
        )
        assert [epoch.seconds for epoch in history.epochs] == [4, 4]


class TestProgress:
    def test_a_line_for_each_epoch(self, net, line, capsys):
        names = iter([{"clean": 1}, {"clean": 1}, {"robust": 0}])
        options = {"loss": loss, "optimizer": sgd(net), "epochs": 3}
        fit(net, line, **options, evaluate=lambda _: next(names))
        out, err = capsys.readouterr()
        assert out == ""
        words = [text.split() for text in err.splitlines()]
        first = ["epoch", "loss", "lr", "seconds"]
        assert [text[:1] for text in words] == [["epoch"], ["1/3"], ["2/3"], ["epoch"], ["3/3"]]
        assert words[0] == [*first, "clean"]
        assert words[3] == [*first, "robust"]

    def test_silence(self, net, line, capsys):
        quietly(net, line)
        assert capsys.readouterr() == ("", "")


class TestWhatCannotBeLearnt:
    @pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
    def test_a_loss_that_is_not_finite_takes_no_step(self, net, line, value):
        states = []

        def bad(net, x, y):
            states.append(weights(net))
            return loss(net, x, y) + (float(value) if len(states) == 4 else 0)

        wanted = f"finite value, got {value} in epoch 2, batch 2. No epoch was saved. Pass `ch"
        with pytest.raises(ValueError, match=wanted):
            quietly(net, line, loss=bad, epochs=9)
        assert len(states) == 4
        assert_same(weights(net), states[-1])
        assert not net.training

    def test_a_loss_that_raises_says_where(self, net, line):
        def bad(net, x, y):
            raise ValueError("y must be lower")

        with pytest.raises(ValueError, match="^in epoch 1, batch 1: y must be lower$"):
            quietly(net, line, loss=bad)

    def test_a_step_that_is_not_finite(self, net, line):
        """The square root of zero has a value, and no gradient."""
        net.requires_grad_()

        def bad(net, x, y):
            return (0 * net.weight.sum()).sqrt() + loss(net, x, y)

        with pytest.raises(ValueError, match="NaN or infinity in .weight. in epoch 1.$"):
            quietly(net, line[:1], loss=bad)

    def test_what_does_not_learn_may_be_infinite(self, net, line):
        frozen = nn.ParameterList([*net.parameters(), torch.full((2,), -math.inf)])
        frozen[-1].requires_grad_(False)
        model = nn.ModuleDict({"net": net, "frozen": frozen})
        quietly(model, line, loss=lambda m, x, y: loss(m["net"], x, y), optimizer=sgd(net))
        assert frozen[-1].isinf().all()


def test_data_is_moved_to_the_device_of_the_model(monkeypatch):
    net = nn.Linear(1, 1, device="meta")
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # not known there

    def watched(net, x, y):
        assert x.device == y.device == torch.device("meta")
        raise KeyError("far enough")

    with pytest.raises(KeyError, match="far enough"):
        quietly(net, [(torch.zeros(2, 1), torch.zeros(2))], loss=watched)


def test_an_empty_loader(net):
    with pytest.raises(ValueError, match="`loader` must give at least one .*, got none in epoch 1"):
        quietly(net, [])


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (torch.zeros(2, 1), TypeError, r"got a tensor of shape .2, 1. .batch 2"),
        ({"x": 1}, TypeError, r"got a dictionary .* .batch 2"),
        ((torch.zeros(2, 1),), TypeError, r"got a tuple of 1 .batch 2"),
        ((torch.zeros(2, 1), [0, 1]), TypeError, r"of tensors, got .Tensor, list. .batch 2"),
        ((torch.zeros(2, 1), torch.zeros(3)), ValueError, r"x of shape \(2, 1\) and y of .*\(3,\)"),
        ((torch.zeros(()), torch.zeros(3)), ValueError, r"x of shape \(\) and y"),
    ],
)
def test_batches_that_are_no_pairs(net, line, batch, error, message):
    with pytest.raises(error, match=message):
        quietly(net, [line[0], batch])


def test_pairs_may_be_lists(net, line):
    quietly(net, [list(batch) for batch in line])


@pytest.mark.parametrize(
    ("value", "message"), [(torch.ones(2), r"got shape \(2,\)"), (1.0, "got float")]
)
def test_a_loss_that_is_no_scalar(net, line, value, message):
    with pytest.raises(TypeError, match=f"`loss` must return a scalar tensor, {message}"):
        quietly(net, line, loss=lambda *_: value)


class NeedsLoss(torch.optim.SGD):
    def step(self, loss, *_, closure=None, **__):
        super().step(closure)


class TakesAnything(torch.optim.SGD):
    def step(self, *args, **kwargs):
        super().step(*args, **kwargs)


@pytest.mark.parametrize(
    "kind",
    [
        TakesAnything,
        *(
            kind
            for kind in vars(torch.optim).values()
            if isinstance(kind, type)
            and issubclass(kind, torch.optim.Optimizer)
            and kind not in (torch.optim.Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam)
        ),
    ],
)
def test_every_other_optimizer_trains(line, kind):
    net = nn.Linear(1, 1) if kind.__name__ != "Muon" else nn.Linear(1, 1, bias=False)
    before = weights(net)
    fit(net, line, loss=loss, optimizer=kind(net.parameters(), lr=0.1), epochs=1, progress=False)
    assert any(not torch.equal(a, b) for a, b in zip(before, weights(net), strict=True))


def test_bad_arguments(net, line):
    optimizer = sgd(net)
    stranger = sgd(nn.Linear(1, 1))
    step = lr_scheduler.StepLR(stranger, 1)
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer)
    lbfgs = torch.optim.LBFGS(net.parameters())
    lr_scheduler.StepLR(lbfgs, 1)  # replaces its step
    cases = [
        ({"epochs": 0}, ValueError, "`epochs` must be at least 1, got 0"),
        ({"epochs": 1.5}, TypeError, "`epochs` must be an int"),
        ({"loader": iter(line)}, TypeError, "`loader` must be iterable once per epoch"),
        ({"loader": (batch for batch in line)}, TypeError, "got generator, which"),
        ({"model": lambda x: x}, TypeError, r"`model` must be a torch.nn.Module, got function"),
        ({"model": nn.ReLU()}, ValueError, "`optimizer` must hold parameters of `model`"),
        ({"optimizer": stranger}, ValueError, "`optimizer` must hold parameters of `model`"),
        ({"optimizer": net}, TypeError, "`optimizer` must be a torch optimizer, got Linear"),
        ({"scheduler": optimizer}, TypeError, "`scheduler` must be a torch LRScheduler, got SGD"),
        ({"scheduler": step}, ValueError, "`scheduler` must belong to `optimizer`"),
        ({"scheduler": plateau}, ValueError, "whose step needs metrics. Use another"),
        ({"optimizer": lbfgs}, ValueError, "`optimizer` .* got LBFGS, whose step needs closure"),
        ({"optimizer": NeedsLoss([net.weight])}, ValueError, "NeedsLoss, whose step needs loss"),
        ({"schedule": "step"}, ValueError, "`schedule` must be one of 'epoch', 'batch', got"),
        ({"schedule": "batch"}, ValueError, "`scheduler` must be given .*, got None"),
        ({"loss": "ce"}, TypeError, r"`loss` must be a function of \(model, x, y\), got str"),
        ({"evaluate": {}}, TypeError, "`evaluate` must be a function of a model, got dict"),
        ({"ema": "0.9"}, TypeError, "`ema` must be a number"),
        ({"precision": "half"}, ValueError, "`precision` must be one of 'auto', 'float32', 'b"),
        ({"progress": 1}, TypeError, "`progress` must be True or False"),
    ]
    before = weights(net)
    for given, error, message in cases:
        options = {"model": net, "loader": line, "loss": loss, "optimizer": optimizer, "epochs": 2}
        with pytest.raises(error, match=message):
            fit(**{**options, **given})
    assert_same(weights(net), before)


def test_a_loader_with_indices_alone(net, line):
    class Indexed:
        def __getitem__(self, i):
            return line[i]

    optimizer = sgd(net)
    history = fit(net, Indexed(), loss=loss, optimizer=optimizer, epochs=1, progress=False)
    assert len(history.epochs) == 1
