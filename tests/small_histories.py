"""Small histories by hand or at random, for tests of what is fitted on them."""

from dataclasses import replace

import numpy as np

from mtrec.data.histories import Histories


def make_histories(
    events: list[list[int]],
    *,
    split: list[list[int]] | None = None,
    time: list[list[float]] | None = None,
    labels: dict[str, list[list[float]]] | None = None,
) -> Histories:
    """Make histories of users u0, u1, ... from their item positions, oldest first."""

    def flat(values: list[list[float]], dtype: type) -> np.ndarray:
        return np.array([value for row in values for value in row], dtype)

    count = flat(events, np.int32).size
    return Histories(
        user_ids=np.array([f"u{user}" for user in range(len(events))], object),
        offsets=np.r_[0, np.cumsum([len(row) for row in events])].astype(np.int64),
        item_index=flat(events, np.int32),
        timestamp=flat(time, np.float64) if time else np.full(count, np.nan),
        split=flat(split, np.int8) if split else np.zeros(count, np.int8),
        labels={name: flat(rows, np.float32) for name, rows in (labels or {}).items()},
    )


def random_histories(users: int, items: int, seed: int = 0) -> Histories:
    rng = np.random.default_rng(seed)
    rows = [2 + rng.permutation(items)[: rng.integers(3, items // 2)] for _ in range(users)]
    return make_histories([row.tolist() for row in rows])


def dense(histories: Histories, num_items: int) -> np.ndarray:
    matrix = np.zeros((len(histories), num_items))
    matrix[histories.event_user, histories.item_index] = 1.0
    return matrix


def with_held_out(histories: Histories) -> Histories:
    """Hold out each user's last event for test and the last but one for validation."""
    split = np.zeros(histories.num_events, np.int8)
    split[histories.offsets[1:] - 1] = 2
    long = np.diff(histories.offsets) >= 3
    split[histories.offsets[1:][long] - 2] = 1
    return replace(histories, split=split)
