"""Fitting the network: one step, one epoch, one validation pass, as plain functions.

Works alone or inside a torch process group (then the losses and gradients are those of the global
batch); knows nothing of Ray. Batches come from `batches`, identical on every worker.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtrec.config import Config
from mtrec.data.windows import cut_windows
from mtrec.errors import DataError
from mtrec.model.balance import (
    build_balance,
    constant_binary_loss,
    constant_retrieval_loss,
)
from mtrec.model.batches import TrainingData, epoch_batches, make_social_batch
from mtrec.model.network import MultiTaskModel, build_model
from mtrec.model.objective import JointObjective, TrainingBatch

# Pseudo-events that draw an item's first usual value to the mean of all.
_USUAL_PRIOR = 5.0
# Links that the first weights of counts are fitted on.
_LINKS_TO_START = 512


@dataclass(slots=True)
class TrainState:
    """All that changes while fitting; `state_dict` is what a checkpoint holds.

    `constants` are the losses of constant predictors; `warmup` is the number of steps until the
    learning rate is whole.
    """

    objective: JointObjective
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    average: dict[str, Tensor]
    constants: dict[str, float]
    warmup: int
    step: int = 0
    epoch: int = 0
    best: float = math.nan
    best_epoch: int = -1
    history: list[dict[str, Any]] = field(default_factory=list)

    @property
    def model(self) -> MultiTaskModel:
        """The network itself."""
        return self.objective.model

    def joint_loss(self, means: Mapping[str, float]) -> float:
        """Give the joint loss of means over an epoch, as it is weighed now."""
        with torch.no_grad():
            device = next(self.model.parameters()).device
            return float(
                self.objective.balance(
                    {name: torch.tensor(mean, device=device) for name, mean in means.items()}
                )
            )

    def state_dict(self) -> dict[str, Any]:
        """Give everything needed to go on: weights, balance, optimizer, counters, RNG.

        The learning rate follows from the step.
        """
        return {
            "model": self.model.state_dict(),
            "balance": self.objective.balance.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "step": self.step,
            "epoch": self.epoch,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "history": self.history,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint that lies in main memory, on whatever device the model is."""
        device = next(self.model.parameters()).device
        self.model.load_state_dict(state["model"])
        self.objective.balance.load_state_dict(state["balance"])
        self.average = {name: value.to(device) for name, value in state["average"].items()}
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        self.step, self.epoch = state["step"], state["epoch"]
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.history = list(state["history"])

    def export_weights(self) -> dict[str, Tensor]:
        """Give the weights to validate and to ship: the moving average if there is one."""
        weights = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        weights.update({name: value.clone() for name, value in self.average.items()})
        return weights


