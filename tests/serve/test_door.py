"""The door of the Python proxy, in process: who is let in, who is refused, and when it opens."""

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

    environment = variables(7)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    (middleware,) = call_function_from_import_path(
        environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    )
    assert (middleware.cls, middleware.kwargs) == (Door, {"limit": 7})
    assert middlewares()[0].kwargs == {"limit": 7}
