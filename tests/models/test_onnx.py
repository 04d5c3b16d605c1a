"""OnnxClassifier: a model of onnxruntime, of whatever batch and dtype."""

import sys

import numpy as np
import pytest
import torch

import advkit
from advkit import OnnxClassifier, QueryBudgetExceeded, ServiceError
from tests.toys import Linear3

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

W = np.array(Linear3.W)
KINDS = {"half": TensorProto.FLOAT16, "float": TensorProto.FLOAT, "double": TensorProto.DOUBLE}


def linear(batch="n", features=(1, 3), classes=3, kind="float", softmax=False, extra=()):
    """A flattening linear model of three features, as bytes."""
    dtype = {"half": np.float16, "float": np.float32, "double": np.float64}[kind]
    weight = numpy_helper.from_array(W.T.astype(dtype), "w")
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["z"]),
        helper.make_node("Softmax", ["z"], ["p"]),
        helper.make_node("ArgMax", ["z"], ["label"], axis=1, keepdims=1),
        helper.make_node("ReduceMax", ["p"], ["confidence"], axes=[1], keepdims=0),
    ]
    outputs = [
        helper.make_tensor_value_info("p" if softmax else "z", KINDS[kind], [batch, classes]),
        *(helper.make_tensor_value_info(*one) for one in extra),
    ]
    x = helper.make_tensor_value_info("x", KINDS[kind], [batch, *features])
    return written(nodes, [x], outputs, [weight])


def written(nodes, inputs, outputs, weights=()):
    graph = helper.make_graph(nodes, "toy", inputs, outputs, list(weights))
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


LABEL = ("label", TensorProto.INT64, ["n", 1])
CONFIDENCE = ("confidence", TensorProto.FLOAT, ["n"])


@pytest.fixture
def x():
    return torch.rand(7, 1, 3, generator=torch.Generator().manual_seed(0))


def logits(x):
    return Linear3()(x.double()).detach()


@pytest.mark.parametrize("kind", KINDS)
def test_it_answers_like_the_model(x, kind):
    model = OnnxClassifier(linear(kind=kind))
    tolerance = 1e-2 if kind == "half" else 1e-6
    torch.testing.assert_close(model.scores(x), logits(x).softmax(1), atol=tolerance, rtol=0)
    assert torch.equal(model.predict(x), logits(x).argmax(1))
    assert (model.num_classes, model.bounds, model.queries) == (3, (0, 1), 14)
    assert not hasattr(model, "logits")
    with pytest.raises(TypeError, match="OnnxClassifier, a ScoreClassifier"):
        advkit.attacks.FGSM(eps=0.1)(model, x)


