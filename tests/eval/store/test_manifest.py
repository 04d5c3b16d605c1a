"""Manifests of stores."""

import dataclasses
import json

import pytest

from advkit import attacks
from advkit.eval.evidence.provenance import Provenance
from advkit.eval.robustness.preparation import describe
from advkit.eval.store.manifest import FORMAT, Manifest
from advkit.eval.units.chunks import Inputs
from tests.eval.evaluated import data

SURROUNDINGS = {
    "model": "0" * 64,
    "weights": "1" * 64,
    "device": "cpu",
    "threads": 1,
    "versions": {"advkit": "0.1", "torch": "2.0"},
    "numerics": {"autocast": {}, "default dtype": "torch.float32"},
}


TRIED = (attacks.FGSM(eps=0.1), attacks.DeepFool())


def manifest(surroundings=SURROUNDINGS, hashes=("a", "b"), tried=TRIED, **changed):
    inputs = Inputs(*data(), 10, 20)
    provenance = Provenance(
        date="2026-01-01", command="advkit evaluate", batch_size=10, attacks=hashes, **surroundings
    )
    described = describe(tried, inputs, {"data": "random"}, ["cat", "dog"])
    made = Manifest.of(described, provenance, inputs)
    assert made.provenance == provenance
    return dataclasses.replace(made, **changed)


def test_it_states_the_evaluation():
    made = manifest()
    assert (made.inputs, made.chunks, made.batch_size, made.chunk_size) == (60, 3, 10, 20)
    assert made.budgets == (("linf", 0.1),)
    assert [attack["hash"] for attack in made.attacks] == ["a", "b"]
    assert made.surroundings == SURROUNDINGS
    assert made.description.attacks[1].label == "DeepFool()"
    assert made.description.total == 60
    assert made.description.about == {"data": "random"}
    assert made.description.class_names == ("cat", "dog")
    assert made.description.budgets == made.budgets


def test_each_attack_needs_a_hash():
    with pytest.raises(ValueError, match="zip"):
        manifest(hashes=("a",))


def test_a_round_trip():
    made = manifest()
    plain = json.loads(json.dumps(made.to_plain()))
    assert plain["format"] == FORMAT
    again = Manifest.from_plain(plain)
    assert again == made
    assert again.description == made.description
    assert made.difference(again) is None


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Manifest)])
def test_a_missing_value(name):
    plain = manifest().to_plain()
    del plain[name]
    with pytest.raises(ValueError, match=f"it lacks '{name}'"):
        Manifest.from_plain(plain)


@pytest.mark.parametrize("plain", [None, [], {}, {"format": "advkit store 0"}])
def test_another_format(plain):
    with pytest.raises(ValueError, match="its format is not 'advkit store 3'"):
        Manifest.from_plain(plain)


def test_a_key_depends_on_all_that_decides():
    made = manifest()
    others = [
        made.key(0, "chunk"),
        made.key(1, "chunk"),
        made.key(None, "chunk"),
        made.key(0, "other"),
        dataclasses.replace(made, batch_size=11).key(0, "chunk"),
        dataclasses.replace(made, budgets=()).key(None, "chunk"),
        manifest(hashes=("c", "b")).key(0, "chunk"),
        *(manifest({**SURROUNDINGS, name: "x"}).key(0, "chunk") for name in SURROUNDINGS),
    ]
    assert len(set(others)) == len(others)
    assert all(len(key) == 32 and int(key, 16) >= 0 for key in others)


def test_a_key_depends_on_nothing_else():
    made = manifest()
    more = dataclasses.replace(made, chunk_size=30, inputs=None, chunks=None, about={})
    assert more.key(0, "chunk") == made.key(0, "chunk")
    other = manifest(hashes=("a", "c"))  # another attack does not concern this one
    assert other.key(0, "chunk") == made.key(0, "chunk")
    assert other.key(None, "chunk") == made.key(None, "chunk")


DIFFERENT = [
    (
        manifest({**SURROUNDINGS, "model": "1" * 64}),
        "model has other weights, settings or code (hash 000000000000, here 111111111111). If a "
        "forward pass changes an attribute of the model, evaluate a fresh copy",
    ),
    (manifest(hashes=("a", "c")), "attack 2, DeepFool(), has other tensors, functions or models"),
    (manifest(batch_size=20), "batch size is 10, here 20"),
    (manifest(chunk_size=1_000), "chunk size is 20, here 1,000"),
    (manifest(inputs=61), "number of inputs is 60, here 61"),
    (
        manifest({**SURROUNDINGS, "threads": 8}),
        "number of threads is 1, here 8, which changes the rounding (call torch.set_num_threads or "
        "set OMP_NUM_THREADS)",
    ),
    (manifest({**SURROUNDINGS, "device": "cuda"}), "device is cpu, here cuda"),
    (
        manifest({**SURROUNDINGS, "versions": {"advkit": "0.2", "torch": "2.0"}}),
        "versions are advkit 0.1, here advkit 0.2",
    ),
    (
        manifest(
            {**SURROUNDINGS, "numerics": {**SURROUNDINGS["numerics"], "autocast": {"cpu": 1}}}
        ),
        "settings of torch are autocast {}, here autocast {'cpu': 1}",
    ),
]


@pytest.mark.parametrize(("other", "text"), DIFFERENT)
def test_differences(other, text):
    assert manifest().difference(other) == text


def test_attacks_that_differ():
    made = manifest()
    fewer = dataclasses.replace(made, attacks=made.attacks[:1])
    assert made.difference(fewer) == (
        "number of attacks is 2, here 1: FGSM(eps=0.1), DeepFool() there, FGSM(eps=0.1) here"
    )
    other = manifest(tried=[attacks.FGSM(eps=0.2), attacks.DeepFool()], hashes=("c", "b"))
    assert made.difference(other) == "attack 1 is FGSM(eps=0.1), here FGSM(eps=0.2)"


def test_the_same_evaluation():
    made = manifest()
    for other in (
        manifest(),
        dataclasses.replace(made, inputs=None, chunks=None),
        dataclasses.replace(made, about={"data": "other"}),
    ):
        assert made.difference(other) is None
        assert other.difference(made) is None
