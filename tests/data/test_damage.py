"""Every kind of damage that a file may have: what becomes of the row, and that no other suffers.

Each kind is an entry of a catalogue: what stands in the file, and for every row that comes of it
either the values that are kept or the reason for which the row is set aside.
"""

import json
import struct
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec.configfile import parse_config
from mtrec.data import contract, pipeline, readers
from mtrec.data.parts import order_part
from mtrec.dataconfig import InteractionsTable

COLUMNS = {
    "rating": {"kind": "number", "min": 1, "max": 5, "missing": "keep"},
    "note": {"kind": "category"},
}
LATEST = "2026-01-01"
NAMES = ("user_id", "item_id", "timestamp", "rating", "note")
HEADER = b"user_id,item_id,rating,time,note"
T = 1_000_000_000.0
GOOD = ("u0", "i1", T, 3.0, "fine")
MEGABYTE = "x" * (1 << 20)
ITEMS = ["i1", "服装", "9223372036854775807", "9007199254740993", "b"]


@dataclass(frozen=True)
class Kind:
    """A kind of damage.

    Attributes:
        name: what it is called.
        text: what stands in the file.
        rows: for each row that comes of it the kept values, or why it is set aside.
    """

    name: str
    text: bytes
    rows: list[tuple[object, ...] | str] = field(default_factory=list)


def table_config(path: Path) -> InteractionsTable:
    return InteractionsTable.model_validate(
        {"path": str(path), "timestamp": "time", "latest_time": LATEST, "columns": COLUMNS}
    )


def read_marked(path: Path) -> pa.Table:
    config = table_config(path)
    known = {"item_id": pa.array(ITEMS)}
    marked = [
        contract.mark(raw, config, known)
        for piece in readers.plan(config, ".")
        for raw in readers.read(piece, config)
    ]
    return pa.concat_tables(marked)


def outcomes(marked: pa.Table) -> list[tuple[object, ...] | str]:
    return [
        row["_reason"] if row["_reason"] is not None else tuple(row[name] for name in NAMES)
        for row in marked.to_pylist()
    ]


def kept(user: str = "u1", item: str = "i1", time: float = T, rating: Any = 3.0, note: Any = "n"):
    return (user, item, time, rating, note)


FIELDS = "wrong number of fields, expected 5"
NUMBER, FINITE = "rating is not a number", "rating is not finite"
BYTES, NUL = "row does not decode as utf-8", "row holds a NUL byte"
OPEN, CLOSED = "row has a quote that is not closed", "row has text after a closing quote"
AGAIN = "repeats the header"
FUTURE = "timestamp is in the future: after latest_time, 2026-01-01T00:00:00+00:00"
NEGATIVE = "timestamp is negative, before 1970"


def csv_kind(name: str, text: str | bytes, *rows: tuple[object, ...] | str) -> Kind:
    return Kind(name, text.encode() if isinstance(text, str) else text, list(rows))


def rating(name: str, cell: str, row: tuple[object, ...] | str) -> Kind:
    return csv_kind(f"rating {name}", f"u1,i1,{cell},1000000000,n", row)


def time(name: str, cell: str, row: tuple[object, ...] | str) -> Kind:
    return csv_kind(f"time {name}", f"u1,i1,3,{cell},n", row)


def note(name: str, cell: str, value: object) -> Kind:
    return csv_kind(f"note {name}", f"u1,i1,3,1000000000,{cell}", kept(note=value))


