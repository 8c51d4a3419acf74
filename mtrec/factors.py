"""Bayesian matrix factorisation of what users say of items, such as ratings.

The optional collaborative part of the ranking tasks: draws of item vectors from their posterior,
by Gibbs sampling over the events that the network was fitted on (Salakhutdinov and Mnih 2008,
"Bayesian probabilistic matrix factorization using Markov chain Monte Carlo"). Users have no rows:
a user is what a history says, solved for each draw, so that somebody new who gives a history is
treated as everybody else. Sits beside the item vectors in a bundle. Pure NumPy and SciPy; no
torch, no files, no Ray.

Shapes: B users, N rows of the item vocabulary, S draws, K factors, P pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, special

from mtrec.catalogue import NUM_SPECIAL
from mtrec.data.histories import Histories
from mtrec.modelconfig import LabelTask, RegressionTask

# Held-out labels below which nothing can be said about a task.
_ENOUGH = 50
_TINY = 1e-6
# Normal-Wishart prior of both sides' hyperparameters: mean 0, beta_0, nu_0 = K, W_0 = I.
_BETA_0 = 2.0
# Gamma prior of the labels' precision: shape and rate.
_SHAPE_0, _RATE_0 = 1.0, 0.5
# Rows solved at a time bound the memory of one sweep to a few times rows x K x K numbers.
_ROWS = 1 << 15

Float = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Factors:
    """Draws of a factorisation, after the labels were put to mean 0 and deviation 1.

    Attributes:
        items: (S, N, K) float32; an item without labels has the mean of the items' prior.
        mean: (S, K) float64, mean of the users' prior.
        precision: (S, K, K) float64, precision of the users' prior.
        noise: (S,) float64, precision of a label.
        scale: (2,) float64, mean and deviation of the labels.
    """

    items: NDArray[np.float32]
    mean: Float
    precision: Float
    noise: Float
    scale: Float

    def users(self, histories: Histories, values: NDArray[np.floating]) -> NDArray[np.float32]:
        """Give the posterior means of users' vectors in each draw: (B, S, K) float32.

        Args:
            histories: B users.
            values: (E,), what each event says in the source's units; NaN where it says nothing.
        """
        num_draws, _, rank = self.items.shape
        known = np.isfinite(values) & (histories.item_index >= NUM_SPECIAL)
        labels = (values.astype(np.float64) - self.scale[0]) / self.scale[1]
        noise = self.noise[:, None]
        prior = np.einsum("skl,sl->sk", self.precision, self.mean)
        found = np.empty((len(histories), num_draws, rank), np.float32)
        # All draws of one user at a time: a request must not cost what the whole catalogue does.
        for user, (start, stop) in enumerate(pairwise(histories.offsets)):
            events = np.arange(start, stop)[known[start:stop]]
            met_SEK = self.items[:, histories.item_index[events]].astype(np.float64)
            turned_SKE = met_SEK.transpose(0, 2, 1)
            matrix = self.precision + noise[..., None] * (turned_SKE @ met_SEK)
            right = prior + noise * (turned_SKE @ labels[events])
            found[user] = np.linalg.solve(matrix, right[..., None])[..., 0]
        return found

    def predict(
        self,
        users: NDArray[np.float32],
        rows: NDArray[np.integer],
        item_index: NDArray[np.integer],
    ) -> NDArray[np.float32]:
        """Give the mean over the draws of what users would say of items: (P,), source's units.

        Args:
            users: (B, S, K), as `users` gives them.
            rows: (P,) positions of users.
            item_index: (P,) positions of items; 1 is an item outside the catalogue.
        """
        total = np.zeros(len(rows), np.float64)
        for draw, items in enumerate(self.items):
            total += np.einsum("pk,pk->p", users[rows, draw], items[item_index])
        found: NDArray[np.float64] = self.scale[0] + self.scale[1] * total / len(self.items)
        return found.astype(np.float32)

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Give arrays that `from_arrays` reads back."""
        return {part.name: getattr(self, part.name) for part in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[np.generic]], num_items: int) -> Self:
        """Read what `to_arrays` gave.

        Raises:
            ValueError: they are no draws for that many items.
        """
        draws, _, rank = arrays["items"].shape
        shapes = {
            "items": (draws, num_items, rank),
            "mean": (draws, rank),
            "precision": (draws, rank, rank),
            "noise": (draws,),
            "scale": (2,),
        }
        for name, shape in shapes.items():
            if arrays[name].shape != shape:
                raise ValueError(f"factors: {name} is {arrays[name].shape}, expected {shape}")
        return cls(**{name: arrays[name] for name in shapes})  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class FactorTerm:
    """Draws, and how they are joined to what the network predicts.

    Attributes:
        factors: the draws.
        column: the number of an event that they are about.
        length: the latest events of a user that are read.
        weights: task -> (3,) float64: of one, of the network and of the draws; see `join`.
    """

    factors: Factors
    column: str
    length: int
    weights: dict[str, Float]

    def said(
        self, histories: Histories, rows: NDArray[np.integer], item_index: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """Give what users with these histories would say of items, by the draws alone: (P,)."""
        histories = histories.latest(self.length)
        users = self.factors.users(histories, histories.numbers[self.column])
        return self.factors.predict(users, rows, item_index)

    def join(
        self, task: LabelTask, network: NDArray[np.floating], said: NDArray[np.float32]
    ) -> Float:
        """Join (P,) predictions of the network with (P,) of the draws: (P,).

        A weighted sum, of values for a regression, of logits and values for a binary task. Tasks
        without weights keep what the network predicts.
        """
        weights = self.weights.get(task.name)
        if weights is None:
            return network.astype(np.float64)
        total = _columns(task, network, said, self.factors.scale) @ weights
        if isinstance(task, RegressionTask):
            return np.clip(total, task.min, task.max)
        return np.asarray(special.expit(total), np.float64)


def fit_join(
    task: LabelTask,
    network: NDArray[np.floating],
    said: NDArray[np.floating],
    label: NDArray[np.floating],
    scale: Float,
) -> Float | None:
    """Fit the weights of `FactorTerm.join` on held-out labels, by least squares or log loss.

    Args:
        task: what is predicted.
        network: (P,), its predictions.
        said: (P,), those of the draws.
        label: (P,), all finite.
        scale: (2,), of the draws' labels.

    Returns:
        (3,); None: too few labels to tell, or the draws do not help.
    """
    if len(label) < _ENOUGH:
        return None
    columns = _columns(task, network, said, scale)
    if isinstance(task, RegressionTask):
        weights = np.linalg.lstsq(columns, label.astype(np.float64), rcond=None)[0]
    else:

        def loss(weights: Float) -> tuple[float, Float]:
            total = columns @ weights
            slope = columns.T @ (special.expit(total) - label)
            return float((np.logaddexp(0.0, total) - label * total).sum()), slope

        from scipy import optimize  # here: only training pays for it

        weights = optimize.minimize(loss, np.array([0.0, 1.0, 0.0]), jac=True, method="BFGS").x
    return np.asarray(weights) if weights[2] > 0.0 else None


def _columns(
    task: LabelTask, network: NDArray[np.floating], said: NDArray[np.floating], scale: Float
) -> Float:
    """Give what `join` weighs: (P, 3)."""
    first = network.astype(np.float64)
    if not isinstance(task, RegressionTask):
        first = special.logit(np.clip(first, _TINY, 1.0 - _TINY))
    return np.stack([np.ones(len(first)), first, (said - scale[0]) / scale[1]], axis=1)


def fit_factors(
    histories: Histories,
    values: NDArray[np.floating],
    num_items: int,
    *,
    rank: int,
    draws: int,
    burn_in: int,
    thin: int,
    seed: int,
    on_sweep: Callable[[int, int], None] | None = None,
) -> Factors | None:
    """Draw item vectors from their posterior given what users said; None: nobody said anything.

    Users and items have normal priors whose means and precisions are drawn too (normal-Wishart), as
    is the labels' precision (gamma). A sweep costs O(labels K^2 + (users + items) K^3).

    Args:
        histories: what may be known.
        values: (E,), what each event says; NaN where it says nothing.
        num_items: N.
        rank: K.
        draws: S, kept draws.
        burn_in: sweeps before the first that is kept.
        thin: sweeps from one that is kept to the next.
        seed: of the draws.
        on_sweep: called after each sweep with those done and those to do.
    """
    known = values[np.isfinite(values) & (histories.item_index >= NUM_SPECIAL)].astype(np.float64)
    if not len(known):
        return None
    scale = np.array([known.mean(), known.std() or 1.0])
    by_user = _Labels.of(histories, (values - scale[0]) / scale[1], num_items)
    by_item = by_user.turned()
    said = np.flatnonzero(np.diff(by_user.count.indptr))
    met = np.flatnonzero(np.diff(by_item.count.indptr))
    by_user, by_item = by_user.rows(said, met), by_item.rows(met, said)
    rng = np.random.default_rng(seed)
    users, items = (rng.normal(0.0, 0.1, (len(side), rank)) for side in (said, met))
    noise, last = 1.0, burn_in + (draws - 1) * thin
    kept: list[tuple[NDArray[np.float32], Float, Float, float]] = []
    for sweep in range(last + 1):
        mean, precision = _draw_prior(items, rng)
        items = _draw(by_item, users, mean, precision, noise, rng)
        # Of an item that nobody met the prior is all that is known.
        rows = np.tile(mean, (num_items, 1))
        rows[met] = items
        mean, precision = _draw_prior(users, rng)
        if sweep >= burn_in and (sweep - burn_in) % thin == 0:
            kept.append((rows.astype(np.float32), mean, precision, noise))
        users = _draw(by_user, items, mean, precision, noise, rng)
        error = by_user.squared_error(users, items)
        noise = rng.gamma(_SHAPE_0 + len(known) / 2.0) / (_RATE_0 + error / 2.0)
        if on_sweep is not None:
            on_sweep(sweep + 1, last + 1)
    tables, means, precisions, noises = zip(*kept, strict=True)
    return Factors(np.stack(tables), np.stack(means), np.stack(precisions), np.array(noises), scale)


@dataclass(frozen=True, slots=True)
class _Labels:
    """What rows say of columns: how often, the sum, and the sum of squares, all (rows, columns)."""

    count: sparse.csr_array
    total: sparse.csr_array
    squares: float

    @classmethod
    def of(cls, histories: Histories, values: NDArray[np.floating], num_items: int) -> Self:
        """Gather the finite values (E,) of known items by user and item."""
        known = np.isfinite(values) & (histories.item_index >= NUM_SPECIAL)
        place = (histories.event_user[known], histories.item_index[known])
        value = values[known].astype(np.float64)
        shape = (len(histories), num_items)
        count = sparse.csr_array((np.ones(len(value)), place), shape=shape)
        total = sparse.csr_array((value, place), shape=shape)
        for matrix in (count, total):
            matrix.sum_duplicates()
        return cls(count, total, float(value @ value))

    def turned(self) -> "_Labels":
        """Give the same with rows and columns exchanged."""
        return _Labels(sparse.csr_array(self.count.T), sparse.csr_array(self.total.T), self.squares)

    def rows(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> "_Labels":
        """Give some rows and columns; the others must be empty."""
        return _Labels(self.count[rows][:, columns], self.total[rows][:, columns], self.squares)

    def squared_error(self, left: Float, right: Float) -> float:
        """Give the sum over all labels of (label - left . right)^2."""
        row = np.repeat(np.arange(len(left)), np.diff(self.count.indptr))
        guess = np.einsum("ek,ek->e", left[row], right[self.count.indices])
        cross = self.total.data @ guess
        return float(self.squares - 2.0 * cross + self.count.data @ (guess * guess))


def _equations(
    labels: _Labels, others: Float, *, mean: Float, precision: Float, noise: float
) -> tuple[Float, Float]:
    """Give precision (R, K, K) and precision times mean (R, K) of the conditional of R rows."""
    rank = others.shape[1]
    upper = np.triu_indices(rank)
    sums = labels.count @ (others[:, upper[0]] * others[:, upper[1]])
    matrix = np.empty((sums.shape[0], rank, rank))
    matrix[:, upper[0], upper[1]] = sums
    matrix[:, upper[1], upper[0]] = sums
    matrix = precision + noise * matrix
    return matrix, precision @ mean + noise * (labels.total @ others)


def _draw(
    labels: _Labels,
    others: Float,
    mean: Float,
    precision: Float,
    noise: float,
    rng: np.random.Generator,
) -> Float:
    """Draw all rows' vectors from their conditional: (R, K)."""
    size = labels.count.shape[0]
    found = np.empty((size, others.shape[1]))
    for start in range(0, size, _ROWS):
        part = _Labels(labels.count[start : start + _ROWS], labels.total[start : start + _ROWS], 0)
        matrix, right = _equations(part, others, mean=mean, precision=precision, noise=noise)
        lower = np.linalg.cholesky(matrix)
        wide = np.linalg.solve(lower, right[..., None])
        wide += rng.normal(size=wide.shape)
        found[start : start + _ROWS] = np.linalg.solve(lower.transpose(0, 2, 1), wide)[..., 0]
    return found


def _draw_prior(rows: Float, rng: np.random.Generator) -> tuple[Float, Float]:
    """Draw mean (K,) and precision (K, K) given vectors (R, K): equation 14 of the paper."""
    size, rank = rows.shape
    centre = rows.mean(axis=0)
    spread = (rows - centre).T @ (rows - centre)
    beta = _BETA_0 + size
    scatter = np.eye(rank) + spread + (size * _BETA_0 / beta) * np.outer(centre, centre)
    precision = _draw_wishart(np.linalg.inv(scatter), rank + size, rng)
    lower = np.linalg.cholesky(beta * precision)
    mean = size * centre / beta + np.linalg.solve(lower.T, rng.normal(size=rank))
    return mean, precision


def _draw_wishart(scale: Float, freedom: int, rng: np.random.Generator) -> Float:
    """Draw from a Wishart distribution by Bartlett's decomposition: (K, K)."""
    rank = len(scale)
    lower = np.tril(rng.normal(size=(rank, rank)), -1)
    lower[np.diag_indices(rank)] = np.sqrt(rng.chisquare(freedom - np.arange(rank)))
    root = np.linalg.cholesky((scale + scale.T) / 2.0) @ lower
    return np.asarray(root @ root.T)
