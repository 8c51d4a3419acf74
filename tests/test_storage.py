"""Files and folders: names, whole files, hashes, object storage and its errors."""

import io
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
