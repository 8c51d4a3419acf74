from dataclasses import replace

import numpy as np
import pytest

from mtrec import itemitem
from mtrec.classics import Ease
from mtrec.data.histories import Histories
from mtrec.itemitem import Amount, ItemItem, NextItemSums, fit_ease, interaction_matrix

NUM_ITEMS = 14


@pytest.fixture
def histories() -> Histories:
    rng = np.random.default_rng(0)
    counts = rng.integers(2, 7, 40)
    # Item 13 is in no history; position 1 is an unknown item.
    items = np.concatenate([rng.choice(np.arange(1, 13), n, replace=False) for n in counts])
    offsets = np.concatenate([[0], np.cumsum(counts)])
    nothing = np.zeros(len(items))
    ids = np.array([f"u{n}" for n in range(40)], dtype=object)
    return Histories(
        ids, offsets, items.astype(np.int32), nothing, nothing.astype(np.int8), {}, {}, {}
    )


def test_unpruned_scores_are_those_of_ease(histories: Histories) -> None:
    scores = fit_ease(histories, NUM_ITEMS, reg=3.0, top=NUM_ITEMS).scores(histories).toarray()
    expected = Ease(histories, NUM_ITEMS, 3.0).score_users(histories)
    met = np.arange(2, 13)
    np.testing.assert_allclose(scores[:, met], expected[:, met], atol=1e-5)
    assert not scores[:, [0, 1, 13]].any()


def test_with_fewer_users_than_items_the_weights_are_the_same_matrix(histories: Histories) -> None:
    few = histories.rows(np.arange(5))
    matrix = interaction_matrix(few, NUM_ITEMS).toarray().astype(np.float64)
    met = np.flatnonzero(matrix.any(axis=0))
    assert len(met) > 5
    # Equation 8 as it stands, over the items.
    inverse = np.linalg.inv(matrix.T @ matrix + 3.0 * np.eye(NUM_ITEMS))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0.0)

    found = fit_ease(few, NUM_ITEMS, reg=3.0, top=NUM_ITEMS).weights.toarray()

    np.testing.assert_allclose(found[np.ix_(met, met)], expected[np.ix_(met, met)], atol=1e-6)


def _with_stars(histories: Histories) -> Histories:
    """Give every event 1 to 5 stars, some of them none that is known."""
    stars = np.random.default_rng(2).integers(1, 6, histories.num_events).astype(np.float32)
    stars[::7] = np.nan
    return replace(histories, numbers={"stars": stars})


def _stars_matrix(histories: Histories, mean: float) -> np.ndarray:
    matrix = np.zeros((len(histories), NUM_ITEMS))
    for user, item, stars in zip(
        histories.event_user, histories.item_index, histories.numbers["stars"], strict=True
    ):
        if item >= 2:
            matrix[user, item] = 1.0 if np.isnan(stars) else stars / mean
    return matrix


@pytest.mark.parametrize("num_users", [40, 5])
def test_events_count_by_their_amount(histories: Histories, num_users: int) -> None:
    rated = _with_stars(histories.rows(np.arange(num_users)))
    amount = Amount.of(rated, "stars")
    assert amount is not None
    mean = float(np.nanmean(rated.numbers["stars"]))
    assert amount.mean == pytest.approx(mean)
    matrix = _stars_matrix(rated, mean)
    met = np.flatnonzero(matrix.any(axis=0))
    inverse = np.linalg.inv(matrix.T @ matrix + 3.0 * np.eye(NUM_ITEMS))
    expected = -inverse / np.diag(inverse)
    np.fill_diagonal(expected, 0.0)

    term = fit_ease(rated, NUM_ITEMS, reg=3.0, top=NUM_ITEMS, amount=amount)

    weights = term.weights.toarray()
    np.testing.assert_allclose(weights[np.ix_(met, met)], expected[np.ix_(met, met)], atol=1e-5)
    np.testing.assert_allclose(term.scores(rated).toarray(), matrix @ weights, atol=1e-5)
    # Histories of a request may say no numbers at all.
    bare = replace(rated, numbers={})
    np.testing.assert_allclose(
        term.scores(bare).toarray(),
        interaction_matrix(bare, NUM_ITEMS).toarray() @ weights,
        atol=1e-5,
    )
    again = ItemItem.from_arrays(term.scaled(2.0).to_arrays(), NUM_ITEMS, "stars")
    assert again.amount == amount
    np.testing.assert_allclose(again.scores(rated).toarray(), 2.0 * matrix @ weights, atol=1e-5)


def test_an_item_met_twice_counts_the_mean_of_its_amounts(histories: Histories) -> None:
    twice = replace(
        histories.rows(np.array([0])),
        offsets=np.array([0, 3]),
        item_index=np.array([4, 1, 4], np.int32),
        numbers={"stars": np.array([1.0, 9.0, 4.0], np.float32)},
    )
    matrix = interaction_matrix(twice, NUM_ITEMS, Amount("stars", 2.0)).toarray()
    assert matrix[0, 4] == pytest.approx((0.5 + 2.0) / 2)
    assert np.count_nonzero(matrix) == 1


def test_amounts_that_are_all_zero_or_missing_say_nothing(histories: Histories) -> None:
    for value in (0.0, np.nan):
        stars = np.full(histories.num_events, value, np.float32)
        assert Amount.of(replace(histories, numbers={"stars": stars}), "stars") is None