CSV = [
    # structure
    csv_kind("too few fields", "u1,i1,3", FIELDS),
    csv_kind("too many fields", "u1,i1,3,1000000000,n,extra", FIELDS),
    csv_kind("too many quoted fields", '"u1","i1","3","1000000000","n","extra"', FIELDS),
    csv_kind("white space alone", "   ", FIELDS),
    csv_kind("another delimiter", "u1;i1;3;1000000000;n", FIELDS),
    csv_kind("two rows in one", "u1,i1,3,10000u1,i1,3,1000000000,n", FIELDS),
    csv_kind("a page of an error", "<html><body>503</body></html>", FIELDS),
    csv_kind("a mark of a conflict", "<<<<<<< HEAD", FIELDS),
    csv_kind("end of file of DOS", b"\x1a", FIELDS),
    csv_kind("delimiters alone", ",,,,", "user_id is empty"),
    csv_kind("blank line", ""),
    csv_kind("header again", HEADER, AGAIN),
    csv_kind("header again in quotes", '"user_id","item_id","rating","time","note"', AGAIN),
    csv_kind("header again behind a BOM", b"\xef\xbb\xbf" + HEADER, AGAIN),
    csv_kind("BOM within", b"\xef\xbb\xbfu1,i1,3,1000000000,n", kept()),
    # quotes
    csv_kind("quote open in the id", '"u1,i1,3,1000000000,n', OPEN),
    csv_kind("quote open in the middle", 'u1,"i1,3,1000000000,n', OPEN),
    csv_kind("quote open at the end", 'u1,i1,3,1000000000,"n', OPEN),
    csv_kind("quote alone", '"', OPEN),
    csv_kind("text after a quote", 'u1,i1,3,1000000000,"n" m', CLOSED),
    csv_kind("quote not doubled", 'u1,i1,3,1000000000,"a "b" c"', CLOSED),
    csv_kind("few fields over two lines", 'u1,3,1000000000,"a\nb"', FIELDS),
    csv_kind(
        "rows between two stray quotes",
        'u1,"i1,3,1000000000,n\nu2,i1,4,1000000000,n\nu3,i1",3,1000000000,n',
        *(
            OPEN,
            kept("u2", rating=4.0),
            "item_id is not in the items table, or was set aside there",
        ),
    ),
    csv_kind(
        "rows between an open quote and a stray one",
        'u1,i1,3,1000000000,"n\nu2,i1,4,1000000000,n\nu3,i1,3,1000000000,5"',
        *(OPEN, kept("u2", rating=4.0), kept("u3", note='5"')),
    ),
    csv_kind("all in quotes", '"u1","i1","3","1000000000","n"', kept()),
    note("with a quote inside", '5" disc', '5" disc'),
    note("with delimiters", '"a,b,,c"', "a,b,,c"),
    note("with quotes", '"a ""b"" c"', 'a "b" c'),
    note("with a line end", '"a\nb\n\nc"', "a\nb\n\nc"),
    # bytes
    csv_kind("bad UTF-8", b"u1,i1,3,1000000000,\xff", BYTES),
    csv_kind("UTF-8 cut off", "u1,i1,3,1000000000,服".encode()[:-1], BYTES),
    csv_kind("UTF-8 of half a pair", b"u1,i1,3,1000000000,\xed\xa0\x80", BYTES),
    csv_kind("UTF-8 that is too long", b"u1,i1,3,1000000000,\xc0\xaf", BYTES),
    csv_kind("another encoding", "u1,i1,3,1000000000,café".encode("latin-1"), BYTES),
    csv_kind("bad UTF-8 in quotes", b'u1,i1,3,1000000000,"\xff"', BYTES),
    csv_kind("bad UTF-8 on a second line", b'u1,i1,3,1000000000,"a\n\xff"', BYTES),
    csv_kind("NUL byte", b"u1,i1,3,1000000000,a\0b", NUL),
    csv_kind("NUL bytes alone", b"\0" * 4096, NUL),
    csv_kind("UTF-16 in between", "u1,i1,3,1000000000,n".encode("utf-16-le"), NUL),
    note("in Chinese with an emoji", "羽绒服🧥", "羽绒服🧥"),
    note("with rare white space", "a\u2028b\x0bc\x1cd\x85e", "a\u2028b\x0bc\x1cd\x85e"),
    # ids
    csv_kind("id empty", ",i1,3,1000000000,n", "user_id is empty"),
    csv_kind("id empty in quotes", 'u1,"",3,1000000000,n', "item_id is empty"),
    csv_kind("id blank", "  \t,i1,3,1000000000,n", "user_id is blank"),
    csv_kind("id of one hard space", "u1,\u00a0,3,1000000000,n", "item_id is blank"),
    csv_kind(
        "id unknown",
        "u1,i404,3,1000000000,n",
        "item_id is not in the items table, or was set aside there",
    ),
    csv_kind(
        "id of a megabyte", MEGABYTE + ",i1,3,1000000000,n", "user_id is longer than 1024 bytes"
    ),
    csv_kind("id beyond 2^53", f"{2**53 + 1},i1,3,1000000000,n", kept(str(2**53 + 1))),
    csv_kind("id beyond 2^64", f"{2**70},i1,3,1000000000,n", kept(str(2**70))),
    csv_kind("id with zeros before", "007,i1,3,1000000000,n", kept("007")),
    csv_kind("id in Chinese", "用户,服装,3,1000000000,n", kept("用户", "服装")),
    csv_kind("id called nan", "nan,i1,3,1000000000,n", kept("nan")),
    # numbers
    rating("of a word", "good", NUMBER),
    rating("called NULL", "NULL", NUMBER),
    rating("with a decimal comma", '"3,5"', NUMBER),
    rating("in hexadecimal", "0x3", NUMBER),
    rating("with an underscore", "1_0", NUMBER),
    rating("in wide digits", "３", NUMBER),
    rating("with a unit", "3 stars", NUMBER),
    rating("that is no number", "NaN", FINITE),
    rating("infinite", "inf", FINITE),
    rating("infinite below", "-Infinity", FINITE),
    rating("beyond float64", "1e999", FINITE),
    rating("beyond float32", "-3.5e38", "rating is too large"),
    rating("below", "0", "rating is below 1"),
    rating("above", "5.0001", "rating is above 5"),
    rating("missing", "", kept(rating=None)),
    rating("with white space", " +3.50 ", kept(rating=3.5)),
    rating("with an exponent", "30e-1", kept()),
    # times
    time("missing", "", "timestamp is missing"),
    time("of a word", "yesterday", "timestamp is not a time"),
    time("of no day", "2025-02-30", "timestamp is not a time"),
    time("negative", "-1", NEGATIVE),
    time("before 1970", "1969-12-31T23:59:59Z", NEGATIVE),
    time("in the future", "1893456000", FUTURE),
    time("in the future as text", "2026-01-01T00:00:01Z", FUTURE),
    time("in milliseconds", "1000000000000", FUTURE),
    time("overflowing", "9" * 400, "timestamp is not finite"),
    time("that is no number", "nan", "timestamp is not finite"),
    time("at the bound", "2026-01-01", kept(time=1767225600.0)),
    time("as text with a zone", "2001-09-09T03:46:40.5+02:00", kept(time=T + 0.5)),
    time("zero", "0", kept(time=0.0)),
    # sizes
    note("of a megabyte", MEGABYTE, MEGABYTE),
    note("of a megabyte in quotes", f'"{MEGABYTE},"', MEGABYTE + ","),
    note("empty", "", None),
    note("of white space", "  ", None),
    note("that is a formula", "=1+1", "=1+1"),
]

