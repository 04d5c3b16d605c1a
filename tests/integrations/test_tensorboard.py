"""TensorBoard: what stands in the file of events."""

import pytest

from advkit.integrations import metrics
from advkit.integrations.tensorboard import TensorBoard
from tests.integrations.evaluations import evaluate, evaluate_in_vain

pytest.importorskip("tensorboard", reason="needs the extra tensorboard")


def events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder)).Reload()


def text(found, name):
    (event,) = found.Tensors(f"{name}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def test_the_file_of_an_evaluation(tmp_path):
    report = evaluate(TensorBoard(tmp_path / "runs" / "one"))
    found = events(tmp_path / "runs" / "one")
    expected = metrics.report_metrics(report)
    assert set(found.Tags()["scalars"]) == {*expected, "seconds"}
    for name, value in expected.items():
        last = found.Scalars(name)[-1]
        assert (last.step, last.value) == (60, pytest.approx(value))
    assert [e.step for e in found.Scalars("robust_accuracy/linf_0.05")] == [20, 40, 60]
    assert "    clean accuracy 85.00 % (51 of 60)" in text(found, "report")
    assert "| attack/1_PGD/steps | 3 |" in text(found, "parameters")
    assert "| about/data | a \\| b |" in text(found, "parameters")
    assert f"| digest | {report.digest} |" in text(found, "tags")


def test_chunks_can_be_read_before_the_report(tmp_path):
    tracker = TensorBoard(str(tmp_path))
    evaluate_in_vain(tracker)
    found = events(tmp_path)
    assert [event.step for event in found.Scalars("clean_accuracy")] == [20, 40]
    assert [event.step for event in found.Scalars("seconds")] == [20, 40]  # written last


@pytest.mark.parametrize("folder", [None, 3, ""])
def test_a_folder_is_a_path(folder):
    with pytest.raises(TypeError, match="`folder` must be the path of a folder"):
        TensorBoard(folder)


def test_nothing_is_written_before_an_evaluation(tmp_path):
    TensorBoard(tmp_path / "runs")
    assert not list(tmp_path.iterdir())
