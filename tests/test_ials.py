import numpy as np
import pytest
from sklearn.linear_model import Ridge

from mtrec.data.histories import Histories
from mtrec.ials import ImplicitFactors, fit_ials


@pytest.fixture
def histories() -> Histories:
    """Thirty users who touch some of eleven items, one of them twice; the last has no history."""
    rng = np.random.default_rng(0)
    rows = [rng.choice(np.arange(1, 12), size, replace=False) for size in rng.integers(2, 7, 29)]
    rows[3] = np.append(rows[3], rows[3][0])
    rows.append(np.zeros(0, int))
    items = np.concatenate(rows)
    nothing = np.zeros(len(items))
    return Histories(
        np.array([f"u{n}" for n in range(30)], dtype=object),
        np.cumsum([0, *map(len, rows)]),
        items.astype(np.int32),
        nothing,
        nothing.astype(np.int8),
    )


@pytest.fixture
def fitted(histories: Histories) -> ImplicitFactors:
    return fit_ials(histories, 14, factors=3, alpha=6.0, reg=2.0, seed=0)


def test_users_minimise_the_weighted_loss_of_their_history(
    histories: Histories, fitted: ImplicitFactors
) -> None:
    users = fitted.users(histories).astype(np.float64)
    items = fitted.items.astype(np.float64)
    for user in range(30):
        met = set(histories.item_index[slice(*histories.offsets[user : user + 2])]) - {0, 1}
        gradient = 2 * 2.0 * users[user]
        for item in range(14):
            weight, target = (6.0, 1.0) if item in met else (1.0, 0.0)
            gradient += -2 * weight * (target - users[user] @ items[item]) * items[item]
        np.testing.assert_allclose(gradient, 0.0, atol=1e-4)
    assert not users[29].any()


def test_what_nobody_met_adds_nothing(histories: Histories, fitted: ImplicitFactors) -> None:
    scores = fitted.scores(histories)
    assert scores.shape == (30, 14)
    assert not scores[:, [0, 1, 12, 13]].any()
    assert np.abs(scores[:29, 2:12]).max() > 0.2


def test_scaling_scales_the_scores(histories: Histories, fitted: ImplicitFactors) -> None:
    twice = fitted.scaled(2.0).scaled(3.0)
    np.testing.assert_allclose(twice.scores(histories), 6.0 * fitted.scores(histories), rtol=1e-5)


def test_arrays_are_read_back_and_wrong_ones_refused(
    histories: Histories, fitted: ImplicitFactors
) -> None:
    again = ImplicitFactors.from_arrays(fitted.scaled(5.0).to_arrays(), 14)
    np.testing.assert_array_equal(again.scores(histories), fitted.scaled(5.0).scores(histories))
    with pytest.raises(ValueError, match="for 15 items"):
        ImplicitFactors.from_arrays(fitted.to_arrays(), 15)


def test_texts_tell_the_factors_of_items_that_nobody_met(
    histories: Histories, fitted: ImplicitFactors
) -> None:
    # Items 12 and 13 were never met; there is no text of 13, nor of 4, which was.
    text = np.random.default_rng(1).normal(size=(14, 5)).astype(np.float32)
    text[[4, 13]] = 0.0
    told = fitted.with_texts(text, 0.7)
    met = [item for item in range(2, 12) if item != 4]
    oracle = Ridge(alpha=0.7).fit(text[met], fitted.items[met])
    np.testing.assert_allclose(told.items[12], oracle.predict(text[[12]])[0], atol=1e-5)
    unchanged = [item for item in range(14) if item != 12]
    np.testing.assert_array_equal(told.items[unchanged], fitted.items[unchanged])
    assert told.told is not None
    assert np.flatnonzero(told.told).tolist() == [12]
    # What users are does not change with items that they have not met.
    np.testing.assert_array_equal(told.users(histories), fitted.users(histories))
    assert told.text_map is not None
    np.testing.assert_allclose(told.text_map(text)[[12, 13]], told.items[[12, 13]], atol=1e-6)
    again = ImplicitFactors.from_arrays(told.scaled(3.0).to_arrays(), 14)
    np.testing.assert_array_equal(again.scores(histories), told.scaled(3.0).scores(histories))
    assert again.text_map is not None
    np.testing.assert_array_equal(again.text_map(text), told.text_map(text))


def test_without_a_text_of_an_item_that_was_met_texts_tell_nothing(fitted: ImplicitFactors) -> None:
    text = np.zeros((14, 5), np.float32)
    text[12] = 1.0
    assert fitted.with_texts(text, 1.0) is fitted


@pytest.mark.parametrize("name", ["gram", "told", "text_weights", "text_means"])
def test_a_text_map_of_another_size_is_refused(fitted: ImplicitFactors, name: str) -> None:
    text = np.random.default_rng(1).normal(size=(14, 5)).astype(np.float32)
    arrays = fitted.with_texts(text, 1.0).to_arrays()
    with pytest.raises(ValueError, match=r"ials: texts of \d numbers for 3 factors"):
        ImplicitFactors.from_arrays({**arrays, name: arrays[name][:-1]}, 14)
