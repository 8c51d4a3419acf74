import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from shelf import Shelf, open_bundle
from starlette.testclient import TestClient

from mtrec.serve.host import ModelHost
from mtrec.serve.routes import Limits, create_fastapi


@pytest.fixture
def client(host: ModelHost) -> TestClient:
    return TestClient(create_fastapi(host, Limits(body_bytes=4096, batch=3, items=4)))


def items_of(answer: Mapping[str, Any]) -> list[int]:
    return [entry["item_id"] for entry in answer["recommendations"]]


def test_recommend_answers_with_the_models_list_and_version(client: TestClient) -> None:
    response = client.post("/v1/recommend", json={"user_id": 7, "exclude": [2], "k": 2})

    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-model-version"] == "v1"
    assert response.json() == {
        "user_id": 7,
        "model_version": "v1",
        "cold_start": True,
        "recommendations": [
            {"item_id": 1, "score": 1.0, "tasks": {"next": 1.0}},
            {"item_id": 3, "score": 0.5, "tasks": {"next": 0.5}},
        ],
    }


def test_a_batch_answers_in_order_as_single_requests_do(client: TestClient) -> None:
    requests = [{"user_id": "a", "k": 1}, {"history": [{"item_id": 1}]}, {"user_id": 3, "k": 3}]

    batch = client.post("/v1/recommend/batch", json={"requests": requests}).json()

    singles = [client.post("/v1/recommend", json=request).json() for request in requests]
    assert batch == {"results": singles, "model_version": "v1"}


def test_score_answers_for_each_item_in_the_order_asked(client: TestClient) -> None:
    answer = client.post("/v1/score", json={"user_id": 7, "item_ids": [3, 1]}).json()

    assert (answer["user_id"], answer["model_version"]) == (7, "v1")
    assert [entry["item_id"] for entry in answer["scores"]] == [3, 1]


def test_similar_items_take_an_item_or_a_text(client: TestClient) -> None:
    by_item = client.post("/v1/similar-items", json={"item_id": 1, "k": 2}).json()
    by_text = client.post("/v1/similar-items", json={"text": "毛衣"}).json()

    assert (items_of(by_item), by_item["model_version"]) == ([2, 3], "v1")
    assert items_of(by_text) == [1, 2, 3, 4]


def test_an_unknown_item_and_a_missing_task_are_404_with_the_reason(client: TestClient) -> None:
    item = client.post("/v1/similar-items", json={"item_id": 99})
    friends = client.post("/v1/friends", json={"user_id": 1, "k": 3})

    assert (item.status_code, item.json()["error"]["code"]) == (404, "unknown_item")
    assert (friends.status_code, friends.json()["error"]["code"]) == (404, "no_social_task")


def test_items_are_found_by_text_and_described_by_id(client: TestClient) -> None:
    found = client.get("/v1/items", params={"q": "衣"}).json()
    described = client.get("/v1/items?id=4&id=99&id=1").json()
    limited = client.get("/v1/items", params={"limit": 2}).json()

    assert found == {"items": [{"item_id": 2, "title": "毛衣"}], "model_version": "v1"}
    assert [entry["item_id"] for entry in described["items"]] == [4, 1]
    assert [entry["item_id"] for entry in limited["items"]] == [1, 2]


@pytest.mark.parametrize("limit", ["0", "201", "-1", "ten", "1e2", "²", "9" * 50, ""])
def test_a_wrong_number_of_items_is_refused(client: TestClient, limit: str) -> None:
    response = client.get("/v1/items", params={"limit": limit})

    assert (response.status_code, response.json()["error"]["field"]) == (422, "limit")


@pytest.mark.parametrize("path", ["/v1/items", "/v1/users"])
def test_a_misspelt_parameter_is_refused_and_the_nearest_named(
    client: TestClient, path: str
) -> None:
    response = client.get(path, params={"limt": 2})

    assert (response.status_code, response.json()["error"]["code"]) == (422, "unknown_field")
    assert 'did you mean "limit"?' in response.json()["error"]["message"]


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz"])
def test_open_routes_answer_a_request_for_headers_alone(client: TestClient, path: str) -> None:
    response = client.head(path)

    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == client.get(path).headers["content-type"]


def test_users_are_found_by_the_start_of_their_id_and_told_of(client: TestClient) -> None:
    found = client.get("/v1/users", params={"q": "an", "limit": 1}).json()
    told = client.get("/v1/users?id=bo").json()
    unknown = client.get("/v1/users?id=eve")

    assert found == {"users": ["ann"], "model_version": "v1"}
    assert (told["user_id"], told["history"]) == ("bo", [{"item_id": 1}])
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown_user")
    assert client.get("/v1/users?id=bo&id=ann").status_code == 422


def test_what_is_not_a_number_becomes_null(client: TestClient) -> None:
    assert client.get("/v1/model").json()["metrics"] == {"ndcg@10": None}


def test_health_and_readiness_name_the_version_that_answers(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "live"}
    assert client.get("/readyz").json() == {"status": "ready", "model_version": "v1"}


