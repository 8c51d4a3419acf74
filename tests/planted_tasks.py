"""Two regression tasks with a dial for how much they share; the truth is known by construction."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mtrec.config import Config
from mtrec.configfile import parse_config
from mtrec.data.histories import Histories
from mtrec.model.batches import TrainingData, UserInputs
from mtrec.model.sizes import ModelSizes, TowerSizes
from mtrec.model.towers import FeatureInputs

TASKS = ("first", "second")
INPUTS = tuple(f"x{n}" for n in range(8))
_NUM_ITEMS = 50
_EVENTS, _HELD_OUT = 12, 4  # of each user
_NOISE = 0.2


def plant_tasks(
    *, share: float, seed: int, num_users: int, labelled: float = 1.0
) -> tuple[TrainingData, Histories]:
    """Give training and held-out events whose two labels have a known correlation.

    The synthetic data of Ma et al. (2018, section 3.2), with c = 1, two waves and labels of unit
    variance: y_k = w_k . x + sum over i of sin(i w_k . x + b_i) + noise, where w_1 = u_1 and
    w_2 = p u_1 + sqrt(1 - p^2) u_2 of orthogonal unit vectors u and p = `share`. At p = 1 both
    tasks are one function, at p = 0 they are independent. x ~ N(0, I) is the events' context; items
    and users are drawn apart from it, so that nothing else can help. Held-out labels have no noise:
    a squared error is the share of the variance that was not found.

    Args:
        share: p, 0 to 1.
        seed: decides everything.
        num_users: each has 8 training events and 4 held out.
        labelled: share of the training events that have a label of the second task.
    """
    rng = np.random.default_rng(seed)
    events = num_users * _EVENTS
    u_1, u_2 = np.linalg.qr(rng.normal(size=(len(INPUTS), 2)))[0].T
    phase = rng.uniform(0.0, 2 * np.pi, 2)
    x = rng.normal(size=(events, len(INPUTS))).astype(np.float32)

    def label(w: np.ndarray) -> np.ndarray:
        along = x @ w
        y = along + np.sin(along + phase[0]) + np.sin(2 * along + phase[1])
        return (y - y.mean()) / y.std()

    labels = np.stack([label(u_1), label(share * u_1 + np.sqrt(1 - share**2) * u_2)])
    held_out = np.tile(np.arange(_EVENTS) >= _EVENTS - _HELD_OUT, num_users)
    labels += np.where(held_out, 0.0, _NOISE * rng.normal(size=labels.shape))
    labels[1, ~held_out & (rng.random(events) >= labelled)] = np.nan
    named = {name: labels[n].astype(np.float32) for n, name in enumerate(TASKS)}
    items = [rng.choice(_NUM_ITEMS, _EVENTS, replace=False) + 2 for _ in range(num_users)]
    histories = Histories(
        user_ids=np.array([f"u{n}" for n in range(num_users)], dtype=object),
        offsets=np.arange(num_users + 1, dtype=np.int64) * _EVENTS,
        item_index=np.concatenate(items).astype(np.int32),
        timestamp=np.arange(events, dtype=np.float64),
        split=held_out.astype(np.int8),
        numbers={name: x[:, n] for n, name in enumerate(INPUTS)} | named,
        labels=named,
    )
    scaling = dict.fromkeys((*INPUTS, *TASKS), (0.0, 1.0))
    data = TrainingData(
        train=histories.select(~held_out),
        cut=np.zeros(num_users, np.int64),
        items=_nothing(_NUM_ITEMS + 2),
        trained=(torch.arange(_NUM_ITEMS + 2) > 1).float(),
        users=UserInputs(
            features=_nothing(num_users),
            texts=torch.zeros(1, 0),
            profile=torch.zeros(num_users, dtype=torch.int64),
            behaviour=torch.zeros(num_users, dtype=torch.int64),
        ),
        sizes=ModelSizes(
            num_items=_NUM_ITEMS + 2,
            items=TowerSizes(),
            users=TowerSizes(),
            event_numbers=list(scaling),
            context_numbers=list(INPUTS),
            labels=dict.fromkeys(TASKS, (0.0, 1.0)),
        ),
        scaling=scaling,
    )
    return data, histories.select(held_out)


def tasks_config(*, experts: dict[str, Any], trained: Sequence[str], seed: int) -> Config:
    """Give a run on planted tasks that trains some of them; the others' losses weigh nothing.

    The parts that know only users and items are as small as can be: there is nothing to know.
    """
    tasks: list[dict[str, Any]] = [{"name": "item", "kind": "retrieval", "weight": 0.0}]
    for name in TASKS:
        task = {"name": name, "kind": "regression", "label": name, "min": -6, "max": 6}
        tasks.append({**task, "weight": float(name in trained)})
    columns: dict[str, Any] = {name: {"kind": "number", "context": True} for name in INPUTS}
    columns |= {name: {"kind": "number"} for name in TASKS}
    return parse_config(
        {
            "run": {"seed": seed},
            "data": {"interactions": {"path": "none", "columns": columns}},
            "tasks": tasks,
            "model": {
                "embedding_dim": 4,
                "text_dim": 4,
                "taste_dim": 1,
                "id_dropout": 0.0,
                "history": {"kind": "set", "num_blocks": 0, "length": 12, "dropout": 0.0},
                "experts": {"dropout": 0.0, **experts},
            },
            "train": {
                "batch_size": 50,
                "learning_rate": 0.02,
                "warmup_steps": 20,
                "ema_decay": 0.9,
            },
        }
    )


def _nothing(rows: int) -> FeatureInputs:
    return FeatureInputs(torch.zeros(rows, 0), {}, {}, torch.zeros(rows, 0), torch.zeros(rows))
