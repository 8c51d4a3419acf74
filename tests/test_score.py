import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_bundle import Small, item_ids, small_like

from mtrec import artifacts, storage
from mtrec import score as score_module
from mtrec.config import Config
from mtrec.configchecks import EXPLANATION_COLUMNS
from mtrec.errors import ArtifactError, DataError
from mtrec.recommender import Recommender
from mtrec.score import ScoreParts, finished_parts, score


def run_score(small: Small, path: Path, **settings: object) -> artifacts.Manifest:
    return score(
        small_like(small, **settings).config,
        dataset=str(small.dataset),
        bundle=str(small.bundles),
        path=str(path),
        key="key",
        parents={},
    )


def score_part(small: Small, folder: Path, part: int = 0, **settings: object) -> pa.Table:
    name = f"part-{part:05d}.parquet"
    config = small_like(small, **settings).config.score.model_dump()
    histories = str(small.dataset / "histories")
    folder.mkdir(exist_ok=True)
    actor = ScoreParts(small.path, config, histories, str(folder), "cpu")
    actor(pa.table({"part": [name]}))
    return pq.read_table(folder / name)


@pytest.fixture
def dataset(small: Small) -> Small:
    """The small dataset as a committed artifact."""
    if artifacts.find_manifest(str(small.dataset)) is None:
        with artifacts.write_artifact(f"{small.dataset}-2", kind="dataset", key="k"):
            pass
        shutil.copy(f"{small.dataset}-2/manifest.json", small.dataset / "manifest.json")
    return small


def test_lists_are_those_of_the_recommender(small: Small, tmp_path: Path) -> None:
    table = score_part(small, tmp_path / "out").to_pylist()
    recommender = Recommender.load(small.path)
    for user_id in ("u0", "u1"):
        rows = [row for row in table if row["user_id"] == user_id]
        (answer,) = recommender.recommend([{"user_id": user_id, "k": 5}])
        entries = answer["recommendations"]
        assert [row["item_id"] for row in rows] == [entry["item_id"] for entry in entries]
        assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
        for row, entry in zip(rows, entries, strict=True):
            assert row["score"] == pytest.approx(entry["score"], rel=1e-5)
            for task in ("stars", "like"):
                assert row[task] == pytest.approx(entry["tasks"][task], rel=1e-5)


def test_nothing_that_a_user_touched_is_listed(small: Small, tmp_path: Path) -> None:
    for part in (0, 1):
        for row in score_part(small, tmp_path / "out", part, k=50).to_pylist():
            at = small.histories.user_ids.tolist().index(row["user_id"])
            events = slice(*small.histories.offsets[at : at + 2])
            touched = [["", "", *item_ids(False)][i] for i in small.histories.item_index[events]]
            assert row["item_id"] not in touched


def test_ids_have_the_type_of_the_source(
    small: Small, small_integers: Small, tmp_path: Path
) -> None:
    strings = score_part(small, tmp_path / "strings").schema
    integers = score_part(small_integers, tmp_path / "integers").schema
    assert [strings.field(name).type for name in ("user_id", "item_id")] == [pa.string()] * 2
    assert [integers.field(name).type for name in ("user_id", "item_id")] == [pa.int64()] * 2
    assert strings.names == ["user_id", "rank", "item_id", "score", "stars", "like"]
    assert strings.field("rank").type == pa.int32()


def test_batches_of_users_do_not_change_what_is_written(small: Small, tmp_path: Path) -> None:
    one = score_part(small, tmp_path / "one", batch_size=1)
    many = score_part(small, tmp_path / "many", batch_size=100)
    assert one.drop(["score", "stars", "like"]).equals(many.drop(["score", "stars", "like"]))
    # float32: sums of another shape are rounded otherwise; 1.7e-6 was seen
    np.testing.assert_allclose(one["score"], many["score"], rtol=1e-5)


def test_weights_of_the_run_count_and_not_those_of_the_bundle(small: Small, tmp_path: Path) -> None:
    table = score_part(small, tmp_path / "out", weights={"like": 1.0}).to_pydict()
    assert table["score"] == pytest.approx(table["like"], rel=1e-6)


@pytest.mark.parametrize("integer_ids", [False, True])
def test_explanations_are_those_of_requests(
    small: Small, small_integers: Small, tmp_path: Path, integer_ids: bool
) -> None:
    one = small_integers if integer_ids else small
    recommender, reasons = Recommender.load(one.path), 0
    for part in (0, 1):
        table = score_part(one, tmp_path / "out", part, explain=True)
        for user_id in dict.fromkeys(table["user_id"].to_pylist()):
            rows = [row for row in table.to_pylist() if row["user_id"] == user_id]
            request = {"user_id": user_id, "k": 5, "explain": True}
            (answer,) = recommender.recommend([request])
            for row, entry in zip(rows, answer["recommendations"], strict=True):
                assert row["item_id"] == entry["item_id"]
                assert row["content_share"] == pytest.approx(entry["content_share"], abs=1e-5)
                told = entry["reasons"]
                reasons += len(told)
                assert row["reasons"] == [reason["item_id"] for reason in told]
                for name, values in (("effect", "effects"), ("similarity", "similarities")):
                    assert row[values] == pytest.approx([r[name] for r in told], abs=1e-5)
    assert reasons > 30
    kind = pa.int64() if integer_ids else pa.string()
    assert table.schema.names[-4:] == ["content_share", "reasons", "effects", "similarities"]
    assert table.schema.field("reasons").type == pa.list_(kind)


