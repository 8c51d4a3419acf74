"""Which events are for training, validation and test, and assertions that nothing leaks.

Pure NumPy over events that are sorted by user and, within a user, oldest first. Every random choice
is a hash of the seed and of what is chosen, never of a row's place or of a generator's state, so
that it does not depend on how the data is cut into blocks. The assertions run in production.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtrec.data.clean import encode
from mtrec.data.histories import SPLITS

TRAIN, VALIDATION, TEST = range(len(SPLITS))
IN_GAP = "timestamp is in the gap before validation or test"
"""Why an event is set aside that is in no split."""
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def hash_strings(values: pa.Array | pa.ChunkedArray) -> NDArray[np.uint64]:
    """Hash strings (N,) to 64 bits, (N,) uint64; the same on every machine and in every run."""
    codes, distinct = encode(values)
    table = np.array(
        [
            int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
            for text in distinct.to_pylist()
        ],
        np.uint64,
    )
    return table[codes]


def mix(seed: int, *parts: NDArray[np.generic]) -> NDArray[np.uint64]:
    """Hash a seed and arrays (N,) of 64-bit values, row by row, to (N,) uint64.

    Each part passes through the finaliser of splitmix64 (Steele, Lea and Flood 2014).
    """
    state = np.full(len(parts[0]), np.uint64(seed), np.uint64)
    for part in parts:
        with np.errstate(over="ignore"):
            state = _finalise((state + _GOLDEN) ^ np.ascontiguousarray(part).view(np.uint64))
    return state


def leave_last_out(offsets: NDArray[np.int64]) -> NDArray[np.int8]:
    """Give each user's last event to test, the one before to validation, the rest to train.

    Args:
        offsets: (U + 1,) int64; user u's events are `offsets[u]:offsets[u + 1]`, oldest first.

    Returns:
        (E,) int8, positions in `SPLITS`. Users with fewer than 3 events are all train.
    """
    split = np.full(int(offsets[-1]), TRAIN, np.int8)
    long = np.diff(offsets) >= 3
    split[offsets[1:][long] - 1] = TEST
    split[offsets[1:][long] - 2] = VALIDATION
    return split


def random_split(hashes: NDArray[np.uint64], *, validation: float, test: float) -> NDArray[np.int8]:
    """Draw each event's split from its hash (E,): shares hold up to chance.

    Returns:
        (E,) int8, positions in `SPLITS`.
    """
    draw = uniform(hashes)
    return np.select([draw < test, draw < test + validation], [TEST, VALIDATION], TRAIN).astype(
        np.int8
    )


def k_fold(
    hashes: NDArray[np.uint64],
    again: NDArray[np.uint64],
    *,
    folds: int,
    fold: int,
    validation: float,
) -> NDArray[np.int8]:
    """Give one of `folds` equal shares to test and part of the others to validation.

    Args:
        hashes: (E,) decides each event's fold, the same for every `fold`.
        again: (E,) further hashes, decide what is for validation.
        folds: number of folds.
        fold: which one is test, from 0.
        validation: share of the other folds' events.

    Returns:
        (E,) int8, positions in `SPLITS`.
    """
    is_test = (uniform(hashes) * folds).astype(np.int64) == fold
    is_validation = uniform(again) < validation
    return np.select([is_test, is_validation], [TEST, VALIDATION], TRAIN).astype(np.int8)


def global_time(
    timestamp: NDArray[np.float64], cuts: tuple[float, float], *, gap: float
) -> tuple[NDArray[np.int8], NDArray[np.bool_]]:
    """Cut the time of all users at two moments.

    Args:
        timestamp: (E,) float64, seconds.
        cuts: first moment of validation, first moment of test.
        gap: seconds before each cut whose events are in no split.

    Returns:
        (E,) int8, positions in `SPLITS`, and (E,) bool, true for the events in a gap.
    """
    split = np.searchsorted(np.array(cuts), timestamp, side="right").astype(np.int8)
    in_gap = np.zeros(len(timestamp), bool)
    for cut in cuts:
        in_gap |= (timestamp >= cut - gap) & (timestamp < cut)
    return split, in_gap


def split_by_name(names: pa.Array | pa.ChunkedArray) -> NDArray[np.int8]:
    """Give the split that the data brought along; names (E,) are those of `SPLITS`."""
    found: NDArray[np.int8] = (
        pc.index_in(names, pa.array(SPLITS)).to_numpy().astype(np.int8, copy=False)
    )
    return found


def draw_between(
    hashes: NDArray[np.uint64], low: NDArray[np.int64], high: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Draw one integer per hash (N,), uniform in low to high, both (N,) and both included."""
    span = (high - low + 1).astype(np.uint64)
    return low + (hashes % span).astype(np.int64)


