import json
import logging
from typing import Any

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from mtrec.errors import ConfigError, RequestError
from mtrec.serve.host import Unwatched
from mtrec.serve.security import KEY_VARIABLE, ApiKey, Guard, error_answer, read_body, read_key


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the body; `/fail/...` fails in the way that the path says."""
    request = Request(scope, receive)
    if request.url.path == "/fail/ours":
        raise ValueError("/home/somebody/secret.npy is broken")
    if request.url.path == "/fail/theirs":
        raise RequestError("k is wrong", field="k")
    await Response(await read_body(request, 10))(scope, receive, send)


def client(key: str | None = None) -> TestClient:
    guard = Guard(echo, api_key=ApiKey(key) if key else None, model_version=lambda: "v7")
    return TestClient(guard)


def error_of(response: httpx2.Response) -> dict[str, Any]:
    body: dict[str, Any] = response.json()
    assert set(body) == {"error"}
    return dict(body["error"])


@pytest.mark.parametrize(
    ("header", "admitted"),
    [
        ("Bearer geheim", True),
        ("bearer geheim", True),
        ("Bearer geheim2", False),
        ("Bearer gehei", False),
        ("Bearer", False),
        ("Basic geheim", False),
        ("geheim", False),
        ("", False),
        (None, False),
        ("Bearer 密\udcff", False),
    ],
)
def test_only_the_whole_key_as_a_bearer_is_admitted(header: str | None, admitted: bool) -> None:
    assert ApiKey("geheim").admits(header) is admitted


def test_a_key_is_read_without_the_line_end_that_a_file_gave_it() -> None:
    key = read_key({KEY_VARIABLE: " geheim\n"})
    assert key is not None and ApiKey(key).admits("Bearer geheim")
    assert read_key({}) is None and read_key({KEY_VARIABLE: ""}) is None


@pytest.mark.parametrize("key", ["  \n", "schlüssel", "密码", "a\nb"])
def test_a_key_that_no_header_can_carry_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="MTREC_API_KEY is blank or has characters"):
        read_key({KEY_VARIABLE: key})


def test_with_a_key_every_route_but_page_and_health_wants_it() -> None:
    locked = client("geheim")

    assert [locked.get(path).status_code for path in ("/", "/healthz", "/readyz")] == [200] * 3
    for path in ("/v1/model", "/openapi.json", "/nothing", "/healthz/", "/readyz/../v1/model"):
        response = locked.get(path)
        assert (response.status_code, error_of(response)["code"]) == (401, "unauthorized")
        assert response.headers["www-authenticate"] == "Bearer"
    assert locked.get("/x", headers={"authorization": "Bearer geheim"}).status_code == 200


def test_without_a_key_nothing_is_locked() -> None:
    assert client().get("/v1/model").status_code == 200


def test_a_body_over_the_limit_is_refused_whether_announced_or_not() -> None:
    exact = client().post("/v1/x", content=b"0123456789")
    announced = client().post("/v1/x", content=b"0123456789a")
    streamed = client().post("/v1/x", content=iter([b"01234", b"56789", b"a"]))
    lying = client().post("/v1/x", content=b"0" * 11, headers={"content-length": "9" * 30})

    assert (exact.status_code, exact.content) == (200, b"0123456789")
    for response in (announced, streamed, lying):
        assert (response.status_code, error_of(response)["code"]) == (413, "body_too_large")


def test_a_request_id_is_echoed_and_a_harmful_one_replaced() -> None:
    given = client().get("/", headers={"x-request-id": "run-7.a_B:1"})
    made = client().get("/")
    harmful = client().get("/", headers={"x-request-id": "a b\tforged=1"})

    assert given.headers["x-request-id"] == "run-7.a_B:1"
    assert len(made.headers["x-request-id"]) == 32
    assert len(harmful.headers["x-request-id"]) == 32
    assert made.headers["x-request-id"] != harmful.headers["x-request-id"]


def test_where_somebody_else_names_requests_the_answer_has_no_second_id() -> None:
    guard = Guard(echo, api_key=None, model_version=lambda: "v7", names_request=False)

    assert "x-request-id" not in TestClient(guard).get("/").headers


@pytest.mark.parametrize("path", ["/", "/fail/ours", "/fail/theirs"])
def test_every_answer_names_the_model_version(path: str) -> None:
    assert client().get(path).headers["x-model-version"] == "v7"


def test_a_failure_of_ours_is_a_500_that_tells_nothing_but_the_request_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR, logger="mtrec.serve"):
        response = client().get("/fail/ours", headers={"x-request-id": "abc"})

    assert response.status_code == 500
    assert error_of(response)["code"] == "internal"
    assert "abc" in response.text
    assert "secret" not in response.text
    assert "ValueError" not in response.text
    assert "id=abc" in caplog.text
    assert "secret.npy" in caplog.text


def test_the_key_is_in_no_answer_and_no_log_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        texts = [
            client("geheim").get(path, headers={"authorization": f"Bearer {key}"}).text
            for path in ("/x", "/fail/ours")
            for key in ("geheim", "geheimer")
        ]

    assert "geheim" not in "".join([*texts, caplog.text, repr(vars(ApiKey("geheim")))])


class Counted(Unwatched):
    """Remember the requests that were told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def request(self, route: str, status: int, seconds: float) -> None:
        assert 0.0 <= seconds < 60.0
        self.seen.append((route, status))


