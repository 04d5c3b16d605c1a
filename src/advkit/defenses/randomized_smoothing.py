"""Randomised smoothing: the answer that Gaussian noise gives most often, and how far it holds."""

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
    fewest_draws,
    probability_bound,
    vote_p_value,
)
from advkit.models import REJECTED
from advkit.models.ensemble import Forward
from advkit.models.wrappers import ClassifierWrapper, straight_through

# Draws come in blocks of this size, so that they do not depend on the batch size.
_BLOCK = 100
# Inputs are told apart on a grid so many times finer than that of a random start, since those that
# share their draws share their errors; 8-bit values are still far from its edges in any units.
_FINER = 64
# Streams of draws of a sample: to guess its class, to bound the probability of it, to climb.
_GUESS, _BOUND, _CLIMB = range(3)


class RandomizedSmoothing(ClassifierWrapper):
    """The class that a model answers most often under Gaussian noise, certified within an l2 ball.

    Cohen, Rosenfeld and Kolter (2019, arXiv:1902.02918). The smoothed classifier g gives the class
    that the model most probably answers to `x + sigma * N(0, I)`. Where that probability is at
    least p > 1/2, g gives the same class everywhere within `sigma * Phi^-1(p)` of `x` in l2.
    `predict` and `certify` estimate g by sampling; each may be wrong about an input with a
    probability of at most `alpha`, and abstains (`REJECTED`) where its draws cannot decide. Labels
    are all they need of the model, and a rejection by it is one more answer. A model withstands
    noise if it was trained with it: `GaussianNoise`.

    An attack on this model is the adaptive attack. `logits`, of a model that has them, are the
    logarithms of the shares of `draws` votes, with the gradient of the logarithm of the mean
    softmax: that of SmoothAdv (Salman et al., 2019, arXiv:1906.04584).

    The noise is that of the paper: in the units of `x` and not clipped to `bounds`, without which
    there is no theorem; so the model is asked beyond its bounds. The draws are keyed by `seed` and
    by what a sample looks like, and repeat whatever its batch; they are others on another kind of
    device. The guarantee is for inputs that are chosen without knowledge of `seed`, and in real
    arithmetic (Voracek and Hein, 2023, arXiv:2207.07209, show what floating point can do to it).
    The number of draws is fixed beforehand: to stop as soon as the bound looks good would select
    lucky draws, and it would hold no longer.

    Deviations: `predict` takes the `n0` draws by which `certify` guesses the class. `scores` and
    `logits` are of other draws, and show their majority where `predict` abstains. An attack judges
    by them, so that one with `stop="first"` may stop at a point that `predict` abstains from. Let
    it go on, with `stop="never"`, and ask `predict` about what it found. Salman et al. keep the
    same draws at all steps of an attack; here they change as the input moves.

    Args:
        model: any classifier.
        sigma: standard deviation of the noise, in input units; positive.
        n0: draws of `predict`, and of the class that `certify` bounds the probability of.
        n: further draws of `certify`, for the bound; no radius is above
            `sigma * Phi^-1(alpha ** (1 / n))`.
        alpha: probability of an error in the answer to an input, strictly between 0 and 1.
        draws: noisy copies of an input in `scores` and `logits`; the latter keep all of them for
            the backward pass.
        seed: of the noise.
        batch_size: most noisy copies to send at once.

    Raises:
        TypeError: an argument is of the wrong type, or `model` is no classifier.
        ValueError: an argument is out of range, or `n0` or `n` is too small to decide at `alpha`
            even if all draws agree.

    Example:
        >>> import torch
        >>> from advkit import attacks
        >>> from advkit.defenses import RandomizedSmoothing
        >>> net = torch.nn.Linear(4, 2)
        >>> _ = net.weight.data.copy_(torch.tensor([[1.0], [-1.0]]))
        >>> _ = net.bias.data.copy_(torch.tensor([-2.0, 2.0]))
        >>> model = RandomizedSmoothing(net, sigma=0.25, n=1000)
        >>> x = torch.tensor([[0.9] * 4, [0.5] * 4, [0.2] * 4])  # 0.8, 0.0 and 0.6 from a change
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
        checks.number("alpha", alpha)
        if not 0 < alpha < 1:
            raise ValueError(f"`alpha` must lie strictly between 0 and 1, got {alpha}")
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
        """The most inputs whose copies fit into a call of the inner model; `None` for any."""
        most = super().max_batch
        return None if most is None else max(1, most // max(self.n0, self.draws))

    @property
    def scores(self) -> Forward:
        """Function from `x` `(n, *features)` to the shares of `draws` votes, `(n, num_classes)`.

        They sum to less than one where the model rejects noisy copies.
        """
        return self._scores

    def predict(self, x: Tensor) -> Tensor:
        """The paper's PREDICT: labels `(n,)` of `x` `(n, *features)`, `REJECTED` to abstain.

        The two classes with the most votes of `n0` draws are compared in a two-sided exact test.

        Raises:
            ValueError: `x` has the wrong shape, is not finite or not within the bounds.
            TypeError: `x` is not of a floating dtype.
        """
        x = checks.inputs(x, self.bounds)
        votes = self._votes(x, self.n0, _GUESS)
        first, second = votes.topk(2, dim=1).values.cpu().unbind(1)
        undecided = (vote_p_value(first, second) > self.alpha).to(x.device)
        return _winners(votes).masked_fill(undecided, REJECTED)

    def certify(self, x: Tensor, *, progress: bool = False) -> Certificates:
        """The paper's CERTIFY: the classes of `x` `(n, *features)`, and how far in l2 they hold.

        `n0` draws choose the class. `n` others bound its probability from below (Clopper and
        Pearson, 1934, one-sided at `alpha`).

        Args:
            x: inputs within the bounds; each costs `n0 + n` samples sent through the model.
            progress: show a bar over the inputs.

        Raises:
            ValueError: `x` has the wrong shape, is not finite or not within the bounds.
            TypeError: `x` is not of a floating dtype.
        """
        x = checks.inputs(x, self.bounds)
        with sample_rows.numbered(len(x), total=len(x)):
            labels = _winners(self._votes(x, self.n0, _GUESS))
            votes = self._votes(x, self.n, _BOUND, progress)
        counts = votes.gather(1, labels.remainder(votes.shape[1])[:, None]).squeeze(1)
        p_lower = probability_bound(counts, self.n, self.alpha)
        radius = checks.radii(certified_radius(p_lower, self.sigma), x)  # rounded down
        radius = radius.masked_fill(labels == REJECTED, 0)
        return Certificates(
            labels=labels.masked_fill(radius == 0, REJECTED),
            radius=radius,
            counts=counts,
            p_lower=checks.radii(p_lower, x),
            sigma=self.sigma,
            n=self.n,
            alpha=self.alpha,
            label_values=self.label_values,
        )

    def _scores(self, x: Tensor) -> Tensor:
        x = checks.inputs(x, self.bounds)
        votes = self._votes(x, self.draws, _CLIMB)[:, :-1]
        return votes.to(torch.promote_types(x.dtype, torch.float32)) / self.draws

    def _call_inner(self, ask: Forward, x: Tensor) -> Tensor:
        """Logarithms of the shares of the votes, with the gradient of the mean softmax's logarithm.

        One more vote is spread like the mean softmax. So no share is zero, ties have a winner, and
        the gradient of a loss is taken near the point that it belongs to.
        """
        with self.evaluating():
            logits = self._ask(ask, x, self.draws, _CLIMB)
        logits = at_least_float32(logits.view(len(x), self.draws, logits.shape[1]))
        checks.finite_logits(logits.flatten(1))
        soft = logits.log_softmax(2).logsumexp(1) - math.log(self.draws)
        votes = F.one_hot(logits.argmax(2), logits.shape[2]).sum(1)
        shares = votes.to(soft.dtype).log().logaddexp(soft.detach()) - math.log(self.draws + 1)
        return straight_through(soft, shares)

    def _votes(self, x: Tensor, draws: int, stream: int, progress: bool = False) -> Tensor:
        """How often each class is the answer to noisy copies, int64 `(n, num_classes + 1)`.

        The last column is that of rejections.
        """

        def count(part: Tensor) -> Tensor:
            answers = self._ask(self.model.predict, part, draws, stream)
            kinds = self.num_classes + 1
            columns = answers.remainder(kinds).view(len(part), draws)
            advance(len(part))
            votes = columns.new_zeros(len(part), kinds)
            return votes.scatter_add_(1, columns, torch.ones_like(columns))

        at_once = max(1, self.batch_size // draws)
        with self.evaluating(), progress_bar("draws", len(x), progress) as advance:
            return sample_rows.in_parts(count, x, size=at_once)

    def _ask(self, ask: Forward, x: Tensor, draws: int, stream: int) -> Tensor:
        """Return the answers to `draws` noisy copies of each of `x`, `(n * draws, ...)`."""
        answers, sent = [], 0
        for copies in self._copies(x, draws, stream):
            rows = torch.arange(sent, sent + len(copies)) // draws
            with sample_rows.selected(rows, len(x)):
                answers.append(ask(copies))
            sent += len(copies)
        return torch.cat(answers)

    def _copies(self, x: Tensor, draws: int, stream: int) -> Iterator[Tensor]:
        """`draws` noisy copies of each of `x` `(n, *features)` in turn, some at a time."""
        blocks = self._blocks(x, draws, stream)
        at_once = max(1, self.batch_size // min(draws, _BLOCK))
        if not len(x):
            yield x  # the model says what it answers to nothing
        while group := list(islice(blocks, at_once)):
            yield from torch.split(torch.cat(group), self.batch_size)  # a block may be larger

    def _blocks(self, x: Tensor, draws: int, stream: int) -> Iterator[Tensor]:
        """Noisy copies `(m, *features)` of one sample after the other, at most 100 at a time."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        lower, upper = self.bounds
        box = (lower, lower + (upper - lower) / _FINER)
        keys = sample_keys(x.detach(), box, self.seed, stream).tolist()
        for sample, key in zip(x, keys, strict=True):
            generator = torch.Generator(x.device).manual_seed(key)
            for left in range(draws, 0, -_BLOCK):
                shape = (min(left, _BLOCK), *sample.shape)
                noise = torch.randn(shape, generator=generator, dtype=dtype, device=x.device)
                yield torch.add(sample, noise, alpha=self.sigma).to(x.dtype)


def _winners(votes: Tensor) -> Tensor:
    """The labels `(n,)` with most of the votes; the last column is that of rejections."""
    best = votes.argmax(1)
    return best.masked_fill(best == votes.shape[1] - 1, REJECTED)


def _check_draws(n0: int, n: int, alpha: float) -> None:
    """Raise if `n0` or `n` draws cannot decide at `alpha` whatever they show."""
    least_n0, least_n = fewest_draws(alpha)
    if n0 < least_n0 or n < least_n:
        raise ValueError(
            f"`n0` must be at least {least_n0} and `n` at least {least_n} to decide at "
            f"alpha={alpha:g}, got n0={n0} and n={n}. Take more draws or a larger `alpha`."
        )
