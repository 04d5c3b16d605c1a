"""Threads at a switch interval of a microsecond: they get what one thread gets."""

import sys
import threading
import warnings
from functools import partial

import pytest
import torch
from sklearn.tree import DecisionTreeClassifier
from torch import nn

from advkit import QueryCounter, StraightThrough, TorchClassifier, attacks, defenses, detectors
from advkit.core import checks
from advkit.core.results import InconclusiveWarning
from advkit.models import Ensemble, SklearnClassifier, state
from tests.toys import convnet, images

from .threads import in_threads, switching

X = torch.linspace(0, 1, 48).view(8, 6)
Y = torch.arange(8) % 3
ROUNDS = 6


@pytest.fixture(autouse=True)
def switch_often():
    with switching():
        yield
    assert not state._in_use


def net():
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    layers[1].running_mean += 0.3
    return layers


ATTACKS = [
    attacks.FGSM(eps=0.2),
    attacks.PGD(eps=0.2, steps=5, random_start=True),
    attacks.DeepFool(),
    attacks.Square(eps=0.2, max_queries=20),
]


@pytest.mark.filterwarnings("ignore::advkit.core.results.InconclusiveWarning")
@pytest.mark.parametrize("training", [False, True])
def test_attacks_on_a_shared_module(training, tally):
    t = tally("threads that attack one module get what a single thread gets, and leave no trace")
    shared = net().train(training)
    before = {name: value.clone() for name, value in shared.state_dict().items()}
    expected = [attack.run(shared, X, Y).x_adv for attack in ATTACKS]
    found = [[] for _ in ATTACKS]

    def attacking(i):
        for _ in range(ROUNDS):
            found[i].append(ATTACKS[i].run(shared, X, Y).x_adv)

    in_threads([lambda i=i: attacking(i) for i in range(len(ATTACKS))])
    for attack, wanted, all_found in zip(ATTACKS, expected, found, strict=True):
        for i, x_adv in enumerate(all_found):
            with t.trial(f"{attack}, training {training}, run {i}"):
                assert torch.equal(x_adv, wanted)
    with t.trial(f"state, training {training}"):
        assert all(child.training == training for child in shared.modules())
        assert all(p.requires_grad for p in shared.parameters())
        assert all(torch.equal(value, before[k]) for k, value in shared.state_dict().items())


def test_no_thread_meets_a_module_without_buffers(tally):
    t = tally("no thread ever meets a module without one of its buffers")
    shared = net().eval()
    model, missing, stop = TorchClassifier(shared), [], threading.Event()

    def watch():
        while not stop.is_set():
            if len(shared[1]._buffers) != 3:
                missing.append(len(shared[1]._buffers))

    def predict():
        try:
            for _ in range(100):
                model.predict(X)
        finally:
            stop.set()

    in_threads([watch, predict])
    with t.trial("100 calls"):
        assert not missing


def models():
    bare = net().eval()
    yield "TorchClassifier", TorchClassifier(bare, num_classes=3)
    yield "with preprocess", TorchClassifier(bare, preprocess=nn.BatchNorm1d(6))
    yield "Ensemble", Ensemble([TorchClassifier(bare), TorchClassifier(net().train())])
    yield "StraightThrough", StraightThrough(bare, lambda x: (8 * x).round() / 8)
    yield "QueryCounter", QueryCounter(bare)


@pytest.mark.parametrize(("name", "model"), list(models()))
def test_predictions_of_a_shared_classifier(name, model, tally):
    t = tally("threads that share a classifier get what a single thread gets")
    expected = model.scores(X)

    def asking(trial):
        for _ in range(10):
            with t.trial(trial):
                assert torch.equal(model.scores(X), expected)

    in_threads([lambda i=i: asking(f"{name}, thread {i}") for i in range(4)])


