"""Fixtures that every test may use: one local Ray a session, and quiet, repeatable settings."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from small_bundle import Small

    from mtrec.config import Config

# A busy machine is no failure.
settings.register_profile("mtrec", deadline=None)
settings.load_profile("mtrec")

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.1"
os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "300"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
# Before Serve's controller starts: how often replicas report their load to autoscaling.
os.environ["RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "0.5"
os.environ["RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "0.5"
# Nobody reads what Ray's agents measure here, nor the logs that its monitor looks for all the time.
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["REPORTER_UPDATE_INTERVAL_MS"] = "3600000"
os.environ["RAY_LOG_MONITOR_MANY_FILES_THRESHOLD"] = "0"
os.environ["LOG_NAME_UPDATE_INTERVAL_S"] = "3600"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Threads of torch sleep soon: by OpenMP's default they keep a core for long after their work, and
# everything here runs beside something else. Read where torch is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("RAY_ADDRESS", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take long first: beside each other, none may start last and run alone."""
    marked = {
        name: {item.path for item in items if item.get_closest_marker(name)}
        for name in ("slow", "ray")
    }
    items.sort(key=lambda item: (item.path not in marked["slow"], item.path not in marked["ray"]))


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """Undo what a command set up in a test: its handler writes to a stream that will be closed."""
    logger = logging.getLogger("mtrec")
    saved = (logger.handlers[:], logger.level, logger.propagate)
    yield
    logger.handlers[:], logger.level, logger.propagate = saved


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """Start one local Ray with four logical CPUs for the whole session."""
    import ray

    from mtrec.config import RayConfig
    from mtrec.rayrun import connect

    connect(RayConfig(num_cpus=4, object_store_mb=200))
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def ray_address(ray_local: None) -> str:
    """Give the address of the local Ray: a command that is given it need not start one."""
    import ray

    return str(ray.get_runtime_context().gcs_address)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> "Small":
    """Give a bundle of a random model on a dataset written by hand; only to be read."""
    from small_bundle import make_small

    return make_small(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def small_integers(tmp_path_factory: pytest.TempPathFactory) -> "Small":
    """Give the same bundle with integers for ids in the source; only to be read."""
    from small_bundle import make_small

    return make_small(tmp_path_factory.mktemp("small-integers"), integer_ids=True)


@pytest.fixture(scope="session")
def plant() -> "Callable[..., Config]":
    """Give a function that writes planted data below a folder and gives a quick configuration."""
    return _plant


@pytest.fixture(scope="session")
def planted_run(tmp_path_factory: pytest.TempPathFactory, ray_local: None) -> "tuple[Config, Path]":
    """Run the whole chain once on small planted data: its configuration and its workdir.

    Shared by all tests that only read; a test that changes something takes `copied_run`.
    """
    from mtrec.chain import run

    folder = tmp_path_factory.mktemp("planted")
    term = {"half_lives": [2.0], "reg": [5.0], "scales": [4.0]}
    config = _plant(folder, model={"next_item": term})
    run(config)
    return config, folder / "run"


@pytest.fixture
def copied_run(planted_run: "tuple[Config, Path]", tmp_path: Path) -> "Config":
    """Give the configuration of a finished run of its own, to break or to go on with."""
    config, workdir = planted_run
    target = tmp_path / "run"
    shutil.copytree(workdir, target)
    return config.model_copy(update={"run": config.run.model_copy(update={"workdir": str(target)})})


def _plant(folder: Path, friends: int = 0, **sections: dict[str, object]) -> "Config":
    from mtrec.configfile import parse_config
    from mtrec.data.sources import planted

    tree = planted(folder / "data", friends_per_user=friends)
    tree["run"] = {"workdir": str(folder / "run"), "seed": 0}
    quick: dict[str, dict[str, object]] = {
        "model": {"embedding_dim": 16, "text_dim": 16, "history": {"length": 12}},
        "train": {"epochs": 6, "batch_size": 16, "learning_rate": 0.01, "warmup_steps": 5},
        "evaluate": {"bootstrap_samples": 100},
        "ray": {"num_cpus": 4, "object_store_mb": 200},
    }
    for name, values in (*quick.items(), *sections.items()):
        tree[name] = {**tree.get(name, {}), **values}
    return parse_config(tree)
