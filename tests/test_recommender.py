import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from small_bundle import NUM_ITEMS, Small, item_ids, make_small, told

from mtrec.bundle import load_bundle
from mtrec.errors import RequestError
from mtrec.recommender import Limits, Recommender


@pytest.fixture(scope="module")
def recommender(small: Small) -> Recommender:
    return Recommender.load(small.path, threads=1)


@pytest.fixture(scope="module")
def integers(small_integers: Small) -> Recommender:
    return Recommender.load(small_integers.path)


def listed(answer: Mapping[str, Any]) -> list[Any]:
    return [entry["item_id"] for entry in answer["recommendations"]]


# ---- lists --------------------------------------------------------------------------------------


def test_known_user_gets_a_sorted_list_of_unseen_items(
    small: Small, recommender: Recommender
) -> None:
    (answer,) = recommender.recommend([{"user_id": "u1", "k": 4}])
    scores = [entry["score"] for entry in answer["recommendations"]]
    seen = {event["item_id"] for event in told(small, 1)}
    assert (answer["user_id"], answer["cold_start"]) == ("u1", False)
    assert answer["model_version"] == small.version
    assert len(scores) == 4 and scores == sorted(scores, reverse=True)
    assert scores[0] == 1.0 and all(0.0 <= score <= 1.0 for score in scores)
    assert not seen & set(listed(answer))
    assert list(answer["recommendations"][0]["tasks"]) == ["click", "stars", "like"]


def test_all_items_come_when_k_is_large_and_seen_ones_may(recommender: Recommender) -> None:
    (answer,) = recommender.recommend([{"user_id": "u5", "k": 50, "include_seen": True}])
    assert sorted(listed(answer)) == item_ids(False)


def test_history_in_the_request_gives_what_the_stored_one_gives(
    small: Small, recommender: Recommender
) -> None:
    rows = [row for row in range(7) if row != 2]
    users = small.histories.user_ids[rows].tolist()
    stored = recommender.recommend([{"user_id": user_id, "k": 5} for user_id in users])
    explicit = recommender.recommend(
        [
            {"user_id": user_id, "history": told(small, row), "k": 5}
            for user_id, row in zip(users, rows, strict=True)
        ]
    )
    lists = recommender.rank_lists(small.histories.rows(rows), k=5)
    item_index, score = lists.item_index, lists.score
    ids = ["", "", *item_ids(False)]
    for at, (one, other) in enumerate(zip(stored, explicit, strict=True)):
        assert listed(one) == listed(other) == [ids[place] for place in item_index[at] if place > 0]
        for position, (first, second) in enumerate(
            zip(one["recommendations"], other["recommendations"], strict=True)
        ):
            assert first["score"] == pytest.approx(second["score"], rel=1e-5)
            assert first["score"] == pytest.approx(score[at, position], rel=1e-5)
            assert first["tasks"] == pytest.approx(second["tasks"], rel=1e-5)


def test_history_is_put_in_order_of_time(small: Small, recommender: Recommender) -> None:
    events = told(small, 1)
    forward, backward = recommender.recommend([{"history": events}, {"history": events[::-1]}])
    assert forward["recommendations"] == backward["recommendations"]


def test_unknown_items_of_a_history_are_skipped_and_told(
    small: Small, recommender: Recommender
) -> None:
    events = told(small, 1)
    strange: list[dict[str, object]] = [{"item_id": "no such"}, {"item_id": 17}]
    plain, answer = recommender.recommend(
        [{"history": events}, {"history": [strange[0], *events, strange[1]]}]
    )
    assert answer["ignored"] == ["no such", 17]
    assert listed(answer) == listed(plain)
    assert "ignored" not in plain


def test_history_replaces_what_was_seen(recommender: Recommender) -> None:
    history = [{"item_id": "item-03", "timestamp": 1e9}]
    (answer,) = recommender.recommend([{"user_id": "u1", "history": history, "k": 50}])
    assert sorted(listed(answer)) == [i for i in item_ids(False) if i != "item-03"]


