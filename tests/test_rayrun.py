import logging
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from mtrec.config import RayConfig
from mtrec.errors import ArtifactError, DataError, MtrecError
from mtrec.rayrun import (
    _Terse,
    alive_nodes,
    call_in_tasks,
    call_on_nodes,
    check_shared,
    cluster_cpus,
    cluster_gpus,
    connect,
    find_cause,
)


def _record(message: str, *, file: str = "logging_progress.py", level: int = logging.INFO):
    name = "ray.data._internal.progress.logging_progress"
    return logging.LogRecord(name, level, f"/x/{file}", 1, message, (), None)


@pytest.mark.parametrize(
    ("message", "kept"),
    [
        ("MapBatches(_EmbedTexts): 2/5", True),
        ("MapBatches(_EmbedTexts): 0/5", False),
        ("  Tasks: 1; Actors: 0; Queued blocks: 0 (0.0B)", False),
        ("======= Running Dataset: dataset_1 =======", False),
        ("", False),
    ],
)
def test_of_ray_datas_log_only_begun_operators_are_kept(message: str, kept: bool) -> None:
    assert _Terse().filter(_record(message)) is kept


def test_plans_of_other_files_go_and_warnings_stay() -> None:
    plan = "MapBatches(x): 3/4 is the plan"
    assert not _Terse().filter(_record(plan, file="streaming_executor.py"))
    assert _Terse().filter(_record(plan, file="streaming_executor.py", level=logging.WARNING))


def test_that_a_token_is_asked_for_is_no_warning_and_that_none_is_stays_one() -> None:
    for word, kept in (("enabled", False), ("disabled", True)):
        told = f"Token authentication is {word} for this Ray cluster. For more information, see"
        record = _record(told, file="authentication_token_setup.py", level=logging.WARNING)
        assert _Terse().filter(record) is kept


_WAITS = """
import sys, time
from mtrec.cli import run_shell
from mtrec.config import RayConfig
from mtrec.rayrun import connect

def wait():
    connect(RayConfig(num_cpus=1))
    print("up", flush=True)
    time.sleep(120)

sys.exit(run_shell(wait))
"""


@pytest.mark.ray
def test_a_process_that_is_told_to_end_ends_as_on_ctrl_c() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _WAITS], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.terminate()
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == 130
    assert errors.endswith("mtrec: interrupted; what was finished is kept, run again to go on\n")
    assert "SIGTERM" not in errors


@pytest.mark.ray
def test_connecting_again_changes_nothing_and_tells_the_cpus(ray_local) -> None:
    connect(RayConfig(num_cpus=64))
    assert cluster_cpus() == 4.0
    assert cluster_gpus() == 0.0