REPEATED, JSON = "row has a JSON key twice", "row is not JSON"
BASE = {"user_id": "u1", "item_id": "i1", "rating": 3, "time": 1000000000, "note": "n"}


def jsonl(name: str, row: tuple[object, ...] | str, **values: object) -> Kind:
    return Kind(name, json.dumps(BASE | values, ensure_ascii=False).encode(), [row])


def line(name: str, text: str | bytes, *rows: tuple[object, ...] | str) -> Kind:
    return Kind(name, text.encode() if isinstance(text, str) else text, list(rows))


WHOLE = json.dumps(BASE)
FRACTION = "user_id is a JSON number with a fraction or a Boolean"

JSONL = [
    line("cut off", WHOLE[:-9], JSON),
    line("without quotes", "{user_id: u1}", JSON),
    line("single quotes", WHOLE.replace('"', "'"), JSON),
    line("comma at the end", WHOLE + ",", "row has more after its JSON value"),
    line("two in one line", WHOLE + WHOLE, "row has more after its JSON value"),
    line("a line of CSV", "u1,i1,3,1000000000,n", JSON),
    line("null", "null", "row is no JSON object"),
    line("a list", "[1, 2]", "row is no JSON object"),
    line("a number", "17", "row is no JSON object"),
    line("nested deeply", "[" * 100_000 + "]" * 100_000, "row is JSON nested too deeply"),
    line("a key twice", '{"user_id": "a", ' + WHOLE[1:], REPEATED),
    line(
        "a number of 5,000 digits",
        WHOLE.replace(": 3,", ": " + "3" * 5000 + ","),
        "row has a JSON number of thousands of digits",
    ),
    line("bad UTF-8", WHOLE.encode().replace(b'"n"', b'"\xff"'), BYTES),
    line("NUL byte", WHOLE.encode().replace(b'"n"', b'"\0"'), NUL),
    line("a tab inside text", WHOLE.replace('"n"', '"a\tb"'), JSON),
    line("BOM within", b"\xef\xbb\xbf" + WHOLE.encode(), kept()),
    line("white space around", f"  {WHOLE}\t", kept()),
    line("blank line", " \t"),
    line(
        "half of a pair", WHOLE.replace('"n"', r'"\ud800"'), "note holds half of a surrogate pair"
    ),
    line("a whole pair", WHOLE.replace('"n"', r'"\ud83d\ude00"'), kept(note="😀")),
    line("NaN", WHOLE.replace(": 3,", ": NaN,"), FINITE),
    line("infinity", WHOLE.replace(": 3,", ": -Infinity,"), FINITE),
    line("NaN for a text", WHOLE.replace('"n"', "NaN"), "note is not finite"),
    line("beyond float64", WHOLE.replace(": 3,", ": 1e999,"), FINITE),
    line("id absent", WHOLE.replace("user_id", "user"), "user_id is empty"),
    jsonl("id null", "item_id is empty", item_id=None),
    jsonl("id empty", "user_id is empty", user_id=""),
    jsonl("id blank", "user_id is blank", user_id=" \n"),
    jsonl("id with NUL", "user_id holds a NUL character", user_id="a\0"),
    jsonl("id with a fraction", FRACTION, user_id=1.5),
    jsonl("id as float", FRACTION, user_id=1.0),
    jsonl("id Boolean", FRACTION, user_id=True),
    jsonl("id object", "user_id is a JSON object", user_id={"id": 1}),
    jsonl(
        "id unknown", "item_id is not in the items table, or was set aside there", item_id="i404"
    ),
    jsonl("id integer beyond 2^53", kept(str(2**53 + 1)), user_id=2**53 + 1),
    jsonl("id integer beyond 2^64", kept(str(2**70)), user_id=2**70),
    jsonl("id with a line end", kept("a\nb"), user_id="a\nb"),
    jsonl("rating text", NUMBER, rating="good"),
    jsonl("rating list", "rating is a JSON list", rating=[3]),
    jsonl("rating below", "rating is below 1", rating=-3),
    jsonl("rating as text", kept(), rating=" 3 "),
    jsonl("rating null", kept(rating=None), rating=None),
    jsonl("time missing", "timestamp is missing", time=None),
    jsonl("time Boolean", "timestamp is not a time", time=True),
    jsonl("time negative", NEGATIVE, time=-0.5),
    jsonl("time in the future", FUTURE, time=1893456000),
    jsonl("time as text", kept(), time="2001-09-09T01:46:40Z"),
    jsonl("note nested", "note is a JSON object", note={"a": {"b": 1}}),
    jsonl("note of a list", "note is a JSON list", note=["a"]),
    line(
        "note with a key twice inside",
        WHOLE.replace('"n"', '{"a": 1, "a": 2}'),
        "note has a JSON key twice",
    ),
    jsonl("note of a megabyte", kept(note=MEGABYTE), note=MEGABYTE),
    jsonl("note Boolean", kept(note="true"), note=True),
    jsonl("further keys", kept(), more={"deep": [1]}),
]

