"""Why an item is in a user's list: what of its logit is content, and which events speak for it.

`Recommender` asks it about the lists that `Ranker` made. Read-only, to be shared by threads.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mtrec.catalogue import NUM_SPECIAL
from mtrec.data.histories import Histories, last_windows
from mtrec.ranker import Crowd, Ranker
from mtrec.rerank import unit_rows
from mtrec.userstore import UserRows

MAX_REASONS = 100
"""Items of a history that are looked at as reasons, the latest ones; each costs one encoding."""
_NUM_REASONS = 3


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one item is in one user's list.

    Attributes:
        content_share: what of its logit is content, 0 to 1, see `Explainer.content_share`.
        reasons: (R,) int32, positions of the history's items that speak most for it, the strongest
            first; three at most, none where no item does.
        effect: (R,) float64, above 0: what the item's log share loses without that reason, see
            `Explainer.influence`.
        similarity: (R,) float64, -1 to 1: the cosine of the contents of item and reason.
    """

    content_share: float
    reasons: NDArray[np.int32]
    effect: NDArray[np.float64]
    similarity: NDArray[np.float64]


class _Part:
    """Item vectors (N, D) that are a part of the logit, and their mean over the catalogue."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        self.vectors = vectors
        known = vectors[NUM_SPECIAL:]
        self._mean = (
            known.mean(axis=0, dtype=np.float64) if len(known) else np.zeros(vectors.shape[1])
        )

    def relative(self, item_index: NDArray[np.integer]) -> NDArray[np.float64]:
        """Give vectors minus the mean: (C, D) float64."""
        found: NDArray[np.float64] = self.vectors[item_index] - self._mean
        return found


class Explainer:
    """Explain the lists of a ranker."""

    def __init__(self, ranker: Ranker) -> None:
        arrays, ials = ranker.bundle.vectors, ranker.bundle.ials
        self._ranker = ranker
        self._parts = [_Part(arrays.content), _Part(arrays.collaborative)]
        self._is_told = np.zeros(len(arrays.content), np.bool_)
        if ials is not None:
            self._parts.append(_Part(ials.items))
            if ials.told is not None:
                self._is_told = ials.told

    def explain(
        self,
        item_index: NDArray[np.int32],
        one: Crowd,
        histories: Histories,
        users: UserRows,
        row: int,
    ) -> list[Explanation]:
        """Explain the list (k,) of the user at `row` of `histories`, who is alone in `one`.

        Popular lists have no explanations: the model's logits do not make them.
        """
        if one.is_cold[0]:
            return []
        places = item_index[item_index >= 0]
        added, text_logits = (
            part.toarray()[0] if part is not None else None for part in (one.added, one.text_logits)
        )
        share = self.content_share(one.vectors[0], places, added, text_logits)
        told, effect = self.influence(histories, users, row, places, one.exclude[0], one.likeness)
        vectors = self._ranker.likeness
        likeness = np.clip(unit_rows(vectors[told]) @ unit_rows(vectors[places]).T, -1.0, 1.0)
        found = []
        for column, place in enumerate(places):
            order = np.lexsort((self._ranker.tie_rank[told], -effect[:, column]))[:_NUM_REASONS]
            best = order[(effect[order, column] > 0.0) & (told[order] != place)]
            found.append(
                Explanation(
                    float(share[column]), told[best], effect[best, column], likeness[best, column]
                )
            )
        return found

    def content_share(
        self,
        user: NDArray[np.float32],
        item_index: NDArray[np.integer],
        added: NDArray[np.floating] | None = None,
        text_logits: NDArray[np.floating] | None = None,
    ) -> NDArray[np.float64]:
        """Give the share of content in the logits of one user for (C,) items: (C,) in [0, 1].

        With each part's logit relative to its mean over the catalogue for this user:
        |content| / (|content| + |collaborative|); 0.5 where both are 0. What is added to the
        logits, (N,), is collaborative, but for what of it words add, (N,); factors
        that a text tells are content.
        """
        wide, dim = user.astype(np.float64), self._parts[0].vectors.shape[1]
        content = self._parts[0].relative(item_index) @ wide[:dim]
        collaborative = self._parts[1].relative(item_index) @ wide[:dim]
        is_told = self._is_told[item_index]
        for part in self._parts[2:]:
            logit = part.relative(item_index) @ wide[dim:]
            content += np.where(is_told, logit, 0.0)
            collaborative += np.where(is_told, 0.0, logit)
        if text_logits is not None:
            mean = text_logits[NUM_SPECIAL:].mean(dtype=np.float64)
            content += text_logits[item_index] - mean
            added = added - text_logits if added is not None else None
        if added is not None:
            collaborative += added[item_index] - added[NUM_SPECIAL:].mean(dtype=np.float64)
        content, collaborative = np.abs(content), np.abs(collaborative)
        total = content + collaborative
        share: NDArray[np.float64] = np.where(
            total > 0.0, content / np.where(total > 0.0, total, 1.0), 0.5
        )
        return share

    def influence(
        self,
        histories: Histories,
        users: UserRows,
        row: int,
        item_index: NDArray[np.integer],
        exclude: NDArray[np.integer],
        likeness: sparse.csr_array | None = None,
    ) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """Give what each item of one user's history does for given items.

        The effect of j on i is log p_i with the whole history minus log p_i without the events of
        j, where p is the softmax of the logits over what may be listed: above 0 where j speaks
        for i. Over the whole catalogue, j itself would take part: a model that knows that nobody
        comes back to j gives it more without its event, and i less, whatever j says of i.

        Args:
            histories: B users.
            users: B rows.
            row: whose history it is about.
            item_index: (C,) positions of items that may be listed.
            exclude: positions that must not be listed.
            likeness: (1, N) float32, cosines of the user's words with the items; by default none.

        Returns:
            (J,) distinct items of the history, the `MAX_REASONS` latest at most, and (J, C)
            effects.
        """
        history = histories.rows([row])
        history = history.select(history.item_index >= NUM_SPECIAL)
        start, _ = last_windows(history, self._ranker.bundle.config.model.history.length)
        visible = history.item_index[start[0] :]
        newest, last = np.unique(visible[::-1], return_index=True)
        items = newest[np.argsort(last)][:MAX_REASONS]
        variants = history.rows(np.zeros(len(items) + 1, np.int64))
        without = np.concatenate([[-1], items])[variants.event_user]
        variants = variants.select(variants.item_index != without)
        owner = np.full(len(variants), row)
        shares = self._ranker.log_shares(variants, users, owner, item_index, exclude, likeness)
        return items, shares[0] - shares[1:]
