"""What answers by `user_id`: each user's recent events, seen items, features and text vector.

Built once from a dataset when a bundle is written, read memory-mapped by every `Recommender`, so
that the replicas of a node share its pages and opening it reads next to nothing. Ids are found by
binary search over sorted bytes, not in a dict. All of it lies in one folder of a bundle, apart from
what belongs to the model. Pure NumPy and Arrow; it never ranks anything.
"""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy import sparse

from mtrec.data.dataset import read_table
from mtrec.data.features import Features, FeatureTransform
from mtrec.data.histories import CATEGORY, NUMBER, Histories
from mtrec.errors import ArtifactError

_META = "store.json"
_MULTI = "multi_"
# Bounds the memory of a build: users whose features or text are written at once.
_BLOCK_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class UserRows:
    """Inputs of B users apart from their events, as the model's user tower reads them.

    Attributes:
        features: B rows.
        text: (B, W) float32, vectors of the text encoder; zeros where there is no text.
        has_text: (B,) float32, 1 where there is a text.
        is_known: (B,) bool: the user has a feature row or a text of their own.
    """

    features: Features
    text: NDArray[np.float32]
    has_text: NDArray[np.float32]
    is_known: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.has_text)

    def with_text(self, rows: Sequence[int], text: NDArray[np.float32]) -> "UserRows":
        """Give the users `rows` the text vectors (R, W) in the place of their own."""
        width = text.shape[1]
        texts = np.zeros((len(self), width), np.float32)
        if self.text.shape[1] == width:
            texts[:] = self.text
        has_text, is_known = self.has_text.copy(), self.is_known.copy()
        texts[rows] = text
        has_text[rows] = 1.0
        is_known[rows] = True
        return UserRows(self.features, texts, has_text, is_known)


@dataclass(frozen=True, slots=True)
class SocialRows:
    """What is known of U users' friends.

    Attributes:
        links: (U, U) float32, 1 where two users are linked.
        vectors: (U, D) float32, the model's social vectors.
    """

    links: sparse.csr_array
    vectors: NDArray[np.floating]


def build_user_store(
    path: str,
    histories: Sequence[str],
    users: pa.Table,
    transform: FeatureTransform,
    *,
    max_events: int,
    text: NDArray[np.floating] | None = None,
    social: SocialRows | None = None,
) -> None:
    """Write the store of every user of a dataset.

    Args:
        path: local folder to write to; made if it is not there.
        histories: Parquet files of the dataset's histories; all their events count, whatever
            their split. Events of unknown items (position below 2) are left out.
        users: the dataset's users, sorted by `user_id`.
        transform: makes the users' features.
        max_events: the latest events kept for each user; all of them count as seen.
        text: (U, W), one vector a user, zeros for users without text; None: users have no text.
        social: links and social vectors; None: the model has no social task.
    """
    os.makedirs(path, exist_ok=True)
    ids = users.column("user_id").combine_chunks().cast(pa.large_string())
    if isinstance(ids, pa.ChunkedArray):
        ids = pa.concat_arrays(ids.chunks)
    _write_ids(path, ids)
    num_events, num_seen = (np.zeros(len(ids), np.int64) for _ in range(2))
    number_columns, category_columns = (
        list(transform.event_scaling),
        list(transform.event_categories),
    )
    for part, place in _parts(histories, ids):
        num_events[place] = np.minimum(np.diff(part.offsets), max_events)
        num_seen[place] = np.diff(_seen(part)[0])
    event_offsets, seen_offsets = _offsets(num_events), _offsets(num_seen)
    _save(path, "event_offsets", event_offsets)
    _save(path, "seen_offsets", seen_offsets)
    total = int(event_offsets[-1])
    item_index = _create(path, "event_item_index", (total,), np.int32)
    timestamp = _create(path, "event_timestamp", (total,), np.float64)
    numbers = {c: _create(path, NUMBER + c, (total,), np.float32) for c in number_columns}
    categories = {c: _create(path, CATEGORY + c, (total,), np.int32) for c in category_columns}
    seen_items = _create(path, "seen_items", (int(seen_offsets[-1]),), np.int32)
    for part, place in _parts(histories, ids):
        kept = num_events[place]
        source = _spread(part.offsets[1:] - kept, kept)
        target = _spread(event_offsets[place], kept)
        item_index[target] = part.item_index[source]
        timestamp[target] = part.timestamp[source]
        for column, values in numbers.items():
            values[target] = part.numbers[column][source]
        for column, codes in categories.items():
            codes[target] = part.categories[column][source]
        offsets, items = _seen(part)
        seen_items[_spread(seen_offsets[place], np.diff(offsets))] = items
    _write_features(path, users, transform)
    _write_text(path, len(ids), text)
    if social is not None:
        assert len(social.vectors) == len(ids), "one social vector a user"
        _save(path, "link_offsets", social.links.indptr.astype(np.int64))
        _save(path, "links", social.links.indices.astype(np.int64))
        _save(path, "social_vectors", np.asarray(social.vectors, np.float32))
    meta = {
        "num_users": len(ids),
        "numbers": number_columns,
        "categories": category_columns,
        "user_categories": sorted(transform.user_sizes.categories),
        "user_multi": sorted(transform.user_sizes.multi),
        "has_social": social is not None,
    }
    with open(os.path.join(path, _META), "w", encoding="utf-8") as file:
        json.dump(meta, file, sort_keys=True)


