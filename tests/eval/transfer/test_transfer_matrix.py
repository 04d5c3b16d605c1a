"""Transfer between models: both conventions, baselines, names, and what a reader sees."""

import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advkit import TorchClassifier, attacks
from advkit import eval as rob
from advkit.core.results import AttackResult, Queries
from advkit.eval import text_tables
from advkit.eval.noise import noisy
from advkit.models import REJECTED
from tests.toys import Halfspace, answers, convnet, images

# Label 1 is right everywhere. One step of 0.1 takes the first feature of each input down by that.
X = torch.tensor([[0.45, 0.3], [0.55, 0.6], [0.65, 0.6], [0.75, 0.6]])
Y = torch.ones(4).long()
EXPECTED_OVER_ALL = {
    "left": {"left": (2, 4), "right": (3, 4), "other": (1, 4)},
    "right": {"left": (2, 4), "right": (3, 4), "other": (1, 4)},
}
EXPECTED_GIVEN_FOOLED = {
    "left": {"left": (2, 2), "right": (2, 2), "other": (1, 2)},
    "right": {"left": (2, 3), "right": (3, 3), "other": (1, 3)},
}


def halfspaces():
    """Boundaries at 0.5 and 0.6 of the first feature, and at 0.5 of the second one."""
    first, second = torch.tensor([30.0, 0.0]), torch.tensor([0.0, 30.0])
    return {
        "left": Halfspace(first, b=-15.0),
        "right": Halfspace(first, b=-18.0),
        "other": Halfspace(second, b=-15.0),
    }


def on_first_feature(**more):
    """The matrix of the two models that look at the first feature, against all three."""
    models = halfspaces()
    sources = {name: models[name] for name in ("left", "right")}
    return rob.transfer_matrix(sources, models, attacks.FGSM(eps=0.1), X, Y, **more)


def counts(rates):
    """The counts and totals of rates, by source and target."""
    return {s: {t: (r.count, r.total) for t, r in row.items()} for s, row in rates.items()}


@dataclasses.dataclass(frozen=True)
class Moves:
    """An attack that takes the first feature down by `by`, asking nobody."""

    by: float = 0.1
    stop: object = None

    def run(self, model, x, y=None, *, target=None):
        x_adv = x.clone()
        x_adv[:, 0] -= 0 if self.stop is None else self.by
        ones = torch.ones(len(x), dtype=torch.int64)
        return AttackResult(
            x_adv=x_adv, success=ones.bool(), distance=ones * self.by, norm="l2",
            queries=Queries(3 * ones, 0 * ones), no_gradient=~ones.bool(),
        )  # fmt: skip

    def __call__(self, model, x, y=None, *, target=None):
        return self.run(model, x, y).x_adv


@pytest.mark.parametrize("batch_size", [1, 3, 128])
def test_both_conventions_on_half_spaces(batch_size):
    matrix = on_first_feature(batch_size=batch_size)
    assert counts(matrix.error_rate) == EXPECTED_OVER_ALL
    assert counts(matrix.transfer_rate) == EXPECTED_GIVEN_FOOLED
    assert matrix.fooled == {"left": rob.Rate(2, 4), "right": rob.Rate(3, 4)}
    clean = {"left": (1, 4), "right": (2, 4), "other": (1, 4)}
    assert counts(matrix.baselines)["no attack"] == clean
    left, right = matrix.sources
    assert left.fooled.tolist() == [True, True, False, False]
    assert right.misclassified.tolist() == [
        [True, True, False, False], [True, True, True, False], [True, False, False, False],
    ]  # fmt: skip
    assert left.forward.tolist() == [2] * 4
    assert left.backward.tolist() == [1] * 4
    assert left.attack == "FGSM(eps=0.1, stop='never')"


def test_targets_are_the_sources_unless_given():
    models = halfspaces()
    matrix = rob.transfer_matrix(models, None, Moves(), X, Y)
    assert matrix.targets == tuple(models)
    assert list(matrix.error_rate) == list(models)
    assert matrix.error_rate["other"]["left"] == rob.Rate(2, 4)


