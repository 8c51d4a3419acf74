from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from mtrec import factors
from mtrec.data.histories import Histories
from mtrec.factors import Factors, FactorTerm, fit_factors, fit_join
from mtrec.modelconfig import BinaryTask, RegressionTask

STARS = RegressionTask(name="stars", kind="regression", label="rating", min=1, max=5)
LIKE = BinaryTask(name="like", kind="binary", label="rating >= 4")
SETTINGS = {"rank": 3, "draws": 4, "burn_in": 3, "thin": 2, "seed": 0}


def make_histories(user: np.ndarray, item: np.ndarray, num_users: int) -> Histories:
    order = np.argsort(user, kind="stable")
    offsets = np.searchsorted(user[order], np.arange(num_users + 1))
    nothing = np.zeros(len(user))
    ids = np.array([f"u{n}" for n in range(num_users)], dtype=object)
    return Histories(ids, offsets, item[order].astype(np.int32), nothing, nothing.astype(np.int8))


@pytest.fixture
def said() -> tuple[Histories, np.ndarray]:
    """Ten users and seven items, one of each without a label, one pair met twice."""
    rng = np.random.default_rng(1)
    user = np.repeat(np.arange(9), 4)
    item = np.concatenate([rng.choice(np.arange(2, 8), 4, replace=False) for _ in range(9)])
    item[1] = item[0]
    item[5] = 1  # an unknown item
    value = rng.integers(1, 6, len(user)).astype(np.float32)
    value[7] = np.nan
    return make_histories(user, item, 10), value


def test_users_are_the_conditional_means_of_each_draw(said) -> None:
    histories, value = said
    found = fit_factors(histories, value, 9, **SETTINGS)
    users = found.users(histories, value)
    assert users.shape == (10, 4, 3)
    for draw in range(4):
        for user in range(10):
            right = found.precision[draw] @ found.mean[draw]
            matrix = found.precision[draw].copy()
            for at in range(histories.offsets[user], histories.offsets[user + 1]):
                if np.isfinite(value[at]) and histories.item_index[at] > 1:
                    vector = found.items[draw, histories.item_index[at]].astype(np.float64)
                    matrix += found.noise[draw] * np.outer(vector, vector)
                    label = (value[at] - found.scale[0]) / found.scale[1]
                    right = right + found.noise[draw] * vector * label
            np.testing.assert_allclose(users[user, draw], np.linalg.solve(matrix, right), rtol=1e-4)
    # Of whom nothing is known the prior is all there is.
    np.testing.assert_allclose(users[9], found.mean, rtol=1e-5)


def test_predictions_are_means_over_the_draws_in_the_sources_units(said) -> None:
    histories, value = said
    found = fit_factors(histories, value, 9, **SETTINGS)
    users = found.users(histories, value)
    rows, items = np.array([0, 3, 3, 9]), np.array([2, 1, 8, 5])
    expected = [
        np.mean([users[u, s] @ found.items[s, i] for s in range(4)]) * found.scale[1]
        + found.scale[0]
        for u, i in zip(rows, items, strict=True)
    ]
    np.testing.assert_allclose(found.predict(users, rows, items), expected, rtol=1e-5)


def test_items_that_nobody_met_are_all_alike_in_a_draw(said) -> None:
    found = fit_factors(*said, 9, **SETTINGS)
    np.testing.assert_array_equal(found.items[:, 8], found.items[:, 1])
    np.testing.assert_array_equal(found.items[:, 0], found.items[:, 1])
    assert not np.allclose(found.items[:, 2], found.items[:, 1])


def test_a_planted_structure_is_found_and_so_is_the_noise() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(150, 2)), rng.normal(size=(60, 2))
    truth = 3.0 + 2.0 * (left @ right.T)
    user, item = np.nonzero(rng.random((150, 60)) < 0.5)
    value = truth[user, item] + rng.normal(0.0, 0.5, len(user))
    found = fit_factors(
        make_histories(user, item + 2, 150), value, 62,
        rank=2, draws=16, burn_in=20, thin=2, seed=0,
    )  # fmt: skip
    users = found.users(make_histories(user, item + 2, 150), value)
    held_user, held_item = np.nonzero(
        np.isin(np.arange(9000), user * 60 + item, invert=True).reshape(150, 60)
    )
    error = found.predict(users, held_user, held_item + 2) - truth[held_user, held_item]
    spread = float(np.std(truth))
    assert np.sqrt(np.mean(error**2)) < 0.25 < 0.1 * spread
    deviation = found.scale[1] / np.sqrt(found.noise)
    np.testing.assert_allclose(deviation, 0.5, atol=0.03)


