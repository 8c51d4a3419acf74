"""Factors of implicit feedback: who touched what, in a few numbers an item.

The optional low-rank part of retrieval: iALS fitted on the events that the network was fitted on,
scaled to the network's logits by validation. Users have no rows: each is solved for from its
history. Items that nobody met may get factors that their texts tell. Sits beside the item vectors
in a bundle. NumPy, and `implicit` for the fit; no torch, no files, no Ray.

Shapes: B users, N rows of the item vocabulary, K factors, M texts, W numbers of a text vector.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from threadpoolctl import threadpool_limits

from mtrec.catalogue import NUM_SPECIAL
from mtrec.data.histories import Histories
from mtrec.itemitem import interaction_matrix

ARRAYS = ("items", "settings", "gram", "told", "text_weights", "text_means")
"""What `ImplicitFactors.to_arrays` gives; the last four only where texts tell factors."""
# Small problems: two threads gain, more only wait for each other, and neither changes a result.
_NUM_THREADS = 2


@dataclass(frozen=True, slots=True)
class TextMap:
    """What texts say of factors: a ridge regression with intercept.

    Attributes:
        weights: (W, K) float32.
        text_mean: (W,) float32, of the texts that it was fitted on.
        item_mean: (K,) float32, of their items' factors.
    """

    weights: NDArray[np.float32]
    text_mean: NDArray[np.float32]
    item_mean: NDArray[np.float32]

    @classmethod
    def fit(cls, text: NDArray[np.floating], items: NDArray[np.floating], ridge: float) -> Self:
        """Fit on M texts (M, W) and factors (M, K): (T'T + ridge I)^-1 T'Y, both centred."""
        rows, targets = text.astype(np.float64), items.astype(np.float64)
        text_mean, item_mean = rows.mean(0), targets.mean(0)
        centred = rows - text_mean
        gram = centred.T @ centred + ridge * np.eye(rows.shape[1])
        weights = np.linalg.solve(gram, centred.T @ (targets - item_mean))
        return cls(
            weights.astype(np.float32), text_mean.astype(np.float32), item_mean.astype(np.float32)
        )

    def __call__(self, text: NDArray[np.floating]) -> NDArray[np.float32]:
        """Tell the factors of texts (M, W): (M, K) float32; zeros for a row of zeros, no text."""
        told = (text - self.text_mean) @ self.weights + self.item_mean
        return np.asarray(told * text.any(axis=1, keepdims=True), np.float32)


@dataclass(frozen=True, slots=True)
class ImplicitFactors:
    """Item vectors of iALS, and what solves a user's vector.

    Attributes:
        items: (N, K) float32; of an item that nobody met what its text tells, or zeros.
        gram: (K, K) float64, items' items over those that somebody met.
        alpha: confidence of a pair that met; one that did not has 1.
        reg: the ridge.
        scale: factor from scores to logits.
        text_map: tells factors from texts; None: texts tell nothing.
        told: (N,) bool, whose factors are told by text; None: of none.
    """

    items: NDArray[np.float32]
    gram: NDArray[np.float64]
    alpha: float
    reg: float
    scale: float = 1.0
    text_map: TextMap | None = None
    told: NDArray[np.bool_] | None = None

    @classmethod
    def of(
        cls, items: NDArray[np.float32], *, alpha: float, reg: float, scale: float = 1.0
    ) -> Self:
        """Make it of item vectors (N, K)."""
        wide = items.astype(np.float64)
        return cls(items, wide.T @ wide, alpha, reg, scale)

    def with_texts(self, text: NDArray[np.floating], ridge: float) -> "ImplicitFactors":
        """Give the same with factors of items that nobody met, told by their texts (N, W).

        Content mapped to the factors of a fitted factorisation, for new items, is what Gantner et
        al. (2010) do and what DropoutNet (Volkovs et al. 2017) does with a network. An unmet item
        without text keeps zeros. Unchanged if no item that somebody met has a text.
        """
        has_text, is_met = (np.asarray(rows.any(axis=1)) for rows in (text, self.items))
        has_text[:NUM_SPECIAL] = False
        known = has_text & is_met
        told = has_text & ~is_met
        if not known.any():
            return self
        text_map = TextMap.fit(text[known], self.items[known], ridge)
        items = self.items.copy()
        items[told] = text_map(text[told])
        return replace(self, items=items, text_map=text_map, told=told)

    def users(self, histories: Histories) -> NDArray[np.float32]:
        """Give users' vectors, whose inner products with `items` are logits: (B, K) float32.

        x = (Y'Y + (alpha - 1) Y_h'Y_h + reg I)^-1 alpha Y_h'1, where h are the distinct items of
        the history (Hu et al. 2008, equation 4); zeros for an empty history.
        """
        found = np.zeros((len(histories), self.items.shape[1]), np.float32)
        base = self.gram + self.reg * np.eye(len(self.gram))
        for user, (start, stop) in enumerate(pairwise(histories.offsets)):
            met = np.unique(histories.item_index[start:stop])
            met = met[met >= NUM_SPECIAL]
            if len(met):
                vectors = self.items[met].astype(np.float64)
                matrix = base + (self.alpha - 1.0) * (vectors.T @ vectors)
                found[user] = np.linalg.solve(matrix, self.alpha * vectors.sum(axis=0))
        return found * np.float32(self.scale)

    def scores(self, histories: Histories) -> NDArray[np.float32]:
        """Give what users' histories add to the logits of all items: (B, N) float32."""
        return np.asarray(self.users(histories) @ self.items.T)

    def scaled(self, factor: float) -> "ImplicitFactors":
        """Give the same with all scores times a factor."""
        return replace(self, scale=self.scale * factor)

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """Give arrays that `from_arrays` reads back."""
        arrays: dict[str, NDArray[np.generic]] = {
            "items": self.items,
            "settings": np.array([self.alpha, self.reg, self.scale]),
        }
        if self.text_map is not None and self.told is not None:
            arrays |= {
                "gram": self.gram,
                "told": self.told,
                "text_weights": self.text_map.weights,
                "text_means": np.concatenate([self.text_map.text_mean, self.text_map.item_mean]),
            }
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]], num_items: int) -> Self:
        """Read what `to_arrays` gave.

        Raises:
            ValueError: they are no vectors of that many items.
        """
        items, settings = arrays["items"], arrays["settings"]
        if items.ndim != 2 or len(items) != num_items or settings.shape != (3,):
            raise ValueError(f"ials: {items.shape} and {settings.shape} for {num_items} items")
        alpha, reg, scale = settings.tolist()
        found = cls.of(items.astype(np.float32, copy=False), alpha=alpha, reg=reg, scale=scale)
        if "told" not in arrays:
            return found
        gram, told = arrays["gram"].astype(np.float64), arrays["told"].astype(np.bool_)
        weights = arrays["text_weights"].astype(np.float32)
        means = arrays["text_means"].astype(np.float32)
        width, factors = weights.shape
        if (gram.shape, told.shape, factors, len(means)) != (
            (items.shape[1], items.shape[1]),
            (num_items,),
            items.shape[1],
            width + factors,
        ):
            raise ValueError(f"ials: texts of {width} numbers for {items.shape[1]} factors")
        text_map = TextMap(weights, means[:width], means[width:])
        return replace(found, gram=gram, told=told, text_map=text_map)


