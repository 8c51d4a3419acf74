import http.server
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import mtrec
from mtrec import doctor
from mtrec.config import Config, RayConfig, TextConfig
from mtrec.configfile import parse_config
from mtrec.data.sources import planted


def test_a_taken_port_is_a_problem_with_a_remedy() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        check = doctor._port(server.getsockname()[1])
    assert not check.ok
    assert "--port" in check.remedy


def test_haproxys_side_ports_are_named_and_a_taken_one_is_a_problem() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        environment = {"RAY_SERVE_HAPROXY_METRICS_PORT": "1", "RAY_SERVE_HAPROXY_STATS_PORT": "2"}
        (fine,) = doctor._ingress("haproxy", environment)
        environment["RAY_SERVE_HAPROXY_STATS_PORT"] = str(port)
        (taken,) = doctor._ingress("haproxy", environment)

    assert fine.ok and "1 (HAProxy's metrics" in fine.found and "2 (" in fine.found
    assert not taken.ok and str(port) in taken.found
    assert "RAY_SERVE_HAPROXY_STATS_PORT" in taken.remedy


def test_half_of_haproxys_variables_and_nodes_that_differ_are_problems() -> None:
    (half,) = doctor._ingress(None, {"RAY_SERVE_ENABLE_HA_PROXY": "1"})
    (python,) = doctor._ingress(None, {})
    nodes = doctor._ingress_on({"0123456789": "haproxy", "abcdefghij": "python"})

    assert not half.ok and "every node" in half.remedy
    assert python.ok and "Python proxy" in python.found
    assert not nodes.ok and "node abcdefgh" in nodes.found
    assert doctor._ingress_on({"0123456789": "haproxy"}).ok


def test_a_missing_package_is_a_problem_with_a_remedy() -> None:
    check = doctor._package("no-such-package-at-all", "1.")
    assert not check.ok
    assert "pip install" in check.remedy


def test_another_version_is_a_problem() -> None:
    check = doctor._package("numpy", "0.1.")
    assert not check.ok
    assert "expected 0.1.x" in check.remedy


def test_memory_is_what_is_left_to_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "/proc/meminfo": "MemTotal: 99 kB\nMemAvailable:    8388608 kB\n",
        "/sys/fs/cgroup/memory.max": "4294967296\n",
        "/sys/fs/cgroup/memory.current": "3221225472\n",
    }
    monkeypatch.setattr(doctor, "_text", lambda path: texts.get(path, ""))
    monkeypatch.setattr(doctor.os, "sysconf", {"SC_PHYS_PAGES": 1 << 22, "SC_PAGE_SIZE": 4096}.get)
    check = doctor._memory()
    assert (check.ok, check.found) == (False, "1.0 GiB free of 4.0 GiB")
    assert "end other programs" in check.remedy
    texts["/sys/fs/cgroup/memory.max"] = "max\n"
    check = doctor._memory()
    assert (check.ok, check.found, check.remedy) == (True, "8.0 GiB free of 16.0 GiB", "")


def test_the_object_store_is_as_large_as_configured_else_a_share_of_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor, "_memory_bytes", lambda: (1000, 500))
    assert doctor._store_bytes(RayConfig(object_store_mb=200)) == 200 << 20
    assert doctor._store_bytes(RayConfig()) == 300


def test_shared_memory_too_small_for_the_object_store_is_a_problem(tmp_path: Path) -> None:
    assert doctor._shared_memory(1 << 20, str(tmp_path)).ok
    check = doctor._shared_memory(1 << 60, str(tmp_path))
    assert not check.ok
    assert f"--shm-size={1 << 40}m" in check.remedy
    assert doctor._shared_memory(1 << 60, str(tmp_path / "none")).ok


def test_a_full_disk_is_a_problem_also_below_folders_not_yet_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workdir = str(tmp_path / "a" / "b")
    assert doctor._disk(workdir).found.endswith(f"free at {tmp_path}")
    monkeypatch.setattr(doctor, "_DISK_BYTES", 1 << 60)
    check = doctor._disk(workdir)
    assert (check.ok, check.remedy) == (
        False,
        "make room there, or set run.workdir to a larger disk",
    )
    assert doctor._disk("s3://bucket/run").ok


def test_a_workdir_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    assert doctor._writable(str(tmp_path)).ok
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("in the way")
    check = doctor._writable(str(tmp_path / "file" / "run"))
    assert not check.ok
    assert check.remedy == "set run.workdir to a folder that can be written to"


def test_an_encoder_that_is_not_there_is_a_problem() -> None:
    check = doctor._encoder(TextConfig(encoder="./no/such/model"))
    assert not check.ok
    assert "no/such/model" in check.found
    assert check.remedy


