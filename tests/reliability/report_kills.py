"""Saves a report over another one, and is killed at every fifth line of the writing.

Run with the path of a folder; prints the state of its files after each kill, as JSON.
"""

import itertools
import json
import os
import re
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from advkit import attacks
from advkit.core import files
from advkit.eval import evaluate, load_report
from advkit.eval.page import render

PAGE = "<title>Robustness of {model}</title>\n<p>digest: {digest}\n" + 9_999 * "text\n" + "</html>"


def main(folder):
    """Print the states of all kills, and that of a call which was not killed."""
    net, x, y = torch.nn.Linear(4, 2), torch.rand(8, 4), torch.arange(8) % 2
    attack = attacks.FGSM(eps=torch.full((8,), 0.1))
    render.render = lambda page: PAGE.format(model=page.model, digest=page.digest)
    report = evaluate(net, x, y, attacks=[attack])
    old, new = (replace(report, model=name) for name in ("old", "new"))
    states = []
    saved = [(path, path.read_bytes()) for path in old.save(folder)]
    for line in itertools.count(1, 5):
        for path, content in saved:
            path.write_bytes(content)
        child = os.fork()
        if not child:
            sys.settrace(killer(line))
            new.save(folder)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        states.append(state_of(Path(folder)))
        if status == 0:
            break
    print(json.dumps(states))  # noqa: T201


def killer(line):
    """A trace function that kills the process at a line of `files.py`, counted from the start."""
    left = line

    def trace(frame, event, arg):
        nonlocal left
        if frame.f_code.co_filename != files.__file__:
            return None
        left -= event == "line"
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    return trace


def state_of(folder):
    """What the files of a folder say."""
    found = json.loads((folder / "report.json").read_text())
    page = (folder / "report.html").read_bytes()
    return {
        "digest": found["digest"],
        "digest of the records": str(np.load(folder / "records.npz")["digest"]),
        "loads": loads(folder),
        "digest of the page": re.search(r"digest: (\w+)", page.decode())[1],
        "model": found["model"],
        "model of the page": re.search("<title>Robustness of (.*)</title>", page.decode())[1],
        "page is named": found["page"] == "report.html",
        "page is whole": page.endswith(b"text\n</html>"),
    }


def loads(folder):
    """Whether the report is made again from its files."""
    try:
        load_report(folder)
    except ValueError as error:
        if "digest" not in str(error):
            raise
        return False
    return True


if __name__ == "__main__":
    main(sys.argv[1])
