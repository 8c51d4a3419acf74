"""How mtrec connects to Ray: one place for the address, local limits and Ray Data's settings.

Called by the shells (`cli.py`, `jobs/`) and by nothing below the drivers.
"""

import logging
import os
import re
import signal
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import ray
from ray.data import DataContext, ExecutionResources
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from mtrec import storage
from mtrec.config import RayConfig
from mtrec.errors import ArtifactError, ConfigError, MtrecError

logger = logging.getLogger("mtrec.rayrun")

Result = TypeVar("Result")

# Long enough for a cluster on another continent.
_PROBE_S = 5.0
# A node's first task starts a worker process there.
_NODE_PROBE_S = 60.0
_TRIES = 3
# After so long a task that was handed out runs, or has ended.
_SETTLE_S = 2.0

Node = Mapping[str, Any]
"""What `ray.nodes()` says of one node."""
Reader = Callable[[str, Sequence[Node]], Mapping[str, str]]
"""Gives what nodes find at a path, by node id, empty if nothing; nodes that are gone are absent."""


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
        _quieten()
        if local:
            # Nobody takes this machine away with a warning: the process that would watch for one
            # costs a second at every start of training.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        store = config.object_store_mb
        try:
            _start(
                address=where,
                num_cpus=local_cpus(config) if local else None,
                include_dashboard=False if local else None,
                object_store_memory=store << 20 if local and store is not None else None,
                log_to_driver=False,
                logging_level=logging.WARNING,
            )
        except ConnectionError as error:
            raise _nobody(where) from error
        _end_cleanly()
    _configure_data()