FORMATS = {"csv": (CSV, HEADER + b"\n"), "jsonl": (JSONL, b"")}
GOOD_LINE = {
    "csv": b"u0,i1,3,1000000000,fine",
    "jsonl": json.dumps(BASE | {"user_id": "u0", "note": "fine"}).encode(),
}
GOOD_QUOTED = {"csv": b'"u0","i1",3,1000000000,"fine"', "jsonl": GOOD_LINE["jsonl"]}
CASES = [
    pytest.param(ending, kind, id=f"{ending} {kind.name}")
    for ending, (kinds, _) in FORMATS.items()
    for kind in kinds
]


def test_the_catalogue_is_as_large_as_promised_and_names_each_kind_once():
    for kinds, least in ((CSV, 40), (JSONL, 25), (PARQUET, 15)):
        assert len({kind.name for kind in kinds}) == len(kinds) >= least


@pytest.mark.parametrize(("ending", "kind"), CASES)
def test_each_kind_costs_itself_only_and_has_its_true_reason(tmp_path, ending, kind):
    path = tmp_path / f"x.{ending}"
    good, quoted, start = GOOD_LINE[ending], GOOD_QUOTED[ending], FORMATS[ending][1]
    path.write_bytes(start + b"\n".join([good, good, kind.text, good, quoted, good, b""]))
    marked = read_marked(path)
    assert outcomes(marked) == [GOOD, GOOD, *kind.rows, GOOD, GOOD, GOOD]
    told = [text for text in marked.column("_row").to_pylist() if text is not None]
    assert len(told) == sum(isinstance(row, str) for row in kind.rows)
    assert all(text for text in told)


