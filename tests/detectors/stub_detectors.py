"""Detectors and a net whose anomaly scores are known by hand."""

from torch import nn

from tests.toys import convnet


class Unsure:
    """The anomaly score is one minus the largest output."""

    def anomaly_score(self, outputs):
        return 1 - outputs.max(1)


class Returns:
    """A detector that returns a given value, or raises it."""

    def __init__(self, returned):
        self.returned = returned

    def anomaly_score(self, outputs):
        if isinstance(self.returned, Exception):
            raise self.returned
        return self.returned


class Second:
    """The anomaly score is the second output."""

    def anomaly_score(self, outputs):
        return outputs[:, 1]


class Identity(nn.Module):
    """The features are the logits."""

    def forward(self, x):
        return 1.0 * x


def unsure(x):
    """Return the score of `Unsure` for `convnet()` on `x`, by hand."""
    return 1 - convnet()(x).softmax(1).amax(1).detach().numpy()
