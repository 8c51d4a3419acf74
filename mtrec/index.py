"""Exact top-K search over the catalogue's item vectors, on a CPU or a GPU.

A sparse part may be added to the logits, user by user.

The first step of every ranked list: `Recommender` asks it for candidates. It knows positions and
vectors only: no ids, no users, no blending. Users are searched in blocks, so that the logits of a
block fit a fixed memory; the answer does not depend on how users are put into blocks.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from mtrec.catalogue import NUM_SPECIAL

# Further items that a block's search takes, so that float32 rounding decides nothing at rank k.
_SLACK = 8
# Rows that suffice to see which library multiplies faster.
_TRIAL_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class Found:
    """What a search gives for B users, best first.

    Attributes:
        item_index: (B, k) int32, positions of items; -1 where a user has fewer than k.
        logit: (B, k) float64, their logits; NaN where `item_index` is -1.
        max_logit: (B,) float64, the best logit of any item that is not excluded for the user,
            whether `allowed` or not; NaN if there is none.
    """

    item_index: NDArray[np.int32]
    logit: NDArray[np.float64]
    max_logit: NDArray[np.float64]


class ExactIndex:
    """Find the k items with the largest logit z_i = u . v_i + bias_i.

    Ties go to the smaller position. Logits are computed anew for what was found, pair by pair in
    float64, so that they depend on neither the block nor the device.

    Args:
        vectors: (N, D) float32, rows 0 and 1 are never found; not copied on a CPU, so that
            processes may share the pages of a memory map.
        bias: (N,) float32.
        device: where the matrix product runs.
        block_bytes: the logits of one block of users take at most so much memory (one user's
            logits at least).
    """

    is_exact = True

    def __init__(
        self,
        vectors: NDArray[np.float32],
        bias: NDArray[np.float32],
        *,
        device: str = "cpu",
        block_bytes: int = 64 << 20,
    ) -> None:
        assert bias.shape == vectors.shape[:1]
        self._vectors = np.asarray(vectors, np.float32)
        self._bias = np.array(bias, np.float32)
        self._device = torch.device(device)
        self._vectors_on_device = torch.from_numpy(self._vectors).to(self._device)
        masked = self._bias.copy()
        masked[:NUM_SPECIAL] = -np.inf
        self._masked_bias = torch.from_numpy(masked).to(self._device)
        self._block = max(1, block_bytes // (4 * max(1, len(self._bias))))
        self._by_numpy = self._device.type == "cpu" and _is_numpy_faster(self._vectors)

    @property
    def num_rows(self) -> int:
        """The number of rows, the two special ones included."""
        return len(self._bias)

    def search(
        self,
        users: NDArray[np.float32],
        k: int,
        *,
        exclude: Sequence[NDArray[np.integer]] | None = None,
        allowed: NDArray[np.bool_] | None = None,
        added: sparse.csr_array | None = None,
    ) -> Found:
        """Give each user's k best items.

        Args:
            users: (B, D) float32, finite.
            k: items per user, at least 1.
            exclude: for each user the positions that must not be found.
            allowed: (N,) bool, the positions that may be found; by default all.
            added: (B, N), to be added to the logits; by default nothing.
        """
        assert np.isfinite(users).all(), "user vectors must be finite"
        item_index = np.full((len(users), k), -1, np.int32)
        logit = np.full((len(users), k), np.nan)
        max_logit = np.full(len(users), np.nan)
        for start in range(0, len(users), self._block):
            rows = slice(start, start + self._block)
            item_index[rows], logit[rows], max_logit[rows] = self._search_block(
                users[rows],
                k,
                exclude[rows] if exclude is not None else None,
                allowed,
                added[rows] if added is not None else None,
            )
        return Found(item_index, logit, max_logit)

    def logits(
        self,
        users: NDArray[np.float32],
        item_index: NDArray[np.integer],
        added: sparse.csr_array | None = None,
    ) -> NDArray[np.float64]:
        """Compute the logits of given pairs: (B, D) users, (B, C) positions -> (B, C) float64."""
        product = np.empty(item_index.shape, np.float64)
        rows = max(1, (16 << 20) // (8 * self._vectors.shape[1] * max(1, item_index.shape[1])))
        for start in range(0, len(users), rows):
            part = slice(start, start + rows)
            vectors = self._vectors[item_index[part]].astype(np.float64)
            vectors *= users[part].astype(np.float64)[:, None, :]
            product[part] = vectors.sum(axis=2)
        if added is not None and item_index.size:
            row = np.repeat(np.arange(len(users)), item_index.shape[1])
            product += np.asarray(added[row, item_index.ravel()]).reshape(item_index.shape)
        result: NDArray[np.float64] = product + self._bias[item_index]
        return result

    def spreads(
        self, users: NDArray[np.float32], added: sparse.csr_array | None = None
    ) -> NDArray[np.float64]:
        """Give the standard deviation of each user's logits over the catalogue: (B,) float64."""
        found = np.zeros(len(users))
        for start in range(0, len(users), self._block):
            rows = slice(start, start + self._block)
            logits = self._all_logits(users[rows], added[rows] if added is not None else None)
            found[rows] = logits[:, NUM_SPECIAL:].double().std(dim=1, correction=0).cpu().numpy()
        return found

    def log_shares(
        self,
        users: NDArray[np.float32],
        item_index: NDArray[np.integer],
        added: sparse.csr_array | None = None,
        exclude: NDArray[np.integer] | None = None,
    ) -> NDArray[np.float64]:
        """Give log softmax of the logits over the catalogue at (C,) positions: (B, C) float64.

        Positions in `exclude` have no part in it, for any user; none of them is in `item_index`.
        """
        shares = np.empty((len(users), len(item_index)))
        for start in range(0, len(users), self._block):
            rows = slice(start, start + self._block)
            more = added[rows] if added is not None else None
            logits = self._all_logits(users[rows], more).double()
            if exclude is not None:
                logits[:, torch.from_numpy(np.asarray(exclude, np.int64))] = -torch.inf
            # The item's logit is the one that is in the sum: with another rounding, what an item
            # lacks to a share of 1 would be lost in the difference of the two.
            own = logits[:, torch.from_numpy(np.asarray(item_index, np.int64))]
            shares[rows] = (own - torch.logsumexp(logits, dim=1, keepdim=True)).cpu().numpy()
        return shares

    def _all_logits(
        self, users: NDArray[np.float32], added: sparse.csr_array | None
    ) -> torch.Tensor:
        """Give the logits of the whole catalogue (B, N), -inf for the special rows."""
        users = np.ascontiguousarray(users, np.float32)
        queries = torch.from_numpy(users).to(self._device)
        if len(users) != 1:
            logits = torch.addmm(self._masked_bias, queries, self._vectors_on_device.T)
        elif self._by_numpy:
            logits = torch.from_numpy(self._vectors @ users[0])[None]
            logits += self._masked_bias
        else:
            logits = torch.addmv(self._masked_bias, self._vectors_on_device, queries[0])[None]
        if added is not None:
            logits += torch.from_numpy(added.toarray()).to(self._device)
        return logits

    def _search_block(
        self,
        users: NDArray[np.float32],
        k: int,
        exclude: Sequence[NDArray[np.integer]] | None,
        allowed: NDArray[np.bool_] | None,
        added: sparse.csr_array | None,
    ) -> tuple[NDArray[np.int32], NDArray[np.float64], NDArray[np.float64]]:
        logits = self._all_logits(users, added)
        if exclude is not None and any(len(items) for items in exclude):
            places = np.concatenate(
                [
                    np.asarray(items, np.int64) + at * len(self._bias)
                    for at, items in enumerate(exclude)
                ]
            )
            logits.view(-1).index_fill_(0, torch.from_numpy(places).to(self._device), -torch.inf)
        best_value, best = None, None
        if allowed is not None:
            best_value, best = logits.max(dim=1)
            logits.masked_fill_(~torch.from_numpy(allowed).to(self._device), -torch.inf)
        values, chosen = _top(logits, min(k + _SLACK, self.num_rows))
        exact = np.where(np.isfinite(values), self.logits(users, chosen, added), -np.inf)
        order = np.lexsort((chosen, -exact), axis=1)[:, :k]
        exact = np.take_along_axis(exact, order, axis=1)
        item_index = np.full((len(users), k), -1, np.int32)
        logit = np.full((len(users), k), np.nan)
        some = np.isfinite(exact)
        width = exact.shape[1]
        item_index[:, :width] = np.where(some, np.take_along_axis(chosen, order, axis=1), -1)
        logit[:, :width] = np.where(some, exact, np.nan)
        # Where nothing was filtered out, the first is the largest.
        max_logit = logit[:, 0].copy()
        if best is not None and best_value is not None:
            largest = self.logits(users, best.cpu().numpy()[:, None], added)[:, 0]
            largest[~np.isfinite(best_value.cpu().numpy())] = np.nan
            # float32 may have taken the second best of two that are almost equal.
            max_logit = np.fmax(largest, max_logit)
        return item_index, logit, max_logit


