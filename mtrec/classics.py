"""The classical recommenders themselves: each is fitted on events, and scores users by history.

`baselines.py` tunes and fits them under the model's protocol. Pure NumPy and SciPy, and `implicit`
for the factorisations.

Shapes: B users, N rows of the item vocabulary (row 0 padding, row 1 unknown), P rows.
"""

import zlib
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from mtrec import metrics
from mtrec.data.histories import Histories
from mtrec.ials import ImplicitFactors, fit_ials
from mtrec.itemitem import NextItemSums, interaction_matrix, inverse_of
from mtrec.popular import item_counts

Scores = NDArray[np.float32]

_BLOCK = 1 << 24
_TINY = 1e-12


class RankingBaseline(Protocol):
    """Scores every item for users that are given by their history."""

    def score_users(self, histories: Histories) -> Scores:
        """Give (B, N) float32 scores, higher is better; rows 0 and 1 mean nothing."""
        ...


class PointwiseBaseline(Protocol):
    """Predicts the label of single (user, item) pairs."""

    def predict(self, user: NDArray[np.int64], item_index: NDArray[np.int32]) -> metrics.Floats:
        """Give (P,) predictions; `user` are positions in the histories that it was fitted on."""
        ...


# ---- ranking baselines --------------------------------------------------------------------------


class Random:
    """A random order for each user, from the seed and the user's id: the level of chance."""

    def __init__(self, num_items: int, seed: int) -> None:
        self._num_items = num_items
        self._seed = seed

    def score_users(self, histories: Histories) -> Scores:
        """Give (B, N) scores in [0, 1)."""
        rows = [
            np.random.default_rng([self._seed, zlib.crc32(str(user).encode())]).random(
                self._num_items, np.float32
            )
            for user in histories.user_ids
        ]
        return np.stack(rows) if rows else np.zeros((0, self._num_items), np.float32)


class Popularity:
    """The same order for everyone: by number of events, perhaps with recent ones counting more."""

    def __init__(self, counts: NDArray[np.generic]) -> None:
        self._counts = counts.astype(np.float32)

    def score_users(self, histories: Histories) -> Scores:
        """Give the counts, once for each user: (B, N)."""
        return np.broadcast_to(self._counts, (len(histories), len(self._counts)))


class Bigram:
    """First-order Markov counts: what followed the user's last item most often.

    score(j) = #(i, j adjacent in a history) + #j / (max #j + 1), i the last item; the second term
    is below 1, so popularity only orders what the counts leave equal, and is all there is after an
    item that nothing followed.
    """

    def __init__(self, histories: Histories, num_items: int) -> None:
        item, user = histories.item_index, histories.event_user
        adjacent = (user[1:] == user[:-1]) & (item[1:] >= 2) & (item[:-1] >= 2)
        before, after = item[:-1][adjacent], item[1:][adjacent]
        self._follows = sparse.csr_array(
            (np.ones(len(before), np.float32), (before, after)), shape=(num_items, num_items)
        )
        counts = item_counts(histories, num_items)
        self._popularity = (counts / (counts.max(initial=0) + 1.0)).astype(np.float32)

    def score_users(self, histories: Histories) -> Scores:
        """Give (B, N) scores from the last event of each history."""
        last = np.zeros(len(histories), np.int64)
        some = np.diff(histories.offsets) > 0
        last[some] = histories.item_index[histories.offsets[1:][some] - 1]
        return np.asarray(self._follows[last].toarray() + self._popularity)


