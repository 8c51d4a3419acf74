"""What is told of stored users is what the store was built from."""

from typing import TYPE_CHECKING

import numpy as np

from mtrec.recommender import Recommender

if TYPE_CHECKING:
    from small_bundle import Small


def test_the_latest_events_come_first_with_what_is_known_of_them(small: "Small") -> None:
    told = Recommender.load(str(small.bundles)).user("u1", 3)

    history = small.histories
    row = history.user_ids.tolist().index("u1")
    start, stop = history.offsets[row : row + 2]
    assert told["user_id"] == "u1"
    # The model sees four events, so four are stored; all six items were seen.
    assert (told["events"], told["seen"]) == (4, 6)
    assert [event["item_id"] for event in told["history"]] == [
        f"item-{index - 2:02d}" for index in history.item_index[start:stop][::-1][:3]
    ]
    for event, at in zip(told["history"], range(stop - 1, stop - 4, -1), strict=True):
        assert event["timestamp"] == history.timestamp[at]
        assert event["hour"] == history.numbers["hour"][at]
        rating = history.numbers["rating"][at]
        assert event.get("rating") == (None if np.isnan(rating) else rating)


def test_a_user_without_events_has_an_empty_history(small: "Small") -> None:
    told = Recommender.load(str(small.bundles)).user("u6", 10)

    assert told == {"user_id": "u6", "events": 0, "seen": 0, "history": []}


def test_ids_of_integers_are_answered_as_integers(small_integers: "Small") -> None:
    recommender = Recommender.load(str(small_integers.bundles))

    assert recommender.user("10", 1)["user_id"] == 10
    assert recommender.find_users("1", 2) == [10, 15]
