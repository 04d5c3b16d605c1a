"""Random noise beside the attacks: what is drawn, and what a report says of it."""

import dataclasses
import itertools
import json

import pytest
import torch
from torch import nn

from advkit import attacks
from advkit import eval as rob
from advkit.core.norms import lp_norm
from advkit.core.results import AttackResult, Queries
from advkit.eval.noise import noisy
from tests.toys import Halfspace, answers, convnet, images

RADII = {"linf": 0.1, "l2": 0.7, "l1": 1.0}


def points(n, features, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, features, generator=generator, dtype=torch.float64)


@dataclasses.dataclass(frozen=True)
class Fails:
    """An attack that finds nothing, or what its `turned` first inputs have at a distance."""

    eps: object = 0.1
    norm: str = "linf"
    turned: int = 0
    distance: float = 0.05

    def run(self, model, x, y=None, *, target=None):
        ones = torch.ones(len(x), dtype=torch.int64)
        return AttackResult(
            x_adv=x, success=torch.arange(len(x)) < self.turned, distance=ones * self.distance,
            norm=self.norm, queries=Queries(ones, ones), no_gradient=torch.zeros(len(x)).bool(),
        )  # fmt: skip

    def __call__(self, model, x, y=None, *, target=None):
        return x


@pytest.mark.parametrize("norm", RADII)
def test_noise_fills_the_ball_and_the_box(norm):
    x = points(500, 6)
    delta = noisy(x, (-1, 2), norm, RADII[norm]) - x
    length = lp_norm(delta, norm) / RADII[norm]
    assert (length <= 1 + 1e-9).all()
    assert 0.7 < length.median() < 0.95  # 0.5 ** (1 / 6) is 0.89
    assert abs(delta.mean()) < 0.05 * delta.abs().mean()
    boxed = noisy(x, (0, 1), norm, 9.0)
    assert boxed.min() == 0
    assert boxed.max() == 1


@pytest.mark.parametrize("norm", [*RADII, "l0"])
def test_the_noise_of_an_input_does_not_depend_on_its_batch(norm):
    x = points(9, 5)
    whole = noisy(x, (0, 1), norm, 2.0)
    alone = torch.cat([noisy(x[i : i + 1], (0, 1), norm, 2.0) for i in reversed(range(9))])
    assert torch.equal(whole, alone.flip(0))


@pytest.mark.parametrize("bounds", [(0, 1), (-0.1, 255.0)])
def test_noise_in_l0_sets_that_many_features_to_a_bound(bounds):
    x = bounds[0] + (bounds[1] - bounds[0]) * (0.25 + points(200, 8) / 2)
    drawn = noisy(x, bounds, "l0", 3.7)
    changed = drawn != x
    assert (changed.sum(1) == 3).all()
    assert set(drawn[changed].tolist()) == set(map(float, bounds))
    assert 0.4 < (drawn[changed] == bounds[0]).double().mean() < 0.6
    assert (changed.sum(0) > 40).all()  # 75 on average: any feature may be chosen
    assert (noisy(x, bounds, "l0", 99) != x).all()


def test_the_share_that_noise_turns_is_known_for_a_half_space():
    """A quarter of the interval of the first feature lies beyond the boundary."""
    net = Halfspace(300 * torch.eye(8, dtype=torch.float64)[0], b=-150)
    x = points(2000, 8)
    x[:, 0] = 0.55
    made = [attacks.PGD(eps=0.1, steps=2), attacks.FGSM(eps=0.1), attacks.FGSM(eps=0.04)]
    report = rob.evaluate(net, x, torch.ones(2000).long(), attacks=made, batch_size=300)
    tenth, little = report.noise
    assert (tenth.norm, tenth.eps, little.eps) == ("linf", 0.1, 0.04)
    assert abs(float(tenth.robust_accuracy) - 0.75) < 0.03
    assert little.robust_accuracy == rob.Rate(2000, 2000)
    assert report.worst_cases["linf 0.1"] == rob.Rate(0, 2000)


