"""Bounds: two numbers, and messages that help where they are something else."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import advkit
from advkit import attacks, data, defenses
from advkit.core.bounds import Bounds, checked_bounds

OF_FEATURES = {
    "lists": ([0, 0, 0], [1, 1, 1]),
    "pairs": ((0, 1), (0, 1), (0, 1)),
    "a list of lists": [[0, 0], [1, 1]],
    "arrays": (np.zeros(3), np.ones(3)),
    "tensors": (torch.zeros(3), torch.ones(3)),
    "channels": (torch.zeros(3, 1, 1), torch.ones(3, 1, 1)),
    "one array": np.zeros((2, 3)),
    "one tensor": torch.zeros(3, 2),
    "a number and a list": (0, [1, 1]),
    "one of one": ([0], [1]),
}
WRONG = {
    "None": (None, TypeError, "must be a pair of numbers, got NoneType: None."),
    "a number": (1.0, TypeError, r"must be a pair of numbers, got float: 1\.0\."),
    "text": ("01", TypeError, "must be a pair of numbers, got str: '01'."),
    "an array": (np.array([0, 1, 2]), TypeError, r"got a NumPy array: array"),
    "texts": (("0", "1"), TypeError, "must be a number, got str: '0'."),
    "an end of None": ((0, None), TypeError, "must be a number, got NoneType: None."),
    "bools": ((False, True), TypeError, "must be a number, got bool: False."),
    "a complex number": ((0, 1j), TypeError, "must be a number, got complex: 1j."),
    "one number": ((0,), ValueError, r"must be two finite numbers, lower first, got \(0\)\."),
    "three numbers": ((0, 1, 2), ValueError, r"lower first, got \(0, 1, 2\)\."),
    "nothing": ((), ValueError, r"lower first, got \(\)\."),
    "reversed": ((1, 0), ValueError, r"lower first, got \(1, 0\)\."),
    "equal": ((1.0, 1.0), ValueError, r"lower first, got \(1\.0, 1\.0\)\."),
    "infinite": ((0, float("inf")), ValueError, r"got \(0, inf\)\."),
    "NaN": ((float("nan"), 1), ValueError, r"got \(nan, 1\)\."),
    "too large for a float": ((0, 10**400), ValueError, r"two finite numbers.*got \(0, 1000"),
}


@pytest.mark.parametrize("bounds", OF_FEATURES.values(), ids=OF_FEATURES)
def test_bounds_of_features_are_refused_with_the_way_out(bounds):
    said = "`bounds` must be two numbers, the same for all features, got .*one range such as"
    with pytest.raises(TypeError, match=f"{said}.*in `preprocess`") as caught:
        checked_bounds(bounds)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_short_bounds_of_features_are_shown_whole():
    with pytest.raises(TypeError, match=r"features, got \(\[0, 0, 0\], \[1, 1, 1\]\)\. If"):
        checked_bounds(([0, 0, 0], [1, 1, 1]))


@pytest.mark.parametrize(("bounds", "kind", "said"), WRONG.values(), ids=WRONG)
def test_other_values_are_refused(bounds, kind, said):
    with pytest.raises(kind, match=f"^`bounds` .*{said}") as caught:
        checked_bounds(bounds)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "bounds",
    [
        (-1, 2),
        [-1, 2],
        (np.float32(-1), np.int64(2)),
        (np.array(-1.0), torch.tensor(2.0)),
        (Fraction(-1), Fraction(2)),
        Bounds(-1.0, 2.0),
    ],
    ids=repr,
)
def test_numbers_of_any_kind_become_floats(bounds):
    found = checked_bounds(bounds)
    assert found == Bounds(-1.0, 2.0)
    assert list(map(type, found)) == [float, float]


def service(rows):
    return np.full((len(rows), 2), 0.5)


class OfOnesOwn:
    num_classes = 2

    def __init__(self, bounds):
        self.bounds = bounds

    def predict(self, x):
        return torch.zeros(len(x), dtype=torch.int64)


def npz(bounds, folder):
    np.savez(folder / "data.npz", images=np.zeros((2, 4, 4), np.uint8), labels=np.zeros(2, int))
    return data.load_npz(folder / "data.npz", bounds)


X, Y = torch.rand(4, 3), torch.arange(4) % 2
FGSM = attacks.FGSM(eps=0.1)
TAKE_BOUNDS = {
    "TorchClassifier": lambda bounds: advkit.TorchClassifier(nn.Linear(3, 2), bounds),
    "SklearnClassifier": lambda bounds: advkit.SklearnClassifier(
        LogisticRegression().fit(X, Y), bounds=bounds
    ),
    "CallableClassifier": lambda bounds: advkit.CallableClassifier(service, 2, bounds),
    "StraightThrough": lambda bounds: advkit.StraightThrough(
        nn.Linear(3, 2), torch.round, bounds=bounds
    ),
    "a class of one's own": lambda bounds: advkit.as_classifier(OfOnesOwn(bounds)),
    "FreeAdversarialTraining": lambda b: defenses.FreeAdversarialTraining(eps=0.1, bounds=b),
    "AdversarialTraining": lambda b: defenses.AdversarialTraining(attack=FGSM, bounds=b),
    "TRADES": lambda b: defenses.TRADES(attack=FGSM, bounds=b),
    "MART": lambda b: defenses.MART(attack=FGSM, bounds=b),
    "LogitPairing": lambda b: defenses.LogitPairing(attack=FGSM, weight=0.5, bounds=b),
    "LogitSqueezing": lambda b: defenses.LogitSqueezing(weight=0.5, bounds=b),
    "InputDefender": lambda bounds: defenses.InputDefender(patch_size=2).fit(
        torch.rand(4, 1, 4, 4), Y, bounds
    ),
}


@pytest.mark.parametrize("make", TAKE_BOUNDS.values(), ids=TAKE_BOUNDS)
def test_everything_that_takes_bounds_checks_them(make):
    with pytest.raises(TypeError, match="`bounds` must be two numbers, the same for all features"):
        make(([0, 0, 0], [1, 1, 1]))
    with pytest.raises(ValueError, match="`bounds` must be two finite numbers, lower first"):
        make((1, 0))


def test_onnx_and_archives_check_them_too(tmp_path):
    for bounds, kind in ((([0, 0], [1, 1]), TypeError), ((1, 0), ValueError)):
        with pytest.raises(kind, match="`bounds` must be two"):
            npz(bounds, tmp_path)
    onnxruntime = pytest.importorskip("onnxruntime")
    assert onnxruntime
    from tests.test_pickling import onnx_bytes

    with pytest.raises(TypeError, match="the same for all features"):
        advkit.OnnxClassifier(onnx_bytes(), bounds=((0, 1), (0, 1), (0, 1)))


def test_numpy_numbers_are_bounds_of_every_classifier():
    bounds = (np.float32(0), np.float64(255))
    for name in ("TorchClassifier", "SklearnClassifier", "CallableClassifier", "StraightThrough"):
        assert TAKE_BOUNDS[name](bounds).bounds == (0.0, 255.0)


@pytest.mark.parametrize("pair", [np.array([0, 255]), torch.tensor([0.0, 255.0])], ids=type)
def test_a_pair_in_an_array_is_a_pair(pair):
    assert checked_bounds(pair) == (0, 255)
