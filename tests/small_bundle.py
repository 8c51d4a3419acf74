"""A dataset written by hand and a bundle of a random model on it: no Ray, no training, fast.

`conftest.py` makes fixtures of it. Twelve items, eight users; `u6` is in no interaction and `u7`
has a text; item 11 has no event and item 10 no content of its own.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from scipy import sparse

from mtrec import storage
from mtrec.bundle import EncoderInfo, ItemArrays, save_bundle
from mtrec.config import Config
from mtrec.configfile import parse_config
from mtrec.data.columns import ColumnTransform, Vocabulary
from mtrec.data.features import FeatureTransform
from mtrec.data.histories import Histories
from mtrec.ials import fit_ials
from mtrec.model.network import build_model
from mtrec.model.sizes import ModelSizes, TowerSizes
from mtrec.text.encoder import build_encoder
from mtrec.userstore import SocialRows

NUM_ITEMS = 12
GENRES = ["space", "garden", "kitchen"]


@dataclass(frozen=True)
class Small:
    """What the tests know of the bundle."""

    config: Config
    dataset: Path
    bundles: Path
    version: str
    histories: Histories

    @property
    def path(self) -> str:
        return str(self.bundles / self.version)


def small_config(*, social: bool = False, **score: object) -> Config:
    tree: dict[str, Any] = {
        "data": {
            "interactions": {
                "path": "interactions.csv",
                "timestamp": "timestamp",
                "columns": {
                    "rating": {"kind": "number", "min": 1, "max": 5, "missing": "keep"},
                    "hour": {"kind": "number", "context": True},
                    "device": {"kind": "category", "context": True},
                },
            },
            "items": {
                "path": "items.csv",
                "columns": {
                    "title": {"kind": "text"},
                    "genres": {"kind": "categories"},
                    "brand": {"kind": "category"},
                    "price": {"kind": "number"},
                },
            },
            "users": {
                "path": "users.csv",
                "columns": {"age": {"kind": "number"}, "job": {"kind": "category"}},
            },
        },
        "text": {
            "encoder": "hashing",
            "dimension": 32,
            "item_template": "{title}",
            "user_template": "{job}",
        },
        "tasks": [
            {"name": "click", "kind": "retrieval"},
            {"name": "stars", "kind": "regression", "label": "rating", "min": 1, "max": 5},
            {"name": "like", "kind": "binary", "label": "rating >= 4"},
        ],
        "model": {"embedding_dim": 8, "text_dim": 8, "history": {"length": 4}},
        "score": {"k": 5, "candidates": 8, "batch_size": 3, **score},
        "serve": {"max_k": 50, "max_history": 20},
    }
    if social:
        tree["data"]["social"] = {"path": "friends.csv"}
        tree["tasks"].append({"name": "friends", "kind": "social"})
    return parse_config(tree)


def make_small(
    folder: Path,
    *,
    integer_ids: bool = False,
    text: bool = True,
    template: bool = True,
    social: bool = False,
    ials: bool = False,
    half_life: float | None = None,
) -> Small:
    """Write the bundle.

    Args:
        folder: where to.
        integer_ids: ids that are numbers.
        text: users have texts.
        template: these come from a template; else they are told by behaviour.
        social: with a social task.
        ials: with iALS's factors.
        half_life: of recent popularity.
    """
    config = small_config(social=social)
    if not (text and template):
        config = config.model_copy(
            update={"text": config.text.model_copy(update={"user_template": None})}
        )
    transform = _transform(integer_ids=integer_ids)
    items, users, histories = _items(integer_ids), _users(integer_ids), _histories(integer_ids)
    dataset = folder / "dataset"
    (dataset / "histories").mkdir(parents=True)
    pq.write_table(items, dataset / "items.parquet")
    pq.write_table(users, dataset / "users.parquet")
    for part, rows in enumerate([[0, 1, 2], [3, 4, 5, 6]]):
        table = histories.rows(rows).to_table()
        pq.write_table(table, dataset / "histories" / f"part-{part:05d}.parquet")
    storage.write_json(str(dataset / "transform.json"), transform.to_json())
    encoder = build_encoder(config.text)
    torch.manual_seed(0)
    sizes = ModelSizes(
        num_items=NUM_ITEMS + 2,
        items=_tower(transform.item_sizes, 32),
        users=_tower(transform.user_sizes, 32 if text else 0),
        event_numbers=list(transform.event_scaling),
        event_categories=transform.event_categories,
        context_numbers=transform.context_numbers,
        context_categories=transform.context_categories,
        labels={"stars": transform.event_scaling["rating"], "like": (0.5, 1.0)},
    )
    model = build_model(config.model, config.tasks, sizes)
    with torch.no_grad():
        for parameter in model.parameters():  # zeros would hide what depends on them
            parameter.add_(0.3 * torch.randn_like(parameter))
    item_text = np.zeros((NUM_ITEMS + 2, 32), np.float32)
    item_text[2:] = encoder.encode(items.column("text").to_pylist())
    rng = np.random.default_rng(5)
    content, collaborative = rng.normal(size=(2, NUM_ITEMS + 2, 8)).astype(np.float32)
    bias = rng.normal(size=NUM_ITEMS + 2).astype(np.float32)
    for values in (content, collaborative, bias):
        values[:2] = 0.0
    content[12] = collaborative[13] = 0.0
    user_text = encoder.encode([value or "" for value in users.column("text").to_pylist()])
    fitted = fit_ials(histories, NUM_ITEMS + 2, factors=3, alpha=4.0, reg=1.0, seed=0)
    version = save_bundle(
        str(folder / "bundles"),
        config=config,
        model=model,
        sizes=sizes,
        transform=transform,
        dataset=str(dataset),
        vectors=ItemArrays(content, collaborative, bias, item_text),
        ials=fitted.with_texts(item_text, 1.0) if ials else None,
        user_text=user_text if text else None,
        social=SocialRows(_links(), rng.normal(size=(8, 8)).astype(np.float32)) if social else None,
        encoder=EncoderInfo(encoder.id, encoder.name, encoder.dim),
        metrics={"validation": {"click/ndcg@10": 0.5}, "history": [{"epoch": 1}]},
        half_life=half_life,
        key="0123456789abcdef",
    )
    return Small(config, dataset, folder / "bundles", version, histories)


def small_like(small: Small, **score: object) -> Small:
    """The same with other settings of `score`."""
    values = {**small.config.score.model_dump(), **score}
    return replace(small, config=small_config(**values))


def item_ids(integer_ids: bool) -> list[str]:
    """Give 12 ids, as mtrec keeps them: in string order."""
    return sorted(str(7 * at) if integer_ids else f"item-{at:02d}" for at in range(NUM_ITEMS))


def user_ids(integer_ids: bool) -> list[str]:
    return sorted(str(5 * at) if integer_ids else f"u{at}" for at in range(8))


def _links() -> sparse.csr_array:
    """Links between the eight users; the seventh (no event) has one, the last none."""
    pairs = np.array([(0, 1), (0, 2), (1, 2), (2, 3), (3, 4), (4, 6)])
    links = np.zeros((8, 8), np.float32)
    links[pairs[:, 0], pairs[:, 1]] = links[pairs[:, 1], pairs[:, 0]] = 1.0
    return sparse.csr_array(links)


def _items(integer_ids: bool) -> pa.Table:
    titles = [f"{GENRES[at % 3]} story number {at}" for at in range(NUM_ITEMS)]
    return pa.table(
        {
            "item_id": item_ids(integer_ids),
            "item_index": pa.array(range(2, NUM_ITEMS + 2), pa.int32()),
            "train_count": pa.array([1] * NUM_ITEMS, pa.int64()),
            "title": titles,
            "genres": [[GENRES[at % 3], "all"] for at in range(NUM_ITEMS)],
            "brand": [None if at == 3 else "ab"[at % 2] for at in range(NUM_ITEMS)],
            "price": [float(at) for at in range(NUM_ITEMS)],
            "text": titles,
        }
    )


def _users(integer_ids: bool) -> pa.Table:
    texts = [None] * 7 + ["loves a garden"]
    return pa.table(
        {
            "user_id": user_ids(integer_ids),
            "age": [20.0 + at for at in range(8)],
            "job": ["cook", None, "cook", "pilot", "pilot", "cook", "pilot", "cook"],
            "text": pa.array(texts, pa.string()),
            "behaviour_text": pa.nulls(8, pa.string()),
            "behaviour_cut": pa.array([0] * 8, pa.int64()),
        }
    )


def _histories(integer_ids: bool) -> Histories:
    """Seven users, all but the seventh; item 11 in no event; the third has an unknown item."""
    rng = np.random.default_rng(1)
    lengths = [3, 6, 4, 1, 5, 9, 2]
    chosen = [rng.choice(np.arange(2, 13), size, replace=False) for size in lengths]
    chosen[2][1] = 1
    item_index = np.concatenate(chosen).astype(np.int32)
    count = len(item_index)
    rating = rng.integers(1, 6, count).astype(np.float32)
    rating[4] = np.nan
    known = [user for at, user in enumerate(user_ids(integer_ids)) if at != 6]
    return Histories(
        user_ids=np.array(known, object),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        item_index=item_index,
        timestamp=np.concatenate([1e9 + 100.0 * np.arange(size) for size in lengths]),
        split=np.zeros(count, np.int8),
        numbers={"rating": rating, "hour": rng.integers(0, 24, count).astype(np.float32)},
        categories={"device": rng.integers(1, 4, count).astype(np.int32)},
        labels={"stars": rating, "like": (rating >= 4).astype(np.float32)},
    )


def _transform(*, integer_ids: bool) -> FeatureTransform:
    kind = "int64" if integer_ids else "string"
    return FeatureTransform(
        items={
            "title": ColumnTransform("text", ""),
            "genres": ColumnTransform("categories", vocabulary=Vocabulary(("all", *GENRES))),
            "brand": ColumnTransform("category", vocabulary=Vocabulary(("a", "b"))),
            "price": ColumnTransform("number", 5.0, 5.0, 3.0),
        },
        users={
            "age": ColumnTransform("number", 24.0, 24.0, 2.0),
            "job": ColumnTransform(
                "category", vocabulary=Vocabulary(("cook", "pilot"), has_missing=True)
            ),
        },
        events={
            "rating": ColumnTransform("number", None, 3.0, 1.5),
            "hour": ColumnTransform("number", 12.0, 12.0, 6.0, context=True),
            "device": ColumnTransform(
                "category", vocabulary=Vocabulary(("phone", "tv")), context=True
            ),
        },
        id_types={"user_id": kind, "item_id": kind},
    )


def _tower(sizes: object, text_width: int) -> TowerSizes:
    return TowerSizes(
        sizes.numbers,  # type: ignore[attr-defined]  # FeatureSizes
        dict(sizes.categories),  # type: ignore[attr-defined]  # FeatureSizes
        dict(sizes.multi),  # type: ignore[attr-defined]  # FeatureSizes
        text_width,
    )


def told(small: Small, row: int) -> list[dict[str, object]]:
    """A stored history as a request would tell it."""
    history, ids = small.histories, ["", "", *item_ids(False)]
    devices = {1: "fridge", 2: "phone", 3: "tv"}
    events = []
    for at in range(history.offsets[row], history.offsets[row + 1]):
        event: dict[str, object] = {
            "item_id": ids[history.item_index[at]] or "never heard of",
            "timestamp": float(history.timestamp[at]),
            "hour": float(history.numbers["hour"][at]),
            "device": devices[int(history.categories["device"][at])],
        }
        if np.isfinite(history.numbers["rating"][at]):
            event["rating"] = float(history.numbers["rating"][at])
        events.append(event)
    return events
