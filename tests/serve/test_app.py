import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mtrec import storage
from mtrec.config import ServeConfig
from mtrec.errors import ArtifactError, ConfigError, MtrecError
from mtrec.recommender import Recommender
from mtrec.serve import app, door
from mtrec.serve.app import (
    Endpoint,
    ServeArgs,
    build,
    serve_bundle,
    stop_serving,
)
from mtrec.serve.ingress import HAPROXY, check_port

if TYPE_CHECKING:
    from small_bundle import Small


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def call(url: str, body: object = None) -> tuple[int, Any, dict[str, str]]:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=30) as answer:
            return answer.status, json.load(answer), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read()), dict(error.headers)


def wait_for(condition: Callable[[], bool], timeout_s: float = 90.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def quick(bundle: object, **changes: object) -> ServeArgs:
    values = {"port": free_port(), "num_cpus": 0.25, "max_replicas": 1, **changes}
    return ServeArgs.model_validate({"bundle": str(bundle), **values})


@pytest.fixture(scope="module")
def endpoint(ray_local: None, small: "Small") -> Iterator[str]:
    """Serve the small bundle; Serve itself is started once for all tests here."""
    yield serve_bundle(quick(small.bundles, max_k=50, max_batch=4, max_body_bytes=5000))
    stop_serving()


@contextmanager
def beside(endpoint: str, name: str, args: ServeArgs) -> Iterator[str]:
    """Serve a bundle under a prefix, with other settings, in the Ray Serve that runs."""
    from ray import serve

    serve.run(build(args), name=name, route_prefix=f"/{name}")
    try:
        yield f"{endpoint}/{name}"
    finally:
        serve.delete(name)


@pytest.mark.ray
@pytest.mark.parametrize(
    "request_body",
    [
        {"user_id": "u1", "k": 3, "explain": True},
        {"history": [{"item_id": "item-04", "rating": 5}, {"item_id": "gone"}], "k": 4},
        {"text": "garden story", "weights": {"stars": 1.0}, "filter": {"price": {"max": 6}}},
        {"user_id": "nobody"},
    ],
)
def test_over_http_comes_what_the_recommender_answers_in_process(
    endpoint: str, small: "Small", request_body: dict[str, object]
) -> None:
    status, over_http, headers = call(f"{endpoint}/v1/recommend", request_body)
    in_batch = call(f"{endpoint}/v1/recommend/batch", {"requests": [request_body, {}]})[1]

    (expected,) = Recommender.load(str(small.bundles)).recommend([request_body])
    assert (status, headers["x-model-version"]) == (200, small.version)
    assert over_http == _close(expected)
    assert in_batch["results"][0] == _close(expected)


@pytest.mark.ray
def test_the_other_routes_answer_as_the_recommender_does(endpoint: str, small: "Small") -> None:
    model = Recommender.load(str(small.bundles))

    scores = call(f"{endpoint}/v1/score", {"user_id": "u1", "item_ids": ["item-03"]})[1]["scores"]
    similar = call(f"{endpoint}/v1/similar-items", {"item_id": "item-03", "k": 2})[1]
    items = call(f"{endpoint}/v1/items?q=space&limit=2")[1]["items"]

    assert scores == _close(model.score({"user_id": "u1"}, ["item-03"]))
    assert similar["recommendations"] == _close(model.similar_items("item-03", k=2))
    assert items == model.find_items("space", 2)
    assert call(f"{endpoint}/v1/model")[1] == model.info()
    assert call(f"{endpoint}/v1/friends", {"user_id": "u1"})[0] == 404


@pytest.mark.ray
def test_each_answer_has_one_request_id(endpoint: str) -> None:
    request = urllib.request.Request(f"{endpoint}/v1/model", headers={"X-Request-ID": "run-7"})
    with urllib.request.urlopen(request) as answer:
        assert answer.headers.get_all("x-request-id") == ["run-7"]


@pytest.mark.ray
def test_a_replica_tells_its_version_and_nothing_refused(endpoint: str, small: "Small") -> None:
    reporter = app.Reporter()
    assert [reporter.state() for _ in range(2)] == [(small.version, None)] * 2
    reporter.close()


def test_what_a_replica_took_or_refused_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen = [("v1", None), ("v1", "no such folder"), None, ("v1", "no such folder"), ("v2", None)]
    states = iter(seen)
    monkeypatch.setattr(app.Reporter, "state", lambda _: next(states))
    monkeypatch.setattr(logging.getLogger("mtrec"), "propagate", True)
    told: list[list[str]] = []
    reporter = app.Reporter()
    with caplog.at_level(logging.INFO, "mtrec.serve"):
        for _ in seen[1:]:
            caplog.clear()
            reporter.look()
            told.append(caplog.messages)
    reporter.close()

    assert told == [
        ["bundle.refused serving=v1: no such folder"],
        *([], []),
        ["bundle.serving version=v2 replaced=v1"],
    ]


@pytest.mark.ray
def test_it_is_live_and_ready_and_shows_its_page(endpoint: str, small: "Small") -> None:
    assert call(f"{endpoint}/healthz")[1] == {"status": "live"}
    assert call(f"{endpoint}/readyz")[1] == {"status": "ready", "model_version": small.version}
    with urllib.request.urlopen(endpoint) as page:
        assert b"<title>mtrec</title>" in page.read()


@pytest.mark.ray
@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/recommend", {"kk": 1}, 422),
        ("/v1/recommend", {"k": 51}, 422),
        ("/v1/recommend", {"text": "x" * 6000}, 413),
        ("/v1/recommend/batch", {"requests": [{}] * 5}, 422),
        ("/v1/similar-items", {"item_id": "gone"}, 404),
        ("/v1/nothing", {}, 404),
    ],
)
def test_limits_and_errors_hold_behind_the_proxy(
    endpoint: str, path: str, body: object, status: int
) -> None:
    found, answer, headers = call(endpoint + path, body)

    assert found == status
    assert set(answer["error"]) >= {"code", "message"}
    assert headers["x-request-id"]


