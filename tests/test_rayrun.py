import logging
import socket
import subprocess
import sys

import pytest

from mtrec.config import RayConfig
from mtrec.errors import DataError
from mtrec.rayrun import _Terse, call_in_tasks, cluster_cpus, cluster_gpus, connect


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