def test_a_row_is_drawn_from_its_conditional() -> None:
    rng = np.random.default_rng(0)
    others = rng.normal(size=(4, 2))
    # Many rows that say the same: their vectors are draws from one distribution.
    many = 20_000
    count = sparse.csr_array(np.tile([1.0, 0.0, 2.0, 1.0], (many, 1)))
    total = sparse.csr_array(np.tile([0.5, 0.0, -1.0, 2.0], (many, 1)))
    mean, precision = np.array([0.3, -0.2]), np.array([[2.0, 0.4], [0.4, 1.0]])
    drawn = factors._draw(factors._Labels(count, total, 0.0), others, mean, precision, 1.5, rng)
    inverse = np.linalg.inv(precision + 1.5 * others.T @ np.diag([1.0, 0.0, 2.0, 1.0]) @ others)
    centre = inverse @ (precision @ mean + 1.5 * others.T @ np.array([0.5, 0.0, -1.0, 2.0]))
    np.testing.assert_allclose(drawn.mean(axis=0), centre, atol=0.02)
    np.testing.assert_allclose(np.cov(drawn.T), inverse, atol=0.02)


def test_wishart_draws_have_the_mean_of_their_distribution() -> None:
    rng = np.random.default_rng(0)
    scale = np.array([[0.5, 0.2], [0.2, 0.4]])
    drawn = np.mean([factors._draw_wishart(scale, 7, rng) for _ in range(20_000)], axis=0)
    np.testing.assert_allclose(drawn, 7 * scale, atol=0.05)


def test_the_prior_is_drawn_around_the_rows(said) -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal([1.0, -2.0], [0.5, 2.0], (4000, 2))
    mean, precision = factors._draw_prior(rows, rng)
    np.testing.assert_allclose(mean, [1.0, -2.0], atol=0.15)
    np.testing.assert_allclose(1 / np.sqrt(np.diag(precision)), [0.5, 2.0], rtol=0.05)


def test_the_squared_error_counts_every_label(said) -> None:
    histories, value = said
    labels = factors._Labels.of(histories, value, 9)
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(10, 3)), rng.normal(size=(9, 3))
    known = np.isfinite(value) & (histories.item_index > 1)
    user, item = histories.event_user[known], histories.item_index[known]
    expected = np.sum((value[known] - np.sum(left[user] * right[item], axis=1)) ** 2)
    assert labels.squared_error(left, right) == pytest.approx(expected, rel=1e-6)


