"""One schema: frozen, documented, and without combinations that cannot be run."""

import pytest
from pydantic import BaseModel
from small_config import tree

from mtrec import config, dataconfig
from mtrec.config import Config
from mtrec.configfile import parse_config
from mtrec.dataconfig import GlobalTimeSplit
from mtrec.errors import ConfigError


def test_a_configuration_cannot_be_changed_after_it_was_checked() -> None:
    config = parse_config(tree())

    with pytest.raises(ValueError, match="frozen"):
        config.train.epochs = 5  # type: ignore[misc]  # that it is refused is the point


def test_a_column_may_not_take_a_name_that_the_dataset_uses_itself() -> None:
    broken = tree()
    broken["data"]["users"] = {"path": "users.csv", "columns": {"text": {"kind": "text"}}}
    with pytest.raises(ConfigError, match=r"users.columns.text: mtrec uses this name itself"):
        parse_config(broken)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ({"method": "global_time", "test_from": 5}, "both validation_from and test_from"),
        ({"method": "global_time", "validation_from": 9, "test_from": 5}, "must not be after"),
        (
            {"method": "global_time", "validation_from": "soon", "test_from": 5},
            '"soon" is no time',
        ),
        ({"method": "global_time", "validation": 0.6, "test": 0.4}, "leave a share for training"),
        ({"method": "k_fold", "folds": 5, "fold": 5}, "fold 5 is not one of 0 to 4"),
    ],
)
def test_a_split_that_cannot_be_is_refused(split: dict[str, object], message: str) -> None:
    broken = tree()
    broken["data"]["split"] = split
    with pytest.raises(ConfigError, match=message):
        parse_config(broken)


def test_moments_are_seconds_or_iso_text_in_utc() -> None:
    given = tree()
    moments = {"validation_from": "2026-11-24", "test_from": "2026-11-24T08:00:00+08:00"}
    given["data"]["split"] = {"method": "global_time", **moments}
    split = parse_config(given).data.split
    assert isinstance(split, GlobalTimeSplit)
    assert split.fixed_cuts == (1795478400.0, 1795478400.0)


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


def test_items_have_no_columns_of_time() -> None:
    broken = tree()
    broken["data"]["items"]["columns"]["day"] = {"kind": "time", "part": "weekday"}
    with pytest.raises(ConfigError, match="which only interactions have"):
        parse_config(broken)


def test_a_task_is_found_by_name() -> None:
    assert parse_config(tree()).task("like").kind == "binary"


def test_a_section_that_names_no_kind_is_of_the_first_one() -> None:
    model = parse_config(tree(model={"experts": {"hidden": [3]}})).model

    assert model.experts.kind == "shared_bottom"
    assert model.experts.hidden == [3]


# ---- the schema itself --------------------------------------------------------------------------


def sections() -> list[type[BaseModel]]:
    return [
        value
        for module in (config, dataconfig)
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, BaseModel)
        and value.__module__ == module.__name__
    ]


def test_every_section_refuses_unknown_keys_and_is_frozen() -> None:
    assert len(sections()) > 20
    for section in sections():
        assert section.model_config.get("extra") == "forbid", section
        assert section.model_config.get("frozen") is True, section


def test_defaults_are_valid_where_they_stand() -> None:
    defaults = Config.model_validate(tree())

    assert parse_config(defaults.model_dump(mode="json")) == defaults


def test_only_what_users_say_of_items_is_factorised() -> None:
    broken = tree()
    columns = broken["data"]["interactions"].setdefault("columns", {})
    columns["price"] = {"kind": "number", "context": True}
    broken["model"] = {"factors": {"column": "price"}}
    with pytest.raises(ConfigError, match=r'factors.column: "price" is no number column'):
        parse_config(broken)


# ---- batch scoring ------------------------------------------------------------------------------


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


def test_a_filter_keeps_the_types_of_its_values() -> None:
    conditions = {"title": ["a", 7], "genres": "x", "price": {"min": 1, "max": 2.5}}
    given = tree(score={"filter": conditions})
    given["data"]["items"]["columns"]["price"] = {"kind": "number"}
    assert parse_config(given).score.model_dump()["filter"] == conditions


def test_a_task_may_be_called_effects_unless_explanations_are_written() -> None:
    broken = tree()
    broken["tasks"][2]["name"] = "effects"
    assert parse_config(broken).tasks[2].name == "effects"
    with pytest.raises(ConfigError, match='"effects" is a column of predictions/ already'):
        parse_config({**broken, "score": {"explain": True}})
