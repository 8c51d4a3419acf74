import statistics

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtrec.config import CategoryColumn, NumberColumn, TextColumn
from mtrec.data.clean import (
    Moments,
    Summary,
    encode,
    fill_missing,
    filled_moments,
    find_duplicates,
    fit_fill,
    merge_summaries,
)

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
