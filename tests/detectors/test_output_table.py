"""Tables of outputs: what is collected, how it is kept, cut, joined and saved."""

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.model_selection import GroupKFold
from sklearn.tree import DecisionTreeClassifier
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advkit import CallableClassifier, TorchClassifier, attacks
from advkit.core.norms import lp_norm
from advkit.detectors.collect import collect
from advkit.detectors.output_table import OutputTable
from tests.toys import Halfspace, convnet, images

COLUMNS = ("sample", "model", "attack", "label", "predicted", "success", "distance", "norm")
X = torch.tensor([[0.45, 0.3], [0.55, 0.6], [0.65, 0.6], [0.75, 0.6]])
Y = torch.ones(4).long()


def halfspace():
    """The boundary is at 0.5 of the first feature, label 1 above it."""
    return Halfspace(torch.tensor([30.0, 0.0]), b=-15.0)


def table(n=6, width=3, **changed):
    """A table of made-up rows."""
    rng = np.random.default_rng(0)
    columns = {
        "outputs": rng.uniform(size=(n, width)),
        "sample": np.arange(n) % 3,
        "model": np.array(["a", "b"] * n)[:n],
        "attack": np.array(["clean", "clean", "pgd"] * n)[:n],
        "label": np.zeros(n, dtype=np.int32),
        "predicted": np.arange(n) % 2,
        "success": np.arange(n) % 3 == 2,
        "distance": np.linspace(0, 1, n, dtype=np.float32),
        "norm": np.array(["", "", "l2"] * n)[:n],
    }
    return OutputTable(**columns | changed)


def same(one, other):
    assert one.kind == other.kind
    for name in ("outputs", *COLUMNS):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        assert getattr(one, name).dtype.kind == getattr(other, name).dtype.kind


def test_each_row_says_what_the_model_said():
    found = collect({"half": halfspace()}, {"step": attacks.FGSM(eps=0.1)}, X, Y)
    assert len(found) == 8
    assert found.sample.tolist() == [0, 1, 2, 3] * 2
    assert set(found.model.tolist()) == {"half"}
    assert found.attack.tolist() == ["clean"] * 4 + ["step"] * 4
    assert found.label.tolist() == [1] * 8
    assert found.predicted.tolist() == [0, 1, 1, 1, 0, 0, 1, 1]
    # The model is wrong about the first input before any attack, and no attack succeeded there.
    assert found.success.tolist() == [False] * 4 + [True, True, False, False]
    assert found.distance.tolist() == pytest.approx([0.0] * 4 + [0.1] * 4, abs=1e-6)
    assert found.norm.tolist() == [""] * 4 + ["linf"] * 4
    assert found.adversarial.tolist() == [False] * 4 + [True] * 4
    x_adv = attacks.FGSM(eps=0.1, stop="never")(halfspace(), X, Y)
    expected = halfspace()(torch.cat([X, x_adv])).softmax(1)
    assert found.outputs.dtype == np.float32
    np.testing.assert_allclose(found.outputs, expected.detach().numpy(), atol=1e-6)
    assert (found.kind, found.width) == ("scores", 2)


def test_logits_are_kept_when_asked_for():
    found = collect([halfspace()], [], X, Y, outputs="logits")
    np.testing.assert_allclose(found.outputs, halfspace()(X).detach().numpy())
    assert found.kind == "logits"


MADE = {
    "pgd": attacks.PGD(eps=0.1, steps=3),
    "deepfool": attacks.DeepFool(),
    "radii": attacks.FGSM(eps=torch.linspace(0.01, 0.2, 8)),
}


@pytest.mark.parametrize("batch_size", [1, 3])
def test_nothing_depends_on_the_batch_size(batch_size):
    x, y = images().double(), torch.arange(8) % 3
    nets = {"one": convnet(dtype=torch.float64), "two": TorchClassifier(convnet().double())}
    whole = collect(nets, MADE, x, y, batch_size=100)
    cut = collect(nets, MADE, x, y, batch_size=batch_size)
    assert len(whole) == 2 * 4 * 8
    for name in set(COLUMNS) - {"distance"}:
        np.testing.assert_array_equal(getattr(whole, name), getattr(cut, name), err_msg=name)
    np.testing.assert_allclose(whole.outputs, cut.outputs, atol=1e-6)
    np.testing.assert_allclose(whole.distance, cut.distance, atol=1e-9)
    radii = whole.filter(attack="radii", model="one").distance
    np.testing.assert_allclose(radii, np.linspace(0.01, 0.2, 8), atol=1e-6)


