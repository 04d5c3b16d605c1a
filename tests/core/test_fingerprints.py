"""Fingerprints: what changes them, what does not, in which process, and what has none."""

import collections
import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import importlib
import json
import linecache
import math
import operator
import os
import pathlib
import random
import socket
import subprocess
import sys
import threading
import typing
import weakref

import numpy as np
import pytest
import scipy.sparse
import scipy.special
import torch
from sklearn import calibration, ensemble, linear_model, neighbors, neural_network, svm
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.murmurhash import murmurhash3_32
from torch import nn

import advkit
from advkit import attacks, defenses
from advkit.core.digests import array_digest, combine
from advkit.core.fingerprints import fingerprint
from tests.attack_cases import ATTACKS
from tests.test_pickling import CLASSIFIERS, onnx_bytes
from tests.toys import convnet, images

ROOT = pathlib.Path(__file__).parents[2]
SOURCE = pathlib.Path(advkit.__file__).parents[1]


def of(value, **options):
    return fingerprint(value, "value", **options)


class Color(enum.Enum):
    RED = 1
    BLUE = 2


class Level(enum.IntEnum):
    RED = 1


class Point(typing.NamedTuple):
    x: float
    y: float = 0.0


@dataclasses.dataclass(frozen=True)
class Setting:
    a: object = 1
    b: object = dataclasses.field(default_factory=dict, repr=False)

    @functools.cached_property
    def twice(self):
        return [self.a, self.a]

    def __call__(self, x):
        return x


@dataclasses.dataclass(frozen=True, slots=True)
class Slots:
    a: object = 1


class Named(dict):
    def __init__(self, *args, owner="a"):
        super().__init__(*args)
        self.owner = owner


class Count(int):
    pass


class Index(int):
    pass


class Net(nn.Module):
    scale = 2.0

    def __init__(self, width=3):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(2, width), nn.Dropout(0.1))
        self.register_buffer("hidden", torch.zeros(2), persistent=False)
        self.options = {"a": [1, 2]}

    def forward(self, x):
        return super().__call__(self.inner(x)) if self.scale < 0 else self.inner(x)

    @property
    def width(self):
        return 3

    @staticmethod
    def rounded(x):
        return x.round()


def first(x, y=1, *, z=2):
    return x + y * z


def made(source, name, module="typed_in"):
    """A function or class whose source nothing has, as after typing it into a console."""
    space = {"__name__": module, "nn": nn, "dataclass": dataclasses.dataclass}
    exec(source, space)
    return space[name]


def closure(value):
    def inner(x):
        return x + value

    return inner


