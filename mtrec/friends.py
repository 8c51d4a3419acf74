"""Who may want to befriend whom: what links and tastes say of two users, and lists of friends.

Three counts go into every friend's logit beside the model's user vectors: friends in common, items
in common, and friends of one who are friends of the other's friends; whom or what few share counts
more. They are computed from what may be known: held-out links are in no count. Pure NumPy and
SciPy; training, evaluation and `Recommender` all come here, so that they agree.

Shape letters: A users who ask, C candidates, U users, N items, D width of a social vector, F
counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mtrec.data.links import Links
from mtrec.metrics import Relevance

NUM_COUNTS = 3
"""F: friends in common, items in common, friends of friends in common."""

SOCIAL_BASELINES = ("common_neighbours", "adamic_adar")

# A way over two friends is worth a few hundredths: the logarithm shall tell few ways from many.
_WAY_SCALE = 100.0
# Metrics keep two numbers for padding and for what is unknown.
_METRIC_SHIFT = 2
# Candidates whose scores are in memory at a time.
_BLOCK = 1 << 24


class FriendGraph:
    """U users' links and items, and what two users have in common.

    Args:
        links: (U, U) float32, symmetric, 1 where two users are linked.
        items: (U, N) float32, 1 where a user met an item.
    """

    def __init__(self, links: sparse.csr_array, items: sparse.csr_array) -> None:
        self.links = links
        self.items = items
        degree = np.diff(links.indptr)
        self.degree = degree.astype(np.int64)
        # A common friend has two links at least, so the logarithm is never that of 1.
        friend_weight = np.where(degree > 1, 1.0 / np.log(np.maximum(degree, 2)), 0.0)
        met = np.bincount(items.indices, minlength=items.shape[1])
        # One more, so that an item of two users counts less than a friend of theirs.
        item_weight = np.where(met > 0, 1.0 / np.log1p(np.maximum(met, 1)), 0.0)
        self._weighted_links = _transposed(links, friend_weight)
        self._weighted_items = _transposed(items, item_weight)
        self._share = _share_of(degree)
        # In float64: what is taken away again must leave nothing.
        self._step = sparse.csr_array(links.T * self._share[:, None])
        # What the ways a-b-y-b are worth, for each b: they pass the link a-b itself.
        self._back = self._share * (links @ self._share)

    def __len__(self) -> int:
        return int(self.links.shape[0])

    def counts(
        self,
        links: sparse.csr_array,
        items: sparse.csr_array,
        candidates: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        """Give what users and candidates have in common: (A, C, F) float32.

        The first is log(1 + the index of Adamic and Adar 2003, equation 2): the sum over common
        friends z of 1 / log(links of z). The second is the same over common items, 1 / log(1 +
        users who met it). The third is log(1 + 100 * sum over ways a-x-y-b of 1 / (links of x times
        links of y)), resource allocation (Zhou, Lu and Zhang 2009) over three steps instead of two;
        ways that pass the link a-b itself are left out, so that no link tells of itself.
        Logarithms, because the tenth friend in common says less than the first.

        Args:
            links: (A, U), whom those who ask are linked to.
            items: (A, N), what they met.
            candidates: (C,) positions; by default all users.
        """
        chosen = slice(None) if candidates is None else candidates
        found = [
            np.log1p((rows @ weighted[:, chosen]).toarray())
            for rows, weighted in ((links, self._weighted_links), (items, self._weighted_items))
        ]
        found.append(np.log1p(_WAY_SCALE * self._ways(links, chosen)))
        return np.stack(found, axis=-1).astype(np.float32)

    def _ways(
        self, links: sparse.csr_array, chosen: slice | NDArray[np.int64]
    ) -> NDArray[np.float64]:
        """Sum 1 / (links of x times links of y) over ways a-x-y-b not over a-b: (A, C)."""
        ways = (links @ self._step @ self._step[:, chosen]).toarray().astype(np.float64)
        # Over the link itself: a-b-y-b, a-x-a-b, and a-b-a-b, which is both.
        share_A = _share_of(np.diff(links.indptr))
        back_A = share_A * (links @ self._share)
        row, column = links[:, chosen].nonzero()
        share_C, back_C = self._share[chosen], self._back[chosen]
        ways[row, column] -= back_C[column] + back_A[row] - share_A[row] * share_C[column]
        found: NDArray[np.float64] = np.maximum(ways, 0.0)
        return found

    def common_neighbours(self, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Count the friends that users (A,) and every user have in common: (A, U) float32."""
        counted: NDArray[np.float32] = (self.links[users] @ self.links).toarray()
        return counted


