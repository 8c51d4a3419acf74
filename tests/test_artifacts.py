"""Artifacts: whole or absent, verified by content, and their leftovers go."""

import hashlib
import json
from pathlib import Path

import pytest

from mtrec import artifacts, storage
from mtrec.artifacts import Manifest
from mtrec.errors import ArtifactError


def write(path: Path, content: bytes = b"hello", **details: object) -> Manifest:
    """Write an artifact with one file."""
    with artifacts.write_artifact(
        str(path), kind="dataset", key="k1", parents={"raw": "p1"}
    ) as writer:
        storage.write_bytes(writer.join("part", "a.bin"), content)
        writer.details.update(details)
    return artifacts.read_manifest(str(path), "dataset")


def test_a_manifest_names_every_file_with_its_size_and_sha256(tmp_path: Path) -> None:
    manifest = write(tmp_path / "dataset", b"hello", rows=3)

    assert manifest.files == {
        "part/a.bin": {"sha256": hashlib.sha256(b"hello").hexdigest(), "bytes": 5}
    }
    assert (manifest.kind, manifest.key, manifest.parents) == ("dataset", "k1", {"raw": "p1"})
    assert manifest.details == {"rows": 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dataset"]


def test_nothing_is_there_until_the_body_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "dataset"
    with artifacts.write_artifact(str(path), kind="dataset", key="k") as writer:
        storage.write_bytes(writer.join("a"), b"1")
        assert not path.exists()

    assert artifacts.find_manifest(str(path)) is not None


def test_a_write_that_fails_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "dataset"
    before = write(path, b"old")

    with (
        pytest.raises(RuntimeError, match="killed"),
        artifacts.write_artifact(str(path), kind="dataset", key="k2") as writer,
    ):
        storage.write_bytes(writer.join("part", "a.bin"), b"new")
        raise RuntimeError("killed")

    assert artifacts.read_manifest(str(path), "dataset") == before
    assert (path / "part" / "a.bin").read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["dataset"]


def test_rewriting_gives_a_new_id_and_equal_content_an_equal_hash(tmp_path: Path) -> None:
    first = write(tmp_path / "dataset", b"same")
    second = write(tmp_path / "dataset", b"same")
    third = write(tmp_path / "dataset", b"other")

    assert first.id != second.id
    assert first.content == second.content != third.content


def test_rewriting_leaves_no_file_of_the_old_artifact(tmp_path: Path) -> None:
    path = tmp_path / "dataset"
    with artifacts.write_artifact(str(path), kind="dataset", key="k") as writer:
        storage.write_bytes(writer.join("old.bin"), b"1")
    write(path)

    assert storage.list_files(str(path)) == ["manifest.json", "part/a.bin"]


def test_a_uri_of_a_local_folder_works_like_its_path(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/dataset"
    with artifacts.write_artifact(uri, kind="dataset", key="k") as writer:
        storage.write_bytes(writer.join("a"), b"1")

    assert artifacts.find_manifest(uri) == artifacts.find_manifest(str(tmp_path / "dataset"))
    assert artifacts.find_manifest(uri) is not None


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda file: file.write_bytes(b"hellx"), "another SHA-256"),
        (lambda file: file.write_bytes(b"hell"), "has 4 bytes, expected 5"),
        (lambda file: file.unlink(), "part/a.bin is missing"),
    ],
)
def test_verify_tells_what_is_damaged_and_the_remedy(
    tmp_path: Path, damage: object, told: str
) -> None:
    path = tmp_path / "dataset"
    manifest = write(path, b"hello")
    assert callable(damage)
    damage(path / "part" / "a.bin")

    with pytest.raises(ArtifactError, match=told) as caught:
        artifacts.verify(str(path), manifest)

    assert f"remove {path} and run again" in str(caught.value)


def test_verify_accepts_what_was_written(tmp_path: Path) -> None:
    artifacts.verify(str(tmp_path / "dataset"), write(tmp_path / "dataset"))


def test_verify_without_hashes_sees_sizes_only(tmp_path: Path) -> None:
    manifest = write(tmp_path / "dataset", b"hello")
    (tmp_path / "dataset" / "part" / "a.bin").write_bytes(b"hellx")

    artifacts.verify(str(tmp_path / "dataset"), manifest, hashes=False)


def test_verify_names_three_problems_and_counts_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "dataset"
    with artifacts.write_artifact(str(path), kind="dataset", key="k") as writer:
        for name in "abcde":
            storage.write_bytes(writer.join(name), b"1")
    for name in "abcde":
        (path / name).unlink()
    manifest = artifacts.read_manifest(str(path), "dataset")

    with pytest.raises(ArtifactError, match="a is missing; b is missing; c is missing; 2 more"):
        artifacts.verify(str(path), manifest)


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "a").write_bytes(b"1")

    assert artifacts.find_manifest(str(tmp_path / "dataset")) is None
    with pytest.raises(ArtifactError, match="holds no dataset"):
        artifacts.read_manifest(str(tmp_path / "dataset"), "dataset")


