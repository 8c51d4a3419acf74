"""The driver of `embed`: give every text of a dataset a vector in the store.

What the store lacks goes through a bounded pool of Ray Data actors. Each actor writes its vectors
into the store batch by batch, so a kill loses at most one batch per actor and the next run goes on
from there. Vectors never travel to the driver, which gets one line of counts per batch. Comes after
`prepare`; training and bundling read the store.
"""

import logging
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from mtrec import artifacts, storage
from mtrec.artifacts import Manifest
from mtrec.config import Config, TextConfig
from mtrec.errors import ArtifactError, ConfigError, MtrecError
from mtrec.rayrun import alive_nodes, cluster_gpus, largest_node_cpus, usable_cores
from mtrec.runlog import event
from mtrec.text.encoder import build_encoder, describe_encoder, has_cuda
from mtrec.text.spec import EncoderSpec
from mtrec.text.store import EmbeddingStore, store_path

logger = logging.getLogger("mtrec.text.embed")

UNKNOWN_TOKENS_LIMIT = 0.2
"""Above this share of unknown tokens, a warning says that the encoder does not fit the language."""

# One batch is one shard and the most that a kill loses: some ten seconds of MiniLM on two cores.
_BATCH_TEXTS = 1024
_BATCH_CHARACTERS = 1 << 18
_PROGRESS_INTERVAL_S = 10.0
# What an actor may answer with.
_ERRORS = {kind.__name__: kind for kind in (ArtifactError, ConfigError)}


def embed(
    config: Config, *, dataset: str, path: str, key: str, parents: Mapping[str, str]
) -> Manifest:
    """Embed the texts of a dataset that the store lacks, and write the manifest last.

    Ray must be connected. If the store lacks nothing, no encoder is loaded and no job is run.

    Args:
        config: the run; `config.text` is read.
        dataset: folder or URI of the dataset artifact.
        path: folder or URI of the embeddings artifact; shards lie in it unless `text.store` is set.
        key: the stage's key.
        parents: name -> id of the artifacts that this one is made from.

    Returns:
        the manifest; its details name the encoder and count texts.

    Raises:
        ConfigError: the encoder cannot be loaded, or `text.device: cuda` finds no GPU.
        ArtifactError: the dataset or the store is damaged.
    """
    artifacts.read_manifest(dataset, "dataset")
    storage.remove(storage.join(path, artifacts.MANIFEST))
    text = config.text
    if text.item_template is None and text.user_template is None and text.behaviour is None:
        details: dict[str, Any] = {"encoder": None, "unique_texts": 0, "embedded": 0}
        details |= {"reused": 0, "actors": 0, "unknown_token_fraction": 0.0, "warnings": []}
        return _write_manifest(path, key, parents, details, files={}, content=[])
    on_gpu = _wants_gpu(text)
    spec = describe_encoder(text, device="cuda" if on_gpu and _cuda_works() else "cpu")
    place = storage.absolute(store_path(text, path))
    store = EmbeddingStore.create(place, spec)
    texts = unique_texts(dataset)
    missing = store.missing(texts)
    work = _embed_missing(text, spec, place, missing, on_gpu=on_gpu) if missing else []
    # Of actors that were killed, in this run or in one before.
    for folder in (path, store.path):
        storage.remove_abandoned(folder)
    unknown = store.count_tokens(texts).unknown_fraction
    details = {
        "encoder": asdict(spec),
        "unique_texts": len(texts),
        "embedded": len(missing),
        "reused": len(texts) - len(missing),
        **_summarise(work),
        "unknown_token_fraction": unknown,
        "warnings": _warnings(spec, unknown),
        "shards": sorted(shards := store.files()),
    }
    for warning in details["warnings"]:
        logger.warning("%s", warning)
    is_inside = place == storage.absolute(path)
    files = {f"{spec.id}/{name}": entry for name, entry in shards.items()}
    return _write_manifest(
        path,
        key,
        parents,
        details,
        files=files if is_inside else {},
        content=[spec.id, *(store.key(text) for text in texts)],
    )


def has_shards(text: TextConfig, path: str, manifest: Manifest) -> bool:
    """Tell whether the store that is configured has the shards of when the manifest was written.

    Args:
        text: names the store.
        path: folder or URI of the embeddings artifact.
        manifest: its manifest.
    """
    shards = manifest.details.get("shards")
    if not shards:
        return True
    try:
        store = EmbeddingStore(
            storage.absolute(store_path(text, path)), manifest.details["encoder"]["id"]
        )
    except ArtifactError:
        return False
    return set(shards) <= set(store.files())


