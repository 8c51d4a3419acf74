"""Joining seeds: means, the best baseline by validation, verdicts, and how they are printed."""

import sys
from pathlib import Path

import pytest
from small_report import report

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

from _seeds import Goal, beside_line, goal_line, join, part_line, report_of_twins


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


def test_of_baselines_that_nobody_tuned_the_best_on_test_counts() -> None:
    tree = report(0.4, {"few": (0.3, 0.3), "many": (0.35, 0.3), "some": (0.32, 0.3)})
    tree["tuned"].clear()
    goal = Goal("t", "ndcg@10", gain=0.03)

    joined = join(goal, [tree])
    assert joined is not None
    assert joined.best == "many"
    assert joined.is_aim_met
    # Of errors the smallest is the hardest to beat.
    errors = {"few": 0.9, "many": 1.1}
    of_errors = {
        "model": {"t": {"rmse": 0.8}},
        "baselines": {name: {"t": {"rmse": value}} for name, value in errors.items()},
        "differences": {},
        "tuned": {},
    }
    smallest = join(Goal("t", "rmse"), [of_errors])
    assert smallest is not None and smallest.best == "few"
    # One that was tuned is compared with none that was not.
    tuned = join(goal, [report(0.4, {"ease": (0.3, 0.3)})])
    assert tuned is not None and tuned.best == "ease"
    alone = join(goal, [{**tree, "baselines": {}}])
    assert alone is not None and alone.best is None and alone.is_aim_met is None


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


@pytest.mark.parametrize(
    ("model", "holds", "aim"), [(0.361, True, True), (0.353, True, False), (0.351, False, False)]
)
def test_beside_another_model_bounds_are_of_the_ratio(model: float, holds: bool, aim: bool) -> None:
    # .88 of .40 is .352, .90 of it .36; that ease is better on validation does not matter.
    goal = Goal("t", "ndcg@10", at_least=0.88, aim=0.90, beside="twin")
    joined = join(goal, [report(model, {"ease": (0.2, 0.9), "twin": (0.40, 0.1)})])

    assert joined is not None
    assert joined.best == "twin"
    assert (joined.holds, joined.is_aim_met) == (holds, aim)


@pytest.mark.parametrize(
    ("metric", "model", "half", "holds", "aim"),
    [
        # -1 %, surely lost; -5 %, surely and perhaps; +1 %.
        ("ndcg@10", 0.99, 0.001, True, False),
        ("ndcg@10", 0.95, 0.01, False, False),
        ("ndcg@10", 0.95, 0.06, True, True),
        ("ndcg@10", 1.01, 0.001, True, True),
        # An error that is 1 % or 5 % higher is lost, one that is 5 % lower is not.
        ("rmse", 1.01, 0.001, True, False),
        ("rmse", 1.05, 0.01, False, False),
        ("rmse", 0.95, 0.01, True, True),
    ],
)
def test_a_loss_counts_if_it_is_significant_and_too_large(
    metric: str, model: float, half: float, holds: bool, aim: bool
) -> None:
    goal = Goal("t", metric, beside="twin", max_loss=0.02)
    joined = join(goal, [report(model, {"twin": (1.0, 0.1)}, metric=metric, half=half)])

    assert joined is not None
    assert (joined.holds, joined.is_aim_met) == (holds, aim)


def test_the_comparison_with_twins_has_the_form_of_a_report() -> None:
    change = {"difference": -0.02, "interval": [-0.03, -0.01]}
    relative = {"relative": -0.05, "relative_interval": [-0.075, -0.025]}
    tree = {
        "tasks": {
            "t": {"metric": "ndcg@10", "joint": 0.38, "twin": 0.40, **change, **relative},
            "never": {"metric": "ndcg@10", "joint": 0.1, "twin": 0.0, **change},
        }
    }

    found = report_of_twins(tree)

    goal = Goal("t", "ndcg@10", beside="twin", max_loss=0.02)
    joined = join(goal, [found])
    assert joined is not None
    assert (joined.value, joined.baselines) == (0.38, {"twin": 0.40})
    assert goal_line("M1", "x", joined) == (
        "| M1 | x | ndcg@10 (t) | .3800 | twin .4000 | -5.0 % [-7.5, -2.5] | "
        "no significant loss above 2 % | no significant loss | no |"
    )
    undefined = join(Goal("never", "ndcg@10", beside="twin", max_loss=0.02), [found])
    assert undefined is not None
    assert undefined.holds is None


def test_the_line_of_a_ratio_names_what_it_is_of() -> None:
    goal = Goal("t", "ndcg@10", at_least=0.9, aim=0.95, beside="trained_on")
    joined = join(goal, [report(0.38, {"trained_on": (0.40, 0.1)})])

    assert joined is not None
    assert goal_line("C2", "x", joined) == (
        "| C2 | x | ndcg@10 (t) | .3800 | trained_on .4000 | -5.0 % [-7.0, -3.0] | "
        "≥ .9 of trained_on | ≥ .95 of trained_on | aim |"
    )


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


def test_beside_next_to_nothing_a_difference_is_told_in_times() -> None:
    joined = join(Goal("t", "ndcg@10"), [report(0.3, {"none": (0.01, 0.3)}, half=7.0)])

    assert joined is not None
    assert part_line("A", "ML-100K", joined) == (
        "| A | ML-100K | ndcg@10 (t) | .3000 | none .0100 | 30 times [23, 37] |"
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
