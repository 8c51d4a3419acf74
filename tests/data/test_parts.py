import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtrec.configfile import parse_config
from mtrec.data import parts, splits
from mtrec.data.features import FeatureTransform, fit_transform
from mtrec.data.histories import Histories
from mtrec.data.parts import check_labels, finish_part, order_part
from mtrec.errors import DataError


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


def in_order(table):
    return list(zip(table["user_id"].to_pylist(), table["item_id"].to_pylist(), strict=True))


def test_events_are_sorted_by_user_and_time_and_split():
    rows = [("b", "x", 1.0), ("a", "z", 3.0), ("a", "x", 1.0), ("a", "y", 2.0)]
    ordered, tally = order_part(make_events(rows), make_config())
    assert in_order(ordered) == [("a", "x"), ("a", "y"), ("a", "z"), ("b", "x")]
    assert ordered["split"].to_pylist() == [0, 1, 2, 0]
    assert tally.splits == (2, 1, 1)
    assert tally.items.to_pylist() == [{"item_id": "x", "train_count": 2}]
    assert tally.train_time_range == (1.0, 1.0)


@pytest.mark.parametrize(
    ("key", "keep", "ratings"),
    [
        # u-x at time 1 twice (ratings 1, then 2) and at time 2 once (rating 3).
        ("user_item_time", "last", [2.0, 3.0]),
        ("user_item_time", "first", [1.0, 3.0]),
        ("user_item", "last", [3.0]),
        ("user_item", "first", [1.0]),
    ],
)
def test_duplicates_go_as_configured(key, keep, ratings):
    rows = [("u", "x", 1.0, 1.0), ("u", "x", 2.0, 3.0), ("u", "x", 1.0, 2.0)]
    config = make_config(data={"quality": {"duplicate_key": key, "keep": keep}})
    ordered, tally = order_part(make_events(rows), config)
    assert ordered["rating"].to_pylist() == ratings
    assert tally.kept + tally.duplicates == 3


def test_without_times_the_source_decides_the_order():
    rows = [("u", "c", 0.0), ("u", "a", 0.0), ("u", "b", 0.0)]
    ordered, tally = order_part(make_events(rows), make_config(timestamp=None))
    assert in_order(ordered) == [("u", "c"), ("u", "a"), ("u", "b")]
    assert "timestamp" not in ordered.column_names
    assert tally.train_time_range is None


def test_the_seed_decides_ties_in_time():
    rows = [("u", f"i{n}", 0.0) for n in range(20)]
    orders = [
        in_order(order_part(make_events(rows), make_config(run={"seed": seed}))[0])
        for seed in (0, 0, 1)
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
    first, tally = order_part(table, config)
    second, _ = order_part(table.take(pa.array(shuffled)), config)
    assert first.equals(second)
    assert tally.kept == len(set(rows))
    assert tally.kept + tally.duplicates == len(rows)


def test_a_split_that_the_data_brings_along_is_kept():
    table = make_events([("u", "x", 1.0), ("u", "y", 2.0)])
    table = table.set_column(5, "split", pa.array(["test", "train"]))
    ordered, tally = order_part(table, make_config(split="column"))
    assert ordered["split"].to_pylist() == [2, 0]
    assert tally.splits == (1, 0, 1)


def test_a_planted_leak_stops_the_run(monkeypatch):
    def leaking(offsets):
        return np.array([splits.TEST, splits.TRAIN, splits.TRAIN], np.int8)

    monkeypatch.setattr(splits, "leave_last_out", leaking)
    with pytest.raises(AssertionError, match="leak"):
        order_part(make_events([("u", "x", 1.0), ("u", "y", 2.0), ("u", "z", 3.0)]), make_config())


def test_a_duplicate_that_is_not_dropped_stops_the_run(monkeypatch):
    def lazy(keys, order, keep):
        return np.zeros(len(keys[0]), bool)

    monkeypatch.setattr(parts, "find_duplicates", lazy)
    with pytest.raises(AssertionError, match="more than one place"):
        order_part(make_events([("u", "x", 1.0), ("u", "x", 1.0)]), make_config())


def finish(rows, config, items=("x", "y", "z")):
    ordered, tally = order_part(make_events(rows), config)
    transform = fit_transform(
        config,
        items={"title": None},
        users={},
        events=tally.summaries,
        id_types={},
        train_time_range=None,
    )
    names = pa.array([f"The {item}" for item in items])
    catalogue = pa.table({"item_id": pa.array(items), "name": names})
    return finish_part(ordered, config, transform, catalogue)


TASKS = (
    {"name": "score", "kind": "regression", "label": "rating", "min": 1, "max": 5},
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
    np.testing.assert_array_equal(histories.labels["score"], [5.0, np.nan, 2.0])
    np.testing.assert_array_equal(histories.labels["like"], [1.0, np.nan, 0.0])
    assert histories.categories["device"].tolist() == [2, 2, 2]


def test_statistics_come_from_training_events_only():
    rows = [("u", "x", 1.0, 1.0), ("u", "y", 2.0, 3.0), ("u", "z", 3.0, 100.0), ("u", "w", 4.0)]
    done = finish(rows, make_config()).interactions
    # z is validation, w is test: the mean of 1 and 3 fills w.
    assert done["split"].to_pylist() == ["train", "train", "validation", "test"]
    assert done["rating"].to_pylist() == [1.0, 3.0, 100.0, 2.0]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (TASKS[0], r'task score: label "rating" has 2 values .* 7; expected 1 to 5'),
        (
            {"name": "like", "kind": "binary", "label": "rating"},
            r'task like: label "rating" has 3 values .* 7; expected 0 and 1',
        ),
    ],
)
def test_labels_that_do_not_fit_their_task_are_counted_over_all_parts(task, message):
    config = make_config(tasks=[task])
    parts = [[("u", "x", 1.0, 7.0), ("u", "y", 2.0, 3.0)], [("v", "x", 1.0, 0.5)]]
    tallies = [order_part(make_events(rows), config)[1] for rows in parts]
    with pytest.raises(DataError, match=message):
        check_labels(config, tallies)


