"""Values of every kind: what is read, what is set aside, and the reason that is told."""

from datetime import UTC, datetime

import pyarrow as pa
import pytest
from checked import events, items, outcome

RATING = {"columns": {"rating": {"kind": "number", "min": 1, "max": 5, "missing": "keep"}}}


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ("4", 4.0),
        (" 4.5 ", 4.5),
        ("+3", 3.0),
        ("1e0", 1.0),
        (".5e1", 5.0),
        ("", None),
        (None, None),
    ],
)
def test_numbers_are_read_and_empty_cells_are_missing(cell, value):
    valid, reasons = outcome(events(rating=pa.array([cell], pa.string())), **RATING)
    assert reasons == []
    assert valid.column("rating").to_pylist() == [value]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("four", "rating is not a number"),
        ("4,5", "rating is not a number"),
        ("0x4", "rating is not a number"),
        ("1_0", "rating is not a number"),
        ("nan", "rating is not finite"),
        ("-Infinity", "rating is not finite"),
        ("1e999", "rating is not finite"),
        ("0.5", "rating is below 1"),
        ("6", "rating is above 5"),
    ],
)
def test_bad_numbers_are_set_aside_with_their_reason(cell, reason):
    assert outcome(events(rating=[cell]), **RATING)[1] == [reason]


def test_native_numbers_pass_and_not_a_number_is_not_missing():
    table = events(rating=pa.array([4.0, float("nan"), None], pa.float64()))
    valid, reasons = outcome(table, **RATING)
    assert valid.column("rating").to_pylist() == [4.0, None]
    assert reasons == ["rating is not finite"]


def test_a_missing_label_can_be_set_aside():
    config = {"columns": {"rating": {"kind": "number", "missing": "reject"}}}
    assert outcome(events(rating=["", "3"]), **config)[1] == ["rating is missing"]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("", "user_id is empty"),
        (None, "user_id is empty"),
        (" \t", "user_id is blank"),
        ("a\0b", "user_id holds a NUL character"),
        ("x" * 1025, "user_id is longer than 1024 bytes"),
    ],
)
def test_ids_that_name_nobody_are_set_aside(cell, reason):
    assert outcome(events(user_id=pa.array([cell], pa.string())))[1] == [reason]


def test_large_integer_ids_survive_digit_by_digit():
    ids = pa.array([2**53 + 1, 2**63 - 1, -5], pa.int64())
    valid, _ = outcome(events(user_id=ids))
    assert valid.column("user_id").to_pylist() == ["9007199254740993", "9223372036854775807", "-5"]
    assert valid.column("_integer_user_id").to_pylist() == [True] * 3


def test_float_ids_are_refused_because_they_may_have_lost_digits():
    assert outcome(events(user_id=pa.array([1.0])))[1] == [
        "user_id is double, expected text or a whole number"
    ]


def test_ids_declared_integer_are_written_in_one_way():
    table = events(user_id=["7", "007", "+7", " 7", "-0", "7.0", str(2**63)], item_id=["1"] * 7)
    valid, reasons = outcome(table, id_type="integer")
    assert valid.column("user_id").to_pylist() == ["7", "7", "7", "7", "0"]
    assert reasons == [
        "user_id is not a whole number",
        "user_id is beyond 64 bits; set id_type: string",
    ]


def test_ids_of_text_stay_byte_for_byte():
    valid, _ = outcome(events(user_id=[" 用户 1 ", "007"]))
    assert valid.column("user_id").to_pylist() == [" 用户 1 ", "007"]


@pytest.mark.parametrize(
    ("cell", "seconds"),
    [
        ("881250949", 881250949.0),
        ("0.5", 0.5),
        ("1997-12-04T15:55:49Z", 881250949.0),
        ("1997-12-04 15:55:49", 881250949.0),
        ("1997-12-04T16:55:49+01:00", 881250949.0),
    ],
)
def test_times_are_seconds_or_iso_8601(cell, seconds):
    valid, reasons = outcome(events(timestamp=[cell]), timestamp="timestamp")
    assert reasons == []
    assert valid.column("timestamp").to_pylist() == [seconds]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("", "timestamp is missing"),
        ("-1", "timestamp is negative"),
        ("yesterday", "timestamp is not a time"),
        ("nan", "timestamp is not finite"),
        ("881250949000", "timestamp is after the year 2099 (expected: seconds since 1970 or"),
        ("1" + "0" * 400, "timestamp is not finite"),
    ],
)
def test_impossible_times_are_set_aside(cell, reason):
    (found,) = outcome(events(timestamp=[cell]), timestamp="timestamp")[1]
    assert found.startswith(reason)


