"""One schema: frozen, documented, and without combinations that cannot be run."""

import pytest
from pydantic import BaseModel
from small_config import tree

from mtrec import config, dataconfig, modelconfig
from mtrec.config import Config
from mtrec.configfile import parse_config


def test_a_configuration_cannot_be_changed_after_it_was_checked() -> None:
    config = parse_config(tree())

    with pytest.raises(ValueError, match="frozen"):
        config.train.epochs = 5  # type: ignore[misc]  # that it is refused is the point


def test_a_task_is_found_by_name() -> None:
    assert parse_config(tree()).task("like").kind == "binary"


# ---- the schema itself --------------------------------------------------------------------------


def sections() -> list[type[BaseModel]]:
    return [
        value
        for module in (config, dataconfig, modelconfig)
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


# ---- batch scoring ------------------------------------------------------------------------------


def test_a_filter_keeps_the_types_of_its_values() -> None:
    conditions = {"title": ["a", 7], "genres": "x", "price": {"min": 1, "max": 2.5}}
    given = tree(score={"filter": conditions})
    given["data"]["items"]["columns"]["price"] = {"kind": "number"}
    assert parse_config(given).score.model_dump()["filter"] == conditions