class ItemKNN:
    """Cosine similarity between items, each keeping its nearest neighbours.

    sim(i, j) = n_ij / (sqrt(n_i n_j) + shrink), n_ij users with both; score(j) = sum over the
    history's items i of sim(j, i), i among j's nearest (Deshpande & Karypis 2004; the shrink term
    as in Bell & Koren 2007).
    """

    def __init__(
        self, histories: Histories, num_items: int, neighbours: int, shrink: float
    ) -> None:
        matrix = interaction_matrix(histories, num_items)
        root = np.sqrt(np.asarray(matrix.sum(0), np.float64))
        by_item = matrix.T.tocsr()
        # Block by block, so that memory stays bounded whatever the catalogue.
        size = max(1, _BLOCK // num_items)
        blocks = []
        for start in range(0, num_items, size):
            both = (by_item[start : start + size] @ matrix).tocoo()
            row, column = both.coords
            similarity = both.data / (root[row + start] * root[column] + shrink)
            similarity[row + start == column] = 0.0
            keep = _largest_per_row(row, column, similarity, neighbours)
            shape = (both.shape[0], num_items)
            kept = (similarity[keep].astype(np.float32), (row[keep], column[keep]))
            blocks.append(sparse.csr_array(kept, shape=shape))
        self._transposed = sparse.vstack(blocks).T.tocsr()
        self._num_items = num_items

    def score_users(self, histories: Histories) -> Scores:
        """Give (B, N) sums of similarities to the history."""
        rows = interaction_matrix(histories, self._num_items)
        return np.asarray((rows @ self._transposed).toarray())


class Ease:
    """EASE, a linear autoencoder with a zero diagonal, in closed form (Steck 2019, equation 8).

    P = (X'X + reg I)^-1, B = I - P diag(1 / P), scores X B. With fewer users than items the inverse
    is taken on the users' side, (X'X + reg I)^-1 = (I - X' (XX' + reg I)^-1 X) / reg, which is the
    same matrix at the cost of the smaller side.
    """

    def __init__(self, histories: Histories, num_items: int, reg: float) -> None:
        matrix = interaction_matrix(histories, num_items)
        self._num_items = num_items
        self._matrix = matrix
        self._reg = reg
        self._inner: NDArray[np.float64] | None = None
        if matrix.shape[0] < num_items:
            self._inner = inverse_of((matrix @ matrix.T).toarray(), reg)
            weighted = matrix.T @ self._inner
            through = np.asarray(matrix.T.multiply(weighted).sum(1), np.float64)
            self._diagonal = (1.0 - through) / reg
        else:
            inverse = inverse_of((matrix.T @ matrix).toarray(), reg)
            self._diagonal = np.diag(inverse).copy()
            self._weights = (-inverse / self._diagonal).astype(np.float32)
            np.fill_diagonal(self._weights, 0.0)

    def score_users(self, histories: Histories) -> Scores:
        """Give (B, N) reconstructions of the history."""
        rows = interaction_matrix(histories, self._num_items)
        if self._inner is None:
            return np.asarray(rows @ self._weights, np.float32)
        dense = rows.toarray().astype(np.float64)
        through = ((rows @ self._matrix.T) @ self._inner) @ self._matrix
        projected = (dense - through) / self._reg
        return np.asarray(dense - projected / self._diagonal, np.float32)


class Slit:
    """Ridge regression of the next item on what came before, a linear model of sequences.

    SLIT (Choi et al. 2021, Session-aware linear item-item models for session-based recommendation)
    with the next item as only target: `NextItemSums`, all weights kept.
    """

    def __init__(
        self, histories: Histories, num_items: int, *, half_life: float, reg: float
    ) -> None:
        self._fitted = NextItemSums.of(histories, num_items, half_life).fit(reg, num_items)

    def score_users(self, histories: Histories) -> Scores:
        """Give (B, N) scores of what comes next."""
        return np.asarray(self._fitted.scores(histories).toarray())


class Slim:
    """SLIM by ADMM: sparse item-item weights that are not negative, and a zero diagonal.

    Minimises |X - XB|^2 / 2 + l2 |B|^2 / 2 + l1 |B|_1 (Ning and Karypis 2011) by the alternating
    direction method of multipliers (Steck et al. 2020, "ADMM SLIM", algorithm 1), scores X B. Its
    rho is the mean of X'X's diagonal: with that, 30 rounds came within .002 of coordinate descent
    in every weight; ten times more or less left .02 and more.
    """

    _ITERATIONS = 30

    def __init__(self, histories: Histories, num_items: int, *, l1: float, l2: float) -> None:
        self._num_items = num_items
        matrix = interaction_matrix(histories, num_items)
        gram = (matrix.T @ matrix).toarray().astype(np.float64)
        step = max(1.0, float(np.diag(gram).sum()) / max(1, int(np.count_nonzero(np.diag(gram)))))
        inverse = inverse_of(gram, l2 + step)
        start = inverse @ gram
        diagonal = np.diag(inverse)
        weights, dual = np.zeros_like(gram), np.zeros_like(gram)
        for _ in range(self._ITERATIONS):
            free = start + inverse @ (step * weights - dual)
            free -= inverse * (np.diag(free) / diagonal)
            weights = np.maximum(free + (dual - l1) / step, 0.0)
            dual += step * (free - weights)
        np.fill_diagonal(weights, 0.0)
        self._weights = sparse.csr_array(weights.astype(np.float32))

    def score_users(self, histories: Histories) -> Scores:
        """Give (B, N) sums of the weights of the history's items."""
        rows = interaction_matrix(histories, self._num_items)
        return np.asarray((rows @ self._weights).toarray())


class Bpr:
    """Matrix factorisation that ranks met items above others (Rendle et al. 2009); by `implicit`.

    Unlike the others it has a row for each user and knows only those it was fitted on.
    """

    def __init__(
        self,
        histories: Histories,
        num_items: int,
        *,
        factors: int,
        learning_rate: float,
        reg: float,
        seed: int,
        iterations: int = 100,
    ) -> None:
        self._rows = {user: row for row, user in enumerate(histories.user_ids)}
        # Here, as below: whoever only reads or trains would wait half a second for it.
        from implicit.cpu.bpr import BayesianPersonalizedRanking

        self._model = BayesianPersonalizedRanking(
            factors=factors,
            learning_rate=learning_rate,
            regularization=reg,
            iterations=iterations,
            # More threads race for the factors, and the seed would decide nothing.
            num_threads=1,
            random_state=seed,
        )
        matrix = sparse.csr_matrix(interaction_matrix(histories, num_items))
        self._model.fit(matrix, show_progress=False)

    def score_users(self, histories: Histories) -> Scores:
        """Give (B, N) inner products of users' and items' factors."""
        users = self._model.user_factors[[self._rows[user] for user in histories.user_ids]]
        return np.asarray(users @ self._model.item_factors.T, np.float32)


class Ials:
    """Inner products of iALS' items and of users that are solved for from their histories."""

    def __init__(self, factors: ImplicitFactors) -> None:
        self._factors = factors

    def score_users(self, histories: Histories) -> Scores:
        """Give (B, N) inner products."""
        return self._factors.scores(histories)


class TextNearest:
    """Cosine of an item's text vector and the mean of those of the history's items.

    The mean is over the history's items that have a text; items without one score 0.
    """

    def __init__(self, text: NDArray[np.floating]) -> None:
        rows = text.astype(np.float64)
        self._text = rows
        self._unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _TINY)

    def score_users(self, histories: Histories) -> Scores:
        """Give (B, N) cosines."""
        # The mean is the sum over a count, which a cosine does not see.
        total = interaction_matrix(histories, len(self._text)) @ self._text
        total /= np.maximum(np.linalg.norm(total, axis=1, keepdims=True), _TINY)
        return np.asarray(total @ self._unit.T, np.float32)


