"""Measure the endpoint: speed beside bare FastAPI, swaps and overload under load, replicas.

Called by `benchmark.py`; `_servers.py` starts and ends the processes.
"""

import importlib.metadata
import json
import os
import shutil
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _measure import add_pair, in_turn, memory_mib, peak_memory, process_tree
from _results import Results
from _servers import JOBS, free_ports, send_load, server
from _synthetic import write_bundle

from mtrec import storage
from mtrec.config import Config, ServeConfig
from mtrec.configfile import dump_config
from mtrec.paths import Paths
from mtrec.versions import CURRENT, find_bundle

USERS_A_BATCH = 64


@dataclass(frozen=True, slots=True)
class Scale:
    """How long everything takes, in seconds; `soak_share`: load of the soak beside the capacity."""

    load_s: float
    repeats: int
    soak_s: float
    swap_s: float
    soak_share: float
    kill_s: float
    phase_s: float
    recovery_s: float
    items: int


SCALES = {
    # Capacity is measured for a second: others on the machine must not make an overload of a share.
    "small": Scale(1.0, 1, 5.0, 1.5, 0.2, 0.0, 2.0, 2.0, 2_000),
    "full": Scale(10.0, 5, 600.0, 20.0, 0.7, 60.0, 20.0, 10.0, 100_000),
}


def measure_serving(config: Config, scale: str, results: Results) -> None:
    """Measure all that is served: the run's bundle, and a synthetic one with many items.

    At small scale only what takes seconds: no overload, no steps.
    """
    chosen = SCALES[scale]
    bundles = Paths(config.run.workdir).bundles
    work = Path(config.run.workdir) / "serving"
    work.mkdir()
    bench = Bench(config, work, chosen, results)
    bench.beside_bare("serve", bundles)
    large = write_bundle(work / "large", chosen.items, 1000)
    bench.inside(f"recommend, {chosen.items:,} items", large)
    bench.soak(bundles)
    if scale == "small":
        return
    bench.beside_bare(f"serve, {chosen.items:,} items", large)
    for ingress in ("haproxy", "python"):
        bench.overload(bundles, ingress)
    bench.steps(bundles)
    bench.soak(bundles, kill_s=chosen.kill_s)


