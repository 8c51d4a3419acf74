"""The processes of this machine, for tests that kill some of their own."""

import contextlib
from pathlib import Path


def descendants(pid: int) -> dict[int, str]:
    """Give the processes below a process, each with its command line."""
    children: dict[int, list[int]] = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(place.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(place.parent.name))
    found = [pid]
    for known in found:
        found += children.get(known, [])
    titles = {}
    for below in found[1:]:
        with contextlib.suppress(OSError):
            titles[below] = Path(f"/proc/{below}/cmdline").read_bytes().decode(errors="replace")
    return titles
