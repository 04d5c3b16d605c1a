"""Defenders at the input: dictionaries that patches of a class are made of, few atoms at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from sklearn.decomposition import MiniBatchDictionaryLearning
from torch import Tensor
from torch.nn import functional as F

from advkit.core import checks
from advkit.core.tensors import at_least_float32
from advkit.defenses.mrr.sparse import pursue
from advkit.defenses.pixels import check_floats, check_images
from advkit.models.torch import checked_bounds

Score = Literal["residual", "psnr"]
Channels = Literal["joint", "separate"]
Floats = npt.NDArray[np.float64]

_BATCH = 64  # patches of a step of learning
_ROUNDING = 1e-4  # of the length of an atom
_GREY_LEVELS = 255  # a spread of less than one of them counts as one


@dataclass(frozen=True, kw_only=True)
class InputDefender:
    """How to learn a dictionary of patches for each class (Rouhani et al., 2018, arXiv:1709.02538).

    A natural image is nearly a sum of few atoms of its class; a perturbation is not. The greater
    what is left over, with the dictionary of the class that the model answers, the more suspicious
    the input. It catches large perturbations; small ones are the latent defenders' part.

    A dictionary is learned by online dictionary learning (Mairal et al., 2009) on patches at random
    places, whose pixels are brought to mean 0 and standard deviation 1 each; inputs are cut into
    tiles, brought likewise, and coded by orthogonal matching pursuit.

    Deviations: the authors' code standardises the patches that it learns from, and not the tiles
    that it judges; here both are. It learns from up to 30 patches of every image; here from as many
    of a class as `iterations` steps of 64 take, 12,800, so that ten classes of 225 atoms take about
    a minute on one core. It gives a tile 4, 5 or 32 atoms, depending on the version; with more of
    them smaller perturbations show, and the time grows (on MNIST the AUC of FGSM at eps 0.2 is
    0.986 with 5, 0.998 with 10 and 0.999 with 32, which takes eleven times as long as 5). Its
    second rule, that the model's answer change with the reconstruction, is left out. Channels of
    an image are patches of their own there (`channels="separate"`).

    Args:
        patch: side of patches and tiles, in pixels.
        atoms: of each class.
        sparsity: atoms that a tile may use; at most `atoms`, and below the numbers of a patch.
        per_image: patches to learn from of an image, or of each of its separate channels, at most.
        iterations: steps of learning, each on 64 patches.
        alpha: weight of the l1 norm of the codes while learning; positive.
        score: `"residual"`, the l2 norm of what the tiles leave, in standard deviations of the
            pixels of the class; `"psnr"`, minus the peak signal-to-noise ratio, in dB, where the
            peak is the span of the bounds in the same unit. Within a class both put inputs into the
            same order.
        channels: `"joint"`, a patch holds all channels; `"separate"`, one of them.
        seed: what patches and learning follow from.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of its range.

    Example:
        >>> from advkit import data
        >>> from advkit.defenses.mrr.dictionaries import InputDefender
        >>> digits = data.digits("train")
        >>> defender = InputDefender(patch=4, atoms=16, sparsity=3, iterations=5)
        >>> fitted = defender.fit(digits.x, digits.y, bounds=(0, 1))
        >>> x, labels = digits.x[-2:], digits.y[-2:]
        >>> bool((fitted.distances(1 - x, labels) > fitted.distances(x, labels)).all())
        True
    """

    patch: int = 7
    atoms: int = 225
    sparsity: int = 5
    per_image: int = 30
    iterations: int = 200
    alpha: float = 1.0
    score: Score = "residual"
    channels: Channels = "joint"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("patch", "atoms", "sparsity", "per_image", "iterations"):
            checks.integer(name, getattr(self, name), at_least=1)
        if self.sparsity > self.atoms:
            raise ValueError(
                f"`sparsity` must be at most atoms = {self.atoms}, got {self.sparsity}"
            )
        checks.positive("alpha", self.alpha)
        checks.one_of("score", self.score, ("residual", "psnr"))
        checks.one_of("channels", self.channels, ("joint", "separate"))
        checks.integer("seed", self.seed, at_least=0)

    def fit(self, x: Tensor, labels: Tensor, bounds: tuple[float, float]) -> InputDictionaries:
        """Learn a dictionary for each class that occurs.

        The dictionary of a class follows from its images, in their order, and the seed; no global
        random state is used. Where patches are alike, so are atoms, and scikit-learn warns that it
        leaves all but one of them out of a code (`ConvergenceWarning`), which does no harm.

        Args:
            x: `(n, channels, height, width)`, clean, within `bounds`.
            labels: `(n,)`, the true ones.
            bounds: lower and upper end of valid pixels.

        Raises:
            TypeError: `x` or `labels` is no tensor, or of the wrong dtype, or `bounds` no pair.
            ValueError: they are no images and their labels, `bounds` are no interval that holds
                them, there is no image, an image is smaller than a patch, or a patch has too few
                numbers for the sparsity.
        """
        check_images(x, "InputDefender")
        lower, upper = checked_bounds(bounds)
        x = checks.inputs(x, (lower, upper))
        labels = checks.labels("labels", labels, x)
        if len(x) == 0:
            raise ValueError("`x` must hold images to learn from, got none")
        self._check_size(x)
        classes = torch.unique(labels)
        learned = [self._learn(x[labels == c], int(c), upper - lower) for c in classes]
        atoms, mean, std = (_stacked(part, x.device) for part in zip(*learned, strict=True))
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
        if min(height, width) < self.patch:
            raise ValueError(
                f"`x` must be images of at least {self.patch}x{self.patch} pixels, the size of a "
                f"patch, got {height}x{width}"
            )
        numbers = self.patch**2 * (x.shape[1] if self.channels == "joint" else 1)
        if self.sparsity >= numbers:
            raise ValueError(
                f"`sparsity` must be below the {numbers} numbers of a patch, got {self.sparsity}: "
                "so many atoms leave nothing of any input"
            )

    def _learn(self, x: Tensor, label: int, span: float) -> tuple[Floats, Floats, Floats]:
        """Atoms `(atoms, d)`, mean and deviation `(d,)` of patches of the images of a class."""
        rng = np.random.default_rng([self.seed, label])
        patches = self._patches(at_least_float32(x).cpu().numpy(), rng)
        mean, std = patches.mean(0), patches.std(0).clip(span / _GREY_LEVELS)
        return self._atoms((patches - mean) / std, rng), mean, std

    def _patches(self, x: npt.NDArray[np.floating[Any]], rng: np.random.Generator) -> Floats:
        """Patches `(m, d)` of images `(n, channels, height, width)`, from as many as there are."""
        planes = x if self.channels == "joint" else x.reshape(-1, 1, *x.shape[2:])
        n, _, height, width = planes.shape
        m = min(n * self.per_image, self.iterations * _BATCH)
        image = np.resize(rng.permutation(n), m)
        top = rng.integers(height - self.patch + 1, size=m)
        left = rng.integers(width - self.patch + 1, size=m)
        views = np.lib.stride_tricks.sliding_window_view(planes, (self.patch,) * 2, axis=(2, 3))
        return views[image, :, top, left].reshape(m, -1).astype(np.float64)

    def _atoms(self, patches: Floats, rng: np.random.Generator) -> Floats:
        """Atoms `(atoms, d)` learned from standardised patches `(m, d)`; they may be too short."""
        order = rng.permutation(len(patches))
        learner = MiniBatchDictionaryLearning(
            n_components=self.atoms,
            alpha=self.alpha,
            random_state=int(rng.integers(2**31)),
        )
        for rows in np.resize(order, (self.iterations, _BATCH)):
            learner.partial_fit(patches[rows])
        return np.asarray(learner.components_)


@dataclass(frozen=True, kw_only=True, eq=False)
class InputDictionaries:
    """What an `InputDefender` has learned: a dictionary for each of `k` classes.

    Attributes:
        settings: what it was learned by.
        shape: channels, height and width of the images.
        classes: int64 `(k,)`, the labels that occurred, in ascending order.
        atoms: `(k, atoms, d)` of length 1, for patches of `d` numbers.
        mean: `(k, d)`, of the patches of the class.
        std: `(k, d)`, their standard deviation, at least a grey level.
        peak: `(k,)`, the span of the bounds over the root mean square of `std`.
        count: distances for each input.
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
        """How far each input is from sums of few atoms of the class in its label.

        Tiles start at 0, `patch`, `2 * patch` and so on; a last one ends at the border, so that
        pixels count twice if `patch` does not divide the image.

        The gradient is exact wherever the chosen atoms do not change: a projection leaves what is
        orthogonal to the atoms, so that to first order moving their weights changes nothing.

        Args:
            x: `(n, channels, height, width)` like the images of `fit`.
            labels: `(n,)`, what the model answers.

        Returns:
            `(n, 1)` in the dtype of `x`, float32 at least: the score of the settings, greater is
            more suspicious; infinity for a label of which `fit` saw no image.

        Raises:
            TypeError: `x` or `labels` is no tensor, or of the wrong dtype.
            ValueError: they are no such images and labels.
        """
        self._check(x)
        labels = checks.labels("labels", labels, x)
        x = at_least_float32(x)
        found = math.inf + 0 * x.flatten(1).sum(1)  # of x's graph, whatever the labels are
        for i, label in enumerate(self.classes.tolist()):
            rows = (labels == label).nonzero().squeeze(1)
            if len(rows):
                found = found.index_put((rows,), self._scores(x[rows], i))
        return found[:, None]

    def features(self, x: Tensor) -> Tensor:
        """Nothing, `(n, 0)`: there is no feature here that an input could share with another.

        What a natural image leaves of its tiles is its own. An attack that takes the place of one
        must become nearly that image.
        """
        return at_least_float32(x).new_empty(len(x), 0)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All that was learned, for a file; `from_arrays` reads it."""
        learned = {name: getattr(self, name).cpu().numpy() for name in _LEARNED}
        return {"shape": np.array(self.shape, np.int64), **learned}

    @classmethod
    def from_arrays(
        cls, settings: InputDefender, arrays: Mapping[str, npt.NDArray[Any]]
    ) -> InputDictionaries:
        """What `arrays` of the same settings gave, bit for bit, on the CPU.

        Raises:
            ValueError: an array is missing, does not have the shape or dtype that goes with the
                settings and the other arrays, or holds impossible values.
        """
        missing = [name for name in ("shape", *_LEARNED) if name not in arrays]
        if missing:
            raise ValueError(f"`arrays` must hold {', '.join(missing)}, got {', '.join(arrays)}")
        shape, k = arrays["shape"].ravel()[:1].tolist(), arrays["classes"].size
        for name, wanted in _wanted(settings, shape, k).items():
            found = (arrays[name].dtype, arrays[name].shape)
            if found != wanted:
                raise ValueError(
                    f"arrays[{name!r}] must be {wanted[0]} of shape {wanted[1]} with these "
                    f"settings, got {found[0]} of shape {found[1]}"
                )
        _check_values(settings, arrays)
        learned = {name: torch.tensor(arrays[name]) for name in _LEARNED}
        return cls(settings=settings, shape=tuple(arrays["shape"].tolist()), **learned)

    def to(self, device: torch.device | str) -> InputDictionaries:
        """The same on `device`."""
        return replace(self, **{name: getattr(self, name).to(device) for name in _LEARNED})

    def _check(self, x: Tensor) -> None:
        check_floats(x)
        if tuple(x.shape[1:]) != self.shape:
            wanted = ", ".join(str(side) for side in self.shape)
            raise ValueError(
                f"`x` must have shape (n, {wanted}) like the images of fit, got {tuple(x.shape)}"
            )

    def _scores(self, x: Tensor, i: int) -> Tensor:
        """Scores `(n,)` of images `x` with the dictionary of the `i`-th class."""
        atoms, mean, std = (part[i].to(x) for part in (self.atoms, self.mean, self.std))
        tiles = (self._tiles(x) - mean) / std  # (n, t, d)
        sums = pursue(tiles.flatten(0, 1), atoms, self.settings.sparsity)
        left = tiles - sums.view_as(tiles)
        residual: Tensor = torch.linalg.vector_norm(left, dim=(1, 2))
        if self.settings.score == "residual":
            return residual
        peak = float(self.peak[i]) * math.sqrt(tiles.shape[1] * tiles.shape[2])
        return 20 * (residual.clamp_min(torch.finfo(x.dtype).tiny) / peak).log10()

    def _tiles(self, x: Tensor) -> Tensor:
        """The tiles of images, `(n, t, d)`."""
        side = self.settings.patch
        rows, columns = (_tile_indices(length, side, x.device) for length in x.shape[-2:])
        tiles = x[:, :, rows[:, None, :, None], columns[None, :, None, :]]  # (n, c, a, b, p, p)
        return tiles.movedim(1, 3).reshape(len(x), -1, self.atoms.shape[2])


_LEARNED = tuple(
    field.name for field in fields(InputDictionaries) if field.name not in ("settings", "shape")
)


def _stacked(arrays: tuple[Floats, ...], device: torch.device) -> Tensor:
    return torch.from_numpy(np.stack(arrays).astype(np.float32)).to(device)


def _tile_indices(length: int, side: int, device: torch.device) -> Tensor:
    """Indices `(t, side)` of tiles that cover `length` pixels, the last one up to the border."""
    starts = torch.arange(0, length, side, device=device).clamp_max(length - side)
    return starts[:, None] + torch.arange(side, device=device)


def _check_values(settings: InputDefender, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Raise unless arrays of the right shapes hold what can have been learned."""
    channels, height, width = arrays["shape"].tolist()
    classes = arrays["classes"]
    lengths = np.linalg.norm(arrays["atoms"].astype(np.float64), axis=2)
    sound = {
        "shape": channels >= 1 and min(height, width) >= settings.patch,
        "classes": bool((classes[:1] >= 0).all() and (classes[1:] > classes[:-1]).all()),
        "atoms": bool((lengths <= 1 + _ROUNDING).all()),
        "mean": bool(np.isfinite(arrays["mean"]).all()),
        "std": bool(((arrays["std"] > 0) & (arrays["std"] < np.inf)).all()),
        "peak": bool(((arrays["peak"] > 0) & (arrays["peak"] < np.inf)).all()),
    }
    for name, holds in sound.items():
        if not holds:
            raise ValueError(f"arrays[{name!r}] holds impossible values")


def _wanted(
    settings: InputDefender, shape: list[int], k: int
) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
    """Dtype and shape of each array that was learned from images of `shape` of `k` classes."""
    single, whole = np.dtype(np.float32), np.dtype(np.int64)
    d = settings.patch**2 * (shape[0] if shape and settings.channels == "joint" else 1)
    return {
        "shape": (whole, (3,)),
        "classes": (whole, (k,)),
        "atoms": (single, (k, settings.atoms, d)),
        "mean": (single, (k, d)),
        "std": (single, (k, d)),
        "peak": (single, (k,)),
    }