def test_batch_equals_loop_of_singles(small: Small, recommender: Recommender) -> None:
    requests: list[dict[str, Any]] = [
        {"user_id": "u1"},
        {"user_id": "stranger", "k": 3},
        {"user_id": "u6"},
        {"history": told(small, 5), "explain": True},
        {"text": "garden kitchen"},
        {"user_id": "u3", "weights": {"like": 1.0, "stars": 2}},
        {"user_id": "u2", "filter": {"brand": "a"}, "diversity": 0.4},
        {"user_id": "u4", "context": {"hour": 3, "device": "tv"}, "exclude": ["item-00"]},
        {},
    ]
    batch = recommender.recommend(requests)
    singles = [recommender.recommend([request])[0] for request in requests]
    for one, other in zip(batch, singles, strict=True):
        assert listed(one) == listed(other)
        assert {key: one[key] for key in one if key != "recommendations"} == {
            key: other[key] for key in other if key != "recommendations"
        }
        for first, second in zip(one["recommendations"], other["recommendations"], strict=True):
            assert first["score"] == pytest.approx(second["score"], rel=1e-5)
            assert first["tasks"] == pytest.approx(second["tasks"], rel=1e-4)


def test_no_requests_give_no_answers(recommender: Recommender) -> None:
    assert recommender.recommend([]) == []


# ---- cold start ---------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [{}, {"user_id": "stranger"}, {"history": []}])
def test_user_of_whom_nothing_is_known_gets_what_is_popular(
    recommender: Recommender, request_: dict[str, object]
) -> None:
    (answer,) = recommender.recommend([{**request_, "k": NUM_ITEMS}])
    counts = recommender.bundle.popular[2:]
    ids = item_ids(False)
    expected = sorted(range(NUM_ITEMS), key=lambda at: (-counts[at], ids[at]))
    assert answer["cold_start"] is True
    assert answer["user_id"] == request_.get("user_id")
    assert listed(answer) == [ids[at] for at in expected]
    assert [entry["score"] for entry in answer["recommendations"]] == pytest.approx(
        [counts[at] / counts.max() for at in expected]
    )


def test_known_user_without_events_is_known_by_features(recommender: Recommender) -> None:
    (answer,) = recommender.recommend([{"user_id": "u6"}])
    assert answer["cold_start"] is False


def test_text_alone_is_no_cold_start(recommender: Recommender) -> None:
    garden, space, none = recommender.recommend(
        [{"text": "garden"}, {"text": "space"}, {"text": "  "}]
    )
    assert (garden["cold_start"], none["cold_start"]) == (False, True)
    assert [e["score"] for e in garden["recommendations"]] != [
        e["score"] for e in space["recommendations"]
    ]


def test_stored_text_and_the_same_text_in_a_request_give_one_answer(
    recommender: Recommender,
) -> None:
    stored, told_ = recommender.recommend(
        [{"user_id": "u7"}, {"user_id": "u7", "text": "loves a garden"}]
    )
    assert stored["recommendations"] == told_["recommendations"]


