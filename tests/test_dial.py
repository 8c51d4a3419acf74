"""The dial against lists that are asked for one by one, and metrics computed in loops."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small_bundle import Small, item_ids, told

from mtrec.bundle import load_bundle
from mtrec.comparison import Draws, ItemFacts
from mtrec.data.histories import Histories
from mtrec.dial import measure_dial
from mtrec.recommender import Recommender

K = 3
SETTINGS = [0.0, 0.5, 1.0]


@pytest.fixture(scope="module")
def recommender(small: Small) -> Recommender:
    return Recommender(load_bundle(small.path))


@pytest.fixture(scope="module")
def histories(small: Small) -> Histories:
    """Each user's last event is held out, but for the user with a single one."""
    split = np.zeros(small.histories.num_events, np.int8)
    last = small.histories.offsets[1:] - 1
    split[last[np.diff(small.histories.offsets) > 1]] = 2
    return replace(small.histories, split=split)


def measure(recommender: Recommender, histories: Histories, num_users: int = 50) -> Any:
    vectors = recommender.bundle.vectors
    return measure_dial(
        recommender,
        histories,
        "test",
        ItemFacts(np.ones(len(vectors.bias), np.int64), vectors.content),
        settings=SETTINGS,
        k=K,
        num_users=num_users,
        draws=Draws(100, 0),
    )


def test_points_are_the_metrics_of_requests_with_that_diversity(
    small: Small, recommender: Recommender, histories: Histories
) -> None:
    ids = item_ids(False)
    found = measure(recommender, histories)
    assert (found["split"], found["users"], found["of"]) == ("test", 6, 6)
    content = recommender.bundle.vectors.content[2:].astype(float)
    for point, dial in zip(found["points"], SETTINGS, strict=True):
        gains, spreads = [], []
        for row in (0, 1, 2, 4, 5, 6):
            history = told(small, row)
            request = {
                "user_id": small.histories.user_ids[row],
                "history": history[:-1],
                "k": K,
                "diversity": dial,
            }
            (answer,) = recommender.recommend([request])
            places = [ids.index(entry["item_id"]) for entry in answer["recommendations"]]
            held_out = ids.index(str(history[-1]["item_id"]))
            hit = [1 / np.log2(at + 2) for at, place in enumerate(places) if place == held_out]
            gains.append(sum(hit))
            apart = [
                1
                - content[a] @ content[b] / np.linalg.norm(content[a]) / np.linalg.norm(content[b])
                for at, a in enumerate(places)
                for b in places[:at]
                if content[a].any() and content[b].any()
            ]
            spreads.append(np.mean(apart))
        assert point["dial"] == dial
        assert point["ndcg@3"] == pytest.approx(np.mean(gains))
        assert point["diversity@3"] == pytest.approx(np.mean(spreads), rel=1e-5)
        low, high = point["diversity@3_interval"]
        assert low <= point["diversity@3"] <= high
    spread = [point["diversity@3"] for point in found["points"]]
    assert spread[0] < spread[-1]


def test_at_most_so_many_users_are_asked_and_the_seed_draws_them(
    recommender: Recommender, histories: Histories
) -> None:
    one, two = measure(recommender, histories, 2), measure(recommender, histories, 2)
    assert (one["users"], one["of"]) == (2, 6)
    assert one == two


def test_without_held_out_events_nobody_is_asked(small: Small, recommender: Recommender) -> None:
    found = measure(recommender, small.histories)
    assert found["users"] == 0
    assert found["points"] == [{"dial": dial} for dial in SETTINGS]