def _is_numpy_faster(vectors: NDArray[np.float32]) -> bool:
    """Tell whose BLAS multiplies (N, D) by one vector faster here, by the best of five tries each.

    Seen on two AMD CPUs: numpy's OpenBLAS in half of the time of torch's MKL, and in 4/3 of it.
    """
    some = vectors[:_TRIAL_ROWS]
    user = np.ones(some.shape[1], np.float32)
    table, query = torch.from_numpy(some), torch.from_numpy(user)

    def seconds(product: Callable[[], object]) -> float:
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            product()
            times.append(time.perf_counter() - begin)
        return min(times)

    by_torch, by_numpy = seconds(lambda: table @ query), seconds(lambda: some @ user)
    return by_numpy < by_torch


def _top(logits: torch.Tensor, count: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Give each row's `count` largest values and their columns, of equal ones the first."""
    width = min(count + 1, logits.shape[1])
    found = torch.topk(logits, width, dim=1)
    values, chosen = found.values.cpu().numpy(), found.indices.cpu().numpy()
    # topk takes any of several equal values. It matters only where such a tie runs across the end.
    if width > count:
        tied = (values[:, count - 1] == values[:, count]) & np.isfinite(values[:, count])
        for row in np.flatnonzero(tied).tolist():
            order = torch.sort(logits[row], descending=True, stable=True).indices
            chosen[row, :count] = order[:count].cpu().numpy()
    return values[:, :count], chosen[:, :count]
