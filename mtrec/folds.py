"""Cross-validation: the reports of all folds as one, with means and deviations. Pure.

Each fold is a run of its own (`chain.py`); here its figures become one report of the same form, so
that the page and the console show it like any other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from mtrec.comparison import MODEL, Tree

Json = Mapping[str, Any]


def join_reports(reports: Sequence[Json]) -> Tree:
    """Make one report of those of all folds, at least two.

    `model` and `baselines` hold means over folds; `intervals` mean minus and plus the standard
    deviation (with n - 1) over folds; `differences` the mean of paired differences with the 95 %
    interval of the corrected resampled t-test (Nadeau and Bengio 2003), whose variance is that of
    the folds times 1 / folds + test share / training share. `folds` has every fold's own figures,
    and each figure's mean and deviation. A figure that some fold lacks is left out. Calibration,
    slices and what was asked of samples stay in the folds' own reports.

    Args:
        reports: trees of `report.json`, in the order of the folds.
    """
    names = [MODEL, *reports[0]["baselines"]]
    figures = {name: _by_metric([_of(report, name) for report in reports]) for name in names}
    joined = {
        name: {
            task: {
                metric: {
                    "mean": float(np.mean(values)),
                    "deviation": float(np.std(values, ddof=1)),
                    "values": values,
                }
                for metric, values in metrics.items()
            }
            for task, metrics in tasks.items()
        }
        for name, tasks in figures.items()
    }
    facts = _facts([report["protocol"] for report in reports])
    count = len(reports)
    facts |= {
        "folds": count,
        "intervals": f"mean minus and plus the standard deviation over {count} folds; of "
        "differences the corrected resampled t-test's 95 % interval (Nadeau and Bengio 2003)",
    }
    return {
        "protocol": facts,
        "model": _pick(joined[MODEL], lambda entry: entry["mean"]),
        "baselines": {name: _pick(joined[name], lambda e: e["mean"]) for name in names[1:]},
        "intervals": {
            name: _pick(
                joined[name],
                lambda e: [e["mean"] - e["deviation"], e["mean"] + e["deviation"]],
            )
            for name in names
        },
        "differences": {
            name: _differences(figures[MODEL], figures[name], count) for name in names[1:]
        },
        "slices": {},
        "folds": joined,
        "tuned": {
            f"{name}, fold {n}": chosen
            for n, report in enumerate(reports)
            for name, chosen in report.get("tuned", {}).items()
        },
        "notes": _notes([report.get("notes", []) for report in reports]),
    }


def _of(report: Json, name: str) -> Json:
    tree: Json = report["model"] if name == MODEL else report["baselines"][name]
    return tree


def _by_metric(trees: Sequence[Json]) -> dict[str, dict[str, list[float]]]:
    """Give task -> metric -> one value a fold, where every fold has one."""
    return {
        task: {
            metric: [float(tree[task][metric]) for tree in trees]
            for metric in metrics
            if all(metric in tree.get(task, {}) for tree in trees)
        }
        for task, metrics in trees[0].items()
    }


def _differences(
    model: Mapping[str, Mapping[str, list[float]]],
    other: Mapping[str, Mapping[str, list[float]]],
    folds: int,
) -> Tree:
    found: Tree = {}
    # A fold's test share over its training share, as if validation were training.
    scale = float(stats.t.ppf(0.975, folds - 1) * np.sqrt(1 / folds + 1 / (folds - 1)))
    for task, metrics in other.items():
        entries: Tree = {}
        for metric, theirs in metrics.items():
            if metric in model.get(task, {}):
                ours, base = np.array(model[task][metric]), np.array(theirs)
                gap = ours - base
                entry: Tree = {"difference": float(gap.mean()), "interval": _span(gap, scale)}
                if (base > 0).all():
                    entry["relative"] = float((gap / base).mean())
                    entry["relative_interval"] = _span(gap / base, scale)
                entries[metric] = entry
        found[task] = entries
    return found


def _span(values: Any, scale: float) -> list[float]:
    mean, reach = float(values.mean()), scale * float(values.std(ddof=1))
    return [mean - reach, mean + reach]


def _pick(tasks: Mapping[str, Mapping[str, Any]], choose: Any) -> Tree:
    return {task: {m: choose(entry) for m, entry in found.items()} for task, found in tasks.items()}


def _facts(protocols: Sequence[Json]) -> Tree:
    """Give what is said of the first fold, with counts, also of a level below, as means."""
    found: Tree = {}
    for name, value in protocols[0].items():
        values: list[Any] = [protocol.get(name) for protocol in protocols]
        if isinstance(value, int) and not isinstance(value, bool):
            found[name] = round(sum(values) / len(values))
        elif isinstance(value, dict) and all(isinstance(v, dict) for v in values):
            found[name] = _facts(values)
        else:
            found[name] = value
    return found


def _notes(notes: Sequence[Sequence[str]]) -> list[str]:
    """Give each fold's notes once; those that are not of all folds name theirs, from 1."""
    found: dict[str, list[int]] = {}
    for number, of_fold in enumerate(notes, 1):
        for note in dict.fromkeys(of_fold):
            found.setdefault(note, []).append(number)
    told = []
    for note, folds in sorted(found.items()):
        word = "fold" if len(folds) == 1 else "folds"
        where = "" if len(folds) == len(notes) else f"{word} {', '.join(map(str, folds))}: "
        told.append(where + note)
    return told
