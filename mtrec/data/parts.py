"""One part of the events, a range of users: duplicates, order, split, outliers, what is written.

`prepare` cuts the users into parts that depend on the data alone and runs these pure functions on
each: `order_part` needs nothing but the part, `limit_part` (outliers) and `finish_part` need what
was fitted on the training events of all parts. Leaks are asserted here, in production, before
anything is written.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtrec.config import Config
from mtrec.data import splits
from mtrec.data.behaviour import tell_behaviour
from mtrec.data.clean import (
    Bounds,
    Summary,
    clip_outliers,
    encode,
    find_outliers,
    merge_duplicates,
)
from mtrec.data.columns import FIRST_KNOWN, UNKNOWN, time_part
from mtrec.data.contract import INTEGER, PLACE, REASON, ROW
from mtrec.data.features import FeatureTransform, summarise
from mtrec.data.histories import SPLITS, Histories
from mtrec.data.labelcheck import Misfits, Ranges, find_misfits, find_ranges
from mtrec.dataconfig import (
    Column,
    ColumnSplit,
    GlobalTimeSplit,
    KFoldSplit,
    LeaveLastOutSplit,
    NumberColumn,
    RandomSplit,
    TimeColumn,
)
from mtrec.labels import label_values
from mtrec.modelconfig import label_tasks

REJECTS = pa.schema([(PLACE, pa.int64()), (ROW, pa.string()), (REASON, pa.string())])
"""What is told of an event that was read well but set aside."""


@dataclass(frozen=True, slots=True)
class PartTally:
    """What is counted in one part.

    Attributes:
        kept: events that stay.
        duplicates: events that do not.
        splits: events per split, in the order of `SPLITS`.
        users: `user_id`, `train_events`; sorted by user.
        items: `item_id`, `train_count` of the items with training events; sorted by item.
        summaries: per configured column, of the training events.
        integer_ids: id column -> whether all ids were integers in the source.
        misfits: labels that do not fit their tasks.
        labels: ends of the labels of training events.
        rejected: reason -> events that were set aside here.
        outliers: number column -> events with an outlier, whatever was done with them.
    """

    kept: int
    duplicates: int
    splits: tuple[int, ...]
    users: pa.Table
    items: pa.Table
    summaries: dict[str, Summary]
    integer_ids: dict[str, bool]
    misfits: Misfits
    labels: Ranges
    rejected: Counter[str]
    outliers: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OrderedPart:
    """A part's events after a step.

    Attributes:
        events: kept events, sorted by user, oldest first, with `split` (int8) and `_place`.
        tally: what is counted in them.
        rejected: events set aside in this step: `_place`, `_row` (JSON), `_reason`.
    """

    events: pa.Table
    tally: PartTally
    rejected: pa.Table


def order_part(
    events: pa.Table, config: Config, cuts: tuple[float, float] | None = None
) -> OrderedPart:
    """Drop a part's duplicates, put its events in order and give each its split.

    Ties in time are ordered by a hash of seed, user and item; without times the order is that of
    the source.

    Args:
        events: checked interactions of whole users, in any order, with `_place`.
        config: `data.quality`, `data.split`, `run.seed`.
        cuts: the two moments of a split by global time.
    """
    data, seed = config.data, config.run.seed
    place = _numpy(events, PLACE)
    has_time = data.interactions.timestamp is not None
    time = _numpy(events, "timestamp") if has_time else np.zeros(len(place))
    user, item = encode(events.column("user_id"))[0], encode(events.column("item_id"))[0]
    with_time = has_time and data.quality.duplicate_key == "user_item_time"
    keys = [user, item, time] if with_time else [user, item]
    hashes = [splits.hash_strings(events.column(name)) for name in ("user_id", "item_id")]
    tie = splits.mix(seed, *hashes)
    draw, again = (splits.mix(seed + n, *hashes, time) for n in (1, 2))
    table = events.append_column("_time", pa.array(time))
    table = table.append_column("_draw", pa.array(draw)).append_column("_again", pa.array(again))
    table = table.append_column("_tie", pa.array(tie if has_time else np.zeros_like(tie)))
    columns = data.interactions.columns
    table, duplicate = merge_duplicates(table, keys, [time, place], data.quality.keep, columns)
    by = [(name, "ascending") for name in ("user_id", "_time", "_tie", PLACE)]
    table = table.take(pc.sort_indices(table, sort_keys=by)).combine_chunks()
    offsets, time = user_offsets(table), _numpy(table, "_time")
    in_gap = np.zeros(len(time), bool)
    match data.split:
        case LeaveLastOutSplit():
            split = splits.leave_last_out(offsets)
            splits.assert_held_out_last(offsets, time, split)
        case GlobalTimeSplit():
            assert cuts is not None, "the moments of a split by time are known before"
            split, in_gap = splits.global_time(time, cuts, gap=data.split.gap_s)
            splits.assert_cut_in_time(time[~in_gap], split[~in_gap], cuts, data.split.gap_s)
        case RandomSplit():
            shares = {"validation": data.split.validation, "test": data.split.test}
            split = splits.random_split(_numpy(table, "_draw"), **shares)
        case KFoldSplit(folds=folds, fold=fold, validation=share):
            assert fold is not None, "a run over all folds prepares each of them"
            hashes = [_numpy(table, name) for name in ("_draw", "_again")]
            split = splits.k_fold(*hashes, folds=folds, fold=fold, validation=share)
        case ColumnSplit():
            split = splits.split_by_name(table.column("split"))
    identity = [
        encode(table.column("user_id"))[0],
        encode(table.column("item_id"))[0],
        time,
    ]
    splits.assert_each_event_once(identity, split)
    splits.assert_counts_add_up(
        events.num_rows, table.num_rows, 0, int(duplicate.sum()), "a part of interactions"
    )
    integers = {
        name: INTEGER + name in table.column_names
        and bool(pc.all(table.column(INTEGER + name)).as_py())
        for name in ("user_id", "item_id")
    }
    for name, column in columns.items():
        if isinstance(column, TimeColumn):
            table = table.append_column(name, time_part(time, column))
    names = ["user_id", "item_id", *(["timestamp"] if has_time else []), *columns, PLACE]
    ordered = table.select(names).append_column("split", pa.array(split))
    rejected = set_aside(ordered, {splits.IN_GAP: in_gap})
    ordered = ordered.filter(pa.array(~in_gap)) if in_gap.any() else ordered
    tally = _tally(ordered, config, duplicates=int(duplicate.sum()), integer_ids=integers)
    tally.rejected.update(rejected.column(REASON).to_pylist())
    return OrderedPart(ordered, tally, rejected)


def limit_part(
    events: pa.Table, tally: PartTally, config: Config, bounds: Mapping[str, Bounds]
) -> OrderedPart:
    """Treat the outliers of a part: clip them, set their events aside, or only count them.

    Args:
        events: what `order_part` gave.
        tally: likewise.
        config: the columns.
        bounds: number column -> the bounds of all training events.
    """
    columns = config.data.interactions.columns
    events, rejected, outliers = treat_outliers(events, columns, bounds)
    counted = _tally(events, config, duplicates=tally.duplicates, integer_ids=tally.integer_ids)
    counted.rejected.update(tally.rejected)
    counted.rejected.update(rejected.column(REASON).to_pylist())
    counted.outliers.update(outliers)
    return OrderedPart(events, counted, rejected)


def treat_outliers(
    rows: pa.Table, columns: Mapping[str, Column], bounds: Mapping[str, Bounds]
) -> tuple[pa.Table, pa.Table, dict[str, int]]:
    """Clip outliers, set their rows aside, or only count them, as each column says.

    Args:
        rows: with `_place`.
        columns: the table's configured columns.
        bounds: number column with `outliers` -> its bounds.

    Returns:
        The rows that stay; those that do not, as a `REJECTS` table; column -> outliers found.
    """
    found: dict[str, int] = {}
    aside: dict[str, NDArray[np.bool_]] = {}
    for name, limits in bounds.items():
        column = columns[name]
        assert isinstance(column, NumberColumn) and column.outliers is not None, name
        outside = find_outliers(rows.column(name), limits)
        found[name] = int(outside.sum())
        if column.outliers.action == "reject":
            aside[f"{name} is an outlier"] = outside
        elif column.outliers.action == "clip":
            clipped = clip_outliers(rows.column(name), limits)
            rows = rows.set_column(rows.column_names.index(name), name, clipped)
    rejected = set_aside(rows, aside)
    if rejected.num_rows:
        gone = pc.is_in(rows.column(PLACE), rejected.column(PLACE).combine_chunks())
        rows = rows.filter(pc.invert(gone))
    return rows, rejected, found


def set_aside(rows: pa.Table, reasons: Mapping[str, NDArray[np.bool_]]) -> pa.Table:
    """Give the rows (N,) that are marked, each once with its first reason, as a `REJECTS` table.

    Args:
        rows: with `_place`; every column of the source is told as JSON.
        reasons: reason -> (N,) bool.
    """
    tables = []
    left = np.ones(rows.num_rows, bool)
    told = [name for name in rows.column_names if name != "split" and not name.startswith("_")]
    for reason, marked in reasons.items():
        aside = rows.filter(pa.array(marked & left))
        left &= ~marked
        texts = [
            json.dumps(row, ensure_ascii=False, default=str)
            for row in aside.select(told).to_pylist()
        ]
        columns = [aside.column(PLACE), pa.array(texts, pa.string())]
        columns.append(pa.array([reason] * len(texts), pa.string()))
        tables.append(pa.Table.from_arrays(columns, schema=REJECTS))
    return pa.concat_tables(tables).sort_by(PLACE) if tables else REJECTS.empty_table()


def user_offsets(events: pa.Table) -> NDArray[np.int64]:
    """Give (U + 1,) int64: where each user's events start in a table sorted by user."""
    codes = encode(events.column("user_id"))[0]
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    return np.append(starts, len(codes)).astype(np.int64)


