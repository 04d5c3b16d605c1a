"""Reports from stores."""

import dataclasses
import json
import shutil

import pytest
import torch
from torch import nn

from advkit import attacks, eval
from advkit.eval.store.store import read_manifest
from advkit.eval.store.unit_files import UnitName, read_unit, write_unit
from tests.eval.evaluated import CALLS, Net, data, plain, several

SETTINGS = {"attacks": several(), "batch_size": 10, "chunk_size": 20}


@pytest.fixture
def store(tmp_path):
    """A store of 60 inputs in 3 chunks, under 3 attacks."""
    folder = tmp_path / "store"
    eval.evaluate(Net(), *data(), **SETTINGS, store=folder, about={"data": "random"})
    return folder


def files(store):
    return sorted((store / "units").iterdir())


def test_it_is_the_report_of_the_evaluation(store):
    wanted = eval.evaluate(Net(), *data(), **SETTINGS, about={"data": "random"})
    CALLS.clear()
    merged = eval.merge(str(store))
    assert CALLS == []
    assert merged.digest == wanted.digest
    assert plain(merged) == plain(wanted)
    for found, expected in zip(merged.outcomes, wanted.outcomes, strict=True):
        assert torch.equal(found.examples.x_adv, expected.examples.x_adv)
        assert found.seconds > 0


def test_it_is_the_report_of_a_stream(tmp_path):
    x, y = data()
    batches = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 60, 10)]
    stream = eval.evaluate(Net(), batches, **SETTINGS, store=tmp_path)
    assert eval.merge(tmp_path).digest == stream.digest


def test_it_warns_of_chance(tmp_path):
    x, y = data()
    settings = {**SETTINGS, "attacks": [attacks.FGSM(eps=0.1)]}
    with pytest.warns(match="is below chance"):
        eval.evaluate(Net(), x, (y + 1) % 3, **settings, store=tmp_path)
    with pytest.warns(match="is below chance"):
        eval.merge(tmp_path)


@pytest.mark.parametrize("folder", ["missing", "empty", "other"])
def test_a_folder_that_is_not_a_store(tmp_path, folder):
    if folder != "missing":
        (tmp_path / folder).mkdir()
    if folder == "other":
        (tmp_path / folder / "report.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match="`store` must be a folder with the file store.json"
    ):
        eval.merge(tmp_path / folder)


@pytest.mark.parametrize(
    ("number", "what"),
    [(3, "the clean passes on chunk 0"), (0, "FGSM.* on chunk 0"), (10, "DeepFool.* on chunk 2")],
)
def test_holes(store, number, what):
    files(store)[number].unlink()
    with pytest.raises(
        ValueError, match=f"where 1 of 12 units are missing. .* that of .*{what}. Run"
    ):
        eval.merge(store)
    files(store)[0].unlink()
    with pytest.raises(ValueError, match="where 2 of 12 units are missing"):
        eval.merge(store)


def test_a_stream_whose_end_is_unknown(tmp_path):
    x, y = data()
    batches = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 60, 10)]
    reports = eval.evaluate_stream(Net(), batches, **SETTINGS, store=tmp_path)
    assert len(next(reports).clean) == 20
    reports.close()
    with pytest.raises(ValueError, match="no run has reached the end of the stream. Run the eval"):
        eval.merge(tmp_path)
    report = eval.evaluate(Net(), batches, **SETTINGS, store=tmp_path)
    assert eval.merge(tmp_path).digest == report.digest


def test_an_interrupted_evaluation_has_holes(tmp_path):
    reports = eval.evaluate_stream(Net(), *data(), **SETTINGS, store=tmp_path)
    next(reports)
    reports.close()
    with pytest.raises(ValueError, match="where 8 of 12 units are missing"):
        eval.merge(tmp_path)


def test_a_unit_that_is_there_twice(store):
    file = files(store)[5]
    name = UnitName.parse(file.name)
    twin = name._replace(key="0" * 32)
    shutil.copy(file, file.with_name(twin.file))
    with pytest.raises(
        ValueError, match="must hold each unit once, got .*Remove the one"
    ) as caught:
        eval.merge(store)
    assert file.name in str(caught.value)
    assert twin.file in str(caught.value)


@pytest.mark.parametrize("name", [UnitName(3, None, "0" * 32), UnitName(0, 3, "0" * 32)])
def test_a_unit_of_a_chunk_or_an_attack_that_does_not_exist(store, name):
    shutil.copy(files(store)[0], store / "units" / name.file)
    with pytest.raises(ValueError, match=f"with {name.file}, which belongs to another one. Remove"):
        eval.merge(store)


def test_units_of_another_evaluation(store, tmp_path):
    eval.evaluate(Net(1), *data(), **SETTINGS, store=tmp_path / "other")
    foreign = files(tmp_path / "other")[0]
    files(store)[0].unlink()
    shutil.copy(foreign, store / "units")
    with pytest.raises(
        ValueError, match=f"units of one evaluation, got .* with {foreign.name}, wh"
    ):
        eval.merge(store)


def test_a_unit_of_another_chunk_with_a_new_name(store):
    """Its header fits its name, and its key does not fit its inputs."""
    first = UnitName.parse(files(store)[0].name)
    other = next(UnitName.parse(f.name) for f in files(store) if f.name.startswith("000002-000"))
    result = read_unit(store / "units" / other.file, other)
    write_unit(store / "units" / first.file, first, result)
    with pytest.raises(ValueError, match="belongs to another one"):
        eval.merge(store)


def test_a_damaged_unit(store):
    file = files(store)[4]
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(
        ValueError, match=f"must hold readable units, got a damaged one: .*{file.name}"
    ):
        eval.merge(store)


def test_a_foreign_file(store):
    (store / "units" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"nothing but units in .*, got notes\.txt\. Move"):
        eval.merge(store)
    (store / "units" / "notes.txt").rename(store / "units" / ".notes.txt")
    assert len(eval.merge(store).clean) == 60


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"format": "advkit store 0"}',
        '{"format": "advkit store 2"}',
        "\xff",
    ],
)
def test_a_damaged_manifest(store, text):
    (store / "store.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match="must have a valid store.json, got .*, which is damaged"):
        eval.merge(store)


def test_it_reads_the_manifest_of_the_store(store):
    manifest = read_manifest(store)
    assert (manifest.inputs, manifest.chunks) == (60, 3)
    plain_values = json.loads((store / "store.json").read_text())
    assert plain_values["format"] == "advkit store 3"
    assert set(plain_values) == {"format", *(f.name for f in dataclasses.fields(manifest))}
    assert manifest.provenance.date == plain_values["date"]


class Half(nn.Module):
    """A net in bfloat16."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 3).to(torch.bfloat16)

    def forward(self, x):
        return self.net(x.to(torch.bfloat16))


def test_examples_of_dtypes_without_an_array(tmp_path):
    x, y = data()
    torch.manual_seed(0)
    net = Half()
    with torch.no_grad():
        y = net(x).argmax(1)
    settings = {**SETTINGS, "attacks": [attacks.FGSM(eps=0.3)]}
    wanted = eval.evaluate(net, x.to(torch.bfloat16), y, **settings, store=tmp_path)
    found = eval.evaluate(net, x.to(torch.bfloat16), y, **settings, store=tmp_path)
    assert found.digest == wanted.digest == eval.merge(tmp_path).digest
    old, new = wanted.outcomes[0].examples, found.outcomes[0].examples
    assert torch.equal(old.x_adv.float(), new.x_adv.float())