class UserStore:
    """Read a store; see the module's text. Positions are those of the sorted ids, -1 unknown."""

    def __init__(self, path: str) -> None:
        """Open the store at a local folder.

        Raises:
            ArtifactError: a file is missing or does not fit the others.
        """
        try:
            with open(os.path.join(path, _META), encoding="utf-8") as file:
                meta = json.load(file)
            self._num_users = int(meta["num_users"])
            self._ids, self._id_offsets = _open(path, "ids"), _open(path, "id_offsets")
            self._event_offsets = _open(path, "event_offsets")
            self._item_index = _open(path, "event_item_index")
            self._timestamp = _open(path, "event_timestamp")
            self._numbers = {c: _open(path, NUMBER + c) for c in meta["numbers"]}
            self._categories = {c: _open(path, CATEGORY + c) for c in meta["categories"]}
            self._seen_offsets = _open(path, "seen_offsets")
            self._seen_items = _open(path, "seen_items")
            self._feature_numbers = _open(path, "feature_numbers")
            self._feature_categories, self._feature_multi = (
                {name: _open(path, f"feature_{prefix}{name}") for name in meta[key]}
                for key, prefix in (("user_categories", CATEGORY), ("user_multi", _MULTI))
            )
            self._text, self._has_text = _open(path, "text"), _open(path, "has_text")
            self._social = (
                tuple(_open(path, name) for name in ("link_offsets", "links", "social_vectors"))
                if meta.get("has_social", False)  # stores of before had no friends
                else None
            )
        except (OSError, ValueError, KeyError) as error:
            raise ArtifactError(
                f"the user store at {path} cannot be opened: {error}\n"
                "expected the users/ folder of a bundle; train again to write the bundle anew"
            ) from error
        arrays = (self._id_offsets, self._event_offsets, self._seen_offsets)
        lengths = {len(offsets) - 1 for offsets in arrays}
        if lengths != {self._num_users} or len(self._has_text) != self._num_users + 1:
            raise ArtifactError(
                f"the user store at {path} is damaged: {self._num_users} users, but offsets for "
                f"{sorted(lengths)}\ntrain again to write the bundle anew"
            )

    def __len__(self) -> int:
        return self._num_users

    def find(self, user_ids: Sequence[str]) -> NDArray[np.int64]:
        """Give the positions of ids: (B,) int64, -1 where an id is unknown."""
        return np.array([self._find(user_id) for user_id in user_ids], np.int64)

    def user_ids(self, positions: NDArray[np.int64]) -> list[str]:
        """Give the ids at positions."""
        return [self._id(int(position)).decode() for position in positions]

    def beginning(self, prefix: str, limit: int) -> list[str]:
        """Give the first ids that begin with a prefix, in the order of ids."""
        try:
            wanted = prefix.encode("utf-8")
        except UnicodeEncodeError:
            return []
        found: list[str] = []
        for at in range(self._first_from(wanted), self._num_users):
            user_id = self._id(at)
            if len(found) == limit or not user_id.startswith(wanted):
                break
            found.append(user_id.decode())
        return found

    def histories(self, positions: NDArray[np.int64]) -> Histories:
        """Give the stored events of users, oldest first; none for position -1."""
        known = positions >= 0
        starts = np.where(known, self._event_offsets[np.maximum(positions, 0)], 0)
        stops = np.where(known, self._event_offsets[np.maximum(positions, 0) + 1], 0)
        events = _spread(starts, stops - starts)
        return Histories(
            user_ids=np.array(
                [self._id(int(p)).decode() if p >= 0 else "" for p in positions], object
            ),
            offsets=_offsets(stops - starts),
            item_index=np.array(self._item_index[events]),
            timestamp=np.array(self._timestamp[events]),
            split=np.zeros(len(events), np.int8),
            numbers={name: np.array(values[events]) for name, values in self._numbers.items()},
            categories={name: np.array(codes[events]) for name, codes in self._categories.items()},
        )

    def seen(self, positions: NDArray[np.int64]) -> list[NDArray[np.int32]]:
        """Give each user's seen items, sorted positions; none for position -1."""
        return [
            np.array(self._seen_items[self._seen_offsets[p] : self._seen_offsets[p + 1]])
            if p >= 0
            else np.zeros(0, np.int32)
            for p in positions.tolist()
        ]

    @cached_property
    def social(self) -> SocialRows | None:
        """The links between users and their social vectors; None: there are none."""
        if self._social is None:
            return None
        offsets, friends, stored = self._social
        vectors: NDArray[Any] = stored
        ones = np.ones(len(friends), np.float32)
        shape = (len(self), len(self))
        links = sparse.csr_array((ones, np.array(friends), np.array(offsets)), shape=shape)
        return SocialRows(links, vectors)

    def seen_matrix(self, num_items: int) -> sparse.csr_array:
        """Give who met what: (U, N) float32, 1 where a user has ever met an item."""
        ones = np.ones(len(self._seen_items), np.float32)
        parts = (ones, np.array(self._seen_items), np.array(self._seen_offsets))
        return sparse.csr_array(parts, shape=(len(self), num_items))

    def rows(self, positions: NDArray[np.int64]) -> UserRows:
        """Give users' features and text; position -1 gets what the transform gives for nulls."""
        row = np.where(positions >= 0, positions, self._num_users)
        has_text = np.array(self._has_text[row], np.float32)
        features = Features(
            numbers=np.array(self._feature_numbers[row]),
            categories={n: np.array(v[row]) for n, v in self._feature_categories.items()},
            multi={n: np.array(v[row]) for n, v in self._feature_multi.items()},
        )
        width = self._feature_numbers.shape[1] + len(features.categories) + len(features.multi)
        return UserRows(
            features=features,
            text=np.array(self._text[row], np.float32),
            has_text=has_text,
            is_known=((positions >= 0) & (width > 0)) | (has_text > 0),
        )

    def _id(self, position: int) -> bytes:
        start, stop = self._id_offsets[position], self._id_offsets[position + 1]
        return bytes(self._ids[start:stop])

    def _find(self, user_id: str) -> int:
        try:
            wanted = user_id.encode("utf-8")
        except UnicodeEncodeError:  # a lone surrogate from JSON is in no UTF-8 file
            return -1
        at = self._first_from(wanted)
        return at if at < self._num_users and self._id(at) == wanted else -1

    def _first_from(self, wanted: bytes) -> int:
        """Give the position of the first id that is not before `wanted`."""
        low, high = 0, self._num_users
        while low < high:
            middle = (low + high) // 2
            if self._id(middle) < wanted:
                low = middle + 1
            else:
                high = middle
        return low