def test_attacks_go_on_unless_they_say_when_to_stop():
    models = halfspaces()
    moved = rob.transfer_matrix(models, None, Moves(), X, Y)
    assert moved.error_rate["left"]["left"] == rob.Rate(2, 4)
    assert moved.sources[0].attack == "Moves(stop='never')"
    first = rob.transfer_matrix(models, None, attacks.FGSM(eps=0.1, stop="first"), X, Y)
    assert first.sources[0].attack == "FGSM(eps=0.1, stop='first')"
    plain = rob.transfer_matrix(models, None, attacks.DeepFool(), X, Y)
    assert plain.sources[0].attack == "DeepFool()"


def test_a_source_may_have_an_attack_of_its_own():
    models = halfspaces()
    each = {"right": Moves(by=0.3), "left": attacks.FGSM(eps=0.1)}
    matrix = rob.transfer_matrix(
        {name: models[name] for name in ("left", "right")}, [models["left"]], each, X, Y
    )
    assert counts(matrix.error_rate) == {"left": {"left": (2, 4)}, "right": {"left": (4, 4)}}
    assert [source.name for source in matrix.sources] == ["left", "right"]
    assert [float(source.forward.double().mean()) for source in matrix.sources] == [2, 3]
    assert matrix.targets == ("left",)


def test_noise_of_every_budget_stands_beside_the_attacks():
    net, other, x = convnet(), convnet(4), images(40)
    y = answers(net, x)
    each = {"a": attacks.FGSM(eps=0.1), "b": attacks.FGM(eps=0.9), "c": attacks.FGSM(eps=0.1)}
    sources = {"a": net, "b": net, "c": other}
    matrix = rob.transfer_matrix(sources, {"a": net, "c": other}, each, x, y, batch_size=16)
    assert list(matrix.baselines) == [
        "no attack", "random noise, linf 0.1", "random noise, l2 0.9",
    ]  # fmt: skip
    assert torch.equal(matrix.no_attack[0], torch.zeros(40).bool())
    for words, norm, eps in (("linf 0.1", "linf", 0.1), ("l2 0.9", "l2", 0.9)):
        drawn = noisy(x, (0, 1), norm, eps)
        expected = torch.stack([answers(net, drawn) != y, answers(other, drawn) != y])
        assert torch.equal(matrix.random_noise[words], expected)
        assert 0 < expected[0].sum() < 40
    each_input = attacks.FGSM(eps=torch.full((40,), 0.1))
    for one in (attacks.DeepFool(), each_input):
        assert rob.transfer_matrix({"a": net}, None, one, x, y).random_noise == {}


def test_a_target_answers_once_to_each_set_of_examples():
    sizes = {"source": [], "target": []}
    models = {"source": convnet(), "target": convnet(4)}
    for name, net in models.items():
        net.register_forward_pre_hook(lambda _, args, name=name: sizes[name].append(len(args[0])))
    x, attack = images(10), Moves()
    y = answers(convnet(), x)
    rob.transfer_matrix({"source": models["source"]}, models, attack, x, y, batch_size=6)
    assert sizes == {"source": [6, 6, 4, 4], "target": [6, 6, 4, 4]}
    for found in sizes.values():
        found.clear()
    rob.transfer_matrix([models["source"]], [models["target"]], attack, x, y)
    assert sizes == {"source": [10], "target": [10, 10]}


def test_budgets_of_each_input_follow_it_through_the_batches():
    net, x = convnet(), images(20)
    y = answers(net, x)
    attack = attacks.FGSM(eps=torch.linspace(0, 0.05, 20), stop="never")
    matrix = rob.transfer_matrix([net], None, attack, x, y, batch_size=7)
    fooled = attack.run(net, x, y).success
    assert torch.equal(matrix.sources[0].fooled, fooled)
    assert 0 < fooled[14:].sum() < 6
    with pytest.raises(ValueError, match=r"`eps` must .* shape \(19,\), got shape \(20,\)"):
        rob.transfer_matrix([net], None, attack, x[1:], y[1:])


def test_models_without_names_are_named_after_their_classes():
    first, second = nn.Linear(2, 3), nn.Linear(2, 3)
    wrapped = TorchClassifier(nn.Linear(2, 3))

    class Own:
        bounds, num_classes = (0.0, 1.0), 3

        def predict(self, x):
            return torch.zeros(len(x)).long()

    own = Own()
    matrix = rob.transfer_matrix([first, second], [second, own, wrapped, first], Moves(), X, Y)
    assert list(matrix.error_rate) == ["Linear", "Linear 2"]
    assert matrix.targets == ("Linear 2", "Own", "TorchClassifier(Linear)", "Linear")
    assert matrix.error_rate["Linear"]["Own"] == rob.Rate(4, 4)
    named = rob.transfer_matrix({"mine": first}, [second, first], Moves(), X, Y)
    assert named.targets == ("Linear", "mine")
    taken = rob.transfer_matrix({"Linear": first}, [second], Moves(), X, Y)
    assert taken.targets == ("Linear 2",)