def seeded_net(cls=Net, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return cls(**options)


VALUES = {
    **{f"plain {v!r}": v for v in (None, True, 1, 1.0, -0.0, 0.0, 2 + 1j, "1", b"1", math.inf)},
    **{f"plain {v!r}": v for v in (False, 0, 10**30, "", b"", 1.5, -1, "é\ud800", math.nan)},
    "bytearray": bytearray(b"1"),
    "range": range(3),
    "slice": slice(1, 2),
    "other slice": slice(1, 3),
    "ellipsis": ...,
    "decimal": decimal.Decimal("1.0"),
    "fraction": fractions.Fraction(1, 3),
    "date": datetime.date(2020, 1, 1),
    "datetime": datetime.datetime(2020, 1, 1),
    "later": datetime.datetime(2020, 1, 1, 1),
    "enum": Color.RED,
    "other enum": Color.BLUE,
    "int enum": Level.RED,
    "int of a class": Count(1),
    "int of another class": Index(1),
    "path": pathlib.Path("a/b"),
    "list": [1, [2]],
    "other list": [[1], 2],
    "flat list": [1, 2],
    "tuple": (1, [2]),
    "deque": collections.deque([1, [2]]),
    "named tuple": Point(1.0),
    "other named tuple": Point(1.0, 2.0),
    "dict": {"b": 1, "a": (2,)},
    "dict with other keys": {"b": 1, "c": (2,)},
    "dict with other values": {"b": 1, "a": (3,)},
    "short dict": {"a": 1},
    "short dict with another key": {"b": 1},
    "dict of ints": {1: "a", 2: "b", (3, "c"): None},
    "dict of other ints": {1: "b", 2: "a", (3, "c"): None},
    "ordered": collections.OrderedDict(b=1, a=(2,)),
    "ordered in another way": collections.OrderedDict(a=(2,), b=1),
    "ordered ints": collections.OrderedDict({1: "a", 2: "b"}),
    "ordered ints in another way": collections.OrderedDict({2: "b", 1: "a"}),
    "default": collections.defaultdict(list, {"b": 1, "a": (2,)}),
    "other default": collections.defaultdict(set, {"b": 1, "a": (2,)}),
    "dict of a class": Named({"b": 1, "a": (2,)}),
    "dict of a class with an attribute": Named({"b": 1, "a": (2,)}, owner="b"),
    "set": {"red", "green", ("blue", 1), frozenset({"a", "b"})},
    "other set": {"red", "green", ("blue", 2), frozenset({"a", "b"})},
    "float32": torch.tensor([1.0, 2.0]),
    "column": torch.tensor([[1.0], [2.0]]),
    "float64": torch.tensor([1.0, 2.0], dtype=torch.float64),
    "other float32": torch.tensor([1.0, 3.0]),
    "int32": torch.tensor([1.0, 2.0]).view(torch.int32),
    "bfloat16": torch.tensor([1.0, 2.0]).bfloat16(),
    "float8": torch.tensor([1.0, 2.0]).to(torch.float8_e4m3fn),
    "bools": torch.tensor([True, False]),
    "complex": torch.tensor([1 + 2j]),
    "conjugate": torch.tensor([1 + 2j]).conj(),
    "negative": torch.tensor([1 + 2j]).conj().imag,
    "empty": torch.empty(0, 3),
    "other empty": torch.empty(0, 4),
    "scalar": torch.tensor(1.0),
    "sparse": torch.eye(3).to_sparse(),
    "other sparse": (2 * torch.eye(3)).to_sparse(),
    "dtype": torch.float32,
    "device": torch.device("cpu"),
    "other device": torch.device("cuda"),
    "size": torch.Size([2, 3]),
    "layout": torch.strided,
    "memory format": torch.channels_last,
    "torch generator": torch.Generator().manual_seed(3),
    "other torch generator": torch.Generator().manual_seed(4),
    "array": np.array([1.0, 2.0]),
    "column of an array": np.array([[1.0], [2.0]]),
    "zeros": np.zeros(2),
    "zeros of int64": np.zeros(2, np.int64),
    "other array": np.array([1.0, 3.0]),
    "array of float32": np.array([1.0, 2.0], np.float32),
    "texts": np.array(["a", "b"]),
    "objects": np.array(["a", None], dtype=object),
    "other objects": np.array(["b", None], dtype=object),
    "structured": np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    "structured by other names": np.array([(1, 2.0)], dtype=[("a", "i4"), ("c", "f8")]),
    "structured with other values": np.array([(1, 3.0)], dtype=[("a", "i4"), ("b", "f8")]),
    "masked": np.ma.masked_array([1.0, 2.0], [True, False]),
    "dates": np.array(["2020-01-01"], "datetime64[s]"),
    "numpy scalar": np.float64(1.0),
    "numpy int": np.int64(1),
    "numpy dtype": np.dtype("f4"),
    "numpy generator": np.random.default_rng(0),
    "other numpy generator": np.random.default_rng(1),
    "random state": np.random.RandomState(0),
    "bit generator": np.random.PCG64(0),
    "seed sequence": np.random.SeedSequence(0),
    "python's random": random.Random(0),
    "sparse matrix": scipy.sparse.csr_matrix(np.eye(2)),
    "other sparse matrix": scipy.sparse.csr_matrix(2 * np.eye(2)),
    "tree of neighbors": neighbors.KDTree(np.eye(2)),
    "other tree of neighbors": neighbors.KDTree(2 * np.eye(2)),
    "dataclass": Setting(),
    "other dataclass": Setting(a=2),
    "hidden field": Setting(b={"a": 1}),
    "slots": Slots(1),
    "other slots": Slots(2),
    "function": first,
    "closure": closure(1),
    "other closure": closure(2),
    "lambda": lambda x: x,
    "partial": functools.partial(first, 2),
    "other partial": functools.partial(first, y=2),
    "cached": functools.cache(first),
    "method": seeded_net().forward,
    "other method": seeded_net().rounded,
    "method of other weights": seeded_net(width=4).forward,
    "builtin": len,
    "builtin method": "a".join,
    "other builtin method": "b".join,
    "operator": operator.add,
    "torch function": torch.relu,
    "python function of torch": nn.functional.relu,
    "numpy function": np.mean,
    "ufunc": np.exp,
    "ufunc of scipy": scipy.special.expit,
    "compiled by Cython": murmurhash3_32,
    "module": math,
    "other module": random,
    "user's class": Net,
    "library's class": nn.Linear,
    "typed in": made("def f(x): return x", "f"),
    "typed in, other constant": made("def f(x): return x + 1.0", "f"),
    "typed in, yet another": made("def f(x): return x + 2.0", "f"),
    "typed in, plus": made("def f(x): return x + x", "f"),
    "typed in, minus": made("def f(x): return x - x", "f"),
    "typed-in class": made("class A:\n def f(self): return 1", "A"),
    "other typed-in class": made("class A:\n def f(self): return 2", "A"),
    "typed-in dataclass": made("@dataclass\nclass A:\n  x: int", "A"),
    "object": object(),
    "net": seeded_net(),
    "wider net": seeded_net(width=4),
    "lstm": seeded_net(lambda: nn.LSTM(2, 3)),
    "attack": attacks.PGD(eps=0.1, loss="margin"),
    "transfer": attacks.Transfer(attack=attacks.DeepFool(), surrogate=convnet()),
    "guard": CLASSIFIERS["Guard"](),
}


def hashes():
    return {name: of(value) for name, value in VALUES.items()}


@pytest.mark.parametrize("seed", ["1", "2"])
def test_another_process_finds_the_same_hashes(seed):
    code = (
        "import json; from tests.core.test_fingerprints import hashes; print(json.dumps(hashes()))"
    )
    paths = os.pathsep.join([str(ROOT), str(SOURCE)])
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths}
    found = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, check=True, capture_output=True
    )
    assert json.loads(found.stdout) == hashes()


