"""Sparse item-item weights: what having met one item adds to the logit of another.

The optional sparse part of retrieval, for data whose order means nothing: EASE fitted on the events
that the network was fitted on, pruned, and scaled to the network's logits by validation. Sits
beside the item vectors in a bundle. Pure NumPy and SciPy; no torch, no files, no Ray.

Shapes: B users, N rows of the item vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

from mtrec.data.histories import Histories

_BLOCK = 1 << 24


@dataclass(frozen=True, slots=True)
class ItemItem:
    """Weights of pairs of items.

    Attributes:
        weights: (N, N) float32; row j, column i: what having met j adds to the logit of i.
    """

    weights: sparse.csr_array

    def scores(self, histories: Histories) -> sparse.csr_array:
        """Give what users' histories add to the logits of all items: (B, N) float32."""
        return sparse.csr_array(interaction_matrix(histories, self.weights.shape[0]) @ self.weights)

    def scaled(self, factor: float) -> "ItemItem":
        """Give all weights times a factor."""
        return ItemItem(sparse.csr_array(self.weights * np.float32(factor)))

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Give arrays that `from_arrays` reads back."""
        csr = self.weights
        return {"indptr": csr.indptr, "indices": csr.indices, "data": csr.data}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[np.generic]], num_items: int) -> Self:
        """Read what `to_arrays` gave.

        Raises:
            ValueError: they are no weights of that many items.
        """
        parts = (arrays["data"], arrays["indices"], arrays["indptr"])
        weights = sparse.csr_array(parts, shape=(num_items, num_items))
        weights.check_format(full_check=True)
        return cls(weights)


def fit_ease(histories: Histories, num_items: int, *, reg: float, top: int) -> ItemItem:
    """Fit EASE and keep of what leads to each item the `top` weights that are largest in size.

    B = I - P diag(1 / P), P = (X'X + reg I)^-1 (Steck 2019, equation 8). Items that nobody met take
    no part. With fewer users than such items the inverse is that of the users' side, which is the
    same matrix: P = (I - X' (XX' + reg I)^-1 X) / reg. Memory is that of a dense matrix over the
    smaller side, beside blocks of columns and the weights that are kept.

    Args:
        histories: what may be known.
        num_items: N.
        reg: the ridge; larger ones trust pairs that few users have less.
        top: weights kept for an item.
    """
    matrix = interaction_matrix(histories, num_items)
    met = np.flatnonzero(np.bincount(matrix.indices, minlength=num_items))
    kept = sparse.csr_array(matrix[:, met].astype(np.float64))
    if kept.shape[0] < len(met):
        columns = _columns_from_users(kept, reg)
    else:
        columns = _columns_from_items(kept, reg)
    rows, values, counts = [], [], []
    for block in columns:
        if top < len(met):
            size = np.abs(block)
            bound = np.partition(size, len(met) - top, axis=0)[len(met) - top]
            block[size < bound] = 0.0
        column, row = np.nonzero(block.T)
        rows.append(row)
        values.append(block[row, column].astype(np.float32))
        counts.append(np.bincount(column, minlength=block.shape[1]))
    column = met.repeat(np.concatenate(counts)) if counts else met
    row = met[np.concatenate(rows)] if rows else met
    value = np.concatenate(values) if values else np.zeros(0, np.float32)
    shape = (num_items, num_items)
    return ItemItem(sparse.csr_array((value, (row, column)), shape=shape))


def _columns_from_items(matrix: sparse.csr_array, reg: float) -> Iterator[NDArray[np.float64]]:
    """Yield EASE's weights, blocks of columns (M, C), from the inverse over the M items."""
    weights = inverse_of((matrix.T @ matrix).toarray(), reg)
    weights /= -np.diag(weights).copy()
    np.fill_diagonal(weights, 0.0)
    size = max(1, _BLOCK // max(1, len(weights)))
    for start in range(0, len(weights), size):
        yield weights[:, start : start + size]


def _columns_from_users(matrix: sparse.csr_array, reg: float) -> Iterator[NDArray[np.float64]]:
    """Yield EASE's weights, blocks of columns (M, C), from the inverse over the users."""
    num_items = matrix.shape[1]
    inverse = inverse_of((matrix @ matrix.T).toarray(), reg)
    by_item = sparse.csr_array(matrix.T)
    size = max(1, _BLOCK // num_items)
    for start in range(0, num_items, size):
        # X'K X of these columns is I - reg P; reg cancels between P and its diagonal.
        through = by_item @ (by_item[start : start + size] @ inverse).T
        inside = np.arange(through.shape[1])
        block = through / (1.0 - through[start + inside, inside])
        block[start + inside, inside] = 0.0
        yield block


def interaction_matrix(histories: Histories, num_items: int) -> sparse.csr_array:
    """Give who touched what: (B, N) float32, 1 where a user has a known item in its history."""
    known = histories.item_index >= 2
    user, item = histories.event_user[known], histories.item_index[known]
    shape = (len(histories), num_items)
    matrix = sparse.csr_array((np.ones(len(user), np.float32), (user, item)), shape=shape)
    matrix.sum_duplicates()
    matrix.data[:] = 1.0
    return matrix


def inverse_of(gram: NDArray[np.floating], reg: float) -> NDArray[np.float64]:
    """Invert a Gram matrix plus reg on the diagonal, by Cholesky."""
    full = gram.astype(np.float64)
    full[np.diag_indices_from(full)] += reg
    lower = linalg.cholesky(full, lower=True, overwrite_a=True, check_finite=False)
    inverse, info = linalg.lapack.dpotri(lower, lower=1, overwrite_c=1)
    assert info == 0, "the matrix is positive definite by construction"
    return np.asarray(np.tril(inverse) + np.tril(inverse, -1).T)
