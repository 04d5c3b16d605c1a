"""Arrays, tables and lists as inputs or labels: one clear sentence from every public function."""

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import TensorDataset

import advkit
from advkit import attacks, defenses, detectors
from advkit import eval as rob
from tests.detectors.test_contract import confident
from tests.tables import DataFrame, Series

ROWS = torch.rand(8, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 3
FGSM = attacks.FGSM(eps=0.1)
CONVERSIONS = {
    "array": (ROWS.numpy(), "a NumPy array. Convert it with torch.from_numpy"),
    "frame": (DataFrame(ROWS.numpy()), "a pandas DataFrame. Convert it with torch.from_numpy"),
    "list": (ROWS.tolist(), "list. Convert it with torch.tensor"),
    "sparse": (sparse.csr_matrix(ROWS.numpy()), "a SciPy sparse matrix .csr_matrix.. Convert it"),
}
LABELS = {
    "array": (Y.numpy(), "a NumPy array. Convert it with torch.from_numpy"),
    "series": (Series(Y.numpy()), "a pandas Series. Convert it with torch.from_numpy"),
    "list": (Y.tolist(), "list. Convert it with torch.tensor"),
}


def net():
    return nn.Linear(4, 3)


def pipeline():
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(ROWS.numpy(), Y.numpy())


def guard():
    return detectors.Guard(net(), detectors.MaxSoftmax().fit(confident()), threshold=0.5, fpr=0.5)


def service(rows):
    return np.full((len(rows), 3), 1 / 3)


TAKE_INPUTS = {
    "an attack": lambda x, y: FGSM(net(), x, y),
    "run of an attack": lambda x, y: attacks.HopSkipJump(max_queries=50).run(net(), x, y),
    "Substitute": lambda x, y: attacks.Substitute(max_queries=20).fit(net(), net(), x),
    "evaluate": lambda x, y: rob.evaluate(net(), x, y, attacks=[FGSM]),
    "evaluate of a pipeline": lambda x, y: rob.evaluate(pipeline(), x, y, attacks=[FGSM]),
    "accuracy": lambda x, y: rob.accuracy(net(), x, y),
    "robust_accuracy": lambda x, y: rob.robust_accuracy(net(), x, y, attacks=[FGSM]),
    "transfer_matrix": lambda x, y: rob.transfer_matrix({"a": net()}, None, FGSM, x, y),
    "benchmark": lambda x, y: rob.benchmark(net(), x, y, attacks=[FGSM]),
    "collect": lambda x, y: detectors.collect([net()], [FGSM], x, y),
    "MRR": lambda x, y: defenses.MRR().fit(net(), x, y),
    "a guard": lambda x, y: guard().predict(x),
    "calibrate of a guard": lambda x, y: guard().calibrate(x),
    "InputValidator": lambda x, y: defenses.InputValidator(net()).validate(x),
    "RandomizedSmoothing": lambda x, y: defenses.RandomizedSmoothing(net(), sigma=0.1).predict(x),
    "TorchClassifier": lambda x, y: advkit.TorchClassifier(net()).predict(x),
    "SklearnClassifier": lambda x, y: advkit.SklearnClassifier(pipeline()).predict(x),
    "scores of an estimator": lambda x, y: advkit.SklearnClassifier(pipeline()).scores(x),
    "logits of an estimator": lambda x, y: advkit.SklearnClassifier(pipeline()).logits(x),
    "CallableClassifier": lambda x, y: advkit.CallableClassifier(service, 3).predict(x),
    "Ensemble": lambda x, y: advkit.Ensemble([net(), net()]).predict(x),
    "Expectation": lambda x, y: advkit.Expectation(net(), draws=2).predict(x),
    "StraightThrough": lambda x, y: advkit.StraightThrough(net(), torch.round).predict(x),
    "FeatureSqueezing": lambda x, y: defenses.FeatureSqueezing(net(), bits=3).scores(x),
    "QueryCounter": lambda x, y: advkit.QueryCounter(net()).predict(x),
}
TAKE_LABELS = {
    name: TAKE_INPUTS[name]
    for name in (
        "an attack", "run of an attack", "evaluate", "evaluate of a pipeline", "accuracy",
        "robust_accuracy", "transfer_matrix", "benchmark", "collect", "MRR",
    )
} | {
    "a target": lambda x, y: FGSM(net(), x, target=y),
    "a training loss": lambda x, y: defenses.LabelSmoothing()(net(), x, y),
}  # fmt: skip


@pytest.mark.parametrize(("x", "said"), CONVERSIONS.values(), ids=CONVERSIONS)
@pytest.mark.parametrize("use", TAKE_INPUTS.values(), ids=TAKE_INPUTS)
def test_inputs(use, x, said):
    with pytest.raises(TypeError, match=rf"`x` must be a torch.Tensor.*, got {said}"):
        use(x, Y)


@pytest.mark.parametrize(("y", "said"), LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("use", TAKE_LABELS.values(), ids=TAKE_LABELS)
def test_labels(use, y, said):
    with pytest.raises(TypeError, match=rf"`(y|target)` must be a torch.Tensor.*, got {said}"):
        use(ROWS, y)


@pytest.mark.parametrize("use", TAKE_LABELS.values(), ids=TAKE_LABELS)
def test_several_labels_for_an_input(use):
    y = torch.zeros(8, 3)
    y[:, :2] = 1
    with pytest.raises(ValueError, match=r"a row with 2 ones .*Multi-label .* not supported"):
        use(ROWS, y)


def test_a_table_with_strings():
    frame = DataFrame([["red", 0.5]])
    with pytest.raises(TypeError, match="Columns of strings or categories are not supported"):
        rob.evaluate(pipeline(), frame, Series(["a"]), attacks=[FGSM])


@pytest.mark.parametrize(
    "use", [lambda loader: rob.accuracy(net(), loader),
            lambda loader: rob.evaluate(net(), loader, attacks=[FGSM], device="cpu"),
            lambda loader: detectors.collect([net()], [FGSM], loader)],
    ids=["accuracy", "evaluate", "collect"],
)  # fmt: skip
def test_batches_of_arrays(use):
    with pytest.raises(TypeError, match=r"`x` must .* in every batch, got a NumPy array. Convert"):
        use([(ROWS.numpy(), Y)])
    with pytest.raises(TypeError, match=r"`y` must .* in every batch, got a NumPy array. Convert"):
        use([(ROWS, Y.numpy())])


@pytest.mark.parametrize("loader", [{"x": ROWS, "y": Y}, "data.npz"])
def test_what_is_neither_data_nor_batches(loader):
    with pytest.raises(TypeError, match="`x` must be a torch.Tensor, a data set or an iterable of"):
        rob.accuracy(net(), loader)


def fit(loader):
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    defenses.fit(module, loader, loss=defenses.LabelSmoothing(), optimizer=optimizer, epochs=1)


@pytest.mark.parametrize(
    ("loader", "got"),
    [
        (ROWS, "Tensor"),
        (ROWS.numpy(), "a NumPy array"),
        (DataFrame(ROWS.numpy()), "a pandas DataFrame"),
        (ROWS.tolist(), "list"),
        (3, "int"),
        (None, "NoneType"),
        ((ROWS, torch.zeros(len(ROWS)).long()), "tuple"),
        (TensorDataset(ROWS, torch.zeros(len(ROWS)).long()), "TensorDataset"),
    ],
    ids=["tensor", "array", "frame", "list", "number", "none", "pair", "dataset"],
)
def test_loaders_of_fit(loader, got):
    said = f"`loader` must be an iterable of batches .*got {got}"
    with pytest.raises(TypeError, match=f"{said}. Pass a DataLoader"):
        fit(loader)
    with pytest.raises(TypeError, match=f"{said}. Pass a DataLoader"):
        defenses.Replay(loader, times=2)
    with pytest.raises(TypeError, match=said):
        defenses.Distillation(temperature=2.0).fit(net(), net(), loader)


def test_batches_of_fit():
    said = r"got \(a NumPy array, Tensor\) \(batch 1\). Convert it with torch.from_numpy\(x\).float"
    with pytest.raises(TypeError, match=f"`loader` must give batches .*{said}"):
        fit([(ROWS.numpy(), Y)])
    with pytest.raises(TypeError, match=r"got \(Tensor, list\).*torch.tensor\(y\)"):
        fit([(ROWS, Y.tolist())])
    with pytest.raises(ValueError, match=r"batch 1: `y` must be one-hot .*Multi-label"):
        fit([(ROWS, torch.ones(8, 3))])


def test_start_images_and_points_are_named():
    with pytest.raises(TypeError, match="`init_points` must .*got a NumPy array. Convert it with"):
        attacks.HopSkipJump(init_points=ROWS.numpy())
    with pytest.raises(TypeError, match="`start_images` must .*got a NumPy array. Convert it with"):
        attacks.JointCarliniWagner(start_images=ROWS.numpy())
    far = attacks.HopSkipJump(max_queries=50, init_points=ROWS + 1)
    with pytest.raises(ValueError, match="^`init_points` must lie in the model's bounds"):
        far.run(net(), ROWS, Y)
    substitute = attacks.Substitute(max_queries=20)
    with pytest.raises(ValueError, match="^`x_test` must lie in the model's bounds"):
        substitute.fit(net(), net(), ROWS, ROWS + 1)
    with pytest.raises(TypeError, match="^`x_test` must have a floating dtype.*x_test.float"):
        substitute.fit(net(), net(), ROWS, ROWS.long())
    with pytest.raises(TypeError, match="^`clean` must be a torch.Tensor, got a NumPy array"):
        defenses.MRR().fit(net(), ROWS, Y, clean=ROWS.numpy())
