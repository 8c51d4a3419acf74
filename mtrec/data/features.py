"""The one transform from rows to model inputs, fitted on training rows and kept in the bundle.

`prepare` fits it; training, evaluation, batch scoring and serving apply it, so that they cannot
differ. It fills missing values, scales numbers and gives categories their vocabulary positions. It
never sees a held-out event and never touches text vectors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtrec.config import Config
from mtrec.data.clean import Bounds, Summary, fill_missing
from mtrec.data.columns import UNKNOWN, ColumnTransform, Vocabulary
from mtrec.dataconfig import Column


@dataclass(frozen=True, slots=True)
class Features:
    """Model inputs of N rows.

    Attributes:
        numbers: (N, F) float32, filled and scaled, finite.
        categories: column -> (N,) int32, vocabulary positions.
        multi: column -> (N, M) int32, vocabulary positions padded with 0; M is at least 1.
    """

    numbers: NDArray[np.float32]
    categories: dict[str, NDArray[np.int32]]
    multi: dict[str, NDArray[np.int32]]


@dataclass(frozen=True, slots=True)
class FeatureSizes:
    """What a model must know of `Features` to be built; sizes count positions 0 and 1."""

    numbers: int
    categories: dict[str, int]
    multi: dict[str, int]


Columns = dict[str, ColumnTransform]


@dataclass(frozen=True)
class FeatureTransform:
    """Everything that was fitted on training rows to turn tables into model inputs.

    Attributes:
        items: fitted columns of the items table, in the order of the configuration.
        users: of the users table.
        events: of the interactions table.
        id_types: `user_id`, `item_id` -> `string` or `int64`: how answers write ids.
    """

    items: Columns = field(default_factory=dict)
    users: Columns = field(default_factory=dict)
    events: Columns = field(default_factory=dict)
    id_types: dict[str, str] = field(default_factory=dict)

    @property
    def item_sizes(self) -> FeatureSizes:
        """Sizes of `item_features`."""
        return _sizes(self.items)

    @property
    def user_sizes(self) -> FeatureSizes:
        """Sizes of `user_features`."""
        return _sizes(self.users)

    @property
    def event_scaling(self) -> dict[str, tuple[float, float]]:
        """Number column of the interactions -> (offset, scale), in the configuration's order."""
        return {n: (c.offset, c.scale) for n, c in self.events.items() if c.kind == "number"}

    @property
    def event_categories(self) -> dict[str, int]:
        """Category column of the interactions -> size of its vocabulary."""
        return _sizes(self.events).categories

    @property
    def context_numbers(self) -> list[str]:
        """Number columns of the interactions that are known beforehand."""
        return [n for n, c in self.events.items() if c.context and c.kind == "number"]

    @property
    def context_categories(self) -> list[str]:
        """Category columns of the interactions that are known beforehand."""
        return [n for n, c in self.events.items() if c.context and c.kind == "category"]

    def item_features(self, items: pa.Table) -> Features:
        """Turn N rows of the items table into model inputs; absent columns count as empty."""
        return _features(items, self.items)

    def user_features(self, users: pa.Table) -> Features:
        """Turn N rows of the users table into model inputs; absent columns count as empty."""
        return _features(users, self.users)

    def event_category_index(
        self, column: str, values: pa.Array | pa.ChunkedArray | Sequence[str | None]
    ) -> NDArray[np.int32]:
        """Give positions (N,) int32 of an event column's values; what is unknown is 1.

        Events have no position 0, which is padding: an empty cell that training never saw is
        unknown.
        """
        fitted = self.events[column]
        array = pa.array(values, pa.string()) if isinstance(values, Sequence) else values
        assert fitted.vocabulary is not None, f"{column} is no category column"
        return np.maximum(
            fitted.vocabulary.index(fill_missing(array, fitted.fill)), np.int32(UNKNOWN)
        )

    def fill_items(self, items: pa.Table) -> pa.Table:
        """Treat outliers and missing values of an items table; other columns stay as they are."""
        return _fill(items, self.items)

    def fill_users(self, users: pa.Table) -> pa.Table:
        """Treat outliers and missing values of a users table; other columns stay as they are."""
        return _fill(users, self.users)

    def fill_events(self, events: pa.Table) -> pa.Table:
        """Treat outliers and missing values of interactions; other columns stay as they are."""
        return _fill(events, self.events)

    def treat_event_numbers(self, column: str, values: Sequence[float]) -> NDArray[np.float32]:
        """Treat the numbers (N,) of a request's events as `fill_events` does; NaN is missing."""
        numbers = self.events[column].treat(pa.array(values, pa.float64(), from_pandas=True))
        return pc.fill_null(numbers, np.nan).to_numpy().astype(np.float32)  # type: ignore[no-any-return]  # Arrow's

    def to_json(self) -> dict[str, Any]:
        """Give everything as JSON types; `from_json` reads it back to an equal transform."""
        tree: dict[str, Any] = {
            table: [{"name": name, **fitted.to_json()} for name, fitted in columns.items()]
            for table, columns in (
                ("items", self.items),
                ("users", self.users),
                ("events", self.events),
            )
        }
        return tree | {"id_types": dict(self.id_types)}

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave."""

        def columns(table: str) -> Columns:
            return {entry["name"]: ColumnTransform.from_json(entry) for entry in tree[table]}

        return cls(
            columns("items"),
            columns("users"),
            columns("events"),
            dict(tree["id_types"]),
        )


def summarise(table: pa.Table, columns: Mapping[str, Column]) -> dict[str, Summary]:
    """Summarise the configured columns of checked rows, which must all be training rows."""
    return {name: Summary.of(table.column(name), column) for name, column in columns.items()}


def fit_columns(
    columns: Mapping[str, Column],
    summaries: Mapping[str, Summary],
    bounds: Mapping[str, Bounds] | None = None,
) -> Columns:
    """Fit the configured columns on their summaries; clip those that have bounds."""
    bounds = bounds or {}
    return {
        name: ColumnTransform.fit(c, summaries[name], bounds.get(name))
        for name, c in columns.items()
    }


def fit_transform(
    config: Config,
    *,
    items: Mapping[str, Summary],
    users: Mapping[str, Summary],
    events: Mapping[str, Summary],
    id_types: Mapping[str, str],
    bounds: Mapping[str, Mapping[str, Bounds]] | None = None,
) -> FeatureTransform:
    """Fit the transform on summaries of training rows.

    Args:
        config: names the columns and how to treat them.
        items: summaries of items that have a training event.
        users: of users that have one.
        events: of training events.
        id_types: how answers write ids.
        bounds: table -> column -> what outliers are clipped to.
    """
    data, bounds = config.data, bounds or {}
    return FeatureTransform(
        fit_columns(data.items.columns if data.items else {}, items, bounds.get("items")),
        fit_columns(data.users.columns if data.users else {}, users, bounds.get("users")),
        fit_columns(data.interactions.columns, events, bounds.get("interactions")),
        dict(id_types),
    )


def _sizes(columns: Columns) -> FeatureSizes:
    def of(kind: str) -> dict[str, int]:
        return {
            name: len(c.vocabulary)
            for name, c in columns.items()
            if c.kind == kind and c.vocabulary is not None
        }

    numbers = sum(c.kind == "number" for c in columns.values())
    return FeatureSizes(numbers, of("category"), of("categories"))


def _column(table: pa.Table, name: str, kind: str) -> pa.ChunkedArray | pa.Array:
    """Give a column, or nulls of its type where the table has none."""
    types = {"number": pa.float64(), "categories": pa.list_(pa.string())}
    wanted = types.get(kind, pa.string())
    if name not in table.column_names:
        return pa.nulls(table.num_rows, wanted)
    return table.column(name).cast(wanted)


def _features(table: pa.Table, columns: Columns) -> Features:
    rows = table.num_rows
    numbers, categories, multi = [], {}, {}
    for name, fitted in columns.items():
        values = _column(table, name, fitted.kind)
        if fitted.kind == "number":
            filled = fitted.treat(values)
            raw = pc.fill_null(filled, float("nan")).to_numpy().astype(np.float64)
            scaled = (raw - fitted.offset) / fitted.scale
            limit = float(np.finfo(np.float32).max)
            numbers.append(np.clip(np.nan_to_num(scaled, nan=0.0), -limit, limit))
        elif fitted.kind == "category" and fitted.vocabulary is not None:
            categories[name] = fitted.vocabulary.index(fill_missing(values, fitted.fill))
        elif fitted.kind == "categories" and fitted.vocabulary is not None:
            multi[name] = _pad(values, fitted.vocabulary)
    stacked = np.stack(numbers, axis=1) if numbers else np.zeros((rows, 0))
    return Features(stacked.astype(np.float32), categories, multi)


def _pad(values: pa.ChunkedArray | pa.Array, vocabulary: Vocabulary) -> NDArray[np.int32]:
    """Give positions of lists (N,) as a rectangle (N, M), padded with 0."""
    lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy().astype(np.int64)
    flat = vocabulary.index(pc.list_flatten(values))
    result = np.zeros((len(lengths), max(1, int(lengths.max(initial=0)))), np.int32)
    result[np.arange(result.shape[1])[None, :] < lengths[:, None]] = flat
    return result


def _fill(table: pa.Table, columns: Columns) -> pa.Table:
    for name, fitted in columns.items():
        if name in table.column_names:
            position = table.column_names.index(name)
            table = table.set_column(position, name, fitted.treat(table.column(name)))
    return table