class IalsText(Ials):
    """iALS whose factors of items that nobody has met are told by the items' texts.

    See `ImplicitFactors.with_texts`.
    """

    def __init__(
        self,
        histories: Histories,
        text: NDArray[np.floating],
        *,
        factors: int,
        alpha: float,
        reg: float,
        ridge: float,
        seed: int,
    ) -> None:
        fitted = fit_ials(histories, len(text), factors=factors, alpha=alpha, reg=reg, seed=seed)
        super().__init__(fitted.with_texts(text, ridge))


class PopularWithoutHistory:
    """A personal baseline, and popularity for users without one known event."""

    def __init__(self, fitted: RankingBaseline, counts: NDArray[np.int64]) -> None:
        self._fitted = fitted
        self._counts = counts

    def score_users(self, histories: Histories) -> Scores:
        """Give (B, N) scores, or counts."""
        scores = self._fitted.score_users(histories)
        known = np.bincount(
            histories.event_user[histories.item_index >= 2], minlength=len(histories)
        )
        scores[known == 0] = self._counts
        return scores


# ---- baselines for labels -----------------------------------------------------------------------


class Bias:
    """A mean, and how far each user and item is from it: mu + b_u + b_i.

    Minimises sum (y - mu - b_u - b_i)^2 + reg_user |b_u|^2 + reg_item |b_i|^2 by alternating exact
    steps (Koren 2009, section 2.1); users and items without a label have offset 0. For a binary
    label it is a linear probability model, to be clipped.
    """

    def __init__(self, mean: float, user: metrics.Floats, item: metrics.Floats) -> None:
        self.mean = mean
        self.user = user
        self.item = item

    @classmethod
    def fit(
        cls,
        user: NDArray[np.int64],
        item: NDArray[np.int32],
        label: metrics.Floats,
        *,
        num_users: int,
        num_items: int,
        reg_user: float,
        reg_item: float,
        iterations: int = 20,
    ) -> "Bias":
        """Fit on labels (P,) of users and items (P,)."""
        mean = float(label.mean()) if len(label) else 0.0
        per_user = np.bincount(user, minlength=num_users) + reg_user
        per_item = np.bincount(item, minlength=num_items) + reg_item
        b_user, b_item = np.zeros(num_users), np.zeros(num_items)
        for _ in range(iterations):
            rest = label - mean - b_user[user]
            b_item = np.bincount(item, rest, minlength=num_items) / per_item
            b_item[:2] = 0.0
            rest = label - mean - b_item[item]
            b_user = np.bincount(user, rest, minlength=num_users) / per_user
        return cls(mean, b_user, b_item)

    def predict(self, user: NDArray[np.int64], item_index: NDArray[np.int32]) -> metrics.Floats:
        """Give (P,) predictions, not clipped."""
        prediction = np.full(len(user), self.mean)
        if len(self.user):
            prediction += self.user[user] + self.item[item_index]
        return prediction


# ---- parts --------------------------------------------------------------------------------------


def _largest_per_row(
    row: NDArray[np.int32], column: NDArray[np.int32], value: metrics.Floats, keep: int
) -> NDArray[np.int64]:
    """Give the positions of each row's `keep` largest values, of equals the first columns."""
    order = np.lexsort((column, -value, row))
    ordered = row[order]
    starts = np.searchsorted(ordered, ordered, side="left")
    return order[np.arange(len(order)) - starts < keep]
