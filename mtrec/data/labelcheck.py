"""Labels of tasks: whether all of them fit, and between what ends those of training lie."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mtrec.config import Config
from mtrec.errors import DataError
from mtrec.labels import label_values
from mtrec.modelconfig import RegressionTask, label_tasks

Misfits = dict[str, tuple[int, float]]
"""Task -> labels that do not fit it, and one of them; tasks without such left out."""
Ranges = dict[str, tuple[float, float]]
"""Task -> smallest and largest label; tasks without labels left out."""


def find_misfits(config: Config, raw: Mapping[str, NDArray[np.float64]]) -> Misfits:
    """Find labels outside of a regression's range, and those of a binary task but 0 and 1.

    Args:
        config: the tasks.
        raw: number column -> (E,) values as in the source, NaN where missing.
    """
    misfits = {}
    for task in label_tasks(config.tasks):
        values = label_values(task.label, raw)
        if isinstance(task, RegressionTask):
            wrong = values[(values < task.min) | (values > task.max)]
        else:
            wrong = values[~np.isnan(values) & (values != 0) & (values != 1)]
        if len(wrong):
            misfits[task.name] = (len(wrong), float(wrong[0]))
    return misfits


def check_labels(config: Config, parts: Sequence[Misfits]) -> None:
    """Check that the labels of all parts fit their tasks.

    Raises:
        DataError: a regression label is out of the task's range, or a binary one is not 0 or 1.
    """
    for task in label_tasks(config.tasks):
        found = [misfits[task.name] for misfits in parts if task.name in misfits]
        if found:
            expected = "0 and 1"
            if isinstance(task, RegressionTask):
                expected = f"{task.min:g} to {task.max:g}"
            remedy = (
                "bound the column (data.interactions.columns.*.min, max) so that such rows are "
                "set aside, or change the task"
            )
            if config.data.quality.keep == "mean" and 0.0 < found[0][1] < 1.0:
                remedy = (
                    "data.quality.keep: mean gives duplicates the mean of their labels: set it to "
                    "last or first, or make the label a comparison such as rating >= 4"
                )
            raise DataError(
                f'task {task.name}: label "{task.label}" has {sum(n for n, _ in found)} values '
                f"that do not fit, for example {found[0][1]:g}; expected {expected}\n{remedy}"
            )


def find_ranges(config: Config, raw: Mapping[str, NDArray[np.float64]]) -> Ranges:
    """Find the ends of each task's labels; the arguments are those of `find_misfits`."""
    ranges = {}
    for task in label_tasks(config.tasks):
        values = label_values(task.label, raw)
        known = values[~np.isnan(values)]
        if len(known):
            ranges[task.name] = (float(known.min()), float(known.max()))
    return ranges


def join_ranges(parts: Sequence[Ranges]) -> Ranges:
    """Give the ends over all parts."""
    found: dict[str, list[tuple[float, float]]] = {}
    for ranges in parts:
        for name, ends in ranges.items():
            found.setdefault(name, []).append(ends)
    return {
        name: (min(low for low, _ in ends), max(high for _, high in ends))
        for name, ends in found.items()
    }