def test_blocks_of_rows_change_nothing(said, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fit_factors(*said, 9, **SETTINGS)
    monkeypatch.setattr(factors, "_ROWS", 3)
    cut = fit_factors(*said, 9, **SETTINGS)
    np.testing.assert_allclose(cut.items, whole.items, rtol=1e-4, atol=1e-5)


def test_a_seed_repeats_the_draws_and_another_does_not(said) -> None:
    first, again = (fit_factors(*said, 9, **SETTINGS) for _ in range(2))
    np.testing.assert_array_equal(first.items, again.items)
    other = fit_factors(*said, 9, **{**SETTINGS, "seed": 1})
    assert not np.allclose(first.items, other.items)


def test_where_nobody_says_anything_there_is_nothing(said) -> None:
    histories, value = said
    assert fit_factors(histories, np.full_like(value, np.nan), 9, **SETTINGS) is None


def test_equal_labels_are_no_error(said) -> None:
    histories, value = said
    found = fit_factors(histories, np.full_like(value, 4.0), 9, **SETTINGS)
    users = found.users(histories, np.full_like(value, 4.0))
    answer = found.predict(users, np.arange(3), np.array([2, 3, 4]))
    np.testing.assert_allclose(answer, 4.0, atol=0.75)


def test_sweeps_are_told(said) -> None:
    told: list[tuple[int, int]] = []
    fit_factors(*said, 9, **SETTINGS, on_sweep=lambda *done: told.append(done))
    assert told == [(n, 10) for n in range(1, 11)]


def test_arrays_are_read_back_and_wrong_ones_refused(said) -> None:
    found = fit_factors(*said, 9, **SETTINGS)
    again = Factors.from_arrays(found.to_arrays(), 9)
    np.testing.assert_array_equal(again.items, found.items)
    with pytest.raises(ValueError, match="items"):
        Factors.from_arrays(found.to_arrays(), 10)
    with pytest.raises(ValueError, match="noise"):
        Factors.from_arrays({**found.to_arrays(), "noise": np.ones(3)}, 9)


@pytest.fixture
def predictions() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    truth = rng.normal(3.5, 1.0, 400)
    network, draws = (truth + rng.normal(0.0, size, 400) for size in (1.0, 0.7))
    return network, draws, truth


def test_values_are_joined_by_least_squares(predictions) -> None:
    network, draws, label = predictions
    scale = np.array([3.0, 1.2])
    weights = fit_join(STARS, network, draws, label, scale)
    design = np.stack([np.ones(400), network, (draws - 3.0) / 1.2], axis=1)
    expected = np.linalg.inv(design.T @ design) @ design.T @ label
    np.testing.assert_allclose(weights, expected, rtol=1e-6)
    none = Factors(*(np.zeros(1) for _ in range(4)), scale)
    joined = FactorTerm(none, "rating", 9, {"stars": weights}).join(STARS, network, draws)
    np.testing.assert_allclose(joined, np.clip(design @ expected, 1, 5), rtol=1e-5)


def test_logits_are_joined_by_logistic_regression(predictions) -> None:
    network, draws, label = predictions
    scale, liked = np.array([3.0, 1.2]), (label >= 4).astype(float)
    share = 1 / (1 + np.exp(-(network - 3.5)))
    weights = fit_join(LIKE, share, draws, liked, scale)
    design = np.stack([network - 3.5, (draws - 3.0) / 1.2], axis=1)
    oracle = LogisticRegression(C=1e9, tol=1e-8).fit(design, liked)
    np.testing.assert_allclose(weights, [oracle.intercept_[0], *oracle.coef_[0]], rtol=2e-3)
    none = Factors(*(np.zeros(1) for _ in range(4)), scale)
    joined = FactorTerm(none, "rating", 9, {"like": weights}).join(LIKE, share, draws)
    np.testing.assert_allclose(joined, oracle.predict_proba(design)[:, 1], atol=1e-3)


def test_draws_that_do_not_help_or_few_labels_are_left_out(predictions) -> None:
    network, draws, label = predictions
    scale = np.array([3.0, 1.0])
    assert fit_join(STARS, network, -draws, label, scale) is None
    assert fit_join(STARS, network[:40], draws[:40], label[:40], scale) is None
    none = FactorTerm(Factors(*(np.zeros(1) for _ in range(4)), scale), "rating", 9, {})
    np.testing.assert_array_equal(none.join(STARS, network, draws), network)


def test_a_term_reads_its_own_column(said) -> None:
    histories, value = said
    found = fit_factors(histories, value, 9, **SETTINGS)
    told = replace(histories, numbers={"rating": value, "other": np.zeros_like(value)})
    rows, items = np.array([1, 2]), np.array([3, 4])
    expected = found.predict(found.users(histories, value), rows, items)
    answer = FactorTerm(found, "rating", 9, {}).said(told, rows, items)
    np.testing.assert_array_equal(answer, expected)


def test_a_term_reads_the_latest_events_alone(said) -> None:
    histories, value = said
    found = fit_factors(histories, value, 9, **SETTINGS)
    told = replace(histories, numbers={"rating": value})
    starts = np.maximum(histories.offsets[:-1], histories.offsets[1:] - 2)
    late = np.arange(histories.num_events) >= starts[histories.event_user]
    users = found.users(histories.select(late), value[late])
    rows, items = np.arange(10), np.full(10, 4)
    answer = FactorTerm(found, "rating", 2, {}).said(told, rows, items)
    np.testing.assert_array_equal(answer, found.predict(users, rows, items))