def assert_each_event_once(keys: Sequence[NDArray[Any]], split: NDArray[np.int8]) -> None:
    """Check that no event is in two splits, nor twice in one.

    Args:
        keys: arrays (E,) that together name an event: user, item, time.
        split: (E,) int8.

    Raises:
        AssertionError: some event occurs more than once.
    """
    if len(split) < 2:
        return
    by = np.lexsort([split, *keys])
    same = np.ones(len(split) - 1, bool)
    for key in keys:
        same &= key[by][1:] == key[by][:-1]
    _demand(not same.any(), f"leak: {int(same.sum())} events occur in more than one place")


def assert_held_out_last(
    offsets: NDArray[np.int64], timestamp: NDArray[np.float64], split: NDArray[np.int8]
) -> None:
    """Check that each user's training events come first, then validation, then test.

    Both the order of the events and their times must say so; times may be equal.

    Raises:
        AssertionError: a held-out event precedes one that the model may train on.
    """
    if len(split) < 2:
        return
    inside = np.ones(len(split) - 1, bool)
    starts = offsets[1:-1]
    inside[starts[(starts > 0) & (starts < len(split))] - 1] = False
    _demand(
        not (inside & (np.diff(split) < 0)).any(), "leak: a held-out event precedes a training one"
    )
    later = timestamp[1:] < timestamp[:-1]
    _demand(not (inside & later).any(), "leak: a user's events are not in the order of time")


def assert_cut_in_time(
    timestamp: NDArray[np.float64], split: NDArray[np.int8], cuts: tuple[float, float], gap: float
) -> None:
    """Check that every event lies on its side of both moments, and none in a gap.

    Raises:
        AssertionError: an event of one split has the time of another.
    """
    first = np.array([-np.inf, *cuts])[split]
    last = np.array([*cuts, np.inf])[split]
    before_gap = last - gap
    _demand(
        not ((timestamp < first) | (timestamp >= before_gap)).any(),
        "leak: an event lies on the wrong side of a moment that cuts the log",
    )


def assert_told_from_training(
    position: NDArray[np.int64],
    cut: NDArray[np.int64],
    split: NDArray[np.int8],
) -> None:
    """Check the events that behaviour texts tell.

    Args:
        position: (R,) int64, place of each told event in its user's history.
        cut: (R,) int64, `behaviour_cut` of its user.
        split: (R,) int8, split of each told event.

    Raises:
        AssertionError: a told event is held out, or is one that its text shall predict.
    """
    _demand(not (split != TRAIN).any(), "leak: a behaviour text tells a held-out event")
    _demand(not (position >= cut).any(), "leak: a behaviour text tells an event that it predicts")


def assert_counts_add_up(read: int, kept: int, rejected: int, duplicates: int, table: str) -> None:
    """Check that every row read is kept, rejected or a duplicate.

    Raises:
        AssertionError: rows were lost or counted twice.
    """
    _demand(
        read == kept + rejected + duplicates,
        f"{table}: read {read} rows, but kept {kept}, rejected {rejected}, duplicates {duplicates}",
    )


def uniform(hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Turn hashes (E,) into numbers in [0, 1): the upper 53 bits are exactly a float64."""
    return (hashes >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def _finalise(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


def _demand(holds: bool, message: str) -> None:
    # Not an assert statement: these checks must not vanish under `python -O`.
    if not holds:
        raise AssertionError(message)
