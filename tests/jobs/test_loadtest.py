"""The load generator against a server whose answers and pace are known."""

import argparse
import asyncio
import json
import statistics
import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

from loadtest import Tally, load, read_bodies, summarise


class Server:
    """Answer each request with the next of some canned answers; remember the requests."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = answers
        self.seen: list[tuple[str, bytes]] = []
        self.connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                size = int(head.lower().partition("content-length: ")[2].split("\r\n")[0])
                self.seen.append((head, await reader.readexactly(size)))
                writer.write(self.answers[len(self.seen) % len(self.answers)])
                await asyncio.sleep(0.01)
        except asyncio.IncompleteReadError:
            writer.close()


async def run(server: Server, path: str = "/v1/recommend", **options: object) -> Tally:
    listening = await asyncio.start_server(server, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening:
        return await load(
            f"http://127.0.0.1:{port}{path}",
            [b'{"user_id": "1"}', b'{"user_id": "2"}'],
            **{"connections": 2, "seconds": 0.3, **options},  # type: ignore[arg-type]  # tests' own
        )


PLAIN = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n3\r\nabc\r\n0\r\n\r\n"
BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nretry-after: 1\r\n\r\n"
LAST = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def test_https_is_spoken_encrypted_and_the_query_is_sent() -> None:
    """The key must not be sent in the clear."""
    heard: list[bytes] = []

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.read(1000))
        writer.close()

    async def ask() -> Tally:
        listening = await asyncio.start_server(listen, "127.0.0.1", 0)
        port = listening.sockets[0].getsockname()[1]
        async with listening:
            url = f"https://127.0.0.1:{port}/v1/recommend"
            return await load(url, [b"{}"], connections=1, seconds=0.2, key="secret")

    tally = asyncio.run(ask())
    assert set(tally.status) == {"no connection"}
    assert heard and not any(b"secret" in text for text in heard)

    server = Server(PLAIN)
    asyncio.run(run(server, path="/v1/recommend?tenant=a"))
    assert server.seen[0][0].startswith("POST /v1/recommend?tenant=a HTTP/1.1")


def test_every_answer_is_counted_and_bodies_go_round_on_open_connections() -> None:
    server = Server(PLAIN, CHUNKED)
    tally = asyncio.run(run(server, key="secret"))

    assert tally.status == Counter({"200": len(server.seen)})
    assert len(tally.seconds) == len(server.seen) >= 20
    assert server.connections == 2
    assert {body for _, body in server.seen} == {b'{"user_id": "1"}', b'{"user_id": "2"}'}
    assert all("Authorization: Bearer secret\r\n" in head for head, _ in server.seen)


def test_other_answers_than_200_are_errors() -> None:
    tally = asyncio.run(run(Server(PLAIN, BUSY)))
    summary = summarise(tally, 0.3)

    assert summary["errors"] == tally.status["503"] > 0
    assert summary["requests_per_s"] == pytest.approx(tally.status["200"] / 0.3)


def test_a_connection_that_the_server_closes_is_opened_again() -> None:
    server = Server(LAST)
    tally = asyncio.run(run(server))

    assert tally.status == Counter({"200": len(server.seen)})
    assert server.connections >= len(server.seen) > 2


def test_at_a_rate_requests_come_when_they_are_due_and_waiting_counts() -> None:
    # Ten milliseconds an answer on one connection: 100 a second at most, 300 are due.
    slow = Server(PLAIN)
    tally = asyncio.run(run(slow, rate=300.0, connections=1))
    easy = asyncio.run(run(Server(PLAIN), rate=50.0))

    assert tally.status["200"] + tally.status["not sent"] == pytest.approx(90, abs=2)
    assert tally.status["not sent"] > 30
    # The last ones were due long before they could be sent.
    assert tally.seconds[-1] > 0.1
    assert easy.status == Counter({"200": 15})
    assert statistics.median(easy.seconds) < 0.5 * tally.seconds[-1]


def test_versions_are_counted_and_an_answer_that_mixes_two_is_told() -> None:
    def answer(header: str, body: str) -> bytes:
        text = f'{{"model_version": "{body}"}}'
        head = f"HTTP/1.1 200 OK\r\nx-model-version: {header}\r\n"
        return f"{head}content-length: {len(text)}\r\n\r\n{text}".encode()

    tally = asyncio.run(run(Server(answer("a", "a"), answer("b", "b"), answer("a", "b"))))
    summary = summarise(tally, 0.3)

    assert set(tally.versions) == {"a", "b"}
    assert summary["errors"] == tally.status["mixed"] > 0
    assert len(tally.good) == tally.status["200"]


def test_bodies_come_from_a_data_sets_users(tmp_path: Path) -> None:
    pq.write_table(pa.table({"user_id": ["7", "8"]}), tmp_path / "users.parquet")
    options = argparse.Namespace(body=None, bodies=None, users=tmp_path / "users.parquet", k=3)

    bodies = [json.loads(body) for body in read_bodies(options)]
    assert bodies == [{"user_id": "7", "k": 3}, {"user_id": "8", "k": 3}]
    options.users = None
    assert read_bodies(options) == [b"{}"]


def test_nobody_listening_is_told_and_ends_in_time() -> None:
    tally = asyncio.run(load("http://127.0.0.1:9/", [b"{}"], connections=1, seconds=0.2))

    assert set(tally.status) == {"no connection"}
    assert summarise(tally, 0.2)["requests"] == 0


def test_percentiles_are_of_the_sorted_times() -> None:
    seconds = [number / 1000 for number in range(100, 0, -1)]
    summary = summarise(Tally(seconds, Counter({"200": 100})), 10.0)

    # 1..100 ms: position 50 of the sorted times is 51 ms, position 99 is 100 ms.
    assert (summary["p50_ms"], summary["p99_ms"]) == (51.0, 100.0)
    assert summary["requests_per_s"] == 10.0
    assert json.dumps(summary)