@pytest.mark.parametrize(
    ("bound", "cell", "reasons"),
    [
        (None, "1893456000", []),
        ("2026-01-01", "1767225600", []),
        ("2026-01-01", "1767225601", ["2026-01-01T00:00:00+00:00"]),
        ("2026-01-01T00:00:00+08:00", "1767225600", ["2026-01-01T00:00:00+08:00"]),
        (1767225600, "2026-01-01T00:00:00.001Z", ["2026-01-01T00:00:00+00:00"]),
    ],
)
def test_times_after_the_latest_are_in_the_future(bound, cell, reasons):
    found = outcome(events(timestamp=[cell]), timestamp="timestamp", latest_time=bound)[1]
    assert found == [f"timestamp is in the future: after latest_time, {r}" for r in reasons]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_arrow_times_become_seconds(unit):
    times = pa.array([datetime(1997, 12, 4, 15, 55, 49, tzinfo=UTC)], pa.timestamp(unit, "UTC"))
    valid, _ = outcome(events(timestamp=times), timestamp="timestamp")
    assert valid.column("timestamp").to_pylist() == [881250949.0]


def test_times_in_bytes_are_read_and_what_does_not_decode_is_set_aside():
    times = pa.array([b"2024-01-01T00:00:00", b"\xff", b"1704067201", None], pa.binary())
    valid, reasons = outcome(events(timestamp=times), timestamp="timestamp")
    assert valid.column("timestamp").to_pylist() == [1704067200.0, 1704067201.0]
    assert reasons == ["timestamp is not UTF-8 text", "timestamp is missing"]


def test_a_split_that_is_none_is_set_aside():
    table = events(split=["train", "valid", "test", ""])
    valid, reasons = outcome(table, split="split")
    assert valid.column("split").to_pylist() == ["train", "test"]
    assert reasons == ["split is not train, validation or test"] * 2


def test_categories_are_split_trimmed_and_never_empty():
    cells = pa.array(["Air | Drama", "", None, "|Solo|"])
    checked = items({"kind": "categories"}, cells)
    assert checked.valid.column("genres").to_pylist() == [["Air", "Drama"], [], [], ["Solo"]]


def test_categories_in_bytes_that_do_not_decode_are_set_aside():
    checked = items({"kind": "categories"}, pa.array([b"a|b", b"\xff|c", None], pa.binary()))
    assert checked.valid.column("genres").to_pylist() == [["a", "b"], []]
    assert checked.rejected.column("_reason").to_pylist() == ["genres is not UTF-8 text"]


def test_lists_of_categories_need_no_separator():
    cells = pa.array([["a|b", "c"], None, []], pa.list_(pa.string()))
    checked = items({"kind": "categories"}, cells)
    assert checked.valid.column("genres").to_pylist() == [["a|b", "c"], [], []]


def test_a_list_of_texts_is_one_text_joined_as_in_templates():
    cells = pa.array(
        [["iPhone 13", "限时优惠"], ["", None], None], pa.large_list(pa.large_string())
    )
    checked = items({"kind": "text"}, cells)
    assert checked.valid.column("genres").to_pylist() == ["iPhone 13, 限时优惠", None, None]


@pytest.mark.parametrize(
    "kind",
    [pa.large_list(pa.large_string()), pa.list_(pa.string_view()), pa.list_(pa.string(), 2)],
    ids=str,
)
def test_lists_are_read_from_whichever_writer(kind):
    checked = items({"kind": "categories"}, pa.array([["a", "b"], None], kind))
    assert checked.valid.column("genres").to_pylist() == [["a", "b"], []]


def test_a_nested_column_where_one_value_is_expected_costs_its_rows_only():
    checked = items({"kind": "category"}, pa.array([None, [1]], pa.list_(pa.int64())))
    assert checked.valid.column("genres").to_pylist() == [None]
    assert checked.rejected.column("_reason").to_pylist() == ["genres is list, expected one value"]


def test_whole_numbers_in_a_float_column_are_categories_without_a_point():
    checked = items({"kind": "category"}, pa.array([3.0, None]))
    assert checked.valid.column("genres").to_pylist() == ["3", None]


def test_bytes_that_are_no_text_are_set_aside_one_by_one():
    checked = items({"kind": "text"}, pa.array(["好".encode(), b"\xff"], pa.binary()))
    assert checked.valid.column("genres").to_pylist() == ["好"]
    assert checked.rejected.column("_reason").to_pylist() == ["genres is not UTF-8 text"]