def test_a_model_may_have_two_names():
    net = halfspaces()["left"]
    matrix = rob.transfer_matrix({"a": net, "b": net}, None, attacks.FGSM(eps=0.1), X, Y)
    assert counts(matrix.transfer_rate) == {s: {"a": (2, 2), "b": (2, 2)} for s in "ab"}


def test_data_may_come_in_batches():
    models = halfspaces()
    loader = DataLoader(TensorDataset(X, Y), batch_size=3)
    pairs = [(X[:0], Y[:0]), *loader]
    matrix = rob.transfer_matrix(models, None, attacks.FGSM(eps=0.1), pairs)
    whole = rob.transfer_matrix(models, None, attacks.FGSM(eps=0.1), X, Y)
    assert matrix.to_dict() == whole.to_dict()
    alone = rob.transfer_matrix([Labels()], None, Moves(), pairs)
    assert alone.fooled == {"Labels": rob.Rate(0, 4)}


def test_who_is_rejected_has_fooled_nobody():
    class Rejecting(Labels):
        def predict(self, x):
            return torch.where(x[:, 0] > 0.5, 1, REJECTED)

    matrix = rob.transfer_matrix({"source": Rejecting()}, None, Moves(), X, Y)
    assert counts(matrix.baselines)["no attack"]["source"] == (1, 4)
    assert matrix.fooled["source"] == matrix.error_rate["source"]["source"] == rob.Rate(0, 4)


class Labels:
    """A classifier without gradients that cannot say nothing."""

    bounds, num_classes = (0.0, 1.0), 2

    def predict(self, x):
        assert len(x)
        return torch.ones(len(x)).long()


WRONG = [
    (lambda m: {"sources": {}}, ValueError, "`sources` must hold at least one model, got none"),
    (lambda m: {"targets": []}, ValueError, "`targets` must hold at least one model, got none"),
    (lambda m: {"sources": m["left"]}, TypeError, "`sources` must be a mapping .* got Halfspace"),
    (lambda m: {"targets": {3: m["left"]}}, TypeError, "`targets` must have strings as keys"),
    (lambda m: {"targets": [m["left"], "net"]}, TypeError, "`model` must be .* got str"),
    (
        lambda m: {"sources": [m["left"]] * 2}, ValueError,
        r"`sources` must hold each model once, got Halfspace twice",
    ),
    (lambda m: {"attack": attacks.FGSM}, TypeError, "`attack` must be an attack or a mapping"),
    (lambda m: {"attack": "FGSM"}, TypeError, "`attack` must be .* got 'FGSM'"),
    (
        lambda m: {"attack": {"left": Moves()}}, ValueError,
        "`attack` must have an attack for every source, got none for 'right', 'other'",
    ),
    (
        lambda m: {"attack": {**dict.fromkeys(m, Moves()), "rihgt": Moves()}}, ValueError,
        "`attack` must map .* got 'rihgt', did you mean 'right'. Sources are 'left'",
    ),
    (lambda m: {"attack": {**dict.fromkeys(m, Moves()), "left": 3}}, TypeError, "got 3"),
    (
        lambda m: {"targets": {"wide": TorchClassifier(m["left"], (0, 255))}}, ValueError,
        r"same bounds, got \[0, 1\] for 'left' and \[0, 255\] for 'wide'",
    ),
    (
        lambda m: {"sources": {"a": Labels()}, "attack": attacks.FGSM(eps=0.1)}, TypeError,
        r"source 'a': `model` must have gradients .* for FGSM",
    ),
    (lambda m: {"y": 2 * Y}, ValueError, "target 'left': `y` must be below 2"),
    (lambda m: {"y": Y[1:]}, ValueError, "one label for each of 4 samples, got 3"),
    (lambda m: {"x": X[:0], "y": Y[:0]}, ValueError, "`x` must hold at least one sample"),
    (lambda m: {"x": 5 * X}, ValueError, "bounds"),
    (lambda m: {"x": X.numpy()}, TypeError, "from_numpy"),
    (lambda m: {"batch_size": 0}, ValueError, "`batch_size` must be at least 1"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "kind", "said"), WRONG, ids=[said[:30] for *_, said in WRONG])