BEHAVIOUR = {
    "text": {"behaviour": {"liked": "rating >= 4", "disliked": "rating <= 2", "max_items": 3}}
}


def test_a_behaviour_text_tells_training_events_before_the_cut(monkeypatch):
    monkeypatch.setattr(splits, "draw_between", lambda hashes, low, high: high)
    ratings = [5, 1, 4, 5, 5, 5, 5, 5, 5, 5]
    rows = [("u", f"i{n}", float(n), float(rating)) for n, rating in enumerate(ratings)]
    items = tuple(f"i{n}" for n in range(10))
    (user,) = finish(rows, make_config(**BEHAVIOUR), items).users.to_pylist()
    # Eight training events, so the cut is at most 4: i0 to i3 are told, the latest three of them.
    assert user["behaviour_cut"] == 4
    assert user["behaviour_text"] == "liked: The i2, The i3; disliked: The i1"


def test_held_out_events_of_a_random_split_are_never_told():
    config = make_config(split="random", **BEHAVIOUR)
    rows = [(f"u{u}", f"i{n}", float(n), 5.0) for u in range(30) for n in range(12)]
    items = tuple(f"i{n}" for n in range(12))
    done = finish(rows, config, items)
    histories = Histories.from_table(done.histories)
    cuts = done.users["behaviour_cut"].to_pylist()
    for number, text in enumerate(done.users["behaviour_text"].to_pylist()):
        events = slice(histories.offsets[number], histories.offsets[number] + cuts[number])
        training = histories.item_index[events][histories.split[events] == 0] - 2
        told = text.removeprefix("liked: ").split(", ") if text else []
        assert told == [f"The i{n}" for n in training[-3:]]


def test_short_histories_have_no_behaviour_text():
    rows = [("u", f"i{n}", float(n), 5.0) for n in range(5)]
    (user,) = finish(rows, make_config(**BEHAVIOUR), ("i0", "i1")).users.to_pylist()
    assert (user["behaviour_text"], user["behaviour_cut"]) == (None, 0)


def test_a_user_with_nothing_to_tell_has_cut_zero():
    rows = [("u", f"i{n}", float(n), 3.0) for n in range(9)]
    (user,) = finish(rows, make_config(**BEHAVIOUR), ("i0", "i1")).users.to_pylist()
    assert (user["behaviour_text"], user["behaviour_cut"]) == (None, 0)


def test_an_empty_transform_leaves_events_as_they_are():
    config = make_config(timestamp=None)
    ordered, _ = order_part(make_events([("u", "x", 0.0, None)]), config)
    transform = FeatureTransform()
    done = finish_part(ordered, config, transform, pa.table({"item_id": ["x"]}))
    assert done.interactions["timestamp"].to_pylist() == [None]
    assert done.interactions["rating"].to_pylist() == [None]