class NeverEmpty(TorchClassifier):
    """Cannot do with nothing, as many nets cannot."""

    def scores(self, x):
        assert len(x)
        return super().scores(x)


def test_logits_that_are_probabilities_are_noticed():
    class Confused:
        bounds, num_classes = (0.0, 1.0), 2

        def logits(self, x):
            return halfspace()(x).flatten(1).sigmoid().expand(-1, 2).softmax(1)

        def predict(self, x):
            return self.logits(x).argmax(1)

    with pytest.warns(UserWarning, match="seems to return probabilities"):
        collect([Confused()], [], X, Y, outputs="logits")


def test_batches_may_come_from_a_loader_and_some_may_be_empty():
    loader = DataLoader(TensorDataset(X, Y), batch_size=3)
    same(collect([halfspace()], [], loader), collect([halfspace()], [], X, Y))
    parts = [(X[:0], Y[:0]), (X, Y), (X[:0], Y[:0])]
    net = {"net": NeverEmpty(halfspace())}
    same(collect(net, [], parts), collect(net, [], X, Y))


def test_attacks_go_on_to_the_strongest_example():
    x, y = images(), torch.arange(8) % 3
    found = collect([convnet()], [attacks.PGD(eps=0.1, steps=5)], x, y).filter(
        attack="PGD(eps=0.1, steps=5)"
    )
    x_adv = attacks.PGD(eps=0.1, steps=5, stop="never")(convnet(), x, y)
    expected = TorchClassifier(convnet()).scores(x_adv)
    np.testing.assert_allclose(found.outputs, expected.numpy(), atol=1e-6)
    torch.testing.assert_close(
        torch.from_numpy(found.distance), lp_norm(x_adv - x, "linf").double()
    )


def test_lists_are_named_after_models_and_calls():
    made = [attacks.FGSM(eps=0.1), attacks.FGSM(eps=0.2), attacks.FGSM(eps=0.1)]
    made[2] = dataclasses.replace(made[0])
    found = collect([halfspace(), halfspace()], made, X, Y)
    assert list(dict.fromkeys(found.model.tolist())) == ["Halfspace", "Halfspace 2"]
    names = ["clean", "FGSM(eps=0.1)", "FGSM(eps=0.2)", "FGSM(eps=0.1) 2"]
    assert list(dict.fromkeys(found.attack.tolist())) == names


def test_models_without_gradients_have_scores():
    tree = DecisionTreeClassifier(random_state=0).fit(X.numpy(), [0, 1, 1, 1])
    found = collect({"tree": tree}, [attacks.RandomNoise(eps=0.3, restarts=20)], X, Y)
    assert found.outputs[:4].tolist() == [[1, 0], [0, 1], [0, 1], [0, 1]]
    with pytest.raises(TypeError, match="`models` must have a method logits.*got 'tree'"):
        collect({"tree": tree}, [], X, Y, outputs="logits")
    with pytest.raises(TypeError, match="model 'tree': `model` must have gradients .* for FGSM"):
        collect({"tree": tree}, [attacks.FGSM(eps=0.1)], X, Y)


class Rejecting(TorchClassifier):
    """Rejects what is near its boundary."""

    def predict(self, x):
        return torch.where((x[:, 0] - 0.5).abs() < 0.1, -1, super().predict(x))


def test_a_rejection_is_no_success():
    found = collect([Rejecting(halfspace())], [attacks.FGSM(eps=0.2)], X, Y)
    assert found.predicted.tolist() == [-1, -1, 1, 1, 0, 0, -1, -1]
    assert found.success.tolist() == [False] * 4 + [True, True, False, False]


