"""Samples that are sent with the rest of their batch."""

import torch

from advkit.attacks.engine.sender import WholeSender


def test_several_points_of_a_sample_are_answered_in_their_order():
    batch, sent = torch.zeros(4, 1), []

    def ask(x):
        sent.append(x.flatten().tolist())
        return 10 * x

    sender = WholeSender(batch, torch.tensor([0, 2, 3]), None)
    x = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    answers = sender(ask, x, torch.tensor([2, 1, 1, 2]))
    assert answers.flatten().tolist() == [10, 20, 30, 40]
    assert sent == [[0, 0, 2, 1], [0, 0, 3, 4]]
    assert sender.last_sent().flatten().tolist() == [0, 3, 4]
    sender.part(torch.tensor([0]))(ask, x[:1], torch.tensor([0]))
    assert sent[-1] == [1, 0, 3, 4]
