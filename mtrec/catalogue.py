"""The items of a bundle as requests name them: ids, columns, filters, search.

`Recommender` turns ids into positions and positions into what an answer shows through here. Pure
Arrow and NumPy; vectors and counts are other modules' business.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtrec.dataconfig import Column
from mtrec.errors import RequestError
from mtrec.query import clip
from mtrec.rerank import ItemFilter

NUM_SPECIAL = 2
"""Positions before the first item: 0 padding, 1 unknown."""


class Catalogue:
    """Look up items by id, position, column values or words.

    Args:
        items: one row an item, in the order of positions; `item_id` and the configured columns.
        columns: the configured columns, by name.
        has_integer_ids: answers write ids as integers.
    """

    def __init__(
        self, items: pa.Table, columns: Mapping[str, Column], *, has_integer_ids: bool
    ) -> None:
        ids = items.column("item_id").to_pylist()
        self._ids: list[str] = ["", "", *ids]
        self._position = {item_id: at + NUM_SPECIAL for at, item_id in enumerate(ids)}
        self._has_integer_ids = has_integer_ids
        self._table = items.select(list(columns))
        self._words = [items.column("item_id"), *map(_as_text, self._table.columns)]
        self.filter = ItemFilter(items, columns, first=NUM_SPECIAL)
        self.tie_rank = _rank_ids(ids, has_integer_ids=has_integer_ids)
        """(N,) int64: each position's place in the order of the source's ids."""

    def __len__(self) -> int:
        return len(self._ids) - NUM_SPECIAL

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._position

    def position(self, item_id: str) -> int:
        """Give the position of an item that is there."""
        return self._position[item_id]

    def item_id(self, position: int) -> str:
        """Give an item's id as mtrec keeps it."""
        return self._ids[position]

    def require(self, item_id: str, field: str) -> int:
        """Give the position of an item that a request names in `field`.

        Raises:
            RequestError: 404, there is no such item.
        """
        position = self._position.get(item_id)
        if position is None:
            raise RequestError(
                f'{field}: item "{clip(item_id)}" is not in the catalogue of {len(self)} items',
                code="unknown_item",
                status=404,
                field=field,
            )
        return position

    def source_id(self, position: int | np.integer) -> str | int:
        """Give an item's id in the type of the source."""
        item_id = self._ids[position]
        return int(item_id) if self._has_integer_ids else item_id

    def describe(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """Give `item_id` and the configured columns of items, in the order asked."""
        rows = self._table.take(pa.array([at - NUM_SPECIAL for at in positions], pa.int64()))
        values = rows.to_pylist() if rows.num_columns else [{}] * len(positions)
        return [
            {"item_id": self.source_id(at), **row}
            for at, row in zip(positions, values, strict=True)
        ]

    def find(self, words: str, limit: int) -> list[int]:
        """Give the first `limit` positions, in the order of ids, whose id or text holds `words`."""
        found = np.zeros(len(self), bool)
        for column in self._words:
            match = pc.match_substring(column, words, ignore_case=True)
            found |= pc.fill_null(match, False).to_numpy()
        places = np.flatnonzero(found) + NUM_SPECIAL
        order = np.argsort(self.tie_rank[places], kind="stable")
        first: list[int] = places[order][:limit].tolist()
        return first


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return pc.binary_join(column, "\n")
    return column.cast(pa.string())


def _rank_ids(ids: Sequence[str], *, has_integer_ids: bool) -> NDArray[np.int64]:
    """Give each position's place in the order of the ids; integers sort as such."""
    rank = np.arange(len(ids) + NUM_SPECIAL, dtype=np.int64)
    # Items that were added to a bundle stand behind the others, whatever their ids.
    keys: Sequence[int | str] = [int(item_id) for item_id in ids] if has_integer_ids else ids
    order = sorted(range(len(ids)), key=keys.__getitem__)
    rank[NUM_SPECIAL:][order] = np.arange(NUM_SPECIAL, len(rank))
    return rank
