"""What joint training gave or took: each task of a run beside its single-task twin, and the gate.

A twin is the same run in which one task alone has a loss. `twins.py` trains them and brings what
all models say about the test split; here that becomes the tree of `twins.json`, its short form for
a console, and the error that fails a run whose tasks harm each other. Pure NumPy.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtrec.comparison import MODEL, ItemFacts, Tree
from mtrec.config import Config
from mtrec.data.histories import Histories
from mtrec.data.links import Links
from mtrec.dataconfig import KFoldSplit
from mtrec.errors import ConfigError, GateError
from mtrec.intervals import Figure
from mtrec.metrics import LOWER_IS_BETTER
from mtrec.modelconfig import Task
from mtrec.report import Answers, describe_protocol, measure

TWIN = "twin"
"""Name of the twin among the methods, beside that of the joint model."""

Json = Mapping[str, Any]


def twinned_tasks(config: Config) -> list[Task]:
    """List the tasks that get a twin: all that have a loss in the joint run.

    Raises:
        ConfigError: there is nothing to compare, or no single run to compare it in.
    """
    split = config.data.split
    if isinstance(split, KFoldSplit) and split.fold is None:
        raise ConfigError(
            "twins are compared in one run, and data.split.method k_fold makes one of each fold\n"
            "choose a fold (--set data.split.fold=0), or another split"
        )
    tasks = [task for task in config.tasks if task.weight > 0.0]
    if len(tasks) < 2:
        names = ", ".join(task.name for task in tasks) or "none"
        raise ConfigError(
            f"tasks with a weight above 0: {names}; expected two or more for twins\n"
            "a run with one task is its own twin"
        )
    if "report" in {task.name for task in tasks}:
        raise ConfigError(
            'tasks: "report" is a folder of twins/ already; name the task otherwise for twins'
        )
    return tasks


def compare_twins(
    config: Config,
    *,
    histories: Histories,
    items: ItemFacts,
    joint: Answers,
    twins: Mapping[str, Answers],
    metrics: Mapping[str, str],
    links: Links | None = None,
    split: str = "test",
) -> Tree:
    """Give the tree of `twins.json`: each task's figure, its twin's, and how far they are apart.

    The users are drawn anew as for the report, the same for both models: differences are paired.

    Args:
        config: the joint run.
        histories: all events.
        items: what metrics need of the items.
        joint: what the joint model says about the split.
        twins: task -> what its twin says.
        metrics: task -> the metric that stands for it.
        links: all links, for a social task.
        split: which one all were asked about.
    """
    notes: list[str] = []
    tasks: dict[str, Tree] = {}
    for name, answers in twins.items():
        one = config.model_copy(update={"tasks": [config.task(name)]})
        measured = measure(one, histories, items, {MODEL: joint, TWIN: answers}, split, links)
        figures = {
            method: found[metrics[name]]
            for method, found in measured.get(name, {}).items()
            if metrics[name] in found and np.isfinite(found[metrics[name]].value)
        }
        if set(figures) != {MODEL, TWIN}:
            notes.append(f"{name}: {metrics[name]} is undefined on {split}, nothing was compared")
            continue
        entry = _compare(figures[MODEL], figures[TWIN])
        if "relative" not in entry:
            notes.append(
                f"{name}: {metrics[name]} of the twin is 0, a relative change is undefined"
            )
        tasks[name] = {
            "kind": config.task(name).kind,
            "metric": metrics[name],
            **entry,
            "harm": is_harm(entry, metric=metrics[name], max_harm=config.evaluate.max_harm),
        }
    facts = describe_protocol(config, histories, items, links)
    del facts["baselines"]
    return {
        "protocol": {**facts, "max_harm": config.evaluate.max_harm},
        "tasks": tasks,
        "notes": notes,
    }


def is_harm(entry: Json, *, metric: str, max_harm: float) -> bool:
    """Tell whether a task loses significantly, and more than is allowed.

    Both: the whole interval of the relative change is on the side that is worse, and the change
    itself is a loss above `max_harm`.

    Args:
        entry: with `relative` and `relative_interval`; without them nothing is known to be lost.
        metric: decides which side is worse.
        max_harm: relative loss that is allowed.
    """
    if "relative" not in entry:
        return False
    worse = 1.0 if metric in LOWER_IS_BETTER else -1.0
    least = min(worse * bound for bound in entry["relative_interval"])
    return bool(least > 0.0 and worse * entry["relative"] > max_harm)


def check_harm(tree: Json) -> None:
    """Let a comparison pass the gate or not.

    Args:
        tree: of `twins.json`.

    Raises:
        GateError: joint training harms a task; all of them are named.
    """
    harmed = {name: entry for name, entry in tree["tasks"].items() if entry["harm"]}
    if harmed:
        told = [
            f"{name} ({entry['metric']} {entry['joint']:.4f} together, {entry['twin']:.4f} alone: "
            f"{_change(entry)})"
            for name, entry in harmed.items()
        ]
        # Only these tasks have experts.
        ranking = any(entry["kind"] in ("regression", "binary") for entry in harmed.values())
        own = "give each task experts of its own (model.experts: {kind: ple}), " * ranking
        raise GateError(
            f"joint training harms {' and '.join(told)}; evaluate.max_harm allows a loss of "
            f"{100 * tree['protocol']['max_harm']:g} %\n"
            f"lower the weights of the other tasks, {own}or raise evaluate.max_harm"
        )


def twins_table(tree: Json) -> str:
    """Give the comparison as text for a console.

    Args:
        tree: of `twins.json`.
    """
    lines = [f"{'task':<20}{'metric':>12}{'together':>12}{'alone':>12}   change"]
    for name, entry in tree["tasks"].items():
        harm = "  harm" if entry["harm"] else ""
        lines.append(
            f"{name:<20}{entry['metric']:>12}{entry['joint']:>12.4f}{entry['twin']:>12.4f}   "
            f"{_change(entry)}{harm}"
        )
    return "\n".join([*lines, *(f"note: {note}" for note in tree["notes"])])


def _compare(joint: Figure, twin: Figure) -> Tree:
    difference = joint.minus(twin)
    entry: Tree = {"joint": joint.value, "twin": twin.value}
    for name, interval in (
        ("joint_interval", joint.interval()),
        ("twin_interval", twin.interval()),
        ("interval", difference.absolute),
        ("relative_interval", difference.relative),
    ):
        if np.isfinite(interval.low):
            entry[name] = [interval.low, interval.high]
    entry["difference"] = difference.absolute.value
    if "relative_interval" in entry:
        entry["relative"] = difference.relative.value
    return entry


def _change(entry: Json) -> str:
    if "relative" not in entry:
        return "-"
    low, high = entry["relative_interval"]
    return f"{100 * entry['relative']:+.1f} % [{100 * low:+.1f}, {100 * high:+.1f}]"
