"""Baselines against brute force, dense oracles and planted truths, on small histories."""

import numpy as np
import pytest
from small_histories import make_histories, random_histories

from mtrec import baselines, metrics
from mtrec.baselines import fit_ranking, rank, top_k

# ---- protocol -----------------------------------------------------------------------------------


def test_top_k_puts_the_best_first_and_ties_by_position() -> None:
    scores = np.array([[0.0, 3.0, 1.0, 3.0, 1.0, 1.0]], np.float32)
    assert top_k(scores, 4).tolist() == [[1, 3, 2, 4]]


def test_top_k_pads_with_zero_what_cannot_be_filled() -> None:
    scores = np.array([[-np.inf, -np.inf, 1.0, -np.inf], [-np.inf] * 4], np.float32)
    assert top_k(scores, 3).tolist() == [[2, 0, 0], [0, 0, 0]]
    assert top_k(np.ones((1, 2), np.float32), 4).tolist() == [[0, 1, 0, 0]]


def test_top_k_agrees_with_a_full_stable_sort() -> None:
    scores = np.random.default_rng(0).integers(0, 9, (50, 40)).astype(np.float32)
    assert (top_k(scores, 10) == np.argsort(-scores, axis=1, kind="stable")[:, :10]).all()


def test_lists_hold_no_item_of_the_history_and_no_special_row() -> None:
    histories = random_histories(20, 12)
    model = fit_ranking("popularity", histories, 14, seed=0, settings={})
    ranked = rank(model, histories, 14, k=12)
    for user in range(20):
        shown = ranked[user][ranked[user] > 0]
        history = histories.item_index[histories.offsets[user] : histories.offsets[user + 1]]
        assert sorted([*shown, *history]) == list(range(2, 14))


def test_relevant_items_are_new_ones_and_an_unknown_item_stays_a_miss() -> None:
    histories = make_histories([[2, 3, 2, 4, 1]], split=[[0, 1, 2, 2, 2]])
    relevance = baselines.relevant_items(histories, "test", 6)
    assert relevance.key.tolist() == [4]
    assert relevance.count.tolist() == [2]


def test_cold_candidates_are_items_without_an_event_of_an_earlier_split() -> None:
    # 2 and 3 are met in training, 4 by somebody in validation, 5 in test alone, 6 never.
    histories = make_histories([[2, 4, 5, 1], [3, 4, 2]], split=[[0, 1, 2, 2], [0, 2, 2]])

    def cold(split: str) -> list[int]:
        allowed = baselines.candidate_items(histories, split, 7, "cold")
        assert allowed is not None
        return np.flatnonzero(allowed).tolist()

    assert cold("validation") == [4, 5, 6]
    assert cold("test") == [5, 6]
    assert baselines.candidate_items(histories, "test", 7, "all") is None


def test_of_cold_candidates_only_they_and_unknown_items_are_relevant() -> None:
    histories = make_histories([[2, 4, 5, 1], [3, 4, 2]], split=[[0, 1, 2, 2], [0, 2, 2]])
    relevance = baselines.relevant_items(histories, "test", 7, "cold")
    assert relevance.key.tolist() == [5]
    assert relevance.count.tolist() == [2, 0]


def test_lists_hold_only_what_is_allowed() -> None:
    histories = random_histories(20, 12)
    model = fit_ranking("popularity", histories, 14, seed=0, settings={})
    allowed = np.arange(14) % 3 == 0
    ranked = rank(model, histories, 14, k=12, allowed=allowed)
    for user in range(20):
        history = histories.item_index[histories.offsets[user] : histories.offsets[user + 1]]
        assert set(ranked[user]) - {0} == {3, 6, 9, 12} - set(history)


# ---- ranking ------------------------------------------------------------------------------------


def _texts(num_items: int, width: int = 7) -> np.ndarray:
    """Give random text vectors; item 4 has none."""
    text = np.random.default_rng(3).normal(size=(num_items, width)) + 0.5
    text[:2] = text[4] = 0.0
    return text


@pytest.mark.parametrize("name", ["text_nearest", "ials_text"])
def test_text_tells_which_items_nobody_met_are_of_a_users_taste(name: str) -> None:
    # Two groups of users and items; four of each group's ten items have no event in training.
    rng = np.random.default_rng(0)
    rows = [[2 + 2 * n + user % 2 for n in range(10)] for user in range(40)]
    histories = make_histories(rows, split=[[0] * 6 + [1] * 4] * 40)
    text = rng.normal(size=(22, 8))
    text[2::2, 0] += 4.0
    text[3::2, 1] += 4.0
    text[:2] = 0.0
    tuned, ranked = baselines.tune_ranking(
        name, histories, 22, k=4, seed=0, candidates="cold", text=text
    )
    # Eight candidates, four of which are the user's: chance is 1/2.
    assert tuned.value > 0.95
    assert set(ranked.ravel().tolist()) <= set(range(14, 22))


