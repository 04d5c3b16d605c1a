"""Odd files, specs and numbers: one line that names the option, status 2, and no traceback."""

import io
import re
import struct
import sys
import zipfile

import numpy as np
import pytest

from advkit.cli import main
from advkit.cli.errors import UsageError, one_line, reason
from advkit.cli.specs import attacks_from

for package in ("jinja2", "PIL", "tqdm"):
    pytest.importorskip(package)

IMPORTS = "import sys, argparse, asyncio, torch\nfrom torch import nn\n"
NET = "nn.Sequential(nn.Flatten(), nn.Linear(64, 10))"
MAKE = f"{IMPORTS}def make():\n    return {NET}\n"
IMAGES, LABELS = np.zeros((6, 8, 8), np.uint8), np.arange(6)
MOST_CHARACTERS = 1500


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mynet.py").write_text(MAKE)
    np.savez("data.npz", images=IMAGES, labels=LABELS)
    return tmp_path


def ends(*arguments):
    """Status of the command for a net and data, with more arguments."""
    given = ["evaluate", "--model", "mynet.py:make", "--data", "data.npz", "--quiet"]
    eps = [] if any(a.startswith("--eps") for a in arguments) else ["--eps", "0.1"]
    try:
        return main([*given, "--attack", "FGSM", *eps, *arguments])
    except SystemExit as exit_:
        return exit_.code


def assert_refused(capsys, said, *arguments):
    status = ends(*arguments)
    shown = capsys.readouterr()
    assert status == 2, shown.err
    assert shown.err.count("\n") == 1, shown.err
    assert len(shown.err) < MOST_CHARACTERS
    assert re.match("advkit( evaluate)?: error: ", shown.err)
    assert re.search(said, shown.err), shown.err


WHOLE = {"images": IMAGES, "labels": LABELS}
INCOMPLETE = {
    "nothing": ({}, "must hold the arrays images and labels, got none"),
    "no labels": ({"images": IMAGES}, "must hold .*, got images"),
    "no images": ({"labels": LABELS}, "must hold .*, got labels"),
}
CHANGED = {
    "objects": ({"images": IMAGES.astype(object)}, "images.npy holds values of dtype object"),
    "label objects": ({"labels": LABELS.astype(object)}, "labels.npy holds values of dtype obj"),
    "strings": ({"images": np.full((6, 8, 8), "a")}, "`images` must be uint8 or float, got <U1"),
    "label strings": ({"labels": np.array(list("abcdef"))}, "`labels` must be integers, got <U1"),
    "complex": ({"images": IMAGES * 1j}, "`images` must be uint8 or float, got complex128"),
    "bools": ({"images": IMAGES > 3}, "`images` must be uint8 or float, got bool"),
    "label bools": ({"labels": LABELS > 3}, "`labels` must be integers, got bool"),
    "structs": ({"images": np.zeros((6, 8), [("a", "f4")])}, "holds values of dtype .*'a'"),
    "dates": ({"images": np.zeros((6, 8, 8), "M8[s]")}, "holds values of dtype datetime64"),
    "empty": ({"images": IMAGES[:0], "labels": LABELS[:0]}, "--data must hold at least one image"),
    "scalars": ({"images": np.float32(1)}, r"`images` must have two axes or more, got shape \(\)"),
    "scalar label": ({"labels": np.int64(1)}, r"`labels` must have shape \(6,\).*got \(\)"),
    "no features": ({"images": np.zeros((6, 0))}, "`images` must have at least one feature"),
    "five axes": ({"images": np.zeros((6, 8, 8, 2, 2))}, r"--model: the forward pass .*\(1, 8, 8,"),
    "NaN": ({"images": np.full((6, 8, 8), np.nan)}, "`images` must be finite, got NaN"),
    "label NaN": ({"labels": LABELS * np.nan}, "`labels` must be integers, got float64"),
    "beyond float32": ({"images": np.full((6, 8, 8), 1e300)}, "`images` must be finite"),
    "beyond int64": (
        {"labels": np.full(6, 2**63, np.uint64)},
        r"`labels` must be at least 0 and below 2\*\*63, got 9223372036854775808",
    ),
    "negative": ({"labels": -LABELS}, r"`labels` must be at least 0 .*got -1"),
    "beyond the classes": ({"labels": LABELS + 2**40}, "`labels` must be below 10"),
    "one-hot": ({"labels": np.eye(6, dtype=int)}, r"got \(6, 6\). Each image needs one label"),
    "other length": ({"labels": LABELS[:5]}, r"`labels` must have shape \(6,\).*got \(5,\)"),
    "other bounds": ({"images": np.full((6, 8, 8), 9.0)}, "`images` must lie in .* Set --bounds"),
}
ARRAYS = INCOMPLETE | {name: ({**WHOLE, **new}, said) for name, (new, said) in CHANGED.items()}