@dataclass(frozen=True, slots=True)
class FinishedPart:
    """What is written of one part.

    Attributes:
        interactions: table of events with missing values treated and `split` as text.
        histories: table for `Histories.from_table`.
        users: `user_id`, `behaviour_text`, `behaviour_cut`; sorted by user.
    """

    interactions: pa.Table
    histories: pa.Table
    users: pa.Table


def finish_part(
    events: pa.Table, config: Config, transform: FeatureTransform, items: pa.Table
) -> FinishedPart:
    """Turn a part's ordered events into what is written of them.

    Args:
        events: what `order_part` gave.
        config: tasks and behaviour text.
        transform: fitted on the training events of all parts.
        items: the catalogue in the order of positions: `item_id`, and `name` if behaviour is told.
    """
    offsets = user_offsets(events)
    split = _numpy(events, "split").astype(np.int8)
    position = np.arange(len(split)) - np.repeat(offsets[:-1], np.diff(offsets))
    raw = _raw_numbers(events, config)
    filled = transform.fill_events(events)
    known = pc.index_in(events.column("item_id"), items.column("item_id").combine_chunks())
    has_time = "timestamp" in events.column_names
    time = _numpy(events, "timestamp") if has_time else np.full(len(split), np.nan)
    user_ids = events.column("user_id").take(pa.array(offsets[:-1]))
    histories = Histories(
        user_ids=np.array(user_ids.to_pylist(), dtype=object),
        offsets=offsets,
        item_index=np.asarray(
            pc.add(pc.fill_null(known, UNKNOWN - FIRST_KNOWN), FIRST_KNOWN)
        ).astype(np.int32),
        timestamp=time,
        split=split,
        numbers={name: _numpy(filled, name).astype(np.float32) for name in raw},
        categories={
            name: transform.event_category_index(name, events.column(name))
            for name in transform.event_categories
        },
        labels={task.name: label_values(task.label, raw) for task in label_tasks(config.tasks)},
    )
    texts, cuts = tell_behaviour(config, histories, position, raw, known, items)
    named = pa.array(SPLITS).take(pa.array(split))
    interactions = filled.drop_columns(["split", PLACE])
    if not has_time:
        interactions = interactions.add_column(2, "timestamp", pa.nulls(len(split), pa.float64()))
    users = {"user_id": user_ids, "behaviour_text": texts, "behaviour_cut": pa.array(cuts)}
    return FinishedPart(
        interactions.append_column("split", named), histories.to_table(), pa.table(users)
    )