def test_the_models_and_the_random_state_stay_as_they_were():
    net = convnet().train()
    before = torch.get_rng_state()
    collect([net], [attacks.FGSM(eps=0.1)], images(), torch.arange(8) % 3)
    assert net.training
    assert net.calls == 0
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_what_collect_refuses():
    net, fgsm = halfspace(), attacks.FGSM(eps=0.1)
    with pytest.raises(ValueError, match="`models` must hold at least one model, got none"):
        collect({}, [fgsm], X, Y)
    with pytest.raises(ValueError, match="`attacks` must not be named 'clean'"):
        collect([net], {"clean": fgsm}, X, Y)
    with pytest.raises(TypeError, match="`attacks` must be an attack, such as"):
        collect([net], [attacks.FGSM], X, Y)
    with pytest.raises(
        TypeError, match="`attacks` must be a mapping from names to attacks or a list"
    ):
        collect([net], fgsm, X, Y)
    with pytest.raises(
        ValueError, match="`outputs` must be one of 'scores', 'logits', got 'labels'"
    ):
        collect([net], [], X, Y, outputs="labels")
    with pytest.raises(ValueError, match="`first_sample` must be at least 0"):
        collect([net], [], X, Y, first_sample=-1)
    for n in (3, 6):
        with pytest.raises(ValueError, match=rf"`eps` must .* shape \(4,\), got shape \({n},\)"):
            collect([net], [attacks.FGSM(eps=torch.ones(n))], X, Y)
    with pytest.raises(ValueError, match=r"model 'Halfspace': `y` must be below 2.*sample 1"):
        collect([net], [], X, torch.tensor([0, 2, 0, 0]))
    with pytest.raises(ValueError, match=r"batch that begins at sample 2.*`y` must be below"):
        collect([net], [], X, torch.tensor([0, 0, 0, 2]), batch_size=2)
    with pytest.raises(ValueError, match="`x` must hold at least one sample"):
        collect([net], [], X[:0], Y[:0])
    with pytest.raises(TypeError, match="must have a method scores"):
        collect([CallableClassifier(len, 2, output="labels")], [], X, Y)
    wide = nn.Linear(2, 3)
    with pytest.raises(
        ValueError,
        match="the same number of scores, got 2 of 'Halfspace' and 3 of 'Linear'",
    ):
        collect([net, wide], [fgsm], X, Y)


def test_samples_are_counted_from_where_the_caller_says():
    first = collect([halfspace()], [], X, Y)
    second = collect([halfspace()], [], X, Y, first_sample=len(X), batch_size=3)
    assert second.sample.tolist() == [4, 5, 6, 7]
    both = first + second
    assert both.groups.tolist() == list(range(8))
    same(both[:4], first)
    same(both[np.arange(4, 8)], second)


def test_groups_keep_an_image_on_one_side():
    found = collect([halfspace()], MADE_FOR_TWO, X, Y)
    for train, test in GroupKFold(2).split(found.outputs, found.adversarial, found.groups):
        assert not set(found.sample[train]) & set(found.sample[test])


MADE_FOR_TWO = [attacks.FGSM(eps=0.1), attacks.FGSM(eps=0.2)]


def test_the_table_as_text():
    found = collect({"half": halfspace()}, {"step": attacks.FGSM(eps=0.1)}, X, Y)
    assert str(found).splitlines() == [
        "model  attack  rows  correct  success  mean distance",
        "half   clean      4   75.0 %        -              -",
        "half   step       4   50.0 %   50.0 %       0.1 linf",
    ]
    assert repr(found) == "OutputTable(8 rows of 2 scores)"


def test_rows_are_filtered_by_any_column():
    found = table()
    assert found.filter(attack="pgd").sample.tolist() == [2, 2]
    assert found.filter(attack="pgd", model="a").distance.tolist() == pytest.approx([0.4])
    assert len(found.filter(model=["a", "b"])) == 6
    assert found.filter(sample=[0, 1]).sample.tolist() == [0, 1, 0, 1]
    assert found.filter(success=True).attack.tolist() == ["pgd", "pgd"]
    assert found.filter(adversarial=False).attack.tolist() == ["clean"] * 4
    assert len(found.filter(label=7)) == 0
    same(found.filter(), found)
    with pytest.raises(ValueError, match="`attack` must be one of 'clean', 'pgd', got 'fgsm'"):
        found.filter(attack=["pgd", "fgsm"])
    with pytest.raises(
        TypeError, match="`filter` must get names of columns .sample, model, .* got 'eps'"
    ):
        found.filter(eps=0.1)
    with pytest.raises(
        TypeError, match="`success` must be a number or a list of numbers, got 'yes'"
    ):
        found.filter(success="yes")


