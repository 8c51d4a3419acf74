"""From users' histories to ranked lists and predictions, as arrays: the steps behind every answer.

User state, candidates from the index, ranking network, blend, list. `Recommender` puts requests in
front of it; `evaluate` and `score` come through `Recommender` too, so all three rank alike. It
knows positions, not ids; no files, no Ray.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from mtrec.bundle import Bundle
from mtrec.catalogue import NUM_SPECIAL
from mtrec.config import ScoreConfig
from mtrec.data.histories import Histories, history_batch, last_windows
from mtrec.errors import RequestError
from mtrec.friends import FriendGraph, FriendScorer
from mtrec.index import ExactIndex
from mtrec.model.ranking import UserStates
from mtrec.model.rows import PairContext, context_inputs, user_inputs
from mtrec.model.towers import ItemVectors
from mtrec.modelconfig import label_tasks
from mtrec.popular import Popular
from mtrec.rerank import blend, diversify, prediction_unit, retrieval_unit
from mtrec.userstore import UserRows

# Bound the memory of one pass, not its result.
USERS_PER_BLOCK = 256
_PAIRS_PER_BLOCK = 1 << 16
# A wish in words adds so many standard deviations of the user's logits for a cosine of 1. Relative,
# because how wide logits are depends on the model and on the user. Chosen on two data sets
# (README, "Wishes in words"): a larger factor steers further and costs accuracy.
_TEXT_SCALE = 10.0


@dataclass(frozen=True, slots=True)
class Crowd:
    """B users of whom lists are wanted.

    Attributes:
        states: what the model makes of their histories.
        vectors: (B, D + K) float32, what the index searches with: the model's vectors and, where
            the bundle has them, those of iALS.
        is_cold: (B,) bool: nothing is known of the user, who shall get what is popular.
        exclude: B arrays of positions that must not be listed.
        added: (B, N), what the items they met and their words add to their logits; None: nothing.
        text_logits: (B, N) float64, what of it is from words; None: nothing.
        likeness: (B, N) float32, their words' cosines with the items; None: no words.
        events: what the factorised part of the ranking tasks reads; None: there is none.
    """

    states: UserStates
    vectors: NDArray[np.float32]
    is_cold: NDArray[np.bool_]
    exclude: Sequence[NDArray[np.integer]]
    added: sparse.csr_array | None = None
    text_logits: sparse.csr_array | None = None
    likeness: sparse.csr_array | None = None
    events: Histories | None = None

    def rows(self, index: Sequence[int]) -> "Crowd":
        """Give the users at these positions."""
        chosen = torch.tensor(index, device=self.states.vector.device)
        return Crowd(
            self.states.at(chosen),
            self.vectors[np.asarray(index)],
            self.is_cold[np.asarray(index)],
            [self.exclude[at] for at in index],
            self.added[np.asarray(index)] if self.added is not None else None,
            self.text_logits[np.asarray(index)] if self.text_logits is not None else None,
            self.likeness[np.asarray(index)] if self.likeness is not None else None,
            self.events.rows(index) if self.events is not None else None,
        )


@dataclass(frozen=True, slots=True)
class Wish:
    """How lists shall be made.

    Attributes:
        k: items in a list at most.
        weights: weight of each task in the score; at least one is above 0.
        diversity: 0 to 1, see `rerank.diversify`.
        allowed: (N,) bool, positions that may be listed; None: all.
        with_tasks: predict the ranking tasks of what is listed, even if no weight asks for them.
    """

    k: int
    weights: Mapping[str, float]
    diversity: float = 0.0
    allowed: NDArray[np.bool_] | None = None
    with_tasks: bool = True


@dataclass(frozen=True, slots=True)
class RankedLists:
    """Lists of B users, best first.

    Attributes:
        item_index: (B, k) int32, positions of items; -1 where a user has fewer than k.
        score: (B, k) float64 in [0, 1], descending, ties by item id; NaN where there is no item.
        retrieval: (B, k) float64 in [0, 1]: exp(z - z_max), or the share of the most popular
            item's events for a user of whom nothing is known.
        tasks: ranking task -> (B, k) float64, in label units or a probability; NaN likewise.
    """

    item_index: NDArray[np.int32]
    score: NDArray[np.float64]
    retrieval: NDArray[np.float64]
    tasks: dict[str, NDArray[np.float64]]


def _widen(values: NDArray[np.generic], width: int, fill: float) -> NDArray[Any]:
    """Give (B, C) values with columns of `fill` behind them: (B, width)."""
    missing = width - values.shape[1]
    if missing == 0:  # the rule; `np.pad` takes a tenth of a request's time
        return values
    return np.pad(values, ((0, 0), (0, missing)), constant_values=fill)


class Ranker:
    """Rank with the model and the vectors of a bundle; read-only, to be shared by threads.

    Args:
        bundle: what to rank with.
        tie_rank: (N,) int64, the order of positions with equal scores.
        device: `cpu` or `cuda`.
        score: candidates and weights; default: those of the bundle's configuration.
    """

    def __init__(
        self,
        bundle: Bundle,
        tie_rank: NDArray[np.int64],
        *,
        device: str = "cpu",
        score: ScoreConfig | None = None,
    ) -> None:
        config, arrays = bundle.config, bundle.vectors
        score = score or config.score
        self._num_candidates = score.candidates
        self.bundle = bundle
        self.ranking_tasks = label_tasks(config.tasks)
        self.retrieval_task = next(task.name for task in config.tasks if task.kind == "retrieval")
        self.weights = {name: weight for name, weight in score.weights.items() if weight}
        self.weights = self.weights or {self.retrieval_task: 1.0}
        self.tie_rank = tie_rank
        self._device = device
        self._model = bundle.model.to(device).eval()
        self._vectors = ItemVectors(
            *(
                torch.from_numpy(values).to(device)
                for values in (arrays.content, arrays.collaborative, arrays.bias)
            )
        )
        self._index = ExactIndex(arrays.search, arrays.bias, device=device)
        self._popular = Popular(bundle.popular, tie_rank)
        # In a catalogue without any content, what behaviour taught tells what is alike.
        self.likeness = arrays.content if arrays.content.any() else arrays.collaborative

    def with_popular(self, counts: NDArray[np.number]) -> Self:
        """Give the same with other counts (N,) for users of whom nothing is known."""
        other = copy.copy(self)
        other._popular = Popular(counts, self.tie_rank)
        return other

    @property
    def is_exact(self) -> bool:
        """Whether retrieval looks at every item."""
        return self._index.is_exact

    def crowd(
        self,
        histories: Histories,
        users: UserRows,
        exclude: Sequence[NDArray[np.integer]] | None = None,
        likeness: sparse.csr_array | None = None,
    ) -> Crowd:
        """Encode B users.

        Args:
            histories: B users; events of unknown items do not count, and of the others only the
                latest, `ModelConfig.kept_events`.
            users: B rows.
            exclude: B arrays of positions; by default the items of each history.
            likeness: (B, N) float32, cosines of their wishes in words with the items; by default
                no wishes.

        Raises:
            RequestError: the events' numbers are so large that the state is not finite.
        """
        histories = histories.select(histories.item_index >= NUM_SPECIAL)
        if exclude is None:
            exclude = np.split(histories.item_index, histories.offsets[1:-1])
        # As many as a bundle keeps of who asks by id: every way to ask gives the same list.
        histories = histories.latest(self.bundle.config.model.kept_events)
        is_cold = (np.diff(histories.offsets) == 0) & ~users.is_known
        events = histories if self.bundle.factors is not None else None
        states = self._states(histories, users)
        vectors = self._vectors_of(states, histories)
        added, text_logits = self._added(histories, vectors, likeness)
        exclude = exclude[: len(users)]
        return Crowd(states, vectors, is_cold, exclude, added, text_logits, likeness, events)

    def rank(self, crowd: Crowd, wish: Wish, context: PairContext | None = None) -> RankedLists:
        """Retrieve, predict, blend, diversify, sort: from user states to lists.

        Args:
            crowd: B users.
            wish: the same for all of them.
            context: B rows; by default nothing is known.
        """
        blends_ranking = any(wish.weights.get(task.name) for task in self.ranking_tasks)
        width = wish.k
        if blends_ranking or wish.diversity > 0.0:
            width = max(wish.k, self._num_candidates)
        item_index, retrieval = self._candidates(
            crowd, min(width, len(self.tie_rank)), wish.allowed
        )
        tasks: dict[str, NDArray[np.float64]] = {}
        if blends_ranking:
            tasks = self._predict(crowd, item_index, context)
        score = self._blend(retrieval, tasks, wish.weights)
        keep = self._choose(item_index, score, wish)
        item_index = np.take_along_axis(item_index, keep, axis=1)
        score, retrieval = (
            np.take_along_axis(values, keep, axis=1) for values in (score, retrieval)
        )
        if blends_ranking:
            tasks = {
                name: np.take_along_axis(values, keep, axis=1) for name, values in tasks.items()
            }
        elif wish.with_tasks:
            tasks = self._predict(crowd, item_index, context)
        is_empty = item_index < 0

        def full(values: NDArray[np.float64]) -> NDArray[np.float64]:
            return _widen(np.where(is_empty, np.nan, values), wish.k, np.nan)

        return RankedLists(
            _widen(item_index.astype(np.int32), wish.k, -1),
            full(score),
            full(retrieval),
            {name: full(values) for name, values in tasks.items()},
        )

    def rate(
        self, crowd: Crowd, item_index: NDArray[np.int64], wish: Wish, context: PairContext
    ) -> RankedLists:
        """Give the same numbers as `rank` for (B, C) given items, in their order."""
        if crowd.is_cold.any():
            retrieval = self._popular.shares(item_index, crowd.exclude)
        else:
            found = self._index.search(crowd.vectors, 1, exclude=crowd.exclude, added=crowd.added)
            best = found.max_logit
            best = np.where(np.isnan(best), np.inf, best)
            logits = self._index.logits(crowd.vectors, item_index, crowd.added)
            retrieval = retrieval_unit(logits, best[:, None])
        tasks = self._predict(crowd, item_index, context)
        score = self._blend(retrieval, tasks, wish.weights)
        return RankedLists(item_index.astype(np.int32), score, retrieval, tasks)

    def predict_pairs(
        self,
        crowd: Crowd,
        rows: NDArray[np.integer],
        item_index: NDArray[np.integer],
        context: PairContext | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Predict every ranking task for P pairs: {task: (P,) float32}.

        Args:
            crowd: B users.
            rows: (P,) positions of users.
            item_index: (P,) positions of items; 1 is an item outside the catalogue.
            context: P rows; by default nothing is known.
        """
        if not self.ranking_tasks:
            return {}
        # A float32 probability near 1 has lost the logit that a factorisation joins.
        predictions = {task.name: np.empty(len(rows)) for task in self.ranking_tasks}
        sizes, scaling = self.bundle.sizes, self.bundle.transform.event_scaling
        with torch.inference_mode():
            for at in range(0, len(rows), _PAIRS_PER_BLOCK):
                part = slice(at, min(at + _PAIRS_PER_BLOCK, len(rows)))
                user, item = (
                    torch.from_numpy(np.asarray(values[part], np.int64)).to(self._device)
                    for values in (rows, item_index)
                )
                inputs = context_inputs(
                    context or PairContext(), part, sizes, scaling, self._device
                )
                logits = self._model.rank(crowd.states.at(user), item, self._vectors, inputs)
                exact = {name: values.double() for name, values in logits.items()}
                for name, values in self._model.predict(exact).items():
                    predictions[name][part] = values.cpu().numpy()
        term = self.bundle.factors
        if term is not None and crowd.events is not None:
            said = term.said(crowd.events, rows, item_index)
            for task in self.ranking_tasks:
                predictions[task.name] = term.join(task, predictions[task.name], said)
        return {name: values.astype(np.float32) for name, values in predictions.items()}

    @cached_property
    def friends(self) -> FriendScorer | None:
        """What ranks friends among the stored users; None: the model has no social task."""
        store = self.bundle.users
        if store.social is None:
            return None
        items = store.seen_matrix(len(self.tie_rank))
        return self.friend_scorer(FriendGraph(store.social.links, items), store.social.vectors)

    def friend_scorer(self, graph: FriendGraph, vectors: NDArray[np.floating]) -> FriendScorer:
        """Give what ranks friends in a graph, with social vectors (U, D) of its users."""
        assert self._model.social is not None, "a model with a social task"
        return FriendScorer(graph, vectors, self._model.social.weights.detach().cpu().numpy())

    def social_vectors(self, states: UserStates) -> NDArray[np.float32]:
        """Give the social vectors of users: (B, D)."""
        assert self._model.social is not None, "a model with a social task"
        with torch.inference_mode():
            found: NDArray[np.float32] = self._model.social(states.vector).cpu().numpy()
        return found

    def log_shares(
        self,
        histories: Histories,
        users: UserRows,
        owner: NDArray[np.int64],
        item_index: NDArray[np.integer],
        exclude: NDArray[np.integer],
        likeness: sparse.csr_array | None = None,
    ) -> NDArray[np.float64]:
        """Give the log of each item's share in the softmax over what may be listed: (B, C).

        Args:
            histories: B users; of each the latest events count, as in `crowd`.
            users: rows of users.
            owner: (B,) whose row there goes with each history.
            item_index: (C,) positions of items that may be listed.
            exclude: positions that must not be listed.
            likeness: (1, N) float32, cosines of the words of all with the items; by default none.
        """
        histories = histories.latest(self.bundle.config.model.kept_events)
        states = self._states(histories, users, owner)
        vectors = self._vectors_of(states, histories)
        if likeness is not None:
            column = sparse.csr_array(np.ones((len(histories), 1), np.float32))
            likeness = column @ likeness
        added, _ = self._added(histories, vectors, likeness)
        return self._index.log_shares(vectors, item_index, added, exclude)

    # ---- steps ----------------------------------------------------------------------------------

    def _states(
        self, histories: Histories, users: UserRows, owner: NDArray[np.int64] | None = None
    ) -> UserStates:
        """Encode users, those with histories of like length together; B rows.

        `owner` (B,) says whose row in `users` goes with each history; by default each has its own.
        """
        scaling = self.bundle.transform.event_scaling
        starts, stops = last_windows(histories, self.bundle.config.model.history.length)
        order = np.argsort(stops - starts, kind="stable")
        parts: list[UserStates] = []
        with torch.inference_mode():
            for at in range(0, max(1, len(order)), USERS_PER_BLOCK):
                rows = order[at : at + USERS_PER_BLOCK]
                batch = history_batch(histories, starts[rows], stops[rows], scaling=scaling)
                tensors = {
                    name: torch.from_numpy(values).to(self._device)
                    for name, values in batch.items()
                }
                own = rows if owner is None else owner[rows]
                inputs = user_inputs(users, own, self.bundle.sizes, self._device)
                parts.append(self._model.encode_users(tensors, inputs, self._vectors))
            states = parts[0]
            if len(order) > 1:
                back = torch.from_numpy(np.argsort(order, kind="stable")).to(self._device)
                states = UserStates(
                    *(
                        torch.cat([getattr(state, part.name) for state in parts])
                        for part in fields(UserStates)
                    )
                ).at(back)
        # For one user a fifth of what torch takes to look.
        if not all(
            np.isfinite(getattr(states, part.name).cpu().numpy()).all()
            for part in fields(UserStates)
        ):
            raise RequestError(
                "the history's numbers are too large for the model; give values like those it was "
                "trained on",
                field="history",
            )
        return states

    def _added(
        self,
        histories: Histories,
        vectors: NDArray[np.float32],
        likeness: sparse.csr_array | None,
    ) -> tuple[sparse.csr_array | None, sparse.csr_array | None]:
        """Give what items that B users met and words add to their logits, and words alone.

        Both (B, N), the words in float64: in float32 a user could get another list alone than among
        others, for the spread is not the same to the last digit.
        """
        item_item = self.bundle.item_item
        added = item_item.scores(histories) if item_item is not None else None
        if likeness is None:
            return added, None
        scale = np.zeros((len(vectors), 1))
        wishes = np.flatnonzero(np.diff(likeness.indptr))
        some = added[wishes] if added is not None else None
        scale[wishes, 0] = _TEXT_SCALE * self._index.spreads(vectors[wishes], some)
        text_logits = sparse.csr_array(likeness.multiply(scale))
        return text_logits if added is None else added + text_logits, text_logits

    def _vectors_of(self, states: UserStates, histories: Histories) -> NDArray[np.float32]:
        """Give what the index searches with, for B users: (B, D + K)."""
        vectors: NDArray[np.float32] = states.vector.cpu().numpy()
        if self.bundle.ials is None:
            return vectors
        return np.concatenate([vectors, self.bundle.ials.users(histories)], axis=1)

    def _candidates(
        self, crowd: Crowd, width: int, allowed: NDArray[np.bool_] | None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Give positions (B, width), -1 for none, and their retrieval numbers in [0, 1]."""
        found = self._index.search(
            crowd.vectors, width, exclude=crowd.exclude, allowed=allowed, added=crowd.added
        )
        item_index = found.item_index.astype(np.int64)
        retrieval = retrieval_unit(found.logit, found.max_logit[:, None])
        cold = np.flatnonzero(crowd.is_cold).tolist()
        for row in cold:
            item_index[row] = self._popular.top(crowd.exclude[row], allowed, width)
        exclude = [crowd.exclude[row] for row in cold]
        retrieval[cold] = self._popular.shares(item_index[cold], exclude)
        return item_index, retrieval

    def _predict(
        self, crowd: Crowd, item_index: NDArray[np.int64], context: PairContext | None
    ) -> dict[str, NDArray[np.float64]]:
        """Predict the ranking tasks of (B, C) items, -1 for none: {task: (B, C)}."""
        num_users, width = item_index.shape
        rows = np.repeat(np.arange(num_users), width)
        if context is not None:
            context = PairContext(
                {name: np.repeat(values, width) for name, values in context.numbers.items()},
                {name: np.repeat(values, width) for name, values in context.categories.items()},
            )
        found = self.predict_pairs(crowd, rows, np.maximum(item_index, 0).ravel(), context)
        return {
            name: values.astype(np.float64).reshape(item_index.shape)
            for name, values in found.items()
        }

    def _blend(
        self,
        retrieval: NDArray[np.float64],
        tasks: Mapping[str, NDArray[np.float64]],
        weights: Mapping[str, float],
    ) -> NDArray[np.float64]:
        units = {self.retrieval_task: retrieval}
        for task in self.ranking_tasks:
            if task.name in tasks:
                units[task.name] = prediction_unit(task, tasks[task.name])
        return blend(units, weights)

    def _choose(
        self, item_index: NDArray[np.int64], score: NDArray[np.float64], wish: Wish
    ) -> NDArray[np.int64]:
        """Give the columns of each user's k items, sorted by score, ties by item id: (B, <= k)."""
        filled = np.where(item_index >= 0, score, -1.0)
        order = np.lexsort((self.tie_rank[item_index], -filled), axis=1)
        keep: NDArray[np.int64] = order[:, : wish.k].copy()
        if wish.diversity == 0.0:
            return keep
        for row, columns in enumerate(order):
            real = columns[item_index[row, columns] >= 0]
            chosen = diversify(
                score[row, real],
                self.likeness[item_index[row, real]],
                wish.k,
                diversity=wish.diversity,
            )
            keep[row, : len(chosen)] = real[np.sort(chosen)]
        return keep
