"""Trackers: each is given an evaluation, and its own reader finds the figures."""

import socket
import sys

import pytest

from advkit import attacks
from advkit import eval as rob
from advkit.integrations.metrics import metrics_of_report, params_of_report
from advkit.integrations.mlflow import MLflow
from advkit.integrations.tensorboard import TensorBoard
from advkit.integrations.wandb import WandB
from tests.eval.evaluated import Net, data


def evaluate(tracker):
    made = [attacks.FGSM(eps=0.05), attacks.DeepFool(steps=3)]
    return rob.evaluate(Net(), *data(), attacks=made, batch_size=25, callbacks=[tracker])


@pytest.mark.filterwarnings("ignore")
class TestMLflow:
    @pytest.fixture
    def client(self, tmp_path, monkeypatch):
        mlflow = pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
        pytest.importorskip("sqlalchemy", reason="the extra mlflow is not installed")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
        return mlflow.MlflowClient("sqlite:///mlflow.db")

    def test_a_run_of_its_own(self, client, tmp_path):
        import mlflow

        before = mlflow.get_tracking_uri()
        tracker = MLflow(tracking_uri="sqlite:///mlflow.db", experiment="nets", run_name="mine")
        report = evaluate(tracker)
        assert mlflow.active_run() is None
        assert mlflow.get_tracking_uri() == before
        (run,) = client.search_runs([client.get_experiment_by_name("nets").experiment_id])
        assert (run.info.status, run.info.run_name) == ("FINISHED", "mine")
        assert run.data.metrics == pytest.approx(metrics_of_report(report))
        assert run.data.params == params_of_report(report)
        assert run.data.tags["advkit.verdict"] == report.verdict
        history = client.get_metric_history(run.info.run_id, "robust_accuracy/linf_0.05")
        assert [metric.step for metric in history] == [25, 50, 60, 60]
        assert history[-1].value == float(report.worst_case)
        files = client.list_artifacts(run.info.run_id, "advkit")
        assert sorted(file.path for file in files) == [
            "advkit/records.npz", "advkit/report.html", "advkit/report.json",
        ]  # fmt: skip
        evaluate(tracker)
        assert len(client.search_runs([run.info.experiment_id])) == 2

    def test_an_active_run_stays_open(self, client):
        import mlflow

        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri("sqlite:///mlflow.db")
        with mlflow.start_run(run_name="of the user") as mine:
            evaluate(MLflow(artifacts=False))
            assert mlflow.active_run().info.run_id == mine.info.run_id
            assert client.get_run(mine.info.run_id).info.status == "RUNNING"
        mlflow.set_tracking_uri(before)
        run = client.get_run(mine.info.run_id)
        assert run.info.run_name == "of the user"
        assert "clean_accuracy" in run.data.metrics
        assert not client.list_artifacts(run.info.run_id)

    def test_a_killed_evaluation_leaves_no_run(self, client):
        class Fails(rob.Callback):
            def on_chunk(self, record):
                raise KeyboardInterrupt

        tracker = MLflow(tracking_uri="sqlite:///mlflow.db")
        before = len(client.search_runs(["0"]))
        with pytest.raises(KeyboardInterrupt):
            rob.evaluate(Net(), *data(), attacks=[attacks.FGSM(eps=0.05)],
                         callbacks=[tracker, Fails()])  # fmt: skip
        assert not [run for run in client.search_runs(["0"]) if run.info.status == "RUNNING"]
        assert len(client.search_runs(["0"])) == before


@pytest.mark.filterwarnings("ignore")
class TestTensorBoard:
    def test_an_event_file(self, tmp_path):
        pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        report = evaluate(TensorBoard(tmp_path / "runs"))
        found = EventAccumulator(str(tmp_path / "runs"))
        found.Reload()
        metrics = metrics_of_report(report)
        assert set(found.Tags()["scalars"]) == set(metrics)
        for name, value in metrics.items():
            assert found.Scalars(name)[-1].value == pytest.approx(value, rel=1e-6)
        steps = [event.step for event in found.Scalars("robust_accuracy/linf_0.05")]
        assert steps == [25, 50, 60, 60]
        texts = [tag for tag in found.Tags()["tensors"] if tag.startswith("advkit/")]
        assert len(texts) == 1 + len(params_of_report(report))


@pytest.mark.filterwarnings("ignore")
class TestWandB:
    @pytest.fixture
    def wandb(self, tmp_path, monkeypatch):
        found = pytest.importorskip("wandb", reason="the extra wandb is not installed")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("WANDB_SILENT", "true")
        return found

    def test_a_run_that_stays_on_this_machine(self, wandb, tmp_path, monkeypatch):
        asked = []
        real = socket.getaddrinfo
        monkeypatch.setattr(
            socket,
            "getaddrinfo",
            lambda host, *rest, **more: asked.append(host) or real(host, *rest),
        )
        report = evaluate(WandB(project="robustness", name="mine", folder=tmp_path / "kept"))
        assert wandb.run is None
        (folder,) = (tmp_path / "kept" / "wandb").glob("offline-run-*")
        (file,) = folder.glob("*.wandb")
        content = file.read_bytes()
        for words in ("robust_accuracy/linf_0.05", report.digest, report.verdict, "mine"):
            assert words.encode() in content
        assert not [host for host in asked if "wandb" in str(host)]

    def test_an_active_run_stays_open(self, wandb):
        with wandb.init(mode="offline", project="mine") as run:
            report = evaluate(WandB(project="other"))
            assert wandb.run is run
            assert run.summary["robust_accuracy/linf_0.05"] == float(report.worst_case)
            assert run.config["digest"] == report.digest

    def test_an_unknown_mode(self):
        with pytest.raises(ValueError, match="`mode` must be one of 'offline', 'online'"):
            WandB(project="mine", mode="on")


@pytest.mark.parametrize(
    ("package", "create"),
    [
        ("mlflow", MLflow),
        ("tensorboard", lambda: TensorBoard("runs")),
        ("wandb", lambda: WandB(project="mine")),
    ],
)
def test_a_missing_package_is_named(monkeypatch, package, create):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=f"needs {package}. Install it with.*'{package}'"):
        create()
