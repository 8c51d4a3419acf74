"""Parts packed into one row each, and what Ray's tasks do with them.

A row of the Ray Data set holds a whole part (events, tally, set-aside rows) as bytes, so that no
block can cut it in two. The work itself is in `parts`; `pipeline` says what follows what.
"""

import pickle

import pyarrow as pa
import ray
import ray.data

from mtrec import storage
from mtrec.config import Config
from mtrec.data.clean import Bounds
from mtrec.data.dataset import write_table
from mtrec.data.features import FeatureTransform
from mtrec.data.marked import PART, collect
from mtrec.data.parts import OrderedPart, PartTally, finish_part, limit_part, order_part


def order_group(group: pa.Table, *, config: Config, cuts: tuple[float, float] | None) -> pa.Table:
    """Order the marked rows of one part, see `parts.order_part`, and pack it."""
    part = group.column(PART)[0].as_py()
    return _pack(part, order_part(group.drop_columns([PART]), config, cuts))


def limit_packed(packed: pa.Table, *, config: Config, bounds: dict[str, Bounds]) -> pa.Table:
    """Treat the outliers of one packed part, see `parts.limit_part`."""
    tally = pickle.loads(packed.column("tally")[0].as_py())
    part = packed.column(PART)[0].as_py()
    return _pack(part, limit_part(_read(packed.column("events")[0]), tally, config, bounds))


def write_packed(
    packed: pa.Table,
    *,
    shared: list["ray.ObjectRef[tuple[Config, FeatureTransform, pa.Table]]"],
    folder: str,
) -> pa.Table:
    """Finish one packed part, see `parts.finish_part`, and write its events and histories.

    Args:
        packed: one row.
        shared: one reference, in a list so that Ray does not fetch it beforehand.
        folder: of the dataset artifact.

    Returns:
        What is told of the part's users.
    """
    config, transform, items = ray.get(shared[0])
    finished = finish_part(_read(packed.column("events")[0]), config, transform, items)
    name = f"part-{packed.column(PART)[0].as_py():05d}.parquet"
    write_table(storage.join(folder, "interactions", name), finished.interactions)
    write_table(storage.join(folder, "histories", name), finished.histories)
    return finished.users


def read_tallies(parts: "ray.data.Dataset") -> tuple[list[PartTally], list[pa.Table]]:
    """Give tallies and set-aside events of all packed parts, in the order of the parts."""
    told = collect(parts.select_columns([PART, "tally", "rejected"]))
    assert told is not None, "there is at least one part"
    told = told.sort_by(PART)
    tallies = [pickle.loads(cell) for cell in told.column("tally").to_pylist()]
    return tallies, [_read(cell) for cell in told.column("rejected")]


def _pack(part: int, ordered: OrderedPart) -> pa.Table:
    cells = {
        "events": _to_bytes(ordered.events),
        "tally": pickle.dumps(ordered.tally),
        "rejected": _to_bytes(ordered.rejected),
    }
    columns = {name: pa.array([cell], pa.large_binary()) for name, cell in cells.items()}
    return pa.table({PART: pa.array([part], pa.int32()), **columns})


def _read(cell: pa.LargeBinaryScalar) -> pa.Table:
    with pa.ipc.open_stream(cell.as_buffer()) as stream:
        return stream.read_all()


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue().to_pybytes())
