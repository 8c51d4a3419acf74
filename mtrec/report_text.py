"""A report in a few lines: its main figures for a console, the removal test in words. Pure."""

from collections.abc import Mapping
from typing import Any

from mtrec.comparison import MODEL
from mtrec.metrics import LOWER_IS_BETTER


def summary_table(report: Mapping[str, Any]) -> str:
    """Give the main figures as text: for each task the model beside its baselines.

    Args:
        report: the tree of `report.json`.
    """
    k = report["protocol"]["k"]
    shown = {
        "retrieval": [f"ndcg@{k}", f"hr@{k}", f"recall@{k}", f"mrr@{k}", f"coverage@{k}"],
        "social": [f"ndcg@{k}", f"recall@{k}", f"hr@{k}", f"mrr@{k}", f"coverage@{k}"],
        "regression": ["rmse", "mae"],
        "binary": ["auc", "logloss", "ece"],
    }
    tables = []
    for task, kind in report["protocol"]["tasks"].items():
        methods = {MODEL: report["model"], **report["baselines"]}
        values = {name: tree[task] for name, tree in methods.items() if tree.get(task)}
        names = [name for name in shown[kind] if any(name in found for found in values.values())]
        if not names:
            continue
        lines = [f"{task:<20}" + "".join(f"{name:>12}" for name in names)]
        for method, found in values.items():
            cells = (f"{found[name]:.4f}" if name in found else "-" for name in names)
            label = "mtrec" if method == MODEL else method
            lines.append(f"  {label:<18}" + "".join(f"{cell:>12}" for cell in cells))
        against = _against_best(report, task, names[0])
        tables.append("\n".join([*lines, *([against] if against else [])]))
    tables += [_removal_lines(report["explanations"])] if "explanations" in report else []
    dial = report.get("dial", {"points": []})
    if any(f"diversity@{dial['k']}" in point for point in dial["points"]):
        tables.append(_dial_lines(dial))
    notes = [f"note: {note}" for note in report.get("notes", [])]
    return "\n\n".join([*tables, *(["\n".join(notes)] if notes else [])])


REMOVAL = {
    "holds": "lower without the first reason",
    "every": "lower without each reason in turn",
    "falls": "at a later place without the first",
    "control": "lower without another item",
}
"""What each figure of the removal test counts, in words."""


def describe_removal(found: Mapping[str, Any]) -> str:
    """Say who was asked in a removal test.

    Args:
        found: what `removal.removal_test` gives.
    """
    missing = found["without_reason"]
    told = f", {missing} of whom have no reason and count no further" if missing else ""
    return f"the best item of {_users(found['users'])}{told}"


def _users(count: int) -> str:
    return f"{count} user{'s' * (count != 1)}"


def _removal_lines(found: Mapping[str, Any]) -> str:
    if found["without_reason"] == found["users"]:
        return f"removal test: of {_users(found['users'])} nobody has a reason to take away"
    lines = [f"removal test: {describe_removal(found)}; asked again, it stands"]
    for name, words in REMOVAL.items():
        if "share" in found[name]:
            low, high = (100 * bound for bound in found[name]["interval"])
            share = f"{100 * found[name]['share']:.1f} % [{low:.1f}, {high:.1f}]"
            lines.append(f"  {words:<36}{share}")
    return "\n".join(lines)


def _dial_lines(found: Mapping[str, Any]) -> str:
    k = found["k"]
    names = [f"ndcg@{k}", f"diversity@{k}"]
    head = f"diversity dial, {found['users']} of {found['of']} users"
    lines = [f"{head:<34}" + "".join(f"{name:>14}" for name in names)]
    for point in found["points"]:
        cells = (f"{point[name]:.4f}" if name in point else "-" for name in names)
        lines.append(f"  {point['dial']:<32g}" + "".join(f"{cell:>14}" for cell in cells))
    return "\n".join(lines)


def _against_best(report: Mapping[str, Any], task: str, metric: str) -> str:
    """Say how far the model is from the best baseline, with the paired interval."""
    found = {
        name: tree[task][metric]
        for name, tree in report["baselines"].items()
        if metric in tree.get(task, {})
    }
    if not found:
        return ""
    sign = 1.0 if metric in LOWER_IS_BETTER else -1.0
    best = min(found, key=lambda name: sign * found[name])
    entry = report["differences"][best].get(task, {}).get(metric, {})
    if "relative" not in entry:
        return ""
    low, high = entry["relative_interval"]
    return (
        f"  {metric} against the best baseline, {best}: {100 * entry['relative']:+.1f} % "
        f"[{100 * low:+.1f}, {100 * high:+.1f}]"
    )
