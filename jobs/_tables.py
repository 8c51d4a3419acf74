"""Tables of quality figures: `results.json` judges them, `quality.md` shows them."""

from functools import partial
from pathlib import Path
from typing import Any

from _results import Results
from _seeds import BESIDE_HEADER, GOALS_HEADER, PARTS_HEADER, Joined

Json = dict[str, Any]


def add_result(results: Results, row: str, joined: Joined) -> None:
    """Add a goal's figure to `results.json`: beside the best baseline, and beside those to beat.

    Bounds on the value are judged by it; `beat`, `gain` and `max_loss` become bounds on the ratio.
    """
    goal, best = joined.goal, joined.best
    sign = -1.0 if goal.lower_is_better else 1.0
    is_fixed = goal.at_least is not None or goal.aim is not None
    add = partial(results.add, row, goal.metric, joined.value, lower_is_better=goal.lower_is_better)
    if goal.beside is not None:
        at_least, aim = goal.at_least, goal.aim
        if goal.max_loss is not None:
            at_least, aim = 1.0 - sign * goal.max_loss, 1.0
        add(**_peer(joined, best), at_least=at_least, aim=aim, ok=joined.holds)
        return
    aim = goal.aim if goal.gain is None else 1.0 + sign * goal.gain
    names = goal.beat if joined.holds is not None else ()
    bars = {name: joined.baselines[name] for name in names if name in joined.baselines}
    hardest = max(bars, key=lambda name: sign * bars[name], default=None)
    add(
        **_peer(joined, best),
        at_least=1.0 if hardest == best and best is not None else goal.at_least,
        aim=aim,
        judge_value=is_fixed,
    )
    if hardest is not None and hardest != best:
        add(**_peer(joined, hardest), at_least=1.0)


def _peer(joined: Joined, name: str | None) -> Json:
    if name is None:
        return {}
    gap = joined.gaps.get(name)
    found: Json = {"peer": name, "peer_value": joined.baselines[name]}
    if gap is not None and gap.is_relative:
        found["interval"] = (1.0 + gap.low, 1.0 + gap.high)
    return found


class Tables:
    """Collect the lines of `quality.md` and write it; a line is on disk once it was added."""

    def __init__(self, out: Path, command: str) -> None:
        self._path = out / "quality.md"
        self._command = command
        self._goals: list[str] = []
        self._beside: list[str] = []
        self._parts: list[str] = []

    def add_goal(self, line: str) -> None:
        """Add the line of a figure."""
        self._goals.append(line)
        self._write()

    def add_beside(self, line: str) -> None:
        """Add the line of what stands beside accuracy."""
        self._beside.append(line)
        self._write()

    def add_part(self, line: str) -> None:
        """Add the line of what a part of a model is worth."""
        self._parts.append(line)
        self._write()

    def _write(self) -> None:
        parts = [
            f"`{self._command}`",
            "\n".join([GOALS_HEADER, *self._goals]),
            "Ours: mean ± deviation over seeds. Best baseline: by validation (P11: by test, they "
            "have no settings). Difference: of the "
            "same users, mean ± deviation over seeds, with the bootstrap interval of one run (P1b, "
            "P12: over folds). In C2 the other is a model trained on the users who ask, in M1 one "
            "of the task alone. Met: how far the row got, `at least` or `aim`.",
            "\n".join([BESIDE_HEADER, *self._beside]),
        ]
        if self._parts:
            parts.append("\n".join([PARTS_HEADER, *self._parts]))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
