"""The removal test against requests that are made one by one, and what it must be able to see."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small_bundle import Small, item_ids, told

from mtrec import removal
from mtrec.bundle import load_bundle
from mtrec.data.histories import Histories
from mtrec.recommender import Explanation, RankedLists, Recommender
from mtrec.removal import Standing, removal_test


@pytest.fixture(scope="module")
def recommender(small: Small) -> Recommender:
    return Recommender(load_bundle(small.path))


def stands(answer: dict[str, Any], item_id: str) -> tuple[int, float]:
    """Read from an answer's list an item's place by retrieval and its share of all numbers."""
    numbers = {e["item_id"]: e["tasks"]["click"] for e in answer["recommendations"]}
    place = 1 + sum(number > numbers[item_id] for number in numbers.values())
    return place, numbers[item_id] / sum(numbers.values())


def test_shares_are_those_of_requests_made_one_by_one(
    small: Small, recommender: Recommender
) -> None:
    counts = {"holds": 0, "every": 0, "falls": 0}
    explained = 0
    for row, user_id in enumerate(small.histories.user_ids):
        history = [e for e in told(small, row) if e["item_id"] in item_ids(False)]
        if len(history) < 2:
            continue

        def ask(
            gone: str, *, user_id: str = user_id, history: list[Any] = history, **wish: Any
        ) -> dict[str, Any]:
            left = [event for event in history if event["item_id"] != gone]
            never = [event["item_id"] for event in history]
            request = {"user_id": user_id, "history": left, "exclude": never, "k": 50, **wish}
            (answer,) = recommender.recommend([request])
            return answer

        whole = ask("none")
        best = ask("none", explain=True)["recommendations"][0]
        before = stands(whole, best["item_id"])
        lower = []
        for reason in best["reasons"]:
            after = stands(ask(reason["item_id"]), best["item_id"])
            lower.append(after[0] > before[0] or (after[0] == before[0] and after[1] < before[1]))
        if lower:
            explained += 1
            counts["holds"] += lower[0]
            counts["every"] += all(lower)
            first = ask(best["reasons"][0]["item_id"])
            counts["falls"] += stands(first, best["item_id"])[0] > before[0]

    found: Any = removal_test(recommender, small.histories, num_users=50, seed=0)

    assert found["users"] == 6  # the fourth has a single event
    assert found["users"] - found["without_reason"] == explained > 3
    for name, count in counts.items():
        assert (found[name]["count"], found[name]["of"]) == (count, explained)
    assert 0 < found["falls"]["count"] < explained


@pytest.mark.parametrize(("keep", "holds"), [(0, 0), (1, 3), (2, 3)])
def test_reasons_that_are_none_are_found_out(
    small: Small,
    recommender: Recommender,
    monkeypatch: pytest.MonkeyPatch,
    keep: int,
    holds: int,
) -> None:
    """Name, after some true reasons, the first item, which a model of four events cannot see."""
    histories, explain = small.histories.rows([1, 4, 5]), recommender.explain_lists

    def lie(known: Histories, lists: RankedLists) -> list[list[Explanation]]:
        first, why = known.item_index[known.offsets[:-1]], explain(known, lists)
        return [
            [replace(one, reasons=np.append(one.reasons[:keep], first[row]))]
            for row, (one,) in enumerate(why)
        ]

    honest: Any = removal_test(recommender, histories, num_users=50, seed=0)
    monkeypatch.setattr(recommender, "explain_lists", lie)
    lied: Any = removal_test(recommender, histories, num_users=50, seed=0)
    assert (honest["holds"]["count"], honest["every"]["count"], honest["every"]["of"]) == (3, 3, 3)
    assert (lied["holds"]["count"], lied["holds"]["of"]) == (holds, 3)
    assert lied["every"]["count"] == 0


def test_the_control_is_an_item_that_the_model_sees_and_no_reason_names(
    small: Small, recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed = []
    without = removal._without
    monkeypatch.setattr(
        removal, "_without", lambda known, item: removed.append(item) or without(known, item)
    )
    found: Any = removal_test(recommender, small.histories.rows([0, 1]), num_users=2, seed=0)
    # All three items of the first user are named; the second's four latest are 2, 4, 7 and 9.
    request = {"user_id": "u1", "history": told(small, 1), "k": 1, "explain": True}
    (why,) = recommender.recommend([request])
    ids = item_ids(False)
    reasons = why["recommendations"][0]["reasons"]
    named = {2 + ids.index(reason["item_id"]) for reason in reasons}
    assert len(named) == 3
    assert removed[-1].tolist() == [0, *({2, 4, 7, 9} - named)]
    assert found["control"]["of"] == 1


def test_a_later_place_is_lower_whatever_the_share() -> None:
    before = Standing(np.array([1, 1, 1, 2, 1]), np.array([0.5, 0.5, 0.5, 0.5, 0.5]))
    after = Standing(np.array([2, 1, 1, 1, 1]), np.array([0.9, 0.4, 0.6, 0.1, 0.5]))
    assert before.is_above(after).tolist() == [True, True, False, False, False]


def test_an_item_that_is_no_longer_read_stands_after_the_last(
    small: Small, recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "CANDIDATES", 3)
    one = small.histories.rows([0])
    whole = recommender.rank_lists(one, k=12, with_tasks=False)
    third, fourth = whole.item_index[0, 2:3], whole.item_index[0, 3:4]
    assert removal._ask(recommender, one, one, third).place.tolist() == [3]
    last = removal._ask(recommender, one, one, fourth)
    assert (last.place.tolist(), last.share.tolist()) == ([4], [0.0])


def test_the_same_seed_draws_the_same_users(small: Small, recommender: Recommender) -> None:
    one, two = (removal_test(recommender, small.histories, num_users=3, seed=4) for _ in range(2))
    assert one == two
    assert one["users"] == 3


def test_it_tells_how_many_users_are_done(
    small: Small, recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtrec.removal._USERS_PER_BLOCK", 2)
    done: list[int] = []
    found: Any = removal_test(recommender, small.histories, num_users=5, seed=0, watch=done.append)
    assert done == [2, 4, 5] and found["users"] == 5


def test_without_users_there_are_no_shares(small: Small, recommender: Recommender) -> None:
    found = removal_test(recommender, small.histories.rows([3]), num_users=9, seed=0)
    assert found["users"] == 0
    assert found["holds"] == found["control"] == {"count": 0, "of": 0}
