"""What the study of attacks that know the defenders counts and writes."""

import json
import math
import sys

import pytest
import torch

from advkit import attacks
from advkit.data import Dataset
from advkit.detectors import Guard


@pytest.fixture
def case(study, brightness):
    net, data, fit = brightness
    few = Dataset(data.x[:6], data.y[:6], "few")
    return study.Case(net, fit(), fit(), data, few, data.x[:40], (2, 5))


@pytest.mark.filterwarnings("ignore:The ball of linf 1 holds every input")  # its last budget
def test_every_table_is_filled(study, case):
    results, text = study.adaptive(case, (1, 2))
    json.dumps(results)
    assert results["honest"]["0"]["defended"] == 0
    assert results["honest"]["5 %, N = 2"]["defended"] == 0  # a natural image always does
    assert results["article"]["1 %, N = 1"]["false alarms"] <= 5
    assert [row["worst of all"][-1] for row in results["budgets"].values()] == [0, 0, 0]
    for name in ("1 % | 1 |", "N = 1 at the rate of 2 with 5 % each", "orthogonal PGD"):
        assert name in text


def test_a_rejection_is_no_success(study, case):
    guard = Guard(case.net, case.mrr, threshold=1e-9)
    moved = 1 - case.data.x
    success = study.attacked(lambda model, x, y: moved, guard, case.data)
    rejected = guard.predict(moved) == -1
    assert rejected.any()
    assert not success[rejected].any()
    assert study.false_alarms(case, guard) > 90
    assert study.false_alarms(case, case.net) == 0


def test_failures_are_infinite_in_the_median(study, case):
    class Fails:
        def run(self, model, x, y):
            return attacks.CarliniWagnerL2(search_steps=1, steps=1, lr=1e-9).run(case.net, x, y)

    found = study.minimum_norm(case, Fails(), case.net)
    assert found["defended"] == 100
    assert found["median"] == math.inf
    assert math.isnan(found["mean"])


@pytest.mark.slow("trains and fits")
def test_the_case_is_the_net_with_a_chain_and_seeds(study, real, tmp_path, monkeypatch, capsys):
    cases = []
    keep = lambda case, counts: (cases.append(case) or {"counts": counts}, "a table")  # noqa: E731
    monkeypatch.setattr(study, "adaptive", keep)
    folder = real("mnist_train.npz").parent
    arguments = ["mrr_adaptive.py", "--data", str(folder), "--quick", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    study.main()
    (case,) = cases
    assert [mrr.latent[0].chain is None for mrr in (case.mrr, case.seeds)] == [False, True]
    assert torch.equal(case.net(case.data.x).argmax(1), case.data.y)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"mlp.pt", "mlp_mrr.npz", "mlp_seeds_mrr.npz", "adaptive.json"}
    assert json.loads((tmp_path / "adaptive.json").read_text())["counts"] == [1, 2]
    assert capsys.readouterr().out == "a table\n"