@dataclass(frozen=True, slots=True)
class FriendScorer:
    """The friend logits of a trained model: s_a . s_b + w . counts(a, b).

    Attributes:
        graph: of the users, who are positions.
        vectors: (U, D) float32, the model's social vectors s.
        weights: (F,) float32, w.
    """

    graph: FriendGraph
    vectors: NDArray[np.floating]
    weights: NDArray[np.float32]

    def logits(
        self, vectors: NDArray[np.floating], links: sparse.csr_array, items: sparse.csr_array
    ) -> NDArray[np.float32]:
        """Give the logits of all users as friends of A users: (A, U) float32.

        Args:
            vectors: (A, D), the social vectors of those who ask.
            links: (A, U), whom they are linked to.
            items: (A, N), what they met.
        """
        scored: NDArray[np.float32] = (
            vectors.astype(np.float32) @ np.asarray(self.vectors, np.float32).T
        )
        return scored + self.graph.counts(links, items) @ self.weights

    def rank(
        self,
        vectors: NDArray[np.floating],
        links: sparse.csr_array,
        items: sparse.csr_array,
        own: NDArray[np.int64],
        *,
        k: int,
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Give the k likeliest friends of A users: positions (A, k), -1 for none, and scores.

        A score is exp(z - z_max), in (0, 1]; NaN where there is no friend left. Users themselves
        and those whom they are linked to are left out.

        Args:
            vectors: (A, D), the social vectors of those who ask.
            links: (A, U), whom they are linked to.
            items: (A, N), what they met.
            own: (A,) the positions of those who ask; -1 for somebody new.
            k: friends at most.
        """
        size = max(1, _BLOCK // max(1, len(self.graph)))
        parts = []
        for at in range(0, max(1, len(own)), size):
            part = slice(at, at + size)
            logits = self.logits(vectors[part], links[part], items[part])
            parts.append(top_friends(logits, links[part], own[part], k))
        places, best = (np.concatenate(values) for values in zip(*parts, strict=True))
        return places, np.exp(best - best[:, :1])

    def most_linked(
        self, own: NDArray[np.int64], *, k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Give the users with most links: positions (A, k), and shares of the most links."""
        nobody = sparse.csr_array((len(own), len(self.graph)), dtype=np.float32)
        links = np.tile(self.graph.degree.astype(np.float64), (len(own), 1))
        places, found = top_friends(links, nobody, own, k)
        return places, found / np.maximum(found[:, :1], 1.0)


def top_friends(
    scores: NDArray[np.floating], links: sparse.csr_array, own: NDArray[np.int64], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Give the k best-scored users: positions (A, k), -1 for none, and their scores (A, k).

    Args:
        scores: (A, U), higher is better.
        links: (A, U), users who are left out.
        own: (A,) the position of the user itself, who is left out too; -1: none.
        k: users at most; ties go to the smaller position.
    """
    open_scores = scores.astype(np.float64)
    open_scores[links.nonzero()] = -np.inf
    rows = np.flatnonzero(own >= 0)
    open_scores[rows, own[rows]] = -np.inf
    width = min(k, open_scores.shape[1])
    order = np.argsort(-open_scores, axis=1, kind="stable")[:, :width]
    best = np.take_along_axis(open_scores, order, axis=1)
    missing = ((0, 0), (0, k - width))
    places = np.where(np.isfinite(best), order, -1)
    best = np.where(np.isfinite(best), best, np.nan)
    return (
        np.pad(places, missing, constant_values=-1),
        np.pad(best, missing, constant_values=np.nan),
    )


def friend_relevance(links: Links) -> Relevance:
    """Collect links as what users should have been shown, in the numbers of `metric_lists`."""
    user, friend = links.both_ways().T
    return Relevance.from_pairs(
        user,
        (friend + _METRIC_SHIFT).astype(np.int32),
        num_users=links.num_users,
        num_items=links.num_users + _METRIC_SHIFT,
    )


def metric_lists(
    places: NDArray[np.int64], asked: NDArray[np.int64], num_users: int
) -> NDArray[np.int32]:
    """Give lists as `metrics` reads them, 0 for none and two numbers before the first: (U, k).

    Args:
        places: (A, k), -1 for none.
        asked: (A,) positions of the users whose lists they are; others have none.
        num_users: U.
    """
    lists = np.zeros((num_users, places.shape[1]), np.int32)
    lists[asked] = np.where(places >= 0, places + _METRIC_SHIFT, 0)
    return lists


def baseline_lists(
    name: str, graph: FriendGraph, users: Sequence[int] | NDArray[np.int64], *, k: int
) -> NDArray[np.int64]:
    """Give a baseline's lists for users (A,): (A, k) positions, -1 for none.

    `common_neighbours` counts friends in common, `adamic_adar` lets those with fewer links count
    more (Liben-Nowell and Kleinberg 2007, section 3). Users who share no friend come last, those
    with more links first.

    Args:
        name: which of `SOCIAL_BASELINES`.
        graph: what may be known.
        users: positions of those who ask.
        k: friends at most.
    """
    asked = np.asarray(users, np.int64)
    scores: dict[str, Callable[[NDArray[np.int64]], NDArray[np.float32]]] = {
        "common_neighbours": graph.common_neighbours,
        "adamic_adar": lambda rows: graph.counts(graph.links[rows], graph.items[rows])[..., 0],
    }
    # Far below what one friend in common adds: 1 / log(links) of the busiest user.
    popular = 1e-6 * graph.degree / max(1, graph.degree.max(initial=0))
    lists = [
        top_friends(scores[name](rows) + popular, graph.links[rows], rows, k)[0]
        for at in range(0, len(asked), max(1, _BLOCK // max(1, len(graph))))
        for rows in [asked[at : at + max(1, _BLOCK // max(1, len(graph)))]]
    ]
    return np.concatenate(lists) if lists else np.zeros((0, k), np.int64)


def _share_of(degree: NDArray[np.integer]) -> NDArray[np.float64]:
    """Give what one link of users with so many is worth: 1 / links, 0 without any."""
    return np.where(degree > 0, 1.0 / np.maximum(degree, 1), 0.0)


def _transposed(rows: sparse.csr_array, weight: NDArray[np.float64]) -> sparse.csr_array:
    """Give weight times the transpose of (U, X): (X, U), which a product with (A, X) reads."""
    scaled = sparse.csr_array(rows.T * weight[:, None].astype(np.float32))
    scaled.sort_indices()
    return scaled
