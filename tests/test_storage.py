"""Artifacts: whole or absent, verified by content, and their leftovers go."""

import hashlib
import io
import json
import os
import socket
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs
from s3_server import BUCKET, s3_server

from mtrec import storage
from mtrec.errors import ArtifactError, ConfigError
from mtrec.storage import Manifest


def write(path: Path, content: bytes = b"hello", **details: object) -> Manifest:
    """Write an artifact with one file."""
    with storage.write_artifact(
        str(path), kind="dataset", key="k1", parents={"raw": "p1"}
    ) as writer:
        storage.write_bytes(writer.join("part", "a.bin"), content)
        writer.details.update(details)
    return storage.read_manifest(str(path), "dataset")


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
    with storage.write_artifact(str(path), kind="dataset", key="k") as writer:
        storage.write_bytes(writer.join("a"), b"1")
        assert not path.exists()

    assert storage.find_manifest(str(path)) is not None


def test_a_write_that_fails_leaves_nothing_and_keeps_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "dataset"
    before = write(path, b"old")

    with (
        pytest.raises(RuntimeError, match="killed"),
        storage.write_artifact(str(path), kind="dataset", key="k2") as writer,
    ):
        storage.write_bytes(writer.join("part", "a.bin"), b"new")
        raise RuntimeError("killed")

    assert storage.read_manifest(str(path), "dataset") == before
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
    with storage.write_artifact(str(path), kind="dataset", key="k") as writer:
        storage.write_bytes(writer.join("old.bin"), b"1")
    write(path)

    assert storage.list_files(str(path)) == ["manifest.json", "part/a.bin"]


def test_a_uri_of_a_local_folder_works_like_its_path(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/dataset"
    with storage.write_artifact(uri, kind="dataset", key="k") as writer:
        storage.write_bytes(writer.join("a"), b"1")

    assert storage.find_manifest(uri) == storage.find_manifest(str(tmp_path / "dataset"))
    assert storage.find_manifest(uri) is not None


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
        storage.verify(str(path), manifest)

    assert f"remove {path} and run again" in str(caught.value)


def test_verify_accepts_what_was_written(tmp_path: Path) -> None:
    storage.verify(str(tmp_path / "dataset"), write(tmp_path / "dataset"))


def test_verify_without_hashes_sees_sizes_only(tmp_path: Path) -> None:
    manifest = write(tmp_path / "dataset", b"hello")
    (tmp_path / "dataset" / "part" / "a.bin").write_bytes(b"hellx")

    storage.verify(str(tmp_path / "dataset"), manifest, hashes=False)


def test_verify_names_three_problems_and_counts_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "dataset"
    with storage.write_artifact(str(path), kind="dataset", key="k") as writer:
        for name in "abcde":
            storage.write_bytes(writer.join(name), b"1")
    for name in "abcde":
        (path / name).unlink()
    manifest = storage.read_manifest(str(path), "dataset")

    with pytest.raises(ArtifactError, match="a is missing; b is missing; c is missing; 2 more"):
        storage.verify(str(path), manifest)


def test_a_folder_without_a_manifest_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "a").write_bytes(b"1")

    assert storage.find_manifest(str(tmp_path / "dataset")) is None
    with pytest.raises(ArtifactError, match="holds no dataset"):
        storage.read_manifest(str(tmp_path / "dataset"), "dataset")


def test_another_kind_of_artifact_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "dataset")

    with pytest.raises(ArtifactError, match="holds a dataset, expected a bundle"):
        storage.read_manifest(str(tmp_path / "dataset"), "bundle")


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "dataset"}', '{"surprise": 1}', "\xff"])
def test_a_manifest_that_cannot_be_read_is_an_artifact_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_bytes(text.encode("latin-1"))

    with pytest.raises(ArtifactError, match=r"manifest\.json is damaged"):
        storage.find_manifest(str(tmp_path))


def test_a_manifest_of_another_format_version_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "dataset")
    path = tmp_path / "dataset" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))

    with pytest.raises(ArtifactError, match="format version 99, expected 1"):
        storage.find_manifest(str(tmp_path / "dataset"))


