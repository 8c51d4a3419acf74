"""The model beside its baselines: figures, intervals, differences, slices, calibration. Pure NumPy.

`evaluate.py` brings lists and predictions of every method for the same users and rows; this module
makes of them the numbers of `report.json`. A figure that is undefined (NaN) is left out, never
guessed. All methods share one set of bootstrap draws, so differences are paired.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtrec import intervals, metrics
from mtrec.intervals import Difference, Figure, Interval, Statistic
from mtrec.metrics import Floats, Relevance

MODEL = "model"
"""Name of the model among the methods."""

SLICE_EDGES = (0, 1, 5, 20)
"""Slices by a count start here: 0, 1 to 4, 5 to 19, 20 and more."""

Figures = dict[str, dict[str, Figure]]
"""Method -> metric -> figure."""
Tree = dict[str, object]
"""JSON-like."""


@dataclass(frozen=True, slots=True)
class Draws:
    """How the bootstrap is done: `samples` of users, decided by `seed`."""

    samples: int
    seed: int


@dataclass(frozen=True, slots=True)
class ItemFacts:
    """What metrics need to know of items.

    Attributes:
        train_count: (N,) int64, train events; rows 0 and 1 are 0.
        content: (N, W), content vectors, zeros where an item has none; None: no diversity.
    """

    train_count: NDArray[np.int64]
    content: NDArray[np.floating] | None


@dataclass(frozen=True, slots=True)
class Rows:
    """Held-out labels of one task.

    Attributes:
        user: (P,) int64, positions of users.
        truth: (P,) float64.
        kind: `regression` or `binary`.
    """

    user: NDArray[np.int64]
    truth: Floats
    kind: str


def compare_lists(
    lists: Mapping[str, NDArray[np.int32]], relevance: Relevance, items: ItemFacts, draws: Draws
) -> Figures:
    """Measure every method's lists on the users that have a relevant item.

    Args:
        lists: method -> (U, K) positions, best first, padded with 0.
        relevance: of the same U users.
        items: what is known of the N items.
        draws: of the bootstrap.
    """
    users = np.flatnonzero(relevance.count > 0)
    statistics: dict[str, Statistic] = {}
    names: dict[str, tuple[str, str]] = {}
    coverages: Figures = {method: {} for method in lists}
    for method, ranked in lists.items():
        k = ranked.shape[1]
        values = metrics.ranking_metrics(relevance.hits(ranked), relevance.count)
        values[f"novelty@{k}"] = metrics.novelty(ranked, items.train_count)
        if items.content is not None:
            values[f"diversity@{k}"] = metrics.diversity(ranked, items.content)
        for metric, per_user in values.items():
            names[f"{method}/{metric}"] = (method, metric)
            statistics[f"{method}/{metric}"] = intervals.mean_over_users(per_user[users])
        share = metrics.coverage(ranked[users], relevance.num_items - 2)
        # No interval: drawing users with replacement shows fewer of them, which lowers coverage.
        coverages[method][f"coverage@{k}"] = Figure(share, np.full(draws.samples, np.nan))
    drawn = intervals.bootstrap(
        statistics, num_users=len(users), samples=draws.samples, seed=draws.seed
    )
    figures: Figures = {method: {} for method in lists}
    for key, (method, metric) in names.items():
        figures[method][metric] = drawn[key]
    return {method: {**found, **coverages[method]} for method, found in figures.items()}


def compare_predictions(predictions: Mapping[str, Floats], rows: Rows, draws: Draws) -> Figures:
    """Measure every method's predictions (P,) of the same rows; users are what is drawn anew."""
    known, user = np.unique(rows.user, return_inverse=True)
    functions = row_metrics(rows.kind)
    drawn = intervals.bootstrap(
        {
            f"{method}/{metric}": intervals.over_rows(function, user, rows.truth, prediction)
            for method, prediction in predictions.items()
            for metric, function in functions.items()
        },
        num_users=len(known),
        samples=draws.samples,
        seed=draws.seed,
        rows=len(rows.truth),
    )
    return {
        method: {metric: drawn[f"{method}/{metric}"] for metric in functions}
        for method in predictions
    }


def row_metrics(kind: str) -> dict[str, metrics.RowMetric]:
    """Give the metrics of a task's kind by name."""
    return metrics.BINARY_METRICS if kind == "binary" else metrics.REGRESSION_METRICS


# ---- slices -------------------------------------------------------------------------------------


def slice_names() -> list[str]:
    """Name the slices by a count: `0`, `1-4`, `5-19`, `20+`."""
    stops = [edge - 1 for edge in SLICE_EDGES[1:]]
    inner = [
        str(low) if low == high else f"{low}-{high}"
        for low, high in zip(SLICE_EDGES, stops, strict=False)
    ]
    return [*inner, f"{SLICE_EDGES[-1]}+"]


