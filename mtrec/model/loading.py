"""From the artifacts on disk to what fitting reads: the dataset and its vectors as tensors.

Loaded once by every train worker, and once more when the best weights become a bundle. The only
code that puts items and users in the order of the vocabulary and of the histories.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from mtrec import artifacts, storage
from mtrec.config import Config
from mtrec.data.dataset import read_histories, read_table
from mtrec.data.features import Features, FeatureSizes, FeatureTransform
from mtrec.data.histories import SPLITS, Histories
from mtrec.data.links import Links
from mtrec.friends import FriendGraph
from mtrec.itemitem import interaction_matrix
from mtrec.model.batches import TrainingData, UserInputs
from mtrec.model.sizes import ModelSizes, TowerSizes
from mtrec.model.social import SocialData
from mtrec.model.towers import FeatureInputs
from mtrec.modelconfig import label_tasks, social_task
from mtrec.text.store import EmbeddingStore, store_path


def load_training_data(
    config: Config,
    *,
    dataset: str,
    embeddings: str,
    fitted_on: Sequence[str] = ("train",),
    device: torch.device | str = "cpu",
) -> tuple[TrainingData, Histories]:
    """Load what fitting reads, and the validation events: (data, held out).

    With `validation` in `fitted_on` there are none to hold out.

    Raises:
        ArtifactError: a part is missing or does not fit the others.
    """
    transform = FeatureTransform.from_json(
        storage.read_json(storage.join(dataset, "transform.json"))
    )
    items = read_table(storage.join(dataset, "items.parquet"))
    users = read_table(storage.join(dataset, "users.parquet"))
    histories = read_histories(dataset)
    if social_task(config.tasks) is not None:
        # Whoever is linked takes part, with or without events.
        histories = histories.with_users(users.column("user_id").to_pylist())
    is_fitted = np.isin(histories.split, [SPLITS.index(split) for split in fitted_on])
    train = histories.select(is_fitted)
    held_out = histories.select(~is_fitted & (histories.split == SPLITS.index("validation")))
    store = open_store(config, embeddings)
    num_items = items.num_rows + 2
    item_text = text_rows(store, items.column("text"), shift=2)
    texts, (profile, behaviour) = _distinct_texts(
        store, [users.column("text"), users.column("behaviour_text")]
    )
    order = _user_order(users, histories)
    counts = np.bincount(train.item_index, minlength=num_items)
    width = store.dim if store is not None else 0
    sizes = ModelSizes(
        num_items=num_items,
        items=_tower_sizes(transform.item_sizes, width if item_text.any() else 0),
        users=_tower_sizes(transform.user_sizes, width if config_tells_users(config) else 0),
        event_numbers=list(transform.event_scaling),
        event_categories=dict(transform.event_categories),
        context_numbers=list(transform.context_numbers),
        context_categories=list(transform.context_categories),
        labels=_label_scales(config, transform),
    )
    item_inputs = feature_inputs(transform.item_features(items), item_text, shift=2)
    if not sizes.items.text_width:
        item_inputs = _without_text(item_inputs)
    user_features = feature_inputs(
        transform.user_features(users), np.zeros((users.num_rows, 0), np.float32), shift=0
    ).rows(torch.from_numpy(order))
    cut = users.column("behaviour_cut").to_numpy().astype(np.int64)
    cut = np.where(behaviour > 0, cut, 0)[order]
    data = TrainingData(
        train=train,
        cut=_training_cut(histories, cut, is_fitted),
        items=item_inputs.to(device),
        trained=torch.from_numpy((counts > 0).astype(np.float32)).to(device),
        users=UserInputs(
            features=user_features.to(device),
            texts=torch.from_numpy(texts[:, : sizes.users.text_width]).to(device),
            profile=torch.from_numpy(profile[order]).to(device),
            behaviour=torch.from_numpy(behaviour[order]).to(device),
        ),
        sizes=sizes,
        scaling=dict(transform.event_scaling),
        social=(
            _social_data(read_links(dataset, users), train, num_items, fitted_on)
            if social_task(config.tasks) is not None
            else None
        ),
    )
    return data, held_out


def read_links(dataset: str, users: pa.Table) -> Links:
    """Read the links between the dataset's users, who are positions in its table of users."""
    return Links.from_table(
        read_table(storage.join(dataset, "social.parquet")), users.column("user_id")
    )


