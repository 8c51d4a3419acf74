import numpy as np
import pyarrow as pa
import pytest

from mtrec.catalogue import Catalogue
from mtrec.dataconfig import CategoriesColumn, Column, NumberColumn, TextColumn
from mtrec.errors import RequestError

COLUMNS: dict[str, Column] = {
    "title": TextColumn(kind="text"),
    "tags": CategoriesColumn(kind="categories"),
    "price": NumberColumn(kind="number"),
}


def catalogue(*, integer_ids: bool = False, ids: tuple[str, ...] = ("10", "7", "9")) -> Catalogue:
    table = pa.table(
        {
            "item_id": list(ids),
            "title": ["红色 Coat", "blue coat", None],
            "tags": [["warm"], [], ["Warm", "cheap"]],
            "price": [1.0, None, 3.5],
            "item_index": pa.array([2, 3, 4], pa.int32()),
        }
    )
    return Catalogue(table, COLUMNS, has_integer_ids=integer_ids)


def test_ties_follow_the_order_of_the_source_ids() -> None:
    assert catalogue().tie_rank.tolist() == [0, 1, 2, 3, 4]
    assert catalogue(integer_ids=True).tie_rank.tolist() == [0, 1, 4, 2, 3]


def test_ids_come_back_in_the_type_of_the_source() -> None:
    assert catalogue().source_id(2) == "10"
    assert catalogue(integer_ids=True).source_id(np.int32(2)) == 10


@pytest.mark.parametrize(
    ("words", "expected"),
    [("COAT", [2, 3]), ("warm", [2, 4]), ("红色", [2]), ("9", [4]), ("", [2, 3, 4]), ("a.*", [])],
)
def test_items_are_found_by_words_of_any_column(words: str, expected: list[int]) -> None:
    assert catalogue().find(words, 10) == expected


def test_search_stops_at_its_limit_in_the_order_of_ids() -> None:
    assert catalogue(integer_ids=True).find("", 2) == [3, 4]


def test_items_are_described_by_their_configured_columns() -> None:
    assert catalogue().describe([4, 2]) == [
        {"item_id": "9", "title": None, "tags": ["Warm", "cheap"], "price": 3.5},
        {"item_id": "10", "title": "红色 Coat", "tags": ["warm"], "price": 1.0},
    ]


def test_catalogue_without_columns_knows_its_ids() -> None:
    bare = Catalogue(pa.table({"item_id": ["a", "b"]}), {}, has_integer_ids=False)
    assert bare.describe([3]) == [{"item_id": "b"}]
    assert bare.find("a", 5) == [2]
    assert bare.filter.columns == []


def test_unknown_item_is_not_found() -> None:
    with pytest.raises(RequestError, match="catalogue of 3 items") as caught:
        catalogue().require("x" * 500, "item_id")
    assert (caught.value.status, caught.value.code) == (404, "unknown_item")
    assert len(str(caught.value)) < 200
