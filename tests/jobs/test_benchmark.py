"""A small run of the benchmark from its command line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

JOBS = Path(__file__).parents[2] / "jobs"


@pytest.mark.ray
@pytest.mark.slow
def test_a_small_run_measures_what_was_asked_for_and_leaves_no_process(tmp_path: Path) -> None:
    mark = f"bench-{os.getpid()}"
    command = [sys.executable, str(JOBS / "benchmark.py"), "--out", str(tmp_path)]
    done = subprocess.run(
        [*command, "--stage", "embed", "--stage", "serve"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MTREC_LOCAL_CLUSTER": mark},
    )
    assert done.returncode == 0, done.stderr[-3000:]

    found = json.loads((tmp_path / "results.json").read_text())["rows"]
    measured = {(row["row"], row["metric"]) for row in found}
    assert {("embed", "wall_s"), ("embed", "texts_per_s"), ("serve", "requests_per_s")} <= measured
    (soak,) = {row for row, _ in measured if row.startswith("soak")}
    assert {row for row, _ in measured} == {
        *("embed", "serve", "serve, batch of 64", "recommend, 2,000 items", soak),
    }
    values = {(row["row"], row["metric"]): row["value"] for row in found}
    assert (values[soak, "failed"], values[soak, "mixed_versions"]) == (0, 0)
    assert values[soak, "versions_seen"] == 2
    assert all(row["ratio"] > 0 for row in found if row["row"] == "serve")

    sys.path.insert(0, str(JOBS.parent / "cluster"))
    from local_cluster import marked_processes

    assert marked_processes(mark) == []
