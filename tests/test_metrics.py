"""Metrics against values worked out by hand and against scikit-learn."""

import math

import numpy as np
import pytest
from sklearn import metrics as oracle

from mtrec import metrics
from mtrec.metrics import Relevance

# Three users, lists of 4. User 0 has hits at places 1 and 3 of 3 relevant items, user 1 none of 1,
# user 2 has no relevant item at all.
HITS = np.array([[1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=bool)
COUNT = np.array([3, 1, 0])


def _rows(seed: int = 0, rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probability = np.round(rng.random(rows), 2)  # many ties
    return (rng.random(rows) < probability).astype(float), probability


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # (1 + 1/log2(4)) / (1 + 1/log2(3) + 1/log2(4))
        ("ndcg@4", 1.5 / (1.5 + 1 / math.log2(3))),
        ("recall@4", 2 / 3),
        ("precision@4", 2 / 4),
        # 2 * (2/3) * (2/4) / (2/3 + 2/4)
        ("f1@4", 4 / 7),
        ("hr@4", 1.0),
        ("mrr@4", 1.0),
        # (1/1 + 2/3) / min(3, 4)
        ("map@4", (1 + 2 / 3) / 3),
    ],
)
def test_ranking_metrics_have_the_values_worked_out_by_hand(name: str, expected: float) -> None:
    values = metrics.ranking_metrics(HITS, COUNT)[name]
    assert values[0] == pytest.approx(expected)
    assert values[1] == 0.0
    assert np.isnan(values[2])


def test_a_list_full_of_hits_has_ndcg_and_map_of_one_though_more_items_are_relevant() -> None:
    hits, count = np.ones((1, 3), bool), np.array([7])
    assert metrics.ndcg(hits, count)[0] == pytest.approx(1.0)
    assert metrics.average_precision(hits, count)[0] == pytest.approx(1.0)
    assert metrics.recall(hits, count)[0] == pytest.approx(3 / 7)


def test_mrr_counts_the_first_hit_only() -> None:
    hits = np.array([[0, 0, 1, 1]], bool)
    assert metrics.reciprocal_rank(hits, np.array([2]))[0] == pytest.approx(1 / 3)


def test_ndcg_agrees_with_scikit_learn_on_random_full_rankings() -> None:
    rng = np.random.default_rng(1)
    scores = rng.random((20, 30))
    relevant = rng.random((20, 30)) < 0.2
    order = np.argsort(-scores, axis=1)[:, :10]
    ours = metrics.ndcg(np.take_along_axis(relevant, order, axis=1), relevant.sum(1))
    theirs = [oracle.ndcg_score([t], [s], k=10) for t, s in zip(relevant, scores, strict=True)]
    assert ours == pytest.approx(theirs)


def test_hits_are_found_per_user_and_padding_never_hits() -> None:
    relevance = Relevance.from_pairs(
        np.array([0, 1, 1]), np.array([2, 3, 3], np.int32), num_users=2, num_items=5
    )
    ranked = np.array([[3, 2, 0], [3, 2, 0]], np.int32)
    assert relevance.hits(ranked).tolist() == [[False, True, False], [True, False, False]]
    assert relevance.count.tolist() == [1, 1]


def test_an_item_outside_the_catalogue_is_a_miss_and_not_left_out() -> None:
    relevance = Relevance.from_pairs(
        np.array([0, 0, 0]), np.array([2, 1, 1], np.int32), num_users=1, num_items=5
    )
    assert relevance.count.tolist() == [3]
    assert not relevance.hits(np.array([[1]], np.int32)).any()


def test_coverage_is_the_share_of_catalogue_items_shown_to_anyone() -> None:
    ranked = np.array([[2, 3], [3, 0]], np.int32)
    assert metrics.coverage(ranked, 8) == 2 / 8
    assert math.isnan(metrics.coverage(ranked, 0))


def test_novelty_is_the_mean_bits_and_an_unseen_item_counts_as_seen_once() -> None:
    train_count = np.array([0, 0, 4, 2, 2, 0])
    ranked = np.array([[2, 3], [5, 0], [0, 0]], np.int32)
    # p = 4/8 -> 1 bit, 2/8 -> 2 bits, unseen 1/8 -> 3 bits
    np.testing.assert_allclose(metrics.novelty(ranked, train_count), [1.5, 3.0, np.nan])


def test_diversity_is_the_mean_of_one_minus_cosine_over_pairs() -> None:
    content = np.array([[0, 0], [0, 0], [2, 0], [0, 3], [1, 1], [0, 0]], float)
    ranked = np.array([[2, 3, 4], [2, 2, 0], [2, 5, 0]], np.int32)
    half = math.sqrt(0.5)
    # pairs (2,3): cos 0, (2,4) and (3,4): cos .707; a doubled item has distance 0; item 5 has none
    expected = [1 - 2 * half / 3, 0.0, np.nan]
    np.testing.assert_allclose(metrics.diversity(ranked, content), expected, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("auc", oracle.roc_auc_score),
        ("logloss", oracle.log_loss),
        ("accuracy", lambda y, p: oracle.accuracy_score(y, p >= 0.5)),
        ("precision", lambda y, p: oracle.precision_score(y, p >= 0.5)),
        ("recall", lambda y, p: oracle.recall_score(y, p >= 0.5)),
        ("f1", lambda y, p: oracle.f1_score(y, p >= 0.5)),
    ],
)
def test_binary_metrics_agree_with_scikit_learn(name: str, theirs) -> None:
    label, probability = _rows()
    inside = np.clip(probability, 1e-7, 1 - 1e-7)
    assert metrics.BINARY_METRICS[name](label, inside, None) == pytest.approx(theirs(label, inside))