def test_misclassified_inputs_are_not_robust_and_not_asked():
    sizes = []
    net, x = convnet(), images(30)
    y = answers(net, x)
    y[:10] = (y[:10] + 1) % 3
    net.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    report = rob.evaluate(net, x, y, attacks=[Fails(), Fails(), Fails(0.2)], batch_size=12)
    # each batch, one input that is checked twice, and what is right for each budget
    assert sizes == [12, 1, 1, 2, 2, 12, 12, 12, 6, 6, 6]
    expected = torch.cat(
        [torch.zeros(10).bool(), answers(net, noisy(x[10:], (0, 1), "linf", 0.1)) == y[10:]]
    )
    assert torch.equal(report.noise[0].robust, expected)
    assert 0 < expected.sum() < 20


def test_budgets_that_are_no_single_number_have_no_noise():
    net, x = convnet(), images(6)
    made = [Fails(torch.full((6,), 0.1)), Fails(None), Fails(0.1, "l3"), attacks.DeepFool()]
    report = rob.evaluate(net, x, answers(net, x), attacks=made)
    assert report.noise == ()
    assert "andom noise" not in str(report)
    assert report.to_dict()["random_noise"] == {}


def turned_by_noise(*made):
    """A report on eight inputs of a half-space, of which noise of linf 0.1 turns some."""
    net = Halfspace(torch.tensor([1.0, 0, 0, 0], dtype=torch.float64), b=-0.5)
    x = points(8, 4)
    x[:, 0] = 0.51
    y = torch.tensor([0] + 7 * [1])
    return rob.evaluate(net, x, y, attacks=made)


def test_the_report_shows_noise_as_a_row_that_does_not_count(tmp_path):
    report = turned_by_noise(Fails(), Fails(0.2, "l2"))
    (noise, wide) = report.noise
    assert 0 < noise.robust_accuracy.count < 7
    assert set(report.worst_cases.values()) == {rob.Rate(7, 8)}
    text = str(report).splitlines()
    rows = [line for line in text if line.startswith(("random noise, ", "worst case"))]
    assert [row.split("  ")[0] for row in rows] == [
        "random noise, linf 0.1", "random noise, l2 0.2", "worst case, linf 0.1",
        "worst case, l2 0.2",
    ]  # fmt: skip
    assert str(noise.robust_accuracy) in rows[0]
    assert "Random noise is a baseline" in " ".join(text)
    plain = json.loads(report.save_json(tmp_path / "report.json").read_text())["random_noise"]
    assert plain == {
        "linf 0.1": {"norm": "linf", "eps": 0.1, **noise.robust_accuracy.to_dict()},
        "l2 0.2": {"norm": "l2", "eps": 0.2, **wide.robust_accuracy.to_dict()},
    }
    page = report.to_html()
    assert page.count('class="baseline"') == 2
    table = page[page.index('id="budget-table"') :]
    table = table[: table.index("</table>")]
    for before, after in itertools.pairwise(("linf 0.1<", "random noise", "worst case", "l2 0.2<")):
        assert table.index(before) < table.index(after)


def missed(report):
    found = (f for f in report.findings if f.name == "noise_beats_gradients")
    return " ".join(finding.message for finding in found)


def test_a_note_says_when_noise_beats_every_attack_of_its_budget():
    report = turned_by_noise(Fails())
    count = 7 - report.noise[0].robust_accuracy.count
    assert count > 1
    assert missed(report) == (
        f"Random noise of linf 0.1 fooled the model on {count} inputs that withstood every attack "
        "within that budget."
    )
    last = int((report.clean & ~report.noise[0].robust).nonzero()[-1])
    but_last = Fails(turned=last - 1)  # the first input is not attacked
    assert "1 input that" in missed(turned_by_noise(but_last))
    assert missed(turned_by_noise(but_last, Fails(turned=7))) == ""
    assert "1 input that" in missed(turned_by_noise(but_last, Fails(0.3, "l2", turned=7)))


