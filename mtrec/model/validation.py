"""Validation while fitting: full ranking and predictions on held-out events, sharded over workers.

Users are evaluated with their training events as history and those items masked; the figures are
those of `metrics.py`. Works alone or inside a torch process group. The report that users read is
made by `evaluate.py` from a bundle, not from here.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtrec import metrics
from mtrec.config import Config
from mtrec.data.histories import Histories, history_batch, last_windows, unmet_items
from mtrec.friends import FriendScorer, friend_relevance, metric_lists
from mtrec.model.batches import TrainingData
from mtrec.model.network import MultiTaskModel
from mtrec.model.ranking import Context, UserStates
from mtrec.model.towers import ItemVectors
from mtrec.modelconfig import social_task

BLOCK = 256
"""Users whose logits over the catalogue are in memory at a time."""
PRIMARY = {"retrieval": "ndcg@{k}", "regression": "rmse", "binary": "auc", "social": "ndcg@{k}"}
"""The metric that stands for each kind of task; `rmse` is better when smaller."""


def monitored(config: Config) -> tuple[str, bool]:
    """Give the value that picks the best epoch, and whether larger is better."""
    first = config.tasks[0]
    name = config.train.monitor or f"{first.name}/{PRIMARY[first.kind]}"
    name = name.format(k=config.evaluate.k)
    return name, name.rpartition("/")[2] not in ("rmse", "mae", "mse", "logloss", "ece")


@torch.no_grad()
def validate(
    model: MultiTaskModel,
    config: Config,
    data: TrainingData,
    held_out: Histories,
    *,
    rank: int = 0,
    num_workers: int = 1,
) -> dict[str, float]:
    """Give `task/metric` -> value on held-out events; empty where there are none.

    Args:
        model: the network with the weights to judge; it is put into evaluation mode.
        config: the run.
        data: gives the histories (training events) and the inputs.
        held_out: the same users with the events to predict.
        rank: this worker takes the users rank, rank + num_workers, ...
        num_workers: workers that call this together.
    """
    model.eval()
    vectors = model.encode_items(data.items, data.trained)
    mine = np.flatnonzero(np.diff(held_out.offsets) > 0)[rank::num_workers]
    parts = [
        validate_block(model, config, data, held_out, vectors, mine[begin : begin + BLOCK])
        for begin in range(0, len(mine), BLOCK)
    ]
    if num_workers > 1:
        gathered: list[Any] = [None] * num_workers
        torch.distributed.all_gather_object(gathered, parts)
        parts = [part for worker in gathered for part in worker]
    figures = _validate_friends(model, config, data, vectors)
    if not parts:
        return figures
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return _figures(config, joined) | figures


@torch.no_grad()
def social_vectors(
    model: MultiTaskModel, config: Config, data: TrainingData, vectors: ItemVectors
) -> NDArray[np.float32]:
    """Give the social vector of every user, from the latest of all their events in `data`: (U, D).

    Args:
        model: in evaluation mode, with a social task.
        config: the run.
        data: gives the histories and the inputs of users.
        vectors: what the model gives for the catalogue.
    """
    assert model.social is not None, "a model with a social task"
    parts = []
    for begin in range(0, len(data.train), BLOCK):
        users = np.arange(begin, min(begin + BLOCK, len(data.train)))
        states = _states(model, config, data, data.train.rows(users), users, vectors)
        parts.append(model.social(states.vector).cpu().numpy())
    return np.concatenate(parts)


def _validate_friends(
    model: MultiTaskModel, config: Config, data: TrainingData, vectors: ItemVectors
) -> dict[str, float]:
    """Judge lists of friends by the held-out links; every worker does all of it."""
    task = social_task(config.tasks)
    if task is None or data.social is None or not len(data.social.held_out):
        return {}
    graph, k = data.social.graph, config.evaluate.k
    found = social_vectors(model, config, data, vectors)
    assert model.social is not None, "a model with a social task"
    scorer = FriendScorer(graph, found, model.social.weights.cpu().numpy())
    relevance = friend_relevance(data.social.held_out)
    asked = np.flatnonzero(relevance.count)
    lists, _ = scorer.rank(found[asked], graph.links[asked], graph.items[asked], asked, k=k)
    hits = relevance.hits(metric_lists(lists, asked, len(graph)))
    return {
        f"{task.name}/ndcg@{k}": float(np.nanmean(metrics.ndcg(hits, relevance.count))),
        f"{task.name}/recall@{k}": float(np.nanmean(metrics.recall(hits, relevance.count))),
    }


def open_logits(
    model: MultiTaskModel,
    config: Config,
    data: TrainingData,
    history: Histories,
    users: NDArray[np.int64],
    vectors: ItemVectors,
) -> tuple[UserStates, torch.Tensor]:
    """Give users' states and logits (B, N), -inf for the items of their histories."""
    device = data.trained.device
    states = _states(model, config, data, history, users, vectors)
    logits = states.vector @ vectors.fused.T + vectors.bias
    logits[:, :2] = -torch.inf
    if config.evaluate.candidates == "cold":
        logits[:, torch.from_numpy(~unmet_items(data.train, data.sizes.num_items))] = -torch.inf
    seen = torch.from_numpy(history.item_index.astype(np.int64)).to(device)
    logits[torch.from_numpy(history.event_user).to(device), seen] = -torch.inf
    return states, logits


