"""Random noise, the baseline of every attack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from advkit.attacks.engine.black_box import BlackBoxAttack
from advkit.attacks.engine.loop import Stop
from advkit.attacks.engine.problem import Problem
from advkit.attacks.engine.records import Best
from advkit.attacks.engine.rounding import warn_of_lost_budget
from advkit.attacks.engine.rows import update_rows
from advkit.core import checks
from advkit.core.naming import alternative
from advkit.core.norms import Norm, normalize, per_sample
from advkit.core.randomness import normal, salt_and_pepper, sample_keys, uniform_noise

Kind = Literal["uniform", "gaussian", "salt_and_pepper"]
NORMS: dict[Kind, tuple[Norm, ...]] = {
    "uniform": ("linf", "l2", "l1"),
    "gaussian": ("l2",),
    "salt_and_pepper": ("l0",),
}


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RandomNoise(BlackBoxAttack):
    """Random noise within a budget, the baseline of every attack; needs labels only.

    Args:
        eps: size of the noise, in input units, not negative; a float, or `(n,)` with one size for
            each sample. For salt and pepper it is the number of features that are set to a bound,
            rounded down: 0 or at least 1.
        kind: `"uniform"` samples from the volume of the ball; `"gaussian"` scales white noise to
            the length `eps`; `"salt_and_pepper"` sets random features to the lower or upper bound.
        norm: `"linf"`, `"l2"` or `"l1"` for uniform noise, `"l2"` for Gaussian noise, `"l0"` for
            salt and pepper.
        restarts: independent samples of the noise; each is tried on the inputs that are still
            classified correctly.
        stop: `"first"` does not move inputs that are already misclassified; `"never"` moves every
            input. `None` lets the caller choose; a direct call and an evaluation choose `"first"`.
        seed: seed of the noise, an int; it does not depend on the rest of the batch.

    Raises:
        ValueError: a value is out of its range, or `norm` is not one of the kind's.
        TypeError: a value has the wrong type.

    Example:
        >>> import torch
        >>> from advkit import attacks
        >>> x = torch.full((2, 3), 0.5)
        >>> x_adv = attacks.RandomNoise(eps=0.1)(torch.nn.Linear(3, 2), x)
        >>> bool(((x_adv - x).abs() <= 0.1).all())
        True
    """

    eps: float | Tensor
    kind: Kind = "uniform"
    norm: Norm = "linf"
    restarts: int = 1
    stop: Stop | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        checks.eps(self.eps)
        checks.one_of("kind", self.kind, tuple(NORMS))
        if self.norm not in NORMS[self.kind]:
            raise ValueError(
                f"`norm` must be one of {', '.join(map(repr, NORMS[self.kind]))} for kind "
                f"{self.kind!r}, got {self.norm!r}.{alternative(self.norm, NORMS[self.kind])}"
            )
        if self.kind == "salt_and_pepper":
            checks.count_eps(self.eps, where=" for salt and pepper")
        checks.integer("restarts", self.restarts, at_least=1)
        checks.one_of("stop", self.stop, ("first", "never", None))
        checks.integer("seed", self.seed)

    def _search(self, problem: Problem) -> Best:
        eps = checks.radii(self.eps, problem.x)
        if self.kind != "salt_and_pepper":  # whose eps counts features
            warn_of_lost_budget(problem, eps)
        best = Best.unevaluated(problem.x)
        if self.stop != "never":
            problem.evaluate_clean(best)
        for restart in range(self.restarts):
            rows = problem.rows[~best.success]
            if not len(rows):
                break
            part = problem.select(rows)
            x_adv = self._draw(part, eps[rows], restart)
            at = part.forward(x_adv, differentiate=False)
            update_rows(best, rows, Best(x_adv, at.violation))
        return best

    def _draw(self, problem: Problem, eps: Tensor, restart: int) -> Tensor:
        """Return the inputs with the noise of one restart, within ball and bounds."""
        x, bounds, words = problem.x, problem.model.bounds, (self.seed, restart)
        if self.kind == "uniform":
            noisy = uniform_noise(x, eps, self.norm, bounds, *words)
        elif self.kind == "salt_and_pepper":
            noisy = salt_and_pepper(sample_keys(x, bounds, *words), eps, x, bounds)
        else:
            white = normal(sample_keys(x, bounds, *words), x[:1].numel(), x.dtype)
            noisy = x + normalize(white, "l2").view(x.shape) * per_sample(eps, x)
        return problem.round_into_ball(problem.clip(noisy), eps)
