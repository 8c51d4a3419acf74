"""One run at a time in a workdir: a lock that dies with its holder.

On a local path it is `flock` on `.lock`, which the kernel lets go of when the process ends, however
it ends. At a URI it is the object `.lock` with a time that a thread renews; one that is not renewed
is void. Readers of artifacts need no lock: what has a manifest is whole.
"""

import errno
import fcntl
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from mtrec import storage
from mtrec.errors import ArtifactError

logger = logging.getLogger("mtrec.runlock")

LOCK = ".lock"
"""Name of the lock in a workdir."""
STALE_S = 60.0
"""Seconds after which a lock at a URI is void unless it was renewed."""
_RENEW_S = 10.0
# Two runs that find no lock both write one; the last one has it. This long a write may take.
_SETTLE_S = 1.0
# Tokens that this process let go of; storage that was gone may have kept their locks.
_released: set[str] = set()


@contextmanager
def hold_folder(workdir: str) -> Iterator[Callable[[], None]]:
    """Keep others out of a folder, a run's workdir or its bundles, for the length of the body.

    Yields a function that raises if the lock was lost (to a URI only: nobody could renew it for
    `STALE_S`, and another run took it); to be called before each piece of work.

    Raises:
        ArtifactError: another run has the workdir, or it cannot be written to.
    """
    hold = _hold_local if storage.is_local(workdir) else _hold_remote
    with hold(storage.absolute(workdir)) as check:
        yield check


def is_void(lock: dict[str, Any], *, now: float, host: str, alive: Callable[[int], bool]) -> bool:
    """Tell whether a lock at a URI holds no longer: old, or its process on this host is gone."""
    if now - float(lock["renewed"]) > STALE_S:
        return True
    return bool(lock["host"] == host and not alive(int(lock["pid"])))


# ---- local ----------------------------------------------------------------------------------


@contextmanager
def _hold_local(workdir: str) -> Iterator[Callable[[], None]]:
    path = storage.filesystem(storage.join(workdir, LOCK))[1]
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        # Not inherited: the processes that Ray starts must not keep the lock alive.
        file = open(path, "a+b")  # noqa: SIM115  # closed below, on every way out
    except OSError as error:
        raise _not_writable(workdir, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise _is_taken(workdir, file.read()) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL):
                raise _not_writable(workdir, error) from error
            logger.warning("%s knows no locks: take care that one run at a time uses it", workdir)
        try:
            file.truncate(0)
            file.write(_description(uuid.uuid4().hex))
            file.flush()
        except OSError as error:
            raise _not_writable(workdir, error) from error
        try:
            yield lambda: None
        finally:
            # A process that was just forked may still have the file open: closing is not enough.
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)


# ---- at a URI -------------------------------------------------------------------------------


@contextmanager
def _hold_remote(workdir: str) -> Iterator[Callable[[], None]]:
    path, token = storage.join(workdir, LOCK), uuid.uuid4().hex
    try:
        found = _read(path)
        if found is not None:
            lock = _parse(found)
            if (
                lock is not None
                and lock["token"] not in _released
                and not is_void(lock, now=time.time(), host=socket.gethostname(), alive=_is_alive)
            ):
                raise _is_taken(workdir, found)
        storage.write_bytes(path, _description(token))
        time.sleep(_SETTLE_S)
        found = _read(path)
    except OSError as error:
        raise _not_writable(workdir, error) from error
    if not _is_mine(found, token):
        raise _is_taken(workdir, found or b"")
    lost, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=_renew, args=(path, token, lost, stop), daemon=True)
    thread.start()

    def check() -> None:
        if lost.is_set():
            raise ArtifactError(
                f"this run lost its lock on {workdir}: it could not be renewed for "
                f"{STALE_S:.0f} s, and another run took the workdir\n"
                "wait for that one to end, then run again"
            )

    try:
        yield check
    finally:
        _released.add(token)
        stop.set()
        thread.join(timeout=_RENEW_S)
        # Storage that is gone leaves a lock that nobody renews: void in a minute.
        with suppress(OSError):
            if _is_mine(_read(path), token):
                storage.remove(path)


def _renew(path: str, token: str, lost: threading.Event, stop: threading.Event) -> None:
    while not stop.wait(_RENEW_S):
        try:
            if not _is_mine(_read(path), token):
                lost.set()
                return
            storage.write_bytes(path, _description(token))
        except OSError as error:
            logger.warning("cannot renew %s: %s", path, error)


def _read(path: str) -> bytes | None:
    try:
        return storage.read_bytes(path)
    except FileNotFoundError:
        return None


def _is_mine(found: bytes | None, token: str) -> bool:
    lock = _parse(found or b"")
    return lock is not None and lock["token"] == token


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # there, and somebody else's
        return True
    return True


# ---- what a lock says -----------------------------------------------------------------------


def _description(token: str) -> bytes:
    lock = {
        "token": token,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "renewed": time.time(),
    }
    return json.dumps(lock).encode()


def _parse(raw: bytes) -> dict[str, Any] | None:
    """Read a lock; None where it holds nothing of the kind."""
    try:
        lock = json.loads(raw)
        return lock if {"token", "host", "pid", "renewed"} <= set(lock) else None
    except (ValueError, TypeError):
        return None


def _is_taken(workdir: str, raw: bytes) -> ArtifactError:
    lock = _parse(raw)
    who = f"process {lock['pid']} on {lock['host']}" if lock else "another process"
    note = "" if storage.is_local(workdir) else f"; a killed run's lock ends after {STALE_S:.0f} s"
    return ArtifactError(
        f"another run is at work in {workdir}: {who}\n"
        f"wait for it to end, or give this run another folder (run.workdir){note}"
    )


def _not_writable(workdir: str, error: OSError) -> ArtifactError:
    return storage.explain(error, "take the lock", workdir) or ArtifactError(
        f"cannot write to {workdir}: {error}\nset run.workdir to a folder that can be written to"
    )
