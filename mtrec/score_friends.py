"""The score stage's second half: every user's likeliest friends, as Parquet.

Where there is a social task. Ray Data actors that hold a `Recommender` each take a range of the
bundle's users at a time and write one file of `friends/`; a killed run keeps its finished files.
Whom a user is linked to already is left out. It never fits anything.
"""

import logging
import time
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from mtrec import artifacts, storage
from mtrec.artifacts import Manifest
from mtrec.bundle import load_bundle
from mtrec.config import Config, ScoreConfig
from mtrec.errors import ArtifactError
from mtrec.rayrun import cluster_cpus, cluster_gpus
from mtrec.recommender import Recommender
from mtrec.runlog import event
from mtrec.score import add_counts, finished_parts, id_type, ids_as
from mtrec.versions import KIND, find_bundle

logger = logging.getLogger("mtrec.score")

USERS_PER_PART = 16_384


def score_friends(
    config: Config, *, bundle: str, path: str, key: str, parents: Mapping[str, str]
) -> Manifest:
    """Write the lists of friends of all users.

    Args:
        config: the run; `score.k` is the length of the lists.
        bundle: a version's folder, or `bundles/`, of a model with a social task.
        path: folder or URI that receives `part-*.parquet`: `user_id`, `rank` (int32, 1..K),
            `friend_id`, `score` (double, descending); ids in their source type.
        key: hash of the work.
        parents: ids of the artifacts that it is made from.

    Returns:
        The manifest; its details count users and rows.

    Raises:
        ArtifactError: the bundle is damaged.
    """
    started = time.monotonic()
    place = storage.absolute(find_bundle(bundle))
    artifacts.verify(place, artifacts.read_manifest(place, KIND), hashes=True)
    num_users = len(load_bundle(place).users)
    parts = [
        {"part": f"part-{number:05d}.parquet", "start": start}
        for number, start in enumerate(range(0, num_users, USERS_PER_PART))
    ]
    gpus = cluster_gpus()
    actors = min(config.score.actors, len(parts), int(gpus) or max(1, int(cluster_cpus())))
    with artifacts.write_artifact(
        path, kind="friends", key=key, parents=parents, resumable=True
    ) as writer:
        finished = finished_parts(writer.path, [str(part["part"]) for part in parts])
        missing = [part for part in parts if part["part"] not in finished]
        counted = [*finished.values()]
        if missing:
            counted += (
                ray.data.from_items(missing, override_num_blocks=len(missing))
                .map_batches(
                    FriendParts,
                    fn_constructor_args=(
                        place,
                        config.score.model_dump(),
                        storage.absolute(writer.path),
                        "cuda" if gpus else "cpu",
                    ),
                    batch_size=1,
                    batch_format="pyarrow",
                    compute=ray.data.ActorPoolStrategy(size=min(actors, len(missing))),
                    num_cpus=1,
                    num_gpus=1 if gpus else None,
                )
                .take_all()
            )
        users, rows = (sum(int(part[name]) for part in counted) for name in ("users", "rows"))
        if users != num_users:
            storage.remove(writer.path)  # else the next run would trust the wrong part
            raise ArtifactError(
                f"friends do not add up: {users} of {num_users} users\n"
                "run score again; if it stays, report it"
            )
        writer.details = {
            "users": users,
            "rows": rows,
            "k": config.score.k,
            "version": storage.base_name(place),
        }
    seconds = round(time.monotonic() - started, 1)
    event(logger, "score.friends", users=users, rows=rows, seconds=seconds)
    return artifacts.read_manifest(path, "friends")


class FriendParts:
    """Hold a `Recommender` in an actor; take a range of users, write a file of friends."""

    def __init__(self, bundle: str, score: dict[str, Any], friends: str, device: str) -> None:
        self._config = ScoreConfig(**score)
        self._bundle, self._friends, self._device = bundle, friends, device

    @cached_property
    def _recommender(self) -> Recommender:
        # With the first part: an error in an actor's `__init__` reaches the driver as text only.
        return Recommender.load(self._bundle, device=self._device, score=self._config)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Write the files named in `part` of users from `start` on; give counts, one row a file."""
        return pa.Table.from_pylist([self._write(**row) for row in batch.to_pylist()])

    def _write(self, part: str, start: int) -> dict[str, Any]:
        recommender = self._recommender
        store = recommender.bundle.users
        kind = id_type(recommender.bundle, "user_id")
        schema = pa.schema(
            [
                ("user_id", kind),
                ("rank", pa.int32()),
                ("friend_id", kind),
                ("score", pa.float64()),
            ]
        )
        stop = min(start + USERS_PER_PART, len(store))
        counts = {"users": 0, "rows": 0}
        with (
            storage.write_file(storage.join(self._friends, part)) as target,
            pq.ParquetWriter(target, schema) as writer,
        ):
            for at in range(start, stop, self._config.batch_size):
                asked = np.arange(at, min(at + self._config.batch_size, stop))
                places, score = recommender.friend_lists(asked, k=self._config.k)
                user, rank = np.nonzero(places >= 0)
                columns = [
                    ids_as(store.user_ids(asked[user]), kind),
                    pa.array(rank + 1, pa.int32()),
                    ids_as(store.user_ids(places[user, rank]), kind),
                    pa.array(score[user, rank], pa.float64()),
                ]
                writer.write_table(pa.Table.from_arrays(columns, schema=schema))
                counts = {"users": counts["users"] + len(asked), "rows": counts["rows"] + len(user)}
            add_counts(writer, counts)
        return {"part": part, **counts}
