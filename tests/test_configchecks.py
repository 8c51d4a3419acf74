"""What cannot be between the sections of a configuration is refused with the reason."""

import pytest
from small_config import tree

from mtrec.configfile import parse_config
from mtrec.errors import ConfigError


def test_a_column_may_not_take_a_name_that_the_dataset_uses_itself() -> None:
    broken = tree()
    broken["data"]["users"] = {"path": "users.csv", "columns": {"text": {"kind": "text"}}}
    with pytest.raises(ConfigError, match=r"users.columns.text: mtrec uses this name itself"):
        parse_config(broken)


def test_a_split_by_time_and_columns_of_time_need_times() -> None:
    broken = tree()
    broken["data"]["interactions"]["timestamp"] = None
    broken["data"]["split"] = {"method": "global_time"}
    with pytest.raises(ConfigError, match=r"name the column in data.interactions.timestamp"):
        parse_config(broken)
    broken["data"]["split"] = {"method": "random"}
    broken["data"]["interactions"]["columns"]["day"] = {"kind": "time", "part": "weekday"}
    with pytest.raises(ConfigError, match="name the column in timestamp"):
        parse_config(broken)


@pytest.mark.parametrize("scale", ["none", "minmax"])
def test_a_regression_wants_its_label_scaled_around_zero(scale: str) -> None:
    broken = tree()
    columns = broken["data"]["interactions"].setdefault("columns", {})
    columns["rating"] = {"kind": "number", "scale": scale}
    stars = {"name": "stars", "kind": "regression", "label": "rating", "min": 1, "max": 5}
    broken["tasks"] = [{"name": "next", "kind": "retrieval"}, stars]
    with pytest.raises(ConfigError, match=rf"scale at standard, found {scale}"):
        parse_config(broken)
    broken["tasks"][-1] = {"name": "like", "kind": "binary", "label": "rating >= 4"}
    parse_config(broken)


def test_only_what_users_say_of_items_is_factorised() -> None:
    broken = tree()
    columns = broken["data"]["interactions"].setdefault("columns", {})
    columns["price"] = {"kind": "number", "context": True}
    broken["model"] = {"factors": {"column": "price"}}
    with pytest.raises(ConfigError, match=r'factors.column: "price" is no number column'):
        parse_config(broken)


@pytest.mark.parametrize(
    ("filter_", "message"),
    [
        ({"colour": "red"}, r'score.filter: items have no column "colour"; there are \['),
        ({"title": {"min": 1}}, "score.filter.title: expected a value or a list of values"),
        ({"title": 1.5}, "score.filter.title: expected a value or a list of values"),
        ({"price": "cheap"}, "score.filter.price: expected numbers or a range"),
        ({"price": {}}, "score.filter.price"),
        ({"price": {"least": 1}}, "score.filter.price"),
        ({"price": True}, "score.filter.price"),
    ],
)
def test_a_filter_that_no_request_could_have_is_refused(
    filter_: dict[str, object], message: str
) -> None:
    broken = tree(score={"filter": filter_})
    broken["data"]["items"]["columns"]["price"] = {"kind": "number"}
    with pytest.raises(ConfigError, match=message):
        parse_config(broken)


def test_a_task_may_be_called_effects_unless_explanations_are_written() -> None:
    broken = tree()
    broken["tasks"][2]["name"] = "effects"
    assert parse_config(broken).tasks[2].name == "effects"
    with pytest.raises(ConfigError, match='"effects" is a column of predictions/ already'):
        parse_config({**broken, "score": {"explain": True}})
