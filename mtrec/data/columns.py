"""One column from rows to model inputs: what its training rows fit, and what it becomes by that.

A category's vocabulary, what an empty cell becomes, how a number is scaled, parts of a time. What
is made of all columns of all tables is `features.py`. Pure.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtrec.data.clean import (
    Bounds,
    Summary,
    clip_outliers,
    fill_missing,
    filled_moments,
    fit_fill,
)
from mtrec.dataconfig import (
    CategoriesColumn,
    CategoryColumn,
    Column,
    NumberColumn,
    TextColumn,
    TimeColumn,
)

PADDING, UNKNOWN, FIRST_KNOWN = 0, 1, 2


@dataclass(frozen=True)
class Vocabulary:
    """Positions of known values: 0 is padding or absence, 1 an unknown value, 2 on the known ones.

    Attributes:
        values: the known values in the order of their positions, sorted.
        has_missing: an empty cell is a category of its own; it comes after the known values.
    """

    values: tuple[str, ...]
    has_missing: bool = False

    @classmethod
    def fit(
        cls, counts: Mapping[str, int], *, min_count: int = 1, has_missing: bool = False
    ) -> Self:
        """Take the values that occur often enough, in string order."""
        return cls(tuple(sorted(v for v, n in counts.items() if n >= min_count)), has_missing)

    def __len__(self) -> int:
        """Give the number of positions, padding and unknown included."""
        return FIRST_KNOWN + len(self.values) + self.has_missing

    def index(self, values: pa.Array | pa.ChunkedArray | Sequence[str | None]) -> NDArray[np.int32]:
        """Give the positions of values (N,) as (N,) int32; null is the missing category, else 0."""
        array = values if isinstance(values, pa.Array | pa.ChunkedArray) else None
        if array is None:
            array = pa.array(values, pa.string())
        found = pc.index_in(array, self._known)
        missing = len(self) - 1 if self.has_missing else PADDING
        positions = pc.add(pc.fill_null(found, UNKNOWN - FIRST_KNOWN), FIRST_KNOWN)
        positions = pc.if_else(pc.is_null(array), missing, positions)
        return np.asarray(positions).astype(np.int32)

    @cached_property
    def _known(self) -> pa.Array:
        return pa.array(self.values, pa.string())


@dataclass(frozen=True, slots=True)
class ColumnTransform:
    """What was fitted for one column.

    Attributes:
        kind: `number`, `category`, `categories` or `text`.
        fill: what an empty cell becomes; None: it stays empty.
        offset: of a number column: the model sees (value - offset) / scale.
        scale: see `offset`; never 0.
        vocabulary: of a category or categories column.
        context: of interactions: known when the recommendation is asked for.
        bounds: of a number column whose outliers are clipped.
    """

    kind: str
    fill: float | str | None = None
    offset: float = 0.0
    scale: float = 1.0
    vocabulary: Vocabulary | None = None
    context: bool = False
    bounds: Bounds | None = None

    @classmethod
    def fit(cls, column: Column, summary: Summary, bounds: Bounds | None = None) -> Self:
        """Fit one column on the summary of its training rows, outliers already treated.

        Args:
            column: as configured.
            summary: of the training rows.
            bounds: to clip later values to.
        """
        fill = fit_fill(summary, column)
        match column:
            case NumberColumn():
                moments = filled_moments(summary, fill)
                offset, scale = 0.0, 1.0
                if moments.count and column.scale == "standard":
                    offset, scale = moments.mean, moments.deviation
                elif moments.count and column.scale == "minmax":
                    offset, scale = moments.smallest, moments.largest - moments.smallest
                # A column that is constant in training carries nothing: it becomes 0, not NaN.
                return cls(
                    "number", fill, offset, scale or 1.0, context=column.context, bounds=bounds
                )
            case CategoryColumn():
                counts = _texts(summary)
                if isinstance(fill, str) and summary.missing:
                    counts[fill] += summary.missing
                own = column.missing == "category" and summary.missing > 0
                vocabulary = Vocabulary.fit(counts, min_count=column.min_count, has_missing=own)
                return cls("category", fill, vocabulary=vocabulary, context=column.context)
            case CategoriesColumn():
                vocabulary = Vocabulary.fit(_texts(summary), min_count=column.min_count)
                return cls("categories", vocabulary=vocabulary)
            case TimeColumn():
                vocabulary = Vocabulary.fit(_texts(summary))
                return cls("category", None, vocabulary=vocabulary, context=True)
            case TextColumn():
                return cls("text", fill)

    def treat(self, values: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
        """Clip outliers of values (N,) and fill empty cells."""
        if self.bounds is not None:
            values = clip_outliers(values, self.bounds)
        return fill_missing(values, self.fill)

    def to_json(self) -> dict[str, Any]:
        """Give the fitted values as JSON types."""
        tree: dict[str, Any] = {"kind": self.kind, "fill": self.fill, "context": self.context}
        if self.kind == "number":
            tree |= {"offset": self.offset, "scale": self.scale}
            tree["bounds"] = list(self.bounds) if self.bounds is not None else None
        if self.vocabulary is not None:
            tree |= {
                "values": list(self.vocabulary.values),
                "has_missing": self.vocabulary.has_missing,
            }
        return tree

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave."""
        vocabulary = None
        if "values" in tree:
            vocabulary = Vocabulary(tuple(tree["values"]), tree["has_missing"])
        return cls(
            tree["kind"],
            tree["fill"],
            tree.get("offset", 0.0),
            tree.get("scale", 1.0),
            vocabulary,
            tree["context"],
            (bounds[0], bounds[1]) if (bounds := tree.get("bounds")) else None,
        )


_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


def time_part(seconds: NDArray[np.float64], column: TimeColumn) -> pa.Array:
    """Give the part of the local time of events (N,) as text; null where the time is NaN."""
    known = np.isfinite(seconds)
    local = np.floor(np.where(known, seconds, 0.0) + 3600.0 * column.utc_offset_h).astype(np.int64)
    names: NDArray[Any]
    match column.part:
        case "hour":
            names = (local // 3600 % 24).astype(str)
        case "weekday":
            # 1 January 1970 was a Thursday.
            names = np.array(_WEEKDAYS)[(local // 86400 + 3) % 7]
        case "month":
            months = local.astype("datetime64[s]").astype("datetime64[M]").astype(np.int64)
            names = (months % 12 + 1).astype(str)
    return pa.array(names.astype(object), pa.string(), mask=~known)


def _texts(summary: Summary) -> Counter[str]:
    return Counter({str(value): count for value, count in (summary.counts or {}).items()})
