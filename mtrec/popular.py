"""What is popular: the lists of users of whom nothing is known, and how an item stands in them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mtrec.catalogue import NUM_SPECIAL


class Popular:
    """Rank N positions by their events, ties by item id.

    Args:
        counts: (N,) events of each item.
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
