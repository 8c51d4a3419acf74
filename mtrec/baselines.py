"""Classical recommenders under the model's protocol: what a model must beat to be worth its cost.

Each is fitted on the events that it is given (the caller cuts them off before the split), scores
whole users against the whole catalogue, and is tuned on validation: over a small grid, then from
its best point on to better ones, so that no grid's edge holds a baseline back. Two of them read the
items' texts. Pure NumPy and SciPy, and `implicit` for the factorisation. `evaluate.py` fits and
reports them; nothing here reads files.

Shapes: B users, N rows of the item vocabulary (row 0 padding, row 1 unknown), P rows.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mtrec import metrics
from mtrec.classics import (
    Bias,
    Bigram,
    Bpr,
    Ease,
    Ials,
    IalsText,
    ItemKNN,
    PointwiseBaseline,
    Popularity,
    PopularWithoutHistory,
    Random,
    RankingBaseline,
    Scores,
    Slim,
    Slit,
    TextNearest,
)
from mtrec.config import Candidates
from mtrec.data.histories import SPLITS, Histories, unmet_items
from mtrec.ials import fit_ials
from mtrec.popular import decayed_counts, item_counts
from mtrec.svdpp import SvdPP
from mtrec.tuning import Settings, Tuned, Watch, search

DENSE_BASELINES = frozenset({"slit", "ease", "slim"})
"""Baselines whose cost grows with the square of the catalogue or worse."""
RANKING_BASELINES = (
    "random",
    "popularity",
    "recent_popularity",
    "bigram",
    "slit",
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
POINTWISE_BASELINES = ("mean", "bias", "svdpp")

GRIDS: dict[str, list[dict[str, float]]] = {
    "recent_popularity": [{"half_life": share} for share in (0.02, 0.05, 0.1, 0.2, 0.4)],
    # Half-lives in later events of the user.
    "slit": [{"half_life": events, "reg": reg} for events in (2, 4, 8) for reg in (30, 100, 300)],
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
    "svdpp": [
        {"factors": factors, "reg": reg, "reg_bias": 0.02}
        for factors in (20, 50)
        for reg in (0.08, 0.1, 0.12, 0.15)
    ],
}
"""Settings that are tried first; baselines without an entry have nothing to tune."""

_BLOCK = 1 << 24


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
        seed: decides `random` and the first factors of `ials`, `ials_text` and `bpr`.
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
            return Popularity(decayed_counts(histories, num_items, settings["half_life"]))
        case "bigram":
            return Bigram(histories, num_items)
        case "slit":
            fitted: RankingBaseline = Slit(
                histories, num_items, half_life=settings["half_life"], reg=settings["reg"]
            )
        case "itemknn":
            fitted = ItemKNN(histories, num_items, int(settings["neighbours"]), settings["shrink"])
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
    return PopularWithoutHistory(fitted, item_counts(histories, num_items))


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
        case "svdpp":
            return SvdPP.fit(
                user,
                item,
                label,
                num_users=len(histories),
                num_items=num_items,
                factors=int(settings["factors"]),
                reg=settings["reg"],
                reg_bias=settings["reg_bias"],
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
    watch: Watch | None = None,
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
        watch: see there.

    Returns:
        What was chosen (see `tuning.search`; without validation events the middle of the grid), and
        the lists for validation under it: (U, k) int32.
    """
    known = histories.before("validation")
    relevance = relevant_items(histories, "validation", num_items, candidates)
    allowed = candidate_items(histories, "validation", num_items, candidates)
    options = GRIDS.get(name, [{}])
    if not relevance.count.any():
        chosen = options[len(options) // 2]
        return Tuned(chosen, float("nan"), 0), np.zeros((len(histories), k), np.int32)
    best: tuple[float, NDArray[np.int32]] = (-np.inf, np.zeros((0, k), np.int32))

    def judge(settings: Settings) -> float:
        nonlocal best
        model = fit_ranking(name, known, num_items, seed=seed, settings=settings, text=text)
        ranked = rank(model, known, num_items, k=k, allowed=allowed)
        value = float(np.nanmean(metrics.ndcg(relevance.hits(ranked), relevance.count)))
        if value > best[0]:
            best = value, ranked
        return value

    return search(options, judge, watch), best[1]


def tune_pointwise(
    name: str,
    histories: Histories,
    task: str,
    num_items: int,
    *,
    kind: str,
    watch: Watch | None = None,
) -> Tuned:
    """Choose a pointwise baseline's settings on validation, by RMSE or, if binary, by log loss."""
    known = histories.before("validation")
    rows = labelled_rows(histories, task, "validation")
    options = GRIDS.get(name, [{}])
    if len(rows) == 0:
        return Tuned(options[len(options) // 2], float("nan"), 0)
    truth = histories.labels[task][rows].astype(np.float64)
    metric = metrics.logloss if kind == "binary" else metrics.rmse

    def judge(settings: Settings) -> float:
        model = fit_pointwise(name, known, task, num_items, settings=settings)
        prediction = model.predict(histories.event_user[rows], histories.item_index[rows])
        return -float(metric(truth, clip_prediction(prediction, kind), None))

    found = search(options, judge, watch)
    return replace(found, value=-found.value)


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


def order_of(names: Sequence[str]) -> list[str]:
    """Sort baseline names as this module lists them."""
    known = (*RANKING_BASELINES, *POINTWISE_BASELINES)
    return sorted(names, key=known.index)