@pytest.mark.parametrize(("ending", "kind"), CASES)
def test_each_kind_is_the_same_on_a_last_line_without_an_end(tmp_path, ending, kind):
    path = tmp_path / f"x.{ending}"
    path.write_bytes(FORMATS[ending][1] + GOOD_LINE[ending] + b"\n" + kind.text)
    assert outcomes(read_marked(path)) == [GOOD, *kind.rows]


QUALITY = parse_config(
    {
        "data": {"interactions": {"path": "x", "timestamp": "time", "columns": COLUMNS}},
        "tasks": [{"name": "next", "kind": "retrieval"}],
    }
)


def assert_accounted(marked: pa.Table, expected: list[tuple[object, ...] | str]) -> None:
    """Check read = kept + rejected + duplicates, and the reasons as a multiset."""
    accepted = pc.is_null(marked.column("_reason"))
    valid = marked.filter(accepted).drop_columns(["_source", "_row", "_reason"])
    reasons = Counter(marked.filter(pc.invert(accepted)).column("_reason").to_pylist())
    assert reasons == Counter(row for row in expected if isinstance(row, str))
    good = [row for row in expected if not isinstance(row, str)]
    done = order_part(valid, QUALITY)
    tally = done.tally
    assert tally.kept == done.events.num_rows == len({row[:3] for row in good})
    assert tally.duplicates == len(good) - tally.kept
    assert marked.num_rows == tally.kept + tally.duplicates + reasons.total()


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_every_row_of_any_mix_is_accounted_for(tmp_path, monkeypatch, ending):
    kinds, start = FORMATS[ending]
    # A megabyte in chunks of a few bytes takes minutes; a quote alone closes one that is open.
    small = [kind for kind in kinds if len(kind.text) < 10_000 and kind.text != b'"']
    lines = st.sampled_from([*small, Kind("good", GOOD_LINE[ending], [GOOD])])
    ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
    path = tmp_path / f"x.{ending}"

    @settings(max_examples=150)
    @given(
        rows=st.lists(st.tuples(lines, ends), max_size=30),
        size=st.sampled_from([7, 64, 1000, 1 << 20]),
        mark=st.booleans(),
        closed=st.booleans(),
    )
    def check(rows, size, mark, closed):
        text = start + GOOD_LINE[ending] + b"\n" + b"".join(kind.text + end for kind, end in rows)
        if rows and not closed:
            text = text.removesuffix(rows[-1][1])
        path.write_bytes((b"\xef\xbb\xbf" if mark else b"") + text)
        monkeypatch.setattr(readers, "CHUNK_BYTES", size)
        monkeypatch.setattr(readers, "ROWS_PER_BATCH", 5)
        expected = [GOOD, *(row for kind, _ in rows for row in kind.rows)]
        marked = read_marked(path)
        assert outcomes(marked) == expected
        assert_accounted(marked, expected)

    check()


