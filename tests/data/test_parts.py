import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec.configfile import parse_config
from mtrec.data import clean, splits
from mtrec.data.features import FeatureTransform, fit_transform
from mtrec.data.histories import Histories
from mtrec.data.parts import finish_part, limit_part, order_part, set_aside


def make_config(*, timestamp="timestamp", split=None, tasks=(), **sections):
    return parse_config(
        {
            "data": {
                "interactions": {
                    "path": "x",
                    "timestamp": timestamp,
                    "split": "split",
                    "columns": {"rating": {"kind": "number"}, "device": {"kind": "category"}},
                },
                "items": {"path": "y", "columns": {"title": {"kind": "text"}}},
                "split": {"method": split or "leave_last_out"},
                **sections.pop("data", {}),
            },
            "tasks": [{"name": "retrieval", "kind": "retrieval"}, *tasks],
            **sections,
        }
    )


def make_events(rows):
    """Make checked events of (user, item, time, rating); places in the order given."""
    return pa.table(
        {
            "user_id": pa.array([row[0] for row in rows], pa.string()),
            "item_id": pa.array([row[1] for row in rows], pa.string()),
            "timestamp": pa.array([row[2] for row in rows], pa.float64()),
            "rating": pa.array([row[3] if len(row) > 3 else None for row in rows], pa.float64()),
            "device": pa.array(["tv"] * len(rows), pa.string()),
            "split": pa.array(["train"] * len(rows), pa.string()),
            "_place": pa.array(range(len(rows)), pa.int64()),
        }
    )


def order(events, config, cuts=None):
    done = order_part(events, config, cuts)
    return done.events, done.tally


def in_order(table):
    return list(zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True))


def test_events_are_sorted_by_user_and_time_and_split():
    rows = [("b", "x", 1.0), ("a", "z", 3.0), ("a", "x", 1.0), ("a", "y", 2.0)]
    ordered, tally = order(make_events(rows), make_config())
    assert in_order(ordered) == [("a", "x"), ("a", "y"), ("a", "z"), ("b", "x")]
    assert ordered["split"].to_pylist() == [0, 1, 2, 0]
    assert tally.splits == (2, 1, 1)
    assert tally.items.to_pylist() == [{"item_id": "x", "train_count": 2}]


@pytest.mark.parametrize(
    ("key", "keep", "ratings"),
    [
        # u-x at time 1 twice (ratings 1, then 2) and at time 2 once (rating 3).
        ("user_item_time", "last", [2.0, 3.0]),
        ("user_item_time", "first", [1.0, 3.0]),
        ("user_item", "last", [3.0]),
        ("user_item", "first", [1.0]),
        ("user_item_time", "mean", [1.5, 3.0]),
        ("user_item", "mean", [2.0]),
    ],
)
def test_duplicates_go_as_configured(key, keep, ratings):
    rows = [("u", "x", 1.0, 1.0), ("u", "x", 2.0, 3.0), ("u", "x", 1.0, 2.0)]
    config = make_config(data={"quality": {"duplicate_key": key, "keep": keep}})
    ordered, tally = order(make_events(rows), config)
    assert ordered["rating"].to_pylist() == ratings
    assert tally.kept + tally.duplicates == 3


def test_without_times_the_source_decides_the_order():
    rows = [("u", "c", 0.0), ("u", "a", 0.0), ("u", "b", 0.0)]
    ordered, _ = order(make_events(rows), make_config(timestamp=None))
    assert in_order(ordered) == [("u", "c"), ("u", "a"), ("u", "b")]
    assert "timestamp" not in ordered.column_names


def test_the_seed_decides_ties_in_time():
    rows = [("u", f"i{n}", 0.0) for n in range(20)]
    orders = [
        in_order(order(make_events(rows), make_config(run={"seed": seed}))[0]) for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])


events = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("xyz"), st.sampled_from([0.0, 1.0, 2.0])),
    min_size=1,
    max_size=25,
)


@settings(deadline=None)
@given(events, st.randoms(use_true_random=False), st.sampled_from(["leave_last_out", "random"]))
def test_the_order_of_the_rows_changes_nothing(rows, random, method):
    config = make_config(split=method)
    table = make_events(rows)
    shuffled = list(range(len(rows)))
    random.shuffle(shuffled)
    first, tally = order(table, config)
    second, _ = order(table.take(pa.array(shuffled)), config)
    assert first.equals(second)
    assert tally.kept == len(set(rows))
    assert tally.kept + tally.duplicates == len(rows)


def test_a_split_that_the_data_brings_along_is_kept():
    table = make_events([("u", "x", 1.0), ("u", "y", 2.0)])
    table = table.set_column(5, "split", pa.array(["test", "train"]))
    ordered, tally = order(table, make_config(split="column"))
    assert ordered["split"].to_pylist() == [2, 0]
    assert tally.splits == (1, 0, 1)


