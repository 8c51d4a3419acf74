"""Popularity on six items of which the first two are special, counted by hand."""

import numpy as np
import pytest
from small_histories import make_histories

from mtrec.popular import Popular, decayed_counts, popularity, time_span

COUNTS = np.array([90, 80, 5, 20, 20, 0])
TIE_RANK = np.array([0, 1, 2, 4, 3, 5])
NOBODY = np.array([], np.int64)


def test_the_most_popular_come_first_ties_by_item_id() -> None:
    popular = Popular(COUNTS, TIE_RANK)
    assert popular.top(NOBODY, None, 3).tolist() == [4, 3, 2]
    assert popular.top(np.array([4]), None, 2).tolist() == [3, 2]


def test_what_runs_out_is_filled_and_what_is_not_allowed_stays_out() -> None:
    popular = Popular(COUNTS, TIE_RANK)
    allowed = np.array([True, True, True, False, False, True])
    assert popular.top(np.array([5]), allowed, 3).tolist() == [2, -1, -1]
    assert allowed.all() == np.False_ and allowed[:2].all()  # left as it was


def test_shares_are_of_the_most_popular_item_that_may_be_listed_at_most_one() -> None:
    popular = Popular(COUNTS, TIE_RANK)
    asked = np.array([[4, 2, 5], [4, 2, 5]])
    found = popular.shares(asked, [NOBODY, np.array([3, 4])])
    np.testing.assert_allclose(found, [[1.0, 0.25, 0.0], [1.0, 1.0, 0.0]])


def test_where_nothing_is_left_shares_are_zero() -> None:
    popular = Popular(COUNTS, TIE_RANK)
    found = popular.shares(np.array([[4]]), [np.array([2, 3, 4, 5])])
    assert found.tolist() == [[0.0]]


def test_events_of_late_count_more_and_parts_add_up_to_the_whole() -> None:
    events, time = [[2, 3, 1], [3], [4]], [[0.0, 50.0, 100.0], [100.0], [np.nan]]
    whole = make_histories(events, time=time)
    # A half-life is a quarter of the span; an event without a time counts as the oldest.
    expected = [0.0, 0.0, 0.5**4, 0.5**2 + 1.0, 0.5**4]
    assert popularity(whole, 5, 0.25) == pytest.approx(expected)
    span = time_span(whole)
    assert span == (0.0, 100.0)
    parts = [decayed_counts(whole.rows([user]), 5, 0.25, span) for user in range(3)]
    assert np.sum(parts, axis=0) == pytest.approx(expected)


def test_without_half_life_or_times_events_count_alike() -> None:
    events = [[2, 3, 1], [3]]
    assert popularity(make_histories(events), 4, None).tolist() == [0, 0, 1, 2]
    timeless = make_histories(events, time=[[np.nan] * 3, [np.nan]])
    assert time_span(timeless) is None
    assert popularity(timeless, 4, 0.25).tolist() == [0, 0, 1, 2]
