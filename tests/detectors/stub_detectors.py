"""Detectors and a net whose suspicion is known by hand."""

from torch import nn

from tests.toys import convnet


class Unsure:
    """Suspicion is what is left of the largest output to one."""

    def anomaly_score(self, outputs):
        return 1 - outputs.max(1)


class Says:
    """A detector that gives what it is told, or raises it."""

    def __init__(self, found):
        self.found = found

    def anomaly_score(self, outputs):
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


class Second:
    """Suspicion is the second output as it is."""

    def anomaly_score(self, outputs):
        return outputs[:, 1]


class Identity(nn.Module):
    """The features are the logits."""

    def forward(self, x):
        return 1.0 * x


def unsure(x):
    """What `Unsure` says of `convnet()` on `x`, by hand."""
    return 1 - convnet()(x).softmax(1).amax(1).detach().numpy()