def test_a_planted_leak_stops_the_run(monkeypatch):
    def leaking(offsets):
        return np.array([splits.TEST, splits.TRAIN, splits.TRAIN], np.int8)

    monkeypatch.setattr(splits, "leave_last_out", leaking)
    with pytest.raises(AssertionError, match="leak"):
        order(make_events([("u", "x", 1.0), ("u", "y", 2.0), ("u", "z", 3.0)]), make_config())


def test_a_duplicate_that_is_not_dropped_stops_the_run(monkeypatch):
    def lazy(keys, order, keep):
        return np.zeros(len(keys[0]), bool)

    monkeypatch.setattr(clean, "find_duplicates", lazy)
    with pytest.raises(AssertionError, match="more than one place"):
        order(make_events([("u", "x", 1.0), ("u", "x", 1.0)]), make_config())


def finish(rows, config, items=("x", "y", "z")):
    ordered, tally = order(make_events(rows), config)
    transform = fit_transform(
        config,
        items={"title": None},
        users={},
        events=tally.summaries,
        id_types={},
    )
    names = pa.array([f"The {item}" for item in items])
    catalogue = pa.table({"item_id": pa.array(items), "name": names})
    return finish_part(ordered, config, transform, catalogue)


TASKS = (
    {"name": "stars", "kind": "regression", "label": "rating", "min": 1, "max": 5},
    {"name": "like", "kind": "binary", "label": "rating >= 4"},
)


def test_histories_hold_positions_labels_and_treated_numbers():
    rows = [("u", "x", 1.0, 5.0), ("u", "new", 2.0, None), ("u", "y", 3.0, 2.0)]
    config = make_config(tasks=TASKS, data={"split": {"method": "column"}})
    histories = Histories.from_table(finish(rows, config).histories)
    assert histories.item_index.tolist() == [2, 1, 3]
    assert histories.timestamp.tolist() == [1.0, 2.0, 3.0]
    # The missing rating becomes the mean of 5 and 2 as a feature, and stays missing as a label.
    assert histories.numbers["rating"].tolist() == [5.0, 3.5, 2.0]
    np.testing.assert_array_equal(histories.labels["stars"], [5.0, np.nan, 2.0])
    np.testing.assert_array_equal(histories.labels["like"], [1.0, np.nan, 0.0])
    assert histories.categories["device"].tolist() == [2, 2, 2]


def test_statistics_come_from_training_events_only():
    rows = [("u", "x", 1.0, 1.0), ("u", "y", 2.0, 3.0), ("u", "z", 3.0, 100.0), ("u", "w", 4.0)]
    done = finish(rows, make_config()).interactions
    # z is validation, w is test: the mean of 1 and 3 fills w.
    assert done["split"].to_pylist() == ["train", "train", "validation", "test"]
    assert done["rating"].to_pylist() == [1.0, 3.0, 100.0, 2.0]


def test_labels_are_looked_at_in_all_events_and_their_ends_in_those_of_training():
    # Of each user the last event is the test, the last but one validation.
    rows = [("u", "w", 0.0, 2.0), ("u", "x", 1.0, 3.0), ("u", "y", 2.0, 5.0), ("u", "z", 3.0, 7.0)]
    _, tally = order(make_events(rows), make_config(tasks=TASKS))
    assert tally.misfits == {"stars": (1, 7.0)}
    assert tally.labels == {"stars": (2.0, 3.0), "like": (0.0, 0.0)}


def test_an_empty_transform_leaves_events_as_they_are():
    config = make_config(timestamp=None)
    ordered, _ = order(make_events([("u", "x", 0.0, None)]), config)
    transform = FeatureTransform()
    done = finish_part(ordered, config, transform, pa.table({"item_id": ["x"]}))
    assert done.interactions["timestamp"].to_pylist() == [None]
    assert done.interactions["rating"].to_pylist() == [None]


def test_the_mean_of_duplicates_leaves_out_missing_numbers_and_keeps_the_last_row():
    rows = [("u", "x", 1.0, 4.0), ("u", "x", 3.0, None), ("u", "x", 2.0, 1.0), ("u", "y", 1.0)]
    quality = {"duplicate_key": "user_item", "keep": "mean"}
    ordered, tally = order(make_events(rows), make_config(data={"quality": quality}))
    assert in_order(ordered) == [("u", "y"), ("u", "x")]
    # The mean of 4 and 1; the last in time has no rating of its own. Nobody rated y.
    assert ordered["rating"].to_pylist() == [None, 2.5]
    assert ordered["timestamp"].to_pylist() == [1.0, 3.0]
    assert ordered["_place"].to_pylist() == [3, 1]
    assert tally.duplicates == 2


