"""Duplicates, missing values, outliers: pure functions over Arrow columns and fitted statistics.

Statistics are gathered per part of the data and merged in the order of the parts, so that a large
table gives the same bits as a small one whatever the number of workers. What to fit on (training
rows) is the caller's business; nothing here knows about splits.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtrec.dataconfig import (
    CategoriesColumn,
    CategoryColumn,
    Column,
    NumberColumn,
    Outliers,
    TextColumn,
)


@dataclass(frozen=True, slots=True)
class Moments:
    """Count, mean, sum of squared deviations, smallest and largest value of some numbers."""

    count: int = 0
    mean: float = 0.0
    deviations: float = 0.0
    smallest: float = float("inf")
    largest: float = float("-inf")

    @classmethod
    def of(cls, values: NDArray[np.float64]) -> Self:
        """Summarise finite numbers (N,)."""
        if len(values) == 0:
            return cls()
        mean = float(values.mean())
        deviations = float(np.square(values - mean).sum())
        return cls(len(values), mean, deviations, float(values.min()), float(values.max()))

    @classmethod
    def repeated(cls, value: float, count: int) -> Self:
        """Summarise one number that occurs `count` times."""
        return cls(count, value, 0.0, value, value) if count else cls()

    def merge(self, other: Self) -> Self:
        """Summarise both together (Chan, Golub and LeVeque 1979, pairwise update)."""
        if self.count == 0 or other.count == 0:
            return other if self.count == 0 else self
        count, gap = self.count + other.count, other.mean - self.mean
        return type(self)(
            count,
            self.mean + gap * other.count / count,
            self.deviations + other.deviations + gap * gap * self.count * other.count / count,
            min(self.smallest, other.smallest),
            max(self.largest, other.largest),
        )

    @property
    def deviation(self) -> float:
        """The population standard deviation; 0 for fewer than two values."""
        return float(np.sqrt(self.deviations / self.count)) if self.count else 0.0


MAX_DISTINCT = 1 << 16
"""So many distinct numbers are counted exactly; of more, the lowest bits are dropped."""

_MANTISSA_BITS = 52


@dataclass(frozen=True, slots=True)
class ValueCounts:
    """How often each number occurs, in bounded memory: exact up to `MAX_DISTINCT` distinct numbers.

    Beyond that the numbers keep only as many bits of their mantissa as leave at most `MAX_DISTINCT`
    of them, so a quantile is off by less than 2^-bits of its value. How many bits depends on all
    numbers together, not on how they were cut into parts, nor on the order of merging.

    Attributes:
        values: (V,) float64, distinct, ascending.
        counts: (V,) int64.
        bits: of the mantissa that are kept.
    """

    values: NDArray[np.float64]
    counts: NDArray[np.int64]
    bits: int = _MANTISSA_BITS

    @classmethod
    def of(cls, numbers: NDArray[np.float64]) -> Self:
        """Count finite numbers (N,)."""
        values, counts = np.unique(numbers + 0.0, return_counts=True)  # -0.0 becomes 0.0
        return cls(values, counts.astype(np.int64))._bounded()

    def merge(self, other: Self) -> Self:
        """Count both together."""
        both = type(self)(
            np.concatenate([self.values, other.values]),
            np.concatenate([self.counts, other.counts]),
            min(self.bits, other.bits),
        )
        return both._at(both.bits)._bounded()

    def quantile(self, share: float) -> float:
        """Give the number below which `share` of all numbers lie; NaN of none.

        Linear interpolation between the two nearest ranks, as NumPy's default (Hyndman and Fan
        1996, type 7).
        """
        if not len(self.values):
            return float("nan")
        upto = np.cumsum(self.counts)
        rank = share * (int(upto[-1]) - 1)
        low, high = (
            float(self.values[np.searchsorted(upto, int(edge(rank)), side="right")])
            for edge in (np.floor, np.ceil)
        )
        return low + (high - low) * float(rank - np.floor(rank))

    def mode(self) -> float | None:
        """Give the most frequent number, the smallest of equally frequent ones; None of none."""
        return float(self.values[np.argmax(self.counts)]) if len(self.values) else None

    def _bounded(self) -> Self:
        kept = self
        while len(kept.values) > MAX_DISTINCT and kept.bits:
            kept = kept._at(kept.bits - 1)
        return kept

    def _at(self, bits: int) -> Self:
        """Drop all but `bits` bits of each mantissa and count what became equal together."""
        dropped = np.uint64(_MANTISSA_BITS - bits)
        raw = self.values.view(np.uint64) >> dropped << dropped
        values, place = np.unique(raw.view(np.float64), return_inverse=True)
        counts = np.zeros(len(values), np.int64)
        np.add.at(counts, place, self.counts)
        return type(self)(values, counts, bits)


@dataclass(frozen=True, slots=True)
class Summary:
    """What is known of one column's training rows.

    Attributes:
        missing: number of empty cells.
        moments: of a number column.
        counts: value -> occurrences, of a category or categories column.
        numbers: of a number column that needs its median, mode or quartiles.
    """

    missing: int = 0
    moments: Moments = Moments()
    counts: Counter[str] | None = None
    numbers: ValueCounts | None = None

    @classmethod
    def of(cls, values: pa.ChunkedArray | pa.Array, column: Column) -> Self:
        """Summarise a checked column (N,)."""
        missing = values.null_count
        if isinstance(column, NumberColumn):
            numbers = np.asarray(pc.drop_null(values).to_numpy(), np.float64)
            by_rank = column.missing in ("median", "mode") or (
                column.outliers is not None and column.outliers.method == "iqr"
            )
            counted = ValueCounts.of(numbers) if by_rank else None
            return cls(missing, Moments.of(numbers), numbers=counted)
        if isinstance(column, TextColumn):
            return cls(missing)
        if isinstance(column, CategoriesColumn):
            return cls(missing, counts=_count(pc.list_flatten(values)))
        return cls(missing, counts=_count(values))

    def merge(self, other: Self) -> Self:
        """Summarise both together."""
        counts, numbers = self.counts or other.counts, self.numbers or other.numbers
        if self.counts is not None and other.counts is not None:
            counts = self.counts + other.counts
        if self.numbers is not None and other.numbers is not None:
            numbers = self.numbers.merge(other.numbers)
        missing = self.missing + other.missing
        return type(self)(missing, self.moments.merge(other.moments), counts, numbers)


def merge_summaries(summaries: list[Summary]) -> Summary:
    """Merge summaries of parts, in the order given."""
    return reduce(Summary.merge, summaries, Summary())


def fit_fill(summary: Summary, column: Column) -> float | str | None:
    """Give what an empty cell becomes; None: it stays empty.

    Mean, median and mode are those of the values that are there; the median of an even number is
    the mean of the middle two; of equally frequent modes the smallest wins. Where no training row
    has a value, a number becomes 0 and a category stays empty.
    """
    match column:
        case NumberColumn(missing="keep"):
            return None
        case NumberColumn(missing="constant") | CategoryColumn(missing="constant"):
            return column.constant
        case NumberColumn(missing="median"):
            median = summary.numbers.quantile(0.5) if summary.numbers is not None else np.nan
            return 0.0 if np.isnan(median) else median
        case NumberColumn(missing="mode"):
            mode = summary.numbers.mode() if summary.numbers is not None else None
            return 0.0 if mode is None else mode
        case NumberColumn():
            return summary.moments.mean
        case CategoryColumn(missing="mode"):
            return _mode(summary.counts or Counter())
        case TextColumn():
            return ""
    return None


def fill_missing(values: pa.ChunkedArray | pa.Array, fill: float | str | None) -> pa.Array:
    """Put `fill` into empty cells; None leaves them."""
    return values if fill is None else pc.fill_null(values, pa.scalar(fill, values.type))


def filled_moments(summary: Summary, fill: float | str | None) -> Moments:
    """Summarise a number column after its empty cells were filled."""
    if not isinstance(fill, float | int):
        return summary.moments
    return summary.moments.merge(Moments.repeated(float(fill), summary.missing))


def encode(values: pa.ChunkedArray | pa.Array) -> tuple[NDArray[np.int64], pa.Array]:
    """Give a number per row (N,), equal for equal values, and the distinct values they point to."""
    array = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    encoded = array.dictionary_encode()
    return np.asarray(encoded.indices).astype(np.int64), encoded.dictionary


def find_duplicates(
    keys: Sequence[NDArray[Any]], order: Sequence[NDArray[Any]], keep: str
) -> NDArray[np.bool_]:
    """Mark all but one row of each group of rows with equal keys.

    Args:
        keys: arrays (N,) that must all be equal.
        order: arrays (N,), most important first, that put the rows of a group in order.
        keep: `last` or `first` in that order; equal rows count by position.

    Returns:
        (N,) bool, true for rows to drop.
    """
    rows = len(keys[0])
    duplicate = np.zeros(rows, bool)
    if rows < 2:
        return duplicate
    # lexsort takes the most important key last and is stable.
    by = np.lexsort([*reversed(order), *reversed(keys)])
    same = np.ones(rows - 1, bool)
    for key in keys:
        ranked = key[by]
        same &= ranked[1:] == ranked[:-1]
    duplicate[by[1:] if keep == "first" else by[:-1]] = same
    return duplicate


def merge_duplicates(
    table: pa.Table,
    keys: Sequence[NDArray[Any]],
    order: Sequence[NDArray[Any]],
    keep: str,
    columns: Mapping[str, Column],
) -> tuple[pa.Table, NDArray[np.bool_]]:
    """Leave one row of each group of rows with equal keys; see `find_duplicates`.

    Args:
        table: N rows.
        keys: arrays (N,) that must all be equal.
        order: arrays (N,), most important first.
        keep: `last`, `first`, or `mean`: the last, with each number column's mean over the rows of
            the group that have a number.
        columns: the table's configured columns.

    Returns:
        The rows that stay, in the order given, and which rows (N,) do not.
    """
    duplicate = find_duplicates(keys, order, "first" if keep == "first" else "last")
    if keep == "mean" and duplicate.any():
        # In one order, so that sums do not depend on how the rows came.
        by = np.lexsort([*reversed(order), *reversed(keys)])
        group = _group_numbers(keys, by)
        for name, column in columns.items():
            if isinstance(column, NumberColumn):
                values = pc.fill_null(table.column(name), float("nan")).to_numpy()
                known = by[np.isfinite(values[by])]
                count = np.bincount(group[known], minlength=int(group.max()) + 1)
                total = np.bincount(group[known], values[known], minlength=len(count))
                means = (total / np.maximum(count, 1))[group]
                filled = pa.array(means, mask=(count == 0)[group])
                table = table.set_column(table.column_names.index(name), name, filled)
    return table.filter(pa.array(~duplicate)), duplicate


def _group_numbers(keys: Sequence[NDArray[Any]], by: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the rows (N,), sorted by `by`, so that rows with equal keys have one number."""
    new = np.zeros(len(by), bool)
    for key in keys:
        ranked = key[by]
        new[1:] |= ranked[1:] != ranked[:-1]
    group = np.empty(len(by), np.int64)
    group[by] = np.cumsum(new)
    return group


