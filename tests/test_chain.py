import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_bundle import small_config

from mtrec import storage
from mtrec.bundle import write_version
from mtrec.chain import STAGES, _fold_config, run
from mtrec.config import Config
from mtrec.dataconfig import KFoldSplit
from mtrec.errors import ArtifactError, ConfigError

pytestmark = pytest.mark.ray


def test_a_second_run_does_nothing(copied_run: Config) -> None:
    outcome = run(copied_run)
    assert outcome.done == {}
    assert outcome.skipped == list(STAGES)


@pytest.mark.parametrize(
    ("folder", "redone"),
    [
        ("dataset", ["prepare", "embed", "train", "evaluate", "score"]),
        ("embeddings", ["embed", "train", "evaluate", "score"]),
        ("bundles", ["train", "evaluate", "score"]),
        ("report", ["evaluate"]),
        ("predictions", ["score"]),
    ],
)
def test_a_deleted_artifact_is_redone_with_what_depends_on_it(
    copied_run: Config, folder: str, redone: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is redone is asked here, not how: the long stages leave artifacts without work."""

    def leave(path: str, kind: str, key: str, parents: Mapping[str, str]) -> None:
        with storage.write_artifact(path, kind=kind, key=key, parents=parents) as writer:
            storage.write_bytes(writer.join("file"), b"1")

    def fit(_: Config, *, bundles: str, key: str, parents: Mapping[str, str], **__: str) -> None:
        def fill(folder: str) -> None:
            storage.write_bytes(f"{folder}/file", b"1")

        write_version(bundles, fill, key=key, parents=parents, details={})

    def judge(_: Config, *, path: str, key: str, parents: Mapping[str, str], **__: str) -> None:
        leave(path, "report", key, parents)

    def list_all(_: Config, *, path: str, key: str, parents: Mapping[str, str], **__: str) -> None:
        leave(path, "predictions", key, parents)

    monkeypatch.setattr("mtrec.train.train", fit)
    monkeypatch.setattr("mtrec.evaluate.evaluate", judge)
    monkeypatch.setattr("mtrec.score.score", list_all)
    shutil.rmtree(Path(copied_run.run.workdir) / folder)

    assert list(run(copied_run).done) == redone
    assert run(copied_run).skipped == list(STAGES)


def test_a_new_item_embeds_exactly_one_text(copied_run: Config, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(Path(copied_run.data.root or "."), data)
    with (data / "items.csv").open("a", encoding="utf-8") as file:
        file.write("new,A brand new story,drama,5\n")
    changed = copied_run.model_copy(
        update={"data": copied_run.data.model_copy(update={"root": str(data)})}
    )
    before = storage.read_manifest(f"{copied_run.run.workdir}/embeddings", "embeddings")
    run(changed, stages=["prepare", "embed"])
    after = storage.read_manifest(f"{copied_run.run.workdir}/embeddings", "embeddings")
    assert after.details["embedded"] == 1
    assert after.details["unique_texts"] == before.details["unique_texts"] + 1


def test_a_stage_alone_asks_for_what_it_reads(plant, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"dataset at .* is missing\nrun `mtrec prepare`"):
        run(plant(tmp_path), stages=["train"])


def test_a_changed_configuration_redoes_only_what_it_touches(copied_run: Config) -> None:
    score = copied_run.score.model_copy(update={"k": 3})
    outcome = run(copied_run.model_copy(update={"score": score}))
    assert list(outcome.done) == ["score"]


def test_other_candidates_want_another_model_for_they_decide_its_epoch(copied_run: Config) -> None:
    evaluate = copied_run.evaluate.model_copy(update={"candidates": "cold"})
    changed = copied_run.model_copy(update={"evaluate": evaluate})
    with pytest.raises(ArtifactError, match=r"bundle at .* was made by another configuration"):
        run(changed, stages=["evaluate"])


def test_speed_settings_redo_nothing(copied_run: Config) -> None:
    changed = copied_run.model_copy(
        update={
            "train": copied_run.train.model_copy(update={"num_workers": 2}),
            "score": copied_run.score.model_copy(update={"batch_size": 7}),
            "text": copied_run.text.model_copy(update={"actors": 2}),
        }
    )
    assert run(changed).done == {}


def test_a_damaged_artifact_is_named_and_not_used(copied_run: Config) -> None:
    items = Path(copied_run.run.workdir) / "dataset" / "items.parquet"
    items.write_bytes(items.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match=r"items\.parquet has another SHA-256"):
        run(copied_run)


def test_what_killed_runs_left_is_removed(copied_run: Config) -> None:
    workdir, tail = Path(copied_run.run.workdir), f"{'0' * 32}.tmp"
    left = [
        *(workdir / f"{name}.writing-0123" for name in ("dataset", "report", "predictions")),
        workdir / "bundles" / "20260101-000000-abc.writing-0123",
    ]
    for folder in left:
        folder.mkdir()
    left += [workdir / f"config.yaml.{tail}", workdir / "bundles" / f"CURRENT.{tail}"]
    for file in left[-2:]:
        file.write_bytes(b"half")

    assert run(copied_run).done == {}
    assert [path for path in left if path.exists()] == []


def test_an_unknown_stage_is_refused(copied_run: Config) -> None:
    with pytest.raises(ConfigError, match='unknown stage "fly"'):
        run(copied_run, stages=["fly"])


def test_predictions_hold_every_users_unseen_best(planted_run: tuple[Config, Path]) -> None:
    config, workdir = planted_run
    table = pq.read_table(sorted((workdir / "predictions").glob("*.parquet"))).to_pandas()
    seen = pq.read_table(workdir / "dataset" / "interactions").to_pandas()
    users = set(seen["user_id"])
    assert set(table["user_id"]) == users
    for _, rows in table.groupby("user_id"):
        assert rows["rank"].tolist() == list(range(1, config.score.k + 1))
        assert rows["score"].is_monotonic_decreasing
        assert rows["score"].between(0, 1).all()
    touched = set(zip(seen["user_id"], seen["item_id"], strict=True))
    assert not touched & set(zip(table["user_id"], table["item_id"], strict=True))


def test_training_finds_the_planted_groups(planted_run: tuple[Config, Path]) -> None:
    config, workdir = planted_run
    report = json.loads((workdir / "report" / "report.json").read_text())
    task = next(task.name for task in config.tasks if task.kind == "retrieval")
    random = report["baselines"]["random"][task]["ndcg@10"]
    assert report["model"][task]["ndcg@10"] > 2 * random


def test_the_resolved_configuration_runs_again(copied_run: Config) -> None:
    from mtrec.configfile import load_config

    run(copied_run)
    again = load_config(f"{copied_run.run.workdir}/config.yaml")
    assert again == copied_run


@pytest.mark.parametrize(
    ("workdir", "store", "fold", "vectors"),
    [
        ("runs/x", None, "{here}/runs/x/folds/1", "{here}/runs/x/embeddings"),
        ("runs/x", "vectors", "{here}/runs/x/folds/1", "{here}/vectors"),
        ("s3://bucket/x", None, "s3://bucket/x/folds/1", "s3://bucket/x/embeddings"),
    ],
)
def test_a_folds_places_do_not_depend_on_the_working_folder(
    workdir: str, store: str | None, fold: str, vectors: str, monkeypatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    config = small_config()
    run_section = config.run.model_copy(update={"workdir": workdir})
    text = config.text.model_copy(update={"store": store})
    found = _fold_config(config.model_copy(update={"run": run_section, "text": text}), 1)
    assert found.run.workdir == fold.format(here=tmp_path)
    assert found.text.store == vectors.format(here=tmp_path)


@pytest.mark.slow
def test_cross_validation_joins_a_run_of_each_fold(plant, tmp_path: Path, ray_local: None) -> None:
    planted = plant(tmp_path, train={"epochs": 1, "num_workers": 0})
    split = KFoldSplit(method="k_fold", folds=2)
    config = planted.model_copy(update={"data": planted.data.model_copy(update={"split": split})})
    outcome = run(config)
    assert list(outcome.done) == ["prepare", "embed", "train", "evaluate"]
    workdir = Path(config.run.workdir)
    reports = [
        json.loads((workdir / "folds" / fold / "report" / "report.json").read_text())
        for fold in ("0", "1")
    ]
    joined = json.loads((workdir / "report" / "report.json").read_text())
    values = [report["model"]["rating"]["rmse"] for report in reports]
    assert joined["model"]["rating"]["rmse"] == pytest.approx(sum(values) / 2)
    assert "standard deviation" in (workdir / "report" / "report.html").read_text()
    # Every event is test in exactly one fold.
    events = [report["protocol"]["events"] for report in reports]
    assert sum(e["test"] for e in events) == sum(events[0].values())
    # The second fold found the item texts of the first.
    second = storage.read_manifest(str(workdir / "folds" / "1" / "embeddings"), "embeddings")
    assert second.details["embedded"] < second.details["unique_texts"]

    again = run(config)
    assert again.done == {} and again.skipped == ["prepare", "embed", "train", "evaluate"]
    shutil.rmtree(workdir / "folds" / "1" / "report")
    assert list(run(config).done) == ["evaluate"]
    with pytest.raises(ConfigError, match="leaves no model to score with"):
        run(config, stages=["score"])