def copy_without(path: str, target: str, gone: NDArray[np.int64]) -> None:
    """Write a store anew without some users, of whom no file of the copy holds anything.

    Args:
        path: folder of a store.
        target: folder to write to; made if it is not there.
        gone: (G,) positions of the users who go.
    """
    store = UserStore(path)
    os.makedirs(target, exist_ok=True)
    stay = np.setdiff1d(np.arange(len(store)), gone)
    with_nobody = np.append(stay, len(store))  # features and text have a last row for nobody
    arrays = {file.removesuffix(".npy") for file in os.listdir(path) if file.endswith(".npy")}
    done = {"ids", "id_offsets"}
    ids = [store._id(int(at)) for at in stay]
    _save(target, "ids", np.frombuffer(b"".join(ids), np.uint8))
    _save(target, "id_offsets", _offsets(np.array([len(value) for value in ids], np.int64)))
    for prefix in ("event", "seen"):
        offsets = np.asarray(_open(path, f"{prefix}_offsets"), np.int64)
        lengths = np.diff(offsets)[stay]
        chosen = _spread(offsets[stay], lengths)
        _save(target, f"{prefix}_offsets", _offsets(lengths))
        done.add(f"{prefix}_offsets")
        own = {"seen_items"} if prefix == "seen" else arrays & _event_arrays(store)
        for name in own:
            _save(target, name, np.asarray(_open(path, name))[chosen])
        done |= own
    social = store.social
    if social is not None:
        links = sparse.csr_array(social.links[stay][:, stay])
        _save(target, "link_offsets", links.indptr.astype(np.int64))
        _save(target, "links", links.indices.astype(np.int64))
        _save(target, "social_vectors", np.asarray(social.vectors)[stay])
        done |= {"link_offsets", "links", "social_vectors"}
    for name in arrays - done:
        _save(target, name, np.asarray(_open(path, name))[with_nobody])
    with open(os.path.join(path, _META), encoding="utf-8") as file:
        meta = json.load(file)
    with open(os.path.join(target, _META), "w", encoding="utf-8") as file:
        json.dump({**meta, "num_users": len(stay)}, file, sort_keys=True)


