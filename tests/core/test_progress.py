"""Progress bars, and the status of long evaluations."""

import io
import itertools
import re
import struct
import subprocess
import sys

import pytest

from advkit.core.progress import format_duration, is_terminal, progress_bar, status_line


def test_progress_goes_to_standard_error_and_only_when_asked(capsys):
    with progress_bar("attack", 3, show=False) as advance:
        advance(2)
    assert capsys.readouterr() == ("", "")
    with progress_bar("attack", 3, show=True) as advance:
        advance(2)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "attack" in shown.err
    assert "2/3" in shown.err


def test_progress_without_tqdm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with (
        pytest.raises(ImportError, match=r"the extra .report. of advkit"),
        progress_bar("a", 1, show=True),
    ):
        pass


class Clock:
    """Clock that stands still until a test sets it."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Stream(io.StringIO):
    """Stream that remembers each call of `write`."""

    def __init__(self, terminal=False):
        super().__init__()
        self.terminal, self.calls = terminal, []

    def isatty(self):
        return self.terminal

    def write(self, text):
        self.calls.append(text)
        return super().write(text)


class BrokenStream(Stream):
    """Stream whose calls of `write` after the first few fail."""

    def __init__(self, error, *, working=0, terminal=False):
        super().__init__(terminal)
        self.error, self.working = error, working

    def write(self, text):
        super().write(text)
        if len(self.calls) > self.working:
            raise self.error
        return len(text)


TEXT = "Suite(eps=0.0314), robust accuracy 41.2 % so far"
NAN = float("nan")


def run(updates, *, total=1000, stream=None, label="evaluate", end=None):
    """Return the stream after updates `(second, done, share)` or `(second, done, share, text)`."""
    stream, clock = stream or Stream(), Clock()
    with status_line(total, True, label=label, stream=stream, clock=clock) as status:
        for second, done, share, *text in updates:
            clock.now = 1000.0 + second
            status.update(done, share=share, text=text[0] if text else TEXT)
        clock.now = clock.now if end is None else 1000.0 + end
    return stream


def lines(updates, **options):
    return run(updates, **options).getvalue().splitlines()


class TestLines:
    def test_a_line_has_inputs_text_and_the_time_left(self):
        found = lines([(0, 0, 0.0), (200, 512, 0.5), (400, 1000, 1.0)])
        assert found == [
            f"evaluate: 512 of 1,000 inputs, {TEXT}, 3 min 20 s left",
            f"evaluate: 1,000 of 1,000 inputs, {TEXT}, after 6 min 40 s",
        ]

    def test_a_label_begins_each_line(self):
        found = lines([(0, 0, 0.0), (200, 512, 0.5)], label="shard 0/4")
        assert len(found) == 2
        assert all(line.startswith("shard 0/4: 512 of 1,000 inputs, ") for line in found)

    def test_each_line_is_written_in_one_call(self):
        stream = run([(second, 1, second / 1000) for second in range(0, 1000, 5)])
        assert len(stream.calls) > 3
        assert all(re.fullmatch(r"[^\n]+\n", call) for call in stream.calls)

    def test_lines_are_flushed(self):
        class Buffered(Stream):
            flushed = ""

            def flush(self):
                self.flushed = self.getvalue()

        assert run([(20, 1, 0.1)], stream=Buffered()).flushed.count("\n") == 2

    def test_the_first_line_comes_after_ten_seconds(self):
        assert len(lines([(0, 0, 0.0), (9.9, 1, 0.5)], end=9.9)) == 0
        assert len(lines([(0, 0, 0.0), (10, 1, 0.5)], end=10)) == 2

    def test_pauses_double_from_thirty_seconds_to_five_minutes(self):
        seconds = range(0, 2000)
        found = lines([(s, s, s / 2000) for s in seconds], total=None)
        at = [
            int(re.search(r"evaluate: ([\d,]+) inputs", line)[1].replace(",", "")) for line in found
        ]
        assert at == [10, 40, 100, 220, 460, 760, 1060, 1360, 1660, 1960, 1999]

    def test_a_late_update_begins_a_new_pause(self):
        found = lines([(s, s, s / 2000) for s in (10, 95, 100, 154, 155)], total=None)
        assert [line.split()[1] for line in found] == ["10", "95", "155", "155"]

    def test_complete_work_has_one_last_line(self):
        assert lines([(0, 0, 0.0), (60, 1000, 1.0)], end=61) == [
            f"evaluate: 1,000 of 1,000 inputs, {TEXT}, after 1 min 1 s"
        ]

    def test_the_last_line_comes_also_after_an_interrupt(self):
        stream, clock = Stream(), Clock()

        def work():
            with status_line(8, True, stream=stream, clock=clock) as status:
                status.update(3, share=0.4, text="FGSM")
                clock.now += 61
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            work()
        assert stream.getvalue() == "evaluate: 3 of 8 inputs, FGSM, after 1 min 1 s\n"

    def test_nothing_is_written_without_an_update(self):
        assert lines([], end=100) == []

    def test_an_unknown_total_and_an_unknown_share_are_left_out(self):
        assert lines([(0, 0, NAN), (20, 1512, NAN)], total=None) == [
            f"evaluate: 1,512 inputs, {TEXT}",
            f"evaluate: 1,512 inputs, {TEXT}, after 20 s",
        ]

    def test_an_empty_text_is_left_out(self):
        assert lines([(0, 0, 0.0, ""), (50, 1, 0.5, "")], total=2)[0] == (
            "evaluate: 1 of 2 inputs, 50 s left"
        )

    def test_there_are_no_control_characters(self):
        stream = run([(20, 1, 0.1, "a\nb\rc\x1b[0m\td")])
        assert re.fullmatch(r"([ -~]+\n){2}", stream.getvalue())
        assert "a b c [0m d" in stream.getvalue()

    def test_they_need_no_tqdm(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)
        monkeypatch.setitem(sys.modules, "tqdm", None)
        assert len(lines([(20, 1, 0.1)])) == 2

    def test_they_go_to_standard_error(self, capsys):
        clock = Clock()
        with status_line(2, True, clock=clock) as status:
            clock.now += 20
            status.update(1, share=0.5, text="")
        assert capsys.readouterr() == (
            "",
            "evaluate: 1 of 2 inputs\nevaluate: 1 of 2 inputs, after 20 s\n",
        )


class TestTimeLeft:
    """The time left, at the last update; the one before the end line."""

    def time_left(self, *updates):
        line = lines(list(updates))[-2]
        return line.removeprefix(f"evaluate: 1 of 1,000 inputs, {TEXT}").removeprefix(", ")

    def test_a_resumed_run_counts_its_own_work_only(self):
        # 0.1 in 30 s after 0.8 that was read from a file: 0.1 is left
        assert self.time_left((0, 0, 0.8), (30, 1, 0.9)) == "30 s left"

    def test_the_time_before_the_first_update_does_not_count(self):
        assert self.time_left((9, 0, 0.5), (29, 1, 0.75)) == "20 s left"

    def test_it_is_unknown_at_the_first_update(self):
        assert self.time_left((20, 1, 0.5)) == ""

    def test_it_is_unknown_without_work_since_the_first_update(self):
        assert self.time_left((0, 1, 0.5), (20, 1, 0.5)) == ""

    def test_it_begins_with_the_first_known_share(self):
        assert self.time_left((0, 1, NAN), (9, 1, 0.5), (29, 1, 0.75)) == "20 s left"

    def test_an_unknown_share_hides_it(self):
        assert self.time_left((0, 1, 0.5), (20, 1, NAN)) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (86_400, "1 d 0 h"),
        (1e8, "1,157 d 9 h"),
    ],
)
def test_a_duration_has_its_two_largest_units(seconds, text):
    assert format_duration(seconds) == text


@pytest.fixture
def tqdm_clock(monkeypatch):
    """The clock of tqdm, one second later at each look, so that no update is left out."""
    pytest.importorskip("tqdm")
    monkeypatch.setattr("tqdm.std.time", itertools.count(1000.0).__next__)


class TestHidden:
    def test_nothing_is_shown_unless_wanted(self):
        stream, clock = Stream(), Clock()
        with status_line(2, False, stream=stream, clock=clock) as status:
            clock.now += 20
            status.update(1, share=0.5, text="")
        assert stream.calls == []

    def test_there_may_be_no_standard_error(self, monkeypatch):
        monkeypatch.setattr("sys.stderr", None)
        with status_line(2, True) as status:
            status.update(1, share=0.5, text="")


ERRORS = [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space"), RuntimeError("mine")]


class TestBrokenStreams:
    @pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
    def test_lines_end_with_the_first_error(self, error):
        stream = BrokenStream(error, working=1)
        run([(second, 1, 0.1) for second in (20, 100, 400, 900)], stream=stream)
        assert len(stream.calls) == 2

    @pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
    @pytest.mark.parametrize("working", [0, 1, 2])
    @pytest.mark.usefixtures("tqdm_clock")
    def test_a_bar_ends_with_the_first_error(self, error, working):
        stream = BrokenStream(error, working=working, terminal=True)
        run([(second, 1, 0.1) for second in (20, 100, 400)], stream=stream)
        assert len(stream.calls) == working + 1

    @pytest.mark.usefixtures("tqdm_clock")
    @pytest.mark.parametrize("terminal", [False, True])
    def test_a_stream_may_be_closed(self, terminal):
        stream, clock = Stream(terminal), Clock()
        with status_line(2, True, stream=stream, clock=clock) as status:
            clock.now += 20
            stream.close()
            status.update(1, share=0.5, text="")

    def test_a_closed_stream_is_not_a_terminal(self):
        stream = Stream(terminal=True)
        assert is_terminal(stream)
        stream.isatty = io.StringIO.isatty.__get__(stream)
        stream.close()
        assert not is_terminal(stream)
        assert not is_terminal(None)

    def test_a_stream_may_be_closed_from_the_start(self):
        stream = io.StringIO()
        stream.close()
        run([(20, 1, 0.1)], stream=stream)

    def test_a_flush_may_fail(self):
        class NoFlush(Stream):
            def flush(self):
                raise OSError(28, "No space left on device")

        assert len(run([(20, 1, 0.1), (90, 1, 0.2)], stream=NoFlush()).calls) == 1

    def test_a_process_survives_a_closed_pipe(self):
        program = (
            "import sys\n"
            "from advkit.core.progress import status_line\n"
            "sys.stdin.read()\n"  # the test has closed standard error by now
            "seconds = iter(range(0, 10_000, 100))\n"
            "with status_line(9, True, clock=lambda: next(seconds)) as status:\n"
            "    for done in range(10):\n"
            "        status.update(done, share=done / 9, text='')\n"
            "print('done')\n"
        )
        with subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            process.stderr.close()
            process.stdin.close()
            assert process.stdout.read() == "done\n"
        assert process.returncode == 0


@pytest.mark.usefixtures("tqdm_clock")
class TestTerminal:
    def shown(self, updates, **options):
        text = run(updates, stream=Stream(terminal=True), **options).getvalue()
        return text.removeprefix("\r").split("\r")

    def test_the_first_update_is_shown_at_once(self):
        first = self.shown([(0, 0, 0.25)])[0]
        assert re.fullmatch(
            rf"evaluate:  25%\|.{{10}}\| \d\d:\d\d, 0 of 1,000 inputs, {re.escape(TEXT)}", first
        )

    def test_one_line_is_rewritten_and_stays(self):
        *_, last = self.shown([(0, 0, 0.0), (20, 512, 0.5), (40, 1000, 1.0)])
        assert last.startswith("evaluate: 100%|")
        assert last.rstrip(" \n").endswith(f", 1,000 of 1,000 inputs, {TEXT}")
        assert last.endswith("\n")
        text = run([(0, 0, 0.0), (40, 1, 1.0)], stream=Stream(terminal=True)).getvalue()
        assert text.count("\n") == 1

    def test_the_time_left_comes_first(self):
        stream, clock = Stream(terminal=True), Clock()
        with status_line(1000, True, label="shard 0/4", stream=stream, clock=clock) as status:
            status.update(0, share=0.0, text=TEXT)
            clock.now += 200
            status.update(512, share=0.5, text=TEXT)
        assert re.search(
            r"shard 0/4:  50%\|.{10}\| \d\d:\d\d, 3 min 20 s left, 512 of 1,000", stream.getvalue()
        )

    def test_the_time_left_is_unknown_until_the_clock_moves(self):
        assert not any("left" in line for line in self.shown([(0, 0, 0.0), (0, 1, 0.5)]))

    def test_the_bar_is_drawn_in_the_encoding_of_the_stream(self):
        class Unicode(Stream):
            encoding = "utf-8"

        assert "\u2588" in run([(0, 0, 0.5)], stream=Unicode(terminal=True)).getvalue()
        assert run([(0, 0, 0.5)], stream=Stream(terminal=True)).getvalue().isascii()

    @pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
    def test_a_line_is_as_wide_as_the_terminal(self):
        import fcntl
        import pty
        import termios

        reader, writer = pty.openpty()
        fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
        with open(writer, "w") as stream, open(reader, "rb", buffering=0) as shown:
            run([(0, 0, 0.5)], stream=stream)
            first, *_ = shown.read(4096).decode().strip("\r").split("\r")
        assert len(first) in (59, 60)  # some of the text is cut

    def test_an_unknown_share_has_an_empty_bar(self):
        *_, last = self.shown([(0, 0, NAN), (20, 512, NAN)], total=None)
        assert re.match(r"evaluate: \| {10}\| \d\d:\d\d, 512 inputs, Suite", last)

    def test_the_share_may_become_known(self):
        *_, last = self.shown([(0, 0, NAN), (20, 512, 0.5)])
        assert last.startswith("evaluate:  50%|")

    def test_nothing_is_shown_without_an_update(self):
        assert self.shown([]) == [""]

    def test_a_missing_package_is_named(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)
        with pytest.raises(ImportError, match=r"progress needs tqdm.*the extra .report. of advkit"):
            run([], stream=Stream(terminal=True))
