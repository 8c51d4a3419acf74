"""The page `twins.html`: each task trained together and alone. Opens from disk, without script."""

from html import escape

from mtrec.charts import Bar, bars, dots
from mtrec.pageparts import Json, card, four_digits, metric_name, signed_percent, whole_page


def render_twins(tree: Json) -> str:
    """Make the page of a comparison with single-task twins.

    Args:
        tree: of `twins.json`.
    """
    facts, tasks = tree["protocol"], tree["tasks"]
    allowed = f"{100 * facts['max_harm']:g} %"
    chips = [
        ("users", f"{facts['users']:,}"),
        ("items", f"{facts['items']:,}"),
        ("test events", f"{facts['events']['test']:,}"),
        ("split", str(facts["split"]).replace("_", "-")),
        ("seed", str(facts["seed"])),
        ("allowed loss", allowed),
    ]
    shown = "".join(f"<li>{escape(name)} <b>{escape(value)}</b></li>" for name, value in chips)
    header = (
        f"<header><h1>What does joint training give or take on {escape(str(facts['data']))}?</h1>"
        "<p>Each task of the joint model beside its twin: the same network on the same data under "
        "the same budget, with the loss of that task alone. A task is harmed where its whole "
        f"95 % interval is a loss and the loss is above {allowed}.</p>"
        f'<ul class="facts">{shown}</ul></header>'
    )
    gains = [
        _gain(name, entry, set(facts["lower_is_better"]))
        for name, entry in tasks.items()
        if "relative" in entry
    ]
    parts = []
    if gains:
        parts.append(
            card(
                "Joint training against training alone",
                "relative change of each task's figure, right of zero: joint training helps",
                dots(gains, title="relative changes", form=signed_percent, zero=True),
            )
        )
    for name, entry in tasks.items():
        rows = []
        for label, key, series in (("together", "joint", "a"), ("alone", "twin", "b")):
            low, high = entry.get(f"{key}_interval", (None, None))
            rows.append(Bar(label, entry[key], low, high, series))
        direction = "lower" if entry["metric"] in facts["lower_is_better"] else "higher"
        parts.append(
            card(
                metric_name(entry["metric"]),
                f"{name}, {direction} is better",
                bars(rows, title=f"{entry['metric']} of {name}", form=four_digits),
            )
        )
    body = "".join(_twins_row(name, entry) for name, entry in tasks.items())
    table = (
        "<h2>All figures</h2><p>On test, with 95 % intervals over users; changes are paired.</p>"
        '<div class="card"><div class="scroll"><table><thead><tr><th>task</th><th>metric</th>'
        "<th>together</th><th>alone</th><th>change</th><th></th></tr></thead>"
        f"<tbody>{body}</tbody></table></div></div>"
    )
    notes = "".join(f"<li>{escape(str(note))}</li>" for note in tree["notes"])
    sections = [
        header,
        f'<section class="grid">{"".join(parts)}</section>',
        table,
        f'<ul class="notes">{notes}</ul>' if notes else "",
    ]
    return whole_page(f"mtrec twins on {facts['data']}", sections)


def _gain(task: str, entry: Json, lower: set[str]) -> Bar:
    """Give a change such that more is better, whatever the metric."""
    better = -1.0 if entry["metric"] in lower else 1.0
    low, high = sorted(better * bound for bound in entry["relative_interval"])
    return Bar(task, better * entry["relative"], low, high, "c" if entry["harm"] else "a")


def _twins_row(task: str, entry: Json) -> str:
    cells = []
    for key, form in (
        ("joint", four_digits),
        ("twin", four_digits),
        ("relative", signed_percent),
    ):
        low, high = entry.get(f"{key}_interval", (None, None))
        bounds = "" if low is None else f"<small>{form(low)} – {form(high)}</small>"
        cells.append(f"<td>{form(entry[key]) if key in entry else '-'}{bounds}</td>")
    verdict = '<td class="bad">harm</td>' if entry["harm"] else "<td></td>"
    return (
        f"<tr><td>{escape(task)}</td><td>{escape(metric_name(entry['metric']))}</td>"
        f"{''.join(cells)}{verdict}</tr>"
    )