# ---- Parquet ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Column:
    """What one column of a Parquet file may hold: its cells, and what becomes of each."""

    name: str
    column: str
    cells: pa.Array
    values: list[object]


class Reason(str):
    """Why a cell costs its row, told apart from text that is kept."""

    __slots__ = ()


def bad_utf8() -> pa.Array:
    """Make text of which the second cell is one byte that is no UTF-8, as sloppy writers do."""
    offsets, data = struct.pack("<3i", 0, 2, 3), b"u1\xff"
    return pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(offsets), pa.py_buffer(data)])


def whole(problem: str, column: str, cells: pa.Array) -> Column:
    """Give a column of a type that no row can be read from."""
    kind = str(cells.type).split("<")[0]
    values: list[object] = [Reason(f"{column} is {kind}, expected {problem}")] * len(cells)
    return Column(f"{column} {kind}", column, cells, values)


ID, ONE = "text or a whole number", "one value"
MOMENT = datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC)

PARQUET = [
    Column("text", "user_id", pa.array(["u1", "用户"]), ["u1", "用户"]),
    Column(
        "ids of nobody",
        "user_id",
        pa.array(["", " ", None, "a\0"]),
        [
            *(Reason("user_id is empty"), Reason("user_id is blank"), Reason("user_id is empty")),
            Reason("user_id holds a NUL character"),
        ],
    ),
    Column("wide text", "user_id", pa.array(["u1"], pa.large_string()), ["u1"]),
    Column("text by code", "user_id", pa.array(["u1", "u2"]).dictionary_encode(), ["u1", "u2"]),
    Column("text bad", "user_id", bad_utf8(), ["u1", Reason("user_id is not UTF-8 text")]),
    Column(
        "bytes",
        "user_id",
        pa.array([b"u1", b"\xff"]),
        ["u1", Reason("user_id is not UTF-8 text")],
    ),
    Column("integers", "user_id", pa.array([2**53 + 1, -1], pa.int64()), [str(2**53 + 1), "-1"]),
    Column("unsigned", "user_id", pa.array([2**64 - 1], pa.uint64()), [str(2**64 - 1)]),
    Column(
        "decimals",
        "user_id",
        pa.array([Decimal(10**30)], pa.decimal128(38, 0)),
        [str(10**30)],
    ),
    whole(ID, "user_id", pa.array([1.0, 2.5])),
    whole(ID, "user_id", pa.array([True])),
    whole(ID, "user_id", pa.array([["u1"]])),
    whole(ID, "user_id", pa.array([{"id": "u1"}])),
    whole(ID, "user_id", pa.array([MOMENT], pa.timestamp("us"))),
    whole(ID, "user_id", pa.array([b"0123"], pa.binary(4))),
    Column("no type", "user_id", pa.nulls(2), [Reason("user_id is empty")] * 2),
    Column(
        "unknown",
        "item_id",
        pa.array(["i1", "i404"]),
        ["i1", Reason("item_id is not in the items table, or was set aside there")],
    ),
    Column("unknown integers", "item_id", pa.array([2**63 - 1]), [str(2**63 - 1)]),
    Column("seconds", "time", pa.array([10**9], pa.timestamp("s")), [T]),
    Column("milliseconds", "time", pa.array([10**12 + 500], pa.timestamp("ms")), [T + 0.5]),
    Column("nanoseconds", "time", pa.array([10**18], pa.timestamp("ns", "UTC")), [T]),
    Column("dates", "time", pa.array([0, 1], pa.date32()), [0.0, 86400.0]),
    Column("integers in time", "time", pa.array([10**9, 10**12]), [T, Reason(FUTURE)]),
    Column("text in time", "time", pa.array(["2001-09-09T01:46:40Z"]), [T]),
    Column(
        "overflowing times",
        "time",
        pa.array([2**62, -(2**62), 10**12], pa.timestamp("ms")),
        [Reason(FUTURE), Reason(NEGATIVE), T],
    ),
    Column("overflowing days", "time", pa.array([2**30], pa.date32()), [Reason(FUTURE)]),
    Column(
        "times that are no number",
        "time",
        pa.array([float("nan"), None]),
        [Reason("timestamp is not finite"), Reason("timestamp is missing")],
    ),
    Column("no times", "time", pa.nulls(1), [Reason("timestamp is missing")]),
    Column(
        "Booleans in time", "time", pa.array([True]), [Reason("timestamp is bool, expected a time")]
    ),
    Column(
        "durations",
        "time",
        pa.array([5], pa.duration("s")),
        [Reason("timestamp is duration[s], expected a time")],
    ),
    Column(
        "numbers",
        "rating",
        pa.array([3.5, float("nan"), float("inf"), None, 9.0]),
        [3.5, Reason(FINITE), Reason(FINITE), None, Reason("rating is above 5")],
    ),
    Column("numbers as text", "rating", pa.array(["3", "good"]), [3.0, Reason(NUMBER)]),
    Column("small floats", "rating", pa.array([2.5], pa.float16()), [2.5]),
    Column("decimals in rating", "rating", pa.array([Decimal("2.50")]), [2.5]),
    Column("Booleans in rating", "rating", pa.array([True]), [1.0]),
    whole("a number", "rating", pa.array([{"stars": 3}])),
    whole("a number", "rating", pa.array([[3.0]])),
    whole("a number", "rating", pa.array([MOMENT], pa.timestamp("us"))),
    Column("whole floats", "note", pa.array([3.0, None]), ["3", None]),
    Column(
        "floats that are none",
        "note",
        pa.array([float("nan")]),
        [Reason("note is not finite")],
    ),
    Column("dictionary of integers", "note", pa.array([7, 8]).dictionary_encode(), ["7", "8"]),
    Column("times in note", "note", pa.array([0], pa.date32()), ["1970-01-01"]),
    whole(ONE, "note", pa.array([["a", "b"]])),
    whole(ONE, "note", pa.array([{"a": {"b": 1}}])),
    whole(ONE, "note", pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))),
]

