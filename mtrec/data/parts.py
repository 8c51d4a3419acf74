"""One part of the events, a range of users: duplicates, order, split, labels, behaviour text.

`prepare` cuts the users into parts that depend on the data alone and runs these two pure functions
on each: `order_part` needs nothing but the part, `finish_part` needs what was fitted on the
training events of all parts. Leaks are asserted here, in production, before anything is written.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtrec.config import (
    BehaviourText,
    ColumnSplit,
    Config,
    LeaveLastOutSplit,
    RandomSplit,
    RegressionTask,
)
from mtrec.data import splits
from mtrec.data.clean import Summary, encode, find_duplicates
from mtrec.data.contract import INTEGER, PLACE
from mtrec.data.features import FIRST_KNOWN, UNKNOWN, FeatureTransform, label_values, summarise
from mtrec.data.histories import SPLITS, Histories
from mtrec.errors import DataError

MIN_EVENTS_TO_TELL = 4
"""Users with fewer training events get no behaviour text: nothing would be left to predict."""


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
        train_time_range: first and last time of training events; None if there is no such time.
        integer_ids: id column -> whether all ids were integers in the source.
        misfits: task -> labels that do not fit it, and one of them; tasks without such left out.
    """

    kept: int
    duplicates: int
    splits: tuple[int, ...]
    users: pa.Table
    items: pa.Table
    summaries: dict[str, Summary]
    train_time_range: tuple[float, float] | None
    integer_ids: dict[str, bool]
    misfits: dict[str, tuple[int, float]]


def order_part(events: pa.Table, config: Config) -> tuple[pa.Table, PartTally]:
    """Drop a part's duplicates, put its events in order and give each its split.

    Args:
        events: checked interactions of whole users, in any order, with `_place`.
        config: `data.quality`, `data.split`, `run.seed`.

    Returns:
        The kept events sorted by user, oldest first (ties in time by a hash of seed, user and item;
        without times in the order of the source), with `split` (int8); and the tally.
    """
    data, seed = config.data, config.run.seed
    place = _numpy(events, PLACE)
    has_time = data.interactions.timestamp is not None
    time = _numpy(events, "timestamp") if has_time else np.zeros(len(place))
    user, item = encode(events.column("user_id"))[0], encode(events.column("item_id"))[0]
    with_time = has_time and data.quality.duplicate_key == "user_item_time"
    keys = [user, item, time] if with_time else [user, item]
    duplicate = find_duplicates(keys, [time, place], data.quality.keep)
    hashes = [splits.hash_strings(events.column(name)) for name in ("user_id", "item_id")]
    tie = splits.mix(seed, *hashes)
    draw = splits.mix(seed + 1, *hashes, time)
    table = events.append_column("_time", pa.array(time)).append_column("_draw", pa.array(draw))
    table = table.append_column("_tie", pa.array(tie if has_time else np.zeros_like(tie)))
    table = table.filter(pa.array(~duplicate))
    by = [(name, "ascending") for name in ("user_id", "_time", "_tie", PLACE)]
    table = table.take(pc.sort_indices(table, sort_keys=by)).combine_chunks()
    offsets = user_offsets(table)
    match data.split:
        case LeaveLastOutSplit():
            split = splits.leave_last_out(offsets)
            splits.assert_held_out_last(offsets, _numpy(table, "_time"), split)
        case RandomSplit():
            shares = {"validation": data.split.validation, "test": data.split.test}
            split = splits.random_split(_numpy(table, "_draw"), **shares)
        case ColumnSplit():
            split = splits.split_by_name(table.column("split"))
    identity = [
        encode(table.column("user_id"))[0],
        encode(table.column("item_id"))[0],
        _numpy(table, "_time"),
    ]
    splits.assert_each_event_once(identity, split)
    splits.assert_counts_add_up(
        events.num_rows, table.num_rows, 0, int(duplicate.sum()), "a part of interactions"
    )
    columns = ["user_id", "item_id", *(["timestamp"] if has_time else [])]
    ordered = table.select([*columns, *data.interactions.columns])
    ordered = ordered.append_column("split", pa.array(split))
    integers = {
        name: INTEGER + name in table.column_names
        and bool(pc.all(table.column(INTEGER + name)).as_py())
        for name in ("user_id", "item_id")
    }
    return ordered, _tally(ordered, offsets, split, int(duplicate.sum()), integers, config)


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
        labels={
            task.name: label_values(task.label, raw)
            for task in config.tasks
            if task.kind != "retrieval"
        },
    )
    texts, cuts = _tell_behaviour(config, histories, position, raw, known, items)
    named = pa.array(SPLITS).take(pa.array(split))
    interactions = filled.drop_columns("split")
    if not has_time:
        interactions = interactions.add_column(2, "timestamp", pa.nulls(len(split), pa.float64()))
    users = {"user_id": user_ids, "behaviour_text": texts, "behaviour_cut": pa.array(cuts)}
    return FinishedPart(
        interactions.append_column("split", named), histories.to_table(), pa.table(users)
    )


