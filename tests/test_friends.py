"""What links and tastes say of two users, and lists of friends, against loops over users."""

import math

import numpy as np
import pytest
from scipy import sparse

from mtrec.friends import (
    SOCIAL_BASELINES,
    FriendGraph,
    FriendScorer,
    baseline_lists,
    metric_lists,
    top_friends,
)

NUM_USERS, NUM_ITEMS = 14, 9


@pytest.fixture
def matrices() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    links = np.triu(rng.random((NUM_USERS, NUM_USERS)) < 0.3, 1)
    links = (links | links.T).astype(np.float32)
    links[5] = links[:, 5] = 0.0  # somebody without friends
    items = (rng.random((NUM_USERS, NUM_ITEMS)) < 0.4).astype(np.float32)
    items[:, :2] = 0.0
    return links, items


@pytest.fixture
def graph(matrices: tuple[np.ndarray, np.ndarray]) -> FriendGraph:
    links, items = matrices
    return FriendGraph(sparse.csr_array(links), sparse.csr_array(items))


def in_common(matrices: tuple[np.ndarray, np.ndarray], a: int, b: int) -> list[float]:
    """The three counts as they are written, by loops."""
    links, items = matrices
    friends = sum(
        1.0 / math.log(links[z].sum())
        for z in range(NUM_USERS)
        if links[a, z] and links[b, z] and links[z].sum() > 1
    )
    shared = sum(
        1.0 / math.log(1.0 + items[:, i].sum())
        for i in range(NUM_ITEMS)
        if items[a, i] and items[b, i]
    )
    ways = sum(
        1.0 / (links[x].sum() * links[y].sum())
        for x in range(NUM_USERS)
        for y in range(NUM_USERS)
        if links[a, x] and links[x, y] and links[y, b] and x != b and y != a
    )
    return [math.log1p(friends), math.log1p(shared), math.log1p(100.0 * ways)]


def test_counts_equal_loops_over_friends_and_items(
    graph: FriendGraph, matrices: tuple[np.ndarray, np.ndarray]
) -> None:
    asked, candidates = np.array([3, 5, 0]), np.array([1, 13, 7, 3])

    found = graph.counts(graph.links[asked], graph.items[asked], candidates)

    for row, a in enumerate(asked):
        for column, b in enumerate(candidates):
            if a != b:
                assert found[row, column] == pytest.approx(in_common(matrices, a, b), abs=1e-6)
    everyone = graph.counts(graph.links[asked], graph.items[asked])
    assert everyone[:, candidates] == pytest.approx(found)


def test_the_own_link_is_in_no_count_of_its_ends(
    matrices: tuple[np.ndarray, np.ndarray],
) -> None:
    links, items = matrices
    a, b = np.argwhere(links)[0]
    without = links.copy()
    without[a, b] = without[b, a] = 0.0

    def counts(matrix: np.ndarray) -> np.ndarray:
        graph = FriendGraph(sparse.csr_array(matrix), sparse.csr_array(items))
        return graph.counts(graph.links[[a]], graph.items[[a]], np.array([b]))

    assert counts(links) == pytest.approx(counts(without), abs=1e-7)


def test_lists_leave_out_friends_and_oneself(graph: FriendGraph) -> None:
    rng = np.random.default_rng(0)
    scorer = FriendScorer(
        graph, rng.normal(size=(NUM_USERS, 4)).astype(np.float32), np.array([0.5, 2, 1], np.float32)
    )
    asked = np.arange(NUM_USERS)

    places, score = scorer.rank(scorer.vectors, graph.links, graph.items, asked, k=NUM_USERS)

    logits = scorer.vectors @ scorer.vectors.T + graph.counts(graph.links, graph.items) @ [
        0.5,
        2,
        1,
    ]
    for user in asked:
        friends = set(graph.links[[user]].nonzero()[1].tolist())
        wanted = sorted(set(asked.tolist()) - friends - {user}, key=lambda v: -logits[user, v])
        listed = [place for place in places[user].tolist() if place >= 0]
        assert listed == wanted
        best = logits[user, wanted[0]]
        units = [math.exp(logits[user, v] - best) for v in wanted]
        assert score[user, : len(wanted)] == pytest.approx(units, rel=1e-5)
        assert np.isnan(score[user, len(wanted) :]).all()


def test_somebody_new_may_be_told_of_everyone(graph: FriendGraph) -> None:
    scorer = FriendScorer(graph, np.zeros((NUM_USERS, 2), np.float32), np.ones(3, np.float32))
    items = graph.items[[3]]
    nobody = sparse.csr_array((1, NUM_USERS), dtype=np.float32)

    places, score = scorer.rank(np.zeros((1, 2)), nobody, items, np.array([-1]), k=3)

    assert places[0, 0] == 3  # who met the same items
    assert score[0, 0] == 1.0


def test_ties_go_to_the_smaller_position() -> None:
    nobody = sparse.csr_array((1, 4), dtype=np.float32)

    places, best = top_friends(np.array([[1.0, 2.0, 1.0, 2.0]]), nobody, np.array([0]), 4)

    assert places.tolist() == [[1, 3, 2, -1]]
    assert best[0, :3].tolist() == [2.0, 2.0, 1.0]


@pytest.mark.parametrize("name", SOCIAL_BASELINES)
def test_a_baseline_sorts_by_its_count_then_by_links(
    name: str, graph: FriendGraph, matrices: tuple[np.ndarray, np.ndarray]
) -> None:
    links, _ = matrices
    asked = np.array([0, 5, 9])

    lists = baseline_lists(name, graph, asked, k=NUM_USERS)

    for row, a in enumerate(asked):

        def key(b: int, a: int = a) -> tuple[float, float, int]:
            common = float((links[a] * links[b]).sum())
            if name == "adamic_adar":
                common = round(in_common(matrices, a, b)[0], 5)
            return (-common, -float(links[b].sum()), b)

        others = [b for b in range(NUM_USERS) if b != a and not links[a, b]]
        assert [place for place in lists[row].tolist() if place >= 0] == sorted(others, key=key)


def test_metric_lists_number_users_as_metrics_do() -> None:
    lists = metric_lists(np.array([[4, -1], [0, 2]]), np.array([1, 3]), 5)

    assert lists.tolist() == [[0, 0], [6, 0], [0, 0], [2, 4], [0, 0]]
