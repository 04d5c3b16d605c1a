"""Every kind of file that advkit reads, in small: how to write it, and what reading it gives."""

import random
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advkit import data
from advkit.cli import demo
from advkit.cli.errors import UsageError
from advkit.cli.loading import load_weights
from advkit.defenses import MRR, LatentDefenders, fit
from advkit.defenses.mrr.dictionaries import InputDefender
from advkit.detectors import Guard, MaxSoftmax, OutputForest, OutputTable

save_file = pytest.importorskip("safetensors.torch").save_file

ROWS = np.random.default_rng(0).dirichlet([1, 1, 1], 20)
X = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = (3 * X[:, 0, 0, 0]).long()
EPOCHS = 2


def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = [nn.Flatten(), nn.Linear(16, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)]
        return nn.Sequential(*layers).eval()


def same(one, other):
    """Return whether two nested contents are equal bit for bit."""
    if isinstance(one, torch.Tensor):
        one, other = one.numpy(), other.numpy()
    if isinstance(one, np.ndarray):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def finite(content):
    """Return whether all floats in a nested content are finite."""
    if isinstance(content, torch.Tensor):
        return bool(content.isfinite().all())
    if isinstance(content, np.ndarray):
        return content.dtype.kind != "f" or bool(np.isfinite(content).all())
    if isinstance(content, dict):
        return all(map(finite, content.values()))
    return all(map(finite, content)) if isinstance(content, (list, tuple)) else True


class TrainingCheckpoint:
    """The file of `fit`; what is read is all that a run holds."""

    name = "training checkpoint"
    errors = ValueError

    def __init__(self, scheduler="StepLR", optimizer="Adam"):
        self.scheduler, self.optimizer = scheduler, optimizer

    def run(self, path, epochs, module, calls=None):
        made = {
            "Adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
            "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        }[self.optimizer](module.parameters())
        schedule = {
            "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2),
            "MultiStepLR": lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [1, 3]),
            "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 4),
            None: lambda o: None,
        }[self.scheduler](made)
        generator = torch.Generator().manual_seed(3)
        before = self.held(module, made, schedule, generator)
        loader = Loader(generator)
        try:
            fit(
                module, loader, loss=lambda m, x, y: F.cross_entropy(m(x), y), optimizer=made,
                epochs=epochs, scheduler=schedule, ema=0.9, checkpoint=path, progress=False,
            )  # fmt: skip
        except BaseException:
            if not loader.begun:
                assert same(before, self.held(module, made, schedule, generator)), "changed"
            raise
        return self.held(module, made, schedule, generator)

    def held(self, module, optimizer, scheduler, generator):
        _, words, *rest = np.random.get_state()
        parts = {
            "model": module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler and scheduler.state_dict(),
            "random": [torch.get_rng_state(), words, rest, random.getstate()],
            "generator": generator.get_state(),
        }
        buffer = {key: _copied(value) for key, value in parts.items()}
        return buffer

    def write(self, path):
        torch.manual_seed(0), np.random.seed(0), random.seed(0)
        self.run(path, EPOCHS, net())

    def read(self, path):
        return self.run(path, EPOCHS, net(1))

    def use(self, path):
        """Go on for an epoch with what was read."""
        content = path.read_bytes()
        found = self.run(path, EPOCHS + 1, net(1))
        path.write_bytes(content)
        return found["model"]


class Loader:
    """Two batches in an order of its own generator."""

    def __init__(self, generator):
        self.generator, self.begun = generator, False

    def __len__(self):
        return 2

    def __iter__(self):
        self.begun = True
        order = torch.randperm(20, generator=self.generator)
        return iter([(X[rows], Y[rows]) for rows in order.split(10)])


def _copied(value):
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value.clone() if isinstance(value, torch.Tensor) else value.copy()
    if isinstance(value, dict):
        return {key: _copied(part) for key, part in value.items()}
    return [*map(_copied, value)] if isinstance(value, (list, tuple)) else value


class MRRFile:
    """A fitted detector; what is read is how it judges inputs."""

    name = "MRR file"
    errors = ValueError
    latent = LatentDefenders(count=2, epochs=1, batch_size=20, density="gaussian")
    inputs = InputDefender(patch_size=2, atoms=3, sparsity=2, iterations=2)

    def write(self, path):
        self.detector().fit(net(), X, Y).save(path)

    def detector(self):
        return MRR(self.latent, self.inputs, fpr=0.2, calibration_fraction=0.4)

    def read(self, path):
        victim = net()
        before = _copied(victim.state_dict())
        try:
            found = MRR.load(path, victim)
        finally:
            assert same(before, victim.state_dict())
        return [found.scores(X), found.risk(X), found.threshold]

    use = read


