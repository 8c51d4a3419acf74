import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

from mtrec import artifacts, storage
from mtrec.chain import run
from mtrec.config import Config
from mtrec.errors import ArtifactError, DataError
from mtrec.revise import remove_users
from mtrec.stages import STAGES
from mtrec.versions import write_version

pytestmark = pytest.mark.ray


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
        with artifacts.write_artifact(path, kind=kind, key=key, parents=parents) as writer:
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
    before = artifacts.read_manifest(f"{copied_run.run.workdir}/embeddings", "embeddings")
    run(changed, stages=["prepare", "embed"])
    after = artifacts.read_manifest(f"{copied_run.run.workdir}/embeddings", "embeddings")
    assert after.details["embedded"] == 1
    assert after.details["unique_texts"] == before.details["unique_texts"] + 1


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


def test_a_label_that_is_read_otherwise_is_checked_anew(copied_run: Config) -> None:
    tasks = [
        task.model_copy(update={"max": 4.0}) if task.kind == "regression" else task
        for task in copied_run.tasks
    ]
    with pytest.raises(DataError, match=r"values that do not fit, for example 5; expected 1 to 4"):
        run(copied_run.model_copy(update={"tasks": tasks}))


def test_a_lost_shard_of_vectors_is_made_anew(copied_run: Config) -> None:
    embeddings = Path(copied_run.run.workdir) / "embeddings"
    next(embeddings.rglob("*.parquet")).unlink()
    with pytest.raises(ArtifactError, match=r"lacks some of its files\nrun `mtrec embed`"):
        run(copied_run, stages=["train"])
    assert "embed" in run(copied_run, stages=["embed"]).done
    made = artifacts.read_manifest(str(embeddings), "embeddings").details
    assert 0 < made["embedded"] <= made["unique_texts"]


def test_another_store_of_vectors_is_filled_or_taken_as_it_is(
    copied_run: Config, tmp_path: Path
) -> None:
    def kept_in(name: str) -> Config:
        text = copied_run.text.model_copy(update={"store": str(tmp_path / name)})
        return copied_run.model_copy(update={"text": text})

    shutil.copytree(Path(copied_run.run.workdir) / "embeddings", tmp_path / "moved")
    assert run(kept_in("moved"), stages=["embed"]).done == {}
    assert list(run(kept_in("empty"), stages=["embed"]).done) == ["embed"]
    assert run(kept_in("empty"), stages=["embed"]).done == {}


def test_a_bundle_that_was_changed_after_training_is_told(
    copied_run: Config, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundles = f"{copied_run.run.workdir}/bundles"
    assert remove_users(bundles, ["u00000"]).changed == 1
    with pytest.raises(ArtifactError, match="changed after training, by add-items or remove-users"):
        run(copied_run, stages=["score"])
    monkeypatch.setattr("mtrec.train.train", lambda *_, **__: None)
    with caplog.at_level("WARNING"):
        assert "train" in run(copied_run, stages=["train"]).done
    assert "run these again" in caplog.text


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
