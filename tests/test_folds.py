"""Joined reports of folds: means, deviations and corrected intervals, worked out by hand."""

from typing import Any

import pytest

from mtrec.folds import join_reports
from mtrec.report_page import render_html
from mtrec.report_text import summary_table


def report(ndcg: float, popular: float, *, rmse: float | None = 1.0) -> dict[str, Any]:
    model: dict[str, Any] = {"next": {"ndcg@10": ndcg}}
    if rmse is not None:
        model["rating"] = {"rmse": rmse}
    return {
        "protocol": {
            "ranking": "the whole catalogue",
            "data": "log.csv",
            "users": 4,
            "items": 9,
            "events": {"train": 10, "validation": 1, "test": 3},
            "split": "k_fold",
            "seed": 0,
            "k": 10,
            "tasks": {"next": "retrieval", "rating": "regression"},
            "intervals": "bootstrap",
            "lower_is_better": ["rmse"],
        },
        "model": model,
        "baselines": {"popularity": {"next": {"ndcg@10": popular}}},
        "tuned": {"popularity": {"next": {"settings": {"window": 3.0}, "tried": 2}}},
        "notes": ["aloud"],
    }


def test_means_and_deviations_over_folds() -> None:
    joined: Any = join_reports([report(0.2, 0.1), report(0.4, 0.2), report(0.3, 0.3)])

    # Mean 0.3; deviation of 0.2, 0.4, 0.3 with n - 1 is 0.1.
    assert joined["model"]["next"]["ndcg@10"] == pytest.approx(0.3)
    assert joined["intervals"]["model"]["next"]["ndcg@10"] == pytest.approx([0.2, 0.4])
    told = joined["folds"]["model"]["next"]["ndcg@10"]
    assert told == {
        "mean": pytest.approx(0.3),
        "deviation": pytest.approx(0.1),
        "values": [0.2, 0.4, 0.3],
    }
    assert joined["baselines"]["popularity"]["next"]["ndcg@10"] == pytest.approx(0.2)
    assert joined["protocol"]["folds"] == 3
    assert joined["notes"] == ["aloud"]
    assert joined["tuned"]["popularity, fold 2"]["next"]["settings"] == {"window": 3.0}


def test_differences_are_paired_and_their_interval_is_corrected() -> None:
    joined: Any = join_reports([report(0.2, 0.1), report(0.4, 0.2), report(0.3, 0.3)])

    entry = joined["differences"]["popularity"]["next"]["ndcg@10"]
    # Gaps 0.1, 0.2, 0: mean 0.1, deviation 0.1. The 97.5 % point of t with 2 degrees of freedom is
    # 4.302653; the factor sqrt(1/3 + 1/2) = 0.912871.
    assert entry["difference"] == pytest.approx(0.1)
    reach = 4.302653 * 0.912871 * 0.1
    assert entry["interval"] == pytest.approx([0.1 - reach, 0.1 + reach], rel=1e-5)
    # Relative gaps 1, 1, 0.
    assert entry["relative"] == pytest.approx(2 / 3)


def test_counts_are_means_and_notes_name_their_folds() -> None:
    reports = [report(0.2, 0.1), report(0.4, 0.2), report(0.3, 0.3)]
    for number, tree in enumerate(reports):
        tree["protocol"] |= {"items": 9 + number, "events": {"train": 10 + 2 * number}}
    reports[0]["notes"] = ["aloud", "first"]
    reports[1]["notes"] = ["aloud", "later"]
    reports[2]["notes"] = ["later", "aloud"]
    joined: Any = join_reports(reports)

    assert (joined["protocol"]["items"], joined["protocol"]["events"]) == (10, {"train": 12})
    assert joined["protocol"]["split"] == "k_fold"
    assert joined["notes"] == ["aloud", "fold 1: first", "folds 2, 3: later"]


def test_a_figure_that_a_fold_lacks_is_left_out() -> None:
    joined: Any = join_reports([report(0.2, 0.1), report(0.4, 0.2, rmse=None)])

    assert joined["model"] == {"next": {"ndcg@10": pytest.approx(0.3)}, "rating": {}}


def test_a_joined_report_is_shown_like_any_other() -> None:
    joined = join_reports([report(0.2, 0.1), report(0.4, 0.2)])

    assert "0.3000" in summary_table(joined)
    page = render_html(joined)
    assert "standard deviation over 2 folds" in page
    assert "popularity" in page