Bounds = tuple[float, float]
"""Least and greatest number that is no outlier, both included."""


def outlier_bounds(summary: Summary, outliers: Outliers) -> Bounds:
    """Give the bounds of a number column from its training rows; infinite where there are none.

    `zscore`: mean minus and plus `threshold` population standard deviations. `iqr`: `threshold`
    interquartile ranges below the first and above the third quartile (Tukey 1977).
    """
    if not summary.moments.count:
        return -np.inf, np.inf
    if outliers.method == "zscore":
        low = high = summary.moments.mean
        reach = summary.moments.deviation
    else:
        assert summary.numbers is not None, "quartiles were counted"
        low, high = summary.numbers.quantile(0.25), summary.numbers.quantile(0.75)
        reach = high - low
    reach *= outliers.limit
    return low - reach, high + reach


def find_outliers(values: pa.ChunkedArray | pa.Array, bounds: Bounds) -> NDArray[np.bool_]:
    """Mark the numbers (N,) outside the bounds; empty cells are inside."""
    outside = pc.or_(pc.less(values, bounds[0]), pc.greater(values, bounds[1]))
    return np.asarray(pc.fill_null(outside, False), bool)


def clip_outliers(values: pa.ChunkedArray | pa.Array, bounds: Bounds) -> pa.Array:
    """Move the numbers (N,) outside the bounds to the nearer one; empty cells stay empty."""
    low, high = pa.scalar(bounds[0], values.type), pa.scalar(bounds[1], values.type)
    return pc.max_element_wise(
        pc.min_element_wise(values, high, skip_nulls=False), low, skip_nulls=False
    )


def _count(values: pa.ChunkedArray | pa.Array) -> Counter[str]:
    counted = pc.value_counts(pc.drop_null(values))
    return Counter(
        dict(
            zip(
                counted.field("values").to_pylist(),
                counted.field("counts").to_pylist(),
                strict=True,
            )
        )
    )


def _mode(counts: Counter[str]) -> str | None:
    if not counts:
        return None
    most = max(counts.values())
    return min(value for value, count in counts.items() if count == most)
