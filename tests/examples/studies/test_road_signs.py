"""What the study of road signs trains, measures and writes."""

import dataclasses
import json
import math

import pytest
import torch

from advkit import attacks, defenses
from advkit.data import Dataset


@pytest.fixture
def tiny(study):
    """Hardly anything of everything."""
    return dataclasses.replace(
        study.QUICK, epochs=1, steps=2, queries=5, some=2, near=2, least=3, restarts=1
    )


class Bright(torch.nn.Module):
    """Logits of three classes on images `(n, 3, 32, 32)`: 0 is dark, 1 is bright, 2 is never said.

    Class 1 wins from a mean of `edge` on.
    """

    def __init__(self, edge=0.5):
        super().__init__()
        self.edge = edge

    def forward(self, x):
        excess = x.mean((1, 2, 3)) - self.edge
        return torch.stack([-excess, excess, torch.full_like(excess, -9.0)], 1)


def flat(*values):
    """Images of one colour each."""
    return torch.tensor(values)[:, None, None, None].expand(-1, 3, 32, 32).contiguous()


def test_the_signs_and_their_budgets(study):
    assert len(set(study.SIGNS)) == 43
    assert study.SIGNS[study.STOP] == "stop"
    assert study.STOP == 14
    assert [study.in_levels(eps / 255) for eps in study.EPS] == [2, 4, 8, 16]


def test_images_of_some_signs(study):
    data = Dataset(torch.arange(6.0)[:, None], torch.tensor([3, 14, 3, 0, 14, 1]), "all")
    kept = study.of_signs(data, [14, 1])
    assert kept.y.tolist() == [14, 14, 1]
    assert kept.x.flatten().tolist() == [1, 4, 5]


def test_a_shift_moves_the_picture_and_repeats_its_edge(study):
    x = torch.arange(16.0).view(1, 1, 4, 4).expand(3, 2, 4, 4)
    moved = study.shift(x, torch.tensor([[1, 0, 2], [1, 2, 1]]), most=1)
    assert torch.equal(moved[0], x[0])
    up_and_left = [[1, 2, 3, 3], [1, 2, 3, 3], [5, 6, 7, 7], [9, 10, 11, 11]]
    assert moved[1, 1].tolist() == up_and_left  # down by one, left by one
    assert moved[2, 0].tolist() == [*x[0, 0, 1:].tolist(), x[0, 0, 3].tolist()]


def test_every_image_of_a_batch_is_shifted_by_itself_and_at_most_so_far(study):
    seen = []
    loss = study.shifted(lambda net, x, y: seen.append((x, y)), most=2)
    x = torch.zeros(400, 1, 9, 9)
    x[:, :, 4, 4] = 1
    y = torch.arange(400)
    loss(None, x, y)
    assert torch.equal(seen[0][1], y)
    places = seen[0][0].nonzero()[:, 2:] - 4
    assert len(places) == 400
    assert {tuple(p) for p in places.tolist()} == {
        (i, j) for i in range(-2, 3) for j in range(-2, 3)
    }


def test_recipes_differ_in_what_they_say(study):
    found = study.recipes(5)
    assert [recipe.seed for recipe in found.values()] == [0, 1, 2, 0, 0, 0, 0]
    assert found["smoothed labels"].loss.smoothing == 0.1
    for name in ("augmented", "robust 4/255", "robust 8/255"):
        assert found[name].loss.__name__ == "of_shifted"
    loss = study.against(4 / 255, 5)
    assert isinstance(loss, defenses.AdversarialTraining)
    assert (loss.attack.eps, loss.attack.steps) == (4 / 255, 5)


@pytest.mark.parametrize(("name", "eps"), [("robust 4/255", 4), ("robust 8/255", 8)])
def test_robust_nets_learn_from_examples_of_their_own_budget(study, monkeypatch, name, eps):
    made = []
    monkeypatch.setattr(study, "against", lambda eps, steps: made.append((eps, steps)))
    study.recipes(7)
    assert made == [(4 / 255, 7), (8 / 255, 7)]
    assert made[["robust 4/255", "robust 8/255"].index(name)][0] == eps / 255


