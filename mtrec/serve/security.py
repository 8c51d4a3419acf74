"""What every request passes before a route sees it: request id, API key, size limit; error answers.

One plain ASGI layer. The key is given to it by the shell that starts the server, never read on
import; it is compared in constant time and never logged. No answer holds a traceback or a path.
"""

import hashlib
import hmac
import logging
import os
import re
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import to_json
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mtrec.errors import ConfigError, RequestError
from mtrec.runlog import event
from mtrec.serve.host import Unwatched, Watch

KEY_VARIABLE = "MTREC_API_KEY"
OPEN_PATHS = frozenset({"/", "/healthz", "/readyz"})
RETRY_AFTER_S = 1

_log = logging.getLogger("mtrec.serve")
_ROUTE = re.compile(
    r"/v1/(recommend|recommend/batch|score|similar-items|friends|items|users|model)"
    r"|/|/healthz|/readyz|/openapi\.json"
)
ABANDONED = 499
"""What is counted where the caller went away before the answer, as web servers do."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def read_key(environment: Mapping[str, str] = os.environ) -> str | None:
    """Give the key that `MTREC_API_KEY` sets, without white space around it; None: it is not set.

    Raises:
        ConfigError: it is blank, or has characters that a header cannot carry.
    """
    raw = environment.get(KEY_VARIABLE)
    if not raw:
        return None
    key = raw.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"{KEY_VARIABLE} is blank or has characters that no header can carry\n"
            "set it to printable ASCII, such as `openssl rand -hex 32` gives"
        )
    return key


class ApiKey:
    """Check bearer keys against one secret, of which only the SHA-256 is kept."""

    def __init__(self, key: str) -> None:
        self._digest = hashlib.sha256(key.encode()).digest()

    def admits(self, authorization: str | None) -> bool:
        """Tell whether a header `Authorization: Bearer KEY` carries the key.

        The time taken depends neither on the key nor on where a wrong one differs.
        """
        scheme, _, given = (authorization or "").partition(" ")
        digest = hashlib.sha256(given.strip().encode("utf-8", "surrogateescape")).digest()
        return hmac.compare_digest(digest, self._digest) and scheme.lower() == "bearer"


class Guard:
    """Admit requests: give each an id, ask for the key, turn what fails into an error answer.

    Args:
        app: the application behind.
        api_key: the key that routes outside `OPEN_PATHS` want; None leaves them open.
        model_version: tells the version that answers, for the header `x-model-version`.
        watch: is told of every request.
        access_log: write a log line for every request.
        names_request: put the request's id into the answer.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        api_key: ApiKey | None,
        model_version: Callable[[], str | None],
        watch: Watch | None = None,
        access_log: bool = False,
        names_request: bool = True,
    ) -> None:
        self._app = app
        self._api_key = api_key
        self._model_version = model_version
        self._watch = watch or Unwatched()
        self._access_log = access_log
        self._names_request = names_request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = _request_id(headers.get("x-request-id"))
        started, begin = 0, time.perf_counter()

        async def send_marked(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = message["status"]
                marked = MutableHeaders(scope=message)
                if self._names_request:
                    marked["x-request-id"] = request_id
                marked["x-content-type-options"] = "nosniff"
                version = self._model_version()
                if version is not None:
                    marked.setdefault("x-model-version", version)
            await send(message)

        try:
            if self._is_locked(scope, headers):
                raise RequestError(
                    "the API key is missing or wrong; send Authorization: Bearer KEY",
                    code="unauthorized",
                    status=401,
                )
            await self._app(scope, receive, send_marked)
        except ClientDisconnect:
            event(_log, "request.abandoned", id=request_id)
        except RequestError as error:
            await error_answer(error)(scope, receive, send_marked)
        except Exception:
            # The caller learns the id only; the traceback stays in the log.
            _log.exception("request.failed id=%s path=%s", request_id, scope["path"])
            if started:
                raise
            failure = f"the server failed; its log has the details under request id {request_id}"
            await answer(_error("internal", failure), 500)(scope, receive, send_marked)
        finally:
            seconds, status = time.perf_counter() - begin, started or ABANDONED
            self._watch.request(_route(scope), status, seconds)
            if self._access_log:
                milliseconds = round(1000.0 * seconds, 1)
                event(
                    _log, "request", id=request_id, route=_route(scope), status=status,
                    ms=milliseconds,
                )  # fmt: skip

    def _is_locked(self, scope: Scope, headers: Headers) -> bool:
        return (
            self._api_key is not None
            and _path(scope) not in OPEN_PATHS
            and not self._api_key.admits(headers.get("authorization"))
        )


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Read a request's body, but never more than `max_bytes` of it.

    Raises:
        RequestError: 413.
    """
    announced = request.headers.get("content-length", "")
    size = int(announced) if re.fullmatch("[0-9]{1,20}", announced) else 0
    chunks: list[bytes] = []
    received = 0
    if size <= max_bytes:
        async for chunk in request.stream():
            received += len(chunk)
            if received > max_bytes:
                break
            chunks.append(chunk)
        else:
            return b"".join(chunks)
    raise RequestError(
        f"the body is larger than {max_bytes} bytes; send less, or raise serve.max_body_bytes",
        code="body_too_large",
        status=413,
    )


def answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Give `value` as a JSON answer; UTF-8, not-a-number becomes null."""
    return Response(
        to_json(value, inf_nan_mode="null"), status, headers, media_type="application/json"
    )


def error_answer(error: RequestError) -> Response:
    """Give an error in the one shape that errors have; 503 says when to come again."""
    headers = {}
    if error.status == 503:
        headers["retry-after"] = str(RETRY_AFTER_S)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return answer(_error(error.code, str(error), error.field), error.status, headers)


def log_start(*, locked: bool) -> None:
    """Say in the log whether the routes want a key, never which."""
    event(_log, "serve.security", api_key="required" if locked else "none")


def _error(code: str, message: str, field: str | None = None) -> dict[str, Any]:
    body = {"code": code, "message": message}
    if field is not None:
        body["field"] = field
    return {"error": body}


def _path(scope: Scope) -> str:
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path or "/"


def _route(scope: Scope) -> str:
    """Name the route in few words: what is no route of ours shares one name."""
    path = _path(scope)
    return path if _ROUTE.fullmatch(path) else "other"


def _request_id(given: str | None) -> str:
    """Take the caller's id if it is harmless in a header and a log line, else make one."""
    return given if given is not None and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