def _event_arrays(store: UserStore) -> set[str]:
    """Name the arrays with one entry an event."""
    return {
        "event_item_index",
        "event_timestamp",
        *(NUMBER + name for name in store._numbers),
        *(CATEGORY + name for name in store._categories),
    }


def _parts(
    paths: Sequence[str], ids: pa.LargeStringArray
) -> Iterable[tuple[Histories, NDArray[np.int64]]]:
    """Yield each file's histories without unknown items, and their users' positions."""
    for path in paths:
        part = Histories.from_table(read_table(path))
        part = part.select(part.item_index >= 2)
        place = pc.index_in(pa.array(part.user_ids.tolist(), pa.large_string()), value_set=ids)
        if place.null_count:
            missing = part.user_ids[np.asarray(place.is_null())][:3].tolist()
            raise ArtifactError(
                f"{path} has histories of users that users.parquet lacks, such as {missing}\n"
                "prepare the dataset again"
            )
        yield part, place.to_numpy(zero_copy_only=False).astype(np.int64)


def _seen(histories: Histories) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Give each user's distinct items: offsets (U + 1,) and sorted positions."""
    pairs = np.unique((histories.event_user << 32) | histories.item_index.astype(np.int64))
    counts = np.bincount(pairs >> 32, minlength=len(histories))
    return _offsets(counts), (pairs & 0xFFFFFFFF).astype(np.int32)


