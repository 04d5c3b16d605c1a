"""Records: one row for each attack and input."""

import dataclasses

import numpy as np
import pytest
import torch

from advkit import TorchClassifier, attacks
from advkit import eval as rob
from advkit.core.archives import read_npz
from tests.toys import answers, convnet, images

N = 12
ATTACKS = [
    attacks.FGSM(eps=0.02),
    attacks.Suite(eps=0.05),
    attacks.DeepFool(steps=5),
    attacks.PGD(eps=torch.linspace(0.01, 0.2, N), steps=2),
]


@pytest.fixture(scope="module")
def subject():
    net, x = convnet(), images(N)
    y = answers(net, x)
    y[:2] = (y[:2] + 1) % 3
    return net, x, y


@pytest.fixture(scope="module")
def report(subject):
    return rob.evaluate(*subject, attacks=ATTACKS, batch_size=5)


def test_a_row_for_each_attack_and_input(report):
    columns = report.records.columns
    assert len(report.records) == len(ATTACKS) * N
    assert {len(column) for column in columns.values()} == {len(ATTACKS) * N}
    assert columns["attack"].tolist() == [number for number in range(4) for _ in range(N)]
    assert columns["index"].tolist() == [*range(N)] * 4
    assert report.records.attacks == tuple(outcome.label for outcome in report.outcomes)


def test_the_columns_are_what_the_model_and_the_attacks_say(report, subject):
    net, x, y = subject
    model = TorchClassifier(net)
    columns = report.records.columns
    for number, attack in enumerate(ATTACKS):
        rows = {name: column[columns["attack"] == number] for name, column in columns.items()}
        assert rows["label"].equal(y)
        assert rows["clean_prediction"].equal(model.predict(x))
        attacked = rows["label"] == rows["clean_prediction"]
        assert attacked.tolist() == [False] * 2 + [True] * (N - 2)
        own = attack
        if isinstance(attack.eps, torch.Tensor):
            own = dataclasses.replace(attack, eps=attack.eps[attacked])
        if getattr(attack, "stop", "first") is None:
            own = dataclasses.replace(own, stop="first")
        found = own.run(model, x[attacked], y[attacked])
        assert rows["success"][attacked].equal(found.success)
        assert rows["forward"].equal(report.outcomes[number].forward)
        assert rows["backward"].equal(report.outcomes[number].backward)
        wanted = torch.where(found.success, found.distance.double(), torch.nan)
        assert torch.allclose(rows["distance"][attacked], wanted, equal_nan=True)
        labels = model.predict(found.x_adv)
        assert rows["adversarial_prediction"][attacked].equal(labels.where(found.success, -1))
        if found.stage is not None:
            assert rows["stage"][attacked].equal(found.stage)
        for name in ("success", "forward", "backward", "seconds", "radius"):
            assert not rows[name][:2].any()
        assert (rows["seconds"][2:] > 0).all()


def test_the_records_of_an_empty_report():
    report = rob.evaluate(
        convnet(), images(1), torch.zeros(1).long(), attacks=[ATTACKS[0]], batch_size=5
    )
    assert len(report.records) == 1


def test_they_do_not_depend_on_the_batch_size(report, subject):
    other = rob.evaluate(*subject, attacks=ATTACKS, batch_size=N).records.columns
    for name, column in report.records.columns.items():
        if name == "distance":
            assert torch.allclose(column, other[name], equal_nan=True)
        elif name not in ("seconds", "forward", "backward"):
            assert column.equal(other[name]), name


def test_the_archive_has_the_records_and_the_inputs(report, tmp_path):
    _, path, _ = report.save(tmp_path)
    arrays = read_npz(path)
    for name, column in report.records.columns.items():
        assert np.array_equal(arrays[name], column.numpy(), equal_nan=name == "distance")
    assert arrays["input_sha256"].shape == (N, 32)
    assert arrays["noise"].shape == (2, N)
    assert str(arrays["digest"]) == report.digest


def test_a_data_frame(report):
    pandas = pytest.importorskip("pandas")
    frame = report.records.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == ["attack_call", *report.records.columns]
    assert frame.groupby("attack_call", sort=False).success.sum().tolist() == [
        int(outcome.success.sum()) for outcome in report.outcomes
    ]


def test_parquet(report, tmp_path):
    pytest.importorskip("pyarrow")
    pandas = pytest.importorskip("pandas")
    path = report.records.save_parquet(tmp_path / "deep" / "records.parquet")
    pandas.testing.assert_frame_equal(pandas.read_parquet(path), report.records.to_pandas())
    assert [found.name for found in path.parent.iterdir()] == ["records.parquet"]


@pytest.mark.parametrize(("module", "call"), [("pandas", "to_pandas"), ("pyarrow", "save_parquet")])
def test_a_missing_extra(report, tmp_path, monkeypatch, module, call):
    monkeypatch.setitem(__import__("sys").modules, module, None)
    arguments = [tmp_path / "records.parquet"] if call == "save_parquet" else []
    with pytest.raises(ImportError, match=f"needs {module}. Install it with.* 'records'"):
        getattr(report.records, call)(*arguments)
    assert not list(tmp_path.iterdir())
