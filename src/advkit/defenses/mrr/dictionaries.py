"""Input defenders: dictionaries that reconstruct the patches of a class from a few atoms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from advkit.core import checks, label_checks
from advkit.core.bounds import checked_bounds
from advkit.core.tensors import at_least_float32
from advkit.defenses.mrr.sparse import orthogonal_matching_pursuit
from advkit.defenses.pixels import check_images

Score = Literal["residual", "psnr"]
Channels = Literal["joint", "separate"]
Floats = npt.NDArray[np.float64]

_BATCH_SIZE = 64  # patches in a step of learning
_NORM_TOLERANCE = 1e-4  # allowed excess of the norm of a stored atom, for rounding
_GRAY_LEVELS = 255  # the smallest standard deviation is one gray level of 8 bits


@dataclass(frozen=True, kw_only=True)
class InputDefender:
    """Settings of the patch dictionaries of all classes (Rouhani et al., 2018, arXiv:1709.02538).

    A natural image is nearly a sum of a few atoms of its class; a perturbation is not. The score is
    the residual with the dictionary of the predicted class. It detects large perturbations; latent
    defenders detect small ones.

    Dictionaries are learned by online dictionary learning (Mairal et al., 2009) on patches at
    random places, with each pixel standardized to mean 0 and standard deviation 1. Inputs are cut
    into tiles, standardized in the same way, and coded by orthogonal matching pursuit.

    Deviations from the paper:
        - The tiles of an input are standardized, too. The authors' code standardizes only the
          patches that it learns from.
        - Each class is learned from as many patches as `iterations` steps of 64 take, 12,800. The
          authors' code uses up to 30 patches of every image. Ten classes of 225 atoms take about a
          minute on one core.
        - A tile has 5 atoms; the authors' code has 4, 5 or 32, depending on the version. With more
          atoms, smaller perturbations are detected, at a higher cost. On MNIST the AUC for FGSM at
          eps 0.2 is 0.986 with 5, 0.998 with 10 and 0.999 with 32, which takes eleven times as long
          as 5.
        - The second rule of the authors' code, that the prediction must change with the
          reconstruction, is left out.
        - A patch holds all channels. In the authors' code, each channel has separate patches
          (`channels="separate"`).

    Args:
        patch_size: side of patches and tiles, in pixels.
        atoms: number of atoms of each class.
        sparsity: atoms for each tile; at most `atoms`, and below the number of values of a patch.
        patches_per_image: largest number of patches to learn from in an image, or in each of its
            separate channels.
        iterations: steps of learning, each on 64 patches.
        alpha: weight of the l1 norm of the codes in learning; positive.
        score: `"residual"`, the l2 norm of the residual of all tiles, in standard deviations of the
            pixels of the class. `"psnr"`, the negative peak signal-to-noise ratio in dB, where the
            peak is the span of the bounds in the same unit. Within a class both give the same
            order.
        channels: `"joint"`, a patch holds all channels; `"separate"`, one of them.
        seed: seed of the patches and of learning.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range.

    Example:
        >>> from advkit import data
        >>> from advkit.defenses.mrr.dictionaries import InputDefender
        >>> digits = data.digits("train")
        >>> defender = InputDefender(patch_size=4, atoms=16, sparsity=3, iterations=5)
        >>> fitted = defender.fit(digits.x, digits.y, bounds=(0, 1))
        >>> x, labels = digits.x[-2:], digits.y[-2:]
        >>> bool((fitted.distances(1 - x, labels) > fitted.distances(x, labels)).all())
        True
    """

    patch_size: int = 7
    atoms: int = 225
    sparsity: int = 5
    patches_per_image: int = 30
    iterations: int = 200
    alpha: float = 1.0
    score: Score = "residual"
    channels: Channels = "joint"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("patch_size", "atoms", "sparsity", "patches_per_image", "iterations"):
            checks.integer(name, getattr(self, name), at_least=1)
        if self.sparsity > self.atoms:
            raise ValueError(
                f"`sparsity` must be at most atoms = {self.atoms}, got {self.sparsity}."
            )
        checks.positive("alpha", self.alpha)
        checks.one_of("score", self.score, ("residual", "psnr"))
        checks.one_of("channels", self.channels, ("joint", "separate"))
        checks.integer("seed", self.seed, at_least=0)

    def fit(self, x: Tensor, labels: Tensor, bounds: tuple[float, float]) -> InputDictionaries:
        """Learn a dictionary for each class that occurs.

        The dictionary of a class depends only on its images, in order, and on the seed; no global
        random state is used. If patches are equal, atoms are too, and scikit-learn warns that it
        leaves all but one of them out of a code (`ConvergenceWarning`). The warning is harmless.

        Args:
            x: clean images `(n, channels, height, width)` within `bounds`.
            labels: true labels `(n,)`.
            bounds: lower and upper end of valid pixels.

        Raises:
            TypeError: `x` or `labels` is not a tensor or has the wrong dtype, or `bounds` is not a
                pair.
            ValueError: `x` is not a batch of images within `bounds`, or `labels` are not their
                labels. There is no image, or an image is smaller than a patch. A patch has too few
                values for the sparsity.
        """
        check_images(x, "InputDefender")
        lower, upper = checked_bounds(bounds)
        x = checks.inputs("x", x, (lower, upper))
        labels = label_checks.labels("labels", labels, x)
        if len(x) == 0:
            raise ValueError("`x` must hold images to learn from, got none.")
        self._check_size(x)
        classes = torch.unique(labels)
        learned = [self._learn(x[labels == c], int(c), upper - lower) for c in classes]
        atoms, mean, std = (_to_tensor(part, x.device) for part in zip(*learned, strict=True))
        return InputDictionaries(
            settings=self,
            shape=(x.shape[1], x.shape[2], x.shape[3]),
            classes=classes,
            atoms=F.normalize(atoms, dim=2),
            mean=mean,
            std=std,
            peak=(upper - lower) / std.square().mean(1).sqrt(),
        )

    def _check_size(self, x: Tensor) -> None:
        height, width = x.shape[-2:]
        if min(height, width) < self.patch_size:
            raise ValueError(
                f"`x` must be images of at least {self.patch_size}x{self.patch_size} pixels, the "
                f"size of a patch, got {height}x{width}."
            )
        numbers = self.patch_size**2 * (x.shape[1] if self.channels == "joint" else 1)
        if self.sparsity >= numbers:
            raise ValueError(
                f"`sparsity` must be below the {numbers} numbers of a patch, got {self.sparsity}. "
                "More atoms reconstruct any input."
            )

    def _learn(self, x: Tensor, label: int, span: float) -> tuple[Floats, Floats, Floats]:
        """Return atoms `(atoms, d)`, mean and deviation `(d,)` of patches of images of a class."""
        rng = np.random.default_rng([self.seed, label])
        patches = self._patches(at_least_float32(x).cpu().numpy(), rng)
        mean, std = patches.mean(0), patches.std(0).clip(span / _GRAY_LEVELS)
        return self._atoms((patches - mean) / std, rng), mean, std

    def _patches(self, x: npt.NDArray[np.floating[Any]], rng: np.random.Generator) -> Floats:
        """Draw patches `(m, d)` from images `(n, channels, height, width)`, evenly over images."""
        planes = x if self.channels == "joint" else x.reshape(-1, 1, *x.shape[2:])
        n, _, height, width = planes.shape
        m = min(n * self.patches_per_image, self.iterations * _BATCH_SIZE)
        image = np.resize(rng.permutation(n), m)
        top = rng.integers(height - self.patch_size + 1, size=m)
        residuals = rng.integers(width - self.patch_size + 1, size=m)
        views = np.lib.stride_tricks.sliding_window_view(
            planes, (self.patch_size,) * 2, axis=(2, 3)
        )
        return views[image, :, top, residuals].reshape(m, -1).astype(np.float64)

    def _atoms(self, patches: Floats, rng: np.random.Generator) -> Floats:
        """Learn atoms `(atoms, d)` from standardized patches `(m, d)`; some may be too short."""
        from sklearn.decomposition import MiniBatchDictionaryLearning  # it takes a second to import

        order = rng.permutation(len(patches))
        learner = MiniBatchDictionaryLearning(
            n_components=self.atoms,
            alpha=self.alpha,
            random_state=int(rng.integers(2**31)),
        )
        for rows in np.resize(order, (self.iterations, _BATCH_SIZE)):
            learner.partial_fit(patches[rows])
        return np.asarray(learner.components_)


@dataclass(frozen=True, kw_only=True, eq=False)
class InputDictionaries:
    """Dictionaries of an `InputDefender`, one for each of `k` classes.

    Attributes:
        settings: settings they were learned with.
        shape: channels, height and width of the images.
        classes: int64 `(k,)`, the labels that occurred, in ascending order.
        atoms: `(k, atoms, d)` of length 1, for patches of `d` values.
        mean: `(k, d)`, mean of the patches of the class.
        std: `(k, d)`, their standard deviation, at least one gray level.
        peak: `(k,)`, the span of the bounds divided by the root mean square of `std`.
        count: number of distances for each input.
    """

    settings: InputDefender
    shape: tuple[int, int, int]
    classes: Tensor
    atoms: Tensor
    mean: Tensor
    std: Tensor
    peak: Tensor
    count: ClassVar[int] = 1

    def distances(self, x: Tensor, labels: Tensor) -> Tensor:
        """Return the distance of each input to sums of a few atoms of the class of its label.

        Tiles start at 0, `patch_size`, `2 * patch_size` and so on. The last one ends at the border,
        which counts some pixels twice if `patch_size` does not divide the image.

        The gradient is exact wherever the chosen atoms do not change. The residual is orthogonal to
        the atoms, so a change of their weights has no effect to first order.

        Args:
            x: `(n, channels, height, width)` like the images of `fit`.
            labels: predicted labels `(n,)`.

        Returns:
            `(n, 1)` in the dtype of `x`, float32 at least: the score of the settings, where greater
            is more anomalous. It is infinite for a label without images in `fit`.

        Raises:
            TypeError: `x` or `labels` is not a tensor, or has the wrong dtype.
            ValueError: `x` or `labels` has the wrong shape or range.
        """
        self._check(x)
        labels = label_checks.labels("labels", labels, x)
        x = at_least_float32(x)
        distances = math.inf + 0 * x.flatten(1).sum(1)  # in the graph of x for all labels
        for i, label in enumerate(self.classes.tolist()):
            rows = (labels == label).nonzero().squeeze(1)
            if len(rows):
                distances = distances.index_put((rows,), self._scores(x[rows], i))
        return distances[:, None]

    def features(self, x: Tensor) -> Tensor:
        """Return an empty tensor `(n, 0)`: dictionaries have no features that two inputs can share.

        The residual of a natural image is specific to it. An attack that imitates one must nearly
        become that image.
        """
        return at_least_float32(x).new_empty(len(x), 0)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything that was learned, for a file; `from_arrays` reads it."""
        learned = {name: getattr(self, name).cpu().numpy() for name in _LEARNED}
        return {"shape": np.array(self.shape, np.int64), **learned}

    @classmethod
    def from_arrays(
        cls, settings: InputDefender, arrays: Mapping[str, npt.NDArray[Any]]
    ) -> InputDictionaries:
        """Restore dictionaries from `arrays` of the same settings, bit for bit, on the CPU.

        Raises:
            ValueError: an array is missing, does not have the shape or dtype that matches the
                settings and the other arrays, or holds impossible values.
        """
        missing = [name for name in ("shape", *_LEARNED) if name not in arrays]
        if missing:
            raise ValueError(f"`arrays` must hold {', '.join(missing)}, got {', '.join(arrays)}.")
        shape, k = arrays["shape"].ravel()[:1].tolist(), arrays["classes"].size
        for name, expected in _expected_arrays(settings, shape, k).items():
            found = (arrays[name].dtype, arrays[name].shape)
            if found != expected:
                raise ValueError(
                    f"`arrays[{name!r}]` must be {expected[0]} of shape {expected[1]} with these "
                    f"settings, got {found[0]} of shape {found[1]}."
                )
        _check_values(settings, arrays)
        learned = {name: torch.tensor(arrays[name]) for name in _LEARNED}
        return cls(settings=settings, shape=tuple(arrays["shape"].tolist()), **learned)

    def to(self, device: torch.device | str) -> InputDictionaries:
        """Return a copy on `device`."""
        return replace(self, **{name: getattr(self, name).to(device) for name in _LEARNED})

    def _check(self, x: Tensor) -> None:
        checks.floats("x", x)
        if tuple(x.shape[1:]) != self.shape:
            wanted = ", ".join(str(side) for side in self.shape)
            raise ValueError(
                f"`x` must have shape (n, {wanted}) like the images of fit, got {tuple(x.shape)}."
            )

    def _scores(self, x: Tensor, i: int) -> Tensor:
        """Return the scores `(n,)` of images `x` with the dictionary of the `i`-th class."""
        atoms, mean, std = (part[i].to(x) for part in (self.atoms, self.mean, self.std))
        tiles = (self._tiles(x) - mean) / std  # (n, t, d)
        sums = orthogonal_matching_pursuit(tiles.flatten(0, 1), atoms, self.settings.sparsity)
        residuals = tiles - sums.view_as(tiles)
        residual: Tensor = torch.linalg.vector_norm(residuals, dim=(1, 2))
        if self.settings.score == "residual":
            return residual
        peak = float(self.peak[i]) * math.sqrt(tiles.shape[1] * tiles.shape[2])
        return 20 * (residual.clamp_min(torch.finfo(x.dtype).tiny) / peak).log10()

    def _tiles(self, x: Tensor) -> Tensor:
        """Cut images into tiles `(n, t, d)`."""
        side = self.settings.patch_size
        rows, columns = (_tile_indices(length, side, x.device) for length in x.shape[-2:])
        tiles = x[:, :, rows[:, None, :, None], columns[None, :, None, :]]  # (n, c, a, b, p, p)
        return tiles.movedim(1, 3).reshape(len(x), -1, self.atoms.shape[2])


