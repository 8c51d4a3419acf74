"""Load an HTTP endpoint and print as JSON what it did: rates, percentiles, statuses, versions.

    python jobs/loadtest.py --url http://127.0.0.1:8000/v1/recommend --body '{"user_id": "1"}'
    python jobs/loadtest.py --url ... --users runs/demo/dataset/users.parquet --rate 200

Without `--rate` each connection sends its next request when the answer to the last one is there:
how much the server can do. With it requests come at that rate whatever the server does, as those of
people do, and a request's time counts from when it was due, so that one which had to wait for a
connection is not taken for a quick one.

The client speaks just enough HTTP/1.1, so that on a small machine it does not take the CPU that the
server needs. It stops by itself after `--seconds`. An answer whose header and body name different
model versions is counted as `mixed`. `MTREC_API_KEY` is sent where it is set.
"""

import argparse
import asyncio
import json
import math
import os
import re
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

_VERSION = re.compile(rb'"model_version": ?"([^"]*)"')
_PERCENTS = (50.0, 90.0, 95.0, 99.0, 99.9)


@dataclass(slots=True)
class Tally:
    """What the connections saw.

    Attributes:
        seconds: of each answered request, in the order of the answers.
        status: how often each status, and what else became of requests.
        good: seconds of those answered 200.
        versions: how many answers each model version gave.
    """

    seconds: list[float] = field(default_factory=list)
    status: Counter[str] = field(default_factory=Counter)
    good: list[float] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)

    def note(self, seconds: float, status: str, told: str, body: bytes) -> None:
        """Count an answer; `told` is the version that its header names."""
        self.seconds.append(seconds)
        found = _VERSION.search(body) if told else None
        if found is not None and found[1].decode() != told:
            status = "mixed"
        self.status[status] += 1
        if status == "200":
            self.good.append(seconds)
            if told:
                self.versions[told] += 1


async def load(
    url: str,
    bodies: list[bytes],
    *,
    connections: int,
    seconds: float,
    rate: float | None = None,
    key: str | None = None,
) -> Tally:
    """Send the bodies round and round as POST requests for a while.

    Args:
        url: the route.
        bodies: JSON bodies, used in turn.
        connections: connections kept open at a time, with a rate at most.
        seconds: no request starts later than this.
        rate: requests due in a second; None: as fast as they are answered.
        key: sent as `Authorization: Bearer KEY`.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    is_secure = parts.scheme == "https"
    port = parts.port or (443 if is_secure else 80)
    lines = [f"POST {path} HTTP/1.1", f"Host: {parts.netloc}", "Content-Type: application/json"]
    lines += [f"Authorization: Bearer {key}"] if key else []
    requests = [
        "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body
        for body in bodies
    ]
    tally, begin = Tally(), time.perf_counter()
    end = begin + seconds
    sent = 0

    async def turn() -> tuple[float, bytes] | None:
        """Wait until a request is due; give when, and the request. None: there is none any more."""
        nonlocal sent
        moment = time.perf_counter() if rate is None else begin + sent / rate
        if max(moment, time.perf_counter()) >= end:
            return None
        number, sent = sent, sent + 1
        if (early := moment - time.perf_counter()) > 0.0:
            await asyncio.sleep(early)
        return moment, requests[number % len(requests)]

    async def connection() -> None:
        wanted = await turn()
        while wanted is not None:
            try:
                reader, writer = await asyncio.open_connection(
                    parts.hostname, port, ssl=is_secure or None
                )
            except OSError:
                tally.status["no connection"] += 1
                await asyncio.sleep(0.1)
                wanted = await turn()
                continue
            try:
                stays_open = True
                while wanted is not None and stays_open:
                    moment, request = wanted
                    writer.write(request)
                    status, version, body, stays_open = await _read_answer(reader)
                    tally.note(time.perf_counter() - moment, status, version, body)
                    wanted = await turn()
            except (OSError, asyncio.IncompleteReadError):
                tally.status["cut off"] += 1
                wanted = await turn()
            finally:
                writer.close()

    await asyncio.gather(*(connection() for _ in range(connections)))
    late = 0 if rate is None else math.ceil(rate * seconds) - sent
    if late > 0:
        tally.status["not sent"] = late
    return tally


async def _read_answer(reader: asyncio.StreamReader) -> tuple[str, str, bytes, bool]:
    """Read one answer whole: status, version, body, and whether the connection stays open."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])
    }
    body = b""
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readuntil(b"\r\n")
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    stays_open = headers.get("connection", "").lower() != "close"
    return head[0].split(" ")[1], headers.get("x-model-version", ""), body, stays_open


def summarise(tally: Tally, seconds: float) -> dict[str, object]:
    """Give requests per second and percentiles; `errors` counts all but status 200.

    Percentiles are of all answers; those named `good` of what was answered 200.
    """
    summary: dict[str, object] = {
        "requests": len(tally.seconds),
        "errors": sum(tally.status.values()) - tally.status["200"],
        "status": dict(tally.status),
        "versions": dict(tally.versions),
        "requests_per_s": tally.status["200"] / seconds,
    }
    for prefix, values in (("", tally.seconds), ("good_", tally.good)):
        ordered = sorted(values)
        for percent in _PERCENTS if ordered else ():
            place = min(len(ordered) - 1, int(len(ordered) * percent / 100.0))
            summary[f"{prefix}p{percent:g}_ms"] = ordered[place] * 1000
    return summary


def read_bodies(options: argparse.Namespace) -> list[bytes]:
    """Give the bodies that the command line asks for."""
    bodies = [body.encode() for body in options.body or []]
    if options.bodies is not None:
        bodies += options.bodies.read_bytes().splitlines()
    if options.users is not None:
        import pyarrow.parquet as pq

        users = pq.read_table(options.users, columns=["user_id"]).column("user_id").to_pylist()
        bodies += [json.dumps({"user_id": user, "k": options.k}).encode() for user in users]
    return bodies or [b"{}"]


def main() -> int:
    """Load the endpoint; exit code 1 if anything but 200 came back."""
    text, _, more = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=text, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", required=True, help="the route, such as .../v1/recommend")
    parser.add_argument("--body", action="append", help="a JSON body; may be repeated")
    parser.add_argument("--bodies", type=Path, help="a file with one JSON body a line")
    parser.add_argument(
        "--users", type=Path, metavar="PARQUET", help="users.parquet of a dataset: one body a user"
    )
    parser.add_argument("--k", type=int, default=10, help="items wanted for each of --users")
    parser.add_argument("--connections", type=int, default=8, help="with --rate: at most")
    parser.add_argument("--rate", type=float, metavar="R", help="requests due in a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    if options.connections < 1 or options.seconds <= 0.0 or (options.rate or 1.0) <= 0.0:
        parser.error("--connections, --seconds and --rate must be above 0")
    bodies = read_bodies(options)
    begin = time.perf_counter()
    tally = asyncio.run(
        load(
            options.url,
            bodies,
            connections=options.connections,
            seconds=options.seconds,
            rate=options.rate,
            key=os.environ.get("MTREC_API_KEY"),
        )
    )
    summary = summarise(tally, time.perf_counter() - begin)
    print(json.dumps(summary))
    return 1 if summary["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