def test_blocks_of_columns_do_not_change_the_weights(
    histories: Histories, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = [histories, histories.rows(np.arange(5))]
    whole = [fit_ease(side, NUM_ITEMS, reg=3.0, top=4).weights.toarray() for side in sides]
    monkeypatch.setattr(itemitem, "_BLOCK", 40)
    cut = [fit_ease(side, NUM_ITEMS, reg=3.0, top=4).weights.toarray() for side in sides]
    np.testing.assert_allclose(cut[0], whole[0], atol=1e-7)
    np.testing.assert_allclose(cut[1], whole[1], atol=1e-7)


def test_an_item_keeps_the_weights_that_are_largest_in_size(histories: Histories) -> None:
    whole = fit_ease(histories, NUM_ITEMS, reg=3.0, top=NUM_ITEMS).weights.toarray()
    pruned = fit_ease(histories, NUM_ITEMS, reg=3.0, top=4).weights.toarray()
    for item in range(2, 13):
        largest = np.argsort(-np.abs(whole[:, item]))[:4]
        expected = np.zeros(NUM_ITEMS)
        expected[largest] = whole[largest, item]
        np.testing.assert_array_equal(pruned[:, item], expected)
    assert (pruned < 0).any()


def _rows_of(histories: Histories, half_life: float) -> tuple[np.ndarray, np.ndarray]:
    """Give S and Y event by event, as the docstring of `NextItemSums` says it."""
    before, after = [], []
    for start, stop in zip(histories.offsets[:-1], histories.offsets[1:], strict=True):
        for at in range(start + 1, stop):
            row, target = np.zeros(NUM_ITEMS), np.zeros(NUM_ITEMS)
            for age, item in enumerate(histories.item_index[start:at][::-1]):
                row[item] += 0.5 ** (age / half_life) if age < 10 * half_life else 0.0
            target[histories.item_index[at]] = 1.0
            before.append(row)
            after.append(target)
    return np.array(before), np.array(after)


@pytest.fixture
def repeated() -> Histories:
    """Give histories of 1 to 30 events in which items come again and again, some unknown."""
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 31, 25)
    items = rng.integers(1, 13, counts.sum()).astype(np.int32)
    ids = np.array([f"u{n}" for n in range(25)], dtype=object)
    nothing = np.zeros(len(items))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    return Histories(ids, offsets, items, nothing, nothing.astype(np.int8), {}, {}, {})


@pytest.mark.parametrize("half_life", [0.4, 1.5, 8.0])
def test_next_item_weights_are_ridge_regression_on_what_came_before(
    repeated: Histories, half_life: float
) -> None:
    before, after = _rows_of(repeated, half_life)
    before[:, :2], after[:, :2] = 0.0, 0.0

    def expected(reg: float) -> np.ndarray:
        return np.linalg.solve(before.T @ before + reg * np.eye(NUM_ITEMS), before.T @ after)

    sums = NextItemSums.of(repeated, NUM_ITEMS, half_life)

    np.testing.assert_array_equal(sums.met, np.arange(2, 13))
    # A second ridge comes from the same sums.
    for reg in (2.0, 9.0):
        found = sums.fit(reg, NUM_ITEMS).weights.toarray()
        np.testing.assert_allclose(found, expected(reg), atol=1e-6)


def test_next_item_scores_read_a_history_from_its_end(repeated: Histories) -> None:
    term = NextItemSums.of(repeated, NUM_ITEMS, 1.5).fit(2.0, NUM_ITEMS)
    weights = term.weights.toarray()
    expected = np.zeros((len(repeated), NUM_ITEMS))
    for user, (start, stop) in enumerate(
        zip(repeated.offsets[:-1], repeated.offsets[1:], strict=True)
    ):
        for age, item in enumerate(repeated.item_index[start:stop][::-1]):
            if item >= 2 and age < 15:
                expected[user] += 0.5 ** (age / 1.5) * weights[item]
    for found, factor in ((term, 1.0), (term.scaled(3.0), 3.0)):
        scores = found.scores(repeated).toarray()
        np.testing.assert_allclose(scores, factor * expected, rtol=1e-4, atol=1e-6)


def test_a_next_item_term_comes_back_from_its_arrays(repeated: Histories) -> None:
    term = NextItemSums.of(repeated, NUM_ITEMS, 1.5).fit(2.0, 4)
    again = ItemItem.from_arrays(term.to_arrays(), NUM_ITEMS)
    assert again.half_life == 1.5
    np.testing.assert_array_equal(again.scores(repeated).toarray(), term.scores(repeated).toarray())
    # Four weights lead to each of the eleven items that somebody met.
    assert np.diff(term.weights.tocsc().indptr).tolist() == [0, 0, *[4] * 11, 0]


def test_scaled_weights_scale_the_scores(histories: Histories) -> None:
    term = fit_ease(histories, NUM_ITEMS, reg=3.0, top=5)
    scores, scaled = (each.scores(histories).toarray() for each in (term, term.scaled(4.0)))
    np.testing.assert_allclose(scaled, 4.0 * scores, rtol=1e-6)


def test_arrays_bring_the_weights_back_and_wrong_ones_are_refused(histories: Histories) -> None:
    term = fit_ease(histories, NUM_ITEMS, reg=3.0, top=5)
    arrays = term.to_arrays()
    again = ItemItem.from_arrays(arrays, NUM_ITEMS)
    np.testing.assert_array_equal(again.weights.toarray(), term.weights.toarray())
    with pytest.raises(ValueError, match="index"):
        ItemItem.from_arrays(arrays, NUM_ITEMS + 1)


def test_an_item_met_twice_counts_once(histories: Histories) -> None:
    rows = histories.rows(np.array([0]))
    twice = Histories(
        rows.user_ids,
        rows.offsets * 2,
        np.repeat(rows.item_index, 2),
        np.repeat(rows.timestamp, 2),
        np.repeat(rows.split, 2),
        {},
        {},
        {},
    )
    np.testing.assert_array_equal(
        interaction_matrix(twice, NUM_ITEMS).toarray(),
        interaction_matrix(rows, NUM_ITEMS).toarray(),
    )
