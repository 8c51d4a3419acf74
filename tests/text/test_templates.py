import pyarrow as pa
import pytest

from mtrec.text.templates import render_rows, render_template

MOVIE = "{title} ({year}) | {genres}"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"title": "Up", "year": "2009", "genres": ["Air", "Drama"]}, "Up (2009) | Air, Drama"),
        ({"title": "Up", "year": None, "genres": ["Air"]}, "Up | Air"),
        ({"title": "Up", "year": "2009", "genres": []}, "Up (2009)"),
        ({"title": "Up"}, "Up"),
        ({"title": None, "year": "2009", "genres": ["Air"]}, "(2009) | Air"),
        ({"title": "", "year": None, "genres": ["Air"]}, "Air"),
        ({"title": None, "year": None, "genres": None}, ""),
    ],
)
def test_missing_values_take_their_brackets_and_separators_along(row, text):
    assert render_template(MOVIE, row) == text


def test_brackets_and_bars_of_the_text_itself_stay():
    row = {"title": "f() | g", "year": None, "genres": None}
    assert render_template(MOVIE, row) == "f() | g"


@pytest.mark.parametrize(
    ("value", "text"), [(30.0, "30"), (0.5, "0.5"), (10000000.0, "10000000"), (float("nan"), "")]
)
def test_numbers_are_written_plainly(value, text):
    assert render_template("{age}", {"age": value}) == text


def test_any_language_survives_and_white_space_is_collapsed():
    row = {"title": "羽绒服 \n 冬季", "kind": "服装"}
    assert render_template("{kind}  {title}", row) == "服装 羽绒服 冬季"


def test_braces_inside_a_value_are_not_filled_again():
    assert render_template("{a} {b}", {"a": "{b}", "b": "x"}) == "{b} x"


def test_rows_of_a_table_are_rendered_each_and_nothing_is_null() -> None:
    table = pa.table({"title": ["Up", None], "genres": [["Air"], []]})

    assert render_rows(table, "{title} | {genres}").to_pylist() == ["Up | Air", None]
    assert render_rows(table, None).to_pylist() == [None, None]
