"""The lock on a workdir: one run at a time, and gone with the process that held it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mtrec import runlock, storage
from mtrec.chain import run
from mtrec.errors import ArtifactError
from mtrec.runlock import LOCK, STALE_S, hold_folder, is_void


@contextmanager
def another_process(workdir: str) -> Iterator[subprocess.Popen[str]]:
    """Hold a workdir in another process for the length of the body."""
    program = (
        "import sys\n"
        "from mtrec.runlock import hold_folder\n"
        "with hold_folder(sys.argv[1]): print('held', flush=True); sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, workdir],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_run_is_told_who_has_the_workdir_and_what_to_do(tmp_path: Path) -> None:
    with (
        another_process(str(tmp_path)) as holder,
        pytest.raises(ArtifactError, match=f"another run .*: process {holder.pid} on ") as caught,
        hold_folder(str(tmp_path)),
    ):
        pass

    assert "run.workdir" in str(caught.value).splitlines()[1]


def test_the_chain_takes_the_lock_before_it_writes_anything(plant, tmp_path: Path) -> None:
    config = plant(tmp_path)
    with another_process(config.run.workdir), pytest.raises(ArtifactError, match="another run"):
        run(config)

    assert os.listdir(config.run.workdir) == [LOCK]


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    with another_process(str(tmp_path)) as holder:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with hold_folder(str(tmp_path)):
            assert json.loads((tmp_path / LOCK).read_bytes())["pid"] == os.getpid()


def test_a_workdir_is_free_after_the_body_has_failed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), hold_folder(str(tmp_path)):
        raise RuntimeError
    with hold_folder(str(tmp_path)):
        pass


def test_processes_that_the_holder_starts_do_not_keep_the_lock(tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    with hold_folder(str(tmp_path)):
        child = subprocess.Popen(sleep, close_fds=False)
    try:
        with hold_folder(str(tmp_path)):
            pass
    finally:
        child.kill()
        child.wait()


def test_a_workdir_that_cannot_be_made_is_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    with (
        pytest.raises(ArtifactError, match="to a folder that can be written"),
        hold_folder(str(tmp_path / "file" / "x")),
    ):
        pass


@pytest.mark.parametrize(
    ("age_s", "host", "alive", "void"),
    [
        (STALE_S - 1, "here", True, False),
        (STALE_S + 1, "here", True, True),
        (STALE_S + 1, "there", True, True),
        (1.0, "here", False, True),
        (1.0, "there", False, False),
    ],
)
def test_a_lock_at_a_uri_is_void_when_old_or_when_its_process_is_gone(
    age_s: float, host: str, alive: bool, void: bool
) -> None:
    lock = {"token": "t", "host": host, "pid": 7, "renewed": 1000.0}
    assert is_void(lock, now=1000.0 + age_s, host="here", alive=lambda _: alive) is void


# ---- the lock at a URI, on a folder that plays the object store -----------------------------


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(storage, "is_local", lambda _: False)
    monkeypatch.setattr(runlock, "_SETTLE_S", 0.05)
    monkeypatch.setattr(runlock, "_RENEW_S", 0.05)
    return str(tmp_path)


def lock_of(workdir: str, **changes: object) -> None:
    lock = {"token": "t", "host": "elsewhere", "pid": 7, "renewed": time.time(), **changes}
    Path(workdir, LOCK).write_text(json.dumps(lock))


def test_a_lock_at_a_uri_keeps_others_out_is_renewed_and_goes(remote: str) -> None:
    with hold_folder(remote) as check:
        first = json.loads(Path(remote, LOCK).read_bytes())
        wait_until(lambda: json.loads(Path(remote, LOCK).read_bytes()) != first)
        with pytest.raises(ArtifactError, match="another run"), hold_folder(remote):
            pass
        check()
    assert os.listdir(remote) == []


def test_a_lock_that_could_not_be_removed_does_not_keep_its_own_process_out(
    remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hold_folder(remote):
        monkeypatch.setattr(runlock.storage, "remove", lambda _: None)  # the storage is gone
    assert json.loads(Path(remote, LOCK).read_bytes())["pid"] == os.getpid()
    with hold_folder(remote):
        pass


def test_a_fresh_lock_of_another_host_says_when_it_ends(remote: str) -> None:
    lock_of(remote)
    with (
        pytest.raises(ArtifactError, match=r"process 7 on elsewhere\n.*ends after 60 s"),
        hold_folder(remote),
    ):
        pass


def test_a_lock_that_nobody_renews_is_taken_over(remote: str) -> None:
    lock_of(remote, renewed=time.time() - STALE_S - 1)
    with hold_folder(remote):
        assert json.loads(Path(remote, LOCK).read_bytes())["pid"] == os.getpid()


def test_of_two_that_write_at_once_the_last_one_has_it(
    remote: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runlock.time, "sleep", lambda _: lock_of(remote))
    with pytest.raises(ArtifactError, match="process 7 on elsewhere"), hold_folder(remote):
        pass
    assert json.loads(Path(remote, LOCK).read_bytes())["pid"] == 7


def test_a_run_that_lost_its_lock_is_stopped_and_leaves_the_new_one(remote: str) -> None:
    with hold_folder(remote) as check:
        # As another run does; the renewing thread may write once more before it looks.
        while not (Path(remote, LOCK).exists() and has_stopped()):
            lock_of(remote)
        with pytest.raises(ArtifactError, match="lost its lock"):
            check()
    assert json.loads(Path(remote, LOCK).read_bytes())["pid"] == 7


def has_stopped() -> bool:
    return not any(
        getattr(thread, "_target", None) is runlock._renew for thread in threading.enumerate()
    )


def wait_until(ready) -> None:
    deadline = time.monotonic() + 10.0
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)
