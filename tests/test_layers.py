"""The layers: what each room may import, read off the source."""

import ast
from pathlib import Path

import advkit

ROOT = Path(advkit.__file__).parent
ROOMS = {"attacks", "defenses", "detectors", "eval"}
ALLOWED = {
    "core": set(),
    "models": {"core"},
    "training": {"core"},
    **{room: {"core", "models", "training"} for room in ROOMS},
    "data": {"core"},
}
EXTRAS = {
    *("matplotlib", "jinja2", "tqdm", "safetensors"),
    *("onnx", "onnxruntime", "lightgbm", "xgboost"),
    *("PIL", "skimage", "lightning"),
    *("foolbox", "torchattacks", "art"),
}


def imports(path):
    """Modules that the file at `path` imports, each with whether that is at its top level."""
    tree = ast.parse(path.read_text())
    top = set(map(id, tree.body))
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield node.module, id(node) in top
        elif isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)


def test_no_room_imports_what_stands_above_or_beside_it():
    seen = set()
    for path in ROOT.rglob("*.py"):
        home = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if home not in ALLOWED:
            continue
        seen.add(home)
        for name, _ in imports(path):
            if name == "advkit" or name.startswith("advkit."):
                room = name.split(".")[1] if "." in name else "advkit"
                assert room in ALLOWED[home] | {home}, f"{path} imports {name}"
    assert seen >= {"core", "models", "attacks", "defenses", "eval", "data"}


def test_extras_are_imported_where_they_are_used_and_nowhere_else():
    for path in ROOT.rglob("*.py"):
        for name, top in imports(path):
            assert not (top and name.split(".")[0] in EXTRAS), f"{path} imports {name} at the top"
