"""Joining seeds: means, the best baseline by validation, verdicts, and how they are printed."""

import sys
from pathlib import Path

import pytest
from small_report import report

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

from _seeds import Goal, beside_line, goal_line, join


def test_the_best_baseline_is_the_best_on_validation_not_on_test() -> None:
    reports = [
        report(0.36, {"ease": (0.34, 0.30), "ials": (0.35, 0.29)}),
        report(0.38, {"ease": (0.36, 0.31), "ials": (0.37, 0.28)}),
    ]

    joined = join(Goal("t", "ndcg@10"), reports)

    assert joined is not None
    assert joined.best == "ease"
    assert joined.value == pytest.approx(0.37)
    assert joined.baselines == pytest.approx({"ease": 0.35, "ials": 0.36})
    # .36 / .34 - 1 = .05882, .38 / .36 - 1 = .05556; half their distance times sqrt(2).
    gap = joined.gaps["ease"]
    assert gap.value == pytest.approx((0.0588235 + 0.0555556) / 2)
    assert gap.deviation == pytest.approx((0.0588235 - 0.0555556) / 2**0.5, rel=1e-4)
    assert (gap.low, gap.high) == pytest.approx((gap.value - 0.02, gap.value + 0.02))


def test_validation_errors_choose_the_smallest_and_folds_are_averaged() -> None:
    tree = report(0.89, {"mean": (1.1, 0.0), "bias": (0.93, 0.0)}, metric="rmse")
    tree["tuned"] = {
        "mean, fold 0": {"t": {"validation_rmse": 1.1}},
        "mean, fold 1": {"t": {"validation_rmse": 0.90}},
        "bias, fold 0": {"t": {"validation_rmse": 0.94}},
        "bias, fold 1": {"t": {"validation_rmse": 0.94}},
    }

    joined = join(Goal("t", "rmse"), [tree])

    # Means 1.00 and .94.
    assert joined is not None
    assert joined.best == "bias"
    assert joined.gaps["bias"].deviation is None


def test_without_a_validation_figure_there_is_no_best_baseline() -> None:
    tree = report(0.4, {"ease": (0.3, 0.3)})
    del tree["tuned"]["ease"]["t"]["validation_ndcg@10"]

    joined = join(Goal("t", "ndcg@10", gain=0.03), [tree])

    assert joined is not None
    assert joined.best is None
    assert joined.is_aim_met is None


def test_a_figure_that_some_report_lacks_is_not_joined() -> None:
    tree = report(0.4, {"ease": (0.3, 0.3)})

    assert join(Goal("t", "hr@10"), [tree]) is None
    assert join(Goal("other", "ndcg@10"), [tree]) is None


@pytest.mark.parametrize(
    ("goal", "model", "holds", "aim"),
    [
        (Goal("t", "ndcg@10", at_least=0.35, aim=0.40), 0.36, True, False),
        (Goal("t", "ndcg@10", at_least=0.35, aim=0.40), 0.40, True, True),
        (Goal("t", "ndcg@10", at_least=0.35, aim=0.40), 0.34, False, False),
        # ease .34, ials .35: at least as good as both.
        (Goal("t", "ndcg@10", beat=("ease", "ials")), 0.345, False, None),
        (Goal("t", "ndcg@10", beat=("ease", "ials")), 0.355, True, None),
        (Goal("t", "ndcg@10", beat=("ease", "unmeasured")), 0.355, None, None),
        # +3 % over ease is .3502; the interval's low end is above 0 from +2 % on.
        (Goal("t", "ndcg@10", gain=0.03), 0.350, None, False),
        (Goal("t", "ndcg@10", gain=0.03), 0.351, None, True),
        (Goal("t", "ndcg@10", gain=0.01), 0.345, None, False),
        # .36 over .35 is +2.9 %, its low end +.9 %; .355 is +1.4 %, its low end below 0.
        (Goal("t", "ndcg@10", aim=0.35, aim_over=("ease", "ials")), 0.36, None, True),
        (Goal("t", "ndcg@10", aim=0.35, aim_over=("ease", "ials")), 0.355, None, False),
        (Goal("t", "ndcg@10", aim=0.35, aim_over=("unmeasured",)), 0.36, None, None),
    ],
)
def test_verdicts(goal: Goal, model: float, holds: bool | None, aim: bool | None) -> None:
    joined = join(goal, [report(model, {"ease": (0.34, 0.3), "ials": (0.35, 0.2)})])

    assert joined is not None
    assert (joined.holds, joined.is_aim_met) == (holds, aim)


@pytest.mark.parametrize(("model", "holds", "aim"), [(0.89, True, True), (0.91, False, False)])
def test_of_errors_the_bound_is_the_largest_allowed(model: float, holds: bool, aim: bool) -> None:
    tree = report(model, {"bias": (0.93, 0.93)}, metric="rmse", tuned_by="rmse")

    joined = join(Goal("t", "rmse", at_least=0.905, aim=0.895, aim_over=("bias",)), [tree])

    assert joined is not None
    assert (joined.holds, joined.is_aim_met) == (holds, aim)


def test_the_line_of_a_goal_says_all_of_it() -> None:
    reports = [report(0.36, {"ease": (0.34, 0.3)}), report(0.38, {"ease": (0.36, 0.3)})]
    joined = join(Goal("t", "ndcg@10", beat=("ease",), gain=0.03), reports)

    assert joined is not None
    assert goal_line("P3", "ML-100K", joined) == (
        "| P3 | ML-100K | ndcg@10 (t) | .3700 ± .0141 | ease .3500 | +5.7 % ± 0.2 [+3.7, +7.7] | "
        "ease | +3 %, interval beyond 0 | aim |"
    )


def test_the_line_of_an_error_turns_the_bounds_round() -> None:
    tree = report(0.90, {"bias": (1.0, 0.93)}, metric="rmse", tuned_by="rmse")
    joined = join(Goal("t", "rmse", at_least=0.905, aim=0.895), [tree])

    assert joined is not None
    assert goal_line("P1b", "five folds", joined) == (
        "| P1b | five folds | rmse (t) | .9000 | bias 1.0000 | -10.0 % [-12.0, -8.0] | "
        "≤ .905 | ≤ .895 | at least |"
    )


def test_what_stands_beside_accuracy_is_averaged_and_absent_where_unmeasured() -> None:
    reports = [
        {"model": {"r": {"coverage@10": 0.2, "novelty@10": 9.0}, "like": {"ece": 0.02}}},
        {"model": {"r": {"coverage@10": 0.4, "novelty@10": 10.0}, "like": {"ece": 0.04}}},
    ]

    assert beside_line("P3", reports, [100.0]) == "| P3 | 2 | 0.300 | 9.500 |  | 0.030 | 100 |"
    assert beside_line("P3", reports[:1], []) == "| P3 | 1 | 0.200 | 9.000 |  | 0.020 |  |"
