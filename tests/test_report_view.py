"""What a page reads from a report, on a small tree of which the answers are plain."""

import pytest

from mtrec.report_view import ReportView

REPORT = {
    "protocol": {
        "tasks": {"click": "retrieval", "stars": "regression", "like": "binary"},
        "k": 5,
        "lower_is_better": ["rmse"],
    },
    "model": {"click": {"ndcg@5": 0.3}, "stars": {"rmse": 0.9}},
    "baselines": {
        "popularity": {"click": {"ndcg@5": 0.1}},
        "ease": {"click": {"ndcg@5": 0.2}},
        "mean": {"stars": {"rmse": 1.1}},
        "bias": {"stars": {"rmse": 1.0}},
    },
    "intervals": {"model": {"click": {"ndcg@5": [0.25, 0.35]}}},
}
VIEW = ReportView(REPORT)


def test_methods_of_a_task_are_those_with_figures_the_model_first() -> None:
    assert VIEW.methods("click")[1:] == ["popularity", "ease"]
    assert VIEW.methods("stars")[1:] == ["mean", "bias"]
    assert VIEW.values("bias", "stars") == {"rmse": 1.0}
    assert VIEW.values(VIEW.methods("click")[0], "click") == {"ndcg@5": 0.3}


def test_an_interval_is_given_where_there_is_one() -> None:
    assert VIEW.interval("model", "click", "ndcg@5") == (0.25, 0.35)
    assert VIEW.interval("ease", "click", "ndcg@5") == (None, None)


@pytest.mark.parametrize(
    ("task", "metric", "best", "direction"),
    [
        ("click", "ndcg@5", "ease", "higher is better"),
        ("stars", "rmse", "bias", "lower is better"),
        ("like", "auc", None, "higher is better"),
    ],
)
def test_the_best_baseline_is_the_one_on_the_good_side(task, metric, best, direction) -> None:
    assert VIEW.best_baseline(task, metric) == best
    assert VIEW.direction(metric) == direction


def test_each_kind_of_task_has_its_metrics() -> None:
    shown = [VIEW.main_metrics(kind) for kind in ("retrieval", "social", "regression", "binary")]
    assert shown == [["ndcg@5", "hr@5"], ["ndcg@5", "hr@5"], ["rmse"], ["auc"]]


def test_slices_show_the_model_the_best_baseline_and_popularity_each_once() -> None:
    model = VIEW.methods("click")[0]
    assert VIEW.shown_in_slices("click") == [model, "ease", "popularity"]
    assert VIEW.shown_in_slices("stars") == [model, "bias"]


def test_losses_are_in_the_order_of_the_tasks() -> None:
    names = ["loss/like", "loss/content", "loss/click", "loss/stars"]
    expected = ["loss/click", "loss/stars", "loss/like", "loss/content"]
    assert sorted(names, key=VIEW.task_order) == expected
