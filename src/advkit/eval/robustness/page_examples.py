"""Pictures of the page of a report: the nearest adversarial examples in each norm."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from advkit.core.boxes import format_norm
from advkit.eval.page.content import Example, ExampleGroup
from advkit.eval.page.wording import distance_text
from advkit.eval.robustness.outcome import AttackOutcome
from advkit.eval.robustness.page_tables import class_name
from advkit.eval.units.examples import MAX_EXAMPLES

# Examples of each norm, if there are several.
_FEW_EXAMPLES = 3


def example_groups(
    outcomes: Sequence[AttackOutcome], bounds: tuple[float, float], names: Sequence[str]
) -> list[ExampleGroup]:
    """Return the nearest example of each input in each norm, the nearest first; images alone.

    Args:
        outcomes: outcome of each attack.
        bounds: lower and upper bound of the inputs.
        names: names of the classes, empty if unknown.
    """
    nearest: dict[str, dict[int, tuple[float, Example]]] = {}
    for outcome in outcomes:
        inputs = nearest.setdefault(outcome.norm, {})
        for distance, example in _examples(outcome, bounds, names):
            if example.number not in inputs or distance < inputs[example.number][0]:
                inputs[example.number] = (distance, example)
    found = {norm: inputs for norm, inputs in nearest.items() if inputs}
    most = MAX_EXAMPLES if len(found) == 1 else _FEW_EXAMPLES
    return [
        ExampleGroup(title=format_norm(norm), examples=_first(inputs.values(), most))
        for norm, inputs in found.items()
    ]


def _first(measured: Iterable[tuple[float, Example]], most: int) -> tuple[Example, ...]:
    """Return the nearest examples."""
    ranked = sorted(measured, key=lambda pair: (pair[0], pair[1].number))
    return tuple(example for _, example in ranked[:most])


def _examples(
    outcome: AttackOutcome, bounds: tuple[float, float], names: Sequence[str]
) -> Iterator[tuple[float, Example]]:
    """Yield the examples of an attack with their distances, if they are images."""
    kept = outcome.examples
    if kept is None or not _are_images(kept.x):
        return
    for row, distance in enumerate(kept.distance.tolist()):
        yield (
            distance,
            Example(
                number=int(kept.index[row]),
                true=class_name(int(kept.y[row]), names),
                predicted=class_name(int(kept.predicted[row]), names),
                distance=f"{format_norm(outcome.norm)} distance {distance_text(distance)}",
                attack=outcome.label,
                x=kept.x[row],
                x_adv=kept.x_adv[row],
                bounds=bounds,
            ),
        )


def _are_images(x: Tensor) -> bool:
    return x.ndim == 4 and x.shape[1] in (1, 3)
