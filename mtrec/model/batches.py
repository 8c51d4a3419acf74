"""What fitting reads, and the batches of each step that are cut from it.

Every worker computes the same plan of an epoch from the seed alone and takes its share of each
global batch, so nothing depends on the number of workers. `loading` fills `TrainingData`, `fit`
takes the steps. No files, no Ray.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtrec.config import Config, SampledSoftmax
from mtrec.data.histories import HELD_OUT, Histories, history_batch, last_windows
from mtrec.data.windows import Windows, cut_windows, global_batches, hold_out
from mtrec.model.objective import Negatives, TrainingBatch
from mtrec.model.sizes import ModelSizes
from mtrec.model.social import SocialBatch, SocialData
from mtrec.model.towers import FeatureInputs, drop_rows

# Links in a step at most; twice as many users are encoded for them.
_MAX_LINKS = 1024
# Numbers of rows for dropout that no window and no event of one has.
_FIRST_SOCIAL_ROW = 1 << 60


@dataclass(frozen=True, slots=True)
class UserInputs:
    """What is known of U users besides their events, on the training device.

    Attributes:
        features: (U,) rows; `text` is empty here, see below.
        texts: (X + 1, W) float32, distinct text vectors; row 0 is zeros (no text).
        profile: (U,) int64, row in `texts` of the profile text.
        behaviour: (U,) int64, row in `texts` of the behaviour text.
    """

    features: FeatureInputs
    texts: Tensor
    profile: Tensor
    behaviour: Tensor

    def rows(self, user: Tensor, tell: Tensor | None = None) -> FeatureInputs:
        """Give the inputs of users (B,); where `tell` (B,) is true, with the behaviour text."""
        row = self.profile[user]
        if tell is not None:
            row = torch.where(tell, self.behaviour[user], row)
        chosen = self.features.rows(user)
        return FeatureInputs(
            chosen.numbers, chosen.categories, chosen.multi, self.texts[row], (row > 0).float()
        )


@dataclass(frozen=True, slots=True)
class TrainingData:
    """Everything that fitting reads, loaded once a worker.

    Attributes:
        train: the training events.
        cut: (U,) int64, events that the behaviour text tells; 0: no text.
        items: inputs of the catalogue, N rows.
        trained: (N,) float32, 1 for items with training events.
        users: inputs of the users.
        sizes: what the network must fit.
        scaling: number column -> (offset, scale).
        social: links, for a social task.
    """

    train: Histories
    cut: NDArray[np.int64]
    items: FeatureInputs
    trained: Tensor
    users: UserInputs
    sizes: ModelSizes
    scaling: dict[str, tuple[float, float]]
    social: SocialData | None = None


class NegativeSampler:
    """Draws items that a step's retrieval targets are told from, for the sampled softmax."""

    def __init__(self, softmax: SampledSoftmax, train: Histories, num_items: int) -> None:
        # One more than an item was met: none is never told from others.
        weight_N = np.bincount(train.item_index, minlength=num_items) + 1.0
        if softmax.distribution == "uniform":
            weight_N[:] = 1.0
        weight_N[:2] = 0.0
        self._below_N = np.cumsum(weight_N)
        self._expected_N = weight_N * (softmax.num_negatives / self._below_N[-1])
        self._num_drawn = softmax.num_negatives

    def draw(self, rng: np.random.Generator, device: torch.device) -> Negatives:
        """Draw with repetitions."""
        place_J = rng.random(self._num_drawn) * self._below_N[-1]
        item_J = np.searchsorted(self._below_N, place_J, side="right")
        expected_J = self._expected_N[item_J].astype(np.float32)
        return Negatives(
            torch.from_numpy(item_J).to(device), torch.from_numpy(expected_J).log().to(device)
        )


