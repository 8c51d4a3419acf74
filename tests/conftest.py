"""Fixtures that every test may use: one local Ray a session, and quiet, repeatable settings."""

import os
from collections.abc import Iterator

import pytest

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ["RAY_DATA_DISABLE_PROGRESS_BARS"] = "1"
os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] = "0.1"
os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "300"
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("RAY_ADDRESS", None)


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """Start one local Ray with four logical CPUs for the whole session."""
    import ray

    from mtrec.config import RayConfig
    from mtrec.rayrun import connect

    connect(RayConfig(num_cpus=4, object_store_mb=200))
    yield
    ray.shutdown()
