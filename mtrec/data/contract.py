"""What an interactions, items, users or social table must be, checked value by value.

`check` casts raw columns (text as read from CSV, or native Arrow types) to the types that the rest
of mtrec relies on and gives every row that does not fit a reason. Casting is done here and never
by a reader, so that one bad value costs one row. Pure Arrow; it compares no two rows.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtrec.data.histories import SPLITS
from mtrec.dataconfig import (
    CategoriesColumn,
    CategoryColumn,
    Column,
    InteractionsTable,
    ItemsTable,
    NumberColumn,
    SocialTable,
    TextColumn,
    TimeColumn,
    UsersTable,
)

Table = InteractionsTable | ItemsTable | UsersTable | SocialTable

# Bookkeeping columns of raw and checked tables. Configured names start with a letter, so these
# never clash with them.
SOURCE, PLACE, ROW, REASON, INTEGER = "_source", "_place", "_row", "_reason", "_integer_"
"""File; position in the whole input (int64); text of the row; why it is set aside; prefix of the
flags that say that an id was an integer in the source."""

MAX_ID_BYTES = 1024
LATEST_TIME = 4102444800.0
"""Start of the year 2100 in seconds. Later times are milliseconds, or broken clocks."""

REJECTED = pa.schema(
    [("source", pa.string()), ("table", pa.string()), ("row", pa.string()), ("reason", pa.string())]
)

NOT_UTF8 = "is not UTF-8 text"
NOT_FINITE = "is not finite"

_OWNER = {"item_id": "items", "user_id": "users", "friend_id": "users"}
JOINT = ", "
"""What joins the parts of a text that comes as a list, as in templates."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6}
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_NOT_FINITE = r"(?i)^[+-]?(nan|inf|infinity)$"
_WHOLE = r"^[+-]?[0-9]+$"

Problems = list[tuple[NDArray[np.bool_], str]]
"""For each kind of problem the rows (N,) that have it, and what to call it."""


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
    raw = {name: _plain(table.column(name)) for name in source_columns(config)}
    columns: dict[str, pa.Array] = {}
    problems: Problems = []
    for name, values in raw.items():
        if name in id_columns(config):
            flags = table.column(INTEGER + name) if INTEGER + name in table.column_names else None
            columns[name], columns[INTEGER + name], found = _cast_id(values, config.id_type, flags)
        elif name == "timestamp":
            columns[name], found = _cast_time(values, _latest_time(config))
        elif name == "split":
            columns[name], found = _cast_split(values)
        else:
            columns[name], found = _cast(values, config.columns[name])
        problems += [(mask, f"{name} {text}") for mask, text in found]
    for name, ids in (known or {}).items():
        unknown = ~_true(pc.is_in(columns[name], ids))
        problems.append(
            (unknown, f"{name} is not in the {_OWNER[name]} table, or was set aside there")
        )
    reason = np.full(rows, None, dtype=object)
    for mask, text in reversed(problems):
        reason[mask] = text
    reasons = pa.array(reason, pa.string())
    if REASON in table.column_names:
        reasons = pc.coalesce(_plain(table.column(REASON)), reasons)
    rejected = pc.is_valid(reasons)
    if ROW in table.column_names:
        texts = pc.if_else(rejected, _plain(table.column(ROW)), pa.scalar(None, pa.string()))
    else:
        texts = _rows_as_json(raw, config, rejected)
    columns[PLACE] = table.column(PLACE)
    columns[SOURCE] = table.column(SOURCE)
    columns[ROW], columns[REASON] = texts, reasons
    return pa.table(columns)


def _cast(values: pa.Array, column: Column) -> tuple[pa.Array, Problems]:
    match column:
        case NumberColumn():
            cast, problems = _cast_number(values)
            if column.min is not None:
                problems.append((_true(pc.less(cast, column.min)), f"is below {column.min:g}"))
            if column.max is not None:
                problems.append((_true(pc.greater(cast, column.max)), f"is above {column.max:g}"))
        case TextColumn() if _is_list(values.type):
            lists, problems = _cast_categories(values, "")
            joined = pc.binary_join(lists, JOINT)
            cast = _where(_true(pc.not_equal(joined, "")), joined, pa.string())
        case CategoryColumn() | TextColumn():
            cast, problems = _cast_text(values)
        case CategoriesColumn():
            return _cast_categories(values, column.separator)
        case TimeColumn():
            raise AssertionError("a time column is made of the timestamp, not read")
    if column.missing == "reject":
        missing = _true(pc.is_null(cast)) & ~_any(problems, len(cast))
        problems.append((missing, "is missing"))
    return cast, problems


