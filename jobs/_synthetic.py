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


def write_bundle(folder: Path, num_items: int, num_users: int, *, seed: int = 0) -> str:
    """Write a bundle of a random model over a large catalogue, and give its `bundles/` folder.

    The network is the default one with three tasks; there is no text. Users have 20 events each.

    Args:
        folder: an empty folder; the dataset goes there too.
        num_items: items, named i0, i1, ... in string order.
        num_users: users, named u0, u1, ... likewise.
        seed: decides weights and events.
    """
    import pyarrow.parquet as pq
    import torch

    from mtrec import storage
    from mtrec.bundle import ItemArrays, save_bundle
    from mtrec.configfile import parse_config
    from mtrec.data.columns import ColumnTransform
    from mtrec.data.features import FeatureTransform
    from mtrec.data.histories import Histories
    from mtrec.model.network import build_model
    from mtrec.model.sizes import ModelSizes, TowerSizes

    config = parse_config(
        {
            "data": {
                "interactions": {
                    "path": "events.csv",
                    "timestamp": "timestamp",
                    "columns": {"rating": {"kind": "number", "min": 1, "max": 5}},
                }
            },
            "tasks": [
                {"name": "next", "kind": "retrieval"},
                {"name": "rating", "kind": "regression", "label": "rating", "min": 1, "max": 5},
                {"name": "like", "kind": "binary", "label": "rating >= 4"},
            ],
        }
    )
    items, users = (
        sorted(f"{letter}{at}" for at in range(count))
        for letter, count in (("i", num_items), ("u", num_users))
    )
    random = np.random.default_rng(seed)
    events = 20 * num_users
    rating = random.integers(1, 6, events).astype(np.float32)
    histories = Histories(
        user_ids=np.array(users, object),
        offsets=np.arange(0, events + 1, 20),
        item_index=random.integers(2, num_items + 2, events).astype(np.int32),
        timestamp=(1e9 + 60.0 * np.arange(events)).astype(np.float64),
        split=np.zeros(events, np.int8),
        numbers={"rating": rating},
        categories={},
        labels={"rating": rating, "like": (rating >= 4).astype(np.float32)},
    )
    transform = FeatureTransform(
        items={},
        users={},
        events={"rating": ColumnTransform("number", None, 3.0, 1.4)},
        id_types={"user_id": "string", "item_id": "string"},
    )
    dataset = folder / "dataset"
    (dataset / "histories").mkdir(parents=True)
    index = pa.array(range(2, num_items + 2), pa.int32())
    counts = pa.array(np.ones(num_items, np.int64))
    columns = {"item_id": items, "item_index": index, "train_count": counts}
    pq.write_table(
        pa.table({**columns, "text": pa.nulls(num_items, pa.string())}), dataset / "items.parquet"
    )
    texts = {name: pa.nulls(num_users, pa.string()) for name in ("text", "behaviour_text")}
    cut = pa.array(np.zeros(num_users, np.int64))
    pq.write_table(
        pa.table({"user_id": users, **texts, "behaviour_cut": cut}), dataset / "users.parquet"
    )
    pq.write_table(histories.to_table(), dataset / "histories" / "part-00000.parquet")
    storage.write_json(str(dataset / "transform.json"), transform.to_json())
    torch.manual_seed(seed)
    sizes = ModelSizes(
        num_items=num_items + 2,
        items=TowerSizes(),
        users=TowerSizes(),
        event_numbers=["rating"],
        labels={"rating": (3.0, 1.4), "like": (0.5, 1.0)},
    )
    model = build_model(config.model, config.tasks, sizes)
    shape = (num_items + 2, config.model.embedding_dim)
    collaborative = random.normal(size=shape).astype(np.float32)
    collaborative[:2] = 0.0
    vectors = ItemArrays(np.zeros(shape, np.float32), collaborative, np.zeros(shape[0], np.float32))
    save_bundle(
        str(folder / "bundles"),
        config=config,
        model=model,
        sizes=sizes,
        transform=transform,
        dataset=str(dataset),
        vectors=vectors,
        key=f"synthetic{num_items}",
    )
    return str(folder / "bundles")
