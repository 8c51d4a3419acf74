"""Metrics of ranked lists and of predictions. NumPy only.

Ranking metrics take binary relevance and give one value per user, NaN for users without a relevant
item; the figure is the mean over the others. Metrics of predictions take row weights, so that the
same function gives the figure and, with users drawn anew, the distribution that `intervals.py`
makes an interval of. Nothing here reads files or knows a model; `baselines.py` tunes by these
figures, `evaluate.py` reports them.

Shapes: U users, K length of a list, P rows (user, item), S bootstrap samples.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NUM_BINS = 15
"""Bins of the expected calibration error."""
THRESHOLD = 0.5
"""Probabilities from here on count as a predicted 1."""
_EPSILON = 1e-7


# ---- ranked lists -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Relevance:
    """The items that each of U users should have been shown.

    Attributes:
        key: (R,) int64, sorted, `user * num_items + item` of every reachable relevant pair.
        count: (U,) int64, relevant items of each user, those that no list can hold included.
        num_items: N, rows of the item vocabulary.
    """

    key: NDArray[np.int64]
    count: NDArray[np.int64]
    num_items: int

    @classmethod
    def from_pairs(
        cls,
        user: NDArray[np.int64],
        item_index: NDArray[np.int32],
        *,
        num_users: int,
        num_items: int,
    ) -> "Relevance":
        """Collect pairs (P,), each pair once.

        An item outside the vocabulary (index 0 or 1) can be in no list and is a miss each time:
        leaving it out would flatter methods that cannot reach new items.
        """
        known = item_index >= 2
        key = np.unique(user[known] * np.int64(num_items) + item_index[known])
        count = np.bincount(key // num_items, minlength=num_users)
        count += np.bincount(user[~known], minlength=num_users)
        return cls(key, count.astype(np.int64), num_items)

    def hits(self, ranked: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Tell for lists (U, K), best first, padded with 0, which entries are relevant: (U, K)."""
        user = np.arange(len(ranked), dtype=np.int64)[:, None]
        return np.isin(user * self.num_items + ranked, self.key) & (ranked >= 2)


def ndcg(hits: NDArray[np.bool_], count: NDArray[np.int64]) -> Floats:
    """Give each user's normalised discounted cumulative gain: (U,).

    sum_r hit_r / log2(r + 1) divided by the same sum of an ideal list, which has its
    min(|R|, K) first places relevant (Jarvelin & Kekalainen 2002, binary gain). NaN without a
    relevant item.
    """
    discount = 1.0 / np.log2(np.arange(2, hits.shape[1] + 2))
    ideal = np.concatenate([[np.nan], np.cumsum(discount)])[np.minimum(count, hits.shape[1])]
    return np.asarray(hits @ discount / ideal)


def recall(hits: NDArray[np.bool_], count: NDArray[np.int64]) -> Floats:
    """Give each user's share of relevant items that are in the list: hits / |R|, (U,).

    The denominator is |R|, not min(|R|, K), so K < |R| bounds it below 1. NaN if |R| = 0.
    """
    return divide(hits.sum(1), count)


def precision(hits: NDArray[np.bool_], count: NDArray[np.int64]) -> Floats:
    """Give each user's share of the list that is relevant: hits / K, (U,); NaN if |R| = 0.

    Short lists are divided by K too: an empty place is a miss.
    """
    return np.where(count > 0, hits.mean(1), np.nan)


def f1(hits: NDArray[np.bool_], count: NDArray[np.int64]) -> Floats:
    """Give each user's harmonic mean of precision and recall, (U,); NaN if |R| = 0.

    2 hits / (K + |R|), which is 0 where both are 0.
    """
    return np.where(count > 0, 2.0 * hits.sum(1) / (hits.shape[1] + count), np.nan)


def hit_rate(hits: NDArray[np.bool_], count: NDArray[np.int64]) -> Floats:
    """Give 1 for each user with a relevant item in the list, else 0: (U,); NaN if |R| = 0."""
    return np.where(count > 0, hits.any(1), np.nan)


def reciprocal_rank(hits: NDArray[np.bool_], count: NDArray[np.int64]) -> Floats:
    """Give 1 / place of each user's first relevant entry, 0 without one: (U,); NaN if |R| = 0."""
    first = np.where(hits.any(1), 1.0 / (1 + hits.argmax(1)), 0.0)
    return np.where(count > 0, first, np.nan)


