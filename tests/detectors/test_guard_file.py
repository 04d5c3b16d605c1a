"""Guards that are saved and loaded: what the file holds, and what has to be passed."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from advkit import Normalize, QueryCounter, SklearnClassifier, TorchClassifier, defenses
from advkit.defenses import MRR, LatentDefenders
from advkit.detectors import (
    Guard,
    Mahalanobis,
    MaxSoftmax,
    OutputEntropy,
    OutputForest,
    guard_file,
)
from advkit.models import REJECTED
from tests.detectors.stub_detectors import Unsure
from tests.toys import convnet, images

X = images(60)
ROWS = convnet()(X).softmax(1).detach().numpy()
LOGITS = convnet()(X).detach().numpy()
UNSURE = ROWS.max(1) < 0.6


def forest(**settings):
    return OutputForest(n_estimators=5, random_state=0, **settings)


FITTED = {
    "forest": lambda: forest().fit(ROWS, UNSURE),
    "forest of words": lambda: forest(clean_label="sure").fit(
        ROWS, np.where(UNSURE, "unsure", "sure")
    ),
    "softmax": lambda: MaxSoftmax("scores", fpr=0.1).fit(ROWS),
    "entropy": lambda: OutputEntropy("scores").fit(ROWS),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "guard.npz"


def same(one, other):
    found, expected = one.inspect(X), other.inspect(X)
    np.testing.assert_array_equal(found.anomaly_score, expected.anomaly_score)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found.alarm, expected.alarm)
    assert found.alarm.any()
    for name in ("threshold", "fpr", "on_alarm", "outputs"):
        assert getattr(one, name) == getattr(other, name)


@pytest.mark.parametrize("kind", FITTED)
@pytest.mark.parametrize("on_alarm", ["reject", "flag"])
def test_a_loaded_guard_answers_as_the_saved_one(path, kind, on_alarm):
    detector = FITTED[kind]()
    threshold = detector.anomaly_score(ROWS).mean()
    saved = Guard(convnet(), detector, threshold=threshold, fpr=0.15, on_alarm=on_alarm)
    saved.save(path)
    loaded = Guard.load(path, convnet())
    same(loaded, saved)
    assert type(loaded.detector) is type(saved.detector)
    assert loaded.counts() == saved.counts()
    loaded.save(path)  # again
    same(Guard.load(str(path), convnet()), saved)


def test_a_detector_of_logits(path):
    detector = MaxSoftmax("logits").fit(LOGITS)
    saved = Guard(convnet(), detector, fpr=0.1, outputs="logits").calibrate(X)
    saved.save(path)
    loaded = Guard.load(path, convnet())
    same(loaded, saved)
    np.testing.assert_array_equal(loaded.detector.predict(LOGITS), detector.predict(LOGITS))
    assert (loaded.detector.fpr, loaded.detector.outputs) == (0.05, "logits")


class TestDetectorsThatAreNotInTheFile:
    @pytest.mark.parametrize(
        "detector",
        [
            Unsure(),
            Mahalanobis().fit(ROWS[:, :2]),
            OutputForest(LogisticRegression()).fit(ROWS, UNSURE),
        ],
        ids=lambda detector: type(detector).__name__,
    )
    def test_they_are_passed(self, path, detector):
        net = convnet(classes=2) if isinstance(detector, Mahalanobis) else convnet()
        saved = Guard(net, detector, threshold=0.3)
        saved.save(path)
        name = type(detector).__name__
        words = f"`detector` must be given for .*guard.npz, which does not hold the {name} of the"
        with pytest.raises(ValueError, match=words):
            Guard.load(path, net)
        loaded = Guard.load(path, net, detector=detector)
        assert loaded.threshold == 0.3
        assert torch.equal(loaded.predict(X), saved.predict(X))

    def test_a_detector_of_inputs_is_passed(self, path):
        net = convnet()
        layer = LatentDefenders(layer="head", count=1, epochs=1)
        mrr = MRR([layer], fpr=0.2, calibration_fraction=0.4).fit(net, X, torch.arange(60) % 3)
        saved = Guard(net, mrr)
        saved.save(path)
        mrr.save(path.with_name("mrr.npz"))
        loaded = Guard.load(path, net, detector=MRR.load(path.with_name("mrr.npz"), net))
        assert loaded.threshold == mrr.threshold
        assert torch.equal(loaded.predict(X), saved.predict(X))

    def test_another_kind_is_refused(self, path):
        Guard(convnet(), Unsure(), threshold=0.3).save(path)
        words = r"`detector` must be of type Unsure, as in .*guard.npz, got Mahalanobis\(\)"
        with pytest.raises(TypeError, match=words):
            Guard.load(path, convnet(), detector=Mahalanobis())

    def test_one_for_a_file_that_holds_it_is_refused(self, path):
        Guard(convnet(), FITTED["softmax"](), threshold=0.3).save(path)
        with pytest.raises(ValueError, match="`detector` must be None for .*guard.npz, which hold"):
            Guard.load(path, convnet(), detector=FITTED["softmax"]())


def test_a_function_on_alarm_is_passed(path):
    def route(alarm):
        return 2 - alarm.labels

    saved = Guard(convnet(), FITTED["softmax"](), threshold=-0.6, on_alarm=route)
    saved.save(path)
    words = "`on_alarm` must be given for .*guard.npz, got None. A file does not hold the function"
    with pytest.raises(ValueError, match=words):
        Guard.load(path, convnet())
    same(Guard.load(path, convnet(), on_alarm=route), saved)
    flags = Guard.load(path, convnet(), on_alarm="flag")
    assert REJECTED not in flags.predict(X)
    with pytest.raises(ValueError, match="`on_alarm` must be one of"):
        Guard.load(path, convnet(), on_alarm="ignore")


def test_alarms_of_a_loaded_guard_are_logged_where_it_is_told(tmp_path, path):
    log = tmp_path / "log"
    Guard(convnet(), FITTED["softmax"](), threshold=-2.0, log=log).save(path)
    Guard.load(path, convnet()).predict(X[:2])
    assert log.read_text() == ""
    Guard.load(path, convnet(), log=log).predict(X[:2])
    assert [json.loads(line)["row"] for line in log.read_text().splitlines()] == [0, 1]


class TestModel:
    def test_one_with_other_weights_is_refused(self, path):
        Guard(convnet(), FITTED["softmax"](), threshold=0.3).save(path)
        other = convnet()
        with torch.no_grad():
            other.head.bias[0] += 1e-6
        words = "`model` must be the one of the guard in .*guard.npz, with the same weights, got To"
        with pytest.raises(ValueError, match=words):
            Guard.load(path, other)

    @pytest.mark.parametrize(
        "model",
        [
            TorchClassifier(convnet(), bounds=(0, 2)),
            TorchClassifier(convnet(), preprocess=nn.BatchNorm2d(1)),
            defenses.FeatureSqueezing(convnet(), bits=3),
            QueryCounter(convnet(classes=5)),
        ],
    )
    def test_another_one_is_refused(self, path, model):
        Guard(convnet(), FITTED["softmax"](), threshold=0.3).save(path)
        with pytest.raises(ValueError, match="`model` must be the one of the guard"):
            Guard.load(path, model)

    @pytest.mark.parametrize(
        "options",
        [
            {},
            {"preprocess": Normalize((0.5,), (2.0,))},
            {"preprocess": Normalize((0.5,), (0.2,)), "output": "probabilities"},
            {"preprocess": Normalize((0.5,), (0.2,)), "mode": "keep"},
            {"preprocess": Normalize((0.5,), (0.2,)), "bounds": (0, 2)},
        ],
        ids=["none", "other", "probabilities", "keep", "bounds"],
    )
    def test_one_with_other_options_is_refused(self, path, options):
        saved = TorchClassifier(convnet(), preprocess=Normalize((0.5,), (0.2,)))
        Guard(saved, Unsure(), threshold=0.5).save(path)
        Guard.load(path, saved, detector=Unsure())
        with pytest.raises(ValueError, match="`model` must be the one of the guard in"):
            Guard.load(path, TorchClassifier(convnet(), **options), detector=Unsure())

    def test_a_wrapped_one_is_the_same_with_the_same_weights(self, path):
        Guard(defenses.FeatureSqueezing(convnet(), bits=3), FITTED["softmax"](), threshold=1).save(
            path
        )
        Guard.load(path, defenses.FeatureSqueezing(convnet(), bits=3))
        with pytest.raises(ValueError, match="`model` must be the one of the guard"):
            Guard.load(path, defenses.FeatureSqueezing(convnet(), bits=4))
        changed = convnet()
        changed.norm.running_mean += 1
        with pytest.raises(ValueError, match="`model` must be the one of the guard"):
            Guard.load(path, defenses.FeatureSqueezing(changed, bits=3))

    def test_a_compiled_one_is_the_same(self, path):
        Guard(convnet(), FITTED["softmax"](), threshold=0.3).save(path)
        assert Guard.load(path, torch.compile(convnet(), backend="eager")).threshold == 0.3

    def test_one_that_prints_its_address_is_the_same(self, path):
        class Custom:
            bounds, num_classes = (0.0, 1.0), 3

            def scores(self, x):
                return convnet()(x).softmax(1).detach()

            def predict(self, x):
                raise AssertionError

        Guard(Custom(), FITTED["softmax"](), threshold=0.3).save(path)
        kept = Custom()
        assert Guard.load(path, kept).model is kept

    def test_an_estimator_is_compared_by_what_it_prints(self, path):
        fitted = LogisticRegression().fit(X.flatten(1).numpy(), np.arange(60) % 3)
        Guard(SklearnClassifier(fitted), FITTED["softmax"](), threshold=0.3).save(path)
        Guard.load(path, fitted)
        with pytest.raises(ValueError, match="`model` must be the one"):
            Guard.load(path, SklearnClassifier(fitted, bounds=(0, 2)))

    def test_what_is_not_a_model_is_refused(self, path):
        Guard(convnet(), FITTED["softmax"](), threshold=0.3).save(path)
        with pytest.raises(TypeError, match="`model` must be"):
            Guard.load(path, 3)


class TestSave:
    def test_a_threshold_is_needed(self, path):
        with pytest.raises(ValueError, match="`threshold` must be set"):
            Guard(convnet(), FITTED["softmax"]()).save(path)
        assert not path.exists()

    @pytest.mark.parametrize("detector", [forest(), MaxSoftmax(), OutputEntropy()])
    def test_a_fitted_detector_is_needed(self, path, detector):
        with pytest.raises(ValueError, match="not fitted"):
            Guard(convnet(), detector, threshold=0.3).save(path)
        assert not path.exists()

    def test_the_old_file_stays_after_an_error(self, path, monkeypatch):
        Guard(convnet(), FITTED["softmax"](), threshold=0.3).save(path)
        before = path.read_bytes()

        def fails(*args, **settings):
            raise OSError("no space")

        monkeypatch.setattr(np, "savez_compressed", fails)
        with pytest.raises(OSError, match="no space"):
            Guard(convnet(), FITTED["softmax"](), threshold=0.4).save(path)
        assert path.read_bytes() == before
        assert [p.name for p in path.parent.iterdir()] == ["guard.npz"]

    def test_the_file_holds_plain_arrays_only(self, path):
        Guard(convnet(), FITTED["forest"](), threshold=0.3).save(path)
        with np.load(path, allow_pickle=False) as archive:
            about = json.loads(str(archive["about"]))
            assert all(archive[name].dtype.kind != "O" for name in archive.files)
        assert about["threshold"] == 0.3
        assert about["on_alarm"] == "reject"


class TestFilesThatAreRefused:
    def test_those_of_other_kinds(self, path):
        forest().fit(ROWS, UNSURE).save(path)
        with pytest.raises(ValueError, match="guard.npz is not a valid file of a Guard"):
            Guard.load(path, convnet())
        with pytest.raises(FileNotFoundError, match="no such file"):
            Guard.load(path.with_name("other.npz"), convnet())

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"format": "advkit guard 9"}, "`format` must be 'advkit guard 1', got 'advkit guard"),
            ({"threshold": None}, "`threshold` must be a number"),
            ({"threshold": float("nan")}, "`threshold` must be finite, got nan"),
            ({"threshold": 10**400}, "too large"),
            ({"fpr": 1}, "`fpr` must lie in"),
            ({"on_alarm": "ignore"}, "`on_alarm` must be one of"),
            ({"outputs": "both"}, "`outputs` must be one of"),
            ({"model": ["a"]}, "`model` must be a list of texts"),
            ({"detector": "Guard"}, "`detector` must be one of"),
            ({"detector": 3}, "`detector` must be a name"),
            ({"stored": []}, "`arrays` must not have the key"),
            ({"more": 1}, "`about` must not have the key 'more'"),
        ],
    )
    def test_those_with_other_values(self, path, changes, words):
        Guard(convnet(), FITTED["softmax"](), threshold=0.3).save(path)
        with np.load(path) as archive:
            arrays = dict(archive)
        about = {**json.loads(str(arrays.pop("about"))), **changes}
        np.savez(path, **arrays, about=np.array(json.dumps(about)))
        with pytest.raises(
            ValueError, match=f"guard.npz is not a valid file of a Guard: .*{words}"
        ):
            Guard.load(path, convnet())

    @pytest.mark.parametrize(
        "numbers",
        [[0.1, 0.5], [1.0, 0.5, 3], [0.1, np.nan, 3], [0.1, 0.5, 0], [0.1, 0.5, 2.5]],
    )
    def test_those_with_other_numbers_of_a_confidence(self, numbers):
        arrays = {"outputs": np.array("scores"), "numbers": np.array(numbers)}
        with pytest.raises(ValueError, match="`numbers`|`fpr`|`width`"):
            MaxSoftmax.from_arrays(arrays)


def test_every_kind_in_a_file_can_be_read_back():
    """A class that is added to the table needs both methods."""
    for kind in guard_file._KINDS.values():
        assert callable(kind.arrays)
        assert callable(kind.from_arrays)
