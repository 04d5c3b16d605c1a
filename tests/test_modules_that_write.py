"""Modules and functions that write to what they are given: the caller's tensors stay as they were.

A module that normalizes in place must give bit for bit what it gives out of place.
"""

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from advkit import StraightThrough, TorchClassifier, attacks, detectors, eval
from advkit.attacks import Evasion
from advkit.defenses import (
    MRR,
    AdversarialTraining,
    Distillation,
    DistillationLoss,
    LabelSmoothing,
    TrainingLoss,
    fit,
)
from advkit.defenses.mrr import LatentDefenders
from tests.defenses.losses import LOSSES, gradients
from tests.toys import convnet, images

FGSM = attacks.FGSM(eps=0.1, stop="never")


class OutOfPlace(nn.Module):
    """`net` behind a normalization."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net((x - 0.5) * 2)


class InPlace(OutOfPlace):
    """The same, by writing to its input."""

    def forward(self, x):
        return self.net(x.sub_(0.5).mul_(2))


def in_place(x):
    return x.sub_(0.5).mul_(2)


def out_of_place(x):
    return (x - 0.5) * 2


@dataclass(frozen=True)
class Ruinous:
    """An attack that writes over the inputs and labels that it is given."""

    seed: int = 0
    norm: str = "linf"

    def __call__(self, model, x, y=None, *, target=None):
        return self.run(model, x, y, target=target).x_adv

    def run(self, model, x, y=None, *, target=None):
        result = FGSM.run(model, x, y, target=target)
        x.fill_(0.5)
        y.fill_(0)
        return result


@pytest.fixture
def x():
    return images(8)


@pytest.fixture
def y():
    return torch.arange(8) % 3


def assert_same(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=0, atol=0, equal_nan=True)


def cross_entropy(module, x, y):
    return nn.functional.cross_entropy(module(x), y)


def ruinous(module, x, y):
    """A loss that writes over its inputs and labels."""
    value = cross_entropy(module, x, y.clone())
    x.fill_(0.5)
    y.fill_(0)
    return value


def trained_by(loss, kind, x, y):
    """Value and gradients of a loss, with a module of `kind` in training mode."""
    torch.manual_seed(0)
    module = kind(convnet(dtype=x.dtype)).train()
    value = copy.deepcopy(loss)(module, x, y)
    return [value.detach(), *gradients(module, value)]


ALONE = [loss for loss, _ in LOSSES]
SUMS = [sum_ for loss in ALONE for sum_ in (loss + LabelSmoothing(), LabelSmoothing() + loss)]
WITH_FUNCTIONS = [ruinous + LabelSmoothing(), LabelSmoothing() + ruinous, 2 * (ruinous + ALONE[0])]


class TestTrainingLosses:
    @pytest.mark.parametrize("loss", [*ALONE, *SUMS], ids=repr)
    def test_a_module_that_writes_gives_what_one_that_does_not_gives(self, loss, x, y):
        before = x.clone(), y.clone()
        wanted = trained_by(loss, OutOfPlace, x, y)
        assert_same(trained_by(loss, InPlace, x, y), wanted)
        assert_same((x, y), before)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_in_any_dtype(self, dtype, x, y):
        loss, x = LabelSmoothing() + ALONE[0], x.to(dtype)
        assert_same(trained_by(loss, InPlace, x, y), trained_by(loss, OutOfPlace, x, y))

    @pytest.mark.parametrize("loss", WITH_FUNCTIONS, ids=["first", "last", "twice"])
    def test_functions_in_sums_may_write_to_inputs_and_labels(self, loss, x, y):
        before = x.clone(), y.clone()
        terms = [(w, cross_entropy if f is ruinous else f) for w, f in loss.terms]
        wanted = trained_by(type(loss)(terms=tuple(terms)), OutOfPlace, x, y)
        assert_same(trained_by(loss, OutOfPlace, x, y), wanted)
        assert_same((x, y), before)

    def test_a_teacher_and_a_student_that_write(self, x, y):
        losses = [
            DistillationLoss(teacher=kind(convnet().requires_grad_(False)), temperature=2.0)
            for kind in (InPlace, OutOfPlace)
        ]
        found, wanted = (trained_by(loss, InPlace, x, y) for loss in losses)
        assert_same(found, wanted)
        assert_same(found, trained_by(losses[1], OutOfPlace, x, y))

    def test_an_attack_that_writes(self, x, y):
        before = x.clone(), y.clone()
        loss = AdversarialTraining(attack=Ruinous(), clean_weight=0.5)
        like = AdversarialTraining(attack=FGSM, clean_weight=0.5)
        assert_same(trained_by(loss, OutOfPlace, x, y), trained_by(like, OutOfPlace, x, y))
        assert_same((x, y), before)

    def test_a_pass_copies_the_batch_once(self, x, y, monkeypatch):
        copies, clone = [], torch.Tensor.clone
        monkeypatch.setattr(
            torch.Tensor, "clone", lambda t, **kw: copies.append(t.shape) or clone(t, **kw)
        )
        (LabelSmoothing() + LabelSmoothing())(convnet(), x, y)
        assert copies == [x.shape, x.shape]


class TestFit:
    @pytest.mark.parametrize("loss", [cross_entropy, ruinous, LabelSmoothing() + ALONE[0]])
    def test_a_list_of_batches_is_the_same_in_every_epoch(self, loss, x, y):
        found = {}
        for kind in (InPlace, OutOfPlace):
            torch.manual_seed(0)
            batches = [(x[:4].clone(), y[:4].clone()), (x[4:].clone(), y[4:].clone())]
            module = kind(convnet())
            optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
            plain = cross_entropy if loss is ruinous and kind is OutOfPlace else loss
            history = fit(
                module, batches, loss=plain, optimizer=optimizer, epochs=3, progress=False
            )
            losses = [epoch.loss for epoch in history.epochs]
            found[kind] = losses, list(module.state_dict().values())
            assert_same(batches, [(x[:4], y[:4]), (x[4:], y[4:])])
        assert_same(found[InPlace], found[OutOfPlace])

    def test_distillation(self, x):
        found, before = [], x.clone()
        for kind in (InPlace, OutOfPlace):
            student = Distillation(temperature=2.0, epochs=3, batch_size=4).fit(
                kind(convnet()), kind(convnet(3).train()), [x]
            )
            found.append(list(student.state_dict().values()))
            assert_same(x, before)
        assert_same(*found)

    def test_substitute(self, x):
        found, before = [], x.clone()
        for kind in (InPlace, OutOfPlace):
            torch.manual_seed(0)
            net = kind(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)))
            attacks.Substitute(max_queries=16, rounds=1, epochs=2).fit(kind(convnet()), net, x)
            found.append(list(net.state_dict().values()))
            assert_same(x, before)
        assert_same(*found)

    @pytest.mark.parametrize("where", ["module", "preprocessing"])
    def test_mrr(self, where):
        found, x = [], images(120)
        before = x.clone()
        for kind, preprocess in ((InPlace, in_place), (OutOfPlace, out_of_place)):
            torch.manual_seed(0)
            net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
            y = net(out_of_place(x)).argmax(1)
            victim = TorchClassifier(kind(net)) if where == "module" else None
            victim = victim or TorchClassifier(net, preprocess=preprocess)
            settings = LatentDefenders(epochs=1, count=2)
            mrr = MRR(latent=(settings,), inputs=None).fit(victim, x, y)
            found.append(torch.cat([mrr.risk(x), mrr.risk(x[:3])]))
            assert_same(x, before)
        assert_same(*found)


class TestEvaluation:
    def test_evaluate(self, x, y):
        before = x.clone(), y.clone()
        found, wanted = (
            eval.evaluate(kind(convnet()), [(x, y)], attacks=[FGSM, attacks.DeepFool()])
            for kind in (InPlace, OutOfPlace)
        )
        assert found.clean.tolist() == wanted.clean.tolist()
        for one, other in zip(found.outcomes, wanted.outcomes, strict=True):
            assert_same((one.robust, one.distance), (other.robust, other.distance))
        assert_same((x, y), before)

    def test_guard(self, x):
        before = x.clone()
        inputs = torch.cat([x, x + 0])
        found = []
        for kind in (InPlace, OutOfPlace):
            model = TorchClassifier(kind(convnet()))
            guard = detectors.Guard(
                model, detectors.MaxSoftmax().fit(model.logits(inputs).detach()), fpr=0.2
            )
            verdict = guard.calibrate(inputs).inspect(x)
            found.append((verdict.labels, verdict.anomaly_score.tolist()))
        assert_same(found[0][0], found[1][0])
        assert found[0][1] == found[1][1]
        assert_same(x, before)

    @pytest.mark.parametrize("made", [FGSM, Ruinous()], ids=["module", "attack"])
    def test_collect(self, made, x, y):
        before = x.clone(), y.clone()
        kinds = (InPlace, OutOfPlace)
        tables = [
            detectors.collect([kind(convnet())], {"a": made, "b": FGSM}, x, y) for kind in kinds
        ]
        tables.append(detectors.collect([OutOfPlace(convnet())], {"a": FGSM, "b": FGSM}, x, y))
        for table in tables[:2]:
            assert (table.outputs == tables[2].outputs).all()
            assert (table.label == tables[2].label).all()
        assert_same((x, y), before)

    def test_an_attack_that_writes(self, x):
        net = OutOfPlace(convnet())
        y = net(x).argmax(1)
        made, like = eval.evaluate(net, [(x, y)], attacks=[Ruinous(), FGSM]).outcomes
        assert_same((made.robust, made.distance), (like.robust, like.distance))
        shown, wanted = made.examples, like.examples
        assert_same((shown.x, shown.y), (wanted.x, wanted.y))
        found, wanted = (
            eval.transfer_matrix({"a": net, "b": convnet()}, None, attack, x, y)
            for attack in (Ruinous(), FGSM)
        )
        assert str(found.error_rate) == str(wanted.error_rate)
        before = x.clone(), y.clone()
        transfer = attacks.Transfer(attack=Ruinous(), surrogate=net).run(net, x, y)
        assert_same(transfer.distance, (transfer.x_adv - x).flatten(1).abs().amax(1))
        assert_same((x, y), before)


class Far:
    """A detector of inputs that works in place."""

    def __init__(self, prepare):
        self.prepare = prepare

    reads_inputs = True

    def anomaly_score(self, x, labels=None):
        return self.prepare(x).flatten(1).square().mean(1).clamp(0, 1)

    def margin_over_threshold(self, x, labels, threshold):
        return self.anomaly_score(x)[:, None] - threshold

    def features(self, x):
        return self.prepare(x).flatten(1)


class TestParts:
    """Functions that a user gives, which gradients flow through."""

    @pytest.mark.parametrize("attack", [FGSM, attacks.PGD(eps=0.1, steps=3)], ids=repr)
    def test_the_backward_pass_of_a_step(self, attack, x, y):
        found, wanted = (
            attack.run(StraightThrough(convnet(), torch.round, backward), x, y)
            for backward in (in_place, out_of_place)
        )
        assert_same(found.x_adv, wanted.x_adv)

    def test_a_detector_of_inputs(self, x, y):
        natural = images(40, seed=1)
        made = [
            attacks.SelectivePGD(eps=0.1, steps=3),
            attacks.FeatureMatching(eps=0.1, start_images=natural, steps=3),
        ]
        for attack in made:
            found, wanted = (
                attack.run(detectors.Guard(convnet(), Far(prepare), threshold=0.9), x, y)
                for prepare in (in_place, out_of_place)
            )
            assert_same(found.x_adv, wanted.x_adv)

    @pytest.mark.parametrize("outputs", ["scores", "logits"])
    def test_a_detector_of_outputs(self, outputs, x, y):
        found, wanted = (
            attacks.PGD(
                eps=0.1,
                steps=3,
                loss=Evasion(
                    detector_score=lambda z, prepare=prepare: prepare(z).square().sum(1),
                    threshold=0.5,
                    outputs=outputs,
                ),
            ).run(convnet(), x, y)
            for prepare in (in_place, out_of_place)
        )
        assert_same(found.x_adv, wanted.x_adv)


def test_every_loss_is_tried():
    assert all(isinstance(loss, TrainingLoss) for loss in ALONE)
    assert len(SUMS) == 2 * len(LOSSES)