def average_precision(hits: NDArray[np.bool_], count: NDArray[np.int64]) -> Floats:
    """Give each user's average precision: (U,); NaN if |R| = 0.

    sum over relevant places r of precision@r, divided by min(|R|, K), so that a perfect list has 1
    (the `map_at_k` form; other libraries divide by |R|).
    """
    places = np.arange(1, hits.shape[1] + 1)
    total = (hits * np.cumsum(hits, axis=1) / places).sum(1)
    return divide(total, np.minimum(count, hits.shape[1]))


def ranking_metrics(hits: NDArray[np.bool_], count: NDArray[np.int64]) -> dict[str, Floats]:
    """Give all accuracy metrics of lists by name (`ndcg@10` ...), one value per user each.

    Args:
        hits: (U, K), which places of the lists are relevant.
        count: (U,), how many items are relevant.
    """
    functions = {
        "ndcg": ndcg,
        "recall": recall,
        "precision": precision,
        "f1": f1,
        "hr": hit_rate,
        "mrr": reciprocal_rank,
        "map": average_precision,
    }
    return {f"{name}@{hits.shape[1]}": f(hits, count) for name, f in functions.items()}


def coverage(ranked: NDArray[np.int32], num_catalogue: int) -> float:
    """Give the share of the catalogue that is in at least one list; NaN without a catalogue.

    |union of lists| / |catalogue| (Herlocker et al. 2004, section 4.2). It grows with the number of
    users, so compare it only between methods on the same users.
    """
    shown = np.unique(ranked[ranked >= 2])
    return len(shown) / num_catalogue if num_catalogue else float("nan")


def novelty(ranked: NDArray[np.int32], train_count: NDArray[np.int64]) -> Floats:
    """Give the mean self-information of each list in bits: (U,); NaN for an empty list.

    mean over the list of -log2 p(i), p(i) = train events of i / all train events (Zhou et al. 2010;
    Vargas & Castells 2011). An item never seen in training counts as seen once: its information
    is large but finite.

    Args:
        ranked: (U, K), padded with 0.
        train_count: (N,), train events of each row of the vocabulary.
    """
    total = max(int(train_count.sum()), 1)
    bits = -np.log2(np.maximum(train_count, 1) / total)
    filled = ranked >= 2
    return divide((bits[ranked] * filled).sum(1), filled.sum(1))


def diversity(ranked: NDArray[np.int32], content: NDArray[np.floating]) -> Floats:
    """Give each list's mean distance between two of its items by content: (U,).

    1 - cosine, mean over pairs (Smyth & McClure 2001; Ziegler et al. 2005). With unit vectors v it
    is 1 - (|sum v|^2 - n) / (n (n - 1)). Items without content (zero rows) are left out; NaN if
    fewer than two are left.

    Args:
        ranked: (U, K), padded with 0.
        content: (N, W), one vector per row of the vocabulary; row 0 is zeros.
    """
    shown = np.unique(ranked)
    rows = content[shown].astype(np.float64)
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = rows / np.where(norm > 0, norm, 1.0)
    place = np.searchsorted(shown, ranked)
    n = ((norm[:, 0] > 0)[place] & (ranked >= 2)).sum(1).astype(np.float64)
    total = np.stack([unit[row].sum(0) for row in place]) if len(place) else unit[:0]
    same = (total**2).sum(1) - n
    return np.where(n >= 2, 1.0 - divide(same, n * (n - 1)), np.nan)


# ---- predictions --------------------------------------------------------------------------------
# `weights` says how often each row counts: (P,) or (S, P); by default once. The figure has the
# shape of `weights` without its last axis.


def mse(truth: Floats, prediction: Floats, weights: Floats | None = None) -> Floats:
    """Give the mean squared error over rows; NaN without rows."""
    return _mean((prediction - truth) ** 2, weights)


def rmse(truth: Floats, prediction: Floats, weights: Floats | None = None) -> Floats:
    """Give the root of the mean squared error over all rows; NaN without rows.

    Over rows, not a mean of per-user values as some libraries give.
    """
    return np.sqrt(mse(truth, prediction, weights))


def mae(truth: Floats, prediction: Floats, weights: Floats | None = None) -> Floats:
    """Give the mean absolute error over rows; NaN without rows."""
    return _mean(np.abs(prediction - truth), weights)