def _write_ids(path: str, ids: pa.LargeStringArray) -> None:
    encoded = [value.encode("utf-8") for value in ids.to_pylist()]
    if any(first >= second for first, second in pairwise(encoded)):
        raise ArtifactError(
            "users.parquet is not sorted by user_id, or an id is there twice\n"
            "prepare the dataset again"
        )
    _save(path, "ids", np.frombuffer(b"".join(encoded), np.uint8))
    _save(path, "id_offsets", _offsets(np.array([len(value) for value in encoded], np.int64)))


def _write_features(path: str, users: pa.Table, transform: FeatureTransform) -> None:
    """Write the features of every user and, last, of a user of whom nothing is known."""
    nobody = pa.table(
        {field.name: pa.nulls(1, field.type) for field in users.schema}, schema=users.schema
    )
    total = users.num_rows + 1
    arrays: dict[str, NDArray[np.generic]] = {}
    multi_width: dict[str, int] = {}
    blocks = [users.slice(at, _BLOCK_ROWS) for at in range(0, users.num_rows, _BLOCK_ROWS)]
    for block in [*blocks, nobody]:
        for name, values in transform.user_features(block).multi.items():
            multi_width[name] = max(multi_width.get(name, 0), values.shape[1])
    at = 0
    for block in [*blocks, nobody]:
        features = transform.user_features(block)
        columns: dict[str, NDArray[np.generic]] = {"numbers": features.numbers}
        columns |= {CATEGORY + name: values for name, values in features.categories.items()}
        for name, values in features.multi.items():
            padding = multi_width[name] - values.shape[1]
            columns[_MULTI + name] = np.pad(values, ((0, 0), (0, padding)))
        for name, column in columns.items():
            if name not in arrays:
                shape = (total, *column.shape[1:])
                arrays[name] = _create(path, "feature_" + name, shape, column.dtype)
            arrays[name][at : at + block.num_rows] = column
        at += block.num_rows


def _write_text(path: str, num_users: int, text: NDArray[np.floating] | None) -> None:
    width = 0 if text is None else text.shape[1]
    stored = _create(path, "text", (num_users + 1, width), np.float16)
    has_text = np.zeros(num_users + 1, np.float32)
    if text is not None:
        assert len(text) == num_users, "one text vector a user"
        for at in range(0, num_users, _BLOCK_ROWS):
            block = text[at : at + _BLOCK_ROWS]
            stored[at : at + len(block)] = block
            has_text[at : at + len(block)] = (block != 0).any(axis=1)
    _save(path, "has_text", has_text)


def _offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def _spread(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give the positions `starts[i]:starts[i] + lengths[i]` of all ranges, one after another."""
    offsets = _offsets(lengths)
    return np.arange(offsets[-1]) + np.repeat(np.asarray(starts) - offsets[:-1], lengths)


def _create(
    path: str, name: str, shape: tuple[int, ...], dtype: np.dtype[np.generic] | type
) -> NDArray[np.generic]:
    """Make a memory-mapped file of zeros, so that a build does not hold the store in memory."""
    file = os.path.join(path, f"{name}.npy")
    if 0 in shape:  # mmap refuses empty maps
        np.save(file, np.zeros(shape, dtype), allow_pickle=False)
        return np.zeros(shape, dtype)
    return np.lib.format.open_memmap(file, mode="w+", dtype=np.dtype(dtype), shape=shape)


def _save(path: str, name: str, values: NDArray[np.generic]) -> None:
    np.save(os.path.join(path, f"{name}.npy"), values, allow_pickle=False)


def _open(path: str, name: str) -> NDArray[np.generic]:
    file = os.path.join(path, f"{name}.npy")
    # Still mapped, but without what a `memmap` does at each access: a request makes dozens.
    values: NDArray[np.generic] = np.load(file, mmap_mode="r", allow_pickle=False).view(np.ndarray)
    return values
