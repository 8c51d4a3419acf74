"""What a bundle says of many users at once, as arrays: lists, predictions, reasons, friends.

`evaluate` and `score` ask it; `Recommender` adds requests, one user or a few at a time. Both rank
by `Ranker`. No Ray, no HTTP, no writing.
"""

import copy
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mtrec.bundle import Bundle
from mtrec.catalogue import Catalogue
from mtrec.config import ScoreConfig
from mtrec.data.histories import Histories
from mtrec.explain import Explainer, Explanation
from mtrec.friends import FriendGraph, FriendScorer
from mtrec.model.rows import PairContext
from mtrec.ranker import RankedLists, Ranker, Wish
from mtrec.userstore import UserRows


class ArrayRecommender:
    """Answer for users by their histories; see the module's text.

    Args:
        bundle: what to answer from.
        device: `cpu` or `cuda`.
        score: candidates and weights; default: those of the bundle's configuration.
    """

    def __init__(
        self, bundle: Bundle, *, device: str = "cpu", score: ScoreConfig | None = None
    ) -> None:
        config, id_types = bundle.config, bundle.transform.id_types
        self.bundle = bundle
        self._catalogue = Catalogue(
            bundle.items,
            config.data.items.columns if config.data.items else {},
            has_integer_ids=id_types.get("item_id") == "int64",
        )
        self._ranker = Ranker(bundle, self._catalogue.tie_rank, device=device, score=score)
        self._explainer = Explainer(self._ranker)

    def with_popular(self, counts: NDArray[np.number]) -> Self:
        """Give the same with other counts (N,) for users of whom nothing is known."""
        other = copy.copy(self)
        other._ranker = self._ranker.with_popular(counts)
        other._explainer = Explainer(other._ranker)
        return other

    def item_ids(self, item_index: NDArray[np.integer]) -> list[str]:
        """Give the ids of positions, as mtrec keeps them."""
        return [self._catalogue.item_id(position) for position in item_index.tolist()]

    def user_rows(self, user_ids: Sequence[str]) -> UserRows:
        """Give the stored features and text of users; unknown ids get those of nobody."""
        return self.bundle.users.rows(self.bundle.users.find(user_ids))

    def rank_lists(
        self,
        histories: Histories,
        *,
        k: int,
        exclude: Sequence[NDArray[np.integer]] | None = None,
        allowed: NDArray[np.bool_] | None = None,
        with_tasks: bool = True,
        diversity: float = 0.0,
        conditions: object = None,
    ) -> RankedLists:
        """Give the lists of B users by their histories, blended as `score.weights` says.

        Their features and texts are what is stored under their ids.

        Args:
            histories: B users; only the latest events that the model can see count, and events of
                unknown items do not.
            k: items per user at most.
            exclude: B arrays of positions; by default the items of each user's history here.
            allowed: (N,) bool, the positions that may be listed; by default all.
            with_tasks: also predict the ranking tasks of what is listed.
            diversity: 0 to 1, as in a request.
            conditions: that listed items meet, as `filter` of a request; None: all may be listed.

        Raises:
            RequestError: the conditions name what the catalogue does not have.
        """
        users = self.user_rows(histories.user_ids.tolist())
        crowd = self._ranker.crowd(histories, users, exclude)
        if conditions is not None:
            met = self.allowed(conditions)
            allowed = met if allowed is None else met & allowed
        wish = Wish(k, self._ranker.weights, diversity, allowed, with_tasks)
        return self._ranker.rank(crowd, wish)

    def allowed(self, conditions: object) -> NDArray[np.bool_]:
        """Give the positions that meet the `filter` of a request: (N,) bool.

        Raises:
            RequestError: it names what the catalogue does not have.
        """
        return self._catalogue.filter.allowed(conditions)

    def diversified(
        self, histories: Histories, *, k: int, diversities: Sequence[float]
    ) -> list[NDArray[np.int32]]:
        """Give B users' lists at several settings of `diversity`: of each (B, k) positions.

        Users are encoded once; for the rest see `rank_lists`.
        """
        crowd = self._ranker.crowd(histories, self.user_rows(histories.user_ids.tolist()))
        wishes = [Wish(k, self._ranker.weights, dial, with_tasks=False) for dial in diversities]
        return [self._ranker.rank(crowd, wish).item_index for wish in wishes]

    def explain_lists(
        self,
        histories: Histories,
        lists: RankedLists,
        *,
        exclude: Sequence[NDArray[np.integer]] | None = None,
    ) -> list[list[Explanation]]:
        """Tell of B users' lists why each item is there, as `explain` of a request does.

        Args:
            histories: B users, those of the lists.
            lists: what `rank_lists` gave for them.
            exclude: as given to `rank_lists`.

        Returns:
            For each user an explanation an item, in the order of the list; none for users of whom
            nothing is known, whose lists the model's logits do not make.
        """
        users = self.user_rows(histories.user_ids.tolist())
        crowd = self._ranker.crowd(histories, users, exclude)
        return [
            self._explainer.explain(lists.item_index[row], crowd.rows([row]), histories, users, row)
            for row in range(len(histories))
        ]

    def friend_lists(
        self, positions: NDArray[np.int64], *, k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Give stored users' friends: positions (A, k), -1 for none, and scores (A, k).

        Args:
            positions: (A,) of users in the bundle's user store.
            k: friends at most.
        """
        scorer = self._ranker.friends
        assert scorer is not None, "a model with a social task"
        graph = scorer.graph
        return scorer.rank(
            np.asarray(scorer.vectors[positions]),
            graph.links[positions],
            graph.items[positions],
            positions,
            k=k,
        )

    def friend_scorer(self, graph: FriendGraph, vectors: NDArray[np.float32]) -> FriendScorer:
        """Give what ranks friends in another graph, with vectors (U, D) of its users."""
        return self._ranker.friend_scorer(graph, vectors)

    def social_vectors(self, histories: Histories) -> NDArray[np.float32]:
        """Give the social vectors of users (B, D) by their histories; features are the stored."""
        users = self.user_rows(histories.user_ids.tolist())
        return self._ranker.social_vectors(self._ranker.crowd(histories, users).states)

    def score_pairs(
        self,
        histories: Histories,
        rows: NDArray[np.integer],
        item_index: NDArray[np.integer],
        *,
        context: PairContext | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Predict every ranking task for P pairs of a user and an item: {task: (P,) float32}.

        Args:
            histories: B users, what is known of them.
            rows: (P,) positions of users in `histories`.
            item_index: (P,) positions of items; 1 for an item outside the catalogue.
            context: P rows; by default nothing is known.
        """
        users = self.user_rows(histories.user_ids.tolist())
        crowd = self._ranker.crowd(histories, users)
        return self._ranker.predict_pairs(crowd, rows, item_index, context)
