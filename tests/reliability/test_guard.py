"""Guards under faults: nothing is answered that was not judged, logged and counted."""

import copy
import errno
import io
import json
import multiprocessing
import os
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.masked import masked_tensor

from advkit import Ensemble, QueryCounter, TorchClassifier, attacks
from advkit import eval as rob
from advkit.attacks.adaptive.guarded_model import Guarded
from advkit.detectors import DetectorSurrogate, Guard, OutputForest, alarm_log
from advkit.detectors.alarm_log import AlarmLog
from advkit.models import REJECTED, evaluating
from tests.detectors.stub_detectors import Identity, Second

from .threads import in_threads, switching

JUDGED = "no input passes a guard unjudged"
COPIES = "code that a guard or an attack calls cannot change what it is given"
WHOLE = "a request is answered only if the lines of its alarms are whole in the log"
THREADS = "a guard answers many threads as it answers one, and counts exactly"

X = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.3, 0.6]])
LABELS = [0, 1, 1]


class Returns:
    """A detector of outputs that returns what a function makes of them."""

    def __init__(self, found):
        self.found = found

    def anomaly_score(self, outputs):
        return self.found(outputs)


class Risks:
    """A detector of inputs that returns what a function makes of them."""

    def __init__(self, found):
        self.found = found

    reads_inputs = True

    def anomaly_score(self, x, labels):
        return self.found(x)


