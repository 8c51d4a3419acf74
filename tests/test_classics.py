"""The classical recommenders against brute force and dense oracles, on small histories."""

import numpy as np
import pytest
from sklearn.linear_model import ElasticNet, Ridge
from small_histories import dense, make_histories, random_histories

from mtrec import baselines, classics
from mtrec.baselines import fit_pointwise, fit_ranking, rank
from mtrec.data.histories import Histories


def _texts(num_items: int, width: int = 7) -> np.ndarray:
    """Give random text vectors; item 4 has none."""
    text = np.random.default_rng(3).normal(size=(num_items, width)) + 0.5
    text[:2] = text[4] = 0.0
    return text


def test_popularity_ranks_by_events() -> None:
    histories = make_histories([[2, 3, 4], [3, 4], [4], []])
    model = fit_ranking("popularity", histories, 6, seed=0, settings={})
    assert rank(model, histories, 6, k=4)[3].tolist() == [4, 3, 2, 5]


def test_recent_popularity_weighs_an_event_by_two_to_its_age_in_half_lives() -> None:
    # ages 10 and 0 of a span of 10; the half-life is half the span: weights 1/4 and 1
    histories = make_histories([[2, 2, 2, 3]], time=[[0.0, 0.0, 0.0, 10.0]])
    model = fit_ranking("recent_popularity", histories, 4, seed=0, settings={"half_life": 0.5})
    np.testing.assert_allclose(model.score_users(histories)[0], [0, 0, 0.75, 1.0])


def test_recent_popularity_without_times_is_popularity() -> None:
    histories = make_histories([[2, 2, 3]])
    model = fit_ranking("recent_popularity", histories, 4, seed=0, settings={"half_life": 0.5})
    assert model.score_users(histories)[0].tolist() == [0, 0, 2, 1]


def test_random_depends_on_seed_and_user_and_not_on_the_block() -> None:
    histories = random_histories(6, 30)
    model = fit_ranking("random", histories, 32, seed=3, settings={})
    scores = model.score_users(histories)
    np.testing.assert_array_equal(model.score_users(histories.rows([4]))[0], scores[4])
    assert (scores[0] != scores[1]).all()
    other = fit_ranking("random", histories, 32, seed=4, settings={})
    assert (other.score_users(histories) != scores).any()


def test_random_lists_hit_at_the_level_of_chance() -> None:
    # 400 users, one relevant item among 50 unseen, lists of 10: hit rate 1/5, standard error .02
    histories = make_histories([[2, 3] for _ in range(400)], split=[[0, 2]] * 400)
    known = histories.before("test")
    model = fit_ranking("random", known, 53, seed=0, settings={})
    relevance = baselines.relevant_items(histories, "test", 53)
    hits = relevance.hits(rank(model, known, 53, k=10))
    assert hits.any(1).mean() == pytest.approx(0.2, abs=0.06)


def test_bigram_ranks_what_followed_most_often_then_by_popularity() -> None:
    # after 2: 3 twice, 4 once; 5 is the most popular item that never follows 2
    events = [[2, 3], [2, 3], [2, 4], [5], [5], [5], [6], [2]]
    histories = make_histories(events)
    model = fit_ranking("bigram", histories, 8, seed=0, settings={})
    assert rank(model, histories, 8, k=5)[7].tolist() == [3, 4, 5, 6, 7]


def test_bigram_does_not_join_two_users() -> None:
    histories = make_histories([[2], [3], [2]])
    model = fit_ranking("bigram", histories, 4, seed=0, settings={})
    assert model.score_users(histories)[0, 3] < 1.0