class Bench:
    """One run of the measurements; see the module's text."""

    def __init__(self, config: Config, work: Path, scale: Scale, results: Results) -> None:
        self._config, self._work = config, work
        self._scale, self._results = scale, results
        self._capacity = 0.0

    def beside_bare(self, row: str, bundles: str) -> None:
        """Load our server and plain FastAPI, both with one replica of the same bundle, by turns."""
        bodies, batches = self._bodies(bundles)
        ports = free_ports(2)
        bare = [sys.executable, str(JOBS / "benchmark.py"), "--out", "unused"]
        bare += ["--serve-bare", bundles, "--port", str(ports[1])]
        seconds = self._scale.load_s
        with (
            self._ours(bundles, ports[0]) as our_pid,
            server(bare, ports[1]) as bare_pid,
            peak_memory(our_pid) as our_memory,
            peak_memory(bare_pid) as bare_memory,
        ):
            for port in ports:
                send_load(port, bodies, seconds)
            pair = in_turn(
                lambda: send_load(ports[0], bodies, seconds),
                lambda: send_load(ports[1], bodies, seconds),
                self._scale.repeats,
            )
            batch = in_turn(
                lambda: _users(send_load(ports[0], batches, seconds, route="recommend/batch")),
                lambda: _users(send_load(ports[0], bodies, seconds, connections=1), 1),
                self._scale.repeats,
            )
        peer = f"FastAPI {importlib.metadata.version('fastapi')} + uvicorn"
        floors = {"requests_per_s": (0.8, 1.0), "p50_ms": (None, None), "p99_ms": (1.5, 1.1)}
        for metric, (at_least, aim) in floors.items():
            add_pair(
                *(self._results, row, metric, pair, peer),
                at_least=at_least,
                aim=aim,
                lower_is_better=metric.endswith("_ms"),
            )
        add_pair(
            *(self._results, f"{row}, batch of {USERS_A_BATCH}", "users_per_s", batch),
            "single requests, one after the other",
            at_least=4.0,
            aim=8.0,
        )
        if our_memory and bare_memory:
            self._results.add(
                *(row, "peak_memory_mib", max(our_memory)),
                peer=peer,
                peer_value=max(bare_memory),
            )
        if not self._capacity:
            self._capacity = statistics.median(sample["requests_per_s"] for sample in pair[0])

    def inside(self, row: str, bundles: str) -> None:
        """Time `Recommender.recommend` for one user beside the bare product and top-K."""
        import torch
        from threadpoolctl import threadpool_limits

        from mtrec import Recommender

        torch.set_num_threads(1)
        recommender = Recommender.load(bundles, threads=1)
        vectors = torch.from_numpy(recommender.bundle.vectors.collaborative)
        user = torch.randn(vectors.shape[1])
        users = [{"user_id": f"u{at}", "k": 10} for at in range(1000)]

        def ours() -> dict[str, float]:
            return _milliseconds(lambda at: recommender.recommend([users[at % len(users)]]))

        def bare() -> dict[str, float]:
            return _milliseconds(lambda _: torch.topk(vectors @ user, 10))

        with threadpool_limits(1):
            ours(), bare()
            pair = in_turn(ours, bare, self._scale.repeats)
        add_pair(
            *(self._results, row, "ms", pair),
            "matrix-vector product and top-K, torch, one thread",
            at_least=2.0,
            aim=1.3,
            lower_is_better=True,
        )

    def soak(self, bundles: str, *, kill_s: float = 0.0) -> None:
        """Load at a share of what it can do, and exchange the bundle again and again.

        Args:
            bundles: folder of versions.
            kill_s: kill one of then two replicas so often; 0: none.
        """
        bodies, _ = self._bodies(bundles)
        copy = self._work / ("soak-kill" if kill_s else "soak")
        first = Path(find_bundle(bundles))
        versions = [first.name, f"{first.name}-2"]
        for name in versions:
            shutil.copytree(first, copy / name)
        _point(copy, versions[0])
        (port,) = free_ports(1)
        # With kills half as long: what is lost is lost within a minute of each.
        seconds = self._scale.soak_s / (2.0 if kill_s else 1.0)
        replicas = 2 if kill_s else 1
        with self._ours(
            *(str(copy), port), follow_s=1.0, min_replicas=replicas, max_replicas=replicas
        ) as pid:
            send_load(port, bodies, self._scale.load_s)
            done = threading.Event()
            # The first swaps make room for two bundles; growth is what comes after them.
            memory: list[float] = []

            def swap() -> None:
                at = 0
                while not done.wait(self._scale.swap_s):
                    at += 1
                    _point(copy, versions[at % 2])
                    memory.append(memory_mib(process_tree(pid)))

            def kill() -> None:
                while not done.wait(kill_s):
                    found = [process for process in process_tree(pid) if _is_replica(process)]
                    if len(found) < replicas:  # the last one is not back yet
                        continue
                    os.kill(found[-1], signal.SIGKILL)
                    killed.append(found[-1])

            killed: list[int] = []
            threads = [
                threading.Thread(target=work, daemon=True)
                for work in ((swap, kill) if kill_s else (swap,))
            ]
            for thread in threads:
                thread.start()
            seen = send_load(
                *(port, bodies, seconds),
                connections=64,
                rate=self._scale.soak_share * self._capacity,
                strict=False,
            )
            done.set()
            for thread in threads:
                thread.join()
        share = f"{100 * self._scale.soak_share:g} %"
        row = f"soak {seconds:g} s at {share}, a swap every {self._scale.swap_s:g} s"
        if kill_s:
            row += f", one of two replicas killed every {kill_s:g} s"
        add = self._results.add
        add(row, "requests", float(seen["requests"]))
        # Told apart from what failed, under the same bar: a server that falls behind is sent less.
        not_sent = float(seen["status"].get("not sent", 0))
        add(row, "not_sent", not_sent, at_least=0.0, lower_is_better=True)
        fine = ("200", "mixed", "not sent")
        failed = {s: n for s, n in seen["status"].items() if s not in fine}
        if kill_s:
            # What a killed process had in hand is lost; that nothing is, is what we aim at.
            add(row, "failed", float(sum(failed.values())), aim=0.0, lower_is_better=True)
            add(row, "replicas_killed", float(len(killed)))
        else:
            add(row, "failed", float(sum(failed.values())), at_least=0.0, lower_is_better=True)
        mixed = float(seen["status"].get("mixed", 0))
        add(row, "mixed_versions", mixed, at_least=0.0, lower_is_better=True)
        add(row, "versions_seen", float(len(seen["versions"])), at_least=2.0)
        add(row, "p99_ms", seen["p99_ms"])
        if len(memory) >= 6 and memory[0] and not kill_s:
            third = len(memory) // 3
            early, late = (
                statistics.median(memory[third : 2 * third]),
                statistics.median(memory[-third:]),
            )
            add(
                *(row, "memory_mib", late),
                peer="the second third",
                peer_value=early,
                at_least=1.03,
                lower_is_better=True,
            )

    def overload(self, bundles: str, ingress: str) -> None:
        """Send three times what it can do, then see how soon it is itself again."""
        bodies, _ = self._bodies(bundles)
        (port,) = free_ports(1)
        seconds, recovery = self._scale.phase_s, self._scale.recovery_s
        # With the numbers that everybody gets: what waits decides how late an answer comes.
        ongoing = ServeConfig().max_ongoing_requests
        with self._ours(bundles, port, ingress=ingress, max_ongoing_requests=ongoing):
            send_load(port, bodies, self._scale.load_s)
            capacity = float(send_load(port, bodies, self._scale.load_s)["requests_per_s"])
            before, during, after = (
                send_load(
                    *(port, bodies, length), connections=256, rate=share * capacity, strict=False
                )
                for share, length in ((0.7, seconds), (3.0, seconds), (0.7, recovery))
            )
        row = f"overload at 3x for {seconds:g} s, {ingress} ingress"
        add = self._results.add
        refused = during["status"].get("503", 0)
        own = {"500", "502", "504"} if ingress == "haproxy" else set()
        others = {s: n for s, n in during["status"].items() if s not in ("200", "503", "not sent")}
        proxy = sum(n for s, n in others.items() if s in own)
        add(row, "answered_200", float(during["status"].get("200", 0)))
        add(row, "refused_503", float(refused))
        if ingress == "haproxy":
            add(row, "refused_by_the_proxy", float(proxy))
        strange = float(sum(others.values()) - proxy)
        add(row, "other_answers", strange, at_least=0.0, lower_is_better=True)
        add(
            *(row, "p99_ms_of_200", during["good_p99_ms"]),
            peer="p99 at 70 %",
            peer_value=before["good_p99_ms"],
            at_least=3.0,
            lower_is_better=True,
        )
        add(
            *(row, f"errors_in_the_{recovery:g}_s_after", float(after["errors"])),
            at_least=0.0,
            lower_is_better=True,
        )

    def steps(self, bundles: str) -> None:
        """Raise the load fourfold and take it back: replicas must follow, and nothing be lost."""
        bodies, _ = self._bodies(bundles)
        (port,) = free_ports(1)
        seconds = 3.0 * self._scale.phase_s
        with self._ours(
            *(bundles, port),
            min_replicas=1,
            max_replicas=3,
            num_cpus=0.5,
            target_ongoing_requests=1.0,
            max_ongoing_requests=64,
            upscale_delay_s=2.0,
            downscale_delay_s=5.0,
        ) as pid:
            send_load(port, bodies, self._scale.load_s)
            seen: list[dict[str, Any]] = []
            replicas: list[int] = []
            for share in (0.15, 0.6, 0.15):
                most: list[int] = []
                with _counting(pid, most):
                    seen.append(
                        send_load(
                            *(port, bodies, seconds),
                            connections=64,
                            rate=share * self._capacity,
                            strict=False,
                        )
                    )
                replicas.append(most[-1] if share < 0.5 else max(most))
        row = f"steps 1x, 4x, 1x of {seconds:g} s"
        add = self._results.add
        add(
            row, "failed", float(sum(s["errors"] for s in seen)), at_least=0.0, lower_is_better=True
        )
        for name, count in zip(("before", "at_most", "after"), replicas, strict=True):
            add(row, f"replicas_{name}", float(count))

    def _bodies(self, bundles: str) -> tuple[Path, Path]:
        """Write requests of a bundle's users, single and in batches; give both files."""
        from mtrec.userstore import UserStore

        store = UserStore(os.path.join(find_bundle(bundles), "users"))
        users = store.beginning("", 1000)
        single, batch = self._work / "bodies.jsonl", self._work / "batches.jsonl"
        single.write_text("\n".join(json.dumps({"user_id": user}) for user in users))
        batch.write_text(
            "\n".join(
                json.dumps({"requests": [{"user_id": user} for user in part]})
                for at in range(0, len(users) - USERS_A_BATCH + 1, USERS_A_BATCH)
                for part in [users[at : at + USERS_A_BATCH]]
            )
        )
        return single, batch

    @contextmanager
    def _ours(
        self, bundles: str, port: int, *, ingress: str = "haproxy", **changes: object
    ) -> Iterator[int]:
        """Run `mtrec serve`, by default one replica; gives its pid."""
        values = {"min_replicas": 1, "max_replicas": 1, "max_ongoing_requests": 64}
        serve = self._config.serve.model_copy(update={**values, **changes})
        settings = self._work / "serve.yaml"
        settings.write_text(dump_config(self._config.model_copy(update={"serve": serve})))
        command = [sys.executable, "-c", "from mtrec.cli import main; main()", "serve"]
        command += ["--bundle", bundles, "--config", str(settings), "--port", str(port)]
        metrics, stats = free_ports(2)
        beside = {
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        }
        with server([*command, "--ingress", ingress], port, beside) as pid:
            yield pid


def _users(found: Mapping[str, Any], users: int = USERS_A_BATCH) -> dict[str, float]:
    return {"users_per_s": users * float(found["requests_per_s"])}


def _point(bundles: Path, version: str) -> None:
    storage.write_bytes(str(bundles / CURRENT), version.encode() + b"\n")


def _milliseconds(work: Callable[[int], object], count: int = 200) -> dict[str, float]:
    times = []
    for at in range(count):
        begin = time.perf_counter()
        work(at)
        times.append(time.perf_counter() - begin)
    return {"ms": 1000.0 * statistics.median(times)}


@contextmanager
def _counting(root: int, counts: list[int]) -> Iterator[None]:
    """Count the replicas below a process twice a second."""
    done = threading.Event()

    def count() -> None:
        while not done.wait(0.5):
            counts.append(sum(_is_replica(pid) for pid in process_tree(root)))

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _is_replica(pid: int) -> bool:
    try:
        return b"ServeReplica" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
