"""Table of the benchmarks for made-up figures."""

import math

import numpy as np
import pytest
from benchmarks import nearest
from benchmarks.table import Entry, Figures, advantages, cell, check, comparison, tables


def entry(name, ours=False, limits=None, chance=0.0, **figures):
    return Entry("attacks", "a job", name, ours, Figures(**figures), limits or {}, chance=chance)


def test_the_file_of_distances_holds_every_peer():
    keys = {
        f"{case.name}/{norm}/{steps}/{peer}"
        for case in nearest.CASES
        for norm in nearest.NORMS
        for steps in nearest.STEPS
        for peer in nearest.peers(norm, steps)
    }
    with np.load(nearest.FILE) as file:
        assert set(file.files) == keys
        assert {len(file[key]) for key in keys} == {32, 64}


OURS = entry("advkit", ours=True, success=1.0, distance=1.54, passes=10.0)


@pytest.mark.parametrize(
    ("peer", "said"),
    [
        ({"success": 1.0, "distance": 1.6, "passes": 40.0}, []),
        ({"success": 1.0, "distance": 1.5401, "passes": 10.0}, []),
        ({"success": 0.9, "distance": 1.2, "passes": 40.0}, []),
        ({"success": 1.0, "distance": 1.5, "passes": 40.0}, ["weaker than peer"]),
        ({"success": 1.0, "distance": 1.6, "passes": 9.0}, ["11 % slower than peer"]),
        ({"success": 1.0, "distance": 1.6, "passes": 9.8}, []),  # as two runs of one job differ
        (
            {"success": 1.0, "distance": 1.5, "passes": 5.0},
            ["weaker than peer", "100 % slower than peer"],
        ),
        ({"success": 0.0, "distance": math.inf, "passes": 20.0}, []),
    ],
)
def test_who_is_ahead(peer, said):
    assert advantages(OURS, [entry("peer", **peer)]) == said


def test_more_successes_count_before_the_distance_and_beyond_chance():
    ours = entry("advkit", ours=True, success=0.57, distance=1.0, chance=0.03)
    assert advantages(ours, [entry("peer", success=0.59, distance=2.0)]) == []
    assert advantages(ours, [entry("peer", success=0.61, distance=2.0)]) == ["weaker than peer"]


def test_seconds_count_without_passes():
    ours = entry("advkit", ours=True, seconds=2.0)
    assert advantages(ours, [entry("peer", seconds=1.0)]) == ["100 % slower than peer"]


def test_a_peer_that_failed_is_not_faster():
    failed = Entry("attacks", "a job", "peer", False, Figures(0.0, math.inf, 0.1), remark="failed")
    assert advantages(OURS, [failed]) == []


@pytest.mark.parametrize(
    ("limits", "missed"),
    [
        ({"passes": 10.0, "success": 1.0}, False),
        ({"passes": 9.9}, True),
        ({"success": 1.1}, True),
        ({"mib": 1.0}, False),  # not measured
    ],
)
def test_limits(limits, missed):
    held = entry("advkit", ours=True, limits=limits, success=1.0, passes=10.0)
    assert comparison(held, []).startswith("MISSED" if missed else "limits kept")
    if missed:
        with pytest.raises(AssertionError, match="advkit, a job: (passes|success)"):
            check(held)
    else:
        check(held)


def test_a_table_names_the_job_once_and_lists_peers_from_the_fastest_on():
    peers = [entry("slow", passes=40.0), entry("fast", passes=20.0)]
    text = tables([peers[0], OURS, peers[1]])
    lines = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")]
    assert lines == ["", "---", "**a job**", "advkit", "fast", "slow"]
    assert "In 1 of 1 jobs" in text
    assert "with limits" not in text
    assert "jobs" not in tables([OURS])


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("seconds", 0.000077, "0.077 ms"),
        ("seconds", 0.43, "430 ms"),
        ("seconds", 152.2, "152 s"),
        ("passes", 1234.5, "1,234"),
        ("distance", 0.08534, "0.0853"),
        ("distance", math.inf, "inf"),
        ("success", 0.9531, "0.953"),
        ("overhead", 0.0491, "4.9 %"),
        ("mib", None, ""),
    ],
)
def test_cells(name, value, shown):
    assert cell(name, value) == shown