def _tally(
    events: pa.Table,
    offsets: NDArray[np.int64],
    split: NDArray[np.int8],
    duplicates: int,
    integer_ids: dict[str, bool],
    config: Config,
) -> PartTally:
    train = split == splits.TRAIN
    training = events.filter(pa.array(train))
    counted = pc.value_counts(training.column("item_id"))
    items = pa.table(
        {"item_id": counted.field("values"), "train_count": counted.field("counts")}
    ).sort_by("item_id")
    times = _numpy(training, "timestamp") if "timestamp" in events.column_names else np.zeros(0)
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
        train_time_range=(float(times.min()), float(times.max())) if len(times) else None,
        integer_ids=integer_ids,
        misfits=_misfits(config, _raw_numbers(events, config)),
    )


def check_labels(config: Config, tallies: Sequence[PartTally]) -> None:
    """Check that all labels fit their tasks.

    Raises:
        DataError: a regression label is out of the task's range, or a binary one is not 0 or 1.
    """
    for task in config.tasks:
        found = [tally.misfits[task.name] for tally in tallies if task.name in tally.misfits]
        if found and task.kind != "retrieval":
            expected = "0 and 1"
            if isinstance(task, RegressionTask):
                expected = f"{task.min:g} to {task.max:g}"
            raise DataError(
                f'task {task.name}: label "{task.label}" has {sum(n for n, _ in found)} values '
                f"that do not fit, for example {found[0][1]:g}; expected {expected}\n"
                "bound the column (data.interactions.columns.*.min, max) so that such rows are "
                "set aside, or change the task"
            )


def _misfits(config: Config, raw: dict[str, NDArray[np.float64]]) -> dict[str, tuple[int, float]]:
    misfits = {}
    for task in config.tasks:
        if task.kind != "retrieval":
            values = label_values(task.label, raw)
            if isinstance(task, RegressionTask):
                wrong = values[(values < task.min) | (values > task.max)]
            else:
                wrong = values[~np.isnan(values) & (values != 0) & (values != 1)]
            if len(wrong):
                misfits[task.name] = (len(wrong), float(wrong[0]))
    return misfits


def _raw_numbers(events: pa.Table, config: Config) -> dict[str, NDArray[np.float64]]:
    """Give the number columns as in the source, NaN where missing."""
    columns = config.data.interactions.columns
    return {name: _numpy(events, name) for name, c in columns.items() if c.kind == "number"}


def _tell_behaviour(
    config: Config,
    histories: Histories,
    position: NDArray[np.int64],
    raw: dict[str, NDArray[np.float64]],
    known: pa.ChunkedArray,
    items: pa.Table,
) -> tuple[pa.Array, NDArray[np.int64]]:
    """Tell the first training events of each user as text; give texts (U,) and cuts (U,).

    The cut is drawn per user from 2 to half the training events, so that the events from the cut on
    are left to be predicted from the text. A user with nothing to tell has no text and cut 0.
    """
    behaviour = config.text.behaviour
    cuts = np.zeros(len(histories), np.int64)
    if behaviour is None:
        return pa.nulls(len(histories), pa.string()), cuts
    owner = histories.event_user
    train = histories.split == splits.TRAIN
    trained = np.bincount(owner[train], minlength=len(histories))
    hashes = splits.hash_strings(pa.array(histories.user_ids, pa.string()))
    enough = trained >= MIN_EVENTS_TO_TELL
    high = np.maximum(trained // 2, 2)
    drawn = splits.draw_between(splits.mix(config.run.seed, hashes), np.full_like(high, 2), high)
    cuts[enough] = drawn[enough]
    liked = label_values(behaviour.liked, raw) == 1
    disliked = np.zeros_like(liked)
    if behaviour.disliked is not None:
        disliked = (label_values(behaviour.disliked, raw) == 1) & ~liked
    names = items.column("name").take(known)
    named = np.asarray(pc.fill_null(pc.not_equal(names, ""), False))
    told = np.flatnonzero(train & (position < cuts[owner]) & (liked | disliked) & named)
    told = _latest(told, owner, behaviour)
    splits.assert_told_from_training(position[told], cuts[owner[told]], histories.split[told])
    parts: dict[int, tuple[list[str], list[str]]] = {}
    for event, name in zip(told.tolist(), names.take(pa.array(told)).to_pylist(), strict=True):
        parts.setdefault(int(owner[event]), ([], []))[0 if liked[event] else 1].append(name)
    texts: list[str | None] = [None] * len(histories)
    for user, (good, bad) in parts.items():
        texts[user] = _sentence(good, bad)
    cuts[[n for n, text in enumerate(texts) if text is None]] = 0
    return pa.array(texts, pa.string()), cuts


def _sentence(liked: Sequence[str], disliked: Sequence[str]) -> str:
    told = (("liked", liked), ("disliked", disliked))
    return "; ".join(f"{word}: {', '.join(names)}" for word, names in told if names)


def _latest(
    told: NDArray[np.int64], owner: NDArray[np.int64], behaviour: BehaviourText
) -> NDArray[np.int64]:
    """Keep each user's latest `max_items` of the events told, which are in order."""
    users = owner[told]
    last = np.searchsorted(users, users, side="right")
    return told[last - np.arange(len(told)) <= behaviour.max_items]


def _numpy(table: pa.Table, name: str) -> NDArray[Any]:
    """Give a number column as NumPy; null becomes NaN."""
    column = table.column(name)
    if pa.types.is_floating(column.type):
        column = pc.fill_null(column, float("nan"))
    return np.asarray(column.to_numpy())
