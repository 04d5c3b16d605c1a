"""Randomized smoothing: the majority class under Gaussian noise, with a certified radius."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F

from advkit.core import checks, sample_rows
from advkit.core.progress import progress_bar
from advkit.core.randomness import sample_keys
from advkit.core.tensors import at_least_float32
from advkit.defenses.certificates import (
    Certificates,
    certified_radius,
    min_draws,
    probability_bound,
    vote_p_value,
)
from advkit.models import REJECTED
from advkit.models.ensemble import Forward
from advkit.models.wrappers import ClassifierWrapper, straight_through

_BLOCK_SIZE = 100  # draws of a sample at once; fixed, so that they do not depend on the batch size
# Samples that share their draws share their errors, so inputs are distinguished on a grid that is
# finer than that of a random start. 8-bit values are still far from its edges in any units.
_GRID_REFINEMENT = 64
_SELECTION_STREAM = 0  # draws that select the class
_ESTIMATION_STREAM = 1  # draws that bound its probability
_SCORES_STREAM = 2  # draws of scores and logits


class RandomizedSmoothing(ClassifierWrapper):
    """Classifier that returns a model's most frequent class under Gaussian noise, certified in l2.

    Cohen, Rosenfeld and Kolter (2019, arXiv:1902.02918). The smoothed classifier g returns the most
    probable prediction of the model for `x + sigma * N(0, I)`. Where its probability is at least
    p > 1/2, g returns the same class everywhere within `sigma * Phi^-1(p)` of `x` in l2.

    `predict` and `certify` estimate g by sampling. Each is wrong for an input with a probability of
    at most `alpha`, and abstains (`REJECTED`) where its draws do not decide. They only need labels
    of the
    model; a rejection by the model counts as one more class. The model should be trained with
    noise: `GaussianNoise`.

    An attack on this model is adaptive. `logits`, for a model that has them, are the logarithms of
    the shares of `draws` votes. Their gradient is that of the logarithm of the mean softmax, as in
    SmoothAdv (Salman et al., 2019, arXiv:1906.04584).

    As in the paper, the noise is in the units of `x` and not clipped to `bounds`; the theorem needs
    both. The model is therefore evaluated beyond its bounds. The draws depend on `seed` and the
    content of a sample, not on its batch. They differ between kinds of devices.

    The guarantee holds for inputs that are chosen without knowledge of `seed`, and in real
    arithmetic (Voracek and Hein, 2023, arXiv:2207.07209, show the effects of floating point). The
    number of draws is fixed in advance: to stop as soon as the bound is good enough would select
    lucky draws, and would invalidate the bound.

    Deviations from the paper:
        - `predict` uses the `n0` draws with which `certify` selects the class.
        - `scores` and `logits` use other draws, and return their majority where `predict` abstains.
          Attacks use them as criterion, so an attack with `stop="first"` may stop at a point where
          `predict` abstains. Use `stop="never"`, and evaluate the result with `predict`.
        - The draws change as the input moves. Salman et al. keep the same draws at all steps of an
          attack.

    Args:
        model: any classifier.
        sigma: standard deviation of the noise, in input units; positive.
        n0: draws of `predict`, and of the selection of the class in `certify`.
        n: further draws of `certify`, for the bound; no radius is above
            `sigma * Phi^-1(alpha ** (1 / n))`.
        alpha: probability of an error for an input, in (0, 1).
        draws: noisy copies of an input in `scores` and `logits`; `logits` keeps all of them for the
            backward pass.
        seed: seed of the noise.
        batch_size: largest number of noisy copies in one call of the model.

    Raises:
        TypeError: an argument has the wrong type, or `model` is not a classifier.
        ValueError: an argument is out of its range, or `n0` or `n` is too small to decide at
            `alpha` even if all draws agree.

    Example:
        >>> import torch
        >>> from advkit import attacks
        >>> from advkit.defenses import RandomizedSmoothing
        >>> net = torch.nn.Linear(4, 2)
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0], [-1.0]]))
        >>> _ = net.bias.data.copy_(torch.tensor([-2.0, 2.0]))
        >>> model = RandomizedSmoothing(net, sigma=0.25, n=1000)
        >>> x = torch.tensor([[0.9] * 4, [0.5] * 4, [0.2] * 4])  # distances 0.8, 0.0, 0.6
        >>> model.predict(x)
        tensor([ 0, -1,  1])
        >>> y = torch.tensor([0, 1, 1])
        >>> certificates = model.certify(x)
        >>> certificates.certified_accuracy(y, radius=0.4)
        0.6666666666666666
        >>> attack = attacks.PGD(norm="l2", eps=0.9, stop="never")  # the adaptive attack
        >>> x_adv = attack(model, x, y)
        >>> model.predict(x_adv)
        tensor([1, 0, 0])
    """

    def __init__(
        self,
        model: object,
        sigma: float,
        *,
        n0: int = 100,
        n: int = 10_000,
        alpha: float = 0.001,
        draws: int = 64,
        seed: int = 0,
        batch_size: int = 500,
    ) -> None:
        super().__init__(model)
        checks.positive("sigma", sigma)
        for name, count in {"n0": n0, "n": n, "draws": draws, "batch_size": batch_size}.items():
            checks.integer(name, count, at_least=1)
        checks.fraction("alpha", alpha, "(0, 1)")
        _check_draws(n0, n, alpha)
        checks.integer("seed", seed)
        self.sigma = sigma
        self.n0 = n0
        self.n = n
        self.alpha = alpha
        self.draws = draws
        self.seed = seed
        self.batch_size = batch_size

    def __repr__(self) -> str:
        return f"RandomizedSmoothing({self.model!r}, sigma={self.sigma:g})"

    @property
    def max_batch(self) -> int | None:
        """Largest number of inputs whose copies fit into a call of the model; `None` for any."""
        inner_max = super().max_batch
        return None if inner_max is None else max(1, inner_max // max(self.n0, self.draws))

    @property
    def scores(self) -> Forward:
        """Function from `x` `(n, *features)` to the shares of `draws` votes, `(n, num_classes)`.

        The shares sum to less than one where the model rejects noisy copies.
        """
        return self._scores

    def predict(self, x: Tensor) -> Tensor:
        """Return labels `(n,)` of `x`, or `REJECTED` to abstain: the paper's PREDICT.

        The two classes with the most votes of `n0` draws are compared in a two-sided exact test.

        Args:
            x: inputs `(n, *features)` within the bounds.

        Raises:
            ValueError: `x` has the wrong shape, is not finite or not within the bounds.
            TypeError: `x` is not of a floating dtype.
        """
        x = checks.inputs("x", x, self.bounds)
        votes = self._votes(x, self.n0, _SELECTION_STREAM)
        first, second = votes.topk(2, dim=1).values.cpu().unbind(1)
        undecided = (vote_p_value(first, second) > self.alpha).to(x.device)
        return _majority(votes).masked_fill(undecided, REJECTED)

    def certify(self, x: Tensor, *, progress: bool = False) -> Certificates:
        """Certify the classes of `x` `(n, *features)` and their l2 radii: the paper's CERTIFY.

        `n0` draws select the class. `n` others bound its probability from below (Clopper and
        Pearson, 1934, one-sided at `alpha`).

        Args:
            x: inputs within the bounds; each needs `n0 + n` forward passes of the model.
            progress: show a progress bar over the inputs.

        Raises:
            ValueError: `x` has the wrong shape, is not finite or not within the bounds.
            TypeError: `x` is not of a floating dtype.
        """
        x = checks.inputs("x", x, self.bounds)
        with sample_rows.numbered(len(x), total=len(x)):
            labels = _majority(self._votes(x, self.n0, _SELECTION_STREAM))
            votes = self._votes(x, self.n, _ESTIMATION_STREAM, progress)
        counts = votes.gather(1, labels.remainder(votes.shape[1])[:, None]).squeeze(1)
        p_lower = probability_bound(counts, self.n, self.alpha)
        radius = checks.rounded_down(certified_radius(p_lower, self.sigma), x)
        radius = radius.masked_fill(labels == REJECTED, 0)
        return Certificates(
            labels=labels.masked_fill(radius == 0, REJECTED),
            radius=radius,
            counts=counts,
            p_lower=checks.rounded_down(p_lower, x),
            sigma=self.sigma,
            n=self.n,
            alpha=self.alpha,
            label_values=self.label_values,
        )

    def _scores(self, x: Tensor) -> Tensor:
        x = checks.inputs("x", x, self.bounds)
        votes = self._votes(x, self.draws, _SCORES_STREAM)[:, :-1]
        return votes.to(torch.promote_types(x.dtype, torch.float32)) / self.draws

    def _call_inner(self, forward: Forward, x: Tensor) -> Tensor:
        """Return logarithms of vote shares, with the gradient of the logarithm of the mean softmax.

        One additional vote is distributed like the mean softmax. This keeps shares above zero and
        breaks ties, and the gradient of a loss is taken near the point that it belongs to.
        """
        checks.inputs("x", x, self.bounds)  # its result has no gradient
        with self.evaluating():
            logits = self._outputs_of_copies(forward, x, self.draws, _SCORES_STREAM)
        logits = at_least_float32(logits.view(len(x), self.draws, logits.shape[1]))
        checks.finite_logits(logits.flatten(1))
        log_mean = logits.log_softmax(2).logsumexp(1) - math.log(self.draws)
        votes = F.one_hot(logits.argmax(2), logits.shape[2]).sum(1)
        shares = votes.to(log_mean.dtype).log().logaddexp(log_mean.detach()) - math.log(
            self.draws + 1
        )
        return straight_through(log_mean, shares)

    def _votes(self, x: Tensor, draws: int, stream: int, progress: bool = False) -> Tensor:
        """Count the predictions for noisy copies by class, int64 `(n, num_classes + 1)`.

        The last column is that of rejections.
        """

        def count(part: Tensor) -> Tensor:
            outputs = self._outputs_of_copies(self.model.predict, part, draws, stream)
            num_columns = self.num_classes + 1
            columns = outputs.remainder(num_columns).view(len(part), draws)
            advance(len(part))
            votes = columns.new_zeros(len(part), num_columns)
            return votes.scatter_add_(1, columns, torch.ones_like(columns))

        chunk_size = max(1, self.batch_size // draws)
        with self.evaluating(), progress_bar("draws", len(x), progress) as advance:
            return sample_rows.in_parts(count, x, size=chunk_size)

    def _outputs_of_copies(self, forward: Forward, x: Tensor, draws: int, stream: int) -> Tensor:
        """Return the outputs for `draws` noisy copies of each of `x`, `(n * draws, ...)`."""
        outputs, start = [], 0
        for copies in self._copies(x, draws, stream):
            rows = torch.arange(start, start + len(copies)) // draws
            with sample_rows.selected(rows, len(x)):
                outputs.append(forward(copies))
            start += len(copies)
        return torch.cat(outputs)

    def _copies(self, x: Tensor, draws: int, stream: int) -> Iterator[Tensor]:
        """Yield `draws` noisy copies of each of `x` `(n, *features)` in order, in batches."""
        blocks = self._blocks(x, draws, stream)
        chunk_size = max(1, self.batch_size // min(draws, _BLOCK_SIZE))
        if not len(x):
            yield x  # for the shape of empty outputs
        while group := list(islice(blocks, chunk_size)):
            yield from torch.split(torch.cat(group), self.batch_size)  # a block may be larger

    def _blocks(self, x: Tensor, draws: int, stream: int) -> Iterator[Tensor]:
        """Yield noisy copies `(m, *features)` of one sample after another, in blocks."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        lower, upper = self.bounds
        cell = (lower, lower + (upper - lower) / _GRID_REFINEMENT)
        keys = sample_keys(x.detach(), cell, self.seed, stream).tolist()
        for sample, key in zip(x, keys, strict=True):
            generator = torch.Generator(x.device).manual_seed(key)
            for remaining in range(draws, 0, -_BLOCK_SIZE):
                shape = (min(remaining, _BLOCK_SIZE), *sample.shape)
                noise = torch.randn(shape, generator=generator, dtype=dtype, device=x.device)
                yield torch.add(sample, noise, alpha=self.sigma).to(x.dtype)


def _majority(votes: Tensor) -> Tensor:
    """Return the labels `(n,)` with the most votes; the last column is that of rejections."""
    best = votes.argmax(1)
    return best.masked_fill(best == votes.shape[1] - 1, REJECTED)


def _check_draws(n0: int, n: int, alpha: float) -> None:
    """Raise if `n0` or `n` draws can never decide at `alpha`."""
    min_n0, min_n = min_draws(alpha)
    if n0 < min_n0 or n < min_n:
        raise ValueError(
            f"`n0` must be at least {min_n0} and `n` at least {min_n} to decide at "
            f"alpha={alpha:g}, got n0={n0} and n={n}. Take more draws or a larger `alpha`."
        )
