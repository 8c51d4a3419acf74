"""Reports of the same row under several seeds as one: means, the best baseline, what was reached.

Pure: trees of `report.json` in, figures and Markdown out. The best baseline is chosen by its
validation figure (NDCG, RMSE, log loss), never by test. Differences and their intervals are those
of `report.json`, paired within a seed, averaged over seeds: the interval says what the choice of
users does to one run, so it is no narrower for having more seeds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from mtrec.harm import TWIN
from mtrec.metrics import LOWER_IS_BETTER

Report = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Goal:
    """A figure of a row, and what it should be.

    Attributes:
        task: name of the task in the configuration.
        metric: as in `report.json`.
        at_least: bound on the value; of errors it is the largest allowed.
        aim: value to reach.
        beat: baselines of the same run that must not be better: the row's "at least".
        gain: aimed-at relative gain over the best baseline, its interval on the good side of 0.
        aim_over: baselines over which the aim wants an interval on the good side of 0.
        beside: what the figure stands beside instead of the best baseline; `at_least` and `aim`
            then bound its ratio to that.
        max_loss: against `beside`, the largest loss that may be significant (its whole interval on
            the bad side of 0), as a share; the aim is that none is.
    """

    task: str
    metric: str
    at_least: float | None = None
    aim: float | None = None
    beat: tuple[str, ...] = ()
    gain: float | None = None
    aim_over: tuple[str, ...] = ()
    beside: str | None = None
    max_loss: float | None = None

    @property
    def lower_is_better(self) -> bool:
        """Whether it is an error."""
        return self.metric in LOWER_IS_BETTER


@dataclass(frozen=True, slots=True)
class Gap:
    """The model minus a baseline, averaged over seeds; `low` and `high` bound 95 %.

    Attributes:
        value: mean difference.
        deviation: of the difference over seeds (n - 1); None: one seed.
        is_relative: a share of the baseline's figure; else in the metric's unit.
    """

    value: float
    low: float
    high: float
    deviation: float | None
    is_relative: bool


@dataclass(frozen=True, slots=True)
class Joined:
    """A goal's figure over all seeds.

    Attributes:
        goal: what it is about.
        values: ours, one a seed.
        baselines: name -> mean over seeds.
        best: the best baseline by validation, or by test where none has settings to choose, or what
            the goal wants it beside; None: there is none.
        gaps: baseline -> ours against it; absent where the report has no interval.
    """

    goal: Goal
    values: tuple[float, ...]
    baselines: Mapping[str, float]
    best: str | None
    gaps: Mapping[str, Gap]

    @property
    def value(self) -> float:
        """Ours, the mean over seeds."""
        return fmean(self.values)

    @property
    def holds(self) -> bool | None:
        """Whether the "at least" holds; None: there is none, or its baselines did not run."""
        goal = self.goal
        if goal.beside is not None:
            return self._holds_beside(goal.at_least, goal.max_loss)
        bars = [self.baselines[name] for name in goal.beat if name in self.baselines]
        if goal.at_least is not None:
            bars.append(goal.at_least)
        elif len(bars) < len(goal.beat):
            return None
        return all(self._reaches(bar) for bar in bars) if bars else None

    @property
    def is_aim_met(self) -> bool | None:
        """Whether the aim is met; None: there is none, or the report cannot tell."""
        goal = self.goal
        if goal.beside is not None:
            return self._holds_beside(goal.aim, None if goal.max_loss is None else 0.0)
        found: list[bool | None] = []
        if goal.aim is not None:
            found.append(self._reaches(goal.aim))
        if goal.gain is not None:
            gap = self.gaps.get(self.best or "")
            if gap is None or not gap.is_relative:
                return None
            found.append(self._sign * gap.value >= goal.gain)
            found.append(self._is_beyond(self.best or ""))
        found += [self._is_beyond(name) for name in goal.aim_over]
        if not found or None in found:
            return None
        return all(found)

    @property
    def _sign(self) -> float:
        return -1.0 if self.goal.lower_is_better else 1.0

    def _reaches(self, bar: float) -> bool:
        return self._sign * self.value >= self._sign * bar

    def _holds_beside(self, ratio: float | None, loss: float | None) -> bool | None:
        """Judge the ratio to what the goal wants the figure beside, and the loss against it."""
        gap = self.gaps.get(self.best or "")
        if gap is None or not gap.is_relative or (ratio is None and loss is None):
            return None
        holds = ratio is None or self._sign * (1.0 + gap.value) >= self._sign * ratio
        if loss is not None:
            is_lost = gap.low > 0 if self.goal.lower_is_better else gap.high < 0
            holds = holds and not (is_lost and -self._sign * gap.value > loss)
        return holds

    def _is_beyond(self, name: str) -> bool | None:
        if name not in self.gaps:
            return None
        gap = self.gaps[name]
        return gap.high < 0 if self.goal.lower_is_better else gap.low > 0


def join(goal: Goal, reports: Sequence[Report]) -> Joined | None:
    """Join what the reports of all seeds say about a goal; None where one has no such figure."""
    task, metric = goal.task, goal.metric
    if not all(metric in report["model"].get(task, {}) for report in reports):
        return None
    baselines = {
        name: fmean(report["baselines"][name][task][metric] for report in reports)
        for name in reports[0]["baselines"]
        if all(metric in r["baselines"].get(name, {}).get(task, {}) for r in reports)
    }
    return Joined(
        goal,
        tuple(float(report["model"][task][metric]) for report in reports),
        baselines,
        goal.beside if goal.beside in baselines else _best(baselines, goal, reports),
        {name: gap for name in baselines if (gap := _gap(goal, name, reports)) is not None},
    )


def _best(baselines: Mapping[str, float], goal: Goal, reports: Sequence[Report]) -> str | None:
    found: dict[str, float] = {}
    for name in baselines:
        figures = [_validation(report, name, goal.task) for report in reports]
        if all(figures):
            # Oriented so that larger is better.
            found[name] = fmean(value for figure in figures for value in figure)
    if not found:
        # Baselines without settings have seen no validation: the hardest to beat on test.
        sign = -1.0 if goal.lower_is_better else 1.0
        found = {name: sign * value for name, value in baselines.items()}
    return max(found, key=found.__getitem__) if found else None


def _validation(report: Report, name: str, task: str) -> list[float]:
    """Give a baseline's validation figures, larger is better; cross-validation has one a fold."""
    found = []
    for tuned, tasks in report["tuned"].items():
        if tuned.partition(", fold ")[0] == name:
            for key, value in tasks.get(task, {}).items():
                metric = key.removeprefix("validation_")
                if metric != key:
                    found.append(-value if metric in LOWER_IS_BETTER else value)
    return found


