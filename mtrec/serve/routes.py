"""The routes, without Ray: bodies in, answers of the recommender that a `ModelHost` holds out.

`create_fastapi` gives the ASGI application that `app.py` puts on Ray Serve and that tests call in
process.
"""

import base64
import hashlib
import importlib.resources
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from mtrec.errors import RequestError
from mtrec.query import check_keys
from mtrec.serve import openapi, schemas
from mtrec.serve.host import ModelHost, Servable
from mtrec.serve.security import ApiKey, Guard, answer, error_answer, log_start, read_body

MAX_LISTED = 200


@dataclass(frozen=True, slots=True)
class Limits:
    """How large one request may be; `Recommender` itself bounds k and histories.

    Attributes:
        body_bytes: size of the body.
        batch: requests in one batch.
        items: items that are scored at once.
    """

    body_bytes: int
    batch: int
    items: int


def create_fastapi(
    host: ModelHost,
    limits: Limits,
    *,
    api_key: str | None = None,
    access_log: bool = False,
    names_request: bool = True,
) -> FastAPI:
    """Build the application around the recommender that `host` holds.

    Args:
        host: asked anew for every request.
        limits: of bodies, batches, histories and lists.
        api_key: with one, every route but the page and the health checks wants it.
        access_log: write a log line for every request.
        names_request: put the request's id into the answer; Ray Serve does so itself.
    """
    app = FastAPI(
        title="mtrec",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        # A redirect would send the caller to the host that the request names.
        redirect_slashes=False,
    )
    app.add_middleware(
        Guard,
        api_key=ApiKey(api_key) if api_key else None,
        model_version=lambda: host.current.version if host.current else None,
        watch=host.watch,
        access_log=access_log,
        names_request=names_request,
    )
    app.add_exception_handler(RequestError, _request_error)
    app.add_exception_handler(HTTPException, _http_error)
    log_start(locked=bool(api_key))
    _add_model_routes(app, host, limits)
    _add_reading_routes(app, host)
    _add_open_routes(app, host)

    @app.get("/openapi.json", include_in_schema=False)
    async def openapi_document() -> Response:
        return answer(app.openapi())

    document = openapi.describe(app)
    app.openapi = lambda: document  # type: ignore[method-assign]  # FastAPI's documented hook
    return app


def _add_model_routes(app: FastAPI, host: ModelHost, limits: Limits) -> None:
    """Add the routes that ask the model; they read the body themselves."""

    async def opened(request: Request) -> dict[str, object]:
        return schemas.open_body(await read_body(request, limits.body_bytes))

    async def ask(work: Callable[[Servable], dict[str, Any]]) -> Response:
        return _answer(*await host.ask(work))

    @app.post("/v1/recommend", **openapi.RECOMMEND)
    async def recommend(request: Request) -> Response:
        found = await host.recommend(await opened(request))
        return _answer(found, found["model_version"])

    @app.post("/v1/recommend/batch", **openapi.BATCH)
    async def recommend_batch(request: Request) -> Response:
        requests = schemas.open_batch(await opened(request), limits.batch)

        def work(model: Servable) -> dict[str, Any]:
            results = model.recommend(requests)
            host.watch.lists(results)
            return {"results": results}

        return await ask(work)

    @app.post("/v1/score", **openapi.SCORE)
    async def score(request: Request) -> Response:
        user, item_ids = schemas.open_score(await opened(request), limits.items)

        def work(model: Servable) -> dict[str, object]:
            scores = model.score(user, item_ids)
            return {"user_id": user.get("user_id"), "scores": scores}

        return await ask(work)

    @app.post("/v1/similar-items", **openapi.SIMILAR)
    async def similar_items(request: Request) -> Response:
        wanted = schemas.open_similar(await opened(request))
        return await ask(lambda model: {"recommendations": model.similar_items(**wanted)})

    @app.post("/v1/friends", **openapi.FRIENDS)
    async def friends(request: Request) -> Response:
        user = await opened(request)
        k = user.pop("k", None)
        wanted: dict[str, Any] = {} if k is None else {"k": k}
        return await ask(lambda model: {"friends": model.friends(user, **wanted)})