def test_leftovers_of_killed_writes_go_and_finished_artifacts_stay(tmp_path: Path) -> None:
    write(tmp_path / "dataset")
    write(tmp_path / "dataset2")
    for name in ("dataset.writing-1a2b", "dataset.old-3c4d", "dataset2.writing-5e6f"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_bytes(b"1")

    gone = storage.remove_leftovers(str(tmp_path / "dataset"))

    assert gone == [str(tmp_path / "dataset.old-3c4d"), str(tmp_path / "dataset.writing-1a2b")]
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["dataset", "dataset2", "dataset2.writing-5e6f"]


def test_a_folder_that_lost_its_manifest_is_a_leftover(tmp_path: Path) -> None:
    write(tmp_path / "dataset")
    (tmp_path / "dataset" / "manifest.json").unlink()

    assert storage.remove_leftovers(str(tmp_path / "dataset")) == [str(tmp_path / "dataset")]
    assert not (tmp_path / "dataset").exists()


def test_leftovers_of_nothing_are_nothing(tmp_path: Path) -> None:
    assert storage.remove_leftovers(str(tmp_path / "never" / "was")) == []


def interrupt(path: Path, key: str, name: str, content: bytes) -> None:
    """Begin a resumable artifact, write one file and fail."""
    with (
        pytest.raises(RuntimeError, match="killed"),
        storage.write_artifact(str(path), kind="dataset", key=key, resumable=True) as writer,
    ):
        storage.write_bytes(writer.join(name), content)
        raise RuntimeError("killed")


def test_a_resumable_write_finds_what_one_with_its_key_had_finished(tmp_path: Path) -> None:
    path = tmp_path / "dataset"
    interrupt(path, "k1" * 20, "a", b"1")
    assert not path.exists()

    with storage.write_artifact(str(path), kind="dataset", key="k1" * 20, resumable=True) as writer:
        assert storage.list_files(writer.path) == ["a"]
        storage.write_bytes(writer.join("b"), b"2")

    assert sorted(storage.read_manifest(str(path), "dataset").files) == ["a", "b"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["dataset"]


def test_a_resumable_write_takes_nothing_over_from_another_key(tmp_path: Path) -> None:
    path = tmp_path / "dataset"
    interrupt(path, "k1" * 20, "a", b"1")

    with storage.write_artifact(str(path), kind="dataset", key="k2" * 20, resumable=True) as writer:
        assert storage.list_files(writer.path) == []


def test_leftovers_of_the_current_key_stay_and_those_of_others_go(tmp_path: Path) -> None:
    path = tmp_path / "dataset"
    interrupt(path, "k1" * 20, "a", b"1")
    interrupt(path, "k2" * 20, "a", b"1")

    gone = storage.remove_leftovers(str(path), key="k1" * 20)

    assert gone == [f"{path}.writing-{'k2' * 8}"]
    assert [entry.name for entry in tmp_path.iterdir()] == [f"dataset.writing-{'k1' * 8}"]


def test_what_a_killed_process_had_half_written_is_no_part_of_the_artifact(tmp_path: Path) -> None:
    with storage.write_artifact(str(tmp_path / "x"), kind="dataset", key="k") as writer:
        storage.write_bytes(writer.join("a"), b"1")
        Path(writer.join("b.1234.tmp")).write_bytes(b"half")

    assert storage.list_files(str(tmp_path / "x")) == ["a", "manifest.json"]


def test_only_temporary_files_that_nobody_is_writing_are_removed(tmp_path: Path) -> None:
    name = f"a.parquet.{'0' * 32}.tmp"
    for path in (tmp_path / name, tmp_path / "below" / name, tmp_path / "notes.tmp"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"half")

    with storage.write_file(str(tmp_path / "b")) as file:
        file.write(b"whole")
        storage.remove_abandoned(str(tmp_path))

    assert storage.list_files(str(tmp_path)) == ["b", f"below/{name}", "notes.tmp"]
    storage.remove_abandoned(str(tmp_path), recursive=True)
    assert storage.list_files(str(tmp_path)) == ["b", "notes.tmp"]


def test_a_file_whose_writer_fails_does_not_appear(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="killed"),
        storage.write_file(str(tmp_path / "a")) as file,
    ):
        file.write(b"half")
        raise RuntimeError("killed")

    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_an_artifact_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")

    with (
        pytest.raises(ArtifactError, match=r"give a folder that can be written to \(run.workdir\)"),
        storage.write_artifact(str(tmp_path / "file" / "dataset"), kind="dataset", key="k"),
    ):
        pass


def test_an_unknown_scheme_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match="nosuch://"):
        storage.filesystem("nosuch://bucket/x")


def test_writing_bytes_replaces_the_file_and_leaves_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "CURRENT"
    storage.write_bytes(str(path), b"v1")
    storage.write_bytes(str(path), b"v2")

    assert path.read_bytes() == b"v2"
    assert [entry.name for entry in path.parent.iterdir()] == ["CURRENT"]


def test_not_a_number_is_refused_in_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        storage.write_json(str(tmp_path / "x.json"), {"x": float("nan")})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), JSON, max_size=5))
def test_equal_values_have_equal_hashes_whatever_their_order(tree: dict[str, object]) -> None:
    turned = dict(reversed(tree.items()))

    assert storage.hash_values(tree) == storage.hash_values(turned)
    assert storage.hash_values(tree) != storage.hash_values({"tree": tree})