@pytest.mark.parametrize(("arrays", "said"), ARRAYS.values(), ids=ARRAYS)
def test_odd_arrays(folder, capsys, arrays, said):
    np.savez("odd.npz", **arrays)
    assert_refused(capsys, f"--data: .*{said}" if "--" not in said else said, "--data", "odd.npz")


def header(text):
    raw = text.encode("latin1")
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(raw) + 1) + raw + b"\n"


def described(shape, dtype="<f8"):
    return header(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}")


def content(array):
    file = io.BytesIO()
    np.lib.format.write_array(file, array)
    return file.getvalue()


HEADERS = {
    "a huge shape": described("(1000000, 1000, 1000)"),
    "a shape beyond 64 bits": described("(99999999999999999999, 28)"),
    "a negative shape": described("(-1, 2)"),
    "an open bracket": described("(10**6"),
    "a list": described("[1]"),
    "no dtype": described("(1,)", "zz"),
    "a huge header": header("{" + " " * 60000 + "}"),
    "a deep header": header("[" * 400),
    "bytes": header("\xff\xfe"),
    "a cut magic": b"\x93NU",
    "nothing": b"",
    "another version": b"\x93NUMPY\x09\0" + struct.pack("<H", 3) + b"{}\n",
    "65 axes": described("(" + "1, " * 65 + ")") + b"\0" * 8,
}


@pytest.mark.parametrize("images", HEADERS.values(), ids=HEADERS)
def test_odd_headers(folder, capsys, images):
    with zipfile.ZipFile("odd.npz", "w") as archive:
        archive.writestr("images.npy", images)
        archive.writestr("labels.npy", content(LABELS))
    said = "--data: odd.npz is not an .npz archive of plain arrays, or is damaged: "
    assert_refused(capsys, said, "--data", "odd.npz")


def members(*names):
    with zipfile.ZipFile("odd.npz", "w") as archive:
        for name in names:
            archive.writestr(name, content(LABELS if "labels" in name else IMAGES))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("images.npy", "images.npy", "labels.npy"), "two of its members have the same name"),
        (("images", "labels"), "must hold the arrays images and labels, got none"),
        (("a/images.npy", "labels.npy"), "must hold .*got a/images, labels"),
        (("images.npy/", "labels.npy"), "must hold .*got labels"),
    ],
)
def test_odd_members(folder, capsys, names, said):
    members(*names)
    assert_refused(capsys, f"--data: .*{said}", "--data", "odd.npz")


FILES = {
    "cut": lambda raw: raw[: len(raw) // 2],
    "cut at the end": lambda raw: raw[:-1],
    "cut at the start": lambda raw: raw[10:],
    "empty": lambda raw: b"",
    "text": lambda raw: b"images, labels",
    "npy": lambda raw: content(IMAGES),
}


@pytest.mark.parametrize("change", FILES.values(), ids=FILES)
def test_odd_archives(folder, capsys, change):
    (folder / "odd.npz").write_bytes(change((folder / "data.npz").read_bytes()))
    assert_refused(capsys, "--data: odd.npz is not an .npz archive", "--data", "odd.npz")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (".", "--data: . must hold one subfolder of images for each class, got no subfolder"),
        ("/dev/null", "--data: not a file: /dev/null"),
        ("a\0b.npz", "--data: no such file"),
        ("a\nb.npz", "--data: no such file: a b.npz"),
        ("a" * 5000, "--data: .*File name too long"),
    ],
)
def test_odd_paths_of_data(folder, capsys, path, said):
    assert_refused(capsys, said, "--data", path)


