"""What `mtrec doctor` looks at: each check says what it found and, if need be, the remedy."""

import json
import os
import platform
import re
import shutil
import socket
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import mtrec
from mtrec import storage
from mtrec.config import Config, RayConfig, ServeConfig, TextConfig
from mtrec.errors import MtrecError
from mtrec.serve.ingress import (
    HALF,
    LOOPBACK,
    MIXED,
    REMEDY,
    check_nodes,
    chosen,
    side_ports,
)

_PACKAGES = {"ray": "2.60.", "torch": "2.", "transformers": "5.", "pyarrow": "", "pydantic": "2."}
_DASHBOARD_PORT = 8265
# The demo's peak with all of Ray's processes is 2 GiB, its workdir well below 1 GiB.
_MEMORY_BYTES = 2 << 30
_DISK_BYTES = 1 << 30
# What Ray takes for its object store unless ray.object_store_mb says otherwise.
_STORE_FRACTION = 0.3
_SHM = "/dev/shm"
# Enough to be shown a GPU, so little that others' work leaves it free.
_SOME_GPU = 0.01


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's: `remedy` is empty where nothing needs to be done."""

    name: str
    ok: bool
    found: str
    remedy: str = ""


def examine(address: str | None, config: Config | None = None) -> Iterator[Check]:
    """Yield the checks one by one; the last ones connect to Ray.

    Args:
        address: address of a Ray cluster; default: the `RAY_ADDRESS` variable, else a local one.
        config: a run; its workdir, encoder and ports are looked at in place of the defaults.
    """
    ray_config = config.ray if config is not None else RayConfig()
    serve = config.serve if config is not None else ServeConfig()
    found = platform.python_version()
    fine = sys.version_info >= (3, 11)
    yield Check("python", fine, found, "" if fine else "install Python 3.11 or newer")
    yield Check("mtrec", True, mtrec.__version__)
    for package, prefix in _PACKAGES.items():
        yield _package(package, prefix)
    yield _encoder(config.text if config is not None else TextConfig())
    yield _memory()
    yield _shared_memory(_store_bytes(ray_config))
    workdir = config.run.workdir if config is not None else "."
    yield _disk(workdir)
    if config is not None:
        yield _writable(workdir)
        yield _input_files(config)
    yield _port(serve.port)
    yield from _ingress(serve.ingress, os.environ)
    yield _dashboard()
    yield _ray_authentication(os.environ, Path.home())
    yield _api_key(serve.host)
    yield from _cluster(address, ray_config, config)


# ---- this machine ---------------------------------------------------------------------------


def _package(name: str, prefix: str) -> Check:
    try:
        found = version(name)
    except PackageNotFoundError:
        return Check(name, False, "not installed", "pip install -e .")
    if found.startswith(prefix):
        return Check(name, True, found)
    return Check(name, False, found, f"expected {prefix}x: pip install -e .")


def _encoder(text: TextConfig) -> Check:
    from mtrec.text.encoder import build_encoder
    from mtrec.text.models import BUNDLED

    try:
        encoder = build_encoder(text)
    except MtrecError as error:
        lines = str(error).splitlines()
        return Check("text encoder", False, lines[0], lines[-1])
    weights = {"hashing": "no language model", BUNDLED: "weights verified"}
    return Check(
        "text encoder",
        True,
        f"{encoder.name}, {encoder.dim} wide, {weights.get(text.encoder, 'loads')}",
    )


def _input_files(config: Config) -> Check:
    """Look whether the tables are there and have their columns; no rows are read."""
    from mtrec.data.readers import plan
    from mtrec.data.sources import resolve_root

    data = config.data
    named = (data.interactions, data.items, data.users, data.social)
    tables = [table for table in named if table is not None]
    try:
        root = resolve_root(data)
        files = {piece.path for table in tables for piece in plan(table, root)}
    except MtrecError as error:
        lines = str(error).splitlines()
        return Check("input files", False, lines[0], lines[-1])
    return Check("input files", True, f"{len(files)} files with the columns that are asked for")


def _memory() -> Check:
    total, free = _memory_bytes()
    found = f"{_gib(free)} free of {_gib(total)}"
    if free >= _MEMORY_BYTES:
        return Check("memory", True, found)
    return Check(
        "memory",
        False,
        found,
        f"the demo takes {_gib(_MEMORY_BYTES)}: end other programs, or give the container more",
    )


