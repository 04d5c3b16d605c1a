"""Run the command `advkit` again and again, with a Ctrl-C before a chosen line of its own source.

    python interrupting.py PLAN.json

The plan holds jobs by name. A job has the `arguments` of the command and either `points`, which are
numbers of lines that come before the Ctrl-C, or `spread`, the number of points between the first
line and the last of a run without one. Only lines of `WATCHED` count, from the start or, where
`from_start` is false, once the model sets `Watch.active`. Each run is a fork of this process,
because importing torch takes seconds, in a new folder, and draws nothing. Writes what each run did
to the same file.
"""

import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import jinja2  # noqa: F401 - a fork need not import it
import numpy as np
import PIL.Image  # noqa: F401
import tqdm  # noqa: F401

import advkit.__main__
import advkit.cli
from advkit.eval.page import render

ROOT = Path(advkit.__main__.__file__).parent
WATCHED = ("__main__.py", "cli/", "core/files.py", "eval/robustness/report.py")
FIRST = 7  # the lines before it install the first handler
FAILED = 70  # an exit status that is not one of the command


class Watch:
    """Send SIGINT to this process before the line of number `at`."""

    def __init__(self, at, *, active):
        self.at, self.active = at, active
        self.count = 0
        self.prefixes = tuple(str(ROOT / name) for name in WATCHED)

    def enter(self, frame, event, _):
        """Return the tracer of a frame, `None` for a file that is not watched."""
        return self.line if frame.f_code.co_filename.startswith(self.prefixes) else None

    def line(self, frame, event, _):
        """Count a line."""
        if event == "line" and self.active:
            self.count += 1
            if self.count == self.at:
                os.kill(os.getpid(), signal.SIGINT)
        return self.line


def stamps():
    return {p.name: (p.stat().st_ino, p.stat().st_mtime_ns) for p in Path("out").iterdir()}


def run_in_fork(run):
    """What one run did: its status, its output, the files that are new."""
    before = stamps()
    child = os.fork()
    if not child:
        for number, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY), number)
        command(run)
    _, status = os.waitpid(child, 0)
    after = stamps()
    code = os.waitstatus_to_exitcode(status)
    return {
        "at": run["at"],
        "status": 128 - code if code < 0 else code,  # as a shell reports it
        "stdout": Path("stdout").read_text(),
        "stderr": Path("stderr").read_text(),
        "new": sorted(name for name in after if after[name] != before.get(name)),
        "lines": int(Path("lines").read_text()) if Path("lines").exists() else None,
    }


def command(run):
    """Run the command in this process, which ends here."""
    global WATCH
    WATCH = Watch(run["at"], active=run["from_start"])
    sys.argv = ["advkit", *run["arguments"]]
    status = FAILED
    sys.settrace(WATCH.enter)
    try:
        advkit.__main__.run()
    except SystemExit as exit_:
        status = exit_.code
    except BaseException:  # noqa: BLE001 - the traceback is what the tests look for
        sys.settrace(None)
        sys.excepthook(*sys.exc_info())
    finally:
        sys.settrace(None)
        Path("lines").write_text(str(WATCH.count))
        sys.stdout.flush()
        os._exit(status)


def runs(job):
    """What each run of a job did."""
    if "points" in job:
        return [run_in_folder(job, point) for point in job["points"]]
    whole = run_in_folder(job, 0)
    points = np.linspace(FIRST, whole["lines"], job["spread"]).astype(int).tolist()
    return [run_in_folder(job, point) for point in points]


def run_in_folder(job, at):
    """What a run in a new folder did, where some of the files are there before."""
    home = Path.cwd()
    with tempfile.TemporaryDirectory(dir=home) as folder:
        os.chdir(folder)
        Path("out").mkdir()
        for name in ("report.json", "records.npz", "report.html")[: at % 4]:
            Path("out", name).write_text("old")
        found = run_in_fork({**job, "at": at})
        os.chdir(home)
    return found


if __name__ == "__main__":
    render.render = lambda page: f"<html>{page.digest}</html>"
    plan = Path(sys.argv[1])
    jobs = json.loads(plan.read_text())
    plan.write_text(json.dumps({name: runs(job) for name, job in jobs.items()}))