SOURCES = {
    "a syntax error": ("def make(:\n", "importing odd.py failed: SyntaxError"),
    "a null byte": ("a\0b", "importing odd.py failed: SyntaxError"),
    "an import error": ("import nope_nope\n", "importing odd.py failed: ModuleNotFoundError"),
    "an exit": ("import sys\nsys.exit(3)\n", "importing odd.py failed: SystemExit: 3"),
    "a generator's exit": ("raise GeneratorExit\n", "importing odd.py failed: GeneratorExit"),
    "an odd exception": ("class B(BaseException): pass\nraise B('x')\n", "failed: B: x"),
    "an error without text": (
        "class E(Exception):\n    def __str__(self): raise RuntimeError\nraise E\n",
        "importing odd.py failed: E$",
    ),
    "a long error": ("raise ValueError('x' * 100000)\n", r"ValueError: x+ \.\.\. x+$"),
    "lines": ("raise ValueError('a\\nb\\rc')\n", "failed: ValueError: a b c$"),
    "recursion": ("def make(): return make()\n", r"make\(\) failed: RecursionError"),
    "nothing": ("", "odd.py has no factory 'make'"),
    "an int": ("make = 3\n", "odd.py has no factory 'make'"),
    "a net": (f"{IMPORTS}make = {NET}\n", "make must be a function .* got the net itself, Sequ"),
    "a needed argument": ("def make(a): return a\n", r"make\(\) failed: TypeError"),
    "None": ("def make(): pass\n", r"make\(\) must return a torch.nn.Module, got NoneType"),
    "a class": (f"{IMPORTS}def make(): return nn.Linear\n", "got the class Linear"),
    "a tuple": (f"{IMPORTS}def make(): return {NET}, 3\n", "Module, got tuple"),
    "a coroutine": ("async def make(): pass\n", "Module, got coroutine"),
    "a generator": ("def make(): yield 3\n", "Module, got generator"),
    "a factory that exits": ("def make(): exit('bye')\n", r"make\(\) failed: SystemExit: bye"),
    "attributes that raise": ("def __getattr__(name): 1 / 0\n", "odd.py:make failed: ZeroDivi"),
    "a net that stays": (
        f"{IMPORTS}class make(nn.Module):\n    def to(self, *_): raise OSError('no')\n",
        "the net cannot be moved to --device cpu: OSError: no",
    ),
    "a net that goes": (
        f"{IMPORTS}class make(nn.Module):\n    def to(self, *_): pass\n",
        "`module` must be a torch.nn.Module, got NoneType",
    ),
    "a net without init": (
        f"{IMPORTS}class make(nn.Module):\n    def __init__(self): pass\n",
        "the net cannot be moved to --device cpu: AttributeError",
    ),
    "meta": (
        f"{IMPORTS}def make(): return nn.Linear(64, 10, device='meta')\n",
        "cannot be moved to --device cpu: NotImplementedError",
    ),
    "no forward": (f"{IMPORTS}make = lambda: nn.Module()\n", "failed: NotImplementedError"),
    "a pass that exits": (
        f"{IMPORTS}class make(nn.Module):\n    def forward(self, x): sys.exit(3)\n",
        r"the forward pass of one input of shape \(1, 1, 8, 8\) failed: SystemExit: 3",
    ),
    "ints": (
        f"{IMPORTS}class make(nn.Module):\n"
        "    def forward(self, x): return torch.zeros(len(x), 10).long()\n",
        "must return logits of a floating dtype, got torch.int64",
    ),
    "complex": (
        f"{IMPORTS}class make(nn.Module):\n"
        "    def forward(self, x): return torch.zeros(len(x), 10) * 1j\n",
        "must return logits of a floating dtype, got torch.complex64",
    ),
}


@pytest.mark.parametrize(("text", "said"), SOURCES.values(), ids=SOURCES)
def test_odd_sources(folder, capsys, text, said):
    (folder / "odd.py").write_text(text)
    assert_refused(capsys, f"--model: .*{said}", "--model", "odd.py:make")


def test_an_interrupt_of_a_source_ends_as_ctrl_c_does(folder, capsys):
    (folder / "odd.py").write_text("raise KeyboardInterrupt\n")
    assert ends("--model", "odd.py:make") == 130
    assert capsys.readouterr().err == "advkit evaluate: interrupted, nothing saved\n"


def test_a_source_with_a_parser_does_not_read_the_arguments_of_the_command(folder, monkeypatch):
    (folder / "odd.py").write_text(
        f"{IMPORTS}options = argparse.ArgumentParser().parse_args()\n{MAKE}"
    )
    monkeypatch.setattr(sys, "argv", ["advkit", "evaluate", "--eps", "0.1"])
    assert ends("--model", "odd.py:make") == 0
    assert sys.argv[1:] == ["evaluate", "--eps", "0.1"]


