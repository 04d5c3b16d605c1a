"""Windows of the Square attack: where they lie, and the bumps in them."""

import torch

from advkit.attacks.engine.windows import Space, bump, split_bumps


def test_bumps():
    five = bump((5, 5))
    assert torch.equal(five, five.T)
    assert torch.allclose(five[2], torch.tensor([1 / 9, 1 / 9 + 1 / 4, 1 / 9 + 1 / 4 + 1,
                                                 1 / 9 + 1 / 4, 1 / 9]))  # fmt: skip
    assert bump((1,)) == 1
    for norm, order in (("l2", 2), ("l1", 1)):
        halves = split_bumps((4, 6), norm)
        assert torch.allclose(halves.norm(p=order, dim=1), torch.ones(2))
    first, second = halves.view(2, 4, 6)
    assert (first[:2] > 0).all()
    assert (first[2:] < 0).all()
    assert (second[:, :3] > 0).all()
    assert (second[:, 3:] < 0).all()


def test_windows_are_boxes_that_reach_every_corner():
    space = Space(2, (3, 5))
    u = torch.tensor([[0.0, 0.0], [0.999, 0.999], [0.5, 0.0]])
    found = space.window(u, (2, 4))
    assert found[0].tolist() == [0, 1, 2, 3, 5, 6, 7, 8]
    assert found[1].tolist() == [6, 7, 8, 9, 11, 12, 13, 14]
    assert found[2].tolist() == found[1].sub(1).tolist()
    assert space.box(1.0) == (3, 5)
    assert space.box(0.25) == (2, 2)
    assert space.box(0.5) == (2, 4)
    assert space.box(1e-6) == (1, 1)
    assert space.box(1e-6, min_side=4) == (3, 4)
