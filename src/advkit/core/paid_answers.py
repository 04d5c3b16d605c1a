"""Answers, reports and tables that cost queries, kept when an error ends the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from advkit.core import sample_rows
from advkit.core.results import Answers

_NOTE = (
    "The error's .answers keeps what was answered. Call fit again with answers=error.answers, and "
    "only what is missing is asked for."
)


class PaidAnswers:
    """Answers of a model, as they come.

    Args:
        known: answers of an earlier run; their inputs are not asked about again.
        axes: of the outputs, 1 for labels and 2 for logits.

    Raises:
        TypeError: `known` is not an `Answers`.
        ValueError: its outputs have other axes.
    """

    def __init__(self, known: Answers | None, axes: int) -> None:
        if known is not None and not isinstance(known, Answers):
            raise TypeError(
                "`answers` must be the .answers of an error that ended fit, "
                f"got {type(known).__name__}."
            )
        if known is not None and known.outputs.ndim != axes:
            raise ValueError(
                f"`answers` must have outputs of {axes} axes, got {known.outputs.ndim}: labels of "
                "a Substitute and logits of a Distillation do not stand for each other."
            )
        self._found = [] if known is None else [known]
        self._known: dict[bytes, Tensor] = {}
        if known is not None:
            self._known.update(zip(_keys(known.inputs), known.outputs, strict=True))

    def ask(self, x: Tensor, model: Callable[[Tensor], Tensor], at_once: int) -> Tensor:
        """Return the answers to `x` `(n, *features)`, on its device.

        Args:
            x: inputs, at least one.
            model: returns the answers to inputs, `(m,)` or `(m, classes)`.
            at_once: the most inputs that it is asked about in one call.

        Raises:
            ValueError: the known answers are to inputs of another shape.
        """
        for found in self._found[:1]:
            if found.inputs.shape[1:] != x.shape[1:]:
                raise ValueError(
                    f"`answers` must be to inputs of shape {tuple(x.shape[1:])}, "
                    f"got {tuple(found.inputs.shape[1:])}."
                )
        return sample_rows.in_parts(lambda part: self._ask(part, model), x, size=at_once)

    def _ask(self, x: Tensor, model: Callable[[Tensor], Tensor]) -> Tensor:
        if not self._known:
            return self._new(x, model)
        answers = [self._known.get(key) for key in _keys(x)]
        missing = [i for i, answer in enumerate(answers) if answer is None]
        if missing:
            with sample_rows.selected(torch.tensor(missing), len(x)):
                new = self._new(x[missing], model)
            for i, answer in zip(missing, new, strict=True):
                answers[i] = answer
        return torch.stack([answer.to(x.device) for answer in answers if answer is not None])

    def _new(self, x: Tensor, model: Callable[[Tensor], Tensor]) -> Tensor:
        answers = model(x).to(x.device)
        self._found.append(Answers(x, answers))
        return answers

    def kept(self) -> AbstractContextManager[None]:
        """Give an error that ends the block, an interrupt among them, what was answered."""
        return keeping("answers", self._answers, _NOTE)

    def _answers(self) -> Answers | None:
        if not self._found:
            return None
        inputs = torch.cat([found.inputs.cpu() for found in self._found])
        return Answers(inputs, torch.cat([found.outputs.cpu() for found in self._found]))


@contextmanager
def keeping(name: str, found: Callable[[], object], note: str) -> Iterator[None]:
    """Give an error that ends the block, an interrupt among them, what was found until then.

    Args:
        name: of the error's attribute.
        found: returns what was found, `None` for nothing.
        note: sentence that is added to the error and names the attribute.
    """
    try:
        yield
    except BaseException as error:
        kept = found()
        if kept is not None:
            _annotate(error, name, kept, note)
        raise


def _annotate(error: Any, name: str, value: object, note: str) -> None:
    setattr(error, name, value)
    error.__notes__ = [*getattr(error, "__notes__", ()), note]  # add_note is new in Python 3.11


def _keys(x: Tensor) -> list[bytes]:
    """Return the bytes of each of `x` `(n, *features)`, by which an input is found again."""
    rows = x.detach().cpu().contiguous().flatten(1).view(torch.uint8)
    return [row.tobytes() for row in rows.numpy()]
