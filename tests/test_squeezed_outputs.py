"""Models that squeeze their output: a batch that shrinks to one sample loses its first axis."""

import numpy as np
import pytest
import torch
from torch import nn

from advkit import CallableClassifier, OnnxClassifier, SklearnClassifier, TorchClassifier, attacks
from advkit import eval as rob
from advkit.attacks import Substitute
from advkit.defenses import AdversarialTraining, LabelSmoothing
from advkit.detectors import Guard
from advkit.models.torch import logits_from
from tests.attack_cases import ATTACKS

pytestmark = pytest.mark.filterwarnings("ignore:The ball of .* holds every input")

every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=repr)


class Squeezed(nn.Module):
    """Logits of `x` `(n, 6)`, a scalar or one row for one sample, as the caller wants them."""

    def __init__(self, width, hand_over=lambda out: out):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layer = nn.Linear(6, width).double()
        with torch.no_grad():
            weight = torch.randn(width, 6, generator=generator, dtype=torch.float64)
            self.layer.weight.copy_(weight)
            self.layer.bias.copy_(-weight.sum(1) / 2)
        self.hand_over = hand_over

    def forward(self, x):
        return self.hand_over(self.layer(x).squeeze())


class Full(Squeezed):
    def forward(self, x):
        return self.hand_over(self.layer(x))


def inputs(n=7):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, 6, generator=generator, dtype=torch.float64)


class Output:
    def __init__(self, logits):
        self.logits = logits


@every_attack
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.filterwarnings("ignore::advkit.InconclusiveWarning")
def test_every_attack_finds_what_it_finds_without_the_squeeze(attack, width):
    if hasattr(attack, "surrogate") and width == 3:
        pytest.skip("the surrogate has two classes")
    x = inputs()
    y = TorchClassifier(Full(width)).predict(x)
    found, expected = (attack.run(net(width), x, y) for net in (Squeezed, Full))
    assert torch.equal(found.x_adv, expected.x_adv)
    assert torch.equal(found.success, expected.success)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize(
    "hand_over", [lambda z: z, Output, lambda z: {"logits": z}, lambda z: (z, None)]
)
def test_one_row_in_every_form(hand_over, width, dtype):
    x = inputs().to(dtype)
    squeezed, full = (TorchClassifier(net(width, hand_over).to(dtype)) for net in (Squeezed, Full))
    assert torch.equal(squeezed.logits(x[:1]), full.logits(x[:1]))
    assert torch.equal(squeezed.logits(x), full.logits(x))


def test_probabilities_of_one_row():
    x = inputs(1)
    for width, link in ((1, torch.sigmoid), (3, lambda z: z.softmax(-1))):
        models = [
            TorchClassifier(net(width, link), output="probabilities") for net in (Squeezed, Full)
        ]
        torch.testing.assert_close(models[0].logits(x), models[1].logits(x))


def test_what_is_not_one_row_is_still_refused():
    for shape, n in (((), 2), ((3,), 2), ((1, 3, 1), 1), ((0,), 1), ((2, 3), 1)):
        with pytest.raises(ValueError, match="`module` must return logits"):
            logits_from(torch.zeros(shape), n)
    with pytest.raises(ValueError, match="`num_classes` must be 3, .*, got 4"):
        TorchClassifier(Squeezed(3), num_classes=4).predict(inputs(1))


def test_an_evaluation_with_a_last_batch_of_one():
    x = inputs()
    y = TorchClassifier(Full(1)).predict(x)
    found, expected = (
        rob.evaluate(net(1), x, y, attacks=[attacks.PGD(eps=0.3, steps=5)], batch_size=3)
        for net in (Squeezed, Full)
    )
    assert found.worst_case == expected.worst_case
    assert float(found.clean_accuracy) == 1


@pytest.mark.parametrize("width", [1, 3])
def test_training_losses_take_one_row(width):
    x, y = inputs(1), torch.zeros(1)
    for loss in (
        LabelSmoothing(smoothing=0.1),
        AdversarialTraining(attack=attacks.FGSM(eps=0.1, random_start=True)),
    ):
        values = []
        for net in (Squeezed, Full):
            torch.manual_seed(0)  # a loss draws its starts
            values.append(loss(net(width), x, y))
        assert torch.equal(*values)


def test_a_substitute_may_squeeze():
    x = inputs(6)
    victim = CallableClassifier(lambda rows: (rows.sum(1) > 3).astype(int), 2, output="labels")
    found = Substitute(max_queries=6, epochs=1, batch_size=5).fit(victim, Squeezed(2), x, x)
    assert found.queries == 6


@pytest.mark.parametrize("output", ["logits", "probabilities", "labels"])
def test_functions_may_squeeze(output):
    def fn(rows):
        z = np.stack([rows.sum(1) - 3, np.zeros(len(rows)), rows[:, 0]], axis=1) * 3
        if output == "labels":
            return z.argmax(1).squeeze()
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        return (z if output == "logits" else p).squeeze()

    model = CallableClassifier(fn, 3, output=output, max_batch=1)
    whole = CallableClassifier(fn, 3, output=output)
    assert torch.equal(model.predict(inputs()), whole.predict(inputs()))
    with pytest.raises(Exception, match=r"for 1 samples, got shape \(2,\)"):
        CallableClassifier(lambda rows: [0.5, 0.5], 3, output="logits").predict(inputs(1))


@pytest.mark.parametrize("method", ["predict_proba", "decision_function", None])
def test_estimators_may_squeeze(method):
    class Estimator:
        classes_ = np.array([0, 1])

        def predict(self, rows):
            return (rows.sum(1) > 3).astype(int).squeeze()

    def scores(rows):
        p = 1 / (1 + np.exp(3 - rows.sum(1)))
        return (np.stack([1 - p, p], axis=1) if method == "predict_proba" else p).squeeze()

    estimator = Estimator()
    if method:
        setattr(estimator, method, scores)
    model, x = SklearnClassifier(estimator, bounds=(0, 1)), inputs()
    labels = torch.cat([model.predict(row) for row in x.split(1)])
    assert torch.equal(labels, model.predict(x))
    if method:
        torch.testing.assert_close(
            torch.cat([model.scores(row) for row in x.split(1)]), model.scores(x)
        )


def test_onnx_models_may_squeeze(tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    weight = onnx.numpy_helper.from_array(np.eye(6, 3, dtype=np.float32), "w")
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["z"]),
        onnx.helper.make_node("Squeeze", ["z"], ["out"]),
    ]
    for batch in (1, "n"):
        given = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, 6])
        out = onnx.helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, None)
        graph = onnx.helper.make_graph(nodes, "squeezed", [given], [out], [weight])
        opset = [onnx.helper.make_opsetid("", 13)]
        model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
        found = OnnxClassifier(model.SerializeToString(), num_classes=3, output_name="out")
        x = inputs().float()
        assert torch.equal(found.predict(x[:1]), x[:1, :3].argmax(1))
        assert torch.equal(found.predict(x), x[:, :3].argmax(1))


def test_losses_and_detectors_may_squeeze():
    x, y = inputs(1), torch.zeros(1, dtype=torch.int64)
    pgd = attacks.PGD(eps=0.3, steps=3, loss=lambda z, y: -z.gather(1, y[:, None]).squeeze())
    assert pgd.run(Full(3), x, y).x_adv.shape == x.shape

    class Sum:
        reads_inputs = True

        def anomaly_score(self, x, labels=None):
            return x.sum(1, keepdim=True).squeeze()

    assert Guard(Full(3), Sum(), threshold=100.0).predict(x).shape == (1,)
