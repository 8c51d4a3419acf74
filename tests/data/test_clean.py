import statistics

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrec.data import clean
from mtrec.data.clean import (
    Moments,
    Summary,
    ValueCounts,
    clip_outliers,
    encode,
    fill_missing,
    filled_moments,
    find_duplicates,
    find_outliers,
    fit_fill,
    merge_duplicates,
    merge_summaries,
    outlier_bounds,
)
from mtrec.dataconfig import CategoryColumn, NumberColumn, Outliers, TextColumn

numbers = st.lists(st.floats(-1e6, 1e6), max_size=20)


@given(numbers, numbers)
def test_merged_moments_are_those_of_all_values(left, right):
    merged = Moments.of(np.array(left)).merge(Moments.of(np.array(right)))
    both = np.array(left + right)
    assert merged.count == len(both)
    if len(both):
        assert merged.mean == pytest.approx(both.mean(), abs=1e-6)
        assert merged.deviation == pytest.approx(both.std(), abs=1e-4)
        assert (merged.smallest, merged.largest) == (both.min(), both.max())


@pytest.mark.parametrize(
    ("missing", "filled"),
    # Values 1, 1, 4, 10: mean 16/4, median (1 + 4)/2, mode 1.
    [("mean", 4.0), ("median", 2.5), ("mode", 1.0), ("constant", 7.0), ("keep", None)],
)
def test_each_treatment_of_a_missing_number(missing, filled):
    column = NumberColumn(kind="number", missing=missing, constant=7.0)
    values = pa.array([1.0, 10.0, None, 4.0, 1.0])
    fill = fit_fill(Summary.of(values, column), column)
    assert fill_missing(values, fill).to_pylist() == [1.0, 10.0, filled, 4.0, 1.0]


@pytest.mark.parametrize(
    ("missing", "filled"),
    # a and b are equally frequent: the smaller one is the mode.
    [("mode", "a"), ("constant", "z"), ("category", None)],
)
def test_each_treatment_of_a_missing_category(missing, filled):
    column = CategoryColumn(kind="category", missing=missing, constant="z")
    values = pa.array(["b", "a", None, "b", "a"])
    fill = fit_fill(Summary.of(values, column), column)
    assert fill_missing(values, fill).to_pylist() == ["b", "a", filled, "b", "a"]


def test_a_missing_text_is_the_empty_text():
    column = TextColumn(kind="text")
    assert fit_fill(Summary.of(pa.array(["a", None]), column), column) == ""


@pytest.mark.parametrize("missing", ["mean", "median", "mode"])
def test_a_number_that_training_never_saw_becomes_zero(missing):
    column = NumberColumn(kind="number", missing=missing)
    empty = Summary.of(pa.array([None, None], pa.float64()), column)
    assert fit_fill(empty, column) == 0.0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 4))
def test_median_of_parts_is_the_median_of_all(values, cut):
    column = NumberColumn(kind="number", missing="median")
    parts = [values[n : n + cut] for n in range(0, len(values), cut)]
    summary = merge_summaries([Summary.of(pa.array(p, pa.float64()), column) for p in parts])
    assert fit_fill(summary, column) == statistics.median(values)


def test_moments_after_filling_count_the_filled_cells():
    column = NumberColumn(kind="number", missing="constant", constant=10.0)
    summary = Summary.of(pa.array([0.0, 2.0, None, None]), column)
    # 0, 2, 10, 10: mean 5.5, population variance 20.75.
    moments = filled_moments(summary, 10.0)
    assert (moments.count, moments.mean) == (4, 5.5)
    assert moments.deviation == pytest.approx(20.75**0.5)


def test_of_equal_events_the_last_or_the_first_stays():
    key, time = np.array([1, 2, 1, 1]), np.array([5.0, 0.0, 9.0, 7.0])
    assert find_duplicates([key], [time], "last").tolist() == [True, False, False, True]
    assert find_duplicates([key], [time], "first").tolist() == [False, False, True, True]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30))
def test_exactly_one_of_each_key_stays(pairs):
    user, item = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    drop = find_duplicates([user, item], [np.arange(len(pairs))], "last")
    kept = [pair for pair, gone in zip(pairs, drop, strict=True) if not gone]
    assert sorted(kept) == sorted(set(pairs))


