"""The door in front of Ray Serve, in process: who is let in, who is refused, and when it opens."""

import asyncio
import json

import httpx2 as httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from mtrec.serve.door import Door, middlewares, variables


class Proxy:
    """Answers once it is told to."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.inside += 1
        await Request(scope, receive).body()
        await self.go.wait()
        await Response("ok")(scope, receive, send)


@pytest.mark.anyio
async def test_more_than_the_limit_are_refused_until_one_has_left() -> None:
    proxy = Proxy()
    transport = httpx.ASGITransport(Door(proxy, limit=2))
    async with (
        asyncio.timeout(20.0),
        httpx.AsyncClient(transport=transport, base_url="http://here") as client,
    ):
        held = [asyncio.create_task(client.post("/v1/recommend", json={})) for _ in range(2)]
        while proxy.inside < 2:
            await asyncio.sleep(0)

        refused = await client.post("/v1/recommend", json={})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert json.loads(refused.text)["error"]["code"] == "overloaded"
        assert proxy.inside == 2
        watched = [
            asyncio.create_task(client.get(path)) for path in ("/healthz", "/readyz", "/-/routes")
        ]
        while proxy.inside < 5:
            await asyncio.sleep(0)

        proxy.go.set()
        assert [(await answer).status_code for answer in watched] == [200, 200, 200]
        assert [(await answer).status_code for answer in held] == [200, 200]
        assert (await client.post("/v1/recommend", json={})).status_code == 200


@pytest.mark.anyio
async def test_a_burst_may_wait_but_after_a_refusal_only_once_it_was_calm_for_a_while() -> None:
    proxy, now = Proxy(), [100.0]
    transport = httpx.ASGITransport(Door(proxy, limit=1, burst=2, clock=lambda: now[0]))
    async with (
        asyncio.timeout(20.0),
        httpx.AsyncClient(transport=transport, base_url="http://here") as client,
    ):

        async def statuses(count: int, expected_inside: int) -> list[int]:
            """Ask so often at once; answer whoever came in when all others are refused."""
            proxy.inside = 0
            proxy.go.clear()
            asked = [asyncio.create_task(client.get("/v1/model")) for _ in range(count)]
            while proxy.inside < expected_inside or sum(t.done() for t in asked) < (
                count - expected_inside
            ):
                await asyncio.sleep(0)
            proxy.go.set()
            return sorted([(await answer).status_code for answer in asked])

        assert await statuses(3, 3) == [200, 200, 200]
        assert await statuses(5, 3) == [200, 200, 200, 503, 503]
        now[0] += 0.2
        assert await statuses(3, 1) == [200, 503, 503]
        now[0] += 0.2  # since the last refusal, which is what counts
        assert await statuses(1, 1) == [200]
        assert await statuses(2, 1) == [200, 503]
        now[0] += 0.3
        assert await statuses(4, 3) == [200, 200, 200, 503]


@pytest.mark.anyio
async def test_a_request_that_fails_leaves_its_place() -> None:
    async def fail(scope: Scope, receive: Receive, send: Send) -> None:
        raise ConnectionError

    transport = httpx.ASGITransport(Door(fail, limit=1), raise_app_exceptions=True)
    async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
        for _ in range(3):
            with pytest.raises(ConnectionError):
                await client.get("/v1/model")


def test_the_variables_lead_ray_to_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve._private.utils import call_function_from_import_path

    environment = variables(7, burst=3)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    (middleware,) = call_function_from_import_path(
        environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    )
    assert (middleware.cls, middleware.kwargs) == (Door, {"limit": 7, "burst": 3})
    assert middlewares()[0].kwargs == {"limit": 7, "burst": 3}