def _tally(
    events: pa.Table, config: Config, *, duplicates: int, integer_ids: dict[str, bool]
) -> PartTally:
    offsets = user_offsets(events)
    split = _numpy(events, "split")
    train = split == splits.TRAIN
    training = events.filter(pa.array(train))
    counted = pc.value_counts(training.column("item_id"))
    items = pa.table(
        {"item_id": counted.field("values"), "train_count": counted.field("counts")}
    ).sort_by("item_id")
    trained = np.add.reduceat(train.astype(np.int64), offsets[:-1]) if len(split) else offsets[:0]
    return PartTally(
        kept=len(split),
        duplicates=duplicates,
        splits=tuple(np.bincount(split, minlength=len(SPLITS)).tolist()),
        users=pa.table(
            {
                "user_id": events.column("user_id").take(pa.array(offsets[:-1])),
                "train_events": pa.array(trained),
            }
        ),
        items=items,
        summaries=summarise(training, config.data.interactions.columns),
        integer_ids=integer_ids,
        misfits=find_misfits(config, _raw_numbers(events, config)),
        labels=find_ranges(config, _raw_numbers(training, config)),
        rejected=Counter(),
    )


def _raw_numbers(events: pa.Table, config: Config) -> dict[str, NDArray[np.float64]]:
    """Give the number columns as in the source, NaN where missing."""
    columns = config.data.interactions.columns
    return {name: _numpy(events, name) for name, c in columns.items() if c.kind == "number"}


def _numpy(table: pa.Table, name: str) -> NDArray[Any]:
    """Give a number column as NumPy; null becomes NaN."""
    column = table.column(name)
    if pa.types.is_floating(column.type):
        column = pc.fill_null(column, float("nan"))
    return np.asarray(column.to_numpy())
