"""The page `report.html`: a file that opens from disk, without network or script.

It shows what the JSON beside it says and computes nothing of its own: figures with intervals
beside the baselines, the learning curves, calibration, predictions by true value, slices, every
metric in a table, and the protocol in words. Style sheet and frame are `report.html.template`.
"""

from html import escape

from mtrec.charts import Bar, bars, dots
from mtrec.comparison import MODEL
from mtrec.pageparts import (
    Json,
    card,
    four_digits,
    method_name,
    metric_name,
    signed_percent,
    three_digits,
    whole_page,
)
from mtrec.report_sections import dial, explanations, learning, probabilities, slices
from mtrec.report_view import LISTS, ReportView

_KINDS = {
    "retrieval": "ranking",
    "regression": "rating",
    "binary": "probability",
    "social": "friends",
}
# More of these is not better in itself: chance is the most novel and diverse of all.
_NO_BEST = frozenset({"coverage", "novelty", "diversity"})


def render_html(report: Json) -> str:
    """Make the page of a report.

    Args:
        report: the tree of `report.json`; parts that it lacks are left out.
    """
    view = ReportView(report)
    sections = [
        _header(view),
        _cards(view),
        _comparison(view),
        learning(view),
        probabilities(view),
        slices(view),
        explanations(view),
        dial(view),
        _tables(view),
        _protocol(view),
    ]
    return whole_page(f"mtrec on {report['protocol']['data']}", sections)


def _header(view: ReportView) -> str:
    facts, bundle = view.protocol, view.report.get("bundle", {})
    events = facts["events"]
    chips = [
        ("users", f"{facts['users']:,}"),
        ("items", f"{facts['items']:,}"),
        ("training events", f"{events['train']:,}"),
        ("test events", f"{events['test']:,}"),
        ("split", str(facts["split"]).replace("_", "-")),
        ("seed", str(facts["seed"])),
        *([("text encoder", str(bundle["encoder"]))] if bundle.get("encoder") else []),
        *([("model", str(bundle["version"]))] if bundle.get("version") else []),
    ]
    shown = "".join(f"<li>{escape(name)} <b>{escape(value)}</b></li>" for name, value in chips)
    return (
        f"<header><h1>How good are the recommendations on {escape(str(facts['data']))}?</h1>"
        "<p>One model for all tasks, beside classical recommenders that were tuned on the same "
        "validation events and measured on the same test events. Ranking: "
        f"{escape(str(facts['ranking']))}.</p>"
        f'<ul class="facts">{shown}</ul></header>'
    )


def _cards(view: ReportView) -> str:
    parts = [
        _card(view, task, metric)
        for task, kind in view.tasks.items()
        for metric in view.main_metrics(kind)
        if metric in view.values(MODEL, task)
    ]
    return f'<section class="cards">{"".join(parts)}</section>' if parts else ""


def _comparison(view: ReportView) -> str:
    parts = []
    for task, kind in view.tasks.items():
        for metric in view.main_metrics(kind):
            rows = _bars(view, task, metric)
            if len(rows) > 1:
                title = f"{metric} of every method"
                parts.append(
                    card(
                        metric_name(metric),
                        f"{task}, {view.direction(metric)}",
                        bars(rows, title=title, form=four_digits)
                        if kind in LISTS
                        else dots(rows, title=title, form=four_digits, tick=three_digits),
                    )
                )
        relative = _relative(view, task, view.main_metrics(kind)[0])
        if relative:
            metric = view.main_metrics(kind)[0]
            parts.append(
                card(
                    f"{metric_name(metric)}, model against each",
                    f"{task}, relative difference, paired, to the stronger baselines",
                    dots(
                        relative,
                        title="relative differences",
                        form=signed_percent,
                        zero=True,
                    ),
                )
            )
    if not parts:
        return ""
    return (
        f"<h2>Beside the baselines</h2><p>{_whiskers(view)} Where the whiskers of a "
        "difference stay clear of zero, it is not an accident. Orange: the best baseline.</p>"
        f'<section class="grid">{"".join(parts)}</section>'
    )


def _tables(view: ReportView) -> str:
    parts = [_table(view, task) for task in view.tasks]
    shown = "".join(part for part in parts if part)
    return f"<h2>All figures</h2><p>On test; the best of each column in colour.</p>{shown}"


def _protocol(view: ReportView) -> str:
    facts = view.protocol
    words = ("ranking", "history", "relevance", "baselines", "intervals")
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(facts[name]))}</dd>"
        for name in words
        if name in facts
    )
    notes = "".join(f"<li>{escape(str(note))}</li>" for note in view.report.get("notes", []))
    return (
        "<h2>Protocol</h2><p>What another run needs to give the same figures.</p>"
        f'<div class="grid"><div class="card"><dl>{rows}</dl>'
        + (f'<ul class="notes">{notes}</ul>' if notes else "")
        + f'</div><div class="card">{_tuned(view)}</div></div>'
    )