def _cast_id(
    values: pa.Array, id_type: str, flags: pa.ChunkedArray | None
) -> tuple[pa.Array, pa.Array, Problems]:
    """Give ids as strings, whether each was an integer in the source, and problems."""
    kind = values.type
    if pa.types.is_integer(kind):
        text, undecodable = pc.cast(values, pa.string()), np.zeros(len(values), bool)
        fits = np.ones(len(values), bool)
        if kind == pa.uint64():
            fits = ~_true(pc.greater(values, pa.scalar(2**63 - 1, pa.uint64())))
        integer = fits
    elif _is_text(kind):
        text, undecodable = _as_text(values)
        integer = _true(_plain(flags)) if flags is not None else np.zeros(len(values), bool)
    elif pa.types.is_decimal(kind) and kind.scale == 0:
        # How some databases export large whole numbers; answers write such ids as text.
        text, undecodable = pc.cast(values, pa.string()), np.zeros(len(values), bool)
        integer = undecodable
    else:
        return _nothing(
            values,
            pa.string(),
            integer=True,
            problem=f"is {_name(kind)}, expected text or a whole number",
        )
    problems: Problems = [
        (undecodable, NOT_UTF8),
        (_true(pc.fill_null(pc.equal(text, ""), True)), "is empty"),
        (_true(pc.equal(pc.utf8_trim_whitespace(text), "")), "is blank"),
        (_true(pc.match_substring(text, "\0")), "holds a NUL character"),
        (
            _true(pc.greater(pc.binary_length(text), MAX_ID_BYTES)),
            f"is longer than {MAX_ID_BYTES} bytes",
        ),
    ]
    if id_type == "integer":
        text, found = _as_integers(text, ~_any(problems, len(text)))
        problems += found
        integer = np.ones(len(values), bool)
    elif id_type == "string":
        integer = np.zeros(len(values), bool)
    return text, pa.array(integer), problems


def _as_integers(text: pa.Array, usable: NDArray[np.bool_]) -> tuple[pa.Array, Problems]:
    """Write whole numbers in one way: no plus sign, no leading zeros."""
    trimmed = pc.utf8_trim_whitespace(text)
    whole = _true(pc.match_substring_regex(trimmed, _WHOLE))
    bare = pc.replace_substring_regex(trimmed, r"^\+?(-?)0*([0-9])", r"\1\2")
    bare = pc.replace_substring_regex(bare, r"^-0$", "0")
    # 18 digits always fit in 64 bits; the few longer ones are looked at one by one.
    long = np.flatnonzero(_true(pc.greater(pc.utf8_length(bare), 18)) & whole & usable)
    beyond = np.zeros(len(text), bool)
    for row in long.tolist():
        digits = bare[row].as_py()
        beyond[row] = len(digits) > 20 or not -(2**63) <= int(digits) < 2**63
    return bare, [
        (usable & ~whole, "is not a whole number"),
        (beyond, "is beyond 64 bits; set id_type: string"),
    ]


def _latest_time(config: Table) -> tuple[float, str]:
    """Give the time that no event may reach, in seconds since 1970, and what to call that."""
    latest = config.latest_time if isinstance(config, InteractionsTable) else None
    if latest is None:
        return LATEST_TIME, "is after the year 2099 (expected: seconds since 1970 or ISO 8601)"
    aware = latest if latest.tzinfo is not None else latest.replace(tzinfo=UTC)
    # The bound itself is admitted.
    seconds = np.nextafter((aware - _EPOCH).total_seconds(), np.inf)
    return float(seconds), f"is in the future: after latest_time, {aware.isoformat()}"


def _cast_time(values: pa.Array, latest: tuple[float, str]) -> tuple[pa.Array, Problems]:
    """Give seconds since 1970 (float64) from numbers, ISO 8601 text or Arrow times."""
    problems: Problems
    kind = values.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        seconds, problems = _seconds(values), []
    elif pa.types.is_boolean(kind) or pa.types.is_time(kind):
        seconds, problems = _nothing(
            values, pa.float64(), problem=f"is {_name(kind)}, expected a time"
        )
    else:
        seconds, problems = _cast_number(values)
        parsed = pa.nulls(len(values), pa.float64())
        if _is_text(kind):
            parsed = _parse_iso(values, _any(problems, len(values)))
        known = _true(pc.is_valid(parsed))
        seconds = pc.coalesce(seconds, parsed)
        problems = [(mask & ~known, text.replace("a number", "a time")) for mask, text in problems]
    missing = _true(pc.is_null(seconds)) & ~_any(problems, len(values))
    bound, too_late = latest
    problems += [
        (missing, "is missing"),
        (_true(pc.less(seconds, 0.0)), "is negative, before 1970"),
        (_true(pc.greater_equal(seconds, bound)), too_late),
    ]
    return seconds, problems


