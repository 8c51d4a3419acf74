"""Classical recommenders under the model's protocol: what a model must beat to be worth its cost.

Each is fitted on the events that it is given (the caller cuts them off before the split), scores
whole users against the whole catalogue, and is tuned on validation over a small fixed grid. They
see what the model sees: a user's history, never its id, and two of them the items' texts. Pure
NumPy and SciPy, and `implicit` for the factorisation. `evaluate.py` fits and reports them; nothing
here reads files.

Shapes: B users, N rows of the item vocabulary (row 0 padding, row 1 unknown), P rows.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from implicit.cpu.als import AlternatingLeastSquares
from implicit.cpu.bpr import BayesianPersonalizedRanking
from numpy.typing import NDArray
from scipy import sparse
from threadpoolctl import threadpool_limits

from mtrec import metrics
from mtrec.config import Candidates
from mtrec.data.histories import SPLITS, Histories, unmet_items
from mtrec.ials import ImplicitFactors
from mtrec.itemitem import interaction_matrix, inverse_of

Settings = Mapping[str, float]
Scores = NDArray[np.float32]

DENSE_BASELINES = frozenset({"ease", "slim"})
"""Baselines whose cost grows with the square of the catalogue or worse."""
RANKING_BASELINES = (
    "random",
    "popularity",
    "recent_popularity",
    "bigram",
    "itemknn",
    "ease",
    "slim",
    "ials",
    "bpr",
    "text_nearest",
    "ials_text",
)
TEXT_BASELINES = frozenset({"text_nearest", "ials_text"})
"""Baselines that read the items' text vectors, and so know items that nobody has met."""
POINTWISE_BASELINES = ("mean", "bias")

GRIDS: dict[str, list[dict[str, float]]] = {
    "recent_popularity": [{"half_life": share} for share in (0.02, 0.05, 0.1, 0.2, 0.4)],
    "itemknn": [
        {"neighbours": neighbours, "shrink": shrink}
        for neighbours in (50, 100, 200)
        for shrink in (0, 20)
    ],
    "ease": [{"reg": reg} for reg in (50, 100, 200, 300, 500, 1000)],
    "slim": [{"l1": l1, "l2": l2} for l1 in (0.3, 1, 3) for l2 in (30, 100, 300)],
    # A higher alpha wants a higher reg, so the grid follows that line.
    "ials": [
        {"factors": factors, "alpha": alpha, "reg": reg}
        for factors in (32, 128)
        for alpha, reg in ((2, 10), (5, 30), (10, 60), (20, 60))
    ],
    "bpr": [
        {"factors": 64, "learning_rate": rate, "reg": reg}
        for rate in (0.02, 0.05, 0.1)
        for reg in (0.003, 0.01, 0.03)
    ],
    "ials_text": [
        {"factors": factors, "alpha": alpha, "reg": reg, "ridge": ridge}
        for factors in (32, 128)
        for alpha, reg in ((2, 10), (10, 60))
        for ridge in (0.1, 1, 10, 100)
    ],
    "bias": [
        {"reg_user": reg_user, "reg_item": reg_item}
        for reg_user in (2, 5, 10, 20, 40)
        for reg_item in (1, 2, 5, 10)
    ],
}
"""Settings that are tried; baselines without an entry have nothing to tune."""

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


@dataclass(frozen=True, slots=True)
class Tuned:
    """What tuning chose, by which figure, and all that was tried."""

    settings: dict[str, float]
    value: float
    tried: int


# ---- fitting and tuning -------------------------------------------------------------------------


