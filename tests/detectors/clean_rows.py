"""Clean rows of outputs to fit detectors on."""

import numpy as np


def clean(n=200, width=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, width)) + 3 * np.eye(width)[0]


def three_classes(n=240, seed=0):
    """Rows of three unlike Gaussians, and their classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    centres = np.array([[0.0, 0, 0], [9, 0, 0], [0, 0, 9]])
    return centres[y] + rng.normal(size=(n, 3)) * [2, 1, 0.5], y