@pytest.mark.filterwarnings("always:a")
def test_a_source_that_prints_and_warns(folder, capsys):
    (folder / "odd.py").write_text(
        f"import warnings\nprint('hello')\nwarnings.warn('a\\nb')\n{MAKE}"
    )
    assert ends("--model", "odd.py:make") == 0
    assert capsys.readouterr() == ("hello\n", "advkit: warning: a b\n")


def test_a_pass_that_exits_in_the_middle(folder, capsys):
    (folder / "odd.py").write_text(
        f"{IMPORTS}class make(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.calls = 0\n"
        "    def forward(self, x):\n        self.calls += 1\n"
        "        if self.calls > 9: sys.exit(3)\n"
        "        return x.flatten(1)[:, :10]\n"
    )
    assert ends("--model", "odd.py:make", "--batch-size", "1") == 2
    assert capsys.readouterr().err.endswith("error: the evaluation failed: SystemExit: 3\n")
    given = ["--model", "odd.py:make", "--data", "data.npz", "--attack", "FGSM", "--eps", "0.1"]
    assert main(["bench", *given, "--batch-size", "1"]) == 2
    assert capsys.readouterr().err.endswith("error: the benchmark failed: SystemExit: 3\n")


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("mynet.py:", "--model must be FILE.py:FACTORY, got 'mynet.py:'"),
        (":make", "--model must be FILE.py:FACTORY"),
        (":", "--model must be FILE.py:FACTORY"),
        (" : ", "--model: no such file"),
        ("mynet.py::make", "--model: no such file: mynet.py:"),
        ("mynet.py:nn.Linear", "mynet.py has no factory 'nn.Linear'"),
        ("mynet.py:make()", "no factory 'make..', did you mean 'make'"),
        ("mynet.py:__name__", "no factory '__name__'"),
        (".:make", "--model: no such file: ."),
        ("data.npz:make", "--model: data.npz is not a Python file"),
        ("a\0b.py:make", "--model: no such file"),
        ("a" * 5000 + ".py:make", "--model: importing a+ ... .*File name too long"),
    ],
)
def test_odd_references(folder, capsys, reference, said):
    assert_refused(capsys, said, "--model", reference)


def test_a_library_without_content_is_not_a_model(folder, capsys):
    (folder / "odd.so").write_bytes(b"no")
    assert_refused(
        capsys, "--model: importing odd.so failed: ImportError", "--model", "odd.so:make"
    )


def test_a_file_with_a_colon_in_its_name(folder):
    (folder / "my:net.py").write_text(MAKE)
    assert ends("--model", "my:net.py:make") == 0


SPECS = {
    "": "there is no attack ''",
    " ": "there is no attack ' '",
    ":": "there is no attack ''",
    ":eps=1": "there is no attack ''",
    "PGD,eps=0.1": "there is no attack 'PGD,eps=0.1'",
    " PGD": "no attack ' PGD', did you mean 'PGD'",
    "ＰＧＤ": "no attack 'ＰＧＤ'",  # noqa: RUF001 - fullwidth letters
    "A" * 10000: "there is no attack 'A+ ... A+",
    "all:eps=1": "there is no attack 'all'",
    "Transfer": "Transfer is only available from Python",
    "PGD:eps": "a parameter must be key=value, got 'eps'",
    "PGD:eps=": "a parameter must be key=value, got 'eps='",
    "PGD:=1": "a parameter must be key=value, got '=1'",
    "PGD:\n": "a parameter must be key=value",
    "PGD:eps==1": "`eps` must be a number, got str: '=1'",
    "PGD:eps=1/0": "`eps` must be a number, got str: '1/0'",
    "PGD:eps=1e400": "`eps` must be a number, got str: '1e400'",
    "PGD:eps=nan": "`eps` must be a number, got str: 'nan'",
    "PGD:eps=-inf": "`eps` must be a number, got str: '-inf'",
    "PGD:eps=٣": "`eps` must be a number, got str",
    "PGD:eps=1_0": "`eps` must be a number, got str: '1_0'",
    "PGD:eps=true": "`eps` must be a number, got bool: True",
    "PGD:eps=none": "`eps` must be a number, got NoneType: None",
    "PGD:eps=" + "9" * 5000: "`eps` must be a number, got str: '9+",
    "PGD:eps=1,steps=1e99999": "`steps` must be an int, got str: '1e99999'",
    "PGD:eps=1,steps=٣": "`steps` must be an int, got str",
    "PGD:eps=1,steps=²": "`steps` must be an int, got str",
    "PGD:eps=1,steps=1_0": "`steps` must be an int, got str: '1_0'",
    "PGD:eps=1,steps=9223372036854775808": r"`steps` must be below 2\*\*63, got 922",
    "PGD:eps=1,eps=2": "a parameter must be given once, got 'eps' twice",
    "PGD:eps=1,self=1": "PGD has no parameter 'self'",
    "PGD:EPS=1": "PGD has no parameter 'EPS'.* Did you mean 'eps'",
    "HopSkipJump:init_points=1": "`init_points` must be a torch.Tensor, got int",
}


