"""The architectures of the published nets that studies, tests and benchmarks load.

Each factory returns an untrained module in evaluation mode whose parameter names are those of the
published state dict, so that `module.load_state_dict(torch.load(path, weights_only=True))` fits:

    advkit evaluate --model examples/studies/nets.py:mnist_lenet --weights mnist_lenet.pt --data ...

Inputs lie in [0, 1]; where a net was trained on normalized images the factory normalizes inside.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MnistLeNet(nn.Module):
    """The LeNet of PyTorch's tutorial on FGSM: `(n, 1, 28, 28)` to log-probabilities `(n, 10)`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, 5)
        self.conv2 = nn.Conv2d(10, 20, 5)
        self.drop = nn.Dropout2d()
        self.fc1 = nn.Linear(320, 50)
        self.fc2 = nn.Linear(50, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.drop(self.conv2(x)), 2))
        x = F.relu(self.fc1(x.flatten(1)))
        x = F.dropout(x, training=self.training)
        return F.log_softmax(self.fc2(x), dim=1)


class MnistLeNet5(nn.Module):
    """The LeNet-5 that advertorch trained, plainly and with PGD: `(n, 1, 28, 28)` to `(n, 10)`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 64, 3, padding=1)
        self.linear1 = nn.Linear(3136, 200)
        self.linear2 = nn.Linear(200, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.linear2(F.relu(self.linear1(x.flatten(1))))


class PlainBlock(nn.Module):
    """Residual block of the CIFAR nets of He et al. (2016), shortcut without parameters."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.padding = (width - width_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride != 1 or self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0) + (self.padding,) * 2)
        return F.relu(out + x)