def test_regression_metrics_have_the_values_worked_out_by_hand() -> None:
    truth, prediction = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 1.0])
    assert metrics.mse(truth, prediction) == pytest.approx(5 / 3)
    assert metrics.rmse(truth, prediction) == pytest.approx(math.sqrt(5 / 3))
    assert metrics.mae(truth, prediction) == pytest.approx(1.0)


def test_ece_weighs_the_gap_of_each_bin_by_its_rows() -> None:
    # bin of 0.1: three rows, no one: gap .1; bin of 0.9: one row, a one: gap .1; (3*.1 + 1*.1) / 4
    label, probability = np.array([0.0, 0, 0, 1]), np.array([0.1, 0.1, 0.1, 0.9])
    assert metrics.ece(label, probability) == pytest.approx(0.1)
    # opposite errors in two bins do not cancel: (.3 + .3) / 2
    assert metrics.ece(np.array([0.0, 1]), np.array([0.3, 0.7])) == pytest.approx(0.3)
    assert metrics.calibration_bins(np.array([0.0, 0.0666, 0.0667, 1.0])).tolist() == [0, 0, 1, 14]


def test_auc_of_one_class_is_undefined() -> None:
    assert np.isnan(metrics.auc(np.ones(3), np.array([0.1, 0.2, 0.3])))


@pytest.mark.parametrize(
    "metric", [*metrics.BINARY_METRICS.values(), *metrics.REGRESSION_METRICS.values()]
)
def test_no_rows_give_nan_and_no_warning(metric) -> None:
    assert np.isnan(metric(np.zeros(0), np.zeros(0), None))


def test_equal_scores_have_auc_one_half() -> None:
    assert metrics.auc(np.array([0.0, 1, 0, 1]), np.full(4, 0.7)) == 0.5


@pytest.mark.parametrize("name", [*metrics.BINARY_METRICS, *metrics.REGRESSION_METRICS])
def test_a_row_with_weight_three_counts_like_three_rows(name: str) -> None:
    metric = (metrics.BINARY_METRICS | metrics.REGRESSION_METRICS)[name]
    label, probability = _rows(2, 40)
    weights = np.random.default_rng(3).integers(0, 4, (5, 40))
    expected = [metric(np.repeat(label, w), np.repeat(probability, w), None) for w in weights]
    np.testing.assert_allclose(metric(label, probability, weights.astype(float)), expected)