def test_before_a_bundle_is_loaded_it_is_live_but_not_ready() -> None:
    empty = TestClient(create_fastapi(ModelHost(open_bundle), Limits(4096, 3, 4)))

    assert empty.get("/healthz").status_code == 200
    for response in (empty.get("/readyz"), empty.post("/v1/recommend", json={})):
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_the_page_may_load_nothing_but_its_own_script_and_this_server(client: TestClient) -> None:
    page = client.get("/")

    policy = page.headers["content-security-policy"]
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "script-src 'sha256-" in policy
    assert "http" not in policy
    assert " src=" not in page.text
    assert re.findall(r"<link.*?>", page.text) == ['<link rel="icon" href="data:,">']


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v2", 404, "no_such_route"),
        ("GET", "/v1/recommend", 405, "wrong_method"),
        # No redirect: it would lead to whatever host the request names.
        ("POST", "/v1/recommend/", 404, "no_such_route"),
    ],
)
def test_the_frameworks_refusals_have_the_shape_of_ours(
    client: TestClient, method: str, path: str, status: int, code: str
) -> None:
    response = client.request(method, path)

    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/v1/recommend", {"kk": 3}, 422, "kk"),
        ("/v1/recommend", {"k": 51}, 422, "k"),
        ("/v1/recommend", {"history": [{"item_id": 1}] * 21}, 422, "history"),
        ("/v1/recommend", {"text": "x" * 5000}, 413, None),
        ("/v1/recommend/batch", {"requests": [{}] * 4}, 422, "requests"),
        ("/v1/score", {"item_ids": [1, 2, 3, 4, 1]}, 422, "item_ids"),
        ("/v1/score", {"item_ids": [1], "kk": 3}, 422, "kk"),
        ("/v1/score", {"items": [1]}, 422, "items"),
        ("/v1/score", {"item_ids": [1], "explain": True}, 422, "explain"),
        ("/v1/similar-items", {"item_id": 1, "k": 0}, 422, "k"),
    ],
)
def test_what_is_wrong_or_too_large_is_refused_by_name(
    client: TestClient, path: str, body: object, status: int, field: str | None
) -> None:
    response = client.post(path, json=body)

    assert (response.status_code, response.json()["error"].get("field")) == (status, field)


def test_a_bug_is_a_500_without_a_trace_of_the_code(client: TestClient) -> None:
    response = client.post("/v1/recommend", json={"user_id": "bug"})

    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal")
    assert "model.py" not in response.text
    assert "ZeroDivision" not in response.text


def test_with_a_key_every_documented_route_but_the_health_checks_wants_it(host: ModelHost) -> None:
    locked = TestClient(create_fastapi(host, Limits(4096, 3, 4), api_key="geheim"))
    paths = create_fastapi(host, Limits(4096, 3, 4)).openapi()["paths"]

    refused = {
        path
        for path, methods in paths.items()
        for method in methods
        if locked.request(method.upper(), path).status_code == 401
    }

    assert refused == set(paths) - {"/healthz", "/readyz"}
    assert locked.get("/").status_code == 200
    admitted = locked.get("/v1/model", headers={"authorization": "Bearer geheim"})
    assert admitted.status_code == 200


def test_the_documented_examples_are_answered_as_documented(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    answered = 0
    for path, methods in document["paths"].items():
        body = methods.get("post", {}).get("requestBody", {}).get("content", {})
        for example in body.get("application/json", {}).get("examples", {}).values():
            wanted = {k: 1 if k == "item_id" else v for k, v in example["value"].items()}
            response = client.post(path, json=wanted)
            content = methods["post"]["responses"][str(response.status_code)]["content"]
            schema = {**content["application/json"]["schema"], **document}
            Draft202012Validator(schema).validate(response.json())
            answered += response.status_code == 200

    assert answered == 7


KEYS = ["user_id", "history", "item_id", "text", "k", "exclude", "weights", "filter", "context"]
KEYS += ["requests", "item_ids", "rating", "timestamp", "diversity", "explain", "include_seen"]
BODIES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
PATHS = ["/v1/recommend", "/v1/recommend/batch", "/v1/score", "/v1/similar-items", "/v1/friends"]


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(path=st.sampled_from(PATHS), body=BODIES)
def test_no_body_whatever_is_answered_with_a_server_error(
    client: TestClient, path: str, body: object
) -> None:
    response = client.post(path, content=json.dumps(body).encode())

    assert response.status_code in (200, 400, 404, 422), response.text


def test_model_work_runs_on_one_thread_that_is_not_the_event_loop(
    client: TestClient, host: ModelHost
) -> None:
    for _ in range(3):
        client.post("/v1/recommend", json={})

    assert host.current is not None
    shelf = host.current.recommender
    assert isinstance(shelf, Shelf)
    assert {name for name in shelf.threads if name.startswith("recommender")} == {"recommender_0"}


@pytest.mark.anyio
async def test_a_refused_bundle_is_told_by_readyz_without_its_path(
    host: ModelHost, client: TestClient
) -> None:
    await host.swap("nowhere")

    told = client.get("/readyz").json()
    assert (told["status"], told["model_version"]) == ("ready", "v1")
    assert "refused" in told["refused"]
    assert "/srv" not in json.dumps(told)
