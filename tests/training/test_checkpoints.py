"""A training that is killed and goes on ends as one that was not."""

import random
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from advkit.training import checkpoints
from advkit.training.fit import fit

EPOCHS, BATCHES = 4, 3


class Net(nn.Module):
    """Batch norm, dropout, and buffers that its state_dict leaves out."""

    def __init__(self, hidden=8):
        super().__init__()
        self.first, self.norm = nn.Linear(4, hidden), nn.BatchNorm1d(hidden)
        self.last = nn.Linear(hidden, 3)
        self.register_buffer("noise", torch.zeros(()), persistent=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            self.calls += 1
            self.noise.mul_(0.9).add_(0.1 * torch.rand(()))
        x = torch.relu(self.norm(self.first(x + self.noise)))
        return self.last(F.dropout(x, 0.5, self.training))


class Killed(BaseException):
    """What nobody catches."""


class Loss:
    """Cross-entropy of noisy inputs; the end in an epoch and a batch, from 1, if so told."""

    def __init__(self, killed=None, end=None):
        self.calls, self.killed, self.end = 0, killed, end

    def __call__(self, net, x, y):
        self.calls += 1
        noise = np.random.rand() + np.random.randn() + random.gauss(0, 1)
        value = F.cross_entropy(net(x + 0.1 * noise), y)
        if (
            self.killed is not None
            and self.calls == BATCHES * (self.killed[0] - 1) + self.killed[1]
        ):
            self.end()
        return value


def die():
    raise Killed


def vanish():
    """As the machine's end would have it: nothing is said and nothing tidied up."""
    signal.raise_signal(signal.SIGKILL)


def own_generator(data):
    generator = torch.Generator().manual_seed(7)
    return DataLoader(data, 4, shuffle=True, generator=generator)


def sampler_generator(data):
    """The loader has one generator and its sampler another."""
    sampler = RandomSampler(data, generator=torch.Generator().manual_seed(7))
    return DataLoader(data, 4, sampler=sampler, generator=torch.Generator().manual_seed(8))


def inner_generator(data):
    sampler = RandomSampler(data, generator=torch.Generator().manual_seed(7))
    return DataLoader(data, batch_sampler=BatchSampler(sampler, 4, drop_last=False))


class OneOwn:
    """A loader that nobody else wrote."""

    def __init__(self, data):
        self.data, self.generator = data, torch.Generator().manual_seed(7)

    def __iter__(self):
        order = torch.randperm(len(self.data), generator=self.generator)
        return iter([self.data[part] for part in order.split(4)])


LOADERS = {
    "shuffled": lambda data: DataLoader(data, 4, shuffle=True),
    "own generator": own_generator,
    "generator of the sampler": sampler_generator,
    "generator inside": inner_generator,
    "one's own": OneOwn,
}


class Lookahead(torch.optim.SGD):
    """An optimizer that torch does not know, which keeps slow weights from its third step on."""

    def step(self, closure=None):
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            kept = self.state[p]
            kept["steps"] = kept.get("steps", 0) + 1
            if kept["steps"] >= 3:
                slow = kept.setdefault("slow", p.detach().clone())
                with torch.no_grad():
                    p.copy_(slow.lerp_(p, 0.5))


OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, 0.1),
    "momentum": lambda parameters: torch.optim.SGD(parameters, 0.1, momentum=0.9),
    "adam": lambda parameters: torch.optim.Adam(parameters, 0.01),
    "adamw": lambda parameters: torch.optim.AdamW(parameters, 0.01, amsgrad=True),
    "lr as a tensor": lambda parameters: torch.optim.Adam(parameters, torch.tensor(0.01)),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
    "one's own": lambda parameters: Lookahead(parameters, 0.1),
    **{
        name: getattr(torch.optim, name)
        for name in (
            "ASGD",
            "Adadelta",
            "Adafactor",
            "Adagrad",
            "Adamax",
            "NAdam",
            "RAdam",
            "Rprop",
        )
    },
}


def sequence(optimizer):
    parts = [
        lr_scheduler.LinearLR(optimizer, total_iters=2),
        lr_scheduler.ExponentialLR(optimizer, 0.5),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[2])


class Halving:
    """A function of the epoch that has a state, which the scheduler saves."""

    def __init__(self):
        self.base = 0.5

    def __call__(self, epoch):
        return self.base**epoch