class Array:
    """An object that turns into an array when it is looked at."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        if isinstance(self.array, Exception):
            raise self.array
        return self.array


class Passes(np.ndarray):
    """An array to which every comparison is false."""

    def __gt__(self, other):
        return np.zeros(self.shape, dtype=bool)

    def __array_ufunc__(self, ufunc, method, *inputs, **settings):
        return np.zeros(self.shape, dtype=bool)


def raising(error):
    def found(_):
        raise error

    return found


HIGH = np.full(3, 9.0)
MASKED = np.ma.array(np.zeros(3), mask=[False, True, False])
NASTY = {
    "nan": lambda _: np.array([0, np.nan, 0]),
    "inf": lambda _: np.array([0, np.inf, 0]),
    "minus inf": lambda _: np.array([0, -np.inf, 0]),
    "nan in 16 bits": lambda _: np.array([0, np.nan, 0], dtype=np.float16),
    "more than float64 holds": lambda _: -np.full(3, np.finfo(np.longdouble).max),
    "masked": lambda _: MASKED,
    "masked ints": lambda _: MASKED.astype(int),
    "all masked": lambda _: np.ma.masked_all(3),
    "the masked constant": lambda _: np.ma.masked,
    "list with the masked constant": lambda _: [0.0, np.ma.masked, 0.0],
    "list of masked scalars": lambda _: [np.ma.array(0.0, mask=hide) for hide in (0, 1, 0)],
    "array inside of which is a masked one": lambda _: Array(MASKED),
    "array that cannot be made": lambda _: Array(MemoryError("no room")),
    "objects": lambda _: np.array([0.0, None, 0.0]),
    "floats as objects": lambda _: np.zeros(3, dtype=object),
    "complex": lambda _: np.zeros(3, dtype=complex),
    "bools": lambda _: np.zeros(3, dtype=bool),
    "strings": lambda _: np.array(["0", "0", "0"]),
    "dates": lambda _: np.zeros(3, dtype="datetime64[s]"),
    "durations": lambda _: np.zeros(3, dtype="timedelta64[s]"),
    "records": lambda _: np.zeros(3, dtype=[("score", float)]),
    "bytes": lambda _: b"\0\0\0",
    "none": lambda _: None,
    "a number": lambda _: 0.0,
    "a dict": lambda _: {0: 0.0, 1: 0.0, 2: 0.0},
    "a set": lambda _: {0.0},
    "a generator": lambda _: (0.0 for _ in range(3)),
    "no dimension": lambda _: np.array(0.0),
    "a column": lambda _: np.zeros((3, 1)),
    "a row": lambda _: np.zeros((1, 3)),
    "one more": lambda _: np.zeros(4),
    "one fewer": lambda _: np.zeros(2),
    "nothing": lambda _: np.zeros(0),
    "ragged": lambda _: [[0.0], [0.0, 0.0], 0.0],
    "sparse": lambda _: torch.zeros(3).to_sparse(),
    "meta": lambda _: torch.zeros(3, device="meta"),
    "complex tensor": lambda _: torch.zeros(3, dtype=torch.complex64),
    "bool tensor": lambda _: torch.zeros(3, dtype=torch.bool),
    "nan tensor": lambda _: torch.full((3,), torch.nan),
    "negative view with nan": lambda _: torch.full((3,), 1j * torch.nan).imag,
    "nested": lambda _: torch.nested.nested_tensor([torch.zeros(1)] * 3),
    "masked tensor": lambda _: masked_tensor(torch.zeros(3), torch.tensor([True, False, True])),
    "raises": raising(ArithmeticError("no luck")),
    "ends the loop": raising(StopIteration()),
    "runs out of memory": raising(MemoryError()),
    "interrupt": raising(KeyboardInterrupt()),
    "exit": raising(SystemExit(0)),
}


def guard_of(detector, **settings):
    return Guard(Identity(), detector, threshold=0.5, outputs="logits", **settings)


@pytest.mark.filterwarnings("ignore")  # of numpy and torch about the nasty values
@pytest.mark.parametrize("kind", [Returns, Risks])
@pytest.mark.parametrize("name", NASTY)
def test_no_detector_lets_pass_what_it_has_not_judged(tally, kind, name):
    called = []
    guard = guard_of(kind(NASTY[name]), on_alarm=called.append)
    for ask in (guard.predict, guard.scores, guard.inspect):
        with tally(JUDGED).trial(f"{kind.__name__}: {name}"):
            try:
                answer = ask(X)
            except BaseException:  # noqa: BLE001 - no answer is what is wanted, whatever is raised
                continue
            raise AssertionError(f"answered {answer}")
    assert called == []
    assert guard.requests == 0


@pytest.mark.parametrize("kind", [Returns, Risks])
def test_an_array_whose_comparisons_are_false_is_an_alarm(tally, kind):
    with tally(JUDGED).trial(f"{kind.__name__}: comparisons are false"):
        guard = guard_of(kind(lambda _: np.full(3, 9.0).view(Passes)))
        assert guard.predict(X).tolist() == 3 * [REJECTED]


@pytest.mark.parametrize(
    "found",
    [
        lambda x: torch.tensor([0.9, 0.1, 0.9], requires_grad=True).double(),
        lambda x: torch.tensor([0.9, 0.1, 0.9], dtype=torch.complex64).conj().real,
        lambda x: -torch.tensor([-0.9, -0.1, -0.9]),
        lambda x: torch.tensor([0.9, 5.0, 0.1, 5.0, 0.9, 5.0])[::2],
        lambda x: np.ma.array([0.9, 0.1, 0.9]),
        lambda x: np.array([9, 0, 9], dtype=np.uint8),
        lambda x: np.array([0.9, 0.1, 0.9], dtype=np.float16),
        lambda x: [0.9, 0.1, 0.9],
    ],
)
def test_numbers_of_any_kind_are_judged(tally, found):
    with tally(JUDGED).trial("numbers"):
        assert guard_of(Risks(found)).predict(X).tolist() == [REJECTED, 1, REJECTED]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, None, "0.5", True])
@pytest.mark.parametrize("way", ["set", "pickled"])
def test_no_threshold_that_is_not_a_finite_number_lets_anything_pass(tally, bad, way):
    guard = guard_of(Second())
    guard._threshold = bad
    if way == "pickled":
        guard = pickle.loads(pickle.dumps(guard))
    with (
        tally(JUDGED).trial(f"threshold {bad!r}, {way}"),
        pytest.raises((TypeError, ValueError), match="threshold"),
    ):
        guard.predict(X)


def test_calibration_on_nan_sets_no_threshold(tally):
    guard = guard_of(Returns(lambda outputs: np.full(len(outputs), np.nan)), fpr=0.1)
    for calibrated in (lambda: guard.calibrate(torch.rand(20, 2)), lambda: guard.predict(X)):
        with tally(JUDGED).trial("calibrated on NaN"), pytest.raises(ValueError, match="NaN"):
            calibrated()
    assert guard.threshold == 0.5


class Answers:
    """A classifier whose scores are given."""

    bounds, num_classes = (0.0, 1.0), 2

    def __init__(self, scores):
        self.given = scores

    def scores(self, x):
        return self.given(x)

    def predict(self, x):
        raise AssertionError


NASTY_OUTPUTS = {
    "nan": lambda x: torch.where(x > 0.85, torch.nan, x),
    "inf": lambda x: torch.where(x > 0.85, torch.inf, x),
    "no classes": lambda x: x[:, :0],
    "fewer rows": lambda x: x[1:],
    "no rows": lambda x: x[:0],
    "no dimension": lambda x: x.sum(),
    "one dimension": lambda x: x.sum(1),
    "complex": lambda x: x.to(torch.complex64),
    "sparse": lambda x: x.to_sparse(),
    "meta": lambda x: x.to("meta"),
    "masked tensor": lambda x: masked_tensor(x, x < 0.85),
    "numpy": lambda x: x.numpy(),
    "none": lambda _: None,
    "raises": raising(RuntimeError("down")),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NASTY_OUTPUTS)
def test_no_model_makes_a_guard_answer_what_cannot_be_judged(tally, name):
    guard = Guard(Answers(NASTY_OUTPUTS[name]), Returns(lambda outputs: np.zeros(3)), threshold=0.5)
    with tally(JUDGED).trial(f"outputs: {name}"):
        with pytest.raises(Exception):  # noqa: B017, PT011 - whatever is raised, nothing is answered
            guard.predict(X)
        assert guard.requests == 0


@pytest.mark.parametrize("ask", ["predict", "scores", "inspect"])
def test_an_empty_request_passes_nothing(tally, ask):
    guard = guard_of(Returns(NASTY["raises"]))
    with tally(JUDGED).trial(f"empty, {ask}"):
        found = getattr(guard, ask)(X[:0])
        assert len(found.labels if ask == "inspect" else found) == 0
        assert guard.requests == 0


GARBAGE = {
    "none": lambda alarm: None,
    "nan": lambda alarm: torch.full((len(alarm.rows),), torch.nan),
    "fewer": lambda alarm: alarm.labels[1:],
    "of the whole request": lambda alarm: torch.zeros(3, dtype=torch.int64),
    "no class": lambda alarm: alarm.labels + 2,
    "negative": lambda alarm: alarm.labels - 9,
    "bools": lambda alarm: alarm.labels > 0,
    "list": lambda alarm: alarm.labels.tolist(),
    "numpy": lambda alarm: alarm.labels.numpy(),
    "sparse": lambda alarm: alarm.labels.to_sparse(),
    "meta": lambda alarm: alarm.labels.to("meta"),
    "shrunk": lambda alarm: alarm.labels.resize_(1),
    "raises": raising(OSError("down")),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", GARBAGE)
def test_no_answer_of_on_alarm_that_is_not_labels_gets_through(tally, name):
    guard = guard_of(Second(), on_alarm=GARBAGE[name])
    with tally(JUDGED).trial(f"on_alarm: {name}"):
        with pytest.raises(Exception):  # noqa: B017, PT011 - whatever is raised, nothing is answered
            guard.predict(X)
        assert guard.counts() == {"requests": 3, "alarms": 2}


# Code that writes to what it is given


def sorts(outputs):
    outputs.sort(axis=1)
    return 1 - outputs[:, -1]


def zeroes(outputs):
    outputs[:] = 0
    return np.zeros(len(outputs))


class WritesInputs:
    """A detector of inputs that overwrites them and the labels."""

    reads_inputs = True

    def anomaly_score(self, x, labels):
        found = x[:, 1].clone()
        x.fill_(0.5)
        labels.fill_(0)
        return found


@pytest.mark.parametrize("detector", [Returns(sorts), Returns(zeroes), WritesInputs()])
@pytest.mark.parametrize("on_alarm", ["reject", "flag"])
def test_a_detector_cannot_change_what_is_answered(tally, detector, on_alarm):
    x = X.clone()
    guard = guard_of(detector, on_alarm=on_alarm)
    with tally(COPIES).trial(f"{type(detector).__name__}, {on_alarm}"):
        verdict = guard.inspect(x)
        quiet = ~verdict.alarm
        assert quiet.any()
        assert torch.equal(verdict.labels[quiet], torch.tensor(LABELS)[quiet])
        if on_alarm == "flag":
            assert verdict.labels.tolist() == LABELS
        assert torch.equal(guard.scores(x)[quiet], X[quiet])
        assert torch.equal(x, X)


def test_a_detector_that_keeps_its_array_cannot_change_a_judgement(tally):
    kept = np.array([0.9, 0.1, 0.9])
    with tally(COPIES).trial("array of the detector"):
        verdict = guard_of(Returns(lambda _: kept)).inspect(X)
        kept[:] = np.nan
        assert verdict.anomaly_score.tolist() == [0.9, 0.1, 0.9]


def test_the_outputs_of_a_model_that_uses_its_memory_again_are_kept(tally):
    memory = torch.empty(3, 2)

    def scores(x):
        return memory.copy_(x)

    def detector(outputs):
        scores(X.flip(1))  # another request, in the midst of this one
        return np.zeros(3)

    guard = Guard(Answers(scores), Returns(detector), threshold=0.5)
    with tally(COPIES).trial("memory of the model"):
        assert torch.equal(guard.scores(X), X)
        assert guard.predict(X).tolist() == LABELS


def test_a_function_on_alarm_cannot_change_which_inputs_it_answers(tally):
    def on_alarm(alarm):
        answer = 1 - alarm.labels
        for part in (alarm.x, alarm.outputs, alarm.labels, alarm.rows):
            part.zero_()
        alarm.anomaly_score[:] = 0
        return answer

    x = X.clone()
    guard = guard_of(Second(), on_alarm=on_alarm)
    with tally(COPIES).trial("on_alarm"):
        verdict = guard.inspect(x)
        assert verdict.labels.tolist() == [0, 0, 0]
        assert verdict.alarm.tolist() == [False, True, True]
        np.testing.assert_allclose(verdict.anomaly_score, X[:, 1])
        assert torch.equal(guard.scores(x)[0], X[0])
        assert torch.equal(x, X)


class Overwrites:
    """A detector with parts that overwrites what it is given."""

    threshold = 0.5

    def margin_over_threshold(self, x, labels, threshold):
        found = x[:, 1:] - threshold
        if not x.requires_grad:
            x.zero_()
        labels.zero_()
        return found

    def features(self, x):
        found = x.clone()
        if not x.requires_grad:
            x.zero_()
        return found

    reads_inputs = True

    def anomaly_score(self, x, labels):
        return x[:, 1]


def test_a_detector_cannot_change_the_inputs_of_an_attack(tally):
    x, labels = X.clone(), torch.tensor(LABELS)
    view = Guarded(guard_of(Overwrites()), "the test", ("margin_over_threshold", "features"))
    for name, job in (
        ("margin_over_threshold", lambda: view.margin_over_threshold(x, labels)),
        ("features", lambda: view.features(x)),
        ("attack", lambda: attacks.SelectivePGD(eps=0.1, steps=3).run(view.model, x, labels)),
    ):
        with tally(COPIES).trial(name):
            job()
            assert torch.equal(x, X)
            assert labels.tolist() == LABELS


def test_a_detector_cannot_change_what_a_surrogate_learns_from(tally):
    rows = np.random.default_rng(0).random((40, 3))

    class Second:
        def anomaly_score(self, outputs):
            return outputs[:, 1].copy()

    class Zeroes(Second):
        def anomaly_score(self, outputs):
            found = super().anomaly_score(outputs)
            outputs[:] = 0
            return found

    with tally(COPIES).trial("surrogate"):
        given = rows.copy()
        mine, other = (DetectorSurrogate(d(), epochs=2).fit(given) for d in (Zeroes, Second))
        np.testing.assert_array_equal(mine.anomaly_score(rows), other.anomaly_score(rows))
        np.testing.assert_array_equal(given, rows)


def test_a_loss_cannot_change_what_counts_as_success(tally):
    def confused(logits, y):
        own = logits.clone().gather(1, y[:, None]).squeeze(1)
        logits.scatter_(1, y[:, None], -100.0)  # the best of the others
        return logits.amax(1) - own

    x, y = torch.tensor([[0.6, 0.5], [0.9, 0.2]]), torch.tensor([0, 0])
    with tally(COPIES).trial("loss"):
        found, expected = (
            attacks.PGD(eps=0.15, steps=5, random_start=False, loss=loss).run(Identity(), x, y)
            for loss in (confused, "margin")
        )
        assert torch.equal(found.x_adv, expected.x_adv)
        assert found.success.tolist() == [True, False]


# Masked values elsewhere


@pytest.mark.parametrize(
    "job",
    [
        lambda: rob.detection_scores([0, 0, 1], MASKED),
        lambda: rob.detection_scores(np.ma.array([0, 0, 1], mask=[1, 0, 0]), HIGH),
        lambda: rob.detection_scores([0, 0, 1], HIGH, attack=np.ma.array(["a"] * 3, mask=True)),
        lambda: rob.classification_scores(
            [0, 1, 1], np.ma.array(np.full((3, 2), 0.5), mask=True), [0, 1]
        ),
        lambda: rob.classification_scores(
            np.ma.array([0, 1, 1], mask=[1, 0, 0]), np.full((3, 2), 0.5), [0, 1]
        ),
        lambda: DetectorSurrogate(Second()).fit(np.ma.array(np.random.rand(9, 2), mask=True)),
        lambda: forest().anomaly_score(np.ma.array([[0.9, 0.1]], mask=[[0, 1]])),
        lambda: OutputForest().fit(np.ma.array(np.eye(4), mask=True), [0, 1, 0, 1]),
    ],
)
def test_masked_values_are_refused(tally, job):
    with (
        tally("masked values are refused by scores and detectors").trial("masked"),
        pytest.raises(ValueError, match="must not hold masked values"),
    ):
        job()


def forest():
    rows = np.array([[0.9, 0.1], [0.8, 0.2], [0.5, 0.5], [0.6, 0.4]])
    return OutputForest(n_estimators=3, random_state=0).fit(rows, [False, False, True, True])


# The log


def lines_of(path):
    """Lines of a log, each of which must be whole."""
    text = path.read_text()
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


class Fails:
    """Writes of files that are cut, one count for each call: how many bytes are written."""

    def __init__(self, counts):
        self.counts = list(counts)

    def __call__(self, file, data):
        if not self.counts:
            return io.FileIO.write(file, data)
        count = self.counts.pop(0)
        if isinstance(count, BaseException):
            raise count
        return io.FileIO.write(file, bytes(data)[:count])


@pytest.fixture
def short_writes(monkeypatch):
    """A function that sets how many bytes each of the next writes to a log takes."""

    class Short(io.FileIO):
        fails = Fails([])

        def write(self, data):
            return Short.fails(self, data)

    def opened(log):
        return Short(os.fspath(log.path), "ab+")

    def begin(*counts, fails=None):
        Short.fails = fails or Fails(counts)

    monkeypatch.setattr(alarm_log._FileLines, "_opened", opened)
    return begin


NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
ONE = X[1:2]  # an alarm


@pytest.mark.parametrize("cut", [0, 1, 20, 100])
@pytest.mark.parametrize("end", [NO_SPACE, KeyboardInterrupt(), 0])
def test_a_line_that_is_cut_is_taken_back_and_not_answered(tally, tmp_path, short_writes, cut, end):
    path = tmp_path / "alarms.jsonl"
    guard = guard_of(Second(), log=path)
    guard.predict(ONE)
    with tally(WHOLE).trial(f"cut at {cut} by {end!r}"):
        short_writes(*[cut] * (cut > 0), end)
        with pytest.raises((OSError, KeyboardInterrupt)):
            guard.predict(ONE)
        assert len(lines_of(path)) == 1
        assert guard.predict(ONE).tolist() == [REJECTED]
        assert len(lines_of(path)) == 2
        assert guard.counts() == {"requests": 3, "alarms": 3}  # counted, though not logged


def test_an_error_of_the_log_names_it(tmp_path, short_writes):
    guard = guard_of(Second(), log=tmp_path / "alarms.jsonl")
    short_writes(NO_SPACE)
    with pytest.raises(OSError, match=r"No space left.*alarms\.jsonl"):
        guard.predict(ONE)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_a_line_that_is_written_in_pieces_is_whole(tally, tmp_path, short_writes, size):
    path = tmp_path / "alarms.jsonl"
    guard = guard_of(Second(), log=path)
    with tally(WHOLE).trial(f"pieces of {size}"):
        short_writes(*[size] * 150)
        assert guard.predict(X).tolist() == [0, REJECTED, REJECTED]
        assert [line["row"] for line in lines_of(path)] == [1, 2]


def test_alarms_before_the_one_that_was_cut_stay_in_the_log(tally, tmp_path, short_writes):
    path = tmp_path / "alarms.jsonl"
    guard = guard_of(Second(), log=path)
    with tally(WHOLE).trial("the second of two"):
        short_writes(10_000, 30, NO_SPACE)
        with pytest.raises(OSError, match="No space"):
            guard.predict(X)
        assert [line["row"] for line in lines_of(path)] == [1]


def test_no_line_continues_one_that_a_killed_process_has_left(tally, tmp_path):
    path = tmp_path / "alarms.jsonl"
    guard = guard_of(Second(), log=path)
    for left in ('{"time": "20', '{"row": 1}', " "):
        with tally(WHOLE).trial(f"after {left!r}"):
            path.write_text('{"row": 0}\n' + left)
            guard.predict(X)
            first, cut, *lines = path.read_text().splitlines()
            assert (first, cut) == ('{"row": 0}', left)
            assert [json.loads(line)["row"] for line in lines] == [1, 2]


def test_what_others_append_after_a_cut_line_is_kept(tally, tmp_path, short_writes):
    """A program that does not wait for its turn appends between the pieces of a line."""
    path = tmp_path / "alarms.jsonl"
    guard = guard_of(Second(), log=path)

    class Appends(Fails):
        def __call__(self, file, data):
            if self.counts:
                return super().__call__(file, data)
            with path.open("a") as other:
                other.write("\nother\n")
            raise NO_SPACE

    with tally(WHOLE).trial("another program"):
        short_writes(fails=Appends([20]))
        with pytest.raises(OSError, match="No space"):
            guard.predict(ONE)
        assert len(path.read_text().splitlines()[0]) == 20
        assert path.read_text().splitlines()[1:] == ["other"]
        short_writes()
        guard.predict(ONE)
        assert json.loads(path.read_text().splitlines()[-1])["row"] == 0


def test_a_full_disk_answers_nothing_that_is_not_logged(tally, tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "alarms.jsonl"
    guard = guard_of(Second(), log=path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)  # Python ignores the signal
    for size in range(700, 1000, 10):
        path.write_text("")
        answered = 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            for _ in range(8):
                try:
                    guard.predict(ONE)
                    answered += 1
                except OSError:
                    pass
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        with tally(WHOLE).trial(f"{size} bytes"):
            assert 0 < answered < 8
            assert len(lines_of(path)) == answered


class Short:
    """An object that takes a few characters of each text, and fails when it is told to."""

    def __init__(self, size):
        self.size, self.text, self.room = size, "", 10**9

    def write(self, text):
        taken = text[: min(self.size, self.room)]
        if not taken:
            raise NO_SPACE
        self.text += taken
        self.room -= len(taken)
        return len(taken)


@pytest.mark.parametrize("size", [1, 50, 1000])
def test_an_object_that_takes_few_characters_gets_all_of_them(tally, size):
    log = Short(size)
    with tally(WHOLE).trial(f"object, {size} characters"):
        guard_of(Second(), log=log).predict(X)
        assert [json.loads(line)["row"] for line in log.text.splitlines()] == [1, 2]


@pytest.mark.parametrize("room", [0, 1, 60])
def test_after_an_object_has_failed_the_next_line_is_a_new_one(tally, room):
    log = Short(40)
    guard = guard_of(Second(), log=log)
    guard.predict(ONE)
    with tally(WHOLE).trial(f"object with room for {room}"):
        log.room = room
        with pytest.raises(OSError, match="No space"):
            guard.predict(ONE)
        log.room = 10**9
        guard.predict(X)
        last = log.text.splitlines()[-2:]
        assert [json.loads(line)["row"] for line in last] == [1, 2]
        guard.predict(ONE)
        assert log.text.endswith("}\n")
        assert "\n\n" not in log.text[-400:]


@pytest.mark.parametrize("returned", [None, True, 10**6, "written"])
def test_what_is_no_count_means_that_all_was_written(returned):
    written = []

    class Takes:
        def write(self, text):
            written.append(text)
            return returned

    AlarmLog(Takes()).append(["one\n", "two\n"])
    assert written == ["one\n", "two\n"]


@pytest.mark.parametrize("returned", [0, -1])
def test_an_object_that_takes_nothing_is_an_error(returned):
    class Full:
        def write(self, text):
            return returned

    with pytest.raises(OSError, match=f"`log.write` must return a positive count, got {returned}"):
        AlarmLog(Full()).append(["one\n"])


def test_an_open_file_is_flushed_before_the_answer(tally, tmp_path):
    path = tmp_path / "alarms.jsonl"
    with tally(WHOLE).trial("open file"), path.open("w") as file:
        guard_of(Second(), log=file).predict(X)
        assert [line["row"] for line in lines_of(path)] == [1, 2]


def test_a_log_may_be_moved_away(tally, tmp_path):
    path, moved = tmp_path / "alarms.jsonl", tmp_path / "alarms.1"
    guard = guard_of(Second(), log=path)
    with tally(WHOLE).trial("moved away"):
        guard.predict(X)
        path.rename(moved)
        guard.predict(ONE)
        assert [len(lines_of(one)) for one in (moved, path)] == [2, 1]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_log_may_be_a_pipe(tally, tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with tally(WHOLE).trial("pipe"):
        guard_of(Second(), log=path).predict(X)
        lines = os.read(reader, 10_000).decode().splitlines()
        assert [json.loads(line)["row"] for line in lines] == [1, 2]
    os.close(reader)


def _appends(path, number, begin):
    log = AlarmLog(path)
    pieces = Fails([])

    class Pieces(io.FileIO):
        def write(self, data):
            os.sched_yield()  # another process may write now, if it does not wait
            pieces.counts = [5]
            return pieces(self, data)

    log._lines._opened = lambda: Pieces(os.fspath(path), "ab+")
    begin.wait()
    for i in range(30):
        log.append([json.dumps({"process": number, "line": i, "long": "x" * 40}) + "\n"])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore")  # of a fork beside threads: the child runs nothing of torch
def test_lines_of_several_processes_are_whole(tally, tmp_path):
    path = tmp_path / "alarms.jsonl"
    context = multiprocessing.get_context("fork")
    begin = context.Barrier(3)
    processes = [context.Process(target=_appends, args=(path, n, begin)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = lines_of(path)
    promise = tally("lines that several processes append to a log are whole and in order")
    for number in range(3):
        with promise.trial(f"process {number}"):
            mine = [line["line"] for line in found if line["process"] == number]
            assert mine == list(range(30))


def test_a_log_may_read_the_counts_of_its_guard(tally):
    """Nothing waits for the counts while a line is written."""
    found = []

    class Reads:
        def write(self, text):
            found.append(guard.counts())

    guard = guard_of(Second(), log=Reads())
    with tally(THREADS).trial("counts while logging"):
        thread = threading.Thread(target=guard.predict, args=(X,), daemon=True)
        thread.start()
        thread.join(20)
        assert not thread.is_alive()
        assert found == 2 * [{"requests": 3, "alarms": 2}]


# Threads


@pytest.mark.parametrize("kind", ["path", "object"])
@pytest.mark.parametrize("on_alarm", ["reject", "flag", lambda alarm: 1 - alarm.labels])
def test_many_threads_get_the_answers_of_one(tally, tmp_path, kind, on_alarm):
    net = nn.Linear(2, 2, bias=False).eval()
    net.weight.data = torch.tensor([[1.0, 0.3], [-0.2, 1.0]])
    log = tmp_path / "alarms.jsonl" if kind == "path" else Short(60)
    alone = Guard(net, Returns(sorts), threshold=0.4, on_alarm=on_alarm)
    together = Guard(net, Returns(sorts), threshold=0.4, on_alarm=on_alarm, log=log)
    together.predict(X[:0])
    generator = torch.Generator().manual_seed(0)
    requests = [torch.rand(5, 2, generator=generator) for _ in range(8)]
    expected = [(alone.predict(x), alone.scores(x)) for x in requests]
    assert 0 < alone.alarms < alone.requests

    def job(x, labels, scores):
        for _ in range(10):
            assert torch.equal(together.predict(x), labels)
            assert torch.equal(together.scores(x), scores)

    def run(x, wanted):
        return lambda: job(x, *wanted)

    with tally(THREADS).trial(f"{kind}, {on_alarm}"):
        with switching():
            in_threads([run(x, wanted) for x, wanted in zip(requests, expected, strict=True)])
        counts = alone.counts()
        assert together.counts() == {name: 10 * count for name, count in counts.items()}
        if kind == "path":
            assert len(lines_of(log)) == together.alarms
        else:
            assert len([json.loads(line) for line in log.text.splitlines()]) == together.alarms


def test_guards_that_share_a_file_write_whole_lines(tally, tmp_path):
    path = tmp_path / "alarms.jsonl"
    guards = [guard_of(Second(), log=path) for _ in range(2)]
    guards += [copy.copy(guards[0]), copy.deepcopy(guards[0])]
    with tally(THREADS).trial("four guards, one file"):
        with switching():
            in_threads([lambda g=g: [g.predict(X) for _ in range(20)] for g in guards])
        assert len(lines_of(path)) == sum(guard.alarms for guard in guards) == 160


TRAINING = "a guard around a module in training mode answers many threads as it answers one"


class Unsure:
    """The anomaly score is one minus the largest output."""

    def anomaly_score(self, outputs):
        return 1 - outputs.max(1)


def trained():
    """Return a net in training mode whose outputs then depend on chance, the batch and the past."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        last = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3))
        layers = [nn.Linear(2, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), last]
        return nn.Sequential(*layers).train()


