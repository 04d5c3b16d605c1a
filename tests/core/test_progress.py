"""The progress bar."""

import sys

import pytest

from advkit.core.progress import progress_bar


def test_progress_goes_to_standard_error_and_only_when_asked(capsys):
    with progress_bar("attack", 3, show=False) as advance:
        advance(2)
    assert capsys.readouterr() == ("", "")
    with progress_bar("attack", 3, show=True) as advance:
        advance(2)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "attack" in shown.err
    assert "2/3" in shown.err


def test_progress_without_tqdm_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with (
        pytest.raises(ImportError, match=r"the extra .report. of advkit"),
        progress_bar("a", 1, show=True),
    ):
        pass