def test_probabilities_are_taken_as_they_are(x):
    model = OnnxClassifier(linear(softmax=True), output="probabilities")
    torch.testing.assert_close(model.scores(x), logits(x).softmax(1), atol=1e-6, rtol=0)
    with pytest.raises(ServiceError, match="must return probabilities .*Use output='logits'"):
        OnnxClassifier(linear(), output="probabilities").scores(x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_inputs_are_cast_to_what_the_model_takes(x, dtype):
    x = x.to(dtype)
    found = OnnxClassifier(linear()).scores(x)
    torch.testing.assert_close(found, logits(x).softmax(1), atol=1e-6, rtol=0)


def test_a_fixed_batch_is_filled_up_and_no_query_more_is_counted(x):
    model = OnnxClassifier(linear(batch=3), max_queries=14)
    torch.testing.assert_close(model.scores(x), logits(x).softmax(1), atol=1e-6, rtol=0)
    assert model.queries == 7
    model.predict(x)
    with pytest.raises(QueryBudgetExceeded):
        model.predict(x[:1])
    assert OnnxClassifier(linear(batch=1)).predict(x).shape == (7,)
    assert OnnxClassifier(linear(), max_batch=2).predict(x).shape == (7,)
    assert OnnxClassifier(linear(batch=3)).predict(x[:0]).shape == (0,)


def test_max_batch_splits_what_the_model_leaves_open(x, monkeypatch):
    model = OnnxClassifier(linear(), max_batch=3)
    sizes, run = [], model.fn
    monkeypatch.setattr(model, "fn", lambda rows: sizes.append(len(rows)) or run(rows))
    model.predict(x)
    assert sizes == [3, 3, 1]


def test_files_and_their_paths(x, tmp_path):
    (tmp_path / "net.onnx").write_bytes(linear())
    for path in (tmp_path / "net.onnx", str(tmp_path / "net.onnx")):
        assert torch.equal(OnnxClassifier(path).predict(x), logits(x).argmax(1))
    with pytest.raises(
        FileNotFoundError, match=r"`path` must be an existing file, got .*other.onnx"
    ):
        OnnxClassifier(tmp_path / "other.onnx")


def test_the_output_is_found_among_others_or_named(x):
    three = linear(extra=[LABEL, CONFIDENCE])
    assert torch.equal(OnnxClassifier(three).predict(x), logits(x).argmax(1))
    twice = linear(extra=[LABEL, ("p", TensorProto.FLOAT, ["n", 3])])
    said = r"'z' \(tensor\(float\), \['n', 3\]\), 'label' .*, 'p' .* 2 of them are floats"
    with pytest.raises(ValueError, match=said):
        OnnxClassifier(twice)
    named = OnnxClassifier(twice, output_name="p", output="probabilities")
    torch.testing.assert_close(named.scores(x), logits(x).softmax(1), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="got 'q': 0 of them have the name 'q'"):
        OnnxClassifier(twice, output_name="q")


def test_the_number_of_classes_is_read_or_given(x):
    assert OnnxClassifier(linear(classes="c")).num_classes == 3  # as the weights have it
    flatten = helper.make_node("Flatten", ["x"], ["z"])
    tensors = (helper.make_tensor_value_info(name, 1, ["n", name]) for name in "xz")
    whatever = written([flatten], *([tensor] for tensor in tensors))
    with pytest.raises(ValueError, match="`num_classes` must be an int, since .* 'z', got None"):
        OnnxClassifier(whatever)
    model = OnnxClassifier(whatever, num_classes=3)
    assert torch.equal(model.predict(x[:, 0]), x[:, 0].argmax(1))
    with pytest.raises(ValueError, match="`num_classes` must be 3, .*, got 4"):
        OnnxClassifier(linear(), num_classes=4)


@pytest.mark.parametrize("shape", [(2, 1, 4), (2, 3), (2, 1, 1, 3)])
def test_inputs_of_another_shape(shape):
    model = OnnxClassifier(linear())
    with pytest.raises(ValueError, match=r"shape \(n, 1, 3\) of the model's input, got \(2, "):
        model.predict(torch.zeros(shape))
    assert model.queries == 0


def test_open_axes_take_any_length(x):
    model = OnnxClassifier(linear(features=("c", "f")))
    assert model.predict(x).shape == model.predict(x.view(7, 3, 1)).shape == (7,)
    for other in (x.view(7, 3), x.view(7, 1, 1, 3)):
        with pytest.raises(ValueError, match=r"shape \(n, c, f\) of the model's input, got \(7, "):
            model.predict(other)


def test_models_that_are_no_classifiers():
    ints = helper.make_tensor_value_info("x", TensorProto.INT64, ["n", 3])
    floats = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3])
    other = helper.make_tensor_value_info("other", TensorProto.FLOAT, ["n", 3])
    out = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 3])
    cast = helper.make_node("Cast", ["x"], ["z"], to=TensorProto.FLOAT)
    with pytest.raises(ValueError, match=r"one input of floats, got 'x' \(tensor\(int64\)"):
        OnnxClassifier(written([cast], [ints], [out]))
    add = helper.make_node("Add", ["x", "other"], ["z"])
    with pytest.raises(ValueError, match="one input of floats, got 'x' .*, 'other'"):
        OnnxClassifier(written([add], [floats, other], [out]))
    with pytest.raises(ValueError, match="`output` must be one of 'logits', 'probabilities'"):
        OnnxClassifier(linear(), output="labels")


def test_without_onnxruntime_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install onnxruntime"):
        OnnxClassifier(b"")


def test_it_is_printed(tmp_path):
    assert repr(OnnxClassifier(linear())) == "OnnxClassifier(bytes, num_classes=3)"
    (tmp_path / "net.onnx").write_bytes(linear())
    assert repr(OnnxClassifier(tmp_path / "net.onnx")) == "OnnxClassifier(net.onnx, num_classes=3)"


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_that_are_taken_for_logits_are_noticed(kind):
    x = torch.rand(9, 1, 3, generator=torch.Generator().manual_seed(0))
    model = OnnxClassifier(linear(kind=kind, softmax=True))
    with pytest.warns(UserWarning, match="seems to return probabilities"):
        model.scores(x)
    OnnxClassifier(linear(kind=kind)).scores(x)
