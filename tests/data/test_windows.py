import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrec.data.windows import cut_windows, global_batches, hold_out


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    length=st.integers(1, 12),
    seed=st.integers(0, 99),
    share=st.floats(0, 1),
)
def test_every_event_is_in_exactly_one_window(
    counts: list[int], length: int, seed: int, share: float
) -> None:
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    cut = (np.array(counts) * share).astype(np.int64)
    windows = cut_windows(offsets, length, cut, np.random.default_rng(seed))
    covered = [
        event
        for start, stop in zip(windows.start, windows.stop, strict=True)
        for event in range(start, stop)
    ]
    assert sorted(covered) == list(range(offsets[-1]))
    assert (windows.stop - windows.start).max(initial=0) <= length
    assert (windows.start >= offsets[windows.user]).all()
    assert (windows.stop <= offsets[windows.user + 1]).all()


@given(seed=st.integers(0, 200))
def test_a_told_window_starts_after_what_the_text_tells(seed: int) -> None:
    offsets, cut = np.array([0, 30, 45]), np.array([7, 0])
    windows = cut_windows(offsets, 10, cut, np.random.default_rng(seed))
    told = windows.rows(np.flatnonzero(windows.tell))
    assert (told.start - offsets[told.user] >= cut[told.user]).all()
    assert not (told.user == 1).any()


def test_some_users_are_told_and_some_are_not() -> None:
    offsets = np.arange(0, 1001 * 20, 20)
    windows = cut_windows(offsets, 50, np.full(1000, 5), np.random.default_rng(0))
    share = len(np.unique(windows.user[windows.tell])) / 1000
    assert 0.2 < share < 0.4


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_share_each_batch_and_nothing_is_lost(num_workers: int) -> None:
    offsets = np.array([0, 5, 9, 20, 21, 30])
    windows = cut_windows(offsets, 4, np.zeros(5, np.int64), np.random.default_rng(0))
    seen: list[int] = []
    for batch in global_batches(windows, 4, num_workers, np.random.default_rng(1)):
        shares = [batch.rows(slice(rank, None, num_workers)) for rank in range(num_workers)]
        assert len({len(share) for share in shares}) == 1
        for share in shares:
            for start, stop in zip(share.start, share.stop, strict=True):
                seen += range(start, stop)
    assert sorted(seen) == list(range(30))


def test_the_cut_of_a_long_history_moves_with_the_epoch() -> None:
    offsets = np.array([0, 100])
    starts = {
        tuple(cut_windows(offsets, 20, np.zeros(1, np.int64), np.random.default_rng(s)).start)
        for s in range(5)
    }
    assert len(starts) > 1


def test_events_are_held_out_at_the_given_share_and_copies_together() -> None:
    item = np.random.default_rng(0).integers(0, 400, (60, 300))
    hidden = hold_out(np.arange(60), item, 0.3, seed=5)
    # standard error of the share: sqrt(.3 * .7 / 12,000) = .0042
    assert abs(hidden[item > 1].mean() - 0.3) < 0.02
    assert not hidden[item < 2].any()
    for row in range(60):
        for value in np.unique(item[row]):
            assert len(set(hidden[row, item[row] == value].tolist())) == 1


def test_what_is_held_out_depends_on_seed_user_and_item_alone() -> None:
    item = np.tile(np.arange(2, 102), (4, 1))
    hidden = hold_out(np.array([7, 8, 9, 7]), item, 0.5, seed=5)
    np.testing.assert_array_equal(hidden[0], hidden[3])
    assert (hidden[0] != hidden[1]).any()
    other = hold_out(np.array([8]), item[:1, ::-1], 0.5, seed=5)
    np.testing.assert_array_equal(other[0], hidden[1][::-1])
    assert (hold_out(np.array([7]), item[:1], 0.5, seed=6)[0] != hidden[0]).any()