def test_json_is_written_sorted_and_in_plain_utf8(tmp_path: Path) -> None:
    storage.write_json(str(tmp_path / "x.json"), {"b": "毛衣", "a": 1})

    assert (tmp_path / "x.json").read_text("utf-8") == '{\n  "a": 1,\n  "b": "毛衣"\n}\n'
    assert storage.read_json(str(tmp_path / "x.json")) == {"b": "毛衣", "a": 1}


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (("runs/demo", "dataset"), "runs/demo/dataset"),
        (("runs/demo/", "/dataset/"), "runs/demo/dataset"),
        (("s3://bucket/x/", "a", "b"), "s3://bucket/x/a/b"),
        (("/", "a"), "/a"),
        (
            ("s3://bucket/x/?scheme=http&endpoint_override=h:1/", "a"),
            "s3://bucket/x/a?scheme=http&endpoint_override=h:1/",
        ),
        (("what?/x", "a"), "what?/x/a"),
    ],
)
def test_paths_and_uris_join_with_one_slash(parts: tuple[str, ...], joined: str) -> None:
    assert storage.join(*parts) == joined


def test_an_absolute_path_means_the_same_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    assert storage.absolute("runs/demo") == str(tmp_path / "runs" / "demo")
    assert storage.absolute("/runs/demo") == "/runs/demo"
    assert storage.absolute("s3://bucket/x") == "s3://bucket/x"


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("runs/demo/", "demo"),
        ("s3://bucket/bundles/v1?scheme=http", "v1"),
        ("s3://bucket/bundles/v1/", "v1"),
    ],
)
def test_the_last_part_of_a_path_has_neither_slash_nor_query(path: str, name: str) -> None:
    assert storage.base_name(path) == name


def test_a_file_beside_a_uri_keeps_its_scheme_and_query() -> None:
    assert storage.beside("s3://b/x/*.csv?region=r", "b/x/a b.csv") == "s3://b/x/a%20b.csv?region=r"
    assert storage.beside("/data/*.csv", "/data/a b.csv") == "/data/a b.csv"


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    return monkeypatch


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_s3_goes_to_the_endpoint_of_the_environment(aws: pytest.MonkeyPatch, variable: str) -> None:
    with s3_server() as (line, direct):
        aws.setenv(variable, f"http://127.0.0.1:{line.address[1]}")
        storage.write_bytes(f"s3://{BUCKET}/a%20b/x", b"123")
        assert direct.get_file_info(f"{BUCKET}/a b/x").size == 3


def test_s3_goes_to_the_endpoint_of_the_uri(aws: pytest.MonkeyPatch) -> None:
    with s3_server() as (line, direct):
        query = f"scheme=http&endpoint_override=127.0.0.1:{line.address[1]}"
        storage.write_bytes(storage.join(f"s3://{BUCKET}/run?{query}", "x"), b"123")
        assert direct.get_file_info(f"{BUCKET}/run/x").size == 3


def test_s3_is_opened_once_for_each_environment(aws: pytest.MonkeyPatch) -> None:
    aws.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    first, inner = storage.filesystem("s3://bucket/a")
    assert inner == "bucket/a"
    assert storage.filesystem("s3://bucket/b/c")[0] is first
    aws.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:2")
    assert storage.filesystem("s3://bucket/a")[0] is not first


@pytest.mark.slow
def test_a_server_that_refuses_is_asked_again_and_then_told_with_the_remedy(
    aws: pytest.MonkeyPatch,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    aws.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    begin = time.monotonic()
    with (
        pytest.raises(ArtifactError, match="look at the network, the endpoint and the credentials"),
        storage.explained("read", "s3://bucket/run"),
    ):
        storage.exists("s3://bucket/run/x")
    # Five attempts wait up to 1 + 2 + 4 + 8 s.
    assert 0.5 < time.monotonic() - begin < 60


def test_credentials_in_a_uri_are_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="bucket b holds credentials") as caught:
        storage.filesystem("s3://name:password@b/run")
    assert "password" not in str(caught.value)


def test_an_upload_that_is_interrupted_takes_its_part_back() -> None:
    system = fs._MockFileSystem()
    with pytest.raises(KeyboardInterrupt):
        storage._upload(Interrupted(), system, "a")
    assert system.get_file_info("a").type == fs.FileType.NotFound


class Interrupted(io.RawIOBase):
    """A file of which the first read succeeds and the second is stopped by Ctrl-C."""

    reads = 0

    def read(self, size: int = -1) -> bytes:
        self.reads += 1
        if self.reads > 1:
            raise KeyboardInterrupt
        return b"half"
