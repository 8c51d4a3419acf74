import socket

import pytest

from mtrec import doctor


def test_a_taken_port_is_a_problem_with_a_remedy() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        check = doctor._port(server.getsockname()[1])
    assert not check.ok
    assert "--port" in check.remedy


def test_a_missing_package_is_a_problem_with_a_remedy() -> None:
    check = doctor._package("no-such-package-at-all", "1.")
    assert not check.ok
    assert "pip install" in check.remedy


def test_another_version_is_a_problem() -> None:
    check = doctor._package("numpy", "0.1.")
    assert not check.ok
    assert "expected 0.1.x" in check.remedy


@pytest.mark.ray
def test_every_check_of_a_working_machine_says_what_it_found(ray_local, monkeypatch) -> None:
    monkeypatch.setattr("ray.shutdown", lambda: None)  # the session's Ray goes on
    checks = {check.name: check for check in doctor.examine(None)}
    assert {"python", "ray", "torch", "text encoder", "cpus", "gpus"} <= set(checks)
    assert checks["text encoder"].ok
    assert "384" in checks["text encoder"].found
    assert all(check.remedy for check in checks.values() if not check.ok)
