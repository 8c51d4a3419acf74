"""What the model says of held-out events: lists and predictions from the events before a split.

`evaluate` lets actors of Ray Data run this, each with a `Recommender` of its own, and judges what
comes back. It knows neither Ray nor metrics, so that an actor imports little.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mtrec.bundle import Bundle, load_bundle
from mtrec.config import Config
from mtrec.data.dataset import read_table
from mtrec.data.histories import SPLITS, Histories
from mtrec.modelconfig import label_tasks, social_task
from mtrec.recommender import PairContext, Recommender


class RankUsers:
    """Hold a `Recommender` in an actor and answer for the users of parts of the histories.

    Args:
        bundle: a version's folder or URI.
        config: the run.
        allowed: split to answer for -> (N,) bool, the items that may be listed; None: all.
        popular: split -> (N,), what is popular before it.
        device: `cpu` or `cuda`.
    """

    def __init__(
        self,
        bundle: str,
        config: Config,
        allowed: Mapping[str, NDArray[np.bool_] | None],
        popular: Mapping[str, NDArray[np.float64]],
        device: str,
    ) -> None:
        shipped = load_bundle(bundle)
        evaluated = as_evaluated(shipped, config, np.zeros_like(shipped.popular))
        recommender = Recommender(evaluated, device=device, threads=1)
        self._recommenders = {
            split: recommender.with_popular(counts) for split, counts in popular.items()
        }
        self._k = config.evaluate.k
        self._allowed = allowed
        self._tasks = [task.name for task in label_tasks(config.tasks)]
        self._with_friends = social_task(config.tasks) is not None
        self._batch_size = config.score.batch_size

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Yield the answers for the users of the files that column `part` names."""
        for path in batch.column("part").to_pylist():
            part = read_table(path)
            for at in range(0, max(1, part.num_rows), self._batch_size):
                yield self.answer(part.slice(at, self._batch_size))

    def answer(self, batch: pa.Table) -> pa.Table:
        """Give for users (rows as in `histories/`) what the model says about each split.

        Columns: `user_id`; `<split>_items` list<int32>, the k best; `<split>_task_<task>`
        list<float>, one number for each held-out event with a known item; with a social task
        `<split>_social` list<float>, the social vector.
        """
        histories = Histories.from_table(batch)
        columns: dict[str, pa.Array] = {"user_id": batch.column("user_id").combine_chunks()}
        for split, allowed in self._allowed.items():
            recommender = self._recommenders[split]
            lists, predictions = answer(
                recommender, histories, split, k=self._k, tasks=self._tasks, allowed=allowed
            )
            columns[f"{split}_items"] = pa.FixedSizeListArray.from_arrays(
                pa.array(lists.ravel(), pa.int32()), self._k
            )
            counts = np.bincount(
                histories.event_user[held_out_rows(histories, split)], minlength=len(histories)
            )
            offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
            for task in self._tasks:
                columns[f"{split}_task_{task}"] = pa.ListArray.from_arrays(
                    offsets, pa.array(predictions[task], pa.float32())
                )
            if self._with_friends:
                vectors = recommender.social_vectors(histories.before(split))
                columns[f"{split}_social"] = pa.FixedSizeListArray.from_arrays(
                    pa.array(vectors.ravel(), pa.float32()), vectors.shape[1]
                )
        return pa.table(columns)


def as_evaluated(bundle: Bundle, config: Config, popular: NDArray[np.float64]) -> Bundle:
    """Give a bundle as evaluation may use it: the run's `score` section, popularity of its own.

    What ships counts all kept events; for a user of whom nothing is known that would tell the list
    what test holds.

    Args:
        bundle: the model.
        config: the run.
        popular: (N,), what is popular before the split that is judged.
    """
    scored = bundle.config.model_copy(update={"score": config.score})
    return replace(bundle, popular=popular, config=scored)


def answer(
    recommender: Recommender,
    histories: Histories,
    split: str,
    *,
    k: int,
    tasks: Sequence[str],
    allowed: NDArray[np.bool_] | None = None,
) -> tuple[NDArray[np.int32], dict[str, NDArray[np.float32]]]:
    """Ask a recommender what it says about a split, from the events before it.

    Args:
        recommender: the model.
        histories: U users with the events of all splits.
        split: the split to answer for.
        k: length of the lists.
        tasks: the tasks whose labels to predict.
        allowed: (N,) bool, the items that may be listed; None: all.

    Returns:
        Lists (U, k), padded with 0; users without a held-out event are not asked and have none.
        For each task (P,) predictions for the held-out events with a known item.
    """
    rows = held_out_rows(histories, split)
    asked = np.unique(histories.event_user[histories.split == SPLITS.index(split)])
    known = histories.before(split).rows(asked)
    lists = np.zeros((len(histories), k), np.int32)
    if len(asked):
        found = recommender.rank_lists(known, k=k, allowed=allowed, with_tasks=False)
        lists[asked] = np.maximum(found.item_index, 0)
    predictions = {task: np.zeros(0, np.float32) for task in tasks}
    if len(rows) and tasks:
        position = np.searchsorted(asked, histories.event_user[rows])
        context = PairContext(
            {name: values[rows] for name, values in histories.numbers.items()},
            {name: codes[rows] for name, codes in histories.categories.items()},
        )
        scored = recommender.score_pairs(
            known, position, histories.item_index[rows], context=context
        )
        predictions = {task: scored[task].astype(np.float32) for task in tasks}
    return lists, predictions


def held_out_rows(histories: Histories, split: str) -> NDArray[np.int64]:
    """Give the positions of the events of a split whose item is known."""
    chosen = (histories.split == SPLITS.index(split)) & (histories.item_index >= 2)
    return np.flatnonzero(chosen)
