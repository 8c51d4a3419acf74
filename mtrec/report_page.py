"""The page `report.html`: a file that opens from disk, without network or script.

It shows what the JSON beside it says and computes nothing of its own: figures with intervals
beside the baselines, the learning curves, calibration, predictions by true value, slices, every
metric in a table, and the protocol in words. Style sheet and frame are `report.html.template`.
"""

from collections.abc import Sequence
from html import escape

from mtrec.charts import Bar, Box, Line, Mark, bars, boxes, curves, dots, reliability, trade_off
from mtrec.comparison import MODEL
from mtrec.pageparts import (
    Json,
    card,
    four_digits,
    legend_of,
    method_name,
    metric_name,
    signed_percent,
    three_digits,
    whole_page,
    whole_percent,
)
from mtrec.report import REMOVAL, describe_removal

_KINDS = {
    "retrieval": "ranking",
    "regression": "rating",
    "binary": "probability",
    "social": "friends",
}
_LISTS = ("retrieval", "social")
_REMOVAL_LABELS = {
    "holds": "first reason",
    "every": "every reason",
    "falls": "later place",
    "control": "control",
}
# More of these is not better in itself: chance is the most novel and diverse of all.
_NO_BEST = frozenset({"coverage", "novelty", "diversity"})


def render_html(report: Json) -> str:
    """Make the page of a report.

    Args:
        report: the tree of `report.json`; parts that it lacks are left out.
    """
    page = _Page(report)
    sections = [
        page.header(),
        page.cards(),
        page.comparison(),
        page.learning(),
        page.probabilities(),
        page.slices(),
        page.explanations(),
        page.dial(),
        page.tables(),
        page.protocol(),
    ]
    return whole_page(f"mtrec on {report['protocol']['data']}", sections)