KEPT = {
    "module": lambda net: net,
    "keep": lambda net: TorchClassifier(net, mode="keep"),
    "counted": lambda net: QueryCounter(TorchClassifier(net, mode="keep")),
    "ensemble": lambda net: Ensemble([TorchClassifier(net, mode="keep")]),
}


@pytest.mark.parametrize("kind", KEPT)
def test_threads_of_a_guard_around_a_module_in_training_mode(tally, kind):
    net = trained()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random_state = torch.get_rng_state()
    guards = [Guard(KEPT[kind](net), Unsure(), threshold=0.6) for _ in range(2)]
    guards.append(copy.copy(guards[0]))
    requests = [torch.rand(4, 2, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    expected = [guards[0].scores(x) for x in requests]

    def job(start):
        for i in range(start, start + 12):
            with tally(TRAINING).trial(f"{kind}, thread {start}, request {i}"):
                assert torch.equal(guards[i % 3].scores(requests[i % 6]), expected[i % 6])

    with switching():
        in_threads([lambda start=start: job(start) for start in range(4)])
    with tally(TRAINING).trial(f"{kind}, state"):
        assert all(part.training for part in net.modules())
        assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("kind", ["module", "keep"])
def test_requests_wait_for_an_attack_that_holds_a_module_in_training_mode(tally, kind):
    """With `mode="keep"` a request would draw from, and write to, what the attack holds."""
    net = trained()
    guard = Guard(KEPT[kind](net), Unsure(), threshold=0.6)
    expected, order, inside = guard.scores(X), [], threading.Event()

    def attack():
        with evaluating(guard):
            try:
                guard.scores(X)
            finally:
                inside.set()
            for _ in range(20):
                guard.scores(X.flip(0))
            order.append("attack")

    def request():
        inside.wait()
        found = guard.scores(X)
        order.append("request")
        with tally(TRAINING).trial(f"{kind}, during an attack"):
            assert torch.equal(found, expected)

    with switching():
        in_threads([attack, request])
    if kind == "keep":
        assert order == ["attack", "request"]
