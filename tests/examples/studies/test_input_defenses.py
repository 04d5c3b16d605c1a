"""What the study on input defenses counts."""

import pytest
import torch

from advkit import TorchClassifier, attacks
from advkit.data import Dataset
from advkit.defenses.feature_squeezing import FeatureSqueezing
from advkit.defenses.input_validator import InputValidator
from advkit.defenses.jpeg_compression import JpegCompression
from tests.toys import Halfspace

PLANE = Halfspace(torch.ones(9), b=-3.5)


@pytest.fixture
def gray():
    """Nine values of a third each, twice: 3 in all, and 3.5 is the boundary; then one beyond it."""
    x = torch.full((3, 1, 3, 3), 1 / 3)
    x[2] = 1.0
    return Dataset(x, torch.tensor([0, 0, 0]), "gray")


def only_row(study, name, model, data, eps):
    attack = attacks.PGD(eps=eps, steps=10, loss="margin")
    square = attacks.Square(eps=eps, max_queries=30)
    (row,) = study.rows(TorchClassifier(PLANE), {name: model}, data, attack, square)
    return row


def test_what_a_rounding_hides(study, gray):
    """A step of 0.18 crosses the plane, and the middle between two of the four levels as well."""
    row = only_row(study, "bits 2", FeatureSqueezing(PLANE, bits=2), gray, 0.18)
    clean = pytest.approx(2 / 3)
    assert (row.clean, row.autograd) == (clean, clean)
    assert (row.unaware, row.identity, row.aware, row.square) == (0, 0, 0, 0)
    row = only_row(study, "bits 2", FeatureSqueezing(PLANE, bits=2), gray, 0.1)
    assert (row.unaware, row.aware, row.square) == (clean, clean, clean)
    assert str(row) == "| bits 2 | 66.7 | 66.7 | 66.7 | 66.7 | 66.7 | 66.7 | 0.0 |"


def test_a_validator_rejects_who_does_not_know_it(study, gray):
    model = InputValidator(PLANE, grid=9)
    row = only_row(study, "validator", model, gray, 0.12)
    assert row.unaware == pytest.approx(2 / 3)
    assert (row.aware, row.square) == (0, 0)
    assert row.autograd is row.identity is None
    assert str(row) == "| validator | 66.7 | 66.7 |  |  | 0.0 | 0.0 | 66.7 |"


def test_no_defense_has_no_step(study, gray):
    row = only_row(study, "none", TorchClassifier(PLANE), gray, 0.12)
    assert row.autograd is row.identity is None
    assert row.unaware == row.aware == 0


def test_a_filter_is_differentiated_as_it_is(study, gray):
    row = only_row(study, "median", FeatureSqueezing(PLANE, median=3), gray, 0.12)
    assert row.autograd == row.aware == 0


def test_what_a_repair_moves_too_far_is_no_success(study, gray):
    class Far(InputValidator):
        def repair(self, x, max_iterations=1):
            return torch.ones_like(x)

    model = Far(PLANE)
    attack = attacks.PGD(eps=0.12, steps=2)
    assert not study.knowing(model, attack, gray)[:2].any()
    assert (
        study.knowing(model, attacks.PGD(eps=0.7, steps=2), gray)[:2].all()
        == (model.predict(torch.ones_like(gray.x))[:2] == 1).all()
    )


def test_a_rejection_fools_nobody(study, gray):
    model = InputValidator(PLANE, grid=3)
    x_adv = gray.x + torch.tensor([0.1, 1 / 3, 0]).view(3, 1, 1, 1)
    assert model.predict(x_adv).tolist() == [-1, 1, 1]
    assert study.fools(model, x_adv, gray.y).tolist() == [False, True, True]


def test_the_defenses_of_both_nets(study):
    generator = torch.Generator().manual_seed(0)
    for channels, side, count in ((1, 28, 9), (3, 32, 12)):
        clean = torch.randint(0, 256, (20, channels, side, side), generator=generator) / 255
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(clean[0].numel(), 10))
        models = study.defenses(net, clean)
        assert len(models) == count
        assert models["validator, grid and contrast"].validate(clean).accepted.sum() >= 19
        assert isinstance(models["JPEG 75"], JpegCompression)


def test_a_real_net(study, real_net, mnist_test):
    net = real_net("mnist_lenet", "mnist_lenet.pt")
    attack = attacks.PGD(eps=0.2, steps=5, loss="margin")
    square = attacks.Square(eps=0.2, max_queries=5)
    models = {"bits 3": FeatureSqueezing(net, bits=3), "grid": InputValidator(net, grid=255)}
    bits, grid = study.rows(TorchClassifier(net), models, mnist_test.head(20), attack, square)
    assert bits.clean > 0.9
    assert bits.aware < bits.autograd
    assert grid.aware < grid.unaware == grid.clean