def test_different_values_have_different_hashes():
    names = {}
    for name, found in hashes().items():
        names.setdefault(found, []).append(name)
    assert [group for group in names.values() if len(group) > 1] == []
    assert all(len(found) == 64 and set(found) <= set("0123456789abcdef") for found in names)


@pytest.mark.parametrize(
    "name", [n for n in VALUES if n not in ("object", "module", "other module")]
)
def test_deep_copies_have_the_same_hash(name):
    assert of(copy.deepcopy(VALUES[name])) == of(VALUES[name])


# ------------------------------------------------------------------------------- what is left out


def test_order_sharing_and_layout_do_not_count():
    assert of({"a": 1, "b": 2}) == of({"b": 2, "a": 1})
    assert of({1: 1, 2: 2}) == of({2: 2, 1: 1})
    part = [1]
    assert of([part, part]) == of([[1], [1]])
    x = torch.arange(200_000.0).reshape(400, 500)
    assert of(x.T.contiguous().T) == of(x) != of(x.T)
    a = x.numpy()
    assert of(np.asfortranarray(a)) == of(a) == of(a.astype(">f4"))
    assert of(np.repeat(a, 2, axis=1)[:, ::2]) == of(a)
    assert of(torch.device("cuda:1")) == of(torch.device("cuda"))
    assert of(torch.ones(1).expand(3)) == of(torch.ones(3))
    assert of(torch.tensor([math.nan, -0.0])) == of(torch.tensor([math.nan, -0.0]))
    assert of(x.requires_grad_()) == of(nn.Parameter(x)) == of(x.detach())
    assert of(torch.tensor([1 - 2j])) == of(torch.tensor([1 + 2j]).conj())


def test_bytes_between_fields_do_not_count():
    kind = np.dtype([("a", "u1"), ("b", "f8")], align=True)
    arrays = [np.frombuffer(bytes([fill] * kind.itemsize), kind).copy() for fill in (0, 255)]
    for array in arrays:
        array["a"], array["b"] = 1, 2.0
    assert of(arrays[0]) == of(arrays[1])
    assert arrays[0].tobytes() != arrays[1].tobytes()


def test_masked_values_do_not_count():
    arrays = [np.ma.masked_array([value, 2.0], [True, False]) for value in (1.0, 5.0)]
    assert of(arrays[0]) == of(arrays[1]) != of(np.ma.masked_array([0.0, 3.0], [True, False]))
    assert of(arrays[0]) != of(np.ma.masked_array([0.0, 2.0], [False, False]))


def test_modes_gradients_and_wrappers_do_not_count():
    net = seeded_net()
    before = of(net)
    assert of(net.train(not net.training)) == before
    net(torch.ones(1, 2)).sum().backward()
    assert of(net.requires_grad_(False)) == before
    assert of(nn.DataParallel(net)) == before
    assert of(torch.compile(net, backend="eager")) == before
    assert of(nn.Sequential(torch.compile(net, backend="eager"))) == of(nn.Sequential(net))
    net.compile(backend="eager")
    assert of(net) == before
    net.register_buffer("hidden", net.hidden, persistent=True)
    assert of(net) == before
    assert of(torch.compile(first, backend="eager")) == of(first)


def test_cached_properties_do_not_count():
    setting = Setting()
    before = of(setting)
    assert setting.twice
    assert of(setting) == before