@pytest.mark.parametrize("name", ["itemknn", "ease", "slim", "ials", "bpr", "bigram", "slit"])
def test_a_planted_taste_is_found_and_popularity_misses_it(name: str) -> None:
    # Two groups of 30 users and 12 items each; a user's items are of its own group.
    rng = np.random.default_rng(0)
    rows = [
        [2 + 12 * (1 - user % 2), *(2 + 12 * (user % 2) + rng.permutation(12)[:7])]
        for user in range(60)
    ]
    histories = make_histories(rows, split=[[0] * 7 + [2]] * 60)
    known, relevance = histories.before("test"), baselines.relevant_items(histories, "test", 26)

    def ndcg(method: str) -> float:
        settings = baselines.GRIDS.get(method, [{}])[0]
        model = fit_ranking(method, known, 26, seed=0, settings=settings)
        hits = relevance.hits(rank(model, known, 26, k=5))
        return float(np.nanmean(metrics.ndcg(hits, relevance.count)))

    assert ndcg(name) > 1.2 * ndcg("popularity")


@pytest.mark.parametrize("name", baselines.RANKING_BASELINES)
def test_every_ranking_baseline_is_repeatable_and_scores_users_one_by_one(name: str) -> None:
    histories = random_histories(25, 18)
    settings = baselines.GRIDS.get(name, [{}])[0]
    text = _texts(20)
    first = fit_ranking(name, histories, 20, seed=5, settings=settings, text=text)
    again = fit_ranking(name, histories, 20, seed=5, settings=settings, text=text)
    scores = first.score_users(histories)
    assert scores.shape == (25, 20)
    np.testing.assert_array_equal(scores, again.score_users(histories))
    alone = np.concatenate([first.score_users(histories.rows([user])) for user in range(25)])
    np.testing.assert_allclose(alone, scores, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["bigram", "slit", "itemknn", "ease", "slim", "ials", "bpr"])
def test_a_user_without_history_gets_popular_items(name: str) -> None:
    histories = make_histories([[2, 3, 4], [3, 4, 5], [4, 5, 2], [4], [], [1]])
    model = fit_ranking(name, histories, 6, seed=0, settings=baselines.GRIDS.get(name, [{}])[0])
    assert rank(model, histories, 6, k=1)[4:].tolist() == [[4], [4]]


def test_tuning_takes_the_best_on_validation_and_gives_its_lists() -> None:
    # Item 2 is most frequent, but item 3 is what everybody takes lately, and in validation.
    events = [[2, 4]] * 12 + [[5, 3]] * 4 + [[4, 3]] * 6
    time = [[0.0, 1.0]] * 12 + [[99.0, 100.0]] * 4 + [[50.0, 200.0]] * 6
    split = [[0, 0]] * 16 + [[0, 1]] * 6
    histories = make_histories(events, time=time, split=split)
    tuned, ranked = baselines.tune_ranking("recent_popularity", histories, 6, k=1, seed=0)
    assert tuned.settings["half_life"] in (0.02, 0.05, 0.1, 0.2, 0.4)
    assert tuned.value == 1.0
    assert tuned.tried >= 5
    assert ranked[16:].tolist() == [[3]] * 6


def test_tuning_without_validation_events_takes_the_middle_of_the_grid() -> None:
    tuned, _ = baselines.tune_ranking("ease", random_histories(5, 8), 10, k=3, seed=0)
    assert tuned.settings == {"reg": 300}
    assert tuned.tried == 0


# ---- labels -------------------------------------------------------------------------------------


def test_probabilities_are_kept_off_zero_and_one() -> None:
    clipped = baselines.clip_prediction(np.array([-0.2, 0.5, 1.4]), "binary")
    assert clipped.tolist() == [0.01, 0.5, 0.99]


def test_a_pointwise_baseline_is_tuned_by_rmse_on_validation() -> None:
    # Item offsets are all there is: heavy shrinkage of items loses, of users wins.
    rng = np.random.default_rng(0)
    events = [(2 + rng.permutation(20)[:10]).tolist() for _ in range(80)]
    rating = [[3.0 + (item % 3 - 1) + rng.normal(0, 0.5) for item in row] for row in events]
    histories = make_histories(events, split=[[0] * 8 + [1] * 2] * 80, labels={"rating": rating})
    tuned = baselines.tune_pointwise("bias", histories, "rating", 22, kind="regression")
    assert tuned.settings["reg_user"] >= 40
    assert tuned.settings["reg_item"] <= 2
    assert tuned.value == pytest.approx(0.5, abs=0.06)


def test_svdpp_is_tuned_to_what_no_offset_tells() -> None:
    # Users like the even or the odd items; neither users nor items are better than others.
    rng = np.random.default_rng(0)
    events = [(2 + rng.permutation(20)[:10]).tolist() for _ in range(80)]
    rating = [
        [3.0 + (1 if item % 2 == user % 2 else -1) + rng.normal(0, 0.3) for item in row]
        for user, row in enumerate(events)
    ]
    histories = make_histories(events, split=[[0] * 8 + [1] * 2] * 80, labels={"rating": rating})
    values = {}
    for name in ("bias", "svdpp"):
        tuned = baselines.tune_pointwise(name, histories, "rating", 22, kind="regression")
        assert tuned.tried >= len(baselines.GRIDS[name])
        model = baselines.fit_pointwise(
            name, histories.before("validation"), "rating", 22, settings=tuned.settings
        )
        rows = baselines.labelled_rows(histories, "rating", "validation")
        error = (
            model.predict(histories.event_user[rows], histories.item_index[rows])
            - histories.labels["rating"][rows]
        )
        values[name] = tuned.value
        assert tuned.value == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-6)
    assert values["bias"] > 0.9
    assert values["svdpp"] < 0.6
