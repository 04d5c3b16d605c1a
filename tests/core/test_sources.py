"""Names of classes and functions."""

from advkit.core.sources import qualified_name


def test_a_script_has_one_name_in_all_processes():
    names = {
        qualified_name(type("Net", (), {"__module__": m})) for m in ("__main__", "__mp_main__")
    }
    assert names == {"__main__.Net"}


def test_other_names():
    assert qualified_name(dict) == "builtins.dict"
    assert qualified_name(qualified_name) == "advkit.core.sources.qualified_name"