def _whiskers(view: ReportView) -> str:
    if "folds" in view.protocol:
        return (
            f"Bars are means over {view.protocol['folds']} folds, whiskers one standard "
            "deviation; differences are paired by fold, with 95 % intervals."
        )
    return (
        "Whiskers are 95 % intervals over users. The paired differences use the same users for "
        "both sides."
    )


def _card(view: ReportView, task: str, metric: str) -> str:
    value = view.values(MODEL, task)[metric]
    low, high = view.interval(MODEL, task, metric)
    best = view.best_baseline(task, metric)
    against = ""
    if best is not None:
        entry = view.report["differences"][best][task].get(metric, {})
        relative = entry.get("relative")
        bounds = entry.get("relative_interval", [0.0, 0.0])
        if relative is not None:
            better = (relative < 0) == (metric in view.lower)
            clear = bounds[0] > 0 or bounds[1] < 0
            tone = ("good" if better else "bad") if clear else ""
            against = (
                f'<div class="against"><span class="{tone}">{signed_percent(relative)}</span> '
                f"[{signed_percent(bounds[0])}, {signed_percent(bounds[1])}] "
                "against the best baseline, "
                f"{escape(method_name(best))} "
                f"({four_digits(view.values(best, task)[metric])})</div>"
            )
    words = "mean ± deviation:" if "folds" in view.protocol else "95 % interval"
    bounds_text = f"{words} {four_digits(low)} to {four_digits(high)}" if low is not None else ""
    return (
        f'<div class="card figure"><div class="name">{escape(metric_name(metric))} · '
        f'{escape(task)}</div><div class="value">{four_digits(value)}</div>'
        f'<div class="range">{bounds_text}</div>{against}</div>'
    )


def _table(view: ReportView, task: str) -> str:
    methods = view.methods(task)
    names = list(dict.fromkeys(name for m in methods for name in view.values(m, task)))
    if not names:
        return ""
    best = {
        name: (min if name in view.lower else max)(
            view.values(m, task)[name] for m in methods if name in view.values(m, task)
        )
        for name in names
        if name.partition("@")[0] not in _NO_BEST
    }
    head = "".join(f"<th>{escape(metric_name(name))}</th>" for name in names)
    body = []
    for method in methods:
        cells = []
        for name in names:
            value = view.values(method, task).get(name)
            if value is None:
                cells.append("<td>-</td>")
                continue
            low, high = view.interval(method, task, name)
            bounds = (
                f"<small>{four_digits(low)} – {four_digits(high)}</small>"
                if low is not None
                else ""
            )
            tone = ' class="best"' if value == best.get(name) else ""
            cells.append(f"<td{tone}>{four_digits(value)}{bounds}</td>")
        tone = ' class="model"' if method == MODEL else ""
        body.append(f"<tr{tone}><td>{escape(method_name(method))}</td>{''.join(cells)}</tr>")
    kind = _KINDS.get(view.tasks[task], view.tasks[task])
    return (
        f'<div class="card" style="margin-bottom:14px"><h3>{escape(task)} '
        f"<small>{escape(kind)}</small></h3>"
        f'<div class="scroll"><table><thead><tr><th>method</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div></div>"
    )


def _tuned(view: ReportView) -> str:
    rows = []
    for name, tasks in view.report.get("tuned", {}).items():
        for task, entry in tasks.items():
            settings = ", ".join(f"{key} {value:g}" for key, value in entry["settings"].items())
            if settings:
                rows.append(
                    f"<tr><td>{escape(method_name(name))}</td><td>{escape(task)}</td>"
                    f'<td class="text">{escape(settings)}</td><td>{entry["tried"]}</td></tr>'
                )
    if not rows:
        return "<h3>Nothing was tuned</h3>"
    return (
        "<h3>What tuning on validation chose</h3>"
        '<div class="scroll"><table><thead><tr><th>baseline</th><th>task</th><th>settings</th>'
        f"<th>tried</th></tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _bars(view: ReportView, task: str, metric: str) -> list[Bar]:
    best = view.best_baseline(task, metric)
    rows = []
    for method in view.methods(task):
        value = view.values(method, task).get(metric)
        if value is not None:
            low, high = view.interval(method, task, metric)
            series = "a" if method == MODEL else ("c" if method == best else "b")
            rows.append(Bar(method_name(method), value, low, high, series))
    reverse = metric not in view.lower
    return sorted(rows, key=lambda row: row.value, reverse=reverse)


def _relative(view: ReportView, task: str, metric: str) -> list[Bar]:
    """List the strongest baselines: far weaker ones would stretch the axis beyond reading."""
    best = view.best_baseline(task, metric)
    rows = []
    for method in view.methods(task)[1:]:
        entry = view.report["differences"].get(method, {}).get(task, {}).get(metric, {})
        if best is None or "relative" not in entry:
            continue
        if metric in view.lower or (
            view.values(method, task)[metric] >= 0.5 * view.values(best, task)[metric]
        ):
            low, high = entry["relative_interval"]
            rows.append(Bar(method_name(method), entry["relative"], low, high, "a"))
    return sorted(rows, key=lambda row: row.value, reverse=metric in view.lower)
