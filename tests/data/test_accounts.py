"""The accounts of a run: counts that add up, rejects in files, and the stop when there are many."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec.configfile import parse_config
from mtrec.data import accounts as module
from mtrec.data.accounts import Accounts
from mtrec.data.readers import PLACES_PER_FILE
from mtrec.data.splits import IN_GAP
from mtrec.errors import DataError


def make(folder: Path, **quality: float) -> Accounts:
    price = {"kind": "number", "outliers": {"method": "iqr", "action": "clip"}}
    size = {"kind": "number", "outliers": {"method": "zscore", "action": "keep"}}
    tree: dict[str, Any] = {
        "data": {
            "interactions": {"path": "log.csv"},
            "items": {"path": "items.csv", "columns": {"price": price, "size": size}},
            "quality": quality,
        },
        "tasks": [{"name": "next", "kind": "retrieval"}],
    }
    files = {"interactions": {0: "a.csv", 1: "b.csv"}}
    return Accounts(parse_config(tree), str(folder), files)


def rejected(rows: list[tuple[str, str, str]]) -> pa.Table:
    source, row, reason = zip(*rows, strict=True)
    return pa.table({"_source": list(source), "_row": list(row), "_reason": list(reason)})


def test_counts_that_do_not_add_up_stop_the_run(tmp_path: Path) -> None:
    accounts = make(tmp_path)
    accounts.count("items", read=5, kept=3, duplicates=1, reasons=Counter({"late": 1}))
    assert accounts.report["tables"]["items"]["rejected"] == 1
    with pytest.raises(AssertionError, match="users: read 5 rows"):
        accounts.count("users", read=5, kept=3, duplicates=1, reasons=Counter())


def test_what_is_set_aside_after_reading_counts_against_the_limit_but_not_the_gap(
    tmp_path: Path,
) -> None:
    accounts = make(tmp_path, max_rejected_fraction=0.2)
    gap = Counter({IN_GAP: 7, "price is an outlier": 2})
    accounts.count("interactions", read=10, kept=1, duplicates=0, reasons=gap)
    many = Counter({"price is an outlier": 3})
    with pytest.raises(DataError, match=r"items: 3 of 10 .*\(30.0%\)") as caught:
        accounts.count("items", read=10, kept=7, duplicates=0, reasons=many)
    assert str(caught.value).splitlines()[1].strip() == "3  price is an outlier"


def test_rejects_are_written_in_files_of_bounded_size_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REJECTED_PER_FILE", 2)
    accounts = make(tmp_path)
    accounts.write_rejected(rejected([("a.csv", "1", "x"), ("a.csv", "2", "x")]), "items")
    accounts.write_rejected(rejected([("a.csv", str(n), "y") for n in range(3, 6)]), "items")
    accounts.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == [f"part-0000{n}.parquet" for n in range(3)]
    told = [row for file in files for row in pq.read_table(file).to_pylist()]
    assert [row["row"] for row in told] == ["1", "2", "3", "4", "5"]
    assert {row["table"] for row in told} == {"items"}


def test_without_rejects_there_is_one_empty_file(tmp_path: Path) -> None:
    make(tmp_path).close()
    assert pq.read_table(tmp_path / "part-00000.parquet").num_rows == 0


def test_the_place_of_a_row_tells_its_file(tmp_path: Path) -> None:
    accounts = make(tmp_path)
    places = pa.array([7, PLACES_PER_FILE + 2], pa.int64())
    aside = pa.table({"_place": places, "_row": ["p", "q"], "_reason": ["late", "late"]})
    accounts.write_set_aside(aside, "interactions")
    accounts.close()
    assert pq.read_table(tmp_path)["source"].to_pylist() == ["a.csv", "b.csv"]


def test_bounds_that_clip_are_kept_and_all_are_told(tmp_path: Path) -> None:
    accounts = make(tmp_path)
    accounts.count_outliers("items", "price", (1.0, 9.0), 3)
    accounts.count_outliers("items", "size", (2.0, float("inf")), 0)
    assert accounts.bounds == {"items": {"price": (1.0, 9.0)}}
    told = accounts.report["outliers"]["items"]
    assert told["price"] == {
        **{"method": "iqr", "action": "clip"},
        **{"low": 1.0, "high": 9.0, "found": 3},
    }
    assert told["size"]["low"] == 2.0 and told["size"]["high"] is None


def test_bounds_that_only_count_do_not_clip(tmp_path: Path) -> None:
    accounts = make(tmp_path)
    accounts.count_outliers("items", "size", (2.0, 3.0), 1)
    assert accounts.bounds == {}


def test_examples_are_read_only_if_too_many_rows_are_set_aside(tmp_path: Path) -> None:
    def unread() -> Iterator[pa.Table]:
        raise AssertionError("nobody asked")
        yield

    accounts = make(tmp_path, max_rejected_fraction=0.25)
    accounts.check_fraction("items", 8, Counter({"late": 2}), unread())
    batch = rejected([("a.csv", "x" * 500, "late"), ("b.csv", "y,z", "odd")])
    with pytest.raises(DataError, match=r"3 of 8 rows are set aside \(37.5%\)") as caught:
        accounts.check_fraction("items", 8, Counter({"late": 2, "odd": 1}), [batch])
    first, second = str(caught.value).splitlines()[1:3]
    assert "2  late; for example 'a.csv: xxx" in first and len(first) < 200
    assert "1  odd; for example 'b.csv: y,z'" in second