def test_training_is_the_same_whatever_was_drawn_before(study):
    data = Dataset(torch.rand(20, 3, 32, 32), torch.arange(20), "")
    recipe = study.Recipe(study.shifted(study.cross_entropy))
    first = study.trained(recipe, data, 1)
    before = torch.random.get_rng_state()
    torch.rand(3)
    again = study.trained(recipe, data, 1)
    assert not first.training
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )
    torch.random.set_rng_state(before)
    study.trained(recipe, data, 1)
    assert torch.equal(torch.random.get_rng_state(), before)
    other = study.trained(study.Recipe(recipe.loss, 1), data, 1)
    assert not torch.equal(first[0].weight, other[0].weight)


def test_a_net_learns_colours(study):
    y = torch.arange(120) % 3
    x = 0.2 * torch.rand(120, 3, 32, 32)
    x[torch.arange(120), y] += 0.5
    net = study.trained(study.Recipe(study.cross_entropy), Dataset(x, y, ""), 4)
    assert (net(x).argmax(1) == y).float().mean() > 0.9


def test_what_all_nets_read(study):
    x, y = flat(0.1, 0.45, 0.9, 0.9), torch.tensor([0, 0, 1, 0])
    kept = study.read_by_all([Bright(), Bright(edge=0.4)], Dataset(x, y, ""))
    assert torch.equal(kept.x, x[[0, 2]])
    assert kept.y.tolist() == [0, 1]


def test_the_least_fgsm(study):
    """A mean that lies 2.5 levels below the edge takes 3 steps; one far below takes too many."""
    x = flat(0.5 - 2.5 / 255, 0.5 - 0.5 / 255, 0.1)
    found = study.LeastFGSM(most=4).run(Bright(), x, torch.zeros(3, dtype=torch.int64))
    assert found.success.tolist() == [True, True, False]
    assert found.distance.tolist() == pytest.approx([3 / 255, 1 / 255, 0], abs=1e-6)
    assert torch.equal(found.x_adv[2], x[2])
    assert found.queries.backward.tolist() == [3, 1, 4]
    assert found.queries.forward.tolist() == [6, 2, 8]


def test_figures_of_an_attack(study):
    """Three images: one turned by three channels of one pixel and one of another, two that are not.

    The second change vanishes where pixels are bytes.
    """
    x = torch.full((3, 3, 32, 32), 0.5)
    x = (x * 255).round() / 255
    y = torch.zeros(3, dtype=torch.int64)
    x_adv = x.clone()
    x_adv[0, :, 5, 6] += 0.3
    x_adv[0, 1, 7, 7] += 0.4 / 255
    x_adv[1] += 0.4 / 255
    model = study.TorchClassifier(Bright(edge=float(x[0].mean()) + 1e-5), num_classes=3)
    success = model.predict(x_adv) != y
    assert success.tolist() == [True, True, False]
    found = attacks.FGSM(eps=0).run(model, x, y)
    found = dataclasses.replace(found, x_adv=x_adv, success=torch.tensor([True, False, False]))
    row = study.figures(model, Dataset(x, y, ""), found)
    assert row["success"] == row["rounded"] == pytest.approx(100 / 3)
    assert (row["features"], row["half a level"], row["pixels"]) == (4, 3, 2)
    assert row["linf"] == pytest.approx(0.3, abs=1e-6)
    assert row["l2"] == pytest.approx(math.sqrt(3) * 0.3, abs=1e-4)
    assert (row["forward"], row["backward"]) == (2, 1)
    none = dataclasses.replace(found, success=torch.zeros(3, dtype=torch.bool))
    assert math.isnan(study.figures(model, Dataset(x, y, ""), none)["l2"])


class Scaled:
    """An attack that brightens: by so much, and only where that suffices."""

    def __init__(self, amount):
        self.amount = amount

    def run(self, model, x, y):
        x_adv = x + self.amount
        found = attacks.FGSM(eps=0).run(model, x, y)
        return dataclasses.replace(found, x_adv=x_adv, success=model.predict(x_adv) != y)