def _memory_bytes() -> tuple[int, int]:
    """Give total and free memory: the machine's, or what is left to this container."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    told = re.search(r"MemAvailable: +(\d+) kB", _text("/proc/meminfo"))
    free = int(told[1]) << 10 if told else total  # not told on macOS
    limit, used = (_number(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit is not None and limit < total:
        total, free = limit, min(free, limit - (used or 0))
    return total, free


def _number(path: str) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdigit() else None


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""


def _store_bytes(ray: RayConfig) -> int:
    if ray.object_store_mb is not None:
        return ray.object_store_mb << 20
    return int(_STORE_FRACTION * _memory_bytes()[0])


def _shared_memory(wanted: int, place: str = _SHM) -> Check:
    """Look whether Ray's object store has room; without, Ray takes the slower disk."""
    name = f"object store, {place}"
    if not os.path.isdir(place):  # not on macOS
        return Check(name, True, f"not here; {_gib(wanted)} wanted")
    total = shutil.disk_usage(place).total
    found = f"{_gib(total)}, {_gib(wanted)} wanted"
    if total >= wanted:
        return Check(name, True, found)
    return Check(
        name,
        False,
        found,
        f"docker run --shm-size={wanted >> 20}m, in Kubernetes an emptyDir of medium Memory at "
        f"{place}; or set ray.object_store_mb to {max(80, total >> 20)} or less",
    )


def _disk(workdir: str) -> Check:
    name = "disk"
    if not storage.is_local(workdir):
        return Check(name, True, f"{workdir} is no local disk")
    place = Path(storage.filesystem(workdir)[1])
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    found = f"{_gib(free)} free at {place}"
    if free >= _DISK_BYTES:
        return Check(name, True, found)
    return Check(name, False, found, "make room there, or set run.workdir to a larger disk")


def _writable(workdir: str) -> Check:
    """Write a file into the workdir, read it and take it away again."""
    path, told = storage.join(workdir, f".seen-{uuid.uuid4().hex}"), uuid.uuid4().bytes
    try:
        with storage.explained("write", workdir):
            storage.write_bytes(path, told)
            same = storage.read_bytes(path) == told
            storage.remove(path)
    except MtrecError as error:
        lines = str(error).splitlines()
        return Check("workdir", False, lines[0], lines[-1])
    except OSError as error:
        remedy = "set run.workdir to a folder that can be written to"
        return Check("workdir", False, f"{workdir}: {error}", remedy)
    if not same:
        remedy = "set run.workdir to storage that gives back what was written"
        return Check("workdir", False, f"{workdir} gave other bytes back", remedy)
    return Check("workdir", True, f"{workdir} can be written to")


def _port(port: int) -> Check:
    name = f"port {port}"
    if _answers(port):
        return Check(name, False, "something answers there", "serve with another --port")
    return Check(name, True, "free")


def _ingress(wanted: str | None, environment: Mapping[str, str]) -> Iterator[Check]:
    """Look at what will take requests in, and at the ports that it opens beside."""
    name = "ingress"
    ingress = wanted or chosen(environment)
    if ingress == MIXED:
        yield Check(name, False, HALF, REMEDY)
        return
    if ingress == "python":
        yield Check(name, True, "Ray Serve's Python proxy; --ingress haproxy is faster")
        return
    if not sys.platform.startswith("linux"):
        yield Check(name, False, "HAProxy comes for Linux only", "serve with --ingress python")
        return
    ports = side_ports(environment)
    told = ", ".join(f"{port} ({purpose})" for port, purpose in ports.items())
    taken = [port for port in ports if _answers(port)]
    if taken:
        remedy = "set RAY_SERVE_HAPROXY_METRICS_PORT and RAY_SERVE_HAPROXY_STATS_PORT to free ones"
        yield Check(name, False, f"HAProxy; something answers on {taken}", remedy)
        return
    yield Check(name, True, f"HAProxy; beside the endpoint it opens {told}: keep them from others")


def _dashboard(port: int = _DASHBOARD_PORT) -> Check:
    """Look at the port of Ray's dashboard and jobs: free, or a Ray's."""
    name = f"port {port}"
    if not _answers(port):
        return Check(name, True, "free")
    try:
        with urlopen(f"http://127.0.0.1:{port}/api/version", timeout=2.0) as answer:
            found = json.load(answer)["ray_version"]
    except HTTPError as error:
        if error.code in (401, 403):
            return Check(name, True, "a Ray dashboard that wants a token")
    except (OSError, ValueError, KeyError, TypeError):
        pass  # whatever it is, it is no dashboard
    else:
        return Check(name, True, f"the dashboard of Ray {found}")
    return Check(
        name, False, "something other than Ray answers there", "ray start --dashboard-port=8266"
    )


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


# ---- authentication -------------------------------------------------------------------------


