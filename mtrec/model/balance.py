"""How the losses of several tasks become one: L = sum over tasks of w_t * L_t / C_t, or learned.

C_t is the loss of the best constant predictor on training labels, so a weight of 1 means the same
for a cross-entropy over thousands of items and a squared error on five stars.
"""

import math
from collections.abc import Mapping, Set
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

# A label that never varies has no constant loss to divide by.
_SMALLEST = 1e-3


class FixedBalance(nn.Module):
    """L = sum over tasks of w_t * L_t / C_t; nothing is learned."""

    def __init__(self, weights: Mapping[str, float], constants: Mapping[str, float]) -> None:
        super().__init__()
        self.factors = {name: weight / constants[name] for name, weight in weights.items()}

    def forward(self, losses: Mapping[str, Tensor], absent: Set[str] = frozenset()) -> Tensor:
        """Give the joint loss () of the tasks that are not absent."""
        terms = [
            loss * (0.0 if name in absent else self.factors[name]) for name, loss in losses.items()
        ]
        return torch.stack(terms).sum()

    def weights(self) -> dict[str, float]:
        """Give what each loss over its constant is multiplied by, relative to its weight."""
        return dict.fromkeys(self.factors, 1.0)


class UncertaintyBalance(nn.Module):
    """L = sum over tasks of w_t (a_t exp(-s_t) L_t / C_t + s_t / 2), with s_t learned.

    Kendall, Gal and Cipolla 2018, eqs. 7 and 10: s_t is the log of a task's noise variance, a_t is
    1/2 for squared errors and 1 for cross-entropies. We differ in C_t, without which a task's unit
    would decide where s_t starts, and in w_t, which is 1 there.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        constants: Mapping[str, float],
        *,
        squared: Set[str],
    ) -> None:
        """Start at s_t = 0.

        Args:
            weights: loss -> w_t.
            constants: loss -> C_t.
            squared: those that are squared errors.
        """
        super().__init__()
        self.given = dict(weights)
        self.scales = {
            name: (0.5 if name in squared else 1.0) / constants[name] for name in weights
        }
        self.log_variance = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(())) for name in weights}
        )

    def forward(self, losses: Mapping[str, Tensor], absent: Set[str] = frozenset()) -> Tensor:
        """Give the joint loss (); an absent task teaches its s_t nothing."""
        terms = []
        for name, loss in losses.items():
            log_variance = self.log_variance[name]
            term = self.scales[name] * torch.exp(-log_variance) * loss + log_variance / 2.0
            # Times zero rather than left out: every parameter must take part in every step.
            terms.append(term * (0.0 if name in absent else self.given[name]))
        return torch.stack(terms).sum()

    def weights(self) -> dict[str, float]:
        """Give what each loss over its constant is multiplied by, relative to its weight."""
        return {name: math.exp(-value.item()) for name, value in self.log_variance.items()}


def build_balance(
    kind: Literal["fixed", "uncertainty"],
    weights: Mapping[str, float],
    constants: Mapping[str, float],
    *,
    squared: Set[str],
) -> FixedBalance | UncertaintyBalance:
    """Build what a configuration asks for; see the classes."""
    match kind:
        case "fixed":
            return FixedBalance(weights, constants)
        case "uncertainty":
            return UncertaintyBalance(weights, constants, squared=squared)


def constant_retrieval_loss(item_counts: NDArray[np.int64]) -> float:
    """Entropy of the training items' frequencies, in nats: what popularity alone achieves."""
    counts = item_counts[item_counts > 0].astype(np.float64)
    if len(counts) == 0:
        return 1.0
    shares = counts / counts.sum()
    return max(_SMALLEST, float(-(shares * np.log(shares)).sum()))


def constant_binary_loss(labels: NDArray[np.float32]) -> float:
    """Entropy of the share of ones among the finite labels, in nats."""
    known = labels[np.isfinite(labels)]
    if len(known) == 0:
        return 1.0
    share = float(known.mean())
    if share in (0.0, 1.0):
        return _SMALLEST
    return max(_SMALLEST, -share * math.log(share) - (1 - share) * math.log(1 - share))
