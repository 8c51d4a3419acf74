"""What the measuring jobs write: `results.json` for machines and `results.md` for people.

One row per figure. What was not measured has no key: a missing peer leaves out `peer`, `peer_value`
and `ratio`, a row without a floor leaves out `at_least` and `ok`. Nothing here measures.
"""

import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_COLUMNS = (
    *("row", "metric", "value", "peer", "peer_value"),
    *("ratio", "low", "high", "at_least", "aim", "judged", "lower_is_better", "ok"),
)


class Results:
    """Collect rows and write them; a row is on disk as soon as it was added.

    Args:
        out: folder that receives `results.json` and `results.md`.
        command: the command line that measured, for the reader to repeat.
    """

    def __init__(self, out: Path, command: str) -> None:
        self._out = out
        self._head = {"machine": machine(), "command": command}
        self.rows: list[dict[str, Any]] = []

    def add(
        self,
        row: str,
        metric: str,
        value: float,
        *,
        peer: str | None = None,
        peer_value: float | None = None,
        interval: tuple[float, float] | None = None,
        at_least: float | None = None,
        aim: float | None = None,
        lower_is_better: bool = False,
        judge_value: bool = False,
        ok: bool | None = None,
    ) -> None:
        """Add one figure.

        Args:
            row: what was measured, such as `embed`.
            metric: name and unit, such as `texts_per_s`.
            value: ours.
            peer: what ours stands beside.
            peer_value: the peer's figure in the same unit.
            interval: low and high of the ratio if there is a peer, else of the value.
            at_least: smallest ratio (or value, without a peer) that is good enough.
            aim: the ratio or value to reach.
            lower_is_better: `at_least` is the largest that is good enough, as of errors.
            judge_value: `at_least` and `aim` are about the value although there is a peer.
            ok: whether it is good enough, where `at_least` alone does not say.
        """
        entry: dict[str, Any] = {"row": row, "metric": metric, "value": value}
        judged = value
        if peer is not None and peer_value is not None:
            ratio = value / peer_value
            entry |= {"peer": peer, "peer_value": peer_value, "ratio": ratio}
            judged = value if judge_value else ratio
        if interval is not None:
            entry |= {"low": interval[0], "high": interval[1]}
        if aim is not None:
            entry["aim"] = aim
        if judge_value and peer is not None:
            entry["judged"] = "value"
        if lower_is_better:
            entry["lower_is_better"] = True
        if at_least is not None:
            is_enough = judged <= at_least if lower_is_better else judged >= at_least
            entry |= {"at_least": at_least, "ok": is_enough if ok is None else ok}
        self.rows.append(entry)
        self._write()

    def _write(self) -> None:
        self._out.mkdir(parents=True, exist_ok=True)
        tree = {**self._head, "rows": self.rows}
        text = json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False)
        (self._out / "results.json").write_text(text + "\n", encoding="utf-8")
        used = [name for name in _COLUMNS if any(name in row for row in self.rows)]
        lines = [
            f"`{self._head['command']}`",
            "",
            ", ".join(f"{key} {value}" for key, value in machine().items()),
            "",
            "| " + " | ".join(used) + " |",
            "|" + "---|" * len(used),
            *("| " + " | ".join(_cell(row.get(name)) for name in used) + " |" for row in self.rows),
        ]
        (self._out / "results.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def machine() -> dict[str, str | int | float]:
    """Describe the machine by what speed depends on; no names."""
    found: dict[str, str | int | float] = {
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    cpu, memory = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    if cpu.exists():
        names = [line.partition(":")[2].strip() for line in cpu.open() if "model name" in line]
        found |= {"cpu": names[0]} if names else {}
    if memory.exists():
        found["memory_gib"] = round(int(memory.read_text().split()[1]) / 2**20, 1)
    for name in ("ray", "torch", "sentence-transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def command_line() -> str:
    """Give the command that runs now, in a form that works from the repository's root."""
    return " ".join(["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]])


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