def _seconds(values: pa.Array) -> pa.Array:
    """Give seconds since 1970 of Arrow times; those far out of range stay far out of range."""
    kind = values.type
    if pa.types.is_date32(kind):
        return pc.multiply(pc.cast(pc.cast(values, pa.int32()), pa.float64()), 86_400.0)
    counts, unit = pc.cast(values, pa.int64()), "ms" if pa.types.is_date64(kind) else kind.unit
    if unit == "ns":
        # Float64 holds microseconds of this century to the last one, nanoseconds it does not.
        counts, unit = pc.divide(counts, 1000), "us"
    return pc.divide(pc.cast(counts, pa.float64(), safe=False), _PER_SECOND[unit])


def _parse_iso(values: pa.Array, rows: NDArray[np.bool_]) -> pa.Array:
    """Parse ISO 8601 in the rows given; without an offset the time is UTC."""
    seconds: list[float | None] = [None] * len(values)
    for row in np.flatnonzero(rows).tolist():
        try:
            moment = datetime.fromisoformat(values[row].as_py().strip())
        except ValueError:
            continue
        aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        seconds[row] = (aware - _EPOCH).total_seconds()
    return pa.array(seconds, pa.float64())


def _cast_split(values: pa.Array) -> tuple[pa.Array, Problems]:
    text, problems = _cast_text(values)
    fits = _true(pc.is_in(text, pa.array(SPLITS)))
    return text, [*problems, (~fits, f"is not {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")]


def _cast_number(values: pa.Array) -> tuple[pa.Array, Problems]:
    """Give finite float64; empty cells become null."""
    kind = values.type
    if _is_text(kind):
        text, undecodable = _as_text(values)
        trimmed = pc.utf8_trim_whitespace(text)
        written = _true(pc.match_substring_regex(trimmed, _NUMBER))
        infinite = _true(pc.match_substring_regex(trimmed, _NOT_FINITE))
        given = _true(pc.not_equal(trimmed, ""))
        numbers = pc.cast(_where(written, trimmed, pa.string()), pa.float64())
        problems: Problems = [
            (undecodable, NOT_UTF8),
            (given & ~written & ~infinite, "is not a number"),
        ]
    elif _is_numeric(kind) or pa.types.is_null(kind):
        as_ints = pc.cast(values, pa.int8()) if pa.types.is_boolean(kind) else values
        numbers = pc.cast(as_ints, pa.float64(), safe=False)
        infinite, problems = np.zeros(len(values), bool), []
    else:
        return _nothing(values, pa.float64(), problem=f"is {_name(kind)}, expected a number")
    not_finite = infinite | _true(pc.invert(pc.is_finite(numbers)))
    problems.append((not_finite, NOT_FINITE))
    return _where(~not_finite, numbers, pa.float64()), problems


def _cast_text(values: pa.Array) -> tuple[pa.Array, Problems]:
    """Give text; empty and blank cells become null."""
    kind = values.type
    undecodable = np.zeros(len(values), bool)
    not_finite = np.zeros(len(values), bool)
    if _is_text(kind):
        text, undecodable = _as_text(values)
    elif pa.types.is_floating(kind):
        not_finite = _true(pc.invert(pc.is_finite(values)))
        # A whole number in a float column (integers with gaps) is written as one.
        text = pa.array(
            [None if x is None else f"{x:.15g}" for x in values.to_pylist()], pa.string()
        )
    elif _is_numeric(kind) or pa.types.is_null(kind) or pa.types.is_temporal(kind):
        text = pc.cast(values, pa.string())
    else:
        return _nothing(values, pa.string(), problem=f"is {_name(kind)}, expected one value")
    nul = _true(pc.match_substring(text, "\0"))
    blank = _true(pc.equal(pc.utf8_trim_whitespace(text), ""))
    problems = [
        (undecodable, NOT_UTF8),
        (nul, "holds a NUL character"),
        (not_finite, NOT_FINITE),
    ]
    return _where(~blank, text, pa.string()), problems


