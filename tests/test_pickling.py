"""Models, defenses, detectors and attacks in another process: pickles and deep copies."""

import copy
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import advkit
from advkit import attacks, defenses, detectors, models
from tests.attack_cases import ATTACKS
from tests.detectors.test_contract import OF_OUTPUTS, confident
from tests.toys import convnet, images

WAYS = {
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "deepcopy": copy.deepcopy,
    "pickle of a copy": lambda thing: pickle.loads(pickle.dumps(copy.deepcopy(thing))),
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def service(rows):
    return torch.from_numpy(rows).flatten(1)[:, :3].softmax(1).numpy()


def rounded(x):
    return (8 * x).round() / 8


def first_class(alarm):
    return torch.zeros_like(alarm.labels)


def onnx_bytes():
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    weight = np.random.default_rng(0).normal(size=(36, 3)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["z"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1, 6, 6])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 3])
    graph = helper.make_graph(nodes, "toy", [x], [z], [numpy_helper.from_array(weight, "w")])
    opset = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString()


def estimator():
    x = images(30).flatten(1).numpy()
    return LogisticRegression().fit(x, np.arange(30) % 3)


def guard(threshold=0.3, **options):
    return detectors.Guard(
        convnet(), detectors.MaxSoftmax().fit(confident()), threshold=threshold, **options
    )


def validator():
    return defenses.InputValidator(convnet(), contrast="fitted").fit(images(20))


def mrr():
    latent = defenses.LatentDefenders(count=1, epochs=1)
    return defenses.MRR(latent=latent, fpr=0.2).fit(convnet(), images(60), torch.arange(60) % 3)


CLASSIFIERS = {
    "TorchClassifier": lambda: advkit.TorchClassifier(
        convnet(), preprocess=advkit.Normalize((0.5,), (0.2,))
    ),
    "SklearnClassifier": lambda: advkit.SklearnClassifier(estimator(), labels="class"),
    "CallableClassifier": lambda: advkit.CallableClassifier(service, 3, max_queries=99, log=True),
    "OnnxClassifier": lambda: advkit.OnnxClassifier(onnx_bytes(), max_queries=99),
    "Ensemble": lambda: advkit.Ensemble([convnet(), advkit.TorchClassifier(convnet())]),
    "Expectation": lambda: advkit.Expectation(convnet(), draws=2),
    "StraightThrough": lambda: advkit.StraightThrough(convnet(), rounded, backward=rounded),
    "QueryCounter": lambda: advkit.QueryCounter(convnet(), max_queries=99),
    "FeatureSqueezing": lambda: defenses.FeatureSqueezing(
        convnet(), bits=3, median=2, non_local_means=defenses.NonLocalMeans(strength=0.1)
    ),
    "JpegCompression": lambda: defenses.JpegCompression(convnet(), quality=50),
    "InputValidator": validator,
    "RandomizedSmoothing": lambda: defenses.RandomizedSmoothing(convnet(), sigma=0.1, n0=20, n=30),
    "Guard": guard,
    "Guard with a function": lambda: guard(on_alarm=first_class),
}


def test_every_exported_classifier_is_covered():
    exported = {
        name
        for package in (models, defenses, detectors)
        for name in package.__all__
        if {"predict", "num_classes"} <= set(dir(getattr(package, name)))
    }
    protocols = {"Classifier", "ScoreClassifier", "DifferentiableClassifier"}
    exported |= {"CallableClassifier", "OnnxClassifier"}  # their number of classes is an attribute
    assert exported - protocols == {name.split()[0] for name in CLASSIFIERS}


@every_way
@pytest.mark.parametrize("make", CLASSIFIERS.values(), ids=CLASSIFIERS)
def test_a_classifier(make, way):
    model, x = make(), images(8)
    twin = way(model)
    assert repr(twin) == repr(model)
    assert torch.equal(twin.predict(x), model.predict(x))
    assert getattr(twin, "queries_left", 0) == getattr(model, "queries_left", 0)


@every_way
@pytest.mark.parametrize("name", OF_OUTPUTS)
def test_a_detector_of_outputs(name, way):
    detector = OF_OUTPUTS[name]()
    twin = way(detector)
    assert np.array_equal(twin.anomaly_score(confident(9)), detector.anomaly_score(confident(9)))


@every_way
def test_a_detector_of_inputs(way):
    detector, x = mrr(), images(8)
    twin = way(detector)
    assert torch.equal(twin.risk(x), detector.risk(x))
    assert twin.threshold == detector.threshold


@every_way
@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_an_attack(attack, way):
    assert repr(way(attack)) == repr(attack)


@every_way
def test_settings_and_results(way):
    x, y = images(6), torch.arange(6) % 3
    table = detectors.collect([convnet()], [attacks.FGSM(eps=0.1)], x, y)
    report = advkit.eval.evaluate(convnet(), x, y, attacks=[attacks.FGSM(eps=0.1)])
    history = defenses.fit(
        net := nn.Sequential(nn.Flatten(), nn.Linear(36, 3)),
        [(x, y)],
        loss=defenses.LabelSmoothing(smoothing=0.1),
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        epochs=1,
        progress=False,
    )
    for thing in (
        advkit.Normalize((0.5,), (0.2,)),
        defenses.NonLocalMeans(strength=0.1),
        defenses.Distillation(temperature=2.0),
        defenses.InputDefender(patch_size=2),
        attacks.Substitute(max_queries=9),
        history,
        report,
    ):
        assert repr(way(thing)) == repr(thing)
    assert np.array_equal(way(table).outputs, table.outputs)
    assert torch.equal(way(guard().inspect(x)).labels, guard().inspect(x).labels)


@every_way
def test_a_guard_with_a_log_appends_to_the_same_file(tmp_path, way):
    log = tmp_path / "alarms.log"
    original = guard(threshold=-1.0, log=log)
    twin = way(original)
    for one in (original, twin):
        assert (one.predict(torch.zeros(1, 1, 6, 6)) == advkit.models.REJECTED).all()
    assert log.read_text().count("\n") == 2


def predictions(model, x):
    return model.predict(x)


def test_predictions_of_onnx_in_processes_of_a_pool(tmp_path, monkeypatch):
    (tmp_path / "net.onnx").write_bytes(onnx_bytes())
    monkeypatch.chdir(tmp_path)
    by_path, x = advkit.OnnxClassifier("net.onnx"), images(8)
    monkeypatch.chdir("/")  # the path of a pickle does not depend on the current folder
    by_bytes = advkit.OnnxClassifier(onnx_bytes())
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        for model in (by_path, by_bytes):
            there = pool.submit(predictions, model, x).result(timeout=240)
            assert torch.equal(there, model.predict(x))


def test_a_pickle_of_onnx_by_path_needs_the_file(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(onnx_bytes())
    model = advkit.OnnxClassifier(path, max_batch=3)
    content = pickle.dumps(model)
    assert len(content) < 2000  # the path, not the model
    twin = copy.copy(model)
    assert twin.fn.__self__ is twin
    path.unlink()
    with pytest.raises(FileNotFoundError, match="`path` must be an existing file, got .*net.onnx"):
        pickle.loads(content)