def test_rows_are_taken_by_masks_indices_and_slices():
    found = table()
    same(found[found.model == "b"], found[np.array([1, 3, 5])])
    same(found[1::2], found[np.array([1, 3, 5])])
    assert table(kind="logits")[1:].kind == "logits"
    with pytest.raises(TypeError, match="`rows` must be an array or a slice, got int"):
        found[0]


def test_tables_are_joined_in_their_order():
    first, second = table(4), table(3, model=np.array(["a longer name"] * 3))
    joined = OutputTable.concatenate([first, second, first])
    assert len(joined) == 11
    assert joined.model.tolist() == [*first.model, *second.model, *first.model]
    same(joined[4:7], second)
    with pytest.raises(ValueError, match="`tables` must have outputs of one width, got 3 and 2"):
        first + table(width=2)
    with pytest.raises(
        ValueError, match="`tables` must have outputs of one kind, got scores and log"
    ):
        first + table(kind="logits")
    with pytest.raises(ValueError, match="at least one table"):
        OutputTable.concatenate([])


@pytest.mark.parametrize("kind", ["scores", "logits"])
def test_a_table_survives_its_file(tmp_path, kind):
    path = tmp_path / "new" / "table.npz"
    found = table(kind=kind)
    found.save(path)
    same(OutputTable.load(path), found)
    found[:0].save(path)
    assert len(OutputTable.load(str(path))) == 0
    assert [p.name for p in path.parent.iterdir()] == ["table.npz"]


def rewritten(path, **changed):
    """The file at `path` with other arrays."""
    with np.load(path) as archive:
        arrays = dict(archive)
    np.savez(path, **arrays | changed)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            {"sample": np.zeros(5, dtype=int)},
            "not hold a valid OutputTable: `sample` must have shape",
        ),
        ({"success": np.zeros(6)}, "`success` must be an array of bools, got float64"),
        ({"outputs": np.full((6, 3), np.nan)}, "NaN or infinity .rows 0, 1, 2, 3, 4 and 1 more"),
        ({"kind": np.array("labels")}, "`kind` must be one of 'scores', 'logits', got 'labels'"),
        ({"format": np.array("something else")}, "must be a file of an OutputTable"),
        ({"model": np.array([print] * 6, dtype=object)}, "not an .npz archive of plain arrays"),
    ],
)
def test_files_that_hold_no_table(tmp_path, changed, words):
    path = tmp_path / "table.npz"
    table().save(path)
    rewritten(path, **changed)
    with pytest.raises(ValueError, match=words):
        OutputTable.load(path)


def test_columns_that_do_not_fit():
    with pytest.raises(TypeError, match="`outputs` must be an array of floats, got int64"):
        table(outputs=np.zeros((6, 3), dtype=int))
    with pytest.raises(ValueError, match=r"`outputs` must have shape \(n, width\), got \(6,\)"):
        table(outputs=np.zeros(6))
    with pytest.raises(ValueError, match=r"`outputs` must have shape \(n, width\), got \(6, 0\)"):
        table(outputs=np.zeros((6, 0)))
    with pytest.raises(ValueError, match="`outputs` must be finite, got NaN or infinity .row 2"):
        table(outputs=np.where(np.arange(6)[:, None] == 2, np.inf, np.ones((6, 3))))
    with pytest.raises(TypeError, match="`model` must be an array of strings, got list"):
        table(model=["a"] * 6)
    with pytest.raises(TypeError, match="`label` must be an array of integers, got float64"):
        table(label=np.zeros(6))
    with pytest.raises(
        ValueError, match=r"`distance` must have shape \(6,\) like the rows, got \(2,\)"
    ):
        table(distance=np.zeros(2))