@pytest.mark.parametrize("name", ["net", "attack", "dict", "lstm", "guard", "sparse"])
def test_the_value_is_not_changed(name):
    value = VALUES[name]
    state = [torch.random.get_rng_state(), np.random.get_state()[1].copy()]
    attributes = {k: id(v) for k, v in getattr(value, "__dict__", {}).items()}
    of(value)
    assert {k: id(v) for k, v in getattr(value, "__dict__", {}).items()} == attributes
    assert torch.equal(torch.random.get_rng_state(), state[0])
    assert np.array_equal(np.random.get_state()[1], state[1])


def test_a_sparse_tensor_stays_as_it_is():
    x = torch.sparse_coo_tensor([[1, 1]], [1.0, 2.0], (3,), check_invariants=True)
    assert of(x) == of(torch.tensor([0.0, 3.0, 0.0]).to_sparse())
    assert not x.is_coalesced()


# ------------------------------------------------------------------------------------ what counts


def with_weight(net):
    net.inner[0].weight.data[0, 0] += 1


def with_hidden_buffer(net):
    net.hidden[1] = 1


def with_probability(net):
    net.inner[1].p = 0.2


def with_option(net):
    net.options["a"][1] = 3


def with_hook(net):
    net.inner[0].register_forward_hook(lambda module, x, y: 2 * y)


def with_early_hook(net):
    net.register_forward_pre_hook(lambda module, x: x)


def with_other_layer(net):
    net.inner[1] = nn.AlphaDropout(0.1)


def with_swapped_layers(net):
    net.inner = nn.Sequential(collections.OrderedDict({"1": net.inner[1], "0": net.inner[0]}))


def without_bias(net):
    net.inner[0].bias = None


CHANGES = [with_weight, with_hidden_buffer, with_probability, with_option, with_hook,
           with_early_hook, with_other_layer, with_swapped_layers, without_bias]  # fmt: skip


def test_each_change_of_a_module_changes_the_hash():
    found = [of(seeded_net())]
    for change in CHANGES:
        net = seeded_net()
        change(net)
        found.append(of(net))
        assert of(copy.deepcopy(net)) == found[-1]
    assert len(set(found)) == len(found)


def test_numbers_of_hooks_do_not_count():
    nets = [seeded_net(), seeded_net()]
    for net in nets:
        net.register_forward_hook(closure(1))
    assert of(nets[0]) == of(nets[1])


def test_the_code_of_a_class_counts(monkeypatch):
    net, found = seeded_net(), []

    def forward(self, x):
        return 2 * x

    for name, value in {
        "forward": forward,
        "__call__": forward,
        "rounded": staticmethod(forward),
        "width": property(forward),
        "scale": 3.0,
        "more": functools.cached_property(forward),
    }.items():
        with monkeypatch.context() as patch:
            patch.setattr(Net, name, value, raising=False)
            found.append(of(net))
    assert len({*found, of(net)}) == len(found) + 1
    derived = type("Derived", (Net,), {"__module__": "torch.made_up"})  # as parametrizations do
    before = of(derived)
    monkeypatch.setattr(Net, "scale", 3.0)
    assert of(derived) != before


def test_the_source_of_bases_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    found = set()
    for i, body in enumerate(
        ["return x", "return 2 * x", "return x  # a comment", "return x\n    a: int"]
    ):
        path = tmp_path / f"layers_{i}.py"
        text = "from torch import nn\nclass A(nn.Module):\n    def forward(self, x):\n        "
        path.write_text(f"{text}{body}\nclass B(A):\n    pass\n")
        module = __import__(f"layers_{i}")
        monkeypatch.setitem(sys.modules, "layers", module)  # as if it were edited in between
        for thing in (module.A, module.B, module.A.forward):
            thing.__module__ = "layers"
        found |= {of(module.B()), of(module.B), of(nn.Sequential(module.B()))}
    assert len(found) == 12
    monkeypatch.setattr(nn.Linear, "made_up", 3, raising=False)  # libraries count by name
    assert of(nn.Linear) == hashes()["library's class"]


def test_functions_of_one_line_are_told_apart():
    pair = [lambda x: x + 1, lambda x: x + 2]
    assert of(pair[0]) != of(pair[1])
    defaults = [made(f"def f(x, y={i}): return x", "f") for i in (1, 2)]
    assert of(defaults[0]) != of(defaults[1])
    keywords = [made(f"def f(x, *, y={i}): return x", "f") for i in (1, 2)]
    assert of(keywords[0]) != of(keywords[1])
    modules = [made("def f(x): return x", "f", module) for module in ("a", "b")]
    assert of(modules[0]) != of(modules[1])
    inner = [made(f"def f(x):\n def g(): return {i}\n return g", "f") for i in (1, 2)]
    assert of(inner[0]) != of(inner[1])
    functions = [made(f"def f(x): return x.{name}()", "f") for name in ("cos", "sin")]
    assert of(functions[0]) != of(functions[1])


