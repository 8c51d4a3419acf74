"""What the tables of the quality job say of a figure, and how it is judged."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from small_report import report

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

from _results import Results
from _seeds import Goal, Joined, join
from _tables import add_result

Tree = dict[str, Any]


def joined(goal: Goal, tree: Tree) -> Joined:
    found = join(goal, [tree])
    assert found is not None
    return found


def results_of(out: Path, *figures: Joined) -> list[Tree]:
    results = Results(out, "x")
    for figure in figures:
        add_result(results, "P", figure)
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert isinstance(rows, list)
    return rows


def test_a_fixed_bound_is_judged_by_the_value_beside_the_best_baseline(tmp_path: Path) -> None:
    goal = Goal("t", "ndcg@10", at_least=0.35, aim=0.40)

    (row,) = results_of(tmp_path, joined(goal, report(0.36, {"ease": (0.30, 0.3)})))

    assert row == {
        **{"row": "P", "metric": "ndcg@10", "value": 0.36, "peer": "ease", "peer_value": 0.3},
        **{"ratio": pytest.approx(1.2), "low": pytest.approx(1.18), "high": pytest.approx(1.22)},
        **{"at_least": 0.35, "aim": 0.4, "judged": "value", "ok": True},
    }


def test_an_error_must_stay_below_its_bound(tmp_path: Path) -> None:
    goal = Goal("t", "rmse", at_least=0.905, aim=0.895)
    trees = [
        report(model, {"bias": (0.93, 0.93)}, metric="rmse", tuned_by="rmse")
        for model in (0.90, 0.91)
    ]

    rows = results_of(tmp_path, *(joined(goal, tree) for tree in trees))

    assert [(row["ok"], row["lower_is_better"]) for row in rows] == [(True, True), (False, True)]


def test_the_hardest_of_those_to_beat_is_judged_beside_the_best_by_validation(
    tmp_path: Path,
) -> None:
    goal = Goal("t", "ndcg@10", beat=("ease", "ials"), gain=0.03)
    tree = report(0.36, {"slim": (0.33, 0.5), "ease": (0.34, 0.4), "ials": (0.37, 0.3)})

    best, hardest = results_of(tmp_path, joined(goal, tree))

    assert (best["peer"], best["aim"]) == ("slim", 1.03)
    assert {"at_least", "ok", "judged"}.isdisjoint(best)
    assert (hardest["peer"], hardest["at_least"], hardest["ok"]) == ("ials", 1.0, False)


def test_where_the_best_is_the_hardest_to_beat_one_line_says_both(tmp_path: Path) -> None:
    goal = Goal("t", "ndcg@10", beat=("ease",), gain=0.03)

    (row,) = results_of(tmp_path, joined(goal, report(0.36, {"ease": (0.34, 0.4)})))

    assert (row["at_least"], row["aim"], row["ok"]) == (1.0, 1.03, True)


def test_beside_a_twin_the_ratio_is_told_and_the_verdict_is_of_the_loss(tmp_path: Path) -> None:
    # -5 %, but nobody knows; an error that is 1 % higher, surely.
    trees = [
        report(0.38, {"twin": (0.40, 0.1)}, half=0.06),
        report(1.01, {"twin": (1.0, 0.1)}, metric="rmse", half=0.001),
    ]
    goals = (Goal("t", metric, beside="twin", max_loss=0.02) for metric in ("ndcg@10", "rmse"))

    first, second = results_of(tmp_path, *map(joined, goals, trees))

    assert (first["peer"], first["ratio"]) == ("twin", pytest.approx(0.95))
    assert (first["at_least"], first["aim"], first["ok"]) == (0.98, 1.0, True)
    assert (second["at_least"], second["aim"], second["ok"]) == (1.02, 1.0, True)


def test_beside_a_model_that_knows_the_users_the_ratio_is_judged(tmp_path: Path) -> None:
    goal = Goal("t", "ndcg@10", at_least=0.9, aim=0.95, beside="trained_on")

    (row,) = results_of(tmp_path, joined(goal, report(0.35, {"trained_on": (0.40, 0.1)})))

    assert (row["ratio"], row["at_least"], row["ok"]) == (pytest.approx(0.875), 0.9, False)
    assert "judged" not in row