def test_what_other_attacks_turned_within_the_budget_is_not_missed():
    for other in (Fails(None, turned=7), Fails(0.2, turned=7), Fails(torch.ones(8), turned=7)):
        assert "linf 0.1" not in missed(turned_by_noise(Fails(), other))
        far = dataclasses.replace(other, distance=0.15)
        assert "linf 0.1" in missed(turned_by_noise(Fails(), far))


def test_an_attack_of_the_same_budget_counts_though_its_distance_is_rounded_up():
    assert missed(turned_by_noise(Fails(turned=7, distance=0.1 + 1e-4))) == ""


def test_the_noise_is_a_thin_dashed_line_of_its_norm():
    net, x = convnet(), images(20)
    made = [attacks.FGSM(eps=0.2), attacks.FGSM(eps=0.05), attacks.FGM(eps=0.3), attacks.DeepFool()]
    report = rob.evaluate(net, x, answers(net, x), attacks=[*made, attacks.JSMA()])
    drawn = {}
    for axes in report.plot().axes:
        for line in axes.lines:
            if line.get_label() == "random noise":
                drawn[axes.get_xlabel()] = line.get_xydata().tolist()
                assert line.get_linestyle() == "--"
    share = {(n.norm, n.eps): 100 * float(n.robust_accuracy) for n in report.noise}
    assert drawn == {
        "eps (linf, input units)":
            [[0.05, share["linf", 0.05]], [0.2, share["linf", 0.2]]],
        "eps (l2, input units)": [[0.3, share["l2", 0.3]]],
    }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Around:
    """An attack built around another one, whose `eps` it has without being given it."""

    attack: object
    eps: object = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "eps", self.attack.eps)

    def run(self, model, x, y=None, *, target=None):
        return self.attack.run(model, x, y, target=target)

    def __call__(self, model, x, y=None, *, target=None):
        return self.run(model, x, y, target=target).x_adv


@dataclasses.dataclass(frozen=True)
class AroundWithin(Around):
    """The same with an `eps` of its own, which is the one that counts."""

    eps: object = None

    def __post_init__(self):
        """Leaves `eps` as it is given."""

    def run(self, model, x, y=None, *, target=None):
        return dataclasses.replace(self.attack, eps=self.eps).run(model, x, y, target=target)


def test_an_eps_of_ones_own_is_cut_before_that_of_an_inner_attack():
    net, x, eps = convnet(), images(20), torch.linspace(0, 0.2, 20)
    made = [AroundWithin(attacks.FGSM(eps=0.7), eps), attacks.FGSM(eps=eps)]
    report = rob.evaluate(net, x, answers(net, x), attacks=made, batch_size=7)
    outcome, direct = report.outcomes
    assert torch.equal(outcome.robust, direct.robust)


@pytest.mark.parametrize("wrapped", [Around, lambda attack: Around(Around(attack))])
def test_budgets_of_each_sample_are_cut_through_a_wrapper(wrapped):
    net, x = convnet(), images(20)
    y = answers(net, x)
    y[3] = (y[3] + 1) % 3
    inner = attacks.FGSM(eps=torch.linspace(0, 0.2, 20))
    outcome, direct = rob.evaluate(
        net, x, y, attacks=[wrapped(inner), inner], batch_size=7
    ).outcomes
    assert torch.equal(outcome.robust, direct.robust)
    assert torch.equal(outcome.radius, direct.radius)
    assert 0 < direct.robust.sum() < 19


def test_noise_of_other_ranks_and_dtypes():
    for x in (images(3).to(torch.bfloat16), images(3).flatten(1), images(3)[..., None]):
        for norm in (*RADII, "l0"):
            drawn = noisy(x, (0, 1), norm, 2.0)
            assert drawn.shape == x.shape
            assert drawn.dtype == x.dtype
    rows = nn.Linear(4, 2)
    table = points(5, 4).float()
    report = rob.evaluate(rows, table, answers(rows, table), attacks=[attacks.FGSM(eps=0.1)])
    assert report.noise[0].robust.shape == (5,)
