"""Sections of `report.html` that draw more than one figure a method: curves, calibration, slices.

Each is a function of a `ReportView` and gives HTML; nothing where the report lacks what it draws.
"""

from collections.abc import Sequence
from html import escape

from mtrec.charts import Bar, Box, Line, Mark, bars, boxes, curves, reliability, trade_off
from mtrec.comparison import MODEL
from mtrec.pageparts import (
    Json,
    card,
    four_digits,
    legend_of,
    method_name,
    metric_name,
    three_digits,
    whole_percent,
)
from mtrec.report_text import REMOVAL, describe_removal
from mtrec.report_view import ReportView

_REMOVAL_LABELS = {
    "holds": "first reason",
    "every": "every reason",
    "falls": "later place",
    "control": "control",
}


def learning(view: ReportView) -> str:
    """Draw the losses and validation figures over epochs."""
    history: Sequence[Json] = view.report.get("curves", [])
    if not history:
        return ""
    best = view.report.get("bundle", {}).get("epoch")
    names = list(dict.fromkeys(name for entry in history for name in entry))
    losses = [
        Line(name.removeprefix("loss/"), _points(history, name), "acdb"[position % 4])
        for position, name in enumerate(
            sorted((n for n in names if n.startswith("loss/")), key=view.task_order)
        )
    ]
    parts = [
        card(
            "Training loss",
            "total",
            curves(
                [Line("loss", _points(history, "loss"))],
                title="loss",
                form=three_digits,
                mark=best,
            ),
        )
    ]
    if losses:
        parts.append(
            card(
                "Training loss by task",
                "1 is a constant prediction",
                curves(losses, title="loss by task", form=three_digits, mark=best)
                + legend_of([(line.series, line.label) for line in losses]),
            )
        )
    for task, kind in view.tasks.items():
        metric = view.main_metrics(kind)[0]
        points = _points(history, f"validation/{task}/{metric}")
        if points:
            parts.append(
                card(
                    f"Validation {metric_name(metric)}",
                    f"{task}, {view.direction(metric)}",
                    curves([Line(metric, points)], title=metric, form=three_digits, mark=best),
                )
            )
    seconds = sum(float(entry.get("seconds", 0.0)) for entry in history)
    took = f" Training took {seconds:.0f} s." if seconds else ""
    chosen = f" The dashed line marks epoch {best}, the one that ships." if best else ""
    return (
        f"<h2>Learning</h2><p>{len(history)} epochs.{chosen}{took}</p>"
        f'<section class="grid">{"".join(parts)}</section>'
    )


def probabilities(view: ReportView) -> str:
    """Draw calibration, and predictions by true value."""
    parts = []
    for task, methods in view.report.get("calibration", {}).items():
        lines = [
            Line(
                method_name(name),
                [(entry["predicted"], entry["observed"]) for entry in methods[name]],
                "a" if name == MODEL else "c",
            )
            for name in methods
        ]
        first = next(iter(methods.values()))
        counts = [(entry["low"], entry["high"], entry["rows"]) for entry in first]
        parts.append(
            card(
                "Calibration",
                f"{task}, observed share over predicted probability",
                reliability(lines, counts, title=f"calibration of {task}")
                + legend_of([(line.series, line.label) for line in lines]),
            )
        )
    for task, methods in view.report.get("predicted_by_truth", {}).items():
        quantiles = [q for rows in methods.values() for row in rows for q in row["quantiles"]]
        truths = [row["truth"] for rows in methods.values() for row in rows]
        low, high = min(quantiles + truths), max(quantiles + truths)
        for name, rows in methods.items():
            drawn = [Box(r["truth"], r["quantiles"], r["mean"], r["rows"]) for r in rows]
            parts.append(
                card(
                    f"Predicted by true value, {method_name(name)}",
                    task,
                    boxes(drawn, low=low, high=high, title=f"predictions of {task}"),
                )
            )
    if not parts:
        return ""
    return (
        "<h2>Can the numbers be taken at their word?</h2><p>A calibrated probability lies on "
        "the diagonal: of all pairs with 70 %, seven in ten come true. The bars below count "
        "the predictions. Boxes hold half of the predictions for a true value, lines nine in "
        "ten; the dot is the mean.</p>"
        f'<section class="grid">{"".join(parts)}</section>'
    )