def test_functions_of_libraries_count_by_name_if_they_have_one():
    texts = [f"def f(x=0): return lambda x: x + {i}.0" for i in (1, 2)]
    functions = [made(text, "f", "torch.made_up") for text in texts]
    assert of(functions[0]) == of(functions[1])
    assert of(functions[0]()) != of(functions[1]())


def test_a_wrapper_is_not_the_function_inside():
    def doubled(function):
        @functools.wraps(function)
        def wrapper(x):
            return 2 * function(x)

        return wrapper

    def tripled(function):
        @functools.wraps(function)
        def wrapper(x):
            return 3 * function(x)

        return wrapper

    assert len({of(first), of(doubled(first)), of(tripled(first)), of(doubled(len))}) == 4
    assert of(doubled(first)) == of(doubled(first))


def test_a_variable_without_a_value():
    def outer():
        def inner():
            return later

        before = of(inner)
        later = 1
        return before, of(inner)

    before, after = outer()
    assert before != after


@pytest.mark.filterwarnings("ignore:Sparse")
def test_compressed_tensors():
    dense = [torch.eye(4), 2 * torch.eye(4), torch.eye(4).flip(0)]
    ways = [torch.Tensor.to_sparse_csr, torch.Tensor.to_sparse_csc]
    ways += [lambda x: x.to_sparse_bsr((2, 2)), lambda x: x.to_sparse_bsc((2, 2))]
    assert len({of(way(x)) for x in dense for way in ways}) == 12
    assert of(dense[0].to_sparse_csr()) == of(dense[0].to_sparse_csr())


@pytest.mark.filterwarnings("ignore")
def test_quantized_tensors():
    values = torch.tensor([0.1, 0.2])

    def quantized(scale=0.1, zero=0, factor=1):
        return torch.quantize_per_tensor(factor * values, scale, zero, torch.qint8)

    shifted = torch.quantize_per_tensor(values - 0.1, 0.1, 1, torch.qint8)
    assert torch.equal(shifted.int_repr(), quantized().int_repr())
    channel = torch.quantize_per_channel(
        values[None], torch.tensor([0.1]), torch.tensor([0]), 0, torch.qint8
    )
    tensors = [
        quantized(),
        quantized(0.2),
        quantized(zero=1),
        quantized(factor=2),
        shifted,
        channel,
    ]
    assert len({of(x) for x in tensors}) == len(tensors)
    assert of(quantized()) == of(quantized())
    assert of(channel) == of(channel.clone())


# ---------------------------------------------------------------------------- attacks and models


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_an_attack(attack):
    found = of(attack)
    assert of(attack) == found == of(copy.deepcopy(attack))
    for f in dataclasses.fields(attack):
        if type(getattr(attack, f.name)) in (bool, int, float, str):
            other = copy.copy(attack)
            object.__setattr__(other, f.name, ("changed", getattr(attack, f.name)))
            assert of(other) != found, f.name


def test_all_attacks_differ():
    assert len({of(attack) for attack in ATTACKS}) == len(ATTACKS)
    surrogates = [attacks.Transfer(attack=attacks.DeepFool(), surrogate=convnet()) for _ in "ab"]
    with torch.no_grad():
        surrogates[1].surrogate.norm.running_mean += 1
    assert of(surrogates[0]) != of(surrogates[1])


@pytest.mark.filterwarnings("ignore:.*chance")
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier(name):
    if name == "OnnxClassifier":
        pytest.importorskip("onnxruntime")
    make = CLASSIFIERS[name]
    content = onnx_bytes() if name == "OnnxClassifier" else None
    model = advkit.OnnxClassifier(content, max_queries=99) if content else make()
    before = of(model)
    model.predict(images(8))
    assert of(model) == before == of(copy.deepcopy(model))
    for part in ("bounds", "combine", "draws", "sigma", "quality", "output", "fpr"):
        if part in vars(model):
            twin = copy.deepcopy(model)
            setattr(twin, part, "changed")
            assert of(twin) != before, part


def weight_of(model):
    while not isinstance(model, nn.Module):
        model = getattr(model, "module", None) or getattr(model, "model", None) or model.models[0]
    return model.conv.weight


