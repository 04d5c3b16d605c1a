"""MLflow: runs in a local database."""

import gc
import json
from pathlib import Path
from urllib.parse import urlparse

import pytest

from advkit import attacks
from advkit import eval as rob
from advkit.integrations import metrics
from advkit.integrations.mlflow import MLflow
from tests.eval.evaluated import Net, data
from tests.integrations.evaluations import evaluate, evaluate_in_vain

mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
pytest.importorskip("sqlalchemy", reason="needs the extra mlflow")

# mlflow and its database package use functions that are deprecated
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    """A database, which takes most of the time of these tests to create."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture(autouse=True)
def quiet(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def client(uri):
    return mlflow.MlflowClient(uri)


@pytest.fixture
def own(uri, client, tmp_path):
    """Functions that make a tracker with an experiment of its own, and that read its runs."""
    name = tmp_path.name

    def make(**changed):
        return MLflow(**{"tracking_uri": uri, "experiment": name, **changed})

    def runs():
        return client.search_runs([client.get_experiment_by_name(name).experiment_id])

    return make, runs


@pytest.fixture
def active(uri):
    """A run of the caller, which is active."""
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(uri)
    with mlflow.start_run() as run:
        yield run
    mlflow.set_tracking_uri(before)


def test_a_run_holds_the_evaluation(own, client, proxy):
    make, runs = own
    report = evaluate(make(run_name="baseline"), about={"ü": "1", "..": "2"})
    (run,) = runs()
    expected = metrics.report_metrics(report)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "baseline"
    assert run.data.metrics.keys() == {*expected, "seconds"}
    assert expected.items() <= run.data.metrics.items()
    assert run.data.params == metrics.report_params(report)
    assert metrics.report_tags(report).items() <= run.data.tags.items()
    history = client.get_metric_history(run.info.run_id, "robust_accuracy/linf_0.05")
    assert [point.step for point in history] == [20, 40, 60]
    folder = Path(urlparse(run.info.artifact_uri).path, "report")
    assert json.loads((folder / "report.json").read_text())["digest"] == report.digest
    assert report.digest in (folder / "report.html").read_text()
    assert mlflow.active_run() is None
    assert not proxy.was_called()


def test_each_evaluation_is_a_run_and_one_without_a_report_has_failed(own):
    make, runs = own
    tracker = make(artifacts=False)
    evaluate(tracker)
    evaluate_in_vain(tracker)
    assert [run.info.status for run in runs()] == ["RUNNING", "FINISHED"]
    del tracker
    gc.collect()
    failed, finished = runs()
    assert [failed.info.status, finished.info.status] == ["FAILED", "FINISHED"]
    assert "clean_accuracy" in failed.data.metrics
    assert not failed.data.params


def test_more_than_one_request_of_parameters(own):
    make, runs = own
    several = [attacks.FGSM(eps=eps / 100) for eps in range(1, 26)]
    report = rob.evaluate(Net(), *data(), attacks=several, callbacks=[make(artifacts=False)])
    (run,) = runs()
    assert len(run.data.params) == len(metrics.report_params(report)) > 100


def test_an_active_run_is_used_and_stays_open(active):
    report = evaluate(MLflow(prefix="before/"))
    evaluate(MLflow(prefix="after/", artifacts=False), attacks=[attacks.FGSM(eps=0.1)])
    run = mlflow.get_run(active.info.run_id)
    assert run.info.status == "RUNNING"
    assert mlflow.active_run().info.run_id == active.info.run_id
    assert run.data.metrics["before/clean_accuracy"] == float(report.clean_accuracy)
    assert run.data.params["after/attack/0_FGSM/eps"] == "0.1"
    found = mlflow.MlflowClient().list_artifacts(active.info.run_id)
    assert [artifact.path for artifact in found] == ["before"]


def test_an_active_run_that_gets_no_report_stays_open(active):
    evaluate_in_vain(MLflow(artifacts=False))
    gc.collect()
    assert mlflow.get_run(active.info.run_id).info.status == "RUNNING"


def test_a_named_run_is_not_the_active_one(active, own):
    make, runs = own
    evaluate(make(tracking_uri=None, artifacts=False))
    assert [run.info.status for run in runs()] == ["FINISHED"]
    assert not mlflow.get_run(active.info.run_id).data.metrics
    assert mlflow.active_run().info.run_id == active.info.run_id


def test_a_wrong_address_is_an_error_before_any_work():
    with pytest.raises(mlflow.MlflowException, match="nowhere"):
        MLflow(tracking_uri="nowhere://")