def test_a_popular_list_has_no_explanation(small: Small, tmp_path: Path) -> None:
    """A user whose only event is of an unknown item, and of whom no features are stored."""
    dataset = tmp_path / "histories"
    dataset.mkdir()
    strangers = replace(small.histories.rows([3, 0]), user_ids=np.array(["x", "u0"], object))
    strangers.item_index[0] = 1
    pq.write_table(strangers.to_table(), dataset / "part-00000.parquet")
    config = small_like(small, explain=True, k=2).config.score.model_dump()
    (tmp_path / "out").mkdir()
    actor = ScoreParts(small.path, config, str(dataset), str(tmp_path / "out"), "cpu")
    actor(pa.table({"part": ["part-00000.parquet"]}))
    rows = pq.read_table(tmp_path / "out" / "part-00000.parquet").to_pylist()
    assert [row["user_id"] for row in rows] == ["x", "x", "u0", "u0"]
    for row in rows[:2]:
        assert [row[name] for name in EXPLANATION_COLUMNS] == [None] * 4
    assert all(row["content_share"] is not None and row["reasons"] for row in rows[2:])


@pytest.mark.parametrize(
    "wish",
    [
        {"diversity": 0.6},
        {"filter": {"brand": "a"}},
        {"filter": {"genres": ["space", "garden"], "price": {"min": 1, "max": 8}}},
        {"filter": {"price": [2, 5.0, 7]}, "diversity": 1.0, "explain": True},
    ],
)
def test_filter_and_diversity_are_those_of_requests(
    small: Small, tmp_path: Path, wish: dict[str, Any]
) -> None:
    recommender = Recommender.load(small.path)
    users = 0
    for part in (0, 1):
        table = score_part(small, tmp_path / "out", part, k=4, **wish).to_pylist()
        for user_id in small.histories.user_ids[3 * part : 3 + 4 * part]:
            (answer,) = recommender.recommend([{"user_id": user_id, "k": 4, **wish}])
            rows = [row for row in table if row["user_id"] == user_id]
            entries = answer["recommendations"]
            assert [row["item_id"] for row in rows] == [entry["item_id"] for entry in entries]
            scores = [entry["score"] for entry in entries]
            assert [row["score"] for row in rows] == pytest.approx(scores, rel=1e-5)
            users += 1
    assert users == 7


def test_a_part_counts_the_rows_that_a_filter_leaves(small: Small, tmp_path: Path) -> None:
    score_part(small, tmp_path / "out", k=50, filter={"price": {"max": 4}})
    counts = finished_parts(str(tmp_path / "out"), ["part-00000.parquet"])["part-00000.parquet"]
    # Items 2 to 6 have prices 0 to 4.
    history = small.histories
    expected = 0
    for row in range(3):
        events = slice(history.offsets[row], history.offsets[row + 1])
        expected += len(set(range(2, 7)) - {*history.item_index[events].tolist()})
    assert counts["rows"] == counts["expected_rows"] == expected


@pytest.mark.ray
def test_stage_writes_every_user_once_in_order(
    dataset: Small, tmp_path: Path, ray_local: None
) -> None:
    manifest = run_score(dataset, tmp_path / "predictions", actors=2)
    table = pa.concat_tables(
        pq.read_table(file) for file in sorted((tmp_path / "predictions").glob("*.parquet"))
    )
    users = table["user_id"].to_pylist()
    assert sorted(manifest.files) == ["part-00000.parquet", "part-00001.parquet"]
    assert manifest.details["users"] == 7 and manifest.details["rows"] == table.num_rows
    assert list(dict.fromkeys(users)) == dataset.histories.user_ids.tolist()
    scores = np.array(table["score"])
    same_user = np.array(users[1:]) == np.array(users[:-1])
    assert (np.diff(scores)[same_user] <= 0).all()
    assert (scores >= 0).all() and (scores <= 1).all()


@pytest.mark.ray
def test_lists_that_are_shorter_than_asked_are_told(
    dataset: Small, tmp_path: Path, ray_local: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="mtrec.score"):
        run_score(dataset, tmp_path / "one", k=1)
        assert not caplog.records
        rows = run_score(dataset, tmp_path / "all", k=50).details["rows"]
    (told,) = caplog.records
    assert told.getMessage().startswith(f"lists hold {rows} items of 350 (7 users, 50 each)")


@pytest.mark.ray
def test_number_of_actors_does_not_change_a_byte(
    dataset: Small, tmp_path: Path, ray_local: None
) -> None:
    one = run_score(dataset, tmp_path / "one", actors=1)
    two = run_score(dataset, tmp_path / "two", actors=2)
    assert one.content == two.content


