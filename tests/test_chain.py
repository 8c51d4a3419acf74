import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from small_bundle import small_config

from mtrec import artifacts
from mtrec.chain import _fold_config, run
from mtrec.config import Config
from mtrec.dataconfig import KFoldSplit
from mtrec.errors import ArtifactError, ConfigError
from mtrec.stages import STAGES

pytestmark = pytest.mark.ray


def test_a_second_run_does_nothing(copied_run: Config) -> None:
    outcome = run(copied_run)
    assert outcome.done == {}
    assert outcome.skipped == list(STAGES)


def test_a_stage_alone_asks_for_what_it_reads(plant, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"dataset at .* is missing\nrun `mtrec prepare`"):
        run(plant(tmp_path), stages=["train"])


def test_an_unknown_stage_is_refused(copied_run: Config) -> None:
    with pytest.raises(ConfigError, match='unknown stage "fly"'):
        run(copied_run, stages=["fly"])


def test_stages_are_taken_in_the_chains_order_and_none_is_refused(copied_run: Config) -> None:
    assert run(copied_run, stages=["embed", "prepare"]).skipped == ["prepare", "embed"]
    with pytest.raises(ConfigError, match="no stage to run"):
        run(copied_run, stages=[])


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
    second = artifacts.read_manifest(str(workdir / "folds" / "1" / "embeddings"), "embeddings")
    assert second.details["embedded"] < second.details["unique_texts"]

    again = run(config)
    assert again.done == {} and again.skipped == ["prepare", "embed", "train", "evaluate"]
    shutil.rmtree(workdir / "folds" / "1" / "report")
    assert list(run(config).done) == ["evaluate"]
    with pytest.raises(ConfigError, match="leaves no model to score with"):
        run(config, stages=["score"])