@pytest.mark.parametrize(("spec", "said"), SPECS.items(), ids=lambda v: repr(v)[:30])
def test_odd_specs(folder, capsys, spec, said):
    assert_refused(capsys, f"--attack.*{said}", "--attack", spec)


def test_specs_that_are_fine():
    made = attacks_from(["PGD:", "PGD:steps=3,", "PGD:seed=99999999999999999999"], [0.1], seed=0)
    assert [(a.steps, a.seed) for a in made] == [(40, 0), (3, 0), (40, 99999999999999999999)]


NO_NUMBERS = [
    "",
    "x",
    "nan",
    "inf",
    "1e400",
    "1/0",
    "1//2",
    "1_0",
    "٣",
    "²",
    "1j",
    "0x1",
    "9" * 5000,
]
NO_INTEGERS = ["", "x", "1.5", "1e3", "1_0", "٣", "²", "1/1", "9" * 5000, "1 "]


@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda v: v[:9])
def test_odd_numbers(folder, capsys, value):
    for option in ("--eps", "--mean", "--std"):
        assert_refused(capsys, f"argument {option}: must be a number or a fra", f"{option}={value}")
    assert_refused(capsys, "argument --bounds: must be a number or a fr", "--bounds", value, "1")


@pytest.mark.parametrize("value", [*NO_INTEGERS, "0", "-1"], ids=lambda v: v[:9])
def test_odd_integers(folder, capsys, value):
    for option in ("--limit", "--batch-size"):
        said = f"argument {option}: must be an integer of at least 1, got '{value[:9]}"
        assert_refused(capsys, said, f"{option}={value}")
    if value in NO_INTEGERS:
        assert_refused(capsys, "argument --seed: must be an integer, got", f"--seed={value}")


@pytest.mark.parametrize("value", ["-1", "+5", "99999999999999999999", "-99999999999999999999"])
def test_every_integer_is_a_seed(folder, value):
    assert ends(f"--seed={value}") == 0


@pytest.mark.parametrize(
    "name", ["", "gpu", "cuda:99", "cuda:x", "meta", "hpu", "privateuseone", ":0", "a" * 5000, "\0"]
)
def test_odd_devices(folder, capsys, name):
    assert_refused(capsys, "--device: cannot use '", "--device", name)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--bounds", "0"), "argument --bounds: expected 2 arguments"),
        (("--bounds", "0", "0"), "--bounds must be two finite numbers, lower first"),
        (("--bounds", "1", "-1"), "--bounds must be two finite numbers, lower first"),
        (("--mean", "0", "1", "--std", "1"), "--mean and --std must have the same number"),
        (("--mean", "0", "--std", "-1"), "--std must be positive"),
        (("--out", "\0"), "--out: cannot write to .*embedded null byte"),
        (("--out", "a" * 5000), "--out: cannot write to a+ ... .*File name too long"),
        (("--weights", "\0"), "--weights: no such file"),
        (("--weights", "a" * 5000), "--weights: cannot read a+ ... .*File name too long"),
        (("--weights", "data.npz"), "--weights: cannot read data.npz"),
        (("--weights", "."), "--weights: no such file"),
    ],
    ids=lambda v: " ".join(v)[:30],
)
def test_other_odd_options(folder, capsys, arguments, said):
    assert_refused(capsys, said, *arguments)


def test_messages_are_one_line_of_bounded_length():
    assert one_line("a\n b\t\rc\u2028d") == "a b c d"
    assert one_line("x" * 10, 10) == "x" * 10
    assert one_line("a" * 50 + "b" * 50, 10) == "aaaaa ... bbbbb"
    assert str(UsageError("a\nb")) == "a b"
    assert reason(ValueError("a\nb")) == "ValueError: a b"
    assert reason(ValueError()) == "ValueError"
    assert len(reason(ValueError("x" * 10000))) < 600
