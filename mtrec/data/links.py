"""Links between users, such as friendships: each once, split by a hash, and as arrays.

A link has no direction: the pair (a, b) is the pair (b, a), and the smaller id stands first. Pure
Arrow, NumPy and SciPy; `pipeline` reads the table, `friends` says what links mean for
recommendations.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import sparse

from mtrec.data import splits
from mtrec.data.contract import PLACE
from mtrec.data.histories import SPLITS
from mtrec.data.parts import REJECTS, set_aside

SCHEMA = pa.schema([("user_id", pa.string()), ("friend_id", pa.string()), ("split", pa.string())])
"""Columns of `dataset/social.parquet`, sorted by both ids, `user_id` before `friend_id`."""


@dataclass(frozen=True, slots=True)
class Links:
    """L links between U users, who are positions in the order of their ids.

    Attributes:
        pairs: (L, 2) int64; the smaller position stands first, and no pair is there twice.
        split: (L,) int8, position in `SPLITS`.
        num_users: U.
    """

    pairs: NDArray[np.int64]
    split: NDArray[np.int8]
    num_users: int

    def __len__(self) -> int:
        return len(self.pairs)

    @classmethod
    def from_table(cls, table: pa.Table, user_ids: pa.ChunkedArray | pa.Array) -> Self:
        """Read `dataset/social.parquet`; positions are those of the dataset's users."""
        ends = [
            pc.index_in(table.column(name), value_set=_one(user_ids)).to_numpy()
            for name in ("user_id", "friend_id")
        ]
        pairs = np.stack(ends, axis=1).astype(np.int64)
        split = pc.index_in(table.column("split"), value_set=pa.array(SPLITS)).to_numpy()
        return cls(pairs, split.astype(np.int8), len(user_ids))

    def select(self, keep: NDArray[np.bool_]) -> Self:
        """Keep the links where `keep` (L,) is true."""
        return type(self)(self.pairs[keep], self.split[keep], self.num_users)

    def before(self, split: str) -> Self:
        """Keep the links of earlier splits: what may be known when `split` is evaluated."""
        return self.select(self.split < SPLITS.index(split))

    def of(self, split: str) -> Self:
        """Keep the links of one split."""
        return self.select(self.split == SPLITS.index(split))

    def both_ways(self) -> NDArray[np.int64]:
        """Give each link from either end: (2 L, 2) int64."""
        return np.concatenate([self.pairs, self.pairs[:, ::-1]])

    def adjacency(self) -> sparse.csr_array:
        """Give who is linked to whom: (U, U) float32, symmetric, 1 where there is a link."""
        user, friend = self.both_ways().T
        shape = (self.num_users, self.num_users)
        matrix = sparse.csr_array((np.ones(len(user), np.float32), (user, friend)), shape=shape)
        matrix.sort_indices()
        return matrix


def clean_links(rows: pa.Table) -> tuple[pa.Table, pa.Table, int]:
    """Tell links apart from rows that are none.

    Args:
        rows: accepted rows with `user_id`, `friend_id` and `_place`.

    Returns:
        `user_id` and `friend_id`, smaller id first, sorted, each link once; the rows of users
        linked to themselves, as a `REJECTS` table; and how many rows said what another had said.
    """
    itself = pc.equal(rows.column("user_id"), rows.column("friend_id"))
    itself = np.asarray(itself.to_numpy(zero_copy_only=False), bool)
    aside = REJECTS.empty_table()
    if itself.any():
        told = rows.select(["user_id", "friend_id", PLACE])
        aside = set_aside(told, {"friend_id is the user itself": itself})
    kept = rows.filter(pa.array(~itself))
    user, friend = kept.column("user_id"), kept.column("friend_id")
    # Arrow compares strings by their UTF-8 bytes, which is the order of users everywhere.
    turned = pc.greater(user, friend)
    ends = pa.table(
        {
            "user_id": pc.if_else(turned, friend, user),
            "friend_id": pc.if_else(turned, user, friend),
        }
    )
    links = ends.group_by(["user_id", "friend_id"], use_threads=False).aggregate([])
    links = links.select(["user_id", "friend_id"])
    links = links.sort_by([("user_id", "ascending"), ("friend_id", "ascending")])
    return links, aside, kept.num_rows - links.num_rows


def split_links(links: pa.Table, *, seed: int, validation: float, test: float) -> pa.Table:
    """Draw each link's split from a hash of the seed and both ids; gives a table of `SCHEMA`."""
    hashes = [splits.hash_strings(links.column(name)) for name in ("user_id", "friend_id")]
    drawn = splits.random_split(splits.mix(seed, *hashes), validation=validation, test=test)
    named = pa.array(SPLITS).take(pa.array(drawn))
    return links.append_column("split", named).cast(SCHEMA)


def _one(values: pa.ChunkedArray | pa.Array) -> pa.Array:
    if isinstance(values, pa.ChunkedArray):
        return values.combine_chunks()
    return values