@pytest.mark.parametrize(
    "detector",
    [
        detectors.MaxSoftmax(),
        detectors.OutputEntropy(),
        detectors.Mahalanobis(),
        detectors.KernelDensity(),
    ],
)
def test_scores_of_a_shared_detector(detector, tally):
    t = tally("threads that share a fitted detector get what a single thread gets")
    outputs = torch.randn(60, 3).numpy()
    if hasattr(detector, "fit"):
        detector.fit(outputs, torch.arange(60).remainder(3).numpy())
    expected = detector.anomaly_score(outputs)

    def asking(trial):
        for _ in range(10):
            with t.trial(trial):
                assert (detector.anomaly_score(outputs) == expected).all()

    in_threads([lambda i=i: asking(f"{detector}, thread {i}") for i in range(4)])


def guarded():
    """Give input defenses in front of one net, and a detector of inputs, as functions of images."""
    bare = convnet()
    yield "FeatureSqueezing", defenses.FeatureSqueezing(bare, bits=3, median=3).predict
    yield "JpegCompression", defenses.JpegCompression(bare, quality=50).predict
    yield "InputValidator", defenses.InputValidator(bare, grid=255, contrast=0.9).predict
    yield "RandomizedSmoothing", defenses.RandomizedSmoothing(bare, 0.1, n0=12, n=16).predict
    layer = defenses.LatentDefenders(layer="head", count=1, epochs=1)
    clean = images(60)
    mrr = defenses.MRR([layer], joint_threshold=False).fit(bare, clean, torch.arange(60) % 3)
    yield "MRR", lambda x: mrr.risk(x, torch.zeros(len(x), dtype=torch.int64))


@pytest.mark.filterwarnings("ignore:.*inputs of class")
def test_answers_of_a_shared_defense(tally):
    t = tally("threads that share a defense get what a single thread gets")
    x = images(8, seed=1)
    for name, ask in guarded():
        expected = ask(x)

        def asking(i, name=name, ask=ask, expected=expected):
            for _ in range(ROUNDS):
                with t.trial(f"{name}, thread {i}"):
                    assert torch.equal(ask(x), expected)

        in_threads([partial(asking, i) for i in range(4)])


@pytest.fixture
def callers(monkeypatch):
    """Names of the modules that change warning filters, which all threads share."""
    found = []

    def watched(change):
        def call(*args, **options):
            found.append(sys._getframe(1).f_globals["__name__"])
            return change(*args, **options)

        return call

    for name in ("catch_warnings", "simplefilter", "filterwarnings", "resetwarnings"):
        monkeypatch.setattr(warnings, name, watched(getattr(warnings, name)))
    return found


def test_filters_are_left_alone(callers, tally):
    t = tally("advkit never changes the warning filters of the process")
    known = DecisionTreeClassifier(random_state=0).fit(X.numpy(), Y.numpy())
    known.feature_names_in_ = [str(i) for i in range(6)]
    patches = defenses.InputDefender(
        patch_size=4, atoms=4, sparsity=1, iterations=2, patches_per_image=2
    )
    loss = defenses.AdversarialTraining(attack=attacks.FGSM(eps=0.1))
    calls = {
        "an estimator": lambda: SklearnClassifier(known).predict(X),
        "a training loss": lambda: loss(net(), X, Y),
        "an attack": lambda: attacks.FGSM(eps=0.1).run(net(), X, Y),
        "dictionaries": lambda: patches.fit(images(24), torch.arange(24) % 3, bounds=(0, 1)),
    }
    for name, call in calls.items():
        callers.clear()
        call()
        with t.trial(name):
            assert not [caller for caller in callers if caller.startswith("advkit")]


def test_a_warning_is_muted_in_its_thread_alone(tally):
    t = tally("a training loss mutes warnings in its own thread alone")
    inside, done = threading.Event(), threading.Event()

    def muting():
        with checks.muted(InconclusiveWarning):
            checks.warn("not shown", InconclusiveWarning)
            inside.set()
            done.wait()

    thread = threading.Thread(target=muting)
    thread.start()
    inside.wait()
    with t.trial("another thread"), pytest.warns(InconclusiveWarning, match="shown"):
        checks.warn("shown", InconclusiveWarning)
    done.set()
    thread.join()
