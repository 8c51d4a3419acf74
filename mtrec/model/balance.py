"""How the losses of several tasks become one: L = sum over tasks of w_t * L_t / C_t.

C_t is the loss of the best constant predictor on training labels, so a weight of 1 means the same
for a cross-entropy over thousands of items and a squared error on five stars.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

# A label that never varies has no constant loss to divide by.
_SMALLEST = 1e-3


def fixed_weights(weights: Mapping[str, float], constants: Mapping[str, float]) -> dict[str, float]:
    """Give each task's factor w_t / C_t."""
    return {name: weight / constants[name] for name, weight in weights.items()}


def weigh(losses: Mapping[str, Tensor], factors: Mapping[str, float]) -> Tensor:
    """Sum the tasks' mean losses, each times its factor."""
    total = None
    for name, loss in losses.items():
        term = loss * factors[name]
        total = term if total is None else total + term
    assert total is not None, "no task has a loss"
    return total


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
