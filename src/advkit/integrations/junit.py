"""Gates of a report as a JUnit file, which build servers show as test results."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from advkit.core.boxes import format_norm
from advkit.core.files import save_bytes
from advkit.eval import Gate, Report
from advkit.eval.text_tables import format_distance

_SUITE = "advkit"
# Characters that XML 1.0 does not allow.
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class JUnit:
    """Callback of `evaluate` that writes the gates of the report to a JUnit file.

    Args:
        path: the file; after an error, no partial file is left.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_chunk(self, record: object) -> None:
        """Do nothing: a file has the results of all inputs."""

    def on_report(self, report: Report) -> None:
        """Write the file."""
        save_junit(report, self.path)


def save_junit(report: Report, path: str | Path) -> Path:
    """Write a JUnit file with a test case for each gate of a report.

    A report without gates has a test case for each budget and for each norm of minimum-norm
    attacks. It passes and holds the figure as its output.

    Args:
        report: the report.
        path: the file; after an error, no partial file is left.

    Raises:
        OSError: the file cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from advkit import attacks, eval
        >>> from advkit.integrations.junit import save_junit
        >>> net, x = torch.nn.Linear(4, 3), torch.rand(9, 4)
        >>> report = eval.evaluate(net, x, net(x).argmax(1), attacks=[attacks.FGSM(eps=0.9)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_junit(eval.gate(report, fail_under=0.0), f"{folder}/junit.xml")
        ...     'failures="0"' in path.read_text()
        True
    """
    cases = [_case(gate) for gate in report.gates] or _figures(report)
    failed = str(sum(not gate.passed for gate in report.gates))
    counts = {"tests": str(len(cases)), "failures": failed, "errors": "0", "skipped": "0"}
    date = report.provenance.date.partition("+")[0]
    suite = ElementTree.Element("testsuite", {"name": _SUITE, "timestamp": date, **counts})
    suite.append(_properties(report))
    suite.extend(cases)
    root = ElementTree.Element("testsuites", counts)
    root.append(suite)
    ElementTree.indent(root)
    return save_bytes(path, ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _properties(report: Report) -> ElementTree.Element:
    """Return what identifies the report."""
    found = ElementTree.Element("properties")
    values = {"model": report.model, "digest": report.digest, **report.provenance.versions}
    for name, value in values.items():
        ElementTree.SubElement(found, "property", name=name, value=_allowed(value))
    return found


def _case(gate: Gate) -> ElementTree.Element:
    case = ElementTree.Element("testcase", name=_allowed(gate.name), classname=_SUITE)
    if gate.passed:
        ElementTree.SubElement(case, "system-out").text = _allowed(gate.message)
    else:
        message = _allowed(gate.message)
        ElementTree.SubElement(case, "failure", message=message, type="gate").text = message
    return case


def _figures(report: Report) -> list[ElementTree.Element]:
    """Return a test case that passes for each figure; build servers refuse a file without one."""
    figures = {
        **{budget: f"robust accuracy {rate}" for budget, rate in report.worst_cases.items()},
        **{
            f"nearest in {format_norm(norm)}": f"median distance "
            f"{format_distance(nearest.median_distance)}"
            for norm, nearest in report.nearest.items()
        },
    }
    return [_case(Gate(name, name, True, text)) for name, text in figures.items()]


def _allowed(text: str) -> str:
    """Return a text without the characters that XML does not allow."""
    return _FORBIDDEN.sub("\ufffd", text)
