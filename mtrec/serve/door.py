"""Refuse requests at once, in front of Ray Serve, where it has its hands full.

Ray's own refusals cost a process about as much as answers do. In front of its Python proxy, which
fell behind by 19 s under three times what it can do; in front of each replica behind HAProxy, which
answered 286 a second without it under such a load and 351 to 397 with it. Ray Serve puts this layer
into either process.
"""

import math
import os
import time
from collections.abc import Callable

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from mtrec.errors import RequestError
from mtrec.serve.security import error_answer

_CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
_LIMIT = "MTREC_DOOR_LIMIT"
_BURST = "MTREC_DOOR_BURST"
# Whoever watches the endpoint is told the truth however busy it is; Ray's own checks begin so.
_ALWAYS_OPEN = ("/healthz", "/readyz", "/-/")
_CALM_S = 0.25


class Door:
    """Let a number of requests in at a time, and answer the others 503 with `Retry-After`.

    A pause of the machine makes a burst, and a queue absorbs it. A queue that is always full
    absorbs nothing, it only makes every answer late by its length: from the first refusal on there
    is none, until a quarter of a second has gone by without another. Health checks always come in,
    and count as nobody.

    Args:
        app: what is behind.
        limit: requests inside at most, at any time.
        burst: how many more in calm times.
        clock: tells the time in seconds.
    """

    def __init__(
        self,
        app: ASGIApp,
        limit: int,
        burst: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app, self._limit, self._burst, self._clock = app, limit, burst, clock
        self._inside = 0
        self._refused_at = -math.inf
        self._full = error_answer(
            RequestError("the server has its hands full; try again", code="overloaded", status=503)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"].startswith(_ALWAYS_OPEN):
            await self._app(scope, receive, send)
        elif self._is_full():
            await self._full(scope, receive, send)
        else:
            self._inside += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._inside -= 1

    def _is_full(self) -> bool:
        now = self._clock()
        is_calm = now - self._refused_at >= _CALM_S
        if self._inside < self._limit + (self._burst if is_calm else 0):
            return False
        self._refused_at = now
        return True


def variables(limit: int, burst: int = 0) -> dict[str, str]:
    """Give the environment variables of a process of Ray Serve's that has the door."""
    called = f"{middlewares.__module__}.{middlewares.__name__}"
    return {_CALLBACK: called, _LIMIT: str(limit), _BURST: str(burst)}


def middlewares() -> list[Middleware]:
    """Give what Ray Serve puts around what takes requests in; called by Ray in that process."""
    limit, burst = int(os.environ[_LIMIT]), int(os.environ[_BURST])
    return [Middleware(Door, limit=limit, burst=burst)]
