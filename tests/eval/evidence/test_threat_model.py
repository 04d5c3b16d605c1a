"""Threat models in the terms of NIST AI 100-2."""

import pytest
import torch

from advkit import attacks
from advkit import eval as rob
from advkit.eval.evidence.threat_model import ThreatModel, knowledge_of
from tests.toys import answers, convnet, images

GRADIENTS, LABELS = attacks.FGSM(eps=0.1), attacks.HopSkipJump(max_queries=50)


def threat_model(*made):
    net, x = convnet(), images(6)
    report = rob.evaluate(net, x, answers(net, x), attacks=made)
    return report.to_dict()["threat_model"]


def test_gradients_are_knowledge_of_the_model():
    assert (knowledge_of(3), knowledge_of(0)) == ("white-box", "black-box")


def test_an_attack_with_gradients():
    assert threat_model(GRADIENTS) == {
        "attack_class": "evasion", "life_cycle_stage": "deployment",
        "goal": "integrity violation", "objective": "untargeted misclassification",
        "capabilities": ["testing data control"], "knowledge": "white-box",
        "limits": ["linf 0.1"], "source": "NIST AI 100-2e2025",
    }  # fmt: skip


def test_an_attack_on_labels():
    found = threat_model(LABELS)
    assert found["knowledge"] == "black-box"
    assert found["capabilities"] == ["testing data control", "query access"]
    assert found["limits"] == ["l2, any distance"]


def test_the_strongest_attacker_counts():
    found = threat_model(LABELS, GRADIENTS)
    assert found["knowledge"] == "white-box"
    assert found["capabilities"] == ["testing data control", "query access"]
    assert found["limits"] == ["l2, any distance", "linf 0.1"]


def test_limits_are_listed_once():
    found = threat_model(GRADIENTS, attacks.FGSM(eps=0.1, seed=1), attacks.FGSM(eps=0.2))
    assert found["limits"] == ["linf 0.1", "linf 0.2"]


@pytest.mark.parametrize("eps", [torch.linspace(0.1, 0.2, 6)])
def test_one_budget_for_each_input(eps):
    assert threat_model(attacks.FGSM(eps=eps))["limits"] == ["linf, one budget for each input"]


def test_the_dict_is_plain():
    found = ThreatModel.of(["black-box"], ["linf 0.1"]).to_dict()
    assert all(isinstance(value, (str, list)) for value in found.values())
