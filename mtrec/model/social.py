"""The social task: a symmetric head over user vectors, and its loss over links.

A friend's logit is s_a . s_b + w . counts(a, b): what the histories of two users say, through the
same encoder as all other tasks, and what they have in common (`friends.FriendGraph`). It is
symmetric, so a link teaches both ends. Pure torch.

Shape letters: A links' ends that ask, C candidates, B users, D width, F counts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mtrec.data.links import Links
from mtrec.friends import FriendGraph
from mtrec.model.losses import LossSum
from mtrec.model.towers import FeatureInputs


@dataclass(frozen=True, slots=True)
class SocialData:
    """What fitting reads of links.

    Attributes:
        links: those to learn from.
        held_out: those to validate on.
        graph: of the links to learn from and of what users met in training.
    """

    links: Links
    held_out: Links
    graph: FriendGraph


@dataclass(frozen=True, slots=True)
class SocialBatch:
    """The links of one step, of which every worker has the candidates and a share of the ends.

    Attributes:
        rows: (C,) int64, numbers of the candidates' rows for dropout.
        history: tensors of `history_batch`, the candidates' latest events.
        users: (C,) rows of user inputs.
        anchor: (A,) int64, the candidate that asks.
        friend: (A,) int64, the candidate that it is linked to.
        is_open: (A, C) bool, who may be told from the friend: nobody linked to the one that asks.
        counts: (A, C, F) float32, what they have in common.
        log_p: (C,) float32, log of the probability that a step's links name a candidate.
    """

    rows: Tensor
    history: dict[str, Tensor]
    users: FeatureInputs
    anchor: Tensor
    friend: Tensor
    is_open: Tensor
    counts: Tensor
    log_p: Tensor


class SocialHead(nn.Module):
    """Social vectors and the weights of what is in common."""

    def __init__(self, *, dim: int, num_counts: int) -> None:
        super().__init__()
        self.project = nn.Linear(dim, dim, bias=False)
        self.log_scale = nn.Parameter(torch.zeros(()))
        # What is in common is a good guess before anything was learned of histories.
        self.weights = nn.Parameter(torch.ones(num_counts))

    def forward(self, states_BD: Tensor) -> Tensor:
        """Give social vectors (B, D); a product of two is the model's part of a logit."""
        unit_BD = functional.normalize(self.project(states_BD), dim=-1)
        return unit_BD * (0.5 * self.log_scale).exp()

    def loss(self, vectors_CD: Tensor, batch: SocialBatch) -> LossSum:
        """Tell each friend from the other candidates: sum of -log softmax over ends of links.

        Candidates are users whom the step's links name, so those with many links come often; the
        others are weighed by 1 / p, which makes the partition an estimate of that over all users
        (as in `losses.sampled_retrieval_loss`).
        """
        row_A = torch.arange(len(batch.anchor), device=vectors_CD.device)
        logits_AC = vectors_CD[batch.anchor] @ vectors_CD.T + batch.counts @ self.weights
        positive_A = logits_AC[row_A, batch.friend]
        others_AC = (logits_AC - batch.log_p).masked_fill(~batch.is_open, -torch.inf)
        partition_A = torch.logsumexp(torch.cat([positive_A[:, None], others_AC], dim=1), dim=1)
        losses_A = partition_A - positive_A
        return LossSum(losses_A.sum(), losses_A.new_tensor(float(len(losses_A))))
