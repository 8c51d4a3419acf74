"""Many users at once: arrays say what requests are told, one by one."""

import numpy as np
import pytest
from small_bundle import NUM_ITEMS, Small, make_small

from mtrec.recommender import Recommender


@pytest.fixture(scope="module")
def recommender(small: Small) -> Recommender:
    return Recommender.load(small.path, threads=1)


def test_lists_hold_only_allowed_items(small: Small, recommender: Recommender) -> None:
    allowed = np.zeros(NUM_ITEMS + 2, bool)
    allowed[[3, 5, 8, 12]] = True
    everything = recommender.rank_lists(small.histories, k=NUM_ITEMS).item_index
    found = recommender.rank_lists(small.histories, k=NUM_ITEMS, allowed=allowed).item_index
    for row, ranked in zip(found, everything, strict=True):
        assert row[row >= 0].tolist() == [item for item in ranked if item in (3, 5, 8, 12)]


def test_conditions_are_a_requests_filter(small: Small, recommender: Recommender) -> None:
    conditions = {"brand": "a", "price": {"max": 7}}
    lists = recommender.rank_lists(
        small.histories, k=5, conditions=conditions, allowed=np.arange(NUM_ITEMS + 2) != 2
    )
    for row, user_id in enumerate(small.histories.user_ids.tolist()):
        (answer,) = recommender.recommend(
            [{"user_id": user_id, "k": 5, "filter": conditions, "exclude": ["item-00"]}]
        )
        expected = [entry["item_id"] for entry in answer["recommendations"]]
        found = lists.item_index[row]
        assert recommender.item_ids(found[found >= 0]) == expected


def test_lists_are_what_each_dial_alone_gives(small: Small, recommender: Recommender) -> None:
    dials = (0.0, 0.3, 0.9)
    together = recommender.diversified(small.histories, k=4, diversities=dials)
    for dial, lists in zip(dials, together, strict=True):
        alone = recommender.rank_lists(small.histories, k=4, diversity=dial)
        assert lists.tolist() == alone.item_index.tolist()
    assert together[0].tolist() != together[2].tolist()


def test_pairs_are_predicted_as_in_requests(small: Small, recommender: Recommender) -> None:
    rows, items = np.array([4, 0, 4]), np.array([3, 9, 13])
    found = recommender.score_pairs(small.histories, rows, items)
    assert set(found) == {"stars", "like"}
    for at, (row, item) in enumerate(zip(rows, items, strict=True)):
        request = {"user_id": small.histories.user_ids[row]}
        (entry,) = recommender.score(request, recommender.item_ids(np.array([item])))
        for task, values in found.items():
            assert values[at] == pytest.approx(entry["tasks"][task], rel=1e-5)


def test_terms_of_the_logits_know_what_requests_by_id_know(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """A bundle keeps a user's latest events; what is added to the logits must not see more."""
    small = make_small(tmp_path_factory.mktemp("terms"), ials=True)
    assert (np.diff(small.histories.offsets) > small.config.model.kept_events).any()
    recommender = Recommender.load(small.path)
    lists = recommender.rank_lists(small.histories, k=4)
    for row, user_id in enumerate(small.histories.user_ids.tolist()):
        (answer,) = recommender.recommend([{"user_id": user_id, "k": 4}])
        scores = [entry["score"] for entry in answer["recommendations"]]
        assert lists.score[row][: len(scores)].tolist() == pytest.approx(scores, rel=1e-5)


def test_explanations_are_those_of_requests(small: Small, recommender: Recommender) -> None:
    lists = recommender.rank_lists(small.histories, k=3)
    # Requests know of a stored user what the bundle keeps.
    known = small.histories.latest(small.config.model.kept_events)
    seen = np.split(small.histories.item_index, small.histories.offsets[1:-1])
    why = recommender.explain_lists(known, lists, exclude=seen)
    for row, user_id in enumerate(small.histories.user_ids.tolist()):
        (answer,) = recommender.recommend([{"user_id": user_id, "k": 3, "explain": True}])
        for found, entry in zip(why[row], answer["recommendations"], strict=True):
            assert found.content_share == pytest.approx(entry["content_share"], rel=1e-5)
            named = [reason["item_id"] for reason in entry["reasons"]]
            assert recommender.item_ids(found.reasons) == named


def test_friends_are_those_of_requests(tmp_path_factory: pytest.TempPathFactory) -> None:
    small = make_small(tmp_path_factory.mktemp("friends"), social=True)
    recommender = Recommender.load(small.path)
    users = ["u3", "u0"]
    positions, score = recommender.friend_lists(recommender.bundle.users.find(users), k=4)
    for row, user_id in enumerate(users):
        answer = recommender.friends({"user_id": user_id}, k=4)
        found = positions[row][positions[row] >= 0]
        assert recommender.bundle.users.user_ids(found) == [e["user_id"] for e in answer]
        assert score[row, : len(found)].tolist() == pytest.approx([e["score"] for e in answer])
