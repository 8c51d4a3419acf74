"""Take measurements by turns beside a peer, and the memory of a tree of processes."""

import statistics
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from _results import Results


def in_turn(
    ours: Callable[[], dict[str, float]], peer: Callable[[], dict[str, float]], repeats: int
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Call both `repeats` times, one after the other, the first of each pair by turns."""
    mine, theirs = [], []
    for repeat in range(repeats):
        if repeat % 2:
            theirs.append(peer())
            mine.append(ours())
        else:
            mine.append(ours())
            theirs.append(peer())
    return mine, theirs


def add_pair(
    results: Results,
    row: str,
    metric: str,
    pair: tuple[list[dict[str, float]], list[dict[str, float]]],
    peer: str,
    **judged: Any,
) -> None:
    """Add the medians of ours and the peer's, and the span of the pairwise ratios.

    `judged` is what `Results.add` takes besides.
    """
    ours, theirs = ([sample[metric] for sample in samples] for samples in pair)
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    results.add(
        row,
        metric,
        statistics.median(ours),
        peer=peer,
        peer_value=statistics.median(theirs),
        interval=(min(ratios), max(ratios)),
        **judged,
    )


@contextmanager
def peak_memory(root: int) -> Iterator[list[float]]:
    """Sample the memory of a process and all below it, in MiB; the list stays empty off Linux.

    Proportional set size: memory that processes share, Ray's object store above all, counts once.
    """
    samples: list[float] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.25):
            if used := memory_mib(process_tree(root)):
                samples.append(used)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def process_tree(root: int) -> list[int]:
    """List a process and all its descendants, from `/proc`."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The command's name, in brackets, may hold spaces; the parent is the second after it.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.name))
    tree, position = [root], 0
    while position < len(tree):
        tree += children.get(tree[position], [])
        position += 1
    return tree


def memory_mib(pids: Sequence[int]) -> float:
    """Give the memory of processes in MiB, see `peak_memory`; 0 off Linux."""
    return sum(_pss_kib(pid) for pid in pids) / 1024


def _pss_kib(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0