def _cast_categories(values: pa.Array, separator: str) -> tuple[pa.Array, Problems]:
    """Give lists of text, parts trimmed, empty parts left out; a missing cell is an empty list."""
    kind = values.type
    if _is_list(kind):
        given = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
        flat, problems = _cast_text(values.flatten())
    elif _is_text(kind) or pa.types.is_null(kind):
        text, problems = _cast_text(values)
        lists = pc.split_pattern(text, separator)
        given = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        flat, inner = _cast_text(pc.utf8_trim_whitespace(lists.flatten()))
        problems = inner
    else:
        empty = pa.array([[]] * len(values), pa.list_(pa.string()))
        wrong = _true(pc.is_valid(values))
        return empty, [(wrong, f"is {_name(kind)}, expected text or a list")]
    owner = np.repeat(np.arange(len(values)), given)
    kept = _true(pc.is_valid(flat))
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum(np.bincount(owner[kept], minlength=len(values)), out=offsets[1:])
    result = pa.ListArray.from_arrays(pa.array(offsets), flat.filter(pa.array(kept)))
    by_row: Problems = []
    for mask, text_ in problems:
        rows = np.zeros(len(values), bool)
        rows[owner[mask]] = True
        by_row.append((rows, text_))
    return result, by_row


def join_texts(parts: Iterable[str]) -> str:
    """Make one text of a list's, leaving out blank ones."""
    return JOINT.join(part for part in parts if part.strip())


def _rows_as_json(raw: Mapping[str, pa.Array], config: Table, rejected: pa.Array) -> pa.Array:
    """Write the rejected rows as JSON objects, null for the others."""
    names = source_columns(config)
    texts: list[str | None] = [None] * len(rejected)
    where = np.flatnonzero(_true(rejected))
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


def _plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Give one array without dictionaries, views or wide offsets, also inside lists.

    Text with bytes that are not UTF-8, which Parquet may hold, becomes binary.
    """
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    plain = _plain_type(array.type)
    if plain != array.type:
        array = pc.cast(array, plain)
    value = plain.value_type if pa.types.is_list(plain) else plain
    if pa.types.is_string(value):
        try:
            array.validate(full=True)
        except pa.ArrowInvalid:
            return pc.cast(array, pa.list_(pa.binary()) if value != plain else pa.binary())
    return array


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    # Not list views, of which pyarrow 26 casts some to empty lists: their rows are set aside.
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return pa.list_(_plain_type(kind.value_type)) if any(is_(kind) for is_ in lists) else kind


def _name(kind: pa.DataType) -> str:
    """Name a type for a reason; what is inside a list differs from writer to writer."""
    return str(kind).split("<", maxsplit=1)[0] if pa.types.is_nested(kind) else str(kind)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind))


def _is_numeric(kind: pa.DataType) -> bool:
    checks: tuple[Callable[[pa.DataType], bool], ...] = (
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_decimal,
        pa.types.is_boolean,
    )
    return any(test(kind) for test in checks)


def _as_text(values: pa.Array) -> tuple[pa.Array, NDArray[np.bool_]]:
    """Give strings, null for bytes that are not UTF-8, and which rows those are."""
    undecodable = np.zeros(len(values), bool)
    try:
        return pc.cast(values, pa.string()), undecodable
    except pa.ArrowInvalid:
        texts: list[str | None] = []
        for row, value in enumerate(values.to_pylist()):
            try:
                texts.append(value.decode() if value is not None else None)
            except UnicodeDecodeError:
                undecodable[row] = True
                texts.append(None)
    return pa.array(texts, pa.string()), undecodable


def _nothing(
    values: pa.Array, kind: pa.DataType, *, problem: str, integer: bool = False
) -> tuple[pa.Array, ...]:
    """Give a null column for values of a wrong type; each value that is there is a problem."""
    nulls = pa.nulls(len(values), kind)
    problems = [(_true(pc.is_valid(values)), problem)]
    if integer:
        empty = (_true(pc.is_null(values)), "is empty")
        return nulls, pa.array(np.zeros(len(values), bool)), [*problems, empty]
    return nulls, problems


def _where(mask: NDArray[np.bool_], values: pa.Array, kind: pa.DataType) -> pa.Array:
    return pc.if_else(pa.array(mask), values, pa.scalar(None, kind))


def _true(mask: pa.Array) -> NDArray[np.bool_]:
    """Give a Boolean array as NumPy, null as false."""
    found: NDArray[np.bool_] = pc.fill_null(mask, False).to_numpy(zero_copy_only=False)
    return found


def _any(problems: Problems, rows: int) -> NDArray[np.bool_]:
    found = np.zeros(rows, bool)
    for mask, _ in problems:
        found |= mask
    return found
