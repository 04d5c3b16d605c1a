"""The structure, read off the source: layers, cycles, private names, extras, sizes."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import advkit

ROOT = Path(advkit.__file__).parent
PACKAGES = {"attacks", "defenses", "detectors", "eval"}
ALLOWED = {
    "core": set(),
    "models": {"core"},
    "training": {"core"},
    **{package: {"core", "models", "training"} for package in PACKAGES},
    "data": {"core"},
    "integrations": {"core", "eval"},
}
EXTRAS = {
    *("matplotlib", "jinja2", "tqdm", "safetensors"),
    *("onnx", "onnxruntime", "lightgbm", "xgboost"),
    *("PIL", "skimage", "lightning", "pandas", "pyarrow"),
    *("mlflow", "tensorboard", "wandb"),
    *("foolbox", "torchattacks", "art"),
}
MOST_LINES = 400  # of a file
MOST_CODE = 40  # lines of code of a function, signature included
MOST_OF_NINE_IN_TEN = 15


def read(path, root):
    """What the tests look at in the file at `path`."""
    text = path.read_text(encoding="utf-8")
    tree, package = ast.parse(text), path.relative_to(root).parts[0]
    return SimpleNamespace(
        path=path, text=text, tree=tree, package=package, private=private_names(tree)
    )


def read_all(root):
    """Every module by its dotted name."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = read(path, root)
    return found


def imports(module):
    """Modules that `module` imports, each with whether that is at its top level."""
    top = set(map(id, module.tree.body))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module.path}: imports are absolute"
            yield node.module, id(node) in top
        elif isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)


def imported_modules(module, modules):
    """Names of those of `modules` that `module` imports, at run time or for types alone."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in modules else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def cycle(modules):
    """Modules that import each other in a ring, with those that import them; `None` for none."""
    graph = {
        name: {found for found in imported_modules(module, modules) if found in modules} - {name}
        for name, module in modules.items()
    }
    while graph:
        free = {name for name, wanted in graph.items() if not wanted & graph.keys()}
        if not free:
            return sorted(graph)
        graph = {name: wanted for name, wanted in graph.items() if name not in free}
    return None


def is_private(name):
    return name.startswith("_") and not name.startswith("__")


def private_names(tree):
    """Private names of functions, classes, constants and attributes that a module makes."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return {name for name in found if is_private(name)}


def private_names_of_others(name, modules):
    """Private names that the module `name` imports from others, or looks up on their objects.

    What a class inherits may be used on `self`, `cls` and `super()`, and on copies of them. A name
    that no module makes belongs to another library.
    """
    module, known = modules[name], set().union(*(m.private for m in modules.values()))
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == name.split(".")[0]:
            yield from (f"{node.module}.{a.name}" for a in node.names if is_private(a.name))
    functions = [n for n in ast.walk(module.tree) if isinstance(n, ast.FunctionDef)]
    inside = {id(node): function for function in functions for node in ast.walk(function)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and node.attr in known:
            function = inside.get(id(node), module.tree)
            if not is_own(node.value, function):
                yield f"{ast.unparse(node)} in line {node.lineno}"


def is_own(node, function):
    """Whether an object is `self`, `cls` or `super()`, or made from one of them in `function`."""
    if isinstance(node, ast.Name) and node.id in ("self", "cls"):
        return True
    if isinstance(node, ast.Name):
        made = [n for n in ast.walk(function) if isinstance(n, ast.Assign)]
        values = [n.value for n in made if any(ast.unparse(t) == node.id for t in n.targets)]
        return any(not isinstance(v, ast.Name) and is_own(v, function) for v in values)
    if isinstance(node, ast.Call):
        called = isinstance(node.func, ast.Name) and node.func.id in ("super", "cls")
        return called or any(is_own(argument, function) for argument in node.args)
    return isinstance(node, ast.Subscript) and is_own(node.value, function)


def code_lines(module):
    """Numbers of the lines that hold code: no comments, no blank lines, no docstrings."""
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(module.text).readline):
        if token.type not in skipped:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(module.tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        if documented and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def function_lengths(modules):
    """Lines of code of every function, signature included, by where it stands."""
    for name, module in modules.items():
        lines = code_lines(module)
        for node in ast.walk(module.tree):
            if isinstance(node, ast.FunctionDef):
                whole = lines & set(range(node.lineno, node.end_lineno + 1))
                yield f"{name}.{node.name} in line {node.lineno}", len(whole)


MODULES = read_all(ROOT)


def test_no_package_imports_what_stands_above_or_beside_it():
    seen = set()
    for module in MODULES.values():
        home = module.package.removesuffix(".py")
        if home not in ALLOWED:
            continue
        seen.add(home)
        for name, _ in imports(module):
            if name == "advkit" or name.startswith("advkit."):
                package = name.split(".")[1] if "." in name else "advkit"
                assert package in ALLOWED[home] | {home}, f"{module.path} imports {name}"
    assert seen == set(ALLOWED)


def test_the_packages_of_evaluations_import_those_below_them_alone():
    below = {
        "findings": {"findings"},
        "units": {"units"},
        "evidence": {"units", "evidence"},
        "store": {"units", "evidence", "store"},
        "page": {"findings", "evidence", "page"},
        "robustness": {"findings", "units", "evidence", "page", "store", "robustness"},
        "diagnosis": {"findings", "units", "robustness", "diagnosis"},
        "gates": {"evidence", "robustness", "gates"},
    }
    for package, allowed in below.items():
        prefix = f"advkit.eval.{package}"
        for name, module in MODULES.items():
            if name.startswith(prefix):
                found = imported_modules(module, MODULES)
                inside = [other.split(".") for other in found if other.startswith("advkit.eval.")]
                packages = {parts[2] for parts in inside if len(parts) > 3}
                assert packages <= allowed, f"{name} imports {packages - allowed}"


def test_no_two_modules_import_each_other():
    assert cycle(MODULES) is None


@pytest.mark.parametrize("name", MODULES)
def test_no_private_name_of_another_module_is_used(name):
    assert list(private_names_of_others(name, MODULES)) == []


def test_extras_are_imported_for_types_alone():
    for module in MODULES.values():
        guards = [n for n in ast.walk(module.tree) if isinstance(n, ast.If)
                  and ast.unparse(n.test) == "TYPE_CHECKING"]  # fmt: skip
        guarded = {id(node) for guard in guards for node in ast.walk(guard)}
        for node in ast.walk(module.tree):
            if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in guarded:
                names = [getattr(node, "module", None) or alias.name for alias in node.names]
                found = EXTRAS & {name.split(".")[0] for name in names}
                assert not found, f"{module.path} imports {found}"


def test_extras_are_required_inside_functions_by_the_extra_that_installs_them():
    installed = metadata.requires("advkit")  # lines such as: tqdm>=4.66; extra == 'report'
    for name, module in MODULES.items():
        if name not in ("advkit", "advkit.core.extras"):  # the first imports its own packages
            assert "import_module" not in module.text, f"{module.path} imports by name"
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) != "require":
                continue
            if not isinstance(node.args[0], ast.Constant):
                continue  # a loop over names that are required elsewhere too
            wanted, given = node.args[0].value, {k.arg: k.value for k in node.keywords}
            package, extra = wanted.split(".")[0], given["extra"].value
            package = {"PIL": "pillow"}.get(package, package)
            listed = [line for line in installed if re.search(rf"extra == .{extra}.$", line)]
            assert any(line.startswith(package) for line in listed), f"{extra} lacks {package}"
            assert node.col_offset > 0, f"{module.path} requires {wanted} at the top"


