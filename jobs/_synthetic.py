"""Generated interaction logs of any size, for measuring; frequencies follow Zipf's law."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import csv

_EVENTS_PER_CHUNK = 500_000
_ITEMS = 50_000
_EVENTS_PER_USER = 50


def write_log(path: Path, events: int, *, seed: int = 0) -> dict[str, Any]:
    """Write a CSV of `events` rows and give the configuration tree that reads it.

    Args:
        path: the file; its folder must be there.
        events: rows, about 50 a user over at most 50,000 items.
        seed: decides them all.
    """
    random = np.random.default_rng(seed)
    users = max(100, events // _EVENTS_PER_USER)
    writer = None
    for start in range(0, events, _EVENTS_PER_CHUNK):
        rows = min(_EVENTS_PER_CHUNK, events - start)
        user, item = random.zipf(1.3, rows) % users, random.zipf(1.2, rows) % _ITEMS
        table = pa.table(
            {
                "user_id": pa.array(np.char.add("u", user.astype(str)).tolist()),
                "item_id": pa.array(np.char.add("i", item.astype(str)).tolist()),
                "rating": random.integers(1, 6, rows),
                "timestamp": random.integers(10**9, 10**9 + 10**8, rows),
            }
        )
        if writer is None:
            writer = csv.CSVWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None, "at least one event"
    writer.close()
    rating = {"kind": "number", "missing": "median", "outliers": {"method": "iqr"}}
    columns = {"rating": rating, "hour": {"kind": "time", "part": "hour"}}
    interactions = {"path": str(path), "timestamp": "timestamp", "columns": columns}
    return {
        "data": {"interactions": interactions},
        "tasks": [{"name": "next", "kind": "retrieval"}],
    }
