"""Start a Ray cluster of several nodes on this one machine, with a job server, until Ctrl-C.

For trying `ray job submit`, the Kubernetes entrypoints and node failures without a second machine.
Every node is a raylet of its own with its own ports and temporary folder; nothing is shared with
another Ray on the machine, and only processes started here are ever ended. It never runs
`ray stop`, which would end every Ray of the user.

    python cluster/local_cluster.py --nodes 2 --cpus 2
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from urllib.error import URLError
from urllib.request import urlopen

# Inherited by every process of the cluster, jobs included: how close() knows its own.
_MARK = "MTREC_LOCAL_CLUSTER"


class LocalCluster:
    """A head node and further nodes, each `ray start --block` in a process of its own.

    Args:
        nodes: number of nodes, the head included.
        num_cpus: logical CPUs of each node.
        head_cpus: logical CPUs of the head; by default `num_cpus`. 0 keeps tasks off it, as the
            manifests in `k8s/` do.
        object_store_mb: shared memory of each node in MiB.
        cwd: folder that jobs, tasks and Serve replicas start in, hence where their relative paths
            begin; by default the current one.
        env: variables for every process of the cluster, on top of the current ones.

    Attributes:
        address: what `ray.init(address=...)`, `--address` and `RAY_ADDRESS` take.
        job_url: the job server and dashboard, what `ray job submit --address` takes.
        mark: what `marked_processes` knows the cluster's processes by.

    Raises:
        RuntimeError: a node did not come up within a minute; its log is in the message.
    """

    def __init__(
        self,
        *,
        nodes: int = 2,
        num_cpus: int = 2,
        head_cpus: int | None = None,
        object_store_mb: int = 150,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        # Not pytest's tmp_path: Ray puts sockets below it, and a socket path ends at 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="mtrec-ray-"))
        self.mark = self._folder.name
        self._cwd = Path(cwd or Path.cwd()).resolve()
        self._env = {
            **os.environ,
            # "python" in an entrypoint is the interpreter that runs the cluster.
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
            # Ray refuses a second node on macOS and Windows without it.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
            **(env or {}),
            _MARK: self.mark,
        }
        self._env.pop("RAY_ADDRESS", None)
        self._store = str(object_store_mb << 20)
        self._processes: list[subprocess.Popen[bytes]] = []
        # Which of the starts each process is.
        self._numbers: list[int] = []
        self._starts: list[tuple[list[str], ...]] = []
        gcs_port, job_port, client_port, agent_port = free_ports(4)
        self.address = f"127.0.0.1:{gcs_port}"
        self.job_url = f"http://127.0.0.1:{job_port}"
        try:
            self._start(
                ["--head", f"--port={gcs_port}"],
                ["--include-dashboard=true", "--dashboard-host=127.0.0.1"],
                [f"--dashboard-port={job_port}", f"--ray-client-server-port={client_port}"],
                [f"--num-cpus={num_cpus if head_cpus is None else head_cpus}"],
                [f"--dashboard-agent-listen-port={agent_port}"],
            )
            self._wait_for_job_server()
            for agent_port in free_ports(nodes - 1):
                self._start(
                    [f"--address={self.address}", f"--num-cpus={num_cpus}"],
                    [f"--dashboard-agent-listen-port={agent_port}"],
                )
            self._wait_for_nodes(nodes)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End every process of this cluster, and no other, and remove its files."""
        for process in reversed(self._processes):
            process.terminate()
        deadline = time.monotonic() + 10.0
        for process in self._processes:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
        self._end_marked(grace_s=5.0)
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> "LocalCluster":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _start(self, *arguments: list[str]) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        command += ["--node-ip-address=127.0.0.1", f"--object-store-memory={self._store}"]
        # The default port ranges of two nodes on one machine would overlap.
        command += ["--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"]
        number = len(self._starts)
        self._starts.append(arguments)
        command += [f"--temp-dir={self._temporary_folder(number)}"]
        command += [part for group in arguments for part in group]
        with open(self._folder / f"node-{number}.log", "wb") as log:
            process = subprocess.Popen(
                command,
                cwd=self._cwd,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # Its own group: Ctrl-C in the terminal reaches this process only, which then
                # ends the nodes in order.
                start_new_session=True,
            )
        self._processes.append(process)
        self._numbers.append(number)

    def _temporary_folder(self, number: int) -> Path:
        """Make a node's folder: one of its own, but all write their logs to the head's.

        With one folder for all, a node that unpacks a job's --working-dir first removes it under
        the feet of another node's driver. With logs apart, the job server looks for a job's log at
        the head only, since both nodes have the same IP address.
        """
        folder = self._folder / str(number)
        folder.mkdir()
        if number > 0:
            session = (self._folder / "0" / "session_latest").resolve()
            (folder / session.name).mkdir()
            (folder / session.name / "logs").symlink_to(session / "logs")
        return folder

    def _wait_for_job_server(self) -> None:
        def answers() -> bool:
            try:
                with urlopen(f"{self.job_url}/api/version", timeout=2) as answer:
                    return bool(answer.status == 200)
            except (URLError, OSError) as error:
                # With token authentication on, "who are you?" is an answer too.
                return getattr(error, "code", None) in (401, 403)

        self._wait(answers, "the job server")

    def _wait_for_nodes(self, nodes: int) -> None:
        from ray.util.state import list_nodes

        def all_alive() -> bool:
            try:
                found = list_nodes(self.job_url, filters=[("state", "=", "ALIVE")], timeout=10)
            except Exception:  # the state server starts after the job server
                return False
            return len(found) >= nodes

        self._wait(all_alive, f"{nodes} nodes")

    def _wait(self, ready: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 60.0
        while not ready():
            ended = [process for process in self._processes if process.poll() is not None]
            if ended and self._start_again(ended[0]):
                deadline = time.monotonic() + 60.0
            elif ended or time.monotonic() > deadline:
                logs = [path.read_text() for path in sorted(self._folder.glob("node-*.log"))]
                why = f"a node ended with {ended[0].returncode}" if ended else "60 s passed"
                raise RuntimeError(f"waiting for {what}: {why}\n" + "\n".join(logs)[-4000:])
            time.sleep(0.2)

    def _start_again(self, ended: subprocess.Popen[bytes]) -> bool:
        """Start a node anew that a busy machine made late; Ray gives it half a minute."""
        place = self._processes.index(ended)
        number = self._numbers[place]
        log = (self._folder / f"node-{number}.log").read_text()
        if "timed out during startup" not in log or len(self._starts) >= len(self._processes) + 2:
            return False
        self._processes.pop(place)
        self._numbers.pop(place)
        self._start(*self._starts[number])
        return True

    def _end_marked(self, *, grace_s: float) -> None:
        """Wait for what the nodes leave behind (workers, agents, job drivers), then end it."""
        deadline = time.monotonic() + grace_s
        while (pids := marked_processes(self.mark)) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def free_ports(count: int) -> list[int]:
    """Give TCP ports of the loopback interface that nobody listens on right now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def marked_processes(mark: str) -> list[int]:
    """List the processes whose environment says that they belong to the cluster `mark`.

    Reads `/proc`, so the list is empty where there is none (macOS).
    """
    wanted = f"{_MARK}={mark}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue  # it ended meanwhile, or belongs to someone else
    return found


def main() -> None:
    """Start a cluster, say where it is, and end it on Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--nodes", type=int, default=2, help="nodes, the head included")
    parser.add_argument("--cpus", type=int, default=2, help="logical CPUs of each node")
    parser.add_argument("--head-cpus", type=int, help="logical CPUs of the head, if different")
    options = parser.parse_args()
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with LocalCluster(
        nodes=options.nodes, num_cpus=options.cpus, head_cpus=options.head_cpus
    ) as cluster:
        print(f"cluster  {cluster.address}   (mtrec run --address {cluster.address} ...)")
        print(f"jobs     {cluster.job_url}   (ray job submit --address {cluster.job_url} ...)")
        print("Ctrl-C ends it.", flush=True)
        stop.wait()


if __name__ == "__main__":
    main()
