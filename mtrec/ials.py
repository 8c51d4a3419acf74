"""Factors of implicit feedback: who touched what, in a few numbers an item.

The optional low-rank part of retrieval, for data whose order means nothing: iALS fitted on the
events that the network was fitted on (`baselines.fit_ials`), scaled to the network's logits by
validation. Users have no rows: each is solved for from its history. Sits beside the item vectors
in a bundle. Pure NumPy; no torch, no files, no Ray.

Shapes: B users, N rows of the item vocabulary, K factors.
"""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Self

import numpy as np
from numpy.typing import NDArray

from mtrec.catalogue import NUM_SPECIAL
from mtrec.data.histories import Histories


@dataclass(frozen=True, slots=True)
class ImplicitFactors:
    """Item vectors of iALS, and what solves a user's vector.

    Attributes:
        items: (N, K) float32; zeros for an item that nobody met.
        gram: (K, K) float64, items' items.
        alpha: confidence of a pair that met; one that did not has 1.
        reg: the ridge.
        scale: factor from scores to logits.
    """

    items: NDArray[np.float32]
    gram: NDArray[np.float64]
    alpha: float
    reg: float
    scale: float = 1.0

    @classmethod
    def of(
        cls, items: NDArray[np.float32], *, alpha: float, reg: float, scale: float = 1.0
    ) -> Self:
        """Make it of item vectors (N, K)."""
        wide = items.astype(np.float64)
        return cls(items, wide.T @ wide, alpha, reg, scale)

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
        return {"items": self.items, "settings": np.array([self.alpha, self.reg, self.scale])}

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[np.generic]], num_items: int) -> Self:
        """Read what `to_arrays` gave.

        Raises:
            ValueError: they are no vectors of that many items.
        """
        items, settings = arrays["items"], arrays["settings"]
        if items.ndim != 2 or len(items) != num_items or settings.shape != (3,):
            raise ValueError(f"ials: {items.shape} and {settings.shape} for {num_items} items")
        alpha, reg, scale = settings.tolist()
        return cls.of(items.astype(np.float32, copy=False), alpha=alpha, reg=reg, scale=scale)
