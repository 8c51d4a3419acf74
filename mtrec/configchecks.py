"""What is wrong between the sections of a configuration, which none of them can see alone."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mtrec.dataconfig import DataConfig
from mtrec.labels import parse_label, template_fields
from mtrec.modelconfig import FactorsTerm

if TYPE_CHECKING:
    from mtrec.config import Config


def problems(config: "Config") -> Iterator[str]:
    """Yield what single sections cannot see."""
    names = [task.name for task in config.tasks]
    if len(set(names)) < len(names):
        yield f"tasks: names must differ, found {names}"
    if [task.kind for task in config.tasks].count("retrieval") != 1:
        yield "tasks: expected exactly one task of kind retrieval (it makes the candidates)"
    yield from _check_social(config)
    taken = {"user_id", "rank", "item_id", "score"}
    if config.score.explain:
        taken |= {*EXPLANATION_COLUMNS}
    for name in sorted(taken & set(names)):
        yield f'tasks: "{name}" is a column of predictions/ already; name the task otherwise'
    yield from _check_column_names(config.data)
    columns = config.data.interactions.columns
    for task in config.tasks:
        if task.kind in ("regression", "binary"):
            yield from _check_label(f"tasks.{task.name}.label", task.label, columns)
        if task.kind == "regression":
            scale = getattr(columns.get(task.label), "scale", "standard")
            if scale != "standard":
                # The network starts at an item's mean in these units, which must be around 0.
                yield (
                    f'tasks.{task.name}.label: "{task.label}" is learned as (value - mean) / '
                    f"deviation: leave its column's scale at standard, found {scale}"
                )
    if config.model.factors is not None:
        yield from _check_factors(config.model.factors, columns)
    if config.model.item_item is not None and config.model.item_item.amount is not None:
        yield from _check_amount(config.model.item_item.amount, columns)
    weighable = [task.name for task in config.tasks if task.kind != "social"]
    for name in config.score.weights:
        if name not in weighable:
            yield f'score.weights: no task is called "{name}"; there are {weighable}'
    yield from _check_filter(config)
    if config.text.behaviour is not None:
        for label in (config.text.behaviour.liked, config.text.behaviour.disliked):
            if label is not None:
                yield from _check_label("text.behaviour", label, columns)
        items = config.data.items.columns if config.data.items else {}
        if config.text.behaviour.item_column not in items:
            yield (
                f'text.behaviour.item_column "{config.text.behaviour.item_column}" is no column '
                f"of data.items; there are {sorted(items)}"
            )
    for key, template, table in (
        ("item_template", config.text.item_template, config.data.items),
        ("user_template", config.text.user_template, config.data.users),
    ):
        known = set(table.columns) if table else set()
        for name in template_fields(template or ""):
            if name not in known:
                yield f'text.{key} uses "{{{name}}}"; the table has {sorted(known)}'
    if config.data.split.method == "column" and config.data.interactions.split is None:
        yield "data.split.method is column: name the column in data.interactions.split"
    if config.data.split.method == "global_time" and config.data.interactions.timestamp is None:
        yield "data.split.method is global_time: name the column in data.interactions.timestamp"
    if config.train.monitor is not None:
        k = config.evaluate.k
        values = [
            f"{task.name}/{name}".format(k=k)
            for task in config.tasks
            for name in _MONITORED[task.kind]
        ]
        if config.train.monitor.format(k=k) not in values:
            yield (
                f'train.monitor "{config.train.monitor}" is no validation value of this run; '
                f"there are {values}"
            )
    if config.train.batch_size % max(1, config.train.num_workers):
        yield (
            f"train.batch_size {config.train.batch_size} must be a multiple of "
            f"train.num_workers {config.train.num_workers}"
        )


_MONITORED = {
    "retrieval": ("ndcg@{k}", "hr@{k}"),
    "regression": ("rmse",),
    "binary": ("auc", "logloss"),
    "social": ("ndcg@{k}", "recall@{k}"),
}
"""What validation measures while fitting (`model.validation`)."""

_TAKEN = {
    "interactions": {"user_id", "item_id", "timestamp", "split"},
    "items": {"item_id", "item_index", "train_count", "text"},
    "users": {"user_id", "text", "behaviour_text", "behaviour_cut"},
}
"""Columns that the tables of a dataset have anyway."""


def _check_social(config: "Config") -> Iterator[str]:
    """Yield what is wrong between the table of links and the task that reads it."""
    count = [task.kind for task in config.tasks].count("social")
    if count > 1:
        yield f"tasks: expected at most one task of kind social, found {count}"
    if count and config.data.social is None:
        yield "tasks: a task of kind social needs the table of links: name it in data.social"
    if config.data.social is not None and not count:
        yield (
            "data.social is read by a task of kind social only: add "
            "{name: friends, kind: social} to tasks, or leave data.social out"
        )


def _check_factors(term: FactorsTerm, columns: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the column that is factorised."""
    numbers = _numbers_said(columns)
    if term.column not in numbers:
        yield (
            f'model.factors.column: "{term.column}" is no number column of '
            f"data.interactions.columns that users say of items; there are {numbers}"
        )


def _check_amount(column: str, columns: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the column that says how much an event counts."""
    numbers = _numbers_said(columns)
    if column not in numbers:
        yield (
            f'model.item_item.amount: "{column}" is no number column of '
            f"data.interactions.columns that users say of items; there are {numbers}"
        )
    elif columns[column].min is None or columns[column].min < 0:
        yield (
            f'model.item_item.amount: "{column}" has to be 0 or more; say so by '
            f"data.interactions.columns.{column}.min: 0"
        )


def _numbers_said(columns: dict[str, Any]) -> list[str]:
    """Give the number columns that users say of items."""
    return sorted(
        name for name, value in columns.items() if value.kind == "number" and not value.context
    )


EXPLANATION_COLUMNS = ("content_share", "reasons", "effects", "similarities")
"""Columns of `predictions/` that `score.explain` adds."""


def _check_filter(config: "Config") -> Iterator[str]:
    """Yield what is wrong with the conditions of batch scoring, as a request would be told."""
    columns = config.data.items.columns if config.data.items else {}
    for name, condition in config.score.filter.items():
        if name not in columns:
            yield f'score.filter: items have no column "{name}"; there are {sorted(columns)}'
            continue
        values = condition if isinstance(condition, list) else [condition]
        if columns[name].kind == "number":
            if any(isinstance(value, str) for value in values):
                yield f"score.filter.{name}: expected numbers or a range, found {condition!r}"
        elif any(not isinstance(value, str | int) for value in values):
            yield (
                f"score.filter.{name}: expected a value or a list of values, found {condition!r}; "
                "only numbers have a range"
            )


def _check_column_names(data: DataConfig) -> Iterator[str]:
    for table, taken in _TAKEN.items():
        section = getattr(data, table)
        for name in section.columns if section is not None else ():
            if name in taken:
                yield (
                    f"data.{table}.columns.{name}: mtrec uses this name itself; "
                    f'give the column another and name it in "source: {name}"'
                )


def _check_label(where: str, label: str, columns: dict[str, Any]) -> Iterator[str]:
    column = parse_label(label).column
    if column not in columns or columns[column].kind != "number":
        numbers = sorted(name for name, value in columns.items() if value.kind == "number")
        yield (
            f'{where}: "{column}" is no number column of data.interactions.columns; '
            f"there are {numbers}"
        )