def test_encoding_gives_equal_values_equal_numbers():
    codes, distinct = encode(pa.chunked_array([["b", "a"], ["b"]]))
    assert [distinct[code].as_py() for code in codes.tolist()] == ["b", "a", "b"]
    assert codes[0] == codes[2] != codes[1]


@given(st.lists(numbers, min_size=1, max_size=4), st.floats(0.0, 1.0))
def test_counted_quantiles_are_those_of_numpy(parts, share):
    counted = [ValueCounts.of(np.array(part, np.float64)) for part in parts]
    merged = counted[0]
    for other in counted[1:]:
        merged = merged.merge(other)
    everything = np.array([x for part in parts for x in part])
    assert merged.counts.sum() == len(everything)
    if len(everything):
        expected = np.quantile(everything, share)
        assert merged.quantile(share) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    else:
        assert np.isnan(merged.quantile(share)) and merged.mode() is None


@pytest.mark.parametrize("pieces", [1, 3, 7])
def test_many_distinct_numbers_are_counted_in_bounded_memory(monkeypatch, pieces):
    monkeypatch.setattr(clean, "MAX_DISTINCT", 64)
    values = np.random.default_rng(0).normal(100.0, 30.0, 5000)
    merged = None
    for part in np.array_split(values, pieces):
        counted = ValueCounts.of(part)
        merged = counted if merged is None else merged.merge(counted)
    whole = ValueCounts.of(values)
    assert len(whole.values) <= 64 and whole.counts.sum() == 5000
    # The same however the numbers were cut, and as near as the bits that are kept.
    np.testing.assert_array_equal(merged.values, whole.values)
    np.testing.assert_array_equal(merged.counts, whole.counts)
    assert merged.bits == whole.bits
    for share in (0.1, 0.5, 0.9):
        assert merged.quantile(share) == pytest.approx(
            np.quantile(values, share), rel=2.0**-whole.bits
        )


def test_outlier_bounds_by_hand():
    values = pa.array([1.0, 2.0, 3.0, 4.0, 90.0, None])
    # Quartiles 2 and 4, so 1.5 ranges of 2 reach from -1 to 7.
    tukey = NumberColumn(kind="number", outliers=Outliers(method="iqr"))
    assert outlier_bounds(Summary.of(values, tukey), tukey.outliers) == (-1.0, 7.0)
    # Mean 20; deviations 19, 18, 17, 16, 70: population variance 6130 / 5.
    score = NumberColumn(kind="number", outliers=Outliers(method="zscore", threshold=2.0))
    low, high = outlier_bounds(Summary.of(values, score), score.outliers)
    assert (low, high) == pytest.approx((20 - 2 * 1226**0.5, 20 + 2 * 1226**0.5))
    assert find_outliers(values, (-1.0, 7.0)).tolist() == [False] * 4 + [True, False]
    assert clip_outliers(values, (2.0, 7.0)).to_pylist() == [2.0, 2.0, 3.0, 4.0, 7.0, None]
    assert outlier_bounds(Summary(), score.outliers) == (-np.inf, np.inf)


rows = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 2), st.one_of(st.none(), st.floats(-9, 9))),
    max_size=12,
)


@given(rows)
def test_the_mean_of_duplicates_is_that_of_a_loop(rows):
    keys = [np.array([row[0] for row in rows], np.int64)]
    order = [np.array([row[1] for row in rows], np.int64)]
    values = pa.array([row[2] for row in rows], pa.float64())
    table = pa.table({"x": values, "place": pa.array(range(len(rows)), pa.int64())})
    merged, dropped = merge_duplicates(
        table, keys, order, "mean", {"x": NumberColumn(kind="number")}
    )
    expected = []
    for at, (key, time, _) in enumerate(rows):
        group = [row for row in rows if row[0] == key]
        later = [n for n, row in enumerate(rows) if row[0] == key and (row[1], n) > (time, at)]
        if not later:
            known = [row[2] for row in group if row[2] is not None]
            expected.append((at, pytest.approx(sum(known) / len(known)) if known else None))
    found = list(zip(merged["place"].to_pylist(), merged["x"].to_pylist(), strict=True))
    assert found == expected
    assert dropped.sum() == len(rows) - len(expected)
