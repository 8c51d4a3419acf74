"""What an interactions, items, users or social table must be, checked row by row.

`check` casts every column (`casts`) and gives every row that does not fit a reason. Casting is
done here and never by a reader, so that one bad value costs one row. Pure Arrow; it compares no
two rows.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtrec.data.casts import (
    EPOCH,
    Problems,
    cast_column,
    cast_id,
    cast_split,
    cast_time,
    is_true,
    plain_array,
)
from mtrec.dataconfig import (
    InteractionsTable,
    ItemsTable,
    SocialTable,
    TimeColumn,
    UsersTable,
)

Table = InteractionsTable | ItemsTable | UsersTable | SocialTable

# Bookkeeping columns of raw and checked tables. Configured names start with a letter, so these
# never clash with them.
SOURCE, PLACE, ROW, REASON, INTEGER = "_source", "_place", "_row", "_reason", "_integer_"
"""File; position in the whole input (int64); text of the row; why it is set aside; prefix of the
flags that say that an id was an integer in the source."""

LATEST_TIME = 4102444800.0
"""Start of the year 2100 in seconds. Later times are milliseconds, or broken clocks."""

REJECTED = pa.schema(
    [("source", pa.string()), ("table", pa.string()), ("row", pa.string()), ("reason", pa.string())]
)

_OWNER = {"item_id": "items", "user_id": "users", "friend_id": "users"}


@dataclass(frozen=True, slots=True)
class Checked:
    """The two sides of a checked table; every row is on exactly one of them.

    Attributes:
        valid: cast columns, `_place` and one `_integer_<id>` flag per id; no `_reason`.
        rejected: `_source`, `_place`, `_row`, `_reason`.
    """

    valid: pa.Table
    rejected: pa.Table


def source_columns(config: Table) -> dict[str, str]:
    """Map each name that mtrec uses to the column of the file that it is read from."""
    names = {name: getattr(config, name) for name in id_columns(config)}
    if isinstance(config, InteractionsTable):
        if config.timestamp is not None:
            names["timestamp"] = config.timestamp
        if config.split is not None:
            names["split"] = config.split
    return names | {
        name: column.source or name
        for name, column in config.columns.items()
        if not isinstance(column, TimeColumn)
    }


def id_columns(config: Table) -> list[str]:
    """List the names of a table's id columns."""
    if isinstance(config, InteractionsTable):
        return ["user_id", "item_id"]
    if isinstance(config, SocialTable):
        return ["user_id", "friend_id"]
    return ["item_id"] if isinstance(config, ItemsTable) else ["user_id"]


def check(table: pa.Table, config: Table) -> Checked:
    """Cast a raw table's columns and tell apart the rows that fit and those that do not.

    Args:
        table: the columns of `source_columns` by mtrec's names, `_source` and `_place`; `_row` and
            `_reason` (a reader's own complaint) if the reader has them.
        config: what the table must be.

    Returns:
        Both sides, rows in the order given. A rejected row has the first reason found; reasons
        name the column but no value, so that they can be counted.
    """
    marked = mark(table, config)
    accepted = pc.is_null(marked.column(REASON))
    return Checked(
        marked.filter(accepted).drop_columns([SOURCE, ROW, REASON]),
        marked.filter(pc.invert(accepted)).select([SOURCE, PLACE, ROW, REASON]),
    )


def mark(table: pa.Table, config: Table, known: Mapping[str, pa.Array] | None = None) -> pa.Table:
    """Cast a raw table's columns and add `_reason`, null for rows that fit.

    `_row` is kept, or made as JSON, for rejected rows only; it is null elsewhere.

    Args:
        table: see `check`.
        config: what the table must be.
        known: id column -> ids (N,) of the items or users table; rows with others are rejected.
    """
    rows = table.num_rows
    raw = {name: plain_array(table.column(name)) for name in source_columns(config)}
    columns: dict[str, pa.Array] = {}
    problems: Problems = []
    for name, values in raw.items():
        if name in id_columns(config):
            flags = table.column(INTEGER + name) if INTEGER + name in table.column_names else None
            columns[name], columns[INTEGER + name], found = cast_id(values, config.id_type, flags)
        elif name == "timestamp":
            columns[name], found = cast_time(values, _latest_time(config))
        elif name == "split":
            columns[name], found = cast_split(values)
        else:
            columns[name], found = cast_column(values, config.columns[name])
        problems += [(mask, f"{name} {text}") for mask, text in found]
    for name, ids in (known or {}).items():
        unknown = ~is_true(pc.is_in(columns[name], ids))
        problems.append(
            (unknown, f"{name} is not in the {_OWNER[name]} table, or was set aside there")
        )
    reason = np.full(rows, None, dtype=object)
    for mask, text in reversed(problems):
        reason[mask] = text
    reasons = pa.array(reason, pa.string())
    if REASON in table.column_names:
        reasons = pc.coalesce(plain_array(table.column(REASON)), reasons)
    rejected = pc.is_valid(reasons)
    if ROW in table.column_names:
        texts = pc.if_else(rejected, plain_array(table.column(ROW)), pa.scalar(None, pa.string()))
    else:
        texts = _rows_as_json(raw, config, rejected)
    columns[PLACE] = table.column(PLACE)
    columns[SOURCE] = table.column(SOURCE)
    columns[ROW], columns[REASON] = texts, reasons
    return pa.table(columns)


def _latest_time(config: Table) -> tuple[float, str]:
    """Give the time that no event may reach, in seconds since 1970, and what to call that."""
    latest = config.latest_time if isinstance(config, InteractionsTable) else None
    if latest is None:
        return LATEST_TIME, "is after the year 2099 (expected: seconds since 1970 or ISO 8601)"
    aware = latest if latest.tzinfo is not None else latest.replace(tzinfo=UTC)
    # The bound itself is admitted.
    seconds = np.nextafter((aware - EPOCH).total_seconds(), np.inf)
    return float(seconds), f"is in the future: after latest_time, {aware.isoformat()}"


def _rows_as_json(raw: Mapping[str, pa.Array], config: Table, rejected: pa.Array) -> pa.Array:
    """Write the rejected rows as JSON objects, null for the others."""
    names = source_columns(config)
    texts: list[str | None] = [None] * len(rejected)
    where = np.flatnonzero(is_true(rejected))
    values = {names[name]: _values(column.take(pa.array(where))) for name, column in raw.items()}
    for number, position in enumerate(where.tolist()):
        told = {name: column[number] for name, column in values.items()}
        texts[position] = json.dumps(told, ensure_ascii=False, default=_tell)
    return pa.array(texts, pa.string())


def _values(column: pa.Array) -> list[object]:
    """Give Python values; times that Python has no form for as the numbers behind them."""
    try:
        found: list[object] = column.to_pylist()
    except (OverflowError, ValueError):
        found = column.view(f"int{column.type.bit_width}").to_pylist()
    return found


def _tell(value: object) -> str:
    """Write a value that JSON has no form for; bytes that are no text stay visible."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
