"""Reports from the files of a saved one."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from advkit import attacks
from advkit import eval as rob
from advkit.core.archives import read_npz, write_npz
from tests.eval.made_up import Finds, report_on
from tests.toys import answers, convnet, images

N = 10


@pytest.fixture(scope="module")
def report():
    net, x = convnet(), images(N)
    y = answers(net, x)
    y[0] = (y[0] + 1) % 3
    made = [
        attacks.Suite(eps=0.05),
        attacks.FGSM(eps=torch.linspace(0.01, 0.2, N)),
        attacks.DeepFool(steps=3),
        attacks.Cascade(attacks=(attacks.FGSM(eps=0.1), attacks.PGD(eps=0.1, steps=2))),
    ]
    found = rob.evaluate(
        net, x, y, attacks=made, about={"data": "images"}, class_names=["a", "b", "c"],
        command="advkit evaluate",
    )  # fmt: skip
    gate = rob.Gate("linf 0.05 at least 45 %", "linf 0.05", False, "40 % is below 45 %.")
    return dataclasses.replace(found, gates=(gate,))


@pytest.fixture
def folder(report, tmp_path):
    report.save(tmp_path / "report")
    return tmp_path / "report"


def same(first, second):
    """Whether two values are equal, tensors by their elements and dataclasses by their fields."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first.double().nan_to_num(-7), second.double().nan_to_num(-7))
    if dataclasses.is_dataclass(first):
        names = [field.name for field in dataclasses.fields(first)]
        return all(same(getattr(first, n), getattr(second, n)) for n in names if n != "examples")
    if isinstance(first, (tuple, list)) and not isinstance(first, rob.Gate):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(rob.Report)])
def test_every_field_is_restored(report, folder, name):
    assert same(getattr(report, name), getattr(rob.load_report(folder), name))


def test_it_says_the_same(report, folder):
    loaded = rob.load_report(str(folder / "report.json"))
    assert loaded.digest == report.digest
    assert loaded.to_dict() == report.to_dict()
    assert str(loaded) == str(report)
    assert same(loaded.records.columns["seconds"], report.records.columns["seconds"])
    assert all(outcome.examples is None for outcome in loaded.outcomes)


def test_a_loaded_report_can_be_saved(folder, tmp_path):
    rob.load_report(folder).save(tmp_path / "again")
    first, second = ((f / "report.json").read_text() for f in (folder, tmp_path / "again"))
    assert first == second
    first, second = ((f / "records.npz").read_bytes() for f in (folder, tmp_path / "again"))
    assert first == second


def test_a_report_of_an_attack_without_most_results(tmp_path):
    report = report_on([[0.5], [1.0]], Finds(), wrong=1)
    report.save(tmp_path)
    assert rob.load_report(tmp_path).to_dict() == report.to_dict()


@pytest.mark.parametrize("where", ["missing", "empty"])
def test_no_report(tmp_path, where):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="`path` must be the folder of a saved report"):
        rob.load_report(tmp_path / where)


def test_no_records(folder):
    (folder / "records.npz").unlink()
    with pytest.raises(FileNotFoundError, match="`path` must hold records.npz next to report.json"):
        rob.load_report(folder)


@pytest.mark.parametrize("text", ["", "[]", "null", "{}", '{"model": 1}', "\x00"])
def test_another_file(folder, text):
    (folder / "report.json").write_text(text)
    with pytest.raises(ValueError, match="`path` must be a report of advkit"):
        rob.load_report(folder)


def test_another_format(folder):
    (folder / "report.json").write_text('{"format": "advkit report 0"}')
    with pytest.raises(ValueError, match="in the format 'advkit report 1', got 'advkit report 0'"):
        rob.load_report(folder)


def test_damaged_records(folder):
    content = (folder / "records.npz").read_bytes()
    (folder / "records.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="`path` must hold a whole records.npz"):
        rob.load_report(folder)


@pytest.mark.parametrize("name", ["digest", "sha256", "attacks", "model"])
def test_a_missing_entry(folder, name):
    plain = json.loads((folder / "report.json").read_text())
    del plain[name]
    (folder / "report.json").write_text(json.dumps(plain))
    with pytest.raises(ValueError, match="`path` must be a (whole report|report whose files)"):
        rob.load_report(folder)


def test_a_changed_figure(folder):
    plain = json.loads((folder / "report.json").read_text())
    plain["clean_accuracy"]["count"] += 1
    (folder / "report.json").write_text(json.dumps(plain))
    with pytest.raises(ValueError, match="one was changed or replaced: their digests differ"):
        rob.load_report(folder)


def test_a_changed_record(folder):
    arrays = read_npz(folder / "records.npz")
    arrays["distance"] = np.nan_to_num(arrays["distance"])
    write_npz(folder / "records.npz", arrays)
    with pytest.raises(ValueError, match="one was changed or replaced: their digests differ"):
        rob.load_report(folder)


def test_the_records_of_another_report(report, folder, tmp_path):
    dataclasses.replace(report, model="Another").save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "records.npz", folder)
    with pytest.raises(ValueError, match="one was changed or replaced: their digests differ"):
        rob.load_report(folder)


def test_times_and_the_run_may_differ(report):
    run = dataclasses.replace(report.provenance, date="2027", command=None, device="GPU", threads=9)
    assert dataclasses.replace(report, provenance=run, gates=()).digest == report.digest
    other = dataclasses.replace(report.provenance, weights="0" * 64)
    assert dataclasses.replace(report, provenance=other).digest != report.digest
