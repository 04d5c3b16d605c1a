"""Files that are cut or have a flipped bit are refused, or read as if nothing had happened."""

import random

import pytest

from advkit.cli import demo

from .file_kinds import KINDS, DemoCache, same

CUTS, FLIPS = 30, 100


def damages(whole):
    """Cut `whole` at 30 places, and flip 100 of its bits, one at a time."""
    for i in range(CUTS):
        at = i * len(whole) // CUTS
        yield f"cut at {at}", whole[:at]
    draw = random.Random(0)
    for _ in range(FLIPS):
        at, bit = draw.randrange(len(whole)), draw.randrange(8)
        yield (
            f"bit {bit} of byte {at}",
            whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :],
        )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_damage_is_refused_or_harmless(kind, tmp_path, tally):
    path = tmp_path / f"file{getattr(kind, 'suffix', '.npz')}"
    kind.write(path)
    whole, wanted = path.read_bytes(), kind.read(path)
    damage = tally(f"{kind.name}: damage is refused or harmless")
    refused = 0
    for name, content in damages(whole):
        with damage.trial(name):
            path.write_bytes(content)
            try:
                found = kind.read(path)
            except kind.errors as error:
                assert path.name in str(error)  # noqa: PT017 - either of two ends is right
                refused += 1
            else:
                assert same(found, wanted)
            assert path.read_bytes() == content
    assert refused > CUTS


def test_a_damaged_cache_is_trained_again(tmp_path, tally, monkeypatch, capsys):
    kind = DemoCache()
    monkeypatch.setenv("ADVKIT_CACHE", str(tmp_path))
    monkeypatch.setattr(demo, "_train", kind.train)
    kind.write(tmp_path)
    (path,) = tmp_path.iterdir()
    whole, wanted = path.read_bytes(), kind.read(tmp_path)
    assert kind.trained == 1
    damage = tally("cached net: damage is harmless, or the net is trained again")
    for name, content in damages(whole):
        with damage.trial(name):
            path.write_bytes(content)
            before = kind.trained
            assert same(kind.read(tmp_path), wanted)
            said = capsys.readouterr().err
            assert ("is trained again" in said) == (kind.trained > before)
    assert kind.trained > CUTS
