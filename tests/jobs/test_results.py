"""`results.json` as promised: ratios, verdicts, and no key for what was not measured."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

from _results import Results, machine


def rows(out: Path) -> list[dict[str, object]]:
    tree = json.loads((out / "results.json").read_text())
    assert set(tree) == {"machine", "command", "rows"}
    found = tree["rows"]
    assert isinstance(found, list)
    return found


def test_a_row_with_a_peer_holds_the_ratio_and_whether_the_floor_holds(tmp_path: Path) -> None:
    results = Results(tmp_path, "python jobs/benchmark.py")

    results.add(
        "embed",
        "texts_per_s",
        150.0,
        peer="other",
        peer_value=100.0,
        interval=(1.4, 1.6),
        at_least=1.5,
        aim=2.0,
    )

    assert rows(tmp_path) == [
        {
            "row": "embed",
            "metric": "texts_per_s",
            "value": 150.0,
            "peer": "other",
            "peer_value": 100.0,
            "ratio": 1.5,
            "low": 1.4,
            "high": 1.6,
            "at_least": 1.5,
            "aim": 2.0,
            "ok": True,
        }
    ]


def test_a_floor_without_a_peer_judges_the_value(tmp_path: Path) -> None:
    results = Results(tmp_path, "x")
    results.add("P3", "ndcg@10", 0.34, at_least=0.347)

    assert rows(tmp_path)[0]["ok"] is False


def test_a_verdict_that_is_given_stands(tmp_path: Path) -> None:
    results = Results(tmp_path, "x")
    results.add("M1", "ndcg@10", 0.34, peer="twin", peer_value=0.35, at_least=0.98, ok=True)

    (row,) = rows(tmp_path)
    assert (row["at_least"], row["ok"]) == (0.98, True)


def test_of_errors_the_floor_is_the_largest_allowed(tmp_path: Path) -> None:
    results = Results(tmp_path, "x")
    results.add("P1b", "rmse", 0.90, at_least=0.905, lower_is_better=True)
    results.add("P1b", "rmse", 0.90, peer="bias", peer_value=0.8, at_least=1, lower_is_better=True)

    value, ratio = rows(tmp_path)
    assert (value["ok"], value["lower_is_better"]) == (True, True)
    assert (ratio["ok"], ratio["lower_is_better"]) == (False, True)


def test_a_floor_can_be_about_the_value_although_there_is_a_peer(tmp_path: Path) -> None:
    results = Results(tmp_path, "x")
    results.add("P4", "ndcg", 0.49, peer="ease", peer_value=0.5, at_least=0.48, judge_value=True)

    (row,) = rows(tmp_path)
    assert (row["ratio"], row["judged"], row["ok"]) == (0.98, "value", True)


def test_what_was_not_measured_has_no_key(tmp_path: Path) -> None:
    results = Results(tmp_path, "x")
    results.add("train", "wall_s", 12.5, peer="not installed", peer_value=None)

    assert rows(tmp_path) == [{"row": "train", "metric": "wall_s", "value": 12.5}]


def test_the_table_has_a_line_for_each_row_and_only_columns_in_use(tmp_path: Path) -> None:
    results = Results(tmp_path, "python jobs/benchmark.py")
    results.add("train", "wall_s", 12.5)
    results.add("serve", "p50_ms", 2.0, peer="bare", peer_value=4.0)

    assert (tmp_path / "results.md").read_text().splitlines()[-4:] == [
        "| row | metric | value | peer | peer_value | ratio |",
        "|---|---|---|---|---|---|",
        "| train | wall_s | 12.5 |  |  |  |",
        "| serve | p50_ms | 2 | bare | 4 | 0.5 |",
    ]


def test_a_figure_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        Results(tmp_path, "x").add("train", "wall_s", float("nan"))


def test_the_machine_is_described_without_its_name() -> None:
    import platform

    found = machine()

    assert found["ray"] == "2.60.0"
    assert int(found["cpus"]) >= 1
    assert platform.node() not in json.dumps(found)