class CifarResNet(nn.Module):
    """ResNet for CIFAR-10 (He et al., 2016) of depth `6 n + 2`, normalization inside."""

    mean: Tensor
    std: Tensor

    def __init__(self, blocks: int) -> None:
        super().__init__()
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor((0.485, 0.456, 0.406)).view(shape), False)
        self.register_buffer("std", torch.tensor((0.229, 0.224, 0.225)).view(shape), False)
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._layer(16, 16, 1, blocks)
        self.layer2 = self._layer(16, 32, 2, blocks)
        self.layer3 = self._layer(32, 64, 2, blocks)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _layer(width_in: int, width: int, stride: int, blocks: int) -> nn.Sequential:
        first = PlainBlock(width_in, width, stride)
        return nn.Sequential(first, *(PlainBlock(width, width, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1((x - self.mean) / self.std)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def mnist_lenet() -> nn.Module:
    """`mnist_lenet.pt`."""
    return MnistLeNet().eval()


def mnist_lenet5() -> nn.Module:
    """`mnist_lenet5_plain.pt` and `mnist_lenet5_robust.pt`."""
    return MnistLeNet5().eval()


def cifar10_resnet20() -> nn.Module:
    """`cifar10_resnet20.pt`."""
    return CifarResNet(3).eval()


def cifar10_resnet44() -> nn.Module:
    """`cifar10_resnet44.pt`."""
    return CifarResNet(7).eval()


class BiasedBlock(nn.Module):
    """Residual block without batch norm, its shortcut a 1x1 convolution where the shape changes."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width, 3, stride, 1)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1)
        changes = stride != 1 or width_in != width
        self.shortcut = nn.Sequential(
            *([nn.Conv2d(width_in, width, 1, stride)] if changes else []),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class CifarResNet4b(nn.Module):
    """The small residual net of alpha-beta-CROWN, trained against 2/255, normalization inside."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        shape = (1, 3, 1, 1)
        self.register_buffer("mean", torch.tensor((0.4914, 0.4822, 0.4465)).view(shape), False)
        self.register_buffer("std", torch.tensor((0.2470, 0.2435, 0.2616)).view(shape), False)
        self.conv1 = nn.Conv2d(3, 16, 3, 2, 1)
        self.layer1 = nn.Sequential(BiasedBlock(16, 32, 2), BiasedBlock(32, 32, 1))
        self.layer2 = nn.Sequential(BiasedBlock(32, 32, 2), BiasedBlock(32, 32, 1))
        self.linear1 = nn.Linear(512, 100)
        self.linear2 = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1((x - self.mean) / self.std))
        x = self.layer2(self.layer1(x)).flatten(1)
        return self.linear2(F.relu(self.linear1(x)))


def cifar10_resnet4b() -> nn.Module:
    """`cifar10_resnet4b_robust.pt`."""
    return CifarResNet4b().eval()


def mnist_cnn_certified() -> nn.Module:
    """`mnist_cnn_certified.pt` (Wong and Kolter, 2018)."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1568, 100),
        nn.ReLU(),
        nn.Linear(100, 10),
    ).eval()


class SamePadded(nn.Conv2d):
    """A 3x3 convolution padded as TensorFlow does: of stride 2, even sizes only at the end."""

    def __init__(self, width_in: int, width: int, stride: int, groups: int = 1) -> None:
        super().__init__(width_in, width, 3, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        top, left = (int(self.stride[0] == 1 or size % 2) for size in x.shape[2:])
        return super().forward(F.pad(x, (left, 1, top, 1)))


class MobileNetV1(nn.Module):
    """MobileNet (Howard et al., 2017) of width 0.5, batch norm folded in: to logits `(n, 1000)`."""

    def __init__(self) -> None:
        super().__init__()
        widths = [16, 32, 64, 64, 128, 128, *[256] * 6, 512, 512]
        strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
        self.stem = SamePadded(3, widths[0], 2)
        self.dw = nn.ModuleList(
            SamePadded(width, width, stride, groups=width)
            for width, stride in zip(widths[:-1], strides, strict=True)
        )
        self.pw = nn.ModuleList(nn.Conv2d(*pair, 1) for pair in itertools.pairwise(widths))
        self.fc = nn.Linear(widths[-1], 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(2 * x - 1))
        for dw, pw in zip(self.dw, self.pw, strict=True):
            x = F.relu6(pw(F.relu6(dw(x))))
        return self.fc(x.mean((2, 3)))


class InvertedResidual(nn.Module):
    """Block of MobileNetV2: wide inside, narrow at both ends, linear at the end."""

    def __init__(self, width_in: int, width: int, expansion: int, stride: int) -> None:
        super().__init__()
        inside = expansion * width_in
        self.expand = nn.Conv2d(width_in, inside, 1) if expansion > 1 else None
        self.dw = SamePadded(inside, inside, stride, groups=inside)
        self.project = nn.Conv2d(inside, width, 1)
        self.skips = stride == 1 and width == width_in

    def forward(self, x: Tensor) -> Tensor:
        inside = x if self.expand is None else F.relu6(self.expand(x))
        out = self.project(F.relu6(self.dw(inside)))
        return x + out if self.skips else out


class MobileNetV2(nn.Module):
    """MobileNetV2 (Sandler et al., 2018), batch norm folded in: to logits `(n, 1000)`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SamePadded(3, 32, 2)
        blocks, width_in = [], 32
        for expansion, width, repeats, first in (
            (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2),
            (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
        ):  # fmt: skip
            for i in range(repeats):
                blocks.append(InvertedResidual(width_in, width, expansion, 1 if i else first))
                width_in = width
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Conv2d(320, 1280, 1)
        self.fc = nn.Linear(1280, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(F.relu6(self.stem(2 * x - 1)))
        return self.fc(F.relu6(self.head(x)).mean((2, 3)))


class Fire(nn.Module):
    """Module of SqueezeNet: few channels, then many, half of them of 3x3."""

    def __init__(self, width_in: int, squeezed: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(width_in, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, 4 * squeezed, 1)
        self.expand3x3 = nn.Conv2d(squeezed, 4 * squeezed, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x))
        return F.relu(torch.cat([self.expand1x1(x), self.expand3x3(x)], dim=1))


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1 (Iandola et al., 2016): to logits `(n, 1000)`, never negative."""

    def __init__(self) -> None:
        super().__init__()

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, 2, ceil_mode=True)

        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 3, 2), nn.ReLU(), pool(),
            Fire(64, 16), Fire(128, 16), pool(),
            Fire(128, 32), Fire(256, 32), pool(),
            Fire(256, 48), Fire(384, 48), Fire(384, 64), Fire(512, 64),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Dropout(), nn.Conv2d(512, 1000, 1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x)).mean((2, 3))


def imagenet_mobilenet_v1() -> nn.Module:
    """`imagenet_mobilenet_v1_050.pt`."""
    return MobileNetV1().eval()


def imagenet_mobilenet_v2() -> nn.Module:
    """`imagenet_mobilenet_v2.pt`."""
    return MobileNetV2().eval()


def imagenet_squeezenet() -> nn.Module:
    """`imagenet_squeezenet11.pt`."""
    return SqueezeNet().eval()


def plain_cnn() -> nn.Module:
    """A net for CIFAR-10 of convolutions and pooling, without shortcuts or published weights."""
    layers: list[nn.Module] = [nn.BatchNorm2d(3)]
    for before, after in ((3, 32), (32, 64), (64, 128)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.3), nn.Linear(2048, 10)).eval()


if __name__ == "__main__":
    from study import describe_module

    describe_module(__doc__)