def test_another_kind_of_artifact_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "dataset")

    with pytest.raises(ArtifactError, match="holds a dataset, expected a bundle"):
        artifacts.read_manifest(str(tmp_path / "dataset"), "bundle")


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "dataset"}', '{"surprise": 1}', "\xff"])
def test_a_manifest_that_cannot_be_read_is_an_artifact_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))

    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        artifacts.find_manifest(str(tmp_path))


def test_a_manifest_of_another_format_version_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "dataset")
    path = tmp_path / "dataset" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))

    with pytest.raises(ArtifactError, match="format version 99, expected 1"):
        artifacts.find_manifest(str(tmp_path / "dataset"))


def test_leftovers_of_killed_writes_go_and_finished_artifacts_stay(tmp_path: Path) -> None:
    write(tmp_path / "dataset")
    write(tmp_path / "dataset2")
    for name in ("dataset.writing-1a2b", "dataset.old-3c4d", "dataset2.writing-5e6f"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_bytes(b"1")

    gone = artifacts.remove_leftovers(str(tmp_path / "dataset"))

    assert gone == [str(tmp_path / "dataset.old-3c4d"), str(tmp_path / "dataset.writing-1a2b")]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["dataset", "dataset2", "dataset2.writing-5e6f"]


def test_a_folder_that_lost_its_manifest_is_a_leftover(tmp_path: Path) -> None:
    write(tmp_path / "dataset")
    (tmp_path / "dataset" / "manifest.json").unlink()

    assert artifacts.remove_leftovers(str(tmp_path / "dataset")) == [str(tmp_path / "dataset")]
    assert not (tmp_path / "dataset").exists()


def test_leftovers_of_nothing_are_nothing(tmp_path: Path) -> None:
    assert artifacts.remove_leftovers(str(tmp_path / "never" / "was")) == []


def interrupt(path: Path, key: str, name: str, content: bytes) -> None:
    """Begin a resumable artifact, write one file and fail."""
    with (
        pytest.raises(RuntimeError, match="killed"),
        artifacts.write_artifact(str(path), kind="dataset", key=key, resumable=True) as writer,
    ):
        storage.write_bytes(writer.join(name), content)
        raise RuntimeError("killed")


def test_a_resumable_write_finds_what_one_with_its_key_had_finished(tmp_path: Path) -> None:
    path = tmp_path / "dataset"
    interrupt(path, "k1" * 20, "a", b"1")
    assert not path.exists()

    with artifacts.write_artifact(
        str(path), kind="dataset", key="k1" * 20, resumable=True
    ) as writer:
        assert storage.list_files(writer.path) == ["a"]
        storage.write_bytes(writer.join("b"), b"2")

    assert sorted(artifacts.read_manifest(str(path), "dataset").files) == ["a", "b"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["dataset"]


def test_a_resumable_write_takes_nothing_over_from_another_key(tmp_path: Path) -> None:
    path = tmp_path / "dataset"
    interrupt(path, "k1" * 20, "a", b"1")

    with artifacts.write_artifact(
        str(path), kind="dataset", key="k2" * 20, resumable=True
    ) as writer:
        assert storage.list_files(writer.path) == []


def test_leftovers_of_the_current_key_stay_and_those_of_others_go(tmp_path: Path) -> None:
    path = tmp_path / "dataset"
    interrupt(path, "k1" * 20, "a", b"1")
    interrupt(path, "k2" * 20, "a", b"1")

    gone = artifacts.remove_leftovers(str(path), key="k1" * 20)

    assert gone == [f"{path}.writing-{'k2' * 8}"]
    assert [entry.name for entry in tmp_path.iterdir()] == [f"dataset.writing-{'k1' * 8}"]


def test_what_a_killed_process_had_half_written_is_no_part_of_the_artifact(tmp_path: Path) -> None:
    with artifacts.write_artifact(str(tmp_path / "x"), kind="dataset", key="k") as writer:
        storage.write_bytes(writer.join("a"), b"1")
        Path(writer.join("b.1234.tmp")).write_bytes(b"half")

    assert storage.list_files(str(tmp_path / "x")) == ["a", "manifest.json"]


def test_a_place_that_cannot_be_written_is_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")

    with (
        pytest.raises(ArtifactError, match=r"give a folder that can be written to \(run.workdir\)"),
        artifacts.write_artifact(str(tmp_path / "file" / "dataset"), kind="dataset", key="k"),
    ):
        pass