def start_state(config: Config, data: TrainingData, device: torch.device) -> TrainState:
    """Build the network with weights that the seed decides, whitening and biases from the data.

    Raises:
        DataError: there is no training event to learn from.
    """
    if data.train.num_events == 0:
        raise DataError(
            "no training events: found 0 after cleaning and splitting, expected at least 1\n"
            "look at dataset/report.json for what was set aside, and at data.split"
        )
    torch.manual_seed(config.run.seed)
    model = build_model(config.model, config.tasks, data.sizes)
    model.noise.seed = config.run.seed
    trained = data.trained > 0
    model.items.content.fit_whitening(data.items.text[trained & (data.items.has_text > 0)])
    model.users.fit_whitening(data.users.texts[1:])
    _start_at_means(model, data)
    _start_at_counts(model, config, data)
    weights, constants = _loss_weights(config, data)
    balance = build_balance(
        config.train.balance,
        weights,
        constants,
        squared={task.name for task in config.tasks if task.kind == "regression"},
    )
    objective = JointObjective(model, config.tasks, balance).to(device)
    return TrainState(
        objective=objective,
        wrapped=objective,
        optimizer=_optimizer(objective, config),
        average={},
        constants=constants,
        warmup=min(config.train.warmup_steps, _num_steps(config, data) // 10),
    )


def train_step(state: TrainState, batch: TrainingBatch, config: Config) -> dict[str, float]:
    """Take one step on the global batch of which this worker holds `batch`.

    Returns:
        Each loss's mean over the global batch; NaN where the batch has nothing of a task.

    Raises:
        DataError: a loss is not finite; names the task. The weights are as before the step.
    """
    state.wrapped.train()
    state.model.noise.step = state.step
    sums = state.wrapped(batch)
    counts = torch.stack([count for _, count in sums.values()])
    totals = torch.stack([total for total, _ in sums.values()])
    shown = torch.stack([totals.detach(), counts])
    num_workers = 1
    if torch.distributed.is_initialized():
        num_workers = torch.distributed.get_world_size()
        torch.distributed.all_reduce(shown)
    means = {
        name: float(total / count) if count > 0 else math.nan
        for name, total, count in zip(sums, shown[0].tolist(), shown[1].tolist(), strict=True)
    }
    absent = {name for name, count in zip(sums, shown[1].tolist(), strict=True) if count == 0}
    for name, mean in means.items():
        if name not in absent and not math.isfinite(mean):
            raise DataError(
                f'the loss of task "{name}" is {mean} at step {state.step}, expected a finite '
                "number\nlower train.learning_rate, or look for extreme values of its label"
            )
    # DDP averages gradients over workers; times their number that is the sum over workers.
    losses = {
        name: total * num_workers / shown[1, position].clamp(min=1.0)
        for position, (name, total) in enumerate(zip(sums, totals, strict=True))
    }
    state.optimizer.zero_grad(set_to_none=True)
    state.objective.balance(losses, absent).backward()
    nn.utils.clip_grad_norm_(state.objective.parameters(), config.train.clip_norm)
    for group in state.optimizer.param_groups:
        group["lr"] = config.train.learning_rate * min(1.0, (state.step + 1) / max(1, state.warmup))
    state.optimizer.step()
    state.step += 1
    _update_average(state, config.train.ema_decay)
    return means


def train_epoch(
    state: TrainState, config: Config, data: TrainingData, *, rank: int = 0, num_workers: int = 1
) -> dict[str, float]:
    """Take every step of one epoch; gives each loss's mean over the steps that have it, else 0."""
    collected: dict[str, list[float]] = {}
    for batch in epoch_batches(config, data, state.epoch, rank=rank, num_workers=num_workers):
        for name, value in train_step(state, batch, config).items():
            collected.setdefault(name, []).append(value)
    state.epoch += 1
    return {
        name: 0.0 if np.isnan(values).all() else float(np.nanmean(values))
        for name, values in collected.items()
    }


def _num_steps(config: Config, data: TrainingData) -> int:
    """Count the steps of a whole training, if no epoch is spared."""
    rng = np.random.default_rng(config.run.seed)
    windows = cut_windows(data.train.offsets, config.model.history.length, data.cut, rng)
    return config.train.epochs * math.ceil(len(windows) / config.train.batch_size)


def _loss_weights(config: Config, data: TrainingData) -> tuple[dict[str, float], dict[str, float]]:
    """Give each loss's weight, and the loss of a constant predictor that it is measured by."""
    weights: dict[str, float] = {}
    constants: dict[str, float] = {}
    counts = np.bincount(data.train.item_index, minlength=data.sizes.num_items)
    counts[:2] = 0
    for task in config.tasks:
        weights[task.name] = task.weight
        if task.kind == "retrieval":
            constants[task.name] = constant_retrieval_loss(counts)
        elif task.kind == "social":
            constants[task.name] = _constant_social_loss(data)
        elif task.kind == "binary":
            constants[task.name] = constant_binary_loss(data.train.labels[task.name])
        else:
            offset, scale = data.sizes.labels[task.name]
            labels = (data.train.labels[task.name] - offset) / scale
            known = labels[np.isfinite(labels)]
            constants[task.name] = max(1e-3, float(known.var())) if len(known) else 1.0
    return weights, constants


def _constant_social_loss(data: TrainingData) -> float:
    """Give the loss of a predictor that knows nothing: the log of the number of users, in nats."""
    assert data.social is not None, "a social task has links"
    return math.log(max(2, data.social.links.num_users))


def _start_at_means(model: MultiTaskModel, data: TrainingData) -> None:
    """Start ranking at the biased baseline: heads at label means, items at their shrunk means."""
    size = data.sizes.num_items
    with torch.no_grad():
        for column, (name, (offset, scale)) in enumerate(data.scaling.items()):
            values = (data.train.numbers[name] - offset) / scale
            known = np.isfinite(values)
            items = data.train.item_index[known]
            total = np.bincount(items, values[known], minlength=size)
            usual = total / (np.bincount(items, minlength=size) + _USUAL_PRIOR)
            usual[:2] = 0.0
            model.ranking.usual.weight[:, column] = torch.from_numpy(usual.astype(np.float32))
        for task in model.ranking.tasks:
            labels = data.train.labels[task.name]
            known = labels[np.isfinite(labels)]
            mean = float(known.mean()) if len(known) else 0.0
            bias: Tensor = model.ranking.heads[task.name].bias  # type: ignore[assignment]  # Linear
            if task.kind == "regression":
                offset, scale = data.sizes.labels[task.name]
                bias.fill_((mean - offset) / scale if len(known) else 0.0)
            else:
                share = min(max(mean, 1e-3), 1.0 - 1e-3)
                bias.fill_(math.log(share / (1.0 - share)))


def _start_at_counts(model: MultiTaskModel, config: Config, data: TrainingData) -> None:
    """Start the social task at what counts alone say best: their weights, fitted on some links.

    From there the histories have only to explain what counts do not.
    """
    if model.social is None or data.social is None:
        return
    rng = np.random.default_rng([config.run.seed, 6])
    chosen = rng.permutation(len(data.social.links))[:_LINKS_TO_START]
    batch = make_social_batch(config, data, data.social.links.pairs[chosen], rank=0, num_workers=1)
    if batch is None:
        return
    head, silent = model.social, torch.zeros(len(batch.rows), 1, device=data.trained.device)
    head.to(silent.device)
    optimizer = torch.optim.LBFGS([head.weights], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = head.loss(silent, batch)
        # A little ridge: links that counts tell perfectly would want endless weights.
        value = loss.total / loss.count + 1e-3 * head.weights.square().sum()
        value.backward()  # type: ignore[no-untyped-call]  # torch
        return value.item()

    optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch
    head.weights.grad = None


def _optimizer(objective: JointObjective, config: Config) -> torch.optim.Optimizer:
    """AdamW; layers decay a little, ranking tables more, other tables, biases and norms not."""
    ranking = {
        id(module.weight)
        for module in objective.model.ranking.modules()
        if isinstance(module, nn.Embedding)
    }
    tables = {
        id(module.weight)
        for module in objective.modules()
        if isinstance(module, nn.Embedding | nn.EmbeddingBag)
    }
    decays = (0.0, config.train.weight_decay, config.train.ranking_decay)
    groups: dict[float, list[nn.Parameter]] = {decay: [] for decay in decays}
    for parameter in objective.parameters():
        plain = parameter.ndim < 2 or id(parameter) in tables
        decay = decays[2] if id(parameter) in ranking else decays[0 if plain else 1]
        groups[decay].append(parameter)
    return torch.optim.AdamW(
        [{"params": group, "weight_decay": decay} for decay, group in groups.items()],
        lr=config.train.learning_rate,
        # One pass over a parameter instead of ten.
        fused=True,
    )


def _update_average(state: TrainState, decay: float) -> None:
    """Move the averaged weights towards the new ones; early steps count more (warm start)."""
    if decay == 0.0:
        return
    now = min(decay, (1.0 + state.step) / (10.0 + state.step))
    for name, value in state.model.state_dict().items():
        if not value.is_floating_point():
            continue
        if name in state.average:
            state.average[name].lerp_(value, 1.0 - now)
        else:
            state.average[name] = value.detach().clone()
