"""The routes, without Ray: bodies in, `Recommender` answers out, and the bundle that answers.

`create_fastapi` gives the ASGI application that `app.py` puts on Ray Serve and that tests call in
process. `ModelHost` holds the one recommender in use; a new bundle is loaded aside, tested and then
swapped in by one assignment, so that no answer mixes two versions. Blocking work runs on one thread
of its own: the event loop stays free for health checks.
"""

import asyncio
import base64
import hashlib
import importlib.resources
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from mtrec.errors import ArtifactError, MtrecError, RequestError
from mtrec.runlog import event
from mtrec.serve import openapi, schemas
from mtrec.serve.security import ApiKey, Guard, answer, error_answer, log_start, read_body

MAX_ITEMS_LISTED = 200

_log = logging.getLogger("mtrec.serve")


class Servable(Protocol):
    """What the routes need of a recommender; `mtrec.recommender.Recommender` has it."""

    def recommend(self, requests: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Answer requests in their order."""

    def score(
        self, request: Mapping[str, Any], item_ids: Sequence[str | int]
    ) -> list[dict[str, Any]]:
        """Give one entry per item."""

    def similar_items(
        self, item_id: str | int | None = None, text: str | None = None, k: int = 10
    ) -> list[dict[str, Any]]:
        """List the items most like one item or text."""

    def friends(self, request: Mapping[str, Any], k: int = 10) -> list[dict[str, Any]]:
        """List likely friends, or refuse with 404 where there is no social task."""

    def find_items(self, query: str, limit: int) -> list[dict[str, Any]]:
        """List items whose id or text columns hold the query."""

    def describe(self, item_ids: Sequence[str | int]) -> list[dict[str, Any]]:
        """Give the columns of items; unknown ones are left out."""

    def info(self) -> dict[str, Any]:
        """Tell version, tasks, metrics, counts."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A recommender that passed its self-test, and what it says of itself."""

    recommender: Servable
    version: str
    info: dict[str, object]


class ModelHost:
    """Hold the recommender that answers, and exchange it for a newer one.

    Args:
        load: opens a bundle; raises `MtrecError` if it is missing or damaged.

    Attributes:
        current: what answers; None until the first `open`.
        refused: why the last swap was not made; None if it was.
    """

    def __init__(self, load: Callable[[str], Servable]) -> None:
        self._load = load
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="recommender")
        self.current: Loaded | None = None
        self.refused: str | None = None

    def open(self, path: str) -> None:
        """Load a bundle, test it and let it answer from now on.

        Raises:
            MtrecError: it cannot be loaded or fails its self-test; what answered before stays.
        """
        loaded = self_test(self._load(path))
        previous, self.current, self.refused = self.current, loaded, None
        replaced = previous.version if previous else None
        event(_log, "bundle.serving", version=loaded.version, replaced=replaced)

    async def swap(self, path: str) -> None:
        """Open a bundle beside the one that answers; a bad one is refused and remembered.

        Raises:
            MtrecError: it is bad and there is none yet.
        """
        try:
            await asyncio.to_thread(self.open, path)
        except MtrecError as error:
            if self.current is None:
                raise
            self.refused = str(error)
            _log.error("bundle.refused path=%s serving=%s: %s", path, self.current.version, error)

    def require(self) -> Loaded:
        """Give what answers.

        Raises:
            RequestError: 503, nothing is loaded yet.
        """
        if self.current is None:
            raise RequestError("no bundle is loaded yet", code="not_ready", status=503)
        return self.current

    async def ask(self, work: Callable[[Servable], dict[str, object]]) -> Response:
        """Run `work` on the model's thread; the answer names the version that gave it."""
        loaded = self.require()
        loop = asyncio.get_running_loop()
        value = await loop.run_in_executor(self._executor, work, loaded.recommender)
        value.setdefault("model_version", loaded.version)
        return answer(value, headers={"x-model-version": loaded.version})

    def close(self) -> None:
        """Let the model's thread end."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def self_test(recommender: Servable) -> Loaded:
    """Ask a recommender for what every bundle can answer, and look at the answer.

    Raises:
        ArtifactError: there is no item, or the list is empty, unsorted or not within [0, 1].
    """
    info = recommender.info()
    version = str(info["model_version"])
    items = recommender.find_items("", 1)
    if not items:
        raise ArtifactError(f"bundle {version} holds no items; train it on data that has some")
    golden = {"history": [{"item_id": items[0]["item_id"]}], "include_seen": True, "k": 3}
    try:
        listed = recommender.recommend([golden])[0]["recommendations"]
    except RequestError as error:
        raise ArtifactError(f"bundle {version} refuses its self-test: {error}") from error
    scores = [entry["score"] for entry in listed]
    # A NaN is in no range.
    if (
        not scores
        or scores != sorted(scores, reverse=True)
        or not all(0.0 <= score <= 1.0 for score in scores)
    ):
        raise ArtifactError(
            f"bundle {version} fails its self-test: expected a list with falling scores in "
            f"[0, 1], found {scores}\ntrain again, or serve an earlier version"
        )
    return Loaded(recommender, version, info)


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


def create_fastapi(host: ModelHost, limits: Limits, *, api_key: str | None = None) -> FastAPI:
    """Build the application around the recommender that `host` holds.

    Args:
        host: asked anew for every request.
        limits: of bodies, batches, histories and lists.
        api_key: with one, every route but the page and the health checks wants it.
    """
    app = FastAPI(title="mtrec", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(
        Guard,
        api_key=ApiKey(api_key) if api_key else None,
        model_version=lambda: host.current.version if host.current else None,
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

    @app.post("/v1/recommend", **openapi.RECOMMEND)
    async def recommend(request: Request) -> Response:
        body = await opened(request)
        return await host.ask(lambda model: model.recommend([body])[0])

    @app.post("/v1/recommend/batch", **openapi.BATCH)
    async def recommend_batch(request: Request) -> Response:
        requests = schemas.open_batch(await opened(request), limits.batch)
        return await host.ask(lambda model: {"results": model.recommend(requests)})

    @app.post("/v1/score", **openapi.SCORE)
    async def score(request: Request) -> Response:
        user, item_ids = schemas.open_score(await opened(request), limits.items)

        def work(model: Servable) -> dict[str, object]:
            scores = model.score(user, item_ids)
            return {"user_id": user.get("user_id"), "scores": scores}

        return await host.ask(work)

    @app.post("/v1/similar-items", **openapi.SIMILAR)
    async def similar_items(request: Request) -> Response:
        wanted = schemas.open_similar(await opened(request))
        return await host.ask(lambda model: {"recommendations": model.similar_items(**wanted)})

    @app.post("/v1/friends", **openapi.FRIENDS)
    async def friends(request: Request) -> Response:
        user = await opened(request)
        k = user.pop("k", None)
        wanted: dict[str, Any] = {} if k is None else {"k": k}
        return await host.ask(lambda model: {"friends": model.friends(user, **wanted)})


def _add_reading_routes(app: FastAPI, host: ModelHost) -> None:
    """Add the routes that tell about the model and its items."""

    @app.get("/v1/items", **openapi.ITEMS)
    async def items(request: Request) -> Response:
        query = request.query_params.get("q", "")[:200]
        ids = request.query_params.getlist("id")
        limit = _listed(request.query_params.get("limit"))
        if len(ids) > MAX_ITEMS_LISTED:
            raise RequestError(f"expected at most {MAX_ITEMS_LISTED} ids", field="id")
        if ids:
            return await host.ask(lambda model: {"items": model.describe(ids)})
        return await host.ask(lambda model: {"items": model.find_items(query, limit)})

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
    if not re.fullmatch("[0-9]{1,4}", given) or not 1 <= int(given) <= MAX_ITEMS_LISTED:
        raise RequestError(
            f"limit: expected a number from 1 to {MAX_ITEMS_LISTED}, found {given[:20]!r}",
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
