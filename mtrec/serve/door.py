"""Refuse requests at once where Ray Serve's Python proxy has its hands full.

The proxy is one Python process and takes milliseconds for each request, also for one that it will
refuse because a deployment's queue is full: under three times what it can do it fell behind by 19 s
and answered a quarter of what it otherwise does. This layer stands in front of it, in its process.
"""

import os

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from mtrec.errors import RequestError
from mtrec.serve.security import error_answer

_CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
_LIMIT = "MTREC_PROXY_MAX_REQUESTS"
# Whoever watches the endpoint is told the truth however busy it is; Ray's own checks begin so.
_ALWAYS_OPEN = ("/healthz", "/readyz", "/-/")


class Door:
    """Let a number of requests in at a time, and answer the others 503 with `Retry-After`.

    Health checks always come in, and count as nobody.

    Args:
        app: the proxy.
        limit: requests inside at most.
    """

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit
        self._inside = 0
        self._full = error_answer(
            RequestError("the server has its hands full; try again", code="overloaded", status=503)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or scope["path"].startswith(_ALWAYS_OPEN):
            await self._app(scope, receive, send)
        elif self._inside >= self._limit:
            await self._full(scope, receive, send)
        else:
            self._inside += 1
            try:
                await self._app(scope, receive, send)
            finally:
                self._inside -= 1


def variables(limit: int) -> dict[str, str]:
    """Give the environment variables of a Python proxy that has the door."""
    return {_CALLBACK: f"{middlewares.__module__}.{middlewares.__name__}", _LIMIT: str(limit)}


def middlewares() -> list[Middleware]:
    """Give what Ray Serve puts around its Python proxy; called by Ray in the proxy's process."""
    return [Middleware(Door, limit=int(os.environ[_LIMIT]))]
