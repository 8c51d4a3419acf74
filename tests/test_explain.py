"""Explanations: shares against their formula, reasons against a user without them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from small_bundle import Small, item_ids, told

from mtrec.bundle import Bundle, load_bundle
from mtrec.data.histories import Histories
from mtrec.explain import Explainer
from mtrec.ials import ImplicitFactors
from mtrec.ranker import Crowd, Ranker
from mtrec.recommender import Recommender


@pytest.fixture(scope="module")
def bundle(small: Small) -> Bundle:
    return load_bundle(small.path)


@pytest.fixture(scope="module")
def recommender(bundle: Bundle) -> Recommender:
    return Recommender(bundle, threads=1)


@pytest.fixture(scope="module")
def ranker(bundle: Bundle) -> Ranker:
    return Ranker(bundle, np.arange(14))


@pytest.fixture(scope="module")
def explainer(ranker: Ranker) -> Explainer:
    return Explainer(ranker)


@pytest.fixture(scope="module")
def crowd(small: Small, bundle: Bundle, ranker: Ranker) -> Crowd:
    users = bundle.users.rows(bundle.users.find(small.histories.user_ids.tolist()))
    return ranker.crowd(small.histories, users)


def test_content_share_follows_its_formula(
    bundle: Bundle, explainer: Explainer, crowd: Crowd
) -> None:
    user = crowd.states.vector[1].numpy()
    vectors = bundle.vectors
    content, collaborative = (
        np.abs(values @ user.astype(np.float64) - (values[2:] @ user.astype(np.float64)).mean())
        for values in (vectors.content, vectors.collaborative)
    )
    found = explainer.content_share(user, np.arange(2, 14))
    np.testing.assert_allclose(found, (content / (content + collaborative))[2:], rtol=1e-5)


def test_factors_that_a_text_tells_are_content(bundle: Bundle, crowd: Crowd) -> None:
    rng = np.random.default_rng(0)
    items = rng.normal(size=(14, 3)).astype(np.float32)
    told = np.isin(np.arange(14), [4, 13])
    ials = replace(ImplicitFactors.of(items, alpha=2.0, reg=1.0), told=told)
    explainer = Explainer(Ranker(replace(bundle, ials=ials), np.arange(14)))
    user = rng.normal(size=11).astype(np.float32)
    vectors = bundle.vectors
    parts = [
        values @ part.astype(np.float64) - (values[2:] @ part.astype(np.float64)).mean()
        for values, part in (
            (vectors.content, user[:8]),
            (vectors.collaborative, user[:8]),
            (items, user[8:]),
        )
    ]
    content = np.abs(parts[0] + np.where(told, parts[2], 0.0))
    collaborative = np.abs(parts[1] + np.where(told, 0.0, parts[2]))
    found = explainer.content_share(user, np.arange(2, 14))
    np.testing.assert_allclose(found, (content / (content + collaborative))[2:], rtol=1e-5)


def test_a_wish_is_content_and_what_else_is_added_is_not(
    bundle: Bundle, explainer: Explainer, crowd: Crowd
) -> None:
    rng = np.random.default_rng(7)
    wish, scores = rng.normal(size=(2, 14)).astype(np.float32)
    user = crowd.states.vector[1].numpy()
    content, collaborative = (
        values @ user.astype(np.float64) + more - (values[2:] @ user + more[2:]).mean()
        for values, more in (
            (bundle.vectors.content, wish),
            (bundle.vectors.collaborative, scores),
        )
    )
    expected = np.abs(content) / (np.abs(content) + np.abs(collaborative))
    found = explainer.content_share(user, np.arange(2, 14), wish + scores, wish)
    np.testing.assert_allclose(found, expected[2:], rtol=1e-4)


def test_share_of_nothing_is_a_half(explainer: Explainer) -> None:
    assert explainer.content_share(np.zeros(8, np.float32), np.array([2])).tolist() == [0.5]


def log_share(
    recommender: Recommender, histories: Histories, user: int, item: int, gone: list[int]
) -> float:
    """Log softmax of an item over the catalogue without some, from the model itself."""
    users = recommender.user_rows(histories.user_ids.tolist())
    vector = recommender._ranker.crowd(histories, users).states.vector[user].double()
    vectors = recommender._ranker._vectors
    logits = vectors.fused.double() @ vector + vectors.bias.double()
    logits[[0, 1, *gone]] = -torch.inf
    return float(torch.log_softmax(logits, 0)[item])


def test_reasons_are_what_the_recommendation_loses_without_them(
    small: Small, recommender: Recommender
) -> None:
    ids = item_ids(False)
    whole = small.histories
    for user in (0, 3, 5):
        history = told(small, user)
        (answer,) = recommender.recommend(
            [{"user_id": f"u{user}", "history": history, "explain": True}]
        )
        known = {event["item_id"] for event in history}
        seen = [2 + ids.index(str(item_id)) for item_id in known]
        for entry in answer["recommendations"]:
            item = 2 + ids.index(entry["item_id"])
            assert 0.0 <= entry["content_share"] <= 1.0
            before = log_share(recommender, whole, user, item, seen)
            effects = {}
            for reason in known:
                place = 2 + ids.index(reason)
                left = whole.select((whole.event_user != user) | (whole.item_index != place))
                effects[reason] = before - log_share(recommender, left, user, item, seen)
            expected = sorted((r for r in known if effects[r] > 0), key=lambda r: -effects[r])[:3]
            assert [reason["item_id"] for reason in entry["reasons"]] == expected
            for reason in entry["reasons"]:
                assert reason["effect"] == pytest.approx(effects[reason["item_id"]], abs=1e-5)
                assert -1.0 <= reason["similarity"] <= 1.0


def test_popular_list_has_no_content_share(recommender: Recommender) -> None:
    (answer,) = recommender.recommend([{"explain": True}])
    assert all("content_share" not in entry for entry in answer["recommendations"])
