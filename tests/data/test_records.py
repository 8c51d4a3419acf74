import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrec.data.records import Splitter

HEADER = ("a", "b")
WANTED = {"b": 1, "a": 0}


def parse(text, *, delimiter=",", last=True):
    """Split a text: its good rows, the reasons of the others, and the lines used."""
    splitter = Splitter(delimiter)
    records, used = splitter.split(text.splitlines(keepends=True), {}, last=last)
    columns, reasons = splitter.columns(records, HEADER, WANTED)
    pairs = zip(columns["a"].to_pylist(), columns["b"].to_pylist(), strict=True)
    rows = [pair for pair, reason in zip(pairs, reasons, strict=True) if reason is None]
    return rows, [reason for reason in reasons if reason], used


@pytest.mark.parametrize("delimiter", [",", "\t", "|", ";", "^", "]"])
def test_any_character_may_stand_between_fields(delimiter):
    text = f'x{delimiter}y\n"p{delimiter}q"{delimiter}"r""s"\n'
    assert parse(text, delimiter=delimiter)[0] == [("x", "y"), (f"p{delimiter}q", 'r"s')]


def test_empty_fields_are_fields():
    assert parse(',\n"",\n,""\n')[0] == [("", "")] * 3


def test_rows_stay_in_the_order_of_the_file_with_and_without_quotes():
    rows, reasons, _ = parse('1,x\n"2",x\nbroken\n3,"x"\n4,x\n')
    assert [a for a, _ in rows] == ["1", "2", "3", "4"]
    assert reasons == ["wrong number of fields, expected 2"]


def test_an_open_record_waits_for_its_lines():
    assert parse('1,x\n"2\n', last=False)[::2] == ([("1", "x")], 1)
    assert parse('1,x\n"2\n",y\n', last=False)[0] == [("1", "x"), ("2\n", "y")]


def test_a_reason_known_before_covers_the_whole_quoted_record():
    splitter = Splitter(",")
    records, used = splitter.split(['"1\n', 'bad",x\n', "2,y\n"], {1: "broken"}, last=True)
    assert records.reasons == {0: "broken"}
    assert used == 3
    assert splitter.columns(records, HEADER, WANTED)[0]["a"].to_pylist() == [None, "2"]


@pytest.mark.parametrize(
    ("text", "rows", "reason"),
    [
        ('"a,b\nc,d\ne,f"\n', [("c", "d"), ("e", 'f"')], "row has a quote that is not closed"),
        ('"a\nb"\n', [], "wrong number of fields, expected 2"),
        ('"a\nb",c\n', [("a\nb", "c")], None),
        ('a,"b\nc,d\n"\n', [("a", "b\nc,d\n")], None),
    ],
    ids=["rows inside", "one record", "a line end in an id", "rows inside a text"],
)
def test_a_record_that_has_rows_inside_and_does_not_fit_was_never_closed(text, rows, reason):
    splitter = Splitter(",", num_fields=2, one_line=[0])
    records, _ = splitter.split(text.splitlines(keepends=True), {}, last=True)
    columns, reasons = splitter.columns(records, HEADER, WANTED)
    pairs = zip(columns["a"].to_pylist(), columns["b"].to_pylist(), strict=True)
    assert [pair for pair, found in zip(pairs, reasons, strict=True) if found is None] == rows
    assert [found for found in reasons if found] == ([reason] if reason else [])


@pytest.mark.parametrize(
    ("inner", "kept"),
    [("2026-11-24T00:00:00Z,x", False), (" -3.5e2 ,x", False), ("well,x", True), ("3,x,y", True)],
)
def test_a_record_that_fits_was_never_closed_if_a_line_inside_has_figures_in_place(inner, kept):
    splitter = Splitter(",", num_fields=2, figures=[0])
    lines = ['1,"open\n', f"{inner}\n", '2,x"\n']
    records, _ = splitter.split(lines, {}, last=True)
    first = "".join(lines).strip() if kept else '1,"open'
    assert records.texts[0] == first
    assert list(records.reasons.values()) == (
        [] if kept else ["row has a quote that is not closed"]
    )


@given(st.text(st.sampled_from('ab,"\n\r'), max_size=30))
def test_every_line_that_is_not_blank_is_part_of_some_record(text):
    lines = text.splitlines(keepends=True)
    records, used = Splitter(",").split(lines, {}, last=True)
    assert used == len(lines)
    told = "".join(records.texts).replace("\n", "").replace("\r", "")
    assert told == text.replace("\n", "").replace("\r", "")