FINE = {
    "user_id": (pa.array(["u0"]), ["u0"]),
    "item_id": (pa.array(["i1"]), ["i1"]),
    "time": (pa.array([T]), [T]),
    "rating": (pa.array([3.0]), [3.0]),
    "note": (pa.array(["fine"]), ["fine"]),
}


def write_parquet(path: Path, chosen: list[Column], *, group: int = 1000) -> list[Any]:
    """Write each cell of each chosen column once at least; give what should become of the rows."""
    cells = FINE | {c.column: (c.cells, c.values) for c in chosen}
    rows = max(len(array) for array, _ in cells.values())
    table = pa.table({n: a.take([k % len(a) for k in range(rows)]) for n, (a, _) in cells.items()})
    pq.write_table(table, path, row_group_size=group)
    order = ["user_id", "item_id", "time", "rating", "note"]
    expected: list[Any] = []
    for k in range(rows):
        values = [cells[name][1][k % len(cells[name][1])] for name in order]
        reasons = [value for value in values if isinstance(value, Reason)]
        # What a cell says of itself comes before what the items table says of it.
        reasons.sort(key=lambda reason: "items table" in reason)
        expected.append(str(reasons[0]) if reasons else tuple(values))
    return expected


@pytest.mark.parametrize("kind", PARQUET, ids=lambda kind: f"{kind.column} {kind.name}")
def test_each_kind_of_parquet_column_costs_its_cells_only(tmp_path, kind):
    expected = write_parquet(tmp_path / "x.parquet", [kind])
    marked = read_marked(tmp_path / "x.parquet")
    assert outcomes(marked) == expected
    told = [json.loads(text) for text in marked.column("_row").to_pylist() if text is not None]
    assert all(row.keys() == FINE.keys() for row in told)