class MRRCheckpoint(MRRFile):
    """The latent defenders of a fit that goes on; what is read is how the fit ends."""

    name = "MRR checkpoint"
    inputs = None

    def write(self, path):
        self.detector().fit(net(), X, Y, checkpoint=path)

    def read(self, path):
        victim = net()
        before = _copied(victim.state_dict())
        detector = self.detector()
        try:
            found = detector.fit(victim, X, Y, checkpoint=path)
        finally:
            assert same(before, victim.state_dict())
        return [found.scores(X), found.risk(X), found.threshold]

    use = read


class Forest:
    """A forest of outputs; what is read is what it answers."""

    name = "OutputForest file"
    errors = ValueError

    def write(self, path):
        OutputForest(n_estimators=3, random_state=0).fit(ROWS, ROWS[:, 0] > 0.4).save(path)

    def read(self, path):
        found = OutputForest.load(path)
        assert len(found.predict(ROWS)) == len(ROWS)
        return [found.predict_proba(ROWS), found.classes_]

    use = read


class GuardFile:
    """A guard and its forest; what is read is how it judges inputs."""

    name = "Guard file"
    errors = (ValueError, RuntimeError)  # a guard raises the latter if its detector cannot score

    def detector(self):
        return OutputForest(n_estimators=3, random_state=0).fit(ROWS, ROWS[:, 0] > 0.4)

    def write(self, path):
        Guard(net(), self.detector(), fpr=0.2).calibrate(X).save(path)

    def read(self, path):
        victim = net()
        before = _copied(victim.state_dict())
        try:
            found = Guard.load(path, victim)
        finally:
            assert same(before, victim.state_dict())
        verdict = found.inspect(X)
        settings = [found.threshold, found.fpr, found.on_alarm, found.outputs]
        return [verdict.anomaly_score, verdict.alarm, verdict.labels, settings]

    use = read


class ConfidenceGuardFile(GuardFile):
    """A guard whose detector is its confidence."""

    name = "Guard file of a confidence"

    def detector(self):
        return MaxSoftmax("scores", fpr=0.1).fit(ROWS)


class Table:
    """A table of outputs; what is read are its columns."""

    name = "OutputTable file"
    errors = ValueError

    def write(self, path):
        n = len(ROWS)
        OutputTable(
            outputs=ROWS, sample=np.arange(n), model=np.repeat("net", n),
            attack=np.repeat(["clean", "FGSM"], n // 2), label=np.zeros(n, int),
            predicted=np.zeros(n, int), success=np.zeros(n, bool), distance=np.ones(n),
            norm=np.repeat("linf", n),
        ).save(path)  # fmt: skip

    def read(self, path):
        found = OutputTable.load(path)
        return vars(found)

    use = read


class DataArchive:
    """Images and labels."""

    name = "data archive"
    errors = ValueError

    def write(self, path):
        images = (255 * X[:, 0]).numpy().astype(np.uint8)
        np.savez_compressed(path, images=images, labels=Y.numpy())

    def read(self, path):
        found = data.load_npz(path)
        return [found.x, found.y]

    use = read


class Weights:
    """A state dict for `--weights`, as torch writes it."""

    name = "--weights file of torch"
    errors = UsageError
    suffix = ".pt"

    def write(self, path):
        torch.save(net().state_dict(), path)

    def read(self, path):
        module = net(1)
        before = _copied(module.state_dict())
        try:
            load_weights(module, path)
        except BaseException:
            assert same(before, module.state_dict())
            raise
        return dict(module.state_dict())

    use = read


class Safetensors(Weights):
    """A state dict for `--weights` with its digest next to it."""

    name = "--weights file .safetensors with a digest"
    suffix = ".safetensors"

    def write(self, path):
        import hashlib

        save_file(dict(net().state_dict()), path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        Path(f"{path}.sha256").write_text(f"{digest}  {path.name}\n")


class DemoCache:
    """The cached net of the default job; what is read is the net, trained again or not."""

    name = "cached net"
    errors = ()
    suffix = ".folder"
    trained = 0

    def train(self, module, *, progress):
        assert same(self.start, module.state_dict()), "it is trained from other weights"
        self.trained += 1
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(0.5)

    def write(self, path):
        self.start = demo.DigitsNet().state_dict()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.start = demo.DigitsNet().state_dict()
        demo.digits_net(progress=False)

    def read(self, path):
        return OrderedDict(demo.digits_net(progress=False).state_dict())


KINDS = [
    TrainingCheckpoint(), MRRFile(), MRRCheckpoint(), Forest(), GuardFile(), ConfidenceGuardFile(),
    Table(), DataArchive(), Weights(), Safetensors(),
]  # fmt: skip
