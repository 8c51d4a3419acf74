"""Everybody's friends in batch: the lists of the recommender, in the source's ids, counted."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_bundle import make_small

from mtrec import score_friends
from mtrec.recommender import Recommender
from mtrec.score import finished_parts
from mtrec.score_friends import FriendParts


@pytest.mark.parametrize("integer_ids", [False, True])
def test_a_part_holds_the_lists_of_the_recommender(
    integer_ids: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = make_small(tmp_path, integer_ids=integer_ids, social=True)
    recommender = Recommender.load(small.path, threads=1)
    monkeypatch.setattr(score_friends, "USERS_PER_PART", 5)
    (tmp_path / "friends").mkdir()
    parts = FriendParts(small.path, small.config.score.model_dump(), f"{tmp_path}/friends", "cpu")

    # Eight users in parts of five, in batches of three.
    told = parts(pa.table({"part": ["part-0.parquet", "part-1.parquet"], "start": [0, 5]}))

    rows = pq.read_table(sorted((tmp_path / "friends").glob("*.parquet"))).to_pylist()
    everybody = recommender.bundle.users.user_ids(pa.array(range(8)).to_numpy())
    wanted = [
        (int(user) if integer_ids else user, rank, friend["user_id"], friend["score"])
        for user in everybody
        for rank, friend in enumerate(recommender.friends({"user_id": user}, k=5), start=1)
    ]
    found = [(row["user_id"], row["rank"], row["friend_id"]) for row in rows]
    assert found == [entry[:3] for entry in wanted]
    assert [row["score"] for row in rows] == pytest.approx([e[3] for e in wanted], rel=1e-5)
    assert told.column("users").to_pylist() == [5, 3]
    assert sum(told.column("rows").to_pylist()) == len(rows)
    kept = finished_parts(f"{tmp_path}/friends", ["part-0.parquet", "part-2.parquet"])
    assert kept == {"part-0.parquet": {"users": 5, "rows": told.column("rows")[0].as_py()}}
