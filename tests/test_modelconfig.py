"""The sections about tasks and the model: kinds, and what cannot be."""

import pytest
from small_config import tree

from mtrec.configfile import parse_config
from mtrec.errors import ConfigError
from mtrec.modelconfig import label_tasks, social_task


def test_a_section_that_names_no_kind_is_of_the_first_one() -> None:
    model = parse_config(tree(model={"experts": {"hidden": [3]}})).model

    assert model.experts.kind == "shared_bottom"
    assert model.experts.hidden == [3]


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"kind": "regression", "min": 5, "max": 5}, "min 5.0 must be below max 5.0"),
        (
            {"kind": "regression", "label": "rating >= 4", "min": 1, "max": 5},
            "must be a column for a regression task",
        ),
        ({"kind": "binary", "label": "rating >="}, "rating >="),
    ],
)
def test_a_task_that_cannot_be_is_refused(task: dict[str, object], message: str) -> None:
    broken = tree()
    broken["tasks"][1] = {"name": "rating", "label": "rating", **task}

    with pytest.raises(ConfigError, match=message):
        parse_config(broken)


def test_heads_share_the_width_among_them() -> None:
    with pytest.raises(ConfigError, match=r"embedding_dim 64 must be a multiple of .* 3"):
        parse_config(tree(model={"embedding_dim": 64, "history": {"num_heads": 3}}))


def test_tasks_with_labels_and_links_are_told_apart() -> None:
    tasks = parse_config(tree()).tasks

    assert [task.kind for task in label_tasks(tasks)] == [
        task.kind for task in tasks if task.kind in ("regression", "binary")
    ]
    assert social_task(tasks) is None


def test_a_bundle_keeps_as_many_events_as_its_widest_reader() -> None:
    model = {"history": {"length": 20}, "factors": {"column": "rating", "length": 70}}

    assert parse_config(tree(model=model)).model.kept_events == 70
    assert parse_config(tree(model={"history": {"length": 20}})).model.kept_events == 20
