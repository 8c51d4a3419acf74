"""What is popular, by all events or of late: the lists of users of whom nothing is known."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mtrec.catalogue import NUM_SPECIAL
from mtrec.data.histories import Histories


def item_counts(histories: Histories, num_items: int) -> NDArray[np.int64]:
    """Count the events of each item: (N,); rows 0 and 1 are 0."""
    counts = np.bincount(histories.item_index, minlength=num_items).astype(np.int64)
    counts[:NUM_SPECIAL] = 0
    return counts


def time_span(histories: Histories) -> tuple[float, float] | None:
    """Give the first and the last time of events; None: there are no times."""
    known = histories.timestamp[np.isfinite(histories.timestamp)]
    return (float(known.min()), float(known.max())) if len(known) else None


def decayed_counts(
    histories: Histories,
    num_items: int,
    half_life: float,
    span: tuple[float, float] | None = None,
) -> NDArray[np.float64]:
    """Count events with weight 2^(-age / half-life), the half-life a share of the time spanned.

    Without times every event counts 1.

    Args:
        histories: the events.
        num_items: N.
        half_life: above 0.
        span: first and last time of all events, where these are a part of them.
    """
    span = span or time_span(histories)
    if span is None:
        return item_counts(histories, num_items).astype(np.float64)
    first, latest = span
    time = np.where(np.isfinite(histories.timestamp), histories.timestamp, first)
    age = (latest - time) / max(latest - first, 1.0)
    weighted = np.bincount(histories.item_index, np.exp2(-age / half_life), minlength=num_items)
    weighted[:NUM_SPECIAL] = 0.0
    return weighted.astype(np.float64)


def popularity(
    histories: Histories, num_items: int, half_life: float | None
) -> NDArray[np.float64]:
    """Give what items are popular by: their events, of late if there is a half-life; (N,)."""
    if half_life is None:
        return item_counts(histories, num_items).astype(np.float64)
    return decayed_counts(histories, num_items, half_life)


class Popular:
    """Rank N positions by their events, ties by item id.

    Args:
        counts: (N,) events of each item, whole or decayed.
        tie_rank: (N,) int64, the order of positions with equal counts.
    """

    def __init__(self, counts: NDArray[np.number], tie_rank: NDArray[np.int64]) -> None:
        self._counts = counts
        self._order = np.lexsort((tie_rank, -counts))

    def top(
        self, exclude: NDArray[np.integer], allowed: NDArray[np.bool_] | None, count: int
    ) -> NDArray[np.int64]:
        """Give the `count` positions with the most events, -1 where there are too few.

        Args:
            exclude: positions that must not be listed.
            allowed: (N,) bool, positions that may be listed; None: all.
            count: how many.
        """
        usable = np.ones(len(self._order), bool) if allowed is None else allowed.copy()
        usable[:NUM_SPECIAL] = False
        usable[exclude] = False
        best = self._order[usable[self._order]][:count]
        return np.pad(best, (0, count - len(best)), constant_values=-1)

    def shares(
        self, item_index: NDArray[np.integer], exclude: Sequence[NDArray[np.integer]]
    ) -> NDArray[np.float64]:
        """Give each item's events relative to the most that an item of this user has, at most 1.

        Args:
            item_index: (B, C) positions, -1 for none.
            exclude: B arrays of positions that are none of the user's.
        """
        result = np.zeros(item_index.shape)
        for row, gone in enumerate(exclude):
            best = self.top(gone, None, 1)
            largest = self._counts[best[0]] if best[0] >= 0 else 0
            if largest > 0:
                events = self._counts[np.maximum(item_index[row], 0)]
                result[row] = np.minimum(events / largest, 1.0)
        return result