def test_bad_arguments(change, kind, said):
    models = halfspaces()
    given = {"sources": models, "targets": None, "attack": Moves(), "x": X, "y": Y}
    with pytest.raises(kind, match=said):
        rob.transfer_matrix(**{**given, **change(models)})


def test_errors_say_where_they_come_from():
    class Moody(Halfspace):
        def forward(self, x):
            if (x[:, :1] == 0.65).any():
                raise ValueError("no logits")
            return super().forward(x)

    moody = Moody(torch.tensor([30.0, 0.0]))
    for sources, targets, role in (([moody], None, "target"), ([moody], halfspaces(), "source")):
        with pytest.raises(
            ValueError, match=f"in the batch that begins at sample 2: {role} 'Moody': .* logits"
        ):
            rob.transfer_matrix(sources, targets, attacks.FGSM(eps=0.1), X, Y, batch_size=1)


def test_modules_are_untouched():
    net = convnet().train()
    x = images(6)
    rob.transfer_matrix([net], None, attacks.FGSM(eps=0.1), x, answers(net, x))
    assert net.training
    assert net.norm.training


def test_progress_counts_inputs_of_every_source(capsys):
    on_first_feature(progress=True)
    assert "8/8" in capsys.readouterr().err


def test_the_tables_have_both_rates():
    matrix = on_first_feature()
    error_rate, given, sources = matrix.tables()
    assert "share of all 4 inputs that the target misclassifies" in error_rate.title
    assert "only those inputs that fool the source" in given.title
    assert error_rate.heading == ("source", "left", "right", "other")
    assert error_rate.rows[0] == ("no attack", "25.00", "50.00", "25.00")
    assert error_rate.rows[1][0] == "random noise, linf 0.1"
    assert error_rate.summary[1] == ("right", "50.00", "75.00", "25.00")
    assert given.rows[1] == ("right (3)", "66.67", "100.00", "33.33")
    label = "left: FGSM(eps=0.1, stop='never')"
    assert sources.rows[0] == (label, "50.00 % (2 of 4)", "2.0", "1.0")
    text = str(matrix)
    titles = [table.title for table in matrix.tables()]
    assert [line for line in text.splitlines() if line in titles] == titles
    assert (
        "The error rate divides by all inputs. The transfer rate divides by the inputs"
        in " ".join(text.split())
    )
    assert "Random noise is a baseline" in " ".join(matrix.notes())
    without = rob.transfer_matrix(halfspaces(), None, Moves(), X, Y)
    assert "Random noise" not in " ".join(without.notes())


def test_wide_tables_are_cut_into_blocks():
    net = halfspaces()["left"]
    targets = {f"a model with name number {i}": net for i in range(15)}
    matrix = rob.transfer_matrix({"left": net}, targets, Moves(), X, Y)
    lines = str(matrix).splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("Error rate: share") for line in lines) == 3
    assert sum(line.endswith("(continued)") for line in lines) == 4
    figures = [line.split()[1:] for line in lines if line.startswith("left  ")]
    assert [len(row) for row in figures] == [6, 5, 4]
    assert " ".join(lines).count("number 14") == 2


def test_long_names_of_sources_are_broken_before_columns_are_cut():
    net, name = (
        halfspaces()["left"],
        "a name that goes on and on for much longer than names should go",
    )
    targets = {f"fourteen wide {i}": net for i in range(4)}
    lines = str(rob.transfer_matrix({name: net}, targets, Moves(), X, Y)).splitlines()
    assert max(map(len, lines)) <= 100
    assert not any("(continued)" in line for line in lines)


def test_a_cut_table_keeps_its_rows_and_their_kinds():
    wide = [tuple(f"{kind}{i} " + 40 * "." for i in range(4)) for kind in "hrsb"]
    heading, row, summary, baseline = wide
    parts = text_tables.split(text_tables.Table("title", heading, [row], [summary], [baseline]))
    assert [part.title for part in parts] == ["title", *["title (continued)"] * 2]
    for i, part in enumerate(parts, 1):
        assert part.heading == (heading[0], heading[i])
        assert part.rows == [(row[0], row[i])]
        assert part.summary == [(summary[0], summary[i])]
        assert part.baselines == [(baseline[0], baseline[i])]


