"""Bootstrap and score intervals against values worked out by hand and normal theory."""

import math

import numpy as np
import pytest

from mtrec import intervals, metrics
from mtrec.intervals import bootstrap, mean_over_users, over_rows, wilson


def test_bootstrap_interval_of_a_mean_agrees_with_the_normal_one() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, 2000)
    figure = bootstrap({"x": mean_over_users(values)}, num_users=2000, samples=2000, seed=1)["x"]
    interval = figure.interval()
    error = 1.96 * values.std() / math.sqrt(2000)
    assert interval.value == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert interval.high == pytest.approx(values.mean() + error, abs=0.1 * error)


def test_users_without_a_value_do_not_count() -> None:
    values = np.array([1.0, np.nan, 1.0])
    figure = bootstrap({"x": mean_over_users(values)}, num_users=3, samples=200, seed=0)["x"]
    assert figure.value == 1.0
    assert figure.interval().low == figure.interval().high == 1.0


def test_paired_difference_is_narrower_than_the_intervals_of_its_sides() -> None:
    rng = np.random.default_rng(4)
    shared = rng.normal(1.0, 1.0, 500)
    sides = {"a": mean_over_users(shared + 0.1), "b": mean_over_users(shared)}
    drawn = bootstrap(sides, num_users=500, samples=500, seed=0)
    difference = drawn["a"].minus(drawn["b"])
    assert difference.absolute.low == pytest.approx(0.1)
    assert difference.absolute.high == pytest.approx(0.1)
    assert difference.relative.value == pytest.approx(0.1 / shared.mean())
    assert difference.relative.low < difference.relative.value < difference.relative.high


def test_bootstrap_of_rows_draws_whole_users() -> None:
    # Two users: one is always right, one always wrong. Draws of both alike have accuracy 0 or 1.
    user = np.repeat([0, 1], 50)
    label, probability = np.ones(100), np.repeat([0.9, 0.1], 50)
    statistic = over_rows(metrics.accuracy, user, label, probability)
    figure = bootstrap({"x": statistic}, num_users=2, samples=300, seed=0, rows=100)["x"]
    assert set(np.unique(figure.drawn)) == {0.0, 0.5, 1.0}


def test_bootstrap_depends_on_the_seed_and_not_on_the_block(monkeypatch) -> None:
    values = np.random.default_rng(0).random(50)

    def drawn(seed: int) -> np.ndarray:
        return bootstrap({"x": mean_over_users(values)}, num_users=50, samples=20, seed=seed)[
            "x"
        ].drawn

    whole = drawn(7)
    monkeypatch.setattr(intervals, "_BLOCK", 150)
    np.testing.assert_allclose(drawn(7), whole, rtol=1e-12)
    assert (drawn(8) != whole).any()


def test_bootstrap_without_users_is_undefined() -> None:
    figure = bootstrap({"x": mean_over_users(np.zeros(0))}, num_users=0, samples=5, seed=0)["x"]
    assert np.isnan(figure.interval().low)


def test_wilson_interval_has_the_values_worked_out_by_hand() -> None:
    # 8 of 10, z = 1.959964: middle (0.8 + 0.192073) / 1.384146, reach
    # 1.959964 sqrt(0.016 + 0.0096036) / 1.384146.
    found = wilson(8, 10)
    assert found.value == 0.8
    assert (found.low, found.high) == pytest.approx((0.490162, 0.943318), abs=1e-5)


def test_wilson_interval_of_a_sure_thing_has_a_width() -> None:
    found = wilson(100, 100)
    # n / (n + z^2)
    assert (found.low, found.high) == pytest.approx((100 / 103.841459, 1.0))
    assert wilson(0, 100).high == pytest.approx(1 - 100 / 103.841459)
    assert np.isnan(wilson(0, 0).value)
