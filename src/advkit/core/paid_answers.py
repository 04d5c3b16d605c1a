"""Answers, reports and tables that cost queries, preserved when an error ends the work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from advkit.core import sample_rows
from advkit.core.results import Answers

_NOTE = (
    "The error's .answers holds the answers so far. Call fit again with answers=error.answers, and "
    "the model is queried only for the missing ones."
)


class PaidAnswers:
    """Answers of a model, collected as the model returns them.

    Args:
        known: answers of an earlier run; the model is not queried for their inputs again.
        axes: number of axes of the outputs, 1 for labels and 2 for logits.

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
                f"`answers` must have outputs with {axes} axes, got {known.outputs.ndim}. Labels "
                "of a Substitute and logits of a Distillation cannot replace each other."
            )
        self._parts = [] if known is None else [known]
        self._known: dict[bytes, Tensor] = {}
        if known is not None:
            self._known.update(zip(_keys(known.inputs), known.outputs, strict=True))

    def ask(self, x: Tensor, model: Callable[[Tensor], Tensor], at_once: int) -> Tensor:
        """Return the answers to `x` `(n, *features)`, on the device of `x`.

        Args:
            x: inputs, at least one.
            model: returns the answers `(m,)` or `(m, classes)` to `m` inputs.
            at_once: the largest number of inputs in one call of `model`.

        Raises:
            ValueError: the known answers are to inputs of another shape.
        """
        for first in self._parts[:1]:
            if first.inputs.shape[1:] != x.shape[1:]:
                raise ValueError(
                    f"`answers` must be to inputs of shape {tuple(x.shape[1:])}, "
                    f"got {tuple(first.inputs.shape[1:])}."
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
        self._parts.append(Answers(x, answers))
        return answers

    def kept(self) -> AbstractContextManager[None]:
        """Attach the answers so far to an error that ends the block; interrupts count as errors."""
        return keeping("answers", self._answers, _NOTE)

    def _answers(self) -> Answers | None:
        if not self._parts:
            return None
        inputs = torch.cat([part.inputs.cpu() for part in self._parts])
        return Answers(inputs, torch.cat([part.outputs.cpu() for part in self._parts]))


@contextmanager
def keeping(name: str, partial: Callable[[], object], note: str) -> Iterator[None]:
    """Attach the partial result to an error that ends the block; interrupts count as errors.

    Args:
        name: name of the error's attribute.
        partial: returns the result so far, or `None` if there is none.
        note: sentence that is added to the error and names the attribute.
    """
    try:
        yield
    except BaseException as error:
        value = partial()
        if value is not None:
            _annotate(error, name, value, note)
        raise


def _annotate(error: Any, name: str, value: object, note: str) -> None:
    setattr(error, name, value)
    error.__notes__ = [*getattr(error, "__notes__", ()), note]  # add_note is new in Python 3.11


def _keys(x: Tensor) -> list[bytes]:
    """Return the bytes of each input of `x` `(n, *features)`, which identify it."""
    rows = x.detach().cpu().contiguous().flatten(1).view(torch.uint8)
    return [row.tobytes() for row in rows.numpy()]