@pytest.mark.ray
def test_a_second_endpoint_is_refused_at_once_and_harms_nothing(
    endpoint: str, small: "Small"
) -> None:
    port = int(endpoint.rpartition(":")[2])
    with pytest.raises(ConfigError, match=rf"port {port}.*\n.*another --port"):
        serve_bundle(quick(small.bundles, port=port))
    with pytest.raises(ConfigError, match="already runs on this cluster"):
        serve_bundle(quick(small.bundles))
    assert call(f"{endpoint}/readyz")[0] == 200


@pytest.mark.ray
def test_the_bundle_is_exchanged_under_load_and_a_bad_one_refused(
    endpoint: str, small: "Small", tmp_path: Path
) -> None:
    from ray import serve

    newer = tmp_path / re.sub("^[0-9]{8}", "20990101", small.version)
    shutil.copytree(small.path, newer)
    broken = tmp_path / re.sub("^[0-9]{8}", "20990102", small.version)
    shutil.copytree(small.path, broken)
    (broken / "item_bias.npy").write_bytes(b"0" * 64)
    with beside(endpoint, "swap", quick(small.bundles)) as url, Load(url, clients=2) as load:
        replica = serve.get_app_handle("swap")
        for path in (newer, broken):
            load.wait_for_more(5)
            replica.reconfigure.remote({"bundle": str(path)}).result(timeout_s=60)
        load.wait_for_more(5)
        ready = call(f"{url}/readyz")[1]

    assert load.failures == []
    assert load.versions == {small.version, newer.name}
    assert (ready["status"], ready["model_version"]) == ("ready", newer.name)
    assert "refused" in ready["refused"]