def _end_cleanly() -> None:
    """Let SIGTERM end this process as Ctrl-C does.

    Ray leaves two handlers: one of Python's, which exits, and below it one that prints addresses of
    machine code and ends in an abort, which a scheduler takes for a crash.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


def _start(**options: Any) -> None:
    """Start Ray or connect to it, again if a busy machine was too slow for Ray.

    Ray gives a node half a minute, which nothing can change; its processes of the first try end
    with this one.

    Raises:
        MtrecError: Ray did not start in any of the tries.
    """
    for left in reversed(range(_TRIES)):
        try:
            ray.init(**options)
            return
        except Exception as error:  # Ray raises nothing narrower
            if "timed out during startup" not in str(error):
                raise
            if not left:
                raise MtrecError(
                    f"Ray did not start within half a minute, {_TRIES} times\n"
                    "the machine is too busy: end other work, or wait"
                ) from error
            logger.warning("ray.slow_start: Ray took more than half a minute; trying again")


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
    return config.num_cpus or max(4, usable_cores())


def check_shared(
    places: Mapping[str, str | None],
    *,
    nodes: Sequence[Node] | None = None,
    read: Reader | None = None,
) -> None:
    """Make sure that every node of the cluster sees the local folders that a run writes to.

    Puts a file with a random name into each and lets a task on each node read it. On one node, and
    for URIs, there is nothing to ask.

    Args:
        places: key of the configuration -> path; None where the key is not set.
        nodes: by default the cluster's that are alive.
        read: tells what nodes find at a path; by default by a task on each.

    Raises:
        ArtifactError: a node does not see a folder; all such folders and nodes are named.
    """
    nodes = alive_nodes() if nodes is None else nodes
    local = {key: place for key, place in places.items() if place and storage.is_local(place)}
    problems = []
    for key, place in local.items() if len(nodes) > 1 else ():
        blind = _blind_nodes(place, nodes, read or _read_on_nodes)
        if blind:
            problems.append(f"{key} {place} is not seen by {', '.join(blind)}")
    if problems:
        keys = " and ".join(key for key in local if any(p.startswith(key) for p in problems))
        raise ArtifactError(
            f"the cluster has {len(nodes)} nodes, and {'; '.join(problems)}\n"
            f"set {keys} to a folder that all nodes share (NFS, a ReadWriteMany volume) or to a "
            "URI such as s3://bucket/path"
        )


def _blind_nodes(place: str, nodes: Sequence[Node], read: Reader) -> list[str]:
    """Name the nodes that do not see a file that this process writes into a folder."""
    token = uuid.uuid4().hex
    path = storage.join(storage.filesystem(place)[1], f".seen-{token}")
    with storage.explained("write", place):
        storage.write_bytes(path, token.encode())
    try:
        found = read(path, nodes)
    finally:
        storage.remove(path)
    return [node_name(node) for node in nodes if found.get(node["NodeID"], token) != token]


def _read_on_nodes(path: str, nodes: Sequence[Node]) -> dict[str, str]:
    return call_on_nodes(_read_if_there, nodes, path)


def _read_if_there(path: str) -> str:
    try:
        return storage.read_bytes(path).decode()
    except OSError:
        return ""


def call_on_nodes(
    function: Callable[..., Result],
    nodes: Sequence[Node],
    *arguments: object,
    num_gpus: float = 0.0,
) -> dict[str, Result]:
    """Call a function on each node, at the same time; give the results by node id.

    Nodes that went away meanwhile, or do not answer, are left out with a warning.
    """
    calls = {}
    for node in nodes:
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        remote: Any = ray.remote(num_cpus=0, num_gpus=num_gpus, max_retries=0)(function)
        calls[node["NodeID"]] = remote.options(scheduling_strategy=there).remote(*arguments)
    results = {}
    for node in nodes:
        call = calls[node["NodeID"]]
        try:
            results[node["NodeID"]] = ray.get(call, timeout=_NODE_PROBE_S)
        except RayTaskError as error:
            raise find_cause(error) from error
        except RayError as error:
            logger.warning("node %s did not answer: %s", node_name(node), type(error).__name__)
            # Only what still runs: to cancel a task that has failed can end this process.
            if isinstance(error, GetTimeoutError):
                ray.cancel(call, force=True)
    return results


def node_name(node: Node) -> str:
    """Name a node for people."""
    return f"{node.get('NodeManagerHostname', '?')} ({node['NodeID'][:8]})"


def alive_nodes() -> list[Node]:
    """List the nodes of the connected cluster that are alive."""
    nodes: list[Node] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's
    return [node for node in nodes if node["Alive"]]


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
    except RayTaskError as error:
        raise find_cause(error) from error
    finally:
        if running:
            # Ray ends this process if a task is cancelled while it is handed out or comes back
            # (2.60, task_manager.cc "Check failed"): those that just began are left to begin.
            _, unfinished = ray.wait(running, num_returns=len(running), timeout=_SETTLE_S)
            for reference in unfinished:
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
    # Of what an actor's `__init__` raised, Ray keeps the text only.
    told = [OSError(line) for line in _OS_ERROR.findall(str(error))]
    return next(filter(storage.is_remote_failure, reversed(told)), error)


# Where Ray's exceptions keep the one that they stand for.
_INNER = ("cause", "_base_exc", "controller_failure", "__cause__")
_OS_ERROR = re.compile(r"^(?:\x1b\[\d+m)?OSError: (.*)$", re.MULTILINE)
_RAY_ADVICE = "\nFailed to apply UDF"


def cluster_gpus() -> float:
    """Give the number of GPUs that the connected cluster has."""
    return float(_resources().get("GPU", 0.0))


def cluster_cpus() -> float:
    """Give the number of logical CPUs that the connected cluster has."""
    return float(_resources().get("CPU", 1.0))


def usable_cores() -> int:
    """Give the number of this machine's cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def largest_node_cpus() -> int:
    """Give the logical CPUs of the connected cluster's largest node; at least 1."""
    return max(1, *(int(node["Resources"].get("CPU", 0)) for node in alive_nodes()))


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
    _quieten()


def _quieten() -> None:
    """Keep what nobody needs out of Ray's log; some of its handlers are there only once it runs."""
    for name in ("ray", "ray.data"):
        for handler in logging.getLogger(name).handlers:
            if not any(isinstance(known, _Terse) for known in handler.filters):
                handler.addFilter(_Terse())


# Of Ray Data's log: how far an operator is, once it has begun.
_PROGRESS = re.compile(r"\S.*: [1-9]\d*/")


class _Terse(logging.Filter):
    """Let through Ray Data's warnings and its lines of progress, not its plans and budgets.

    Nor that a local Ray lets in nobody without a token: that is as it should be.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether a record is worth a line."""
        if record.filename == "authentication_token_setup.py":
            return "is enabled" not in record.getMessage()
        if record.levelno > logging.INFO or not record.name.startswith("ray.data"):
            return True
        return record.filename == "logging_progress.py" and bool(
            _PROGRESS.match(record.getMessage())
        )
