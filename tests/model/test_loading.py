from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mtrec.config import Config
from mtrec.data.histories import Histories
from mtrec.model.batches import TrainingData
from mtrec.model.loading import _training_cut, load_training_data
from mtrec.text.encoder import build_encoder

Loaded = tuple[Config, Path, TrainingData, Histories]


@pytest.fixture
def loaded(planted_run: tuple[Config, Path]) -> Loaded:
    config, workdir = planted_run
    data, held_out = load_training_data(
        config, dataset=str(workdir / "dataset"), embeddings=str(workdir / "embeddings")
    )
    return config, workdir, data, held_out


@pytest.mark.ray
def test_every_part_fits_the_items(loaded: Loaded) -> None:
    _, _, data, held_out = loaded
    assert (data.train.split == 0).all()
    assert (held_out.split == 1).all()
    assert len(data.items.numbers) == len(data.trained) == data.sizes.num_items
    counts = torch.bincount(torch.from_numpy(data.train.item_index.astype("int64")))
    assert torch.equal(data.trained[: len(counts)], (counts > 0).float())


@pytest.mark.ray
def test_each_item_has_the_vector_of_its_own_text(loaded: Loaded) -> None:
    config, workdir, data, _ = loaded
    items = pq.read_table(workdir / "dataset" / "items.parquet").to_pylist()
    encoder = build_encoder(config.text)
    for item in items[::7]:
        expected = encoder.encode([item["text"]])[0]
        np.testing.assert_allclose(data.items.text[item["item_index"]], expected, atol=1e-6)
    assert not data.items.text[:2].any()


@pytest.mark.ray
def test_users_stand_in_the_order_of_their_histories(loaded: Loaded) -> None:
    config, workdir, data, _ = loaded
    users = pq.read_table(workdir / "dataset" / "users.parquet").to_pylist()
    by_id = {user["user_id"]: user for user in users}
    encoder = build_encoder(config.text)
    told = 0
    for position, user_id in enumerate(data.train.user_ids):
        text = by_id[user_id]["behaviour_text"]
        row = int(data.users.behaviour[position])
        if text is None:
            assert row == 0
            continue
        told += 1
        np.testing.assert_allclose(data.users.texts[row], encoder.encode([text])[0], atol=1e-6)
    assert (told > 0) == (config.text.behaviour is not None)


def test_a_cut_counts_fitted_events_only() -> None:
    # user 0: train, test, train, train, cut after 3 events: 2 of them are fitted
    histories = Histories(
        np.array(["a", "b"], dtype=object),
        np.array([0, 4, 6]),
        np.arange(2, 8, dtype=np.int32),
        np.arange(6, dtype=np.float64),
        np.array([0, 2, 0, 0, 0, 1], np.int8),
    )
    is_fitted = histories.split == 0
    assert _training_cut(histories, np.array([3, 0]), is_fitted).tolist() == [2, 0]
