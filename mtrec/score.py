"""The score stage: every user's best items, from all their kept events, as Parquet.

Ray Data actors that hold a `Recommender` each take one file of `dataset/histories/` at a time and
write one file of `predictions/`, so the driver sees counts only, memory is bounded by a batch of
users, and names and order of the output are those of the input whatever the number of actors. A
killed run keeps its finished files, and the next one writes the others only. What a user has ever
touched is left out. Filter, diversity and explanations are those of requests. It never fits
anything.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data
from numpy.typing import NDArray

from mtrec import artifacts, storage
from mtrec.artifacts import Manifest
from mtrec.bundle import Bundle
from mtrec.config import Config, ScoreConfig
from mtrec.configchecks import EXPLANATION_COLUMNS
from mtrec.data.dataset import history_files
from mtrec.data.histories import Histories
from mtrec.errors import ArtifactError
from mtrec.modelconfig import LabelTask, label_tasks
from mtrec.rayrun import cluster_cpus, cluster_gpus
from mtrec.recommender import Explanation, RankedLists, Recommender
from mtrec.runlog import event
from mtrec.versions import KIND, find_bundle

logger = logging.getLogger("mtrec.score")

# Rows of one row group of the predictions.
_ROWS_PER_GROUP = 131_072


def score(
    config: Config,
    *,
    dataset: str,
    bundle: str,
    path: str,
    key: str,
    parents: Mapping[str, str],
) -> Manifest:
    """Write the lists of all users who have events.

    Args:
        config: the run; `score` decides length, candidates and weights, whatever the bundle's
            configuration says.
        dataset: folder or URI of the dataset artifact.
        bundle: a version's folder, or `bundles/`.
        path: folder or URI that receives `part-*.parquet`: `user_id`, `rank` (int32, 1..K),
            `item_id`, `score` (double, descending) and one float column per ranking task; ids in
            their source type. With `score.explain` also `content_share` (double) and lists, the
            strongest reason first, `reasons` (item ids), `effects` and `similarities` (double);
            null where a user has no history, as a request's answer lacks them there.
        key: hash of the work.
        parents: ids of the artifacts that it is made from.

    Returns:
        The manifest; its details count users and rows.

    Raises:
        ArtifactError: the bundle or the dataset is damaged, or they do not belong together.
        DataError: the dataset has no users.
    """
    started = time.monotonic()
    place = storage.absolute(find_bundle(bundle))
    shipped = artifacts.read_manifest(place, KIND)
    artifacts.verify(place, shipped, hashes=True)
    known = artifacts.read_manifest(dataset, "dataset")
    parts = [storage.base_name(name) for name in history_files(dataset)]
    folder = storage.absolute(storage.join(dataset, "histories"))
    if shipped.parents.get("dataset", known.id) != known.id:
        raise ArtifactError(
            f"the bundle at {place} was made from another dataset than {dataset}\n"
            "run train again, or score the dataset that the bundle was trained on"
        )
    gpus = cluster_gpus()
    actors = min(config.score.actors, len(parts), int(gpus) or max(1, int(cluster_cpus())))
    with artifacts.write_artifact(
        path, kind="predictions", key=key, parents=parents, resumable=True
    ) as writer:
        finished = finished_parts(writer.path, parts)
        if finished:
            event(logger, "score.resume", finished=len(finished), of=len(parts))
        counted = [*finished.values()]
        missing = [name for name in parts if name not in finished]
        if missing:
            answers = ray.data.from_items(
                [{"part": name} for name in missing], override_num_blocks=len(missing)
            ).map_batches(
                ScoreParts,
                fn_constructor_args=(
                    place,
                    config.score.model_dump(),
                    folder,
                    storage.absolute(writer.path),
                    "cuda" if gpus else "cpu",
                ),
                batch_size=1,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=min(actors, len(missing))),
                num_cpus=1,
                num_gpus=1 if gpus else None,
            )
            counted += answers.take_all()
        counts = {name: sum(int(part[name]) for part in counted) for name in _COUNTS}
        if counts["users"] != counts["expected_users"] or counts["rows"] != counts["expected_rows"]:
            storage.remove(writer.path)  # else the next run would trust the wrong part
            raise ArtifactError(
                f"predictions do not add up: {counts}\nrun score again; if it stays, report it"
            )
        writer.details = {
            "users": counts["users"],
            "rows": counts["rows"],
            "k": config.score.k,
            "version": storage.base_name(place),
        }
    event(
        logger,
        "score.done",
        users=counts["users"],
        rows=counts["rows"],
        actors=actors,
        seconds=round(time.monotonic() - started, 1),
    )
    wanted = counts["users"] * config.score.k
    if counts["rows"] < wanted:
        logger.warning(
            "lists hold %d items of %d (%d users, %d each): of the others all is met, or left out "
            "by score.filter",
            *(counts["rows"], wanted, counts["users"], config.score.k),
        )
    return artifacts.read_manifest(path, "predictions")


_COUNTS = ("users", "rows", "expected_users", "expected_rows")
# Where a file of predictions keeps its counts.
_METADATA = b"mtrec.counts"


def add_counts(writer: pq.ParquetWriter, counts: Mapping[str, int]) -> None:
    """Leave a file's counts in its metadata, for `finished_parts`."""
    writer.add_key_value_metadata({_METADATA: json.dumps(dict(counts))})