def _states(
    model: MultiTaskModel,
    config: Config,
    data: TrainingData,
    history: Histories,
    users: NDArray[np.int64],
    vectors: ItemVectors,
) -> UserStates:
    """Encode users (B,) by the latest events of their histories."""
    device = data.trained.device
    starts, stops = last_windows(history, config.model.history.length)
    arrays = history_batch(history, starts, stops, scaling=data.scaling)
    batch = {name: torch.from_numpy(values).to(device) for name, values in arrays.items()}
    rows = data.users.rows(torch.from_numpy(users).to(device))
    return model.encode_users(batch, rows, vectors)


def listed_hits(
    config: Config,
    data: TrainingData,
    logits: torch.Tensor,
    history: Histories,
    wanted: Histories,
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Give for each user which of the k best items are wanted, and how many there are.

    Items of the history are in no list, so they are not wanted (`baselines.relevant_items`).

    Args:
        config: the run.
        data: says which items are cold.
        logits: (B, N), -inf for what may not be listed.
        history: what is known of the B users.
        wanted: the same users with the events to predict.
    """
    met, asked = (
        events.event_user * np.int64(data.sizes.num_items) + events.item_index
        for events in (history, wanted)
    )
    wanted = wanted.select(~np.isin(asked, met) | (wanted.item_index < 2))
    top = logits.topk(min(config.evaluate.k, logits.shape[1]))
    ranked = torch.where(torch.isfinite(top.values), top.indices, 0).cpu().numpy()
    if config.evaluate.candidates == "cold":
        is_unmet = unmet_items(data.train, data.sizes.num_items)
        wanted = wanted.select(is_unmet[wanted.item_index] | (wanted.item_index < 2))
    relevance = metrics.Relevance.from_pairs(
        wanted.event_user,
        wanted.item_index,
        num_users=len(wanted),
        num_items=data.sizes.num_items,
    )
    return relevance.hits(ranked.astype(np.int32)), relevance.count


def validate_block(
    model: MultiTaskModel,
    config: Config,
    data: TrainingData,
    held_out: Histories,
    vectors: ItemVectors,
    users: NDArray[np.int64],
) -> dict[str, NDArray[Any]]:
    """Give per-user ranking values and per-event predictions of some users."""
    device = data.trained.device
    history, wanted = data.train.rows(users), held_out.rows(users)
    states, logits = open_logits(model, config, data, history, users, vectors)
    hits, count = listed_hits(config, data, logits, history, wanted)
    retrieval = next(task.name for task in config.tasks if task.kind == "retrieval")
    values: dict[str, NDArray[Any]] = {
        f"{retrieval}/ndcg@{config.evaluate.k}": metrics.ndcg(hits, count),
        f"{retrieval}/hr@{config.evaluate.k}": metrics.hit_rate(hits, count),
    }
    row = torch.from_numpy(wanted.event_user).to(device)
    item = torch.from_numpy(wanted.item_index.astype(np.int64)).to(device)
    logits_of = model.rank(
        states.at(row),
        item,
        vectors,
        _held_out_context(data, wanted, device),
    )
    for name, prediction in model.predict(logits_of).items():
        values[f"{name}/prediction"] = prediction.cpu().numpy()
        values[f"{name}/label"] = wanted.labels[name]
    return values


def _held_out_context(data: TrainingData, wanted: Histories, device: torch.device) -> Context:
    """Give each held-out event's own context, as `history_batch` gives it for training."""
    starts = np.arange(wanted.num_events)
    arrays = history_batch(wanted, starts, starts + 1, scaling=data.scaling)
    chosen = [data.sizes.event_numbers.index(name) for name in data.sizes.context_numbers]

    def tensor(name: str) -> torch.Tensor:
        return torch.from_numpy(arrays[name][:, 0]).to(device)

    return Context(
        numbers=tensor("numbers")[:, chosen],
        present=tensor("present")[:, chosen],
        categories={name: tensor(f"category_{name}") for name in data.sizes.context_categories},
    )


def _figures(config: Config, values: dict[str, NDArray[Any]]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for task in config.tasks:
        if task.kind == "social":
            continue
        if task.kind == "retrieval":
            for name in (f"{task.name}/{metric}@{config.evaluate.k}" for metric in ("ndcg", "hr")):
                figures[name] = float(np.nanmean(values[name]))
            continue
        label = values[f"{task.name}/label"].astype(np.float64)
        known = np.isfinite(label)
        label = label[known]
        prediction = values[f"{task.name}/prediction"].astype(np.float64)[known]
        if task.kind == "regression":
            figures[f"{task.name}/rmse"] = float(metrics.rmse(label, prediction))
        else:
            figures[f"{task.name}/auc"] = float(metrics.auc(label, prediction))
            figures[f"{task.name}/logloss"] = float(metrics.logloss(label, prediction))
    return {name: value for name, value in figures.items() if np.isfinite(value)}