class _Page:
    """The sections of one report."""

    def __init__(self, report: Json) -> None:
        self.report = report
        self.protocol_facts: Json = report["protocol"]
        self.tasks: dict[str, str] = self.protocol_facts["tasks"]
        self.k: int = self.protocol_facts["k"]
        self.lower = set(self.protocol_facts["lower_is_better"])

    # ---- sections ---------------------------------------------------------------------------

    def header(self) -> str:
        facts, bundle = self.protocol_facts, self.report.get("bundle", {})
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
            "validation events and measured on the same test events. The whole catalogue is "
            "ranked; items that a user knows are left out.</p>"
            f'<ul class="facts">{shown}</ul></header>'
        )

    def cards(self) -> str:
        parts = [
            self._card(task, metric)
            for task, kind in self.tasks.items()
            for metric in self._main_metrics(kind)
            if metric in self._values(MODEL, task)
        ]
        return f'<section class="cards">{"".join(parts)}</section>' if parts else ""

    def comparison(self) -> str:
        parts = []
        for task, kind in self.tasks.items():
            for metric in self._main_metrics(kind):
                rows = self._bars(task, metric)
                if len(rows) > 1:
                    title = f"{metric} of every method"
                    parts.append(
                        card(
                            metric_name(metric),
                            f"{task}, {self._direction(metric)}",
                            bars(rows, title=title, form=four_digits)
                            if kind in _LISTS
                            else dots(rows, title=title, form=four_digits, tick=three_digits),
                        )
                    )
            relative = self._relative(task, self._main_metrics(kind)[0])
            if relative:
                metric = self._main_metrics(kind)[0]
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
            f"<h2>Beside the baselines</h2><p>{self._whiskers()} Where the whiskers of a "
            "difference stay clear of zero, it is not an accident. Orange: the best baseline.</p>"
            f'<section class="grid">{"".join(parts)}</section>'
        )

    def learning(self) -> str:
        history: Sequence[Json] = self.report.get("curves", [])
        if not history:
            return ""
        best = self.report.get("bundle", {}).get("epoch")
        names = list(dict.fromkeys(name for entry in history for name in entry))
        losses = [
            Line(name.removeprefix("loss/"), _points(history, name), "acdb"[position % 4])
            for position, name in enumerate(
                sorted((n for n in names if n.startswith("loss/")), key=self._task_order)
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
        for task, kind in self.tasks.items():
            metric = self._main_metrics(kind)[0]
            points = _points(history, f"validation/{task}/{metric}")
            if points:
                parts.append(
                    card(
                        f"Validation {metric_name(metric)}",
                        f"{task}, {self._direction(metric)}",
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

    def probabilities(self) -> str:
        parts = []
        for task, methods in self.report.get("calibration", {}).items():
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
        for task, methods in self.report.get("predicted_by_truth", {}).items():
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

    def slices(self) -> str:
        parts = []
        titles = {
            "history_length": "by events in the user's history",
            "item_train_count": "by training events of the item",
            "links_of_user": "by known links of the user",
            "links_of_friend": "by known links of the friend",
        }
        for task, kinds in self.report.get("slices", {}).items():
            for kind, groups in kinds.items():
                rows = []
                methods = self._shown_in_slices(task)
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
                    metric = next(
                        m for e in groups.values() for f in e["figures"].values() for m in f
                    )
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

    def explanations(self) -> str:
        found = self.report.get("explanations", {})
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

    def dial(self) -> str:
        found = self.report.get("dial", {})
        names = [f"ndcg@{self.k}", f"diversity@{self.k}"]
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

    def tables(self) -> str:
        parts = [self._table(task) for task in self.tasks]
        shown = "".join(part for part in parts if part)
        return f"<h2>All figures</h2><p>On test; the best of each column in colour.</p>{shown}"

    def protocol(self) -> str:
        facts = self.protocol_facts
        words = ("ranking", "history", "relevance", "baselines", "intervals")
        rows = "".join(
            f"<dt>{escape(name)}</dt><dd>{escape(str(facts[name]))}</dd>"
            for name in words
            if name in facts
        )
        notes = "".join(f"<li>{escape(str(note))}</li>" for note in self.report.get("notes", []))
        return (
            "<h2>Protocol</h2><p>What another run needs to give the same figures.</p>"
            f'<div class="grid"><div class="card"><dl>{rows}</dl>'
            + (f'<ul class="notes">{notes}</ul>' if notes else "")
            + f'</div><div class="card">{self._tuned()}</div></div>'
        )

    # ---- parts ------------------------------------------------------------------------------

    def _whiskers(self) -> str:
        if "folds" in self.protocol_facts:
            return (
                f"Bars are means over {self.protocol_facts['folds']} folds, whiskers one standard "
                "deviation; differences are paired by fold, with 95 % intervals."
            )
        return (
            "Whiskers are 95 % intervals over users. The paired differences use the same users for "
            "both sides."
        )

    def _card(self, task: str, metric: str) -> str:
        value = self._values(MODEL, task)[metric]
        low, high = self._interval(MODEL, task, metric)
        best = self._best_baseline(task, metric)
        against = ""
        if best is not None:
            entry = self.report["differences"][best][task].get(metric, {})
            relative = entry.get("relative")
            bounds = entry.get("relative_interval", [0.0, 0.0])
            if relative is not None:
                better = (relative < 0) == (metric in self.lower)
                clear = bounds[0] > 0 or bounds[1] < 0
                tone = ("good" if better else "bad") if clear else ""
                against = (
                    f'<div class="against"><span class="{tone}">{signed_percent(relative)}</span> '
                    f"[{signed_percent(bounds[0])}, {signed_percent(bounds[1])}] "
                    "against the best baseline, "
                    f"{escape(method_name(best))} "
                    f"({four_digits(self._values(best, task)[metric])})</div>"
                )
        words = "mean ± deviation:" if "folds" in self.protocol_facts else "95 % interval"
        bounds_text = (
            f"{words} {four_digits(low)} to {four_digits(high)}" if low is not None else ""
        )
        return (
            f'<div class="card figure"><div class="name">{escape(metric_name(metric))} · '
            f'{escape(task)}</div><div class="value">{four_digits(value)}</div>'
            f'<div class="range">{bounds_text}</div>{against}</div>'
        )

    def _table(self, task: str) -> str:
        methods = self._methods(task)
        names = list(dict.fromkeys(name for m in methods for name in self._values(m, task)))
        if not names:
            return ""
        best = {
            name: (min if name in self.lower else max)(
                self._values(m, task)[name] for m in methods if name in self._values(m, task)
            )
            for name in names
            if name.partition("@")[0] not in _NO_BEST
        }
        head = "".join(f"<th>{escape(metric_name(name))}</th>" for name in names)
        body = []
        for method in methods:
            cells = []
            for name in names:
                value = self._values(method, task).get(name)
                if value is None:
                    cells.append("<td>-</td>")
                    continue
                low, high = self._interval(method, task, name)
                bounds = (
                    f"<small>{four_digits(low)} – {four_digits(high)}</small>"
                    if low is not None
                    else ""
                )
                tone = ' class="best"' if value == best.get(name) else ""
                cells.append(f"<td{tone}>{four_digits(value)}{bounds}</td>")
            tone = ' class="model"' if method == MODEL else ""
            body.append(f"<tr{tone}><td>{escape(method_name(method))}</td>{''.join(cells)}</tr>")
        kind = _KINDS.get(self.tasks[task], self.tasks[task])
        return (
            f'<div class="card" style="margin-bottom:14px"><h3>{escape(task)} '
            f"<small>{escape(kind)}</small></h3>"
            f'<div class="scroll"><table><thead><tr><th>method</th>{head}</tr></thead>'
            f"<tbody>{''.join(body)}</tbody></table></div></div>"
        )

    def _tuned(self) -> str:
        rows = []
        for name, tasks in self.report.get("tuned", {}).items():
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

    def _bars(self, task: str, metric: str) -> list[Bar]:
        best = self._best_baseline(task, metric)
        rows = []
        for method in self._methods(task):
            value = self._values(method, task).get(metric)
            if value is not None:
                low, high = self._interval(method, task, metric)
                series = "a" if method == MODEL else ("c" if method == best else "b")
                rows.append(Bar(method_name(method), value, low, high, series))
        reverse = metric not in self.lower
        return sorted(rows, key=lambda row: row.value, reverse=reverse)

    def _relative(self, task: str, metric: str) -> list[Bar]:
        """List the strongest baselines: far weaker ones would stretch the axis beyond reading."""
        best = self._best_baseline(task, metric)
        rows = []
        for method in self._methods(task)[1:]:
            entry = self.report["differences"].get(method, {}).get(task, {}).get(metric, {})
            if best is None or "relative" not in entry:
                continue
            if metric in self.lower or (
                self._values(method, task)[metric] >= 0.5 * self._values(best, task)[metric]
            ):
                low, high = entry["relative_interval"]
                rows.append(Bar(method_name(method), entry["relative"], low, high, "a"))
        return sorted(rows, key=lambda row: row.value, reverse=metric in self.lower)

    def _shown_in_slices(self, task: str) -> list[str]:
        metric = self._main_metrics(self.tasks[task])[0]
        best = self._best_baseline(task, metric)
        others = [name for name in (best, "popularity") if name in self._methods(task)]
        return list(dict.fromkeys([MODEL, *(name for name in others if name is not None)]))

    def _best_baseline(self, task: str, metric: str) -> str | None:
        values: dict[str, float] = {
            name: self._values(name, task)[metric]
            for name in self.report["baselines"]
            if metric in self._values(name, task)
        }
        if not values:
            return None
        sign = 1.0 if metric in self.lower else -1.0
        return min(values, key=lambda name: sign * values[name])

    def _main_metrics(self, kind: str) -> list[str]:
        if kind in _LISTS:
            return [f"ndcg@{self.k}", f"hr@{self.k}"]
        return ["auc"] if kind == "binary" else ["rmse"]

    def _methods(self, task: str) -> list[str]:
        return [MODEL, *(n for n in self.report["baselines"] if self._values(n, task))]

    def _values(self, method: str, task: str) -> dict[str, float]:
        tree = self.report["model"] if method == MODEL else self.report["baselines"][method]
        found: dict[str, float] = tree.get(task, {})
        return found

    def _interval(self, method: str, task: str, metric: str) -> tuple[float | None, float | None]:
        found = self.report["intervals"].get(method, {}).get(task, {}).get(metric)
        return (found[0], found[1]) if found else (None, None)

    def _direction(self, metric: str) -> str:
        return "lower is better" if metric in self.lower else "higher is better"

    def _task_order(self, name: str) -> int:
        order = list(self.tasks)
        task = name.removeprefix("loss/")
        return order.index(task) if task in order else len(order)


def _points(history: Sequence[Json], name: str) -> list[tuple[float, float]]:
    return [
        (float(entry["epoch"]), float(entry[name]))
        for entry in history
        if entry.get(name) is not None
    ]
