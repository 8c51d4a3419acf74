"""The files of a remote artifact on this machine, for as long as somebody opens them.

Memory maps need local files. Processes of one user that open the same artifact at the same time
share one copy; the last of them takes its names away, and what they have mapped stays theirs until
they end. So nothing is left, and of a process that is killed while it opens one, only until the
next open: a copy that nobody holds a lock on is garbage.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyarrow import fs

from mtrec import storage
from mtrec.artifacts import Manifest

_PREFIX = "mtrec-copy"
# Written last: without it a copy is half of one.
_WHOLE = ".whole"


@contextmanager
def local_files(place: str, manifest: Manifest) -> Iterator[str]:
    """Yield a local folder with an artifact's files; a local artifact's own, else a copy.

    The body opens or maps what it needs; a copy's names may be gone after it. Nothing is checked.

    Raises:
        OSError: the artifact cannot be read, or the temporary folder has no room.
    """
    if storage.is_local(place):
        yield storage.filesystem(place)[1]
        return
    mine = f"{_PREFIX}-{os.getuid()}-"
    root = tempfile.gettempdir()
    for name in os.listdir(root):
        if name.startswith(mine):
            with suppress(OSError):
                _remove_unused(os.path.join(root, name))
    folder = os.path.join(root, mine + manifest.content[:32])
    held = _hold(folder, place)
    try:
        yield folder
    finally:
        os.close(held)
        with suppress(FileNotFoundError):
            _remove_unused(folder)


def _hold(folder: str, place: str) -> int:
    """Fill a folder unless somebody has; give its descriptor, which keeps it for others to see."""
    whole = os.path.join(folder, _WHOLE)
    while True:
        # `makedirs(exist_ok=True)` looks again at what was there, and fails if it has just gone.
        with suppress(FileExistsError):
            Path(folder).mkdir(mode=0o700)
        try:
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # just removed by the last of its users
            continue
        try:
            fcntl.flock(held, fcntl.LOCK_SH)
            if not os.path.exists(whole):
                fcntl.flock(held, fcntl.LOCK_EX)
                if not os.path.exists(whole) and _is_at(held, folder):
                    system, inner = storage.filesystem(place)
                    fs.copy_files(inner, folder, source_filesystem=system)
                    storage.write_bytes(whole, b"")
                fcntl.flock(held, fcntl.LOCK_SH)
            # Between two locks it belonged to nobody, and may have been removed.
            if os.path.exists(whole) and _is_at(held, folder):
                return held
        except BaseException:
            os.close(held)
            with suppress(OSError):
                _remove_unused(folder)
            raise
        os.close(held)


def _remove_unused(folder: str) -> None:
    """Remove a copy unless another process, or thread, holds it."""
    found = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(found, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(found, folder):
            shutil.rmtree(folder)
    except BlockingIOError:
        pass
    finally:
        os.close(found)


def _is_at(descriptor: int, folder: str) -> bool:
    """Tell whether an open folder still has its name: another may have taken its place."""
    try:
        return os.path.samestat(os.fstat(descriptor), Path(folder).stat())
    except FileNotFoundError:
        return False