def test_slit_is_ridge_regression_of_the_next_item() -> None:
    histories, num_items = random_histories(40, 15), 17
    settings = {"half_life": 2.0, "reg": 3.0}
    model = fit_ranking("slit", histories, num_items, seed=0, settings=settings)
    rows = [
        histories.item_index[start:stop]
        for start, stop in zip(histories.offsets[:-1], histories.offsets[1:], strict=True)
    ]

    def state(row: np.ndarray) -> np.ndarray:
        met = np.zeros(num_items)
        for age, item in enumerate(row[::-1]):
            met[item] += 0.5 ** (age / 2.0) * (item >= 2)
        return met

    before = np.array([state(row[:at]) for row in rows for at in range(1, len(row))])
    after = np.eye(num_items)[[item for row in rows for item in row[1:]]]
    after[:, :2] = 0.0
    weights = np.linalg.solve(before.T @ before + 3.0 * np.eye(num_items), before.T @ after)
    expected = np.array([state(row) for row in rows]) @ weights
    np.testing.assert_allclose(model.score_users(histories), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shrink", [0.0, 5.0])
def test_itemknn_agrees_with_brute_force(shrink: float) -> None:
    histories, num_items, neighbours = random_histories(40, 15), 17, 4
    settings = {"neighbours": neighbours, "shrink": shrink}
    scores = fit_ranking("itemknn", histories, num_items, seed=0, settings=settings).score_users(
        histories
    )
    x = dense(histories, num_items)
    expected = np.zeros_like(scores)
    for j in range(2, num_items):
        similarity = np.zeros(num_items)
        for i in range(2, num_items):
            if i != j:
                both = (x[:, i] * x[:, j]).sum()
                root = np.sqrt(x[:, i].sum()) * np.sqrt(x[:, j].sum())
                similarity[i] = both / (root + shrink)
        near = np.argsort(-similarity, kind="stable")[:neighbours]
        expected[:, j] = x[:, near] @ similarity[near]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_itemknn_does_not_depend_on_the_block(monkeypatch) -> None:
    histories, settings = random_histories(30, 20), {"neighbours": 5, "shrink": 0.0}
    whole = fit_ranking("itemknn", histories, 22, seed=0, settings=settings).score_users(histories)
    monkeypatch.setattr(classics, "_BLOCK", 70)
    parts = fit_ranking("itemknn", histories, 22, seed=0, settings=settings).score_users(histories)
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize("users", [12, 60], ids=["fewer users than items", "more users than items"])
def test_ease_agrees_with_ridge_regressions_that_leave_the_item_out(users: int) -> None:
    histories, num_items, reg = random_histories(users, 20), 22, 7.0
    model = fit_ranking("ease", histories, num_items, seed=0, settings={"reg": reg})
    x = dense(histories, num_items)
    expected = np.zeros((users, num_items))
    for j in range(2, num_items):
        others = np.delete(np.arange(num_items), j)
        gram = x[:, others].T @ x[:, others] + reg * np.eye(num_items - 1)
        expected[:, j] = x[:, others] @ np.linalg.solve(gram, x[:, others].T @ x[:, j])
    np.testing.assert_allclose(model.score_users(histories), expected, atol=2e-6)


def test_slim_agrees_with_elastic_nets_that_leave_the_item_out() -> None:
    histories, num_items, l1, l2 = random_histories(60, 20), 22, 1.0, 5.0
    model = fit_ranking("slim", histories, num_items, seed=0, settings={"l1": l1, "l2": l2})
    x = dense(histories, num_items).astype(np.float64)
    expected = np.zeros((60, num_items))
    for j in range(2, num_items):
        others = x.copy()
        others[:, j] = 0.0
        # its objective is ours over the number of rows
        net = ElasticNet(
            alpha=(l1 + l2) / 60,
            l1_ratio=l1 / (l1 + l2),
            fit_intercept=False,
            positive=True,
            tol=1e-10,
            max_iter=50_000,
        ).fit(others, x[:, j])
        expected[:, j] = others @ net.coef_
    np.testing.assert_allclose(model.score_users(histories), expected, atol=2e-3)


def test_ials_users_solve_the_normal_equations_of_their_history() -> None:
    histories = random_histories(50, 20)
    settings = {"factors": 6, "alpha": 8.0, "reg": 2.0}
    model = fit_ranking("ials", histories, 22, seed=0, settings=settings)
    y = model._fitted._factors.items.astype(np.float64)
    for user, touched in enumerate(dense(histories, 22)[:5]):
        confidence = np.where(touched > 0, 8.0, 1.0)
        left = (y * confidence[:, None]).T @ y + 2.0 * np.eye(6)
        vector = np.linalg.solve(left, y.T @ (confidence * touched))
        np.testing.assert_allclose(model.score_users(histories)[user], y @ vector, atol=2e-4)


def test_ials_reaches_the_loss_of_a_dense_alternating_oracle() -> None:
    histories = random_histories(50, 20)
    settings = {"factors": 5, "alpha": 8.0, "reg": 2.0}
    model = fit_ranking("ials", histories, 22, seed=0, settings=settings)
    p = dense(histories, 22)
    c = np.where(p > 0, 8.0, 1.0)

    def solve(fixed: np.ndarray, weight: np.ndarray, target: np.ndarray) -> np.ndarray:
        eye = 2.0 * np.eye(5)
        return np.stack(
            [
                np.linalg.solve((fixed * w[:, None]).T @ fixed + eye, fixed.T @ (w * t))
                for w, t in zip(weight, target, strict=True)
            ]
        )

    def loss(x: np.ndarray, y: np.ndarray) -> float:
        return float((c * (p - x @ y.T) ** 2).sum() + 2.0 * ((x**2).sum() + (y**2).sum()))

    y = np.random.default_rng(1).normal(size=(22, 5)) * 0.1
    for _ in range(60):
        x = solve(y, c, p)
        y = solve(x, c.T, p.T)
    item = model._fitted._factors.items.astype(np.float64)
    assert loss(solve(item, c, p), item) == pytest.approx(loss(x, y), rel=0.02)


def test_text_nearest_is_the_cosine_to_the_mean_text_of_the_history() -> None:
    histories, text = random_histories(30, 20), _texts(22)
    model = fit_ranking("text_nearest", histories, 22, seed=0, settings={}, text=text)
    scores = model.score_users(histories)
    for user in range(30):
        history = histories.item_index[histories.offsets[user] : histories.offsets[user + 1]]
        mean = np.mean([text[item] for item in history if item != 4], axis=0)
        for item in range(2, 22):
            size = np.linalg.norm(mean) * np.linalg.norm(text[item])
            expected = mean @ text[item] / size if item != 4 else 0.0
            assert scores[user, item] == pytest.approx(expected, abs=1e-6)


def test_ials_text_tells_the_factors_of_unmet_items_from_their_texts() -> None:
    # 18 items are met, the four after them are not; of item 4 there is no text, nor of item 21.
    histories, text = random_histories(40, 18), _texts(24)
    text[21] = 0.0
    settings = {"factors": 5.0, "alpha": 8.0, "reg": 2.0}
    ials = fit_ranking("ials", histories, 24, seed=0, settings=settings)
    found = fit_ranking(
        "ials_text", histories, 24, seed=0, settings={**settings, "ridge": 3.0}, text=text
    )
    y = ials._fitted._factors.items.astype(np.float64)
    met = [item for item in range(2, 20) if item != 4]
    ridge = Ridge(alpha=3.0).fit(text[met], y[met])
    expected = y.copy()
    for item in (20, 22, 23):
        expected[item] = ridge.predict(text[[item]])[0]
    expected[21] = 0.0
    for user, touched in enumerate(dense(histories, 24)[:5]):
        confidence = np.where(touched > 0, 8.0, 1.0)
        left = (y * confidence[:, None]).T @ y + 2.0 * np.eye(5)
        vector = np.linalg.solve(left, y.T @ (confidence * touched))
        np.testing.assert_allclose(
            found.score_users(histories)[user, 2:], (expected @ vector)[2:], atol=2e-4
        )


def test_mean_predicts_the_mean_of_the_known_labels() -> None:
    histories = make_histories([[2, 3, 4]], labels={"rating": [[1.0, 4.0, np.nan]]})
    model = fit_pointwise("mean", histories, "rating", 6, settings={})
    assert model.predict(np.array([0, 0]), np.array([2, 5], np.int32)).tolist() == [2.5, 2.5]


def test_bias_solves_its_ridge_regression() -> None:
    rng = np.random.default_rng(0)
    histories = random_histories(15, 10)
    label = rng.integers(1, 6, histories.num_events).astype(np.float32)
    histories = Histories(
        histories.user_ids,
        histories.offsets,
        histories.item_index,
        histories.timestamp,
        histories.split,
        labels={"rating": label},
    )
    settings = {"reg_user": 3.0, "reg_item": 2.0}
    model = fit_pointwise("bias", histories, "rating", 12, settings=settings)
    user, item = histories.event_user, histories.item_index
    design = np.concatenate([np.eye(15)[user], np.eye(12)[item]], axis=1)
    penalty = np.diag([3.0] * 15 + [2.0] * 12)
    offsets = np.linalg.solve(design.T @ design + penalty, design.T @ (label - label.mean()))
    np.testing.assert_allclose(
        model.predict(user, item), label.mean() + design @ offsets, atol=1e-4
    )


def test_bias_predicts_the_mean_for_new_users_and_items() -> None:
    histories = make_histories([[2, 3], []], labels={"rating": [[1.0, 5.0], []]})
    settings = {"reg_user": 1.0, "reg_item": 1.0}
    model = fit_pointwise("bias", histories, "rating", 6, settings=settings)
    assert model.predict(np.array([1]), np.array([5], np.int32)).tolist() == [3.0]
