"""Metrics against values worked out by hand and against scikit-learn."""

import math

import numpy as np
import pytest
from sklearn import metrics as oracle

from mtrec import metrics
from mtrec.metrics import Relevance, bootstrap, mean_over_users, over_rows

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


def test_bootstrap_interval_of_a_mean_agrees_with_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, 2000)
    figure = bootstrap({"x": mean_over_users(values)}, num_users=2000, samples=2000, seed=1)["x"]
    interval = figure.interval()
    error = 1.96 * values.std() / math.sqrt(2000)
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert interval.high == pytest.approx(values.mean() + error, abs=0.1 * error)


def test_users_without_a_value_do_not_count() -> None:
    values = np.array([1.0, np.nan, 1.0])
    figure = bootstrap({"x": mean_over_users(values)}, num_users=3, samples=200, seed=0)["x"]
    assert figure.value == 1.0
    assert figure.interval().low == figure.interval().high == 1.0


def test_paired_difference_is_narrower_than_the_intervals_of_its_sides() -> None:
    rng = np.random.default_rng(4)
    shared = rng.normal(1.0, 1.0, 500)
    sides = {"a": mean_over_users(shared + 0.1), "b": mean_over_users(shared)}
    drawn = bootstrap(sides, num_users=500, samples=500, seed=0)
    difference = drawn["a"].minus(drawn["b"])
    assert difference.absolute.low == pytest.approx(0.1)
    assert difference.absolute.high == pytest.approx(0.1)
    assert difference.relative.value == pytest.approx(0.1 / shared.mean())
    assert difference.relative.low < difference.relative.value < difference.relative.high


def test_bootstrap_of_rows_draws_whole_users() -> None:
    # Two users: one is always right, one always wrong. Draws of both alike have accuracy 0 or 1.
    user = np.repeat([0, 1], 50)
    label, probability = np.ones(100), np.repeat([0.9, 0.1], 50)
    statistic = over_rows(metrics.accuracy, user, label, probability)
    figure = bootstrap({"x": statistic}, num_users=2, samples=300, seed=0, rows=100)["x"]
    assert set(np.unique(figure.drawn)) == {0.0, 0.5, 1.0}


def test_bootstrap_depends_on_the_seed_and_not_on_the_block(monkeypatch) -> None:
    values = np.random.default_rng(0).random(50)

    def drawn(seed: int) -> np.ndarray:
        return bootstrap({"x": mean_over_users(values)}, num_users=50, samples=20, seed=seed)[
            "x"
        ].drawn

    whole = drawn(7)
    monkeypatch.setattr(metrics, "_BLOCK", 150)
    np.testing.assert_allclose(drawn(7), whole, rtol=1e-12)
    assert (drawn(8) != whole).any()


def test_bootstrap_without_users_is_undefined() -> None:
    figure = bootstrap({"x": mean_over_users(np.zeros(0))}, num_users=0, samples=5, seed=0)["x"]
    assert np.isnan(figure.interval().low)


def test_wilson_interval_has_the_values_worked_out_by_hand() -> None:
    # 8 of 10, z = 1.959964: middle (0.8 + 0.192073) / 1.384146, reach
    # 1.959964 sqrt(0.016 + 0.0096036) / 1.384146.
    found = metrics.wilson(8, 10)
    assert found.value == 0.8
    assert (found.low, found.high) == pytest.approx((0.490162, 0.943318), abs=1e-5)


def test_wilson_interval_of_a_sure_thing_has_a_width() -> None:
    found = metrics.wilson(100, 100)
    # n / (n + z^2)
    assert (found.low, found.high) == pytest.approx((100 / 103.841459, 1.0))
    assert metrics.wilson(0, 100).high == pytest.approx(1 - 100 / 103.841459)
    assert np.isnan(metrics.wilson(0, 0).value)