def slice_of(count: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give the slice, 0..3, of each count."""
    return np.searchsorted(np.array(SLICE_EDGES), count, side="right") - 1


def slice_lists(
    lists: Mapping[str, NDArray[np.int32]],
    relevance: Relevance,
    *,
    history_length: NDArray[np.int64],
    train_count: NDArray[np.int64],
) -> Tree:
    """Measure lists by how much is known of the user and of the relevant item.

    In a slice of items, only its items count as relevant, and only users with one of them.

    Args:
        lists: method -> (U, K) positions.
        relevance: of the same users.
        history_length: (U,), events that the lists were made from.
        train_count: (N,), train events of each item.
    """
    by_user, by_item = slice_of(history_length), slice_of(train_count)
    key_user = relevance.key // relevance.num_items
    key_item = relevance.key % relevance.num_items
    slices: dict[str, Tree] = {"history_length": {}, "item_train_count": {}}
    for position, name in enumerate(slice_names()):
        count = np.where(by_user == position, relevance.count, 0)
        if count.any():
            slices["history_length"][name] = _slice(lists, relevance, count)
        inside = by_item[key_item] == position
        count = np.bincount(key_user[inside], minlength=len(relevance.count))
        if count.any():
            part = Relevance(relevance.key[inside], count, relevance.num_items)
            slices["item_train_count"][name] = _slice(lists, part, count)
    return {name: found for name, found in slices.items() if found}


def _slice(
    lists: Mapping[str, NDArray[np.int32]], relevance: Relevance, count: NDArray[np.int64]
) -> Tree:
    figures: Tree = {}
    for method, ranked in lists.items():
        hits = relevance.hits(ranked)
        k = ranked.shape[1]
        figures[method] = {
            f"ndcg@{k}": float(np.nanmean(metrics.ndcg(hits, count))),
            f"recall@{k}": float(np.nanmean(metrics.recall(hits, count))),
        }
    return {"users": int((count > 0).sum()), "figures": figures}


def slice_predictions(
    predictions: Mapping[str, Floats],
    rows: Rows,
    *,
    history_length: NDArray[np.int64],
    train_count: NDArray[np.int64],
) -> Tree:
    """Measure predictions by how much is known of the user and of the item.

    Args:
        predictions: method -> (R,).
        rows: the R labelled rows.
        history_length: (U,), events that the predictions were made from.
        train_count: (R,), training events of each row's item.
    """
    name = "auc" if rows.kind == "binary" else "rmse"
    function = row_metrics(rows.kind)[name]
    kinds = {"history_length": history_length[rows.user], "item_train_count": train_count}
    slices: dict[str, Tree] = {kind: {} for kind in kinds}
    for kind, counts in kinds.items():
        for position, label in enumerate(slice_names()):
            inside = slice_of(counts) == position
            if inside.any():
                found = {
                    method: float(function(rows.truth[inside], prediction[inside], None))
                    for method, prediction in predictions.items()
                }
                figures = {m: {name: value} for m, value in found.items() if np.isfinite(value)}
                slices[kind][label] = {"rows": int(inside.sum()), "figures": figures}
    return {kind: found for kind, found in slices.items() if found}


# ---- what a picture needs -----------------------------------------------------------------------


def calibration(rows: Rows, prediction: Floats) -> list[Tree]:
    """Give, for each non-empty bin of predicted probability, what was predicted and what came."""
    inside = metrics.calibration_bins(prediction)
    bins: list[Tree] = []
    for position in np.unique(inside):
        chosen = inside == position
        bins.append(
            {
                "low": position / metrics.NUM_BINS,
                "high": (position + 1) / metrics.NUM_BINS,
                "rows": int(chosen.sum()),
                "predicted": float(prediction[chosen].mean()),
                "observed": float(rows.truth[chosen].mean()),
            }
        )
    return bins


def predicted_by_truth(rows: Rows, prediction: Floats, *, max_groups: int = 12) -> list[Tree]:
    """Give the quantiles of the predictions for each true value, or for bins of equal width."""
    truth = rows.truth
    values = np.unique(truth)
    if len(values) > max_groups:
        edges = np.linspace(values[0], values[-1], max_groups + 1)
        group = np.clip(np.searchsorted(edges, truth, side="right") - 1, 0, max_groups - 1)
        centre = (edges[:-1] + edges[1:]) / 2
    else:
        group, centre = np.searchsorted(values, truth), values
    found: list[Tree] = []
    for position in np.unique(group):
        chosen = prediction[group == position]
        low, lower, middle, upper, high = np.percentile(chosen, [5, 25, 50, 75, 95]).tolist()
        found.append(
            {
                "truth": float(centre[position]),
                "rows": len(chosen),
                "mean": float(chosen.mean()),
                "quantiles": [low, lower, middle, upper, high],
            }
        )
    return found


# ---- to JSON ------------------------------------------------------------------------------------


def values_json(figures: Mapping[str, Figure]) -> dict[str, float]:
    """Give metric -> value, undefined ones left out."""
    return {name: f.value for name, f in figures.items() if np.isfinite(f.value)}


def intervals_json(figures: Mapping[str, Figure]) -> dict[str, list[float]]:
    """Give metric -> [low, high], undefined ones left out."""
    found = {name: figure.interval() for name, figure in figures.items()}
    return {name: _bounds(i) for name, i in found.items() if np.isfinite(i.low)}


def differences_json(model: Mapping[str, Figure], other: Mapping[str, Figure]) -> Tree:
    """Give metric -> model minus other, absolute and relative, each with its interval."""
    found: Tree = {}
    for name in model:
        if name in other:
            difference: Difference = model[name].minus(other[name])
            if np.isfinite(difference.absolute.low):
                found[name] = {
                    "difference": difference.absolute.value,
                    "interval": _bounds(difference.absolute),
                    **(
                        {
                            "relative": difference.relative.value,
                            "relative_interval": _bounds(difference.relative),
                        }
                        if np.isfinite(difference.relative.low)
                        else {}
                    ),
                }
    return found


def _bounds(interval: Interval) -> list[float]:
    return [interval.low, interval.high]
