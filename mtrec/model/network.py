"""`MultiTaskModel`: towers -> history -> retrieval logits, and ranking network -> task logits.

One pass over a window serves every task: a state that knows nothing of event t, only what came
before or what else there is, predicts which item t is about and, for that item, its labels. Users
have no id table: a user is a history with a profile in front, so a new user with a history is the
normal case. Pure torch; no files, no Ray.

Shape letters: B users or windows, T events of the longest, V events of all, S states, D width, N
items, P pairs of user and item, F number columns of an event, R width of tastes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn

from mtrec.data.histories import CATEGORY, HELD_OUT, NUM_GAP_BUCKETS
from mtrec.friends import NUM_COUNTS
from mtrec.labels import parse_label
from mtrec.model.dropout import bind_noise
from mtrec.model.experts import build_experts
from mtrec.model.history import Events, SequenceEncoder, SetEncoder, build_history
from mtrec.model.ragged import Ragged
from mtrec.model.social import SocialHead
from mtrec.model.towers import FeatureInputs, FeatureTower, ItemTower, ItemVectors
from mtrec.modelconfig import (
    Experts,
    LabelTask,
    ModelConfig,
    RegressionTask,
    Task,
    label_tasks,
    social_task,
)

# Events that a user's own mean must have seen before it counts half (as in biased baselines).
_RESIDUAL_PRIOR = 5.0


@dataclass(frozen=True, slots=True)
class TowerSizes:
    """Vocabulary sizes (padding and unknown included) of a table's feature columns."""

    numbers: int = 0
    categories: dict[str, int] = field(default_factory=dict)
    multi: dict[str, int] = field(default_factory=dict)
    text_width: int = 0