def _ray_authentication(environment: Mapping[str, str], home: Path) -> Check:
    """Look at who may send jobs to Ray: whoever may, runs any code."""
    name, mode = "ray authentication", environment.get("RAY_AUTH_MODE", "")
    if mode not in ("", "token", "disabled"):
        remedy = "set RAY_AUTH_MODE to token or disabled"
        return Check(name, False, f'RAY_AUTH_MODE is "{mode}"', remedy)
    if mode == "disabled":
        found = "RAY_AUTH_MODE is disabled: whoever reaches Ray's ports runs code"
        return Check(name, True, found)
    path = Path(environment.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token")
    if environment.get("RAY_AUTH_TOKEN"):
        return Check(name, True, "token, in RAY_AUTH_TOKEN")
    if path.is_file():
        return Check(name, True, f"token, in {path}")
    if mode == "token":
        remedy = "ray get-auth-token --generate, then give every node the same token"
        return Check(name, False, f"RAY_AUTH_MODE is token, but {path} is not there", remedy)
    return Check(name, True, "not set: a local Ray makes a token of its own")


def _api_key(host: str) -> Check:
    """Look whether the endpoint asks who calls; Ray's authentication does not cover it."""
    name = "endpoint authentication"
    if os.environ.get("MTREC_API_KEY"):
        return Check(name, True, "MTREC_API_KEY is set")
    if host in LOOPBACK:
        return Check(name, True, f"no MTREC_API_KEY; it listens on {host} only")
    remedy = "set MTREC_API_KEY, or serve.host to 127.0.0.1"
    return Check(name, False, f"no MTREC_API_KEY, and it listens on {host}", remedy)


# ---- the cluster ----------------------------------------------------------------------------


def _cluster(address: str | None, settings: RayConfig, config: Config | None) -> Iterator[Check]:
    import ray

    from mtrec import rayrun

    try:
        rayrun.connect(settings, address)
    except MtrecError as error:
        lines = str(error).splitlines()
        yield Check("ray", False, lines[0], lines[-1])
        return
    except RuntimeError as error:  # Ray's own, for a cluster of another version
        remedy = "give the cluster and this machine the same Ray and Python"
        yield Check("ray", False, (str(error).splitlines() or [""])[0], remedy)
        return
    try:
        nodes = rayrun.alive_nodes()
        yield Check("ray", True, f"{len(nodes)} node(s)")
        yield _versions(rayrun.call_on_nodes(versions, nodes))
        wanted = config.serve.ingress if config is not None else None
        if len(nodes) > 1 and (wanted or chosen()) == "haproxy":
            yield _ingress_on(rayrun.call_on_nodes(chosen, nodes))
        cpus, gpus = rayrun.cluster_cpus(), rayrun.cluster_gpus()
        remedy = "" if cpus >= 2 else "training and data need 2 logical CPUs: ray.num_cpus=2"
        yield Check("cpus", cpus >= 2, f"{cpus:.0f} logical", remedy)
        with_gpu = [node for node in nodes if node["Resources"].get("GPU", 0)]
        yield _gpus(gpus, rayrun.call_on_nodes(torch_cuda, with_gpu, num_gpus=_SOME_GPU))
        yield _shared(config, len(nodes))
    finally:
        ray.shutdown()


def versions() -> dict[str, str]:
    """Tell what runs where this is called; on all nodes it must be the same."""
    return {
        "ray": version("ray"),
        "python": platform.python_version(),
        "mtrec": mtrec.__version__,
    }


def torch_cuda() -> str:
    """Tell why torch has no GPU where this is called; empty if it has one."""
    from mtrec.text.encoder import has_cuda

    return "" if has_cuda() else f"torch {version('torch')} finds none"


def _versions(found: Mapping[str, Mapping[str, str]]) -> Check:
    own = versions()
    told = ", ".join(f"{name} {value}" for name, value in own.items())
    problems = [
        f"node {node[:8]} has {name} {value}, this machine {own[name]}"
        for node, there in found.items()
        for name, value in there.items()
        if value != own[name]
    ]
    if problems:
        remedy = "run one image on all nodes (cluster/Dockerfile)"
        return Check("versions", False, "; ".join(problems), remedy)
    return Check("versions", True, f"{told} on all nodes")


def _ingress_on(found: Mapping[str, str]) -> Check:
    """Look whether every node was started for HAProxy."""
    name = "ingress on nodes"
    try:
        check_nodes("haproxy", {f"node {node[:8]}": there for node, there in found.items()})
    except MtrecError as error:
        lines = str(error).splitlines()
        return Check(name, False, lines[0], lines[-1])
    return Check(name, True, f"HAProxy on all {len(found)}")


def _gpus(count: float, problems: Mapping[str, str]) -> Check:
    if not count:
        return Check("gpus", True, "none; text and training run on CPUs")
    told = [f"node {node[:8]}: {text}" for node, text in problems.items() if text]
    if told:
        remedy = "install torch for CUDA and the driver there, or start Ray with --num-gpus=0"
        return Check("gpus", False, f"Ray counts {count:.0f}, but {'; '.join(told)}", remedy)
    return Check("gpus", True, f"{count:.0f}")


def _shared(config: Config | None, num_nodes: int) -> Check:
    from mtrec.rayrun import check_shared

    name = "shared storage"
    if num_nodes == 1:
        return Check(name, True, "one node needs none")
    if config is None:
        return Check(name, True, "not looked at: give the run with --config")
    run = config.run
    try:
        check_shared(
            {
                "run.workdir": run.workdir,
                "run.storage": run.storage,
                "text.store": config.text.store,
            }
        )
    except MtrecError as error:
        lines = str(error).splitlines()
        return Check(name, False, lines[0], lines[-1])
    return Check(name, True, f"all {num_nodes} nodes reach {run.workdir}")


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
