"""Numbers and threat models in the words of the page."""

from __future__ import annotations

import math

from advkit.core.boxes import format_norm, format_radius
from advkit.eval.accuracy import Rate

# Levels of an 8-bit image: budgets in [0, 1] are often whole multiples of 1/255.
LEVELS = 255
_LONG = 4  # significant digits of a number that a fraction replaces
_MISSING = "-"
_LARGE = 1000  # from which on three digits would need an exponent
_NO_BREAK = "\N{NO-BREAK SPACE}"
_MEANINGS = {
    "linf": "Every feature may change by up to the budget.",
    "l2": "The Euclidean length of the change is limited.",
    "l1": "The sum of all absolute changes is limited.",
    "l0": "The number of changed features is limited.",
    "l0_pixel": "The number of changed pixels is limited.",
}


def percent(rate: Rate) -> str:
    r"""Format a rate in percent with as many digits as its total supports, `-` for no inputs.

    A no-break space keeps the number and its sign on one line.

    Example:
        >>> percent(Rate(45, 100)), percent(Rate(451, 1000)), percent(Rate(1, 3))
        ('45\xa0%', '45.1\xa0%', '33\xa0%')
    """
    return _percent(float(rate), rate.total) if rate.total else _MISSING


def interval(rate: Rate) -> str:
    r"""Format the 95 % interval of a rate, `-` for no inputs.

    Example:
        >>> interval(Rate(45, 100))
        '36 to 55\xa0%'
    """
    if not rate.total:
        return _MISSING
    lower, upper = (_percent(end, rate.total) for end in rate.interval)
    return f"{lower.removesuffix(f'{_NO_BREAK}%')} to {upper}"


def share(rate: Rate) -> str:
    """Format a rate with its counts, such as "45 % (45 of 100)"; `-` for no inputs."""
    return f"{percent(rate)} ({rate.count:,} of {rate.total:,})" if rate.total else _MISSING


def _percent(value: float, total: int) -> str:
    digits = min(2, max(0, math.ceil(math.log10(total)) - 2))
    return f"{100 * value:.{digits}f}{_NO_BREAK}%"


def distance_text(distance: float) -> str:
    """Format a distance to three digits, and a large one, such as a count, to whole numbers.

    Example:
        >>> distance_text(0.12345), distance_text(24.0), distance_text(12345.0)
        ('0.123', '24', '12,345')
    """
    return f"{distance:.3g}" if distance < _LARGE else f"{distance:,.0f}"


def levels(eps: float, bounds: tuple[float, float]) -> int | None:
    """Return `eps` as a multiple of 1/255; `None` if its decimals are shorter or bounds differ.

    Example:
        >>> levels(8 / 255, (0, 1)), levels(0.2, (0, 1)), levels(8.0, (0, 255))
        (8, None, None)
    """
    text, near = f"{eps:.6g}", round(eps * LEVELS)
    short = len(text.lstrip("0.")) < _LONG
    # equal as text, so that budgets with other texts have other titles
    same = tuple(bounds) == (0, 1) and text == f"{near / LEVELS:.6g}"
    return near if same and not short else None


def radius_text(eps: float, bounds: tuple[float, float]) -> str:
    """Format the radius of a budget, such as "8/255" or "0.1"."""
    multiple = levels(eps, bounds)
    return f"{eps:.6g}" if multiple is None else f"{multiple}/{LEVELS}"


def budget_title(norm: str, eps: float, bounds: tuple[float, float]) -> str:
    """Format a budget, such as "linf 8/255" or "l0 24 pixels".

    Example:
        >>> budget_title("linf", 8 / 255, (0, 1)), budget_title("l0_pixel", 24.0, (0, 1))
        ('linf 8/255', 'l0 24 pixels')
    """
    if levels(eps, bounds) is None:
        return format_radius(norm, eps)
    return f"{format_norm(norm)} {radius_text(eps, bounds)}"


def norm_meaning(norm: str) -> str:
    """Return a sentence that says what a budget in `norm` limits."""
    return _MEANINGS.get(norm, "The distance to the input is limited.")


def attacker_phrase(norm: str, eps: float | None, bounds: tuple[float, float]) -> str:
    r"""Return what an attacker may do within a budget; `None` is one `eps` for each input.

    Example:
        >>> attacker_phrase("linf", 0.1, (0, 1))
        'an attacker may change every feature by up to 0.1, for features in [0,\xa01]'
    """
    size = "a budget that belongs to the input" if eps is None else radius_text(eps, bounds)
    lower, upper = bounds
    values = f"[{lower:g},{_NO_BREAK}{upper:g}]"
    box = f"for features in {values}"
    phrases = {
        "linf": f"change every feature by up to {size}, {box}",
        "l2": f"move the input by a Euclidean distance of up to {size}, {box}",
        "l1": f"change the features by up to {size} in total, {box}",
        "l0": f"change up to {size} features to any value in {values}",
        "l0_pixel": f"change up to {size} pixels to any values in {values}",
    }
    if eps is None:
        limited = f"change the input within {size}, measured in {format_norm(norm)}"
        return f"an attacker may {limited}"
    other = f"move the input by up to {size} in {norm}, {box}"
    return f"an attacker may {phrases.get(norm, other)}"


def axis_title(norm: str, unit: str = "input units") -> str:
    """Return the title of an axis of eps."""
    counted = {"l0": "number of changed features", "l0_pixel": "number of changed pixels"}
    return f"eps: {counted.get(norm, f'{norm} in {unit}')}"


GLOSSARY = (
    ("Robust accuracy", "Share of all inputs that are labeled correctly before and after an "
     "attack. It is an upper bound: a stronger attack can only lower it."),
    ("Adversarial example", "An input that was changed a little on purpose, so that the model no "
     "longer predicts its true label."),
    ("Norm", "The way in which the size of a change is measured: the largest change of a feature "
     "(linf), the Euclidean length (l2), the sum of the changes (l1), or the number of changed "
     "features or pixels (l0)."),
    ("Budget", "The norm and the largest size (eps) of the change that an attacker may make."),
    ("Worst case", "Robust accuracy under all attacks together. An input counts as robust only if "
     "no attack in the norm found an adversarial example within the budget."),
    ("95 % interval", "Wilson interval. The inputs are a sample: with other inputs from the same "
     "source the rate would differ. The interval holds the rate on the whole source in about 95 "
     "of 100 such samples. It does not cover attacks that are too weak. The thin line below a bar "
     "shows it."),
    ("Random noise", "A baseline, not an attack: one random change within the budget for each "
     "input. An attack that is not stronger than noise says little."),
    ("Attack success rate", "Share of the attacked inputs, those that are labeled correctly before "
     "the attack, for which the attack found an adversarial example."),
    ("Median distance", "Distance within which half of the attacked inputs have an adversarial "
     "example. An input without one counts as infinitely far (inf)."),
    ("Minimum-norm attack", "An attack without a budget, which searches for the nearest "
     "adversarial example at any distance."),
    ("Finding", "A reason to doubt a figure, found in this evaluation. High: do not believe the "
     "figure. Medium: it may be somewhat wrong. Low: it stands, but says less than it seems to."),
    ("Gate", "A condition that the report must meet, such as a least robust accuracy."),
)  # fmt: skip
