"""Marked rows: every record comes back, and what is asked of them does not depend on blocks."""

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from mtrec.configfile import parse_config
from mtrec.data import readers
from mtrec.data.marked import (
    PART,
    assign_parts,
    batches,
    collect,
    count_reasons,
    count_times,
    read_marked,
    rejected_rows,
)
from mtrec.dataconfig import InteractionsTable
from mtrec.errors import DataError

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]


def mark(folder: Path, files: dict[str, str]):
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    table = config_of(folder)
    return read_marked(readers.plan(table, "."), table, {}).materialize()


def config_of(folder: Path) -> InteractionsTable:
    tree = {
        "data": {"interactions": {"path": str(folder), "timestamp": "time"}},
        "tasks": [{"name": "next", "kind": "retrieval"}],
    }
    return parse_config(tree).data.interactions


HEAD = "user_id,item_id,time\n"


def test_every_row_comes_back_with_its_reason(tmp_path: Path) -> None:
    marked = mark(
        tmp_path / "log", {"a.csv": f"{HEAD}u,x,1\nu,,2\n", "b.csv": f"{HEAD}v,y,soon\nv,y,3\n"}
    )
    assert count_reasons(marked) == (2, {"item_id is empty": 1, "timestamp is not a time": 1})
    told = pa.concat_tables(rejected_rows(marked)).to_pylist()
    assert [row["_row"] for row in told] == ["u,,2", "v,y,soon"]
    assert count_times(marked).values.tolist() == [1.0, 3.0]


def test_parts_hold_whole_users_and_do_not_depend_on_files(tmp_path: Path) -> None:
    lines = [f"u{n % 200:03d},x,{n}\n" for n in range(2000)]
    one, parts = assign_parts(mark(tmp_path / "one", {"a.csv": HEAD + "".join(lines)}), 4)
    two, again = assign_parts(
        mark(
            tmp_path / "two",
            {"a.csv": HEAD + "".join(lines[::2]), "b.csv": HEAD + "".join(lines[1::2])},
        ),
        4,
    )
    assert 2 <= parts == again <= 4
    found = []
    for dataset in (one, two):
        rows = collect(dataset)
        assert rows is not None and rows.num_rows == 2000
        users = dict(zip(rows["user_id"].to_pylist(), rows[PART].to_pylist(), strict=True))
        pairs = set(zip(rows["user_id"].to_pylist(), rows[PART].to_pylist(), strict=True))
        assert len(pairs) == len(users) == 200
        # Ranges of users in their order.
        assert np.all(np.diff([users[user] for user in sorted(users)]) >= 0)
        found.append(users)
    assert found[0] == found[1]
    assert sum(batch.num_rows for batch in batches(one)) == 2000


def test_a_file_that_breaks_off_stops_the_run_and_is_named(tmp_path: Path) -> None:
    # Random ids: what is left of the file after compression is longer than what `plan` looks at.
    ids = np.random.default_rng(0).integers(0, 10**15, 600_000)
    whole = gzip.compress((HEAD + "".join(f"{n},x,1\n" for n in ids.tolist())).encode(), 1)
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) * 9 // 10])
    (tmp_path / "fine.csv").write_text(HEAD + "u,x,1\n")
    pieces = readers.plan(config_of(tmp_path), ".")
    with pytest.raises(DataError, match=r"cannot read .*cut\.csv\.gz as csv: Truncated"):
        count_reasons(read_marked(pieces, config_of(tmp_path), {}).materialize())
    (tmp_path / "cut.csv.gz").write_bytes(whole[:50])
    with pytest.raises(DataError, match=r"cannot read .*cut\.csv\.gz as csv: Truncated"):
        readers.plan(config_of(tmp_path), ".")