def _gap(goal: Goal, name: str, reports: Sequence[Report]) -> Gap | None:
    entries = [
        report["differences"].get(name, {}).get(goal.task, {}).get(goal.metric)
        for report in reports
    ]
    if None in entries:
        return None
    is_relative = all("relative" in entry for entry in entries)
    value, interval = (
        ("relative", "relative_interval") if is_relative else ("difference", "interval")
    )
    return Gap(
        fmean(entry[value] for entry in entries),
        fmean(entry[interval][0] for entry in entries),
        fmean(entry[interval][1] for entry in entries),
        stdev(entry[value] for entry in entries) if len(entries) > 1 else None,
        is_relative,
    )


def report_of_twins(tree: Mapping[str, Any], name: str = TWIN) -> Report:
    """Give the tree of `twins.json` in the form of a report with one baseline, the twin.

    A task whose twin has a figure of 0 has no relative change, and here no difference.
    """
    tasks = tree["tasks"]
    facts = ("difference", "interval", "relative", "relative_interval")
    return {
        "model": {task: {entry["metric"]: entry["joint"]} for task, entry in tasks.items()},
        "baselines": {
            name: {task: {entry["metric"]: entry["twin"]} for task, entry in tasks.items()}
        },
        "differences": {
            name: {
                task: {entry["metric"]: {fact: entry[fact] for fact in facts}}
                for task, entry in tasks.items()
                if "relative" in entry
            }
        },
        "tuned": {},
    }


# ---- Markdown -----------------------------------------------------------------------------------