def slices(view: ReportView) -> str:
    """Draw the figures where much or little is known."""
    parts = []
    titles = {
        "history_length": "by events in the user's history",
        "item_train_count": "by training events of the item",
        "links_of_user": "by known links of the user",
        "links_of_friend": "by known links of the friend",
    }
    for task, kinds in view.report.get("slices", {}).items():
        for kind, groups in kinds.items():
            rows = []
            methods = view.shown_in_slices(task)
            for group, entry in groups.items():
                for position, method in enumerate(methods):
                    figures = entry["figures"].get(method, {})
                    metric = next(iter(figures), None)
                    if metric is not None:
                        count = entry.get("users", entry.get("rows"))
                        label = f"{group} (n={count:,})" if position == 0 else ""
                        name = f"{method_name(method)}, {group}"
                        series = "acb"[position]
                        rows.append(Bar(label, figures[metric], series=series, name=name))
            if rows:
                about = f"{task}, {titles.get(kind, kind)}"
                metric = next(m for e in groups.values() for f in e["figures"].values() for m in f)
                legend = [("acb"[p], method_name(m)) for p, m in enumerate(methods)]
                parts.append(
                    card(
                        metric_name(metric),
                        about,
                        bars(rows, title=f"{metric_name(metric)} of {about}", form=four_digits)
                        + legend_of(legend),
                    )
                )
    if not parts:
        return ""
    return (
        "<h2>For whom, and for what</h2><p>The same figures where much or little is known. "
        "Small groups (n: users of lists, rows of predictions) say little.</p>"
        f'<section class="grid">{"".join(parts)}</section>'
    )


def explanations(view: ReportView) -> str:
    """Draw the removal test of the reasons."""
    found = view.report.get("explanations", {})
    rows = [
        Bar(
            label,
            found[name]["share"],
            found[name]["interval"][0],
            found[name]["interval"][1],
            "b" if name == "control" else "a",
        )
        for name, label in _REMOVAL_LABELS.items()
        if "share" in found.get(name, {})
    ]
    if not rows:
        return ""
    words = "".join(
        f"<dt>{escape(_REMOVAL_LABELS[name])}</dt><dd>{escape(text)}: "
        f"{found[name]['count']} of {found[name]['of']}</dd>"
        for name, text in REMOVAL.items()
    )
    return (
        "<h2>Are the reasons reasons?</h2><p>An explanation names items of the history. Here "
        "the model is asked again as if a named one had never been there, and the fresh answer "
        "is read: the item stands lower at a later place, or at the same with a smaller share "
        "of the candidates' retrieval scores. The removed item is no candidate. The control "
        "removes, at random, an item that is not named. Whiskers are 95 % intervals (Wilson)."
        "</p>"
        '<section class="grid">'
        + card(
            "Removal test",
            describe_removal(found),
            bars(rows, title="removal test", form=whole_percent),
        )
        + f'<div class="card"><h3>What is counted <small>asked again, the item stands</small>'
        f"</h3><dl>{words}</dl></div></section>"
    )


def dial(view: ReportView) -> str:
    """Draw accuracy against diversity."""
    found = view.report.get("dial", {})
    names = [f"ndcg@{view.k}", f"diversity@{view.k}"]
    points = [p for p in found.get("points", []) if all(name in p for name in names)]
    if not points:
        return ""
    marks = [Mark(f"{p['dial']:g}", p[names[1]], p[names[0]]) for p in points]
    body = "".join(
        f"<tr><td>{p['dial']:g}</td>"
        + "".join(
            f"<td>{four_digits(p[name])}<small>{four_digits(p[f'{name}_interval'][0])} – "
            f"{four_digits(p[f'{name}_interval'][1])}</small></td>"
            for name in names
        )
        + "</tr>"
        for p in points
    )
    head = "".join(f"<th>{escape(metric_name(name))}</th>" for name in names)
    who = f"{found['users']:,} of {found['of']:,} users, {found['split']} events"
    return (
        "<h2>What does diversity cost?</h2><p>Lists at several settings of the diversity dial "
        "(maximal marginal relevance) for the same users: how accurate they are, and how far "
        "two of their items are apart by content, 1 - cosine. The best setting is a matter of "
        "taste; none was chosen here.</p>"
        '<section class="grid">'
        + card(
            "Accuracy against diversity",
            who,
            trade_off(
                marks,
                title="accuracy against diversity",
                across_name=metric_name(names[1]),
                up_name=metric_name(names[0]),
                form=three_digits,
            ),
        )
        + f'<div class="card"><h3>The same in numbers <small>{who}</small></h3>'
        f'<div class="scroll"><table><thead><tr><th>diversity</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></div></section>"
    )


def _points(history: Sequence[Json], name: str) -> list[tuple[float, float]]:
    return [
        (float(entry["epoch"]), float(entry[name]))
        for entry in history
        if entry.get(name) is not None
    ]
