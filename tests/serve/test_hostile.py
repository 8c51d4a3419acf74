"""Hostile bodies and fuzzing against a real recommender: never a server error, alive afterwards.

`MTREC_FUZZ=5000` makes the fuzzing long; by default it takes seconds.
"""

import json
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic_core import to_json
from starlette.testclient import TestClient

from mtrec.recommender import Recommender
from mtrec.serve import schemas
from mtrec.serve.host import ModelHost
from mtrec.serve.routes import Limits, create_fastapi

if TYPE_CHECKING:
    from small_bundle import Small

POSTS: dict[str, Any] = {
    "/v1/recommend": schemas.RecommendRequest,
    "/v1/recommend/batch": schemas.BatchRequest,
    "/v1/score": schemas.ScoreRequest,
    "/v1/similar-items": schemas.SimilarRequest,
    "/v1/friends": schemas.FriendsRequest,
}
REFUSED = {400, 404, 413, 422}
ROUNDS = int(os.environ.get("MTREC_FUZZ", "250"))
EVENT = {"item_id": "item-01"}

# Bytes that are no JSON, or none that a strict reader takes.
BROKEN: dict[str, bytes] = {
    "nothing": b"",
    "a space": b" ",
    "a NUL": b"\x00",
    "half an object": b'{"user_id": "u1"',
    "two objects": b"{}{}",
    "a comma too many": b'{"k": 1,}',
    "single quotes": b"{'k': 1}",
    "a comment": b"{} // hello",
    "NaN": b'{"diversity": NaN}',
    "infinity": b'{"diversity": Infinity}',
    "minus infinity": b'{"diversity": -Infinity}',
    "UTF-16": '{"user_id": "u1"}'.encode("utf-16"),
    "broken UTF-8": b'{"user_id": "\xff\xfe"}',
    "overlong UTF-8": b'{"user_id": "\xc0\xaf"}',
    "a raw newline in a string": b'{"user_id": "a\nb"}',
    "a wrong escape": b'{"user_id": "\\x41"}',
    "half a surrogate escape": b'{"user_id": "\\ud8"}',
    "deep lists": b"[" * 100_000,
    "deep closed lists": b"[" * 5_000 + b"]" * 5_000,
    "deep objects": b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    "a huge exponent": b'{"diversity": 1e999999}',
    "a number with a leading zero": b'{"k": 01}',
    "hexadecimal": b'{"k": 0x10}',
    "a user of thousands of digits": b'{"user_id": 1' + b"0" * 5000 + b"}",
    "a form": b"user_id=u1&k=3",
    "XML": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
    "a pickle": b"\x80\x04\x95\x00",
}

# JSON that is no request.
WRONG: dict[str, Any] = {
    "null": None,
    "a list": [],
    "a string": "u1",
    "a number": 7,
    "true": True,
    "a lone surrogate": {"user_id": "\ud800"},
    "a user that is a list": {"user_id": ["u1"]},
    "a user that is a fraction": {"user_id": 1.5},
    "an empty user": {"user_id": ""},
    "k of zero": {"k": 0},
    "k below zero": {"k": -1},
    "k beyond 64 bits": {"k": 2**70},
    "k that is true": {"k": True},
    "k that is text": {"k": "10"},
    "k that is a fraction": {"k": 2.5},
    "a history of null": {"history": [None]},
    "a history of ids": {"history": ["item-01"]},
    "a history that is an object": {"history": {"item_id": "item-01"}},
    "a history too long": {"history": [EVENT] * 21},
    "an event without item": {"history": [{"rating": 3}]},
    "a rating outside": {"history": [{**EVENT, "rating": 99}]},
    "a rating that overflows": {"history": [{**EVENT, "rating": 1e300}]},
    "a rating that is text": {"history": [{**EVENT, "rating": "5; DROP TABLE"}]},
    "a time that overflows": {"history": [{**EVENT, "timestamp": 1e300}]},
    "a time that is no time": {"history": [{**EVENT, "timestamp": "yesterday"}]},
    "a context unknown": {"context": {"weather": "rain"}},
    "a context that is a list": {"context": []},
    "a weight below zero": {"weights": {"click": -1}},
    "no weight": {"weights": {}},
    "weights of nothing": {"weights": {"click": 0}},
    "a weight of an unknown task": {"weights": {"__class__": 1}},
    "diversity beyond one": {"diversity": 1.01},
    "a filter on no column": {"filter": {"../../etc/passwd": "x"}},
    "a filter that is text": {"filter": "price > 3"},
    "a range of text": {"filter": {"price": {"min": "a"}}},
    "an unknown bound": {"filter": {"price": {"$gt": 3}}},
    "a range of a category": {"filter": {"brand": {"min": 1}}},
    "explain that is a number": {"explain": 1},
    "exclude that is text": {"exclude": "item-01"},
    "exclude of objects": {"exclude": [{}]},
    "an unknown key": {"__proto__": {"k": 5}},
    "a very long key": {"k" * 3000: 1},
    "a text too long": {"text": "x" * 20_001},
    "a text that is a list": {"text": ["x"]},
}


