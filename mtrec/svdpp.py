"""SVD++, a classical predictor of what users say of items: biases, factors, and what was met.

Fitted and tuned as a baseline by `baselines.py`. NumPy and SciPy only.

Shapes: U users, N rows of the item vocabulary, K factors, P labels.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import minimize
from threadpoolctl import threadpool_limits

Floats = NDArray[np.float64]
# First factors are drawn with this deviation: of zeros nothing would ever be learned.
_START = 0.1


class SvdPP:
    """mu + b_u + b_i + q_i . (p_u + |N_u|^-1/2 sum over N_u of y_j), N_u the items of u's labels.

    Koren (2008), equation 15, with its objective: the squared error, and for each label `reg_bias`
    times the squares of the two biases and `reg` times those of p_u, q_i and the y_j of N_u. Found
    by L-BFGS, which needs no learning rate. Users and items without a label have offset 0. For a
    binary label it is a linear probability model, to be clipped.
    """

    def __init__(
        self, mean: float, user_bias: Floats, item_bias: Floats, users: Floats, items: Floats
    ) -> None:
        self._mean = mean
        self._user_bias = user_bias
        self._item_bias = item_bias
        self._users = users
        self._items = items

    @classmethod
    def fit(
        cls,
        user: NDArray[np.int64],
        item: NDArray[np.int32],
        label: Floats,
        *,
        num_users: int,
        num_items: int,
        factors: int,
        reg: float,
        reg_bias: float,
        iterations: int = 100,
    ) -> "SvdPP":
        """Fit on labels (P,) of users and items (P,), which are in the order of users."""
        if not len(label):
            nothing = np.zeros((num_users, 0)), np.zeros((num_items, 0))
            return cls(0.0, np.zeros(num_users), np.zeros(num_items), *nothing)
        objective = _Objective(
            user, item, label, (num_users, num_items), factors=factors, reg=reg, reg_bias=reg_bias
        )
        # Short vectors: BLAS threads only wait for each other, up to fifty times as long.
        with threadpool_limits(1, "blas"):
            found = minimize(
                objective,
                objective.start(),
                jac=True,
                method="L-BFGS-B",
                options={"maxiter": iterations, "maxfun": 2 * iterations},
            )
        user_bias, item_bias, own, items, met = objective.parts(found.x)
        users = own + objective.met @ met
        return cls(objective.mean, user_bias, item_bias, users, items)

    def predict(self, user: NDArray[np.int64], item_index: NDArray[np.int32]) -> Floats:
        """Give (P,) predictions, not clipped."""
        offsets = self._mean + self._user_bias[user] + self._item_bias[item_index]
        product = np.einsum("pk,pk->p", self._users[user], self._items[item_index])
        return np.asarray(offsets + product)


class _Objective:
    """The value and the gradient of what is minimised, at all parameters in one vector."""

    def __init__(
        self,
        user: NDArray[np.int64],
        item: NDArray[np.int32],
        label: Floats,
        shape: tuple[int, int],
        *,
        factors: int,
        reg: float,
        reg_bias: float,
    ) -> None:
        num_users, num_items = shape
        self.mean = float(label.mean())
        self._user, self._item, self._rest = user, item, label - self.mean
        self._shape = shape
        self._starts = np.searchsorted(user, np.arange(num_users + 1))
        per_user = np.bincount(user, minlength=num_users).astype(np.float64)
        per_item = np.bincount(item, minlength=num_items).astype(np.float64)
        touched = sparse.csr_array((np.ones(len(user)), (user, item)), shape=shape)
        touched.data[:] = 1.0  # an item twice is one
        size = np.maximum(np.asarray(touched.sum(1)), 1.0)
        self.met = sparse.csr_array(sparse.diags_array(size**-0.5) @ touched)
        columns = (slice(None), None)
        self._penalties = (
            reg_bias * per_user,
            reg_bias * per_item,
            reg * per_user[columns],
            reg * per_item[columns],
            reg * np.asarray(touched.T @ per_user)[columns],
        )
        self._shapes: list[tuple[int, ...]] = [
            (num_users,),
            (num_items,),
            (num_users, factors),
            (num_items, factors),
            (num_items, factors),
        ]

    def start(self) -> Floats:
        """Give the first parameters: no biases, small factors, none of who has no label."""
        rng = np.random.default_rng(0)
        biases, factors = self._shapes[:2], self._shapes[2:]
        known = [penalty > 0 for penalty in self._penalties[2:]]
        return np.concatenate(
            [
                *(np.zeros(shape) for shape in biases),
                *(
                    (rng.normal(0.0, _START, shape) * rows).ravel()
                    for shape, rows in zip(factors, known, strict=True)
                ),
            ]
        )

    def parts(self, parameters: Floats) -> list[Floats]:
        """Cut a vector: b_u (U,), b_i (N,), p (U, K), q (N, K), y (N, K)."""
        sizes = [int(np.prod(shape)) for shape in self._shapes]
        cut = np.split(parameters, np.cumsum(sizes)[:-1])
        return [part.reshape(shape) for part, shape in zip(cut, self._shapes, strict=True)]

    def __call__(self, parameters: Floats) -> tuple[float, Floats]:
        """Give half the objective and its gradient."""
        found = self.parts(parameters)
        user_bias, item_bias, own, items, met = found
        users = own + self.met @ met
        product = np.einsum("pk,pk->p", users[self._user], items[self._item])
        error = user_bias[self._user] + item_bias[self._item] + product - self._rest
        errors: Any = sparse.csr_array((error, self._item, self._starts), shape=self._shape)
        of_users = errors @ items
        gradients = [
            np.bincount(self._user, error, self._shape[0]),
            np.bincount(self._item, error, self._shape[1]),
            of_users,
            errors.T @ users,
            self.met.T @ of_users,
        ]
        value = 0.5 * float(error @ error)
        slopes = []
        for part, gradient, penalty in zip(found, gradients, self._penalties, strict=True):
            value += 0.5 * float((penalty * part**2).sum())
            slopes.append((gradient + penalty * part).ravel())
        return value, np.concatenate(slopes)