def test_every_request_is_told_by_route_and_status_and_strange_paths_share_one_name() -> None:
    watch = Counted()
    guard = Guard(echo, api_key=ApiKey("k"), model_version=lambda: None, watch=watch)
    asking = TestClient(guard)
    asking.headers["authorization"] = "Bearer k"
    for path in ("/v1/score", "/fail/ours", "/fail/theirs", "/v1/x/../../etc", "/v1/users?id=7"):
        asking.get(path)
    asking.get("/v1/model", headers={"authorization": "Bearer wrong"})

    assert watch.seen == [
        ("/v1/score", 200),
        ("other", 500),
        ("other", 422),
        ("other", 200),
        ("/v1/users", 200),
        ("/v1/model", 401),
    ]


def test_the_access_log_has_a_line_for_each_request_with_its_id(
    caplog: pytest.LogCaptureFixture,
) -> None:
    guard = Guard(echo, api_key=None, model_version=lambda: None, access_log=True)
    with caplog.at_level(logging.INFO, logger="mtrec.serve"):
        TestClient(guard).get("/v1/model?q=secret", headers={"x-request-id": "abc"})

    (record,) = caplog.records
    assert record.getMessage().startswith("request id=abc route=/v1/model status=200 ms=")
    assert "secret" not in record.getMessage()


def test_an_error_has_code_message_and_field() -> None:
    response = error_answer(RequestError("k is wrong", code="bad", status=404, field="k"))

    assert response.status_code == 404
    assert json.loads(bytes(response.body)) == {
        "error": {"code": "bad", "message": "k is wrong", "field": "k"}
    }


def test_an_overload_says_when_to_come_again() -> None:
    response = error_answer(RequestError("full", code="overloaded", status=503))

    assert response.headers["retry-after"] == "1"


def test_a_prefix_that_the_server_is_mounted_under_opens_no_route() -> None:
    async def under_prefix(scope: Scope, receive: Receive, send: Send) -> None:
        scope["root_path"] = "/shop"
        guard = Guard(PlainTextResponse("in"), api_key=ApiKey("k"), model_version=lambda: None)
        await guard(scope, receive, send)

    mounted = TestClient(under_prefix)

    assert mounted.get("/shop/healthz").status_code == 200
    assert mounted.get("/shop/v1/model").status_code == 401
    assert "x-model-version" not in mounted.get("/shop").headers
