"""Progress of work that runs in Ray actors, shown where the user is looking.

Workers add entries to a small actor, work in the driver's own process to a list; a thread of the
driver fetches them and draws a bar on a terminal, or writes one log line an entry elsewhere.
"""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import ray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from mtrec.runlog import event

_POLL_S = 0.5


Entry = dict[str, Any]


class Board:
    """Where workers leave entries; as an actor it reserves no CPU."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def add(self, entry: Entry) -> None:
        """Append an entry."""
        self._entries.append(entry)

    def since(self, count: int) -> list[Entry]:
        """Give the entries after the first `count`."""
        return self._entries[count:]


@contextmanager
def follow(
    logger: logging.Logger, name: str, *, total: int, shown: list[str], here: bool = False
) -> Iterator[Callable[[Entry], None]]:
    """Yield a function that shows an entry to the user, whatever process it is called in.

    Args:
        logger: gets one line an entry when stderr is no terminal.
        name: what is going on; the name of the log event.
        total: entries at most.
        shown: keys of an entry that the bar or the line shows.
        here: it is only called in this process; no actor is started.
    """
    board: Any = Board() if here else ray.remote(Board).options(num_cpus=0).remote()
    fetch = board.since if here else partial(_fetch, board)
    stop = threading.Event()
    thread = threading.Thread(
        target=_show, args=(fetch, stop, logger, name, total, shown), daemon=True
    )
    thread.start()
    try:
        yield board.add if here else partial(_add, board)
    finally:
        stop.set()
        thread.join(timeout=10.0)
        if not here:
            ray.kill(board)


def _add(board: Any, entry: Entry) -> None:
    board.add.remote(entry)


def _fetch(board: Any, count: int) -> list[Entry]:
    found: list[Entry] = ray.get(board.since.remote(count), timeout=5.0)
    return found


def _show(
    fetch: Callable[[int], list[Entry]], stop: threading.Event, logger: logging.Logger, name: str,
    total: int, shown: list[str],
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
                entries = fetch(count)
            except ray.exceptions.GetTimeoutError:
                continue  # a busy machine is long about starting the actor
            except ray.exceptions.RayError:
                return  # the cluster is going away: the driver's own error says why
            count += len(entries)
            for entry in entries:
                values = {key: entry[key] for key in shown if key in entry}
                text = " ".join(f"{key.rpartition('/')[2]} {values[key]:.4g}" for key in values)
                bar.update(task, completed=entry.get("epoch", count), values=text)
                if not on_terminal:
                    event(logger, name, epoch=entry.get("epoch", count), **values)
