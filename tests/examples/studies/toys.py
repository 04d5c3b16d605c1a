"""Small data of the kinds that the studies take."""

from torch.nn import functional as F

from advkit.data import Dataset, digits


def images(n):
    """`n` digits of scikit-learn, interpolated to the size of those of MNIST."""
    few = digits("train").head(n)
    return Dataset(F.interpolate(few.x, (28, 28)), few.y, few.name)
