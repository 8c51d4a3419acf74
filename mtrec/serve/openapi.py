"""What `/openapi.json` says of each route: shapes, examples, errors, key.

The shapes are those of `schemas`, so the document cannot promise another body than the one that is
checked. Only text and references here; no behaviour.
"""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from mtrec import __version__
from mtrec.serve import schemas

_ERRORS = {
    400: "The body is not JSON.",
    401: "The API key is missing or wrong.",
    404: "Unknown item, or nothing that answers this.",
    413: "The body is over the limit.",
    422: "A field is wrong; `field` says which.",
    503: "Overloaded or not ready; come again after `Retry-After` seconds.",
}

_RECOMMENDED: dict[str, Any] = {
    "user_id": 196,
    "model_version": "20260101-120000-ab12cd",
    "cold_start": False,
    "recommendations": [
        {"item_id": 318, "score": 0.93, "tasks": {"next": 1.0, "rating": 4.6, "like": 0.91}},
        {"item_id": 64, "score": 0.88, "tasks": {"next": 0.8, "rating": 4.5, "like": 0.89}},
    ],
}
_HISTORY = [{"item_id": 50, "rating": 5}, {"item_id": 181, "rating": 4}]
_LIMIT = {
    "name": "limit",
    "in": "query",
    "schema": {"type": "integer", "minimum": 1, "maximum": 200, "default": 20},
}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(name: str, example: Any = None) -> dict[str, Any]:
    content: dict[str, Any] = {"schema": _ref(name)}
    if example is not None:
        content["example"] = example
    return {"application/json": content}


def _route(
    summary: str,
    answer: str,
    *,
    body: str | None = None,
    examples: dict[str, Any] | None = None,
    example: Any = None,
    errors: tuple[int, ...] = (400, 401, 404, 413, 422, 503),
    **extra: Any,
) -> dict[str, Any]:
    """Give FastAPI's keyword arguments for one route."""
    responses: dict[int, Any] = {200: {"description": "Done.", "content": _json(answer, example)}}
    for status in errors:
        responses[status] = {"description": _ERRORS[status], "content": _json("ErrorAnswer")}
    if 503 in responses:
        responses[503]["headers"] = {
            "Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}
        }
    if body is not None:
        content = _json(body)
        content["application/json"]["examples"] = {
            name: {"value": value} for name, value in (examples or {}).items()
        }
        extra["requestBody"] = {"required": True, "content": content}
    return {
        "summary": summary,
        "responses": responses,
        "openapi_extra": extra,
        "response_model": None,
    }


RECOMMEND = _route(
    "Recommend items to one user",
    "RecommendAnswer",
    body="RecommendRequest",
    examples={
        "known user": {"user_id": 196, "k": 5},
        "new user with a history": {"history": _HISTORY, "k": 5, "explain": True},
        "new user with a text": {"text": "likes quiet science fiction", "k": 5},
    },
    example=_RECOMMENDED,
)
BATCH = _route(
    "Recommend items to several users",
    "BatchAnswer",
    body="BatchRequest",
    examples={"two users": {"requests": [{"user_id": 196}, {"history": _HISTORY}]}},
    example={"model_version": _RECOMMENDED["model_version"], "results": [_RECOMMENDED]},
)
SCORE = _route(
    "Score given items for one user",
    "ScoreAnswer",
    body="ScoreRequest",
    examples={"known user": {"user_id": 196, "item_ids": [318, 64]}},
)
SIMILAR = _route(
    "List items similar to an item or a text",
    "SimilarAnswer",
    body="SimilarRequest",
    examples={"item": {"item_id": 50, "k": 5}, "text": {"text": "space opera", "k": 5}},
)
FRIENDS = _route(
    "List likely friends of one user",
    "FriendsAnswer",
    body="FriendsRequest",
    examples={"known user": {"user_id": 196, "k": 5}},
)
ITEMS = _route(
    "Find items by id or text, or describe given ones",
    "ItemsAnswer",
    errors=(401, 422, 503),
    parameters=[
        {
            "name": "q",
            "in": "query",
            "description": "Part of an id or of a text column; empty lists the first items.",
            "schema": {"type": "string"},
        },
        {
            "name": "id",
            "in": "query",
            "description": "Describe exactly these items instead; unknown ones are left out.",
            "schema": {"type": "array", "items": {"type": "string"}, "maxItems": 200},
        },
        _LIMIT,
    ],
)
USERS = _route(
    "Find users by the start of an id, or tell what is stored of one",
    "UsersAnswer",
    errors=(401, 404, 422, 503),
    parameters=[
        {
            "name": "q",
            "in": "query",
            "description": "Start of an id; empty lists the first users.",
            "schema": {"type": "string"},
        },
        {
            "name": "id",
            "in": "query",
            "description": "Tell of this user instead: its latest `limit` events, newest first.",
            "schema": {"type": "string"},
        },
        _LIMIT,
    ],
)
MODEL = _route("Tell which model answers", "ModelAnswer", errors=(401, 503))
HEALTH = _route("Tell that the server lives", "HealthAnswer", errors=(), security=[])
READY = _route("Tell whether a tested bundle answers", "HealthAnswer", errors=(503,), security=[])


def describe(app: FastAPI) -> dict[str, Any]:
    """Write the OpenAPI document of the application's routes."""
    document = get_openapi(
        title="mtrec",
        version=__version__,
        summary="Recommendations from interaction logs and text.",
        routes=app.routes,
    )
    parts = document.setdefault("components", {})
    parts.setdefault("schemas", {}).update(schemas.components())
    parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    # An empty alternative: without MTREC_API_KEY on the server no key is wanted.
    document["security"] = [{"key": []}, {}]
    return document