def auc(label: Floats, score: Floats, weights: Floats | None = None) -> Floats:
    """Give the chance that a 1 scores above a 0, ties counting half; NaN with one class only.

    The Mann-Whitney statistic by midranks (Hanley & McNeil 1982), over all rows.
    """
    weights = _ones(label, weights)
    order = np.argsort(score, kind="stable")
    ordered = score[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(order) else order
    if len(order) == 0:
        return np.full(weights.shape[:-1], np.nan)
    counted = weights[..., order]
    positive = np.add.reduceat(counted * label[order], starts, axis=-1)
    negative = np.add.reduceat(counted * (1.0 - label[order]), starts, axis=-1)
    below = np.cumsum(negative, axis=-1) - 0.5 * negative
    pairs = positive.sum(-1) * negative.sum(-1)
    return divide((positive * below).sum(-1), pairs)


def logloss(label: Floats, probability: Floats, weights: Floats | None = None) -> Floats:
    """Give the mean negative log likelihood in nats; NaN without rows.

    -mean(y log p + (1 - y) log(1 - p)), p kept within [1e-7, 1 - 1e-7] so that one sure mistake
    costs 16 and not infinity.
    """
    p = np.clip(probability, _EPSILON, 1.0 - _EPSILON)
    return _mean(-(label * np.log(p) + (1.0 - label) * np.log1p(-p)), weights)


def calibration_bins(probability: Floats) -> NDArray[np.int64]:
    """Give the bin of each probability, 0..14: fifteen bins of equal width, 1.0 in the last."""
    return np.clip((probability * NUM_BINS).astype(np.int64), 0, NUM_BINS - 1)


def ece(label: Floats, probability: Floats, weights: Floats | None = None) -> Floats:
    """Give the expected calibration error; NaN without rows.

    sum over 15 equal-width bins b of (n_b / n) |mean label_b - mean probability_b| (Guo et al.
    2017, equation 3, on the probability of 1 as is usual for clicks). Empty bins add nothing.
    """
    weights = _ones(label, weights)
    inside = np.eye(NUM_BINS)[calibration_bins(probability)]
    # n_b |mean label - mean probability| = |sum of (label - probability)|, so n_b cancels.
    gaps = np.abs(weights @ (inside * (label - probability)[:, None]))
    return divide(gaps.sum(-1), weights.sum(-1))


def accuracy(label: Floats, probability: Floats, weights: Floats | None = None) -> Floats:
    """Give the share of rows on the right side of 0.5; NaN without rows."""
    return _mean((probability >= THRESHOLD) == (label > 0), weights)


def precision_binary(label: Floats, probability: Floats, weights: Floats | None = None) -> Floats:
    """Give the share of predicted ones (p >= 0.5) that are ones; NaN if none is predicted."""
    weights, chosen = _ones(label, weights), probability >= THRESHOLD
    return divide(weights @ (chosen * label), weights @ chosen.astype(np.float64))


def recall_binary(label: Floats, probability: Floats, weights: Floats | None = None) -> Floats:
    """Give the share of ones that are predicted (p >= 0.5); NaN if there is no one."""
    weights, chosen = _ones(label, weights), probability >= THRESHOLD
    return divide(weights @ (chosen * label), weights @ label)


def f1_binary(label: Floats, probability: Floats, weights: Floats | None = None) -> Floats:
    """Give 2 TP / (2 TP + FP + FN) at 0.5; NaN if there is no one, neither true nor predicted."""
    weights, chosen = _ones(label, weights), probability >= THRESHOLD
    both = weights @ label + weights @ chosen.astype(np.float64)
    return divide(2.0 * (weights @ (chosen * label)), both)


RowMetric = Callable[[Floats, Floats, Floats | None], Floats]
REGRESSION_METRICS: dict[str, RowMetric] = {"rmse": rmse, "mae": mae, "mse": mse}
BINARY_METRICS: dict[str, RowMetric] = {
    "auc": auc,
    "logloss": logloss,
    "ece": ece,
    "accuracy": accuracy,
    "precision": precision_binary,
    "recall": recall_binary,
    "f1": f1_binary,
}
LOWER_IS_BETTER = frozenset({"rmse", "mae", "mse", "logloss", "ece"})
"""Metrics whose smaller values are better; all others are better when larger."""


def _ones(rows: Floats, weights: Floats | None) -> Floats:
    return np.ones(len(rows)) if weights is None else weights


def _mean(values: NDArray[np.generic], weights: Floats | None) -> Floats:
    weights = np.ones(len(values)) if weights is None else weights
    return divide(weights @ values.astype(np.float64), weights.sum(-1))


def divide(a: NDArray[np.generic], b: NDArray[np.generic]) -> Floats:
    """Divide, NaN where the divisor is 0."""
    top, bottom = np.asarray(a, np.float64), np.asarray(b, np.float64)
    quotient = np.full(np.broadcast(top, bottom).shape, np.nan)
    np.divide(top, bottom, out=quotient, where=bottom != 0)
    return quotient
