"""The ranking network: what each task says of pairs of a user's state and an item.

Pure torch; no files, no Ray. Shape letters as in `network.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtrec.labels import parse_label
from mtrec.model.experts import build_experts
from mtrec.model.sizes import ModelSizes
from mtrec.modelconfig import Experts, LabelTask, RegressionTask

# Events that a user's own mean must have seen before it counts half (as in biased baselines).
_RESIDUAL_PRIOR = 5.0


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
