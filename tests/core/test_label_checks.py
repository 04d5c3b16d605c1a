"""Labels: what is accepted, and what is said about several labels for one input."""

import pytest
import torch

from advkit.core import label_checks

X = torch.zeros(3, 2)
ONE_LABEL = (
    r"Multi-label and soft targets are not supported: pass one label for each input.* \(3,\)"
)


@pytest.mark.parametrize(
    "y",
    [
        torch.tensor([2, 0, 1]),
        torch.tensor([2.0, 0.0, 1.0]),
        torch.tensor([2, 0, 1], dtype=torch.uint8),
        torch.eye(3)[[2, 0, 1]],
        torch.eye(3, dtype=torch.int64)[[2, 0, 1]],
        torch.eye(3, dtype=torch.bool)[[2, 0, 1]],
        torch.eye(3, dtype=torch.bfloat16)[[2, 0, 1]],
    ],
    ids=lambda y: f"{y.dtype} {tuple(y.shape)}",
)
def test_one_label_for_each_input(y):
    found = label_checks.labels("y", y, X)
    assert found.tolist() == [2, 0, 1]
    assert found.dtype == torch.int64


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([[1, 0, 0], [1, 1, 1], [0, 1, 0]], r"a row with 3 ones \(sample 1\)"),
        ([[1, 0, 0], [0, 0, 0], [1, 1, 0]], r"a row with 0 ones \(samples 1, 2\)"),
        ([[0.2, 0.8], [1.0, 0.0], [0.5, 0.5]], r"other values than 0 and 1 \(samples 0, 2\)"),
        ([[1, 0], [2, -1], [0, 1]], r"other values than 0 and 1 \(sample 1\)"),
        ([[1, 0], [float("nan"), 1], [0, 1]], r"other values than 0 and 1 \(sample 1\)"),
        ([[3, 7], [1, 2], [0, 1]], r"other values than 0 and 1 \(samples 0, 1\)"),
    ],
)
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64])
def test_several_labels_for_an_input(rows, found, dtype):
    y = torch.tensor(rows, dtype=dtype)
    with pytest.raises(ValueError, match=f"^`target` must be one-hot .*got .*{found}. {ONE_LABEL}"):
        label_checks.labels("target", y, X)


def test_bools_of_several_labels():
    y = torch.tensor([[True, True], [True, False], [False, True]])
    with pytest.raises(ValueError, match=rf"a row with 2 ones \(sample 0\). {ONE_LABEL}"):
        label_checks.labels("y", y, X)


def test_a_column_of_labels():
    with pytest.raises(ValueError, match=r"`y` must have shape \(3,\).*\(3, 1\). Pass y\[:, 0\]."):
        label_checks.labels("y", torch.zeros(3, 1), X)
    with pytest.raises(ValueError, match=r"`y` must have shape \(3,\).* got \(3, 2, 2\)\.$"):
        label_checks.labels("y", torch.zeros(3, 2, 2), X)


def test_numbers_that_are_no_labels():
    with pytest.raises(ValueError, match=r"`y` must be integers, got 0.5 \(samples 1, 2\)"):
        label_checks.labels("y", torch.tensor([0, 0.5, torch.nan]), X)
    with pytest.raises(ValueError, match=r"`y` must not be negative, got -1 \(sample 1\)"):
        label_checks.labels("y", torch.tensor([0, -1, 1]), X)
    with pytest.raises(TypeError, match="`y` must have an integer dtype, got torch.complex64"):
        label_checks.labels("y", torch.zeros(3, dtype=torch.complex64), X)


def test_labels_beyond_the_classes():
    y = torch.tensor([0, 5, 2])
    label_checks.labels_within("y", y, 6)
    with pytest.raises(ValueError, match=r"`y` must be below 5, .*got 5 \(sample 1\)"):
        label_checks.labels_within("y", y, 5)
    with pytest.raises(ValueError, match=r"got 5 \(sample 8\)"):
        label_checks.labels_within("y", y, 5, torch.tensor([7, 8, 9]))
