"""Progress of work that runs in Ray actors, shown where the user is looking.

Workers add entries to a small actor; a thread of the driver fetches them and draws a bar on a
terminal, or writes one log line an entry elsewhere.
"""

import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mtrec.runlog import event

_POLL_S = 0.5


class Board:
    """Where workers leave entries; runs as an actor that reserves no CPU."""

    def __init__(self) -> None:
        self._entries: list[dict[str, Any]] = []

    def add(self, entry: dict[str, Any]) -> None:
        """Append an entry."""
        self._entries.append(entry)

    def since(self, count: int) -> list[dict[str, Any]]:
        """Give the entries after the first `count`."""
        return self._entries[count:]


@contextmanager
def follow(logger: logging.Logger, name: str, *, total: int, shown: list[str]) -> Iterator[Any]:
    """Yield an actor handle whose `add.remote(entry)` shows an entry to the user.

    Args:
        logger: gets one line an entry when stderr is no terminal.
        name: what is going on; the name of the log event.
        total: entries at most.
        shown: keys of an entry that the bar or the line shows.
    """
    board: Any = ray.remote(Board).options(num_cpus=0).remote()
    stop = threading.Event()
    thread = threading.Thread(
        target=_show, args=(board, stop, logger, name, total, shown), daemon=True
    )
    thread.start()
    try:
        yield board
    finally:
        stop.set()
        thread.join(timeout=10.0)
        ray.kill(board)


def _show(
    board: Any, stop: threading.Event, logger: logging.Logger, name: str, total: int,
    shown: list[str],
) -> None:  # fmt: skip
    columns = (
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[values]}"),
    )
    on_terminal = sys.stderr.isatty()
    with Progress(*columns, console=Console(stderr=True), disable=not on_terminal) as bar:
        task = bar.add_task(name, total=total, values="")
        count, last = 0, False
        while not last:
            last = stop.wait(_POLL_S)
            try:
                entries = ray.get(board.since.remote(count), timeout=5.0)
            except ray.exceptions.RayError:
                return  # the cluster is going away: the driver's own error says why
            count += len(entries)
            for entry in entries:
                values = {key: entry[key] for key in shown if key in entry}
                text = " ".join(f"{key.rpartition('/')[2]} {values[key]:.4g}" for key in values)
                bar.update(task, completed=entry.get("epoch", count), values=text)
                if not on_terminal:
                    event(logger, name, epoch=entry.get("epoch", count), **values)
