"""`MultiTaskModel`: towers -> history -> retrieval logits, and ranking network -> task logits.

One pass over a window serves every task: a state that knows nothing of event t, only what came
before or what else there is, predicts which item t is about and, for that item, its labels. Users
have no id table: a user is a history with a profile in front, so a new user with a history is the
normal case. Pure torch; no files, no Ray.

Shape letters: B users or windows, T events of the longest, V events of all, S states, D width, N
items, P pairs of user and item, F number columns of an event, R width of tastes.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtrec.data.histories import CATEGORY, HELD_OUT, NUM_GAP_BUCKETS
from mtrec.friends import NUM_COUNTS
from mtrec.model.dropout import bind_noise
from mtrec.model.history import Events, SequenceEncoder, SetEncoder, build_history
from mtrec.model.ragged import Ragged
from mtrec.model.ranking import Context, RankingNetwork, UserStates
from mtrec.model.sizes import ModelSizes, TowerSizes
from mtrec.model.social import SocialHead
from mtrec.model.towers import FeatureInputs, FeatureTower, ItemTower, ItemVectors
from mtrec.modelconfig import ModelConfig, Task, label_tasks, social_task


class MultiTaskModel(nn.Module):
    """The network; see the module's text. Build it with `build_model`."""

    def __init__(
        self,
        *,
        items: ItemTower,
        users: FeatureTower,
        history: SequenceEncoder | SetEncoder,
        events: "EventEmbedding",
        ranking: RankingNetwork,
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