def test_every_package_is_there_after_one_import():
    named = ", ".join(f"advkit.{package}" for package in sorted(PACKAGES))
    subprocess.run([sys.executable, "-c", f"import advkit; {named}"], check=True)


def test_files_are_short():
    lengths = {name: len(module.text.splitlines()) for name, module in MODULES.items()}
    assert {name: n for name, n in lengths.items() if n > MOST_LINES} == {}


def test_functions_are_short():
    lengths = dict(function_lengths(MODULES))
    assert {name: n for name, n in lengths.items() if n > MOST_CODE} == {}
    assert np.percentile(list(lengths.values()), 90) <= MOST_OF_NINE_IN_TEN


class TestTheseTestsThemselves:
    """A package with each fault: none of them may pass."""

    @pytest.fixture
    def package(self, tmp_path):
        def made(**files):
            root = tmp_path / "package"
            root.mkdir()
            for name, text in files.items():
                (root / f"{name}.py").write_text(text)
            return read_all(root)

        return made

    def test_a_cycle_of_types_is_a_cycle(self, package):
        guarded = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import package.a\n"
        modules = package(a="from package import b", b="def f():\n    import package.c", c=guarded)
        assert cycle(modules) == ["package.a", "package.b", "package.c"]
        assert cycle({n: m for n, m in modules.items() if n != "package.c"}) is None

    @pytest.mark.parametrize(
        ("use", "found"),
        [
            ("from package.a import _f", ["package.a._f"]),
            ("from package import a\na._f()", ["a._f in line 2"]),
            ("def g(thing):\n    return thing._step()", ["thing._step in line 2"]),
            ("def g(thing):\n    return thing.inner._level", ["thing.inner._level in line 2"]),
            ("class B:\n    def g(self):\n        return self._step() + super()._step()", []),
            ("def g(row):\n    return row._replace(x=1)", []),
            (
                "class B:\n    def _step(self, attack):\n        return attack._step()",
                ["attack._step in line 3"],
            ),
            ("class B:\n    def g(self):\n        o = copy(self)\n        o._step()", []),
            (
                "class B:\n    def g(self):\n        o = copy(self.a)\n        o._step()",
                ["o._step in line 4"],
            ),
        ],
    )
    def test_private_names(self, package, use, found):
        theirs = "def _f(): ...\nclass A:\n    def _step(self):\n        self._level = 1\n"
        assert list(private_names_of_others("package.b", package(a=theirs, b=use))) == found

    def test_what_is_counted_of_a_function(self, package):
        words = '    """Words\n    and more."""\n\n    # why\n'
        text = f"def f(\n    a,\n):\n{words}    return (\n        a)\n"
        assert dict(function_lengths(package(a=text))) == {"package.a.f in line 1": 5}
