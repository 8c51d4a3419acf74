"""Servers and loads as processes of their own, for measuring: started, asked, ended.

All on the loopback interface; a server is ended by the process that started it.
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from _measure import process_tree

JOBS = Path(__file__).resolve().parent
CONNECTIONS = 8
_WAIT_S = 180.0


def send_load(
    port: int,
    bodies: Path,
    seconds: float,
    *,
    route: str = "recommend",
    connections: int = CONNECTIONS,
    rate: float | None = None,
    strict: bool = True,
) -> dict[str, Any]:
    """Load one server from a process of its own; if strict, all answers must be 200."""
    command = [sys.executable, str(JOBS / "loadtest.py"), "--bodies", str(bodies)]
    command += ["--url", f"http://127.0.0.1:{port}/v1/{route}"]
    command += ["--connections", str(connections), "--seconds", str(seconds)]
    command += ["--rate", str(rate)] if rate is not None else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode > (0 if strict else 1) or not done.stdout:
        raise RuntimeError(f"load on port {port}: {done.stdout}{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@contextmanager
def server(
    command: Sequence[str], port: int, environment: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Run a server while the body runs, from when `/readyz` answers; ends what it started."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        try:
            deadline = time.monotonic() + _WAIT_S
            while not _ready(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{command} is not ready: {log.read()[-2000:].decode()}")
                time.sleep(0.2)
            yield process.pid
        finally:
            tree = process_tree(process.pid)
            process.send_signal(signal.SIGINT)
            try:
                process.wait(90)
            except subprocess.TimeoutExpired:
                for pid in reversed(tree):
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                process.wait()


def _ready(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, HTTPException):
        return False


def free_ports(count: int) -> list[int]:
    """Give ports of the loopback interface that nobody listens on right now.

    Below those that the system and Ray choose by themselves: a server here binds seconds later.
    """
    found: list[int] = []
    for port in random.sample(range(20_000, 30_000), 500):
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        found.append(port)
        if len(found) == count:
            break
    return found


def serve_bare(bundle: str, port: int) -> None:
    """Be the peer: FastAPI and uvicorn around the same recommender, and nothing else."""
    import uvicorn
    from fastapi import FastAPI, Request

    from mtrec import Recommender

    # One thread, as the replica has: two would wait for each other on a busy machine.
    recommender, app = Recommender.load(bundle, threads=1), FastAPI()

    @app.get("/readyz")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/v1/recommend")
    async def recommend(request: Request) -> Any:
        return recommender.recommend([await request.json()])[0]

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")
