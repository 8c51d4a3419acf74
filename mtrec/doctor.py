"""What `mtrec doctor` looks at: each check says what it found and, if need be, the remedy."""

import os
import platform
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from mtrec.errors import MtrecError

_PACKAGES = {"ray": "2.60.", "torch": "2.", "transformers": "5.", "pyarrow": "", "pydantic": "2."}


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's: `remedy` is empty where nothing needs to be done."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


def examine(address: str | None) -> Iterator[Check]:
    """Yield the checks one by one; the last ones connect to Ray."""
    found = platform.python_version()
    fine = tuple(int(part) for part in found.split(".")[:2]) >= (3, 11)
    yield Check("python", fine, found, "" if fine else "install Python 3.11 or newer")
    for package, prefix in _PACKAGES.items():
        yield _package(package, prefix)
    yield _encoder()
    yield _port(8000)
    yield _authentication()
    yield from _cluster(address)


def _package(name: str, prefix: str) -> Check:
    try:
        found = version(name)
    except PackageNotFoundError:
        return Check(name, False, "not installed", "pip install -e .")
    if found.startswith(prefix):
        return Check(name, True, found)
    return Check(name, False, found, f"expected {prefix}x: pip install -e .")


def _encoder() -> Check:
    from mtrec.config import TextConfig
    from mtrec.text.encoder import build_encoder

    try:
        encoder = build_encoder(TextConfig())
    except MtrecError as error:
        return Check("text encoder", False, str(error).splitlines()[0], "pip install -e .")
    return Check("text encoder", True, f"{encoder.name}, {encoder.dim} wide, weights verified")


def _port(port: int) -> Check:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        taken = probe.connect_ex(("127.0.0.1", port)) == 0
    name = f"port {port}"
    if taken:
        return Check(name, False, "something answers there", "serve with another --port")
    return Check(name, True, "free")


def _authentication() -> Check:
    """Ray's own token authentication does not cover the endpoint; that has a key of its own."""
    key = "MTREC_API_KEY is set" if os.environ.get("MTREC_API_KEY") else "no MTREC_API_KEY"
    mode = os.environ.get("RAY_AUTH_MODE", "not set")
    return Check("authentication", True, f"{key}; RAY_AUTH_MODE {mode}")


def _cluster(address: str | None) -> Iterator[Check]:
    import ray

    from mtrec.config import RayConfig
    from mtrec.rayrun import cluster_cpus, cluster_gpus, connect

    try:
        connect(RayConfig(), address)
    except MtrecError as error:
        lines = str(error).splitlines()
        yield Check("ray", False, lines[0], lines[-1])
        return
    alive = ray.nodes()  # type: ignore[no-untyped-call]  # Ray's
    nodes = [node for node in alive if node["Alive"]]
    yield Check("ray", True, f"{len(nodes)} node(s)")
    cpus, gpus = cluster_cpus(), cluster_gpus()
    remedy = "" if cpus >= 2 else "training and data need 2 logical CPUs: ray.num_cpus=2 or more"
    yield Check("cpus", cpus >= 2, f"{cpus:.0f} logical", remedy)
    note = f"{gpus:.0f}" if gpus else "none; text and training run on CPUs"
    yield Check("gpus", True, note)
    ray.shutdown()