@pytest.fixture(scope="module")
def client(small: "Small") -> Iterator[TestClient]:
    host = ModelHost(lambda path: Recommender.load(path, threads=1))
    host.open(str(small.bundles))
    yield TestClient(create_fastapi(host, Limits(body_bytes=64 << 10, batch=4, items=10)))
    host.close()


@pytest.fixture(autouse=True)
def _is_alive_afterwards(client: TestClient) -> Iterator[None]:
    yield
    assert client.get("/readyz").json()["status"] == "ready"
    assert client.post("/v1/recommend", json={"user_id": "u1", "k": 1}).status_code == 200


def test_there_are_sixty_hostile_bodies() -> None:
    assert len(BROKEN) + len(WRONG) >= 60


@pytest.mark.parametrize("path", POSTS)
def test_what_is_no_json_is_refused(client: TestClient, path: str) -> None:
    for name, body in BROKEN.items():
        response = client.post(path, content=body)
        assert response.status_code in {400, 413, 422}, (name, response.text)
        assert set(response.json()["error"]) >= {"code", "message"}, name


@pytest.mark.parametrize("path", POSTS)
def test_json_that_is_no_request_is_refused(client: TestClient, path: str) -> None:
    for name, body in WRONG.items():
        sent = {"requests": [body]} if path.endswith("batch") else body
        response = client.post(path, content=json.dumps(sent).encode())
        assert response.status_code in REFUSED, (name, response.text)
        assert "Traceback" not in response.text and "/mtrec" not in response.text, name


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({"content-length": "99999999999999999999999"}, b"{}"),
        ({"content-length": "-1"}, b"{}"),
        ({"content-type": "text/html"}, b"{}"),
        ({"content-encoding": "gzip"}, b"\x1f\x8b\x08\x00"),
        ({"x-request-id": "a\tb" * 99}, b"{}"),
        ({"authorization": "Bearer " + "k" * 9000}, b"{}"),
    ],
)
def test_strange_headers_do_no_harm(
    client: TestClient, headers: dict[str, str], body: bytes
) -> None:
    response = client.post("/v1/recommend", content=body, headers=headers)

    assert response.status_code in {200, *REFUSED}, response.text
    assert len(response.headers["x-request-id"]) <= 128


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/items?limit=1e9", "/v1/items?q=%00", "/v1/items?q=" + "a" * 5000),
        *("/v1/items?q=(((", "/v1/items?id=%FF%FE", "/v1/users?id=%00", "/v1/users?q=%ED%A0%80"),
        *("/..%2f..%2fetc/passwd", "/v1/%2e%2e/", "//v1/recommend", "/v1/recommend/"),
        "/v1/users?limit=²",
    ],
)
def test_strange_addresses_do_no_harm(client: TestClient, path: str) -> None:
    assert client.get(path).status_code in {200, 307, 405, *REFUSED}


def _bodies(shape: Any) -> st.SearchStrategy[Any]:
    """Draw a body of a documented shape, often about users and items that are there."""
    known = st.fixed_dictionaries(
        {},
        optional={
            "user_id": st.sampled_from(["u1", "u6", "nobody", 7]),
            "item_id": st.sampled_from(["item-01", "gone"]),
            "item_ids": st.lists(st.sampled_from(["item-01", "item-02"]), min_size=1, max_size=9),
            "history": st.lists(
                st.fixed_dictionaries(
                    {"item_id": st.sampled_from(["item-01", "item-11", "gone", 3])},
                    optional={"rating": st.floats(1, 5), "hour": st.floats(0, 23)},
                ),
                max_size=5,
            ),
            "k": st.integers(1, 50),
            "diversity": st.floats(0, 1),
            "weights": st.dictionaries(st.sampled_from(["click", "stars"]), st.floats(0, 9)),
            "explain": st.booleans(),
            "filter": st.just({"price": {"max": 5}}),
            "text": st.text(max_size=30),
        },
    )
    own = set(shape.__annotations__)
    mixed = st.builds(
        lambda body, told: {**body, **{key: told[key] for key in told if key in own}},
        st.from_type(shape),
        known,
    )
    return mixed | st.from_type(shape)


REQUESTS = st.sampled_from(sorted(POSTS)).flatmap(
    lambda path: st.tuples(st.just(path), _bodies(POSTS[path]))
)


@settings(max_examples=ROUNDS, deadline=None, suppress_health_check=list(HealthCheck))
@given(drawn=REQUESTS)
def test_no_request_of_the_documented_shape_is_answered_with_a_server_error(
    client: TestClient, drawn: tuple[str, Any]
) -> None:
    path, body = drawn
    response = client.post(path, content=to_json(body))

    assert response.status_code in {200, *REFUSED}, (path, body, response.text)
    if response.status_code != 200:
        assert set(response.json()["error"]) >= {"code", "message"}
