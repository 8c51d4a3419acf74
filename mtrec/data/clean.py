"""Duplicates and missing values: pure functions over Arrow columns and fitted statistics.

Statistics are gathered per part of the data and merged in the order of the parts, so that a large
table gives the same bits as a small one whatever the number of workers. What to fit on (training
rows) is the caller's business; nothing here knows about splits.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtrec.config import CategoriesColumn, CategoryColumn, Column, NumberColumn, TextColumn


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


@dataclass(frozen=True, slots=True)
class Summary:
    """What is known of one column's training rows.

    Attributes:
        missing: number of empty cells.
        moments: of a number column.
        counts: value -> occurrences, of a category or categories column, and of a number column
            whose missing values need the median or the mode.
    """

    missing: int = 0
    moments: Moments = Moments()
    counts: Counter[float | str] | None = None

    @classmethod
    def of(cls, values: pa.ChunkedArray | pa.Array, column: Column) -> Self:
        """Summarise a checked column (N,)."""
        missing = values.null_count
        if isinstance(column, NumberColumn):
            numbers = np.asarray(pc.drop_null(values).to_numpy(), np.float64)
            needs_counts = column.missing in ("median", "mode")
            return cls(missing, Moments.of(numbers), _count(values) if needs_counts else None)
        if isinstance(column, TextColumn):
            return cls(missing)
        if isinstance(column, CategoriesColumn):
            return cls(missing, counts=_count(pc.list_flatten(values)))
        return cls(missing, counts=_count(values))

    def merge(self, other: Self) -> Self:
        """Summarise both together."""
        counts = None
        if self.counts is not None or other.counts is not None:
            counts = (self.counts or Counter()) + (other.counts or Counter())
        return type(self)(self.missing + other.missing, self.moments.merge(other.moments), counts)


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
            return _median(summary.counts or Counter())
        case NumberColumn(missing="mode"):
            mode = _mode(summary.counts or Counter())
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


def _count(values: pa.ChunkedArray | pa.Array) -> Counter[float | str]:
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


def _median(counts: Counter[float | str]) -> float:
    values = np.array(sorted(counts), np.float64)
    if len(values) == 0:
        return 0.0
    upto = np.cumsum([counts[value] for value in values.tolist()])
    total = int(upto[-1])
    low = values[np.searchsorted(upto, (total - 1) // 2, side="right")]
    high = values[np.searchsorted(upto, total // 2, side="right")]
    return float((low + high) / 2)


def _mode(counts: Counter[float | str]) -> float | str | None:
    if not counts:
        return None
    most = max(counts.values())
    return min(value for value, count in counts.items() if count == most)
