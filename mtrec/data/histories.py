"""Users' event histories as flat arrays, and the model batches that are cut from them.

`Histories` is the one shape in which events travel after `prepare`: training windows, evaluation,
batch scoring, the user store and HTTP requests are all turned into it, and `history_batch` is the
only code that makes model inputs of it, so training and serving cannot differ. Pure NumPy and
Arrow. It never reads files and never looks beyond the events that it is given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SPLITS = ("train", "validation", "test")
NUM_GAP_BUCKETS = 34
"""Buckets of the time since the event before: 0 unknown, else 1 + floor(log2(1 + seconds))."""

HELD_OUT = "held_out"
"""Key of a training batch: (B, T) bool, events that the step hides from the history encoder."""

NUMBER, CATEGORY, TASK = "number_", "category_", "task_"
"""Prefixes of the per-event columns in a table of histories."""


@dataclass(frozen=True, slots=True)
class Histories:
    """Events of U users, E in all; user u's events are `offsets[u]:offsets[u + 1]`, oldest first.

    Attributes:
        user_ids: (U,) object, str: the users' ids.
        offsets: (U + 1,) int64.
        item_index: (E,) int32, vocabulary positions; 1 is an unknown item.
        timestamp: (E,) float64, seconds since 1970; NaN where unknown.
        split: (E,) int8, position in `SPLITS`.
        numbers: column -> (E,) float32, as in the source; NaN where missing.
        categories: column -> (E,) int32, vocabulary positions; 1 unknown.
        labels: task -> (E,) float32; NaN where an event has no label.
    """

    user_ids: NDArray[np.object_]
    offsets: NDArray[np.int64]
    item_index: NDArray[np.int32]
    timestamp: NDArray[np.float64]
    split: NDArray[np.int8]
    numbers: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    categories: dict[str, NDArray[np.int32]] = field(default_factory=dict)
    labels: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.user_ids)

    @property
    def num_events(self) -> int:
        """The number of events of all users together."""
        return len(self.item_index)

    @property
    def event_user(self) -> NDArray[np.int64]:
        """For each event the position of its user: (E,) int64."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    @classmethod
    def from_table(cls, table: pa.Table) -> Self:
        """Read a table with one row a user and one list column per event field.

        Columns: `user_id` string; `item_index` list<int32>; `timestamp` list<double>; `split`
        list<int8>; `number_<column>` list<float>; `category_<column>` list<int32>; `task_<task>`
        list<float>. All lists of a row have one length; no nulls inside lists.
        """
        table = table.combine_chunks()
        lists = {
            name: _combined(table.column(name)) for name in table.column_names if name != "user_id"
        }
        lengths = np.asarray(
            lists["item_index"].value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        )
        offsets = np.zeros(table.num_rows + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        flat = {
            name: np.array(values.flatten().to_numpy(zero_copy_only=False))
            for name, values in lists.items()
        }

        def typed(name: str, dtype: type) -> NDArray[np.generic]:
            return flat[name].astype(dtype, copy=False)

        def group(prefix: str, dtype: type) -> dict[str, NDArray[np.generic]]:
            names = [name for name in flat if name.startswith(prefix)]
            return {name.removeprefix(prefix): typed(name, dtype) for name in names}

        return cls(
            user_ids=np.array(table.column("user_id").to_pylist(), dtype=object),
            offsets=offsets,
            item_index=typed("item_index", np.int32),  # type: ignore[arg-type]  # dtype is given
            timestamp=typed("timestamp", np.float64),  # type: ignore[arg-type]  # dtype is given
            split=typed("split", np.int8),  # type: ignore[arg-type]  # dtype is given
            numbers=group(NUMBER, np.float32),  # type: ignore[arg-type]  # dtype is given
            categories=group(CATEGORY, np.int32),  # type: ignore[arg-type]  # dtype is given
            labels=group(TASK, np.float32),  # type: ignore[arg-type]  # dtype is given
        )

    def to_table(self) -> pa.Table:
        """Write the table that `from_table` reads."""

        def lists(values: NDArray[np.generic], kind: pa.DataType) -> pa.Array:
            offsets = pa.array(self.offsets.astype(np.int32))
            return pa.ListArray.from_arrays(offsets, pa.array(values, type=kind))

        columns: dict[str, pa.Array] = {
            "user_id": pa.array(self.user_ids.tolist(), pa.string()),
            "item_index": lists(self.item_index, pa.int32()),
            "timestamp": lists(self.timestamp, pa.float64()),
            "split": lists(self.split, pa.int8()),
        }
        for prefix, values, kind in (
            (NUMBER, self.numbers, pa.float32()),
            (CATEGORY, self.categories, pa.int32()),
            (TASK, self.labels, pa.float32()),
        ):
            for name, array in values.items():
                columns[prefix + name] = lists(array, kind)
        return pa.table(columns)

    def select(self, keep: NDArray[np.bool_]) -> Self:
        """Keep the events where `keep` (E,) is true; every user stays, perhaps with none."""
        counts = np.bincount(self.event_user[keep], minlength=len(self))
        offsets = np.zeros(len(self) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        return type(self)(
            self.user_ids,
            offsets,
            self.item_index[keep],
            self.timestamp[keep],
            self.split[keep],
            {name: values[keep] for name, values in self.numbers.items()},
            {name: values[keep] for name, values in self.categories.items()},
            {name: values[keep] for name, values in self.labels.items()},
        )

    def with_users(self, user_ids: Sequence[str]) -> Self:
        """Give the same events with all of these users, in their order; new ones have no event.

        Args:
            user_ids: all users that are here and others, in the same order.
        """
        position = {user_id: at for at, user_id in enumerate(user_ids)}
        place = np.array([position[user_id] for user_id in self.user_ids.tolist()], np.int64)
        assert (np.diff(place) > 0).all(), "both are in the order of ids"
        counts = np.zeros(len(user_ids), np.int64)
        counts[place] = np.diff(self.offsets)
        offsets = np.zeros(len(user_ids) + 1, np.int64)
        np.cumsum(counts, out=offsets[1:])
        return replace(self, user_ids=np.array(user_ids, object), offsets=offsets)

    def before(self, split: str) -> Self:
        """Keep the events of earlier splits: what may be known when `split` is evaluated."""
        return self.select(self.split < SPLITS.index(split))

    def latest(self, length: int) -> Self:
        """Keep each user's latest events, `length` at most."""
        if not (np.diff(self.offsets) > length).any():
            return self
        starts, _ = last_windows(self, length)
        return self.select(np.arange(self.num_events) >= starts[self.event_user])

    def rows(self, users: Sequence[int] | NDArray[np.int64]) -> Self:
        """Keep the users at these positions, in this order."""
        chosen = np.asarray(users, dtype=np.int64)
        starts, stops = self.offsets[chosen], self.offsets[chosen + 1]
        offsets = np.zeros(len(chosen) + 1, np.int64)
        np.cumsum(stops - starts, out=offsets[1:])
        events = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], stops - starts)
        return type(self)(
            self.user_ids[chosen],
            offsets,
            self.item_index[events],
            self.timestamp[events],
            self.split[events],
            {name: values[events] for name, values in self.numbers.items()},
            {name: values[events] for name, values in self.categories.items()},
            {name: values[events] for name, values in self.labels.items()},
        )


