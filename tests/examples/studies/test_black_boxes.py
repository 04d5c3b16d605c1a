"""What the black boxes of two studies learn from, and what they exchange."""

import numpy as np
import pytest
import torch

from advkit.data import Dataset
from tests.examples.studies.toys import images


class Recorder:
    """An estimator that keeps its rows, and answers 0 to all of them."""

    def fit(self, rows, labels):
        self.learnt = rows

    def predict_proba(self, rows):
        self.rows = rows
        return np.eye(10)[[0] * len(rows)]


def test_text_carries_every_float32(study):
    draw = np.random.default_rng(0)
    levels = (draw.integers(0, 256, (3, 1, 4, 4)) / 255).astype(np.float32)
    images = np.concatenate([levels, levels + np.float32(0.1), draw.random((2, 1, 4, 4))])
    images = images.astype(np.float32)
    estimator = Recorder()
    scores = study.over_text(study.service(estimator))(images)
    assert np.array_equal(estimator.rows, images.reshape(8, 16))
    assert scores == [[1.0] + [0.0] * 9] * 8


def test_a_tenth_is_held_out(study):
    x = torch.rand(20, 1, 2, 2)
    estimator = Recorder()
    box = study.boosted("box", estimator, Dataset(x, torch.tensor([0] * 19 + [1]), ""))
    assert np.array_equal(estimator.learnt, x[:18].flatten(1).numpy())
    assert np.array_equal(estimator.rows, x[18:].flatten(1).numpy())
    assert box.validation == 50.0


@pytest.mark.parametrize("installed", ["lightgbm", "xgboost", None])
def test_black_boxes_by_what_is_installed(study, monkeypatch, installed):
    if installed:
        pytest.importorskip(installed)
    monkeypatch.setattr(study, "find_spec", lambda name: name == installed or None)
    boxes = study.black_boxes(images(60), 1)
    other = {"lightgbm": ["LightGBM"], "xgboost": ["XGBoost"], None: []}[installed]
    assert [box.name for box in boxes] == ["scikit-learn", *other]
    assert [box.model.queries for box in boxes] == [6] * len(boxes)


def test_published_figures_are_shares_of_the_images_that_fool_the_lenet(study):
    """What the page says of IBM's figures: whole numbers of the LeNet's own, to three digits."""
    ibm = study.PUBLISHED["IBM"]
    assert round(100 * 9775 / 9810, 3) == ibm[0.0]
    assert round(100 * 947 / 981, 3) == ibm["validation"]
    assert round(100 * 313 / (9810 - 6826), 3) == ibm[0.15]
    assert round(100 * 796 / (9810 - 869), 3) == ibm[0.30]
