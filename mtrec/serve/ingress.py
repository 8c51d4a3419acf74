"""Which process takes the requests in: Ray Serve's Python proxy, or HAProxy in front of replicas.

HAProxy is about six times as fast and opens side ports on all interfaces, so it is for clusters
behind a network policy; the Python proxy is the laptop's. Ray reads the choice from environment
variables when its processes start and when `ray.serve` is imported: set them before either.
Importing this does neither.
"""

import os
import socket
from collections.abc import Mapping, MutableMapping

from mtrec.errors import ConfigError

HAPROXY = {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
"""Both or neither: the second alone leaves a proxy on the head only."""
MIXED = "mixed"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HALF = f"one of {' and '.join(HAPROXY)} is set without the other"
REMEDY = "set both to 1 on every node before Ray starts there, or neither"
_SIDE_PORTS = {
    "RAY_SERVE_HAPROXY_METRICS_PORT": (9101, "HAProxy's metrics, on all interfaces"),
    "RAY_SERVE_HAPROXY_STATS_PORT": (8404, "HAProxy's statistics page, on all interfaces"),
}
# A stopped server ends at once instead of draining for half a minute: on one machine HAProxy
# learns in a fraction of a second that a replica goes.
_LOCAL = {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2"}


def choose(
    ingress: str | None, environment: MutableMapping[str, str] = os.environ, *, is_local: bool
) -> None:
    """Set the variables for a Ray that this process starts.

    Args:
        ingress: `python` or `haproxy`; None leaves what is set.
        environment: changed in place.
        is_local: Ray will run on this machine alone.

    Raises:
        ConfigError: nothing is chosen, and one of the two variables is set without the other.
    """
    if ingress == "haproxy":
        environment.update(HAPROXY)
        for name, value in _LOCAL.items() if is_local else ():
            environment.setdefault(name, value)
    elif ingress == "python":
        for name in HAPROXY:
            environment.pop(name, None)
    elif chosen(environment) == MIXED:
        raise ConfigError(f"{HALF}\n{REMEDY}")


def chosen(environment: Mapping[str, str] = os.environ) -> str:
    """Tell which ingress an environment means: `python`, `haproxy`, or `mixed` for half of it."""
    are_set = [environment.get(name) == value for name, value in HAPROXY.items()]
    if any(are_set):
        return "haproxy" if all(are_set) else MIXED
    return "python"


def check_port(host: str, port: int) -> None:
    """Make sure that nothing listens on a port of this machine.

    Raises:
        ConfigError: something does, or the host is no address of this machine.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            # As servers do: connections that still linger after a restart are no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}\n"
            "end what listens there, or give another --port or --host"
        ) from error


def check_host(host: str, nodes: int) -> None:
    """Make sure that HAProxy reaches replicas on other nodes, which listen where it does.

    Args:
        host: address to listen on.
        nodes: of the cluster.

    Raises:
        ConfigError: it is one that only its own node reaches.
    """
    if nodes > 1 and host in LOOPBACK:
        raise ConfigError(
            f"behind HAProxy replicas listen on {host}, where the other {nodes - 1} nodes do not "
            "reach them\ngive --host 0.0.0.0 (or serve.host), behind a firewall or network policy"
        )


def check_nodes(ingress: str, found: Mapping[str, str]) -> None:
    """Make sure that a cluster's nodes have the ingress that is wanted.

    Args:
        ingress: `python` or `haproxy`.
        found: name of a node -> what `chosen` says there.

    Raises:
        ConfigError: a node has another.
    """
    others = [node for node, there in found.items() if there != ingress]
    if not others:
        return
    raise ConfigError(
        f"serve.ingress is {ingress}, but Ray was started for another on {', '.join(others)}\n"
        f"{' and '.join(HAPROXY)}: {REMEDY}"
    )


def side_ports(environment: Mapping[str, str] = os.environ) -> dict[int, str]:
    """Give the ports that HAProxy opens beside the endpoint's, and what they are for."""
    return {
        int(environment.get(name, port)): purpose for name, (port, purpose) in _SIDE_PORTS.items()
    }
