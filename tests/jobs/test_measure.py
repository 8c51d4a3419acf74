"""The measuring itself: pairs by turns, ratios, memory of a whole process tree."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

from _measure import add_pair, in_turn, memory_mib, peak_memory, process_tree
from _results import Results

LINUX = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def test_pairs_are_measured_in_turn_and_who_is_first_changes() -> None:
    order: list[str] = []

    def sample(name: str) -> dict[str, float]:
        order.append(name)
        return {"x": float(len(order))}

    ours, theirs = in_turn(lambda: sample("ours"), lambda: sample("peer"), 3)

    assert order == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert [entry["x"] for entry in ours] == [1, 4, 5]
    assert [entry["x"] for entry in theirs] == [2, 3, 6]


def test_a_pair_is_reported_as_medians_and_the_span_of_its_ratios(tmp_path: Path) -> None:
    pair = ([{"x": 2.0}, {"x": 4.0}, {"x": 9.0}], [{"x": 4.0}, {"x": 4.0}, {"x": 3.0}])

    add_pair(Results(tmp_path, "x"), "embed", "x", pair, "peer")

    (row,) = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert (row["value"], row["peer_value"], row["ratio"]) == (4.0, 4.0, 1.0)
    assert (row["low"], row["high"]) == (0.5, 3.0)
    assert "ok" not in row


def test_a_pair_is_judged_by_its_ratio(tmp_path: Path) -> None:
    results = Results(tmp_path, "x")
    pair = ([{"ms": 3.0}], [{"ms": 2.0}])
    add_pair(results, "serve", "ms", pair, "peer", at_least=1.5, aim=1.1, lower_is_better=True)
    add_pair(results, "serve", "ms", pair, "peer", at_least=1.4, lower_is_better=True)

    assert [row["ok"] for row in results.rows] == [True, False]


@LINUX
def test_a_process_tree_holds_grandchildren_and_no_strangers() -> None:
    grandchild = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {grandchild!r}])"
    process = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert process_tree(process.pid) == [process.pid, pid]
        assert {process.pid, pid} < set(process_tree(os.getpid()))
    finally:
        for each in reversed(process_tree(process.pid)):
            os.kill(each, 9)
        process.communicate()


@LINUX
def test_peak_memory_sees_what_a_child_holds() -> None:
    hold = "import time; held = b'x' * (100 << 20); print(len(held), flush=True); time.sleep(60)"
    with peak_memory(os.getpid()) as samples:
        process = subprocess.Popen([sys.executable, "-c", hold], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        while len(samples) < 2:
            time.sleep(0.05)
        before, count = max(samples), len(samples)
        while len(samples) < count + 2:
            time.sleep(0.05)
        process.kill()
        process.communicate()

    assert max(samples) >= before
    assert memory_mib([os.getpid()]) > 10
    assert max(samples) > 100