def unique_texts(dataset: str) -> list[str]:
    """List the texts of a dataset, each once, without empty ones, short ones first.

    The order, by length and then by code points, decides which texts share a batch; it depends on
    nothing but the texts.

    Raises:
        ArtifactError: a table of the dataset cannot be read.
    """
    columns = {"items.parquet": ["text"], "users.parquet": ["text", "behaviour_text"]}
    found = [
        column
        for name, wanted in columns.items()
        for column in _text_columns(storage.join(dataset, name), wanted)
    ]
    unique = pc.unique(
        pa.chunked_array([chunk for column in found for chunk in column.chunks], pa.string())
    )
    return sorted((text for text in unique.to_pylist() if text), key=lambda text: (len(text), text))


def _text_columns(place: str, wanted: list[str]) -> Iterator[pa.ChunkedArray]:
    """Yield those of the wanted columns that a table has, as strings."""
    if not storage.exists(place):
        return
    system, inner = storage.filesystem(place)
    try:
        with system.open_input_file(inner) as file:
            present = [name for name in wanted if name in pq.read_schema(file).names]
            file.seek(0)
            table = pq.read_table(file, columns=present)
    except (pa.ArrowException, OSError) as error:
        if storage.is_remote_failure(error):
            raise
        raise ArtifactError(
            f"{place} is damaged: {str(error).splitlines()[0]}\nrun prepare again"
        ) from error
    for name in present:
        yield table[name].cast(pa.string())


# ---- the pool -----------------------------------------------------------------------------------


class _EmbedTexts:
    """One actor of the pool: encodes a batch, adds it to the store, answers with counts.

    An error of ours is an answer as well: raised, it would reach the driver as Ray's, with pages of
    traceback, and one from `__init__` as text only.
    """

    def __init__(
        self, text: dict[str, Any], encoder_id: str, place: str, on_gpu: bool, threads: int
    ) -> None:
        # A cluster may count GPUs that are not there (tests, wrong flags).
        device = "cuda" if on_gpu and has_cuda() else "cpu"
        context = ray.get_runtime_context()
        self._about = {
            "actor": context.get_actor_id() or "",
            "node": context.get_node_id() or "",
            "device": device,
            "gpu_ids": ",".join(str(value) for value in ray.get_gpu_ids()),
        }
        self._problem: MtrecError | None = None
        try:
            self._load(TextConfig(**text), encoder_id, place, device, threads)
        except MtrecError as error:
            self._problem = error

    def __call__(self, batch: pa.Table) -> pa.Table:
        start = time.monotonic()
        (texts,) = batch["texts"].to_pylist()
        tokens, problem = 0, self._problem
        if problem is None:
            try:
                counts = self._encoder.count_tokens(texts)
                self._store.add(texts, self._encoder.encode(texts), counts)
                tokens = int(counts.total.sum())
            except MtrecError as error:
                problem = error
        line = {
            **self._about,
            "texts": len(texts),
            "tokens": tokens,
            "seconds": time.monotonic() - start,
            "error": type(problem).__name__ if problem else "",
            "message": str(problem or ""),
        }
        return pa.Table.from_pylist([line])

    def _load(
        self, text: TextConfig, encoder_id: str, place: str, device: str, threads: int
    ) -> None:
        self._encoder = build_encoder(text, device=device, threads=min(threads, usable_cores()))
        if self._encoder.id != encoder_id:
            raise ArtifactError(
                f'text.encoder "{self._encoder.name}" is not the same on every machine: node '
                f"{self._about['node'][:8]} ({device}) has id {self._encoder.id}, "
                f"expected {encoder_id}\n"
                "put the same model on every node; set text.precision if only some have a GPU"
            )
        self._store = EmbeddingStore(place, encoder_id)


def _embed_missing(
    text: TextConfig, spec: EncoderSpec, place: str, texts: list[str], *, on_gpu: bool
) -> list[dict[str, Any]]:
    """Run the pool over the texts that the store lacks; give one line of counts per batch."""
    batches = _plan_shards(texts, text.actors)
    actors = min(text.actors, len(batches))
    cpus = 1 if on_gpu else _cpus_per_actor(actors)
    if os.path.isdir(text.encoder):
        text = text.model_copy(update={"encoder": storage.absolute(text.encoder)})
    # A row is a planned batch: Ray Data would merge blocks of unequal length.
    rows = [pa.table({"texts": pa.array([batch], pa.list_(pa.string()))}) for batch in batches]
    data = ray.data.from_arrow(rows).map_batches(
        _EmbedTexts,
        fn_constructor_args=(text.model_dump(), spec.id, place, on_gpu, cpus),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
        num_cpus=cpus,
        num_gpus=1 if on_gpu else None,
        memory=_memory_per_actor(spec),
    )
    lines: list[dict[str, Any]] = []
    start = shown = time.monotonic()
    for table in data.iter_batches(batch_size=None, batch_format="pyarrow"):
        assert isinstance(table, pa.Table)
        for line in table.to_pylist():
            if line["error"]:
                raise _ERRORS.get(line["error"], MtrecError)(line["message"])
            lines.append(line)
        now = time.monotonic()
        if now - shown >= _PROGRESS_INTERVAL_S:
            shown, done = now, sum(line["texts"] for line in lines)
            speed = done / (now - start)
            event(logger, "embed.progress", done=done, of=len(texts), texts_per_s=speed)
    return lines


