"""A module with a second input for each sample, which it finds by the numbers of the samples."""

import torch
from torch import nn

import advkit


class TwoInputs(nn.Module):
    """Three logits of `x` `(n, 6)` and of the rows of `meta` that belong to it, float64."""

    def __init__(self, samples: int, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(6, 3, generator=generator, dtype=torch.float64))
        self.meta = torch.randn(samples, 3, generator=generator, dtype=torch.float64)

    def forward(self, x):
        own = (x.flatten(1)[:, :, None] * self.weight).sum(1)
        return own.tanh() * 2 + own + self.meta[advkit.current_rows()]


def data(n: int):
    """`n` inputs, a module, and its labels, of which every fourth is made wrong."""
    module = TwoInputs(n)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(n, 6, generator=generator, dtype=torch.float64)
    with advkit.given_rows(range(n)):
        y = module(x).argmax(1)
    y[::4] = (y[::4] + 1) % 3
    return module, x, y


def one_by_one(ask, *parts):
    """The answers of `ask` to each sample by itself, with its own number, joined."""
    found = []
    for i in range(len(parts[0])):
        with advkit.given_rows([i]):
            found.append(ask(*(part[i : i + 1] for part in parts)))
    return torch.cat(found)
