"""Whole rows: both sides of a checked table, and how a row that is set aside is told."""

import json

import pyarrow as pa
from checked import events, outcome

from mtrec.data.contract import check, source_columns
from mtrec.dataconfig import InteractionsTable


def test_a_rejected_row_without_text_is_told_as_json_with_the_sources_names():
    config = InteractionsTable(path="x", user_id="who")
    rejected = check(events(user_id=pa.array([None], pa.string())), config).rejected
    assert json.loads(rejected.column("_row")[0].as_py()) == {"who": None, "item_id": "i"}


def test_a_readers_complaint_comes_first():
    table = events(user_id=["", "u"]).append_column(
        "_reason", pa.array(["row is not JSON", None], pa.string())
    )
    assert outcome(table)[1] == ["row is not JSON"]


def test_source_columns_map_our_names_to_the_files():
    config = InteractionsTable(
        path="x",
        user_id="user_id:token",
        timestamp="t",
        columns={"rating": {"kind": "number", "source": "stars"}},
    )
    assert source_columns(config) == {
        "user_id": "user_id:token",
        "item_id": "item_id",
        "timestamp": "t",
        "rating": "stars",
    }
