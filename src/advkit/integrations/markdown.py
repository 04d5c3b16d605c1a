"""Summary of a report in Markdown, for the pages of build servers and code reviews."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from advkit.core.files import save_text
from advkit.eval import Rate, Report
from advkit.eval.robustness.worst_case import budget_texts
from advkit.eval.text_tables import format_count, format_distance

_HEADING = ("budget", "clean", "random noise", "robust", "95 % interval", "strongest attack")
_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_[]<>|#~$"})


def format_markdown(report: Report) -> str:
    """Return a summary of a report: verdict, gates, a table of budgets, and findings.

    Example:
        >>> import torch
        >>> from advkit import attacks, eval
        >>> from advkit.integrations.markdown import format_markdown
        >>> net, x = torch.nn.Linear(4, 3), torch.rand(9, 4)
        >>> report = eval.evaluate(net, x, net(x).argmax(1), attacks=[attacks.FGSM(eps=0.9)])
        >>> print(format_markdown(report).splitlines()[0])
        ## Robustness of TorchClassifier(Linear, bounds=(0, 1))
    """
    return "\n".join([*_blocks(report)])


def save_markdown(report: Report, path: str | Path, *, append: bool = False) -> Path:
    """Write `format_markdown(report)` to a file; after an error, no partial file is left.

    Args:
        report: the report.
        path: the file.
        append: keep the text of a file that exists, and write below it.

    Raises:
        OSError: the file cannot be written.
        ValueError: the file that exists is not text in UTF-8.
    """
    path = Path(path)
    before = path.read_text(encoding="utf-8") if append and path.exists() else ""
    separator = "" if not before or before.endswith("\n") else "\n"
    return save_text(path, f"{before}{separator}{format_markdown(report)}")


def _blocks(report: Report) -> Iterator[str]:
    """Yield the lines of the summary; an empty line separates blocks."""
    yield f"## Robustness of {_escaped(report.model)}"
    yield ""
    yield f"{_escaped(report.verdict)} {format_count(len(report.inputs), 'input')}."
    yield ""
    if report.gates:
        for gate in report.gates:
            mark = "passed" if gate.passed else "**failed**"
            yield f"- {mark}: {_escaped(gate.name)}: {_escaped(gate.message)}"
        yield ""
    if report.budgeted:
        yield from _table(_HEADING, _rows(report))
        yield ""
    if report.minimum_norm:
        heading = ["norm", "attack success rate", "median distance"]
        yield from _table(heading, _nearest_rows(report))
        yield ""
    for finding in report.findings:
        yield f"- **{finding.severity}** {_escaped(finding.name)}: {_escaped(finding.message)}"
    if report.findings:
        yield ""
    yield f"digest: `{report.digest}`"
    yield ""


def _rows(report: Report) -> Iterator[list[str]]:
    """Yield a row for each budget."""
    noise = {each.budget: str(each.robust_accuracy) for each in report.noise}
    for budget, rate in report.worst_cases.items():
        clean, strongest = str(report.clean_accuracy), _strongest(report, budget)
        yield [budget, clean, noise.get(budget, "-"), str(rate), _interval(rate), strongest]


def _strongest(report: Report, budget: str) -> str:
    """Return the attack with this budget that leaves the lowest robust accuracy."""
    texts = budget_texts(report.outcomes)
    within = [o for o, text in zip(report.outcomes, texts, strict=True) if text == budget]
    return min(within, key=lambda outcome: outcome.robust_accuracy.count).label


def _nearest_rows(report: Report) -> Iterator[list[str]]:
    """Yield a row for each norm of minimum-norm attacks."""
    for norm, nearest in report.nearest.items():
        yield [norm, str(nearest.success_rate), format_distance(nearest.median_distance)]


def _interval(rate: Rate) -> str:
    low, high = rate.interval
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def _table(heading: Sequence[str], rows: Iterator[list[str]]) -> Iterator[str]:
    yield _line(heading)
    yield _line(["---"] * len(heading))
    for row in rows:
        yield _line([_escaped(cell) for cell in row])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escaped(text: str) -> str:
    """Return a text in one line in which no character has a meaning in Markdown."""
    return " ".join(text.split()).translate(_SPECIAL)
