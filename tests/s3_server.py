"""A local S3 server, a line to it that can be cut, and a process with the command line on it."""

import json
import logging
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pyarrow import fs

BUCKET = "bucket"
ROOT = Path(__file__).parents[1]
# Commands come as JSON lists, one a line; what they print is followed by their exit code.
_PROGRAM = """
import json, sys
from mtrec.cli import app, run_shell
for line in sys.stdin:
    arguments = json.loads(line)
    code = run_shell(lambda: app(arguments, standalone_mode=False))
    sys.stderr.flush()
    print("EXIT", code, flush=True)
"""


class Line:
    """A TCP proxy on a port of its own that can be cut, also at a given request, and mended."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._open: set[socket.socket] = set()
        self._fatal: re.Pattern[bytes] | None = None
        self._mend_after_s = 0.0
        self.was_cut = threading.Event()
        self._serve()

    def cut_at(self, request: str, *, mend_after_s: float = 0.0) -> None:
        """Cut the line when a client sends this (a regular expression); mend it, 0 is never."""
        self.was_cut.clear()
        self._fatal, self._mend_after_s = re.compile(request.encode()), mend_after_s

    def cut(self) -> None:
        """Break all connections and refuse new ones."""
        self._fatal = None
        for each in (self._listener, *self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open.clear()
        self.was_cut.set()

    def mend(self) -> None:
        """Listen again on the same port."""
        self._listener = socket.create_server(self.address)
        self._serve()

    def _serve(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(self._target)
                self._open |= {client, server}
                for pair in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if self._fatal and self._fatal.search(data):
                    after = self._mend_after_s
                    self.cut()
                    if after:
                        threading.Timer(after, self.mend).start()
                    return
                sink.sendall(data)
        for each in (source, sink):
            self._open.discard(each)
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@contextmanager
def s3_server() -> Iterator[tuple[Line, fs.S3FileSystem]]:
    """Start a server with an empty bucket: the line to it, and a way to look at it beside."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a log line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = server.get_host_and_port()
    try:
        direct = fs.S3FileSystem(
            access_key="test",
            secret_key="test",
            region="us-east-1",
            scheme="http",
            endpoint_override=f"{address[0]}:{address[1]}",
            allow_bucket_creation=True,
        )
        direct.create_dir(BUCKET)
        line = Line(address)
        yield line, direct
        if not line.was_cut.is_set():
            line.cut()
    finally:
        server.stop()


def s3_environment(line: Line) -> dict[str, str]:
    """Give the variables that a user sets for a server of their own."""
    return {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{line.address[1]}",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


class Commands:
    """`mtrec` in a process of its own, one command after another on one Ray."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        """Start it with working, home and temporary folders of its own below `folder`."""
        self.cwd, self.temporary = folder / "cwd", folder / "tmp"
        for place in (self.cwd, self.temporary):
            place.mkdir()
        self._errors = (folder / "stderr").open("w+")
        places = {"TMPDIR": str(self.temporary), "HOME": str(self.cwd), "RAY_TMPDIR": "/tmp"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=self.cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT), **places, **environment},
        )

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command: its exit code, what it printed, and what it told on stderr."""
        assert self._process.stdin is not None and self._process.stdout is not None
        begin = self._errors.seek(0, os.SEEK_END)
        self._process.stdin.write(json.dumps(arguments) + "\n")
        self._process.stdin.flush()
        printed = []
        for line in self._process.stdout:
            if line.startswith("EXIT "):
                self._errors.seek(begin)
                return int(line.split()[1]), "".join(printed), self._errors.read()
            printed.append(line)
        raise AssertionError(f"the process ended: {(self._errors.seek(0), self._errors.read())}")

    def left(self) -> list[str]:
        """List the files that it left in its folders."""
        places = (self.cwd, self.temporary)
        return sorted(str(path) for place in places for path in place.rglob("*") if path.is_file())

    def close(self) -> None:
        """End the process and its Ray."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()
        self._errors.close()