@contextmanager
def answering(code: int, body: bytes) -> Iterator[int]:
    """Answer every request on a free port of this machine for the length of the body."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *told: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("code", "body", "ok", "found"),
    [
        (200, b'{"ray_version": "2.60.0"}', True, "the dashboard of Ray 2.60.0"),
        (401, b"", True, "a Ray dashboard that wants a token"),
        (404, b"", False, "something other than Ray answers there"),
        (200, b"<html>", False, "something other than Ray answers there"),
        (200, b"[]", False, "something other than Ray answers there"),
    ],
)
def test_at_the_dashboards_port_only_ray_is_no_problem(
    code: int, body: bytes, ok: bool, found: str
) -> None:
    with answering(code, body) as port:
        check = doctor._dashboard(port)
    assert (check.ok, check.found) == (ok, found)
    assert bool(check.remedy) is not ok


def test_a_dashboards_port_where_nobody_answers_is_free() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening
        check = doctor._dashboard(taken.getsockname()[1])
    assert (check.ok, check.found) == (True, "free")


@pytest.mark.parametrize(
    ("environment", "ok", "found"),
    [
        ({}, True, "not set"),
        ({"RAY_AUTH_MODE": "disabled"}, True, "whoever reaches Ray's ports runs code"),
        ({"RAY_AUTH_MODE": "token"}, False, "auth_token is not there"),
        ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret"}, True, "in RAY_AUTH_TOKEN"),
        ({"RAY_AUTH_MODE": "Token"}, False, 'RAY_AUTH_MODE is "Token"'),
    ],
)
def test_rays_authentication_is_told_without_its_token(
    environment: dict[str, str], ok: bool, found: str, tmp_path: Path
) -> None:
    check = doctor._ray_authentication(environment, tmp_path)
    assert (check.ok, bool(check.remedy)) == (ok, not ok)
    assert found in check.found
    assert "secret" not in check.found


def test_a_token_file_is_found_in_the_home_folder(tmp_path: Path) -> None:
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret")
    check = doctor._ray_authentication({"RAY_AUTH_MODE": "token"}, tmp_path)
    assert (check.ok, check.found) == (True, f"token, in {tmp_path}/.ray/auth_token")


def test_an_endpoint_for_everybody_without_a_key_is_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("MTREC_API_KEY", raising=False)
    assert doctor._api_key("127.0.0.1").ok
    check = doctor._api_key("0.0.0.0")
    assert (check.ok, "set MTREC_API_KEY" in check.remedy) == (False, True)
    monkeypatch.setenv("MTREC_API_KEY", "secret")
    check = doctor._api_key("0.0.0.0")
    assert (check.ok, check.found) == (True, "MTREC_API_KEY is set")


def test_a_node_with_another_version_is_named() -> None:
    own = doctor.versions()
    assert own["mtrec"] == mtrec.__version__
    assert doctor._versions({"a" * 20: own, "b" * 20: own}).ok
    check = doctor._versions({"a" * 20: own, "b" * 20: {**own, "python": "3.10.1"}})
    assert not check.ok
    assert check.found == f"node bbbbbbbb has python 3.10.1, this machine {own['python']}"
    assert "one image" in check.remedy


def test_gpus_that_ray_counts_and_torch_does_not_find_are_a_problem() -> None:
    assert doctor._gpus(0.0, {}).found == "none; text and training run on CPUs"
    assert doctor._gpus(2.0, {"a" * 20: ""}).found == "2"
    check = doctor._gpus(2.0, {"a" * 20: "", "b" * 20: "torch 2.9 finds none"})
    assert (check.ok, check.found) == (
        False,
        "Ray counts 2, but node bbbbbbbb: torch 2.9 finds none",
    )
    assert "torch for CUDA" in check.remedy


def test_without_a_run_the_shared_storage_of_a_cluster_is_not_looked_at() -> None:
    assert "--config" in doctor._shared(None, 2).found
    assert doctor._shared(None, 1).found == "one node needs none"


@pytest.mark.ray
def test_every_check_of_a_working_machine_says_what_it_found(
    ray_local: None,
    monkeypatch: pytest.MonkeyPatch,
    plant: Callable[..., Config],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("ray.shutdown", lambda: None)  # the session's Ray goes on
    checks = {check.name: check for check in doctor.examine(None, plant(tmp_path))}
    assert {"python", "ray", "torch", "memory", "disk", "port 8265"} <= set(checks)
    assert checks["workdir"].found == f"{tmp_path}/run can be written to"
    assert checks["versions"].found.endswith("on all nodes")
    assert checks["cpus"].found == "4 logical"
    assert checks["gpus"].ok
    assert checks["shared storage"].found == "one node needs none"
    assert all(check.remedy for check in checks.values() if not check.ok)


def test_the_default_encoders_weights_are_verified() -> None:
    check = doctor._encoder(TextConfig())
    assert check.ok
    assert check.found == "all-minilm-l6-v2, 384 wide, weights verified"


def test_input_files_are_looked_at_before_a_run(tmp_path: Path) -> None:
    tree = planted(tmp_path)
    assert doctor._input_files(parse_config(tree)) == doctor.Check(
        "input files", True, "3 files with the columns that are asked for"
    )
    tree["data"]["interactions"]["item_id"] = "article"
    found = doctor._input_files(parse_config(tree))
    assert not found.ok
    assert '"article"' in found.found
    tree["data"]["interactions"]["path"] = "gone.csv"
    assert "gone.csv" in doctor._input_files(parse_config(tree)).found
