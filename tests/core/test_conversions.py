"""What stands in place of a tensor is named, with the code that makes a tensor of it."""

import numpy as np
import pytest
import torch
from scipy import sparse

from advkit.core import checks, conversions, label_checks
from tests.tables import DataFrame, Series

ROWS = [[0.1, 0.2], [0.3, 0.4]]
ENCODE = "Columns of strings or categories are not supported: encode them as numbers first."
CASES = {
    "array": (
        np.array(ROWS),
        "got a NumPy array. Convert it with torch.from_numpy(x).float().",
    ),
    "array of strings": (
        np.array([["a", "b"]]),
        f"got a NumPy array of dtype <U1. {ENCODE}",
    ),
    "array of objects": (
        np.array([[0.1, "b"]], dtype=object),
        f"got a NumPy array of dtype object. {ENCODE}",
    ),
    "frame": (
        DataFrame(ROWS),
        f"got a pandas DataFrame. Convert it with torch.from_numpy(x.to_numpy()).float(). {ENCODE}",
    ),
    "sparse": (
        sparse.csr_matrix(ROWS),
        "got a SciPy sparse matrix (csr_matrix). Convert it with "
        "torch.from_numpy(x.toarray()).float().",
    ),
    "list": (ROWS, "got list. Convert it with torch.tensor(x)."),
    "tuple of tensors": (
        (torch.zeros(2), torch.zeros(2)),
        "got tuple. Convert it with torch.stack(x).",
    ),
    "nothing": (None, "got NoneType."),
    "text": ("abc", "got str."),
}


@pytest.mark.parametrize(("value", "said"), CASES.values(), ids=CASES)
def test_what_is_given_is_named_with_its_conversion(value, said):
    with pytest.raises(TypeError) as caught:
        checks.tensor("x", value)
    assert str(caught.value) == f"`x` must be a torch.Tensor, {said}"


@pytest.mark.parametrize("name", ["array", "sparse", "list", "tuple of tensors", "frame"])
def test_the_conversion_runs(name):
    x, said = CASES[name]
    code = said.partition("Convert it with ")[2].partition(f". {ENCODE}")[0].removesuffix(".")
    converted = eval(code, {"torch": torch, "x": x})
    checks.floats("x", converted)
    assert converted.shape == (2, 2)


def test_words_for_an_argument_have_no_code_with_them():
    with pytest.raises(TypeError, match=r"^the inputs in `a` must .*torch.from_numpy\(...\)"):
        checks.tensor("the inputs in `a`", np.zeros(2))
    with pytest.raises(TypeError, match=r"^the inputs must have a floating dtype, got .*int64\.$"):
        checks.floats("the inputs", torch.zeros(2, 2).long())
    with pytest.raises(TypeError, match=r"^`x_adv` must have a floating .*with x_adv.float\(\)"):
        checks.floats("x_adv", torch.zeros(2, 2).long())


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (np.arange(3), r"a NumPy array. Convert it with torch.from_numpy\(y\)\.$"),
        ([0, 1], r"list. Convert it with torch.tensor\(y\)\.$"),
        (Series([0, 1]), r"a pandas Series. Convert it with torch.from_numpy\(y.to_numpy\(\)\)\."),
        (Series(["a", "b"]), "strings such as 'a'. Pass `model.encode"),
        (np.array(["a", "b"]), "strings such as 'a'. Pass `model.encode"),
        (np.array(["a", "b"], dtype=object), "strings such as 'a'. Pass `model.encode"),
        (DataFrame([[0, 1]]), "a pandas DataFrame. Convert"),
        (np.array(3), "a NumPy array. Convert"),
        ([], "list. Convert"),
        (None, "NoneType"),
    ],
)
def test_labels_of_other_types(y, said):
    with pytest.raises(TypeError, match=rf"^`y` must be a torch.Tensor.*, got {said}"):
        label_checks.tensor_of_labels("y", y)


def test_a_loader_of_ones_own_is_no_table():
    class Loader:
        def __iter__(self):
            return iter([])

        def to_numpy(self):
            return np.zeros(3)

    assert not conversions.is_data(Loader())
    assert conversions.describe(Loader()) == "Loader"


def test_data_are_told_from_batches():
    for data in (np.zeros(3), DataFrame(ROWS), sparse.csr_matrix(ROWS), ROWS, [0.1, 0.2], [[1]]):
        assert conversions.is_data(data)
    x, y = torch.zeros(2, 2), torch.zeros(2)
    for batches in ([(x, y)], [x, x], [{"x": x}], [], iter([1]), [[x, y]], None, [[]]):
        assert not conversions.is_data(batches)
