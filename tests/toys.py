"""Small models for tests: some with a known answer, some with everything that can go wrong."""

import numpy as np
import torch
from torch import Tensor, nn


class Halfspace(nn.Module):
    """Two logits `(0, w.x + b)` over inputs of any shape: the boundary is a hyperplane."""

    def __init__(self, w: Tensor, b: float = 0.0):
        super().__init__()
        self.w = nn.Parameter(w)
        self.b = b

    def value(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.w + self.b

    def forward(self, x: Tensor) -> Tensor:
        z = self.value(x)
        return torch.stack([torch.zeros_like(z), z], dim=1)

    def distance(self, x: Tensor, norm: str) -> Tensor:
        """Distance to the boundary: |w.x + b| over the dual norm of w."""
        dual = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
        return (self.value(x).abs() / torch.linalg.vector_norm(self.w, ord=dual)).detach()


class Linear3(nn.Module):
    """Three fixed logits of three features, float64."""

    W = ((2.0, -1.0, 0.5), (-0.5, 1.5, 1.0), (0.3, 0.2, -1.7))

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(self.W, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


class Quadratic(nn.Module):
    """Logits w_k.x + x.A_k.x / 2 + b_k with symmetric A_k, whose gradient is w_k + A_k.x."""

    def __init__(self, features: int = 6, classes: int = 4, seed: int = 0, bend: float = 1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        square = draw(classes, features, features)
        self.a = nn.Parameter(bend * (square + square.mT) / 2)
        self.w, self.b = nn.Parameter(draw(classes, features)), nn.Parameter(draw(classes) / 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return x @ self.w.T + torch.einsum("ni,kij,nj->nk", x, self.a, x) / 2 + self.b

    def numpy(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`a`, `w` and `b`."""
        return tuple(v.detach().numpy() for v in (self.a, self.w, self.b))


class Recorded(nn.Module):
    """Another module in the unit box, for inputs in `bounds`, that keeps its inputs in `seen`."""

    def __init__(self, module: nn.Module, bounds: tuple[float, float]):
        super().__init__()
        self.module, self.bounds, self.seen = module, bounds, []

    def forward(self, x: Tensor) -> Tensor:
        lower, upper = self.bounds
        unit = (x - lower) / (upper - lower)
        self.seen.append(unit.detach())
        return self.module(unit)

    def iterates(self) -> np.ndarray:
        """The inputs between the clean ones and those that are verified, of a single sample."""
        return torch.cat(self.seen[1:-1]).numpy()


class ConvNet(nn.Module):
    """Convolution, batch norm, dropout, a buffer that counts calls: `(n, 1, 6, 6)` to 3 logits."""

    def __init__(self, classes: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(64, classes)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = nn.functional.leaky_relu(self.norm(self.conv(2 * x - 1)), 0.2)
        return 8 * self.head(self.drop(x).flatten(1))


def convnet(classes: int = 3, dtype: torch.dtype = torch.float32) -> ConvNet:
    """The same random `ConvNet` at every call, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(classes)
        return ConvNet(classes).to(dtype).eval()


class SurrogateNet(nn.Module):
    """`convnet` for images, in the dtype of the input; anything else as `Halfspace` would."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] == (1, 6, 6):
            return convnet(dtype=x.dtype)(x)
        w = torch.linspace(-1, 2, x[0].numel(), dtype=x.dtype)
        return Halfspace(w, b=-0.5 * float(w.sum()) + 0.05)(x)


def images(n: int = 8, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Random images `(n, 1, 6, 6)` of 8-bit values in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randint(0, 256, (n, 1, 6, 6), generator=generator) / 255).to(dtype)


def answers(module: nn.Module, x: Tensor) -> Tensor:
    """What the module says, in evaluation mode."""
    modes = [(m, m.training) for m in module.modules()]
    with torch.no_grad():
        y = module.eval()(x).argmax(1)
    for m, training in modes:
        m.training = training
    return y