@pytest.mark.ray
def test_a_pointer_that_moves_is_followed_under_load_and_damage_is_not(
    endpoint: str, small: "Small", tmp_path: Path
) -> None:
    def copy(date: str) -> Path:
        target = tmp_path / "bundles" / re.sub("^[0-9]{8}", date, small.version)
        shutil.copytree(small.path, target)
        return target

    def point(name: str) -> None:
        storage.write_bytes(str(tmp_path / "bundles" / "CURRENT"), name.encode())

    from small_bundle import make_small

    first, second, broken = copy("20990101"), copy("20990102"), copy("20990103")
    others = tmp_path / "bundles" / "20990105-000000-others"
    shutil.copytree(make_small(tmp_path / "others", social=True).path, others)
    (broken / "item_bias.npy").write_bytes(b"0" * 64)
    point(first.name)
    args = quick(tmp_path / "bundles", follow_s=0.2)
    with beside(endpoint, "follow", args) as url, Load(url, clients=2) as load:
        load.wait_for_more(5)
        point(second.name)
        wait_for(lambda: second.name in load.versions)
        for bad in (broken.name, "20990104-000000-none"):
            point(bad)
            wait_for(lambda: "refused" in call(f"{url}/readyz")[1])
            load.wait_for_more(5)
            assert call(f"{url}/healthz")[1] == {"status": "live"}
            point(second.name)
            wait_for(lambda: "refused" not in call(f"{url}/readyz")[1])
        assert call(f"{url}/v1/friends", {"user_id": "u1"})[0] == 404
        point(others.name)  # it has one task more
        wait_for(lambda: others.name in load.versions)
        assert call(f"{url}/v1/friends", {"user_id": "u1"})[0] == 200

    assert load.failures == []
    assert load.versions == {first.name, second.name, others.name}


@pytest.mark.ray
@pytest.mark.slow
def test_a_step_load_takes_it_to_two_replicas_and_back_without_a_failed_request(
    endpoint: str, small: "Small"
) -> None:
    changes = {"max_replicas": 2, "target_ongoing_requests": 1, "max_ongoing_requests": 4}
    delays = {"upscale_delay_s": 0.5, "downscale_delay_s": 1.0}
    args = quick(small.bundles, **changes, **delays)
    with beside(endpoint, "step", args) as url:
        assert running_replicas("step") == 1
        with Load(url, clients=6) as load:
            wait_for(lambda: running_replicas("step") == 2)
            # Less, but not nothing: requests go on while the second replica is drained.
            load.slow_down(clients=1, pause_s=0.05)
            wait_for(lambda: running_replicas("step") == 1)
            load.wait_for_more(5)

    assert load.failures == []
    assert load.count > 50


@pytest.mark.ray
def test_the_proxy_refuses_what_its_replicas_cannot_take_and_goes_on(endpoint: str) -> None:
    url, body = f"{endpoint}/v1/recommend", {"history": [{"item_id": "item-04"}], "explain": True}
    answers: list[tuple[int, Any, dict[str, str]]] = []
    with ThreadPoolExecutor(48) as pool:  # three times what one replica takes
        wait_for(
            lambda: (
                answers.extend(pool.map(lambda _: call(url, body), range(48)))
                or any(status == 503 for status, _, _ in answers)
            )
        )

    assert {status for status, _, _ in answers} == {200, 503}
    refusal = next(told for status, told, _ in answers if status == 503)
    assert refusal["error"]["code"] == "overloaded"
    assert call(url, body)[0] == 200


@pytest.mark.ray
def test_more_requests_than_may_wait_are_refused_with_503_and_told_when_to_come_again(
    endpoint: str, small: "Small"
) -> None:
    limits = {"target_ongoing_requests": 1, "max_ongoing_requests": 1, "max_queued_requests": 1}
    with beside(endpoint, "full", quick(small.bundles, **limits)) as url:
        with Load(url, clients=16, body={"k": 12}) as load:
            wait_for(lambda: bool(load.refused))
        assert call(f"{url}/readyz")[0] == 200

    assert load.failures == []
    assert load.refused == {"1"}


def test_the_deployment_takes_its_numbers_from_the_configuration() -> None:
    config = ServeConfig(
        min_replicas=2, max_replicas=5, num_cpus=0.5, max_queued_requests=7, upscale_delay_s=3.0
    )

    application = build(ServeArgs.from_config("runs/x/bundles", config))

    deployment = application._bound_deployment
    scaling = deployment._deployment_config.autoscaling_config
    assert deployment.ray_actor_options["num_cpus"] == 0.5
    assert deployment.max_queued_requests == 7
    assert (scaling.min_replicas, scaling.max_replicas, scaling.upscale_delay_s) == (2, 5, 3.0)


def test_behind_haproxy_each_replica_has_a_door_and_nobody_waits_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in HAPROXY.items():
        monkeypatch.setenv(name, value)
    config = ServeConfig(max_ongoing_requests=12, max_queued_requests=7)

    deployment = build(ServeArgs.from_config("runs/x/bundles", config))._bound_deployment

    environment = deployment.ray_actor_options["runtime_env"]["env_vars"]
    assert environment == door.variables(12, burst=7)
    assert deployment.max_ongoing_requests == 12 + 7