_LEARNED = tuple(
    field.name for field in fields(InputDictionaries) if field.name not in ("settings", "shape")
)


def _to_tensor(arrays: tuple[Floats, ...], device: torch.device) -> Tensor:
    return torch.from_numpy(np.stack(arrays).astype(np.float32)).to(device)


def _tile_indices(length: int, side: int, device: torch.device) -> Tensor:
    """Return indices `(t, side)` of tiles that cover `length` pixels up to the border."""
    starts = torch.arange(0, length, side, device=device).clamp_max(length - side)
    return starts[:, None] + torch.arange(side, device=device)


def _check_values(settings: InputDefender, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Raise unless arrays of the right shapes hold values that a fit can give."""
    channels, height, width = arrays["shape"].tolist()
    classes = arrays["classes"]
    lengths = np.linalg.norm(arrays["atoms"].astype(np.float64), axis=2)
    valid = {
        "shape": channels >= 1 and min(height, width) >= settings.patch_size,
        "classes": bool((classes[:1] >= 0).all() and (classes[1:] > classes[:-1]).all()),
        "atoms": bool((lengths <= 1 + _NORM_TOLERANCE).all()),
        "mean": bool(np.isfinite(arrays["mean"]).all()),
        "std": bool(((arrays["std"] > 0) & (arrays["std"] < np.inf)).all()),
        "peak": bool(((arrays["peak"] > 0) & (arrays["peak"] < np.inf)).all()),
    }
    for name, holds in valid.items():
        if not holds:
            raise ValueError(f"`arrays[{name!r}]` must hold values that a fit can give.")


def _expected_arrays(
    settings: InputDefender, shape: list[int], k: int
) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Return dtype and shape of each learned array, for images of `shape` and `k` classes."""
    float32, int64 = np.dtype(np.float32), np.dtype(np.int64)
    d = settings.patch_size**2 * (shape[0] if shape and settings.channels == "joint" else 1)
    return {
        "shape": (int64, (3,)),
        "classes": (int64, (k,)),
        "atoms": (float32, (k, settings.atoms, d)),
        "mean": (float32, (k, d)),
        "std": (float32, (k, d)),
        "peak": (float32, (k,)),
    }
