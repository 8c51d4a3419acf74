"""What the model says of held-out events comes from the events before them."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_histories import with_held_out

from mtrec.answers import RankUsers, answer, as_evaluated
from mtrec.bundle import load_bundle
from mtrec.recommender import Recommender

if TYPE_CHECKING:
    from small_bundle import Small


def test_an_answer_uses_only_events_before_thewith_held_out(small: "Small") -> None:
    recommender = Recommender(load_bundle(small.path))
    histories = with_held_out(small.histories)
    lists, predictions = answer(recommender, histories, "test", k=4, tasks=["stars"])
    known = histories.before("test")
    expected = recommender.rank_lists(known.rows([5]), k=4).item_index
    assert lists[5].tolist() == np.maximum(expected[0], 0).tolist()
    # What comes after the split decides nothing.
    item_index = np.where(histories.split == 2, 2, histories.item_index).astype(np.int32)
    again, _ = answer(
        recommender, replace(histories, item_index=item_index), "test", k=4, tasks=["stars"]
    )
    np.testing.assert_array_equal(again, lists)
    assert len(predictions["stars"]) == int((histories.split == 2).sum())


def test_lists_hold_nothing_of_the_history_and_unasked_users_have_none(small: "Small") -> None:
    histories = with_held_out(small.histories)
    recommender = Recommender(load_bundle(small.path))
    lists, _ = answer(recommender, histories, "validation", k=4, tasks=[])
    known = histories.before("validation")
    for user in range(len(histories)):
        seen = known.item_index[known.offsets[user] : known.offsets[user + 1]]
        assert not np.isin(lists[user], seen).any()
    assert (lists[3] == 0).all()  # one event only: nothing held out for validation
    assert (lists[5] >= 2).all()


def test_an_evaluated_bundle_has_the_runs_weights_and_a_popularity_of_its_own(
    small: "Small",
) -> None:
    bundle = load_bundle(small.path)
    config = small.config.model_copy(
        update={"score": small.config.score.model_copy(update={"weights": {"like": 1.0}})}
    )
    evaluated = as_evaluated(bundle, config, np.arange(14.0))
    assert evaluated.popular.tolist() == list(range(14))
    assert evaluated.config.score.weights == {"like": 1.0}


def test_users_of_whom_nothing_is_known_get_what_was_popular_before_each_split(
    small: "Small",
) -> None:
    two = small.histories.rows([0, 1])
    split = np.where(two.event_user == 0, 1, 2).astype(np.int8)
    histories = replace(two, user_ids=np.array(["new", "newer"], object), split=split)
    popular = {"validation": np.arange(14.0), "test": np.arange(14.0)[::-1].copy()}
    actor = RankUsers(small.path, small.config, dict.fromkeys(popular), popular, "cpu")
    table = actor.answer(histories.to_table())
    assert table.column("validation_items").to_pylist()[0][:3] == [13, 12, 11]
    assert table.column("test_items").to_pylist()[1][:3] == [2, 3, 4]


def test_parts_are_answered_batch_by_batch_as_a_whole(small: "Small", tmp_path: Path) -> None:
    histories = with_held_out(small.histories)
    paths = [str(tmp_path / f"part-{at}.parquet") for at in range(3)]
    for path, rows in zip(paths, ([0, 1], [], [2, 3, 4, 5, 6]), strict=True):
        pq.write_table(histories.rows(rows).to_table(), path)
    score = small.config.score.model_copy(update={"batch_size": 2})
    config = small.config.model_copy(update={"score": score})
    splits = ("test", "validation")
    popular = {split: np.zeros(14) for split in splits}
    actor = RankUsers(small.path, config, dict.fromkeys(splits), popular, "cpu")

    found = pa.concat_tables(list(actor(pa.table({"part": paths}))))

    found, whole = (t.sort_by("user_id") for t in (found, actor.answer(histories.to_table())))
    for name in whole.column_names:
        of_parts, at_once = (table.column(name).to_pylist() for table in (found, whole))
        if "_task_" in name:  # float32 sums of other batches may differ in their last digit
            at_once = [pytest.approx(row, rel=1e-6) for row in at_once]
        assert of_parts == at_once, name
