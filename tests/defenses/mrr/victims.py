"""A victim and clean data that are learned in a second."""

import torch
from torch import nn
from torch.nn import functional as F

from advkit import data


def digits(n=900):
    train = data.digits("train")
    return train.x[:n], train.y[:n]


def mlp():
    """A net with dropout that knows the digits well: `(n, 1, 8, 8)` to `(n, 10)`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Dropout(), nn.Linear(40, 20)]
        net = nn.Sequential(*layers, nn.ReLU(), nn.Linear(20, 10))
        learn(net, 60)
    return net


class Small(nn.Module):
    """A convolutional net with a batch norm: `(n, 1, 8, 8)` to `(n, 10)`."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 16, 3)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        z = F.relu(self.second(F.relu(self.norm(self.conv(x)))))
        return self.head(z.mean((2, 3)))


def convolutional():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Small()
        learn(net, 60)
    return net


def learn(net, epochs):
    x, y = digits()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(100):
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
    net.zero_grad()
    net.eval()