@pytest.mark.ray
def test_a_second_run_writes_only_the_parts_that_a_killed_one_had_not_finished(
    dataset: Small, tmp_path: Path, ray_local: None
) -> None:
    path = tmp_path / "predictions"
    whole = run_score(dataset, tmp_path / "undisturbed")
    # What a killed run with the same key leaves: a finished part and half of another.
    (folder := tmp_path / "predictions.writing-key").mkdir()
    shutil.copy(tmp_path / "undisturbed" / "part-00000.parquet", folder)
    (folder / "part-00001.parquet.12ab.tmp").write_bytes(b"PAR1 half")
    before = (folder / "part-00000.parquet").stat()

    manifest = run_score(dataset, path)

    after = (path / "part-00000.parquet").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert (manifest.content, manifest.details) == (whole.content, whole.details)
    assert sorted(entry.name for entry in path.iterdir()) == [
        *("manifest.json", "part-00000.parquet", "part-00001.parquet")
    ]


@pytest.mark.ray
def test_a_run_whose_parts_are_all_there_starts_no_job(
    dataset: Small, tmp_path: Path, ray_local: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_score(dataset, tmp_path / "undisturbed")
    (folder := tmp_path / "predictions.writing-key").mkdir()
    for name in whole.files:
        shutil.copy(tmp_path / "undisturbed" / name, folder)
    monkeypatch.setattr(score_module.ray.data, "from_items", None)

    assert run_score(dataset, tmp_path / "predictions").content == whole.content


@pytest.mark.ray
def test_parts_that_do_not_add_up_are_not_trusted_again(
    dataset: Small, tmp_path: Path, ray_local: None
) -> None:
    whole = run_score(dataset, tmp_path / "undisturbed")
    folder = tmp_path / "predictions.writing-key"
    for name in whole.files:
        table = pq.read_table(tmp_path / "undisturbed" / name)
        counts = {"users": 9, "rows": 9, "expected_users": 9, "expected_rows": 10}
        table = table.replace_schema_metadata({"mtrec.counts": json.dumps(counts)})
        folder.mkdir(exist_ok=True)
        pq.write_table(table, folder / name)

    with pytest.raises(ArtifactError, match="do not add up"):
        run_score(dataset, tmp_path / "predictions")
    assert not folder.exists()


def test_bundle_of_another_dataset_is_refused(dataset: Small, tmp_path: Path) -> None:
    copy = tmp_path / "bundles" / dataset.version
    shutil.copytree(dataset.path, copy)
    manifest = storage.read_json(str(copy / "manifest.json"))
    manifest["parents"] = {"dataset": "another"}
    storage.write_json(str(copy / "manifest.json"), manifest)
    with pytest.raises(ArtifactError, match="another dataset"):
        score(
            dataset.config,
            dataset=str(dataset.dataset),
            bundle=str(copy),
            path=str(tmp_path / "out"),
            key="k",
            parents={},
        )
    assert not (tmp_path / "out").exists()


def test_dataset_without_users_is_refused(dataset: Small, tmp_path: Path) -> None:
    with artifacts.write_artifact(str(tmp_path / "empty"), kind="dataset", key="k"):
        pass
    with pytest.raises(DataError, match="has no users"):
        score(
            dataset.config,
            dataset=str(tmp_path / "empty"),
            bundle=dataset.path,
            path=str(tmp_path / "out"),
            key="k",
            parents={},
        )


def test_damaged_bundle_is_refused_before_any_work(dataset: Small, tmp_path: Path) -> None:
    copy = tmp_path / dataset.version
    shutil.copytree(dataset.path, copy)
    (copy / "item_bias.npy").unlink()
    with pytest.raises(ArtifactError, match=r"item_bias\.npy is missing"):
        score(
            dataset.config,
            dataset=str(dataset.dataset),
            bundle=str(copy),
            path=str(tmp_path / "out"),
            key="k",
            parents={},
        )


@pytest.mark.ray
def test_trained_model_says_the_same_by_id_and_in_batch(
    planted_run: tuple[Config, Path],
) -> None:
    config, workdir = planted_run
    recommender = Recommender.load(str(workdir / "bundles"))
    files = sorted((workdir / "predictions").glob("part-*.parquet"))
    rows = pa.concat_tables(pq.read_table(file) for file in files).to_pylist()
    users = list(dict.fromkeys(row["user_id"] for row in rows))
    asked = [{"user_id": user_id, "k": config.score.k} for user_id in users]
    entries = [
        entry for answer in recommender.recommend(asked) for entry in answer["recommendations"]
    ]
    assert [row["item_id"] for row in rows] == [entry["item_id"] for entry in entries]
    for name in ("score", "rating", "like"):
        batch = [row[name] for row in rows]
        single = [entry.get(name, entry["tasks"].get(name)) for entry in entries]
        np.testing.assert_allclose(batch, single, rtol=1e-5)
