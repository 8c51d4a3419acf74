"""One masked loss per kind of task: the sum over valid examples and their count, apart.

The caller divides the sum over all workers by the count over all workers, so the value does not
depend on how a batch was cut. An absent task gives sum 0, count 0 and zero gradients, never NaN.

Shape letters: P examples, S states of users, N items, J sampled items.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Of logits that are held at once: a CPU's cache, or enough to keep a GPU busy.
_BLOCK_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}


@dataclass(frozen=True, slots=True)
class LossSum:
    """A loss before division: `total` () float32 with gradient, `count` () float32 without."""

    total: Tensor
    count: Tensor


def retrieval_loss(
    user_SD: Tensor,
    vector_ND: Tensor,
    bias_N: Tensor,
    target_P: Tensor,
    state_P: Tensor,
    given_ST: Tensor | None = None,
) -> LossSum:
    """Full-softmax cross-entropy: sum of -log softmax(z)_target, z = u . v + bias.

    Args:
        user_SD: states of users.
        vector_ND: the catalogue.
        bias_N: -inf for what cannot be a target, positions 0 and 1 among it.
        target_P: (P,) int64; targets 0 (padding) and 1 (unknown item) are left out.
        state_P: (P,) int64, the row of the state that predicts each target.
        given_ST: (S, T) int64, items that are no targets of a state, for it knows them; 0: none.
    """
    is_target_P = target_P > 1
    target_P, state_P = target_P[is_target_P], state_P[is_target_P]
    logit_P = _target_logits(user_SD, vector_ND, bias_N, target_P, state_P)
    count_S = torch.bincount(state_P, minlength=len(user_SD)).to(user_SD.dtype)
    inputs = user_SD, vector_ND, bias_N, count_S, given_ST
    partition = _LogPartition.apply(*inputs)  # type: ignore[no-untyped-call]  # torch's stub
    return LossSum(partition - logit_P.sum(), count_S.sum())


class _LogPartition(torch.autograd.Function):
    """Sum of c log(sum over items of exp(u . v + bias)) over states, each with its count c.

    A block of states at a time, with its gradients: the logits (S, N) never exist as a whole. On a
    CPU a block stays in the cache, and the loss takes a third of the time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        user_SD: Tensor,
        vector_ND: Tensor,
        bias_N: Tensor,
        count_S: Tensor,
        given_ST: Tensor | None,
    ) -> Tensor:
        """See `retrieval_loss`; a state whose count is 0 has no part in it."""
        used = torch.nonzero(count_S)[:, 0]
        block_bytes = _BLOCK_BYTES.get(user_SD.device.type, _BLOCK_BYTES["cuda"])
        rows = max(1, block_bytes // (user_SD.element_size() * len(vector_ND)))
        room = user_SD.new_empty(min(rows, len(used)), len(vector_ND))
        total = torch.zeros((), dtype=torch.float64, device=user_SD.device)
        by_user, by_vector, by_bias = map(torch.zeros_like, (user_SD, vector_ND, bias_N))
        for row_C in torch.split(used, rows):
            user_CD, count_C1 = user_SD[row_C], count_S[row_C, None]
            share_CN = torch.addmm(bias_N, user_CD, vector_ND.T, out=room[: len(row_C)])
            if given_ST is not None:
                share_CN.scatter_(1, given_ST[row_C], -torch.inf)
            top_C1 = share_CN.amax(1, keepdim=True)
            sum_C1 = share_CN.sub_(top_C1).exp_().sum(1, keepdim=True)
            total += (count_C1 * (sum_C1.log() + top_C1)).sum(dtype=torch.float64)
            share_CN *= count_C1 / sum_C1
            by_user[row_C] = share_CN @ vector_ND
            by_vector.addmm_(share_CN.T, user_CD)
            by_bias += share_CN.sum(0)
        ctx.save_for_backward(by_user, by_vector, by_bias)
        return total.to(user_SD.dtype)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what `forward` has kept."""
        return *(outer[0] * inner for inner in ctx.saved_tensors), None, None


def sampled_retrieval_loss(
    user_SD: Tensor,
    vector_ND: Tensor,
    bias_N: Tensor,
    target_P: Tensor,
    state_P: Tensor,
    drawn_J: Tensor,
    log_expected_J: Tensor,
    given_ST: Tensor | None = None,
) -> LossSum:
    """Sampled-softmax cross-entropy: the full softmax with its partition estimated from J draws.

    -z_t + log(exp(z_t) + sum over draws j that are not t of exp(z_j) / (J q_j)), where q_j is the
    probability of j in one draw (Bengio and Senecal 2008, eq. 6). The target is there by right and
    not by chance, so only the others are corrected (Khrylchenko et al. 2025): the estimate of the
    partition has no bias, and the loss tends to that of the full softmax as J grows.

    Args:
        user_SD: as for `retrieval_loss`.
        vector_ND: as there; nothing of the size (S, N) is made.
        bias_N: as there.
        target_P: as there.
        state_P: as there.
        drawn_J: int64, the drawn items, with repetitions.
        log_expected_J: float32, log(J q_j): how often each of them is drawn on average.
        given_ST: as there.
    """
    negatives_SJ = torch.addmm(bias_N[drawn_J], user_SD, vector_ND[drawn_J].T) - log_expected_J
    if given_ST is not None:
        negatives_SJ = negatives_SJ.masked_fill(_is_among(drawn_J, given_ST), -torch.inf)
    is_target_P = target_P > 1
    target_P, state_P = target_P[is_target_P], state_P[is_target_P]
    positive_P = _target_logits(user_SD, vector_ND, bias_N, target_P, state_P)
    negative_PJ = negatives_SJ[state_P].masked_fill(drawn_J == target_P[:, None], -torch.inf)
    partition_P = torch.logsumexp(torch.cat([positive_P[:, None], negative_PJ], dim=1), dim=1)
    return LossSum((partition_P - positive_P).sum(), is_target_P.sum().to(user_SD.dtype))


def regression_loss(prediction_P: Tensor, label_P: Tensor) -> LossSum:
    """Squared error: sum of (prediction - label)^2; NaN labels are left out."""
    valid = torch.isfinite(label_P)
    difference = prediction_P - torch.where(valid, label_P, prediction_P.detach())
    return _masked(difference**2, valid)


def binary_loss(logit_P: Tensor, label_P: Tensor) -> LossSum:
    """Cross-entropy of a Bernoulli: sum of -y log p - (1 - y) log(1 - p), p = sigmoid(logit).

    NaN labels are left out.
    """
    valid = torch.isfinite(label_P)
    labels = torch.where(valid, label_P, torch.zeros_like(label_P))
    losses = functional.binary_cross_entropy_with_logits(logit_P, labels, reduction="none")
    return _masked(losses, valid)


def _target_logits(
    user_SD: Tensor, vector_ND: Tensor, bias_N: Tensor, target_P: Tensor, state_P: Tensor
) -> Tensor:
    return (user_SD[state_P] * vector_ND[target_P]).sum(-1) + bias_N[target_P]


def _is_among(item_J: Tensor, given_ST: Tensor) -> Tensor:
    """Tell which items are among those of each row: (S, J) bool."""
    sorted_ST = given_ST.sort(1).values
    item_SJ = item_J.expand(len(given_ST), -1).contiguous()
    place_SJ = torch.searchsorted(sorted_ST, item_SJ).clamp(max=given_ST.shape[1] - 1)
    return sorted_ST.gather(1, place_SJ) == item_J


def _masked(losses_P: Tensor, valid_P: Tensor) -> LossSum:
    kept = torch.where(valid_P, losses_P, torch.zeros_like(losses_P))
    return LossSum(kept.sum(), valid_P.sum().to(losses_P.dtype))
