"""Load an HTTP endpoint from a few connections that are kept open, and print what it did as JSON.

    python jobs/loadtest.py --url http://127.0.0.1:8000/v1/recommend --body '{"user_id": "1"}'

Each connection sends its next request when the answer to the last one is there. The client speaks
just enough HTTP/1.1, so that on a small machine it does not take the CPU that the server needs. It
stops by itself after `--seconds`.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit


@dataclass(slots=True)
class Tally:
    """What the connections saw: seconds of each answered request, and how often each status."""

    seconds: list[float] = field(default_factory=list)
    status: Counter[str] = field(default_factory=Counter)


async def load(
    url: str, bodies: list[bytes], *, connections: int, seconds: float, key: str | None = None
) -> Tally:
    """Send the bodies round and round as POST requests for a while.

    Args:
        url: the route.
        bodies: JSON bodies, used in turn.
        connections: connections kept open at a time.
        seconds: no request starts later than this.
        key: sent as `Authorization: Bearer KEY`.
    """
    parts = urlsplit(url)
    assert parts.hostname is not None
    path = parts.path or "/"
    lines = [f"POST {path} HTTP/1.1", f"Host: {parts.netloc}", "Content-Type: application/json"]
    lines += [f"Authorization: Bearer {key}"] if key else []
    requests = [
        "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body
        for body in bodies
    ]
    tally, end = Tally(), time.perf_counter() + seconds

    async def connection(number: int) -> None:
        position = number
        while time.perf_counter() < end:
            try:
                reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
            except OSError:
                tally.status["no connection"] += 1
                await asyncio.sleep(0.1)
                continue
            try:
                while time.perf_counter() < end:
                    start = time.perf_counter()
                    writer.write(requests[position % len(requests)])
                    status, stays_open = await _read_answer(reader)
                    tally.seconds.append(time.perf_counter() - start)
                    tally.status[status] += 1
                    position += connections
                    if not stays_open:
                        break
            except (OSError, asyncio.IncompleteReadError):
                tally.status["cut off"] += 1
            finally:
                writer.close()

    await asyncio.gather(*(connection(number) for number in range(connections)))
    return tally


async def _read_answer(reader: asyncio.StreamReader) -> tuple[str, bool]:
    """Read one answer whole; give its status and whether the connection stays open."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {
        name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])
    }
    if headers.get("transfer-encoding", "").lower() == "chunked":
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            await reader.readexactly(size + 2)
        await reader.readuntil(b"\r\n")
    else:
        await reader.readexactly(int(headers.get("content-length", "0")))
    return head[0].split(" ")[1], headers.get("connection", "").lower() != "close"


def summarise(tally: Tally, seconds: float) -> dict[str, object]:
    """Give requests per second and percentiles; `errors` counts all but status 200."""
    answered = sorted(tally.seconds)
    summary: dict[str, object] = {
        "requests": len(answered),
        "errors": sum(tally.status.values()) - tally.status["200"],
        "status": dict(tally.status),
        "requests_per_s": tally.status["200"] / seconds,
    }
    for percent in (50, 95, 99) if answered else ():
        place = min(len(answered) - 1, len(answered) * percent // 100)
        summary[f"p{percent}_ms"] = answered[place] * 1000
    return summary


def main() -> int:
    """Load the endpoint; exit code 1 if anything but 200 came back."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--url", required=True, help="the route, such as .../v1/recommend")
    parser.add_argument("--body", action="append", help="a JSON body; may be repeated")
    parser.add_argument("--bodies", type=Path, help="a file with one JSON body a line")
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    bodies = [body.encode() for body in options.body or []]
    if options.bodies is not None:
        bodies += options.bodies.read_bytes().splitlines()
    begin = time.perf_counter()
    tally = asyncio.run(
        load(
            options.url,
            bodies or [b"{}"],
            connections=options.connections,
            seconds=options.seconds,
            key=os.environ.get("MTREC_API_KEY"),
        )
    )
    summary = summarise(tally, time.perf_counter() - begin)
    print(json.dumps(summary))
    return 1 if summary["errors"] else 0


if __name__ == "__main__":
    sys.exit(main())
