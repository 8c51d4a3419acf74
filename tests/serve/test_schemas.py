import json
import math

import pytest
from jsonschema import Draft202012Validator

from mtrec.configfile import parse_config
from mtrec.errors import RequestError
from mtrec.query import Limits, QueryReader
from mtrec.serve import schemas

CONFIG = parse_config(
    {
        "data": {
            "interactions": {
                "path": "ratings.csv",
                "user_id": "user",
                "item_id": "item",
                "columns": {
                    "rating": {"kind": "number", "min": 1, "max": 5},
                    "device": {"kind": "category", "context": True},
                },
            }
        },
        "tasks": [{"name": "next", "kind": "retrieval"}],
    }
)
READER = QueryReader(CONFIG, Limits(max_k=100, max_history=3))


def documented(name: str) -> Draft202012Validator:
    parts = {"schemas": schemas.components()}
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", "components": parts})


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b'{"k": NaN}', b'{"k": Infinity}', b'{"user_id": "\\ud800"}', b"\xff{}"),
        *('{"k": 1}'.encode("utf-16"), b"[" * 300 + b"]" * 300, b'{"k": 1} {"k": 2}', b"{'k': 1}"),
        b'{"user_id": ' + b"9" * 5000 + b"}",
    ],
)
def test_what_is_not_json_is_refused_with_400(body: bytes) -> None:
    with pytest.raises(RequestError, match="not JSON") as refusal:
        schemas.open_body(body)
    assert (refusal.value.status, refusal.value.code) == (400, "not_json")


@pytest.mark.parametrize("body", [b"[]", b"null", b"3", b'"k"', b"true"])
def test_what_is_no_object_is_refused_with_422(body: bytes) -> None:
    with pytest.raises(RequestError, match="expected an object") as refusal:
        schemas.open_body(body)
    assert refusal.value.status == 422


def test_text_of_any_language_survives_byte_for_byte() -> None:
    text = "限时优惠 \U0001f97e é \x00"

    assert schemas.open_body(json.dumps({"text": text}).encode()) == {"text": text}
    assert schemas.open_body(json.dumps({"text": text}, ensure_ascii=False).encode()) == {
        "text": text
    }


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "requests"),
        ({"requests": []}, "requests"),
        ({"requests": {}}, "requests"),
        ({"requests": [{}, 3]}, "requests.1"),
        ({"requests": [{}] * 5}, "requests"),
        ({"requests": [{}], "k": 3}, "k"),
    ],
)
def test_a_wrong_batch_is_refused_by_name(body: dict[str, object], field: str) -> None:
    with pytest.raises(RequestError) as refusal:
        schemas.open_batch(body, max_batch=4)
    assert (refusal.value.status, refusal.value.field) == (422, field)


def test_a_score_request_is_parted_into_the_user_and_the_items() -> None:
    user, item_ids = schemas.open_score({"user_id": 7, "item_ids": [1, "b"]}, max_items=2)

    assert (user, item_ids) == ({"user_id": 7}, [1, "b"])


@pytest.mark.parametrize("item_ids", [None, [], "ab", [1, 2, 3]])
def test_a_score_request_without_items_or_with_too_many_is_refused(item_ids: object) -> None:
    with pytest.raises(RequestError, match="item_ids") as refusal:
        schemas.open_score({"item_ids": item_ids}, max_items=2)
    assert refusal.value.field == "item_ids"


@pytest.mark.parametrize("body", [{}, {"item_id": 1, "text": "a"}, {"item_id": None}])
def test_similar_wants_exactly_one_of_item_and_text(body: dict[str, object]) -> None:
    with pytest.raises(RequestError, match="exactly one"):
        schemas.open_similar(body)


def test_similar_takes_a_null_for_not_given() -> None:
    assert schemas.open_similar({"item_id": 3, "text": None, "k": 2}) == {"item_id": 3, "k": 2}


@pytest.mark.parametrize(
    "request_body",
    [
        {},
        {"user_id": 10**30, "k": 1},
        {"user_id": None, "history": None, "k": None},
        {"history": [{"item_id": "a", "rating": 5, "device": "tv"}, {"item_id": 2}]},
        {"history": [{"item_id": "a", "timestamp": "2026-01-02T03:04:05Z", "rating": None}]},
        {"text": "羽绒服", "exclude": ["a", 3], "include_seen": True, "explain": False},
        {"weights": {"next": 0.5}, "diversity": 1, "context": {"device": "tv"}},
        {"filter": {"a": 1, "b": ["x", 2], "c": {"min": 1.5}, "d": {"min": 0, "max": 1}}},
    ],
)
def test_documented_and_checked_shape_both_take_what_is_right(request_body: object) -> None:
    assert list(documented("RecommendRequest").iter_errors(request_body)) == []
    READER.read(request_body)


@pytest.mark.parametrize(
    "request_body",
    [
        {"usr_id": 1},
        {"user_id": 1.5},
        {"user_id": ""},
        {"user_id": ["a"]},
        {"k": 0},
        {"k": "10"},
        {"k": 2.5},
        {"k": True},
        {"history": {"item_id": 1}},
        {"history": [{"rating": 3}]},
        {"history": [{"item_id": None}]},
        {"history": [{"item_id": 1, "rating": "5"}]},
        {"text": 5},
        {"text": "x" * 20_001},
        {"exclude": "a"},
        {"include_seen": 1},
        {"weights": {"next": -1}},
        {"weights": [1]},
        {"diversity": 1.01},
        {"context": []},
        {"explain": "yes"},
    ],
)
def test_documented_and_checked_shape_both_refuse_what_is_wrong(request_body: object) -> None:
    assert not documented("RecommendRequest").is_valid(request_body)
    with pytest.raises(RequestError):
        READER.read(request_body)


def test_an_infinite_number_is_refused_where_it_is_read() -> None:
    body = schemas.open_body(b'{"history": [{"item_id": 1, "rating": 1e999}]}')

    assert math.isinf(body["history"][0]["rating"])  # type: ignore[index]  # JSON
    with pytest.raises(RequestError, match="expected 1 to 5"):
        READER.read(body)


def test_every_reference_of_the_document_leads_somewhere() -> None:
    parts = schemas.components()
    references = set(_values(parts, "$ref"))

    assert references
    assert references <= {f"#/components/schemas/{name}" for name in parts}


def _values(tree: object, key: str) -> list[str]:
    if isinstance(tree, dict):
        own = [tree[key]] if isinstance(tree.get(key), str) else []
        return own + [v for value in tree.values() for v in _values(value, key)]
    if isinstance(tree, list):
        return [v for value in tree for v in _values(value, key)]
    return []