def test_nothing_fooled_is_no_share(tmp_path):
    models = halfspaces()
    matrix = rob.transfer_matrix({"left": models["left"]}, models, Moves(), X[2:], Y[2:])
    assert counts(matrix.transfer_rate)["left"] == dict.fromkeys(models, (0, 0))
    assert matrix.tables()[1].rows == [("left (0)", "-", "-", "-")]
    path = matrix.save_json(tmp_path / "matrix.json")
    (source,) = json.loads(path.read_text())["sources"]
    assert source["transfer_rate"]["left"] == rob.Rate(0, 0).to_dict()
    assert [t.get_text() for t in matrix.plot().axes[1].texts].count("-") == 3


def test_the_dict_is_plain_and_round_trips(tmp_path):
    matrix = on_first_feature()
    path = matrix.save_json(tmp_path / "deep" / "matrix.json")
    plain = json.loads(path.read_text())
    assert plain == matrix.to_dict()
    assert plain["inputs"] == 4
    assert plain["targets"] == ["left", "right", "other"]
    right = plain["sources"][1]
    assert right["name"] == "right"
    assert right["attack"] == "FGSM(eps=0.1, stop='never')"
    assert right["fooled"] == rob.Rate(3, 4).to_dict()
    assert right["transfer_rate"]["left"] == rob.Rate(2, 3).to_dict()
    assert right["error_rate"]["left"] == rob.Rate(2, 4).to_dict()
    assert (right["forward_per_input"], right["backward_per_input"]) == (2, 1)
    assert plain["no_attack"]["right"] == rob.Rate(2, 4).to_dict()
    assert plain["random_noise"].keys() == {"linf 0.1"}


def cells(axes, kind=float):
    """The figures in the cells of a heat map by row and column."""
    found = {}
    for text in axes.texts:
        column, row = text.get_position()
        found.setdefault(row, {})[column] = text.get_text()
    return {row: list(columns.values()) for row, columns in found.items()}


def test_the_heat_maps_hold_the_figures_of_both_conventions():
    matrix = on_first_feature()
    figure = matrix.plot()
    left, right, *_ = figure.axes
    noise = [f"{100 * float(r):.1f}" for r in matrix.baselines["random noise, linf 0.1"].values()]
    assert cells(left) == {
        0: ["25.0", "50.0", "25.0"], 1: noise,
        2: ["50.0", "75.0", "25.0"], 3: ["50.0", "75.0", "25.0"],
    }  # fmt: skip
    assert cells(right) == {
        2: ["100.0", "100.0", "50.0"], 3: ["66.7", "100.0", "33.3"], 0.5: ["no source to fool"],
    }  # fmt: skip
    assert "share of all 4\ninputs" in left.get_title()
    assert "only those\ninputs that fool the source" in right.get_title()
    rows = [label.get_text() for label in left.get_yticklabels()]
    assert rows == ["no attack", "random noise, linf 0.1", "left", "right"]
    assert [label.get_text() for label in right.get_xticklabels()] == ["left", "right", "other"]
    for axes in (left, right):
        assert axes.images[0].get_clim() == (0, 100)
    (denominators,) = right.child_axes
    assert [t.get_text() for t in denominators.get_yticklabels()] == ["of 2", "of 3"]
    assert denominators.get_yticks().tolist() == [2, 3]
    assert left.images[0].get_array()[2].tolist() == [50, 75, 25]


@pytest.mark.parametrize(("down", "across"), [(6, 6), (2, 8), (1, 1)])
def test_labels_of_the_heat_maps_are_within_the_picture(down, across):
    net = halfspaces()["left"]
    sources = {f"source with a long name {i}": net for i in range(down)}
    targets = {f"a target with an even longer name {i}": net for i in range(across)}
    figure = rob.transfer_matrix(sources, targets, attacks.FGSM(eps=0.1), X, Y).plot()
    figure.draw_without_rendering()
    whole = figure.get_tightbbox()
    width, height = figure.get_size_inches()
    assert whole.x0 >= 0
    assert whole.y0 >= 0
    assert whole.x1 <= width
    assert whole.y1 <= height
    for axes in figure.axes[:2]:
        cell = axes.get_window_extent().width / across / figure.dpi
        assert cell >= 0.55  # four digits and a point in 9 pt


def test_pictures_need_an_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"the extra .report. of advkit"):
        on_first_feature().plot()