def test_a_split_by_global_time_cuts_all_users_and_sets_the_gaps_aside():
    split = {"method": "global_time", "gap_s": 2}
    rows = [("a", str(t), float(t)) for t in range(10)] + [("b", "z", 9.0)]
    done = order_part(make_events(rows), make_config(data={"split": split}), cuts=(5.0, 8.0))
    # Gaps: 3, 4 before 5 and 6, 7 before 8.
    assert in_order(done.events) == [*(("a", t) for t in "012589"), ("b", "z")]
    assert done.events["split"].to_pylist() == [0, 0, 0, 1, 2, 2, 2]
    assert done.rejected["_place"].to_pylist() == [3, 4, 6, 7]
    assert set(done.rejected["_reason"].to_pylist()) == {
        "timestamp is in the gap before validation or test"
    }
    assert '"item_id": "3"' in done.rejected["_row"][0].as_py()
    assert done.tally.kept == 7 and done.tally.rejected.total() == 4
    assert done.tally.users["train_events"].to_pylist() == [3, 0]


def test_folds_are_disjoint_and_hold_every_event():
    rows = [(f"u{n % 7}", f"i{n}", float(n)) for n in range(200)]
    held_out = []
    for fold in range(5):
        split = {"method": "k_fold", "folds": 5, "fold": fold, "validation": 0.25}
        ordered, tally = order(make_events(rows), make_config(data={"split": split}))
        assert tally.kept == 200
        # Expected: 40 test, a quarter of the others validation; wide of chance (4 deviations).
        assert 17 <= tally.splits[2] <= 63 and 17 <= tally.splits[1] <= 63
        test = ordered.filter(pa.compute.equal(ordered["split"], 2))
        held_out += test["item_id"].to_pylist()
    assert sorted(held_out) == sorted(row[1] for row in rows)


def make_outliers(action, method="iqr"):
    columns = {
        "rating": {"kind": "number", "outliers": {"method": method, "action": action}},
        "device": {"kind": "category"},
    }
    interactions = {"path": "x", "timestamp": "timestamp", "columns": columns}
    return make_config(data={"interactions": interactions, "split": {"method": "random"}})


@pytest.mark.parametrize(
    ("action", "ratings", "aside"),
    [
        ("clip", [1.0, 4.0, None], []),
        ("reject", [1.0, None], [1]),
        ("keep", [1.0, 90.0, None], []),
    ],
)
def test_outliers_are_treated_as_configured(action, ratings, aside):
    config = make_outliers(action)
    rows = [("u", "x", 1.0, 1.0), ("u", "y", 2.0, 90.0), ("u", "z", 3.0, None)]
    before = order_part(make_events(rows), config)
    after = limit_part(before.events, before.tally, config, {"rating": (0.0, 4.0)})
    assert after.events["rating"].to_pylist() == ratings
    assert after.rejected["_place"].to_pylist() == aside
    assert after.tally.outliers == {"rating": 1}
    assert after.tally.kept == 3 - len(aside)
    assert after.tally.rejected.total() == len(aside)


def test_a_row_with_two_reasons_is_set_aside_once_with_the_first():
    rows = make_events([("u", "x", 1.0), ("u", "y", 2.0), ("u", "z", 3.0)])
    marked = {"late": np.array([True, False, True]), "odd": np.array([True, True, False])}
    aside = set_aside(rows, marked)
    assert aside["_place"].to_pylist() == [0, 1, 2]
    assert aside["_reason"].to_pylist() == ["late", "odd", "late"]


def test_statistics_are_those_of_clipped_numbers():
    config = make_outliers("clip")
    rows = [("u", str(n), float(n), 90.0) for n in range(50)]
    before = order_part(make_events(rows), config)
    after = limit_part(before.events, before.tally, config, {"rating": (0.0, 4.0)})
    assert before.tally.summaries["rating"].moments.mean == 90.0
    assert after.tally.summaries["rating"].moments.mean == 4.0


def test_parts_of_the_time_become_categories():
    columns = {
        "hour": {"kind": "time", "part": "hour", "utc_offset_h": 8},
        "day": {"kind": "time", "part": "weekday"},
        "month": {"kind": "time", "part": "month"},
    }
    interactions = {"path": "x", "timestamp": "timestamp", "columns": columns}
    config = make_config(data={"interactions": interactions})
    # 2026-11-24 17:30 UTC, a Tuesday; 1 h 30 min past midnight in Shanghai.
    ordered, tally = order(make_events([("u", "x", 1795541400.0)]), config)
    assert ordered["hour"].to_pylist() == ["1"]
    assert ordered["day"].to_pylist() == ["tuesday"]
    assert ordered["month"].to_pylist() == ["11"]
    assert tally.summaries["day"].counts == {"tuesday": 1}
