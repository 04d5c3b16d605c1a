"""What is written of alarms, and where."""

import hashlib
import io
import json
from datetime import datetime, timedelta

import pytest

from advkit.detectors.alarm_log import AlarmLog
from advkit.detectors.guard import Guard
from tests.detectors.stub_detectors import Unsure, unsure
from tests.toys import answers, convnet, images


@pytest.fixture
def x():
    return images(40)


def sha256(image):
    """Return the digest of an image of float32 by hand."""
    return hashlib.sha256(b"torch.float32 (1, 6, 6)\n" + image.numpy().tobytes()).hexdigest()


def test_a_line_of_json_for_each_alarm_is_appended(tmp_path, x):
    path = tmp_path / "alarms.jsonl"
    path.write_text("before\n")
    guard = Guard(convnet(), Unsure(), threshold=0.4, log=path)
    found = guard.inspect(x)
    guard.predict(x[~found.alarm])
    first, *lines = path.read_text().splitlines()
    assert first == "before"
    assert len(lines) == guard.alarms == int(found.alarm.sum())
    rows = found.alarm.nonzero().flatten().tolist()
    y = answers(convnet(), x)
    for line, row in zip(lines, rows, strict=True):
        plain = json.loads(line)
        time = datetime.fromisoformat(plain.pop("time"))
        assert time.utcoffset() == timedelta(0)
        assert plain == {
            "row": row, "label": int(y[row]), "threshold": 0.4, "request_id": found.request_id,
            "anomaly_score": found.anomaly_score[row], "sha256": sha256(x[row]),
            "model": "TorchClassifier(ConvNet, bounds=(0, 1))", "detector": "Unsure",
        }  # fmt: skip


def test_the_log_may_be_anything_with_a_write(x):
    lines = io.StringIO()
    guard = Guard(convnet(), Unsure(), threshold=0.4, on_alarm="flag", log=lines)
    guard.predict(x)
    rows = [json.loads(line)["row"] for line in lines.getvalue().splitlines()]
    assert rows == (unsure(x) > 0.4).nonzero()[0].tolist()


def test_an_alarm_that_cannot_be_logged_is_not_answered(tmp_path, x):
    folder = tmp_path / "logs"
    folder.mkdir()
    guard = Guard(convnet(), Unsure(), threshold=0.4, log=folder / "alarms.jsonl")
    (folder / "alarms.jsonl").unlink()
    folder.rmdir()
    with pytest.raises(OSError, match="alarms.jsonl"):
        guard.predict(x)
    with pytest.raises(OSError, match="alarms.jsonl"):
        Guard(convnet(), Unsure(), threshold=0.4, log=folder / "alarms.jsonl")


def test_a_request_without_an_alarm_does_not_open_the_file(tmp_path, x):
    path = tmp_path / "alarms.jsonl"
    guard = Guard(convnet(), Unsure(), threshold=1.0, log=path)
    path.unlink()
    guard.predict(x)
    assert not path.exists()


@pytest.mark.parametrize("ask", ["inspect", "predict", "scores"])
def test_a_line_has_the_id_that_the_caller_gave(x, ask):
    lines = io.StringIO()
    guard = Guard(convnet(), Unsure(), threshold=0.4, log=lines)
    strange = 'r-1 "\n\u2028'
    getattr(guard, ask)(x, request_id=strange)
    found = [json.loads(line) for line in lines.getvalue().splitlines()]
    assert len(found) == guard.alarms > 1
    assert {line["request_id"] for line in found} == {strange}


def test_the_digest_is_of_the_values_that_the_caller_passed(x):
    lines = io.StringIO()
    guard = Guard(convnet(), Unsure(), threshold=-1.0, log=lines)
    x = x[:2] - 1e-6  # below 0 in some places, where it is clamped
    x[0, 0, 0, 0] = -1e-6
    guard.predict(x)
    assert [json.loads(line)["sha256"] for line in lines.getvalue().splitlines()] == [
        sha256(x[0]), sha256(x[1])
    ]  # fmt: skip
    assert sha256(x[0]) != sha256(x[0].clamp(0, 1))


def test_each_line_is_in_the_file_before_the_next_is_written(tmp_path):
    path = tmp_path / "alarms.jsonl"

    class Watched(list):
        def __iter__(self):
            for count, line in enumerate(super().__iter__()):
                assert path.read_text() == "".join(self[:count])
                yield line

    AlarmLog(path).append(Watched(["first\n", "second\n"]))
    assert path.read_text() == "first\nsecond\n"
