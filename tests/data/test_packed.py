"""Packed parts: what a task packs, the next one and the driver read whole, in the parts' order."""

import dataclasses
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtrec.config import Config
from mtrec.configfile import parse_config
from mtrec.data.features import FeatureTransform
from mtrec.data.marked import PART
from mtrec.data.packed import limit_packed, order_group, read_tallies, write_packed
from mtrec.data.parts import PartTally, finish_part, limit_part, order_part

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_local")]


def config_of() -> Config:
    rating = {"kind": "number", "outliers": {"method": "iqr", "action": "reject"}}
    log = {"path": "x", "timestamp": "timestamp", "columns": {"rating": rating}}
    return parse_config(
        {
            "data": {"interactions": log, "quality": {"duplicate_key": "user_item"}},
            "tasks": [{"name": "next", "kind": "retrieval"}],
        }
    )


CONFIG = config_of()


def part_of(user: str, *ratings: float) -> pa.Table:
    """Make a part of one user, newest event first, with one duplicate."""
    rows = [
        {
            "user_id": user,
            "item_id": f"i{n}",
            "timestamp": float(-n),
            "rating": rating,
            "_place": n,
        }
        for n, rating in enumerate(ratings)
    ]
    return pa.Table.from_pylist([*rows, {**rows[-1], "_place": len(rows), "timestamp": -99.0}])


def pack(part: int, events: pa.Table) -> pa.Table:
    marked = events.append_column(PART, pa.array([part] * events.num_rows, pa.int32()))
    return order_group(marked, config=CONFIG, cuts=None)


PARTS = {0: part_of("a", 5.0, 1.0, 3.0, 4.0), 1: part_of("b", 2.0, 900.0, 4.0, 3.0)}
BOUNDS = {"rating": (0.0, 10.0)}


def same(ours: PartTally, other: PartTally) -> bool:
    """Tell whether two tallies say the same; of the summaries, by their moments."""
    names = {field.name for field in dataclasses.fields(PartTally)} - {"summaries"}
    plain = all(getattr(ours, name) == getattr(other, name) for name in names)
    return plain and ours.summaries["rating"].moments == other.summaries["rating"].moments


def test_the_driver_reads_tallies_in_the_order_of_the_parts() -> None:
    import ray.data

    packed = ray.data.from_arrow([pack(1, PARTS[1]), pack(0, PARTS[0])])
    tallies, set_aside = read_tallies(packed)
    expected = [order_part(PARTS[part], CONFIG, None) for part in (0, 1)]
    assert [tally.duplicates for tally in tallies] == [1, 1]
    assert all(same(ours, part.tally) for ours, part in zip(tallies, expected, strict=True))
    assert [table.num_rows for table in set_aside] == [0, 0]


def test_outliers_of_a_packed_part_are_treated_as_those_of_a_part() -> None:
    import ray.data

    packed = limit_packed(pack(1, PARTS[1]), config=CONFIG, bounds=BOUNDS)
    assert packed.num_rows == 1
    assert packed.column(PART).to_pylist() == [1]
    (tally,), (gone,) = read_tallies(ray.data.from_arrow(packed))
    ordered = order_part(PARTS[1], CONFIG, None)
    expected = limit_part(ordered.events, ordered.tally, CONFIG, BOUNDS)
    assert same(tally, expected.tally)
    assert tally.outliers == {"rating": 1}
    assert gone.equals(expected.rejected)
    assert gone["_place"].to_pylist() == [1]


def test_a_packed_part_is_written_under_its_number(tmp_path: Path) -> None:
    import ray

    items = pa.table({"item_id": ["i0", "i1", "i2", "i3"]})
    transform = FeatureTransform()
    told = write_packed(
        pack(7, PARTS[0]),
        shared=[ray.put((CONFIG, transform, items))],
        folder=str(tmp_path),
    )
    expected = finish_part(order_part(PARTS[0], CONFIG, None).events, CONFIG, transform, items)
    assert told.equals(expected.users)
    for name, table in (
        ("interactions", expected.interactions),
        ("histories", expected.histories),
    ):
        written = [path.name for path in (tmp_path / name).iterdir()]
        assert written == ["part-00007.parquet"]
        assert pq.read_table(tmp_path / name / written[0]).to_pylist() == table.to_pylist()
