"""Reading a dataset artifact back, from files written by hand."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec.data.dataset import history_files, read_histories, read_table
from mtrec.errors import DataError


def write_part(dataset: Path, number: int, users: dict[str, list[int]]) -> None:
    folder = dataset / "histories"
    folder.mkdir(parents=True, exist_ok=True)
    items = list(users.values())
    table = pa.table(
        {
            "user_id": list(users),
            "item_index": pa.array(items, pa.list_(pa.int32())),
            "timestamp": pa.array([[0.0] * len(x) for x in items], pa.list_(pa.float64())),
            "split": pa.array([[0] * len(x) for x in items], pa.list_(pa.int8())),
        }
    )
    pq.write_table(table, folder / f"part-{number:05d}.parquet")


def test_the_users_of_all_parts_come_in_the_order_of_the_parts(tmp_path: Path) -> None:
    write_part(tmp_path, 10, {"w": [7]})
    write_part(tmp_path, 2, {"u": [2, 3], "v": []})
    (tmp_path / "histories" / "notes.txt").write_text("not a part")

    assert [Path(path).name for path in history_files(str(tmp_path))] == [
        "part-00002.parquet",
        "part-00010.parquet",
    ]
    histories = read_histories(str(tmp_path))
    assert histories.user_ids.tolist() == ["u", "v", "w"]
    assert histories.offsets.tolist() == [0, 2, 2, 3]
    assert histories.item_index.tolist() == [2, 3, 7]


def test_a_dataset_without_users_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no users") as caught:
        read_histories(str(tmp_path))
    assert "dataset/rejected" in str(caught.value)


def test_a_table_is_read_from_a_path_and_a_uri(tmp_path: Path) -> None:
    table = pa.table({"item_id": ["p1", "毛衣"]})
    pq.write_table(table, tmp_path / "items.parquet")

    assert read_table(str(tmp_path / "items.parquet")).equals(table)
    assert read_table(f"file://{tmp_path}/items.parquet").equals(table)