@pytest.mark.parametrize(
    "name", [n for n in CLASSIFIERS if not n.startswith(("Sk", "Call", "Onnx"))]
)
def test_the_weights_inside_a_classifier_count(name):
    model = CLASSIFIERS[name]()
    before = of(model)
    weight_of(model).data[0, 0, 0, 0] += 1
    assert of(model) != before


def test_a_detector_of_inputs():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    settings = defenses.LatentDefenders(count=1, epochs=1)
    y = torch.arange(60) % 3
    detector = defenses.MRR(latent=settings, fpr=0.2).fit(net, images(60), y)
    before = of(detector)
    detector.risk(images(8))
    assert of(detector) == before == of(copy.deepcopy(detector))


def test_modes_count_where_the_classifier_keeps_them():
    kept = [advkit.TorchClassifier(convnet().train(mode), mode="keep") for mode in (False, True)]
    assert of(kept[0]) != of(kept[1])
    evaluated = [advkit.TorchClassifier(convnet().train(mode)) for mode in (False, True)]
    assert of(evaluated[0]) == of(evaluated[1])


def test_limits_count_and_queries_and_logs_do_not(tmp_path):
    models = [advkit.QueryCounter(convnet(), max_queries=n) for n in (9, 10)]
    assert of(models[0]) != of(models[1])
    x = images(2).requires_grad_()
    before = of(models[0])
    models[0].logits(x).sum().backward()
    assert models[0].backward
    assert of(models[0]) == before
    guard = CLASSIFIERS["Guard"]()
    assert of(guard) == of(
        advkit.detectors.Guard(
            convnet(), guard.detector, threshold=0.3, log=tmp_path / "alarms.log"
        )
    )


def test_an_onnx_model_counts_by_its_content(tmp_path):
    pytest.importorskip("onnxruntime")
    content = onnx_bytes()
    paths = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    for path in paths:
        path.write_bytes(content)
    models = [advkit.OnnxClassifier(source) for source in (*paths, content)]
    before = of(models[0])
    assert {of(model) for model in models} == {before}
    paths[0].write_bytes(content + b"\x00")
    assert of(models[0]) != before
    assert of(advkit.OnnxClassifier(content, output="probabilities")) != before


def test_an_attribute_without_a_value_may_be_missing():
    model = defenses.JpegCompression(convnet(), quality=50)
    before = of(model)
    model.new_option = None
    assert of(model) == before
    model.new_option = advkit.TorchClassifier  # a class, not a model
    assert of(model) != before


ESTIMATORS = {
    "forest": lambda: ensemble.RandomForestClassifier(3, random_state=0),
    "boosting": lambda: ensemble.GradientBoostingClassifier(n_estimators=2, random_state=0),
    "histograms": lambda: ensemble.HistGradientBoostingClassifier(max_iter=2, random_state=0),
    "svc": lambda: svm.SVC(),
    "pipeline": lambda: make_pipeline(StandardScaler(), linear_model.LogisticRegression()),
    "kd tree": lambda: neighbors.KNeighborsClassifier(algorithm="kd_tree"),
    "ball tree": lambda: neighbors.KNeighborsClassifier(algorithm="ball_tree"),
    "mlp": lambda: neural_network.MLPClassifier((3,), solver="lbfgs", random_state=0),
    "calibrated": lambda: calibration.CalibratedClassifierCV(svm.LinearSVC()),
    "vote": lambda: ensemble.VotingClassifier([("a", svm.SVC()), ("b", svm.LinearSVC())]),
    "function": lambda: make_pipeline(FunctionTransformer(np.sqrt), svm.LinearSVC()),
    "lightgbm": lambda: pytest.importorskip("lightgbm").LGBMClassifier(
        n_estimators=2, min_child_samples=2, verbose=-1
    ),
    "xgboost": lambda: pytest.importorskip("xgboost").XGBClassifier(n_estimators=2),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ESTIMATORS)
def test_an_estimator(name):
    x = np.random.default_rng(0).random((60, 4))
    estimator = ESTIMATORS[name]()
    unfitted = of(estimator)
    assert of(ESTIMATORS[name]()) == unfitted
    estimator.fit(x, (3 * x[:, 0]).astype(int))
    before = of(estimator)
    estimator.predict(x)
    assert of(estimator) == before == of(copy.deepcopy(estimator)) != unfitted
    assert of(ESTIMATORS[name]().fit(x, (3 * x[:, 0]).astype(int))) == before
    assert of(ESTIMATORS[name]().fit(x, (3 * x[:, 1]).astype(int))) != before