@pytest.mark.parametrize("address", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}"])
def test_an_address_where_nobody_answers_is_a_configuration_error(address: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets it, none answers
        where = address.format(port=taken.getsockname()[1])
        program = (
            "import sys\n"
            "from mtrec.cli import run_shell\n"
            "from mtrec.config import RayConfig\n"
            "from mtrec.rayrun import connect\n"
            "sys.exit(run_shell(lambda: connect(RayConfig(), sys.argv[1])))\n"
        )
        # A process of its own: this one may be connected to the session's cluster.
        done = subprocess.run(
            [sys.executable, "-c", program, where],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[0] == f"mtrec: no Ray cluster answers at {where}"
    assert len(done.stderr.splitlines()) == 2


def _halve(value: int) -> int:
    if value % 2:
        raise DataError(f"{value} is odd")
    return value // 2


@pytest.mark.ray
def test_calls_in_tasks_come_back_in_order_and_raise_what_a_call_raised(ray_local) -> None:
    assert list(call_in_tasks(_halve, [{"value": n} for n in (2, 4, 6)], 2)) == [1, 2, 3]
    with pytest.raises(DataError, match="7 is odd"):
        list(call_in_tasks(_halve, [{"value": n} for n in (2, 7, 6)], 2))


NODES = [
    {"NodeID": "aaaaaaaaaa", "NodeManagerHostname": "head"},
    {"NodeID": "bbbbbbbbbb", "NodeManagerHostname": "worker"},
]


def _read_by(*seeing: str):
    """Give what reads files as nodes do of which only some see this machine's disk."""

    def read(path: str, nodes: Sequence[dict[str, str]]) -> dict[str, str]:
        text = Path(path).read_text()
        return {n["NodeID"]: text if n["NodeManagerHostname"] in seeing else "" for n in nodes}

    return read


def test_a_folder_that_a_node_does_not_see_is_refused_with_the_remedy(tmp_path: Path) -> None:
    places = {"run.workdir": str(tmp_path / "run"), "text.store": None}
    with pytest.raises(ArtifactError) as caught:
        check_shared(places, nodes=NODES, read=_read_by("head"))
    assert str(caught.value) == (
        f"the cluster has 2 nodes, and run.workdir {tmp_path}/run is not seen by worker (bbbbbbbb)"
        "\nset run.workdir to a folder that all nodes share (NFS, a ReadWriteMany volume) or to a "
        "URI such as s3://bucket/path"
    )
    assert os.listdir(tmp_path / "run") == []


def test_every_folder_that_is_not_seen_is_named(tmp_path: Path) -> None:
    places = {"run.workdir": str(tmp_path), "text.store": str(tmp_path / "store")}
    with pytest.raises(
        ArtifactError, match=r"run\.workdir .*; text\.store .*\nset run\.workdir and"
    ):
        check_shared(places, nodes=NODES, read=_read_by())


def test_a_shared_folder_a_uri_and_a_single_node_are_fine(tmp_path: Path) -> None:
    check_shared({"run.workdir": str(tmp_path)}, nodes=NODES, read=_read_by("head", "worker"))
    check_shared({"run.workdir": "s3://bucket/x"}, nodes=NODES, read=_read_by())
    check_shared({"run.workdir": str(tmp_path)}, nodes=NODES[:1], read=_read_by())
    assert os.listdir(tmp_path) == []


def test_a_node_that_went_away_meanwhile_is_no_problem(tmp_path: Path) -> None:
    check_shared({"run.workdir": str(tmp_path)}, nodes=NODES, read=lambda path, nodes: {})


@pytest.mark.ray
def test_a_real_node_sees_the_folder_of_its_own_machine(ray_local, tmp_path: Path) -> None:
    # The same node twice: a cluster of two whose disks are one.
    check_shared({"run.workdir": str(tmp_path)}, nodes=alive_nodes() * 2)
    gone = {"NodeID": "ab" * 28, "NodeManagerHostname": "gone"}
    (answers,) = call_on_nodes(os.path.isdir, [*alive_nodes(), gone], str(tmp_path)).values()
    assert answers is True


def test_what_an_actors_start_met_in_the_storage_is_found_in_rays_text() -> None:
    text = "The actor died: x::C.__init__()\n  File 1\nOSError: When y: AWS Error NETWORK: z\nmore"
    cause = find_cause(RuntimeError(text))
    assert type(cause) is OSError
    assert str(cause) == "When y: AWS Error NETWORK: z"
    other = RuntimeError("died\nOSError: no such thing")
    assert find_cause(other) is other


def test_a_ray_that_a_busy_machine_made_late_is_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def init(**options: object) -> None:
        asked.append(str(options["address"]))
        if len(asked) < 3:
            raise Exception("The current node timed out during startup. This could happen ...")

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", init)
    connect(RayConfig(), "local")
    assert asked == ["local"] * 3

    monkeypatch.setattr("mtrec.rayrun._TRIES", 1)
    asked.clear()
    with pytest.raises(MtrecError, match=r"did not start within half a minute, 1 times\n"):
        connect(RayConfig(), "local")

    def fail(**options: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("ray.init", fail)
    with pytest.raises(OSError, match="disk full"):
        connect(RayConfig(), "local")
