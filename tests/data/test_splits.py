import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrec.data import splits
from mtrec.data.splits import TEST, TRAIN, VALIDATION

lengths = st.lists(st.integers(0, 8), min_size=1, max_size=10)


def offsets_of(sizes):
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def test_leave_last_out_by_hand():
    split = splits.leave_last_out(offsets_of([4, 2, 3]))
    assert split.tolist() == [TRAIN, TRAIN, VALIDATION, TEST] + [TRAIN] * 2 + [
        TRAIN,
        VALIDATION,
        TEST,
    ]


@given(lengths)
def test_leave_last_out_holds_out_one_of_each_from_users_with_three_events(sizes):
    offsets = offsets_of(sizes)
    split = splits.leave_last_out(offsets)
    long = sum(size >= 3 for size in sizes)
    assert np.bincount(split, minlength=3).tolist() == [sum(sizes) - 2 * long, long, long]
    splits.assert_held_out_last(offsets, np.zeros(len(split)), split)


def test_a_random_split_keeps_its_shares_and_depends_only_on_the_hash():
    hashes = splits.mix(3, np.arange(100_000))
    split = splits.random_split(hashes, validation=0.1, test=0.2)
    shares = np.bincount(split) / len(split)
    # Standard deviation of a share is below .0015; 5 of them.
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.0075)
    backwards = splits.random_split(hashes[::-1], validation=0.1, test=0.2)
    assert (backwards[::-1] == split).all()


def test_another_seed_is_another_split():
    values = np.arange(1000)
    draws = [
        splits.random_split(splits.mix(seed, values), validation=0.1, test=0.1) for seed in (0, 1)
    ]
    assert (draws[0] != draws[1]).mean() > 0.2


def test_a_split_that_the_data_brings_along_is_taken():
    names = pa.array(["test", "train", "validation"])
    assert splits.split_by_name(names).tolist() == [TEST, TRAIN, VALIDATION]


def test_string_hashes_are_the_same_on_every_machine():
    # blake2b with 8 bytes, little endian, of the UTF-8 text; worked out with hashlib once.
    hashes = splits.hash_strings(pa.array(["u1", "用户", "u1"]))
    assert hashes[0] == hashes[2] == int.from_bytes(bytes.fromhex("92994d683f4e6ad5"), "little")


def test_mixing_tells_the_order_of_its_parts():
    a, b = np.array([1, 2]), np.array([2, 1])
    mixed = splits.mix(0, a, b)
    assert mixed[0] != mixed[1]


@given(st.integers(2, 50))
def test_drawn_numbers_stay_within_their_bounds(high):
    hashes = splits.mix(0, np.arange(200))
    drawn = splits.draw_between(hashes, np.full(200, 2), np.full(200, high))
    assert drawn.min() >= 2
    assert drawn.max() <= high


def test_an_event_in_two_splits_is_a_leak():
    user, item = np.array([1, 1, 1]), np.array([5, 6, 5])
    splits.assert_each_event_once([user, item], np.array([TRAIN, TRAIN, TRAIN], np.int8)[:0])
    with pytest.raises(AssertionError, match="1 events occur in more than one place"):
        splits.assert_each_event_once([user, item], np.array([TRAIN, TRAIN, TEST], np.int8))


def test_a_held_out_event_before_a_training_one_is_a_leak():
    split = np.array([TRAIN, TEST, TRAIN], np.int8)
    with pytest.raises(AssertionError, match="precedes a training one"):
        splits.assert_held_out_last(offsets_of([3]), np.zeros(3), split)
    splits.assert_held_out_last(offsets_of([2, 1]), np.zeros(3), split)


def test_a_held_out_event_that_is_earlier_in_time_is_a_leak():
    split = np.array([TRAIN, VALIDATION, TEST], np.int8)
    splits.assert_held_out_last(offsets_of([3]), np.array([1.0, 2.0, 2.0]), split)
    splits.assert_held_out_last(offsets_of([2, 1]), np.array([1.0, 2.0, 1.0]), split[[0, 1, 0]])
    with pytest.raises(AssertionError, match="order of time"):
        splits.assert_held_out_last(offsets_of([3]), np.array([1.0, 3.0, 2.0]), split)


def test_telling_a_held_out_event_is_a_leak():
    told = np.array([0]), np.array([2])
    splits.assert_told_from_training(*told, np.array([TRAIN], np.int8))
    with pytest.raises(AssertionError, match="tells a held-out event"):
        splits.assert_told_from_training(*told, np.array([TEST], np.int8))


def test_telling_an_event_that_the_text_shall_predict_is_a_leak():
    with pytest.raises(AssertionError, match="that it predicts"):
        splits.assert_told_from_training(np.array([2]), np.array([2]), np.array([TRAIN], np.int8))


def test_lost_rows_are_noticed():
    splits.assert_counts_add_up(10, 7, 2, 1, "items")
    with pytest.raises(AssertionError, match="items: read 10 rows, but kept 7"):
        splits.assert_counts_add_up(10, 7, 2, 0, "items")


def test_global_time_by_hand():
    time = np.array([0.0, 4.0, 4.9, 5.0, 7.0, 8.0, 9.0])
    split, in_gap = splits.global_time(time, (5.0, 8.0), gap=1.0)
    assert split.tolist() == [TRAIN, TRAIN, TRAIN, VALIDATION, VALIDATION, TEST, TEST]
    assert in_gap.tolist() == [False, True, True, False, True, False, False]
    splits.assert_cut_in_time(time[~in_gap], split[~in_gap], (5.0, 8.0), 1.0)


@pytest.mark.parametrize(("at", "wrong"), [(0, VALIDATION), (3, TRAIN), (6, VALIDATION)])
def test_an_event_on_the_wrong_side_of_a_cut_is_a_leak(at, wrong):
    time = np.array([0.0, 4.0, 4.9, 5.0, 7.0, 8.0, 9.0])
    split, _ = splits.global_time(time, (5.0, 8.0), gap=0.0)
    splits.assert_cut_in_time(time, split, (5.0, 8.0), 0.0)
    split[at] = wrong
    with pytest.raises(AssertionError, match="leak"):
        splits.assert_cut_in_time(time, split, (5.0, 8.0), 0.0)


def test_an_event_in_a_gap_is_a_leak():
    with pytest.raises(AssertionError, match="leak"):
        splits.assert_cut_in_time(np.array([4.5]), np.array([TRAIN], np.int8), (5.0, 8.0), 1.0)


def test_every_event_is_test_in_exactly_one_fold_and_shares_hold():
    hashes, again = splits.mix(0, np.arange(100_000)), splits.mix(1, np.arange(100_000))
    folds = [splits.k_fold(hashes, again, folds=4, fold=fold, validation=0.2) for fold in range(4)]
    assert (np.sum([split == TEST for split in folds], axis=0) == 1).all()
    for split in folds:
        # Standard deviation of a share is below .0014; 5 of them.
        shares = np.bincount(split) / len(split)
        assert shares == pytest.approx([0.6, 0.15, 0.25], abs=0.007)