def epoch_batches(
    config: Config, data: TrainingData, epoch: int, *, rank: int, num_workers: int
) -> Iterator[TrainingBatch]:
    """Yield this worker's share of every global batch of an epoch."""
    rng = np.random.default_rng([config.run.seed, 1, epoch])
    windows = cut_windows(data.train.offsets, config.model.history.length, data.cut, rng)
    device = data.trained.device
    steps = math.ceil(len(windows) / config.train.batch_size)
    links = _links_of_steps(config, data, epoch, steps)
    softmax, sampler = config.train.softmax, None
    if softmax.kind == "sampled":
        sampler = NegativeSampler(softmax, data.train, data.sizes.num_items)
    for number, batch in enumerate(
        global_batches(windows, config.train.batch_size, num_workers, rng)
    ):
        # The same rows are dropped on every worker: they share one catalogue in a step.
        generator = torch.Generator().manual_seed(
            int(np.random.default_rng([config.run.seed, 2, epoch, number]).integers(2**62))
        )
        trained_N = drop_rows(data.trained, config.model.id_dropout, generator)
        mine = batch.rows(slice(rank, None, num_workers))
        rows = np.arange(rank, len(batch), num_workers)
        made = make_batch(
            data,
            mine,
            rows=rows,
            trained_N=trained_N,
            # The same on every worker.
            negatives=None
            if sampler is None
            else sampler.draw(np.random.default_rng([config.run.seed, 4, epoch, number]), device),
            social=make_social_batch(
                config, data, links[number], rank=rank, num_workers=num_workers
            ),
            device=device,
        )
        if config.model.history.kind == "set":
            hidden = hold_out(
                mine.user,
                made.history["item"].cpu().numpy(),
                config.model.history.held_out,
                seed=int(np.random.default_rng([config.run.seed, 3, epoch]).integers(2**62)),
            )
            made.history[HELD_OUT] = torch.from_numpy(hidden).to(device)
        yield made


def make_batch(
    data: TrainingData,
    windows: Windows,
    *,
    rows: NDArray[np.int64],
    trained_N: Tensor,
    negatives: Negatives | None,
    social: SocialBatch | None = None,
    device: torch.device,
) -> TrainingBatch:
    """Turn windows, which are these rows of the global batch, into the tensors of one step."""
    arrays = history_batch(data.train, windows.start, windows.stop, scaling=data.scaling)
    width = arrays["item"].shape[1]
    event = windows.start[:, None] + np.arange(width)[None, :]
    inside = event < windows.stop[:, None]
    event = np.where(inside, event, 0)
    labels = {
        name: torch.from_numpy(np.where(inside, values[event], np.float32(np.nan))).to(device)
        for name, values in data.train.labels.items()
    }
    user = torch.from_numpy(windows.user).to(device)
    tell = torch.from_numpy(windows.tell).to(device)
    return TrainingBatch(
        rows=torch.from_numpy(rows).to(device),
        history={name: torch.from_numpy(values).to(device) for name, values in arrays.items()},
        users=data.users.rows(user, tell),
        labels=labels,
        trained=trained_N,
        items=data.items,
        negatives=negatives,
        social=social,
    )


def _links_of_steps(
    config: Config, data: TrainingData, epoch: int, steps: int
) -> list[NDArray[np.int64]]:
    """Deal an epoch's links out to its steps, in an order that the seed decides.

    An epoch passes each link once, unless that were more than `_MAX_LINKS` a step.
    """
    if data.social is None:
        return [np.zeros((0, 2), np.int64)] * steps
    rng = np.random.default_rng([config.run.seed, 5, epoch])
    order = rng.permutation(len(data.social.links))[: steps * _MAX_LINKS]
    return [data.social.links.pairs[part] for part in np.array_split(order, steps)]


def make_social_batch(
    config: Config,
    data: TrainingData,
    pairs: NDArray[np.int64],
    *,
    rank: int,
    num_workers: int,
) -> SocialBatch | None:
    """Turn a step's links (M, 2) into tensors; None: there are none.

    Every worker has all candidates, for each end of a link is told from them, and every
    `num_workers`-th end.
    """
    if data.social is None or not len(pairs):
        return None
    graph, device = data.social.graph, data.trained.device
    people, place = np.unique(pairs, return_inverse=True)
    place = place.reshape(pairs.shape)
    ends = np.concatenate([place, place[:, ::-1]])[rank::num_workers]
    asking = people[ends[:, 0]]
    is_open = graph.links[asking][:, people].toarray() == 0
    is_open[np.arange(len(ends)), ends[:, 0]] = False
    # The chance that the links of a step, drawn without return, name a user of this degree.
    share = np.minimum(len(pairs) / len(data.social.links), 1.0 - 1e-9)
    log_p = np.log1p(-np.exp(graph.degree[people] * np.log1p(-share)))
    starts, stops = last_windows(data.train, config.model.history.length)
    arrays = history_batch(data.train, starts[people], stops[people], scaling=data.scaling)

    def tensor(values: NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(device)

    return SocialBatch(
        rows=tensor(_FIRST_SOCIAL_ROW + np.arange(len(people))),
        history={name: tensor(values) for name, values in arrays.items()},
        users=data.users.rows(tensor(people)),
        anchor=tensor(ends[:, 0]),
        friend=tensor(ends[:, 1]),
        is_open=tensor(is_open),
        counts=tensor(graph.counts(graph.links[asking], graph.items[asking], people)),
        log_p=tensor(log_p.astype(np.float32)),
    )