class Plateau:
    """A function of the epoch whose state changes its type and its keys."""

    def __init__(self):
        self.best, self.warm = None, False

    def __call__(self, epoch):
        if epoch == 2:
            self.best, self.warm, self.since = -1.0, True, epoch
        return 0.5 if self.warm else 1.0


class Warmup(lr_scheduler.LRScheduler):
    """A scheduler that torch does not know, with such a state."""

    def __init__(self, optimizer):
        self.plateau, self.phase = Plateau(), "warm-up"
        super().__init__(optimizer)

    def get_lr(self):
        factor = self.plateau(self.last_epoch)
        self.phase = "training" if self.plateau.warm else "warm-up"
        return [factor * base for base in self.base_lrs]

    def state_dict(self):
        return {**vars(self.plateau), "phase": self.phase, "last_epoch": self.last_epoch}

    def load_state_dict(self, state):
        self.phase, self.last_epoch = state.pop("phase"), state.pop("last_epoch")
        vars(self.plateau).update(state)


def one_cycle(optimizer):
    return lr_scheduler.OneCycleLR(optimizer, 0.5, total_steps=EPOCHS * BATCHES)


SCHEDULERS = {
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [1, 3]),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.7**epoch),
    "LambdaLR of an object": lambda o: lr_scheduler.LambdaLR(o, Halving()),
    "LambdaLR of an object that changes": lambda o: lr_scheduler.LambdaLR(o, Plateau()),
    "one's own": Warmup,
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, cycle_momentum=False),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, total_iters=2),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.05, anneal_epochs=2),
    "SequentialLR": sequence,
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, EPOCHS),
}