GOALS_HEADER = (
    "| row | protocol | metric | ours | best baseline | difference [95 %] | at least | aim | met |"
    "\n|---|---|---|---|---|---|---|---|---|"
)
PARTS_HEADER = (
    "| row | protocol | metric | ours | exchanged | what ours brings [95 %] |"
    "\n|---|---|---|---|---|---|"
)
BESIDE_HEADER = (
    "| row | seeds | coverage@10 | novelty@10 | diversity@10 | ECE | training, s |"
    "\n|---|---|---|---|---|---|---|"
)


def goal_line(row: str, protocol: str, joined: Joined) -> str:
    """Give the table line of a goal, under `GOALS_HEADER`."""
    goal = joined.goal
    cells = (*_figures(row, protocol, joined), _at_least_text(goal), _aim_text(goal))
    return _line(*cells, _met_text(joined))


def part_line(row: str, protocol: str, joined: Joined) -> str:
    """Give the table line of a model beside one without a part, under `PARTS_HEADER`."""
    return _line(*_figures(row, protocol, joined))


def _figures(row: str, protocol: str, joined: Joined) -> tuple[str, ...]:
    goal = joined.goal
    spread = f" ± {_number(stdev(joined.values))}" if len(joined.values) > 1 else ""
    best = f"{joined.best} {_number(joined.baselines[joined.best])}" if joined.best else ""
    gap = joined.gaps.get(joined.best or "")
    return (
        *(row, protocol, f"{goal.metric} ({goal.task})"),
        *(_number(joined.value) + spread, best, _gap_text(gap) if gap is not None else ""),
    )


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def beside_line(row: str, reports: Sequence[Report], train_s: Sequence[float]) -> str:
    """Give the line of what stands beside accuracy, under `BESIDE_HEADER`.

    Args:
        row: name of the row.
        reports: one a seed.
        train_s: seconds of training of the seeds for which it is known.
    """
    cells = [row, str(len(reports))]
    for prefix in ("coverage@", "novelty@", "diversity@", "ece"):
        found = [
            value
            for report in reports
            for metrics in report["model"].values()
            for metric, value in metrics.items()
            if metric.startswith(prefix)
        ]
        cells.append(f"{fmean(found):.3f}" if found else "")
    cells.append(f"{fmean(train_s):.0f}" if train_s else "")
    return _line(*cells)


def _number(value: float) -> str:
    """Give four digits, with no zero before the point: as the literature prints them.

    >>> _number(0.34741), _number(-0.5), _number(1.25)
    ('.3474', '-.5000', '1.2500')
    """
    return f"{value:.4f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.4f}"


def _gap_text(gap: Gap) -> str:
    if gap.is_relative and gap.value > 10.0:  # beside next to nothing: per cent no longer say much
        return f"{1 + gap.value:.0f} times [{1 + gap.low:.0f}, {1 + gap.high:.0f}]"
    if gap.is_relative:
        spread = f" ± {100 * gap.deviation:.1f}" if gap.deviation is not None else ""
        return f"{100 * gap.value:+.1f} %{spread} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
    spread = f" ± {gap.deviation:.4f}" if gap.deviation is not None else ""
    return f"{gap.value:+.4f}{spread} [{gap.low:+.4f}, {gap.high:+.4f}]"


def _at_least_text(goal: Goal) -> str:
    bars = [_bound(goal, goal.at_least)] if goal.at_least is not None else []
    if goal.max_loss is not None:
        bars.append(f"no significant loss above {100 * goal.max_loss:g} %")
    return ", ".join([*bars, *goal.beat])


def _aim_text(goal: Goal) -> str:
    parts = [_bound(goal, goal.aim)] if goal.aim is not None else []
    if goal.max_loss is not None:
        parts.append("no significant loss")
    if goal.gain is not None:
        parts.append(f"{100 * goal.gain:+.0f} %, interval beyond 0")
    if goal.aim_over:
        parts.append(f"interval over {', '.join(goal.aim_over)} beyond 0")
    return "; ".join(parts)


def _bound(goal: Goal, bound: float) -> str:
    of = f" of {goal.beside}" if goal.beside is not None else ""
    sign = "≤ " if goal.lower_is_better else "≥ "
    return sign + f"{bound:.4g}".removeprefix("0") + of


def _met_text(joined: Joined) -> str:
    if joined.is_aim_met:
        return "aim" if joined.holds is not False else "aim only"
    return {True: "at least", False: "no", None: ""}[joined.holds]