def test_an_object_of_a_library_counts_by_what_it_states():
    def stated(reduced):
        code = f"class A:\n def __reduce_ex__(self, protocol): return {reduced}"
        return made(code, "A", module="scipy.made_up")()

    texts = ["(list, (), None, iter([1]))", "(list, (), None, iter([2]))", "(list, (3,))"]
    assert len({of(stated(text)) for text in texts}) == 3
    assert of(stated(texts[0])) == of(stated(texts[0]))
    for text in ("'the name of a global'", "1 / 0"):
        with pytest.raises(TypeError, match=r"`value` must have a content that can be hashed"):
            of(stated(text))


def test_locks_of_a_classifier_do_not_count():
    model = advkit.TorchClassifier(convnet())
    before = of(model)
    model.lock, model.users = threading.Lock(), weakref.WeakSet()
    assert of(model) == before


# ----------------------------------------------------------------------- cycles, refusals, errors


def test_cycles():
    def ring(*values):
        items = list(values)
        items.append({"back": items})
        return items

    assert of(ring(1)) == of(ring(1)) != of(ring(2))
    inner, outer = [], []
    inner.append(inner)
    outer.append([outer])
    assert of(inner) != of(outer)
    whole, half = [[]], [[]]
    whole[0].append(whole)
    half[0].append(half[0])
    assert of(whole) != of(half)
    net = nn.Sequential(nn.Linear(1, 1))
    net[0].parent = [net]
    assert of(net) == of(copy.deepcopy(net))
    assert of(weakref.ref(net)) == of(weakref.ref(net)) != of(net)
    assert of(weakref.ref(net)) != of(weakref.ref(net[0]))
    part = [net]
    assert of({(1,): part, 2: part}) == of({2: part, (1,): part})


def test_a_set_of_objects_that_lead_back_to_each_other():
    def pair(order):
        nets = [nn.ReLU(), nn.Tanh()]
        nets[0].other, nets[1].other = [nets[1]], [nets[0]]
        return {nets[i]: i for i in order}

    assert of(pair([0, 1])) == of(pair([1, 0]))


def test_values_that_are_shared_in_many_ways_take_no_time():
    value = [1]
    for _ in range(60):
        value = [value, value]
    assert of(value) == of(copy.deepcopy(value))


def test_values_nested_too_deeply():
    value = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValueError, match=r"`value` must not be nested more deeply than Python"):
        of(value)


class Service:
    def __call__(self, x):
        return x


class Wrapped(torch.Tensor):
    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError


class OtherService(Service):
    pass


def with_client(client):
    net = nn.Sequential(seeded_net())
    net[0].client = client
    return net


WITHOUT_CONTENT = {
    "callable object": Service,
    "lock": threading.Lock,
    "generator": lambda: (i for i in ()),
    "scripted module": lambda: torch.jit.script(nn.ReLU()),
    "meta tensor": lambda: torch.empty(2, device="meta"),
    "tensor of its own kind": lambda: torch.Tensor._make_subclass(Wrapped, torch.ones(2)),
    "lazy parameter": lambda: nn.LazyLinear(2).weight,
    "long double": lambda: np.longdouble(1),
    "operator of torch": lambda: torch.ops.aten.relu,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WITHOUT_CONTENT)
def test_what_has_no_content(name):
    part = WITHOUT_CONTENT[name]()
    inside = r"\S+" if name == "operator of torch" else ""
    with pytest.raises(TypeError, match=rf"`value\.0\.client{inside}` must have a content that"):
        of(with_client(part))
    assert of(with_client(part), identity="a") == of(with_client(part), identity="a")
    assert of(with_client(part), identity="a") != of(with_client(part), identity="b")


def test_the_error_names_the_part_and_the_way_out():
    with socket.socket() as connection, pytest.raises(TypeError) as error:
        fingerprint({"nets": [with_client(connection)]}, "model")
    assert str(error.value) == (
        "`model['nets'][0].0.client` must have a content that can be hashed for `store`, got "
        "socket. Pass identity='...', a text that changes whenever that part changes."
    )
    for value, path in {
        "closure": (closure(Service()), "value"),
        "partial": (functools.partial(first, Service()), "args[0]"),
        "dict": (Setting(b={(1, 2): Service()}), "b[...][1]"),
        "method": (Service().__call__, "__self__"),
        "class": (made("class A:\n service = None", "A"), "service"),
        "estimator": (FunctionTransformer(kw_args={"a": Service()}), "kw_args['a']"),
        "structured": (Setting(a=np.zeros(1, [("a", object)])), "a"),
    }.values():
        if isinstance(value, type):
            value.service = Service()
        with pytest.raises(TypeError) as error:
            of(value)
        assert str(error.value).startswith(f"`value.{path}` must have a content"), path


