"""Values of a column, cast one by one; the rows whose value does not fit, and why.

From text as read from CSV, or native Arrow types, to the types that the rest of mtrec relies on.
Pure Arrow; it knows nothing of tables.
"""

from collections.abc import Callable, Iterable
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
    NumberColumn,
    TextColumn,
    TimeColumn,
)

MAX_ID_BYTES = 1024

NOT_UTF8 = "is not UTF-8 text"
NOT_FINITE = "is not finite"

JOINT = ", "
"""What joins the parts of a text that comes as a list, as in templates."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6}
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_NOT_FINITE = r"(?i)^[+-]?(nan|inf|infinity)$"
_WHOLE = r"^[+-]?[0-9]+$"
# What the model can hold; some write the largest float64 where a value is missing.
_LARGEST = float(np.finfo(np.float32).max)

Problems = list[tuple[NDArray[np.bool_], str]]
"""For each kind of problem the rows (N,) that have it, and what to call it."""


def cast_column(values: pa.Array, column: Column) -> tuple[pa.Array, Problems]:
    """Give a declared column's values, null where there is none, and their problems.

    Numbers are float64, a category and a text string, categories lists of strings.
    """
    match column:
        case NumberColumn():
            cast, problems = _cast_number(values)
            if column.min is not None:
                problems.append((is_true(pc.less(cast, column.min)), f"is below {column.min:g}"))
            if column.max is not None:
                problems.append((is_true(pc.greater(cast, column.max)), f"is above {column.max:g}"))
        case TextColumn() if _is_list(values.type):
            lists, problems = _cast_categories(values, "")
            joined = pc.binary_join(lists, JOINT)
            cast = _where(is_true(pc.not_equal(joined, "")), joined, pa.string())
        case CategoryColumn() | TextColumn():
            cast, problems = _cast_text(values)
        case CategoriesColumn():
            return _cast_categories(values, column.separator)
        case TimeColumn():
            raise AssertionError("a time column is made of the timestamp, not read")
    if column.missing == "reject":
        missing = is_true(pc.is_null(cast)) & ~_any(problems, len(cast))
        problems.append((missing, "is missing"))
    return cast, problems


def cast_id(
    values: pa.Array, id_type: str, flags: pa.ChunkedArray | None
) -> tuple[pa.Array, pa.Array, Problems]:
    """Give ids as strings, whether each was an integer in the source, and problems."""
    kind = values.type
    if pa.types.is_integer(kind):
        text, undecodable = pc.cast(values, pa.string()), np.zeros(len(values), bool)
        fits = np.ones(len(values), bool)
        if kind == pa.uint64():
            fits = ~is_true(pc.greater(values, pa.scalar(2**63 - 1, pa.uint64())))
        integer = fits
    elif _is_text(kind):
        text, undecodable = _as_text(values)
        integer = is_true(plain_array(flags)) if flags is not None else np.zeros(len(values), bool)
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
        (is_true(pc.fill_null(pc.equal(text, ""), True)), "is empty"),
        (is_true(pc.equal(pc.utf8_trim_whitespace(text), "")), "is blank"),
        (is_true(pc.match_substring(text, "\0")), "holds a NUL character"),
        (
            is_true(pc.greater(pc.binary_length(text), MAX_ID_BYTES)),
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


def are_integers(ids: pa.ChunkedArray) -> bool:
    """Tell whether ids are 64-bit integers, each written as Arrow writes it."""
    try:
        written = pc.cast(pc.cast(ids, pa.int64()), pa.string())
    except pa.ArrowInvalid:
        return False
    return bool(pc.all(pc.equal(written, ids), min_count=0).as_py())


def _as_integers(text: pa.Array, usable: NDArray[np.bool_]) -> tuple[pa.Array, Problems]:
    """Write whole numbers in one way: no plus sign, no leading zeros."""
    trimmed = pc.utf8_trim_whitespace(text)
    whole = is_true(pc.match_substring_regex(trimmed, _WHOLE))
    bare = pc.replace_substring_regex(trimmed, r"^\+?(-?)0*([0-9])", r"\1\2")
    bare = pc.replace_substring_regex(bare, r"^-0$", "0")
    # 18 digits always fit in 64 bits; the few longer ones are looked at one by one.
    long = np.flatnonzero(is_true(pc.greater(pc.utf8_length(bare), 18)) & whole & usable)
    beyond = np.zeros(len(text), bool)
    for row in long.tolist():
        digits = bare[row].as_py()
        beyond[row] = len(digits) > 20 or not -(2**63) <= int(digits) < 2**63
    return bare, [
        (usable & ~whole, "is not a whole number"),
        (beyond, "is beyond 64 bits; set id_type: string"),
    ]


def cast_time(values: pa.Array, latest: tuple[float, str]) -> tuple[pa.Array, Problems]:
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
            parsed = _parse_iso(_as_text(values)[0], _any(problems, len(values)))
        known = is_true(pc.is_valid(parsed))
        seconds = pc.coalesce(seconds, parsed)
        problems = [(mask & ~known, text.replace("a number", "a time")) for mask, text in problems]
    missing = is_true(pc.is_null(seconds)) & ~_any(problems, len(values))
    bound, too_late = latest
    problems += [
        (missing, "is missing"),
        (is_true(pc.less(seconds, 0.0)), "is negative, before 1970"),
        (is_true(pc.greater_equal(seconds, bound)), too_late),
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
    """Parse ISO 8601 in those of the rows given that hold text; without an offset in UTC."""
    seconds: list[float | None] = [None] * len(values)
    for row in np.flatnonzero(rows & is_true(pc.is_valid(values))).tolist():
        try:
            moment = datetime.fromisoformat(values[row].as_py().strip())
        except ValueError:
            continue
        aware = moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
        seconds[row] = (aware - EPOCH).total_seconds()
    return pa.array(seconds, pa.float64())


def cast_split(values: pa.Array) -> tuple[pa.Array, Problems]:
    """Give the names of splits as text."""
    text, problems = _cast_text(values)
    fits = is_true(pc.is_in(text, pa.array(SPLITS)))
    return text, [*problems, (~fits, f"is not {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")]


def _cast_number(values: pa.Array) -> tuple[pa.Array, Problems]:
    """Give float64 that float32 can hold; empty cells become null."""
    kind = values.type
    if _is_text(kind):
        text, undecodable = _as_text(values)
        trimmed = pc.utf8_trim_whitespace(text)
        written = is_true(pc.match_substring_regex(trimmed, _NUMBER))
        infinite = is_true(pc.match_substring_regex(trimmed, _NOT_FINITE))
        given = is_true(pc.not_equal(trimmed, ""))
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
    not_finite = infinite | is_true(pc.invert(pc.is_finite(numbers)))
    too_large = is_true(pc.greater(pc.abs(numbers), _LARGEST)) & ~not_finite
    problems += [(not_finite, NOT_FINITE), (too_large, "is too large")]
    return _where(~(not_finite | too_large), numbers, pa.float64()), problems


def _cast_text(values: pa.Array) -> tuple[pa.Array, Problems]:
    """Give text; empty and blank cells become null."""
    kind = values.type
    undecodable = np.zeros(len(values), bool)
    not_finite = np.zeros(len(values), bool)
    if _is_text(kind):
        text, undecodable = _as_text(values)
    elif pa.types.is_floating(kind):
        not_finite = is_true(pc.invert(pc.is_finite(values)))
        # A whole number in a float column (integers with gaps) is written as one.
        text = pa.array(
            [None if x is None else f"{x:.15g}" for x in values.to_pylist()], pa.string()
        )
    elif _is_numeric(kind) or pa.types.is_null(kind) or pa.types.is_temporal(kind):
        text = pc.cast(values, pa.string())
    else:
        return _nothing(values, pa.string(), problem=f"is {_name(kind)}, expected one value")
    nul = is_true(pc.match_substring(text, "\0"))
    blank = is_true(pc.equal(pc.utf8_trim_whitespace(text), ""))
    problems = [
        (undecodable, NOT_UTF8),
        (nul, "holds a NUL character"),
        (not_finite, NOT_FINITE),
    ]
    return _where(~blank, text, pa.string()), problems


def _cast_categories(values: pa.Array, separator: str) -> tuple[pa.Array, Problems]:
    """Give lists of text, parts trimmed, empty parts left out; a missing cell is an empty list."""
    kind = values.type
    problems: Problems = []
    if _is_list(kind):
        given = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
        flat, inner = _cast_text(values.flatten())
    elif _is_text(kind) or pa.types.is_null(kind):
        text, problems = _cast_text(values)
        lists = pc.split_pattern(text, separator)
        given = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
        flat, inner = _cast_text(pc.utf8_trim_whitespace(lists.flatten()))
    else:
        empty = pa.array([[]] * len(values), pa.list_(pa.string()))
        wrong = is_true(pc.is_valid(values))
        return empty, [(wrong, f"is {_name(kind)}, expected text or a list")]
    owner = np.repeat(np.arange(len(values)), given)
    kept = is_true(pc.is_valid(flat))
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum(np.bincount(owner[kept], minlength=len(values)), out=offsets[1:])
    result = pa.ListArray.from_arrays(pa.array(offsets), flat.filter(pa.array(kept)))
    for mask, name in inner:
        rows = np.zeros(len(values), bool)
        rows[owner[mask]] = True
        problems.append((rows, name))
    return result, problems


def join_texts(parts: Iterable[str]) -> str:
    """Make one text of a list's, leaving out blank ones."""
    return JOINT.join(part for part in parts if part.strip())


def plain_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
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
    problems = [(is_true(pc.is_valid(values)), problem)]
    if integer:
        empty = (is_true(pc.is_null(values)), "is empty")
        return nulls, pa.array(np.zeros(len(values), bool)), [*problems, empty]
    return nulls, problems


def _where(mask: NDArray[np.bool_], values: pa.Array, kind: pa.DataType) -> pa.Array:
    return pc.if_else(pa.array(mask), values, pa.scalar(None, kind))


def is_true(mask: pa.Array) -> NDArray[np.bool_]:
    """Give a Boolean array as NumPy, null as false."""
    found: NDArray[np.bool_] = pc.fill_null(mask, False).to_numpy(zero_copy_only=False)
    return found


def _any(problems: Problems, rows: int) -> NDArray[np.bool_]:
    found = np.zeros(rows, bool)
    for mask, _ in problems:
        found |= mask
    return found