def _social_data(
    links: Links, train: Histories, num_items: int, fitted_on: Sequence[str]
) -> SocialData:
    is_fitted = np.isin(links.split, [SPLITS.index(split) for split in fitted_on])
    known = links.select(is_fitted)
    return SocialData(
        links=known,
        held_out=links.select(~is_fitted).of("validation"),
        graph=FriendGraph(known.adjacency(), interaction_matrix(train, num_items)),
    )


def config_tells_users(config: Config) -> bool:
    """Tell whether users have text, so that the user tower has a place for it."""
    return config.text.user_template is not None or config.text.behaviour is not None


def open_store(config: Config, embeddings: str) -> EmbeddingStore | None:
    """Open the run's vectors; None for a run without text."""
    manifest = artifacts.read_manifest(embeddings, "embeddings")
    encoder = manifest.details["encoder"]
    if encoder is None:
        return None
    return EmbeddingStore(store_path(config.text, embeddings), encoder["id"])


def _user_order(users: pa.Table, histories: Histories) -> NDArray[np.int64]:
    """Give for each history the row of its user in the users table."""
    found = pc.index_in(
        pa.array(histories.user_ids.tolist(), pa.string()),
        value_set=users.column("user_id").combine_chunks(),
    )
    assert found.null_count == 0, "every user with events is in the users table"
    return np.asarray(found.to_numpy(zero_copy_only=False)).astype(np.int64)


def _training_cut(
    histories: Histories, cut: NDArray[Any], is_fitted: NDArray[np.bool_]
) -> NDArray[Any]:
    """Turn cuts in whole histories into cuts in training events: those told are the first ones."""
    position = np.arange(histories.num_events) - np.repeat(
        histories.offsets[:-1], np.diff(histories.offsets)
    )
    told = is_fitted & (position < np.repeat(cut, np.diff(histories.offsets)))
    return np.bincount(histories.event_user[told], minlength=len(histories)).astype(np.int64)


def text_rows(
    store: EmbeddingStore | None, texts: pa.ChunkedArray, *, shift: int
) -> NDArray[np.float32]:
    """Give (R + shift, W) vectors of a text column, zeros where there is no text."""
    values = texts.to_pylist()
    if store is None:
        return np.zeros((len(values) + shift, 0), np.float32)
    rows = np.zeros((len(values) + shift, store.dim), np.float32)
    rows[shift:] = store.lookup([value or "" for value in values])
    return rows


def _distinct_texts(
    store: EmbeddingStore | None, columns: list[pa.ChunkedArray]
) -> tuple[NDArray[np.float32], list[NDArray[Any]]]:
    """Give distinct vectors, row 0 zeros, and for each column the row of each of its texts."""
    row_of: dict[str, int] = {"": 0}
    rows = [
        np.array(
            [row_of.setdefault(value or "", len(row_of)) for value in column.to_pylist()], np.int64
        )
        for column in columns
    ]
    if store is None:
        return np.zeros((1, 0), np.float32), [np.zeros_like(row) for row in rows]
    return store.lookup(list(row_of)), rows


def feature_inputs(features: Features, text: NDArray[np.float32], *, shift: int) -> FeatureInputs:
    """Turn features into tensors, with `shift` rows of zeros (padding, unknown) in front."""

    def tensor(values: NDArray[Any], dtype: type) -> torch.Tensor:
        padded = np.zeros((len(values) + shift, *values.shape[1:]), dtype)
        padded[shift:] = values
        return torch.from_numpy(padded)

    return FeatureInputs(
        numbers=tensor(features.numbers, np.float32),
        categories={name: tensor(part, np.int64) for name, part in features.categories.items()},
        multi={name: tensor(part, np.int64) for name, part in features.multi.items()},
        text=torch.from_numpy(text),
        has_text=torch.from_numpy(text.any(axis=1).astype(np.float32)),
    )


def _without_text(inputs: FeatureInputs) -> FeatureInputs:
    return FeatureInputs(
        inputs.numbers, inputs.categories, inputs.multi, inputs.text[:, :0], inputs.has_text * 0.0
    )


def _tower_sizes(sizes: FeatureSizes, text_width: int) -> TowerSizes:
    return TowerSizes(sizes.numbers, dict(sizes.categories), dict(sizes.multi), text_width)


def _label_scales(config: Config, transform: FeatureTransform) -> dict[str, tuple[float, float]]:
    """Give each regression task the scale in which its column enters the model."""
    return {
        task.name: transform.event_scaling[task.label.strip()]
        for task in label_tasks(config.tasks)
        if task.kind == "regression"
    }