def test_an_identity_stands_for_parts_without_content_alone():
    def identified(part, **options):
        return of(with_client(part), identity="a", **options)

    assert identified(Service()) != identified(OtherService())
    assert identified(1) == of(with_client(1))
    other = with_client(Service())
    other[0].options = {}
    assert of(other, identity="a") != identified(Service())
    for wrong in (1, b"a"):
        with pytest.raises(TypeError, match=r"`identity` must be a str, got (int|bytes)\."):
            of(1, identity=wrong)


def test_digests():
    assert combine("a", "b") != combine("ab") != combine(b"ab") != combine("ab", "")
    assert array_digest(np.zeros(2, dtype=object)) is None
    assert array_digest(np.zeros(2, dtype=[("a", "f8"), ("b", object)])) is None


def test_a_file_with_the_name_of_a_module_of_python_is_the_users(tmp_path):
    (tmp_path / "calendar.py").write_text("def f(x):\n    return x\n")
    code = (
        "import calendar; from advkit.core.sources import is_library; "
        "print(is_library('calendar'), is_library('math'), is_library('os.path'))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(SOURCE)])},
    )  # fmt: skip
    assert found.stdout.split() == ["False", "True", "True"]


class TestHelpers:
    """Functions and classes that a function uses, and files that are edited while they are used."""

    @pytest.fixture
    def module(self, tmp_path, monkeypatch):
        """A function that writes a module of the user and imports it anew."""
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr("sys.dont_write_bytecode", True)

        def imported(name, text):
            (tmp_path / f"{name}.py").write_text(text)
            importlib.invalidate_caches()
            linecache.clearcache()
            monkeypatch.delitem(sys.modules, name, raising=False)
            return importlib.import_module(name)

        return imported

    NET = "import torch\nfrom {0} import *\nimport {0}\ndef run(x):\n    return {1}\n"

    @pytest.mark.parametrize(
        ("call", "helper"),
        [
            ("double(x)", "def double(x):\n    return {} * x\n"),
            ("helpers_of_run.double(x)", "def double(x):\n    return {} * x\n"),
            (
                "outer(x)",
                "def double(x):\n    return {} * x\ndef outer(x):\n    return double(x)\n",
            ),
            (
                "Double.apply(x)",
                "class Double:\n    @staticmethod\n    def apply(x): return {} * x\n",
            ),
            ("[double(y) for y in x]", "def double(x):\n    return {} * x\n"),
            (
                "cached(2)",
                "import functools\n@functools.cache\ndef cached(x):\n    return {} * x\n",
            ),
        ],
    )
    def test_a_changed_helper_counts(self, module, call, helper):
        hashes = set()
        for number in (2, 3):
            module("helpers_of_run", helper.format(number))
            run = module("net_of_run", self.NET.format("helpers_of_run", call)).run
            hashes |= {fingerprint(run, "run"), fingerprint(run, "run")}
        assert len(hashes) == 2

    def test_a_changed_helper_of_an_imported_module_counts(self, module):
        hashes = set()
        for number in (2, 3):
            module("helpers_of_run", f"def double(x):\n    return {number} * x\n")
            text = "import helpers_of_run\ndef run(x):\n    return helpers_of_run.double(x)\n"
            hashes.add(fingerprint(module("net_of_run", text).run, "run"))
        assert len(hashes) == 2

    def test_helpers_that_call_each_other_end(self, module):
        text = "def a(x):\n    return b(x)\ndef b(x):\n    return a(x) if x else {}\n"
        found = [fingerprint(module("mutual", text.format(n)).a, "a") for n in (1, 1, 2)]
        assert found[0] == found[1] != found[2]

    def test_a_helper_that_cannot_be_hashed_is_no_obstacle(self, module):
        text = "import threading\nclass Helper:\n    lock = threading.Lock()\n"
        fingerprint(module("locks", text + "def run(x):\n    return Helper\n").run, "run")

    def test_globals_are_left_out(self, module):
        run = module("counting", "n = 0\ndef run(x):\n    return x + n\n").run
        before = fingerprint(run, "run")
        sys.modules["counting"].n = 5
        assert fingerprint(run, "run") == before

    def test_a_file_that_is_edited_without_a_reload_never_gives_the_hash_of_its_new_code(
        self, module, tmp_path
    ):
        old = module("edited", "def run(x):\n    return 2 * x\n").run
        (tmp_path / "edited.py").write_text("def run(x):\n    return 3 * x\n")
        linecache.clearcache()
        stale = fingerprint(old, "run")
        new = module("edited", "def run(x):\n    return 3 * x\n").run
        assert stale != fingerprint(new, "run")
