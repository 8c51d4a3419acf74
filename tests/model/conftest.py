"""A small random data set and model that the tests of this folder share."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from mtrec.config import Config
from mtrec.configfile import parse_config
from mtrec.data.histories import Histories, history_batch, last_windows
from mtrec.data.links import Links
from mtrec.dataconfig import SocialTable
from mtrec.friends import FriendGraph
from mtrec.itemitem import interaction_matrix
from mtrec.model.batches import TrainingData, UserInputs
from mtrec.model.fit import start_state, train_epoch
from mtrec.model.network import build_model
from mtrec.model.ranking import UserStates
from mtrec.model.sizes import ModelSizes, TowerSizes
from mtrec.model.social import SocialData
from mtrec.model.towers import FeatureInputs
from mtrec.modelconfig import SetHistory, SocialTask

NUM_ITEMS = 22  # 20 and two special positions


@pytest.fixture
def config() -> Config:
    """A run with all three kinds of tasks, small and without dropout."""
    return parse_config(
        {
            "data": {
                "interactions": {
                    "path": "none",
                    "timestamp": "time",
                    "columns": {"rating": {"kind": "number"}},
                }
            },
            "tasks": [
                {"name": "item", "kind": "retrieval"},
                {"name": "stars", "kind": "regression", "label": "rating", "min": 1, "max": 5},
                {"name": "like", "kind": "binary", "label": "rating >= 4"},
            ],
            "model": {
                "embedding_dim": 8,
                "text_dim": 4,
                "id_dropout": 0.0,
                "history": {"length": 6, "num_blocks": 1, "dropout": 0.0},
                "experts": {"kind": "shared_bottom", "hidden": [8], "dropout": 0.0},
            },
            "train": {"batch_size": 4, "learning_rate": 0.01, "warmup_steps": 1},
        }
    )


@pytest.fixture(params=["sequence", "set"])
def any_config(config: Config, request: pytest.FixtureRequest) -> Config:
    """The same run with each history encoder."""
    if request.param == "sequence":
        return config
    history = SetHistory(kind="set", length=6, num_blocks=1, held_out=0.4, dropout=0.0)
    return config.model_copy(update={"model": config.model.model_copy(update={"history": history})})


@pytest.fixture
def sizes() -> ModelSizes:
    return ModelSizes(
        num_items=NUM_ITEMS,
        items=TowerSizes(1, {"kind": 5}, {"tags": 6}, 7),
        users=TowerSizes(1, {"land": 4}, {}, 7),
        event_numbers=["rating"],
        event_categories={},
        labels={"stars": (3.0, 1.25)},
    )


@pytest.fixture
def befriend() -> Callable[..., tuple[Config, TrainingData]]:
    """Give a function that adds links within the planted groups, and the task that reads them."""

    def add(
        config: Config, data: TrainingData, held_out: float = 0.0
    ) -> tuple[Config, TrainingData]:
        rng = np.random.default_rng(1)
        num_users = len(data.train)
        pairs = np.array(
            [
                (a, b)
                for a in range(num_users)
                for b in range(a + 1, num_users)
                if a % 2 == b % 2 and rng.random() < 0.5
            ],
            np.int64,
        )
        split = (rng.random(len(pairs)) < held_out).astype(np.int8)
        links = Links(pairs, split, num_users)
        known = links.before("validation")
        items = interaction_matrix(data.train, data.sizes.num_items)
        social = SocialData(known, links.of("validation"), FriendGraph(known.adjacency(), items))
        table = config.data.model_copy(update={"social": SocialTable(path="friends.csv")})
        tasks = [*config.tasks, SocialTask(name="friends", kind="social")]
        changed = config.model_copy(update={"tasks": tasks, "data": table})
        return changed, replace(data, social=social)

    return add


@pytest.fixture
def make_data(sizes: ModelSizes) -> Callable[[int], tuple[TrainingData, Histories]]:
    """Give training data of a planted structure: users of group g like the items of group g."""

    def make(num_users: int = 12) -> tuple[TrainingData, Histories]:
        rng = np.random.default_rng(0)
        counts = rng.integers(5, 9, num_users)
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        user = np.repeat(np.arange(num_users), counts)
        items = np.concatenate(
            [rng.choice(10, count, replace=False) * 2 + 2 + u % 2 for u, count in enumerate(counts)]
        )
        rating = (3 + rng.integers(-1, 2, len(items)) + (items % 4 == 0)).astype(np.float32)
        split = np.zeros(len(items), np.int8)
        split[offsets[1:] - 1] = 1
        histories = Histories(
            np.array([f"u{i}" for i in range(num_users)], dtype=object),
            offsets,
            items.astype(np.int32),
            np.arange(len(items), dtype=np.float64) * 60,
            split,
            {"rating": rating},
            {},
            {"stars": rating, "like": (rating >= 4).astype(np.float32)},
        )
        assert len(user) == len(items)
        text = torch.zeros(NUM_ITEMS, 7)
        text[2:] = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
        text[2::2, 0] += 3.0
        item_inputs = FeatureInputs(
            numbers=torch.linspace(-1, 1, NUM_ITEMS)[:, None],
            categories={"kind": torch.arange(NUM_ITEMS) % 5},
            multi={"tags": torch.arange(NUM_ITEMS)[:, None] % 6},
            text=text,
            has_text=(torch.arange(NUM_ITEMS) > 1).float(),
        )
        train = histories.select(split == 0)
        counted = np.bincount(train.item_index, minlength=NUM_ITEMS)
        users = UserInputs(
            features=FeatureInputs(
                torch.linspace(-1, 1, num_users)[:, None],
                {"land": torch.arange(num_users) % 4},
                {},
                torch.zeros(num_users, 0),
                torch.zeros(num_users),
            ),
            texts=torch.zeros(1, 7),
            profile=torch.zeros(num_users, dtype=torch.int64),
            behaviour=torch.zeros(num_users, dtype=torch.int64),
        )
        data = TrainingData(
            train=train,
            cut=np.zeros(num_users, np.int64),
            items=item_inputs,
            trained=torch.from_numpy((counted > 0).astype(np.float32)),
            users=users,
            sizes=sizes,
            scaling={"rating": (3.0, 1.25)},
        )
        return data, histories.select(split == 1)

    return make


@pytest.fixture
def fitted(any_config, make_data):
    config = any_config
    data, held_out = make_data()
    state = start_state(config, data, torch.device("cpu"))
    for _ in range(3):
        train_epoch(state, config, data)
    return state.model.eval(), data, held_out


@pytest.fixture
def parts(any_config, sizes, make_data):
    config = any_config
    torch.manual_seed(0)
    model = build_model(config.model, config.tasks, sizes).eval()
    data, _ = make_data()
    starts, stops = last_windows(data.train, config.model.history.length)
    arrays = history_batch(data.train, starts, stops, scaling=data.scaling)
    batch = {name: torch.from_numpy(values) for name, values in arrays.items()}
    users = data.users.rows(torch.arange(len(data.train)))
    return model, data, batch, users, model.encode_items(data.items, data.trained)


@pytest.fixture
def all_states() -> Callable[..., UserStates]:
    """Give a function that gives the states at all places, zeros beyond the windows' lengths."""

    def states_of(model, batch, users, vectors) -> UserStates:
        width = batch["item"].shape[1] + 1
        row_S, place_S = torch.nonzero(torch.arange(width) <= batch["length"][:, None]).T
        states = model.encode_history(batch, users, vectors, row_S, place_S)

        def unpacked(values_SX):
            zeros = values_SX.new_zeros(len(batch["length"]), width, values_SX.shape[-1])
            return zeros.index_put((row_S, place_S), values_SX)

        found = (states.vector, states.residual, states.taste)
        return UserStates(*(unpacked(values) for values in found))

    return states_of