def train(
    path=None, *, loader="shuffled", optimizer="momentum", scheduler=None, killed=None, end=die,
    epochs=EPOCHS, seed=0, **options,
):  # fmt: skip
    """A net that is made and trained as a script would do it, and the history."""
    torch.manual_seed(seed), np.random.seed(seed), random.seed(seed)
    x = torch.rand(10, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(x, (3 * x[:, 0]).long())
    net = Net()
    made = OPTIMIZERS[optimizer](net.parameters())
    options.setdefault("loss", Loss(killed, end))
    history = fit(
        net, LOADERS[loader](data), optimizer=made, epochs=epochs, checkpoint=path, progress=False,
        scheduler=None if scheduler is None else scheduler(made), **options,
    )  # fmt: skip
    return net, history


def state(net):
    return {**net.state_dict(), **dict(net.named_buffers())}


def assert_same(found, wanted):
    """Weights and buffers bit for bit, and the history but for its seconds."""
    (net, history), (other, known) = found, wanted
    for name, value in state(other).items():
        torch.testing.assert_close(state(net)[name], value, rtol=0, atol=0, msg=name)
    assert len(history.epochs) == len(known.epochs)
    for epoch, same in zip(history.epochs, known.epochs, strict=True):
        assert replace(epoch, seconds=0) == replace(same, seconds=0)


def killed_and_resumed(path, killed, **options):
    """The same, killed within an epoch and called again with everything made anew."""
    with pytest.raises(Killed):
        train(path, killed=killed, **options)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    # What a new process would begin with must not matter, but for the script's own seeds.
    return train(path, **options)


def names(net):
    """An evaluation that tells one epoch from the other."""
    return {"sum": float(net.first.weight.sum()), "noise": float(net.noise)}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "runs" / "net.pt"


class TestExactly:
    @pytest.mark.parametrize("loader", LOADERS)
    @pytest.mark.parametrize("killed", [(1, 2), (2, 1), (4, 3)])
    def test_wherever_it_was_killed(self, path, loader, killed):
        assert_same(killed_and_resumed(path, killed, loader=loader), train(loader=loader))

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    @pytest.mark.parametrize("ema", [None, 0.8])
    def test_with_every_optimizer(self, path, optimizer, ema):
        options = {"optimizer": optimizer, "ema": ema, "evaluate": names}
        assert_same(killed_and_resumed(path, (3, 2), **options), train(**options))

    @pytest.mark.parametrize("scheduler", SCHEDULERS)
    def test_with_schedules_of_epochs(self, path, scheduler):
        options = {"scheduler": SCHEDULERS[scheduler]}
        known = train(**options)
        assert len({epoch.lr for epoch in known[1].epochs}) > 1
        assert_same(killed_and_resumed(path, (4, 1), **options), known)

    @pytest.mark.parametrize("optimizer", ["momentum", "adam"])
    def test_with_a_schedule_of_batches(self, path, optimizer):
        options = {"scheduler": one_cycle, "schedule": "batch", "optimizer": optimizer, "ema": 0.5}
        assert_same(killed_and_resumed(path, (3, 3), **options), train(**options))

    def test_killed_again_and_again(self, path):
        for killed in [(1, 1), (2, 3), (1, 2), (2, 1)]:  # of what each run has still to do
            with pytest.raises(Killed):
                train(path, ema=0.9, killed=killed)
        assert_same(train(path, ema=0.9), train(ema=0.9))

    def test_in_half_precision(self, path):
        known = train(precision="bfloat16")
        assert_same(killed_and_resumed(path, (3, 2), precision="bfloat16"), known)

    def test_whatever_the_seeds_are_when_it_goes_on(self, path):
        with pytest.raises(Killed):
            train(path, killed=(1, 2))
        assert_same(train(path, seed=5), train())

    def test_a_process_that_is_killed(self, path):
        """With the signal that no process can handle."""
        options = {"loader": "own generator", "ema": 0.9}
        script = (
            "import torch; torch.set_num_threads(1); "
            "from tests.training.test_checkpoints import *; "
            f"train({str(path)!r}, killed=(3, 2), end=vanish, **{options})"
        )
        root = Path(__file__).parents[2]
        done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        loss = Loss()
        assert_same(train(path, loss=loss, **options), train(**options))
        assert loss.calls == 2 * BATCHES


class TestGoingOn:
    @pytest.mark.parametrize("scheduler", [None, SCHEDULERS["StepLR"]])
    @pytest.mark.parametrize("ema", [None, 0.9])
    def test_a_finished_run_takes_more_epochs(self, path, scheduler, ema):
        options = {"scheduler": scheduler, "ema": ema}
        train(path, epochs=2, **options)
        assert_same(train(path, epochs=5, **options), train(epochs=5, **options))

    def test_a_finished_run_is_only_read(self, path):
        known, written = train(path, ema=0.9), path.read_bytes()
        loss = Loss()
        assert_same(train(path, ema=0.9, loss=loss), known)
        assert loss.calls == 0
        assert path.read_bytes() == written

    def test_the_same_objects_go_on(self, path):
        """As in a notebook: the model that ended with its average learns on without it."""
        x = torch.rand(10, 4)
        loader = DataLoader(TensorDataset(x, (3 * x[:, 0]).long()), 4, shuffle=True)
        torch.manual_seed(0)
        net, same = Net(), Net()
        same.load_state_dict(net.state_dict())
        random_state = torch.get_rng_state()
        for module, stops, file in [(net, (1, 4), path), (same, (4,), None)]:
            torch.set_rng_state(random_state)
            optimizer = torch.optim.Adam(module.parameters(), 0.01)
            for epochs in stops:
                fit(
                    module, loader, loss=lambda m, x, y: F.cross_entropy(m(x), y), epochs=epochs,
                    optimizer=optimizer, ema=0.9, checkpoint=file, progress=False,
                )  # fmt: skip
        for name, value in state(same).items():
            torch.testing.assert_close(state(net)[name], value, rtol=0, atol=0)

    def test_the_start_is_kept_too(self, path):
        with pytest.raises(Killed):
            train(path, killed=(1, 1))
        assert torch.load(path, weights_only=True)["epochs"] == []


class TestRefusals:
    """Each names the file, and leaves it and the model alone."""

    def refused(self, path, message, **options):
        written, loss = path.read_bytes(), Loss()
        seen = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoints.Run, "set_state", lambda *_: seen.append("changed"))
            with pytest.raises(ValueError, match=message) as found:
                train(path, loss=loss, **options)
        assert str(path) in str(found.value)
        assert path.read_bytes() == written
        assert loss.calls == 0
        assert seen == []

    def test_more_epochs_than_asked(self, path):
        train(path, epochs=3)
        self.refused(path, "`epochs` must be at least 3, .* in checkpoint .*net.pt, got 2",
                     epochs=2)  # fmt: skip

    @pytest.mark.parametrize(
        ("begun", "then", "message"),
        [
            ({}, {"optimizer": "adam"}, "written with optimizer SGD, not Adam. Remove it"),
            ({}, {"optimizer": "sgd"}, "with momentum of the optimizer 0.9, not 0"),
            ({}, {"ema": 0.9}, "with ema None, not 0.9"),
            ({"ema": 0.5}, {"ema": 0.9}, "with ema 0.5, not 0.9"),
            ({}, {"scheduler": one_cycle}, "with scheduler none, not OneCycleLR"),
            (
                {"scheduler": one_cycle},
                {"scheduler": one_cycle, "schedule": "batch"},
                "with schedule 'epoch', not 'batch'",
            ),
            ({}, {"loader": "own generator"}, "with generators in the loader 0, not 1"),
            ({}, {"loader": "fewer"}, "with batches in an epoch 3, not 2"),
        ],
    )
    def test_another_run(self, path, begun, then, message, monkeypatch):
        monkeypatch.setitem(LOADERS, "fewer", lambda data: DataLoader(data, 5, shuffle=True))
        train(path, epochs=1, **begun)
        self.refused(path, message, **then)

    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (
                lambda net: net(hidden=9),
                r"first.weight is torch.float32 \(8, 4\), .*\(9, 4\)",
            ),
            (lambda net: net().double(), "first.weight is torch.float32 .* torch.float64"),
            (
                lambda net: named(net(), "extra"),
                r"extra is absent, not torch.float32 \(2,\)",
            ),
        ],
    )
    def test_another_model(self, path, other, message, monkeypatch):
        train(path, epochs=1)
        monkeypatch.setitem(globals(), "Net", partial(other, Net))
        self.refused(path, f"in its model {message}")

    def test_a_part_of_the_model_that_is_gone(self, path, monkeypatch):
        whole = Net
        monkeypatch.setitem(globals(), "Net", lambda: named(whole(), "extra"))
        train(path, epochs=1)
        monkeypatch.setitem(globals(), "Net", whole)
        self.refused(path, "extra is torch.float32 .*, not absent")

    def test_other_groups_of_the_optimizer(self, path, monkeypatch):
        train(path, epochs=1)
        monkeypatch.setitem(
            OPTIMIZERS,
            "momentum",
            lambda parameters: torch.optim.SGD([{"params": [p]} for p in parameters], 0.1, 0.9),
        )
        self.refused(path, r"tensors in the optimizer's groups \[6\], not \[1, 1, 1, 1, 1, 1\]")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda content: content["optimizer"]["param_groups"][0].update(
                    params=[0, 2, 1, 3, 4, 5]
                ),
                "must number the parameters as this run does",
            ),
            (
                lambda content: content["epochs"][1].update(epoch=1),
                r"epochs\[1\].epoch` must be 2, got 1",
            ),
        ],
    )
    def test_parts_in_another_order(self, path, change, message):
        train(path, epochs=2)
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path)
        self.refused(path, message)

    def test_a_scheduler_of_functions_is_checked(self, path):
        train(path, epochs=1, scheduler=SCHEDULERS["LambdaLR"])
        content = torch.load(path, weights_only=True)
        content["scheduler"]["last_epoch"] = "first"
        torch.save(content, path)
        self.refused(
            path, "scheduler.last_epoch` must be a number", scheduler=SCHEDULERS["LambdaLR"]
        )

    @pytest.mark.parametrize("content", [b"", b"no archive", None, "half"])
    def test_a_damaged_file(self, path, content):
        train(path, epochs=1)
        whole = path.read_bytes()
        path.write_bytes(
            whole[: len(whole) // 2] if content == "half" else content or b"\x80\x02" + whole
        )
        self.refused(
            path, "`checkpoint` must be a checkpoint of fit, got .*net.pt, which is damaged"
        )

    @pytest.mark.parametrize("content", [{"weight": torch.zeros(2)}, torch.zeros(2)])
    def test_a_file_of_something_else(self, path, content):
        path.parent.mkdir()
        torch.save(content, path)
        self.refused(path, "`checkpoint` must be a checkpoint of fit, got .*net.pt")

    def test_a_file_with_code_in_it(self, path, tmp_path):
        class Bomb:
            def __reduce__(self):
                return (open, (str(tmp_path / "exploded"), "w"))

        path.parent.mkdir()
        torch.save(Bomb(), path)
        self.refused(path, "which is damaged")
        assert not (tmp_path / "exploded").exists()

    def test_a_part_of_the_model_that_refuses_its_state(self, path, monkeypatch):
        """Found out only while the state is set; all that was set before is put back."""
        train(path, epochs=1)
        net = Net()
        before = {name: value.clone() for name, value in state(net).items()}
        monkeypatch.setitem(globals(), "Net", lambda: net)
        fresh = torch.optim.SGD.load_state_dict
        calls = []

        def refuses(self, content):
            calls.append(content)
            if len(calls) == 1:
                raise KeyError("odd")
            fresh(self, content)

        monkeypatch.setattr(torch.optim.SGD, "load_state_dict", refuses)
        with pytest.raises(
            ValueError, match="`checkpoint` must belong to this run, got .*net.pt: 'odd'"
        ):
            train(path)
        for name, value in state(net).items():
            assert torch.equal(value, before[name])

    def test_workers_that_live_on(self, path):
        data = TensorDataset(torch.rand(4, 4), torch.arange(4))
        loader = DataLoader(data, num_workers=1, persistent_workers=True)
        net = Net()
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        with pytest.raises(ValueError, match="must have persistent_workers=False with a check"):
            fit(net, loader, loss=Loss(), optimizer=optimizer, epochs=1, checkpoint=path)
        assert not path.exists()


class TestBeforeAnythingIsLearnt:
    def test_a_path_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").touch()
        loss = Loss()
        with pytest.raises(OSError, match="file"):
            train(tmp_path / "file" / "net.pt", loss=loss)
        assert loss.calls == 0

    @pytest.mark.parametrize("kept", [lambda: None, Killed()])
    def test_a_state_that_is_not_plain(self, path, kept):
        """A lambda cannot be written; an object could be, but not be read without running code."""

        def made(optimizer):
            scheduler = lr_scheduler.StepLR(optimizer, 1)
            scheduler.kept = kept
            return scheduler

        loss = Loss()
        with pytest.raises(ValueError, match=r"checkpoint .*net.pt cannot be written: .*dict"):
            train(path, scheduler=made, loss=loss)
        assert loss.calls == 0
        assert not list(path.parent.iterdir())


class TestWhatIsNotFinite:
    """The last good checkpoint is kept, and training can go on from it."""

    def test_a_loss(self, path):
        class Spoilt(Loss):
            def __call__(self, net, x, y):
                value = super().__call__(net, x, y)
                return value * torch.nan if self.calls == 2 * BATCHES + 2 else value

        wanted = "got nan in epoch 3, batch 2. Checkpoint .*net.pt holds the run .* epoch 2"
        with pytest.raises(ValueError, match=wanted):
            train(path, loss=Spoilt())
        assert len(torch.load(path, weights_only=True)["epochs"]) == 2
        assert_same(train(path), train())

    def test_an_error_of_the_loss(self, path):
        def bad(net, x, y):
            raise ValueError("logits are NaN")

        wanted = (
            "^in epoch 1, batch 1: logits are NaN. Checkpoint .*net.pt .* before the first epoch"
        )
        with pytest.raises(ValueError, match=wanted):
            train(path, loss=bad)

    def test_the_last_step_of_an_epoch(self, path):
        class Steep(Loss):
            """Zero under a root, in the last batch of the second epoch."""

            def __call__(self, net, x, y):
                value = super().__call__(net, x, y)
                zero = (0 * net.last.bias.sum()).sqrt()
                return value + zero if self.calls == 2 * BATCHES else value

        wanted = "got NaN or infinity in .last.bias. in epoch 2. Checkpoint .* after epoch 1"
        with pytest.raises(ValueError, match=wanted):
            train(path, loss=Steep())
        assert_same(train(path), train())


def test_a_failure_while_writing_leaves_the_checkpoint_of_before(path, monkeypatch):
    train(path, epochs=1)
    written = path.read_bytes()

    def full(file, content):
        file.open("wb").close()
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="no space"):
            train(path)
    assert path.read_bytes() == written
    assert_same(train(path), train())


def named(net, name):
    """`net` with one more parameter."""
    net.register_parameter(name, nn.Parameter(torch.zeros(2)))
    return net
