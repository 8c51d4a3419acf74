"""Figures of several methods side by side, against values worked out by hand."""

import math

import numpy as np
import pytest

from mtrec import comparison
from mtrec.comparison import MODEL, Draws, ItemFacts, Rows
from mtrec.intervals import Figure
from mtrec.metrics import Relevance

DRAWS = Draws(samples=200, seed=0)


def _relevance(pairs: list[tuple[int, int]], num_users: int = 3) -> Relevance:
    user, item = np.array(pairs).T
    return Relevance.from_pairs(user, item.astype(np.int32), num_users=num_users, num_items=8)


def test_lists_are_measured_on_users_with_a_relevant_item_only() -> None:
    # Users 0 and 1 want items 2 and 3; user 2 wants nothing. The model finds both, at places 1, 2.
    relevance = _relevance([(0, 2), (1, 3)])
    lists = {
        MODEL: np.array([[2, 4], [4, 3], [7, 6]], np.int32),
        "popularity": np.array([[5, 4], [5, 4], [5, 4]], np.int32),
    }
    facts = ItemFacts(np.array([0, 0, 1, 1, 2, 4, 0, 0]), None)
    figures = comparison.compare_lists(lists, relevance, facts, DRAWS)
    assert figures[MODEL]["hr@2"].value == 1.0
    assert figures[MODEL]["ndcg@2"].value == pytest.approx((1 + 1 / math.log2(3)) / 2)
    assert figures["popularity"]["hr@2"].value == 0.0
    assert figures[MODEL]["coverage@2"].value == 3 / 6  # items 2, 3, 4; not user 2's
    # p(5) = 4/8, p(4) = 2/8: (1 + 2) / 2 bits
    assert figures["popularity"]["novelty@2"].value == pytest.approx(1.5)
    assert "diversity@2" not in figures[MODEL]


def test_coverage_has_no_interval() -> None:
    relevance = _relevance([(0, 2), (1, 3)])
    lists = {MODEL: np.array([[2, 4], [4, 3], [7, 6]], np.int32)}
    facts = ItemFacts(np.ones(8, np.int64), np.eye(8))
    figures = comparison.compare_lists(lists, relevance, facts, DRAWS)[MODEL]
    assert "coverage@2" in comparison.values_json(figures)
    assert "coverage@2" not in comparison.intervals_json(figures)
    assert comparison.values_json(figures)["diversity@2"] == pytest.approx(1.0)


def test_the_same_predictions_differ_by_nothing() -> None:
    rng = np.random.default_rng(0)
    rows = Rows(rng.integers(0, 20, 100), rng.integers(1, 6, 100).astype(float), "regression")
    guess = rng.uniform(1, 5, 100)
    figures = comparison.compare_predictions({MODEL: guess, "bias": guess}, rows, DRAWS)
    found = comparison.differences_json(figures[MODEL], figures["bias"])
    assert found["rmse"] == {
        "difference": 0.0,
        "interval": [0.0, 0.0],
        "relative": 0.0,
        "relative_interval": [0.0, 0.0],
    }


def test_undefined_figures_are_absent() -> None:
    rows = Rows(np.array([0, 1]), np.array([1.0, 1.0]), "binary")
    figures = comparison.compare_predictions({MODEL: np.array([0.2, 0.9])}, rows, DRAWS)[MODEL]
    values = comparison.values_json(figures)
    assert "auc" not in values
    assert values["accuracy"] == 0.5
    assert "auc" not in comparison.intervals_json(figures)


def test_a_difference_from_zero_has_no_ratio() -> None:
    drawn = np.array([0.1, 0.3])
    model, other = {"x": Figure(0.2, drawn)}, {"x": Figure(0.0, np.zeros(2))}
    assert "relative" not in comparison.differences_json(model, other)["x"]


@pytest.mark.parametrize(
    ("count", "name"), [(0, "0"), (1, "1-4"), (4, "1-4"), (5, "5-19"), (19, "5-19"), (20, "20+")]
)
def test_a_count_falls_into_its_slice(count: int, name: str) -> None:
    assert comparison.slice_names()[comparison.slice_of(np.array([count]))[0]] == name


def test_slices_of_users_and_items_split_the_same_hits() -> None:
    # User 0 (no history) wants 2 (never trained), user 1 (30 events) wants 3 (50 train events).
    relevance = _relevance([(0, 2), (1, 3)])
    lists = {MODEL: np.array([[4, 5], [3, 4], [2, 3]], np.int32)}
    slices = comparison.slice_lists(
        lists,
        relevance,
        history_length=np.array([0, 30, 7]),
        train_count=np.array([0, 0, 0, 50, 0, 0, 0, 0]),
    )
    zero, one = {"ndcg@2": 0.0, "recall@2": 0.0}, {"ndcg@2": 1.0, "recall@2": 1.0}
    assert slices == {
        "history_length": {
            "0": {"users": 1, "figures": {MODEL: zero}},
            "20+": {"users": 1, "figures": {MODEL: one}},
        },
        "item_train_count": {
            "0": {"users": 1, "figures": {MODEL: zero}},
            "20+": {"users": 1, "figures": {MODEL: one}},
        },
    }


def test_predictions_are_sliced_by_the_user_and_by_the_item() -> None:
    # User 0 has no history, user 1 has 7 events; items with 0, 3 and 50 training events.
    rows = Rows(np.array([0, 1, 1]), np.array([1.0, 2.0, 3.0]), "regression")
    slices = comparison.slice_predictions(
        {MODEL: np.array([3.0, 2.0, 0.0])},
        rows,
        history_length=np.array([0, 7]),
        train_count=np.array([0, 3, 50]),
    )
    assert slices["history_length"] == {
        "0": {"rows": 1, "figures": {MODEL: {"rmse": 2.0}}},
        # Errors 0 and 3.
        "5-19": {"rows": 2, "figures": {MODEL: {"rmse": pytest.approx(4.5**0.5)}}},
    }
    assert {
        name: e["figures"][MODEL]["rmse"] for name, e in slices["item_train_count"].items()
    } == {
        "0": 2.0,
        "1-4": 0.0,
        "20+": 3.0,
    }


def test_calibration_bins_say_what_was_predicted_and_what_came() -> None:
    rows = Rows(np.zeros(4, np.int64), np.array([0.0, 1.0, 1.0, 1.0]), "binary")
    bins = comparison.calibration(rows, np.array([0.01, 0.03, 0.98, 1.0]))
    assert [entry["rows"] for entry in bins] == [2, 2]
    assert [entry["predicted"] for entry in bins] == pytest.approx([0.02, 0.99])
    assert [entry["observed"] for entry in bins] == [0.5, 1.0]


def test_predictions_are_grouped_by_true_value() -> None:
    rows = Rows(np.zeros(5, np.int64), np.array([1.0, 1.0, 1.0, 4.0, 4.0]), "regression")
    groups = comparison.predicted_by_truth(rows, np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    assert [(g["truth"], g["rows"], g["mean"]) for g in groups] == [(1.0, 3, 2.0), (4.0, 2, 4.5)]
    assert groups[0]["quantiles"][2] == 2.0


def test_many_true_values_are_put_into_bins() -> None:
    truth = np.linspace(0.0, 12.0, 100)
    groups = comparison.predicted_by_truth(
        Rows(np.zeros(100, np.int64), truth, "regression"), truth
    )
    assert len(groups) == 12
    assert groups[0]["truth"] == pytest.approx(0.5)
    assert sum(int(str(g["rows"])) for g in groups) == 100
