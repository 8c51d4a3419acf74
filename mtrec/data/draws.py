"""Splits by NumPy draws over a file's row order, as published and own figures were split.

Others can repeat each in three lines. They depend on a row's place in the file, so they are for
tables that carry their split in a column; `splits.py` holds those that do not.
"""

import numpy as np
from numpy.typing import NDArray

from mtrec.data.histories import SPLITS

RANDOM_CUTS = (0.8, 0.9)
"""Where a draw in [0, 1) stops being train and where it starts being test: 8:1:1."""
COLD_CUTS = (0.75, 0.85)
"""The same for a draw of items: 15 % have all their events in test, 10 % in validation."""

Splits = NDArray[np.str_]


def draw_split(num_rows: int, *, seed: int, cuts: tuple[float, float] = RANDOM_CUTS) -> Splits:
    """Draw each row's split: (N,) names of `SPLITS`.

    Args:
        num_rows: N; row n gets the n-th number of `numpy.random.default_rng(seed)`.
        seed: other seeds, other splits.
        cuts: numbers below the first are train, from the second on test.
    """
    draw = np.random.default_rng(seed).random(num_rows)
    return np.array(SPLITS)[np.searchsorted(np.array(cuts), draw, side="right")]


def draw_split_by_item(
    item: NDArray[np.generic],
    *,
    seed: int,
    test: float = 0.25,
    validation: float = 0.1,
    test_seed: int = 42,
) -> Splits:
    """Draw a share of every item's rows for test: (N,) names of `SPLITS`.

    Of an item with n rows, `round(test * n)` are drawn as pandas' `sample(random_state=test_seed)`
    draws them, which is NumPy's old generator. Close to, not identical with, the stratified
    splitter of the recommenders library.

    Args:
        item: (N,) ids.
        seed: decides which of the other rows are validation, and nothing else.
        test: share of an item's rows.
        validation: chance of each row that is not test.
        test_seed: decides test; 42 in the figures that are published.
    """
    is_test = np.zeros(len(item), bool)
    _, of, counts = np.unique(item, return_inverse=True, return_counts=True)
    for rows in np.split(np.argsort(of, kind="stable"), np.cumsum(counts)[:-1]):
        size = round(test * len(rows))
        is_test[np.random.RandomState(test_seed).choice(rows, size=size, replace=False)] = True
    is_validation = np.random.default_rng(seed).random(len(item)) < validation
    position = np.where(is_test, 2, is_validation.astype(np.int64))
    return np.array(SPLITS)[position]


def draw_split_of_items(
    item: NDArray[np.generic], *, seed: int, cuts: tuple[float, float] = COLD_CUTS
) -> Splits:
    """Draw each item's split, which all its rows share: (N,) names of `SPLITS`.

    Items that are not train are cold: nothing of what training sees is about them.

    Args:
        item: (N,) ids; the n-th of the distinct ones, in ascending order, gets the n-th number of
            `numpy.random.default_rng(seed)`.
        seed: other seeds, other splits.
        cuts: as in `draw_split`.
    """
    distinct, of = np.unique(item, return_inverse=True)
    return draw_split(len(distinct), seed=seed, cuts=cuts)[of]


def draw_folds(num_users: int, *, seed: int, folds: int) -> NDArray[np.int64]:
    """Draw each user's fold, 0 to `folds` - 1: (U,), of sizes that differ by one at most.

    A user's fold is its place in a permutation by `numpy.random.default_rng(seed)`, modulo `folds`.
    """
    return np.random.default_rng(seed).permutation(num_users) % folds
