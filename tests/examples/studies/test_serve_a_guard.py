"""The guarded service: labels, alarms, ids, refusals and metrics over HTTP."""

import importlib
import json
from pathlib import Path

import pytest

from advkit import attacks, data
from tests.detectors.exposition import parse

pytest.importorskip("fastapi", reason="needs fastapi")
pytest.importorskip("uvicorn", reason="needs uvicorn")
pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx`")  # by newer versions of its client


@pytest.fixture(scope="module")
def example():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parents[3] / "examples" / "studies"))
        yield importlib.import_module("serve_a_guard")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, example):
    path = tmp_path_factory.mktemp("served")
    example.guarded(path)
    return path


@pytest.fixture
def guard(example, folder):
    return example.guarded(folder)


@pytest.fixture
def client(example, guard):
    try:
        testclient = importlib.import_module("fastapi.testclient")
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs the test client of fastapi: {error}")
    return testclient.TestClient(example.service(guard))


TEST = data.digits("test")


def post(client, image, **headers):
    """Post an image `(1, 8, 8)` as JSON, which may hold NaN."""
    text = json.dumps({"image": image.squeeze(0).tolist()})
    headers = {"Content-Type": "application/json", **headers}
    return client.post("/predict", content=text, headers=headers)


def test_it_answers_as_the_guard_does(client, guard, folder):
    x = TEST.x[400:420]
    x = attacks.PGD(eps=0.2, steps=20)(guard.model, x, TEST.y[400:420])
    expected = guard.inspect(x)
    assert 0 < expected.alarm.sum() < 20
    (folder / "alarms.jsonl").unlink()
    for i, image in enumerate(x):
        answer = post(client, image)
        assert answer.status_code == 200
        found = answer.json()
        assert found["anomaly_score"] == expected.anomaly_score[i]
        assert found["alarm"] == bool(expected.alarm[i])
        assert (-1 if found["label"] is None else found["label"]) == int(expected.labels[i])
        assert (found["label"] is None) == found["alarm"]
        assert answer.headers["X-Request-ID"] == found["request_id"]
        if found["alarm"]:
            line = json.loads((folder / "alarms.jsonl").read_text().splitlines()[-1])
            assert line["request_id"] == found["request_id"]


def test_the_id_of_the_client_is_kept(client):
    answer = post(client, TEST.x[0], **{"X-Request-ID": "trace-1.2_3"})
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"] == "trace-1.2_3"
    for bad in ("a b", "a" * 129, "a;b"):
        answer = post(client, TEST.x[0], **{"X-Request-ID": bad})
        assert answer.status_code == 400
        assert "`X-Request-ID` must match" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (1000 * TEST.x[0], "`x` must lie in the model's bounds [0, 1], got values"),
        (TEST.x[0] * float("nan"), "`x` must be finite"),
        (TEST.x[0, :, :7], "`image` must have 8 rows of 8 pixels, got 7 of 8."),
        (TEST.x[0, :, :, :7], "`image` must have 8 rows of 8 pixels, got 8 of 7."),
    ],
)
def test_what_is_no_image_is_refused_in_the_words_of_advkit(client, image, words):
    answer = post(client, image)
    assert answer.status_code == 400
    assert words in answer.json()["detail"]


@pytest.mark.parametrize("body", ["", "{}", '{"image": "a"}', '{"image": [["a"]]}', "[", "[1]"])
def test_what_is_no_json_of_an_image_is_refused(client, body):
    headers = {"Content-Type": "application/json"}
    assert client.post("/predict", content=body, headers=headers).status_code == 422


def test_metrics_are_those_of_prometheus(client, guard):
    post(client, TEST.x[0])
    post(client, 1000 * TEST.x[0])
    answer = client.get("/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = parse(answer.text)
    assert found["advkit_guard_requests_total"] == ("counter", {"model": "digits"}, 1)
    assert found["advkit_guard_failures_total"][2] == 1
    assert found["advkit_guard_threshold"][2] == guard.threshold


def test_it_is_healthy(client):
    assert client.get("/healthz").json() == {"status": "ok"}


def test_a_second_run_loads_the_guard(example, folder, guard, monkeypatch):
    monkeypatch.setattr(example, "trained", None)
    assert example.guarded(folder).threshold == guard.threshold