def finished_parts(folder: str, parts: Sequence[str]) -> dict[str, dict[str, int]]:
    """Give the counts of the parts that an earlier run with the same key had finished."""
    finished = {}
    for name in sorted({*parts} & {*storage.list_files(folder)}):
        system, inner = storage.filesystem(storage.join(folder, name))
        with system.open_input_file(inner) as file:
            metadata = pq.read_metadata(file).metadata
        finished[name] = json.loads(metadata[_METADATA])
    return finished


class ScoreParts:
    """Hold a `Recommender` in an actor; read a file of histories, write a file of lists."""

    def __init__(
        self, bundle: str, score: dict[str, Any], histories: str, predictions: str, device: str
    ) -> None:
        self._config = ScoreConfig(**score)
        self._bundle, self._device = bundle, device
        self._histories, self._predictions = histories, predictions

    @cached_property
    def _recommender(self) -> Recommender:
        # With the first part: an error in an actor's `__init__` reaches the driver as text only.
        return Recommender.load(self._bundle, device=self._device, score=self._config)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Score the files named in `part`; give counts, one row a file."""
        lines = [self._score_part(name) for name in batch.column("part").to_pylist()]
        return pa.Table.from_pylist(lines)

    def _score_part(self, name: str) -> dict[str, Any]:
        system, inner = storage.filesystem(storage.join(self._histories, name))
        allowed = self._recommender.allowed(self._config.filter)
        counts = dict.fromkeys(_COUNTS, 0)
        with (
            system.open_input_file(inner) as source,
            storage.write_file(storage.join(self._predictions, name)) as target,
            pq.ParquetWriter(target, self._schema()) as writer,
        ):
            file = pq.ParquetFile(source)
            counts["expected_users"] = file.metadata.num_rows
            waiting: list[pa.Table] = []
            for batch in file.iter_batches(batch_size=self._config.batch_size):
                histories = Histories.from_table(pa.Table.from_batches([batch]))
                lists = self._recommender.rank_lists(
                    histories,
                    k=self._config.k,
                    diversity=self._config.diversity,
                    conditions=self._config.filter or None,
                )
                waiting.append(self._table(histories, lists))
                counts["users"] += len(histories)
                counts["rows"] += waiting[-1].num_rows
                counts["expected_rows"] += int(
                    np.minimum(_num_open(histories, allowed), self._config.k).sum()
                )
                if sum(table.num_rows for table in waiting) >= _ROWS_PER_GROUP:
                    writer.write_table(pa.concat_tables(waiting))
                    waiting = []
            if waiting:
                writer.write_table(pa.concat_tables(waiting))
            add_counts(writer, counts)
        return {"part": name, **counts}

    def _table(self, histories: Histories, lists: RankedLists) -> pa.Table:
        """Put lists into rows, one an item, users in their order, best items first."""
        is_there = lists.item_index >= 0
        user, rank = np.nonzero(is_there)
        columns: dict[str, pa.Array] = {
            "user_id": ids_as(histories.user_ids[user], self._schema().field("user_id").type),
            "rank": pa.array(rank + 1, pa.int32()),
            "item_id": ids_as(
                self._recommender.item_ids(lists.item_index[is_there]),
                self._schema().field("item_id").type,
            ),
            "score": pa.array(lists.score[is_there], pa.float64()),
        }
        for task in self._tasks:
            columns[task.name] = pa.array(lists.tasks[task.name][is_there], pa.float32())
        if self._config.explain:
            columns |= self._explanations(histories, lists)
        return pa.table(columns, schema=self._schema())

    def _explanations(self, histories: Histories, lists: RankedLists) -> dict[str, pa.Array]:
        """Give the columns of `score.explain`, one row an item, in the order of `_table`."""
        # As a request by `user_id` has it: the store keeps the events that the model can see, so
        # without one of them no older one comes into sight; all that was touched stays out.
        known = histories.select(histories.item_index >= 2)
        length = self._recommender.bundle.config.model.kept_events
        seen = np.split(known.item_index, known.offsets[1:-1])
        found = self._recommender.explain_lists(known.latest(length), lists, exclude=seen)
        rows: list[Explanation | None] = []
        for why, size in zip(found, (lists.item_index >= 0).sum(axis=1).tolist(), strict=True):
            rows += why or [None] * size
        offsets = np.cumsum([0, *(len(row.reasons) if row else 0 for row in rows)])
        mask = pa.array([row is None for row in rows])

        def flat(name: str) -> NDArray[Any]:
            return np.concatenate([np.zeros(0), *(getattr(row, name) for row in rows if row)])

        def listed(values: pa.Array) -> pa.Array:
            return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values, mask=mask)

        ids = self._recommender.item_ids(flat("reasons").astype(np.int64))
        share = [row.content_share if row else None for row in rows]
        return dict(
            zip(
                EXPLANATION_COLUMNS,
                (
                    pa.array(share, pa.float64()),
                    listed(ids_as(ids, id_type(self._recommender.bundle, "item_id"))),
                    listed(pa.array(flat("effect"), pa.float64())),
                    listed(pa.array(flat("similarity"), pa.float64())),
                ),
                strict=True,
            )
        )

    @property
    def _tasks(self) -> list[LabelTask]:
        tasks = self._recommender.bundle.config.tasks
        return label_tasks(tasks)

    def _schema(self) -> pa.Schema:
        bundle = self._recommender.bundle
        item_id, numbers = id_type(bundle, "item_id"), pa.list_(pa.float64())
        kinds = (pa.float64(), pa.list_(item_id), numbers, numbers)
        return pa.schema(
            [
                ("user_id", id_type(bundle, "user_id")),
                ("rank", pa.int32()),
                ("item_id", item_id),
                ("score", pa.float64()),
                *((task.name, pa.float32()) for task in self._tasks),
                *(zip(EXPLANATION_COLUMNS, kinds, strict=True) if self._config.explain else ()),
            ]
        )


def _num_open(histories: Histories, allowed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Count for each user the allowed items that are not in the history: (U,) int64.

    `allowed` (N,) tells it of every position; 0 and 1, which are no items, never count.
    """
    is_item = allowed & (np.arange(len(allowed)) >= 2)
    seen = is_item[histories.item_index]
    pairs = np.unique(
        (histories.event_user[seen] << 32) | histories.item_index[seen].astype(np.int64)
    )
    met = np.bincount(pairs >> 32, minlength=len(histories))
    return np.asarray(is_item.sum() - met)


def id_type(bundle: Bundle, column: str) -> pa.DataType:
    """Give the type that ids of `user_id` or `item_id` have in the source."""
    return pa.int64() if bundle.transform.id_types.get(column) == "int64" else pa.string()


def ids_as(values: Any, kind: pa.DataType) -> pa.Array:
    """Write ids in their source type."""
    return pa.array(np.asarray(values, object).tolist(), pa.string()).cast(kind)
