"""One masked loss per kind of task: the sum over valid examples and their count, apart.

The caller divides the sum over all workers by the count over all workers, so the value does not
depend on how a batch was cut. An absent task gives sum 0, count 0 and zero gradients, never NaN.

Shape letters: P examples, S states of users, N items, J sampled items.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class LossSum:
    """A loss before division: `total` () float32 with gradient, `count` () float32 without."""

    total: Tensor
    count: Tensor


def retrieval_loss(logits_SN: Tensor, target_P: Tensor, state_P: Tensor) -> LossSum:
    """Full-softmax cross-entropy: sum of -log softmax(z)_target.

    Args:
        logits_SN: (S, N) float32 over the whole catalogue; what cannot be a target must be -inf,
            positions 0 and 1 among it.
        target_P: (P,) int64; targets 0 (padding) and 1 (unknown item) are left out.
        state_P: (P,) int64, the row of logits that predicts each target.
    """
    log_share_SN = functional.log_softmax(logits_SN, dim=-1)
    return _masked(-log_share_SN[state_P, target_P.clamp(min=2)], target_P > 1)


def sampled_retrieval_loss(
    positive_P: Tensor,
    negatives_SJ: Tensor,
    target_P: Tensor,
    state_P: Tensor,
    drawn_J: Tensor,
    log_expected_J: Tensor,
) -> LossSum:
    """Sampled-softmax cross-entropy: the full softmax with its partition estimated from J draws.

    -z_t + log(exp(z_t) + sum over draws j that are not t of exp(z_j) / (J q_j)), where q_j is the
    probability of j in one draw (Bengio and Senecal 2008, eq. 6). The target is there by right and
    not by chance, so only the others are corrected (Khrylchenko et al. 2025): the estimate of the
    partition has no bias, and the loss tends to that of the full softmax as J grows.

    Args:
        positive_P: float32, logits of the targets.
        negatives_SJ: float32, logits of the drawn items; what cannot be a target must be -inf.
        target_P: int64; targets 0 (padding) and 1 (unknown item) are left out.
        state_P: (P,) int64, the row of logits that goes with each target.
        drawn_J: int64, the drawn items, with repetitions.
        log_expected_J: float32, log(J q_j): how often each of them is drawn on average.
    """
    negative_PJ = (negatives_SJ - log_expected_J)[state_P]
    negative_PJ = negative_PJ.masked_fill(drawn_J == target_P[:, None], -torch.inf)
    partition_P = torch.logsumexp(torch.cat([positive_P[:, None], negative_PJ], dim=1), dim=1)
    return _masked(partition_P - positive_P, target_P > 1)


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


def _masked(losses_P: Tensor, valid_P: Tensor) -> LossSum:
    kept = torch.where(valid_P, losses_P, torch.zeros_like(losses_P))
    return LossSum(kept.sum(), valid_P.sum().to(losses_P.dtype))