@dataclass(frozen=True, slots=True)
class ModelSizes:
    """What the data decides about the network; saved with its weights.

    Attributes:
        num_items: rows of every array over items, padding and unknown included.
        items: the items' features.
        users: the users' features.
        event_numbers: number columns of an event, in the order of `event_scaling`.
        event_categories: category columns of an event -> vocabulary size.
        context_numbers: those number columns that are known when a recommendation is asked for.
        context_categories: likewise for categories.
        labels: regression task -> (mean, standard deviation) of its training labels; binary task
            -> (share of ones, 1).
    """

    num_items: int
    items: TowerSizes
    users: TowerSizes
    event_numbers: list[str] = field(default_factory=list)
    event_categories: dict[str, int] = field(default_factory=dict)
    context_numbers: list[str] = field(default_factory=list)
    context_categories: list[str] = field(default_factory=list)
    labels: dict[str, tuple[float, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Give JSON-like values that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, tree: dict[str, Any]) -> Self:
        """Read what `to_json` gave."""
        values = dict(tree)
        values["items"] = TowerSizes(**values["items"])
        values["users"] = TowerSizes(**values["users"])
        values["labels"] = {name: (a, b) for name, (a, b) in values["labels"].items()}
        return cls(**values)


@dataclass(frozen=True, slots=True)
class UserStates:
    """What the model knows of P users.

    Attributes:
        vector: (P, D), state of the history encoder.
        residual: (P, F), shrunk mean of their numbers minus the items' usual ones.
        taste: (P, R), sum over their events of what each item, and liking it, says.
    """

    vector: Tensor
    residual: Tensor
    taste: Tensor

    def at(self, index: Tensor | slice) -> "UserStates":
        """Give the states at positions (P',) int64, or of a slice."""
        return UserStates(self.vector[index], self.residual[index], self.taste[index])


@dataclass(frozen=True, slots=True)
class Context:
    """What is known when a recommendation is asked for; P rows like the pairs it goes with.

    Attributes:
        numbers: (P, C) float32 scaled, 0 where missing.
        present: (P, C) float32, 1 where given.
        categories: column -> (P,) int64; 0 absent, 1 unknown.
    """

    numbers: Tensor
    present: Tensor
    categories: Mapping[str, Tensor]


class MultiTaskModel(nn.Module):
    """The network; see the module's text. Build it with `build_model`."""

    def __init__(
        self,
        *,
        items: ItemTower,
        users: FeatureTower,
        history: SequenceEncoder | SetEncoder,
        events: "EventEmbedding",
        ranking: "RankingNetwork",
        social: SocialHead | None,
        p_drop_rows: float,
    ) -> None:
        super().__init__()
        self.items = items
        self.users = users
        self.history = history
        self.events = events
        self.ranking = ranking
        self.social = social
        self.p_drop_rows = p_drop_rows
        self.start = nn.Parameter(torch.zeros(users.dim))
        self.noise = bind_noise(self)

    def encode_items(
        self, items: FeatureInputs, trained_N: Tensor, used: Tensor | None = None
    ) -> ItemVectors:
        """Give the vectors of the whole catalogue; see `ItemTower.forward`."""
        vectors: ItemVectors = self.items(items, trained_N, used)
        return vectors

    def encode_history(
        self,
        batch: Mapping[str, Tensor],
        users: FeatureInputs,
        vectors: ItemVectors,
        row_S: Tensor,
        place_S: Tensor,
    ) -> UserStates:
        """Give states of windows `row_S` at places `place_S`: (S, D), (S, F) and (S, R).

        State t is for ranking event t. Its vector knows the t events before or, of a set, the
        events of other items that the step does not hide; its residual and taste know all other
        events of the window, for they are sums without order. The state at the window's length
        knows every event in all three, save what is hidden from the vector.

        Args:
            batch: tensors of `history_batch`; T at most the history's length. With `held_out`
                (B, T) bool, the set encoder does not see those events.
            users: (B,) rows of user inputs; zeros where nothing is known.
            vectors: what `encode_items` gave.
            row_S: int64, 0 to B - 1.
            place_S: int64, 0 to the window's length.
        """
        layout, events = _pack(batch)
        prefix_BD = self.users(users) + self.start
        residual, taste = self.ranking.summarise(
            events, lambda values_VX: layout.total_without(values_VX, row_S, place_S)
        )
        inputs = self._events(layout, events, vectors)
        return UserStates(self.history(prefix_BD, inputs, row_S, place_S), residual, taste)

    def encode_users(
        self, batch: Mapping[str, Tensor], users: FeatureInputs, vectors: ItemVectors
    ) -> UserStates:
        """Give each user's state after the last event: (B, D), (B, F) and (B, R).

        What `encode_history` says at the windows' lengths, without the other states.
        """
        layout, events = _pack(batch)
        prefix_BD = self.users(users) + self.start
        residual, taste = self.ranking.summarise(events, layout.total)
        inputs = self._events(layout, events, vectors)
        return UserStates(self.history.last(prefix_BD, inputs), residual, taste)

    def _events(self, layout: Ragged, events: Mapping[str, Tensor], vectors: ItemVectors) -> Events:
        """Give what the history encoder reads; hidden events have item 0."""
        item_V = events["item"]
        vector_VD = vectors.at(item_V) + self.events(events)
        if HELD_OUT in events:
            item_V = item_V.masked_fill(events[HELD_OUT], 0)
        return Events(layout, vector_VD, item_V)

    def rank(
        self, users: UserStates, item_P: Tensor, vectors: ItemVectors, context: Context
    ) -> dict[str, Tensor]:
        """Give each ranking task's logit for P pairs: {task: (P,)}; see `predict`.

        Args:
            users: the states of the P users.
            item_P: (P,) int64, the items.
            vectors: what `encode_items` gave.
            context: P rows.
        """
        return self.ranking(  # type: ignore[no-any-return]  # a dict of Tensors
            users, item_P, vectors.content[item_P], vectors.collaborative[item_P], context
        )

    def predict(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turn logits into predictions: probabilities, or values in the label's declared range."""
        return self.ranking.predict(logits)


class EventEmbedding(nn.Module):
    """What an event carries besides its item: numbers, categories, time gap -> (V, D).

    The gap to the event before is a matter of order; a set has none.
    """

    def __init__(
        self, *, dim: int, numbers: int, categories: Mapping[str, int], with_gap: bool
    ) -> None:
        super().__init__()
        self.dim = dim
        self.numbers = nn.Linear(2 * numbers, dim, bias=False) if numbers else None
        self.gap = nn.Embedding(NUM_GAP_BUCKETS, dim, padding_idx=0) if with_gap else None
        self.categories = nn.ModuleDict(
            {name: nn.Embedding(size, dim, padding_idx=0) for name, size in categories.items()}
        )
        for table in (*([self.gap] if self.gap is not None else ()), *self.categories.values()):
            nn.init.normal_(table.weight, std=0.02)
            with torch.no_grad():
                table.weight[0].zero_()

    def forward(self, events: Mapping[str, Tensor]) -> Tensor:
        """Embed events: tensors of `history_batch`, window after window."""
        result = events["numbers"].new_zeros(len(events["item"]), self.dim)
        if self.gap is not None:
            result = result + self.gap(events["gap"])
        if self.numbers is not None:
            result = result + self.numbers(torch.cat([events["numbers"], events["present"]], -1))
        for name, table in self.categories.items():
            result = result + table(events[CATEGORY + name])
        return result


class RankingNetwork(nn.Module):
    """z = [u, e, u * e, residual, usual, context] -> experts -> one head a task.

    To each logit comes q . taste, the asymmetric part of SVD++ (Koren 2008, eq. 15): a user is the
    sum of what his items say, so a new user needs no row. A regression on column f starts from the
    biased baseline, the item's usual f plus the user's mean residual; its logit is in the units in
    which that column enters the model.
    """

    def __init__(
        self,
        tasks: Sequence[LabelTask],
        sizes: ModelSizes,
        *,
        dim: int,
        experts: Experts,
        taste_dim: int,
    ) -> None:
        super().__init__()
        self.tasks = tuple(tasks)
        self.sizes = sizes
        num_numbers = len(sizes.event_numbers)
        self.usual = nn.Embedding(sizes.num_items, num_numbers)
        nn.init.zeros_(self.usual.weight)
        # What having met an item says of a user, and what having liked it adds.
        self.implicit = nn.Embedding(sizes.num_items, taste_dim)
        self.explicit = nn.Embedding(sizes.num_items, taste_dim)
        nn.init.normal_(self.implicit.weight, std=0.05)
        nn.init.normal_(self.explicit.weight, std=0.05)
        self.context = nn.ModuleDict(
            {
                name: nn.Embedding(sizes.event_categories[name], dim, padding_idx=0)
                for name in sizes.context_categories
            }
        )
        width = (
            3 * dim
            + 2 * num_numbers
            + 2 * len(sizes.context_numbers)
            + dim * len(sizes.context_categories)
        )
        names = [task.name for task in tasks]
        self.experts = build_experts(experts, input_dim=width, tasks=names)
        self.heads = nn.ModuleDict({name: nn.Linear(self.experts.output_dim, 1) for name in names})
        self.item_bias = nn.Embedding(sizes.num_items, len(names))
        # Zeros: an item without training labels takes no part in tastes.
        self.targets = nn.ModuleDict(
            {name: nn.Embedding(sizes.num_items, taste_dim) for name in names}
        )
        for table in (self.item_bias, *self.targets.values()):
            nn.init.zeros_(table.weight)  # type: ignore[arg-type]  # an Embedding
        for head in self.heads.values():
            # The first prediction is the biased baseline alone.
            nn.init.zeros_(head.weight)  # type: ignore[arg-type]  # a Linear
            nn.init.zeros_(head.bias)  # type: ignore[arg-type]  # a Linear

    def forward(
        self,
        users: UserStates,
        item_P: Tensor,
        content_PD: Tensor,
        collaborative_PD: Tensor,
        context: Context,
    ) -> dict[str, Tensor]:
        """Give each task's logit (P,)."""
        if not self.tasks:
            return {}
        item_PD = content_PD + collaborative_PD
        usual_PF = self.usual(item_P)
        inputs = torch.cat(
            [
                users.vector,
                item_PD,
                users.vector * item_PD,
                users.residual,
                usual_PF,
                context.numbers,
                context.present,
                *(table(context.categories[name]) for name, table in self.context.items()),
            ],
            dim=-1,
        )
        extracted = self.experts(inputs)
        bias = self.item_bias(item_P)
        logits = {}
        for position, task in enumerate(self.tasks):
            logit = self.heads[task.name](extracted[task.name])[:, 0] + bias[:, position]
            logit = logit + (self.targets[task.name](item_P) * users.taste).sum(-1)
            if isinstance(task, RegressionTask):
                column = self.sizes.event_numbers.index(parse_label(task.label).column)
                logit = logit + usual_PF[:, column] + users.residual[:, column]
            logits[task.name] = logit
        return logits

    def summarise(
        self, events: Mapping[str, Tensor], add_up: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Sum up windows: residuals (S, F) and tastes (S, R).

        Residuals are sum / (count + prior), the user bias of a biased baseline (Koren 2010, eq. 2,
        estimated in turn); tastes are sum / sqrt(count + 1).

        Args:
            events: tensors of `history_batch`, (V, ...): window after window.
            add_up: (V, X) -> (S, X), sums of windows. The state for an event leaves it out, so that
                no label helps to predict itself.
        """
        known_V1 = (events["item"] > 1).to(events["numbers"].dtype)[:, None]
        own = (events["numbers"] - self.usual(events["item"])) * events["present"] * known_V1
        voice = self.implicit(events["item"]) + own.sum(-1, keepdim=True) * self.explicit(
            events["item"]
        )
        residual = add_up(own) / (add_up(events["present"] * known_V1) + _RESIDUAL_PRIOR)
        taste = add_up(voice * known_V1) / (add_up(known_V1) + 1.0).sqrt()
        return residual, taste

    def predict(self, logits: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Turn logits into probabilities, or into label values clipped to their range."""
        predictions = {}
        for task in self.tasks:
            logit = logits[task.name]
            if isinstance(task, RegressionTask):
                mean, deviation = self.sizes.labels[task.name]
                predictions[task.name] = (mean + deviation * logit).clamp(task.min, task.max)
            else:
                predictions[task.name] = torch.sigmoid(logit)
        return predictions


def _pack(batch: Mapping[str, Tensor]) -> tuple[Ragged, dict[str, Tensor]]:
    """Lay the events of a padded batch end to end: (B, T, ...) -> (V, ...)."""
    layout = Ragged(batch["length"], batch["item"].shape[1])
    return layout, {name: layout.pack(values) for name, values in batch.items() if name != "length"}


def build_model(config: ModelConfig, tasks: Sequence[Task], sizes: ModelSizes) -> MultiTaskModel:
    """Build the network of a configuration for data of these sizes; weights from torch's RNG."""
    dim = config.embedding_dim

    def tower(part: TowerSizes) -> FeatureTower:
        return FeatureTower(
            dim=dim,
            numbers=part.numbers,
            categories=part.categories,
            multi=part.multi,
            text_width=part.text_width,
            text_dim=config.text_dim,
        )

    model = MultiTaskModel(
        items=ItemTower(tower(sizes.items), num_items=sizes.num_items, dim=dim),
        users=tower(sizes.users),
        history=build_history(config.history, dim=dim),
        events=EventEmbedding(
            dim=dim,
            numbers=len(sizes.event_numbers),
            categories=sizes.event_categories,
            with_gap=config.history.kind == "sequence",
        ),
        ranking=RankingNetwork(
            label_tasks(tasks),
            sizes,
            dim=dim,
            experts=config.experts,
            taste_dim=config.taste_dim,
        ),
        social=SocialHead(dim=dim, num_counts=NUM_COUNTS) if social_task(tasks) else None,
        p_drop_rows=config.id_dropout,
    )
    if not label_tasks(tasks):
        # No loss reaches it, and data-parallel training would wait for its gradients.
        model.ranking.requires_grad_(False)
    return model