def unmet_items(histories: Histories, num_items: int) -> NDArray[np.bool_]:
    """Tell which items no event here is of: (N,) bool, false for rows 0 and 1, which are no items.

    Args:
        histories: the events that may be known.
        num_items: N, rows of the item vocabulary.
    """
    is_unmet: NDArray[np.bool_] = np.bincount(histories.item_index, minlength=num_items) == 0
    is_unmet[:2] = False
    return is_unmet


def last_windows(histories: Histories, length: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Give each user's latest `length` events as (starts, stops), both (U,) int64."""
    stops = histories.offsets[1:]
    return np.maximum(histories.offsets[:-1], stops - length), stops


def history_batch(
    histories: Histories,
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    *,
    scaling: Mapping[str, tuple[float, float]],
) -> dict[str, NDArray[np.generic]]:
    """Cut B windows of events into padded arrays, the model's view of histories.

    Args:
        histories: where the events are.
        starts: (B,) int64, position of each window's first event.
        stops: (B,) int64, position after its last event; a window lies within one user.
        scaling: number column -> (offset, scale); the model sees (value - offset) / scale.

    Returns:
        T is the longest window, at least 1; windows are padded on the right.
        `item` (B, T) int64, 0 padding; `length` (B,) int64; `gap` (B, T) int64, bucket of the time
        since the event before within the window (`NUM_GAP_BUCKETS`); `numbers` (B, T, F) float32,
        scaled, 0 where missing, and `present` (B, T, F) float32, 1 where given, in the order of
        `scaling`; `category_<column>` (B, T) int64, 0 padding.
    """
    lengths = stops - starts
    width = max(1, int(lengths.max(initial=0)))
    column = np.arange(width)
    inside = column[None, :] < lengths[:, None]
    event = np.where(inside, starts[:, None] + column[None, :], 0)

    def take(values: NDArray[np.generic], fill: float) -> NDArray[np.generic]:
        if len(values) == 0:
            return np.full(event.shape, fill, values.dtype)
        return np.where(inside, values[event], np.asarray(fill, values.dtype))

    item = take(histories.item_index, 0).astype(np.int64)
    time = take(histories.timestamp, np.nan)
    seconds = np.full(event.shape, np.nan)
    seconds[:, 1:] = time[:, 1:] - time[:, :-1]  # type: ignore[operator]  # float64
    known = np.isfinite(seconds)
    bucket = 1 + np.floor(np.log2(1.0 + np.maximum(np.where(known, seconds, 0.0), 0.0)))
    gap = np.where(known, np.minimum(bucket, NUM_GAP_BUCKETS - 1), 0).astype(np.int64)
    numbers = np.zeros((*event.shape, len(scaling)), np.float32)
    present = np.zeros_like(numbers)
    for position, (name, (offset, scale)) in enumerate(scaling.items()):
        if name not in histories.numbers:
            continue
        raw = take(histories.numbers[name], np.nan).astype(np.float32)
        given = np.isfinite(raw)
        numbers[..., position] = np.where(given, (raw - offset) / scale, 0.0)
        present[..., position] = given
    batch: dict[str, NDArray[np.generic]] = {
        "item": item,
        "length": lengths.astype(np.int64),
        "gap": gap,
        "numbers": numbers,
        "present": present,
    }
    for name, values in histories.categories.items():
        batch[CATEGORY + name] = take(values, 0).astype(np.int64)
    return batch


def _combined(column: pa.ChunkedArray) -> pa.ListArray:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
