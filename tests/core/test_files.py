"""Files that are whole or absent."""

import pytest

from advkit.core.files import replacing


def test_a_file_appears_whole(tmp_path):
    target = tmp_path / "new" / "deep" / "report.json"
    with replacing(target) as temporary:
        temporary.write_text("done")
        assert not target.exists()
    assert target.read_text() == "done"
    assert [p.name for p in target.parent.iterdir()] == ["report.json"]


def test_a_failure_leaves_the_old_one(tmp_path):
    target = tmp_path / "report.json"
    target.write_text("old")

    def fail():
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
