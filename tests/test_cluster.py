"""Several Ray nodes on one machine: up with a job server, and gone without a trace."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import IO, ClassVar
from urllib.error import URLError

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "cluster"))

import local_cluster  # noqa: E402  # a script beside the package, found by the line above
from local_cluster import LocalCluster, free_ports, marked_processes  # noqa: E402


@pytest.mark.ray
def test_a_job_runs_on_a_worker_node_and_nothing_is_left_afterwards(tmp_path: Path) -> None:
    from ray.job_submission import JobSubmissionClient

    program = (
        "import os, sys, ray; ray.init(log_to_driver=False); "
        "alive = sum(node['Alive'] for node in ray.nodes()); "
        "print('SEEN', os.getcwd(), sys.executable, alive, ray.cluster_resources()['CPU'])"
    )
    with LocalCluster(nodes=2, num_cpus=2, head_cpus=0, cwd=tmp_path) as cluster:
        mark = cluster.mark
        client = JobSubmissionClient(cluster.job_url)
        job = client.submit_job(entrypoint=f'python -c "{program}"', entrypoint_num_cpus=1)
        wait_for(lambda: client.get_job_status(job).is_terminal(), 60)
        log = client.get_job_logs(job)

    assert f"SEEN {tmp_path} {sys.executable} 2 2.0" in log
    assert marked_processes(mark) == []
    assert not (Path(os.environ.get("TMPDIR", "/tmp")) / mark).exists()


@pytest.mark.parametrize(("late", "starts"), [(0, 1), (2, 3), (3, 3)])
def test_a_node_that_a_busy_machine_made_late_is_started_again_twice(
    monkeypatch: pytest.MonkeyPatch, late: int, starts: int
) -> None:
    class Node:
        begun: ClassVar[list[list[str]]] = []

        def __init__(self, command: list[str], *, stdout: IO[bytes], **_: object) -> None:
            self.begun.append([part for part in command if not part.startswith("--temp-dir")])
            self.returncode = 1
            self.is_late = len(self.begun) <= late
            if self.is_late:
                stdout.write(b"Exception: The current node timed out during startup. This could")

        def poll(self) -> int | None:
            return 1 if self.is_late else None

        def terminate(self) -> None: ...

        def wait(self, _: float) -> None: ...

    def answer(_: str, timeout: float) -> nullcontext[SimpleNamespace]:
        if Node.begun and len(Node.begun) > late:
            return nullcontext(SimpleNamespace(status=200))
        raise URLError("nobody yet")

    monkeypatch.setattr(local_cluster.subprocess, "Popen", Node)
    monkeypatch.setattr(local_cluster, "urlopen", answer)
    monkeypatch.setattr(LocalCluster, "_wait_for_nodes", lambda *_: None)
    if late > 2:
        with pytest.raises(
            RuntimeError, match=r"a node ended with 1[\s\S]*timed out during startup"
        ):
            LocalCluster(nodes=1)
    else:
        LocalCluster(nodes=1).close()
    assert len(Node.begun) == starts
    assert all(command == Node.begun[0] for command in Node.begun)


@pytest.mark.ray
def test_the_command_says_where_it_is_and_ends_on_ctrl_c() -> None:
    command = [sys.executable, str(ROOT / "cluster" / "local_cluster.py"), "--nodes", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(3)]
        host, port = lines[0].split()[1].split(":")
        with socket.create_connection((host, int(port)), timeout=5):
            pass
    finally:
        process.send_signal(signal.SIGINT)
        code = process.wait(60)

    assert code == 0
    assert "ray job submit --address http://127.0.0.1:" in lines[1]
    with pytest.raises(OSError, match=r"refused|reset"):
        socket.create_connection((host, int(port)), timeout=5)


def test_a_process_of_the_cluster_is_known_by_its_environment_and_others_are_not() -> None:
    sleep = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    ours = subprocess.Popen(
        sleep, env={**os.environ, "MTREC_LOCAL_CLUSTER": "one"}, stdout=subprocess.PIPE
    )
    other = subprocess.Popen(
        sleep, env={**os.environ, "MTREC_LOCAL_CLUSTER": "one-more"}, stdout=subprocess.PIPE
    )
    try:
        for process in (ours, other):
            assert process.stdout is not None
            process.stdout.readline()
        assert marked_processes("one") == [ours.pid]
    finally:
        for process in (ours, other):
            process.kill()
            process.communicate()


def test_free_ports_differ_and_can_be_listened_on() -> None:
    ports = free_ports(5)

    assert len(set(ports)) == 5
    for port in ports:
        socket.create_server(("127.0.0.1", port)).close()


def test_a_node_that_cannot_start_ends_what_was_started_and_shows_its_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(local_cluster.tempfile, "mkdtemp", lambda prefix: str(tmp_path / "made"))
    (tmp_path / "made").mkdir()
    monkeypatch.setattr(local_cluster.sys, "executable", "/bin/false")

    with pytest.raises(RuntimeError, match="a node ended with 1"):
        LocalCluster(nodes=1)

    assert list(tmp_path.iterdir()) == []


def wait_for(ready: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, "timed out"
        time.sleep(0.2)