def test_attacks_side_by_side(study):
    data = Dataset(flat(0.4, 0.3), torch.zeros(2, dtype=torch.int64), "")
    tried = {"near": Scaled(0.15), "far": Scaled(0.3), "never": Scaled(0.01)}
    rows = study.side_by_side(Bright(), data, tried)
    assert [rows[name]["success"] for name in tried] == [50, 100, 0]
    assert rows["near"]["times least l2"] == pytest.approx(1)
    assert rows["far"]["times least l2"] == pytest.approx(1)  # the lower of 1 and 2
    assert math.isnan(rows["never"]["times least l2"])
    assert all(row["ms"] > 0 for row in rows.values())
    one = study.side_by_side(Bright(), data.head(1), tried)
    assert one["far"]["times least l2"] == pytest.approx(2)


def test_the_blogs_attacks(study, tiny):
    found = study.blog(tiny)
    assert list(found) == [
        "L-BFGS", "FGSM, 8/255", "FGSM, least eps", "JSMA", "JSMA, one class", "DeepFool"
    ]  # fmt: skip
    assert found["FGSM, 8/255"].eps == 8 / 255
    assert found["FGSM, least eps"].most == 3
    assert study.blog(study.FULL)["JSMA"].candidates == 9
    assert found["JSMA, one class"].candidates == 1


def test_what_stop_signs_are_read_as(study, monkeypatch):
    monkeypatch.setattr(study, "STOP", 0)
    monkeypatch.setattr(study, "blog", lambda size: {"some": Scaled(0.15), "none": Scaled(0.0)})
    test = Dataset(flat(0.4, 0.3, 0.45, 0.9, 0.7), torch.tensor([0, 0, 0, 0, 1]), "")
    found = study.stops_read_as(Bright(), test, study.QUICK)
    assert found == {
        "some": {study.SIGNS[1]: 2, study.SIGNS[0]: 1},
        "none": {study.SIGNS[0]: 3},
    }


def test_under_attack(study, tiny):
    """Budgets of 2, 4, 8 and 16 levels against distances of 1, 3, 6, 30, and an error."""
    x = flat(*(0.5 - d / 255 for d in (1, 3, 6, 30)), 0.9)
    data = Dataset(x, torch.zeros(5, dtype=torch.int64), "")
    found = study.under_attack(Bright(), data, tiny)
    assert found["clean"] == 80
    for kind in ("FGSM", "PGD, cross-entropy", "PGD, margin", "worst"):
        assert found[kind] == {2: 60, 4: 40, 8: 20, 16: 20}, kind
    assert found["noise"] == {2: 80, 4: 80, 8: 80, 16: 80}
    assert found["worst of some"] == {2: 50, 4: 0, 8: 0, 16: 0}
    assert found["clean of some"] == 100
    low, high = found["worst interval"][8]
    assert low < 20 < high


def test_under_square(study, tiny):
    """One image that random search turns if it may ask often, one that none can, and an error."""
    data = Dataset(flat(0.5 - 10 / 255, 0.1, 0.9), torch.zeros(3, dtype=torch.int64), "")
    often, seldom = (dataclasses.replace(tiny, queries=queries) for queries in (300, 3))
    one, two = pytest.approx(100 / 3), pytest.approx(200 / 3)
    assert study.under_square(Bright(), data, often) == {2: two, 4: two, 8: two, 16: one}
    assert study.under_square(Bright(), data, seldom) == {2: two, 4: two, 8: two, 16: two}


def test_the_worst_case_is_of_each_image(study, tiny, monkeypatch):
    """Two attacks that turn one image each leave none."""
    y = torch.zeros(2, dtype=torch.int64)

    class Turns:
        norm = "linf"

        def __init__(self, eps, row):
            self.eps, self.row = eps, row

        def run(self, model, x, y):
            rows = torch.arange(len(x)) == self.row
            x_adv = torch.where(rows[:, None, None, None], 0.9, x)
            found = attacks.FGSM(eps=0).run(model, x, y)
            return dataclasses.replace(found, x_adv=x_adv, success=rows)

    def tried(size):
        return [Turns(eps / 255, row) for eps in study.EPS for row in (0, 1, 1)]

    monkeypatch.setattr(study, "gradient_attacks", tried)
    found = study.under_attack(Bright(), Dataset(flat(0.3, 0.3), y, ""), tiny)
    assert found["FGSM"][2] == found["PGD, margin"][2] == 50
    assert set(found["worst"].values()) == {0}