def _add_reading_routes(app: FastAPI, host: ModelHost) -> None:
    """Add the routes that tell about the model, its items and its users."""

    @app.get("/v1/items", **openapi.ITEMS)
    async def items(request: Request) -> Response:
        check_keys(request.query_params, {"q", "id", "limit"}, "")
        query = request.query_params.get("q", "")[:200]
        ids = request.query_params.getlist("id")
        limit = _listed(request.query_params.get("limit"))
        if len(ids) > MAX_LISTED:
            raise RequestError(f"expected at most {MAX_LISTED} ids", field="id")
        if ids:
            return _answer(*await host.ask(lambda model: {"items": model.describe(ids)}))
        return _answer(*await host.ask(lambda model: {"items": model.find_items(query, limit)}))

    @app.get("/v1/users", **openapi.USERS)
    async def users(request: Request) -> Response:
        check_keys(request.query_params, {"q", "id", "limit"}, "")
        prefix = request.query_params.get("q", "")[:200]
        ids = request.query_params.getlist("id")
        limit = _listed(request.query_params.get("limit"))
        if len(ids) > 1:
            raise RequestError("expected one id", field="id")
        if ids:
            return _answer(*await host.ask(lambda model: model.user(ids[0], limit)))
        return _answer(*await host.ask(lambda model: {"users": model.find_users(prefix, limit)}))

    @app.get("/v1/model", **openapi.MODEL)
    async def model() -> Response:
        loaded = host.require()
        return answer(loaded.info, headers={"x-model-version": loaded.version})


def _add_open_routes(app: FastAPI, host: ModelHost) -> None:
    """Add the routes that never want a key."""
    page = importlib.resources.files("mtrec.serve").joinpath("page.html").read_text("utf-8")
    page_headers = {"content-security-policy": _policy(page), "referrer-policy": "no-referrer"}

    @app.get("/healthz", **openapi.HEALTH)
    async def healthz() -> Response:
        return answer({"status": "live"})

    @app.get("/readyz", **openapi.READY)
    async def readyz() -> Response:
        status = {"status": "ready", "model_version": host.require().version}
        if host.refused is not None:
            # The reason may name folders of this machine: it is in the log, not here.
            status["refused"] = "the last bundle offered was refused; the log tells why"
        return answer(status)

    @app.get("/", include_in_schema=False)
    async def show_page() -> Response:
        return Response(page, media_type="text/html", headers=page_headers)

    # Monitors and `curl -I` ask for the headers alone.
    for path, told in (("/healthz", healthz), ("/readyz", readyz), ("/", show_page)):
        app.head(path, include_in_schema=False)(told)


def _answer(value: dict[str, Any], version: str) -> Response:
    """Give an answer of the model's; body and header name the version that gave it."""
    value.setdefault("model_version", version)
    return answer(value, headers={"x-model-version": version})


async def _request_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_answer(error)


async def _http_error(_: Request, error: Exception) -> Response:
    """Give the framework's own refusals (no such route, wrong method) the shape of ours."""
    assert isinstance(error, HTTPException)
    code = {404: "no_such_route", 405: "wrong_method"}.get(error.status_code, "refused")
    response = error_answer(
        RequestError(
            f"{error.detail}; /openapi.json lists the routes", code=code, status=error.status_code
        )
    )
    response.headers.update(error.headers or {})
    return response


def _listed(given: str | None) -> int:
    if given is None:
        return 20
    if not re.fullmatch("[0-9]{1,4}", given) or not 1 <= int(given) <= MAX_LISTED:
        raise RequestError(
            f"limit: expected a number from 1 to {MAX_LISTED}, found {given[:20]!r}",
            field="limit",
        )
    return int(given)


def _policy(page: str) -> str:
    """Allow the page its own inline script and this server, nothing else."""
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    digests = [hashlib.sha256(script.encode()).digest() for script in scripts]
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
