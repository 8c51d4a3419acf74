import numpy as np
import pytest

from mtrec.configfile import parse_config
from mtrec.data.labelcheck import check_labels, find_misfits, find_ranges, join_ranges
from mtrec.errors import DataError

STARS = {"name": "stars", "kind": "regression", "label": "rating", "min": 1, "max": 5}
LIKE = {"name": "like", "kind": "binary", "label": "rating >= 4"}


def make_config(*tasks, keep="last"):
    return parse_config(
        {
            "data": {
                "quality": {"keep": keep},
                "interactions": {"path": "x", "columns": {"rating": {"kind": "number"}}},
                "split": {"method": "random"},
            },
            "tasks": [{"name": "retrieval", "kind": "retrieval"}, *tasks],
        }
    )


def raw(*ratings):
    return {"rating": np.array(ratings)}


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (STARS, r'task stars: label "rating" has 2 values .* 7; expected 1 to 5'),
        (
            {"name": "like", "kind": "binary", "label": "rating"},
            r'task like: label "rating" has 3 values .* 7; expected 0 and 1',
        ),
    ],
)
def test_labels_that_do_not_fit_their_task_are_counted_over_all_parts(task, message):
    config = make_config(task)
    parts = [find_misfits(config, found) for found in (raw(7.0, 3.0, np.nan, 1.0), raw(0.5))]
    if task["kind"] == "binary":
        parts = [find_misfits(config, found) for found in (raw(7.0, 3.0, np.nan), raw(0.5, 1.0))]
    with pytest.raises(DataError, match=message):
        check_labels(config, parts)


def test_labels_that_fit_pass():
    config = make_config(STARS, LIKE)
    parts = [find_misfits(config, raw(1.0, 5.0, np.nan)), find_misfits(config, raw())]
    assert parts == [{}, {}]
    check_labels(config, parts)


def test_ranges_are_joined_over_all_parts():
    config = make_config(STARS, LIKE)
    parts = [find_ranges(config, found) for found in (raw(2.0, np.nan, 3.0), raw(3.5), raw(np.nan))]
    assert parts[2] == {}
    assert join_ranges(parts) == {"stars": (2.0, 3.5), "like": (0.0, 0.0)}


def test_a_mean_of_zeros_and_ones_is_told_as_what_it_is():
    config = make_config({"name": "like", "kind": "binary", "label": "rating"}, keep="mean")
    with pytest.raises(DataError, match=r"for example 0\.5; .*\ndata\.quality\.keep: mean gives"):
        check_labels(config, [find_misfits(config, raw(1.0, 0.5))])
