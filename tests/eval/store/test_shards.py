"""Shards of an evaluation."""

import pytest
import torch

from advkit import eval
from advkit.eval.store.shards import Shard, checked_shard, shard_of_process
from tests.eval.evaluated import Net, data, plain, several


def array(task, least, most, count):
    values = {"ID": task, "MIN": least, "MAX": most, "COUNT": count}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in values.items()}


def torchrun(rank, size):
    return {"RANK": str(rank), "WORLD_SIZE": str(size)}


@pytest.mark.parametrize(
    ("environ", "shard"),
    [
        ({}, (0, 1)),
        (torchrun(0, 2), (0, 2)),
        (torchrun(1, 2), (1, 2)),
        (torchrun(0, 1), (0, 1)),
        ({"RANK": "1"}, (0, 1)),
        ({"WORLD_SIZE": "2"}, (0, 1)),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, (0, 1)),
        ({"RANK": "first", "WORLD_SIZE": "2"}, (0, 1)),
        (array(0, 0, 15, 16), (0, 16)),
        (array(15, 0, 15, 16), (15, 16)),
        (array(1, 1, 8, 8), (0, 8)),
        (array(8, 1, 8, 8), (7, 8)),
        (array(0, 0, 9, 4), (0, 4)),  # --array=0-9:3
        (array(9, 0, 9, 4), (3, 4)),
        (array(5, 1, 9, 3), (1, 3)),  # --array=1-9:4
        (array(7, 7, 7, 1), (0, 1)),
        ({**array(1, 0, 3, 4), "SLURM_ARRAY_TASK_COUNT": ""}, (0, 1)),
        ({**array(1, 0, 3, 4), **torchrun(2, 3)}, (2, 3)),
        ({**array(1, 0, 3, 4), **torchrun(0, 1)}, (1, 4)),
    ],
)
def test_the_shard_of_a_process(environ, shard):
    assert shard_of_process(environ) == Shard(*shard)


@pytest.mark.parametrize("environ", [array(1, 0, 4, 3), array(2, 0, 5, 3), array(3, 3, 3, 2)])
def test_an_array_with_gaps_is_refused(environ):
    with pytest.raises(ValueError, match=r"`SLURM_ARRAY_TASK_ID` must be one of a regular range"):
        shard_of_process(environ)


@pytest.mark.parametrize("rank", [2, 3])
def test_a_rank_beyond_the_size_is_refused(rank):
    with pytest.raises(ValueError, match=f"`RANK` must be below WORLD_SIZE, got {rank} of 2"):
        shard_of_process(torchrun(rank, 2))


def test_the_shards_of_an_array_are_all_shards():
    for least, step, count in ((0, 1, 5), (1, 1, 4), (3, 7, 3)):
        most = least + step * (count - 1)
        found = [
            shard_of_process(array(task, least, most, count))
            for task in range(least, most + 1, step)
        ]
        assert found == [Shard(number, count) for number in range(count)]


def test_each_chunk_is_in_one_shard():
    shards = [Shard(number, 3) for number in range(3)]
    assert [[shard.holds(chunk) for shard in shards].index(True) for chunk in range(6)] == [
        0, 1, 2, 0, 1, 2,
    ]  # fmt: skip
    assert all(sum(shard.holds(chunk) for shard in shards) == 1 for chunk in range(50))
    assert str(Shard(2, 3)) == "2/3"


@pytest.mark.parametrize(
    ("shard", "error", "message"),
    [
        (1, TypeError, r"`shard` must be a pair \(number, count\), .* got 1"),
        ((1, 2, 3), TypeError, r"`shard` must be a pair"),
        ("01", TypeError, r"`shard` must be a pair"),
        ((0.0, 2), TypeError, r"`shard\[0\]` must be an int"),
        ((0, 0), ValueError, r"`shard\[1\]` must be"),
        ((-1, 2), ValueError, r"`shard\[0\]` must"),
        ((2, 2), ValueError, r"number below its count, got \(2, 2\). .* from 0 to 1"),
    ],
)
def test_bad_shards(shard, error, message):
    with pytest.raises(error, match=message):
        checked_shard(shard)


def test_pairs():
    assert checked_shard((1, 4)) == checked_shard([1, 4]) == Shard(1, 4)


def test_shards_need_a_store():
    x, y = data()
    with pytest.raises(ValueError, match="`store` must be given with `shard`, got None"):
        eval.evaluate(Net(), x, y, attacks=several(), shard=(0, 2))
    whole = eval.evaluate(Net(), x, y, attacks=several(), shard=(0, 1))
    assert len(whole.clean) == 60


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("stream", [False, True])
def test_shards_of_an_evaluation(tmp_path, count, stream):
    x, y = data()
    batches = [(x[i : i + 10], y[i : i + 10]) for i in range(0, 60, 10)]
    inputs = (batches,) if stream else (x, y)
    settings = {"attacks": several(), "batch_size": 10, "chunk_size": 20}
    wanted = eval.evaluate(Net(), *inputs, attacks=several(), batch_size=10)
    for number in reversed(range(count)):
        part = eval.evaluate(Net(), *inputs, **settings, store=tmp_path, shard=(number, count))
        rows = [row for row in range(60) if row // 20 % count == number]
        assert torch.equal(part.clean, wanted.clean[rows])
        assert dict(part.about) == {"shard": f"{number}/{count}"}
        assert f"on {len(rows)} inputs" in str(part)
    merged = eval.merge(tmp_path)
    assert merged.digest == wanted.digest
    assert plain(merged) == plain(wanted)


def test_the_shard_of_the_environment(tmp_path, monkeypatch):
    x, y = data()
    settings = {"attacks": several(), "batch_size": 10, "chunk_size": 20}
    for rank in range(2):
        for name, value in torchrun(rank, 2).items():
            monkeypatch.setenv(name, value)
        without = eval.evaluate(Net(), x, y, **settings)
        part = eval.evaluate(Net(), x, y, **settings, store=tmp_path)
        assert (len(without.clean), len(part.clean)) == (60, 40 - 20 * rank)
    assert eval.merge(tmp_path).digest == without.digest
    whole = eval.evaluate(Net(), x, y, **settings, store=tmp_path, shard=(0, 1))
    assert whole.digest == without.digest
