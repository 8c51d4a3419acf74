"""The joint objective: one forward pass over a batch of windows gives every task's loss.

Shape letters: B windows, T events, D width, N items, P valid positions (events that are targets),
S states of users that predict them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mtrec.data.histories import CATEGORY, HELD_OUT
from mtrec.model.balance import FixedBalance, UncertaintyBalance
from mtrec.model.losses import (
    LossSum,
    binary_loss,
    regression_loss,
    retrieval_loss,
    sampled_retrieval_loss,
)
from mtrec.model.network import MultiTaskModel
from mtrec.model.ranking import Context
from mtrec.model.social import SocialBatch
from mtrec.model.towers import FeatureInputs, ItemVectors
from mtrec.modelconfig import Task, label_tasks, social_task


@dataclass(frozen=True, slots=True)
class Negatives:
    """The items that a step's retrieval targets are told from, where it is not the catalogue.

    Attributes:
        item: (J,) int64, with repetitions.
        log_expected: (J,) float32, log of how often each of them is drawn on average.
    """

    item: Tensor
    log_expected: Tensor


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """What one step needs.

    Attributes:
        rows: (B,) int64, number of each window in the global batch.
        history: tensors of `history_batch`, B windows; for the set encoder with `held_out`.
        users: (B,) rows of user inputs.
        labels: task -> (B, T) float32; NaN where there is no label.
        trained: (N,) float32, m_i after row dropout.
        items: inputs of the catalogue.
        negatives: for the sampled softmax; the same on every worker.
        social: links, for a social task; None: none this time.
    """

    rows: Tensor
    history: dict[str, Tensor]
    users: FeatureInputs
    labels: dict[str, Tensor]
    trained: Tensor
    items: FeatureInputs
    negatives: Negatives | None = None
    social: SocialBatch | None = None


class JointObjective(nn.Module):
    """The model and its losses as one module, so that DDP sees one forward pass."""

    def __init__(
        self,
        model: MultiTaskModel,
        tasks: list[Task],
        balance: FixedBalance | UncertaintyBalance,
    ) -> None:
        super().__init__()
        self.model = model
        self.balance = balance
        self.retrieval = next(task.name for task in tasks if task.kind == "retrieval")
        self.ranking = label_tasks(tasks)
        self.social = social_task(tasks)
        self.sizes = model.ranking.sizes

    def forward(self, batch: TrainingBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """Give (sum, count) of each loss; see `losses`.

        A batch with `held_out` is of sets, one without of sequences.
        """
        noise = self.model.noise
        vectors = self.model.encode_items(batch.items, batch.trained, _used_items(batch))
        item_BT = batch.history["item"]
        row_P, time_P = torch.nonzero(item_BT > 1, as_tuple=True)
        target_P = item_BT[row_P, time_P]
        if HELD_OUT not in batch.history:
            noise.rows = batch.rows
            states = self.model.encode_history(batch.history, batch.users, vectors, row_P, time_P)
            users, user_SD, given_ST = states, states.vector, None
            predicted_P, state_P = target_P, torch.arange(len(target_P), device=target_P.device)
        else:
            # One state a window predicts all that is held out of it, among what it does not know.
            held_out_BT, length_B = batch.history[HELD_OUT], batch.history["length"]
            row_B = torch.arange(len(item_BT), device=item_BT.device)
            num_pairs = len(row_P) if self.ranking else 0
            row_S = torch.cat([row_P[:num_pairs], row_B])
            place_S = torch.cat([time_P[:num_pairs], length_B])
            noise.rows = (batch.rows[row_S] << 20) + place_S
            states = self.model.encode_history(batch.history, batch.users, vectors, row_S, place_S)
            users, user_SD = states.at(slice(num_pairs)), states.vector[num_pairs:]
            given_ST = item_BT.masked_fill(held_out_BT, 0)
            predicted_P, state_P = item_BT[held_out_BT], torch.nonzero(held_out_BT)[:, 0]
        sums = {
            self.retrieval: self._retrieval(
                user_SD, predicted_P, state_P, vectors, given_ST, batch.negatives
            )
        }
        if self.ranking:
            noise.rows = (batch.rows[row_P] << 20) + time_P
            context = context_at(batch.history, self.model, row_P, time_P)
            logits = self.model.rank(users, target_P, vectors, context)
            for task in self.ranking:
                label_P = batch.labels[task.name][row_P, time_P]
                if task.kind == "regression":
                    offset, scale = self.sizes.labels[task.name]
                    loss = regression_loss(logits[task.name], (label_P - offset) / scale)
                else:
                    loss = binary_loss(logits[task.name], label_P)
                sums[task.name] = loss
        if self.social is not None:
            sums[self.social.name] = self._friends(batch.social, vectors)
        return {name: (loss.total, loss.count) for name, loss in sums.items()}

    def _friends(self, batch: SocialBatch | None, vectors: ItemVectors) -> LossSum:
        """Give the loss of the step's links; zero, with zero gradients, if it has none."""
        head = self.model.social
        assert head is not None, "a model with a social task has a head for it"
        if batch is None:
            # Every parameter takes part in every step, or DDP would wait for it.
            zero = torch.stack([value.sum() for value in head.parameters()]).sum() * 0.0
            return LossSum(zero, torch.zeros_like(zero).detach())
        self.model.noise.rows = batch.rows
        states = self.model.encode_users(batch.history, batch.users, vectors)
        return head.loss(head(states.vector), batch)

    def _retrieval(
        self,
        user_SD: Tensor,
        target_P: Tensor,
        state_P: Tensor,
        vectors: ItemVectors,
        given_ST: Tensor | None,
        negatives: Negatives | None,
    ) -> LossSum:
        """Give the loss of retrieval.

        Args:
            user_SD: states of users.
            target_P: the items to predict.
            state_P: the state that predicts each of them.
            vectors: the catalogue.
            given_ST: items that are no targets of a state, for it knows them; 0: none.
            negatives: what the targets are told from; None: the catalogue.
        """
        item_ND = vectors.fused
        bias_N = vectors.bias.clone()
        bias_N[:2] = -torch.inf
        if negatives is None:
            return retrieval_loss(user_SD, item_ND, bias_N, target_P, state_P, given_ST)
        return sampled_retrieval_loss(
            user_SD,
            item_ND,
            bias_N,
            target_P,
            state_P,
            negatives.item,
            negatives.log_expected,
            given_ST,
        )


def _used_items(batch: TrainingBatch) -> Tensor | None:
    """Give the items whose vectors a step reads, each once; None: the whole catalogue's."""
    if batch.negatives is None:
        return None
    histories = [batch.history] if batch.social is None else [batch.history, batch.social.history]
    met = [history["item"].flatten() for history in histories]
    used: Tensor = torch.unique(torch.cat([*met, batch.negatives.item]))
    return used


def context_at(
    history: Mapping[str, Tensor], model: MultiTaskModel, row_P: Tensor, time_P: Tensor
) -> Context:
    """Give the context of the events at (row, time) of a batch: what was known beforehand."""
    sizes = model.ranking.sizes
    chosen = [sizes.event_numbers.index(name) for name in sizes.context_numbers]
    return Context(
        numbers=history["numbers"][row_P, time_P][:, chosen],
        present=history["present"][row_P, time_P][:, chosen],
        categories={
            name: history[CATEGORY + name][row_P, time_P] for name in sizes.context_categories
        },
    )