def test_intervals(study):
    """Wilson's, by its formula."""
    n, k, z = 1000, 700, 1.959963984540054
    p = k / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    right = torch.arange(n) < k
    assert study.interval(right) == pytest.approx((100 * (centre - half), 100 * (centre + half)))


def test_ensembles_and_what_transfers_to_them(study, tiny):
    nets = {
        "plain": Bright(), "plain, seed 1": Bright(0.6), "plain, seed 2": Bright(0.7),
        "augmented": Bright(0.5), "robust 4/255": Bright(0.8), "robust 8/255": Bright(0.8),
    }  # fmt: skip
    both = study.ensembles(nets)
    alike, unlike = both.values()
    assert [m.module for m in alike.models] == list(nets.values())[:3]
    assert [m.module for m in unlike.models] == list(nets.values())[3:]
    data = Dataset(flat(0.49, 0.5 + 3 / 255), torch.zeros(2, dtype=torch.int64), "")
    found = study.under_attack_and_transfer(alike, nets["plain"], data, tiny)
    assert found["clean"] == 100
    assert set(found["transfer"].values()) == {100}  # the mean of the nets begins at 0.6
    near = Dataset(flat(0.59), torch.zeros(1, dtype=torch.int64), "")
    found = study.under_attack_and_transfer(alike, nets["plain"], near, tiny)
    assert found["transfer"] == {2: 100, 4: 0, 8: 0, 16: 0}


@pytest.fixture
def results(study, tiny):
    """Those of linear nets that learnt nothing."""
    torch.manual_seed(0)
    nets = {
        name: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 43))
        for name in study.recipes(1)
    }
    x = torch.rand(4, 3, 32, 32)
    test = Dataset(x, nets["plain"](x).argmax(1), "")
    nets["robust 8/255"] = nets["robust 4/255"] = nets["plain"]
    found = study.study(nets, test, tiny)
    return nets, test, {**found, "size": vars(tiny), "seconds": 1, "training": {"plain": 0.5}}


def test_what_is_written(study, tiny, results, tmp_path, monkeypatch, capsys):
    nets, test, found = results
    text = study.report(found)
    for line in (
        "## The attacks on robust 4/255, 2 images",
        "| net, attack | no attack | 2 | 4 | 8 | 16 |",
        "| attack | success | rounded | l2 | linf | features | half a level | pixels "
        "| forward | backward | times least l2 | ms |",
        "| made on | plain | augmented | smoothed labels | robust 4/255 | robust 8/255 |",
    ):
        assert line in text.splitlines() or line.replace(" | times least l2 | ms |", "") in text
    for words in ("| plain, worst case |", "| plain, Square |", "| noise, ", "transfer"):
        assert words in text
    study.save(tmp_path, found, nets, test, tiny)
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["under"]["plain"]["clean"] == 100
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "stop_signs.png").exists()
    assert "no stop sign" in capsys.readouterr().err
    monkeypatch.setattr(study, "STOP", int(test.y[0]))
    study.save(tmp_path, found, nets, test, tiny)
    assert (tmp_path / "stop_signs.png").read_bytes().startswith(b"\x89PNG")


def test_a_change_is_enlarged_until_it_fills_the_range(study):
    delta = torch.zeros(3, 2, 2)
    delta[0, 0, 0], delta[1, 1, 1] = -0.05, 0.02
    picture, words = study.enlarged(delta)
    assert picture.min() == pytest.approx(0)
    assert float(picture[1, 1, 1]) == pytest.approx(0.7)
    assert float(picture[2, 0, 0]) == 0.5
    assert words == "x 10.0, l2 0.05"
    assert study.enlarged(torch.zeros(3, 2, 2))[1] == "nothing found"
