"""The tables of a dataset artifact: written and read back, all users' events as `Histories`.

It checks no hashes; that is `artifacts.verify`, done before.
"""

import io

import pyarrow as pa
import pyarrow.parquet as pq

from mtrec import storage
from mtrec.data.histories import Histories
from mtrec.errors import DataError


def read_table(path: str) -> pa.Table:
    """Read one Parquet file at a local path or a URI."""
    system, inner = storage.filesystem(path)
    return pq.read_table(inner, filesystem=system)


def write_table(path: str, table: pa.Table) -> None:
    """Write one Parquet file at a local path or a URI; equal tables give equal bytes."""
    sink = io.BytesIO()
    pq.write_table(table.combine_chunks(), sink, compression="zstd")
    storage.write_bytes(path, sink.getvalue())


def history_files(dataset: str) -> list[str]:
    """List the files that hold the users' events, in the order of the users.

    Raises:
        DataError: the dataset has no users.
    """
    folder = storage.join(dataset, "histories")
    names = [name for name in storage.list_files(folder) if name.endswith(".parquet")]
    if not names:
        raise DataError(
            f"{folder} has no users: every interaction was set aside or none was read\n"
            "look at dataset/rejected and dataset/report.json for the reasons"
        )
    return [storage.join(folder, name) for name in names]


def read_histories(dataset: str) -> Histories:
    """Read all users' events of a dataset.

    Raises:
        DataError: the dataset has no users.
    """
    return Histories.from_table(
        pa.concat_tables([read_table(path) for path in history_files(dataset)])
    )
