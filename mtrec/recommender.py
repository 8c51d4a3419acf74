"""The only code that turns a user into a ranked list: a bundle, loaded, that answers requests.

HTTP and Python come in as requests (`recommend`, `score`, `similar_items`), `evaluate` and `score`
as arrays (`arrays.ArrayRecommender`, of which this is one); both meet in `Ranker`. No Ray, no HTTP,
no writing; after `load` an instance is read-only and may be shared by threads.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from mtrec.arrays import ArrayRecommender
from mtrec.bundle import Bundle, load_bundle
from mtrec.catalogue import NUM_SPECIAL
from mtrec.config import ScoreConfig
from mtrec.errors import RequestError
from mtrec.explain import Explanation
from mtrec.inputs import RequestInputs
from mtrec.itemitem import interaction_matrix
from mtrec.model.rows import PairContext
from mtrec.profile import tell_user
from mtrec.query import (
    SCORE_KEYS,
    USER_KEYS,
    Limits,
    Query,
    QueryReader,
    clip,
    read_id,
    read_ids,
    read_text,
)
from mtrec.ranker import USERS_PER_BLOCK, RankedLists, Wish
from mtrec.rerank import cosines
from mtrec.userstore import UserRows

__all__ = ["Explanation", "Limits", "PairContext", "RankedLists", "Recommender", "UserRows"]


class Recommender(ArrayRecommender):
    """Answer for users by id, by history or by text; see the module's text.

    Args:
        bundle: what to answer from.
        device: `cpu` or `cuda`.
        threads: CPU threads of torch in this process; None leaves them as they are.
        limits: the largest k and longest history of a request; default: `serve` of the bundle's
            configuration.
        score: candidates and weights; default: those of the bundle's configuration.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        device: str = "cpu",
        threads: int | None = None,
        limits: Limits | None = None,
        score: ScoreConfig | None = None,
    ) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        super().__init__(bundle, device=device, score=score)
        config = bundle.config
        limits = limits or Limits(config.serve.max_k, config.serve.max_history)
        self._reader = QueryReader(config, limits)
        self._has_integer_users = bundle.transform.id_types.get("user_id") == "int64"
        self._inputs = RequestInputs(bundle, self._catalogue, device=device, threads=threads)

    @classmethod
    def load(
        cls,
        path: str,
        *,
        device: str = "cpu",
        threads: int | None = None,
        limits: Limits | None = None,
        score: ScoreConfig | None = None,
    ) -> "Recommender":
        """Load a bundle: a version's folder, or `bundles/` to follow its `CURRENT`.

        The other arguments are those of the class.

        Raises:
            ArtifactError: there is no bundle, or it is damaged.
        """
        bundle = load_bundle(path)
        return cls(bundle, device=device, threads=threads, limits=limits, score=score)

    # ---- requests -------------------------------------------------------------------------------

    def recommend(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Answer requests as `POST /v1/recommend` does, in the same order.

        Args:
            requests: objects with `user_id` and / or `history` and / or `text`, and `k`, `exclude`,
                `include_seen`, `weights`, `filter`, `diversity`, `context`, `explain`.

        Returns:
            Objects with `user_id`, `model_version`, `cold_start`, `recommendations` (`item_id`,
            `score`, `tasks` and, if asked to explain, `content_share` and `reasons`) and, where a
            history names items that the catalogue lacks, `ignored`.

        Raises:
            RequestError: a request is wrong; in a batch its field starts with its number.
        """
        if isinstance(requests, Mapping):
            raise RequestError("expected a list of requests, found one: recommend([request])")
        queries = []
        for at, request in enumerate(requests):
            try:
                query = self._reader.read(request)
                allowed = (
                    None if query.filter is None else self._catalogue.filter.allowed(query.filter)
                )
            except RequestError as error:
                raise error if len(requests) == 1 else _numbered(error, at) from error
            queries.append((query, allowed))
        answers: list[dict[str, Any]] = []
        for start in range(0, len(queries), USERS_PER_BLOCK):
            answers += self._answer(queries[start : start + USERS_PER_BLOCK])
        return answers

    def score(
        self, request: Mapping[str, Any], item_ids: Sequence[str | int]
    ) -> list[dict[str, Any]]:
        """Give one number per task for a user and given items, in the order of `item_ids`.

        Args:
            request: a user as in `recommend`: `user_id`, `history`, `text`, `context`, `weights`.
            item_ids: items of the catalogue.

        Returns:
            Objects with `item_id`, `score` and `tasks`: what `recommend` says of them. An item that
            the user has seen and that lies above all others counts like the best of these: 1.

        Raises:
            RequestError: the request is wrong, or an item is not in the catalogue (404).
        """
        query = self._reader.read(request, known=SCORE_KEYS)
        places = [
            self._catalogue.require(item_id, f"item_ids.{at}")
            for at, item_id in enumerate(read_ids(item_ids, "item_ids"))
        ]
        known = self._inputs.gather([query])
        crowd = self._ranker.crowd(known.histories, known.users, known.exclude, known.likeness)
        rated = self._ranker.rate(
            crowd,
            np.array([places], np.int64).reshape(1, len(places)),
            Wish(len(places), query.weights or self._ranker.weights),
            self._inputs.context([query]),
        )
        return self._entries(rated, 0)

    def similar_items(
        self, item_id: str | int | None = None, text: str | None = None, k: int = 10
    ) -> list[dict[str, Any]]:
        """Give the items that resemble an item by content, or a text by the text encoder.

        Args:
            item_id: an item of the catalogue; it is left out of the answer.
            text: instead of an item.
            k: how many at most.

        Returns:
            Objects with `item_id` and `score`, (1 + cosine) / 2, sorted by score, ties by item id.

        Raises:
            RequestError: neither or both are given, the item is not in the catalogue (404), or the
                model has no text.
        """
        k = self._reader.read_k(k)
        if (item_id is None) == (text is None):
            raise RequestError("expected either item_id or text", field="item_id")
        if item_id is not None:
            place = self._catalogue.require(read_id(item_id, "item_id"), "item_id")
            likeness = cosines(self._ranker.likeness, self._ranker.likeness[place])
            likeness[place] = np.nan
        else:
            likeness = cosines(self._inputs.item_text(), self._inputs.encode([read_text(text)])[0])
        likeness[:NUM_SPECIAL] = np.nan
        usable = np.flatnonzero(np.isfinite(likeness))
        score = np.clip((1.0 + likeness[usable]) / 2.0, 0.0, 1.0)
        order = np.lexsort((self._catalogue.tie_rank[usable], -score))[:k]
        return [
            {"item_id": self._catalogue.source_id(usable[at]), "score": float(score[at])}
            for at in order
        ]

    def friends(self, request: Mapping[str, Any], k: int = 10) -> list[dict[str, Any]]:
        """Give the users whom a user may want to befriend; needs a social task.

        Args:
            request: a user as in `recommend`: `user_id`, whose links count, and / or `history`
                and / or `text`. Somebody of whom nothing is known gets those with most links.
            k: how many at most.

        Returns:
            Objects with `user_id` and `score`, sorted by score, ties by user id. The user itself
            and those whom it is linked to are left out.

        Raises:
            RequestError: the request is wrong, or the model has no social task (404).
        """
        query, k = self._reader.read(request, known=USER_KEYS), self._reader.read_k(k)
        scorer, store = self._ranker.friends, self.bundle.users
        if scorer is None:
            raise RequestError(
                "this model has no social task, so it knows nothing of friends; its tasks are "
                f"{[task.name for task in self.bundle.config.tasks]}",
                code="no_social_task",
                status=404,
            )
        own = store.find([query.user_id or ""])
        known = self._inputs.gather([query])
        if own[0] >= 0 and query.history is None and query.text is None:
            places, score = self.friend_lists(own, k=k)
        else:
            crowd = self._ranker.crowd(known.histories, known.users, known.exclude)
            links = scorer.graph.links[own] if own[0] >= 0 else sparse.csr_array((1, len(store)))
            items = interaction_matrix(known.histories, len(self.bundle.popular))
            if crowd.is_cold[0] and not links.nnz:
                places, score = scorer.most_linked(own, k=k)
            else:
                vectors = self._ranker.social_vectors(crowd.states)
                places, score = scorer.rank(vectors, links, items, own, k=k)
        found = places[0][places[0] >= 0]
        return [
            {"user_id": self._source_id(user_id), "score": float(score[0, at])}
            for at, user_id in enumerate(store.user_ids(found))
        ]

    def info(self) -> dict[str, Any]:
        """Tell version, tasks, metrics, counts and time of training, as `GET /v1/model` does."""
        bundle, sizes = self.bundle, self.bundle.sizes
        # The learning curve is for the report, not for every reader of this.
        metrics = {name: value for name, value in bundle.metrics.items() if name != "history"}
        return {
            "model_version": bundle.version,
            "tasks": [task.model_dump(mode="json") for task in bundle.config.tasks],
            "metrics": metrics,
            "counts": {"items": len(self._catalogue), "users": len(bundle.users)},
            "trained_at": bundle.created,
            "fitted_on": bundle.fitted_on,
            "encoder": bundle.encoder.name if bundle.encoder else None,
            "weights": self._ranker.weights,
            "filter_columns": self._catalogue.filter.columns,
            "context_columns": [*sizes.context_numbers, *sizes.context_categories],
            "is_exact": self._ranker.is_exact,
        }

    def find_items(self, query: str, limit: int) -> list[dict[str, Any]]:
        """List at most `limit` items whose id or text holds the query, whatever its case.

        Args:
            query: part of an id or of a string column; empty: every item matches.
            limit: how many at most, in the order of ids.
        """
        return self._catalogue.describe(self._catalogue.find(query, limit))

    def describe(self, item_ids: Sequence[str | int]) -> list[dict[str, Any]]:
        """Give the columns of items, in the order asked; unknown items are left out."""
        ids = [item_id for item_id in read_ids(item_ids, "id") if item_id in self._catalogue]
        return self._catalogue.describe([self._catalogue.position(item_id) for item_id in ids])

    def find_users(self, prefix: str, limit: int) -> list[str | int]:
        """List at most `limit` ids of users that begin with `prefix`, in string order."""
        return [self._source_id(user_id) for user_id in self.bundle.users.beginning(prefix, limit)]

    def user(self, user_id: str | int, limit: int) -> dict[str, Any]:
        """Tell what is stored of a user: the latest events and the number of items seen.

        Returns:
            `user_id` and what `profile.tell_user` gives.

        Raises:
            RequestError: the user is not known (404).
        """
        asked = read_id(user_id, "id")
        found = tell_user(self.bundle.users, self._catalogue, asked, limit)
        if found is None:
            raise RequestError(
                f'user "{clip(asked)}" is not among the {len(self.bundle.users)} stored users',
                code="unknown_user",
                status=404,
                field="id",
            )
        return {"user_id": self._source_id(asked), **found}

    # ---- steps ----------------------------------------------------------------------------------

    def _answer(
        self, queries: Sequence[tuple[Query, NDArray[np.bool_] | None]]
    ) -> list[dict[str, Any]]:
        """Answer checked requests; those with like wishes are ranked together."""
        known = self._inputs.gather([query for query, _ in queries])
        everyone = self._ranker.crowd(known.histories, known.users, known.exclude, known.likeness)
        groups: dict[object, list[int]] = {}
        for at, (query, allowed) in enumerate(queries):
            weights = tuple(sorted((query.weights or self._ranker.weights).items()))
            # A filter is a whole array: requests that have one are ranked singly.
            alike = at if allowed is not None else (query.k, query.diversity, weights)
            groups.setdefault(alike, []).append(at)
        answers: list[dict[str, Any]] = [{} for _ in queries]
        for members in groups.values():
            asked = [queries[at][0] for at in members]
            query, allowed = queries[members[0]]
            crowd = everyone if len(groups) == 1 else everyone.rows(members)
            wish = Wish(query.k, query.weights or self._ranker.weights, query.diversity, allowed)
            lists = self._ranker.rank(crowd, wish, self._inputs.context(asked))
            for row, at in enumerate(members):
                entries = self._entries(lists, row)
                if asked[row].explain:
                    places, one = lists.item_index[row], crowd.rows([row])
                    why = self._explainer.explain(places, one, known.histories, known.users, at)
                    for entry, found in zip(entries, why, strict=False):
                        entry.update(self._explanation_json(found))
                answers[at] = {
                    "user_id": self._source_user_id(asked[row]),
                    "model_version": self.bundle.version,
                    "cold_start": bool(crowd.is_cold[row]),
                    "recommendations": entries,
                }
                if known.ignored[at]:
                    answers[at]["ignored"] = known.ignored[at]
        return answers

    def _entries(self, lists: RankedLists, row: int) -> list[dict[str, Any]]:
        entries = []
        for at, place in enumerate(lists.item_index[row].tolist()):
            if place < 0:
                break
            tasks = {
                task.name: float(
                    lists.retrieval[row, at]
                    if task.kind == "retrieval"
                    else lists.tasks[task.name][row, at]
                )
                for task in self.bundle.config.tasks
                if task.kind != "social"
            }
            score = float(lists.score[row, at])
            entries.append(
                {"item_id": self._catalogue.source_id(place), "score": score, "tasks": tasks}
            )
        return entries

    def _explanation_json(self, found: Explanation) -> dict[str, Any]:
        return {
            "content_share": found.content_share,
            "reasons": [
                {
                    "item_id": self._catalogue.source_id(place),
                    "effect": float(effect),
                    "similarity": float(similarity),
                }
                for place, effect, similarity in zip(
                    found.reasons, found.effect, found.similarity, strict=True
                )
            ],
        }

    def _source_user_id(self, query: Query) -> str | int | None:
        """Give the id back in the type of the source, if it can be an id of the source."""
        return None if query.user_id is None else self._source_id(query.user_id)

    def _source_id(self, user_id: str) -> str | int:
        if not self._has_integer_users:
            return user_id
        is_integer = re.fullmatch("0|-?[1-9][0-9]{0,18}", user_id) is not None
        return int(user_id) if is_integer else user_id


def _numbered(error: RequestError, at: int) -> RequestError:
    place = f"requests.{at}" + (f".{error.field}" if error.field else "")
    return RequestError(
        f"requests.{at}: {error}", code=error.code, status=error.status, field=place
    )
