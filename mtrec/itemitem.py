"""Sparse item-item weights: what having met one item adds to the logit of another.

The optional sparse part of retrieval: EASE where order means nothing, or ridge regression of the
next item where it does. Fitted on the events that the network was fitted on, pruned, and scaled to
the network's logits by validation. Sits beside the item vectors in a bundle. Pure NumPy and SciPy;
no torch, no files, no Ray.

Shapes: B users, N rows of the item vocabulary.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse

from mtrec.data.histories import Histories

_BLOCK = 1 << 24
# After so many half-lives an event counts nothing: its weight is below a thousandth.
_HALVINGS = 10


@dataclass(frozen=True, slots=True)
class Amount:
    """How much an event counts: its value over the mean of training events, 1 without a value.

    Attributes:
        column: number column of the events, not negative.
        mean: of its known values among training events.
    """

    column: str
    mean: float

    @classmethod
    def of(cls, histories: Histories, column: str) -> Self | None:
        """Take the mean of training events; None where it is no positive number."""
        values = histories.numbers[column]
        known = values[np.isfinite(values)].astype(np.float64)
        mean = float(known.mean()) if len(known) else 0.0
        return cls(column, mean) if mean > 0.0 else None

    def __call__(self, histories: Histories) -> NDArray[np.float64]:
        """Give each event's amount."""
        values = histories.numbers.get(self.column)
        if values is None:
            return np.ones(len(histories.item_index))
        share = values.astype(np.float64) / self.mean
        return np.where(np.isfinite(share), np.maximum(share, 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class ItemItem:
    """Weights of pairs of items.

    Attributes:
        weights: (N, N) float32; row j, column i: what having met j adds to the logit of i.
        half_life: events after which having met an item counts half; None: it always counts alike.
        amount: what of an event says how much it counts; None: all count alike.
    """

    weights: sparse.csr_array
    half_life: float | None = None
    amount: Amount | None = None

    def scores(self, histories: Histories) -> sparse.csr_array:
        """Give what users' histories add to the logits of all items: (B, N) float32.

        With a half-life, events of a history are in their order.
        """
        size = self.weights.shape[0]
        if self.half_life is None:
            met = interaction_matrix(histories, size, self.amount)
        else:
            met = decayed_matrix(histories, size, self.half_life)
        return sparse.csr_array(met @ self.weights)

    def scaled(self, factor: float) -> "ItemItem":
        """Give all weights times a factor."""
        return replace(self, weights=sparse.csr_array(self.weights * np.float32(factor)))

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Give arrays that `from_arrays` reads back."""
        csr = self.weights
        more: dict[str, NDArray[np.generic]] = {}
        if self.half_life is not None:
            more["half_life"] = np.array(self.half_life)
        if self.amount is not None:
            more["amount"] = np.array(self.amount.mean)
        return {"indptr": csr.indptr, "indices": csr.indices, "data": csr.data, **more}

    @classmethod
    def from_arrays(
        cls, arrays: dict[str, NDArray[np.generic]], num_items: int, column: str | None = None
    ) -> Self:
        """Read what `to_arrays` gave; `column` is that of the amount.

        Raises:
            ValueError: they are no weights of that many items.
        """
        parts = (arrays["data"], arrays["indices"], arrays["indptr"])
        weights = sparse.csr_array(parts, shape=(num_items, num_items))
        weights.check_format(full_check=True)
        half_life = float(arrays["half_life"]) if "half_life" in arrays else None
        amount = None
        if column is not None and "amount" in arrays:
            amount = Amount(column, float(arrays["amount"]))
        return cls(weights, half_life, amount)


@dataclass(frozen=True, slots=True)
class NextItemSums:
    """What ridge regression of the next item needs of histories, whatever the ridge.

    Each event after a user's first is a row: S holds what the user met before, an item's weight
    2^(-age / half-life) with age 0 for the event just before, Y has a 1 for the item itself.

    Attributes:
        gram: S'S, (M, M) over the items that somebody met.
        cross: S'Y, (M, M).
        met: (M,) those items.
        num_items: N.
        half_life: in events.
    """

    gram: NDArray[np.float64]
    cross: NDArray[np.float64]
    met: NDArray[np.int64]
    num_items: int
    half_life: float

    @classmethod
    def of(cls, histories: Histories, num_items: int, half_life: float) -> Self:
        """Sum over histories whose events are in their order; takes two (M, M) matrices of memory.

        S holds the latest ten half-lives of events, here and in `decayed_matrix`.
        """
        item = histories.item_index.astype(np.int64)
        counts = np.bincount(item, minlength=num_items)
        counts[:2] = 0
        met = np.flatnonzero(counts)
        place = np.full(num_items, -1)
        place[met] = np.arange(len(met))
        at, after = place[item], _events_after(histories)
        gram, cross = np.zeros((2, len(met), len(met)))
        keep, window = 2.0 ** (-1.0 / half_life), _window(half_life)
        for gap in range(window + 1):
            first = np.flatnonzero((after >= gap) & (at >= 0))
            first = first[at[first + gap] >= 0]
            second = first + gap
            pair = at[first] * len(met) + at[second]
            # Both are before each event from the second's next one on, as long as the window holds
            # the first: keep^gap + keep^(gap + 2) + ...
            times = np.minimum(after[second], window - gap)
            both = keep**gap * (1.0 - keep ** (2.0 * times)) / (1.0 - keep**2)
            np.add.at(gram.reshape(-1), pair, both if gap else 0.5 * both)
            if gap:
                np.add.at(cross.reshape(-1), pair, keep ** (gap - 1))
        gram += gram.T.copy()
        return cls(gram, cross, met, num_items, half_life)

    def fit(self, reg: float, top: int) -> ItemItem:
        """Give (S'S + reg I)^-1 S'Y, of what leads to each item the `top` largest weights in size.

        SLIT (Choi et al. 2021, Session-aware linear item-item models, section 3.3) whose only
        target is the next item.
        """
        ridged = self.gram.copy()
        ridged[np.diag_indices_from(ridged)] += reg
        weights = linalg.solve(ridged, self.cross, assume_a="pos", overwrite_a=True)
        return ItemItem(_pruned([weights], self.met, top, self.num_items), self.half_life)


def fit_ease(
    histories: Histories, num_items: int, *, reg: float, top: int, amount: Amount | None = None
) -> ItemItem:
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
        amount: how much an event counts in X; None: 1 for every item that a user met.
    """
    matrix = interaction_matrix(histories, num_items, amount)
    met = np.flatnonzero(np.bincount(matrix.indices, minlength=num_items))
    kept = sparse.csr_array(matrix[:, met].astype(np.float64))
    if kept.shape[0] < len(met):
        columns = _columns_from_users(kept, reg)
    else:
        columns = _columns_from_items(kept, reg)
    return ItemItem(_pruned(columns, met, top, num_items), amount=amount)


def _pruned(
    columns: Iterable[NDArray[np.float64]], met: NDArray[np.int64], top: int, num_items: int
) -> sparse.csr_array:
    """Keep of what leads to each item the weights that are largest in size.

    Args:
        columns: blocks of columns (M, C) of weights between the items of `met`; changed in place.
        met: (M,) items.
        top: weights kept for an item.
        num_items: N.
    """
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
    return sparse.csr_array((value, (row, column)), shape=(num_items, num_items))


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


def interaction_matrix(
    histories: Histories, num_items: int, amount: Amount | None = None
) -> sparse.csr_array:
    """Give who touched what: (B, N) float32, 1 where a user has a known item in its history.

    With an amount, the mean of the events' in place of 1.
    """
    known = histories.item_index >= 2
    user, item = histories.event_user[known], histories.item_index[known]
    shape = (len(histories), num_items)
    matrix = sparse.csr_array((np.ones(len(user), np.float32), (user, item)), shape=shape)
    matrix.sum_duplicates()
    if amount is None:
        matrix.data[:] = 1.0
        return matrix
    total = sparse.csr_array((amount(histories)[known].astype(np.float32), (user, item)), shape)
    total.sum_duplicates()
    # The same places in the same order: what was zero stays stored.
    matrix.data = total.data / matrix.data
    return matrix


def decayed_matrix(histories: Histories, num_items: int, half_life: float) -> sparse.csr_array:
    """Give what users met lately: (B, N) float32, 2^(-age / half-life) summed over events.

    The latest event has age 0, the one before it 1; unknown items count as events.
    """
    age = _events_after(histories)
    known = (histories.item_index >= 2) & (age < _window(half_life))
    weight = (2.0 ** (-age[known] / half_life)).astype(np.float32)
    user, item = histories.event_user[known], histories.item_index[known]
    return sparse.csr_array((weight, (user, item)), shape=(len(histories), num_items))


def _events_after(histories: Histories) -> NDArray[np.int64]:
    """Give how many events of its user come after each event."""
    last = histories.offsets[1:][histories.event_user] - 1
    return np.asarray(last - np.arange(len(last)))


def _window(half_life: float) -> int:
    """Give how many of the latest events count."""
    return math.ceil(_HALVINGS * half_life)


def inverse_of(gram: NDArray[np.floating], reg: float) -> NDArray[np.float64]:
    """Invert a Gram matrix plus reg on the diagonal, by Cholesky."""
    full = gram.astype(np.float64)
    full[np.diag_indices_from(full)] += reg
    lower = linalg.cholesky(full, lower=True, overwrite_a=True, check_finite=False)
    inverse, info = linalg.lapack.dpotri(lower, lower=1, overwrite_c=1)
    assert info == 0, "the matrix is positive definite by construction"
    return np.asarray(np.tril(inverse) + np.tril(inverse, -1).T)