def fit_ranking(
    name: str,
    histories: Histories,
    num_items: int,
    *,
    seed: int,
    settings: Settings,
    text: NDArray[np.floating] | None = None,
) -> RankingBaseline:
    """Fit a baseline of `RANKING_BASELINES` on all the events that are given.

    Args:
        name: which one.
        histories: the events that may be known, and no others.
        num_items: N.
        seed: decides `random` and the first factors of `ials` and `ials_text`.
        settings: a value for each key of the baseline's grid.
        text: (N, W), the items' text vectors, zeros for items without text; for `TEXT_BASELINES`.
    """
    assert text is not None or name not in TEXT_BASELINES, f"{name} reads the items' texts"
    match name:
        case "random":
            return Random(num_items, seed)
        case "popularity":
            return Popularity(item_counts(histories, num_items))
        case "recent_popularity":
            return Popularity(_decayed_counts(histories, num_items, settings["half_life"]))
        case "bigram":
            return Bigram(histories, num_items)
        case "itemknn":
            fitted: RankingBaseline = ItemKNN(
                histories, num_items, int(settings["neighbours"]), settings["shrink"]
            )
        case "ease":
            fitted = Ease(histories, num_items, settings["reg"])
        case "ials":
            fitted = Ials(
                fit_ials(
                    histories,
                    num_items,
                    factors=int(settings["factors"]),
                    alpha=settings["alpha"],
                    reg=settings["reg"],
                    seed=seed,
                )
            )
        case "slim":
            fitted = Slim(histories, num_items, l1=settings["l1"], l2=settings["l2"])
        case "bpr":
            fitted = Bpr(
                histories,
                num_items,
                factors=int(settings["factors"]),
                learning_rate=settings["learning_rate"],
                reg=settings["reg"],
                seed=seed,
            )
        case "text_nearest":
            assert text is not None, "checked above"
            fitted = TextNearest(text)
        case "ials_text":
            assert text is not None, "checked above"
            fitted = IalsText(
                histories,
                text,
                factors=int(settings["factors"]),
                alpha=settings["alpha"],
                reg=settings["reg"],
                ridge=settings["ridge"],
                seed=seed,
            )
        case _:
            raise AssertionError(f"unknown ranking baseline {name}")
    return _PopularWithoutHistory(fitted, item_counts(histories, num_items))


def fit_pointwise(
    name: str, histories: Histories, task: str, num_items: int, *, settings: Settings
) -> PointwiseBaseline:
    """Fit a baseline of `POINTWISE_BASELINES` on all labels of a task that are given."""
    known = np.isfinite(histories.labels[task])
    user, item = histories.event_user[known], histories.item_index[known]
    label = histories.labels[task][known].astype(np.float64)
    match name:
        case "mean":
            return Bias(float(label.mean()) if len(label) else 0.0, np.zeros(0), np.zeros(0))
        case "bias":
            return Bias.fit(
                user,
                item,
                label,
                num_users=len(histories),
                num_items=num_items,
                reg_user=settings["reg_user"],
                reg_item=settings["reg_item"],
            )
    raise AssertionError(f"unknown pointwise baseline {name}")