def _plan_shards(texts: list[str], actors: int) -> list[list[str]]:
    """Cut sorted texts into batches, bounded in texts and in characters.

    Small work is cut finer, so that each actor gets about four batches.
    """
    most = min(_BATCH_TEXTS, max(16, -(-len(texts) // (4 * actors))))
    batches: list[list[str]] = [[]]
    for text in texts:
        longest = len(text)  # sorted by length: the last one is the longest
        if len(batches[-1]) == most or (
            batches[-1] and longest * (len(batches[-1]) + 1) > _BATCH_CHARACTERS
        ):
            batches.append([])
        batches[-1].append(text)
    return batches


def _wants_gpu(text: TextConfig) -> bool:
    """Tell whether each actor shall have a GPU."""
    if text.encoder == "hashing" or text.device == "cpu":
        return False
    found = cluster_gpus()
    if text.device == "cuda" and found < 1:
        raise ConfigError(
            "text.device is cuda, but the Ray cluster has no GPU\n"
            "start Ray where a GPU is, or set text.device to auto or cpu"
        )
    return found >= 1


def _cuda_works() -> bool:
    """Ask one GPU worker whether torch finds its GPU; that decides what precision `auto` is."""
    return bool(ray.get(ray.remote(num_gpus=1, num_cpus=0)(has_cuda).remote()))


def _cpus_per_actor(actors: int) -> int:
    """Share a node's free CPUs over its actors; each reserves what its threads use."""
    free = int(ray.available_resources().get("CPU", 1.0))  # type: ignore[no-untyped-call]  # Ray's
    # One stays free on each node: the driver of a job takes one somewhere.
    return max(1, (min(free, largest_node_cpus()) - 1) // -(-actors // len(alive_nodes())))


def _memory_per_actor(spec: EncoderSpec) -> int:
    """Reserve bytes for weights and activations, so that a node is not packed with models.

    At most what the largest node has: asking for more would wait for ever.
    """
    wanted = 2 * spec.weights_bytes + (512 << 20)
    largest = max((int(node["Resources"].get("memory", 0)) for node in alive_nodes()), default=0)
    return min(wanted, largest)


# ---- the manifest -------------------------------------------------------------------------------


def _summarise(work: list[dict[str, Any]]) -> dict[str, Any]:
    """Say where the work was done: devices, GPUs and counts of each actor."""
    per_actor: dict[str, dict[str, Any]] = {}
    for line in work:
        total = per_actor.setdefault(
            line["actor"],
            {
                "node": line["node"],
                "device": line["device"],
                "gpu_ids": [gpu for gpu in line["gpu_ids"].split(",") if gpu],
                "texts": 0,
                "tokens": 0,
                "seconds": 0.0,
            },
        )
        for name in ("texts", "tokens", "seconds"):
            total[name] += line[name]
    return {
        "actors": len(per_actor),
        "device": ",".join(sorted({total["device"] for total in per_actor.values()})) or None,
        "per_actor": sorted(
            per_actor.values(), key=lambda total: (total["gpu_ids"], total["node"])
        ),
    }


def _warnings(spec: EncoderSpec, unknown: float) -> list[str]:
    if unknown <= UNKNOWN_TOKENS_LIMIT:
        return []
    return [
        f"text.encoder {spec.name} does not know {unknown:.0%} of the tokens of these texts "
        f"(above {UNKNOWN_TOKENS_LIMIT:.0%}): their vectors say little. Set text.encoder to a "
        "multilingual model, as jobs/configs/multilingual.yaml does"
    ]


def _write_manifest(
    path: str,
    key: str,
    parents: Mapping[str, str],
    details: dict[str, Any],
    *,
    files: dict[str, dict[str, Any]],
    content: list[str],
) -> Manifest:
    """Write the manifest of embeddings; shards of other runs stay in the folder around it.

    `content` is what the vectors follow from: the encoder's id and the texts' keys.
    """
    manifest = Manifest(
        kind="embeddings",
        id=uuid.uuid4().hex,
        key=key,
        content=storage.hash_values(content),
        parents=dict(parents),
        files=files,
        details=details,
    )
    storage.write_json(storage.join(path, artifacts.MANIFEST), asdict(manifest))
    return manifest
