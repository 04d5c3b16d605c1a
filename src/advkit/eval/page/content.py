"""Contents of the page of a report, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from advkit.eval.accuracy import Rate
from advkit.eval.evidence.gate import Gate
from advkit.eval.findings.finding import Finding

Named = tuple[str, str]  # a name and its value as text


@dataclass(frozen=True, kw_only=True)
class Bar:
    """A rate that a card shows as a bar.

    Attributes:
        name: name of the rate.
        rate: the rate.
        kind: `"clean"`, `"noise"`, `"robust"` or `"success"`; the bars of the last two are strong
            and show the interval of the rate.
    """

    name: str
    rate: Rate
    kind: str

    @property
    def strong(self) -> bool:
        """True for a bar with the color of a result, and an interval."""
        return self.kind in ("robust", "success")


@dataclass(frozen=True, kw_only=True)
class Card:
    """Answer for one threat model.

    Attributes:
        id: identifier of the card, unique within the page.
        title: the threat model, such as `"linf 8/255"`.
        short: name of the figure within its norm, such as `"8/255"` or `"median distance"`.
        headline: the figure in large type, or a few words in place of it.
        caption: the meaning of the figure, with its interval.
        bars: rates next to each other.
        sentences: plain sentences that explain the figure.
        gates: conditions on this threat model.
    """

    id: str
    title: str
    short: str
    headline: str
    caption: str
    bars: tuple[Bar, ...]
    sentences: tuple[str, ...]
    gates: tuple[Gate, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CardGroup:
    """Cards of one norm.

    Attributes:
        title: the norm.
        meaning: sentence that says what a budget in the norm limits.
        cards: the cards, by increasing budget.
    """

    title: str
    meaning: str
    cards: tuple[Card, ...]


@dataclass(frozen=True, kw_only=True)
class Line:
    """Accuracy under one attack against eps.

    Attributes:
        name: name of the line.
        attack: name of the attack, which decides about the color.
        variant: number of the line among those of the same attack with other settings.
        points: eps and accuracy in [0, 1], by increasing eps.
        stepped: whether the accuracy is known at every eps and constant between two points. If
            false, only the points are measured.
    """

    name: str
    attack: str
    variant: int
    points: tuple[tuple[float, float], ...]
    stepped: bool


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Accuracy against eps in one norm.

    Attributes:
        id: identifier of the panel, unique within the page.
        title: the norm.
        axis: name of eps, with its unit.
        ticks: position of each tick on the axis and its label, by increasing eps.
        limit: the largest eps to show.
        clean: accuracy without an attack, in [0, 1].
        envelope: worst case over all attacks in the norm.
        lines: one for each attack.
        budgets: each evaluated eps and the worst case at it.
        noise: eps and accuracy under random noise.
        columns: headings of the table with the figures of the panel.
        rows: name and cells of each row of this table.
    """

    id: str
    title: str
    axis: str
    ticks: tuple[tuple[float, str], ...]
    limit: float
    clean: float
    envelope: Line
    lines: tuple[Line, ...]
    budgets: tuple[tuple[float, float], ...]
    noise: tuple[tuple[float, float], ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class AttackRow:
    """Results of one attack.

    Attributes:
        name: call that creates the attack.
        strongest: True if no other attack of the group has a lower robust accuracy or, without a
            budget, a smaller median distance. Several attacks may be the strongest.
        robust: robust accuracy under the attack alone; `None` in a group without a budget.
        success: attack success rate.
        distance: median distance as text.
    """

    name: str
    strongest: bool
    robust: Rate | None
    success: Rate
    distance: str


@dataclass(frozen=True, kw_only=True)
class AttackGroup:
    """Results of the attacks within one budget, or of the minimum-norm attacks in one norm.

    Attributes:
        title: the budget or the norm.
        rows: results of each attack.
        noise: accuracy under random noise; `None` without this baseline.
        worst_case: robust accuracy under all attacks in the norm; `None` without a budget.
    """

    title: str
    rows: tuple[AttackRow, ...]
    noise: Rate | None = None
    worst_case: Rate | None = None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of one attack, as text: passes for each attacked input, and seconds."""

    name: str
    budget: str
    forward: str
    backward: str
    seconds: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """An input and its nearest adversarial example in one norm.

    Attributes:
        number: number of the input in the data.
        true: name of its true class.
        predicted: name of the class that the model predicts for the adversarial example.
        distance: their distance as text, with its norm.
        attack: call that creates the attack.
        x: the input `(channels, height, width)` with one or three channels.
        x_adv: the adversarial example, of the same shape.
        bounds: lower and upper bound of the inputs.
    """

    number: int
    true: str
    predicted: str
    distance: str
    attack: str
    x: Tensor
    x_adv: Tensor
    bounds: tuple[float, float]


@dataclass(frozen=True, kw_only=True, eq=False)
class ExampleGroup:
    """Nearest adversarial examples in one norm."""

    title: str
    examples: tuple[Example, ...]


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """Figures of one class.

    Attributes:
        name: name of the class.
        clean: share of its inputs that are labeled correctly before any attack.
        robust: worst case within each budget.
        confused: class that its adversarial examples are most often taken for; empty for none.
    """

    name: str
    clean: Rate
    robust: tuple[Rate, ...]
    confused: str


@dataclass(frozen=True, kw_only=True)
class ClassTable:
    """Figures of each class.

    Attributes:
        budgets: budgets of the worst cases.
        rows: rows to show.
        folded: rows of further classes, behind a fold; all of `rows` are worse.
    """

    budgets: tuple[str, ...]
    rows: tuple[ClassRow, ...]
    folded: tuple[ClassRow, ...]


@dataclass(frozen=True, kw_only=True)
class AttackSettings:
    """All parameters of one attack by name, and the hash of the attack if it is known."""

    name: str
    parameters: tuple[Named, ...]
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class Repetition:
    """Facts that are needed to repeat the evaluation.

    Attributes:
        command: shell command; `None` for an evaluation from Python.
        facts: versions, device, hashes and so on, by name.
        attacks: the settings of each attack.
    """

    command: str | None
    facts: tuple[Named, ...]
    attacks: tuple[AttackSettings, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class PageContent:
    """Contents of the page of a report.

    Attributes:
        digest: digest of the report, which both files of a saved one hold; `None` for a page alone.
        model: description of the model.
        facts: facts below the title, such as the number of inputs.
        verdict: sentence that says whether to believe the figures.
        findings: reasons to doubt them, the most severe first.
        interrupted: sentence on the inputs that are missing; empty for a complete evaluation.
        gates: all conditions that the report must meet.
        general_gates: those of `gates` that do not belong to a card.
        groups: cards, by norm.
        panels: accuracy against eps, one for each norm.
        within_budgets: results of attacks within each budget.
        minimum_norm: results of minimum-norm attacks in each norm.
        costs: cost of each attack.
        notes: sentences that explain the figures.
        examples: pictures of adversarial examples, by norm.
        classes: figures of each class; `None` without inputs.
        repetition: what it takes to repeat the evaluation.
    """

    digest: str | None
    model: str
    facts: tuple[Named, ...]
    verdict: str
    findings: tuple[Finding, ...]
    interrupted: str
    gates: tuple[Gate, ...]
    general_gates: tuple[Gate, ...]
    groups: tuple[CardGroup, ...]
    panels: tuple[Panel, ...]
    within_budgets: tuple[AttackGroup, ...]
    minimum_norm: tuple[AttackGroup, ...]
    costs: tuple[Cost, ...]
    notes: tuple[str, ...]
    examples: tuple[ExampleGroup, ...]
    classes: ClassTable | None
    repetition: Repetition