def tune_ranking(
    name: str,
    histories: Histories,
    num_items: int,
    *,
    k: int,
    seed: int,
    candidates: Candidates = "all",
    text: NDArray[np.floating] | None = None,
) -> tuple[Tuned, NDArray[np.int32]]:
    """Choose a ranking baseline's settings by NDCG@k on validation.

    Args:
        name: which baseline.
        histories: events of all splits; it is fitted on train and looks at validation.
        num_items: N.
        k: length of the lists.
        seed: as in `fit_ranking`.
        candidates: as in `candidate_items`.
        text: as in `fit_ranking`.

    Returns:
        What was chosen (the first of equals; without validation events the middle of the grid), and
        the lists for validation under it: (U, k) int32.
    """
    known = histories.before("validation")
    relevance = relevant_items(histories, "validation", num_items, candidates)
    allowed = candidate_items(histories, "validation", num_items, candidates)
    options = GRIDS.get(name, [{}])
    if not relevance.count.any():
        chosen = options[len(options) // 2]
        return Tuned(chosen, float("nan"), 0), np.zeros((len(histories), k), np.int32)
    best = Tuned({}, -np.inf, len(options))
    lists = np.zeros((0, k), np.int32)
    for settings in options:
        model = fit_ranking(name, known, num_items, seed=seed, settings=settings, text=text)
        ranked = rank(model, known, num_items, k=k, allowed=allowed)
        value = float(np.nanmean(metrics.ndcg(relevance.hits(ranked), relevance.count)))
        if value > best.value:
            best, lists = Tuned(settings, value, len(options)), ranked
    return best, lists


def tune_pointwise(
    name: str, histories: Histories, task: str, num_items: int, *, kind: str
) -> Tuned:
    """Choose a pointwise baseline's settings on validation, by RMSE or, if binary, by log loss."""
    known = histories.before("validation")
    rows = labelled_rows(histories, task, "validation")
    options = GRIDS.get(name, [{}])
    if len(rows) == 0:
        return Tuned(options[len(options) // 2], float("nan"), 0)
    truth = histories.labels[task][rows].astype(np.float64)
    metric = metrics.logloss if kind == "binary" else metrics.rmse
    best = Tuned({}, np.inf, len(options))
    for settings in options:
        model = fit_pointwise(name, known, task, num_items, settings=settings)
        prediction = model.predict(histories.event_user[rows], histories.item_index[rows])
        value = float(metric(truth, clip_prediction(prediction, kind), None))
        if value < best.value:
            best = Tuned(settings, value, len(options))
    return best


def clip_prediction(
    prediction: metrics.Floats, kind: str, low: float = -np.inf, high: float = np.inf
) -> metrics.Floats:
    """Keep predictions where labels can be: probabilities within [0.01, 0.99], else [low, high]."""
    return np.clip(prediction, 0.01, 0.99) if kind == "binary" else np.clip(prediction, low, high)


# ---- the protocol -------------------------------------------------------------------------------


def candidate_items(
    histories: Histories, split: str, num_items: int, candidates: Candidates
) -> NDArray[np.bool_] | None:
    """Give the items that lists for `split` are made from: (N,) bool; None: all of them.

    Args:
        histories: events of all splits.
        split: which one is judged.
        num_items: N.
        candidates: `cold`: items without an event of an earlier split, whoever's.
    """
    return None if candidates == "all" else unmet_items(histories.before(split), num_items)


def relevant_items(
    histories: Histories, split: str, num_items: int, candidates: Candidates = "all"
) -> metrics.Relevance:
    """Give what lists for `split` are judged by: each user's items there that are new to it.

    Items of a user's earlier events are masked in every list, so they are no relevant items; nor
    are those that are no candidates.
    """
    position = SPLITS.index(split)
    user, item = histories.event_user, histories.item_index
    pair = user * np.int64(num_items) + item
    held_out = histories.split == position
    seen = np.isin(pair, np.unique(pair[histories.split < position])) & (item >= 2)
    keep = held_out & ~seen
    allowed = candidate_items(histories, split, num_items, candidates)
    if allowed is not None:
        keep &= allowed[item] | (item < 2)
    return metrics.Relevance.from_pairs(
        user[keep], item[keep], num_users=len(histories), num_items=num_items
    )


def labelled_rows(histories: Histories, task: str, split: str) -> NDArray[np.int64]:
    """Give the positions of the events of a split that have the task's label and a known item."""
    held_out = (histories.split == SPLITS.index(split)) & (histories.item_index >= 2)
    return np.flatnonzero(held_out & np.isfinite(histories.labels[task]))


def rank(
    model: RankingBaseline,
    histories: Histories,
    num_items: int,
    *,
    k: int,
    allowed: NDArray[np.bool_] | None = None,
) -> NDArray[np.int32]:
    """Give each user's best k items among those not in its history: (U, k) int32, padded with 0.

    Best first, ties by item position; the whole catalogue is scored, block by block, and only
    items of `allowed` (N,) are listed.
    """
    ranked = np.zeros((len(histories), k), np.int32)
    size = max(1, _BLOCK // num_items)
    for start in range(0, len(histories), size):
        block = histories.rows(np.arange(start, min(start + size, len(histories))))
        scores = model.score_users(block).astype(np.float32, copy=True)
        scores[:, :2] = -np.inf
        if allowed is not None:
            scores[:, ~allowed] = -np.inf
        scores[block.event_user, block.item_index] = -np.inf
        ranked[start : start + len(block)] = top_k(scores, k)
    return ranked


def top_k(scores: Scores, k: int) -> NDArray[np.int32]:
    """Give the columns of the k largest finite scores of each row, ties by position: (B, k) int32.

    Rows with fewer than k finite scores are padded with 0.
    """
    k_there = min(k, scores.shape[1])
    bound = -np.partition(-scores, k_there - 1, axis=1)[:, k_there - 1 : k_there]
    above = scores > bound
    tied = scores == bound
    room = k_there - above.sum(1, keepdims=True)
    chosen = above | (tied & (np.cumsum(tied, axis=1) <= room))
    columns = np.nonzero(chosen)[1].reshape(len(scores), k_there)
    values = np.take_along_axis(scores, columns, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    best = np.take_along_axis(columns, order, axis=1)
    best[~np.isfinite(np.take_along_axis(values, order, axis=1))] = 0
    return np.pad(best, ((0, 0), (0, k - k_there))).astype(np.int32)


def item_counts(histories: Histories, num_items: int) -> NDArray[np.int64]:
    """Count the events of each item: (N,); rows 0 and 1 are 0."""
    counts = np.bincount(histories.item_index, minlength=num_items).astype(np.int64)
    counts[:2] = 0
    return counts


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


def fit_ials(
    histories: Histories,
    num_items: int,
    *,
    factors: int,
    alpha: float,
    reg: float,
    seed: int,
    iterations: int = 15,
) -> ImplicitFactors:
    """Factorise implicit feedback by alternating least squares (Hu et al. 2008).

    Minimises sum_ui c_ui (p_ui - x_u'y_i)^2 + reg (|X|^2 + |Y|^2), c = alpha where a user touched
    an item and 1 elsewhere; `implicit` does the work.
    """
    # The library knows the old SciPy class. It warns unless BLAS runs on one thread: its own
    # threads share the work.
    matrix = sparse.csr_matrix(interaction_matrix(histories, num_items))
    with threadpool_limits(1, "blas"):
        model = AlternatingLeastSquares(
            factors=factors,
            alpha=alpha,
            regularization=reg,
            iterations=iterations,
            num_threads=_NUM_THREADS,
            random_state=seed,
        )
        model.fit(matrix, show_progress=False)
    items = np.array(model.item_factors, np.float32)
    # The library leaves them at their random start where nobody has met an item.
    items[np.bincount(matrix.indices, minlength=num_items) == 0] = 0.0
    return ImplicitFactors.of(items, alpha=alpha, reg=reg)


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


class IalsText:
    """iALS whose factors of items that nobody has met are told by the items' texts.

    A ridge regression with intercept from the text vectors to the factors, fitted on the items that
    have events and text: W = (T'T + ridge I)^-1 T'Y, both centred. Content mapped to the factors of
    a fitted factorisation, for new items, is what Gantner et al. (2010) do and what DropoutNet
    (Volkovs et al. 2017) does with a network. An unmet item without text has zeros.
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
        self._ials = fit_ials(
            histories, len(text), factors=factors, alpha=alpha, reg=reg, seed=seed
        )
        self._items = self._ials.items.astype(np.float64)
        has_text = text.any(axis=1)
        is_unmet = unmet_items(histories, len(text))
        known = np.flatnonzero(has_text & ~is_unmet)
        known = known[known >= 2]
        if len(known):
            rows = text.astype(np.float64)
            mean_text, mean_items = rows[known].mean(0), self._items[known].mean(0)
            centred = rows[known] - mean_text
            gram = centred.T @ centred + ridge * np.eye(rows.shape[1])
            weights = np.linalg.solve(gram, centred.T @ (self._items[known] - mean_items))
            told = is_unmet & has_text
            self._items[told] = (rows[told] - mean_text) @ weights + mean_items

    def score_users(self, histories: Histories) -> Scores:
        """Give (B, N) inner products of users, solved for from their histories, and items."""
        return np.asarray(self._ials.users(histories) @ self._items.T, np.float32)


class _PopularWithoutHistory:
    """A personal baseline, and popularity for users without one known event."""

    def __init__(self, fitted: RankingBaseline, counts: NDArray[np.int64]) -> None:
        self._fitted = fitted
        self._counts = counts

    def score_users(self, histories: Histories) -> Scores:
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

# Small problems: two threads gain, more only wait for each other, and neither changes a result.
_NUM_THREADS = 2


def _decayed_counts(histories: Histories, num_items: int, half_life: float) -> metrics.Floats:
    """Count events with weight 2^(-age / half-life), the half-life a share of the time spanned.

    Without times every event counts 1.
    """
    time, item = histories.timestamp, histories.item_index
    known = np.isfinite(time)
    if not known.any():
        return item_counts(histories, num_items).astype(np.float64)
    latest, first = time[known].max(), time[known].min()
    age = (latest - np.where(known, time, first)) / max(latest - first, 1.0)
    weighted = np.bincount(item, np.exp2(-age / half_life), minlength=num_items)
    weighted[:2] = 0.0
    return weighted.astype(np.float64)


def _largest_per_row(
    row: NDArray[np.int32], column: NDArray[np.int32], value: metrics.Floats, keep: int
) -> NDArray[np.int64]:
    """Give the positions of each row's `keep` largest values, of equals the first columns."""
    order = np.lexsort((column, -value, row))
    ordered = row[order]
    starts = np.searchsorted(ordered, ordered, side="left")
    return order[np.arange(len(order)) - starts < keep]


def order_of(names: Sequence[str]) -> list[str]:
    """Sort baseline names as this module lists them."""
    known = (*RANKING_BASELINES, *POINTWISE_BASELINES)
    return sorted(names, key=known.index)
