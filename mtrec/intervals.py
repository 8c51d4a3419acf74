"""How far a figure depends on who was measured: bootstrap intervals over users, and of shares.

Users are drawn anew, every figure of one call with the same draws, so that a difference of two has
an interval of its own. NumPy only.

Shapes: U users, P rows (user, item), S bootstrap samples.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from mtrec.metrics import Floats, RowMetric, divide

Statistic = Callable[[Floats], Floats]
"""From how often each user counts (S, U) to the figure of each sample (S,)."""

_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with the bounds of its percentile interval; NaN where undefined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """How far one method's figure is from another's, on the same users.

    Attributes:
        absolute: a - b with its interval.
        relative: a / b - 1 with its interval; NaN where b is 0.
    """

    absolute: Interval
    relative: Interval


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric on the users as they are, and on each bootstrap sample of them.

    Attributes:
        value: the metric with every user counted once; NaN where undefined.
        drawn: (S,), the metric on each sample.
    """

    value: float
    drawn: Floats

    def interval(self, level: float = 0.95) -> Interval:
        """Give the percentile interval (Efron & Tibshirani 1993, chapter 13)."""
        defined = self.drawn[np.isfinite(self.drawn)]
        if not np.isfinite(self.value) or len(defined) == 0:
            return Interval(self.value, np.nan, np.nan)
        low, high = np.percentile(defined, (50.0 * (1.0 - level), 50.0 * (1.0 + level)))
        return Interval(self.value, float(low), float(high))

    def minus(self, other: "Figure") -> Difference:
        """Give how far this figure is from another that was drawn with the same users."""
        gap, drawn = self.value - other.value, self.drawn - other.drawn
        relative = Figure(
            float(divide(np.array(gap), np.array(other.value))), divide(drawn, other.drawn)
        )
        return Difference(Figure(gap, drawn).interval(), relative.interval())


def bootstrap(
    statistics: Mapping[str, Statistic], *, num_users: int, samples: int, seed: int, rows: int = 0
) -> dict[str, Figure]:
    """Draw users anew, with replacement, to see how far figures depend on who was measured.

    Rows of one user hang together, so users, not rows, are drawn. Every statistic sees the same
    draws: that pairs them, and `Figure.minus` gives the interval of a difference, draw by draw.

    Args:
        statistics: name -> statistic over the same U users.
        num_users: U; with 0 every figure is NaN.
        samples: S.
        seed: decides the draws; nothing else does.
        rows: rows that a statistic spreads the weights over, if any, to bound the memory.
    """
    if num_users == 0:
        return {name: Figure(np.nan, np.full(samples, np.nan)) for name in statistics}
    everyone = np.ones((1, num_users))
    drawn = {name: np.empty(samples) for name in statistics}
    step = max(1, _BLOCK // max(num_users, rows))
    for start in range(0, samples, step):
        weights = np.empty((min(step, samples - start), num_users))
        for row in range(len(weights)):
            # A generator for each sample: the block size does not change the draws.
            user = np.random.default_rng([seed, start + row]).integers(0, num_users, num_users)
            weights[row] = np.bincount(user, minlength=num_users)
        for name, statistic in statistics.items():
            drawn[name][start : start + len(weights)] = statistic(weights)
    return {name: Figure(float(f(everyone)[0]), drawn[name]) for name, f in statistics.items()}


def mean_over_users(values: Floats) -> Statistic:
    """Make the statistic of per-user values (U,): their mean over users where it is defined."""
    defined = np.isfinite(values)
    filled, counted = np.where(defined, values, 0.0), defined.astype(np.float64)
    return lambda weights: divide(weights @ filled, weights @ counted)


def over_rows(
    metric: RowMetric, user: NDArray[np.int64], truth: Floats, prediction: Floats
) -> Statistic:
    """Make the statistic of a row metric: each row counts as often as its user is drawn.

    Args:
        metric: one of `REGRESSION_METRICS` or `BINARY_METRICS`.
        user: (P,), position of each row's user among those that are drawn.
        truth: (P,) float64.
        prediction: (P,) float64.
    """
    return lambda weights: metric(truth, prediction, weights[:, user])


def wilson(count: int, of: int, *, level: float = 0.95) -> Interval:
    """Give a share with its score interval (Wilson 1927); NaN without trials.

    (p + z^2/2n -+ z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n), z the normal quantile: right for
    shares near 1 too, where the bootstrap of a share that is 1 has no width.
    """
    if of == 0:
        return Interval(np.nan, np.nan, np.nan)
    share, z = count / of, NormalDist().inv_cdf(0.5 + level / 2.0)
    middle = share + z * z / (2 * of)
    reach = z * np.sqrt(share * (1.0 - share) / of + z * z / (4 * of * of))
    low, high = (middle - reach) / (1 + z * z / of), (middle + reach) / (1 + z * z / of)
    return Interval(share, max(0.0, float(low)), min(1.0, float(high)))
