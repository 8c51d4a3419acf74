"""How mtrec connects to Ray: one place for the address, local limits and Ray Data's settings.

Called by the shells (`cli.py`, `jobs/`) and by nothing below the drivers.
"""

import logging
import os
import re
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.data import DataContext, ExecutionResources
from ray.exceptions import RayError

from mtrec.config import RayConfig
from mtrec.errors import ConfigError, MtrecError

Result = TypeVar("Result")

# Long enough for a cluster on another continent.
_PROBE_S = 5.0


def connect(config: RayConfig, address: str | None = None) -> None:
    """Connect to a Ray cluster, or start a local one; does nothing if already connected.

    Args:
        config: limits of a local Ray.
        address: address of a cluster; by default the `RAY_ADDRESS` variable, else a local Ray.

    Raises:
        ConfigError: there is no cluster at the address.
    """
    if not ray.is_initialized():
        where = address or os.environ.get("RAY_ADDRESS") or "local"
        local = where == "local"
        _probe(where)
        num_cpus = local_cpus(config)
        store = config.object_store_mb
        try:
            ray.init(
                address=where,
                num_cpus=num_cpus if local else None,
                include_dashboard=False if local else None,
                object_store_memory=store << 20 if local and store is not None else None,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
        except ConnectionError as error:
            raise _nobody(where) from error
    _configure_data()


def _probe(where: str) -> None:
    """Refuse a host and port where nothing listens: Ray itself would end the process there."""
    host, colon, port = where.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PROBE_S).close()
    except (OSError, OverflowError) as error:
        raise _nobody(where) from error


def _nobody(where: str) -> ConfigError:
    return ConfigError(
        f"no Ray cluster answers at {where}\n"
        "start one (ray start --head), give --address, or leave it out for a local one"
    )


def local_cpus(config: RayConfig) -> int:
    """Give the logical CPUs that a local Ray has."""
    # On a two-core laptop the train workers must leave some for the drivers.
    return config.num_cpus or max(4, os.cpu_count() or 1)


def call_in_tasks(
    function: Callable[..., Result], arguments: Sequence[Mapping[str, Any]], at_once: int
) -> Iterator[Result]:
    """Call a function once for each set of keyword arguments, in Ray tasks that themselves use Ray.

    Yields:
        The results in the order of `arguments`, each as soon as it and those before are there.

    Raises:
        MtrecError: what a call raised; the other calls are cancelled.
    """

    def call(given: Mapping[str, Any]) -> Result:
        return function(**given)

    # No CPU of their own: they only wait for the tasks and actors that they start.
    remote = ray.remote(num_cpus=0, max_retries=0)(call)
    waiting, running = list(arguments), list[Any]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(remote.remote(waiting.pop(0)))
            yield ray.get(running[0])
            running.pop(0)
    except ray.exceptions.RayTaskError as error:
        raise find_cause(error) from error
    finally:
        for reference in running:
            ray.cancel(reference, recursive=True)


def find_cause(error: BaseException) -> BaseException:
    """Give the error of ours, or of the storage, behind what Ray raised; else the error itself."""
    waiting, seen = [error], set[int]()
    for candidate in waiting:
        if isinstance(candidate, MtrecError | OSError) and not isinstance(candidate, RayError):
            message, advice, _ = str(candidate).partition(_RAY_ADVICE)
            ours = isinstance(candidate, MtrecError) and advice
            return type(candidate)(message) if ours else candidate
        if id(candidate) not in seen:
            seen.add(id(candidate))
            inner = [getattr(candidate, name, None) for name in _INNER]
            inner += getattr(candidate, "worker_failures", {}).values()
            waiting += [each for each in inner if isinstance(each, BaseException)]
    return error


# Where Ray's exceptions keep the one that they stand for.
_INNER = ("cause", "_base_exc", "controller_failure", "__cause__")
_RAY_ADVICE = "\nFailed to apply UDF"


def cluster_gpus() -> float:
    """Give the number of GPUs that the connected cluster has."""
    return float(_resources().get("GPU", 0.0))


def cluster_cpus() -> float:
    """Give the number of logical CPUs that the connected cluster has."""
    return float(_resources().get("CPU", 1.0))


def _resources() -> dict[str, float]:
    resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]  # Ray's
    return resources


def _configure_data() -> None:
    """Set what every data set of mtrec relies on; must come before the first one is made."""
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.execution_options.resource_limits = ExecutionResources.for_limits()
    context.read_op_min_num_blocks = 4
    # Else an error in a task reaches the driver as text only.
    context.raise_original_map_exception = True
    # Advice on `memory=` for operators that users cannot change.
    context.issue_detectors_config.detectors = []
    for name in ("ray", "ray.data"):
        for handler in logging.getLogger(name).handlers:
            if not any(isinstance(known, _Terse) for known in handler.filters):
                handler.addFilter(_Terse())


# Of Ray Data's log: how far an operator is, once it has begun.
_PROGRESS = re.compile(r"\S.*: [1-9]\d*/")


class _Terse(logging.Filter):
    """Let through Ray Data's warnings and its lines of progress, not its plans and budgets."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is worth a line."""
        if record.levelno > logging.INFO or not record.name.startswith("ray.data"):
            return True
        return record.filename == "logging_progress.py" and bool(
            _PROGRESS.match(record.getMessage())
        )
