"""Tables with the interface of pandas, as far as advkit and scikit-learn look at it."""

import numpy as np


class DataFrame:
    """Rows and named columns; iterating gives the names of the columns, as in pandas."""

    ndim = 2

    def __init__(self, rows):
        self.rows = np.asarray(rows)
        self.columns = [f"column {i}" for i in range(self.rows.shape[1])]

    def __len__(self):
        return len(self.rows)

    def __iter__(self):
        return iter(self.columns)

    @property
    def shape(self):
        return self.rows.shape

    def to_numpy(self):
        return self.rows


class Series:
    """A column."""

    ndim = 1

    def __init__(self, values):
        self.values = np.asarray(values)

    def __len__(self):
        return len(self.values)

    def __iter__(self):
        return iter(self.values)

    def to_numpy(self):
        return self.values


DataFrame.__module__ = Series.__module__ = "pandas"