def test_where_a_key_is_required_but_missing_a_replica_does_not_start(
    small: "Small", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MTREC_API_KEY", raising=False)
    start = Endpoint.__mro__[1].__init__
    with pytest.raises(ConfigError, match="MTREC_API_KEY is not set"):
        start(object.__new__(Endpoint), quick(small.bundles, require_key=True))


def test_no_bundle_is_told_before_serve_starts(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="holds no bundle"):
        serve_bundle(quick(tmp_path))


@pytest.mark.ray
@pytest.mark.slow
def test_mtrec_serve_answers_until_interrupted_and_leaves_nothing(small: "Small") -> None:
    port = free_port()
    environment = {**os.environ, "MTREC_API_KEY": "geheim"}
    command = [str(Path(sys.executable).with_name("mtrec")), "serve"]
    server = subprocess.Popen(
        [*command, "--bundle", str(small.bundles), "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        assert f"http://127.0.0.1:{port}" in line, line or server.communicate(timeout=60)[1]
        assert call(f"http://127.0.0.1:{port}/readyz")[0] == 200
        assert call(f"http://127.0.0.1:{port}/v1/model")[0] == 401
        server.send_signal(signal.SIGINT)
        _, errors = server.communicate(timeout=60)
    finally:
        server.kill()

    assert (server.returncode, "Traceback" in errors, "geheim" in errors) == (0, False, False)
    check_port("127.0.0.1", port)


def running_replicas(name: str) -> int:
    from ray import serve

    deployments = serve.status().applications[name].deployments
    (deployment,) = deployments.values()
    return deployment.replica_states.get("RUNNING", 0)


class Load:
    """Clients that each send one request after the other until the block ends."""

    def __init__(self, url: str, *, clients: int, body: object = None) -> None:
        self.failures: list[str] = []
        self.refused: set[str] = set()
        self.versions: set[str] = set()
        self.count = 0
        self._url, self._body = f"{url}/v1/recommend", body or {"user_id": "u1", "k": 3}
        self._clients, self._pause_s = clients, 0.0
        self._done = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(at,)) for at in range(clients)]

    def slow_down(self, *, clients: int, pause_s: float) -> None:
        self._clients, self._pause_s = clients, pause_s

    def wait_for_more(self, count: int) -> None:
        wanted = self.count + count
        wait_for(lambda: self.count >= wanted)

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _ask(self, number: int) -> None:
        data = json.dumps(self._body).encode()
        while not self._done.is_set() and number < self._clients:
            try:
                with urllib.request.urlopen(self._url, data, timeout=30) as answer:
                    body = json.load(answer)
                    if answer.headers["x-model-version"] != body["model_version"]:
                        self.failures.append("mixed versions")
                    self.versions.add(body["model_version"])
                    self.count += 1
            except urllib.error.HTTPError as error:
                if error.code == 503:
                    self.refused.add(error.headers["retry-after"])
                else:
                    self.failures.append(f"{error.code} {error.read()!r}")
            except OSError as error:
                self.failures.append(repr(error))
            self._done.wait(self._pause_s)


def _close(value: Any) -> Any:
    """Compare floats to relative 1e-5, whatever they are nested in."""
    if isinstance(value, float):
        return pytest.approx(value, rel=1e-5, abs=1e-9)
    if isinstance(value, dict):
        return {key: _close(entry) for key, entry in value.items()}
    return [_close(entry) for entry in value] if isinstance(value, list) else value


def test_a_deployment_that_fails_is_told_by_its_cause() -> None:
    from mtrec.serve.app import _cause

    message = (
        "Deploying application mtrec failed: Traceback (most recent call last):\n  File x\n"
        "mtrec.errors.ArtifactError: /runs/b: item_bias.npy is damaged\n"
    )
    assert _cause(["starting", message]) == "/runs/b: item_bias.npy is damaged"
    assert _cause(["starting", "KeyError: 3"]) == "KeyError: 3"
    assert _cause([]) == "it gave no reason"
    assert issubclass(ArtifactError, MtrecError)
