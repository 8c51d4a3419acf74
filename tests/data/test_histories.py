import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec.data.histories import (
    NUM_GAP_BUCKETS,
    Histories,
    history_batch,
    last_windows,
    unmet_items,
)


def make(sizes, seed=0):
    """Make histories of random events, with one column of each kind."""
    random = np.random.default_rng(seed)
    total = sum(sizes)
    return Histories(
        user_ids=np.array([f"u{n}" for n in range(len(sizes))], dtype=object),
        offsets=np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        item_index=random.integers(2, 9, total).astype(np.int32),
        timestamp=np.sort(random.integers(0, 10**6, total)).astype(np.float64),
        split=random.integers(0, 3, total).astype(np.int8),
        numbers={"rating": random.integers(1, 6, total).astype(np.float32)},
        categories={"device": random.integers(1, 4, total).astype(np.int32)},
        labels={"like": random.integers(0, 2, total).astype(np.float32)},
    )


def same(left, right):
    assert left.user_ids.tolist() == right.user_ids.tolist()
    for name in ("offsets", "item_index", "timestamp", "split"):
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
    for name in ("numbers", "categories", "labels"):
        assert getattr(left, name).keys() == getattr(right, name).keys()
        for column, values in getattr(left, name).items():
            np.testing.assert_array_equal(values, getattr(right, name)[column])


sizes = st.lists(st.integers(0, 5), min_size=1, max_size=6)


@settings(deadline=None)
@given(sizes)
def test_a_table_gives_the_histories_back(sizes):
    histories = make(sizes)
    same(Histories.from_table(histories.to_table()), histories)


@settings(deadline=None)
@given(sizes, st.data())
def test_a_slice_of_a_table_gives_those_users(sizes, data):
    histories = make(sizes)
    start = data.draw(st.integers(0, len(sizes) - 1))
    chosen = list(range(start, len(sizes)))
    same(Histories.from_table(histories.to_table().slice(start)), histories.rows(chosen))


def test_rows_may_repeat_and_come_in_any_order():
    histories = make([2, 0, 3])
    chosen = histories.rows([2, 0, 2])
    assert chosen.user_ids.tolist() == ["u2", "u0", "u2"]
    assert chosen.offsets.tolist() == [0, 3, 5, 8]
    events = [2, 3, 4, 0, 1, 2, 3, 4]
    assert chosen.item_index.tolist() == histories.item_index[events].tolist()
    assert chosen.labels["like"].tolist() == histories.labels["like"][events].tolist()


def test_selecting_events_keeps_users_without_any():
    histories = make([2, 1])
    kept = histories.select(np.array([True, True, False]))
    assert len(kept) == 2
    assert kept.offsets.tolist() == [0, 2, 2]


@pytest.mark.parametrize(("split", "known"), [("train", []), ("validation", [0]), ("test", [0, 1])])
def test_only_earlier_splits_are_known_before_a_split(split, known):
    histories = make([30])
    assert sorted(set(histories.before(split).split.tolist())) == known


def test_the_owner_of_each_event():
    assert make([2, 0, 1]).event_user.tolist() == [0, 0, 2]
    assert make([2, 0, 1]).num_events == 3


def test_last_windows_are_the_latest_events():
    starts, stops = last_windows(make([5, 1, 0]), 3)
    assert (starts.tolist(), stops.tolist()) == ([2, 5, 6], [5, 6, 6])


def batch_of(histories, starts, stops, scaling=None):
    scaling = {"rating": (3.0, 2.0)} if scaling is None else scaling
    return history_batch(
        histories, np.array(starts, np.int64), np.array(stops, np.int64), scaling=scaling
    )


def test_windows_are_padded_on_the_right_with_zeros():
    histories = make([3, 1])
    batch = batch_of(histories, [0, 3], [3, 4])
    assert batch["item"].tolist() == [
        histories.item_index[:3].tolist(),
        [int(histories.item_index[3]), 0, 0],
    ]
    assert batch["length"].tolist() == [3, 1]
    assert batch["category_device"][1, 1:].tolist() == [0, 0]
    assert batch["present"][..., 0].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["numbers"][1, 1:].tolist() == [[0], [0]]


def test_numbers_are_scaled_and_missing_ones_are_marked():
    histories = make([2])
    histories.numbers["rating"][:] = [5.0, np.nan]
    batch = batch_of(histories, [0], [2])
    # (5 - 3) / 2
    assert batch["numbers"][0].tolist() == [[1.0], [0.0]]
    assert batch["present"][0].tolist() == [[1.0], [0.0]]


def test_a_column_that_the_histories_lack_is_missing_everywhere():
    batch = batch_of(make([2]), [0], [2], {"age": (0.0, 1.0)})
    assert batch["present"].sum() == 0
    assert batch["numbers"].shape == (1, 2, 1)


def test_gaps_are_logarithmic_buckets_of_seconds_within_the_window():
    histories = make([6])
    histories.timestamp[:] = [0.0, 0.0, 1.0, 8.0, np.nan, 1e15]
    # 1 + floor(log2(1 + s)) of 0, 1 and 7 seconds: 1, 2, 4; unknown: 0.
    assert batch_of(histories, [0], [6])["gap"].tolist() == [[0, 1, 2, 4, 0, 0]]
    # A window that starts later does not know what was before.
    assert batch_of(histories, [2], [4])["gap"].tolist() == [[0, 4]]
    histories.timestamp[4] = 0.0
    assert batch_of(histories, [0], [6])["gap"][0, 5] == NUM_GAP_BUCKETS - 1


def test_empty_windows_still_make_a_batch():
    batch = batch_of(make([0]), [0], [0])
    assert batch["item"].tolist() == [[0]]
    assert batch["length"].tolist() == [0]


def test_a_batch_is_its_windows_one_by_one():
    histories = make([4, 2, 3])
    starts, stops = [1, 4, 6], [4, 6, 7]
    batch = batch_of(histories, starts, stops)
    for row, (start, stop) in enumerate(zip(starts, stops, strict=True)):
        single = batch_of(histories, [start], [stop])
        for name, values in single.items():
            width = (slice(values.shape[1]),) if values.ndim > 1 else ()
            np.testing.assert_array_equal(values[0], batch[name][row, *width])


def test_unmet_are_the_items_of_no_event():
    histories = make([3, 2])
    histories.item_index[:] = [1, 4, 2, 4, 6]
    assert np.flatnonzero(unmet_items(histories, 8)).tolist() == [3, 5, 7]


@pytest.mark.parametrize("length", [1, 2, 9])
def test_the_latest_events_of_each_user_are_kept(length):
    histories = make([3, 0, 1, 5])
    latest = histories.latest(length)
    assert len(latest) == 4
    for user in range(4):
        whole = slice(histories.offsets[user], histories.offsets[user + 1])
        part = slice(latest.offsets[user], latest.offsets[user + 1])
        np.testing.assert_array_equal(latest.timestamp[part], histories.timestamp[whole][-length:])