def fit_ials(
    histories: Histories,
    num_items: int,
    *,
    factors: int,
    alpha: float,
    reg: float,
    seed: int,
    iterations: int = 15,
) -> ImplicitFactors:
    """Factorise implicit feedback by alternating least squares (Hu et al. 2008).

    Minimises sum_ui c_ui (p_ui - x_u'y_i)^2 + reg (|X|^2 + |Y|^2), c = alpha where a user touched
    an item and 1 elsewhere; `implicit` does the work.
    """
    # The library knows the old SciPy class. It warns unless BLAS runs on one thread: its own
    # threads share the work.
    matrix = sparse.csr_matrix(interaction_matrix(histories, num_items))
    with threadpool_limits(1, "blas"):
        from implicit.cpu.als import AlternatingLeastSquares

        model = AlternatingLeastSquares(
            factors=factors,
            alpha=alpha,
            regularization=reg,
            iterations=iterations,
            num_threads=_NUM_THREADS,
            random_state=seed,
        )
        model.fit(matrix, show_progress=False)
    items = np.array(model.item_factors, np.float32)
    # The library leaves them at their random start where nobody has met an item.
    items[np.bincount(matrix.indices, minlength=num_items) == 0] = 0.0
    return ImplicitFactors.of(items, alpha=alpha, reg=reg)