@pytest.fixture(scope="module", params=[False, True], ids=["no user text", "behaviour text"])
def in_words(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A bundle whose users' texts do not come from a template."""
    return make_small(tmp_path_factory.mktemp("words"), text=request.param, template=False)


def logits_and_cosines(
    recommender: Recommender, answer: dict[str, Any], text: str
) -> tuple[dict[str, float], dict[str, float]]:
    """What an answer says of logits, relative to the best, and each item's cosine with a text."""
    near = recommender.similar_items(text=text, k=50)
    return (
        {e["item_id"]: math.log(e["tasks"]["click"]) for e in answer["recommendations"]},
        {e["item_id"]: 2.0 * e["score"] - 1.0 for e in near},
    )


@pytest.mark.parametrize("user", [{"user_id": "u7"}, {"history": [{"item_id": "item-04"}]}])
def test_a_wish_in_words_adds_to_logits_by_likeness(
    in_words: Small, user: dict[str, object]
) -> None:
    recommender = Recommender.load(in_words.path)
    # The spread of the logits is that of the whole catalogue.
    text, request = "space story", {**user, "k": 50, "include_seen": True}
    without, with_it = recommender.recommend([request, {**request, "text": text}])
    before, cosine = logits_and_cosines(recommender, without, text)
    after, _ = logits_and_cosines(recommender, with_it, text)
    assert set(after) == set(before) == set(cosine)
    scale = 10.0 * np.std(list(before.values()))
    expected = {item: before[item] + scale * cosine[item] for item in before}
    best = max(expected.values())
    is_the_sum = all(
        after[item] == pytest.approx(expected[item] - best, abs=1e-5) for item in after
    )
    # u7 has a text in the store; of who brings a history alone the words are the user's text too.
    reads_texts = recommender.bundle.sizes.users.text_width > 0
    assert is_the_sum is not (reads_texts and "history" in user)
    (rated,) = recommender.score({**user, "text": text}, [min(after)])
    assert rated["tasks"]["click"] == pytest.approx(math.exp(after[min(after)]), rel=1e-6)


def test_words_alone_stand_for_the_items_like_them(in_words: Small) -> None:
    recommender = Recommender.load(in_words.path)
    similar = [e["item_id"] for e in recommender.similar_items(text="space story", k=10)]
    by_text, by_items = recommender.recommend(
        [
            {"text": "space story", "k": 50},
            {
                "text": "space story",
                "history": [{"item_id": i} for i in similar[::-1]],
                "include_seen": True,
                "k": 50,
            },
        ]
    )
    assert by_text["cold_start"] is False
    assert by_text["recommendations"] == by_items["recommendations"]


def test_reasons_of_a_wish_are_told_with_it(in_words: Small) -> None:
    """A reason's effect is what the item's share of the softmax with the wish loses."""
    recommender = Recommender.load(in_words.path)
    history = [{"item_id": i} for i in ("item-02", "item-05", "item-09")]
    request: dict[str, Any] = {"user_id": "nobody", "text": "garden", "k": 50}

    def shares(events: list[dict[str, str]]) -> dict[str, float]:
        gone = {"exclude": [e["item_id"] for e in history], "include_seen": True}
        (answer,) = recommender.recommend([{**request, "history": events, **gone}])
        numbers = {e["item_id"]: e["tasks"]["click"] for e in answer["recommendations"]}
        return {item: math.log(n / sum(numbers.values())) for item, n in numbers.items()}

    whole = shares(history)
    less = {e["item_id"]: shares([o for o in history if o != e]) for e in history}
    (answer,) = recommender.recommend([{**request, "history": history, "explain": True}])
    told_ = 0
    for entry in answer["recommendations"]:
        assert 0.0 <= entry["content_share"] <= 1.0
        for reason in entry["reasons"]:
            item = entry["item_id"]
            effect = whole[item] - less[reason["item_id"]][item]
            assert reason["effect"] == pytest.approx(effect, abs=1e-5)
            told_ += 1
    assert told_ > 0


# ---- wishes -------------------------------------------------------------------------------------


def test_weights_change_what_the_score_is(recommender: Recommender) -> None:
    weights = {"click": 1.0, "like": 3.0, "stars": 0.0}
    (answer,) = recommender.recommend([{"user_id": "u1", "weights": weights, "k": 50}])
    for entry in answer["recommendations"]:
        tasks = entry["tasks"]
        assert entry["score"] == pytest.approx((tasks["click"] + 3 * tasks["like"]) / 4)


def test_regression_enters_the_score_by_its_range(recommender: Recommender) -> None:
    (answer,) = recommender.recommend([{"user_id": "u1", "weights": {"stars": 2.0}}])
    for entry in answer["recommendations"]:
        assert entry["score"] == pytest.approx((entry["tasks"]["stars"] - 1.0) / 4.0)


def test_only_the_candidates_of_retrieval_are_ranked(recommender: Recommender) -> None:
    by_click, by_like = recommender.recommend(
        [{"user_id": "stranger-2", "history": [{"item_id": "item-01"}], "k": 8, **wish}
         for wish in ({}, {"weights": {"like": 1}})]
    )  # fmt: skip
    assert set(listed(by_click)) == set(listed(by_like))  # score.candidates is 8


def test_excluded_items_do_not_come(recommender: Recommender) -> None:
    (plain,) = recommender.recommend([{"user_id": "u1"}])
    gone = listed(plain)[:2]
    (answer,) = recommender.recommend([{"user_id": "u1", "exclude": [*gone, "unheard of"]}])
    assert not set(gone) & set(listed(answer))
    assert answer["recommendations"][0]["score"] == 1.0


def test_filter_leaves_scores_as_they_are(recommender: Recommender) -> None:
    plain, filtered = recommender.recommend(
        [{"user_id": "u3", "k": 50}, {"user_id": "u3", "k": 50, "filter": {"genres": "garden"}}]
    )
    garden = {i for at, i in enumerate(item_ids(False)) if at % 3 == 1}
    expected = [entry for entry in plain["recommendations"] if entry["item_id"] in garden]
    assert listed(filtered) == [entry["item_id"] for entry in expected]
    assert [e["score"] for e in filtered["recommendations"]] == pytest.approx(
        [e["score"] for e in expected], rel=1e-5
    )


def test_filter_that_nothing_meets_gives_an_empty_list(recommender: Recommender) -> None:
    (answer,) = recommender.recommend([{"user_id": "u1", "filter": {"price": {"min": 1000}}}])
    assert answer["recommendations"] == []


def test_diversity_spreads_the_list_and_keeps_it_sorted(recommender: Recommender) -> None:
    def spread(answer: Mapping[str, Any]) -> float:
        ids = item_ids(False)
        vectors = recommender.bundle.vectors.content[[2 + ids.index(i) for i in listed(answer)]]
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        return float((unit @ unit.T)[np.triu_indices(len(unit), 1)].mean())

    plain, diverse = recommender.recommend(
        [{"user_id": "u3", "k": 4}, {"user_id": "u3", "k": 4, "diversity": 1.0}]
    )
    scores = [entry["score"] for entry in diverse["recommendations"]]
    assert spread(diverse) < spread(plain)
    assert scores == sorted(scores, reverse=True) and len(scores) == 4


def test_context_changes_ranking_tasks_but_not_retrieval(recommender: Recommender) -> None:
    plain, late = recommender.recommend(
        [{"user_id": "u1"}, {"user_id": "u1", "context": {"hour": 23, "device": "tv"}}]
    )
    assert listed(plain) == listed(late)
    assert plain["recommendations"][0]["tasks"]["like"] != pytest.approx(
        late["recommendations"][0]["tasks"]["like"], rel=1e-3
    )


# ---- other questions ----------------------------------------------------------------------------


def test_score_says_what_recommend_says(recommender: Recommender) -> None:
    (answer,) = recommender.recommend([{"user_id": "u4", "k": 6}])
    entries = answer["recommendations"]
    scores = recommender.score({"user_id": "u4"}, [e["item_id"] for e in entries[::-1]])
    for one, other in zip(entries[::-1], scores, strict=True):
        assert one["item_id"] == other["item_id"]
        assert one["score"] == pytest.approx(other["score"], rel=1e-5)
        assert one["tasks"] == pytest.approx(other["tasks"], rel=1e-5)


def test_score_of_a_stranger_is_popularity(recommender: Recommender) -> None:
    (answer,) = recommender.recommend([{"k": 3}])
    scores = recommender.score({}, listed(answer))
    assert [s["score"] for s in scores] == [e["score"] for e in answer["recommendations"]]


def test_score_of_a_seen_item_is_at_most_one(small: Small, recommender: Recommender) -> None:
    scores = recommender.score({"user_id": "u5"}, item_ids(False))
    assert len(scores) == NUM_ITEMS
    assert all(0.0 <= entry["score"] <= 1.0 for entry in scores)


def test_score_of_no_items_is_empty(recommender: Recommender) -> None:
    assert recommender.score({"user_id": "u1"}, []) == []


def test_unknown_item_is_not_found(recommender: Recommender) -> None:
    with pytest.raises(RequestError) as caught:
        recommender.score({"user_id": "u1"}, ["item-01", "nothing"])
    assert (caught.value.status, caught.value.field) == (404, "item_ids.1")


def test_similar_items_have_the_nearest_content(recommender: Recommender) -> None:
    found = recommender.similar_items(item_id="item-04", k=3)
    content = recommender.bundle.vectors.content.astype(np.float64)
    cosine = [
        (-1.0 if at in (0, 1, 6) or not v.any() else v @ content[6] / np.linalg.norm(v))
        for at, v in enumerate(content)
    ]
    expected = np.argsort(cosine)[::-1][:3]
    assert [entry["item_id"] for entry in found] == [item_ids(False)[at - 2] for at in expected]
    assert found[0]["score"] == pytest.approx(
        (1 + cosine[expected[0]] / np.linalg.norm(content[6])) / 2
    )


def test_item_without_content_is_like_nothing(recommender: Recommender) -> None:
    assert recommender.similar_items(item_id="item-10") == []


def test_text_finds_items_that_say_the_same(recommender: Recommender) -> None:
    found = recommender.similar_items(text="kitchen story number 5", k=1)
    assert found[0]["item_id"] == "item-05"
    assert found[0]["score"] == pytest.approx(1.0, abs=1e-3)


def test_friends_are_not_found_without_a_social_task(recommender: Recommender) -> None:
    with pytest.raises(RequestError, match="no social task") as caught:
        recommender.friends({"user_id": "u1"})
    assert caught.value.status == 404


@pytest.fixture(scope="module")
def befriended(tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    small = make_small(tmp_path_factory.mktemp("befriended"), social=True)
    return Recommender.load(small.path, threads=1)


def friend_logits(recommender: Recommender, user: int, vector: np.ndarray) -> np.ndarray:
    """z = s_a . s_b + w . (friends, items and ways over two friends in common), by loops."""
    social = recommender.bundle.users.social
    links = social.links.toarray()
    seen = [set(items.tolist()) for items in recommender.bundle.users.seen(np.arange(8))]
    weights = recommender.bundle.model.social.weights.tolist()
    logits = np.zeros(8)
    for other in range(8):
        common = [z for z in range(8) if links[user, z] and links[other, z]]
        friends = sum(1 / math.log(links[z].sum()) for z in common if links[z].sum() > 1)
        shared = seen[user] & seen[other]
        items = sum(1 / math.log(1 + sum(item in met for met in seen)) for item in shared)
        ways = sum(
            1 / (links[x].sum() * links[y].sum())
            for x in range(8)
            for y in range(8)
            if links[user, x] and links[x, y] and links[y, other] and x != other and y != user
        )
        counts = [math.log1p(friends), math.log1p(items), math.log1p(100 * ways)]
        logits[other] = vector @ social.vectors[other] + np.dot(weights, counts)
    return logits


def test_friends_are_sorted_by_the_logits_of_links_tastes_and_vectors(
    befriended: Recommender,
) -> None:
    social = befriended.bundle.users.social
    logits = friend_logits(befriended, 2, social.vectors[2])

    found = befriended.friends({"user_id": "u2"}, k=10)

    # u2 is linked to u0, u1 and u3
    wanted = sorted([4, 5, 6, 7], key=lambda other: -logits[other])
    assert [friend["user_id"] for friend in found] == [f"u{other}" for other in wanted]
    units = np.exp(logits[wanted] - logits[wanted[0]])
    assert [friend["score"] for friend in found] == pytest.approx(units.tolist(), rel=1e-5)


def test_a_history_in_the_request_makes_the_social_vector(
    befriended: Recommender, small: Small
) -> None:
    told_by_request = befriended.friends({"user_id": "u2", "history": told(small, 1)}, k=10)
    stored = befriended.friends({"user_id": "u1"}, k=10)

    # The links stay those of u2, whatever the history says.
    assert {friend["user_id"] for friend in told_by_request} == {"u4", "u5", "u6", "u7"}
    assert {friend["user_id"] for friend in stored} == {"u3", "u4", "u5", "u6", "u7"}


def test_somebody_new_with_a_history_is_told_of_those_of_like_taste(
    befriended: Recommender, small: Small
) -> None:
    found = befriended.friends({"history": told(small, 1)}, k=8)

    assert {friend["user_id"] for friend in found} == {f"u{n}" for n in range(8)}
    assert found[0]["score"] == 1.0


def test_somebody_of_whom_nothing_is_known_gets_those_with_most_links(
    befriended: Recommender,
) -> None:
    found = befriended.friends({"user_id": "nobody"}, k=3)

    # u2 has three links, u0 and u1 two each
    assert found == [
        {"user_id": "u2", "score": 1.0},
        {"user_id": "u0", "score": pytest.approx(2 / 3)},
        {"user_id": "u1", "score": pytest.approx(2 / 3)},
    ]


def test_the_social_task_is_no_part_of_an_items_score(befriended: Recommender) -> None:
    (answer,) = befriended.recommend([{"user_id": "u1"}])
    assert set(answer["recommendations"][0]["tasks"]) == {"click", "stars", "like"}
    with pytest.raises(RequestError, match="there are click, stars, like"):
        befriended.recommend([{"user_id": "u1", "weights": {"friends": 1.0}}])


def test_info_tells_the_model(small: Small, recommender: Recommender) -> None:
    info = recommender.info()
    assert info["model_version"] == small.version
    assert info["counts"] == {"items": 12, "users": 8}
    assert [task["name"] for task in info["tasks"]] == ["click", "stars", "like"]
    assert info["metrics"] == {"validation": {"click/ndcg@10": 0.5}}


def test_items_are_found_by_words_and_described(recommender: Recommender) -> None:
    found = recommender.find_items("KITCHEN story", 2)
    assert [entry["item_id"] for entry in found] == ["item-02", "item-05"]
    assert found == recommender.describe(["item-02", "unknown", "item-05"])
    assert found[0]["genres"] == ["kitchen", "all"]
    assert len(recommender.find_items("", 5)) == 5


# ---- ids ----------------------------------------------------------------------------------------


def test_integer_ids_come_back_as_integers_and_break_ties_as_such(integers: Recommender) -> None:
    (known,) = integers.recommend([{"user_id": 5}])
    (same,) = integers.recommend([{"user_id": "5"}])
    assert known == same and known["user_id"] == 5
    assert all(type(item_id) is int for item_id in listed(known))
    (popular,) = integers.recommend([{"k": 12}])
    pairs = [(-e["score"], e["item_id"]) for e in popular["recommendations"]]
    assert pairs == sorted(pairs)


def test_integer_items_may_be_named_as_text(integers: Recommender) -> None:
    one = integers.score({"user_id": 5}, [7, "14"])
    assert [entry["item_id"] for entry in one] == [7, 14]


def test_integer_histories_name_the_same_items(integers: Recommender) -> None:
    by_number, by_text = integers.recommend(
        [{"history": [{"item_id": 7}]}, {"history": [{"item_id": "7"}]}]
    )
    assert by_number["recommendations"] == by_text["recommendations"]
    assert 7 not in listed(by_number)


# ---- hostile requests ---------------------------------------------------------------------------

GOOD: dict[str, Any] = {"user_id": "u1"}
HOSTILE: list[tuple[object, str | None]] = [
    (None, None),
    ([], None),
    ("u1", None),
    (7, None),
    ({"user": "u1"}, "user"),
    ({1: 2}, "1"),
    ({"user_id": True}, "user_id"),
    ({"user_id": 1.5}, "user_id"),
    ({"user_id": ["u1"]}, "user_id"),
    ({"user_id": {}}, "user_id"),
    ({"user_id": ""}, "user_id"),
    ({"user_id": "\ud800"}, "user_id"),
    ({"user_id": 10**5000}, "user_id"),
    ({"history": "item-01"}, "history"),
    ({"history": {"item_id": "item-01"}}, "history"),
    ({"history": 3}, "history"),
    ({"history": [None]}, "history.0"),
    ({"history": ["item-01"]}, "history.0"),
    ({"history": [{}]}, "history.0.item_id"),
    ({"history": [{"item_id": None}]}, "history.0.item_id"),
    ({"history": [{"item_id": 1.5}]}, "history.0.item_id"),
    ({"history": [{"item_id": ["a"]}]}, "history.0.item_id"),
    ({"history": [{"item_id": "item-01", "rating": "5"}]}, "history.0.rating"),
    ({"history": [{"item_id": "item-01", "rating": math.nan}]}, "history.0.rating"),
    ({"history": [{"item_id": "item-01", "rating": 6}]}, "history.0.rating"),
    ({"history": [{"item_id": "item-01", "rating": True}]}, "history.0.rating"),
    ({"history": [{"item_id": "item-01", "hour": math.inf}]}, "history.0.hour"),
    ({"history": [{"item_id": "item-01", "hour": 1e300}]}, "history.0.hour"),
    ({"history": [{"item_id": "item-01", "hour": 10**400}]}, "history.0.hour"),
    ({"history": [{"item_id": "item-01", "device": 1.5}]}, "history.0.device"),
    ({"history": [{"item_id": "item-01", "device": []}]}, "history.0.device"),
    ({"history": [{"item_id": "item-01", "timestamp": "noon"}]}, "history.0.timestamp"),
    ({"history": [{"item_id": "item-01", "timestamp": math.inf}]}, "history.0.timestamp"),
    ({"history": [{"item_id": "item-01", "timestamp": {}}]}, "history.0.timestamp"),
    ({"history": [{"item_id": "item-01", "stars": 5}]}, "history.0.stars"),
    ({"history": [{"item_id": "item-01"}] * 21}, "history"),
    ({"text": 5}, "text"),
    ({"text": ["a"]}, "text"),
    ({"text": "x" * 20_001}, "text"),
    ({"text": "\udfff"}, "text"),
    ({**GOOD, "k": 0}, "k"),
    ({**GOOD, "k": -1}, "k"),
    ({**GOOD, "k": 51}, "k"),
    ({**GOOD, "k": 10**30}, "k"),
    ({**GOOD, "k": 2.0}, "k"),
    ({**GOOD, "k": "5"}, "k"),
    ({**GOOD, "k": True}, "k"),
    ({**GOOD, "exclude": "item-01"}, "exclude"),
    ({**GOOD, "exclude": [None]}, "exclude.0"),
    ({**GOOD, "include_seen": 1}, "include_seen"),
    ({**GOOD, "include_seen": "no"}, "include_seen"),
    ({**GOOD, "weights": []}, "weights"),
    ({**GOOD, "weights": {}}, "weights"),
    ({**GOOD, "weights": {"click": 0}}, "weights"),
    ({**GOOD, "weights": {"click": -1}}, "weights.click"),
    ({**GOOD, "weights": {"click": math.nan}}, "weights.click"),
    ({**GOOD, "weights": {"clack": 1}}, "weights.clack"),
    ({**GOOD, "filter": []}, "filter"),
    ({**GOOD, "filter": {"colour": 1}}, "filter.colour"),
    ({**GOOD, "filter": {"price": "5"}}, "filter.price"),
    ({**GOOD, "filter": {"price": {"min": 5, "max": math.nan}}}, "filter.price.max"),
    ({**GOOD, "filter": {"genres": {"min": 1}}}, "filter.genres"),
    ({**GOOD, "diversity": 1.1}, "diversity"),
    ({**GOOD, "diversity": math.nan}, "diversity"),
    ({**GOOD, "diversity": "high"}, "diversity"),
    ({**GOOD, "context": []}, "context"),
    ({**GOOD, "context": {"rating": 5}}, "context.rating"),
    ({**GOOD, "context": {"hour": "late"}}, "context.hour"),
    ({**GOOD, "explain": "yes"}, "explain"),
]


@pytest.mark.parametrize(("request_", "field"), HOSTILE)
def test_hostile_request_is_refused_with_its_field(
    recommender: Recommender, request_: Any, field: str | None
) -> None:
    with pytest.raises(RequestError) as caught:
        recommender.recommend([request_])
    assert (caught.value.status, caught.value.field) == (422, field)
    assert len(str(caught.value)) < 400
    str(caught.value).encode("utf-8")


def test_hostile_request_in_a_batch_is_named_by_its_number(recommender: Recommender) -> None:
    with pytest.raises(RequestError, match=r"requests\.1") as caught:
        recommender.recommend([GOOD, {**GOOD, "k": 0}])
    assert caught.value.field == "requests.1.k"


@pytest.mark.parametrize(
    "request_",
    [
        {"user_id": None, "history": None, "text": None, "k": 3, "filter": None},
        {"history": [{"item_id": "item-01", "timestamp": "2024-02-29T12:00:00Z"}]},
        {"history": [{"item_id": "item-01", "timestamp": -1e11}, {"item_id": "item-02"}]},
        {"history": [{"item_id": "item-01", "hour": 1e12}]},
        {"history": [{"item_id": "item-01", "device": 3}, {"item_id": "item-01"}]},
        {"history": [{"item_id": "item-01", "rating": None, "timestamp": None}]},
        {"user_id": "\x00", "text": "\x00"},
        {"user_id": "u1", "exclude": [1, "x", "item-01"], "filter": {}},
        {"user_id": "u1", "weights": {"click": 1e12, "like": 1e-300}},
        {"user_id": "u1", "filter": {"brand": [], "genres": ["x"]}, "explain": True},
        {"user_id": "u1", "k": 50, "diversity": 1, "explain": True, "include_seen": True},
    ],
)
def test_unusual_but_right_request_is_answered(
    recommender: Recommender, request_: dict[str, Any]
) -> None:
    (answer,) = recommender.recommend([request_])
    for entry in answer["recommendations"]:
        assert 0.0 <= entry["score"] <= 1.0
        assert all(math.isfinite(value) for value in entry["tasks"].values())


def test_similar_items_wants_exactly_one_thing(recommender: Recommender) -> None:
    for question in ({}, {"item_id": "item-01", "text": "x"}, {"text": " "}, {"item_id": ""}):
        with pytest.raises(RequestError):
            recommender.similar_items(**question)


def test_limits_of_the_caller_replace_those_of_the_bundle(small: Small) -> None:
    strict = Recommender(load_bundle(small.path), limits=Limits(max_k=2, max_history=1))
    with pytest.raises(RequestError, match="1 to 2"):
        strict.recommend([{"k": 3}])
    with pytest.raises(RequestError, match="at most 1"):
        strict.recommend([{"history": [{"item_id": "item-01"}] * 2}])


def test_one_request_without_a_list_is_told_how_to_ask(small: Small) -> None:
    recommender = Recommender.load(small.path)
    with pytest.raises(RequestError, match=r"found one: recommend\(\[request\]\)"):
        recommender.recommend({"user_id": "u1", "k": 3})