def test_every_row_of_any_mix_of_parquet_columns_is_accounted_for(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "ROWS_PER_BATCH", 2)

    @settings(max_examples=150)
    @given(st.lists(st.sampled_from(PARQUET), unique_by=lambda c: c.column), st.integers(1, 4))
    def check(chosen, group):
        expected = write_parquet(tmp_path / "x.parquet", chosen, group=group)
        marked = read_marked(tmp_path / "x.parquet")
        assert outcomes(marked) == expected
        assert_accounted(marked, expected)

    check()


# ---- through `prepare` --------------------------------------------------------------------------


def write_all(folder: Path, ending: str) -> tuple[str, Counter[Any]]:
    """Write every kind of damage, each before a good row; give the path and what is expected.

    A Parquet column has one type, so there each kind has a file of its own in a folder.
    """
    if ending == "parquet":
        (folder / "events").mkdir()
        expected = [
            row
            for n, kind in enumerate(PARQUET)
            for row in write_parquet(folder / "events" / f"{n:02d}.parquet", [kind])
        ]
        return "events", Counter(expected)
    kinds, start = FORMATS[ending]
    lines = [line for kind in kinds for line in (kind.text, GOOD_LINE[ending])]
    (folder / f"events.{ending}").write_bytes(start + b"\n".join(lines))
    return f"events.{ending}", Counter([row for kind in kinds for row in (*kind.rows, GOOD)])


@pytest.mark.ray
@pytest.mark.usefixtures("ray_local")
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_prepare_accounts_for_every_kind_at_once(tmp_path, ending):
    path, expected = write_all(tmp_path, ending)
    (tmp_path / "items.csv").write_text("item_id\n" + "\n".join(ITEMS))
    (tmp_path / "_SUCCESS").touch()
    interactions = {"path": path, "timestamp": "time", "latest_time": LATEST, "columns": COLUMNS}
    tree = {
        "data": {
            "root": str(tmp_path),
            "interactions": interactions,
            "items": {"path": "items.csv"},
            "quality": {"max_rejected_fraction": 1.0},
        },
        "tasks": [{"name": "next", "kind": "retrieval"}],
    }
    pipeline.prepare(parse_config(tree), path=str(tmp_path / "out"), key="key")
    reasons = Counter({row: n for row, n in expected.items() if isinstance(row, str)})
    good = [row for row in expected.elements() if not isinstance(row, str)]
    events = {row[:3] for row in good}
    report = json.loads((tmp_path / "out" / "report.json").read_text())["tables"]["interactions"]
    assert report["reasons"] == reasons
    assert report["read"] == expected.total()
    assert (report["kept"], report["rejected"]) == (len(events), reasons.total())
    assert report["duplicates"] == len(good) - len(events)
    rejected = pq.read_table(tmp_path / "out" / "rejected").to_pylist()
    assert Counter(row["reason"] for row in rejected) == reasons
    assert all(row["table"] == "interactions" and row["row"] for row in rejected)
    assert all(path in row["source"] for row in rejected)
    stay = pq.read_table(tmp_path / "out" / "interactions").to_pylist()
    assert {(row["user_id"], row["item_id"], row["timestamp"]) for row in stay} == events
